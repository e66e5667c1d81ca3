"The benchmark of networks: a short run, a training that was killed, and the table"
import os, signal, subprocess, sys
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest, torch

from conftest import ctrl_c, repo, run_python

sys.path.insert(0, str(repo/'benchmarks'))
import networks
from mnist_fastai.checkpoint import load_network
from mnist_fastai.core import UserError, file_lock
from mnist_fastai.data import Mnist
from mnist_fastai.experiments import read_results
from mnist_fastai.interpret import logits_of
from mnist_fastai.stats import compare
from mnist_fastai.training import Recipe

pytestmark = pytest.mark.slow

recipe = Recipe('ConvNet', dict(blocks=((4,),)), epochs=3, bs=100, lr=1e-2, sqr_mom=.99, label_smoothing=.05,
                augment=dict(rotate=8, elastic=.6), precision='fastest')
arms = {'a net': recipe, 'b': replace(recipe, lr=3e-3), 'both': networks.Group({'a net': 1, 'b': 1})}

@pytest.fixture(scope='module')
def few(sample):
    return Mnist(sample.train.subset(slice(400)), sample.valid.subset(slice(200)), sample.test, sample.source)

def run(path, data, names=('a net',), seeds=(1,), stale='error', arms=arms):
    networks.run_all(arms, names, seeds, data, path, stale, quiet=True)
    return read_results(path)

@pytest.fixture(scope='module')
def made(few, tmp_path_factory):
    "Two networks and their ensemble, two seeds each"
    path = tmp_path_factory.mktemp('made')/'nets.json'
    return path,run(path, few, list(arms), (1,2))

learned = 'valid_accuracy','valid_loss','shifts_accuracy','load_digits','history','wrong','parameters','epochs'

def equal(a, b): return all(a[k]==b[k] for k in learned)

def only(runs, arm, seed): return next(o for o in runs if (o['arm'],o['seed'])==(arm,seed))

# The command

def command(*args): return [sys.executable, str(repo/'benchmarks'/'networks.py'), *map(str, args)]

def test_the_short_form_as_a_command(tmp_path):
    path = tmp_path/'short.json'
    names = [list(networks.records)[0], 'fastai SimpleCNN, 0.2 s', 'scikit-learn SVC, 0.2 s']
    p = subprocess.run(command('--short', '--out', path, '--arms', *names), capture_output=True, text=True, timeout=300)
    assert p.returncode==0 and p.stderr=='', p.stderr
    runs = read_results(path)
    assert [o['arm'] for o in runs]==names and {o['source'] for o in runs}=={'sample'}
    for o in runs:
        assert o['seed']==1 and o['threads']==1 and 0<o['valid_accuracy']<1 and o['train_seconds']>0
        assert len(o['wrong'])==round(500*(1-o['valid_accuracy']))
        assert f'| {o["arm"]} | ' in p.stdout
    assert runs[0]['epochs']==1 and runs[0]['precision'] in ('float32','bfloat16')
    assert runs[0]['samples_a_cpu_second']==pytest.approx(4000/(2*runs[0]['train_seconds']), rel=.1)

def test_ctrl_c_ends_with_one_sentence(tmp_path):
    path = tmp_path/'short.json'
    names = list(networks.records)[:2]
    p = subprocess.Popen(command('--short', '--out', path, '--seeds', *range(1, 99), '--arms', *names), text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, **ctrl_c)
    for line in p.stdout:
        if ' %, ' in line: break
    p.send_signal(signal.SIGINT)
    err = p.communicate(timeout=60)[1]
    assert p.returncode==1 and err.strip().startswith('Stopped.') and err.strip().count('\n')==0
    assert len(read_results(path))>=1

@pytest.mark.parametrize('args,says', [
    (['--arms', 'nothing'], "there is no 'nothing'"), (['--short', '--test'], 'leave the other option out'),
    (['--short', '--update-readme'], 'leave the other option out'), (['--budgets', '0'], 'seconds above 0')])
def test_wrong_arguments(args, says, capsys):
    with pytest.raises(SystemExit): networks.main(args)
    assert says in capsys.readouterr().err

# Stops

_killed = '''
import os, signal, sys
sys.path[:0] = ['benchmarks', 'tests']
import networks, test_benchmarks as tb
from pathlib import Path
from mnist_fastai.data import load_mnist, Mnist
d = load_mnist(sample=True)
few = Mnist(d.train.subset(slice(400)), d.valid.subset(slice(200)), d.test, d.source)
class Clock(networks.Clock):
    def after_batch(self): # the second batch of the third epoch
        if self.epoch==2 and self.iter==1: os.kill(os.getpid(), signal.SIGKILL)
networks.Clock = Clock
tb.run(Path(sys.argv[1]), few)
'''

