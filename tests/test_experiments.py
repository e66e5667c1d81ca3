"Grids of runs: that none is lost, repeated or mistaken for another"
import itertools, json, os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, torch
from joblib import parallel_config, register_parallel_backend
from joblib.parallel import LokyBackend

import mnist_fastai.experiments as ex
from conftest import ctrl_c, repo
from mnist_fastai.data import Mnist
from mnist_fastai.experiments import (
    environment, environment_diff, fingerprint, ablation, grids, read_results, reproduce, run_experiment, run_once)
from mnist_fastai.training import Recipe, evaluate, train

pytestmark = pytest.mark.slow

tiny = Recipe('ImprovedNetwork', dict(sizes=(784,16,10)), epochs=2, bs=100)
arms = dict(a=tiny, b=replace(tiny, lr=3e-3))

@pytest.fixture(scope='module')
def few(sample):
    return Mnist(sample.train.subset(slice(500)), sample.valid.subset(slice(200)), sample.test, sample.source)

@pytest.fixture(scope='module')
def made(few, tmp_path_factory):
    "A file with two arms of two seeds, and its runs"
    path = tmp_path_factory.mktemp('made')/'ab.json'
    return path,run_experiment(arms, [1,2], path, few, quiet=True)

@pytest.fixture
def copy(made, tmp_path):
    path = tmp_path/'ab.json'
    path.write_bytes(made[0].read_bytes())
    return path

@pytest.fixture
def no_process(monkeypatch):
    "Fail where a run would be made"
    def never(*args): raise AssertionError('a run was made')
    monkeypatch.setattr(ex, '_run_all', never)

# One run

def test_what_is_left_of_a_run(few):
    res,learn = run_once(tiny, 3, few),train(tiny, few, 3, 'cpu', quiet=True)
    e,h = evaluate(learn),learn.history.epochs
    assert (res['valid_accuracy']==pytest.approx(e['accuracy'], abs=1e-12)
            and res['valid_loss']==h.valid_loss.iloc[-1]==pytest.approx(e['loss'], rel=1e-6))
    assert ([o['epoch'] for o in res['history']]==[1,2]
            and [o['valid_loss'] for o in res['history']]==h.valid_loss.tolist())
    probs = learn.get_preds()[0].as_subclass(torch.Tensor)
    want = [[i, int(p.argmax()), round(float(p.max()), 3)]
            for i,p in enumerate(probs) if p.argmax()!=few.valid.labels[i]]
    assert res['wrong']==want and want
    json.dumps(res, allow_nan=False)

def test_fingerprint(few):
    same = Mnist(few.train.subset(slice(None)), few.valid.subset(slice(None)), few.test, 'sample')
    assert fingerprint(same)==fingerprint(few) and len(fingerprint(few))==16
    for split,part in itertools.product(('train','valid'), ('images','labels')):
        other = Mnist(few.train.subset(slice(None)), few.valid.subset(slice(None)), few.test, 'sample')
        getattr(other[split], part)[-1] += 1
        assert fingerprint(other)!=fingerprint(few), (split, part)

def test_a_run_that_diverged(few):
    res = run_once(replace(tiny, lr=1e30, schedule='constant'), 1, few)
    assert res['valid_loss'] is None and 0<=res['valid_accuracy']<=1
    json.dumps(res, allow_nan=False)

def extra(net, data):
    "More numbers of a run: whether the network is in evaluation mode, how many test digits there are"
    import math
    return dict(training=float(net.training), n_test=np.int64(len(data.test)), accuracy=torch.tensor(.5), lost=math.nan)

def test_more_is_measured(few):
    res = run_once(tiny, 3, few, measure=extra)
    more = {k: res[k] for k in ('training','n_test','accuracy','lost')}
    assert more==dict(training=0, n_test=len(few.test), accuracy=.5, lost=None)
    assert {k: v for k,v in res.items() if k not in ('training','n_test','accuracy','lost','seconds')}=={
        k: v for k,v in run_once(tiny, 3, few).items() if k!='seconds'}
    json.dumps(res, allow_nan=False)

@pytest.mark.parametrize('given,said', [
    (5, 'must give a dict of names and numbers, not 5'), (dict(a='x'), 'must give a dict'),
    (dict(a=torch.zeros(2)), 'must give a dict'), (dict(wrong=1), "gives 'wrong', which a run has already"),
    (dict(threads=1), "gives 'threads'")], ids=str)
def test_what_cannot_be_kept(few, given, said):
    with pytest.raises(ValueError, match=said):
        run_once(replace(tiny, epochs=1), 3, few, measure=lambda net, data: given)

