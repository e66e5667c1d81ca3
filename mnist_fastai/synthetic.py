"""Pictures to measure with: digits of MNIST as people hand them in, digits of another hand, and things that are no digits.

A plain file: lesson 9 shows every kind and measures with them. All are made from digits of a split, from fonts that come with matplotlib and from
photographs that come with scikit-learn, by recipes written here, and are the same for the same seed.
"""

__all__ = ['simulate', 'capture_kinds', 'draw_digit', 'ood_images', 'ood_kinds']

import io, math

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

def _grey(x): return (np.clip(x, 0, 1)*255).round().astype(np.uint8)
def _scaled(d, side, how=Image.BICUBIC): return np.asarray(Image.fromarray(d).resize((side,side), how))
def _put(x, h, w, rng):
    "`x` somewhere on a black ground of (h, w)"
    res = np.zeros((h,w), x.dtype)
    r,c = rng.integers(0, h-x.shape[0]+1),rng.integers(0, w-x.shape[1]+1)
    res[r:r+x.shape[0],c:c+x.shape[1]] = x
    return res
def _pen(d, side=224): return np.clip(_scaled(d, side)/np.float32(85)-1, 0, 1) # with the sharp edge of a pen

def shifted(d, rng):
    "At its own size, somewhere on a ground of 84 by 84"
    return _put(d, 84, 84, rng)
def shrunk(d, rng):
    "At half its size in the middle of 28 by 28"
    return np.pad(_scaled(d, 14), 7)
