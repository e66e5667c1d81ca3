"From a picture to MNIST's form: each stage on a case with a known result, and what must not change a prediction"
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from conftest import repo
from mnist_fastai.data import Digits
from mnist_fastai.images import *
from mnist_fastai.inference import Predictor
from mnist_fastai.preprocess import *
from mnist_fastai.interpret import logits_of

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

# --- the stages

def test_otsu():
    x = np.concatenate([np.full(300, .2), np.full(100, .8)])
    assert .2<otsu(x)<.8
    for rare in (3, 30): assert .1<otsu(np.r_[np.zeros(1000), np.ones(rare)])<.9
    assert np.isfinite(otsu(np.full((5,5), .7)))

def frame_of(sides, width, inset=0, side=160):
    "A mask of lines along the sides 0 to 3 (top, right, bottom, left) of a square"
    res = np.zeros((side,side), bool)
    for s in sides: np.rot90(res, s)[inset:inset+width] = True
    return res

@pytest.mark.parametrize('sides', [(0,),(1,),(2,),(3,),(0,2),(1,2,3),(0,1,2,3)])
@pytest.mark.parametrize('width', [1,2,4])
def test_lines_along_the_sides_go(sides, width):
    x = seven(160)
    for paper,ink in ((0,1), (1,0), (.2,.6)):
        clean = paper+(ink-paper)*x
        for inset in (0,5):
            framed = np.where(frame_of(sides, width, inset), ink, clean).astype(np.float32)
            assert np.abs(remove_frame(framed)-clean).max()<1e-6

def test_a_faint_line_and_a_slanted_box_go():
    x = seven(160)
    faint = np.where(frame_of([2], 3), .15, x).astype(np.float32)
    assert np.abs(remove_frame(faint)-x).max()<1e-6
    m = np.zeros((160,160), bool)
    m[8:152,8:152] = True
    m[11:149,11:149] = False
    tilted = np.asarray(Image.fromarray((m*255).astype(np.uint8)).rotate(1.5, Image.BICUBIC), np.float32)/255
    got = remove_frame(np.maximum(x, tilted))
    assert (got-x)[x==0].max()<.3 and (got-x)[30:130,30:130].max()==0

def test_a_picture_without_lines_stays():
    for x in (seven(), 1-seven(), seven(28, 3, top=4, left=4, h=20, w=18),
              np.zeros((8,8), np.float32), np.full((50,3), .5, np.float32)):
        assert remove_frame(x) is x

def test_a_stroke_is_no_frame():
    "A seven and a two of straight strokes, cut out without a margin: the bar is as long as the side"
    top = seven(100, 6)[20:80,30:70]
    two = top[::-1].copy() # its bar is at the bottom
    for x in (top, two, top.T.copy(), 1-top): assert remove_frame(x) is x

def test_a_digit_that_crosses_the_frame_stays():
    x = np.zeros((160,160), np.float32)
    x[60:158,76:86] = 1 # a one that stands on the line, and beyond
    framed = np.where(frame_of([2], 3), 1, x).astype(np.float32)
    got = remove_frame(framed)
    assert got[157,:70].max()==got[157,92:].max()==0 and got[60:150,80].min()==1

@pytest.mark.parametrize('dark', [False,True])
def test_a_frame_changes_no_polarity(dark):
    framed = np.where(frame_of(range(4), 4), 1, seven(160)*.9).astype(np.float32)
    if dark: framed = 1-framed
    assert (preprocess(framed).int()-preprocess(seven(160)).int()).abs().max()<=2

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
    assert has_uniform_background(seven()) and has_uniform_background(seven(paper=.2, ink=.9))
    shaded = seven()*.6 + np.linspace(0, .4, 100, dtype=np.float32)
    assert not has_uniform_background(shaded)
    c = subtract_background(shaded)
    assert c[seven()==0].max()<.15<.4<c[seven()==1].min()
    assert np.abs(subtract_background(seven(paper=.2, ink=.9))[seven()==0]).max()<1e-6

def test_ruling_goes_and_the_pen_stays():
    x = seven()*.8
    x[10::15] = np.maximum(x[10::15], .25)
    got = remove_specks(stretch_contrast(x), x)
    assert got[seven()==1].mean()>.95 and got[seven()==0].mean()<.02

def test_dust_goes_and_strokes_stay():
    x = np.zeros((60,60), np.float32)
    x[10:50,20:26] = 1 # 240
    x[10:14,40:44] = 1 # 16, a stroke of its own
    x[55,55] = 1
    got = remove_specks(x)
    assert got[55,55]==0 and got[12,42]==1 and got[30,22]==1
    assert (remove_specks(got)==got).all()

