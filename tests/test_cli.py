"`mnist_train`: what it prints, what it writes, and what it says when it cannot"
import errno, json, os, re, signal, subprocess, sys, tempfile, time
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import ctrl_c, repo, run_python, unprivileged
from test_checkpoint import full_disk
from mnist_fastai.checkpoint import load_network, save_network
from mnist_fastai.cli import _parser, main
from mnist_fastai.core import file_lock
from mnist_fastai.loaders import digit_dls
from mnist_fastai.improvement import recipes
from mnist_fastai.models import count_parameters
from mnist_fastai.training import evaluate

posix = pytest.mark.skipif(os.name!='posix', reason='needs POSIX')
NAMES,FILES = ['Network','ImprovedNetwork'],{'Network.pth','ImprovedNetwork.pth','losses.png','results.json'}
CLI = [sys.executable, '-m', 'mnist_fastai.cli']

def clean_env():
    return ({k: v for k,v in os.environ.items() if not k.startswith(('MNIST_FASTAI_','PYTHONUNBUFFERED'))}
            | dict(PYTHONPATH=str(repo)))

def command(*args, **env):
    "The command as a process of its own"
    return subprocess.run([*CLI, *map(str, args)], env=clean_env() | env, text=True, capture_output=True, timeout=300)

def names(folder): return {o.name for o in Path(folder).iterdir() if o.name!='.mnist_train.lock'}

@pytest.fixture(scope='module')
def both(tmp_path_factory):
    "One run of both networks on the sample: the process, and its folder"
    out = tmp_path_factory.mktemp('cli')/'a'/'b'
    return command('--sample', '--epochs', 2, '--out', out), out

@pytest.fixture
def run(capsys, tmp_path):
    "A function that calls `main` in this process: exit code, lines of stdout, lines of stderr"
    def _f(*args, out=tmp_path/'out'):
        capsys.readouterr()
        try: code = main([*map(str, args), '--out', str(out)])
        except SystemExit as e: code = e.code
        res = capsys.readouterr()
        return code,res.out.splitlines(),res.err.splitlines()
    return _f

def told(code, err, *parts, want=1):
    "One line of stderr that is a sentence and holds `parts`"
    assert code==want and len(err)==1 and err[0].startswith('mnist_train: ') and err[0].endswith('.'), (code, err)
    for o in parts: assert str(o) in err[0], (o, err)

# --- a run

def test_the_entry_point():
    ep, = [o for o in entry_points(group='console_scripts') if o.name=='mnist_train']
    assert ep.value=='mnist_fastai.cli:main'

def test_what_a_run_prints(both):
    proc,out = both
    assert proc.returncode==0 and proc.stderr=='', proc.stderr
    lines = proc.stdout.splitlines()
    assert lines[0].startswith('Data: the packaged sample of MNIST') and '4,000 digits' in lines[0]
    assert proc.stdout.isascii() and not set(proc.stdout) & set('\r\x1b\b\t<>'), 'plain text only'
    for n in NAMES:
        line, = [o for o in lines if o.startswith(f'{n}: epochs 2, batch size {recipes[n].bs}')]
        assert line.endswith(', seed 42, float32')
    assert lines[-1]==f'Written to {out}: Network.pth, ImprovedNetwork.pth, losses.png, results.json'
    assert len(lines)<25

def test_the_table_agrees_with_the_results(both):
    proc,out = both
    res = json.loads((out/'results.json').read_text())['networks']
    lines = proc.stdout.splitlines()
    head, = [i for i,o in enumerate(lines) if 'test_accuracy' in o]
    assert lines[head].split()==[
        'parameters','epochs','seconds','valid_loss','valid_accuracy','test_loss','test_accuracy']
    for line,name in zip(lines[head+1:], NAMES):
        n,params,epochs,_,*scores = line.split()
        assert n==name and params==f'{res[name]["parameters"]:,}' and epochs=='2'
        assert scores==[f'{res[name][k]:.4f}' for k in ('valid_loss','valid_accuracy','test_loss','test_accuracy')]

def test_what_a_run_writes(both):
    assert names(both[1])==FILES
    with Image.open(both[1]/'losses.png') as im:
        assert im.format=='PNG' and min(im.size)>300 and len(im.convert('RGB').getcolors(2**24))>3

