"""What the tests share. No test reaches a public mirror or the caller's cache: the environment is emptied of
`MNIST_FASTAI_*`, torchvision's list of mirrors is empty, and the default root is a folder of the test's own.
Where the four archives are found is decided once, before that."""
import hashlib, os, shutil, signal, subprocess, sys, threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

os.environ['MPLBACKEND'] = 'Agg'
import matplotlib; matplotlib.use('Agg')
import pytest
import mnist_fastai # before fastai: it silences a warning of torch
from mnist_fastai.files import FILES, mnist_root

repo = Path(__file__).resolve().parents[1]
#: md5 of each archive, as torchvision states it
MD5 = {'train-images-idx3-ubyte.gz': 'f68b3c2dcbeaaa9fbdd348bbdeb94873',
       'train-labels-idx1-ubyte.gz': 'd53e105ee54ea40749a09fcbcd1e9432',
       't10k-images-idx3-ubyte.gz': '9fb629c4189551a2d022fa330f9573f3',
       't10k-labels-idx1-ubyte.gz': 'ec29112dd5afa0611ce80d1b7f02629c'}

def _find_archives():
    "The folder of the four archives: the caller's mirror, if that is a folder, else the caller's cache; or None"
    mirror = os.environ.get('MNIST_FASTAI_MIRROR', '')
    for folder in ([Path(mirror).expanduser()] if mirror else []) + [mnist_root()/'MNIST'/'raw']:
        if all((folder/o).is_file() and hashlib.md5((folder/o).read_bytes()).hexdigest()==md5
               for o,md5 in MD5.items()):
            return folder.absolute()

_ARCHIVES = _find_archives()

def pytest_configure(config):
    # pytest sets filters of its own, so what the package silences has to be said to it again; the others are what
    # fastai makes of its libraries
    for o in ('`torch.jit.script`:FutureWarning', "The 'mode.chained_assignment':DeprecationWarning",
              '__array__ implementation:DeprecationWarning', 'numpy.core:DeprecationWarning',
              "load_learner` uses Python's insecure:UserWarning"):
        config.addinivalue_line('filterwarnings', f'ignore:{o}')

@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    "Every test starts from the same environment, whatever the caller's is"
    for o in list(os.environ):
        if o.startswith('MNIST_FASTAI_') or o.lower().endswith('_proxy'): monkeypatch.delenv(o)
    monkeypatch.setenv('MNIST_FASTAI_ROOT', str(tmp_path/'default_root'))
    # nobody is there: a process of a test's own reaches no further
    for o in ('http_proxy','https_proxy'): monkeypatch.setenv(o, 'http://127.0.0.1:9')
    monkeypatch.setenv('no_proxy', '127.0.0.1,localhost')
    if 'torch' in sys.modules: # where it is not, neither is anything that fetches
        from torchvision.datasets import MNIST
        monkeypatch.setattr(MNIST, 'mirrors', [])
    yield
    if (plt := sys.modules.get('matplotlib.pyplot')): plt.close('all')

@pytest.fixture(scope='session')
def archives():
    "The folder of the four official archives"
    if _ARCHIVES is None:
        pytest.skip('the full MNIST is not here: set MNIST_FASTAI_MIRROR to a folder of its four archives')
    return _ARCHIVES

@pytest.fixture(scope='session')
def warm(archives, tmp_path_factory):
    "A root whose cache is complete, extracted for this session of tests. Read only: damage a copy, see `copy_root`"
    from mnist_fastai.files import mnist_files
    root = tmp_path_factory.mktemp('warm')
    mnist_files(root, archives)
    return root

@pytest.fixture(scope='session')
def full(warm):
    "The full MNIST, or the test is skipped"
    from mnist_fastai.data import load_mnist
    return load_mnist(warm, sample=False)

@pytest.fixture(scope='session')
def sample():
    "The packaged sample"
    from mnist_fastai.data import load_mnist
    return load_mnist(sample=True)

@pytest.fixture
def copy_root(warm, tmp_path):
    "A function that makes a root of the test's own with what a complete cache holds, without the files it is given"
    def _f(*without, root=tmp_path/'root'):
        raw = root/'MNIST'/'raw'
        raw.mkdir(parents=True)
        for o in (warm/'MNIST'/'raw').iterdir():
            if o.name in without or o.name.startswith('.'): continue
            try: os.link(o, raw/o.name) # nothing writes into these files; they are unlinked and replaced
            except OSError: shutil.copyfile(o, raw/o.name)
        return root
    return _f

# --- a server of archives, on this machine

