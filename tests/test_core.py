"What every module may need: text for messages, and files that are written whole"
import errno, os, time

import pytest

from mnist_fastai.core import atomic_write, check_choice, file_lock, printable, Locked

@pytest.mark.parametrize('text,want', [
    ('plain é €', 'plain é €'),
    ('two\nlines\t\r', r'two\nlines\t\r'),
    ('\x1b[31mred\x07', r'\x1b[31mred\x07'),
    ('\u202edrawkcab', r'\u202edrawkcab'),
    ('\udcff', r'\udcff'),
    (5, '5'),
], ids=['plain','lines','terminal','direction','byte','number'])
def test_control_characters_are_escaped(text, want):
    assert printable(text)==want and printable(text).isprintable()

@pytest.mark.parametrize('text,want', [
    ('https://me:secret@host/mnist/', 'https://…@host/mnist/'),
    ('see http://me:se@cr/et@host:80/x, please', 'see http://…@host:80/x, please'),
    ('http://host/mnist/', 'http://host/mnist/'),
    ('me@host', 'me@host'),
    ('http://a/ and me@host', 'http://a/ and me@host'),
])
def test_a_url_loses_its_user_and_password(text, want): assert printable(text)==want

def test_leftovers_of_killed_processes_are_removed(tmp_path):
    "Those of the same file that are older than a day"
    path = tmp_path/'net[1].pth' # brackets mean something in a pattern
    def leftover(name, hours):
        (tmp_path/name).write_bytes(b'half')
        os.utime(tmp_path/name, (time.time()-3600*hours,)*2)
        return tmp_path/name
    old,young,other = (leftover('.new-net[1].pth-abcd1234', 25),
                       leftover('.new-net[1].pth-abcd1235', 23),
                       leftover('.new-other.pth-abcd1234', 25))
    atomic_write(path, b'whole')
    assert path.read_bytes()==b'whole' and not old.exists() and young.exists() and other.exists()

@pytest.mark.skipif(os.name!='posix', reason='SIGKILL is POSIX')
def test_what_a_killed_process_leaves_is_found_again(tmp_path):
    from conftest import run_python
    code = ("import os, signal, sys; os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
            "from mnist_fastai.core import atomic_write\n"
            "atomic_write(sys.argv[1], b'half')")
    assert run_python(code, tmp_path/'x.pth').returncode==-9
    left, = tmp_path.iterdir()
    os.utime(left, (0,0))
    atomic_write(tmp_path/'x.pth', b'whole')
    assert [o.name for o in tmp_path.iterdir()]==['x.pth']

@pytest.mark.parametrize('name', ['x'*255, 'é'*127, '数'*85, '🙂'*63])
def test_the_longest_names(name, tmp_path):
    try: (tmp_path/name).touch()
    except OSError: pytest.skip('this file system has no such name')
    assert atomic_write(tmp_path/name, b'1').read_bytes()==b'1' and len(list(tmp_path.iterdir()))==1

def test_a_failed_write_names_the_file(tmp_path, monkeypatch):
    def full(_): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left on device: .*x.pth'): atomic_write(tmp_path/'x.pth', b'1')
    assert not list(tmp_path.iterdir())

def test_a_choice_that_is_none():
    assert check_choice('a', 'ab', 'letter')=='a'
    with pytest.raises(ValueError, match="There is no letter 'c': use one of a, b."): check_choice('c', 'ab', 'letter')

def test_one_holds_a_lock_at_a_time(tmp_path):
    with file_lock(tmp_path/'a'/'.lock'):
        with pytest.raises(Locked, match='another process holds'):
            with file_lock(tmp_path/'a'/'.lock'): pass
    with file_lock(tmp_path/'a'/'.lock'): pass
