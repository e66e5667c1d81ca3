"The files of MNIST: every way in which they can be had, be damaged or not be had, each for real"
import gzip, hashlib, os, re, shutil, signal, socket, subprocess, sys, tempfile, time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import install_opener

import pytest
from hypothesis import given, settings, strategies as st
from torchvision.datasets import MNIST

from conftest import MD5, ctrl_c, repo, run_python, unprivileged
from mnist_fastai.data import load_mnist
from mnist_fastai.files import FILES, DataError, Unreachable, mnist_files, mnist_mirror, mnist_root, read_verified

small = 't10k-labels-idx1-ubyte' # the smallest file, so that a test of one file is quick
posix = pytest.mark.skipif(os.name!='posix', reason='needs POSIX')

def whole(root): return all(read_verified(root/'MNIST'/'raw'/o) is not None for o in FILES)
def names(root): return sorted(o.name for o in (root/'MNIST'/'raw').iterdir() if o.name!='.lock')
def replace(path, content):
    # never in place: it may be a link to another test's
    path.unlink(missing_ok=True)
    path.write_bytes(content)

def no_rubbish(root):
    "Nothing is in the cache but files and archives that are whole, and what was damaged before"
    for o in (root/'MNIST'/'raw').iterdir():
        if o.name=='.lock' or o.suffix=='.damaged': continue
        if o.name in FILES: read_verified(o)
        else: assert o.name in MD5 and hashlib.md5(o.read_bytes()).hexdigest()==MD5[o.name], o.name
    return True

def one_sentence(e, *parts):
    "The message is one line that names `parts`, and the message of no other exception is in it"
    s = str(e.value if hasattr(e, 'value') else e)
    assert '\n' not in s and 'Traceback' not in s and s.endswith('.'), s
    for o in parts: assert str(o) in s, (o, s)
    return s

# --- where files are looked for

def test_root(monkeypatch, tmp_path):
    assert mnist_root()==tmp_path/'default_root'
    assert mnist_root(tmp_path/'x')==tmp_path/'x' # an argument wins over the environment
    assert mnist_root('~/x')==Path.home()/'x'
    monkeypatch.chdir(tmp_path)
    assert mnist_root('rel')==tmp_path/'rel' and mnist_root('rel').is_absolute()

def fastai_home(monkeypatch, path):
    from fastai.data import external
    monkeypatch.setenv('FASTAI_HOME', str(path))
    # the original remembers its first answer
    monkeypatch.setattr(external, 'fastai_cfg', external.fastai_cfg.__wrapped__)

def test_root_is_fastais_data_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv('MNIST_FASTAI_ROOT')
    fastai_home(monkeypatch, tmp_path/'home')
    assert mnist_root()==tmp_path/'home'/'data'

def test_fastais_data_folder_that_cannot_be_made(monkeypatch, tmp_path):
    monkeypatch.delenv('MNIST_FASTAI_ROOT')
    (tmp_path/'home').write_text('a file')
    fastai_home(monkeypatch, tmp_path/'home')
    with pytest.raises(DataError) as e: mnist_root()
    one_sentence(e, 'MNIST_FASTAI_ROOT')

def test_mirror_from_the_environment(monkeypatch, tmp_path):
    assert mnist_mirror() is None
    monkeypatch.setenv('MNIST_FASTAI_MIRROR', ' http://127.0.0.1:1/mnist ')
    assert mnist_mirror()=='http://127.0.0.1:1/mnist/'
    assert mnist_mirror(tmp_path)==tmp_path # an argument wins

@pytest.mark.parametrize('mirror', [
    'data/mnist', './mnist', 'ftp://127.0.0.1/mnist/', 'file:///mnist', 's3://mnist', 'mnist.example',
])
def test_mirror_that_is_neither_url_nor_absolute(mirror, tmp_path, serve):
    other = serve(503)
    MNIST.mirrors = [other.url]
    with pytest.raises(DataError) as e: mnist_files(tmp_path/'root', mirror)
    assert not isinstance(e.value, Unreachable) # a mistake, and no reason to use the sample
    one_sentence(e, mirror, 'absolute path', 'http://')
    assert not other.requests and not (tmp_path/'root').exists() # nothing fell through, nothing was touched