@pytest.mark.parametrize('processes', [1,2])
def test_more_is_measured_in_each_process(few, tmp_path, processes):
    one = replace(tiny, epochs=1)
    run_experiment(dict(a=one), [1,2], tmp_path/'x.json', few, processes=processes, quiet=True, measure=extra)
    for o in read_results(tmp_path/'x.json'): assert (o['training'],o['n_test'],o['accuracy'],o['lost'])==(0,0,.5,None)

# Precision

@pytest.fixture
def fastest(monkeypatch):
    "A function that says what is fastest here"
    import mnist_fastai.callbacks as callbacks
    def say(precision): monkeypatch.setattr(callbacks, 'fastest_precision', lambda device='cpu': precision)
    return say

def test_the_precision_of_a_run_is_that_of_this_machine(few, tmp_path, fastest, monkeypatch):
    "A run in bfloat16 is not what a machine makes where float32 is the fastest, though the recipe is the same"
    recipe,path = replace(tiny, epochs=1, precision='fastest'),tmp_path/'x.json'
    fastest('bfloat16')
    runs = run_experiment(dict(a=recipe), [1], path, few, quiet=True) # in a process that could measure otherwise
    assert runs[0]['precision']=='bfloat16' and runs[0]['recipe']['precision']=='fastest'
    assert run_experiment(dict(a=recipe), [1], path, few, quiet=True)==runs
    table,said = reproduce(runs, ['a'], [1], few, quiet=True)
    assert table.equal.all() and said=='made in the same environment: equal, bit for bit'
    fastest('float32')
    with pytest.raises(ValueError, match='precision bfloat16 there, float32 here'):
        run_experiment(dict(a=recipe), [1], path, few, quiet=True)
    table,said = reproduce(runs, ['a'], [1], few, quiet=True)
    assert said=='made otherwise (precision bfloat16 there, float32 here): they may differ as seeds do'
    new = run_experiment(dict(a=recipe), [1], path, few, quiet=True, stale='replace')
    assert new[0]['precision']=='float32'

def test_runs_without_a_precision_are_float32(few, fastest):
    "Old files do not have it, neither in the run nor in its recipe"
    here = environment(few)
    old = dict(arm='a', seed=1, recipe={k: v for k,v in vars(tiny).items() if k!='precision'}, wrong=[], **here)
    assert environment_diff(old, tiny, here)==[]
    assert environment_diff(old, replace(tiny, precision='bfloat16'), here)==[
        'precision float32 there, bfloat16 here']*2 # what the recipe says, and what was taken
    fastest('bfloat16')
    assert set(environment_diff(old, replace(tiny, precision='fastest'), here))=={
        'precision float32 there, fastest here','precision float32 there, bfloat16 here'}

# Grids

def test_a_grid(made, few):
    path,runs = made
    assert [(o['arm'],o['seed']) for o in runs]==[('a',1),('b',1),('a',2),('b',2)]
    assert sorted(read_results(path), key=lambda o: (o['seed'],o['arm']))==runs
    here = json.loads(json.dumps(environment(few)))
    for o in runs:
        assert {k: o[k] for k in here}==here and o['threads']==1 and environment_diff(o, arms[o['arm']], here)==[]
        assert Recipe(**o['recipe'])==replace(arms[o['arm']], kwargs=dict(sizes=[784,16,10]))
    assert sorted(os.listdir(path.parent))==['.ab.json.lock','ab.json'] # nothing half-written

def test_a_run_of_a_grid_is_the_run_made_here_with_one_thread(made, few):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try: here = run_once(arms['b'], 2, few)
    finally: torch.set_num_threads(before)
    there = made[1][-1]
    assert {k: there[k] for k in here if k!='seconds'}=={k: v for k,v in here.items() if k!='seconds'}

def test_nothing_is_made_twice(copy, few, made, no_process):
    before = copy.read_bytes()
    assert run_experiment(arms, [1,2], copy, few)==made[1]
    assert run_experiment(dict(b=arms['b']), [2], copy, few)==made[1][-1:]
    assert copy.read_bytes()==before

def test_only_what_is_missing_is_made(copy, few, made, capsys):
    runs = run_experiment(arms, [1,2,3], copy, few, processes=1)
    assert runs[:4]==made[1] and {o['seed'] for o in runs[4:]}=={3}
    out = capsys.readouterr().out
    assert out.count('\n')==2 and '1 of 2  a, seed 3: ' in out and '2 of 2  b, seed 3: ' in out

