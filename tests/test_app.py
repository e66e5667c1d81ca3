"The page without a browser: what comes in, what is said, what a program may ask, and what is refused"
import ast, base64, io, json, os, re, shutil, signal, socket, subprocess, sys, threading, time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFile

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
needs_gradio = pytest.mark.skipif(not __import__('importlib.util').util.find_spec('gradio'),
                                  reason='Gradio is not installed: pip install -e ".[app]"')

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

# --- a drawing as text

def test_a_data_url_holds_the_picture():
    im = drawn(mode='RGB')
    file = from_data_url(to_data_url(im))
    assert (np.asarray(Image.open(io.BytesIO(file)))==np.asarray(im)).all()

@pytest.mark.parametrize('kind', ['png','jpeg','gif','bmp','webp'])
def test_kinds_of_files(reader, kind):
    assert read_drawing(reader, data_url(drawn(mode='RGB'), kind))['prediction'].label==7

@pytest.mark.parametrize('ink', [black, white, (200,0,0,255), (255,255,0,255)])
def test_ink_that_is_only_in_the_opacity(reader, ink):
    assert read_drawing(reader, to_data_url(drawn(ink, clear)))['prediction'].label==7

@pytest.mark.parametrize('o', [None, ''])
def test_nothing(o):
    with pytest.raises(BlankError, match='draw a digit'): from_data_url(o)

deep = '{"layers":'*3 + '["x"]' + '}'*3
@pytest.mark.parametrize('o', [
    'text', '/etc/hostname', 'models/losses.png', 'file:///etc/hostname', 'http://127.0.0.1/x.png',
    'data:text/html;base64,aGk=', 'data:image/png,abc', 'data:image/png;base64,?!',
    'data:image/png;base64,\ud800', '\ud800',
    'data:image/png;base64,' + 'A'*(4*upload_limit//3+8),
    deep, 7, [1,2], Path('models/losses.png'), b'PNG', 3.5, True, {'layers': ['x']}, {'background': 'x'}])
def test_what_is_not_a_picture(o):
    with pytest.raises(ImageError) as e: from_data_url(o)
    assert not isinstance(e.value, BlankError) and len(str(e.value))<200 and str(e.value).endswith('.')

def test_too_many_pixels_are_not_decoded(monkeypatch):
    "The photograph of a phone is read, and a file that is small but has very many pixels is not"
    def decoded(*args): raise AssertionError('the pixels were decoded')
    monkeypatch.setattr(ImageFile.ImageFile, 'load', decoded)
    for size in ((4032,3024), (3024,4032)): assert from_data_url(data_url(Image.new('L', size), 'png'))
    for size in ((8000,8000), (pixel_limit+1,1), (20000,20000)):
        url = data_url(Image.new('1', size))
        assert len(url)<upload_limit
        with pytest.raises(ImageError, match='12.5 million pixels'): from_data_url(url)

# --- the answer

def test_what_the_reader_says(reader):
    view,prediction = read_drawing(reader, to_data_url(drawn())),reader(drawn())
    assert (view['text'].lower()==prediction.text.lower() and view['prediction'].label==7
            and view['prediction'].probs.tolist()==prediction.probs.tolist())
    assert list(view['steps'])==['picture', *stages]

def test_every_stage_has_a_caption(): assert set(captions)=={'picture', *stages}

def test_what_cannot_be_read_is_told(reader):
    pictures = [Image.new('L', (99,99), 255), Image.new('RGBA', (50,50), clear),
                Image.new('L', (99,99), 0), Image.new('L', (1,1))]
    for o in (None, '', 'nonsense', {'layers': ['x']}, 'data:image/png;base64,AAAA', 'data:image/png;base64,',
              *map(to_data_url, pictures)):
        view = read_drawing(reader, o)
        assert (view['prediction'] is None and view['steps']=={}
                and view['text'].strip().endswith('.') and 'Traceback' not in view['text'])

class Tags(HTMLParser):
    "Every tag with its attributes; fails for one that is not closed"
    def __init__(self, s):
        super().__init__()
        self.open,self.tags,self.text = [],[],''
        self.feed(s)
        assert self.open==[]
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag,dict(attrs)))
        if tag not in ('img','input'): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop()==tag
    def handle_data(self, s): self.text += s

