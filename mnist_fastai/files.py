"""The official files of MNIST: found, fetched, verified. And the sample, which stands in where they cannot be had.

`mnist_fastai.data` builds on this module and is the one to import. Nothing here is specific to learning, so it is a
plain file and not a lesson; what it guards against is shown in `nbs/under_the_hood/files.ipynb`.
"""

__all__ = ['FILES', 'DataError', 'Unreachable', 'mnist_root', 'mnist_mirror', 'read_verified', 'mnist_files',
           'sample_arrays']

import gzip, hashlib, os, re, shutil, sys, threading, time
from contextlib import ExitStack, contextmanager
from http.client import HTTPException, InvalidURL
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

from .core import Locked, UserError, file_lock, printable

#: Size in bytes and SHA-256 of each extracted file, computed from the four archives whose md5 torchvision states
#: (`torchvision.datasets.MNIST.resources`). The dataset: https://en.wikipedia.org/wiki/MNIST_database
FILES = {
    'train-images-idx3-ubyte': (47_040_016, 'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db'),
    'train-labels-idx1-ubyte': (60_008, '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5'),
    't10k-images-idx3-ubyte': (7_840_016, '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7'),
    't10k-labels-idx1-ubyte': (10_008, 'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2'),
}

_min_rate = 10_000 # bytes a second that a mirror sends at least, on average
_wait = 900 # seconds to wait for another process that fetches

class DataError(UserError):
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
    "The mirror of the user's own, which is tried before torchvision's. Raises `DataError` if it cannot be one"
    mirror = str(mirror or os.environ.get('MNIST_FASTAI_MIRROR') or '').strip()
    if not mirror: return None
    if mirror.lower().startswith(('http://', 'https://')):
        if not re.search('//[^/]*@', mirror): return mirror.rstrip('/') + '/'
        raise DataError(f'The mirror {mirror} has a password in it, which is not supported: name one without.')
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
    timeout:float=20, # Seconds that a mirror may be silent, and in all more than at 10 kB a second
) -> dict: # Name of the file: its bytes, uint8
    """The four files of MNIST, verified on every call; those missing or damaged are fetched first.

    A damaged file is renamed to `*.damaged` once its replacement is there. A mirror that is silent or slow is given up
    for the next one. Raises `Unreachable` if files are missing and no mirror gives them. Raises `DataError` if one is
    damaged and cannot be replaced, if the folder cannot be written to, or if `mirror` is not a mirror. Raises
    `ValueError` if `timeout` is not a time."""
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
def _lock(raw, fault=''):
    "One process at a time fetches into `raw`; what a killed one left behind is removed"
    with ExitStack() as stack:
        def lock(timeout): stack.enter_context(file_lock(raw/'.lock', timeout))
        try:
            try: lock(1)
            except Locked:
                print(printable(f'Waiting for another process that is fetching MNIST into {raw}'), file=sys.stderr)
                lock(_wait)
        except Locked:
            raise DataError(f'Another process has been fetching MNIST into {raw} for {_wait/60:.0f} minutes: '
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
                a,bad = _extract(tmp/archive) if why is None else (None, why)
                if a is None:
                    if source!=raw: notes.append(f'{printable(source)}: {bad}')
                    continue
                if (raw/archive).is_dir(): _put_aside(raw/archive)
                os.replace(tmp/archive, raw/archive)
                if fault: _put_aside(raw/name)
                os.replace(tmp/name, raw/name)
                return a
    except OSError as e: raise _unwritable(raw, e, fault) from e
    tried = '; '.join(notes)
    advice = ('connect to the network or name a mirror with MNIST_FASTAI_MIRROR, '
              'or set MNIST_FASTAI_SAMPLE=1 to use the packaged sample.')
    if fault: raise DataError(f'{fault}, and no mirror gives a whole one ({tried}): {advice}')
    raise Unreachable(f'{name} is not in {raw}, and no mirror gives it ({tried}): {advice}')

def _put_aside(path):
    "Rename what is at `path` to `*.damaged`, or to `*.damaged2` and so on where a folder is in the way"
    target,n = path.with_name(f'{path.name}.damaged'),1
    while target.is_dir() or (target.exists() and path.is_dir()):
        n += 1
        target = path.with_name(f'{path.name}.damaged{n}')
    os.replace(path, target)

def _extract(archive):
    "Extract the archive beside itself: the bytes of the file and None, or None and what is wrong with it"
    path = archive.with_suffix('')
    with gzip.open(archive) as src, path.open('wb') as dst: shutil.copyfileobj(src, dst)
    return _state(path)

def _is_official(path):
    "Whether the archive at `path` has the MD5 that torchvision states"
    from torchvision.datasets import MNIST
    from torchvision.datasets.utils import check_integrity
    return check_integrity(path, dict(MNIST.resources)[path.name])

def _from_folder(folder, archive, tmp):
    "Copy `archive` into `tmp`; returns None, or why it cannot be used"
    src = folder/archive
    try:
        if not src.is_file(): return f'holds no {archive}'
        if not _is_official(src): return f'its {archive} is damaged'
    except OSError as e: return f'its {archive} cannot be read ({e.strerror or e})'
    shutil.copyfile(src, tmp/archive)

def _from_url(url, archive, tmp, timeout):
    "Download `archive` into `tmp`; returns None, or why it cannot be used"
    print(printable(f'Fetching {archive} from {url}'), file=sys.stderr)
    longest = FILES[archive.removesuffix('.gz')][0]
    try: content = _download(url + archive, longest, timeout)
    except TimeoutError as e: return str(e)
    except (ValueError,InvalidURL): return 'this is not a valid URL' # the exception may quote a part of a password
    except HTTPError as e: return str(e) # such as 404, not found
    except (HTTPException,OSError) as e: return str(getattr(e, 'reason', e)) or type(e).__name__
    (tmp/archive).write_bytes(content)
    if not _is_official(tmp/archive): return f'what it sends is not {archive}'

def _download(url, longest, timeout):
    """The bytes at `url`, not many more than `longest`. Raises `TimeoutError` if they come too slowly

    A thread reads and this function watches it, since the timeout of a socket starts again with each byte."""
    content,errors,stop = bytearray(),[],threading.Event()
    def read():
        try:
            with urlopen(Request(url, headers={'User-Agent': 'mnist_fastai'}), timeout=timeout) as response:
                while part := response.read1(65_536):
                    content.extend(part)
                    if stop.is_set() or len(content)>longest: break
        except Exception as e: errors.append(e)
    reader,start = threading.Thread(target=read, daemon=True),time.monotonic()
    reader.start()
    try:
        while reader.is_alive():
            reader.join(.05)
            if time.monotonic()-start > timeout + len(content)/_min_rate: break
    finally: stop.set()
    timed_out = errors and isinstance(getattr(errors[0], 'reason', errors[0]), TimeoutError)
    if timed_out or (reader.is_alive() and not content): raise TimeoutError(f'no answer within {timeout:g} seconds')
    if reader.is_alive(): raise TimeoutError(f'it sends less than {_min_rate//1000} kB a second')
    if errors: raise errors[0]
    return bytes(content)

def sample_arrays():
    "The packaged sample (see `SAMPLE.md`): images, uint8 (5000, 28, 28), and labels, uint8 (5000,)"
    path = Path(__file__).parent/'sample.npz'
    try:
        with np.load(path) as z: return z['images'],z['labels']
    except Exception as e: raise DataError(f'{path} is missing or damaged ({e}): install mnist_fastai again.') from e
