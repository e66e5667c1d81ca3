"Pictures of every kind a person has, good and bad"
import io, os, struct, zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from conftest import unprivileged
from mnist_fastai.images import *

def drawn(w=120, h=90, paper=255, ink=0):
    "An L upside down, so that every turn of it differs: a bar along the top, a stem at the left"
    im = Image.new('L', (w,h), paper)
    d = ImageDraw.Draw(im)
    d.rectangle((w*.2, h*.2, w*.8, h*.3), fill=ink)
    d.rectangle((w*.2, h*.2, w*.3, h*.8), fill=ink)
    return im

def saved(im, form, **kwargs):
    f = io.BytesIO()
    im.save(f, form, **kwargs)
    return f.getvalue()

def png(w, h, depth=8, body=b''):
    "A PNG whose header asks for (w, h)"
    def chunk(kind, body): return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind+body))
    return (b'\x89PNG\r\n\x1a\n'
            + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, 0, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(body))
            + chunk(b'IEND', b''))

want = np.asarray(drawn(), float)
def near(im, most=6):
    "Whether a picture is `drawn()`, edges apart"
    assert im.mode=='L' and im.size==(120,90)
    return np.abs(np.asarray(im, float)-want).mean()<most

# --- what is opened

@pytest.mark.parametrize('form,kwargs', [
    ('PNG',{}), ('JPEG',dict(quality=90)), ('GIF',{}), ('BMP',{}),
    ('TIFF',{}), ('TIFF',dict(compression='tiff_lzw')), ('WEBP',dict(quality=90)), ('PPM',{}),
])
def test_formats(form, kwargs, tmp_path):
    raw = saved(drawn(), form, **kwargs)
    (tmp_path/'a name that says nothing').write_bytes(raw)
    for source in (raw, bytearray(raw), memoryview(raw),
                   tmp_path/'a name that says nothing', str(tmp_path/'a name that says nothing')):
        assert near(open_picture(source))

@pytest.mark.parametrize('mode', [
    '1','L','P','RGB','RGBA','CMYK','YCbCr','LAB','HSV','LA','PA','I','F','I;16','RGBa','La',
])
def test_modes(mode):
    im = drawn()
    if mode=='I;16': im = Image.fromarray(np.asarray(im).astype(np.uint16)*257)
    elif mode in ('RGBa','La'): im = im.convert(mode[:-1].upper() + 'A' if mode=='La' else 'RGBA').convert(mode)
    elif mode=='PA': im = im.convert('P').convert('PA')
    elif mode=='LAB': im = Image.merge('LAB', [im, Image.new('L', im.size, 128), Image.new('L', im.size, 128)])
    else: im = im.convert('RGB').convert(mode) if mode in ('CMYK','YCbCr','HSV') else im.convert(mode)
    got = open_picture(im)
    if mode=='PA': assert got.size==(120,90)
    else: assert near(got, 12)

def test_arrays_and_tensors():
    x = np.asarray(drawn())
    rgb = np.dstack([x]*3)
    for o in (x, x/255, (x/255).astype(np.float32), x>0, x.astype(np.uint16)*257, x[...,None],
              rgb, np.moveaxis(rgb, 2, 0), np.dstack([rgb, np.full_like(x, 255)]),
              np.asfortranarray(x), x[::-1][::-1]):
        assert near(open_picture(o)), (o.shape, o.dtype)
        if o.dtype!=np.uint16: assert near(open_picture(torch.tensor(np.ascontiguousarray(o)))), o.dtype
    assert near(open_picture(torch.tensor(x)[None].half()/255))

@pytest.mark.parametrize('bits', [16, 12, 32])
def test_deep_pixels(bits):
    x = np.asarray(drawn()).astype(np.int64)
    im = (Image.fromarray((x*257).astype(np.uint16)) if bits==16
          else Image.fromarray((x*16).astype(np.uint16)) if bits==12
          else Image.fromarray(x.astype(np.int32)))
    got = np.asarray(open_picture(saved(im, 'PNG' if bits!=32 else 'TIFF')), float)
    assert got[45,100]>got[20,60] # paper is lighter than ink, whatever the unit
    if bits!=12: assert np.abs(got-want).max()<=2