@pytest.mark.skipif(os.name!='posix', reason='needs SIGKILL')
def test_a_killed_run_goes_on_and_gives_the_same(few, made, tmp_path):
    path = tmp_path/'nets.json'
    p = run_python(_killed, path)
    assert p.returncode==-signal.SIGKILL, p.stderr
    assert not path.exists()
    state = torch.load(next((tmp_path/'nets').glob('*.state')), weights_only=True)
    assert state['done']==2
    got = run(path, few)
    assert equal(only(got, 'a net', 1), only(made[1], 'a net', 1))
    assert not list((tmp_path/'nets').glob('*.state')) and (tmp_path/'nets'/'a-net-1.pth').exists()

def steady():
    "In place of `time`: each training loop takes two seconds of the processor and one on the clock"
    cpu,wall = count(0, 2),count()
    return SimpleNamespace(process_time=lambda: next(cpu), perf_counter=lambda: next(wall))

@pytest.mark.parametrize('where', ['after_epoch','after_fit'])
def test_seconds_survive_a_stop(few, made, tmp_path, monkeypatch, where):
    "In the second epoch, which is then lost, or after the last one"
    path = tmp_path/'nets.json'
    class Clock(networks.Clock):
        def stop_here(self):
            if where=='after_fit' or self.epoch==1: raise KeyboardInterrupt
    setattr(Clock, where, Clock.stop_here)
    with monkeypatch.context() as m:
        m.setattr(networks, 'time', steady())
        m.setattr(networks, 'Clock', Clock)
        with pytest.raises(KeyboardInterrupt): run(path, few)
    monkeypatch.setattr(networks, 'time', steady())
    res, = run(path, few)
    assert res['train_seconds']==3 and res['wall_seconds']==3 # three epochs; processor seconds are halved
    assert equal(res, only(made[1], 'a net', 1)) and res['samples_a_cpu_second']==3*400/6

def test_finished_runs_are_not_made_again(made, few, monkeypatch):
    before = made[0].read_bytes()
    for o in networks.makers: monkeypatch.setitem(networks.makers, o, None)
    assert run(made[0], few, list(arms), (1,2))==made[1] and made[0].read_bytes()==before

def test_a_run_that_was_made_otherwise(made, few, tmp_path):
    path = tmp_path/'nets.json'
    path.write_bytes(made[0].read_bytes())
    other = {'a net': replace(recipe, lr=2e-3)}
    with pytest.raises(UserError, match='a net, seed 1.*lr 0.01 there, 0.002 here'): run(path, few, arms=other)
    assert run(path, few, stale='keep', arms=other)==made[1]
    new = only(run(path, few, stale='replace', arms=other), 'a net', 1)
    assert new['recipe']['lr']==2e-3 and len(read_results(path))==len(made[1])

def test_a_run_of_another_process_is_left_to_it(few, tmp_path, capsys):
    path = tmp_path/'nets.json'
    with file_lock(tmp_path/'nets'/'.a-net-1.lock'): networks.run_all(arms, ['a net'], [1], few, path, 'error', True)
    assert 'a net, seed 1: another process is making it' in capsys.readouterr().out and not path.exists()

# What is kept

def test_results_can_be_compared(made):
    row = compare(made[1], [('a net','b')]).iloc[0]
    assert row.n==2 and row.low<=row.difference<=row.high

def test_a_kept_network_is_the_one_of_its_run(made, few):
    for o in made[1]:
        net = load_network(made[0].with_suffix('')/f'{networks.slug(o["arm"], o["seed"])}.pth')
        preds = logits_of(net, few.valid).argmax(1)
        wrong = (preds!=few.valid.labels).nonzero()[:,0].tolist()
        assert [[i,p] for i,p,_ in o['wrong']]==[[i,int(preds[i])] for i in wrong]

def test_an_ensemble_is_the_mean_of_its_members(made, few):
    folder = made[0].with_suffix('')
    def probs(name): return logits_of(load_network(folder/f'{name}.pth'), few.valid).softmax(1)
    torch.testing.assert_close(probs('both-2'), (probs('a-net-2')+probs('b-2'))/2)
    res = only(made[1], 'both', 2)
    assert [o[:2] for o in res['members']]==[['a net',2],['b',2]]
    parts = [only(made[1], o, 2)['train_seconds'] for o in ('a net','b')]
    assert res['train_seconds']==pytest.approx(sum(parts), abs=.02)
    assert res['parameters']==2*only(made[1], 'b', 2)['parameters']

