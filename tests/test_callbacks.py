"Precision, label smoothing, averaged weights, and a training that goes on after a stop"
import errno, os, pickle, random, signal, subprocess, sys, tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np, pytest, torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.learner import CancelBatchException, CancelValidException
from torch import nn

import mnist_fastai.callbacks as callbacks
from conftest import repo, unprivileged
from mnist_fastai.callbacks import *
from mnist_fastai.convolution import ConvNet
from mnist_fastai.data import Mnist
from mnist_fastai.loaders import digit_dls
from mnist_fastai.models import Network, register_model
from mnist_fastai.training import Recipe, digit_learner, evaluate, train

posix = pytest.mark.skipif(os.name!='posix', reason='needs POSIX')

@register_model
class Tied(nn.Module):
    "Two layers with one matrix, and dropout"
    def __init__(self, n=28):
        super().__init__()
        self.a,self.b = nn.Linear(28, 28),nn.Linear(28, 28)
        self.b.weight = self.a.weight
        self.norm,self.drop,self.head = nn.BatchNorm1d(784),nn.Dropout(.2),nn.Linear(784, 10)
    def forward(self, x):
        x = self.b(self.a(x.view(-1, 28, 28)).relu()).relu().flatten(1)
        return self.head(self.drop(self.norm(x)))

linear = Recipe('Network', dict(sizes=(784,16,10)), epochs=4, bs=100)
conv = Recipe('ConvNet', dict(blocks=((2,),)), epochs=4, bs=100, lr=1e-2)
recipes = dict(
    Network=linear,
    constant=replace(linear, schedule='constant'),
    dropout=Recipe('ImprovedNetwork', dict(sizes=(784,16,10), p=.3), epochs=4, bs=100, lr=5e-3, wd=.1, sqr_mom=.99),
    everything=replace(conv, augment=dict(rotate=10, elastic=.5), label_smoothing=.1, ema=.9, precision='bfloat16'),
    own=Recipe('Tied', epochs=4, bs=100, ema=.9))

@pytest.fixture(scope='module')
def few(sample):
    return Mnist(sample.train.subset(slice(500)), sample.valid.subset(slice(200)), sample.test, sample.source)

class Stop(Callback):
    "Ctrl-C at an event of an epoch, counted from 0"
    order = 70
    def __init__(self, epoch, where): self.at,self.where = epoch,where
    def _stop(self, where):
        if self.epoch==self.at and self.where==where: raise KeyboardInterrupt
    def before_batch(self): self._stop('batch' if self.training else 'validation')
    def after_pred(self): self._stop('prediction')
    def after_epoch(self): self._stop('epoch')

def run(recipe, data, *cbs, seed=3, **kwargs): return train(recipe, data, seed, 'cpu', quiet=True, cbs=cbs, **kwargs)

def random_states(learn):
    "Of all generators, as plain data"
    order = learn.dls.train.order.get_state().tolist()
    return torch.get_rng_state().tolist(),order,random.getstate(),[o.tolist() if o is not None and hasattr(o, 'tolist')
                                                                   else o for o in np.random.get_state()]

def weights(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}

def everything(learn):
    "All that must be equal, bit for bit: as plain data"
    h,r = learn.history,learn.recorder
    return dict(weights={k: v.tolist() for k,v in learn.model.state_dict().items()}, random=random_states(learn),
                epochs=h.epochs.drop(columns='seconds').values.tolist(), batches=h.batches.values.tolist(),
                optimizer=repr(callbacks._plain(learn.opt.state_dict())), lrs=list(r.lrs), iters=list(r.iters),
                losses=[float(o) for o in r.losses], values=[list(o) for o in r.values],
                sources=learn.model.train_sources, train_iter=learn.train_iter)

def check_equal(a, b):
    for k in a: assert a[k]==b[k], k

@pytest.fixture(scope='module')
def whole(few):
    "Each training without a stop"
    res = {}
    for k,recipe in recipes.items(): res[k] = everything(run(recipe, few))
    return res

# --- precision

def test_the_choice_of_a_precision(monkeypatch):
    for o in ('float32','bfloat16'): assert choose_precision(o)==o
    monkeypatch.setattr(callbacks, 'fastest_precision', lambda device: f'measured on {device}')
    assert choose_precision('fastest', torch.device('cuda:1'))=='measured on cuda'
    with pytest.raises(ValueError, match="no precision 'half': use one of float32, bfloat16, fastest"):
        choose_precision('half')