@pytest.mark.parametrize('how', ['argument','environment'])
def test_mirror_folder_that_does_not_exist(how, tmp_path, serve, monkeypatch):
    other,gone = serve(503),tmp_path/'gone'
    MNIST.mirrors = [other.url]
    if how=='environment': monkeypatch.setenv('MNIST_FASTAI_MIRROR', str(gone))
    with pytest.raises(DataError) as e: load_mnist(tmp_path/'root', gone if how=='argument' else None)
    assert not isinstance(e.value, Unreachable)
    one_sentence(e, gone, 'does not exist')
    assert not other.requests and not (tmp_path/'root').exists()

@pytest.mark.parametrize('timeout', [0, -1, float('nan'), float('inf'), 'soon', None])
def test_timeout_that_is_none(timeout, tmp_path, dead_url):
    with pytest.raises(ValueError, match='timeout must be') as e: mnist_files(tmp_path/'root', dead_url, timeout)
    one_sentence(e, repr(timeout))

# --- fetching

def test_download_into_an_empty_root(tmp_path, serve):
    mirror = serve()
    files = mnist_files(tmp_path/'new'/'root', mirror.url)
    assert {k:len(v) for k,v in files.items()}=={k:n for k,(n,_) in FILES.items()}
    assert mirror.transfers=={o:1 for o in MD5}
    assert names(tmp_path/'new'/'root')==sorted([*FILES, *MD5]) and whole(tmp_path/'new'/'root')
    mirror.requests.clear()
    again = mnist_files(tmp_path/'new'/'root', mirror.url)
    assert not mirror.requests and all((again[o]==files[o]).all() for o in FILES)

def test_default_root_is_used(tmp_path, archives):
    assert load_mnist(mirror=archives, sample=False).source=='mnist'
    assert whole(tmp_path/'default_root')

def test_folder_mirror(tmp_path, archives, serve, monkeypatch):
    other = serve(503)
    MNIST.mirrors = [other.url]
    monkeypatch.setenv('MNIST_FASTAI_MIRROR', str(archives))
    mnist_files(tmp_path/'root')
    assert whole(tmp_path/'root') and not other.requests
    assert names(tmp_path/'root')==sorted([*FILES, *MD5])

def test_own_mirror_comes_before_torchvisions(copy_root, serve):
    own,other = serve(),serve()
    MNIST.mirrors = [other.url]
    mnist_files(copy_root(small, small+'.gz'), own.url)
    assert own.transfers=={small+'.gz':1} and not other.requests

def test_only_what_is_missing_is_fetched(copy_root, serve):
    own = serve()
    root = copy_root(small)
    mnist_files(root, own.url) # its archive is in the cache
    assert not own.requests and whole(root)

@pytest.mark.parametrize('archive', ['missing','damaged'])
def test_folder_mirror_with_a_fault_falls_through(archive, copy_root, tmp_path, serve):
    folder,good = tmp_path/'mirror',serve()
    folder.mkdir()
    if archive=='damaged': (folder/f'{small}.gz').write_bytes(b'x'*4542)
    MNIST.mirrors = [good.url]
    root = copy_root(small, small+'.gz')
    mnist_files(root, folder)
    assert good.transfers=={small+'.gz':1} and whole(root) and no_rubbish(root)

faults = [
    (404,'404'),
    (503,'503'),
    ('html','what it sends is not train-images'),
    ('half','what it sends is not train-images'),
    ('endless','what it sends is not'),
    ('silent','no answer within 0.3 seconds'),
    ('drip','less than 10 kB a second'),
    ('slow start','no answer within 0.3 seconds'),
    ('reset',''),
]

@pytest.mark.parametrize('how', [o for o,_ in faults] + ['refused', 'no URL', 'no port', 'not ascii'])
def test_mirror_that_fails_falls_through(how, copy_root, serve, dead_url):
    bad,good = serve(how) if how in dict(faults) else None,serve()
    url = bad.url if bad else {
        'refused':dead_url, 'no URL':'http://[::1', 'no port':'http://host:port/',
        'not ascii':'http://127.0.0.1:1/ü/'}[how]
    MNIST.mirrors = [good.url]
    root = copy_root(small, small+'.gz')
    mnist_files(root, url, timeout=.3)
    assert good.transfers=={small+'.gz':1} and whole(root) and no_rubbish(root)
    if bad: assert bad.requests