def test_html_of_an_answer(reader):
    view = read_drawing(reader, to_data_url(drawn()))
    t = Tags(answer_html(view))
    assert ([float(re.search(r'[\d.]+', a['style'])[0]) for k,a in t.tags if k=='i']
            ==pytest.approx((100*view['prediction'].probs).tolist(), abs=.051))
    assert ([a.get('class') for k,a in t.tags if k=='dt']==['']*7+['top']+['']*2
            and t.tags[0][1]=={'class': 'text confident', 'role': 'status'})
    imgs = [a for k,a in Tags(stages_html(view['steps'])).tags if k=='img']
    assert len(imgs)==1+len(stages) and all(o['alt'] and o['src'].startswith('data:image/png;base64,') for o in imgs)
    view = read_drawing(reader, None)
    t = Tags(answer_html(view))
    assert (stages_html(view['steps'])=='' and [a['style'] for k,a in t.tags if k=='i']==['width:0%']*10
            and t.tags[0][1]['class']=='text none')

def test_not_sure(reader):
    view = read_drawing(reader, to_data_url(drawn()))
    view['prediction'].threshold = 1.1
    t = Tags(answer_html(view))
    assert t.tags[0][1]['class']=='text unsure'
    assert ({i for i,o in enumerate(o for k,o in t.tags if k=='dt') if o['class']=='top'}
            ==set(view['prediction'].probs.topk(2).indices.tolist()))

def test_more_than_one_digit(reader):
    two = Image.fromarray(np.hstack([np.asarray(drawn())]*2))
    view = read_drawing(reader, to_data_url(two))
    assert view['prediction'].multiple_digits and answer_html(view).count('<dt class="top">')==1

def test_a_text_cannot_be_html():
    view = dict(text='<script>alert(1)</script> & more.', prediction=None, steps={})
    assert '<script>' not in answer_html(view) and '&lt;script&gt;' in answer_html(view)

def test_a_stage_without_a_caption_is_shown():
    t = Tags(stages_html(dict(novel=np.zeros((9,9)))))
    assert 'novel' in t.text and [k for k,_ in t.tags].count('img')==1

def test_stages_are_enlarged_pixel_by_pixel_and_large_ones_made_small():
    a = np.zeros((4,2))
    a[1,1] = 1
    small,large = re.findall(r'base64,([^"]+)', stages_html(dict(crop=a, picture=np.ones((900,600)))))
    small,large = (np.asarray(Image.open(io.BytesIO(base64.b64decode(o)))) for o in (small, large))
    assert (small==255*np.kron(a, np.ones((70,70)))).all() and large.shape[0]<=280 and large.shape[1]<=280

def test_the_browsers_part_is_whole():
    assert (Tags(_part('template')).tags[0][0]=='canvas'
            and 'LIMIT' not in _part('script') and str(upload_limit) in _part('script'))
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
    for before,after in (('', {'127.0.0.1','localhost'}),
                         ('example.org', {'example.org','127.0.0.1','localhost'}),
                         ('127.0.0.1', {'127.0.0.1'})):
        monkeypatch.setenv('no_proxy', before)
        gr = _gradio()
        assert set(os.environ['no_proxy'].split(','))==after
    from gradio import analytics
    assert (not analytics.analytics_enabled() and os.environ['HF_HUB_DISABLE_TELEMETRY']=='1'
            and os.environ['GRADIO_RUN_HISTORY']=='False')

