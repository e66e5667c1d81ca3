"Training digits, changed at random: what each argument does, and that validation never sees it"
from dataclasses import asdict, replace
import json

import pytest, torch
import torch.nn.functional as F
from fastai.callback.core import Callback

from mnist_fastai.augment import *
from mnist_fastai.data import Mnist
from mnist_fastai.experiments import grids
from mnist_fastai.loaders import digit_dls
from mnist_fastai.models import Network
from mnist_fastai.training import Recipe, digit_learner, evaluate, plot_losses, train

usual = dict(rotate=15, scale=.2, shear=.2, shift=1.5, thickness=.7)

def batch(n=64, seed=0): return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed))-.4

none = dict(rotate=0, scale=0, shear=0, shift=0)

def test_nothing_is_bent_by_nothing():
    xb = batch()
    assert torch.allclose(random_warp(xb, thickness=0, **none), xb, atol=1e-4)
    assert torch.allclose(random_affine(5, **none), torch.eye(2,3).expand(5,2,3))

def test_each_argument_keeps_its_limit():
    n = 2000
    m = random_affine(n, **none | dict(rotate=30))[:,:,:2]
    assert torch.allclose(m @ m.transpose(1,2), torch.eye(2).expand(n,2,2), atol=1e-5)
    angle = torch.atan2(m[:,1,0], m[:,0,0]).rad2deg()
    assert angle.abs().max()<=30.001 and angle.min()<-28 and angle.max()>28
    m = random_affine(n, **none | dict(scale=.2))
    assert (1/1.2001<m[:,0,0].min()<.85<1.18<m[:,0,0].max()<1.2001
            and (m[:,0,0]-m[:,1,1]).abs().max()>.2 and m[:,0,1].abs().max()==0)
    m = random_affine(n, **none | dict(shear=.3))
    assert .28<m[:,0,1].max()<=.3 and m[:,1,0].abs().max()==0
    m = random_affine(n, **none | dict(shift=2))
    assert .13<m[:,:,2].max()<=2/14+1e-6 and torch.allclose(m[:,:,:2], torch.eye(2).expand(n,2,2))

def test_a_shift_of_whole_pixels_is_one():
    xb = batch(1)
    m = torch.tensor([[[1.,0,2/14],[0,1,0]]])
    got = torch.nn.functional.grid_sample(
        xb, torch.nn.functional.affine_grid(m, xb.shape, align_corners=False), align_corners=False)
    assert torch.allclose(got[...,:26], xb[...,2:], atol=1e-4)

def test_the_pen():
    xb = torch.full((200,1,28,28), -.4)
    xb[:,:,8:20,13:16] = 2.8
    torch.manual_seed(0)
    ink = random_warp(xb, thickness=1, **none).sum((1,2,3))-xb[0].sum()
    assert ink.min()<-20 and ink.max()>20 and (ink>0).float().mean()>.3 and (ink<0).float().mean()>.3
    y = random_warp(xb, thickness=1, **none)
    assert y.min()>=-.4001 and y.max()<=2.8001

def test_the_pen_goes_part_of_the_way_to_the_neighbors():
    "Towards the largest of 3 by 3 pixels, or the smallest, by a share that is drawn for each digit"
    xb = batch()
    torch.manual_seed(0)
    got = random_warp(xb, thickness=.7, **none)
    torch.manual_seed(0)
    random_affine(len(xb)) # draws first
    u = .7*(2*torch.rand(len(xb), 1, 1, 1)-1)
    largest,smallest = F.max_pool2d(xb, 3, 1, 1),-F.max_pool2d(-xb, 3, 1, 1)
    assert torch.allclose(got, torch.where(u>0, xb+u*(largest-xb), xb-u*(smallest-xb)), atol=1e-3)

def moves(elastic, n=500):
    "How far `elastic` moves the middle pixels to the right, in pixels, read off an image whose values are its columns"
    ramp = torch.arange(28.).expand(n, 1, 28, 28)
    torch.manual_seed(0)
    return (random_warp(ramp, thickness=0, elastic=elastic, **none)-ramp)[:,0,7:21,7:21]

def test_elastic_is_counted_in_pixels():
    for elastic in (.3,.6):
        d = moves(elastic)
        assert .8*elastic<d.std()<1.3*elastic and d.mean().abs()<.1*elastic
    assert moves(0).abs().max()<1e-3

def test_an_elastic_field_is_smooth_and_different_for_each_digit():
    d = moves(.6)
    neighbors,apart = (d[:,:,1:]-d[:,:,:-1]).std(),(d[1:]-d[:-1]).std()
    assert neighbors<.3*d.std() and apart>d.std()
    far = torch.corrcoef(torch.stack([d[:,0,0],d[:,-1,-1]]))[0,1] # opposite corners
    assert far.abs()<.3

def test_average_shifts_is_the_mean_of_five():
    net = Network((784,10)).eval()
    xb = F.pad(batch(8)[...,4:24,4:24], (4,4,4,4), value=-.4) # with a margin, as digits have
    for by in (1,2):
        five = [xb] + [xb.roll(o, dims=dim) for dim in (2,3) for o in (-by,by)]
        with torch.no_grad():
            want = torch.stack([net(o).softmax(1) for o in five]).mean(0)
            assert torch.allclose(average_shifts(net, xb, by), want, atol=1e-6)

