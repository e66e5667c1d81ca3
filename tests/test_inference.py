"From a picture to a prediction, and what the reader reaches"
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from conftest import repo
from mnist_fastai.checkpoint import load_network
from mnist_fastai.data import Digits
from mnist_fastai.images import *
from mnist_fastai.inference import *
from mnist_fastai.preprocess import *
from mnist_fastai.interpret import logits_of
from mnist_fastai.training import Recipe, train
from mnist_fastai.synthetic import simulate, capture_kinds, ood_images, ood_kinds, draw_digit

def seven(side=100, width=12, paper=0., ink=1., top=20, left=30, h=60, w=40):
    "A seven of two strokes, as floats"
    x = np.full((side,side), paper, np.float32)
    x[top:top+width,left:left+w] = ink
    for i in range(h): x[top+i,int(left+w-width-i*.4):int(left+w-i*.4)] = ink
    return x

@pytest.fixture(scope='module')
def reader(): return Predictor()

@pytest.fixture(scope='module')
def digits(full): return full.valid

def changed(net, ds, f):
    "The share of answers that `f`, on each image, turns into ood_kinds"
    said = logits_of(net, ds).argmax(1)
    now = torch.stack([preprocess(f(d)) for d in ds.images.numpy()])
    return (logits_of(net, Digits(now)).argmax(1)!=said).double().mean().item()

# --- the reader

@pytest.mark.slow
@pytest.mark.parametrize('kind', capture_kinds)
def test_every_form_is_read(reader, digits, kind):
    ds = digits.subset(slice(3, None, 20)) # 500
    now = torch.stack([preprocess(o) for o in simulate(ds, kind)])
    assert (logits_of(reader.net, Digits(now)).argmax(1)==ds.labels).double().mean()>=.95

def test_the_foreign_digits(reader):
    from sklearn.datasets import load_digits
    import json
    f = load_digits()
    now = torch.stack([preprocess((o/16).astype(np.float32)) for o in f.images])
    got = (logits_of(reader.net, Digits(now)).argmax(1)==torch.tensor(f.target)).double().mean().item()
    kept = [o for o in json.loads((repo/'benchmarks'/'reader.json').read_text())['runs'] if o['arm']=='reader']
    assert got==pytest.approx(kept[0]['load_digits'], abs=.003)
    assert np.mean([o['load_digits'] for o in kept])>=.9 and len(kept)==3

def test_the_reader_says_what_it_is(reader):
    from dataclasses import asdict
    from mnist_fastai.improvement import recipes
    assert reader.card['recipe']==asdict(recipes['Reader']) and reader.net.train_sources==('mnist',) and reader.card['seed']==42
    assert 0<reader.threshold<1

def test_two_in_a_hundred_are_refused(reader, digits):
    sure = logits_of(reader.net, digits).double().softmax(1).amax(1)
    assert (sure[::2]<reader.threshold).double().mean().item()==pytest.approx(.02, abs=.002)
    assert (sure[1::2]<reader.threshold).double().mean().item()==pytest.approx(.02, abs=.007)

# --- answers

def test_an_answer(reader):
    a = reader(seven())
    assert a.label==7 and a.confident and a.text.startswith('7 (') and a.probs.sum().item()==pytest.approx(1, abs=1e-5)
    assert a.image.shape==(28,28) and torch.equal(a.image, preprocess(seven())) and not a.multiple_digits
    assert a.confidence==a.probs.max().item() and a.second==a.probs.topk(2).indices[1].item()!=7

def test_not_sure(reader):
    a = Prediction(torch.tensor([.5,.3]+[.025]*8), torch.zeros(28,28), False, .9)
    assert not a.confident and a.text=='not sure: 0 (50 %) or 1 (30 %)'
    assert Prediction(a.probs, a.image, False, .5).confident

def test_two_digits(reader, digits):
    rate = np.mean([reader(o).multiple_digits for o in ood_images('two digits', 60, digits)])
    assert rate>.8
    a = Prediction(torch.eye(10)[3], torch.zeros(28,28), True, .5)
    assert not a.confident and 'more than one' in a.text
    assert np.mean([side_by_side(d/255) for d in digits.images[:4000].numpy()])<.001

