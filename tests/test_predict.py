"The command `mnist_predict`, as its user meets it"
import io, json, os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import ctrl_c, repo, run_python
from mnist_fastai.predict import main, find_images
from test_inference import seven
from test_images import png, saved

def picture(mode='L', size=100): return Image.fromarray((255*(1-seven())).astype(np.uint8)).resize((size,size)).convert(mode)

@pytest.fixture
def every_kind(tmp_path):
    "A folder with a seven in every kind of file that a person has"
    d = tmp_path/'mine'
    (d/'deeper').mkdir(parents=True)
    im = picture()
    clear = Image.new('RGBA', im.size)
    clear.putalpha(Image.eval(im, lambda o: 255-o))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {'grey.png': im, 'colour.png': picture('RGB'), 'alpha.png': clear, 'light.png': Image.eval(im, lambda o: 255-o), 'palette.gif': im.quantize(8), 'photo.jpg': picture('RGB', 700), 'old.bmp': im,
             'deep.png': Image.fromarray(np.asarray(im).astype(np.uint16)*257), 'scan.tiff': im, 'web.webp': picture('RGB'), 'plain.ppm': picture('RGB'), 'small.png': picture(size=12), 'bits.png': im.convert('1'), 'deeper/UPPER.PNG': im, 'name with spaces é.png': im}
    for k,o in files.items(): o.save(d/k)
    im.transpose(Image.ROTATE_90).convert('RGB').save(d/'phone.jpg', exif=exif, quality=95)
    return d,len(files)+1

def test_a_folder_of_every_kind(every_kind, capsys):
    d,n = every_kind
    assert main([str(d)])==0
    out,err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines)==n and err==''
    for o in lines: assert ': 7 (' in o or ('small.png' in o and '7' in o), o

def test_json(every_kind, capsys):
    d,n = every_kind
    assert main(['--json', str(d)])==0
    rows = [json.loads(o) for o in capsys.readouterr().out.splitlines()]
    assert len(rows)==n and all(o['label']==7 and len(o['probabilities'])==10 and abs(sum(o['probabilities'])-1)<1e-4 and isinstance(o['confident'], bool) and not o['multiple_digits'] for o in rows)
    assert {Path(o['file']).name for o in rows}>={'phone.jpg','UPPER.PNG','name with spaces é.png'}

def test_show(every_kind, capsys):
    d,_ = every_kind
    assert main(['--show', str(d/'grey.png')])==0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines)==15 and '@' in '\n'.join(lines[1:]) and max(map(len, lines[1:]))<=28
    assert main(['--show', '--json', str(d/'grey.png')])==0
    assert np.array(json.loads(capsys.readouterr().out)['image']).shape==(28,28)

def test_what_cannot_be_read(every_kind, tmp_path, capsys):
    d,_ = every_kind
    (tmp_path/'empty.png').touch()
    (tmp_path/'text.jpg').write_text('a seven')
    (tmp_path/'cut.png').write_bytes((d/'photo.jpg').read_bytes()[:2000])
    (tmp_path/'bomb.png').write_bytes(png(60_000, 60_000))
    Image.new('L', (50,50), 255).save(tmp_path/'blank.png')
    (tmp_path/'nothing').mkdir()
    bad = {'empty.png': 'is empty', 'text.jpg': 'no picture', 'cut.png': 'truncated', 'bomb.png': 'million pixels', 'blank.png': 'is blank', 'missing.png': 'no such file', 'nothing': 'is a folder'}
    assert main([str(d/'grey.png'), *(str(tmp_path/o) for o in bad), str(d/'alpha.png')])==1
    out,err = capsys.readouterr()
    assert len(out.splitlines())==2 and out.count(': 7 (')==2 # the rest is still answered
    for line,(name,why) in zip(err.splitlines(), bad.items(), strict=True): assert name in line and why in line and line.endswith('.')
    assert main(['--json', str(tmp_path/'empty.png')])==1
    row = json.loads(capsys.readouterr().out)
    assert 'is empty' in row['error'] and row['file'].endswith('empty.png')

def test_not_sure_is_said(every_kind, capsys):
    assert main(['--threshold', '1', str(every_kind[0]/'small.png')])==0
    assert 'not sure: ' in capsys.readouterr().out

def test_another_network(every_kind, capsys):
    d,_ = every_kind
    assert main(['--model', str(repo/'models'/'Network.pth'), str(d/'grey.png')])==0
    assert ': 7 (' in capsys.readouterr().out
    for o,why in ((d/'grey.png', 'not a checkpoint'), (d/'missing.pth', 'cannot be read')):
        assert main(['--model', str(o), str(d/'grey.png')])==1
        out,err = capsys.readouterr()
        assert out=='' and why in err and err.startswith('mnist_predict: ') and err.count('\n')==1
    assert main(['--threshold', '2', str(d/'grey.png')])==1
    assert 'from 0 to 1' in capsys.readouterr().err

def test_what_was_not_understood(capsys):
    for args in ([], ['--what','x.png'], ['--threshold','much','x.png']):
        with pytest.raises(SystemExit) as e: main(args)
        assert e.value.code==2
    with pytest.raises(SystemExit) as e: main(['--help'])
    assert e.value.code==0 and '64 million pixels' in capsys.readouterr().out

