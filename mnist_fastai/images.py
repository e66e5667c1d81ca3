"""Pictures of any kind that people have, opened safely and as grey. Files of strangers come in here.

A plain file: nothing here is specific to digits. `mnist_fastai.preprocess` builds on this module, and
`nbs/16_own_digits.ipynb` shows what is made of the pictures.
"""

__all__ = ['ImageError', 'BlankError', 'formats', 'max_pixels', 'open_picture']

import io, math, os, warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

#: What is opened. Other formats are not tried, since for some of them Pillow runs other programs
formats = 'PNG','JPEG','GIF','BMP','TIFF','WEBP','PPM'
#: Of a picture, judged by its header before it is decoded; phones take 12 to 50 million
max_pixels = 64_000_000

class ImageError(ValueError):
    "A picture that cannot be read; the message says why and what to do"

class BlankError(ImageError):
    "A picture on which nothing is drawn"

_damaged = 'The picture is damaged or truncated: copy or save it again.'
_too_large = f'The picture is larger than {max_pixels//10**6} million pixels, so it was not decoded: make it smaller.'
_unknown = f'This is not a picture in a format that can be read ({", ".join(formats)}): save it as PNG or JPEG.'
_heic = 'This is a HEIC photo, which cannot be read here: save it as JPEG.'

def open_picture(
    source, # Path, bytes, PIL image, array or tensor; see below
    longest:int=2048, # Side in pixels; larger pictures are reduced by a whole factor
)->Image.Image: # Mode L: 0 black, 255 white
    """A picture as grey, upright, with its transparent parts filled so that the drawing can be seen

    Arrays and tensors are (h, w), (h, w, c) or (c, h, w), with 1 to 4 channels: uint8, uint16, bool, or floats from 0
    to 1. Nothing in a file is executed, and a file whose header says more than `max_pixels` is not decoded. Raises
    `ImageError`."""
    if isinstance(source, (str,Path)): return _from_path(Path(source), longest)
    if isinstance(source, (bytes,bytearray,memoryview)): return _decode(io.BytesIO(bytes(source)), longest)
    return _convert(source if isinstance(source, Image.Image) else _from_array(source), longest)

def _from_path(path, longest):
    "Open a file. A pipe or a device is not opened, since it might never end"
    try:
        if path.is_dir():
            os.scandir(path).close() # raises `OSError` for a folder that cannot be read
            raise ImageError('This is a folder without pictures: name a picture, or a folder with pictures in it.')
        if not path.exists(): raise ImageError('There is no such file: correct the path.')
        if not path.is_file(): raise ImageError('This is not a regular file: name a picture.')
        with path.open('rb') as f: return _decode(f, longest)
    except ImageError: raise
    except (OSError,ValueError) as e: # ValueError: a path with a null character
        what,why = 'folder' if os.path.isdir(path) else 'file', getattr(e, 'strerror', None) or e
        raise ImageError(f'This {what} cannot be read ({why}): correct the path, or copy the {what} again.') from None

def _decode(f, longest):
    "A file, open for reading bytes, as grey"
    head = f.read(12)
    f.seek(0)
    if not head: raise ImageError('The picture is empty: copy or save it again.')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # of Pillow about odd metadata and large sizes, which are judged here
        try: im = Image.open(f, formats=formats)
        except Image.DecompressionBombError: raise ImageError(_too_large) from None
        except UnidentifiedImageError: raise ImageError(_heic if _is_heic(head) else _unknown) from None
        except Exception as e: raise ImageError(_damaged) from e
        return _convert(im, longest)

def _is_heic(head): return head[4:8]==b'ftyp' and head[8:12] in (b'heic',b'heix',b'mif1',b'msf1',b'hevc')

def _convert(im, longest):
    "`_to_grey`, or `ImageError` for what cannot be decoded"
    try: return _to_grey(im, longest)
    except ImageError: raise
    except Exception as e: raise ImageError(_damaged) from e # Pillow raises OSError, SyntaxError, struct.error and more

