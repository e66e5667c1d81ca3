"""The page as its user meets it: the server is started by its command, and a browser without a head draws with
the mouse and with a finger.

Every request that would leave this machine is blocked and noted. To take the pictures of lesson 18 anew:
MNIST_FASTAI_SHOTS=nbs/images pytest tests/test_app_browser.py"""
import base64, io, os, re, shutil, statistics, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import repo

# what is ignored is Gradio's, of pandas
pytestmark = [pytest.mark.slow,
              pytest.mark.filterwarnings('ignore:.*silent_downcasting', 'ignore:The copy keyword')]
shots = os.environ.get('MNIST_FASTAI_SHOTS')
flags = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync').split()
pytest.importorskip('gradio', reason='Gradio is not installed: pip install -e ".[app]"')

#: How two hands write the ten digits: lines through points, which go from 0 to 1, downwards
hands = dict(
    round={0: [[(.5,.2),(.36,.26),(.29,.42),(.29,.6),(.37,.76),(.5,.81),(.63,.75),(.7,.6),(.7,.42),(.63,.26),(.5,.2)]],
           1: [[(.52,.18),(.5,.5),(.48,.82)]],
           2: [[(.3,.34),(.36,.23),(.5,.18),(.64,.24),(.68,.36),(.6,.5),(.44,.66),(.29,.8),(.72,.8)]],
           3: [[(.32,.26),(.44,.19),(.6,.21),(.66,.32),(.6,.43),(.46,.49),
                (.61,.53),(.69,.65),(.62,.77),(.46,.82),(.31,.76)]],
           4: [[(.36,.2),(.31,.5),(.7,.5)],[(.64,.2),(.62,.5),(.6,.83)]],
           5: [[(.68,.2),(.38,.2),(.35,.46),(.5,.43),(.63,.48),(.68,.62),(.61,.76),(.47,.82),(.31,.76)]],
           6: [[(.62,.18),(.46,.3),(.36,.48),(.32,.65),(.38,.78),(.51,.82),
                (.63,.76),(.66,.64),(.58,.54),(.46,.54),(.36,.62)]],
           7: [[(.3,.21),(.7,.21),(.6,.45),(.5,.65),(.44,.82)]],
           8: [[(.64,.28),(.53,.19),(.4,.22),(.37,.34),(.46,.45),(.59,.55),(.65,.68),
                (.57,.8),(.43,.8),(.36,.68),(.43,.55),(.57,.44),(.64,.33),(.64,.28)]],
           9: [[(.65,.32),(.57,.21),(.43,.21),(.35,.33),(.39,.45),(.52,.48),
                (.64,.4),(.66,.3),(.65,.5),(.62,.68),(.57,.83)]]},
    quick={0: [[(.56,.22),(.4,.3),(.31,.5),(.35,.7),(.48,.79),(.62,.7),(.7,.5),(.67,.3),(.54,.21)]],
           1: [[(.4,.32),(.55,.19),(.53,.5),(.52,.83)]],
           2: [[(.28,.32),(.4,.2),(.58,.2),(.66,.32),(.55,.55),(.3,.78),(.42,.72),(.56,.79),(.74,.75)]],
           3: [[(.3,.22),(.67,.22),(.47,.44),(.64,.52),(.68,.68),(.55,.8),(.32,.76)]],
           4: [[(.58,.18),(.28,.6),(.74,.6)],[(.59,.4),(.57,.84)]],
           5: [[(.38,.22),(.35,.47),(.56,.45),(.67,.6),(.58,.77),(.33,.78)],[(.38,.22),(.68,.2)]],
           6: [[(.56,.17),(.4,.4),(.33,.64),(.42,.8),(.58,.79),(.65,.66),(.55,.55),(.37,.62)]],
           7: [[(.28,.24),(.7,.2),(.56,.5),(.46,.83)],[(.4,.5),(.67,.5)]],
           8: [[(.62,.24),(.46,.2),(.38,.32),(.5,.48),(.64,.64),(.56,.8),
                (.4,.77),(.38,.62),(.52,.48),(.65,.34),(.6,.23)]],
           9: [[(.64,.28),(.48,.2),(.36,.34),(.46,.48),(.62,.42),(.66,.26),(.63,.5),(.6,.83)]]})