@pytest.mark.parametrize('device', ('cuda','cuda:1','mps'))
def test_nothing_is_measured_on_a_gpu(device): assert fastest_precision(device)=='float32'

def test_a_measurement_changes_no_random_number():
    "Else the first training of a process would differ from the second"
    torch.manual_seed(1)
    before = torch.get_rng_state()
    fastest_precision.cache_clear()
    assert fastest_precision() in ('float32','bfloat16') and torch.equal(torch.get_rng_state(), before)
    assert not torch.is_autocast_enabled('cpu')

@pytest.mark.parametrize('slow,want', [('float32','bfloat16'), ('bfloat16','float32'), (None,'float32')])
def test_the_faster_precision_is_chosen(monkeypatch, slow, want):
    "By a clock that gives one of the two longer times; at a tie it is float32"
    now = [0.]
    real = torch.autocast
    def autocast(*args, enabled=True):
        now[0] += 2 if slow==('bfloat16' if enabled else 'float32') else 1
        return real(*args, enabled=enabled)
    monkeypatch.setattr(torch, 'autocast', autocast)
    monkeypatch.setattr(callbacks.time, 'process_time', lambda: now[0])
    fastest_precision.cache_clear()
    try: assert fastest_precision()==want
    finally: fastest_precision.cache_clear()

class Watch(Callback):
    "Notes the types of predictions, and whether autocast is on"
    def __init__(self): self.seen = set()
    def after_loss(self):
        out = self.model(self.xb[0]) # outside the callback's own pass
        self.seen.add((self.training, self.pred.dtype, out.dtype, torch.is_autocast_enabled('cpu')))

class Inside(nn.Module):
    "Notes the type of the numbers inside"
    def __init__(self):
        super().__init__()
        self.l,self.seen = nn.Linear(784, 10),[]
    def forward(self, x):
        out = self.l(x.flatten(1))
        self.seen.append((self.training, out.dtype))
        return out

def test_only_the_forward_pass_of_training_is_bfloat16(few):
    net = Inside()
    learn = run(replace(linear, epochs=1, precision='bfloat16'), few, Watch(), net=net)
    assert learn.precision=='bfloat16' and learn.recipe.precision=='bfloat16'
    assert (True,torch.bfloat16) in net.seen and (False,torch.bfloat16) not in net.seen
    assert learn.watch.seen=={(True,torch.float32,torch.float32,False), (False,torch.float32,torch.float32,False)}
    assert {o.dtype for o in net.parameters()}=={torch.float32}
    net.seen.clear()
    evaluate(learn)
    assert {o for _,o in net.seen}=={torch.float32}

def test_bfloat16_is_another_training_and_float32_the_usual(few):
    a,b,c = (run(replace(conv, epochs=1), few, precision=o) for o in ('float32','bfloat16',None))
    assert everything(a)==everything(c) and weights(a).keys()==weights(b).keys() and everything(a)!=everything(b)
    assert (a.precision,b.precision,c.precision)==('float32','bfloat16','float32')

@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError])
def test_a_stop_in_the_forward_pass_leaves_autocast_off(few, error):
    class Breaks(Inside):
        def forward(self, x):
            if self.training: raise error
            return super().forward(x)
    with pytest.raises(error): run(replace(linear, precision='bfloat16'), few, net=Breaks())
    assert not torch.is_autocast_enabled('cpu')

