"""The official files of MNIST: found, fetched, verified. And the sample, which stands in where they cannot be had.

`mnist_fastai.data` builds on this module and is the one to import. Nothing here is specific to learning, so it is a
plain file and not a lesson; what it guards against is shown in `nbs/under_the_hood/files.ipynb`.
"""

__all__ = ['FILES', 'DataError', 'Unreachable', 'mnist_root', 'mnist_mirror', 'read_verified', 'mnist_files', 'sample_arrays']

import errno, hashlib, os, shutil, socket, sys
from contextlib import ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import URLError

import numpy as np

from .core import Locked, file_lock

#: Size in bytes and SHA-256 of each extracted file, computed from the four archives whose md5 torchvision states
#: (`torchvision.datasets.MNIST.resources`). The dataset: https://en.wikipedia.org/wiki/MNIST_database
FILES = {
    'train-images-idx3-ubyte': (47_040_016, 'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db'),
    'train-labels-idx1-ubyte': (60_008, '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5'),
    't10k-images-idx3-ubyte': (7_840_016, '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7'),
    't10k-labels-idx1-ubyte': (10_008, 'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2'),
}

# What this machine's own disk answers; every other OSError of a download is the network's.
_LOCAL = {getattr(errno, o, None) for o in 'EACCES EPERM EROFS ENOSPC EDQUOT EFBIG EIO'.split()} - {None}

class DataError(RuntimeError):
    "The digits cannot be had; the message says what is wrong and what to do"

class Unreachable(DataError):
    "Files are missing and no mirror gave them: the one case in which the sample may stand in"

def mnist_root(
    root=None, # Folder; by default `MNIST_FASTAI_ROOT`, else fastai's data folder
) -> Path: # The folder that holds `MNIST/raw`, laid out as torchvision lays it out
    "The folder where MNIST is kept"
    root = root or os.environ.get('MNIST_FASTAI_ROOT')
    if root: return Path(root).expanduser().absolute()
    from fastai.data.external import fastai_path
    try: return Path(fastai_path('data'))
    except OSError as e:
        raise DataError(f"fastai's folder for data cannot be made ({e}): "
                        'set MNIST_FASTAI_ROOT to a folder you can write to.') from e

def mnist_mirror(
    mirror=None, # URL or absolute folder that holds the four archives; by default `MNIST_FASTAI_MIRROR`
): # A URL that ends in a slash, a `Path`, or None if no mirror is named
    "The mirror of the user's own, which is tried before torchvision's. Raises `DataError` if there is no such folder"
    mirror = str(mirror or os.environ.get('MNIST_FASTAI_MIRROR') or '').strip()
    if not mirror: return None
    if mirror.lower().startswith(('http://', 'https://')): return mirror.rstrip('/') + '/'
    p = Path(mirror).expanduser()
    if not p.is_absolute():
        raise DataError(f'The mirror {mirror!r} is neither a URL (http://, https://) nor an absolute path of a folder: '
                        'give one of these.')
    if not p.is_dir():
        raise DataError(f'The mirror folder {str(p)!r} does not exist: correct MNIST_FASTAI_MIRROR, '
                        'or leave it out to use the public mirrors.')
    return p

def read_verified(
    path, # An extracted file of MNIST; its name says which
) -> np.ndarray: # Its bytes, uint8
    """The bytes of the file at `path`, if they are the official ones

    Raises `DataError` that says what is wrong, `FileNotFoundError` if there is no file."""
    path = Path(path)
    size,sha = FILES[path.name]
    n = path.stat().st_size
    if n==size:
        a = np.fromfile(path, np.uint8)
        if hashlib.sha256(a).hexdigest()==sha: return a
        fault = 'has the right size and the wrong content (its SHA-256 is not the official one)'
    elif n==0: fault = 'is empty'
    else:
        with path.open('rb') as f: head = f.read(256).lstrip().lower()
        if head.startswith((b'<!doctype', b'<html', b'<?xml')): fault = 'is a web page and not data'
        else: fault = f'is {"truncated" if n<size else "too long"} ({n:,} bytes of {size:,})'
    raise DataError(f'{path} {fault}')

def _state(path):
    "`(bytes, None)` if the file is whole, else `(None, what is wrong with it)`; the fault is '' if it is not there"
    try: return read_verified(path), None
    except FileNotFoundError: return None, ''
    except DataError as e: return None, str(e)
    except OSError as e: return None, f'{path} cannot be read ({e.strerror or e})'

