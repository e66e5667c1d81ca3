"The command `mnist_predict`, as its user meets it"
import io, json, os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ctrl_c, repo, run_python, unprivileged
from mnist_fastai.checkpoint import save_network
from mnist_fastai.data import Mnist
from mnist_fastai.predict import main, find_images
from mnist_fastai.training import Recipe, train
from test_inference import seven
from test_images import png, saved

def picture(mode='L', size=100):
    return Image.fromarray((255*(1-seven())).astype(np.uint8)).resize((size,size)).convert(mode)

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
    files = {
        'grey.png': im,
        'colour.png': picture('RGB'),
        'alpha.png': clear,
        'light.png': Image.eval(im, lambda o: 255-o),
        'palette.gif': im.quantize(8),
        'photo.jpg': picture('RGB', 700),
        'old.bmp': im,
        'deep.png': Image.fromarray(np.asarray(im).astype(np.uint16)*257),
        'scan.tiff': im,
        'web.webp': picture('RGB'),
        'plain.ppm': picture('RGB'),
        'small.png': picture(size=12),
        'bits.png': im.convert('1'),
        'deeper/UPPER.PNG': im,
        'name with spaces é.png': im,
    }
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
    assert len(rows)==n and all(
        o['label']==7 and len(o['probabilities'])==10 and abs(sum(o['probabilities'])-1)<1e-4
        and isinstance(o['confident'], bool) and not o['multiple_digits']
        for o in rows)
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
    bad = {'empty.png': 'is empty', 'text.jpg': 'not a picture', 'cut.png': 'truncated',
           'bomb.png': 'million pixels', 'blank.png': 'is blank', 'missing.png': 'no such file',
           'nothing': 'is a folder'}
    assert main([str(d/'grey.png'), *(str(tmp_path/o) for o in bad), str(d/'alpha.png')])==1
    out,err = capsys.readouterr()
    assert len(out.splitlines())==2 and out.count(': 7 (')==2 # the rest is still answered
    for line,(name,why) in zip(err.splitlines(), bad.items(), strict=True):
        assert name in line and why in line and line.endswith('.')
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

odd_names = [b'bell\x07.png', b'new\nline.png', b'new\\nline.png',
             'ü€.png'.encode(), b'\xff\xfe.png', b'red\x1b[31m.png']

@pytest.fixture
def odd(tmp_path):
    "A folder of pictures with odd names"
    if os.name!='posix': pytest.skip('such names are none elsewhere')
    for o in odd_names:
        picture().save(tmp_path/'x.png')
        os.rename(tmp_path/'x.png', os.path.join(os.fsencode(tmp_path), o))
    return tmp_path

def test_odd_names(odd, capsysbinary):
    assert main([str(odd)])==0
    out = capsysbinary.readouterr().out
    assert len(out.splitlines())==len(odd_names) and not [o for o in (b'\x07',b'\x1b') if o in out]

def test_odd_names_come_back_from_json(odd, capsys):
    "Each by its bytes: a line break in a name is not taken for a backslash and an n"
    assert main(['--json', str(odd)])==0
    rows = [json.loads(o) for o in capsys.readouterr().out.splitlines()]
    assert sorted(os.path.basename(os.fsencode(o['file'])) for o in rows)==sorted(odd_names)
    for o in rows: assert os.path.exists(o['file'])

@pytest.mark.skipif(os.name!='posix', reason='needs POSIX permissions')
@pytest.mark.parametrize('form', ['text','json'])
def test_a_folder_that_cannot_be_read(form, every_kind, capsys):
    "It is reported, wherever it is, and the rest is read"
    d,n = every_kind
    shut = [d/'deeper'/'shut', d/'zzz']
    for o in shut:
        o.mkdir()
        o.chmod(0)
    for o in [d, *d.parents]:
        if 'pytest' in o.as_posix(): o.chmod(0o755)
    try:
        with unprivileged():
            assert main([str(d)] + ['--json']*(form=='json'))==1
            out,err = capsys.readouterr()
            assert main([str(shut[0])])==1 and 'folder cannot be read' in capsys.readouterr().err
            assert main([str(shut[0]/'x.png')])==1 and 'cannot be read' in capsys.readouterr().err
    finally:
        for o in shut: o.chmod(0o755)
    lines = (out if form=='json' else err).splitlines()
    failed = [o for o in lines if 'folder cannot be read (Permission denied)' in o]
    assert (len(failed)==2 and all(str(a) in b for a,b in zip(shut, failed))
            and len(out.splitlines())==(n+2 if form=='json' else n))

