"From a picture to MNIST's form and to an answer: each stage on a case with a known result, what must not change an answer, and what the reader reaches"
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from conftest import repo
from mnist_fastai.checkpoint import load_network
from mnist_fastai.data import Digits
from mnist_fastai.inference import bounds, otsu, pen_width, side_by_side
from mnist_fastai.inference import *
from mnist_fastai.interpret import logits_of
from mnist_fastai.training import Recipe, train
from mnist_fastai.papers import handed_in, kinds, no_digits, others, written

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
    "The share of answers that `f`, on each image, turns into others"
    said = logits_of(net, ds).argmax(1)
    now = torch.stack([prepare(f(d)) for d in ds.images.numpy()])
    return (logits_of(net, Digits(now)).argmax(1)!=said).double().mean().item()

# --- the stages

def test_otsu():
    x = np.concatenate([np.full(300, .2), np.full(100, .8)])
    assert .2<otsu(x)<.8
    for rare in (3, 30): assert .1<otsu(np.r_[np.zeros(1000), np.ones(rare)])<.9
    assert np.isfinite(otsu(np.full((5,5), .7)))

def test_polarity():
    for x in (seven(), seven(paper=.3, ink=.5), seven(side=60, top=0, left=0)):
        assert ink_is_light(x) is True and ink_is_light(1-x) is False
    shadow = np.linspace(.9, .3, 100, dtype=np.float32)[None]
    assert ink_is_light(shadow*(1-.7*seven())) is False

def test_polarity_of_all_digits(digits):
    "Also when cut out without a margin, where the border is ink for the larger part"
    for d in digits.images[:3000].numpy():
        x = d[bounds(d/255, 0)].astype(np.float32)/255
        assert ink_is_light(d.astype(np.float32)/255)
        if min(x.shape)>4: assert ink_is_light(x) and not ink_is_light(1-x)

def test_even_and_uneven_paper():
    assert is_even(seven()) and is_even(seven(paper=.2, ink=.9))
    shaded = seven()*.6 + np.linspace(0, .4, 100, dtype=np.float32)
    assert not is_even(shaded)
    c = without_paper(shaded)
    assert c[seven()==0].max()<.15<.4<c[seven()==1].min()
    assert np.abs(without_paper(seven(paper=.2, ink=.9))[seven()==0]).max()<1e-6

def test_ruling_goes_and_the_pen_stays():
    x = seven()*.8
    x[10::15] = np.maximum(x[10::15], .25)
    got = without_dust(clean_ink(x), x)
    assert got[seven()==1].mean()>.95 and got[seven()==0].mean()<.02

def test_dust_goes_and_strokes_stay():
    x = np.zeros((60,60), np.float32)
    x[10:50,20:26] = 1 # 240
    x[10:14,40:44] = 1 # 16, a stroke of its own
    x[55,55] = 1
    got = without_dust(x)
    assert got[55,55]==0 and got[12,42]==1 and got[30,22]==1
    assert (without_dust(got)==got).all()

def test_what_hangs_in_from_the_edge():
    x = seven(100)
    x[:30,:8] = 1
    shaded = x*.6 + np.linspace(0, .4, 100, dtype=np.float32)
    assert not is_even(shaded) and without_dust(x)[10,3]==without_dust(x, x)[10,3]==1 and without_dust(x, shaded)[10,3]==0
    y = np.zeros_like(x)
    y[:,:20] = 1 # nothing else is there
    assert without_dust(y, shaded).sum()==y.sum()

def test_pen_width():
    for w in (4,8,12):
        x = np.zeros((120,60), np.float32)
        x[10:110,20:20+w] = 1
        assert pen_width(x)==pytest.approx(w*100/(w+100), rel=.06)

def test_thin_strokes_are_thickened_and_others_left_alone():
    x = seven(200, width=1, h=160, w=100)
    x = x[bounds(x)]
    y = thick_enough(x)
    assert pen_width(x)*20/max(x.shape)<.3 and 1.2<pen_width(y)*20/max(y.shape)<2.2
    z = seven()[bounds(seven())]
    assert thick_enough(z) is z