def test_one_network_of_each_row_is_evaluated_on_test(made, few, monkeypatch):
    files = []
    monkeypatch.setattr(networks, 'final_test', lambda file, log, data: files.append((file.name, log, data)))
    networks.evaluate_on_test(arms | {'never trained': recipe}, made[0], 2, few)
    log = repo/'results'/'final_test.json'
    assert files==[('a-net-2.pth', log, few), ('b-2.pth', log, few), ('both-1.pth', log, few)]

def test_an_ensemble_of_new_members_is_made_again(made, few, tmp_path):
    path = tmp_path/'nets.json'
    path.write_bytes(made[0].read_bytes())
    (tmp_path/'nets').mkdir()
    for o in made[0].with_suffix('').glob('*.pth'): (tmp_path/'nets'/o.name).write_bytes(o.read_bytes())
    new = arms | {'both': networks.Group({'a net': 2})}
    res = only(run(path, few, ['both'], arms=new), 'both', 1)
    assert [o[:2] for o in res['members']]==[['a net',1],['a net',2]]

# What a user would pick instead

@pytest.mark.parametrize('seconds,most,want', [
    (10, None, (2,1000)), (14, None, (2,1000)), (100, 14, (14,1000)), (3, None, (1,600)), (.01, None, (1,200))])
def test_whole_epochs_are_chosen_or_a_part_of_one(seconds, most, want):
    # a step of 100 digits takes a second of one core, half a second of two
    assert networks.fitting(1., 1000, 100, seconds, most)==want

@pytest.mark.parametrize('name', list(networks.fits))
def test_others_are_limited_to_their_seconds(name, few):
    torch.set_num_threads(1)
    res = networks.fits[name](few, 1, .1, 12)
    assert res['digits_seen']<=400 and res['epochs']>=1 and 0<=res['valid_accuracy']<=1 and 0<=res['load_digits']<=1
    assert len(res['wrong'])==round(200*(1-res['valid_accuracy'])) and res['train_seconds']<2

def test_svc_stays_within_its_seconds(sample, monkeypatch):
    "Also where seconds grow faster than is taken for granted"
    def timed_fit(model, ds):
        clock = networks.Clock()
        clock.cpu_seconds = (len(ds)/100)**2.8
        return model.fit(networks.pixels(ds), ds.labels.numpy()),clock
    monkeypatch.setattr(networks, 'timed_fit', timed_fit)
    res = networks.fit_svc(sample, 1, 300, 100)
    assert 200<res['train_seconds']<=300
    assert res['train_seconds']==pytest.approx((res['digits_seen']/100)**2.8/2, abs=.01)

# The table

def test_the_table(made, tmp_path):
    text = networks.markdown(made[1], ['b'], {only(made[1], 'b', 1)['sha256']: .5})
    rows = [o.split(' | ') for o in text.splitlines() if o.startswith('| ')]
    assert [o[0] for o in rows[1:]]==['| b','| a net','| both'] and len({len(o) for o in rows})==1
    accs = torch.tensor([100*only(made[1], 'b', i)['valid_accuracy'] for i in (1,2)], dtype=torch.double)
    assert rows[1][5]==f'{accs.mean():.2f} ± {accs.std():.2f}' and rows[1][4]=='2' and rows[1][-1].startswith('50.00')
    for o in ('seeds 1, 2', 'sample', torch.__version__.split('+')[0], 'cpu', 'one thread', made[1][0]['processor']):
        assert o in text, o
    readme = tmp_path/'README.md'
    readme.write_text('before <!-- networks -->old<!-- /networks --> after')
    networks.update_readme(text, readme)
    assert readme.read_text()==f'before <!-- networks -->\n{text}\n<!-- /networks --> after'
    readme.write_text('no marks')
    with pytest.raises(UserError, match='once each'): networks.update_readme(text, readme)

def test_the_readme_has_a_place_for_the_table():
    text = (repo/'benchmarks'/'README.md').read_text(encoding='utf-8')
    assert text.count('<!-- networks -->')==text.count('<!-- /networks -->')==1

def test_digits_that_all_networks_get_wrong(capsys):
    runs = [dict(wrong=[[3,7,.9],[5,1,.5]]), dict(wrong=[[5,2,.8]]), dict(wrong=[[1,2,.8],[5,1,.8]])]
    assert networks.hard_digits(runs)==[5] and networks.hard_digits([])==[]
    networks.print_digits(runs, [4]*10)
    assert 'position     5, label 4, predicted 1 (2 times), 2 (1 times)' in capsys.readouterr().out
