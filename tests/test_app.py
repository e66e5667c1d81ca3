"The page without a browser: what comes in, what is said, what a program may ask, and what is refused"
import ast, base64, io, json, os, re, shutil, signal, socket, subprocess, sys, threading, time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from conftest import ctrl_c, repo, run_python
from mnist_fastai.app import *
from mnist_fastai.app import _free_port, _gradio, _part, _write_all
from mnist_fastai.checkpoint import CheckpointError
from mnist_fastai.images import BlankError, ImageError
from mnist_fastai.inference import Predictor
from mnist_fastai.preprocess import stages

black,white,clear = (0,0,0,255),(255,255,255,255),(0,0,0,0)
seven = [(.3,.25),(.7,.25),(.45,.8)]
pytestmark = pytest.mark.filterwarnings('ignore:.*silent_downcasting', 'ignore:The copy keyword') # Gradio's, of pandas
needs_gradio = pytest.mark.skipif(not __import__('importlib.util').util.find_spec('gradio'), reason='Gradio is not installed: pip install -e ".[app]"')

@pytest.fixture(scope='module')
def reader(): return Predictor()

def drawn(ink=black, paper=white, points=seven, size=280, mode='RGBA'):
    im = Image.new('RGBA', (size,size), paper)
    ImageDraw.Draw(im).line([(size*x,size*y) for x,y in points], fill=ink, width=size//12, joint='curve')
    return im.convert(mode)

def data_url(im, kind='png'):
    buf = io.BytesIO()
    im.save(buf, kind)
    return f'data:image/{kind};base64,' + base64.b64encode(buf.getvalue()).decode()

def label(reader, o): return reader(as_picture(o)).label

# --- the adapter

@pytest.mark.parametrize('mode', ['RGBA','RGB','L','LA','P','1'])
def test_pictures_and_arrays(reader, mode):
    im = drawn(mode=mode)
    assert as_picture(im) is im and label(reader, im)==7
    if mode!='P': assert label(reader, np.asarray(im))==7
    if mode!='P': assert label(reader, torch.tensor(np.asarray(im)))==7

@pytest.mark.parametrize('ink', [black, white, (200,0,0,255), (255,255,0,255)])
def test_ink_that_is_only_in_the_opacity(reader, ink):
    im = drawn(ink, clear)
    for o in (im, np.asarray(im), np.asarray(im)/255, torch.tensor(np.asarray(im)), data_url(im), dict(layers=[im]), dict(composite=np.asarray(im))): assert label(reader, o)==7

def test_editors(reader):
    whole,layer,back = (np.asarray(o) for o in (drawn(), drawn(black, clear), Image.new('RGBA', (280,280), white)))
    for d in (dict(background=back, layers=[layer], composite=whole), dict(background=None, layers=[], composite=whole), dict(composite=whole), dict(background=back, layers=[layer], composite=None),
              dict(background=None, layers=[layer], composite=None), dict(background=back, layers=[None,layer]), dict(background=whole, layers=None), dict(composite=drawn(), layers=[]),
              dict(background=Image.new('RGB', (280,280), 'white'), layers=[drawn(black, clear)]), dict(background=back, layers=[np.asarray(drawn(black, clear, size=300))[:290,:290]])):
        assert label(reader, d)==7
    top = np.asarray(drawn(black, clear, [(.5,.2),(.5,.8)]))
    bar = np.asarray(drawn(black, clear, [(.2,.5),(.8,.5)]))
    both = np.asarray(as_picture(dict(layers=[top,bar])))[...,3]
    assert both[60,140]==255 and both[140,60]==255 and both[60,60]==0 # each layer is there

@pytest.mark.parametrize('o', [None, '', {}, dict(background=None, layers=[], composite=None), dict(background=None, layers=None, composite=None), dict(layers=[None])])
def test_nothing(o):
    with pytest.raises(BlankError, match='draw a digit'): as_picture(o)

@pytest.mark.parametrize('o', ['text', '/etc/hostname', 'models/losses.png', 'file:///etc/hostname', 'http://127.0.0.1/x.png', 'data:text/html;base64,aGk=', 'data:image/png,abc', 'data:image/png;base64,?!',
                               'data:image/png;base64,' + 'A'*(4*upload_limit//3+8), 7, [1,2], Path('models/losses.png'), b'PNG', 3.5, True])
def test_what_is_no_picture(o):
    with pytest.raises(ImageError) as e: as_picture(o)
    assert not isinstance(e.value, BlankError) and len(str(e.value))<200 and str(e.value).endswith('.')

def test_data_urls(reader):
    for kind in ('png','jpeg'): assert label(reader, data_url(drawn(mode='RGB'), kind))==7
    assert as_picture('data:image/png;base64,' + base64.b64encode(b'abc').decode())==b'abc'

# --- the answer

def test_look_says_what_the_reader_says(reader):
    view,answer = look(reader, drawn()),reader(drawn())
    assert view['says'].lower()==answer.text.lower() and view['answer'].label==7 and view['answer'].probs.tolist()==answer.probs.tolist()
    assert list(view['steps'])==['picture', *stages] and set(view['steps'])==set(captions)

def test_look_never_raises(reader):
    for o in (None, '', 'nonsense', 'data:image/png;base64,AAAA', data_url(Image.new('L', (99,99), 255)), Image.new('L', (99,99), 255), Image.new('RGBA', (50,50), clear), np.zeros((99,99)), np.zeros((99,99,3), np.uint8), np.zeros(3), np.zeros((2,2,5)),
              np.zeros((0,4)), Image.new('L', (1,1))):
        view = look(reader, o)
        assert view['answer'] is None and view['steps']=={} and view['says'].strip().endswith('.') and 'Traceback' not in view['says']

def test_sentences_are_whole():
    class Rude:
        def __init__(self, said): self.said = said
        def __call__(self, o): raise ImageError(self.said)
    assert look(Rude('Nothing is here.'), drawn())['says']=='Nothing is here.'

class Tags(HTMLParser):
    "Every tag with its attributes; fails for one that is not closed"
    def __init__(self, s): super().__init__(); self.open,self.tags,self.text = [],[],''; self.feed(s); assert self.open==[]
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag,dict(attrs)))
        if tag not in ('img','input'): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop()==tag
    def handle_data(self, s): self.text += s

def test_html_of_an_answer(reader):
    said,shown = respond(reader, drawn())
    t = Tags(said)
    assert [float(re.search(r'[\d.]+', a['style'])[0]) for k,a in t.tags if k=='i']==pytest.approx((100*reader(drawn()).probs).tolist(), abs=.051)
    assert [a.get('class') for k,a in t.tags if k=='dt']==['']*7+['top']+['']*2 and t.tags[0][1]=={'class': 'says sure', 'role': 'status'}
    imgs = [a for k,a in Tags(shown).tags if k=='img']
    assert len(imgs)==1+len(stages) and all(o['alt'] and o['src'].startswith('data:image/png;base64,') for o in imgs)
    said,shown = respond(reader, None)
    assert shown=='' and [a['style'] for k,a in Tags(said).tags if k=='i']==['width:0.0%']*10 and 'says none' in said

def test_not_sure(reader):
    a = reader(drawn())
    a.threshold = 1.1
    said,_ = respond(lambda o: a, drawn())
    assert not a.confident and 'says unsure' in said and '>Not sure' in said
    assert {i for i,o in enumerate(o for k,o in Tags(said).tags if k=='dt') if o['class']=='top'}=={a.label,a.second}

def test_what_is_said_cannot_be_html(reader):
    class Rude:
        def __call__(self, o): raise ImageError('<script>alert(1)</script> & more.')
    assert '<script>' not in respond(Rude(), drawn())[0] and '&lt;script&gt;' in respond(Rude(), drawn())[0]

def test_stages_are_enlarged_pixel_by_pixel_and_large_ones_made_small():
    a = np.zeros((4,2))
    a[1,1] = 1
    small,large = re.findall(r'base64,([^"]+)', stages_html(dict(crop=a, picture=np.ones((900,600)))))
    small,large = (np.asarray(Image.open(io.BytesIO(base64.b64decode(o)))) for o in (small, large))
    assert (small==255*np.kron(a, np.ones((70,70)))).all() and large.shape[0]<=280 and large.shape[1]<=280

def test_the_browsers_part_is_whole():
    assert Tags(_part('template')).tags[0][0]=='canvas' and 'LIMIT' not in _part('script') and str(upload_limit) in _part('script')
    assert not re.search(r'https?://|@import|url\(', _part('script') + _part('style') + _part('template'))
    assert _part('style').count('{')==_part('style').count('}')
    assert '${' not in _part('template') # Gradio fills in such places

# --- Gradio

@pytest.mark.slow
def test_the_module_is_imported_without_gradio():
    p = run_python("""import sys, mnist_fastai.app as app
print([o for o in sys.modules if o.split('.')[0] in ('gradio','gradio_client')])
sys.modules['gradio'] = None
sys.exit(app.main([]))""")
    assert p.returncode==1 and p.stdout.strip()=='[]', p.stderr
    assert p.stderr.startswith('mnist_app: ') and p.stderr.count('\n')==1 and 'pip install -e ".[app]"' in p.stderr

@needs_gradio
def test_gradio_keeps_to_itself(monkeypatch):
    for before,after in (('',{'127.0.0.1','localhost'}), ('example.org',{'example.org','127.0.0.1','localhost'}), ('127.0.0.1',{'127.0.0.1'})):
        monkeypatch.setenv('no_proxy', before)
        gr = _gradio()
        assert set(os.environ['no_proxy'].split(','))==after
    from gradio import analytics
    assert not analytics.analytics_enabled() and os.environ['HF_HUB_DISABLE_TELEMETRY']=='1' and os.environ['GRADIO_RUN_HISTORY']=='False'

@pytest.fixture
def served(request, tmp_path, monkeypatch):
    "A page that is served on a free port, and a client of HTTP that knows no proxy"
    pytest.importorskip('gradio')
    httpx = pytest.importorskip('httpx')
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path/'cache'))
    demo = page(keep=1)
    url = launch(demo, port=0)
    with httpx.Client(trust_env=False, base_url=url, timeout=30) as web: yield demo,url,web
    demo.close(verbose=False)