def test_box_and_centre():
    for h,w in ((100,40),(40,100),(7,3),(20,20),(300,10)):
        x = boxed(np.ones((h,w), np.float32))
        assert max(x.shape)==20 and min(x.shape)==max(1, round(20*min(h,w)/max(h,w)))
        c = np.array(ndimage.center_of_mass(centred(x)))
        assert np.abs(c-14).max()<=.5 and centred(x).shape==(28,28)
    for n in (19,21): assert boxed(np.ones((n,8), np.float32)).shape==(n,8) # not worth a blur

def test_antialiasing():
    "A checkerboard finer than a pixel becomes grey, not a pattern of a lucky few"
    x = np.indices((400,400)).sum(0).astype(np.float32)%2
    assert np.abs(boxed(x)-.5).max()<.05

def test_stages_and_skipping():
    x = seven(paper=.2, ink=.9)
    steps = prepare_steps(x)
    assert list(steps)==['picture',*stages] and steps['centre'].shape==(28,28)
    for v in steps.values(): assert v.dtype==np.float32 or v.dtype==np.float64
    for v in steps.values(): assert 0<=v.min() and v.max()<=1
    dark = prepare_steps(1-x, ('polarity',))
    assert dark['polarity'].max()==dark['picture'].max() and np.array_equal(dark['polarity'], dark['picture'])
    assert prepare_steps(x, ('crop',))['crop'].shape==x.shape
    assert prepare_steps(x, ('box',))['box'].shape==(28,28)
    for s in stages: assert prepare(x, (s,)).shape==(28,28)
    assert prepare(x, stages).shape==(28,28)
    with pytest.raises(ValueError, match="no stage 'boxes'"): prepare(x, ('boxes',))

def test_prepare_gives_bytes():
    x = prepare(seven())
    assert x.dtype==torch.uint8 and x.shape==(28,28) and x.max()>200 and x[0].max()==0

def test_show_steps(): assert [o.get_title().split('\n')[0] for o in show_steps(seven())]==['picture',*stages]

@pytest.mark.parametrize('x', [np.zeros((50,50)), np.ones((50,50)), np.full((50,50), .5), np.full((280,280,3), 255, np.uint8), np.zeros((8,8), np.uint8), Image.new('RGBA', (50,50))])
def test_blank(x):
    with pytest.raises(Blank, match='is blank'): prepare(x)

def test_nearly_blank():
    x = np.zeros((200,200), np.float32)
    x[100,100] = 1
    with pytest.raises(Blank, match='but for a dot'): prepare(x)
    x[100:105,100:105] = 1
    with pytest.raises(Blank, match='but for a dot'): prepare(x)
    x = np.full((200,200), .5, np.float32)
    x[60:140,90:110] += .03 # too faint to be sure of
    with pytest.raises(Blank): prepare(x)