def test_results(both):
    def refuse(o): raise ValueError(f'{o} is not JSON')
    res = json.loads((both[1]/'results.json').read_text(), parse_constant=refuse)
    assert (set(res)=={'source','networks','versions','device','threads'}
            and res['source']=='sample' and list(res['networks'])==NAMES)
    assert {'python','torch','fastai','mnist_fastai'}<=set(res['versions'])
    for name,row in res['networks'].items():
        net = load_network(both[1]/f'{name}.pth')
        assert {'valid_accuracy','test_accuracy','valid_loss','test_loss','parameters',
                'seconds','epochs','seed','precision','history','recipe'}<=set(row)
        assert row['precision']==net.card['precision']=='float32'
        assert row['parameters']==count_parameters(net) and row['epochs']==2 and row['seed']==42 and row['seconds']>0
        assert ([o['epoch'] for o in row['history']]==[1,2]
                and all(set(o)>={'train_loss','valid_loss','accuracy','seconds'} for o in row['history']))
        assert (abs(row['history'][-1]['accuracy']-row['valid_accuracy'])<1e-6
                and abs(sum(o['seconds'] for o in row['history'])-row['seconds'])<1e-6)
        assert (row['recipe']==net.card['recipe'] and row['recipe']['lr']==recipes[name].lr
                and res['device']==net.card['device'])

def test_the_saved_networks(both, sample):
    for name in NAMES:
        net = load_network(both[1]/f'{name}.pth')
        assert type(net).__name__==name and net.train_sources==('sample',) and net.card['epochs']==2
        assert set(net.card['metrics'])=={'valid_loss','valid_accuracy','test_loss','test_accuracy'}
        for s in 'valid','test':
            got = evaluate(net, s, digit_dls(sample))
            assert (abs(got['accuracy']-net.card['metrics'][f'{s}_accuracy'])<.0021
                    and abs(got['loss']-net.card['metrics'][f'{s}_loss'])<1e-3)

@pytest.mark.slow
def test_a_run_repeats_to_the_byte(both, tmp_path):
    "Whatever else is trained beside it"
    r = command('--sample', '--epochs', 2, '--networks', 'ImprovedNetwork', '--seed', 42, '--out', tmp_path)
    assert r.returncode==0 and names(tmp_path)==FILES - {'Network.pth'}
    assert (tmp_path/'ImprovedNetwork.pth').read_bytes()==(both[1]/'ImprovedNetwork.pth').read_bytes()
    assert list(json.loads((tmp_path/'results.json').read_text())['networks'])==['ImprovedNetwork']
    assert 'Network:' not in r.stdout.replace('ImprovedNetwork:', '')

def test_options_arrive(run, tmp_path, both):
    code,out,err = run('--sample', '--networks', 'Network', 'Network', '--epochs', 1, '--batch-size', 500,
                       '--lr', '.01', '--seed', 3, '--device', 'cpu')
    assert code==0 and err==[] and names(tmp_path/'out')==FILES - {'ImprovedNetwork.pth'}
    net = load_network(tmp_path/'out'/'Network.pth')
    assert (net.card['recipe']=={**net.card['recipe'], 'epochs':1, 'bs':500, 'lr':.01, 'arch':'Network'}
            and net.card['seed']==3 and net.card['device']=='cpu')
    first = load_network(both[1]/'Network.pth')
    assert not torch.equal(net.layers[0].weight, first.layers[0].weight)

@pytest.mark.slow
def test_on_mnist(run, warm, tmp_path):
    code,out,err = run('--networks', 'Network', '--epochs', 1, '--batch-size', 2000, '--root', warm)
    assert (code==0 and out[0].startswith('Data: MNIST, every file verified (50,000 digits')
            and not any('sample' in o for o in out))
    assert (json.loads((tmp_path/'out'/'results.json').read_text())['source']=='mnist'
            and load_network(tmp_path/'out'/'Network.pth').train_sources==('mnist',))

# --- where the data come from

QUICK = '--networks','Network','--epochs','1','--batch-size','4000'

def test_the_sample_by_the_environment(run, monkeypatch):
    monkeypatch.setenv('MNIST_FASTAI_SAMPLE', '1')
    code,out,err = run(*QUICK)
    assert code==0 and err==[] and out[0].startswith('Data: the packaged sample')
    code,out,err = run(*QUICK, '--no-sample') # an option wins
    told(code, err, 'no mirror gives it')
    assert out==[]

@pytest.mark.slow
def test_the_sample_stands_in(run, monkeypatch):
    code,out,err = run(*QUICK)
    assert (code==0 and 'MNIST cannot be reached, so the packaged sample' in out[0]
            and out[1].startswith('Data: the packaged sample'))
    monkeypatch.setenv('MNIST_FASTAI_SAMPLE', '0')
    code,out,err = run(*QUICK)
    told(code, err, 'MNIST_FASTAI_MIRROR')
    assert run(*QUICK, '--sample')[0]==0