def test_a_batch_that_another_callback_leaves_out(few):
    class Skip(Callback):
        order = BFloat16.order + 1
        def before_batch(self):
            if self.training and self.iter>2: raise CancelBatchException
    net = Inside()
    learn = digit_learner(digit_dls(few, 100, device='cpu'), net, cbs=[BFloat16(),Skip()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert not torch.is_autocast_enabled('cpu') and {*net.seen}=={(True,torch.bfloat16), (False,torch.float32)}

def test_any_other_precision_is_an_error(few):
    with pytest.raises(ValueError, match="There is no precision 'float16'"): run(linear, few, precision='float16')
    with pytest.raises(ValueError, match="There is no precision 'float16'"): replace(linear, precision='float16')

# --- label smoothing

def test_the_loss_of_training_is_smoothed_and_that_of_validation_is_not(few):
    class Spy(Callback):
        order = 90
        def after_loss(self):
            for eps in (0.,.1):
                logits,y = (o.detach().as_subclass(torch.Tensor) for o in (self.pred, self.yb[0]))
                want = F.cross_entropy(logits, y, label_smoothing=eps)
                if want.item()==self.learn.loss.item()==self.learn.loss_grad.item(): seen.add((self.training, eps))
    seen = set()
    learn = run(replace(linear, epochs=1, label_smoothing=.1), few, Spy())
    assert seen=={(True,.1), (False,0.)}
    assert learn.history.epochs.valid_loss.iloc[-1]==pytest.approx(evaluate(learn)['loss'], rel=1e-6)

def test_a_step_by_hand(few):
    "The weights after one step are those of torch's own smoothed loss"
    recipe = replace(linear, epochs=1, bs=500, label_smoothing=.2, schedule='constant')
    learn = run(recipe, few)
    torch.manual_seed(3)
    net = Network((784,16,10))
    opt = torch.optim.Adam(net.parameters(), lr=recipe.lr, betas=(.9,.999), eps=1e-8)
    x,y = few.train[:]
    x,y = x.as_subclass(torch.Tensor),y.as_subclass(torch.Tensor)
    F.cross_entropy(net(x), y, label_smoothing=.2).backward()
    opt.step()
    for a,b in zip(learn.model.parameters(), net.parameters()): assert torch.allclose(a, b, atol=1e-5)

@pytest.mark.parametrize('where', ['batch','prediction','validation'])
def test_after_ctrl_c_the_loss_is_plain(few, where):
    learn = digit_learner(digit_dls(few, 100, device='cpu'), Network((784,10)), cbs=[SmoothLabels(.3),Stop(0, where)])
    with learn.no_bar(), learn.no_logging(), pytest.raises(KeyboardInterrupt): learn.fit(1)
    x,y = torch.randn(5, 10),torch.arange(5)
    assert learn.loss_func(x, y).item()==pytest.approx(F.cross_entropy(x, y).item())

# --- averaged weights

class ByHand(Callback):
    "The same average, step by step"
    order = 76
    def before_fit(self): self.ours,self.validated = None,[]
    def after_batch(self):
        if not self.training:
            self.validated.append(weights(self.learn))
            return
        now = {k: v.clone().double() for k,v in self.model.state_dict().items()}
        if self.ours is None: self.ours = now
        else: self.ours = {k: .9*self.ours[k] + .1*v for k,v in now.items()}

def close(a, b): return all(torch.allclose(a[k].double(), b[k].double(), atol=1e-5) for k in a if 'tracked' not in k)

@pytest.mark.parametrize('name', ['Network','dropout','everything','own'])
def test_the_average_is_that_made_by_hand(few, name):
    learn = run(replace(recipes[name], epochs=2, ema=.9), few, ByHand())
    hand = learn.by_hand
    assert close(hand.ours, weights(learn)) # what remains, the means of batch normalization too
    assert close(hand.validated[-1], weights(learn)) # what was validated
    assert not close(hand.validated[0], weights(learn))
    assert learn.history.epochs.valid_loss.iloc[-1]==pytest.approx(evaluate(learn)['loss'], rel=1e-5)

def test_the_training_itself_is_not_changed_by_the_average(few):
    a,b = (run(replace(recipes['dropout'], ema=o), few) for o in (0.,.9))
    assert a.history.batches.equals(b.history.batches)
    assert not a.history.epochs.valid_loss.equals(b.history.epochs.valid_loss)

def test_measuring_does_not_change_an_averaged_network(few):
    learn = run(recipes['everything'], few)
    before = weights(learn)
    evaluate(learn)
    with learn.no_bar(), learn.no_logging():
        learn.validate()
        learn.get_preds()
        learn.lr_find(num_it=3, show_plot=False, suggest_funcs=None)
    assert all(torch.equal(v, before[k]) for k,v in weights(learn).items())

def test_a_validation_that_is_cancelled_leaves_the_weights_of_the_training(few):
    class Cancel(Callback):
        def before_batch(self):
            if not self.training: raise CancelValidException
    a,b = run(recipes['own'], few),run(recipes['own'], few, Cancel())
    assert a.history.batches.equals(b.history.batches)
    assert all(torch.equal(v, weights(b)[k]) for k,v in weights(a).items())

# --- a training that goes on

stops = [(0,'epoch'), (1,'batch'), (2,'prediction'), (2,'validation'), (3,'epoch')]

@pytest.mark.parametrize('at', stops, ids=str)
@pytest.mark.parametrize('name', recipes)
def test_after_ctrl_c_it_ends_as_without(few, whole, tmp_path, name, at):
    path = tmp_path/'x.resume'
    with pytest.raises(KeyboardInterrupt): run(recipes[name], few, Resume(path), Stop(*at))
    assert path.exists()==(at[0]>0) and not torch.is_autocast_enabled('cpu')
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    check_equal(whole[name], everything(run(recipes[name], few, Resume(path))))
    assert os.listdir(tmp_path)==['x.resume']
    check_equal(whole[name], everything(run(recipes[name], few, Resume(path)))) # all is in the file

def test_it_may_be_stopped_again_and_again(few, whole, tmp_path):
    for epoch in (1,2,3):
        with pytest.raises(KeyboardInterrupt): run(recipes['dropout'], few, Resume(tmp_path/'x'), Stop(epoch, 'batch'))
    check_equal(whole['dropout'], everything(run(recipes['dropout'], few, Resume(tmp_path/'x'))))

def test_each_generator_is_restored(few, tmp_path):
    "Also those that only a callback of yours draws from"
    class Draw(Callback):
        def __init__(self): self.drawn = []
        def before_batch(self):
            if not self.training: return
            self.drawn.append((random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()))
    want = run(linear, few, Draw()).draw.drawn
    with pytest.raises(KeyboardInterrupt): run(linear, few, Resume(tmp_path/'x'), Draw(), Stop(2, 'batch'))
    assert run(linear, few, Resume(tmp_path/'x'), Draw()).draw.drawn==want[10:]

def table(recipe, data, *cbs):
    "Lines of a training, without the seconds"
    with redirect_stdout(StringIO()) as out: train(recipe, data, 3, 'cpu', cbs=cbs)
    return [o.split()[:-1] if o.split()[0]!='This' else o for o in out.getvalue().splitlines()]

def test_the_table_shows_the_earlier_rows_again(few, tmp_path):
    path = tmp_path/'x.resume'
    with pytest.raises(KeyboardInterrupt): run(linear, few, Resume(path), Stop(3, 'batch'))
    want = table(linear, few)
    for how in ('goes on after epoch 3 of 4','was finished before'):
        assert table(linear, few, Resume(path))==[f'This training {how}: its state is in {path}', *want]

def test_after_the_training_the_learner_is_a_usual_one(few, tmp_path):
    "Nothing that follows reads or writes the file"
    learn = run(conv, few, Resume(tmp_path/'x'))
    before,file = weights(learn),(tmp_path/'x').read_bytes()
    with learn.no_bar(), learn.no_logging():
        learn.validate()
        learn.lr_find(num_it=3, show_plot=False, suggest_funcs=None)
        assert all(torch.equal(v, before[k]) for k,v in weights(learn).items())
        learn.fit(1)
    assert (tmp_path/'x').read_bytes()==file and len(learn.history.epochs)==5

def test_measuring_before_the_training_reads_nothing(few, tmp_path):
    run(linear, few, Resume(tmp_path/'x'))
    learn = digit_learner(digit_dls(few, 100, device='cpu'), Network((784,16,10)), cbs=Resume(tmp_path/'x'))
    before = weights(learn)
    with learn.no_bar(), learn.no_logging():
        learn.validate()
        learn.get_preds()
        learn.lr_find(num_it=3, show_plot=False, suggest_funcs=None)
    assert all(torch.equal(v, before[k]) for k,v in weights(learn).items())

def test_the_fastest_precision_stays_what_it_was(few, tmp_path, monkeypatch):
    "A measurement may come out otherwise the second time, or on another machine"
    recipe = replace(conv, precision='fastest')
    monkeypatch.setattr(callbacks, 'fastest_precision', lambda device: 'bfloat16')
    want = everything(run(recipe, few))
    with pytest.raises(KeyboardInterrupt): run(recipe, few, Resume(tmp_path/'x'), Stop(2, 'batch'))
    monkeypatch.setattr(callbacks, 'fastest_precision', lambda device: 'float32')
    learn = run(recipe, few, Resume(tmp_path/'x'))
    assert learn.precision=='bfloat16'
    check_equal(want, everything(learn))
    assert run(recipe, few, Resume(tmp_path/'new')).precision=='float32'

def test_a_learner_without_a_recipe(few, tmp_path):
    "Its digits come in the order of torch's own generator"
    def fit(*cbs):
        torch.manual_seed(5)
        learn = digit_learner(digit_dls(few, 100, device='cpu'), ConvNet(((2,),)), cbs=cbs)
        with learn.no_bar(), learn.no_logging(): learn.fit(3)
        return learn
    want = fit()
    with pytest.raises(KeyboardInterrupt): fit(Resume(tmp_path/'x'), Stop(2, 'batch'))
    assert fit(Resume(tmp_path/'x')).history.batches.equals(want.history.batches)

# --- killed

program = '''
import os, signal, sys
from dataclasses import replace
from fastai.callback.core import Callback
from mnist_fastai.callbacks import Resume
from mnist_fastai.data import *
from mnist_fastai.training import *
sys.path.insert(0, 'tests')
from test_callbacks import recipes
sample = load_mnist(sample=True)
few = Mnist(sample.train.subset(slice(500)), sample.valid.subset(slice(200)), sample.test, sample.source)
class Kill(Callback):
    def before_batch(self):
        if self.epoch==2: os.kill(os.getpid(), signal.SIGKILL)
train(recipes[sys.argv[1]], few, 3, 'cpu', cbs=[Resume(sys.argv[2]), Kill()])
'''

@pytest.mark.slow
@posix
@pytest.mark.parametrize('name', ['Network','dropout','everything'])
def test_killed(few, whole, tmp_path, name):
    p = subprocess.run([sys.executable, '-c', program, name, str(tmp_path/'x')], cwd=repo, text=True,
                       env=os.environ | dict(PYTHONPATH=str(repo)), capture_output=True, timeout=120)
    assert p.returncode==-signal.SIGKILL and len(p.stdout.splitlines())==3, p.stderr
    assert os.listdir(tmp_path)==['x']
    check_equal(whole[name], everything(run(recipes[name], few, Resume(tmp_path/'x'))))

@pytest.mark.slow
@posix
def test_killed_while_it_writes(few, whole, tmp_path):
    "At most one epoch is lost, and the file is always whole"
    dies = program.replace('class Kill', '''
def replace_(a, b, n=[0]):
    n[0] += 1
    if n[0]==3: os.kill(os.getpid(), signal.SIGKILL)
    return real(a, b)
real,os.replace = os.replace,replace_
class Kill''').replace('self.epoch==2', 'self.epoch==9')
    p = subprocess.run([sys.executable, '-c', dies, 'dropout', str(tmp_path/'x')], cwd=repo, text=True,
                       env=os.environ | dict(PYTHONPATH=str(repo)), capture_output=True, timeout=120)
    assert p.returncode==-signal.SIGKILL and len(p.stdout.splitlines())==4, p.stderr
    assert Resume(tmp_path/'x').stopped()['done']==2
    check_equal(whole['dropout'], everything(run(recipes['dropout'], few, Resume(tmp_path/'x'))))

# --- files that no training can go on from

@pytest.fixture(scope='module')
def state(few, tmp_path_factory):
    "A file of a training that was stopped after two epochs"
    path = tmp_path_factory.mktemp('state')/'x.resume'
    with pytest.raises(KeyboardInterrupt): run(linear, few, Resume(path), Stop(2, 'batch'))
    return path

def rejected(path, data, *parts, recipe=linear, **kwargs):
    "The training raises one clear sentence, and the file stays as it is"
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ResumeError) as e: run(recipe, data, Resume(path), **kwargs)
    s = str(e.value)
    assert s.startswith(f'{path} ') and s.endswith('.') and '\n' not in s and len(s)<len(str(path))+400, s
    for o in (*parts, 'delete'): assert o in s, (o, s)
    assert before is None or path.read_bytes()==before

class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir,(str(self.path),)

@pytest.mark.parametrize('how', ['empty','text','half','pickle','torch','hostile','hostile torch','network','list',
                                 'folder'])
def test_files_of_another_kind(few, state, tmp_path, how, recwarn):
    path,evil = tmp_path/'x',tmp_path/'executed'
    if how=='empty': path.touch()
    if how=='text': path.write_text('text')
    if how=='half': path.write_bytes(state.read_bytes()[:-1000])
    if how=='pickle': path.write_bytes(pickle.dumps(dict(format='x')))
    if how=='torch': torch.save(dict(format='x'), path)
    if how=='list': torch.save([1], path)
    if how=='hostile': path.write_bytes(pickle.dumps(Evil(evil)))
    if how=='hostile torch': torch.save(dict(format=Evil(evil)), path)
    if how=='network': path.write_bytes((repo/'models'/'Network.pth').read_bytes())
    if how=='folder': path.mkdir()
    rejected(path, few, *(['not a regular file'] if how=='folder' else ['is damaged or holds no stopped training']))
    assert not evil.exists() and not recwarn.list

@posix
def test_a_pipe_does_not_wait(few, tmp_path):
    os.mkfifo(tmp_path/'x')
    rejected(tmp_path/'x', few, 'not a regular file')

@posix
def test_a_file_that_may_not_be_read(few, state):
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755)
        path = Path(d)/'x'
        path.write_bytes(state.read_bytes())
        path.chmod(0)
        with unprivileged(), pytest.raises(ResumeError, match='cannot be read .Permission denied.: make it readable'):
            run(linear, few, Resume(path))