def test_whatever_comes_something_is_said():
    "Random pictures of any size: an image, or a sentence"
    rng,n = np.random.default_rng(0),0
    for i in range(700):
        h,w = rng.integers(8, 60, 2) if i%2 else rng.integers(1, 300, 2)
        a = rng.integers(0, 256, (h,w)).astype(np.uint8)
        a = [a, (a>250)*np.uint8(255), np.full_like(a, a[0,0]), (np.arange(h*w).reshape(h,w)%256).astype(np.uint8), np.where(np.arange(w)<w//2, 255, a).astype(np.uint8), np.repeat(a[:,:1], w, 1), np.minimum(a, 3)][i%7]
        try:
            x = prepare(a)
            n += 1
            assert x.shape==(28,28)
        except ImageError as e: assert str(e).endswith('.')
    assert n>400

# --- what must not change an answer: the limits that lesson 16 states, on the whole validation split

def place_speck(seed=0):
    rng = np.random.default_rng(seed)
    def f(d):
        d = d.copy()
        free = np.argwhere(d==0)
        d[tuple(free[rng.integers(len(free))])] = 255
        return d
    return f

def shift(seed=1):
    rng = np.random.default_rng(seed)
    def f(d):
        (t,l) = rng.integers(0, 30, 2)
        return np.pad(d, ((t,30-t),(l,30-l)))
    return f

def times(s): return lambda d: np.asarray(Image.fromarray(d).resize((round(28*s),)*2, Image.BICUBIC))
def in_alpha(d): return np.dstack([np.zeros((28,28,3), np.uint8), d])

@pytest.mark.slow
@pytest.mark.parametrize('name,f,most', [('once more', lambda d: d, .002), ('shifted', shift(), .001), ('padded', lambda d: np.pad(d, 20), .001), ('inverted', lambda d: 255-d, .001), ('in alpha', in_alpha, .001),
    ('lower contrast', lambda d: (80+.4*d.astype(float)).astype(np.uint8), .001), ('lower contrast, dark', lambda d: (200-.4*d.astype(float)).astype(np.uint8), .001), ('a speck', place_speck(), .001)])
def test_nothing_to_the_answer(reader, digits, name, f, most):
    ds = digits.subset(slice(0, None, 2))
    assert changed(reader.net, ds, f)<=most

@pytest.mark.slow
@pytest.mark.parametrize('scale,most', [(10,.007), (4,.007), (2,.007), (1.3,.007), (.7,.01), (.5,.015)])
def test_little_to_the_answer(reader, digits, scale, most):
    assert changed(reader.net, digits.subset(slice(0, None, 4)), times(scale))<=most

def test_the_limits_can_be_missed(reader, digits):
    "A preparation without its steps passes none of them: the limits are no formality"
    ds = digits.subset(slice(0, None, 40))
    said = logits_of(reader.net, ds).argmax(1)
    for f,skip in ((lambda d: 255-d, 'polarity'), (lambda d: np.pad(d, 20), 'crop')):
        now = torch.stack([prepare(f(d), (skip,)) for d in ds.images.numpy()])
        assert (logits_of(reader.net, Digits(now)).argmax(1)!=said).double().mean()>.2

# --- the reader

@pytest.mark.slow
@pytest.mark.parametrize('kind', kinds)
def test_every_form_is_read(reader, digits, kind):
    ds = digits.subset(slice(3, None, 20)) # 500
    now = torch.stack([prepare(o) for o in handed_in(ds, kind)])
    assert (logits_of(reader.net, Digits(now)).argmax(1)==ds.labels).double().mean()>=.95

def test_the_foreign_digits(reader):
    from sklearn.datasets import load_digits
    import json
    f = load_digits()
    now = torch.stack([prepare((o/16).astype(np.float32)) for o in f.images])
    got = (logits_of(reader.net, Digits(now)).argmax(1)==torch.tensor(f.target)).double().mean().item()
    kept = [o for o in json.loads((repo/'benchmarks'/'reader.json').read_text())['runs'] if o['arm']=='reader']
    assert got==pytest.approx(kept[0]['load_digits'], abs=.003)
    assert np.mean([o['load_digits'] for o in kept])>=.9 and len(kept)==3

def test_the_reader_says_what_it_is(reader):
    from dataclasses import asdict
    from mnist_fastai.improvement import recipes
    assert reader.card['recipe']==asdict(recipes['Reader']) and reader.net.train_sources==('mnist',) and reader.card['seed']==42
    assert 0<reader.sure_from<1

def test_two_in_a_hundred_are_refused(reader, digits):
    sure = logits_of(reader.net, digits).double().softmax(1).amax(1)
    assert (sure[::2]<reader.sure_from).double().mean().item()==pytest.approx(.02, abs=.002)
    assert (sure[1::2]<reader.sure_from).double().mean().item()==pytest.approx(.02, abs=.007)

# --- answers

def test_an_answer(reader):
    a = reader(seven())
    assert a.label==7 and a.sure and a.text.startswith('7 (') and a.probs.sum().item()==pytest.approx(1, abs=1e-5)
    assert a.image.shape==(28,28) and torch.equal(a.image, prepare(seven())) and not a.two
    assert a.p==a.probs.max().item() and a.second==a.probs.topk(2).indices[1].item()!=7

def test_not_sure(reader):
    a = Answer(torch.tensor([.5,.3]+[.025]*8), torch.zeros(28,28), False, .9)
    assert not a.sure and a.text=='not sure: 0 (50 %) or 1 (30 %)'
    assert Answer(a.probs, a.image, False, .5).sure

def test_two_digits(reader, digits):
    rate = np.mean([reader(o).two for o in no_digits('two digits', 60, digits)])
    assert rate>.8
    a = Answer(torch.eye(10)[3], torch.zeros(28,28), True, .5)
    assert not a.sure and 'more than one' in a.text
    assert np.mean([side_by_side(d/255) for d in digits.images[:4000].numpy()])<.001

def test_many_and_their_order(reader):
    good,bad = seven(),b'no picture'
    res = reader.batch([good, bad, 1-good, np.zeros((30,30)), good])
    assert [type(o) for o in res]==[Answer,ImageError,Answer,Blank,Answer] and [o.label for o in res if isinstance(o, Answer)]==[7,7,7]
    assert reader.batch([])==[] and all(isinstance(o, ImageError) for o in reader.batch([bad]*3))
    with pytest.raises(ImageError, match='no picture'): reader(bad)

def test_a_stream_asks_for_no_more_than_a_batch(reader):
    asked = []
    def sources():
        for i in range(1000): asked.append(i); yield seven()
    s = reader.stream(sources(), bs=8)
    assert next(s).label==7 and len(asked)==8

def test_one_alone_and_among_many(reader, digits):
    ims = handed_in(digits.subset(slice(0,40)), 'photographed')
    many = reader.batch(ims)
    for im,o in zip(ims, many): assert torch.allclose(reader(im).probs, o.probs, atol=1e-5)

def test_other_networks(sample):
    net = load_network(repo/'models'/'Network.pth')
    p = Predictor(net)
    assert p.net is net and p.sure_from==.8 and Predictor(repo/'models'/'Network.pth', .5).sure_from==.5
    for o in (-.1, 1.1, 'much', float('nan')):
        with pytest.raises(ValueError, match='from 0 to 1'): Predictor(net, o)

def test_bad_networks(tmp_path):
    from mnist_fastai.checkpoint import CheckpointError
    (tmp_path/'x.pth').write_bytes(b'')
    for o in (tmp_path/'missing.pth', tmp_path/'x.pth'):
        with pytest.raises(CheckpointError): Predictor(o)

# --- pictures to measure with

def test_handed_in_repeats_itself(sample):
    ds = sample.valid.subset(slice(0,6))
    for k in kinds:
        a,b,c = handed_in(ds, k),handed_in(ds, k),handed_in(ds, k, seed=1)
        assert len(a)==6 and all(o.dtype==np.uint8 and o.ndim==2 for o in a) and all((x==y).all() for x,y in zip(a,b))
        if k in ('shifted','slanted','photographed','thick'): assert not all((x==y).all() for x,y in zip(a,c))
    with pytest.raises(ValueError, match='no kind'): handed_in(ds, 'folded')

def test_no_digits(sample):
    for k in others:
        ims = no_digits(k, 3, sample.valid)
        assert len(ims)==3 and all(o.dtype==np.uint8 for o in ims)
        assert all((a==b).all() for a,b in zip(ims, no_digits(k, 3, sample.valid)))
    with pytest.raises(ValueError, match='no kind'): no_digits('shoes', 3)

def test_written(reader):
    rng = np.random.default_rng(0)
    right = [reader(written(d, rng)).label==d for d in (2,3,4,5,6,7,8,9) for _ in range(10)]
    assert np.mean(right)>.9 and np.asarray(written(1, rng)).shape==(200,160)

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
