"From a picture to a prediction, and what the packaged reader reaches"
import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from conftest import repo
from mnist_fastai.checkpoint import CheckpointError, load_network
from mnist_fastai.data import DataInfo, Digits, Mnist
from mnist_fastai.images import *
from mnist_fastai.improvement import ImprovedNetwork, recipes
from mnist_fastai.inference import *
from mnist_fastai.interpret import logits_of
from mnist_fastai.models import Network, count_parameters
from mnist_fastai.preprocess import *
from mnist_fastai.synthetic import capture_kinds, drawn_digits, ood_images, simulate
from mnist_fastai.training import Recipe, train

def seven(side=100, width=12, top=20, left=30, h=60, w=40):
    "A seven of two strokes, light on dark, as floats"
    x = np.zeros((side,side), np.float32)
    x[top:top+width,left:left+w] = 1
    for i in range(h): x[top+i,int(left+w-width-i*.4):int(left+w-i*.4)] = 1
    return x

def accuracy(net, images, labels):
    return (logits_of(net, Digits(images)).argmax(1)==torch.as_tensor(labels)).double().mean().item()

@pytest.fixture(scope='module')
def reader(): return Predictor()

@pytest.fixture(scope='module')
def digits(full): return full.valid

# --- what the packaged reader reaches

@pytest.mark.slow
@pytest.mark.parametrize('kind', capture_kinds)
def test_every_simulated_form_is_read(reader, digits, kind):
    ds = digits.subset(slice(3, None, 20)) # 500
    images = torch.stack([preprocess(o) for o in simulate(ds, kind)])
    assert accuracy(reader.net, images, ds.labels)>=.95

def test_the_foreign_digits_are_read_as_well_as_in_the_benchmark(reader):
    foreign = load_digits()
    images = torch.stack([preprocess((o/16).astype(np.float32)) for o in foreign.images])
    runs = json.loads((repo/'benchmarks'/'reader.json').read_text())['runs']
    runs = [o['load_digits'] for o in runs if o['arm']=='reader']
    assert accuracy(reader.net, images, foreign.target)==pytest.approx(runs[0], abs=.003)
    assert np.mean(runs)>=.975 and len(runs)==3

def test_the_card_of_the_reader(reader):
    assert Recipe(**reader.card['recipe'])==recipes['Reader'] and reader.card['seed']==42
    assert reader.net.train_sources==('mnist',) and 0<reader.threshold<1

def test_the_packaged_reader_is_small(reader):
    assert (repo/'mnist_fastai'/'reader.pth').stat().st_size<700_000
    assert count_parameters(reader.net)<=150_000

def test_two_percent_of_the_digits_are_declined(reader, digits):
    confidence = logits_of(reader.net, digits).double().softmax(1).amax(1)
    chosen,checked = [(o<reader.threshold).double().mean().item() for o in (confidence[::2],confidence[1::2])]
    assert chosen==pytest.approx(.02, abs=.002) and checked==pytest.approx(.02, abs=.007)

# --- a prediction

def test_a_prediction(reader):
    p = reader(seven())
    assert p.label==7 and p.confident and p.text.startswith('7 (') and not p.multiple_digits
    assert p.probs.sum().item()==pytest.approx(1, abs=1e-5) and p.confidence==p.probs.max().item()
    assert p.second==p.probs.topk(2).indices[1].item()!=7
    assert torch.equal(p.image, preprocess(seven()))

def test_a_prediction_below_the_threshold_is_not_confident():
    probs,image = torch.tensor([.5,.3]+[.025]*8),torch.zeros(28,28)
    p = Prediction(probs, image, False, .9)
    assert not p.confident and p.text=='not sure: 0 (50 %) or 1 (30 %)'
    assert Prediction(probs, image, False, .5).confident

def test_several_digits_are_not_confident():
    p = Prediction(torch.eye(10)[3], torch.zeros(28,28), True, .5)
    assert not p.confident and 'more than one digit; as one, 3 (100 %)' in p.text

# --- two digits side by side

def parts(*boxes):
    "Full ink in each box (top, bottom, left, right) of 20 by 40 pixels"
    x = np.zeros((20,40), np.float32)
    for t,b,l,r in boxes: x[t:b,l:r] = 1
    return x

@pytest.mark.parametrize('boxes, expected', [
    ([], False),
    ([(2,18,2,12)], False), # one part
    ([(2,18,2,12), (2,18,20,30)], True),
    ([(2,18,20,30), (2,18,2,12)], True),
    ([(2,18,2,12), (2,18,13,23)], True), # one empty column
    ([(2,8,2,12), (10,18,12,22)], False), # no empty column
    ([(0,8,2,20), (10,18,4,18)], False), # one above the other
    ([(2,18,2,12), (2,6,20,24)], False), # the second is small
    ([(0,6,2,30), (8,14,4,12), (8,14,16,26)], False), # a wide part covers the gap
    ([(0,6,2,20), (8,14,2,10), (0,14,24,34)], True), # the gap is after the end of the widest
])
def test_two_large_parts_side_by_side(boxes, expected): assert side_by_side(parts(*boxes)) is expected

