"`mnist_final_test`: one evaluation on the test digits for each checkpoint, in a log that nothing else writes"
import json, os, shutil, subprocess, sys
from importlib.metadata import entry_points

import pytest
import torch

from conftest import repo, run_python, unprivileged
from test_checkpoint import full_disk
from mnist_fastai import interpret
from mnist_fastai.checkpoint import load_network, save_network
from mnist_fastai.data import Mnist
from mnist_fastai.loaders import digit_dls
from mnist_fastai.final_test import default_log, final_test, find_log, main, read_log
from mnist_fastai.training import Recipe, evaluate, train

posix = pytest.mark.skipif(os.name!='posix', reason='needs POSIX')
NAMES = 'Network','ImprovedNetwork'

@pytest.fixture
def nets(tmp_path):
    "Copies of the two networks of the course"
    for o in NAMES:
        if not (repo/'models'/f'{o}.pth').exists(): pytest.skip('models/*.pth are not there')
        shutil.copy(repo/'models'/f'{o}.pth', tmp_path)
    return [tmp_path/f'{o}.pth' for o in NAMES]

@pytest.fixture
def log(tmp_path): return tmp_path/'results'/'final_test.json'

@pytest.fixture
def logged(nets, log, full):
    "The log of the two"
    for o in nets: final_test(o, log, data=full)
    return log

@pytest.fixture
def few(sample): return Mnist(sample.train.subset(slice(200)), sample.valid.subset(slice(100)), sample.test, 'sample')

@pytest.fixture
def stranger(few, tmp_path):
    "A network trained on the sample"
    return save_network(
        train(Recipe('Network', dict(sizes=(784,16,10)), epochs=1), few, device='cpu', quiet=True),
        tmp_path/'stranger.pth')

def refuse(path, log, *parts, err=ValueError, **kwargs):
    "One sentence, and a log that is as it was"
    before = log.read_bytes() if log.exists() else None
    with pytest.raises(err) as e: final_test(path, log, **kwargs)
    assert str(e.value).endswith('.') and '\n' not in str(e.value)
    for o in parts: assert str(o) in str(e.value), (o, str(e.value))
    assert (log.read_bytes() if log.exists() else None)==before
    if log.parent.exists(): assert {o.name for o in log.parent.iterdir()}<={log.name, f'.{log.name}.lock'}

# --- the evaluation

def test_the_first_evaluation(nets, log, full, capsys):
    res = final_test(nets[0], log, data=full)
    said, = capsys.readouterr().out.splitlines()
    assert (said.startswith(f'{nets[0]}: test accuracy {100*res["accuracy"]:.2f} %')
            and said.endswith(f'logged in {log}.'))
    net = load_network(nets[0])
    dls = digit_dls(full, device='cpu')
    want = evaluate(net, 'test', dls)
    assert res['logged'] and res['differ']==0 and all(res[k]==want[k] for k in ('accuracy','loss','n'))
    with torch.no_grad(): p = torch.cat([net(xb).softmax(1) for xb,_ in dls.test])
    wrong = {i: (said,q) for i,said,q in res['wrong']}
    assert len(wrong)==round((1-res['accuracy'])*10_000)
    for i in range(10_000):
        assert (i in wrong)==(p[i].argmax().item()!=full.test.labels[i].item())
        if i in wrong: assert wrong[i]==(p[i].argmax().item(), round(p[i].max().item(), 4))
    entry, = read_log(log)
    assert ({**entry, 'logged': True, 'differ': 0}==res and entry['file']=='Network.pth'
            and entry['card']=={k: net.card[k] for k in ('arch','seed','recipe')})
    assert (entry['threads']==torch.get_num_threads() and entry['versions']['python']
            and entry['device']=='cpu' and entry['cpu'] and entry['when'].endswith('+00:00'))

def test_a_second_evaluation_writes_nothing(logged, nets, full, capsys):
    before,stat = logged.read_bytes(),logged.stat()
    capsys.readouterr()
    for o in nets:
        for verify in False,True:
            res = final_test(o, logged, verify, full)
            said = capsys.readouterr().out
            assert not res['logged'] and res['differ']==0 and 'nothing was written' in said and str(logged) in said
    moved = nets[0].rename(nets[0].with_name('other name.pth')) # it is known by what is in it
    assert final_test(moved, logged, data=full)['file']=='Network.pth'
    assert (logged.read_bytes()==before and logged.stat().st_mtime_ns==stat.st_mtime_ns
            and [o['file'] for o in read_log(logged)]==['Network.pth','ImprovedNetwork.pth'])

def test_a_second_evaluation_leaves_no_lock(logged, nets, full):
    (logged.parent/f'.{logged.name}.lock').unlink(missing_ok=True)
    final_test(nets[0], logged, data=full)
    assert list(logged.parent.iterdir())==[logged]

def test_an_entry_is_a_line(logged):
    lines = logged.read_text().splitlines()
    assert len(lines)==4 and json.loads(lines[1].rstrip(','))['file']=='Network.pth'