def test_flipped_bytes_and_cut_files(few, state, tmp_path):
    "One sentence, or the file is taken: never another error"
    good,path,rng = state.read_bytes(),tmp_path/'x',random.Random(2)
    for i in range(60):
        new = bytearray(good)
        if i%3: new[rng.randrange(len(new))] ^= 255
        else: del new[rng.randrange(len(new)):]
        path.write_bytes(new)
        try: run(linear, few, Resume(path))
        except ResumeError as e: assert str(e).startswith(f'{path} ') and '\n' not in str(e)

@pytest.mark.parametrize('change', [
    dict(plan=None), dict(done=0), dict(done=5), dict(done='2'), dict(rows=[]), dict(rows=None), dict(model={}),
    dict(optimizer={}), dict(random={}), dict(callbacks={}), dict(recorder=None),
    dict(format='mnist_fastai training 1')],
    ids=str)
def test_states_with_a_part_that_is_wrong(few, state, tmp_path, change):
    path = tmp_path/'x'
    torch.save(torch.load(state, weights_only=True) | change, path)
    rejected(path, few, 'is damaged or holds no stopped training')

others = [(dict(recipe=replace(linear, lr=.5)), 'lr 0.001, not 0.5'),
          (dict(recipe=replace(linear, epochs=5)), 'epochs 4, not 5'),
          (dict(recipe=replace(linear, bs=50)), 'bs 100, not 50'),
          (dict(recipe=replace(linear, kwargs=dict(sizes=(784,10)))), 'kwargs'),
          (dict(recipe=replace(linear, ema=.9)), 'ema 0.0, not 0.9'),
          (dict(recipe=conv), 'arch Network, not ConvNet'),
          (dict(seed=4), 'seed 3, not 4'),
          (dict(precision='bfloat16'), 'precision float32, not bfloat16')]

