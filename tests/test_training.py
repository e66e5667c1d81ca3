"The loop and the Learner that does the same, what a run remembers, how it is measured, and the two recipes"
import copy, io, pickle, re, sys, time, types
from contextlib import redirect_stdout
from dataclasses import FrozenInstanceError, replace
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

# not *: it would bring test_* functions
from fastai.basics import (Adam, Callback, CrossEntropyLossFlat, OptimWrapper, accuracy, error_rate, load_learner,
                           noop, set_seed, top_k_accuracy)
from fastai.callback.training import ShortEpochCallback
import fastai.callback.fp16 # with it, `load_learner` goes another way
from fastai.callback.progress import ProgressCallback
from fastai.interpret import ClassificationInterpretation
import mnist_fastai.training
from mnist_fastai.data import DataInfo, Digits, Mnist, mnist_mean, mnist_splits, mnist_std
from mnist_fastai.loaders import digit_dls
from mnist_fastai.improvement import recipes, summarize
from mnist_fastai.improvement import ImprovedNetwork
from mnist_fastai.models import Network, count_parameters, find_model
from mnist_fastai.training import (DigitLoss, EpochTable, Recipe, digit_learner, evaluate, find_recipe, fused_adam,
                                   has_screen, plot_losses, plot_metrics, schedules, train, unwrap)

sizes = (784,32,16,10)
def plain(t): return t.as_subclass(torch.Tensor)
def pick(data, n):
    "Every `n`th digit of each split: the sample is sorted by class"
    return Mnist(*(data[o].subset(slice(None,None,n)) for o in mnist_splits), data.source)
def named(data, source):
    "The same digits under the name of another source"
    other = dict(mnist='sample', sample='mnist')[source]
    return Mnist(*(data[o].replace(source=source, overlaps=() if (source,o)==('mnist','test') else (other,))
                   for o in mnist_splits), source)

def untrained(*args, **kwargs):
    "A network that is stated to be untrained"
    net = ImprovedNetwork(*args, **kwargs)
    net.train_sources = ()
    return net

@pytest.fixture(scope='module')
def small(sample): return pick(sample, 5) # 800, 100, 100

@pytest.fixture
def make(small, tmp_path):
    """A function that makes a learner, which prints nothing unless it is `loud`.

    Fit it before the next is made, or they share random numbers.
    """
    def _f(model=lambda: Network(sizes), data=small, bs=128, seed=1, loud=False, **kwargs):
        set_seed(seed)
        dls = digit_dls(data, bs, device='cpu')
        learn = digit_learner(dls, model(), path=tmp_path, **kwargs)
        if not loud: learn.remove_cb(ProgressCallback); learn.logger = noop
        return learn
    return _f

def same_weights(a, b):
    a,b = a.state_dict(),b.state_dict()
    return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def losses(learn): return learn.history.batches.loss.tolist()

# --- the loop by hand and the Learner

nets = dict(plain=lambda: Network(sizes),
            norm=lambda: ImprovedNetwork(sizes, p=0.),
            dropout=lambda: ImprovedNetwork(sizes, p=.3, bn=False),
            both=lambda: ImprovedNetwork(sizes, p=.3))

def by_hand(net, dls, epochs, lr):
    """Plain PyTorch, validating where the Learner does.

    Returns losses of all steps, and loss and accuracy on validation after each epoch.
    """
    opt,train,valid = torch.optim.Adam(net.parameters(), lr=lr, fused=True),[],[]
    for _ in range(epochs):
        net.train()
        for xb,yb in dls.train:
            loss = F.cross_entropy(net(plain(xb)), plain(yb))
            loss.backward()
            opt.step()
            opt.zero_grad()
            train.append(loss.item())
        net.eval()
        with torch.no_grad(): out = [(net(plain(xb)), plain(yb)) for xb,yb in dls.valid]
        z,y = map(torch.cat, zip(*out))
        valid.append((F.cross_entropy(z, y).item(), (z.argmax(1)==y).double().mean().item()))
    return train,valid

@pytest.mark.parametrize('name', nets)
def test_the_learner_is_the_loop_to_the_bit(name, sample, make):
    epochs,bs = 4,64 # 4,000 digits: the last batch of an epoch is a half one
    set_seed(7)
    dls = digit_dls(sample, bs, device='cpu')
    net = nets[name]()
    want,valid = by_hand(net, dls, epochs, 3e-3)
    learn = make(nets[name], sample, bs, seed=7)
    learn.fit(epochs, 3e-3)
    assert len(want)==252 and losses(learn)==want and same_weights(learn.model, net)
    np.testing.assert_allclose(learn.history.epochs[['valid_loss','accuracy']], valid, rtol=1e-5)
    assert np.mean(want[-63:]) < .5*np.mean(want[:63]) and valid[-1][1]>.8 # it is learning that is compared

def test_another_seed_is_another_run(make):
    def run(seed): learn = make(seed=seed); learn.fit(1); return losses(learn)
    assert run(1)==run(1)!=run(2)