def test_what_hangs_in_from_the_edge():
    x = seven(100)
    x[:30,:8] = 1
    shaded = x*.6 + np.linspace(0, .4, 100, dtype=np.float32)
    assert (not has_uniform_background(shaded)
            and remove_specks(x)[10,3]==remove_specks(x, x)[10,3]==1
            and remove_specks(x, shaded)[10,3]==0)
    y = np.zeros_like(x)
    y[:,:20] = 1 # nothing else is there
    assert remove_specks(y, shaded).sum()==y.sum()

def test_pen_width():
    for w in (4,8,12):
        x = np.zeros((120,60), np.float32)
        x[10:110,20:20+w] = 1
        assert stroke_width(x)==pytest.approx(w*100/(w+100), rel=.06)

def test_thin_strokes_are_thickened_and_others_left_alone():
    x = seven(200, width=1, h=160, w=100)
    x = x[bounds(x)]
    y = thicken_strokes(x)
    assert stroke_width(x)*20/max(x.shape)<.3 and 1.2<stroke_width(y)*20/max(y.shape)<2.2
    z = seven()[bounds(seven())]
    assert thicken_strokes(z) is z

def test_box_and_centre():
    for h,w in ((100,40),(40,100),(7,3),(20,20),(300,10)):
        x = fit_box(np.ones((h,w), np.float32))
        assert max(x.shape)==20 and min(x.shape)==max(1, round(20*min(h,w)/max(h,w)))
        c = np.array(ndimage.center_of_mass(center_by_mass(x)))
        assert np.abs(c-14).max()<=.5 and center_by_mass(x).shape==(28,28)
    for n in (19,21): assert fit_box(np.ones((n,8), np.float32)).shape==(n,8) # not worth a blur

def test_antialiasing():
    "A checkerboard finer than a pixel becomes grey, not a pattern of a lucky few"
    x = np.indices((400,400)).sum(0).astype(np.float32)%2
    assert np.abs(fit_box(x)-.5).max()<.05

def test_stages_and_skipping():
    x = seven(paper=.2, ink=.9)
    steps = preprocess_steps(x)
    assert list(steps)==['picture',*stages] and stages[:2]==('frame','polarity') and steps['center'].shape==(28,28)
    for v in steps.values(): assert v.dtype==np.float32 or v.dtype==np.float64
    for v in steps.values(): assert 0<=v.min() and v.max()<=1
    dark = preprocess_steps(1-x, ('polarity',))
    assert dark['polarity'].max()==dark['picture'].max() and np.array_equal(dark['polarity'], dark['picture'])
    assert preprocess_steps(x, ('crop',))['crop'].shape==x.shape
    assert preprocess_steps(x, ('box',))['box'].shape==(28,28)
    for s in stages: assert preprocess(x, (s,)).shape==(28,28)
    assert preprocess(x, stages).shape==(28,28)
    with pytest.raises(ValueError, match="no stage 'boxes'"): preprocess(x, ('boxes',))

def test_prepare_gives_bytes():
    x = preprocess(seven())
    assert x.dtype==torch.uint8 and x.shape==(28,28) and x.max()>200 and x[0].max()==0

def test_show_steps(): assert [o.get_title().split('\n')[0] for o in show_preprocessing(seven())]==['picture',*stages]

@pytest.mark.parametrize('x', [
    np.zeros((50,50)),
    np.ones((50,50)),
    np.full((50,50), .5),
    np.full((280,280,3), 255, np.uint8),
    np.zeros((8,8), np.uint8),
    Image.new('RGBA', (50,50)),
])
def test_blank(x):
    with pytest.raises(BlankError, match='is blank'): preprocess(x)

def test_nearly_blank():
    x = np.zeros((200,200), np.float32)
    x[100,100] = 1
    with pytest.raises(BlankError, match='but for a dot'): preprocess(x)
    x[100:105,100:105] = 1
    with pytest.raises(BlankError, match='but for a dot'): preprocess(x)
    x = np.full((200,200), .5, np.float32)
    x[60:140,90:110] += .03 # too faint to be sure of
    with pytest.raises(BlankError): preprocess(x)