@pytest.mark.parametrize('turn', range(1,9))
def test_the_camera_says_which_way_is_up(turn):
    undo = {2:Image.FLIP_LEFT_RIGHT, 3:Image.ROTATE_180, 4:Image.FLIP_TOP_BOTTOM, 5:Image.TRANSPOSE,
            6:Image.ROTATE_90, 7:Image.TRANSVERSE, 8:Image.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = turn
    lying = drawn().transpose(undo[turn]) if turn in undo else drawn()
    for form in ('JPEG','PNG','WEBP','TIFF'):
        assert near(open_picture(saved(lying.convert('RGB'), form, exif=exif))), form

def test_large_photos_are_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    im = drawn(4000,3000).transpose(Image.ROTATE_90)
    for form in ('JPEG','PNG','TIFF','WEBP'):
        got = open_picture(saved(im.convert('RGB'), form, exif=exif))
        assert got.size[0]>got.size[1] and max(got.size)<=2048
        assert near(got.resize((120,90), Image.BOX))

def test_a_damaged_note_of_the_camera_does_no_harm():
    raw = saved(drawn().convert('RGB'), 'JPEG', exif=b'Exif\x00\x00MM\x00*\xff\xff\xff\xff')
    assert near(open_picture(raw))

@pytest.mark.parametrize('ink', [(0,0,0),(255,255,255),(200,30,30),(250,250,120)])
def test_ink_in_the_transparency(ink):
    "A drawing whose colour is everywhere the same: the ink stands out all the same"
    im = Image.new('RGBA', (120,90), (*ink,0))
    im.putalpha(Image.eval(drawn(), lambda o: 255-o))
    for o in (im, saved(im, 'PNG'), saved(im, 'WEBP', lossless=True)):
        x = np.asarray(open_picture(o), float)
        assert abs(x[20,60]-x[70,100])>60 # the bar against the paper

def test_a_cut_out_keeps_its_paper():
    "Paper with a digit, cut out: transparent outside, and no frame appears"
    im = drawn().convert('RGBA')
    mask = Image.new('L', im.size, 0)
    ImageDraw.Draw(mask).rectangle((8,8,112,82), fill=255)
    im.putalpha(mask)
    x = np.asarray(open_picture(im), float)
    assert x[2,2]>200 and x[20,60]<60

def test_all_transparent_is_white(): assert np.asarray(open_picture(Image.new('RGBA', (30,30)))).min()==255

def test_palette_with_a_transparent_colour():
    im = Image.eval(drawn(), lambda o: 255-o).convert('P')
    im.info['transparency'] = 0
    x = np.asarray(open_picture(saved(im, 'PNG', transparency=0)), float)
    assert abs(x[20,60]-x[70,100])>60

def test_the_first_of_several_pictures():
    assert near(open_picture(saved(drawn(), 'GIF', save_all=True, append_images=[Image.new('L', (120,90))])))
    assert near(open_picture(saved(drawn(), 'TIFF', save_all=True, append_images=[Image.new('L', (120,90))])))

# --- what is refused, each with its sentence

def refused(source, contains):
    with pytest.raises(ImageError) as e: open_picture(source)
    said = str(e.value)
    assert contains in said and said.endswith('.') and '\n' not in said and len(said)<200, said

def test_files_that_are_none(tmp_path):
    refused(tmp_path/'missing.png', 'no such file')
    refused(tmp_path, 'is a folder')
    (tmp_path/'empty.png').touch()
    refused(tmp_path/'empty.png', 'is empty')
    refused('a\0b', '.') # which versions of Python tell apart
    refused(tmp_path/('x'*3000), 'file')
    if hasattr(os, 'mkfifo'):
        os.mkfifo(tmp_path/'pipe.png')
        refused(tmp_path/'pipe.png', 'not a regular file') # and does not wait for somebody to write

def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path/'mine.png').write_bytes(saved(drawn(), 'PNG'))
    (tmp_path/'mine.png').chmod(0)
    os.chmod(tmp_path, 0o755)
    for o in tmp_path.parents:
        if str(o).startswith('/tmp/pytest'): o.chmod(0o755)
    with unprivileged(): refused(tmp_path/'mine.png', 'cannot be read')

