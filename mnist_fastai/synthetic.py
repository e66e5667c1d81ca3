"""Pictures to measure with: MNIST digits as people hand them in, digits of another writer, things that are no digits.

A plain file: lessons 16 and 17 show every kind and measure with them. The pictures are made from the digits of a split,
from the fonts that come with matplotlib and from the photographs that come with scikit-learn. They are the same for the
same seed.
"""

__all__ = ['simulate', 'capture_kinds', 'digit_styles', 'draw_digit', 'drawn_digits', 'ood_images', 'ood_kinds']

import io, math

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from .core import check_choice

def _to_grey(x):
    "Numbers from 0 to 1 as uint8; others are clipped"
    return (np.clip(x, 0, 1)*255).round().astype(np.uint8)

def _resize(d, side):
    "A digit as (side, side), uint8"
    return np.asarray(Image.fromarray(d).resize((side,side), Image.BICUBIC))

def _place(x, h, w, rng):
    "`x` somewhere on a black background of (h, w)"
    res = np.zeros((h,w), x.dtype)
    top,left = rng.integers(0, h-x.shape[0]+1),rng.integers(0, w-x.shape[1]+1)
    res[top:top+x.shape[0],left:left+x.shape[1]] = x
    return res

def _ink(d, side=224):
    "A digit as the ink of a pen with a sharp edge, from 0 to 1 (side, side)"
    return np.clip(_resize(d, side)/np.float32(85)-1, 0, 1)

# --- MNIST digits as people hand them in; each function takes a digit, uint8 (28, 28), and numpy's generator

def shifted(d, rng):
    "At its own size, somewhere on a background of 84 by 84"
    return _place(d, 84, 84, rng)

def shrunk(d, rng):
    "At half its size in the middle of 28 by 28"
    return np.pad(_resize(d, 14), 7)

def tiny(d, rng):
    "Cut out and averaged into 8 by 8"
    rows,cols = np.flatnonzero(d.any(1)),np.flatnonzero(d.any(0))
    x = d[rows[0]:rows[-1]+1,cols[0]:cols[-1]+1]
    h,w = [max(1, round(n*8/max(x.shape))) for n in x.shape]
    x = np.asarray(Image.fromarray(x).resize((w,h), Image.BOX))
    top,left = (8-h)//2,(8-w)//2
    return np.pad(x, [(top,8-h-top),(left,8-w-left)])

def slanted(d, rng):
    "Rotated by up to 25 degrees and sheared by up to 0.4, as by another writer"
    angle = math.radians(rng.uniform(-25, 25))
    cos,sin = math.cos(angle),math.sin(angle)
    rotate = np.array([[cos,-sin],[sin,cos]]) # of rows and columns
    shear = np.array([[1,0],[rng.uniform(-.4, .4),1]])
    matrix = rotate @ shear
    center = [21.5,21.5] # of 44 by 44 pixels; it stays where it is
    x = np.pad(d, 8)/np.float32(255)
    return _to_grey(ndimage.affine_transform(x, matrix, center-matrix@center, order=1))

def inverted(d, rng):
    "Dark on light"
    return 255-d

def thick(d, rng):
    "224 by 224, dark on light, the pen 4 to 10 pixels thicker on each side"
    r = int(rng.integers(4, 11))
    i,j = np.mgrid[-r:r+1,-r:r+1]
    disk = i*i+j*j<=r*r
    x = ndimage.grey_dilation(_ink(d), footprint=disk)
    return 255-_to_grey(ndimage.gaussian_filter(x, 1))

def thin(d, rng):
    "224 by 224, dark on light, of each stroke only the middle, 2 to 4 pixels wide"
    depth = ndimage.distance_transform_edt(_ink(d)>.5) # pixels from the edge of the stroke
    middle = (depth>.75*ndimage.maximum_filter(depth, 11)) & (depth>0)
    return 255-_to_grey(ndimage.gaussian_filter(middle.astype(np.float32), .7))