def test_no_data(run, tmp_path):
    code,out,err = run('--no-sample', '--root', tmp_path/'empty', '--mirror', tmp_path/'missing')
    told(code, err, 'does not exist', tmp_path/'missing')
    assert out==[] and names(tmp_path/'out')==set()

# --- what cannot be done

@pytest.mark.parametrize('args', [
    '--epochs 0', '--epochs -1', '--epochs abc', '--epochs 1.5', '--epochs nan',
    '--lr 0', '--lr -1', '--lr nan', '--lr inf', '--lr x',
    '--batch-size 0', '--batch-size -5', '--batch-size 2.5',
    '--seed -1', '--seed 4294967296', '--seed x',
    '--networks', '--nothing 3', 'word', '--epochs', '--precision half', '--precision',
])
def test_bad_values(run, args, tmp_path):
    code,out,err = run(*args.split())
    option = args.split()[0] if args!='word' else 'word'
    assert (code==2 and out==[] and err[0].startswith('usage: mnist_train')
            and err[-1].startswith('mnist_train: error: ') and option in err[-1]), err
    assert not any('Traceback' in o for o in err) and not (tmp_path/'out').exists()
    if args.split()[-1] in ('0','-1','abc','nan','x'): assert f'{args.split()[-1]!r} is not a ' in err[-1]

@pytest.mark.parametrize('names_', [['Net'], ['Network','Other']])
def test_a_recipe_that_is_none(run, names_, tmp_path):
    code,out,err = run('--networks', *names_, '--sample')
    told(code, err, f'There is no recipe {names_[-1]!r}', 'use one of', 'Network', 'ImprovedNetwork')
    assert out==[] and not (tmp_path/'out').exists()

def test_bad_values_as_a_process():
    r = command('--epochs', 'abc')
    assert (r.returncode==2 and r.stdout==''
            and r.stderr.splitlines()[-1]
                =="mnist_train: error: argument --epochs: 'abc' is not a whole number from 1 up")

@pytest.mark.parametrize('device', ('abacus','cuda:99','meta','', '-'))
def test_unknown_device(run, device, tmp_path):
    code,out,err = run('--sample', f'--device={device}')
    told(code, err, f'no device {device!r}', 'use cpu')
    assert out==[] and not (tmp_path/'out').exists()

@pytest.mark.parametrize('name', NAMES)
def test_a_run_that_diverges(run, name, tmp_path):
    (tmp_path/'out').mkdir()
    (tmp_path/'out'/f'{name}.pth').write_text('from before')
    code,out,err = run('--sample', '--epochs', 1, '--lr', '1e9', '--networks', name)
    told(code, err, 'no longer', 'number', 'smaller --lr' if name=='Network' else 'smaller')
    assert names(tmp_path/'out')=={f'{name}.pth'} and (tmp_path/'out'/f'{name}.pth').read_text()=='from before'

def test_a_batch_of_one_digit_is_told_first(run, tmp_path):
    code,out,err = run('--sample', '--epochs', 1, '--batch-size', 3)
    told(code, err, 'batch size of 3', 'one digit')
    assert len(out)==1 and names(tmp_path/'out')==set(), 'it came after training began'

def test_batches_of_one_digit(run):
    code,out,err = run('--sample', '--epochs', 1, '--batch-size', 1, '--networks', 'ImprovedNetwork')
    assert code==1 and len(err)==1 and 'Traceback' not in err[0]

def test_out_that_is_a_file(run, tmp_path):
    (tmp_path/'f').write_text('a file')
    for p in tmp_path/'f', tmp_path/'f'/'x':
        code,out,err = run('--sample', '--epochs', 1, out=p)
        told(code, err, f'{p} cannot be written to', '--out')
        assert out==[] and (tmp_path/'f').read_text()=='a file'

@posix
def test_out_that_is_read_only(run):
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o555)
        with unprivileged():
            for p in Path(d), Path(d)/'new':
                code,out,err = run('--sample', '--epochs', 1, out=p)
                told(code, err, f'{p} cannot be written to (Permission denied)')
        assert names(d)==set()
        os.chmod(d, 0o755)

@posix
def test_a_disk_that_is_full(run, tmp_path):
    (tmp_path/'Network.pth').write_text('from before')
    with full_disk(1_000_000): code,out,err = run('--sample', '--epochs', 1, '--batch-size', 4000, out=tmp_path)
    state = f'{tmp_path/"Network.resume"} cannot be written (File too large): make room. The training goes on; '
    assert err.pop(0)==state + 'if it is stopped, it begins again.'
    told(code, err, f'{tmp_path/"Network.pth"} cannot be written to (File too large)',
         '--out', 'Nothing was finished or written')
    assert names(tmp_path)=={'Network.pth'} and (tmp_path/'Network.pth').read_text()=='from before'