@pytest.mark.parametrize('name', nets)
def test_fastai_adam_is_close(name, sample, make):
    learns = []
    for o in fused_adam, partial(Adam, sqr_mom=.999, eps=1e-8, wd=0.):
        learns.append(make(nets[name], sample, 256, opt_func=o))
        learns[-1].fit(1, 1e-3)
    a,b = learns
    assert isinstance(a.opt, OptimWrapper) and not isinstance(b.opt, OptimWrapper)
    # The gradient of a bias before batch normalization is nothing but rounding, and Adam makes whole steps of it
    np.testing.assert_allclose(losses(a)[:10], losses(b)[:10], rtol=5e-4 if name in ('norm','both') else 2e-6)

def test_adam_is_fused_and_the_learning_rate_reaches_it(make):
    learn = make(lr=2e-3)
    learn.fit(1)
    opt = learn.opt.opt
    assert type(opt) is torch.optim.Adam and opt.defaults['fused'] and opt.param_groups[0]['weight_decay']==0
    assert opt.param_groups[0]['lr']==2e-3 and set(learn.history.batches.lr)=={2e-3}
    learn.fit(1, 5e-4)
    assert opt.param_groups[0]['lr']==5e-4

@pytest.mark.parametrize('before', ['lr_find','save','export'])
def test_the_optimizer_is_whole_afterwards(before, make):
    "Each of these writes the optimizer's state down and reads it again"
    a = make(); a.fit(1)
    b = make(); b.fit(1)
    if before=='lr_find': a.lr_find(show_plot=False)
    elif before=='save': a.save('net'); a.load('net')
    else: a.export('net.pkl')
    assert same_weights(a.model, b.model)
    for o in a,b: set_seed(3); o.fit(1, 1e-4)
    assert losses(a)==losses(b) and same_weights(a.model, b.model)

def test_all_is_float32(make):
    seen = set()
    class Spy(Callback):
        def after_loss(self): seen.update({self.learn.x.dtype, self.pred.dtype, self.learn.loss.dtype})
    learn = make(nets['both'], cbs=Spy())
    learn.fit(1)
    assert seen=={torch.float32} and {o.dtype for o in learn.model.parameters()}=={torch.float32}

# --- the loss

@pytest.mark.parametrize('n', [1,2,7,256])
def test_the_loss_is_that_of_fastai(n):
    g = torch.Generator().manual_seed(n)
    z,y = 5*torch.randn(n, 10, generator=g),torch.randint(10, (n,), generator=g)
    for kw in ({},
               dict(reduction='sum'),
               dict(reduction='none'),
               dict(weight=torch.arange(1.,11.)),
               dict(label_smoothing=.1)):
        a,b = z.clone().requires_grad_(),z.clone().requires_grad_()
        got,want = DigitLoss(**kw)(a, y),plain(CrossEntropyLossFlat(**kw)(b, y))
        got.sum().backward(); want.sum().backward()
        assert type(got) is torch.Tensor and torch.equal(got, want) and torch.equal(a.grad, b.grad)
    assert torch.equal(DigitLoss()(z, y), F.cross_entropy(z, y))
    a,b = DigitLoss(),CrossEntropyLossFlat()
    assert (torch.equal(a.activation(z), b.activation(z)) and torch.equal(a.decodes(z), b.decodes(z))
            and torch.equal(a.decodes(z), z.argmax(1)))
    torch.testing.assert_close(a.activation(z).sum(1), torch.ones(n))

def test_the_reduction_can_be_changed():
    z,y,loss = torch.randn(5,10),torch.arange(5),DigitLoss()
    assert loss.reduction=='mean'
    loss.reduction = 'none'
    assert loss(z, y).shape==(5,) and loss(z, y).mean()==DigitLoss()(z, y)