def test_keys_of_the_json_are_documented(every_kind, capsys):
    from mnist_fastai import predict
    d,_ = every_kind
    main(['--json', '--show', str(d/'grey.png'), str(d/'missing.png')])
    good,bad = [json.loads(o) for o in capsys.readouterr().out.splitlines()]
    assert set(bad)=={'file','error'}
    with pytest.raises(SystemExit): main(['--help'])
    said = capsys.readouterr().out
    for k in {*good, *bad}: assert f'`{k}`' in predict.__doc__ and k in said.split('--json, each line')[1], k

def test_predictions_that_are_not_finite(every_kind, learn, tmp_path, capsys):
    """Finite weights can give logits that are not finite.

    The command names the file, and prints no NaN, which JSON does not have.
    """
    path = save_network(learn, tmp_path/'huge.pth')
    ck = torch.load(path, weights_only=True)
    for k,v in ck['state_dict'].items():
        if k.endswith('weight'): v.fill_(3e38)
    torch.save(ck, path)
    assert main(['--json', '--model', str(path), str(every_kind[0]/'grey.png')])==1
    out,err = capsys.readouterr()
    assert out=='' and err.startswith(f'mnist_predict: {path}: ') and err.count('\n')==1

@pytest.fixture(scope='module')
def learn(sample):
    few = Mnist(sample.train.subset(slice(200)), sample.valid.subset(slice(100)), sample.test, 'sample')
    return train(Recipe('Network', dict(sizes=(784,16,10)), epochs=1), few, device='cpu', quiet=True)

@pytest.mark.skipif(os.name!='posix', reason='needs a POSIX shell')
@pytest.mark.parametrize('closed', ['>&-','2>&-','>&- 2>&-'])
def test_closed_output(closed, tmp_path):
    picture().save(tmp_path/'x.png')
    p = subprocess.run(['sh', '-c', f'"$0" -m mnist_fastai.predict "$1" {closed}', sys.executable, str(tmp_path)],
                       capture_output=True, text=True, cwd=repo)
    said = {
        '>&-': ('', 'mnist_predict: Standard output is closed: send it to a file or a terminal.\n'),
        '2>&-': (f'{tmp_path/"x.png"}: 7', ''),
        '>&- 2>&-': ('',''),
    }[closed]
    assert p.returncode==(0 if closed=='2>&-' else 1) and p.stdout.startswith(said[0]) and p.stderr==said[1]

@pytest.mark.parametrize('module', ['mnist_fastai.inference','torch'])
def test_an_import_that_fails(module, tmp_path):
    r = run_python(f"import sys; sys.modules['{module}'] = None; from mnist_fastai.predict import main; "
                   "sys.exit(main(sys.argv[1:]))", tmp_path)
    assert (r.returncode==1 and r.stderr.startswith('mnist_predict: ') and module in r.stderr
            and r.stderr.count('\n')==1), r.stderr

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
            for _ in range(int(rng.integers(1, 6))):
                raw[int(rng.integers(min(64, len(raw))))] = int(rng.choice([0,1,127,128,255]))
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
    return subprocess.Popen([sys.executable, '-m', 'mnist_fastai.predict', *map(str, args)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=repo, **ctrl_c, **kwargs)

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
    with open('/dev/full', 'w') as full:
        p = subprocess.run([sys.executable, '-m', 'mnist_fastai.predict', str(tmp_path)],
                           stdout=full, stderr=subprocess.PIPE, text=True, cwd=repo)
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
    few,many = (int(run_python(code, *args).stderr.split()[-1])
                for args in ([*sorted(tmp_path.iterdir())[:120]], [tmp_path]))
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