@pytest.mark.parametrize('how,told', faults)
def test_every_failure_is_told(how, told, tmp_path, serve, request):
    if how in ('half','drip'): request.getfixturevalue('archives')
    bad,second = serve(how),serve(404)
    MNIST.mirrors = [second.url]
    with pytest.raises(Unreachable) as e: mnist_files(tmp_path/'root', bad.url, timeout=.3)
    s = one_sentence(e, bad.url, second.url, told, '404', 'train-images-idx3-ubyte',
                     'MNIST_FASTAI_MIRROR', 'MNIST_FASTAI_SAMPLE=1')
    assert s.index(bad.url)<s.index(second.url)
    # each has a reason, even where the exception has no text
    assert not re.search(re.escape(bad.url) + r'[^:]*: *[;)]', s)
    assert names(tmp_path/'root')==[]

def test_control_characters_of_a_server_stay_out_of_messages(tmp_path, serve, capfd):
    rude = serve('rude')
    with pytest.raises(Unreachable) as e: mnist_files(tmp_path/'a\nb', rude.url, timeout=5)
    assert '404' in one_sentence(e) and str(e.value).isprintable()
    assert all(o.isprintable() for o in capfd.readouterr().err.splitlines())

@pytest.mark.parametrize('mirror', [
    'http://me:secret@127.0.0.1:1/mnist/', 'https://me:secret@host', 'http://secret@host/',
])
def test_a_mirror_with_a_password(mirror, tmp_path, capfd):
    with pytest.raises(DataError, match='is not supported') as e: mnist_files(tmp_path/'root', mirror)
    assert not isinstance(e.value, Unreachable) and not (tmp_path/'root').exists()
    assert 'secret' not in one_sentence(e) + capfd.readouterr().err

def test_a_password_that_breaks_the_url(tmp_path, capfd, monkeypatch):
    "Everything after its slash is a path to a program; a reader still sees the password"
    monkeypatch.delenv('http_proxy')
    install_opener(None) # the one in use remembers the proxy
    try:
        with pytest.raises(Unreachable) as e:
            mnist_files(tmp_path/'root', 'http://me:sec/ret@127.0.0.1:1/mnist/', timeout=5)
    finally: install_opener(None)
    said = one_sentence(e, 'not a valid URL') + capfd.readouterr().err
    assert not [o for o in ('sec/','ret@',"'sec'") if o in said]

@pytest.mark.parametrize('how', ['drip','slow start','endless'])
def test_a_mirror_that_would_take_for_ever_falls_through(how, copy_root, serve):
    bad,good = serve(how),serve()
    MNIST.mirrors = [good.url]
    root,start = copy_root(small, small+'.gz'),time.monotonic()
    mnist_files(root, bad.url, timeout=.5)
    assert time.monotonic()-start<10 and good.transfers=={small+'.gz':1} and whole(root) and no_rubbish(root)

def test_a_mirror_that_falls_silent_midway(copy_root, serve):
    slow,good = serve('trickle'),serve()
    MNIST.mirrors = [good.url]
    root = copy_root('train-images-idx3-ubyte', 'train-images-idx3-ubyte.gz')
    mnist_files(root, slow.url, timeout=.3)
    assert slow.transfers and good.transfers and whole(root) and no_rubbish(root)

@pytest.mark.parametrize('how', ['works','silent','404'])
def test_socket_timeout_is_put_back(how, copy_root, tmp_path, serve):
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(77)
    try:
        if how=='works': mnist_files(copy_root(small, small+'.gz'), serve().url, timeout=5)
        else:
            with pytest.raises(Unreachable):
                mnist_files(tmp_path/'root', serve(404 if how=='404' else how).url, timeout=.3)
        assert socket.getdefaulttimeout()==77
    finally: socket.setdefaulttimeout(before)

# --- nothing to be had: the sample, or an error