def test_pairs_of_digits_are_told_from_single_ones(reader, digits):
    assert np.mean([reader(o).multiple_digits for o in ood_images('two digits', 60, digits)])>.8
    assert np.mean([side_by_side(d/255) for d in digits.images[:4000].numpy()])<.001

# --- many pictures

def test_results_keep_the_order_of_the_pictures(reader):
    good,bad = seven(),b'no picture'
    res = reader.batch([good, bad, 1-good, np.zeros((30,30)), good])
    assert [type(o) for o in res]==[Prediction,ImageError,Prediction,BlankError,Prediction]
    assert [res[i].label for i in (0,2,4)]==[7,7,7]

def test_each_prediction_belongs_to_its_picture(reader, digits):
    pictures = simulate(digits.subset(slice(40)), 'photographed')
    pictures[3] = pictures[17] = b'no picture'
    for i,o in enumerate(reader.stream(pictures, bs=7)):
        if i in (3,17): assert isinstance(o, ImageError)
        else: assert torch.allclose(reader(pictures[i]).probs, o.probs, atol=1e-5)
    assert i==39

def test_nothing_to_read(reader):
    assert reader.batch([])==[]
    assert all(isinstance(o, ImageError) for o in reader.batch([b'no picture']*3))
    with pytest.raises(ImageError, match='not a picture'): reader(b'no picture')

def test_a_stream_takes_no_more_than_a_batch_in_advance(reader):
    taken = []
    def sources():
        for i in range(1000):
            taken.append(i)
            yield seven()
    s = reader.stream(sources(), bs=8)
    assert next(s).label==7 and len(taken)==8

# --- networks

def test_steps_that_are_there_already_are_read_as_the_picture(reader):
    a,b = reader.read_steps(preprocess_steps(seven())),reader(seven())
    assert torch.equal(a.probs, b.probs) and torch.equal(a.image, b.image) and a.text==b.text
    two = np.concatenate([seven(), seven()], 1) # side by side
    assert reader.read_steps(preprocess_steps(two)).multiple_digits

def test_other_networks():
    path = repo/'models'/'Network.pth'
    net = load_network(path)
    assert Predictor(net).net is net and Predictor(net).threshold==.8 and Predictor(path, .5).threshold==.5

@pytest.mark.parametrize('threshold', [-.1, 1.1, 'much', float('nan')])
def test_a_threshold_that_is_no_probability(threshold):
    with pytest.raises(ValueError, match='from 0 to 1'): Predictor(repo/'models'/'Network.pth', threshold)

def test_a_file_that_is_no_network(tmp_path):
    (tmp_path/'x.pth').write_bytes(b'')
    for name in ('missing.pth','x.pth'):
        with pytest.raises(CheckpointError): Predictor(tmp_path/name)

@pytest.mark.parametrize('info', [DataInfo(classes=tuple('abcdefghij')), DataInfo(size=(32,32))])
def test_a_network_of_something_else_than_digits(info):
    net = load_network(repo/'models'/'Network.pth')
    net.data_info = info
    with pytest.raises(ValueError, match='not trained on digits'): Predictor(net)

def test_the_normalization_is_that_of_the_network():
    net = load_network(repo/'models'/'Network.pth')
    net.data_info = DataInfo(mean=0., std=1.)
    p = Predictor(net)(seven())
    with torch.no_grad(): expected = net(p.image[None,None].float()/255).softmax(1)[0]
    assert torch.allclose(p.probs, expected, atol=1e-5)

def huge_weights():
    "A network with finite weights whose sums are not"
    net = Network()
    with torch.no_grad():
        for o in net.parameters(): o.fill_(3e38)
    return net.eval()

def negative_variance():
    "A network whose running variance has no square root"
    net = ImprovedNetwork()
    net.norms[0].running_var.fill_(-1)
    return net.eval()

@pytest.mark.parametrize('make', [huge_weights, negative_variance])
def test_predictions_that_are_not_finite_are_an_error(make):
    read = Predictor(make())
    with pytest.raises(ValueError, match='not finite.*train the network again, or download'): read(seven())
    with pytest.raises(ValueError, match='not finite'): list(read.stream([b'no picture', seven()]))

# --- your own digits among those to train on