@posix
def test_a_disk_that_is_full_after_the_first_network(run, tmp_path, monkeypatch):
    "The message names the file that failed, and what is whole"
    fsync,calls = os.fsync,[]
    def full(fd):
        calls.append(fd)
        if len(calls)>3: raise OSError(errno.ENOSPC, 'No space left on device')
        fsync(fd)
    monkeypatch.setattr(os, 'fsync', full)
    code,out,err = run('--sample', '--epochs', 1, '--batch-size', 4000, out=tmp_path)
    told(code, err, f'{tmp_path/"ImprovedNetwork.pth"} cannot be written to (No space left on device)',
         f'Finished and whole in {tmp_path}: Network.pth.')
    assert names(tmp_path)=={'Network.pth','Network.resume','ImprovedNetwork.resume'}
    assert load_network(tmp_path/'Network.pth')

def test_two_commands_into_one_folder(run, tmp_path):
    "Their files would be mixed: one network of the first run, and the results of the second"
    with file_lock(tmp_path/'out'/'.mnist_train.lock'):
        code,out,err = run('--sample', '--epochs', 1)
    told(code, err, 'Another mnist_train writes into', tmp_path/'out', '--out')
    assert out==[] and names(tmp_path/'out')==set()

@pytest.mark.slow
def test_two_processes_into_one_folder(tmp_path):
    args = ['--sample', '--epochs', '40', '--batch-size', '500', '--networks', 'Network', '--out', str(tmp_path)]
    first = subprocess.Popen([*CLI, *args], env=clean_env(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert first.stdout.readline().startswith('Data: ')
        second = command(*args)
        assert second.returncode==1 and second.stdout=='' and 'Another mnist_train' in second.stderr
    finally:
        first.kill()
        first.communicate()
    (tmp_path/'Network.resume').unlink(missing_ok=True)
    # the lock went with it
    assert command('--sample', '--epochs', 1, '--batch-size', 4000, '--networks', 'Network',
                   '--out', tmp_path).returncode==0

def test_an_import_that_fails(tmp_path):
    for module in 'mnist_fastai.files','torch':
        r = run_python(f"import sys; sys.modules['{module}'] = None; from mnist_fastai.cli import main; "
                       "sys.exit(main(['--out', sys.argv[1]]))", tmp_path)
        assert (r.returncode==1 and r.stderr.startswith('mnist_train: ') and module in r.stderr
                and r.stderr.count('\n')==1), r.stderr

# --- Ctrl-C

def start(*args):
    "The command as a process that can be stopped"
    return subprocess.Popen([*CLI, *map(str, args)], env=clean_env(), text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **ctrl_c)

def until(p, name, epoch):
    "Read what `p` prints until an epoch of a network is done"
    begun = False
    for line in p.stdout:
        begun |= line.startswith(f'{name}:')
        if begun and line.split()[:1]==[str(epoch)]: return

def results(folder):
    "What the command has found, without the seconds"
    res = json.loads((Path(folder)/'results.json').read_text())['networks']
    for o in res.values():
        for row in (o, *o['history']): row.pop('seconds')
    return res

@pytest.fixture(scope='module')
def twelve(tmp_path_factory):
    "The results of twelve epochs that were not stopped"
    out = tmp_path_factory.mktemp('twelve')
    assert command('--sample', '--epochs', 12, '--batch-size', 2000, '--out', out).returncode==0
    return results(out)

@pytest.mark.slow
@posix
@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL], ids=['Ctrl-C','killed'])
@pytest.mark.parametrize('during,finished', [('Network',set()), ('ImprovedNetwork',{'Network.pth'})])
def test_stopped_and_gone_on_with(tmp_path, twelve, during, finished, how):
    args = '--sample', '--epochs', 12, '--batch-size', 2000, '--out', tmp_path
    for o in FILES: (tmp_path/o).write_text('from before')
    p = start(*args)
    until(p, during, 2)
    p.send_signal(how)
    out,err = p.communicate(timeout=60)
    assert 'Traceback' not in err and 'Written to' not in out, err
    states = {f'{during}.resume', *(o.replace('.pth', '.resume') for o in finished)}
    left = {o for o in names(tmp_path) if not (how==signal.SIGKILL and o.startswith('.new-'))}
    assert left in (FILES | states, FILES | states - {f'{during}.resume'} | {'Network.resume'})
    for o in FILES - finished: assert (tmp_path/o).read_text()=='from before'
    for o in finished: assert load_network(tmp_path/o).card['epochs']==12
    if how==signal.SIGINT:
        said, = err.split('\n')[1:-1] # after the line of the ^C
        assert p.returncode==130 and said.startswith('Stopped. ')
        assert all(o in said for o in finished or ['Nothing was finished or written'])
        assert said.endswith(' The same command goes on after the last finished epoch.')
    told = command(*args)
    assert told.returncode==0 and told.stderr=='', told.stderr
    goes_on = [o for o in told.stdout.splitlines() if o.startswith('This training ')]
    assert re.fullmatch(rf'This training goes on after epoch \d+ of 12: .*/{during}.resume', goes_on[-1])
    assert len(goes_on)==len(states) and all('was finished before' in o for o in goes_on[:-1])
    assert names(tmp_path)==FILES and results(tmp_path)==twelve