def test_all_dead_gives_the_sample_and_one_line(tmp_path, dead_url, serve, capsys):
    MNIST.mirrors = [serve(404).url]
    data = load_mnist(tmp_path/'root', dead_url, timeout=.3)
    assert data.source=='sample' and len(data.train)==4000
    out = capsys.readouterr().out
    assert out.count('\n')==1 and 'sample of 5,000 digits' in out and dead_url in out

@pytest.mark.parametrize('how', ['argument','environment'])
def test_all_dead_and_the_sample_refused(how, tmp_path, dead_url, monkeypatch, capsys):
    if how=='environment': monkeypatch.setenv('MNIST_FASTAI_SAMPLE', '0')
    with pytest.raises(Unreachable) as e:
        load_mnist(tmp_path/'root', dead_url, sample=False if how=='argument' else None, timeout=.3)
    one_sentence(e, dead_url, 'refused')
    assert capsys.readouterr().out==''

# --- damaged files

def spoil(path, how):
    "Damage the file at `path`; returns what an error has to say of it"
    good = path.read_bytes()
    head = 16 if 'images' in path.name else 8
    content,told = dict(
        empty=(b'', 'is empty'),
        truncated=(good[:-1], 'truncated'),
        long=(good+b'0', 'too long'),
        html=(b'\n<!DOCTYPE html><html>404</html>', 'web page'),
        forged=(good[:head] + bytes(len(good)-head), 'SHA-256'),
        one_bit=(good[:100] + bytes([good[100]^1]) + good[101:], 'SHA-256'))[how]
    replace(path, content)
    return content,told

hows = ['empty','truncated','long','html','forged','one_bit']

@pytest.mark.parametrize('how', hows)
def test_damaged_file_is_replaced_without_a_network(how, copy_root, serve):
    root,other = copy_root(),serve(503)
    MNIST.mirrors = [other.url]
    path = root/'MNIST'/'raw'/small
    content,_ = spoil(path, how)
    mnist_files(root)
    assert path.with_name(small+'.damaged').read_bytes()==content and whole(root) and no_rubbish(root)
    assert not other.requests # its archive was in the cache

@pytest.mark.parametrize('name', ['train-images-idx3-ubyte', small])
def test_forged_zeros_are_replaced_from_the_mirror(name, copy_root, serve):
    root,mirror = copy_root(name+'.gz'),serve()
    spoil(root/'MNIST'/'raw'/name, 'forged')
    files = mnist_files(root, mirror.url)
    assert files[name].any() and mirror.transfers=={name+'.gz':1} and whole(root)
    assert (root/'MNIST'/'raw'/(name+'.damaged')).stat().st_size==FILES[name][0]

def test_damaged_archive_in_the_cache_is_replaced(copy_root, serve):
    root,mirror = copy_root(),serve()
    raw = root/'MNIST'/'raw'
    spoil(raw/small, 'truncated')
    replace(raw/f'{small}.gz', (raw/f'{small}.gz').read_bytes()[:-9])
    mnist_files(root, mirror.url)
    assert mirror.transfers=={small+'.gz':1} and whole(root) and no_rubbish(root)

def test_damaged_twice(copy_root):
    root = copy_root()
    for how in ('empty','html'):
        content,_ = spoil(root/'MNIST'/'raw'/small, how)
        mnist_files(root)
        assert (root/'MNIST'/'raw'/f'{small}.damaged').read_bytes()==content and whole(root)

@pytest.mark.parametrize('how', hows)
def test_damaged_file_and_no_mirror(how, copy_root, dead_url):
    root = copy_root(small+'.gz')
    path = root/'MNIST'/'raw'/small
    content,told = spoil(path, how)
    for _ in range(2): # the second call says the same
        # the sample is allowed, and would hide it
        with pytest.raises(DataError) as e: load_mnist(root, dead_url, timeout=.3)
        assert not isinstance(e.value, Unreachable)
        one_sentence(e, path, told, dead_url, 'MNIST_FASTAI_MIRROR', 'MNIST_FASTAI_SAMPLE=1')
        assert path.read_bytes()==content
    assert names(root)==sorted({*FILES, *MD5} - {small+'.gz'})