@pytest.mark.parametrize('change,said', [
    (dict(recipe=dict(lr=.1)), 'lr 0.001 there, 0.1 here'),
    (dict(recipe=dict(kwargs=dict(sizes=(784,8,10)))), r'sizes \[784, 16, 10\] there'),
    (dict(versions='torch'), 'torch .* there, 9.9 here'),
    (dict(versions='mnist_fastai'), 'mnist_fastai .* there, 9.9 here'),
    (dict(digits='0'*16), 'digits .* there, 0000000000000000 here'),
    (dict(capability='NONE'), 'capability .* there, NONE here'),
    (dict(threads=7), 'threads 1 there, 7 here'),
    (dict(device='cuda'), 'device cpu there, cuda here')], ids=str)
def test_what_was_made_otherwise_is_not_used_in_silence(copy, few, made, no_process, monkeypatch, change, said):
    here = environment(few)
    if 'versions' in change: here['versions'] = here['versions'] | {change['versions']: '9.9'}
    here |= {k: v for k,v in change.items() if k in ('digits','capability','threads','device')}
    monkeypatch.setattr(ex, 'environment', lambda data, device='cpu': here)
    now,before = {k: replace(v, **change.get('recipe', {})) for k,v in arms.items()},copy.read_bytes()
    with pytest.raises(ValueError, match=said): run_experiment(now, [1,2], copy, few)
    assert copy.read_bytes()==before
    assert run_experiment(now, [1,2], copy, few, stale='keep')==made[1]
    with pytest.raises(AssertionError, match='a run was made'): run_experiment(now, [1,2], copy, few, stale='replace')

def test_replaced(copy, few, made):
    runs = run_experiment(dict(a=replace(tiny, epochs=1), b=arms['b']), [1,2], copy, few, stale='replace', quiet=True)
    assert [len(o['history']) for o in runs]==[1,2,1,2] and runs[1]==made[1][1] and len(read_results(copy))==4

@pytest.mark.parametrize('kwargs,said', [
    (dict(arms={}), 'arms of a grid'),
    (dict(arms=dict(a='Network')), 'arms of a grid'),
    (dict(seeds=[]), 'different whole numbers'),
    (dict(seeds=[1,1]), 'different whole numbers'),
    (dict(seeds=[-1]), 'different whole numbers'),
    (dict(seeds=['1']), 'different whole numbers'),
    (dict(stale='yes'), "stale is 'error'"),
    (dict(processes=0), 'processes')], ids=str)
def test_bad_arguments(few, tmp_path, no_process, kwargs, said):
    with pytest.raises(ValueError, match=said):
        run_experiment(**(dict(arms=arms, seeds=[1], path=tmp_path/'x.json', data=few) | kwargs))
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('content', [
    '', '{', '[]',
    '{"format":"other","runs":[]}',
    '{"format":"mnist_fastai experiment 1"}',
    '{"format":"mnist_fastai experiment 1","runs":[1]}',
    '{"format":"mnist_fastai experiment 1","runs":[{"arm":"a"}]}',
    '\0\1'])
def test_a_file_that_is_none(tmp_path, few, no_process, content):
    path = tmp_path/'x.json'
    path.write_text(content)
    with pytest.raises(ValueError, match='holds no results, or is damaged'): read_results(path)
    with pytest.raises(ValueError, match='holds no results, or is damaged'): run_experiment(arms, [1], path, few)
    assert path.read_text()==content

def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match='cannot be read .*: correct the path'): read_results(tmp_path/'none.json')

def test_one_grid_at_a_time(copy, few):
    from filelock import FileLock
    with (FileLock(copy.with_name('.ab.json.lock')),
          pytest.raises(ValueError, match='Another process is running a grid into')):
        run_experiment(arms, [9], copy, few)

script = """
import sys
from dataclasses import replace
from mnist_fastai.data import *
from mnist_fastai.experiments import *
from mnist_fastai.training import Recipe
if __name__=='__main__':
    sample = load_mnist(sample=True)
    few = Mnist(sample.train.subset(slice(500)), sample.valid.subset(slice(200)), sample.test, sample.source)
    tiny = Recipe('ImprovedNetwork', dict(sizes=(784,16,10)), epochs=2, bs=100)
    run_experiment(dict(a=tiny, b=replace(tiny, epochs=2000)), [1,2], sys.argv[1], few)
"""

def children(pid):
    if not Path('/proc').exists(): return []
    res = []
    for o in Path('/proc').glob('[0-9]*/stat'):
        try:
            if o.read_text().rsplit(')', 1)[1].split()[1]==str(pid): res.append(int(o.parent.name))
        except OSError: pass
    return res