def tiny(d, rng):
    "Cut out and averaged into 8 by 8"
    (r,c) = (np.flatnonzero(d.any(o)) for o in (1,0))
    x = d[r[0]:r[-1]+1,c[0]:c[-1]+1]
    h,w = (max(1, round(o*8/max(x.shape))) for o in x.shape)
    x = np.asarray(Image.fromarray(x).resize((w,h), Image.BOX))
    return np.pad(x, [((8-o)//2,8-o-(8-o)//2) for o in (h,w)])
def slanted(d, rng):
    "Turned by up to 25 degrees and sheared by up to 0.4, as by another hand"
    a,sh = math.radians(rng.uniform(-25,25)),rng.uniform(-.4,.4)
    m = np.array([[math.cos(a),-math.sin(a)],[math.sin(a),math.cos(a)]]) @ np.array([[1,0],[sh,1]]) # rows and columns
    x = np.pad(d, 8)
    return _grey(ndimage.affine_transform(x/np.float32(255), m, 21.5-m@[21.5,21.5], order=1))
def inverted(d, rng):
    "Dark on light"
    return 255-d
def thick(d, rng):
    "224 by 224, the pen 4 to 10 pixels thicker all around"
    r = int(rng.integers(4, 11))
    i,j = np.mgrid[-r:r+1,-r:r+1]
    return 255-_grey(ndimage.gaussian_filter(ndimage.grey_dilation(_pen(d), footprint=i*i+j*j<=r*r), 1))
def thin(d, rng):
    "224 by 224, of each stroke only the middle, 2 to 4 pixels wide"
    x = ndimage.distance_transform_edt(_pen(d)>.5)
    return 255-_grey(ndimage.gaussian_filter(((x>.75*ndimage.maximum_filter(x, 11)) & (x>0)).astype(np.float32), .7))
def photographed(d, rng, h=150, w=200):
    """On paper, 150 by 200: 70 to 130 pixels high, ink 60 to 90 % dark; paper of 75 to 95 % that loses up to 30 % towards one side; ruled every 14 to 26
    pixels, 10 to 30 % dark, a little askew; a shadow of 20 to 50 % with a soft edge; blur of 0.6 to 1.4 pixels, noise of 0.5 to 2.5 %, JPEG of quality 40 to 89"""
    y,x = np.mgrid[:h,:w].astype(np.float32)
    def along(a): return (x/w-.5)*math.cos(a) + (y/h-.5)*math.sin(a)
    side = int(rng.integers(70, 130))
    ink = _put(_pen(d, side), h, w, rng)
    p = rng.uniform(.75,.95)*(1-rng.uniform(0,.3)*(along(rng.uniform(0,2*math.pi))+.5))
    gap,tilt = rng.uniform(14,26),rng.uniform(-.05,.05)
    p = p*(1-rng.uniform(.1,.3)*((y+tilt*x+rng.uniform(0,gap))%gap<2.4))
    p = p*(1-rng.uniform(.2,.5)/(1+np.exp(-(along(rng.uniform(0,2*math.pi))-rng.uniform(-.25,.25))*rng.uniform(15,60))))
    p = ndimage.gaussian_filter(p*(1-rng.uniform(.6,.9)*ink), rng.uniform(.6,1.4)) + rng.normal(0, rng.uniform(.005,.025), p.shape)
    f = io.BytesIO()
    Image.fromarray(_grey(p)).save(f, 'JPEG', quality=int(rng.integers(40, 90)))
    return np.asarray(Image.open(f))

capture_kinds = {o.__name__: o for o in (shifted, shrunk, tiny, slanted, inverted, thick, thin, photographed)} #: of handing in a digit

def simulate(
    ds, # `Digits`
    kind, # A name in `capture_kinds`
    seed:int=0,
)->list: # An array a digit, uint8 (h, w)
    "The digits as people hand them in"
    if kind not in capture_kinds: raise ValueError(f'There is no kind {kind!r}: use one of {", ".join(capture_kinds)}.')
    rng = np.random.default_rng(seed)
    return [capture_kinds[kind](d, rng) for d in ds.images.numpy()]

# --- another hand

#: Strokes of the digits, x to the right and y down, from 0 to 1: the 1 with a long upstroke and the 7 with a bar, as in much of Europe, the 0 with a slash, as programmers have it
_strokes = {0: [[(.5,0),(.15,.2),(.1,.6),(.3,.95),(.6,1),(.85,.7),(.85,.3),(.5,0)], [(.95,.05),(.05,.95)]], 1: [[(.0,.8),(.35,.4),(.65,0),(.62,.5),(.6,1)]],
    2: [[(.15,.25),(.35,.02),(.7,.05),(.75,.35),(.4,.75),(.1,.98),(.3,.88),(.6,.98),(.9,.95)]], 3: [[(.2,.05),(.8,.05),(.45,.4),(.75,.5),(.85,.75),(.55,1),(.15,.9)]],
    4: [[(.5,0),(.3,.3),(.1,.62),(.5,.62),(.9,.6)], [(.7,.3),(.62,.65),(.58,1)]], 5: [[(.3,.05),(.25,.42),(.6,.4),(.8,.65),(.6,.95),(.15,.95)], [(.3,.05),(.85,.02)]],
    6: [[(.7,0),(.35,.3),(.15,.7),(.4,1),(.75,.85),(.7,.6),(.4,.55),(.2,.75)]], 7: [[(.1,.05),(.5,.06),(.9,.05),(.6,.5),(.4,1)], [(.1,.56),(.5,.5),(.95,.45)]],
    8: [[(.75,.15),(.45,0),(.25,.2),(.5,.45),(.78,.75),(.5,1),(.2,.8),(.45,.5),(.7,.3),(.75,.15)]], 9: [[(.8,.2),(.5,0),(.2,.2),(.35,.48),(.7,.4),(.8,.2),(.75,.6),(.5,1),(.2,.95)]]}

def draw_digit(
    digit:int,
    rng, # numpy's generator
)->Image.Image: # Grey, 160 by 200, dark on light
    "A digit drawn with a pen by a hand of its own, never twice the same: a stand-in for yours"
    im,slant = Image.new('L', (320,400), 255),rng.normal(.1, .06)
    w,h = rng.uniform(120,170),rng.uniform(230,300)
    for s in _strokes[digit]:
        p = np.array(s) + rng.normal(0, .03, (len(s),2))
        t = np.linspace(0, len(p)-1, 60)
        p = np.stack([ndimage.gaussian_filter1d(np.interp(t, np.arange(len(p)), o), 3, mode='nearest') for o in p.T], 1)
        xy = [(90+w*(x-slant*(y-.5)), 60+h*y) for x,y in p]
        ImageDraw.Draw(im).line(xy, 30, 14, 'curve')
    return im.resize((160,200), Image.BOX)

# --- what is no digit

_fonts = 'DejaVuSans','DejaVuSans-Oblique','DejaVuSans-Bold','DejaVuSerif','DejaVuSerif-Italic','DejaVuSansMono','STIXGeneral','STIXGeneralItalic'

def _glyph(text, font, size=96):
    "A character of a font of matplotlib's, dark on light, 140 by 140"
    from matplotlib import get_data_path
    im = Image.new('L', (140,140), 255)
    ImageDraw.Draw(im).text((70,70), text, 0, ImageFont.truetype(f'{get_data_path()}/fonts/ttf/{font}.ttf', size), 'mm')
    return np.asarray(im)

def letters(rng, ds):
    "A letter other than those drawn like a digit, see `lookalikes`"
    return _glyph(rng.choice(list('ACDEFGHJKLMNPQRTUVWXYacdefhjkmnprtuvwxy')), rng.choice(_fonts))
def lookalikes(rng, ds):
    "A letter that is drawn like a digit"
    return _glyph(rng.choice(list('OolIiSsZzBbgq')), rng.choice(_fonts))
def symbols(rng, ds):
    "A pictograph: a sun, an umbrella, a telephone"
    return _glyph(chr(rng.choice([*range(0x2600,0x2604), *range(0x260e,0x2612), *range(0x2618,0x2660), *range(0x2690,0x269c)])), 'DejaVuSans')
def scribbles(rng, ds):
    "A pen that wanders over the paper, 140 by 140"
    p = np.stack([np.interp(np.linspace(0,1,120), np.linspace(0,1,n), rng.uniform(15,125,n)) for n in [int(rng.integers(4,12))]*2], 1)
    im = Image.new('L', (140,140), 255)
    ImageDraw.Draw(im).line([tuple(o) for o in ndimage.gaussian_filter1d(p, 4, axis=0)], 0, int(rng.integers(4,12)), 'curve')
    return np.asarray(im)
def two_digits(rng, ds):
    "Two digits of `ds` side by side, as in a number"
    a,b = ds.images[rng.integers(0, len(ds), 2)].numpy()
    return 255-np.pad(np.concatenate([a[:,2:-2],b[:,2:-2]], 1), 8)
def photographs(rng, ds):
    "A piece of a photograph of a temple or a flower"
    from sklearn.datasets import load_sample_image
    x = load_sample_image(rng.choice(['china.jpg','flower.jpg']))
    r,c = rng.integers(0, x.shape[0]-160),rng.integers(0, x.shape[1]-160)
    return x[r:r+160,c:c+160]

ood_kinds = {o.__name__.replace('_',' '): o for o in (letters, lookalikes, symbols, scribbles, two_digits, photographs)} #: kinds of what is no digit

def ood_images(
    kind, # A name in `ood_kinds`
    n:int, # How many
    ds=None, # `Digits`, for two of them side by side
    seed:int=0,
)->list: # Arrays, uint8 (h, w) or (h, w, 3)
    "Pictures of what is no digit, or not one"
    if kind not in ood_kinds: raise ValueError(f'There is no kind {kind!r}: use one of {", ".join(ood_kinds)}.')
    rng = np.random.default_rng(seed)
    return [ood_kinds[kind](rng, ds) for _ in range(n)]