@pytest.mark.parametrize('again', [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=['copy','pickle'])
def test_the_loss_can_be_copied(again):
    z,y,loss = torch.randn(5,10),torch.arange(5),DigitLoss()
    assert again(loss)(z, y)==loss(z, y)

# --- what is remembered

def test_history_of_one_fit(make):
    learn = make(bs=128, lr=3e-3)
    start = time.perf_counter()
    learn.fit(3)
    wall = time.perf_counter()-start
    e,b = learn.history.epochs,learn.history.batches
    assert (e.columns.tolist()==['fit','epoch','train_loss','valid_loss','accuracy','seconds']
            and b.columns.tolist()==['fit','epoch','loss','lr'])
    assert e.fit.tolist()==[1,1,1] and e.epoch.tolist()==[1,2,3]
    assert b.fit.tolist()==[1]*21 and b.epoch.tolist()==[1]*7+[2]*7+[3]*7 and len(learn.dls.train)==7
    assert (e.seconds>0).all() and e.seconds.sum()<wall
    assert np.array_equal(e[['train_loss','valid_loss','accuracy']], np.array(learn.recorder.values))
    assert not e.isna().any().any() and not b.isna().any().any()

def test_losses_of_batches_are_raw(make):
    raw = []
    class Spy(Callback):
        def after_loss(self):
            if self.training: raw.append(self.learn.loss.item())
    learn = make(cbs=Spy())
    learn.fit(2)
    assert losses(learn)==raw and losses(learn)!=[float(o) for o in learn.recorder.losses]

def test_history_outlives_everything(make):
    learn = make()
    learn.fit(2)
    first,batches = learn.history.epochs,learn.history.batches
    learn.lr_find(show_plot=False)
    learn.validate(); learn.validate(0); learn.validate(2)
    learn.get_preds(); learn.get_preds(0); learn.predict(learn.dls.test_ds.images[0])
    evaluate(learn); evaluate(learn, 'train'); learn.show_results(max_n=1)
    assert learn.history.epochs.equals(first) and learn.history.batches.equals(batches)
    learn.fit_one_cycle(1, 1e-3); learn.fine_tune(2)
    e,b = learn.history.epochs,learn.history.batches
    assert e[:2].equals(first) and b[:14].equals(batches)
    assert e.fit.tolist()==[1,1,2,3,4,4] and e.epoch.tolist()==[1,2,3,4,5,6]
    assert b.epoch.tolist()==np.repeat(range(1,7), 7).tolist() and b.fit.tolist()==np.repeat(e.fit, 7).tolist()
    assert len(learn.recorder.values)==2 # which is why there is a history

def test_nothing_is_recorded_where_nothing_is_trained(make):
    learn = make()
    assert len(learn.history.epochs)==len(learn.history.batches)==0
    learn.lr_find(show_plot=False); learn.validate(); learn.get_preds(); learn.summary()
    assert (len(learn.history.epochs)==len(learn.history.batches)==learn.history.fits==0
            and not hasattr(learn.model, 'train_sources'))
    learn.fit(1)
    assert len(learn.history.epochs)==1 and learn.model.train_sources==('sample',)

def test_a_search_that_was_stopped_leaves_no_trace_either(make):
    learn = make()
    class Stop(Callback):
        def after_batch(self):
            if self.train_iter>3: raise KeyboardInterrupt
    with learn.added_cbs(Stop()), pytest.raises(KeyboardInterrupt): learn.lr_find()
    assert len(learn.history.batches)==0
    learn.fit(1)
    assert (learn.history.epochs.fit.tolist()==[1] and len(learn.history.batches)==7
            and learn.model.train_sources==('sample',))

def test_a_fit_that_was_stopped(make):
    learn = make()
    class Stop(Callback):
        def after_batch(self):
            if self.epoch==1: raise KeyboardInterrupt
    with learn.added_cbs(Stop()), pytest.raises(KeyboardInterrupt): learn.fit(3)
    assert learn.history.epochs.epoch.tolist()==[1] and learn.model.train_sources==('sample',)
    learn.fit(1)
    assert learn.history.epochs.fit.tolist()==[1,2] and learn.history.epochs.epoch.tolist()==[1,2]

def test_an_epoch_cut_short_has_no_wrong_numbers(make):
    "Of an epoch without its end the recorder leaves the training loss out; the columns after it must not move up"
    learn = make()
    learn.fit(1, cbs=ShortEpochCallback(pct=.5, short_valid=False))
    e = learn.history.epochs
    loss,acc = learn.validate()
    assert e.valid_loss.iloc[0]==pytest.approx(loss, rel=1e-5) and e.accuracy.iloc[0]==pytest.approx(acc)

def test_a_fit_that_begins_later(make):
    learn = make()
    learn.fit(3, start_epoch=1); learn.fit(1)
    assert learn.history.epochs.fit.tolist()==[1,1,2] and learn.history.epochs.epoch.tolist()==[1,2,3]

def test_metrics_of_ones_own(make):
    learn = make(metrics=[error_rate, accuracy])
    learn.fit(1)
    e = learn.history.epochs.iloc[0]
    assert (list(e.index)[2:-1]==['train_loss','valid_loss','error_rate','accuracy']
            and e.error_rate+e.accuracy==pytest.approx(1))

def test_any_class_of_network_notes_its_sources(make):
    learn = make(lambda: nn.Sequential(nn.Flatten(), nn.Linear(784,10)))
    learn.fit(1)
    assert len(learn.history.epochs)==1 and evaluate(learn)['n']==100 and learn.model.train_sources==('sample',)
    assert learn.model.data_info==learn.dls.train_ds.info

def test_the_network_inside_a_wrapper_notes_them(make):
    net = Network(sizes)
    learn = make(lambda: nn.DataParallel(net, device_ids=[]))
    learn.fit(1)
    assert net.train_sources==('sample',) and unwrap(learn.model) is net and evaluate(learn)['n']==100

def test_trained_on_grows(make, small):
    learn = make()
    learn.fit(1)
    learn.dls = digit_dls(named(small, 'mnist'), device='cpu')
    learn.fit(1)
    assert learn.model.train_sources==('mnist','sample')

# --- what is printed

def table(learn, f, capsys):
    capsys.readouterr()
    f()
    out = capsys.readouterr().out
    assert '\r' not in out and '\x1b' not in out and out.endswith('\n')
    return out.splitlines()

@pytest.mark.parametrize('metrics', [accuracy, [accuracy,top_k_accuracy], []], ids=['one','long','none'])
def test_the_table_of_epochs(metrics, make, capsys, monkeypatch):
    monkeypatch.setattr(mnist_fastai.training, 'has_screen', lambda: False)
    learn = make(loud=True, metrics=metrics)
    assert isinstance(learn.logger, EpochTable) and not hasattr(learn, 'progress')
    lines = table(learn, lambda: learn.fit(3), capsys)
    names = list(learn.recorder.metric_names)
    assert len(lines)==4 and lines[0].split()==names
    ends = [[o.end() for o in re.finditer(r'\S+', l)] for l in lines]
    assert all(o==ends[0] for o in ends), '\n'.join(lines) # every column ends where its name ends
    for row,l in zip(learn.recorder.values, lines[1:]):
        assert l.split()[1:-1]==[f'{o:.4f}' for o in row] and re.fullmatch(r'\d+:\d\d', l.split()[-1])
    assert table(learn, lambda: learn.fit_one_cycle(1), capsys)[0].split()==names # a heading for each fit

def test_measuring_prints_nothing(make, capsys):
    learn = make(loud=True)
    with redirect_stdout(io.StringIO()): learn.fit(1)
    capsys.readouterr()
    evaluate(learn); evaluate(learn.model, 'test', learn.dls)
    assert capsys.readouterr().out==''
    with redirect_stdout(io.StringIO()) as out: learn.fit(1)
    assert out.getvalue().count('\n')>=2 # and the table is there again

@pytest.mark.parametrize('notebook,tty,in_test,want', [
    (False,False,'',False),
    (False,True,'',True),
    (False,True,'1',False),
    (True,False,'',True),
])
def test_where_a_bar_can_be_drawn(notebook, tty, in_test, want, monkeypatch):
    monkeypatch.setattr(mnist_fastai.training, 'IN_NOTEBOOK', notebook)
    monkeypatch.setattr(sys, 'stdout',
                        types.SimpleNamespace(isatty=lambda: tty, write=lambda s: None, flush=lambda: None))
    monkeypatch.setenv('IN_TEST', in_test)
    assert has_screen() is want

def test_with_a_screen_the_bar_stays(make, monkeypatch):
    monkeypatch.setattr(mnist_fastai.training, 'has_screen', lambda: True)
    assert hasattr(make(loud=True), 'progress')

# --- the learner

@pytest.mark.parametrize('bs', [799,47,17,1]) # 800 digits: one is left over, or each is alone
def test_a_last_batch_of_one_digit_is_refused(bs, make):
    with pytest.raises(ValueError, match='choose another batch size') as e: make(nets['both'], bs=bs)
    assert '\n' not in str(e.value)
    learn = make(nets['dropout'], bs=bs) # without batch normalization it does no harm
    if bs>=47: learn.fit(1); assert len(losses(learn))==len(learn.dls.train)

def test_a_last_batch_of_two_is_taken(make):
    learn = make(nets['both'], bs=798)
    learn.fit(1)
    assert len(losses(learn))==2

def test_a_loss_of_ones_own(make):
    learn = make(loss_func=CrossEntropyLossFlat(label_smoothing=.1))
    learn.fit(1)
    want = make()
    want.fit(1)
    assert losses(learn)[0]!=losses(want)[0] and type(want.loss_func) is DigitLoss

def test_callbacks_and_options_are_passed_on(make, tmp_path):
    seen = []
    class Spy(Callback):
        def after_epoch(self): seen.append(self.epoch)
    for cbs in (Spy(), [Spy()]): make(cbs=cbs).fit(2)
    assert seen==[0,1,0,1] and make(moms=(.9,.8,.9)).moms==(.9,.8,.9) and make().path==tmp_path

def test_other_verbs_with_this_loss(make):
    "tests/test_verbs.py has all of them with fastai's"
    learn = make()
    learn.fit(2, 3e-3)
    ds = learn.dls.valid_ds
    probs,y,dec,loss = learn.get_preds(with_decoded=True, with_loss=True)
    with torch.no_grad(): z = learn.model.eval()(plain(ds[:][0]))
    torch.testing.assert_close(plain(probs), z.softmax(1))
    torch.testing.assert_close(plain(loss), F.cross_entropy(z, ds.labels, reduction='none'))
    assert torch.equal(plain(dec), z.argmax(1)) and learn.predict(ds.images[3])[0]==str(int(dec[3]))
    interp = ClassificationInterpretation.from_learner(learn)
    assert (interp.confusion_matrix().sum()==100
            and torch.allclose(plain(interp.top_losses(3)[0]), plain(loss).topk(3).values, atol=1e-5))
    torch.testing.assert_close(plain(learn.tta(n=1)[0]), plain(probs))

def test_export(make, small):
    learn = make(nets['both'])
    learn.fit(2, 3e-3)
    want = learn.history.epochs
    learn.export('net.pkl')
    again = load_learner(learn.path/'net.pkl')
    for x in learn.dls.test_ds.images[:5]:
        a,b = learn.predict(x),again.predict(x)
        assert a[0]==b[0] and torch.equal(plain(a[2]), plain(b[2]))
    assert again.history.epochs.equals(want) and again.model.train_sources==('sample',)
    with pytest.raises(ValueError, match='trained on sample'):
        evaluate(again, 'valid', digit_dls(named(small, 'mnist'), device='cpu'))
    assert evaluate(again, 'test', learn.dls)==evaluate(learn, 'test')

# --- measuring

@pytest.fixture(scope='module')
def fitted(small, tmp_path_factory):
    set_seed(5)
    learn = digit_learner(digit_dls(small, 128, valid_bs=32, device='cpu'), ImprovedNetwork(sizes, p=.5),
                          path=tmp_path_factory.mktemp('fitted'))
    with redirect_stdout(io.StringIO()), learn.no_bar(): learn.fit(3, 3e-3)
    return learn

def measured(net, ds):
    "Loss and accuracy from the pixels, with no loader between"
    net = copy.deepcopy(net).eval()
    with torch.no_grad(): z = net((ds.images.float()/255 - mnist_mean)/mnist_std)
    logp = z.double().log_softmax(1)
    return dict(loss=-logp[torch.arange(len(z)),ds.labels].mean().item(),
                accuracy=(z.argmax(1)==ds.labels).double().mean().item())

@pytest.mark.parametrize('split', mnist_splits)
@pytest.mark.parametrize('bare', [False,True], ids=['learner','network'])
def test_evaluate(split, bare, fitted, small):
    got,want = (evaluate(fitted.model, split, fitted.dls) if bare else evaluate(fitted, split),
                measured(fitted.model, small[split]))
    assert (list(got)==['loss','accuracy','n','split','source']
            and all(type(got[o]) is float for o in ('loss','accuracy')) and type(got['n']) is int)
    assert (got['loss']==pytest.approx(want['loss'], rel=1e-5)
            and got['accuracy']==want['accuracy'] and got['accuracy']>.3)
    assert (got['n'],got['split'],got['source'])==(len(small[split]),split,'sample')

def test_evaluate_is_on_validation_by_default(fitted):
    assert evaluate(fitted)==evaluate(fitted, 'valid')!=evaluate(fitted, 'test')

def test_evaluate_repeats(fitted):
    # with dropout on, or in another order, it would not
    assert evaluate(fitted, 'train')==evaluate(fitted, 'train')

@pytest.mark.parametrize('training', [True,False])
@pytest.mark.parametrize('bare', [False,True], ids=['learner','network'])
def test_evaluate_changes_nothing(training, bare, fitted):
    net = fitted.model.train(training)
    before = copy.deepcopy(net.state_dict())
    evaluate(*((net, 'test', fitted.dls) if bare else (fitted, 'test')))
    assert net.training is training and all(o.training is training for o in net.modules())
    assert all(torch.equal(o, before[k]) for k,o in net.state_dict().items()) and net.train_sources==('sample',)
    assert len(fitted.history.epochs)==3 and len(fitted.history.batches)==21

@pytest.mark.parametrize('split', mnist_splits)
def test_evaluate_draws_every_digit_once_and_in_order(split, fitted):
    xs,ys,grads,modes = [],[],set(),set()
    class Spy(Callback):
        def before_batch(self): xs.append(plain(self.x)); ys.append(plain(self.y)); modes.add(self.model.training)
        def after_pred(self): grads.add(self.pred.requires_grad)
    with fitted.added_cbs(Spy()): evaluate(fitted, split)
    ds = fitted.dls[mnist_splits.index(split)].dataset
    assert (torch.equal(torch.cat(ys), ds.labels) and torch.equal(torch.cat(xs), plain(ds[:][0]))
            and grads=={False} and modes=={False})

def test_evaluate_a_bare_network_on_what_there_is(monkeypatch, sample):
    monkeypatch.setenv('MNIST_FASTAI_SAMPLE', '1')
    set_seed(1)
    net = untrained(sizes, bn=False, p=0.)
    got,want = evaluate(net, 'test'),measured(copy.deepcopy(net).cpu(), sample.test)
    assert (got['source']=='sample' and got['n']==500
            and got['loss']==pytest.approx(want['loss'], rel=1e-3) and abs(got['loss']-np.log(10))<.2)

def test_evaluate_does_not_mind_a_last_batch_of_one(small):
    "Batch normalization does, but only in training"
    dls = digit_dls(small, bs=799, valid_bs=99, device='cpu')
    for split in mnist_splits: assert evaluate(untrained(sizes), split, dls)['n']==len(small[split])

def test_evaluate_measures_cross_entropy_whatever_was_trained_with(make, small):
    learn = make(loss_func=CrossEntropyLossFlat(label_smoothing=.3))
    learn.fit(1)
    assert evaluate(learn)['loss']==pytest.approx(measured(learn.model, small.valid)['loss'], rel=1e-5)

@pytest.mark.parametrize('split', ['exam','Train','',None,1])
def test_evaluate_refuses_what_is_no_split(split, fitted):
    with pytest.raises(ValueError, match=re.escape(f'There is no split {split!r}: use one of train, valid, test.')):
        evaluate(fitted, split)

def counting(net):
    "How often `net` was asked, from now on"
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    return calls

@pytest.mark.parametrize('split', mnist_splits)
@pytest.mark.parametrize('bare', [False,True], ids=['learner','network'])
def test_a_network_of_mnist_is_not_scored_on_the_sample(split, bare, make, small):
    learn = make(data=named(small, 'mnist'))
    learn.fit(1)
    assert learn.model.train_sources==('mnist',) and evaluate(learn, split)['source']=='mnist'
    calls = counting(learn.model)
    with pytest.raises(ValueError, match='trained on mnist, which may hold the same digits') as e:
        evaluate(learn.model if bare else learn, split, digit_dls(small, device='cpu'))
    assert '\n' not in str(e.value) and not calls

@pytest.mark.parametrize('split', mnist_splits)
@pytest.mark.parametrize('bare', [False,True], ids=['learner','network'])
def test_a_network_of_the_sample_is_scored_on_the_test_digits_of_mnist_alone(split, bare, make, small):
    learn,dls = make(),digit_dls(named(small, 'mnist'), device='cpu')
    learn.fit(1)
    model,calls = learn.model if bare else learn,counting(learn.model)
    if split=='test':
        assert evaluate(model, split, dls)['source']=='mnist'
        return
    with pytest.raises(ValueError, match='trained on sample, which may hold the same digits '
                                         f'as the {split} split of mnist'):
        evaluate(model, split, dls)
    assert not calls

def test_an_untrained_network_may_be_scored_anywhere(small):
    for o in (small, named(small, 'mnist')):
        for split in mnist_splits:
            assert evaluate(untrained(sizes), split, digit_dls(o, device='cpu'))['source']==o.source

@pytest.mark.parametrize('split', mnist_splits)
@pytest.mark.parametrize('net', [
    lambda: Network(sizes),
    lambda: nn.Sequential(nn.Flatten(), nn.Linear(784,10)),
], ids=['registered','plain'])
def test_a_network_of_unknown_origin_is_not_scored(split, net, small):
    net = net()
    calls = counting(net)
    with pytest.raises(ValueError, match=re.escape("or to () for an untrained network")) as e:
        evaluate(net, split, digit_dls(small, device='cpu'))
    assert '\n' not in str(e.value) and not calls
    own = digit_dls(Mnist(*(small[o].replace(source='', overlaps=()) for o in mnist_splits), ''), device='cpu')
    assert evaluate(net, split, own)['n']==len(small[split]) # your own digits pass

def test_a_network_of_other_pixels_is_not_scored(make, small):
    learn = make()
    learn.fit(1)
    other = DataInfo(mean=.5, std=.5)
    dls = digit_dls(Mnist(*(small[o].replace(info=other) for o in mnist_splits), 'sample'), device='cpu')
    with pytest.raises(ValueError, match='mean 0.1307, and these digits have 0.5'): evaluate(learn, 'valid', dls)

# --- plots

@pytest.fixture(scope='module')
def pair(small, tmp_path_factory):
    "A fitted learner of each kind"
    res = []
    for net in (Network, ImprovedNetwork):
        set_seed(2)
        learn = digit_learner(digit_dls(small, 128, device='cpu'), net(sizes), path=tmp_path_factory.mktemp('pair'))
        with redirect_stdout(io.StringIO()), learn.no_bar(): learn.fit(3, 3e-3)
        res.append(learn)
    return res

def legend(ax): return [o.get_text() for o in ax.get_legend().get_texts()] if ax.get_legend() else []

# What is given, and what is to be seen: each learner and the beginning of its labels (None: any, if no two are equal)
given = dict(learner=lambda a,b: (a, [(a,'')]),
             list=lambda a,b: ([a,b], [(a,'Network '),(b,'ImprovedNetwork ')]),
             list_of_one=lambda a,b: ([b], [(b,'ImprovedNetwork ')]),
             dict=lambda a,b: (dict(this=a, that=b), [(a,'this '),(b,'that ')]),
             frame=lambda a,b: (b.history.epochs, [(b,'')]),
             frames=lambda a,b: (dict(one=b.history.epochs, two=a.history.epochs), [(b,'one '),(a,'two ')]),
             mixed=lambda a,b: (dict(one=b, two=a.history.epochs), [(b,'one '),(a,'two ')]),
             same_kind=lambda a,b: ([a,a,b], [(a,None),(a,None),(b,None)]))

@pytest.mark.parametrize('how', given)
def test_plot_losses(how, pair):
    learns,want = given[how](*pair)
    ax = plot_losses(learns)
    assert ax.get_xlabel()=='epoch' and ax.get_ylabel()=='cross-entropy' and ax.get_title()=='Losses by epoch'
    assert len(ax.lines)==2*len(want) and len(set(legend(ax)))==2*len(want) # none hides another
    for i,(learn,name) in enumerate(want):
        h,(t,v) = learn.history.epochs,ax.lines[2*i:2*i+2]
        for l,col,style in ((t,'train_loss','--'), (v,'valid_loss','-')):
            assert list(l.get_xdata())==[1,2,3] and list(l.get_ydata())==h[col].tolist() and l.get_linestyle()==style
        assert t.get_color()==v.get_color()
        if name is not None: assert legend(ax)[2*i:2*i+2]==[name + 'training', name + 'validation']
    assert len({o.get_color() for o in ax.lines})==len(want)

@pytest.mark.parametrize('how', given)
def test_plot_metrics(how, pair):
    learns,want = given[how](*pair)
    ax = plot_metrics(learns)
    assert (ax.get_xlabel()=='epoch' and ax.get_ylabel()=='accuracy on validation'
            and re.fullmatch('Accuracy.* by epoch', ax.get_title()))
    assert [list(o.get_ydata()) for o in ax.lines]==[o.history.epochs.accuracy.tolist() for o,_ in want]
    assert all(list(o.get_xdata())==[1,2,3] for o in ax.lines)
    names = [o.strip() for _,o in want if o is not None]
    if names: assert legend(ax)==[o for o in names if o]
    else: assert len(set(legend(ax)))==len(want)

@pytest.mark.parametrize('how', ['learner','list','dict','same_kind'])
def test_remeasure_adds_a_cross(how, pair):
    learns,want = given[how](*pair)
    ax = plot_losses(learns, remeasure=True)
    crosses = [o for o in ax.lines if o.get_marker()=='x']
    assert (len(crosses)==len(want) and len(ax.lines)==3*len(want)
            and sum('evaluation mode' in o for o in legend(ax))==len(want))
    for o,(learn,_) in zip(crosses, want):
        assert (list(o.get_xdata())==[3]
                and o.get_ydata()[0]==evaluate(learn, 'train')['loss']!=learn.history.epochs.train_loss.iloc[-1])

@pytest.mark.parametrize('how', ['frame','frames','mixed'])
def test_remeasure_needs_learners(how, pair):
    with pytest.raises((ValueError,TypeError), match='[Ll]earner') as e:
        plot_losses(given[how](*pair)[0], remeasure=True)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('plot', [plot_losses,plot_metrics])
def test_plots_draw_where_they_are_told(plot, pair):
    fig,axs = plt.subplots(1, 2)
    assert plot(pair, ax=axs[1]) is axs[1] and not axs[0].lines and len(plt.get_fignums())==1
    assert plot(pair) not in axs and len(plt.get_fignums())==2

@pytest.mark.parametrize('plot', [plot_losses,plot_metrics])
def test_epochs_are_whole_numbers(plot, pair):
    ax = plot(pair[0])
    ax.figure.canvas.draw()
    assert all(float(o).is_integer() for o in ax.get_xticks())

@pytest.mark.parametrize('plot', [plot_losses,plot_metrics])
def test_plots_of_what_was_never_fitted(plot, make):
    with pytest.raises(ValueError, match='fit') as e: plot(make())
    assert '\n' not in str(e.value)

def test_plot_of_another_column(pair):
    ax = plot_metrics(pair, 'seconds')
    assert list(ax.lines[1].get_ydata())==pair[1].history.epochs.seconds.tolist() and 'seconds' in ax.get_ylabel()

def test_plot_of_an_unknown_metric(pair):
    says = "The history holds no 'auc': use one of train_loss, valid_loss, accuracy"
    with pytest.raises(ValueError, match=re.escape(says)): plot_metrics(pair, 'auc')

# --- recipes and runs

@pytest.mark.parametrize('change,says', [
    (dict(arch='Netwerk'), "There is no network 'Netwerk': use one of Network"),
    (dict(schedule='step'), "There is no schedule 'step': use one of one-cycle, constant."),
    *((dict(epochs=o), 'epochs must be') for o in (0,-1,2.5)),
    *((dict(lr=o), 'learning rate must be') for o in (0,-1e-3,float('nan'),float('inf')))], ids=str)
def test_a_recipe_says_what_is_wrong(change, says):
    with pytest.raises(ValueError, match=re.escape(says)) as e: Recipe(**dict(arch='Network') | change)
    assert '\n' not in str(e.value)
    with pytest.raises(ValueError): replace(Recipe('Network'), **change)

def test_a_recipe_cannot_be_changed():
    with pytest.raises(FrozenInstanceError): Recipe('Network').epochs = 3
    assert Recipe('Network')==Recipe('Network') and Recipe('Network').kwargs is not Recipe('Network').kwargs

def test_a_batch_size_that_is_none(small):
    with pytest.raises(ValueError, match='The batch size must be'): train(Recipe('Network', bs=0), small, device='cpu')

tiny = {o: Recipe('ImprovedNetwork', dict(sizes=sizes, p=.3), epochs=2, bs=128, lr=3e-3, schedule=o) for o in schedules}

@pytest.mark.parametrize('schedule', schedules)
def test_a_run_can_be_repeated(schedule, small):
    runs = []
    for seed in (3,3,4):
        runs.append(train(tiny[schedule], small, seed, 'cpu', quiet=True))
        torch.rand(11); np.random.rand(11); list(runs[-1].dls.train) # what comes between must not matter
    a,b,c = runs
    assert losses(a)==losses(b) and same_weights(a.model, b.model) and evaluate(a)==evaluate(b)
    cols = ['fit','epoch','train_loss','valid_loss','accuracy']
    assert a.history.epochs[cols].equals(b.history.epochs[cols]) and a.history.batches.equals(b.history.batches)
    assert losses(a)[0]!=losses(c)[0] and not same_weights(a.model, c.model)
    assert a.recipe is tiny[schedule] and (a.seed,c.seed)==(3,4) and len(losses(a))==14

@pytest.mark.parametrize('schedule', schedules)
def test_a_run_by_hand_is_the_same(schedule, small):
    "Seed, loaders, network, fit"
    set_seed(9)
    dls = digit_dls(small, 128, device='cpu')
    dls.train.order = torch.Generator().manual_seed(9)
    learn = digit_learner(dls, ImprovedNetwork(sizes, p=.3))
    with redirect_stdout(io.StringIO()), learn.no_bar():
        if schedule=='constant': learn.fit(2, 3e-3)
        else: learn.fit_one_cycle(2, 3e-3)
    assert losses(learn)==losses(train(tiny[schedule], small, 9, 'cpu', quiet=True))

def test_one_seed_one_order_whatever_the_network_draws(small):
    """Runs of one seed are paired.

    Dropout and other sizes draw other random numbers, and the digits come in the same order, epoch after epoch.
    """
    class Order(Callback):
        seen = ()
        def before_batch(self):
            if self.training: self.seen += tuple(self.yb[0].tolist())
    def order(arch, seed, **kwargs):
        spy = Order()
        train(Recipe(arch, kwargs, epochs=3, bs=128), small, seed, 'cpu', quiet=True, cbs=spy)
        return spy.seen
    a = order('Network', 1, sizes=sizes)
    assert len(a)==3*len(small.train) and len({a[i::3] for i in range(3)})==3
    assert (a==order('ImprovedNetwork', 1, sizes=sizes, p=.5)==order('Network', 1, sizes=(784,16,10))
            and a!=order('Network', 2, sizes=sizes))

def test_schedules(small):
    lrs = {o: train(tiny[o], small, 1, 'cpu', quiet=True).history.batches.lr for o in schedules}
    assert set(lrs['constant'])=={3e-3}
    o = lrs['one-cycle']
    assert o.max()<=3e-3 and o.iloc[0]<3e-3/10 and o.iloc[-1]<3e-3/10 and .15<o.argmax()/len(o)<.35 and o.max()>2.5e-3

def test_what_a_run_prints(small, capsys):
    train(tiny['constant'], small, 1, 'cpu', quiet=True)
    assert capsys.readouterr().out==''
    train(tiny['constant'], small, 1, 'cpu')
    assert capsys.readouterr().out.count('\n')>=3

def test_a_run_takes_callbacks_and_finds_its_data(monkeypatch, capsys):
    monkeypatch.setenv('MNIST_FASTAI_SAMPLE', '1')
    seen = []
    class Spy(Callback):
        def after_epoch(self): seen.append(self.epoch)
    learn = train(Recipe('Network', dict(sizes=sizes), epochs=1), quiet=True, device='cpu', cbs=Spy())
    assert seen==[0] and learn.seed==42 and learn.model.train_sources==('sample',) and len(learn.dls.train_ds)==4000

def test_the_recipes(sample):
    for name in ('Network','ImprovedNetwork'):
        r = recipes[name]
        assert (find_recipe(name) is r and r.arch==name
                and isinstance(find_model(name)(**r.kwargs), find_model(name)) and len(sample.train)%r.bs!=1)
    with pytest.raises(ValueError, match="There is no recipe 'Netwerk': use one of Network"): find_recipe('Netwerk')

@pytest.mark.parametrize('name', ['Network','ImprovedNetwork'])
def test_a_recipe_trains(name, sample):
    learn = train(replace(recipes[name], epochs=1), sample, 1, 'cpu', quiet=True)
    e,b = learn.history.epochs,learn.history.batches
    assert (len(e)==1 and not e.isna().any().any() and np.isfinite(b.loss).all()
            and all(o.isfinite().all() for o in learn.model.state_dict().values()))
    assert type(learn.model) is find_model(name) and e.accuracy[0]>.6 and b.loss[-3:].mean()<b.loss[:3].mean()

# --- the comparison

def test_compare(pair):
    learns = dict(zip(('this','that'), pair))
    res = summarize(learns)
    assert isinstance(res, pd.DataFrame) and res.index.tolist()==['this','that']
    assert res.columns.tolist()==['parameters','epochs','seconds','valid_loss','valid_accuracy']
    assert [str(o) for o in res.dtypes]==['int64','int64','float64','float64','float64']
    for name,learn in learns.items():
        row,e = res.loc[name],evaluate(learn)
        assert (row.parameters==count_parameters(learn.model) and row.epochs==3
                and row.seconds==learn.history.epochs.seconds.sum()>0)
        assert row.valid_loss==e['loss'] and row.valid_accuracy==e['accuracy']

def test_compare_on_other_splits(pair):
    res = summarize(dict(a=pair[0]), mnist_splits)
    assert res.columns.tolist()[3:]==[f'{s}_{k}' for s in mnist_splits for k in ('loss','accuracy')]
    for s in mnist_splits: assert res.loc['a', f'{s}_accuracy']==evaluate(pair[0], s)['accuracy']
    assert summarize(dict(a=pair[0]), ()).columns.tolist()==['parameters','epochs','seconds']
    with pytest.raises(ValueError, match="There is no split 'exam'"): summarize(dict(a=pair[0]), ['exam'])