@posix
@pytest.mark.slow
def test_a_state_of_other_options(run, tmp_path):
    "One sentence, before anything is trained; also for the second network"
    args,out = ('--sample', '--batch-size', '2000'),tmp_path/'out'
    p = start(*args, '--epochs', 30, '--networks', 'ImprovedNetwork', '--out', out)
    until(p, 'ImprovedNetwork', 2)
    p.kill()
    p.communicate()
    before,path = names(out),out/'ImprovedNetwork.resume'
    code,lines,err = run(*args, '--epochs', 3)
    told(code, err, f'{path} holds a stopped training with epochs 30, not 3: start that one again, or delete the file')
    assert len(lines)==1 and names(out)==before
    path.write_bytes(path.read_bytes()[:-100])
    code,lines,err = run(*args, '--epochs', 30)
    told(code, err, f'{path} is damaged', 'delete it')
    path.unlink()
    assert run(*args, '--epochs', 1)[0]==0 and names(out)==FILES

# --- other networks

def test_a_convolutional_network(run, tmp_path):
    "Named alone: its module is found, and its recipe decides"
    code,out,err = run('--networks', 'ConvNet', '--sample', '--epochs', 1, '--precision', 'float32')
    assert code==0 and any(o.startswith('ConvNet: epochs 1, batch size 128') and o.endswith(', float32') for o in out)
    res = json.loads((tmp_path/'out'/'results.json').read_text())['networks']['ConvNet']
    net = load_network(tmp_path/'out'/'ConvNet.pth')
    assert type(net).__name__=='ConvNet' and res['recipe']==net.card['recipe'] and res['recipe']['precision']=='float32'
    assert names(tmp_path/'out')=={'ConvNet.pth','losses.png','results.json'}

def test_the_precision_is_chosen_or_measured(run, tmp_path, monkeypatch):
    import mnist_fastai.callbacks as callbacks
    monkeypatch.setattr(callbacks, 'fastest_precision', lambda device: 'bfloat16')
    for given,taken in (('bfloat16','bfloat16'), ('fastest','bfloat16'), ('float32','float32')):
        code,out,err = run(*QUICK, '--sample', '--precision', given)
        assert code==0 and any(o.startswith('Network: ') and o.endswith(f', {taken}') for o in out), err
        row = json.loads((tmp_path/'out'/'results.json').read_text())['networks']['Network']
        assert (row['precision'],row['recipe']['precision'])==(taken,given)

@posix
@pytest.mark.parametrize('module', ('mnist_fastai.files','torch'))
def test_stopped_while_importing(tmp_path, module):
    r = run_python('''
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, *args):
        if name==sys.argv[1]: os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from mnist_fastai.cli import main
sys.exit(main(['--sample', '--out', sys.argv[2]]))
''', module, tmp_path/'out')
    assert r.returncode==130 and r.stderr=='\nStopped. Nothing was finished or written.\n' and r.stdout=='', r.stderr

# --- help

def test_help_names_every_option():
    r = command('--help')
    assert r.returncode==0 and r.stderr==''
    options = [s for a in _parser()._actions for s in a.option_strings]
    assert {'--out','--networks','--epochs','--batch-size','--lr','--precision','--seed','--device',
            '--sample','--no-sample','--mirror','--root'}<=set(options)
    for o in options: assert o in r.stdout
    for a in _parser()._actions: assert a.help, a

def test_help_is_quick():
    r = run_python('''
import sys
from mnist_fastai.cli import main
try: main(['--help'])
except SystemExit: pass
print([o for o in ('torch','numpy','fastai','matplotlib','pandas','torchvision') if o in sys.modules])
''')
    assert r.stdout.splitlines()[-1]=='[]', r.stdout[-300:]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        command('--help')
        seconds.append(time.perf_counter()-start)
    assert min(seconds)<2