def test_bytes_that_are_no_picture():
    refused(b'', 'is empty')
    refused(b'a seven', 'not a picture in a format')
    refused(b'<html>please log in</html>', 'not a picture in a format')
    # would be run by a program
    refused(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 30\n', 'not a picture in a format')
    refused(b'\0\0\0\x18ftypheic\0\0\0\0mif1heic', 'save it as JPEG')

@pytest.mark.parametrize('form', ['PNG','JPEG','GIF','BMP','TIFF','WEBP','PPM'])
def test_truncated(form):
    raw = saved(drawn(), form)
    for share in (.2,.5,.9):
        try: open_picture(raw[:int(share*len(raw))]) # some formats show what there is of them
        except ImageError as e: assert str(e).endswith('.')
    if form in ('PNG','JPEG','BMP','PPM'): refused(raw[:len(raw)//2], 'truncated')

def test_bombs_are_refused_before_they_are_decoded():
    for w,h in ((100_000,100_000), (2**31-1,2**31-1), (8001,8001), (64_000_001,1)): refused(png(w, h), 'million pixels')
    refused(png(8000, 8000), 'truncated') # admitted by its size, and there is nothing in it
    refused(np.zeros((8001,8001), np.uint8), 'million pixels')
    refused(Image.new('1', (8001,8001)), 'million pixels')

def test_no_memory_is_spent_on_a_bomb():
    import tracemalloc
    tracemalloc.start()
    refused(png(60_000, 60_000), 'million pixels')
    assert tracemalloc.get_traced_memory()[1]<2e6
    tracemalloc.stop()

def test_phone_photos_are_admitted():
    assert max_pixels>=8160*6120 # fifty million
    im = open_picture(saved(Image.new('L', (8000,6000), 255), 'JPEG'))
    assert max(im.size)<=2048

def test_wrong_arrays():
    for o in (np.zeros(9), np.zeros((2,3,4,5)), np.zeros((9,9,7)), np.zeros((0,9)), np.zeros((9,9,0))):
        refused(o, 'A picture is')
    for o in (np.full((9,9), 2.), np.full((9,9), -1.), np.full((9,9), np.nan),
              np.zeros((9,9), np.int64), np.zeros((9,9), complex), np.zeros((9,9), object)):
        refused(o, 'pixels are')
    refused(None, 'A picture is')
    refused(7, 'A picture is')
    refused({}, 'A picture is')

def test_too_small():
    for o in (Image.new('L', (7,7)), np.zeros((1,7)), np.zeros((7,1))): refused(o, 'smaller than 8')
    assert open_picture(np.zeros((8,1))).size==(1,8)

def test_numbers_that_are_none():
    refused(Image.fromarray(np.full((9,9), np.nan, np.float32)), 'not numbers')

def test_an_image_that_was_opened_elsewhere_and_is_truncated():
    raw = saved(drawn(), 'PNG')
    refused(Image.open(io.BytesIO(raw[:len(raw)//2])), 'truncated')

def test_nothing_is_changed():
    im = drawn().convert('RGBA')
    before = im.copy()
    open_picture(im)
    assert im==before and im.mode=='RGBA'
    x = np.asarray(drawn()).copy()
    y = x.copy()
    open_picture(x)
    assert (x==y).all()

def test_no_warning_reaches_the_user(recwarn):
    for o in (png(60_000, 60_000), png(12_000, 12_000), saved(drawn(), 'PNG')):
        try: open_picture(o)
        except ImageError: pass
    assert not list(recwarn)