def test_a_program_asks(served, reader):
    demo,url,web = served
    from gradio_client import Client
    client = Client(url, verbose=False, analytics_enabled=False, httpx_kwargs=dict(trust_env=False))
    assert list(client.view_api(return_format='dict', print_info=False)['named_endpoints'])==['/read']
    got = client.predict(data_url(drawn()), api_name='/read')
    assert got['label']==7 and got['says']==look(reader, drawn())['says'] and got['probabilities']==pytest.approx(reader(drawn()).probs.tolist(), abs=1e-5)
    assert client.predict('models/losses.png', api_name='/read')['label'] is None # a path is no picture
    took = []
    for _ in range(20):
        t = time.perf_counter()
        client.predict(data_url(drawn(size=560)), api_name='/read')
        took.append(time.perf_counter()-t)
    print(f'an answer over HTTP: {1000*sorted(took)[10]:.0f} ms')
    assert sorted(took)[10]<2
    client.close()

def test_nothing_of_the_page_is_elsewhere(served):
    demo,url,web = served
    text = web.get('/').text
    assert [o for o in re.findall(r'(?:src|href)="((?:https?:)?//[^"]+)"', text) if not o.startswith(url)]==[] and re.findall(r'@import|url\(["\']?https?:', text)==[]
    config = web.get('/config').json()
    assert config['analytics_enabled'] is False and not config.get('is_space') and config['title']=='Handwritten digits'
    assert 'fonts.googleapis' not in web.get('/theme.css').text and web.get('/monitoring').status_code in (401,403,404)

