"""What every module may need: versions, text for messages, files that are written whole, one lock, checked choices.

A plain file: nothing here is specific to learning.
"""

__all__ = ['versions', 'printable', 'UserError', 'atomic_write', 'Locked', 'file_lock', 'check_choice', 'few_threads']

import glob, os, platform, re, tempfile, time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from . import __version__

def versions() -> dict:
    "Versions of what a result depends on"
    libs = {o: version(o) for o in ('torch','fastai','numpy')}
    return dict(python=platform.python_version(), **libs, mnist_fastai=__version__)

def printable(
    text, # A path, a URL, or what a file or a server says
) -> str:
    "`text` for a message: control characters become escapes such as `\\n`, and a URL loses its user and password"
    text = re.sub(r'(?<=://)\S*@', '…@', str(text))
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

class UserError(RuntimeError):
    "An error whose message tells a user what is wrong and what to do; a command prints it without a traceback"
    def __init__(self, message): super().__init__(printable(message)) # it may quote a file or a server

def _remove_leftovers(folder, prefix, age=86_400):
    "Remove temporary files that a killed process left more than `age` seconds ago"
    for old in folder.glob(f'{prefix}*'):
        try:
            if time.time()-old.stat().st_mtime>age: old.unlink()
        except OSError: pass # another process was faster, or it may not be removed

def atomic_write(
    path, # File to write; its folder is made if need be
    content:bytes,
) -> Path: # `path`
    """Write to a temporary file, then rename: `path` holds all of `content`, or what it held before. Raises `OSError`

    Also removes temporary files for `path` that killed processes left more than a day ago."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f'.new-{path.name[:60]}-' # a name may have 255 bytes, and a character four
    _remove_leftovers(path.parent, glob.escape(prefix))
    fd,tmp = tempfile.mkstemp(dir=path.parent, prefix=prefix)
    try:
        with os.fdopen(fd, 'wb') as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(tmp, 0o644)
        os.replace(tmp, path)
    except BaseException as e:
        os.unlink(tmp)
        if isinstance(e, OSError) and e.filename is None: e.filename = str(path)
        raise
    return path

class Locked(RuntimeError):
    "Another process holds a lock"

@contextmanager
def file_lock(
    path, # The lock file; its folder is made if need be
    timeout:float=0, # Seconds to wait for another process
):
    "One process at a time is inside the block. Raises `Locked` if another one is, `OSError` if there can be no lock"
    from filelock import FileLock, Timeout
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=timeout)
    try: lock.acquire()
    except Timeout: raise Locked(f'another process holds {path}') from None
    except NotImplementedError as e: raise OSError(f'{path} cannot be locked on this file system ({e})') from None
    try: yield
    finally: lock.release()

def check_choice(
    value, # What a user has chosen
    choices, # What there is
    what:str, # What it is, as in 'split'
):
    "`value`, if it is one of `choices`. Raises `ValueError` that lists them"
    if value in choices: return value
    raise ValueError(f'There is no {what} {value!r}: use one of {", ".join(map(str, choices))}.')

def few_threads(cells):
    "Called by nbdev_test before its workers start (see pyproject.toml): one thread each, or they wait for one another"
    os.environ.setdefault('OMP_NUM_THREADS', '1')