def test_a_damaged_file_is_told_even_if_another_is_missing(copy_root, dead_url):
    root = copy_root('train-images-idx3-ubyte', 'train-images-idx3-ubyte.gz', small+'.gz')
    spoil(root/'MNIST'/'raw'/small, 'empty')
    with pytest.raises(DataError) as e: load_mnist(root, dead_url, timeout=.3)
    assert not isinstance(e.value, Unreachable)
    one_sentence(e, small, 'is empty')

def test_a_folder_in_the_place_of_a_file(copy_root):
    root = copy_root(small)
    (root/'MNIST'/'raw'/small).mkdir()
    mnist_files(root)
    assert (root/'MNIST'/'raw'/f'{small}.damaged').is_dir() and whole(root)

@pytest.mark.parametrize('content', [[], ['a file']], ids=['empty','full'])
def test_folders_in_the_way(content, copy_root, serve):
    "Named like an archive, or like the file that a damaged one is renamed to"
    root,good = copy_root(small+'.gz'),serve()
    raw = root/'MNIST'/'raw'
    for name in f'{small}.gz',f'{small}.damaged',f'{small}.damaged2':
        (raw/name).mkdir()
        for o in content: (raw/name/o).write_text('of somebody')
    before,_ = spoil(raw/small, 'html')
    mnist_files(root, good.url)
    assert whole(root) and (raw/f'{small}.damaged3').read_bytes()==before
    for name in f'{small}.gz.damaged',f'{small}.damaged',f'{small}.damaged2':
        assert [o.name for o in (raw/name).iterdir()]==content

def test_a_folder_in_the_place_of_a_file_twice(copy_root):
    root = copy_root()
    for _ in range(2):
        replace(root/'MNIST'/'raw'/small, b'')
        (root/'MNIST'/'raw'/small).unlink()
        (root/'MNIST'/'raw'/small).mkdir()
        mnist_files(root)
    assert whole(root) and (root/'MNIST'/'raw'/f'{small}.damaged2').is_dir()

def test_read_verified_names_the_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError): read_verified(tmp_path/small)

@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_change_is_refused(warm, data):
    good = bytearray((warm/'MNIST'/'raw'/small).read_bytes())
    at = data.draw(st.integers(0, len(good)-1))
    how = data.draw(st.sampled_from(['byte','cut','insert']))
    if how=='byte': good[at] ^= data.draw(st.integers(1, 255))
    elif how=='cut': good = good[:at]
    else: good[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp)/small
        path.write_bytes(good)
        with pytest.raises(DataError) as e: read_verified(path)
        assert str(path) in str(e.value)

# --- what an interrupted process leaves, and several at once

fetch = """
import sys
from torchvision.datasets import MNIST
from mnist_fastai.files import *
MNIST.mirrors = []
print('ready', flush=True); sys.stdin.readline()
print(sum(map(len, mnist_files(sys.argv[1], sys.argv[2]).values())))
"""

def start(root, mirror):
    return subprocess.Popen([sys.executable, '-c', fetch, str(root), str(mirror)], cwd=repo, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **ctrl_c)

def go(*ps):
    "Let processes that were started begin to fetch, all at once"
    for p in ps: assert p.stdout.readline()=='ready\n', p.stderr.read()
    for p in ps: p.stdin.write('\n'); p.stdin.flush()

def test_stale_folder_is_removed(copy_root):
    root = copy_root(small)
    stale = root/'MNIST'/'raw'/'.fetch-abc'
    stale.mkdir()
    (stale/f'{small}.gz').write_bytes(b'half')
    mnist_files(root)
    assert not stale.exists() and whole(root)