def test_whatever_comes_something_is_said():
    "Random pictures of any size: an image, or a sentence"
    rng,n = np.random.default_rng(0),0
    for i in range(700):
        h,w = rng.integers(8, 60, 2) if i%2 else rng.integers(1, 300, 2)
        a = rng.integers(0, 256, (h,w)).astype(np.uint8)
        a = [
            a,
            (a>250)*np.uint8(255),
            np.full_like(a, a[0,0]),
            (np.arange(h*w).reshape(h,w)%256).astype(np.uint8),
            np.where(np.arange(w)<w//2, 255, a).astype(np.uint8),
            np.repeat(a[:,:1], w, 1),
            np.minimum(a, 3),
        ][i%7]
        try:
            x = preprocess(a)
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
@pytest.mark.parametrize('name,f,most', [
    ('once more', lambda d: d, .002),
    ('shifted', shift(), .001),
    ('padded', lambda d: np.pad(d, 20), .001),
    ('inverted', lambda d: 255-d, .001),
    ('in alpha', in_alpha, .001),
    ('lower contrast', lambda d: (80+.4*d.astype(float)).astype(np.uint8), .001),
    ('lower contrast, dark', lambda d: (200-.4*d.astype(float)).astype(np.uint8), .001),
    ('a speck', place_speck(), .001),
])
def test_nothing_to_the_answer(reader, digits, name, f, most):
    ds = digits.subset(slice(0, None, 2))
    assert changed(reader.net, ds, f)<=most

def page(d):
    "On 160 by 160 pixels, 112 of them the image"
    return np.pad(np.asarray(Image.fromarray(d).resize((112,112), Image.BICUBIC)), 24)

def lined(seed=2, invert=False, inset=0):
    "A line of 1 to 4 pixels on one to four sides, up to `inset` pixels inside the edge"
    rng = np.random.default_rng(seed)
    def f(d):
        sides = rng.permutation(4)[:rng.integers(1, 5)]
        x = np.where(frame_of(sides, rng.integers(1, 5), rng.integers(0, inset+1)), 255, page(d)).astype(np.uint8)
        return 255-x if invert else x
    return f

frames = [(inset,invert) for inset in (0,6) for invert in (False,True)]

def changed_by_lines(net, ds, inset, invert):
    "The share of predictions that differ from those for the same page without lines"
    before,now = (torch.stack([preprocess(f(d)) for d in ds.images.numpy()])
                  for f in (page, lined(invert=invert, inset=inset)))
    return (logits_of(net, Digits(now)).argmax(1)!=logits_of(net, Digits(before)).argmax(1)).double().mean().item()

@pytest.mark.parametrize('inset,invert', frames)
def test_lines_change_no_prediction(reader, digits, inset, invert):
    assert changed_by_lines(reader.net, digits.subset(slice(0, None, 50)), inset, invert)<=.01

@pytest.mark.slow
@pytest.mark.parametrize('inset,invert', [(0,False), (6,True)])
def test_lines_change_no_prediction_of_all_digits(reader, digits, inset, invert):
    assert changed_by_lines(reader.net, digits, inset, invert)<=.005

@pytest.mark.slow
@pytest.mark.parametrize('scale,most', [(1,.001), (5,.005)])
def test_tight_digits_keep_their_strokes(reader, digits, scale, most):
    "Cut out without a margin, no stroke is taken for a frame: the prediction is that with the stage left out"
    ds = digits.subset(slice(0, None, 4))
    def tight(d):
        x = d[bounds(d/255, 0)]
        return np.asarray(Image.fromarray(x).resize((scale*x.shape[1],scale*x.shape[0]), Image.BICUBIC))
    without,now = (torch.stack([preprocess(tight(d), skip) for d in ds.images.numpy()]) for skip in (('frame',), ()))
    assert (logits_of(reader.net, Digits(now)).argmax(1)
            !=logits_of(reader.net, Digits(without)).argmax(1)).double().mean()<=most

@pytest.mark.slow
@pytest.mark.parametrize('scale,most', [(10,.007), (4,.007), (2,.007), (1.3,.007), (.7,.01), (.5,.015)])
def test_little_to_the_answer(reader, digits, scale, most):
    assert changed(reader.net, digits.subset(slice(0, None, 4)), times(scale))<=most

def test_the_limits_can_be_missed(reader, digits):
    "A preparation without its steps passes none of them: the limits are no formality"
    ds = digits.subset(slice(0, None, 40))
    said = logits_of(reader.net, ds).argmax(1)
    for f,skip in ((lambda d: 255-d, 'polarity'), (lambda d: np.pad(d, 20), 'crop')):
        now = torch.stack([preprocess(f(d), (skip,)) for d in ds.images.numpy()])
        assert (logits_of(reader.net, Digits(now)).argmax(1)!=said).double().mean()>.2