@pytest.fixture(scope='module')
def browser():
    path = next(filter(None, map(shutil.which, (
        'chromium','chromium-browser','google-chrome','google-chrome-stable'))), None)
    if not path: pytest.skip('no browser is installed: apt-get install chromium')
    sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install playwright')
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=flags)
        yield b
        b.close()

@pytest.fixture(scope='module')
def reader():
    from mnist_fastai.inference import Predictor
    return Predictor()

@pytest.fixture(scope='module')
def server(tmp_path_factory):
    "The command, started as a user does; its URL, and the folder that it may keep uploads in"
    cache = tmp_path_factory.mktemp('cache')
    code = 'import sys; from mnist_fastai.app import main; sys.exit(main(sys.argv[1:]))'
    env = {k: v for k,v in os.environ.items() if not k.startswith('GRADIO_')} | dict(GRADIO_TEMP_DIR=str(cache))
    p = subprocess.Popen([sys.executable, '-c', code, '--port', '0'],
                         cwd=repo, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = p.stdout.readline()
    if not (url := re.search(r'http://127\.0\.0\.1:\d+/', first)): p.kill(); pytest.fail(first + p.communicate()[1])
    yield url[0],cache
    p.terminate()
    out,err = p.communicate(timeout=30)
    assert p.returncode==130 and out=='' and err.strip()=='Stopped.', (p.returncode, out, err)

class Page:
    "The page in a window of its own, with what a user does on it"
    def __init__(self, browser, url, reader, width=1280, height=900, touch=False, **kwargs):
        self.context = browser.new_context(viewport=dict(width=width, height=height),
                                           has_touch=touch, is_mobile=touch, **kwargs)
        self.page,self.reader,self.outside,self.complaints = self.context.new_page(),reader,[],[]
        self.page.route('**/*', self.only_here)
        self.page.on('pageerror', lambda e: self.complaints.append(str(e)))
        self.page.on('console', lambda m: self.complaints.append(m.text) if m.type=='error' else None)
        self.page.goto(url)
        self.page.wait_for_selector('#pad canvas')

    def only_here(self, route):
        if re.match(r'(https?://127\.0\.0\.1[:/]|data:|blob:)', route.request.url): return route.continue_()
        self.outside.append(route.request.url)
        route.abort()

    def places(self, line):
        b = self.page.locator('#pad canvas').bounding_box()
        return [(b['x']+x*b['width'], b['y']+y*b['height']) for x,y in line]

    def draw(self, lines):
        for line in lines:
            (x,y),*rest = self.places(line)
            self.page.mouse.move(x, y)
            self.page.mouse.down()
            for o in rest: self.page.mouse.move(*o, steps=4)
            self.page.mouse.up()

    def drawn(self): return self.page.evaluate("document.querySelector('#pad canvas').toDataURL()")
    def says(self): return self.page.inner_text('#answer .text')
    def press(self, name): self.page.click(f'#pad .{name}')
    def upload(self, name, content):
        self.page.set_input_files('#pad input', dict(name=name, mimeType='image/png', buffer=content))

    def wait(self, text, seconds=10):
        "Poll until the page says `text`; what it says then"
        end = time.monotonic()+seconds
        while (now := self.says())!=text and time.monotonic()<end: self.page.wait_for_timeout(20)
        return now

    def read(self):
        "Wait for the answer that the library gives to what the canvas shows; its digit"
        from mnist_fastai.app import read_drawing
        view = read_drawing(self.reader, self.drawn())
        assert self.wait(view['text'])==view['text']
        return view['prediction'] and view['prediction'].label

    def fits(self):
        "Nothing is wider than the window or its box, and nothing is cut off"
        wide = self.page.evaluate(
            "() => [...document.querySelectorAll('.gradio-container *')].filter(o => { "
            "const r = o.getBoundingClientRect();\n"
            "            return r.width && !o.matches('.tools input') && "
            "(r.right > innerWidth+.5 || r.left < -.5 || "
            "(getComputedStyle(o).display != 'inline' && o.scrollWidth > o.clientWidth+1 && o.clientWidth)); })\n"
            "            .map(o => `${o.tagName} ${o.className}`)")
        return not wide and self.page.evaluate('document.documentElement.scrollWidth<=innerWidth') or wide

    def shot(self, name):
        self.page.wait_for_timeout(100)
        png = self.page.screenshot(full_page=True)
        if shots:
            from PIL import Image
            out = Path(repo/shots)
            out.mkdir(parents=True, exist_ok=True)
            Image.open(io.BytesIO(png)).convert('RGB').quantize(64).save(out/f'{name}.png', optimize=True)
        return png

@pytest.fixture
def opened(browser, server, reader):
    """A function that opens the page; at the end nothing has left this machine, nothing was complained of and
    nothing kept"""
    pages = []
    def _f(**kwargs): pages.append(Page(browser, server[0], reader, **kwargs)); return pages[-1]
    yield _f
    for o in pages:
        o.context.close()
        assert o.outside==[] and o.complaints==[]
    assert [o for o in server[1].rglob('*') if o.is_file()]==[]

nothing = 'Nothing is drawn yet: draw a digit, or upload a picture of one.'
watch = (
    "() => { window.took = []; let t = 0; "
    "document.querySelector('#pad canvas').addEventListener('pointerup', () => t = performance.now());\n"
    "    new MutationObserver(() => { if (t) took.push(performance.now()-t); t = 0; })"
    ".observe(document.querySelector('#answer'), "
    "{subtree: true, childList: true, characterData: true, attributes: true}); }")

@pytest.mark.parametrize('hand', hands)
def test_ten_digits_drawn_with_the_mouse(opened, hand, record_property):
    start,p,said = time.monotonic(),opened(),{}
    p.page.evaluate(watch)
    for digit,lines in hands[hand].items():
        p.draw(lines)
        said[digit] = p.read()
        p.press('clear')
        assert p.wait(nothing)==nothing
    took = p.page.evaluate('took')
    print(f'{hand}: {time.monotonic()-start:.1f} s for ten digits; from lifting the pen to the answer '
          f'{statistics.median(took):.0f} ms, at most {max(took):.0f}; read {list(said.values())}')
    assert said=={i: i for i in range(10)}
    assert time.monotonic()-start<90 and statistics.median(took)<1000

#: A 4 whose top is nearly closed, so that it could be a 9
open_nine = [[(.58,.2),(.34,.3),(.31,.5),(.7,.5)],[(.66,.2),(.64,.5),(.62,.83)]]

def test_a_doubtful_digit_drawn_with_the_mouse(opened):
    "Both candidates are named, and both bars marked"
    p = opened()
    p.draw(open_nine)
    p.read()
    assert re.fullmatch(r'Not sure: \d \(\d+ %\) or \d \(\d+ %\)', p.says())
    assert set(p.page.locator('#answer dt.top').all_inner_texts())=={'4','9'}
    p.shot('app_desk')

def test_the_first_stroke_counts(opened):
    "Drawn at once, when the canvas is there, with nothing clicked before"
    p = opened()
    p.draw(hands['round'][7])
    assert p.read()==7

def test_a_phone_and_a_finger(opened):
    p = opened(width=390, height=844, touch=True)
    assert p.fits() is True
    cdp = p.context.new_cdp_session(p.page)
    def touch(kind, *points):
        cdp.send('Input.dispatchTouchEvent', dict(type=kind, touchPoints=[dict(x=x, y=y) for x,y in points]))
    for line in hands['round'][2]:
        first,*rest = p.places(line)
        touch('touchStart', first)
        for o in rest: touch('touchMove', o)
        touch('touchEnd')
    assert p.read()==2
    assert p.page.evaluate('scrollY')==0 # the finger drew, and did not move the page
    assert p.fits() is True
    p.shot('app_phone')
    p.page.tap('#pad .clear')
    assert p.wait(nothing)==nothing

@pytest.mark.parametrize('width', [320,768,1280,1920])
@pytest.mark.parametrize('scheme', ['light','dark'])
def test_nothing_is_cut_off_at_any_width(opened, width, scheme):
    p = opened(width=width, color_scheme=scheme)
    assert p.fits() is True
    p.draw(hands['round'][8])
    p.read()
    assert p.fits() is True
    ink,paper = (
        sum(map(int, re.findall(
            r'\d+', p.page.evaluate(f'getComputedStyle(document.querySelector("{o}"))["{k}"]'))[:3]))
        for o,k in (('#answer .text','color'),('body','backgroundColor')))
    assert abs(ink-paper)>450 # it can be read, in the dark too

def test_clear_undo_and_a_hand_that_is_quicker_than_the_answer(opened):
    p = opened()
    p.draw(hands['round'][4][:1])
    one = p.says() if p.read() is None else p.says()
    p.draw(hands['round'][4][1:])
    assert p.read()==4
    p.press('undo')
    p.read()
    assert p.says()==one
    p.press('undo')
    assert p.wait(nothing)==nothing
    p.press('undo') # nothing is left
    p.draw(hands['round'][4])
    p.press('clear') # before it has answered
    p.page.wait_for_timeout(1000)
    assert p.wait(nothing)==nothing and p.page.locator('#stages figure').count()==0

def test_a_stroke_that_leaves_the_canvas_ends(opened):
    p = opened()
    p.draw([[(.5,.3),(.5,.9),(.5,1.3)]])
    p.read()
    before = p.drawn()
    p.page.mouse.move(*p.places([(.2,.2)])[0])
    assert p.drawn()==before

def png(*args, **kwargs):
    from PIL import Image, ImageDraw
    buf,im = io.BytesIO(),Image.new(*args, **kwargs)
    if im.size[0]>200:
        ImageDraw.Draw(im).line([(90,75),(210,75),(135,240)], fill='white' if len(args)==2 else 'black',
                                width=24, joint='curve')
    im.save(buf, 'png')
    return buf.getvalue()

def test_an_upload(opened, reader):
    from mnist_fastai.app import read_drawing
    p = opened()
    content = png('L', (300,300), 'white')
    p.upload('seven.png', content)
    want = read_drawing(reader, 'data:image/png;base64,' + base64.b64encode(content).decode())
    assert want['prediction'].label==7 and p.wait(want['text'])==want['text']
    assert p.page.locator('#stages figure').count()==len(want['steps'])
    # it shows on the canvas
    p.page.wait_for_function(
        "document.querySelector('#pad canvas').getContext('2d').getImageData(280, 140, 1, 1).data[0]<128")
    p.draw([[(.3,.55),(.6,.55)]]) # and can be drawn on
    assert p.read() is not None
    p.press('clear')
    assert p.wait(nothing)==nothing

def test_what_cannot_be_read_is_said_calmly(opened):
    p = opened()
    p.draw(hands['round'][1])
    p.read()
    p.upload('blank.png', png('L', (100,100), 'white'))
    p.page.wait_for_selector('#answer .text.none')
    said = p.says()
    assert said and said!=nothing
    p.upload('notes.png', b'these are no pixels')
    p.page.wait_for_function('s => document.querySelector("#answer .text").innerText!=s', arg=said)
    assert p.page.locator('#answer .text.none').count()==1 and p.page.locator('#stages figure').count()==0
    p.upload('large.png', b'\x89PNG' + b'0'*5_000_001)
    p.page.wait_for_selector('#pad .note:not(:empty)')
    assert '5.0 MB' in p.page.inner_text('#pad .note') and p.wait(nothing)==nothing
    assert p.page.locator('.toast-body').count()==0
    p.draw(hands['round'][1]) # and all is well again
    p.press('clear')
    assert p.wait(nothing)==nothing and p.page.inner_text('#pad .note')==''

def test_it_can_be_used_from_the_keyboard(opened):
    p,seen = opened(),[]
    p.draw(hands['round'][1])
    p.read()
    for _ in range(12):
        p.page.keyboard.press('Tab')
        seen.append(p.page.evaluate(
            "document.activeElement.getAttribute('aria-label') || document.activeElement.innerText"))
        if seen[-1]=='Clear': p.page.keyboard.press('Enter')
    assert {'Clear','Undo','Upload a picture'}<=set(seen)
    assert p.wait(nothing)==nothing
    names = p.page.evaluate(
        "[...document.querySelectorAll('#pad canvas, #pad button, #pad input, #stages img')]"
        ".map(o => o.getAttribute('aria-label') || o.alt || o.innerText)")
    assert all(names) and p.page.title()=='Handwritten digits' and p.page.locator('h1').count()==1