def test_what_is_too_large_is_refused(served):
    demo,url,web = served
    def send(n): return web.post('/gradio_api/upload', files=dict(files=('a.png', b'0'*n, 'image/png'))).status_code
    assert (send(1000), send(upload_limit+1000), send(2*upload_limit+1))==(200,413,413)
    body = json.dumps(dict(data=['x'*(2*upload_limit)], fn_index=0, session_hash='a')).encode()
    assert web.post('/gradio_api/run/predict', content=body, headers={'content-type': 'application/json'}).status_code==413
    try: refused = web.post('/gradio_api/run/predict', content=iter([body[:1_000_000]]*11), headers={'content-type': 'application/json'}).status_code>=400 # announces no length
    except Exception: refused = True # it hung up
    assert refused and web.get('/config').status_code==200

@needs_gradio
def test_the_bound_of_gradio_is_for_files_alone(tmp_path, monkeypatch):
    "Why the page has one of its own"
    import httpx
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path))
    demo = page()
    demo.launch(server_port=_free_port('127.0.0.1', 0), prevent_thread_lock=True, quiet=True, inline=False, max_file_size=1000)
    with httpx.Client(trust_env=False, base_url=demo.local_url) as web:
        assert web.post('/gradio_api/upload', files=dict(files=('a.png', b'0'*2000, 'image/png'))).status_code==413
        assert web.post('/gradio_api/run/predict', json=dict(data=['x'*100_000], fn_index=0, session_hash='a')).status_code==200
    demo.close(verbose=False)