def test_the_committed_log(full):
    "What the repository's own log says of the networks in models/ still holds"
    if not read_log(repo/default_log): pytest.skip(f'{default_log} is not there')
    for o in NAMES:
        assert find_log(repo/'models'/f'{o}.pth')==repo/default_log
        final_test(repo/'models'/f'{o}.pth', verify=True, data=full)

@pytest.mark.slow
@pytest.mark.parametrize('change', ['accuracy','loss','wrong','said'])
def test_a_log_that_says_otherwise(logged, nets, full, change):
    d = json.loads(logged.read_text())
    o = d['looks'][0]
    if change=='accuracy': o['accuracy'] += .0005
    if change=='loss': o['loss'] += .01
    if change=='wrong': o['wrong'] = o['wrong'][3:]
    if change=='said':
        for w in o['wrong'][:3]: w[1] = (w[1]+1)%10
    logged.write_text(json.dumps(d))
    refuse(nets[0], logged, nets[0], f'predicts {3 if change in ("wrong","said") else 0} of 10,000',
           'the log was changed', data=full)
    assert final_test(nets[1], logged, data=full)['differ']==0

def test_two_predictions_may_differ(logged, nets, full):
    "As much as rounding on another machine may do"
    d = json.loads(logged.read_text())
    d['looks'][0]['wrong'] = d['looks'][0]['wrong'][2:]
    d['looks'][0]['accuracy'] += .0002
    logged.write_text(json.dumps(d))
    assert final_test(nets[0], logged, data=full)['differ']==2

# --- which log

def test_the_same_log_from_every_folder(nets, full, tmp_path, monkeypatch, capsys):
    "A log that is not found would mean a second evaluation"
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path)
    assert final_test('Network.pth', data=full)['logged']
    log = tmp_path/default_log
    assert str(log) in capsys.readouterr().out and [o['file'] for o in read_log(log)]==['Network.pth']
    monkeypatch.chdir(tmp_path/'elsewhere')
    for path in nets[0], '../Network.pth':
        assert not final_test(path, data=full)['logged'] and str(log) in capsys.readouterr().out
    assert final_test(nets[1], data=full)['logged'] and len(read_log(log))==2
    assert not list((tmp_path/'elsewhere').iterdir())

def test_a_new_log_is_where_it_is_found_again(nets, tmp_path, monkeypatch):
    project,trained,other = tmp_path/'project',tmp_path/'project'/'a'/'trained',tmp_path/'other'
    for o in trained,other: o.mkdir(parents=True)
    path = nets[0].rename(trained/'net.pth')
    monkeypatch.chdir(project)
    # the current folder, if it is above the checkpoint
    assert find_log(path)==find_log('a/trained/net.pth')==project/default_log
    monkeypatch.chdir(other)
    assert find_log(path)==trained/default_log # else beside the checkpoint
    for folder in project,trained:
        (folder/'results').mkdir()
        (folder/default_log).write_text('{"format": "mnist_fastai final test 1", "looks": []}')
        assert find_log(path)==folder/default_log # the nearest one above it

def test_a_copy_is_found_in_the_log_of_the_current_folder(nets, tmp_path, monkeypatch, full):
    project = tmp_path/'project'
    project.mkdir()
    monkeypatch.chdir(project)
    final_test(shutil.copy(nets[0], project/'net.pth'), data=full)
    assert find_log(nets[0])==project/default_log # it has the entry
    (tmp_path/'results').mkdir()
    (tmp_path/default_log).write_text('{"format": "mnist_fastai final test 1", "looks": []}')
    assert find_log(nets[0])==project/default_log and find_log(nets[1])==tmp_path/default_log

# --- what is rejected

def test_logits_that_are_not_finite(nets, log, full):
    "The message names the file"
    ck = torch.load(nets[0], weights_only=True)
    for k,v in ck['state_dict'].items():
        if k.endswith('weight'): v.fill_(3e38)
    torch.save(ck, nets[0])
    refuse(nets[0], log, nets[0], 'not finite', data=full)

def test_a_network_of_the_sample(stranger, log): refuse(stranger, log, stranger, "was trained on 'sample'")

def test_the_sample(nets, log, sample): refuse(nets[0], log, 'are of the sample', data=sample)

def test_a_checkpoint_that_is_not_logged(nets, log, full):
    refuse(nets[0], log, f'is not in {log}', verify=True)
    assert not log.parent.exists()
    final_test(nets[0], log, data=full)
    refuse(nets[1], log, f'is not in {log}', verify=True)

@pytest.mark.parametrize('text', [
    '',
    '{"format": "mnist_fastai final test 1", "looks": [',
    '[]',
    '{}',
    '{"format": "mnist_fastai final test 1", "looks": {}}',
    '{"format": "other", "looks": []}',
    '{"format": "mnist_fastai final test 1", "looks": [{"sha256": "0"}]}',
    '"x"',
    '\xff',
])
def test_a_damaged_log(nets, log, text):
    log.parent.mkdir()
    log.write_bytes(text.encode('latin1'))
    refuse(nets[0], log, log, 'is damaged', 'Nothing was written')
    refuse(nets[0], log, log, 'is damaged', verify=True)