def photographed(d, rng, h=150, w=200):
    """A photograph of ruled paper, (h, w): digit, light, lines, shadow, then the camera

    The digit is 70 to 129 pixels high, its ink 60 to 90 % dark. The paper is at 75 to 95 % and loses up to 30 % towards
    one side. Lines are 14 to 26 pixels apart, 10 to 30 % dark and a little askew. A shadow of 20 to 50 % has a soft
    edge. The camera adds a blur of 0.6 to 1.4 pixels, noise of 0.5 to 2.5 %, and JPEG of quality 40 to 89."""
    y,x = np.mgrid[:h,:w].astype(np.float32)
    def across(angle): return (x/w-.5)*math.cos(angle) + (y/h-.5)*math.sin(angle) # from -0.5 to 0.5, for 0 degrees
    def direction(): return rng.uniform(0, 2*math.pi)

    ink = _place(_ink(d, int(rng.integers(70, 130))), h, w, rng)

    level,loss = rng.uniform(.75, .95),rng.uniform(0, .3)
    page = level*(1-loss*(across(direction())+.5))

    gap,tilt = rng.uniform(14, 26),rng.uniform(-.05, .05)
    dark,offset = rng.uniform(.1, .3),rng.uniform(0, gap)
    page = page*(1-dark*((y+tilt*x+offset)%gap<2.4))

    dark,along = rng.uniform(.2, .5),across(direction())
    place,sharpness = rng.uniform(-.25, .25),rng.uniform(15, 60)
    page = page*(1-dark/(1+np.exp(-(along-place)*sharpness)))

    page = page*(1-rng.uniform(.6, .9)*ink)
    page = ndimage.gaussian_filter(page, rng.uniform(.6, 1.4))
    page = page+rng.normal(0, rng.uniform(.005, .025), page.shape)
    file = io.BytesIO()
    Image.fromarray(_to_grey(page)).save(file, 'JPEG', quality=int(rng.integers(40, 90)))
    return np.asarray(Image.open(file))

#: Ways to hand in a digit: names and functions
capture_kinds = {o.__name__: o for o in (shifted, shrunk, tiny, slanted, inverted, thick, thin, photographed)}

def simulate(
    ds, # `Digits`
    kind, # A name in `capture_kinds`
    seed:int=0,
)->list: # An array for each digit, uint8 (h, w)
    "The digits as people hand them in"
    capture = capture_kinds[check_choice(kind, capture_kinds, 'kind')]
    rng = np.random.default_rng(seed)
    return [capture(d, rng) for d in ds.images.numpy()]

# --- another writer