def _to_grey(im, longest):
    "A PIL image as grey, not longer than `longest`"
    w,h = im.size
    if w*h>max_pixels: raise ImageError(_too_large)
    if max(w,h)<8: raise ImageError('The picture is smaller than 8 pixels: make it larger.')
    if im.format in ('JPEG','MPO'): # a large photo is decoded at a half, a quarter or an eighth of its size
        im.draft('L', (min(w, longest//2), min(h, longest//2)))
    factor = math.ceil(max(im.size)/longest)
    has_color_key = 'transparency' in im.info # one color of the picture stands for transparent
    transparent = has_color_key or im.mode in ('RGBA','LA','PA','La','RGBa')
    if im.mode in ('RGB','RGBA','L','LA') and not has_color_key: # before anything else, so that less is converted
        im,factor = im.reduce(factor),1
    im = _upright(im)
    if im.mode=='La': im = im.convert('LA') # these two modes Pillow does not convert to grey itself
    if im.mode=='LAB': im = im.getchannel('L')
    if transparent: grey = _fill_transparent(im.convert('RGBA'))
    elif im.mode[0] in 'IF': grey = Image.fromarray(_to_uint8(np.asarray(im))) # 16 or 32 bits, or floats
    else: grey = im.convert('L')
    return grey.reduce(factor)

def _upright(im):
    "Turned as the orientation that the camera has noted says"
    try: return ImageOps.exif_transpose(im)
    except Exception: return im # the note is damaged, and the picture may still be whole

def _fill_transparent(im):
    "A picture with transparency as grey, on a background that its drawing stands out from"
    grey,alpha = im.convert('RGB').convert('L'),im.getchannel('A')
    n_solid = alpha.point([0]*128 + [255]*128).histogram()[255]
    counts = np.array(grey.histogram(alpha.point([0] + [255]*255))) # of grey levels, where anything is visible
    if not counts.any(): return Image.new('L', im.size, 255)
    median = int(np.searchsorted(counts.cumsum(), counts.sum()/2))
    if n_solid>im.width*im.height/2: background = median # a cut-out, most of it paper; a drawing covers less
    else: background = 255 if median<128 else 0
    res = Image.new('L', im.size, background)
    res.paste(grey, mask=alpha)
    return res

def _to_uint8(x):
    "16-bit, 32-bit and float pixels as uint8"
    x = np.asarray(x, np.float32)
    if not np.isfinite(x).all(): raise ImageError('The picture holds pixels that are not numbers: save it again.')
    is_uint16 = x.min()>=0 and 255<x.max()<=65535
    low,high = (0,65535) if is_uint16 else (x.min(),x.max())
    return ((x-low)/max(high-low, 1e-6)*255).round().astype(np.uint8)

def _from_array(x):
    "An array or tensor as a PIL image"
    x = x.detach().cpu().numpy() if hasattr(x, 'detach') else np.asarray(x)
    shape,channels = x.shape,(1,2,3,4)
    if x.ndim==3 and x.shape[2] not in channels and x.shape[0] in channels: x = np.moveaxis(x, 0, 2)
    if x.ndim==3 and x.shape[2]==1: x = x[...,0]
    if not (x.ndim==2 or x.ndim==3 and x.shape[2] in channels) or 0 in x.shape:
        raise ImageError(f'A picture is (h, w), (h, w, c) or (c, h, w), with 1 to 4 channels, and not {shape}.')
    if x.shape[0]*x.shape[1]>max_pixels: raise ImageError(_too_large)
    if x.dtype==bool: x = x*np.uint8(255)
    elif x.dtype==np.uint16: x = (x//257).astype(np.uint8)
    elif x.dtype.kind=='f' and np.isfinite(x).all() and x.min()>=0 and x.max()<=1: x = (x*255).round().astype(np.uint8)
    if x.dtype!=np.uint8: raise ImageError(f'The pixels are {x.dtype}: give uint8, uint16, or floats from 0 to 1.')
    return Image.fromarray(np.ascontiguousarray(x))