def mnist_files(
    root=None, # Folder, see `mnist_root`
    mirror=None, # URL or folder, see `mnist_mirror`
    timeout:float=20, # Seconds that a mirror may be silent
) -> dict: # Name of the file: its bytes, uint8
    """The four files of MNIST, verified on every call; those missing or damaged are fetched first.

    A damaged file is renamed to `*.damaged` once its replacement is there. Raises `Unreachable` if files are missing and
    no mirror gives them, `DataError` if one is damaged and cannot be replaced, if the folder cannot be written to, or if
    `mirror` is not a mirror, `ValueError` if `timeout` is not a time."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int,float)) or not 0<timeout<1e9:
        raise ValueError(f'The timeout must be a number of seconds above 0, not {timeout!r}.')
    raw = mnist_root(root)/'MNIST'/'raw'
    found = {name: _state(raw/name) for name in FILES}
    if any(a is None for a,_ in found.values()):
        mirrors = [m for m in [mnist_mirror(mirror)] if m] # raises before anything is touched
        damaged = [name for name,(_,fault) in found.items() if fault] # first, since the sample must not hide them
        with _lock(raw, found[damaged[0]][1] if damaged else ''):
            for name in dict.fromkeys([*damaged, *FILES]):
                if found[name][0] is None: found[name] = _state(raw/name) # another process may have been faster
                if found[name][0] is None: found[name] = (_fetch(name, raw, mirrors, timeout, found[name][1]), None)
    return {name: a for name,(a,_) in found.items()}

@contextmanager
def _lock(raw, fault='', wait=900):
    "One process at a time fetches into `raw`; what a killed one left behind is removed"
    with ExitStack() as stack:
        try: stack.enter_context(file_lock(raw/'.lock', timeout=wait))
        except Locked:
            raise DataError(f'Another process has been fetching MNIST into {raw} for {wait//60} minutes: '
                            'wait for it or end it, then run again.') from None
        except OSError as e: raise _unwritable(raw, e, fault) from e
        for old in raw.glob('.fetch-*'): shutil.rmtree(old, ignore_errors=True)
        yield

def _unwritable(raw, e, fault):
    before = f'{fault}, and ' if fault else ''
    return DataError(f'{before}{raw} cannot be written to ({getattr(e, "strerror", None) or e}): make room or choose '
                     'another folder with MNIST_FASTAI_ROOT, or set MNIST_FASTAI_SAMPLE=1 to use the packaged sample.')

def _fetch(name, raw, mirrors, timeout, fault):
    "Fetch, extract and verify one file apart from the others, then put it into its place; returns its bytes"
    from torchvision.datasets import MNIST
    archive,notes = name + '.gz', []
    sources = [raw, *mirrors, *MNIST.mirrors] # an archive that is there already is as good as a mirror
    try:
        for source in sources:
            with TemporaryDirectory(prefix='.fetch-', dir=raw, ignore_cleanup_errors=True) as tmp:
                tmp = Path(tmp)
                if isinstance(source, Path): why = _from_folder(source, archive, tmp)
                else: why = _from_url(source, archive, tmp, timeout)
                a,bad = _state(tmp/name) if why is None else (None, why)
                if a is None:
                    if source!=raw: notes.append(f'{source}: {bad}')
                    continue
                os.replace(tmp/archive, raw/archive)
                if fault: os.replace(raw/name, raw/f'{name}.damaged')
                os.replace(tmp/name, raw/name)
                return a
    except OSError as e: raise _unwritable(raw, e, fault) from e
    tried = '; '.join(notes)
    advice = ('connect to the network or name a mirror with MNIST_FASTAI_MIRROR, '
              'or set MNIST_FASTAI_SAMPLE=1 to use the packaged sample.')
    if fault: raise DataError(f'{fault}, and no mirror gives a whole one ({tried}): {advice}')
    raise Unreachable(f'{name} is not in {raw}, and no mirror gives it ({tried}): {advice}')

def _from_folder(folder, archive, tmp):
    "Copy `archive` and let torchvision extract it; returns None, or why it cannot"
    from torchvision.datasets import MNIST
    from torchvision.datasets.utils import check_integrity
    src = folder/archive
    try:
        if not src.is_file(): return f'holds no {archive}'
        if not check_integrity(src, dict(MNIST.resources)[archive]): return f'its {archive} is damaged'
    except OSError as e: return f'its {archive} cannot be read ({e.strerror or e})'
    shutil.copyfile(src, tmp/archive)
    return _torchvision_download('', archive, tmp)

def _from_url(url, archive, tmp, timeout):
    "Let torchvision download and extract `archive`; returns None, or why it cannot"
    print(f'Fetching {archive} from {url}', file=sys.stderr)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout) # torchvision sets none, and a silent server would hold it for ever
    try: return _torchvision_download(url, archive, tmp)
    except TimeoutError: return f'no answer within {timeout:g} seconds'
    except (URLError, HTTPException, ValueError) as e: # ValueError: a malformed URL
        return str(getattr(e, 'reason', None) or e) or type(e).__name__
    except OSError as e:
        if e.errno in _LOCAL: raise
        return e.strerror or str(e)
    finally: socket.setdefaulttimeout(before)

def _torchvision_download(url, archive, folder):
    "torchvision's own `MNIST.download`, md5 check and all, for one archive from one mirror; None, or why it failed"
    from torchvision.datasets import MNIST
    class OneArchive(MNIST):
        mirrors,resources = [url],[o for o in MNIST.resources if o[0]==archive]
        raw_folder = str(folder)
        def __init__(self): pass
    try: OneArchive().download()
    except (RuntimeError, EOFError) as e: # torchvision's sentence goes over several lines
        return ' '.join(str(e).split()).split('got: ')[-1].rstrip('.')

def sample_arrays():
    "The packaged sample (see `SAMPLE.md`): images, uint8 (5000, 28, 28), and labels, uint8 (5000,)"
    path = Path(__file__).parent/'sample.npz'
    try:
        with np.load(path) as z: return z['images'],z['labels']
    except Exception as e: raise DataError(f'{path} is missing or damaged ({e}): install mnist_fastai again.') from e