#: Ways to write each digit, most of them rare in MNIST: names, and strokes, each a list of points, x to the right and y
#: down, from 0 to 1. `draw_digit` takes the first unless told otherwise: the 1 has a long upstroke and the 7 a bar, as
#: in much of Europe; the 0 has a slash, as some programmers write it.
digit_styles = {
    0: {'slashed': [[(.5,0), (.15,.2), (.1,.6), (.3,.95), (.6,1), (.85,.7), (.85,.3), (.5,0)],
                    [(.95,.05), (.05,.95)]],
        'plain': [[(.5,0), (.2,.15), (.1,.5), (.2,.85), (.5,1), (.8,.85), (.9,.5), (.8,.15), (.5,0)]],
        'open': [[(.55,.08), (.2,.15), (.1,.5), (.2,.85), (.5,1), (.8,.85), (.9,.5), (.85,.2), (.7,.02)]],
        'looped': [[(.85,.0), (.5,.02), (.2,.2), (.1,.6), (.3,.95), (.6,1), (.85,.7), (.8,.3), (.5,.1), (.35,.2),
                    (.55,.25)]]},
    1: {'upstroke': [[(.0,.8), (.35,.4), (.65,0), (.62,.5), (.6,1)]],
        'flag': [[(.2,.3), (.55,0), (.55,.5), (.55,1)]],
        'long flag': [[(.1,.5), (.6,0), (.6,.5), (.6,1)]],
        'flag and foot': [[(.25,.25), (.5,0), (.5,.5), (.5,1)],
                          [(.15,1), (.5,1), (.85,1)]],
        'foot': [[(.5,0), (.5,.5), (.5,1)],
                 [(.2,1), (.5,1), (.8,1)]]},
    2: {'plain': [[(.15,.25), (.35,.02), (.7,.05), (.75,.35), (.4,.75), (.1,.98), (.3,.88), (.6,.98), (.9,.95)]],
        'straight foot': [[(.15,.25), (.45,0), (.8,.25), (.5,.65), (.12,1), (.5,1), (.9,1)]],
        'wave': [[(.1,.2), (.4,0), (.75,.15), (.65,.5), (.15,.95), (.4,.85), (.65,1), (.95,.85)]],
        'large loop': [[(.15,.2), (.5,0), (.8,.25), (.55,.7), (.2,1), (.05,.85), (.25,.7), (.6,.95), (.95,.9)]]},
    3: {'flat top': [[(.2,.05), (.8,.05), (.45,.4), (.75,.5), (.85,.75), (.55,1), (.15,.9)]],
        'round': [[(.15,.12), (.5,0), (.8,.2), (.65,.42), (.4,.48), (.7,.55), (.85,.78), (.5,1), (.1,.88)]],
        'sharp': [[(.15,.05), (.5,0), (.8,.2), (.35,.45), (.85,.7), (.6,1), (.1,.95)]],
        'looped': [[(.15,.15), (.5,0), (.75,.2), (.5,.48), (.35,.45), (.45,.4), (.8,.6), (.75,.9), (.4,1), (.1,.85)]]},
    4: {'open': [[(.5,0), (.3,.3), (.1,.62), (.5,.62), (.9,.6)],
                 [(.7,.3), (.62,.65), (.58,1)]],
        'square': [[(.15,0), (.12,.3), (.1,.55), (.5,.55), (.95,.55)],
                   [(.75,0), (.75,.5), (.75,1)]],
        'closed': [[(.7,1), (.7,.5), (.7,0), (.38,.35), (.05,.68), (.5,.68), (.98,.68)]],
        'wide': [[(.55,0), (.3,.4), (.02,.8), (.5,.75), (1,.7)],
                 [(.65,.5), (.6,.75), (.55,1)]],
        'long leg': [[(.2,0), (.1,.35), (.45,.42), (.8,.35)],
                     [(.85,0), (.75,.5), (.65,1)]]},
    5: {'two strokes': [[(.3,.05), (.25,.42), (.6,.4), (.8,.65), (.6,.95), (.15,.95)],
                        [(.3,.05), (.85,.02)]],
        'one stroke': [[(.85,.03), (.55,.03), (.25,.05), (.2,.42), (.55,.38), (.85,.65), (.6,.98), (.12,.93)]],
        'like an S': [[(.85,.08), (.5,0), (.2,.18), (.35,.42), (.7,.55), (.8,.8), (.5,1), (.12,.9)]],
        'small belly': [[(.9,.0), (.55,.0), (.3,.0), (.2,.5), (.55,.52), (.65,.75), (.45,1), (.1,.95)]]},
    6: {'curled': [[(.7,0), (.35,.3), (.15,.7), (.4,1), (.75,.85), (.7,.6), (.4,.55), (.2,.75)]],
        'straight': [[(.65,0), (.4,.3), (.2,.7), (.35,.97), (.65,.97), (.75,.75), (.55,.6), (.25,.72)]],
        'large belly': [[(.75,.05), (.4,.05), (.15,.4), (.12,.75), (.45,1), (.85,.8), (.75,.45), (.4,.4), (.15,.6)]],
        'open': [[(.6,0), (.25,.35), (.12,.75), (.4,1), (.75,.9), (.75,.65), (.5,.6)]]},
    7: {'crossed': [[(.1,.05), (.5,.06), (.9,.05), (.6,.5), (.4,1)],
                    [(.1,.56), (.5,.5), (.95,.45)]],
        'plain': [[(.1,.05), (.5,.04), (.9,.03), (.65,.45), (.4,1)]],
        'hooked': [[(.1,.25), (.12,.05), (.5,.05), (.9,.03), (.6,.5), (.45,1)]],
        'hooked and crossed': [[(.08,.22), (.12,.05), (.5,.05), (.9,.03), (.65,.5), (.5,1)],
                               [(.3,.52), (.6,.5), (.9,.48)]],
        'curved': [[(.05,.2), (.25,.02), (.55,.12), (.9,.02), (.6,.4), (.5,1)],
                   [(.3,.55), (.6,.52), (.85,.5)]]},
    8: {'one stroke': [[(.75,.15), (.45,0), (.25,.2), (.5,.45), (.78,.75), (.5,1), (.2,.8), (.45,.5), (.7,.3),
                        (.75,.15)]],
        'two rings': [[(.5,.02), (.25,.12), (.25,.38), (.5,.47), (.75,.38), (.75,.12), (.5,.02)],
                      [(.5,.47), (.2,.6), (.2,.88), (.5,1), (.8,.88), (.8,.6), (.5,.47)]],
        'open': [[(.9,.0), (.5,.03), (.25,.2), (.5,.45), (.78,.75), (.5,1), (.2,.8), (.45,.5), (.8,.15)]],
        'small top': [[(.6,.1), (.45,0), (.35,.12), (.5,.3), (.85,.65), (.5,1), (.12,.75), (.45,.35), (.6,.1)]]},
    9: {'curved leg': [[(.8,.2), (.5,0), (.2,.2), (.35,.48), (.7,.4), (.8,.2), (.75,.6), (.5,1), (.2,.95)]],
        'straight leg': [[(.75,.25), (.5,.02), (.2,.15), (.25,.42), (.55,.48), (.75,.25), (.75,.1), (.75,.5), (.75,1)]],
        'foot': [[(.75,.25), (.5,.02), (.2,.2), (.4,.47), (.7,.35), (.75,.1), (.75,.5), (.7,.9), (.45,1), (.1,.95),
                  (.05,.8)]],
        'flat foot': [[(.75,.25), (.5,.02), (.2,.2), (.4,.47), (.7,.35), (.78,.15), (.75,.55), (.7,1), (.4,1),
                       (.05,1)]],
        'open': [[(.7,.05), (.35,.05), (.15,.3), (.4,.48), (.75,.35), (.8,.05), (.75,.5), (.6,1)]]},
}