def test_files_that_are_uploaded_past_the_page_are_removed(served, tmp_path):
    demo,url,web = served
    def kept(): return [o for o in (tmp_path/'cache').rglob('*') if o.is_file()]
    web.post('/gradio_api/upload', files=dict(files=('a.png', b'0'*1000, 'image/png')))
    assert len(kept())==1
    end = time.monotonic()+15
    while kept() and time.monotonic()<end: time.sleep(.2)
    assert kept()==[]

def test_files_of_the_server_are_not_handed_out(served):
    demo,url,web = served
    for o in ('/etc/hostname', str(repo/'settings.ini'), str(repo/'mnist_fastai'/'app.py')): assert web.get(f'/gradio_api/file={o}').status_code in (403,404)

def test_many_ask_at_once(served, reader):
    "Answers are not mixed up"
    demo,url,web = served
    from gradio_client import Client
    asked = {7: drawn(), 1: drawn(points=[(.5,.2),(.5,.8)])}
    got = []
    def ask(k):
        c = Client(url, verbose=False, analytics_enabled=False, httpx_kwargs=dict(trust_env=False))
        for _ in range(5): got.append((k, c.predict(data_url(asked[k]), api_name='/read')['label']))
        c.close()
    threads = [threading.Thread(target=ask, args=(k,)) for k in (7,1,7,1)]
    for o in threads: o.start()
    for o in threads: o.join()
    assert len(got)==20 and all(a==b for a,b in got)

@needs_gradio
def test_it_listens_to_this_machine_alone(served):
    demo,url,web = served
    assert re.fullmatch(r'http://127\.0\.0\.1:\d+/', url) and demo.share_url is None
    port = int(re.search(r':(\d+)/', url)[1])
    own = next((o[4][0] for o in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET) if not o[4][0].startswith('127.')), None)
    if own:
        with socket.socket() as s: assert s.connect_ex((own,port))!=0

# --- ports, and the command

