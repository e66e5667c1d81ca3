"""What every module may need: versions, files that are written whole, one lock, and choices that are checked.

A plain file: nothing here is specific to learning.
"""

__all__ = ['versions', 'atomic_write', 'Locked', 'file_lock', 'check_choice', 'few_threads']

import os, platform, tempfile
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from . import __version__

def versions() -> dict:
    "Versions of what a result depends on"
    libs = {o: version(o) for o in ('torch','fastai','numpy')}
    return dict(python=platform.python_version(), **libs, mnist_fastai=__version__)

def atomic_write(
    path, # File to write; its folder is made if need be
    content:bytes,
) -> Path: # `path`
    "Write to a temporary file, then rename: `path` holds all of `content`, or what it held before. Raises `OSError`"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd,tmp = tempfile.mkstemp(dir=path.parent, prefix='.new-')
    try:
        with os.fdopen(fd, 'wb') as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(tmp, 0o644)
        os.replace(tmp, path)
    except BaseException:
        os.unlink(tmp)
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