def test_own_digits_are_mixed_in(sample):
    own,n = sample.valid.subset(slice(7)),len(sample.train)
    m = mix_in(sample, own, .2)
    assert len(m.train)==n+n//4 and m.source=='sample' and m.valid is sample.valid
    assert torch.equal(m.train.images[:n], sample.train.images)
    for start in (n,n+7):
        assert torch.equal(m.train.images[start:start+7], own.images)
        assert torch.equal(m.train.labels[start:start+7], own.labels)

def test_what_cannot_be_mixed_in(sample):
    own = sample.valid.subset(slice(7))
    for share in (0, 1, -.1):
        with pytest.raises(ValueError, match='between 0 and 1'): mix_in(sample, own, share)
    for o in (Digits(own.images), own.subset(slice(0))):
        with pytest.raises(ValueError, match='nothing to learn from'): mix_in(sample, o)

def test_fine_tuning_trains_a_copy(sample):
    net = train(Recipe('ImprovedNetwork', dict(p=0.), epochs=2), sample, 0, 'cpu', quiet=True).model.eval()
    before = {k: v.clone() for k,v in net.state_dict().items()}
    own = Digits(255-sample.valid.images[:40], sample.valid.labels[:40]) # inverted digits
    learn = fine_tune(net, own, sample, epochs=2, lr=3e-3, device='cpu')
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items()) and not net.training
    assert learn.model.train_sources==('own','sample') and net.train_sources==('sample',) and learn.seed==42
    old,new = [accuracy(m, own.images, own.labels) for m in (net, learn.model)]
    assert new>old+.2

# --- digits that MNIST hardly has, among those to train on

def test_simulated_forms_are_digits_of_each_kind_with_their_labels(sample):
    ds = sample.train.subset(torch.arange(20)*190)
    a,b,c = simulated_forms(ds, 40),simulated_forms(ds, 40),simulated_forms(ds, 40, seed=1)
    assert 38<=len(a)<=40 and torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    assert len(a)!=len(c) or not torch.equal(a.images, c.images)
    assert accuracy(Predictor().net, a.images, a.labels)>.9
    one = ds.subset(slice(0,1))
    expected = torch.stack([preprocess(simulate(one, kind)[0]) for kind in capture_kinds])
    assert torch.equal(simulated_forms(one, 8).images, expected)
    assert len(simulated_forms(ds, 0))==0

def test_the_shares_of_the_digits_to_train_on(sample):
    few = Mnist(sample.train.subset(slice(300)), sample.valid, sample.test, sample.source)
    m = reader_data(few, forms=.2, drawn=.1)
    n_drawn,n_forms = 33,83 # a tenth of 333, a fifth of 416
    assert len(m.train)==300+n_drawn+n_forms and m.valid is few.valid and m.test is few.test
    assert torch.equal(m.train.images[:300], few.train.images) and torch.equal(m.train.labels[:300], few.train.labels)
    images,labels = drawn_digits(n_drawn)
    assert (m.train.images[300:333].numpy()==images).all() and (m.train.labels[300:333].numpy()==labels).all()
    assert (m.train.split,m.train.source,m.source)==('train','sample','sample')
    assert reader_data(few) is few
    net = train(Recipe('Network', epochs=1), m, 0, 'cpu', quiet=True).model
    assert net.train_sources==('sample',) # so that its guards hold

@pytest.mark.parametrize('shares', [dict(forms=1), dict(drawn=-.1), dict(forms=1.5, drawn=.1)])
def test_shares_that_cannot_be(sample, shares):
    with pytest.raises(ValueError, match='at least 0 and below 1'): reader_data(sample, **shares)

# --- preprocessing is fast, and gives what the plain formulas give

@pytest.mark.parametrize('kind', ['photographed','thick','slanted'])
def test_the_fast_ways_give_the_numbers_of_the_plain_ones(sample, kind):
    from scipy import ndimage
    def away(strong): return ~ndimage.maximum_filter(strong, 2*max(1, round(max(strong.shape)/40))+1)
    for picture in simulate(sample.valid.subset(slice(0, None, 25)), kind):
        a = np.float32(picture)/255
        g = a if ink_is_light(a) else 1-a
        far = g[away(g>otsu(g))]
        assert has_uniform_background(g)==((abs(far-np.median(far))<.02).mean()>.97)
        c = subtract_background(g)
        threshold = c.max()*min(max(otsu(c/c.max()), .45), .9)
        lo = min(np.quantile(c[away(c>threshold)], .98), .8*threshold)
        hi = np.quantile(c[c>threshold], .9)
        assert np.array_equal(stretch_contrast(c), ((c-lo)/(hi-lo)).clip(0,1))
        if max(a.shape)<=64: # not made smaller first
            for o in (a,1-a):
                rest = o-ndimage.gaussian_filter(o, .2*max(o.shape), mode='nearest')
                assert ink_is_light(o)==((rest**3).sum()>0)