class Mirror:
    """A mirror on the loopback device. `how` is what it does: 'archives', an HTTP status, 'html' (a page, status
    200), 'half' a file, 'silent' (accepts and never answers), 'reset' (hangs up), 'trickle' (128 kB of the file,
    and then nothing), 'drip' (the file, a byte every 20 ms), 'slow start' (the header, a byte every 20 ms),
    'endless' (zeros) or 'rude' (a status line that would color a terminal). `requests` counts by path what was
    asked for; `transfers` leaves out torchvision's probes, which ask for a file to learn its URL and read none of
    it."""
    def __init__(self, how, archives=None):
        self.how,self.archives,self.requests,self.transfers,self.ended = (
            how,archives,Counter(),Counter(),threading.Event())
        mirror = self
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args): pass
            def do_GET(self):
                try: mirror.answer(self)
                except OSError: self.close_connection = True # the other side has had enough
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.server.daemon_threads,self.server.handle_error = True,lambda *args: None
        self.url = f'http://127.0.0.1:{self.server.server_port}/mnist/'
        threading.Thread(target=self.server.serve_forever, args=(.02,), daemon=True).start()

    def answer(self, h):
        name = h.path.rsplit('/', 1)[-1]
        probe = h.headers.get('Method')=='HEAD' # torchvision sends a method as a header
        self.requests[name] += 1
        if not probe: self.transfers[name] += 1
        if self.how=='silent': return self.ended.wait(60)
        if self.how=='reset': return h.connection.close()
        if isinstance(self.how, int): return h.send_error(self.how)
        if self.how=='rude': return h.wfile.write(b'HTTP/1.0 404 \x1b[31mNot\x07 Found\r\n\r\n')
        if self.how=='slow start': return self.drip(h, b'HTTP/1.0 200 OK\r\n' + b'X-Wait: a little more\r\n'*90)
        if self.how=='endless':
            h.wfile.write(b'HTTP/1.0 200 OK\r\n\r\n')
            while not self.ended.is_set(): h.wfile.write(bytes(65_536))
        body = (b'<!DOCTYPE html>\n<html>Please log in to this network</html>' if self.how=='html'
                else (self.archives/name).read_bytes())
        h.send_response(200)
        h.send_header('Content-Length', str(len(body)))
        h.end_headers()
        if self.how=='half': body = body[:len(body)//2]
        if self.how=='trickle' and not probe: h.wfile.write(body[:131_072]); return self.ended.wait(60)
        if self.how=='drip' and not probe: return self.drip(h, body)
        h.wfile.write(body)

    def drip(self, h, content):
        for i in range(len(content)):
            if self.ended.wait(.02): return
            h.wfile.write(content[i:i+1])
            h.wfile.flush()

    def close(self): self.ended.set(); self.server.shutdown(); self.server.server_close()

@pytest.fixture
def serve(request):
    "A function that starts a `Mirror`; all end with the test"
    mirrors = []
    def _f(how='archives'):
        archives = request.getfixturevalue('archives') if how in ('archives','half','trickle','drip') else None
        mirrors.append(Mirror(how, archives))
        return mirrors[-1]
    yield _f
    for o in mirrors: o.close()

@pytest.fixture
def dead_url():
    "A URL that nobody listens on"
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0)) # bound and not listening: a connection is refused, and nobody else takes the port
        yield f'http://127.0.0.1:{s.getsockname()[1]}/mnist/'

# --- this machine

@contextmanager
def unprivileged():
    "Root may write anywhere, so a folder is read-only to nobody else: be somebody else for a while"
    if os.name!='posix': pytest.skip('needs POSIX permissions')
    if os.geteuid()!=0: yield; return
    os.seteuid(65534)
    try: yield
    finally: os.seteuid(0)

def _restore_ctrl_c(): signal.signal(signal.SIGINT, signal.SIG_DFL)

#: For `Popen`: what a shell starts in the background inherits that Ctrl-C is ignored, and so would a test's own process
ctrl_c = dict(preexec_fn=_restore_ctrl_c) if os.name=='posix' else {}

def run_python(code, *args, timeout=120, **env):
    "Run `code` in a Python of its own, in this test's environment with `env` on top; returns the completed process"
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], env=os.environ | env, cwd=repo, text=True,
                          capture_output=True, timeout=timeout)

def untrained(net):
    "`net`, marked as untrained, so that any digits are unseen"
    net.train_sources = ()
    return net

def linear(seed=0):
    "An untrained linear classifier"
    from mnist_fastai.models import Network
    import torch
    torch.manual_seed(seed)
    return untrained(Network((784,10)))