def test_many_and_their_order(reader):
    good,bad = seven(),b'no picture'
    res = reader.batch([good, bad, 1-good, np.zeros((30,30)), good])
    assert [type(o) for o in res]==[Prediction,ImageError,Prediction,BlankError,Prediction] and [o.label for o in res if isinstance(o, Prediction)]==[7,7,7]
    assert reader.batch([])==[] and all(isinstance(o, ImageError) for o in reader.batch([bad]*3))
    with pytest.raises(ImageError, match='no picture'): reader(bad)

def test_a_stream_asks_for_no_more_than_a_batch(reader):
    asked = []
    def sources():
        for i in range(1000): asked.append(i); yield seven()
    s = reader.stream(sources(), bs=8)
    assert next(s).label==7 and len(asked)==8

def test_one_alone_and_among_many(reader, digits):
    ims = simulate(digits.subset(slice(0,40)), 'photographed')
    many = reader.batch(ims)
    for im,o in zip(ims, many): assert torch.allclose(reader(im).probs, o.probs, atol=1e-5)

def test_other_networks(sample):
    net = load_network(repo/'models'/'Network.pth')
    p = Predictor(net)
    assert p.net is net and p.threshold==.8 and Predictor(repo/'models'/'Network.pth', .5).threshold==.5
    for o in (-.1, 1.1, 'much', float('nan')):
        with pytest.raises(ValueError, match='from 0 to 1'): Predictor(net, o)

def test_bad_networks(tmp_path):
    from mnist_fastai.checkpoint import CheckpointError
    (tmp_path/'x.pth').write_bytes(b'')
    for o in (tmp_path/'missing.pth', tmp_path/'x.pth'):
        with pytest.raises(CheckpointError): Predictor(o)


def test_a_network_of_something_else_stops():
    from mnist_fastai.data import DataInfo
    net = load_network(repo/'models'/'Network.pth')
    for info in (DataInfo(classes=tuple('abcdefghij')), DataInfo(size=(32,32))):
        net.data_info = info
        with pytest.raises(ValueError, match='not trained on digits'): Predictor(net)
    net.data_info = DataInfo(mean=0., std=1.) # digits, with pixels of its own scale
    with torch.no_grad(): want = net(Predictor(net)(seven()).image[None,None].float()/255).softmax(1)[0]
    assert torch.allclose(Predictor(net)(seven()).probs, want, atol=1e-5)

# --- your own digits among those to train on

def test_mixed(sample):
    own = sample.valid.subset(slice(0,7))
    m = mix_in(sample, own, .2)
    n = len(sample.train)
    assert len(m.train)==n+n//4 and torch.equal(m.train.images[:n], sample.train.images) and m.source=='sample' and m.valid is sample.valid
    assert torch.equal(m.train.images[n:n+7], own.images) and torch.equal(m.train.images[n+7:n+14], own.images) and torch.equal(m.train.labels[n:n+7], own.labels)
    for bad in (0, 1, -.1):
        with pytest.raises(ValueError, match='between 0 and 1'): mix_in(sample, own, bad)
    for o in (Digits(own.images), own.subset(slice(0))):
        with pytest.raises(ValueError, match='nothing to learn from'): mix_in(sample, o)

def test_fine_tune_leaves_the_network_as_it_is(sample):
    net = train(Recipe('ImprovedNetwork', dict(p=0.), epochs=2), sample, 0, 'cpu', quiet=True).model.eval()
    before = {k: v.clone() for k,v in net.state_dict().items()}
    own = Digits(255-sample.valid.images[:40], sample.valid.labels[:40]) # somebody who writes white on black
    learn = fine_tune(net, own, sample, epochs=2, lr=3e-3, device='cpu')
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items()) and not net.training
    assert learn.model.train_sources==('own','sample') and net.train_sources==('sample',) and learn.seed==42
    from mnist_fastai.interpret import logits_of
    right = [(logits_of(m, own).argmax(1)==own.labels).double().mean().item() for m in (net, learn.model)]
    assert right[1]>right[0]+.2