@pytest.mark.slow
@posix
def test_interrupted_download(tmp_path, serve):
    slow,good,ps = serve('trickle'),serve(),{}
    try:
        for sig in ('SIGINT','SIGKILL'): ps[sig] = start(tmp_path/sig, slow.url)
        go(*ps.values())
        for sig,p in ps.items():
            for _ in range(400):
                if slow.transfers and any((tmp_path/sig).glob('MNIST/raw/.fetch-*')): break
                time.sleep(.05)
            else: pytest.fail('nothing was asked for')
            p.send_signal(getattr(signal, sig))
            out,err = p.communicate(timeout=30)
            assert p.returncode!=0 and out==''
            if sig=='SIGINT': assert 'KeyboardInterrupt' in err and names(tmp_path/sig)==[]
            else: assert [o[:7] for o in names(tmp_path/sig)]==['.fetch-'] # a killed process tidies nothing up ...
    finally:
        for p in ps.values(): p.kill()
    mnist_files(tmp_path/'SIGKILL', good.url)
    assert names(tmp_path/'SIGKILL')==sorted([*FILES, *MD5]) and whole(tmp_path/'SIGKILL') # ... so the next one does

@pytest.mark.slow
def test_two_processes_at_once(tmp_path, serve):
    """On a root that holds one damaged file and nothing else.

    The slower one must not set aside what the faster one has put there.
    """
    mirror,raw = serve(),tmp_path/'root'/'MNIST'/'raw'
    raw.mkdir(parents=True)
    (raw/small).write_bytes(b'damaged')
    ps = [start(tmp_path/'root', mirror.url) for _ in range(2)]
    go(*ps)
    for p in ps:
        out,err = p.communicate(timeout=100)
        assert p.returncode==0, err
        assert int(out)==sum(n for n,_ in FILES.values())
    assert mirror.transfers=={o:1 for o in MD5}
    assert names(tmp_path/'root')==sorted([*FILES, *MD5, small+'.damaged']) and whole(tmp_path/'root')
    assert (raw/f'{small}.damaged').read_bytes()==b'damaged'

@pytest.fixture
def held(tmp_path):
    "A root into which another process is fetching, and that process; it ends when a line is written to it"
    raw = tmp_path/'root'/'MNIST'/'raw'
    raw.mkdir(parents=True)
    code = ("import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
            "print('held', flush=True); sys.stdin.readline()")
    p = subprocess.Popen([sys.executable, '-c', code, str(raw/'.lock')],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline()=='held\n'
    yield tmp_path/'root',p
    if p.poll() is None: p.communicate('\n', timeout=30)

def test_another_process_that_never_ends(held, archives, monkeypatch):
    root,_ = held
    monkeypatch.setattr('mnist_fastai.files._wait', .2)
    with pytest.raises(DataError) as e: mnist_files(root, archives)
    one_sentence(e, 'Another process', root)

def test_waiting_for_another_process_is_told(held, archives):
    root,other = held
    p = start(root, archives)
    go(p)
    assert p.stderr.readline()==f'Waiting for another process that is fetching MNIST into {root/"MNIST"/"raw"}\n'
    other.communicate('\n', timeout=30)
    assert p.wait(timeout=60)==0 and whole(root)

# --- this machine's disk

@pytest.fixture
def open_tmp():
    "A folder that anybody may enter, which pytest's are not"
    tmp = Path(tempfile.mkdtemp(prefix='mnist_fastai_test_'))
    tmp.chmod(0o755)
    yield tmp
    for o in [tmp, *(p for p in tmp.rglob('*') if p.is_dir())]: o.chmod(0o755)
    shutil.rmtree(tmp)

def read_only(root):
    for o in [*(p for p in root.rglob('*') if p.is_dir()), root]: o.chmod(0o555)
    return root

@posix
def test_read_only_root_without_files(open_tmp, archives):
    read_only(open_tmp)
    with unprivileged():
        for root in (open_tmp, open_tmp/'deeper'):
            with pytest.raises(DataError) as e: load_mnist(root, '/', timeout=.3)
            assert not isinstance(e.value, Unreachable)
            one_sentence(e, root, 'cannot be written to', 'MNIST_FASTAI_ROOT', 'MNIST_FASTAI_SAMPLE=1')
    assert list(open_tmp.iterdir())==[]

@posix
@pytest.mark.parametrize('how', ['missing','damaged'])
def test_read_only_cache_with_a_fault(how, copy_root, open_tmp):
    root = copy_root(small if how=='missing' else '', root=open_tmp/'root')
    path = root/'MNIST'/'raw'/small
    if how=='damaged': _,told = spoil(path, 'truncated')
    before = names(root)
    read_only(root)
    with unprivileged(), pytest.raises(DataError) as e: load_mnist(root)
    s = one_sentence(e, 'cannot be written to', 'MNIST_FASTAI_ROOT')
    if how=='damaged': assert str(path) in s and told in s # both faults are told
    assert names(root)==before

@posix
def test_read_only_cache_that_is_complete_works(copy_root, open_tmp):
    root = read_only(copy_root(root=open_tmp/'root'))
    with unprivileged(): assert len(load_mnist(root, sample=False).train)==50_000
    assert not (root/'MNIST'/'raw'/'.lock').exists()

@posix
def test_file_that_may_not_be_read(copy_root, open_tmp):
    root = copy_root(small, root=open_tmp/'root')
    path = root/'MNIST'/'raw'/small
    path.write_bytes(gzip.decompress(path.with_name(small+'.gz').read_bytes()))
    path.chmod(0)
    read_only(root)
    with unprivileged(), pytest.raises(DataError) as e: load_mnist(root)
    one_sentence(e, path, 'cannot be read', 'cannot be written to')

@pytest.mark.parametrize('where', ['.','MNIST','MNIST/raw'])
def test_root_that_is_a_file(where, tmp_path, dead_url):
    path = tmp_path/'root'/where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('my notes')
    with pytest.raises(DataError) as e: load_mnist(tmp_path/'root', dead_url)
    assert not isinstance(e.value, Unreachable)
    one_sentence(e, tmp_path/'root', 'cannot be written to', 'MNIST_FASTAI_ROOT')
    assert path.read_text()=='my notes'

@contextmanager
def full_disk(limit):
    "Writing more than `limit` bytes into a file fails, as on a full disk"
    import resource
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)