def _smooth(points):
    "60 points along the polygon through `points`, with rounded corners"
    t = np.linspace(0, len(points)-1, 60)
    coords = [np.interp(t, np.arange(len(points)), o) for o in points.T]
    return np.stack([ndimage.gaussian_filter1d(o, 3, mode='nearest') for o in coords], 1)

def _points(digit, style, rng, wobble=.03):
    "The strokes of a digit, every point moved at random"
    styles = digit_styles[digit]
    if style is None: style = next(iter(styles))
    strokes = styles[check_choice(style, styles, f'style of {digit}')]
    return [np.array(o) + rng.normal(0, wobble, (len(o),2)) for o in strokes]

def draw_digit(
    digit:int,
    rng, # numpy's generator
    style:str=None, # A name in `digit_styles[digit]`; by default the first
)->Image.Image: # Grey, 160 by 200, dark on light
    "A digit drawn with a pen, never twice the same: a stand-in for your own writing"
    im,slant = Image.new('L', (320,400), 255),rng.normal(.1, .06)
    w,h = rng.uniform(120,170),rng.uniform(230,300)
    for points in _points(digit, style, rng):
        xy = [(90+w*(x-slant*(y-.5)), 60+h*y) for x,y in _smooth(points)]
        ImageDraw.Draw(im).line(xy, 30, 14, 'curve')
    return im.resize((160,200), Image.BOX)

def _draw_small(digit, rng):
    """A digit in a style, a slant and a pen of its own, in MNIST's form: light on dark, uint8 (28, 28)

    Its longer side has 18 to 20 pixels, its center of mass is in the middle. It is drawn four times as large."""
    style = str(rng.choice(list(digit_styles[digit])))
    slant,width,pen = rng.normal(.1, .15),rng.uniform(.5, 1),rng.uniform(6, 13)
    strokes = [_smooth(o)[::2] for o in _points(digit, style, rng)] # every other point is enough
    strokes = [np.stack([width*x - slant*(y-.5), y], 1) for x,y in (o.T for o in strokes)]
    points = np.concatenate(strokes)
    first,size = points.min(0),np.ptp(points, 0)
    scale = (80-pen)/size.max()
    w,h = [math.ceil(o/4)*4 for o in size*scale + pen]
    im = Image.new('L', (w,h))
    for o in strokes:
        xy = (o-first)*scale + pen/2
        ImageDraw.Draw(im).line(xy.ravel().tolist(), 255, round(pen), 'curve')
    x = np.asarray(im.reduce(4))
    top,left = [min(max(round(14-c), 0), 28-n) for c,n in zip(ndimage.center_of_mass(x), x.shape)]
    res = np.zeros((28,28), np.uint8)
    res[top:top+len(x),left:left+x.shape[1]] = x
    return res