@pytest.fixture(scope='module')
def served(tmp_path_factory):
    "A page that is served on a free port, its URL, and a client of HTTP that knows no proxy"
    pytest.importorskip('gradio')
    httpx,cache = pytest.importorskip('httpx'),tmp_path_factory.mktemp('cache')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('GRADIO_TEMP_DIR', str(cache))
        demo = page()
    url = launch(demo, port=0, names=['digits.example.org'])
    with httpx.Client(trust_env=False, base_url=url, timeout=30) as web: yield demo,url,web
    demo.close(verbose=False)
    assert [o for o in cache.rglob('*') if o.is_file()]==[] # nothing was kept

def ask(web, text, **kwargs): return web.post('/gradio_api/run/read', json=dict(data=[text]), **kwargs)
def answer(web, text): return ask(web, text).json()['data'][0]

def test_a_program_asks(served, reader):
    demo,url,web = served
    got,p = answer(web, data_url(drawn())),reader(drawn())
    assert list(got)==['text','label','confidence','confident','multiple_digits','probabilities']
    assert (got['probabilities']==pytest.approx(p.probs.tolist(), abs=1e-5)
            and got['confidence']==pytest.approx(p.confidence, abs=1e-5))
    assert ((got['text'], got['label'], got['confident'], got['multiple_digits'])
            ==(read_drawing(reader, data_url(drawn()))['text'], 7, True, False))
    nothing = dict(label=None, confidence=None, confident=False, multiple_digits=False, probabilities=None)
    for o in ('models/losses.png', '', 'data:image/png;base64,AAAA', '\x00', data_url(Image.new('1', (8000,8000)))):
        got = answer(web, o)
        assert got.pop('text').endswith('.') and got==nothing
    took = []
    for _ in range(20):
        t = time.perf_counter()
        answer(web, data_url(drawn(size=560)))
        took.append(time.perf_counter()-t)
    print(f'an answer over HTTP: {1000*sorted(took)[10]:.0f} ms')
    assert sorted(took)[10]<2

def test_many_ask_at_once(served):
    "Answers are not mixed up"
    demo,url,web = served
    asked,got = {7: data_url(drawn()), 1: data_url(drawn(points=[(.5,.2),(.5,.8)]))},[]
    def five(k): got.extend((k, answer(web, asked[k])['label']) for _ in range(5))
    threads = [threading.Thread(target=five, args=(k,)) for k in (7,1,7,1)]
    for o in threads: o.start()
    for o in threads: o.join()
    assert len(got)==20 and all(a==b for a,b in got)

@needs_gradio
def test_two_are_read_at_a_time(monkeypatch):
    import httpx, mnist_fastai.app as app
    now,most,real = [],[],app.read_drawing
    def slow(*args):
        now.append(0)
        most.append(len(now))
        time.sleep(.2)
        now.pop()
        return real(*args)
    monkeypatch.setattr(app, 'read_drawing', slow)
    demo = page()
    with httpx.Client(trust_env=False, base_url=launch(demo, port=0), timeout=30) as web:
        threads = [threading.Thread(target=answer, args=(web,'')) for _ in range(8)]
        for o in threads: o.start()
        for o in threads: o.join()
    demo.close(verbose=False)
    assert max(most)==2 and len(most)==9

def test_nothing_of_the_page_is_elsewhere(served):
    demo,url,web = served
    text = web.get('/').text
    assert ([o for o in re.findall(r'(?:src|href)="((?:https?:)?//[^"]+)"', text) if not o.startswith(url)]==[]
            and re.findall(r'@import|url\(["\']?https?:', text)==[])
    config = web.get('/config').json()
    assert config['analytics_enabled'] is False and not config.get('is_space') and config['title']=='Handwritten digits'
    assert 'fonts.googleapis' not in web.get('/theme.css').text

# --- requests that the page does not make