def test_a_log_that_is_a_folder(nets, log):
    log.mkdir(parents=True)
    with pytest.raises(OSError, match='cannot be read'): final_test(nets[0], log)

@posix
def test_a_folder_that_cannot_be_written(nets, full, tmp_path):
    folder = tmp_path/'shut'
    folder.mkdir()
    for o in [tmp_path, *tmp_path.parents]:
        if 'pytest' in o.as_posix(): os.chmod(o, 0o755) # so that somebody else gets as far as the folder
    with unprivileged():
        for log in folder/'log.json', folder/'new'/'log.json':
            refuse(nets[0], log, f'{log} cannot be written (Permission denied)', err=OSError, data=full)
    assert list(folder.iterdir())==[]

@posix
def test_a_full_disk(nets, log, full):
    final_test(nets[0], log, data=full)
    with full_disk(100): refuse(nets[1], log, log, 'Nothing was written', err=OSError, data=full)
    assert [o['file'] for o in read_log(log)]==['Network.pth']

def test_stopped_while_evaluating_and_while_writing(nets, log, full, monkeypatch):
    final_test(nets[0], log, data=full)
    before = log.read_bytes()
    def stop(*args): raise KeyboardInterrupt
    for where,name in (interpret,'logits_of'), (os,'fsync'):
        with monkeypatch.context() as m:
            m.setattr(where, name, stop)
            with pytest.raises(KeyboardInterrupt): final_test(nets[1], log, data=full)
        assert log.read_bytes()==before and {o.name for o in log.parent.iterdir()}<={log.name, f'.{log.name}.lock'}
    assert final_test(nets[1], log, data=full)['logged'] # and the lock is free

def test_another_process_was_first(nets, log, full, monkeypatch):
    "Logged by somebody else between our look and our turn to write"
    logits_of,first = interpret.logits_of,[]
    def slow(*args):
        res = logits_of(*args)
        if not first:
            first.append(1)
            final_test(nets[0], log, data=full)
        return res
    monkeypatch.setattr(interpret, 'logits_of', slow)
    assert not final_test(nets[0], log, data=full)['logged'] and len(read_log(log))==1

# --- the command

def test_the_entry_point():
    ep, = [o for o in entry_points(group='console_scripts') if o.name=='mnist_final_test']
    assert ep.value=='mnist_fastai.final_test:main'

def test_the_command(nets, log, full, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr('mnist_fastai.data.load_mnist', lambda **kwargs: full)
    paths = [*map(str, nets)]
    def run(*args): return main([*args, '--log', str(log)]),*(o.splitlines() for o in capsys.readouterr())
    assert run(*paths, '--verify')[0]==1 and not log.exists()
    code,out,err = run(paths[0], str(tmp_path/'none.pth'), paths[1])
    # the others are evaluated
    assert (code==1 and len(out)==2 and len(err)==1 and err[0].startswith('mnist_final_test: ')
            and 'none.pth cannot be read' in err[0])
    code,out,err = run(*paths, '--verify')
    assert code==0 and err==[] and all('nothing was written' in o for o in out) and len(read_log(log))==2
    log.write_text('{')
    code,out,err = run(*paths)
    assert code==1 and len(err)==2 and 'is damaged' in err[0] and log.read_text()=='{'

def test_the_command_where_there_is_no_mnist(nets, log, monkeypatch, capsys):
    monkeypatch.setenv('MNIST_FASTAI_MIRROR', str(log.parent/'none'))
    assert main([str(nets[0]), '--log', str(log)])==1
    err, = capsys.readouterr().err.splitlines()
    assert err.startswith('mnist_final_test: ') and 'none' in err and not log.exists()

def test_stopped(monkeypatch, capsys, nets, log):
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr('mnist_fastai.data.load_mnist', stop)
    assert main([str(nets[0]), '--log', str(log)])==130 and 'The log is whole.' in capsys.readouterr().err

def test_an_import_that_fails(nets):
    for module in 'mnist_fastai.data','torch':
        r = run_python(f"import sys; sys.modules['{module}'] = None; from mnist_fastai.final_test import main; "
                       "sys.exit(main(sys.argv[1:]))", nets[0])
        assert (r.returncode==1 and r.stderr.startswith('mnist_final_test: ') and module in r.stderr
                and r.stderr.count('\n')==1), r.stderr

@pytest.mark.slow
def test_mnist_train_writes_no_log(tmp_path):
    env = {k: v for k,v in os.environ.items() if not k.startswith('MNIST_FASTAI_')} | dict(PYTHONPATH=str(repo))
    args = ['--sample', '--epochs', '1', '--batch-size', '2000', '--networks', 'Network', '--out', 'mine']
    p = subprocess.run([sys.executable, '-m', 'mnist_fastai.cli', *args], cwd=tmp_path, env=env,
                       capture_output=True, text=True, timeout=300)
    assert p.returncode==0, p.stderr
    assert ({o.name for o in tmp_path.iterdir()}=={'mine'}
            and not [o for o in (tmp_path/'mine').iterdir() if 'final' in o.name])