def drawn_digits(
    n:int, # How many; as many of each digit as of any other, if ten divides it
    seed:int=0,
)->tuple: # Images in MNIST's form, uint8 (n, 28, 28), and labels (n,)
    "Digits drawn with a pen in random styles of `digit_styles`, as `Digits(*drawn_digits(1000))` takes them"
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n)%10)
    images = [_draw_small(digit, rng) for digit in labels.tolist()]
    return np.stack(images) if n else np.zeros((0,28,28), np.uint8),labels

# --- what is not a digit; each function takes numpy's generator and `Digits`

_fonts = ('DejaVuSans', 'DejaVuSans-Oblique', 'DejaVuSans-Bold', 'DejaVuSerif', 'DejaVuSerif-Italic', 'DejaVuSansMono',
          'STIXGeneral', 'STIXGeneralItalic')
_pictographs = [*range(0x2600,0x2604), *range(0x260e,0x2612), *range(0x2618,0x2660), *range(0x2690,0x269c)]

def _draw_character(text, font, size=96):
    "A character of one of matplotlib's fonts, dark on light, 140 by 140"
    im = Image.new('L', (140,140), 255)
    font = ImageFont.truetype(f'{get_data_path()}/fonts/ttf/{font}.ttf', size)
    ImageDraw.Draw(im).text((70,70), text, 0, font, 'mm')
    return np.asarray(im)

def letters(rng, ds):
    "A letter that does not look like a digit, see `lookalikes`"
    return _draw_character(rng.choice(list('ACDEFGHJKLMNPQRTUVWXYacdefhjkmnprtuvwxy')), rng.choice(_fonts))

def lookalikes(rng, ds):
    "A letter that looks like a digit"
    return _draw_character(rng.choice(list('OolIiSsZzBbgq')), rng.choice(_fonts))

def symbols(rng, ds):
    "A pictograph: a sun, an umbrella, a telephone"
    return _draw_character(chr(rng.choice(_pictographs)), 'DejaVuSans')

def scribbles(rng, ds):
    "A pen that wanders over the paper, 140 by 140"
    n = int(rng.integers(4, 12)) # turning points
    t = np.linspace(0, 1, 120)
    x,y = [np.interp(t, np.linspace(0, 1, n), rng.uniform(15, 125, n)) for _ in range(2)]
    xy = ndimage.gaussian_filter1d(np.stack([x,y], 1), 4, axis=0)
    im = Image.new('L', (140,140), 255)
    ImageDraw.Draw(im).line([tuple(o) for o in xy], 0, int(rng.integers(4, 12)), 'curve')
    return np.asarray(im)

def two_digits(rng, ds):
    "Two digits of `ds` side by side, as in a number"
    a,b = ds.images[rng.integers(0, len(ds), 2)].numpy()
    pair = np.concatenate([a[:,2:-2],b[:,2:-2]], 1)
    return 255-np.pad(pair, 8)

def photographs(rng, ds):
    "A piece of a photograph of a temple or a flower"
    from sklearn.datasets import load_sample_image
    x = load_sample_image(rng.choice(['china.jpg','flower.jpg']))
    top,left = rng.integers(0, x.shape[0]-160),rng.integers(0, x.shape[1]-160)
    return x[top:top+160,left:left+160]

#: Kinds of pictures that do not show one digit: names and functions
ood_kinds = {o.__name__.replace('_',' '): o
             for o in (letters, lookalikes, symbols, scribbles, two_digits, photographs)}

def ood_images(
    kind, # A name in `ood_kinds`
    n:int, # How many
    ds=None, # `Digits`, for two of them side by side
    seed:int=0,
)->list: # Arrays, uint8 (h, w) or (h, w, 3)
    "Pictures that do not show one digit"
    draw = ood_kinds[check_choice(kind, ood_kinds, 'kind')]
    rng = np.random.default_rng(seed)
    return [draw(rng, ds) for _ in range(n)]
