"The recipes of the course, and the table that compares runs."
import csv
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd, pytest, torch

from mnist_fastai.data import Digits, Mnist, digit_dls
from mnist_fastai.improvement import *
from mnist_fastai.models import Network, count_parameters
from mnist_fastai.training import Recipe, archs, digit_learner, evaluate, train

root = Path(__file__).parents[1]

def test_a_recipe_for_each_network_on_one_budget():
    assert list(recipes)==list(archs)==[r.arch for r in recipes.values()]
    assert len({r.epochs for r in recipes.values()})==1 and len({r.bs for r in recipes.values()})==1

def test_the_recipes_are_the_best_of_the_search():
    with (root/'benchmarks'/'recipes.csv').open() as f: runs = pd.DataFrame(list(csv.DictReader(f)))
    runs['valid_accuracy'] = runs.valid_accuracy.astype(float)
    keys = 'p bs lr wd sqr_mom epochs'.split()
    for name,r in recipes.items():
        means = runs[runs.network==name].groupby(keys).valid_accuracy.agg(['mean','count'])
        assert (means['count']>=3).all()
        best = dict(zip(keys, means['mean'].idxmax()))
        assert best=={k: str(r.kwargs.get('p', '') if k=='p' else getattr(r, k)) for k in keys}

@pytest.fixture(scope='module')
def learns(sample): return {k: train(replace(r, epochs=1), sample, seed=1, device='cpu', quiet=True) for k,r in recipes.items()}

def test_compare(learns):
    table = summarize(learns, ('valid','test'))
    assert list(table.index)==list(recipes)
    assert list(table.columns)=='parameters epochs seconds valid_loss valid_accuracy test_loss test_accuracy'.split()
    for k,learn in learns.items():
        assert table.parameters[k]==count_parameters(learn.model) and table.epochs[k]==1 and table.seconds[k]>0
        assert table.test_accuracy[k]==evaluate(learn, 'test')['accuracy'] and table.valid_loss[k]==evaluate(learn)['loss']

def test_compare_looks_at_validation_alone_unless_told_otherwise(learns):
    assert not [o for o in summarize(learns).columns if 'test' in o]

def test_compare_refuses_an_unknown_split(learns):
    with pytest.raises(ValueError, match='There is no split'): summarize(learns, ('exam',))

def test_a_recipe_reaches_the_optimizer(learns):
    for k,learn in learns.items():
        group = learn.opt.opt.param_groups[0]
        assert group['weight_decay']==recipes[k].wd and group['betas'][1]==recipes[k].sqr_mom and group['fused']
    plain = train(Recipe('Network', epochs=1), _data(learns['Network']), device='cpu', quiet=True)
    assert type(plain.opt.opt).__name__=='Adam' and plain.opt.opt.param_groups[0]['betas'][1]==.999

def _data(learn):
    from mnist_fastai.data import Mnist
    return Mnist(*(o.dataset for o in learn.dls.loaders), learn.dls.source)

# --- bending the digits, and one's own among them

def batch(n=64, seed=0): return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed))-.4

none = dict(rotate=0, scale=0, shear=0, shift=0)

def test_nothing_is_bent_by_nothing():
    xb = batch()
    assert torch.allclose(bend(xb, thickness=0, **none), xb, atol=1e-4)
    assert torch.allclose(random_affine(5, **none), torch.eye(2,3).expand(5,2,3))

def test_each_argument_keeps_its_limit():
    n = 2000
    m = random_affine(n, **none | dict(rotate=30))[:,:,:2]
    assert torch.allclose(m @ m.transpose(1,2), torch.eye(2).expand(n,2,2), atol=1e-5)
    angle = torch.atan2(m[:,1,0], m[:,0,0]).rad2deg()
    assert angle.abs().max()<=30.001 and angle.min()<-28 and angle.max()>28
    m = random_affine(n, **none | dict(scale=.2))
    assert 1/1.2001<m[:,0,0].min()<.85<1.18<m[:,0,0].max()<1.2001 and (m[:,0,0]-m[:,1,1]).abs().max()>.2 and m[:,0,1].abs().max()==0
    m = random_affine(n, **none | dict(shear=.3))
    assert .28<m[:,0,1].max()<=.3 and m[:,1,0].abs().max()==0
    m = random_affine(n, **none | dict(shift=2))
    assert .13<m[:,:,2].max()<=2/14+1e-6 and torch.allclose(m[:,:,:2], torch.eye(2).expand(n,2,2))

