"""Pictures of any kind a person has, opened safely and as grey: the door through which strangers' files come in.

`mnist_fastai.inference` builds on this module and is the one to import. Nothing here is specific to digits, so it is a plain file
and not a lesson; `nbs/09_own_digits.ipynb` shows what comes of it.
"""

__all__ = ['ImageError', 'BlankError', 'formats', 'max_pixels', 'open_picture']

import io, os, warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

formats = 'PNG','JPEG','GIF','BMP','TIFF','WEBP','PPM' #: what is opened; others are not tried, some of them run programs
max_pixels = 64_000_000 #: of a picture, judged by its header before it is decoded; phones take 12 to 50 million

class ImageError(ValueError):
    "A picture that cannot be read; the message says why and what to do"

class BlankError(ImageError):
    "A picture on which nothing is drawn"

def open_picture(
    source, # Path, bytes, PIL image, array or tensor: (h, w), (h, w, c) or (c, h, w), uint8, uint16, bool, or floats from 0 to 1
    longest:int=2048, # Side in pixels; larger pictures come out smaller, by a whole factor
)->Image.Image: # Mode L: 0 black, 255 white
    """A picture as grey, upright, with what was drawn in its transparency brought out. Raises `ImageError` that says what is wrong with it

    Nothing in a file is executed; a file whose header asks for more than `max_pixels` is not decoded."""
    if isinstance(source, Image.Image): im = source
    elif isinstance(source, (str,Path)): return _from_file(Path(source), longest)
    elif isinstance(source, (bytes,bytearray,memoryview)): return _decode(io.BytesIO(bytes(source)), longest)
    else: im = _from_array(source)
    return _whole(im, longest)

def _from_file(path, longest):
    "Open a path. A pipe or device is not touched: it might never end"
    try:
        if path.is_dir():
            os.scandir(path).close() # raises `OSError` for a folder that cannot be read
            raise ImageError('This is a folder without pictures: name a picture, or a folder with pictures in it.')
        if not path.exists(): raise ImageError('There is no such file: correct the path.')
        if not path.is_file(): raise ImageError('This is not a regular file: name a picture.')
        with path.open('rb') as f: return _decode(f, longest)
    except (OSError,ValueError) as e:
        if isinstance(e, ImageError): raise
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
        except UnidentifiedImageError:
            heic = head[4:8]==b'ftyp' and head[8:12] in (b'heic',b'heix',b'mif1',b'msf1',b'hevc')
            raise ImageError('This is a HEIC photo, which is not read here: save it as JPEG.' if heic else f'This is no picture of a kind that is read here ({", ".join(formats)}).') from None
        except Exception as e: raise ImageError(_damaged) from e
        return _whole(im, longest)

def _whole(im, longest):
    "`_grey`, or `ImageError` for what cannot be decoded"
    try: return _grey(im, longest)
    except ImageError: raise
    except Exception as e: raise ImageError(_damaged) from e # Pillow raises OSError, SyntaxError, ValueError, struct.error and more

_damaged = 'The picture is damaged or truncated: copy or save it again.'
_too_large = f'The picture is larger than {max_pixels//10**6} million pixels, so it was not decoded: make it smaller.'

def _grey(im, longest):
    "A PIL image as grey, not longer than `longest`"
    w,h = im.size
    if w*h>max_pixels: raise ImageError(_too_large)
    if max(w,h)<8: raise ImageError('The picture is smaller than 8 pixels: make it larger.')
    if im.format in ('JPEG','MPO'): im.draft('L', (min(w,longest//2), min(h,longest//2))) # decodes a large photo at half, a quarter or an eighth of its size
    clear = im.mode in ('RGBA','LA','PA','La','RGBa') or 'transparency' in im.info
    k = -(-max(im.size)//longest)
    if im.mode in ('RGB','RGBA','L','LA') and k>1 and 'transparency' not in im.info:
        im,k = im.reduce(k),1
    im = _upright(im)
    if im.mode in ('La','LAB'): im = im.convert('LA') if im.mode=='La' else im.getchannel('L') # the two that Pillow does not turn into grey itself
    grey = _over_paper(im.convert('RGBA')) if clear else im.convert('L') if im.mode[0] not in 'IF' else Image.fromarray(_stretched(np.asarray(im)))
    return grey.reduce(k) if k>1 else grey

def _upright(im):
    "Turned as the camera's note in the file says"
    try: return ImageOps.exif_transpose(im)
    except Exception: return im # the note is damaged, and the picture may still be whole

def _over_paper(im):
    "A picture with transparency as grey, laid on a paper that its drawing stands out from"
    grey,alpha = im.convert('RGB').convert('L'),im.getchannel('A')
    solid = alpha.point([0]*128 + [255]*128)
    n,hist = solid.histogram()[255],np.array(grey.histogram(alpha.point([0] + [255]*255)))
    if not hist.sum(): return Image.new('L', im.size, 255) # all is transparent
    middle = int(np.searchsorted(hist.cumsum(), hist.sum()/2))
    paper = middle if n>im.width*im.height/2 else 255 if middle<128 else 0 # a drawing is less than half of it; more is a cut-out, most of it paper
    res = Image.new('L', im.size, paper)
    res.paste(grey, mask=alpha)
    return res

def _stretched(x):
    "16-bit, 32-bit and float pixels as uint8"
    x = np.asarray(x, np.float32)
    if not np.isfinite(x).all(): raise ImageError('The picture holds pixels that are no numbers: save it again.')
    lo,hi = (0,65535) if x.min()>=0 and 255<x.max()<=65535 else (x.min(),x.max())
    return ((x-lo)/max(hi-lo, 1e-6)*255).round().astype(np.uint8)

def _from_array(x):
    "An array or tensor as a PIL image"
    x = x.detach().cpu().numpy() if hasattr(x, 'detach') else np.asarray(x)
    shape = x.shape
    if x.ndim==3 and x.shape[2] not in (1,2,3,4) and x.shape[0] in (1,2,3,4): x = np.moveaxis(x, 0, 2)
    if x.ndim==3 and x.shape[2]==1: x = x[...,0]
    if x.ndim not in (2,3) or (x.ndim==3 and x.shape[2] not in (2,3,4)) or 0 in x.shape:
        raise ImageError(f'A picture is (h, w), (h, w, c) or (c, h, w), with 1 to 4 channels, and not {shape}.')
    if x.shape[0]*x.shape[1]>max_pixels: raise ImageError(_too_large)
    if x.dtype==bool: x = x*np.uint8(255)
    elif x.dtype==np.uint16: x = (x//257).astype(np.uint8)
    elif x.dtype.kind=='f' and np.isfinite(x).all() and x.min()>=0 and x.max()<=1: x = (x*255).round().astype(np.uint8)
    if x.dtype!=np.uint8: raise ImageError(f'The pixels are {x.dtype}: give uint8, uint16, or floats from 0 to 1.')
    return Image.fromarray(np.ascontiguousarray(x))