def test_the_arms_of_lesson_14_change_what_they_say():
    arms = {k: asdict(o) for k,o in grids()['augmentation'].items()}
    plain = arms['none']
    changed = {k: {f for f in o if o[f]!=plain[f]} for k,o in arms.items()}
    assert changed=={'none': set(), 'smoothing': {'label_smoothing'}, 'averaging': {'ema'},
                     'long': {'epochs'}, 'long+augmented': {'epochs','augment'},
                     **{k: {'augment'} for k in ('affine','elastic','pen','affine+elastic','all')}}
    on = {k: {f for f,v in o['augment'].items() if v} for k,o in arms.items()}
    moved = {'rotate','scale','shear','shift'}
    assert on['affine']==moved and on['elastic']=={'elastic'} and on['pen']=={'thickness'}
    assert on['affine+elastic']==on['long+augmented']==moved | {'elastic'}
    assert on['all']==moved | {'elastic','thickness'}

def test_only_training_batches_are_bent(sample):
    seen = []
    class Peek(Callback):
        def before_batch(self): seen.append((self.training, self.xb[0].clone()))
    few = sample.train.subset(slice(0,256))
    data = Mnist(few, few.replace(split='valid'), few.replace(split='test'), 'sample')
    learn = digit_learner(digit_dls(data, device='cpu', batch_tfms=[RandomWarp()]), Network(), cbs=Peek())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    (a,x),(b,y) = seen
    assert (a,b)==(True,False) and torch.allclose(y, few[:][0].as_subclass(torch.Tensor))
    assert (x[:,None]-y[None]).abs().amax((2,3,4)).min()>.1

@pytest.mark.slow
def test_a_recipe_that_bends(sample):
    r = Recipe('ImprovedNetwork', dict(p=0.), epochs=1, augment=usual)
    learn = train(r, sample, 3, 'cpu', quiet=True)
    again,plain = (train(r, sample, 3, 'cpu', quiet=True),
                   train(Recipe('ImprovedNetwork', dict(p=0.), epochs=1), sample, 3, 'cpu', quiet=True))
    w = lambda o: o.model.layers[0].weight
    assert torch.equal(w(learn), w(again)) and not torch.equal(w(learn), w(plain))
    soft = train(Recipe('ImprovedNetwork', dict(p=0.), epochs=1, augment=dict(thickness=0, **none)),
                 sample, 3, 'cpu', quiet=True)
    assert torch.allclose(w(soft), w(plain), atol=2e-2) # bent by nothing, but for rounding

class AsCallback(Callback):
    "Augmentation the other way, in a callback: the same batches must come out"
    def before_batch(self):
        if self.training: self.learn.xb = (random_warp(self.xb[0], **usual),)

@pytest.mark.slow
def test_a_batch_transform_equals_a_callback(sample):
    plain = Recipe('ImprovedNetwork', dict(p=0.), epochs=2)
    by_transform = train(replace(plain, augment=usual), sample, 3, 'cpu', quiet=True)
    by_callback = train(plain, sample, 3, 'cpu', quiet=True, cbs=AsCallback())
    for a,b in zip(by_transform.model.parameters(), by_callback.model.parameters()): assert torch.equal(a, b)

def test_training_digits_are_evaluated_as_they_are(sample):
    learn = train(Recipe('Network', epochs=1, augment=usual), sample, 0, 'cpu', quiet=True)
    first,second = evaluate(learn, 'train'),evaluate(learn, 'train')
    plain = evaluate(learn.model, 'train', digit_dls(sample, device='cpu'))
    assert first==second and first==plain
    assert plot_losses(learn, remeasure=True).lines[-1].get_ydata()[0]==pytest.approx(first['loss'])
    assert sample.train.split_idx==0 # training goes on augmenting

def test_the_learner_augments_where_fastai_does(sample):
    learn = train(Recipe('Network', epochs=1, augment=usual), sample, 0, 'cpu', quiet=True)
    plain = sample.train[:256][0].as_subclass(torch.Tensor)
    with learn.no_bar(), learn.no_logging():
        x,y = learn.dls.train.new(shuffle=False).one_batch()
        assert not torch.allclose(x.as_subclass(torch.Tensor), plain[:len(x)])
        for dl,ds in ((learn.dls.valid,sample.valid), (learn.dls.test,sample.test)):
            assert torch.equal(dl.one_batch()[0].as_subclass(torch.Tensor), ds[:500][0].as_subclass(torch.Tensor))
        probs = learn.get_preds()[0]
        tta = learn.tta(n=2)[0]
    assert probs.shape==tta.shape and not torch.allclose(probs, tta)

def test_recipes_round_trip_through_json():
    for r in (Recipe('Network', augment=usual),
              Recipe('ImprovedNetwork', dict(sizes=(784,[32][0],10), p=.1), augment=dict(rotate=3))):
        assert Recipe(**json.loads(json.dumps(asdict(r))))==r
    assert Recipe('Network', dict(sizes=[784,32,10]))==Recipe('Network', dict(sizes=(784,32,10)))

@pytest.mark.parametrize('wrong', [dict(rotate=-1), dict(elastic=float('nan')), dict(shift=float('inf')),
                                   dict(thickness=1.5), dict(scale=-.1), dict(shear='much')])
def test_an_amount_that_makes_no_sense_is_an_error(wrong):
    name, = wrong
    with pytest.raises((ValueError,TypeError)): RandomWarp(**wrong)
    with pytest.raises(ValueError, match=f'{name} must be|arguments of RandomWarp'): Recipe('Network', augment=wrong)

def test_unknown_arguments_are_an_error():
    with pytest.raises(ValueError, match='arguments of RandomWarp'): Recipe('Network', augment=dict(twist=3))