def workers():
    "Processes of joblib that belong to this one, and are alive"
    return [o for o in children(os.getpid()) if alive(o) and 'popen_loky' in Path(f'/proc/{o}/cmdline').read_text()]

def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]!='Z'
    except OSError: return False

@pytest.mark.skipif(sys.platform=='win32', reason='signals of Unix')
@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL], ids=['Ctrl-C','killed'])
def test_killed_in_the_middle_and_gone_on_with(tmp_path, few, how):
    path,program = tmp_path/'ab.json',tmp_path/'grid.py'
    program.write_text(script)
    p = subprocess.Popen([sys.executable, str(program), str(path)],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         env=os.environ | dict(PYTHONPATH=str(repo)), **ctrl_c)
    for line in p.stdout:
        if '1 of 4' in line: break
    time.sleep(.5)
    kids = children(p.pid)
    p.send_signal(how)
    p.communicate(timeout=60)
    assert p.returncode!=0
    finished = read_results(path)
    assert 1<=len(finished)<4 and all(o['arm']=='a' for o in finished)
    assert len(kids)>=2 # processes with long runs
    for _ in range(100):
        if not any(map(alive, kids)): break
        time.sleep(.1)
    assert not any(map(alive, kids)) # not even where the one that started them had no time to end them
    left = [o for o in os.listdir(tmp_path) if not (how==signal.SIGKILL and o.startswith('.new-'))]
    assert sorted(left)==['.ab.json.lock','ab.json','grid.py'] # killed while writing, it may leave a new file
    runs = run_experiment(dict(a=tiny), [1,2], path, few, quiet=True)
    # finished runs were not made again
    assert all(o in runs for o in finished) and len(runs)==len(read_results(path))==2

def _die(*args): os._exit(9)

def test_a_process_that_dies(tmp_path, few, monkeypatch):
    monkeypatch.setattr(ex, '_one', _die)
    with pytest.raises(RuntimeError, match='A process of the grid died'):
        run_experiment(arms, [1], tmp_path/'x.json', few, quiet=True)
    assert not list(tmp_path.glob('[!.]*')) and not workers()

def test_no_process_is_left_behind(made): assert not workers()

@pytest.mark.skipif(not Path('/dev/shm').exists(), reason='only there it is known where joblib keeps arrays')
def test_no_shared_array_is_left_behind(sample, tmp_path):
    def shared(): return list(Path('/dev/shm').glob(f'joblib_memmapping_folder_{os.getpid()}_*'))
    seen,real = [],ex.atomic_write
    def write(path, content):
        seen.extend(shared())
        return real(path, content)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(ex, 'atomic_write', write)
        run_experiment(dict(a=replace(tiny, epochs=1)), [1,2], tmp_path/'x.json', sample, quiet=True)
    assert seen and not shared() # there while the grid ran

def test_an_error_in_the_middle_ends_the_processes(copy, few, monkeypatch):
    def full(path, content): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(ex, 'atomic_write', full)
    with pytest.raises(OSError): run_experiment(arms, [5,6], copy, few, quiet=True)
    assert not workers()

# Other backends of joblib

def equal_but_for_time(a, b):
    def rest(o): return {k: v for k,v in o.items() if k!='seconds'}
    return list(map(rest, a))==list(map(rest, b))

def test_a_cluster_gives_the_same_runs(made, few, tmp_path):
    distributed = pytest.importorskip('dask.distributed')
    path = tmp_path/'ab.json'
    with (distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster,
          distributed.Client(cluster), parallel_config(backend='dask')):
        runs = run_experiment(arms, [1,2], path, few, quiet=True)
    assert equal_but_for_time(runs, made[1]) and len(read_results(path))==4

class NoGenerator(LokyBackend):
    "As Ray's backend: it cannot give results one by one"
    supports_return_generator = False

def _fails_at_seed_2(key, *args):
    "Instead of a run: a result for seed 1, an error for seed 2"
    if key[1]==2: raise OSError('seed 2 fails')
    return key,dict(ex.machine(), seconds=0., valid_accuracy=.5, wrong=[])

def test_a_backend_without_generators_keeps_a_group_at_a_time(made, few, tmp_path, monkeypatch):
    register_parallel_backend('no generator', NoGenerator)
    with parallel_config(backend='no generator'):
        runs = run_experiment(arms, [1,2], tmp_path/'ab.json', few, quiet=True)
        assert equal_but_for_time(runs, made[1])
        monkeypatch.setattr(ex, '_one', _fails_at_seed_2)
        with pytest.raises(OSError, match='seed 2'):
            run_experiment(arms, [1,2], tmp_path/'x.json', few, quiet=True)
    assert [o['seed'] for o in read_results(tmp_path/'x.json')]==[1,1] # the first group of two was kept