def test_ports():
    with socket.socket() as s:
        s.bind(('127.0.0.1',0))
        s.listen()
        port = s.getsockname()[1]
        with pytest.raises(OSError, match=f'Port {port} is taken'): _free_port('127.0.0.1', port)
    assert _free_port('127.0.0.1', port)==port and 0<_free_port('127.0.0.1', 0)<65536 and 7860<=_free_port('127.0.0.1', None)<7960
    for host in ('192.0.2.1','300.1.1.1'):
        with pytest.raises(OSError, match='no address of this machine'): _free_port(host, 0)
    for o in (-1,65536):
        with pytest.raises(OSError, match='0 to 65535'): _free_port('127.0.0.1', o)

def command(*args, **env):
    return subprocess.Popen([sys.executable, '-c', 'import sys; from mnist_fastai.app import main; sys.exit(main(sys.argv[1:]))', *map(str, args)],
                            cwd=repo, env=os.environ | env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **ctrl_c)

@pytest.mark.slow
@needs_gradio
@pytest.mark.parametrize('stop', ['SIGINT','SIGTERM'])
@pytest.mark.skipif(os.name!='posix', reason='signals of POSIX')
def test_the_command_starts_and_ends(stop, tmp_path):
    # what the environment wants does not open it, and a proxy is not asked for the way to itself
    p = command('--port', 0, GRADIO_TEMP_DIR=str(tmp_path), GRADIO_SHARE='True', GRADIO_SERVER_NAME='0.0.0.0', http_proxy='http://127.0.0.1:9', all_proxy='http://127.0.0.1:9', no_proxy='', NO_PROXY='')
    line = p.stdout.readline()
    assert re.fullmatch(r'Open http://127\.0\.0\.1:\d+/ in a browser; Ctrl-C ends it\.\n', line), p.communicate()[1]
    p.send_signal(getattr(signal, stop))
    start = time.monotonic()
    out,err = p.communicate(timeout=30)
    assert (p.returncode, out, err.strip())==(130, '', 'Stopped.') and time.monotonic()-start<15

@needs_gradio
def test_the_command_refuses_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(signal, 'signal', lambda *args: None)
    (tmp_path/'text.pth').write_text('no network')
    with socket.socket() as s:
        s.bind(('127.0.0.1',0))
        s.listen()
        port = s.getsockname()[1]
        for args,word in ((['--port',port],'is taken'), (['--port',99999],'65535'), (['--host','192.0.2.1'],'no address'), (['--model',tmp_path/'none.pth'],'none.pth'), (['--model',tmp_path/'text.pth'],'not a checkpoint')):
            assert main(list(map(str, args)))==1
            got = capsys.readouterr()
            assert got.out=='' and got.err.startswith('mnist_app: ') and got.err.count('\n')==1 and word in got.err, got.err
    with pytest.raises(SystemExit) as e: main(['--port', 'x'])
    assert e.value.code==2 and 'invalid int' in capsys.readouterr().err

@needs_gradio
def test_a_link_that_cannot_be_had_is_told(monkeypatch, capsys):
    from gradio import networking
    def fail(**kwargs): raise RuntimeError('no network')
    monkeypatch.setattr(networking, 'setup_tunnel', fail)
    demo = page()
    with pytest.raises(OSError, match='No public link'): launch(demo, port=0, share=True)
    assert not demo.is_running and capsys.readouterr().out==''

# --- a Space