@posix
@pytest.mark.parametrize('kind', ['folder','url'])
@pytest.mark.parametrize('limit', [1_000_000, 20_000_000], ids=['in the archive','in the file'])
def test_full_disk(kind, limit, tmp_path, archives, serve):
    mirror,other = archives if kind=='folder' else serve().url,serve(503)
    MNIST.mirrors = [other.url]
    with full_disk(limit), pytest.raises(DataError) as e: load_mnist(tmp_path/'root', mirror)
    assert not isinstance(e.value, Unreachable) and not other.requests # another mirror would not help
    one_sentence(e, tmp_path/'root', 'cannot be written to (File too large)', 'make room',
                 'MNIST_FASTAI_ROOT', 'MNIST_FASTAI_SAMPLE=1')
    assert names(tmp_path/'root')==[]

@posix
def test_full_disk_and_a_damaged_file(copy_root):
    root = copy_root()
    path = root/'MNIST'/'raw'/'train-images-idx3-ubyte'
    content,told = spoil(path, 'html')
    with full_disk(1_000_000), pytest.raises(DataError) as e: load_mnist(root)
    one_sentence(e, 'cannot be written to', path, told)
    assert path.read_bytes()==content and names(root)==sorted([*FILES, *MD5]) # it stays where it is

# --- a warm cache

@pytest.mark.slow
def test_warm_cache_needs_no_torchvision_and_no_network(warm):
    p = run_python("""
import sys, socket
from mnist_fastai.data import load_mnist
def no(*args, **kw): raise AssertionError('the network was used')
socket.socket.connect = no
print(load_mnist(sample=False), 'torchvision' in sys.modules)
""", MNIST_FASTAI_ROOT=str(warm), MNIST_FASTAI_MIRROR='relative and never looked at')
    assert p.returncode==0, p.stderr
    assert p.stdout=='mnist: 50,000 train, 10,000 valid, 10,000 test False\n' and p.stderr==''

def test_sizes_and_names_agree_with_torchvision():
    assert [o for o,_ in MNIST.resources]==[o+'.gz' for o in FILES] and dict(MNIST.resources)==MD5

def test_checksums_are_those_of_the_archives(archives):
    for name,(size,sha) in FILES.items():
        content = gzip.decompress((archives/f'{name}.gz').read_bytes())
        assert (len(content),hashlib.sha256(content).hexdigest())==(size,sha)