def test_threads_of_one_process_do_not_mix_their_random_numbers(made, few, tmp_path):
    with parallel_config(backend='threading'): runs = run_experiment(arms, [1,2], tmp_path/'ab.json', few, quiet=True)
    assert equal_but_for_time(runs, made[1])

def test_one_process_is_this_one(made, few, tmp_path):
    runs = run_experiment(arms, [1], tmp_path/'ab.json', few, processes=1, quiet=True)
    assert equal_but_for_time(runs, made[1][:2])

def test_a_machine_that_is_not_like_this_one(few, tmp_path, monkeypatch):
    here = environment(few) | dict(processor='another')
    monkeypatch.setattr(ex, 'environment', lambda data, device='cpu': here)
    path = tmp_path/'x.json'
    with pytest.raises(ValueError, match='not like this one .*another here'):
        run_experiment(arms, [1], path, few, quiet=True)
    assert not path.exists()
    runs = run_experiment(arms, [1], path, few, quiet=True, stale='keep')
    assert {o['processor'] for o in runs}=={ex.machine()['processor']} # each run says where it was made

def test_a_disk_that_is_full_loses_no_finished_run(copy, few, made, monkeypatch):
    before = copy.read_bytes()
    def full(path, content): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(ex, 'atomic_write', full)
    with pytest.raises(OSError, match='No space left'): run_experiment(arms, [1,2,3], copy, few, quiet=True)
    assert copy.read_bytes()==before and sorted(os.listdir(copy.parent))==['.ab.json.lock','ab.json']

def test_four_arms():
    a = ablation(p=.3, epochs=3, lr=.01)
    assert (list(a)==['neither','batchnorm','dropout','both']
            and {o.epochs for o in a.values()}=={3} and {o.lr for o in a.values()}=={.01})
    assert [(o.kwargs['p'],o.kwargs['bn']) for o in a.values()]==[(0,False),(0,True),(.3,False),(.3,True)]

def test_rerun(made, few, monkeypatch):
    table,said = reproduce(made[1], ['a'], [1,2], few, quiet=True)
    assert (table.equal.all() and (table.then==table.now).all()
            and said=='made in the same environment: equal, bit for bit')
    forged = [dict(o, valid_accuracy=.99) for o in made[1]]
    with pytest.raises(ValueError, match='came out differently'): reproduce(forged, ['a'], [1], few, quiet=True)
    elsewhere = [dict(o, capability='AVX2', valid_accuracy=.99) for o in made[1]]
    table,said = reproduce(elsewhere, ['a'], [1], few, quiet=True)
    assert not table.equal.any() and 'capability AVX2 there' in said and said.endswith('they may differ as seeds do')

# The committed results

@pytest.mark.parametrize('name', grids())
def test_the_committed_grids(name):
    runs = read_results(repo/'results'/f'{name}.json')
    plan = grids()[name]
    assert {o['arm'] for o in runs}==set(plan)
    by = {a: sorted(o['seed'] for o in runs if o['arm']==a) for a in plan}
    least = 3 if name in ('convolution','augmentation') else 10
    assert all(v==by[next(iter(plan))] for v in by.values()) and len(by[next(iter(plan))])>=least
    for o in runs:
        assert environment_diff(o, plan[o['arm']], {})==[] # the recipe in the file is the recipe of the grid
        assert o['source']=='mnist' and o['threads']==1 and o['valid_accuracy']==1-len(o['wrong'])/10_000
        assert len(o['history'])==plan[o['arm']].epochs and o['history'][-1]['valid_loss']==o['valid_loss']
    assert len({json.dumps([o['versions'],o['capability'],o['processor'],o['digits']], sort_keys=True)
                for o in runs})==1

def test_the_committed_digits(full):
    assert {o['digits'] for name in grids() for o in read_results(repo/'results'/f'{name}.json')}=={fingerprint(full)}

def test_two_seeds_of_two_arms_again(full):
    runs = read_results(repo/'results'/'epochs1.json')
    table,said = reproduce(runs, ['neither','both'], [1,2], full, quiet=True)
    print(said)
    # bit for bit, too, where the environment is the same, or `reproduce` raises
    assert len(table)==4 and (abs(table.then-table.now)<.01).all()