def test_space_files(tmp_path):
    written = space_files(tmp_path/'space', title='Digits: a "test"')
    names = {o.relative_to(tmp_path/'space').as_posix() for o in written}
    assert {'README.md','app.py','requirements.txt','.gitattributes','reader.pth','mnist_fastai/app.py','mnist_fastai/app.html','mnist_fastai/inference.py','mnist_fastai/__init__.py'}<=names
    assert {o.relative_to(tmp_path/'space').as_posix() for o in (tmp_path/'space').rglob('*') if o.is_file()}==names # and nothing is left of the writing
    head = (tmp_path/'space'/'README.md').read_text(encoding='utf-8').split('---\n')[1]
    head = {k: json.loads(v) for k,_,v in (o.partition(': ') for o in head.strip().split('\n'))}
    assert head['sdk']=='gradio' and head['app_file']=='app.py' and head['title']=='Digits: a "test"' and re.fullmatch(r'\d+\.\d+\.\d+.*', head['sdk_version']) and re.fullmatch(r'3\.\d+', head['python_version'])
    needs = (tmp_path/'space'/'requirements.txt').read_text().split('\n')
    assert any(o.startswith('torch>=') for o in needs) and any(o.startswith('fastai>=') for o in needs) and not any(re.match('nbdev|pytest|gradio', o) for o in needs)
    assert (tmp_path/'space'/'reader.pth').read_bytes()==(repo/'mnist_fastai'/'reader.pth').read_bytes()
    for o in written:
        if o.suffix=='.py': ast.parse(o.read_text(encoding='utf-8'))

def test_space_files_of_another_model(tmp_path):
    written = space_files(tmp_path, repo/'models'/'Network.pth')
    assert (tmp_path/'reader.pth').read_bytes()==(repo/'models'/'Network.pth').read_bytes() and tmp_path/'reader.pth' in written
    with pytest.raises(CheckpointError): space_files(tmp_path/'other', repo/'settings.ini')
    assert not (tmp_path/'other').exists()

def test_space_files_leaves_what_is_not_its_own(tmp_path):
    space_files(tmp_path)
    assert len(space_files(tmp_path)) # the same again
    before = {o: o.read_bytes() for o in tmp_path.rglob('*') if o.is_file()}
    (tmp_path/'README.md').write_text('mine')
    (tmp_path/'app.py').unlink()
    (tmp_path/'notes.txt').write_text('also mine')
    with pytest.raises(ValueError, match='README.md holds something else'): space_files(tmp_path)
    assert (tmp_path/'README.md').read_text()=='mine' and not (tmp_path/'app.py').exists()
    space_files(tmp_path, overwrite=True)
    assert {o: o.read_bytes() for o in tmp_path.rglob('*') if o.is_file()}==before | {tmp_path/'notes.txt': b'also mine'}

def test_space_files_are_whole_or_not_there(tmp_path, monkeypatch):
    import mnist_fastai.app as app
    (tmp_path/'b').write_bytes(b'old')
    real = app.atomic_write
    def full(path, content):
        if content==b'c': raise OSError(28, 'No space left on device')
        return real(path, content)
    monkeypatch.setattr(app, 'atomic_write', full)
    with pytest.raises(OSError): _write_all({tmp_path/o: o.encode() for o in 'abc'}, True)
    assert {o.name: o.read_bytes() for o in tmp_path.iterdir()}=={'b': b'old'}

@pytest.mark.slow
@needs_gradio
def test_a_space_runs_on_its_own(tmp_path, reader):
    "Started as a Space starts it, in a folder of its own, with nothing of this checkout"
    space_files(tmp_path/'space')
    env = {k: v for k,v in os.environ.items() if k!='PYTHONPATH'} | dict(SYSTEM='spaces', SPACE_ID='someone/digits', GRADIO_TEMP_DIR=str(tmp_path/'cache'))
    p = subprocess.Popen([sys.executable, 'app.py', '--host', '127.0.0.1', '--port', '0'], cwd=tmp_path/'space', env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        line = p.stdout.readline()
        assert (url := re.search(r'http://\S+/', line)), p.communicate()[1]
        from gradio_client import Client
        client = Client(url[0], verbose=False, analytics_enabled=False, httpx_kwargs=dict(trust_env=False))
        assert client.predict(data_url(drawn()), api_name='/read')['says']==look(reader, drawn())['says']
        client.close()
    finally:
        p.terminate()
        p.communicate(timeout=30)
    assert p.returncode==130