def test_what_is_too_large_is_rejected(served):
    demo,url,web = served
    body = json.dumps(dict(data=['x'*(2*upload_limit)])).encode()
    for content in (body, iter([body[:1_000_000]]*11)): # with its length announced, and without
        try: assert web.post('/gradio_api/run/read', content=content).status_code==413
        except Exception as e: assert 'httpx' in type(e).__module__ # the server hung up
    got = ask(web, 'data:image/png;base64,' + 'A'*(4*upload_limit//3+8)) # a little too large is told
    assert got.status_code==200 and '5 MB' in got.json()['data'][0]['text'] and web.get('/').status_code==200

@pytest.mark.parametrize('method,path', [
    ('POST','/gradio_api/upload'),
    ('POST','/gradio_api/call/read'), ('POST','/gradio_api/call/v2/read'), ('GET','/gradio_api/call/read/abc'),
    ('POST','/gradio_api/queue/join'), ('GET','/gradio_api/queue/data'), ('GET','/gradio_api/queue/status'),
    ('POST','/gradio_api/process_recording'), ('POST','/gradio_api/component_server'),
    ('GET','/gradio_api/file=/etc/hostname'), ('GET',f'/gradio_api/file={repo}/settings.ini'),
    ('GET','/gradio_api/proxy=http://127.0.0.1:9/'), ('GET','/gradio_api/stream/a/1/1/playlist.m3u8'),
    ('GET','/gradio_api/heartbeat/a'), ('POST','/gradio_api/reset'), ('POST','/gradio_api/cancel'),
    ('POST','/gradio_api/run/predict/'), ('POST','/gradio_api/api/read'), ('POST','/gradio_api/run/show'),
    ('GET','/gradio_api/info'), ('GET','/openapi.json'), ('GET','/docs'), ('GET','/monitoring'),
    ('POST','/login'), ('GET','/gradio_api/deep_link'),
    ('POST','/'), ('PUT','/gradio_api/run/read'), ('DELETE','/')])
def test_other_routes_are_closed(served, method, path):
    demo,url,web = served
    got = web.request(method, path, **(dict(json=dict(data=['x'])) if method=='POST' else {}))
    assert got.status_code in (404,405) and got.json()['error'].endswith('.')

def test_a_program_that_connects_for_good_is_sent_away(served):
    "A websocket"
    demo,url,web = served
    got = web.get('/', headers={'connection': 'upgrade', 'upgrade': 'websocket',
                                'sec-websocket-version': '13', 'sec-websocket-key': 'AAAAAAAAAAAAAAAAAAAAAA=='})
    assert got.status_code in (200,403) # as a page, if no library for websockets is installed

def test_nobody_can_add_files_or_results(served):
    "What Gradio keeps until it is collected: events, sessions"
    demo,url,web = served
    for i in range(5):
        web.post('/gradio_api/call/read', json=dict(data=['x']))
        web.post('/gradio_api/queue/join', json=dict(data=['x'], fn_index=1, session_hash=f's{i}'))
        web.post('/gradio_api/run/predict', json=dict(data=['x'], fn_index=0, session_hash=f's{i}'))
    assert (not demo.app.state_holder.session_data and not demo._queue.pending_messages_per_session
            and not demo._queue.event_ids_to_events)

data_of_no_drawing = [{'layers': ['x']}, {'background': 'x'}, None, 7, ['x'],
                      {'path': 'a.png', 'url': 'http://a.invalid/a.png', 'meta': {'_type': 'gradio.FileData'}}]

@pytest.mark.parametrize('body', [
    *[json.dumps(dict(data=[o])) for o in data_of_no_drawing],
    '{}', '[]', '', 'x',
    '{"data": []}', '{"data": "xy"}', '{"data": ["a","b"]}', '{"data": {"a":1,"b":2}}',
    '\xff', '{"data": [' + '['*200_000, '{"data": [' + '{"a":'*100_000, '1'*10_000])
@pytest.mark.parametrize('path', ['predict','read'])
def test_what_is_not_a_text_is_rejected(served, capfd, path, body, monkeypatch):
    looked_up,real = [],socket.getaddrinfo
    monkeypatch.setattr(socket, 'getaddrinfo',
                        lambda host, *args, **kwargs: looked_up.append(host) or real(host, *args, **kwargs))
    demo,url,web = served
    got = web.post(f'/gradio_api/run/{path}', content=body.encode('latin-1'),
                   headers={'content-type': 'application/json'})
    assert got.status_code==400 and got.json()['error'].startswith('Send a picture as one text')
    assert 'Traceback' not in ''.join(capfd.readouterr()) and set(looked_up)<={'127.0.0.1'}

def test_only_the_text_reaches_gradio(served):
    demo,url,web = served
    got = web.post('/gradio_api/run/predict', json=dict(
        data=[data_url(drawn())], fn_index=99, event_data={'x': 1}, trigger_id='x', session_hash=[1], batched=True))
    assert got.status_code==200 and '7 (' in got.json()['data'][0]

names = 'localhost','127.0.0.1','[::1]','192.168.1.5','digits.example.org'
@pytest.mark.parametrize('host,status', [
    *((o,200) for o in names), *((f'{o}:7860',200) for o in names), ('DIGITS.example.org',200),
    ('evil.example',403), ('evil.example:7860',403), ('localhost.evil.example',403),
    ('127.0.0.1.evil.example',403), ('digits.example.org.evil.example',403), ('[',403), ('@localhost.',403)])
def test_only_its_own_names_are_answered(served, host, status):
    "Else a site could point its own name at this machine and use the page through a visitor's browser"
    demo,url,web = served
    assert web.get('/', headers={'host': host}).status_code==status
    assert ask(web, '', headers={'host': host}).status_code==status

@pytest.mark.parametrize('origin,status', [
    (None,200), ('SAME',200), ('https://digits.example.org',200),
    ('https://evil.example',403), ('null',403), ('http://127.0.0.1:1',403), ('http://[',403),
    ('https://evil.example//digits.example.org',403), ('https://digits.example.org.evil.example',403), ('',403)])
def test_pages_of_other_sites_cannot_ask(served, origin, status):
    demo,url,web = served
    origin = url.rstrip('/') if origin=='SAME' else origin
    assert ask(web, '', headers={} if origin is None else {'origin': origin}).status_code==status

def test_a_header_cannot_move_the_page(served):
    demo,url,web = served
    for header in ('x-forwarded-host','x-gradio-server'):
        got = web.get('/', headers={header: 'http://evil.example' if 'server' in header else 'evil.example'})
        assert got.status_code==200 and 'evil.example' not in got.text
    # a proxy in front of the published page
    got = web.get('/', headers={'host': 'inner', 'x-forwarded-host': 'digits.example.org',
                                'x-forwarded-proto': 'https'})
    assert got.status_code==200 and 'https://digits.example.org' in got.text

def test_too_many_at_once_and_too_slow(served, monkeypatch):
    import mnist_fastai.app as app
    demo,url,web = served
    monkeypatch.setattr(app._Gate, 'most', 0)
    got = ask(web, '')
    assert got.status_code==503 and got.json()['error'].endswith('.')
    monkeypatch.setattr(app._Gate, 'most', 16)
    monkeypatch.setattr(app._Gate, 'seconds', .3)
    with socket.create_connection(('127.0.0.1', int(re.search(r':(\d+)/', url)[1]))) as s:
        s.sendall(b'POST /gradio_api/run/read HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{')
        s.settimeout(10)
        assert b' 408 ' in s.recv(1000)
    assert ask(web, '').status_code==200

@pytest.mark.slow
@needs_gradio
@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads the memory from /proc')
def test_memory_of_the_server(tmp_path):
    "Six pictures at once: the largest that are read, and larger ones, whose files are small"
    import httpx
    p = command('--port', 0, GRADIO_TEMP_DIR=str(tmp_path))
    try:
        url = re.search(r'http://\S+/', p.stdout.readline())[0]
        def peak(): return int(re.search(r'VmHWM:\s+(\d+)', Path(f'/proc/{p.pid}/status').read_text())[1])/1e6 # GB
        with httpx.Client(trust_env=False, base_url=url, timeout=100) as web:
            answer(web, data_url(drawn()))
            before,got = peak(),[]
            for size,said in (((8000,8000),'pixels'), ((3500,3500),'blank')):
                text = data_url(Image.fromarray(np.zeros(size[::-1], np.uint16)))
                threads = [threading.Thread(target=lambda: got.append(answer(web, text)['text'])) for _ in range(6)]
                for o in threads: o.start()
                for o in threads: o.join()
                assert len(got)==6 and all(said in o for o in got)
                print(f'6 of {size}, {len(text)/1e3:.0f} kB: peak {peak():.2f} GB, '
                      f'{peak()-before:.2f} more than before')
                got.clear()
            assert peak()-before<.8
    finally:
        p.terminate()
        p.communicate(timeout=30)

@needs_gradio
def test_it_listens_to_this_machine_alone(served):
    demo,url,web = served
    assert re.fullmatch(r'http://127\.0\.0\.1:\d+/', url) and demo.share_url is None
    port = int(re.search(r':(\d+)/', url)[1])
    own = next((o[4][0] for o in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
                if not o[4][0].startswith('127.')), None)
    if own:
        with socket.socket() as s: assert s.connect_ex((own,port))!=0

# --- ports, and the command

def test_ports():
    with socket.socket() as s:
        s.bind(('127.0.0.1',0))
        s.listen()
        port = s.getsockname()[1]
        with pytest.raises(OSError, match=f'Port {port} is taken'): _free_port('127.0.0.1', port)
    assert (_free_port('127.0.0.1', port)==port and 0<_free_port('127.0.0.1', 0)<65536
            and 7860<=_free_port('127.0.0.1', None)<7960)
    for host in ('192.0.2.1','300.1.1.1'):
        with pytest.raises(OSError, match='not an address of this machine'): _free_port(host, 0)
    for o in (-1,65536):
        with pytest.raises(OSError, match='0 to 65535'): _free_port('127.0.0.1', o)

def command(*args, **env):
    return subprocess.Popen(
        [sys.executable, '-c', 'import sys; from mnist_fastai.app import main; sys.exit(main(sys.argv[1:]))',
         *map(str, args)],
        cwd=repo, env=os.environ | env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **ctrl_c)

@pytest.mark.slow
@needs_gradio
@pytest.mark.parametrize('stop', ['SIGINT','SIGTERM'])
@pytest.mark.skipif(os.name!='posix', reason='signals of POSIX')
def test_the_command_starts_and_ends(stop, tmp_path):
    # what the environment wants does not open it, and a proxy is not asked for the way to itself
    p = command('--port', 0, GRADIO_TEMP_DIR=str(tmp_path), GRADIO_SHARE='True', GRADIO_SERVER_NAME='0.0.0.0',
                http_proxy='http://127.0.0.1:9', all_proxy='http://127.0.0.1:9', no_proxy='', NO_PROXY='')
    line = p.stdout.readline()
    assert re.fullmatch(r'Open http://127\.0\.0\.1:\d+/ in a browser; Ctrl-C stops it\.\n', line), p.communicate()[1]
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
        for args,word in ((['--port',port], 'is taken'),
                          (['--port',99999], '65535'),
                          (['--host','192.0.2.1'], 'not an address'),
                          (['--model',tmp_path/'none.pth'], 'none.pth'),
                          (['--model',tmp_path/'text.pth'], 'not a checkpoint')):
            assert main(list(map(str, args)))==1
            got = capsys.readouterr()
            assert (got.out=='' and got.err.startswith('mnist_app: ') and got.err.count('\n')==1
                    and word in got.err), got.err
    with pytest.raises(SystemExit) as e: main(['--port', 'x'])
    assert e.value.code==2 and 'invalid int' in capsys.readouterr().err

@needs_gradio
def test_a_link_that_cannot_be_had_is_told(monkeypatch, capsys):
    from gradio import networking
    def fail(**kwargs): raise RuntimeError('no network')
    monkeypatch.setattr(networking, 'setup_tunnel', fail)
    demo = page()
    with pytest.raises(OSError, match='no public link'): launch(demo, port=0, share=True)
    assert not demo.is_running and capsys.readouterr().out==''

# --- a Space

def test_space_files(tmp_path):
    written = space_files(tmp_path/'space', title='Digits: a "test"')
    names = {o.relative_to(tmp_path/'space').as_posix() for o in written}
    assert {'README.md','app.py','requirements.txt','.gitattributes','reader.pth','mnist_fastai/app.py',
            'mnist_fastai/app.html','mnist_fastai/inference.py','mnist_fastai/__init__.py'}<=names
    # and nothing is left of the writing
    assert {o.relative_to(tmp_path/'space').as_posix() for o in (tmp_path/'space').rglob('*') if o.is_file()}==names
    head = (tmp_path/'space'/'README.md').read_text(encoding='utf-8').split('---\n')[1]
    head = {k: json.loads(v) for k,_,v in (o.partition(': ') for o in head.strip().split('\n'))}
    assert (head['sdk']=='gradio' and head['app_file']=='app.py' and head['title']=='Digits: a "test"'
            and re.fullmatch(r'\d+\.\d+\.\d+.*', head['sdk_version'])
            and re.fullmatch(r'3\.\d+', head['python_version']))
    needs = (tmp_path/'space'/'requirements.txt').read_text().split('\n')
    assert (any(o.startswith('torch>=') for o in needs) and any(o.startswith('fastai>=') for o in needs)
            and not any(re.match('nbdev|pytest|gradio', o) for o in needs))
    assert (tmp_path/'space'/'reader.pth').read_bytes()==(repo/'mnist_fastai'/'reader.pth').read_bytes()
    for o in written:
        if o.suffix=='.py': ast.parse(o.read_text(encoding='utf-8'))

def test_space_files_of_another_model(tmp_path):
    written = space_files(tmp_path, repo/'models'/'Network.pth')
    assert ((tmp_path/'reader.pth').read_bytes()==(repo/'models'/'Network.pth').read_bytes()
            and tmp_path/'reader.pth' in written)
    with pytest.raises(CheckpointError): space_files(tmp_path/'other', repo/'settings.ini')
    assert not (tmp_path/'other').exists()

def test_space_files_leaves_what_is_not_its_own(tmp_path):
    space_files(tmp_path)
    assert len(space_files(tmp_path)) # the same again
    before = {o: o.read_bytes() for o in tmp_path.rglob('*') if o.is_file()}
    (tmp_path/'README.md').write_text('mine')
    (tmp_path/'app.py').unlink()
    (tmp_path/'notes.txt').write_text('also mine')
    with pytest.raises(ValueError, match='README.md has other content'): space_files(tmp_path)
    assert (tmp_path/'README.md').read_text()=='mine' and not (tmp_path/'app.py').exists()
    space_files(tmp_path, overwrite=True)
    assert ({o: o.read_bytes() for o in tmp_path.rglob('*') if o.is_file()}
            ==before | {tmp_path/'notes.txt': b'also mine'})

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
    env = {k: v for k,v in os.environ.items() if k!='PYTHONPATH'} | dict(
        SYSTEM='spaces', SPACE_ID='someone/digits', SPACE_HOST='someone-digits.hf.space,digits.example.org',
        GRADIO_TEMP_DIR=str(tmp_path/'cache'))
    p = subprocess.Popen([sys.executable, 'app.py', '--host', '127.0.0.1', '--port', '0'],
                         cwd=tmp_path/'space', env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        line = p.stdout.readline()
        assert (url := re.search(r'http://\S+/', line)), p.communicate()[1]
        import httpx
        with httpx.Client(trust_env=False, base_url=url[0], timeout=30) as web:
            assert answer(web, data_url(drawn()))['text']==read_drawing(reader, data_url(drawn()))['text']
            for host,status in (('someone-digits.hf.space',200), ('digits.example.org',200), ('other.hf.space',403)):
                assert ask(web, '', headers={'host': host, 'origin': f'https://{host}'}).status_code==status
    finally:
        p.terminate()
        p.communicate(timeout=30)
    assert p.returncode==130