def test_a_shift_of_whole_pixels_is_one():
    xb = batch(1)
    m = torch.tensor([[[1.,0,2/14],[0,1,0]]])
    got = torch.nn.functional.grid_sample(xb, torch.nn.functional.affine_grid(m, xb.shape, align_corners=False), align_corners=False)
    assert torch.allclose(got[...,:26], xb[...,2:], atol=1e-4)

def test_the_pen():
    xb = torch.full((200,1,28,28), -.4)
    xb[:,:,8:20,13:16] = 2.8
    torch.manual_seed(0)
    ink = bend(xb, thickness=1, **none).sum((1,2,3))-xb[0].sum()
    assert ink.min()<-20 and ink.max()>20 and (ink>0).float().mean()>.3 and (ink<0).float().mean()>.3
    y = bend(xb, thickness=1, **none)
    assert y.min()>=-.4001 and y.max()<=2.8001

def test_only_training_batches_are_bent(sample):
    from fastai.callback.core import Callback
    seen = []
    class Peek(Callback):
        order = Augment.order+1
        def before_batch(self): seen.append((self.training, self.xb[0].clone()))
    few = sample.train.subset(slice(0,256))
    learn = digit_learner(digit_dls(Mnist(few, few, few, 'sample'), device='cpu'), Network(), cbs=[Augment(), Peek()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    (a,x),(b,y) = seen
    assert (a,b)==(True,False) and torch.allclose(y, few[:][0].as_subclass(torch.Tensor))
    assert (x[:,None]-y[None]).abs().amax((2,3,4)).min()>.1

def test_a_recipe_that_bends(sample):
    r = AugmentedRecipe('ImprovedNetwork', dict(p=0.), epochs=1)
    learn = train(r, sample, 3, 'cpu', quiet=True)
    again,plain = train(r, sample, 3, 'cpu', quiet=True),train(Recipe('ImprovedNetwork', dict(p=0.), epochs=1), sample, 3, 'cpu', quiet=True)
    w = lambda o: o.model.layers[0].weight
    assert torch.equal(w(learn), w(again)) and not torch.equal(w(learn), w(plain))
    assert 'augment' in asdict(r) and 'cbs' not in asdict(r)
    soft = train(AugmentedRecipe('ImprovedNetwork', dict(p=0.), epochs=1, augment=dict(thickness=0, **none)), sample, 3, 'cpu', quiet=True)
    assert torch.allclose(w(soft), w(plain), atol=2e-2) # bent by nothing, but for rounding

def test_mixed(sample):
    own = sample.valid.subset(slice(0,7))
    m = mixed(sample, own, .2)
    n = len(sample.train)
    assert len(m.train)==n+n//4 and torch.equal(m.train.images[:n], sample.train.images) and m.source=='sample' and m.valid is sample.valid
    assert torch.equal(m.train.images[n:n+7], own.images) and torch.equal(m.train.images[n+7:n+14], own.images) and torch.equal(m.train.labels[n:n+7], own.labels)
    for bad in (0, 1, -.1):
        with pytest.raises(ValueError, match='between 0 and 1'): mixed(sample, own, bad)
    for o in (Digits(own.images), own.subset(slice(0))):
        with pytest.raises(ValueError, match='nothing to learn from'): mixed(sample, o)

def test_fine_tune_leaves_the_network_as_it_is(sample):
    net = train(Recipe('ImprovedNetwork', dict(p=0.), epochs=2), sample, 0, 'cpu', quiet=True).model.eval()
    before = {k: v.clone() for k,v in net.state_dict().items()}
    own = Digits(255-sample.valid.images[:40], sample.valid.labels[:40]) # somebody who writes white on black
    learn = fine_tune(net, own, sample, epochs=2, lr=3e-3, device='cpu')
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items()) and not net.training
    assert learn.model.trained_on=={'sample','own'} and net.trained_on=={'sample'} and learn.seed==42
    from mnist_fastai.interpret import logits_of
    right = [(logits_of(m, own).argmax(1)==own.labels).double().mean().item() for m in (net, learn.model)]
    assert right[1]>right[0]+.2