def test_folders_are_walked_in_order(tmp_path):
    for o in ('b.png','a.JPG','.hidden.png','notes.txt','deep/c.gif','.git/d.png'):
        (tmp_path/o).parent.mkdir(exist_ok=True)
        (tmp_path/o).touch()
    assert [o.relative_to(tmp_path).as_posix() for o in find_images([tmp_path])]==['a.JPG','b.png','deep/c.gif']
    assert list(find_images([tmp_path/'notes.txt']))==[tmp_path/'notes.txt'] # named, so it is tried

@pytest.mark.skipif(os.name!='posix', reason='such names are none elsewhere')
def test_odd_names(tmp_path, capsysbinary):
    names = [b'new\nline.png', b'bell\x07.png', b'\xff\xfe.png', 'ü€.png'.encode()]
    for o in names: picture().save(tmp_path/'x.png'); os.rename(tmp_path/'x.png', os.path.join(os.fsencode(tmp_path), o))
    assert main([str(tmp_path)])==0
    out = capsysbinary.readouterr().out
    assert len(out.splitlines())==4 and b'\x07' not in out

def test_a_thousand_random_and_mutated_files(every_kind, tmp_path, capsys):
    "No traceback, whatever is in a file: each has its line"
    rng,d = np.random.default_rng(0),tmp_path/'fuzz'
    d.mkdir()
    seeds = [o.read_bytes() for o in sorted(every_kind[0].iterdir()) if o.is_file()]
    for i in range(1000):
        raw = bytearray(seeds[i%len(seeds)])
        how = i//len(seeds)%5
        if how==0: raw = bytearray(rng.bytes(int(rng.integers(0, 3000))))
        elif how==1: raw = raw[:int(rng.integers(0, len(raw)))]
        elif how==2:
            for _ in range(int(rng.integers(1, 30))): raw[int(rng.integers(len(raw)))] = int(rng.integers(256))
        elif how==3: # in the head, where sizes and capture_kinds are
            for _ in range(int(rng.integers(1, 6))): raw[int(rng.integers(min(64, len(raw))))] = int(rng.choice([0,1,127,128,255]))
        else:
            a,b = sorted(rng.integers(0, len(raw), 2))
            raw = raw[:a] + raw[b:] + raw[a:b]
        (d/f'{i:04}.png').write_bytes(raw)
    code = main([str(d)])
    out,err = capsys.readouterr()
    lines = [o for o in (out+err).splitlines() if o.startswith(str(d))]
    assert code==1 and len(lines)==1000 and 'Traceback' not in err
    assert all(o.endswith('.') for o in err.splitlines() if o.startswith(str(d)))
    assert len(out.splitlines())>20 # some are still pictures

def command(*args, **kwargs):
    return subprocess.Popen([sys.executable, '-m', 'mnist_fastai.predict', *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=repo, **ctrl_c, **kwargs)

@pytest.mark.skipif(os.name!='posix', reason='needs POSIX signals')
def test_ctrl_c(tmp_path):
    for i in range(3000): (tmp_path/f'{i}.png').write_bytes(saved(picture(), 'PNG'))
    p = command(tmp_path, env=os.environ | dict(PYTHONUNBUFFERED='1'))
    p.stdout.readline()
    p.send_signal(signal.SIGINT)
    out,err = p.communicate(timeout=30)
    assert p.returncode==130 and err.strip()=='Stopped.' and len(out.splitlines())<2999

@pytest.mark.slow
@pytest.mark.skipif(os.name!='posix', reason='needs a POSIX pipe')
def test_a_reader_that_has_had_enough(tmp_path):
    for i in range(1500): (tmp_path/f'{i}.png').write_bytes(saved(picture(), 'PNG'))
    p = command(tmp_path)
    p.stdout.readline()
    p.stdout.close()
    assert p.wait(timeout=60)==1 and p.stderr.read()==''

@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_full_disk(tmp_path):
    picture().save(tmp_path/'x.png')
    with open('/dev/full', 'w') as full: p = subprocess.run([sys.executable, '-m', 'mnist_fastai.predict', str(tmp_path)], stdout=full, stderr=subprocess.PIPE, text=True, cwd=repo)
    assert p.returncode==1 and p.stderr.startswith('mnist_predict: ') and 'Traceback' not in p.stderr

@pytest.mark.slow
def test_memory_stays_as_it_is(tmp_path):
    "Ten times as many pictures take no more memory"
    if not sys.platform.startswith('linux'): pytest.skip('the unit of ru_maxrss differs')
    for i in range(1200): (tmp_path/f'{i:04}.png').write_bytes(saved(picture(size=280), 'PNG'))
    code = """if 1:
        import resource, sys, io
        from mnist_fastai.predict import main
        sys.stdout = io.TextIOWrapper(open('/dev/null', 'wb'))
        main(sys.argv[1:])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"""
    few,many = (int(run_python(code, *args).stderr.split()[-1]) for args in ([*sorted(tmp_path.iterdir())[:120]], [tmp_path]))
    assert many-few<25_000, (few,many) # kilobytes

def test_progress_is_shown_where_answers_go_elsewhere(monkeypatch, capsys, tmp_path):
    from mnist_fastai.predict import _Count
    class Screen(io.StringIO):
        def isatty(self): return True
    for out,err,said in ((io.StringIO(),Screen(),True), (Screen(),Screen(),False), (io.StringIO(),io.StringIO(),False)):
        monkeypatch.setattr(sys, 'stdout', out)
        monkeypatch.setattr(sys, 'stderr', err)
        c = _Count()
        for _ in range(250): c.add()
        c.end()
        assert ('250 pictures' in err.getvalue() and '100 pictures' in err.getvalue())==said and out.getvalue()==''