@pytest.mark.parametrize('kwargs,said', others, ids=[o[1] for o in others])
def test_the_state_of_another_training(few, state, kwargs, said):
    rejected(state, few, 'holds a stopped training with ', said, 'start that one again', **kwargs)

def test_the_state_of_a_training_with_other_digits(few, state):
    train_ds = few.train.replace(labels=few.train.labels.flip(0))
    rejected(state, Mnist(train_ds, few.valid, few.test, few.source), 'data sample, 500 digits, checksum')

# --- where nothing can be written

def test_a_disk_that_is_full_ends_no_training(few, whole, tmp_path, monkeypatch, capfd):
    "Hours of training are worth more than the state: one line says so, and the last whole state stays"
    real,calls = callbacks.atomic_write,[]
    def full(path, content):
        calls.append(path)
        if len(calls) in (2,3): raise OSError(errno.ENOSPC, 'No space left on device')
        return real(path, content)
    monkeypatch.setattr(callbacks, 'atomic_write', full)
    path = tmp_path/'x'
    with pytest.raises(KeyboardInterrupt): run(recipes['dropout'], few, Resume(path), Stop(3, 'batch'))
    err = capfd.readouterr().err
    assert err==(f'{path} cannot be written (No space left on device): make room. The training goes on; '
                 'if it is stopped, it goes on after epoch 1.\n')
    assert os.listdir(tmp_path)==['x'] and Resume(path).stopped()['done']==1
    check_equal(whole['dropout'], everything(run(recipes['dropout'], few, Resume(path))))

@posix
def test_a_folder_that_is_read_only(few, whole, capfd):
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o555)
        with unprivileged(): learn = run(linear, few, Resume(Path(d)/'x'))
        os.chmod(d, 0o755)
        assert os.listdir(d)==[]
    err = capfd.readouterr().err
    assert 'cannot be written (Permission denied)' in err and 'if it is stopped, it begins again.' in err
    check_equal(whole['Network'], everything(learn))
