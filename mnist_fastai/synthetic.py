"""Pictures to measure with: MNIST digits as people hand them in, digits of another writer, things that are no digits.

A plain file: lessons 16 and 17 show every kind and measure with them. The pictures are made from the digits of a split,
from the fonts that come with matplotlib and from the photographs that come with scikit-learn. They are the same for the
same seed.
"""

__all__ = ['simulate', 'capture_kinds', 'draw_digit', 'ood_images', 'ood_kinds']

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

#: For each digit its strokes, each a list of points: x to the right and y down, from 0 to 1. The 1 has a long upstroke
#: and the 7 a bar, as in much of Europe; the 0 has a slash, as some programmers write it.
_strokes = {
    0: [[(.5,0), (.15,.2), (.1,.6), (.3,.95), (.6,1), (.85,.7), (.85,.3), (.5,0)],
        [(.95,.05), (.05,.95)]],
    1: [[(.0,.8), (.35,.4), (.65,0), (.62,.5), (.6,1)]],
    2: [[(.15,.25), (.35,.02), (.7,.05), (.75,.35), (.4,.75), (.1,.98), (.3,.88), (.6,.98), (.9,.95)]],
    3: [[(.2,.05), (.8,.05), (.45,.4), (.75,.5), (.85,.75), (.55,1), (.15,.9)]],
    4: [[(.5,0), (.3,.3), (.1,.62), (.5,.62), (.9,.6)],
        [(.7,.3), (.62,.65), (.58,1)]],
    5: [[(.3,.05), (.25,.42), (.6,.4), (.8,.65), (.6,.95), (.15,.95)],
        [(.3,.05), (.85,.02)]],
    6: [[(.7,0), (.35,.3), (.15,.7), (.4,1), (.75,.85), (.7,.6), (.4,.55), (.2,.75)]],
    7: [[(.1,.05), (.5,.06), (.9,.05), (.6,.5), (.4,1)],
        [(.1,.56), (.5,.5), (.95,.45)]],
    8: [[(.75,.15), (.45,0), (.25,.2), (.5,.45), (.78,.75), (.5,1), (.2,.8), (.45,.5), (.7,.3), (.75,.15)]],
    9: [[(.8,.2), (.5,0), (.2,.2), (.35,.48), (.7,.4), (.8,.2), (.75,.6), (.5,1), (.2,.95)]],
}

def _smooth(points):
    "60 points along the polygon through `points`, with rounded corners"
    t = np.linspace(0, len(points)-1, 60)
    coords = [np.interp(t, np.arange(len(points)), o) for o in points.T]
    return np.stack([ndimage.gaussian_filter1d(o, 3, mode='nearest') for o in coords], 1)

def draw_digit(
    digit:int,
    rng, # numpy's generator
)->Image.Image: # Grey, 160 by 200, dark on light
    "A digit drawn with a pen, never twice the same: a stand-in for your own writing"
    im,slant = Image.new('L', (320,400), 255),rng.normal(.1, .06)
    w,h = rng.uniform(120,170),rng.uniform(230,300)
    for stroke in _strokes[digit]:
        points = np.array(stroke) + rng.normal(0, .03, (len(stroke),2))
        xy = [(90+w*(x-slant*(y-.5)), 60+h*y) for x,y in _smooth(points)]
        ImageDraw.Draw(im).line(xy, 30, 14, 'curve')
    return im.resize((160,200), Image.BOX)

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
