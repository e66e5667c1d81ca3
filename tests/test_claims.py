"The ledger of claims: each kind of fault is seen on a changed copy, and the repository as it is has none"
import importlib.util, io, json, os, shutil, subprocess, sys
from contextlib import redirect_stdout

import pytest

from conftest import repo

TEXTS = ['README.md', 'models/README.md', 'benchmarks/README.md']
FIGURE,BETTER,SAME = (
    '<!--= results/x.json both@5.valid_accuracy.mean pct2 -->98.50 %<!--/-->',
    '<!--? results/x.json both@5 > none@5 valid_accuracy -->better<!--/-->',
    '<!--? results/x.json drop@5 ~ none@5 valid_accuracy -->alike<!--/-->')

def runs(arm, accs, **more):
    return [dict(arm=arm, seed=i, valid_accuracy=o, valid_loss=1-o, seconds=10.+i, wrong=[[0, 7, .9]], **more)
            for i,o in enumerate(accs)]

@pytest.fixture
def copy(tmp_path):
    "A copy of the texts, the results and the tool, with an experiment of three arms"
    root = tmp_path/'copy'
    for o in [*TEXTS, 'models/results.json',
              *(f'models/{k}.pth' for k in ('Network','ImprovedNetwork')),
              *(f'results/{o.name}' for o in (repo/'results').glob('*.json')),
              'benchmarks/accuracy.json', 'benchmarks/reader.json', 'benchmarks/predict.json',
              'tools/claims.py']:
        (root/o).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repo/o, root/o)
    (root/'nbs').mkdir()
    for o in (repo/'nbs').rglob('*.ipynb'):
        (root/o.relative_to(repo)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(o, root/o.relative_to(repo))
    exp = dict(format='mnist_fastai experiment 1', name='x', versions=dict(torch='2.15.0'),
               runs=runs('none@5', [.980,.982,.981,.983])
                  + runs('both@5', [.984,.985,.985,.986])
                  + runs('drop@5', [.981,.981,.982,.982]))
    (root/'results').mkdir(exist_ok=True)
    (root/'results'/'x.json').write_text(json.dumps(exp))
    return root

def tool(root, *args):
    "Exit code and lines of the tool of `root`, run in this process, which is quicker"
    spec = importlib.util.spec_from_file_location('claims', root/'tools'/'claims.py')
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    out = io.StringIO()
    with redirect_stdout(out): code = mod.main('--check' in args)
    return int(code),out.getvalue().splitlines()

def command(root, *args):
    "The same, as a process of its own"
    p = subprocess.run([sys.executable, str(root/'tools'/'claims.py'), *args],
                       capture_output=True, text=True, encoding='utf-8',
                       env=os.environ | dict(PYTHONIOENCODING='utf-8'))
    assert p.stderr=='', p.stderr
    return p.returncode,p.stdout.splitlines()

def add(root, text, path='README.md'):
    with (root/path).open('a', encoding='utf-8') as f: f.write(f'\nOver seeds, this is {text} here.\n')

def told(root, *parts, n=1, fix=False):
    """The check finds `n` faults, and the first line holds `parts`.

    Filling finds them as well, unless it is to `fix` them.
    """
    code,lines = tool(root, '--check')
    assert code==1 and len(lines)==n, lines
    for o in parts: assert str(o) in lines[0], (o, lines[0])
    code,lines = tool(root)
    assert code==(not fix) and sum(not o.startswith('filled: ') for o in lines)==(0 if fix else n), lines
    if fix: assert tool(root, '--check')==(0, [])

def test_the_repository_as_it_is(): assert command(repo, '--check')==(0, [])

def test_filling_what_is_right_changes_no_byte(copy):
    for o in (FIGURE, BETTER, SAME): add(copy, o)
    def files(): return {o: o.read_bytes() for o in copy.rglob('*') if o.is_file() and o.suffix!='.pyc'}
    before = files()
    assert tool(copy)==(0, []) and files()==before

# --- figures

def test_a_digit_in_the_text(copy):
    add(copy, FIGURE.replace('98.50', '98.51'))
    before = (copy/'README.md').read_bytes()
    assert tool(copy, '--check')[0]==1 and (copy/'README.md').read_bytes()==before
    assert command(copy, '--check')==tool(copy, '--check')
    told(copy, 'README.md: "98.51 %" should be "98.50 %"', 'both@5.valid_accuracy.mean', fix=True)
    assert FIGURE in (copy/'README.md').read_text(encoding='utf-8') and command(copy)==(0, [])

def test_a_figure_in_the_file(copy):
    p = copy/'benchmarks'/'accuracy.json'
    p.write_text(p.read_text().replace('0.8037', '0.8137'))
    told(copy, 'README.md: "80.4 %" should be "81.4 %"', fix=True)
    assert '>81.4 %<' in (copy/'README.md').read_text(encoding='utf-8')

@pytest.mark.slow
def test_a_figure_in_a_notebook(copy):
    p = copy/'nbs'/'07_improvement.ipynb'
    nb = json.loads(p.read_text(encoding='utf-8'))
    i = next(i for i,c in enumerate(nb['cells']) if i and c['cell_type']=='markdown' and len(c['source'])>1)
    nb['cells'][i]['source'].insert(1, 'It is\n')
    nb['cells'][i]['source'].insert(2, f'so: {FIGURE.replace("98.50", "1.0")}\n')
    def write(): p.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8')
    write()
    told(copy, f'nbs/07_improvement.ipynb, cell {i}: "1.0 %" should be "98.50 %"', fix=True)
    nb['cells'][i]['source'][2] = f'so: {FIGURE}\n'
    filled = p.read_bytes()
    write()
    assert p.read_bytes()==filled # outputs and all

def test_the_tables(copy):
    def change(path, f):
        d = json.loads((copy/path).read_text())
        f(d)
        (copy/path).write_text(json.dumps(d))
    change('benchmarks/accuracy.json', lambda d: d['runs'][0].update(valid_accuracy=.5))
    change('models/results.json', lambda d: d['networks']['Network'].update(valid_accuracy=.1234))
    change('results/final_test.json', lambda d: [o.update(accuracy=.4321) for o in d['looks']])
    code,lines = tool(copy, '--check')
    assert (code==1 and 'the table \'results\' differs' in '\n'.join(lines)
            and 'models/README.md: the table \'card\' differs' in '\n'.join(lines))
    tool(copy)
    card = (copy/'models'/'README.md').read_text(encoding='utf-8')
    assert '12.34 %' in card and '43.21 %' in card

def test_a_network_without_its_look(copy):
    (copy/'models'/'Network.pth').write_bytes(b'another')
    told(copy, "the table 'card' cannot be made "
               "(results/final_test.json has no evaluation of models/Network.pth: run mnist_final_test)")

@pytest.mark.parametrize('key,fmt,text', [
    ('both@5.valid_accuracy.mean','pct1','98.5 %'),
    ('both@5.valid_accuracy.sd','size2','0.08'),
    ('both@5.seconds.max','d0','13'),
    ('both@5.seconds.min','d1','10.0'),
    ('both@5.valid_accuracy.n','int','4'),
    ('both@5-none@5.valid_accuracy.difference','points2','+0.35'),
    ('none@5-both@5.valid_accuracy.difference','points2','-0.35'),
    ('none@5-both@5.valid_accuracy.difference','size1','0.4'),
    ('both@5-none@5.valid_accuracy.low','points2','+0.26'),
    ('both@5-none@5.valid_accuracy.high','points2','+0.44'),
    ('both@5-none@5.valid_accuracy.n','int','4'),
    ('both@5-none@5.valid_accuracy.p','d4','0.0012'),
    ('versions.torch','s','2.15.0'),
    ('runs.0.valid_loss','d4','0.0200'),
    ('name','s','x'),
])
def test_keys_and_formats(copy, key, fmt, text):
    """Differences of 0.4, 0.3, 0.4 and 0.3 points have mean 0.35 and sd 0.0577.

    The t of 3 degrees of freedom is 3.182, so the interval is 0.35 ± 0.0919.
    """
    add(copy, f'<!--= results/x.json {key} {fmt} -->?<!--/-->')
    tool(copy)
    assert f'-->{text}<!--/-->' in (copy/'README.md').read_text(encoding='utf-8').splitlines()[-1]

@pytest.mark.slow
@pytest.mark.parametrize('args,parts', [
    ('results/y.json name s', 'there is no results/y.json'),
    ('results/x.json nome s', "has no nome: 'nome' is not there"),
    ('results/x.json runs.99.seed s', "'99' is not there"),
    ('results/x.json bath@5.valid_accuracy.mean pct2', "no runs of 'bath@5', only of none@5, both@5, drop@5"),
    ('results/x.json both@5.accuracy.mean pct2', "no number 'accuracy'"),
    ('results/x.json both@5.valid_accuracy.low pct2', 'low is of two arms'),
    ('results/x.json both@5.valid_accuracy.mean percent', "'percent' is no format"),
    ('results/x.json name d2', 'cannot be written as d2'),
    ('results/x.json runs s', 'cannot be written as s'),
    ('results/x.json name', 'is not FILE KEY FORMAT'),
    ('README.md name s', 'README.md is no JSON'),
])
def test_figures_that_cannot_be(copy, args, parts):
    add(copy, f'<!--= {args} -->1<!--/-->')
    told(copy, 'README.md: ', parts)

def test_the_last_look_at_a_file(copy):
    "Keys of the log that `mnist_final_test` writes"
    looks = [dict(file=f, accuracy=a) for f,a in (('Network.pth',.98), ('Other.pth',.9), ('Network.pth',.985))]
    (copy/'results'/'looks.json').write_text(json.dumps(dict(looks=looks)))
    add(copy, '<!--= results/looks.json looks.Network.accuracy pct2 -->98.50 %<!--/-->')
    assert tool(copy, '--check')==(0, [])
    add(copy, '<!--= results/looks.json looks.None.accuracy pct2 -->98.50 %<!--/-->')
    told(copy, "has no looks.None.accuracy: 'None' is not there")

# --- comparisons

@pytest.mark.parametrize('args,word,parts', [
    ('drop@5 > none@5 valid_accuracy','better',('"better" does not hold: over 4 seeds','crosses zero')),
    ('both@5 < none@5 valid_accuracy','worse',('lies wholly above zero',)),
    ('both@5 ~ none@5 valid_loss','no different',('lies wholly below zero',)),
    ('both@5 < none@5 valid_loss','worse',('says the opposite',)),
    ('both@5 > none@5 valid_accuracy','lower',('says the opposite',)),
    ('both@5 = none@5 valid_loss','equal',("'=' is no comparison",)),
    ('both@5 > x valid_accuracy','better',("no runs of 'x'",)),
    ('both@5 none@5 valid_accuracy','better',('is not FILE',)),
])
def test_comparisons_that_do_not_hold(copy, args, word, parts):
    add(copy, f'<!--? results/x.json {args} -->{word}<!--/-->')
    told(copy, *parts)

@pytest.mark.parametrize('args,word', [
    ('both@5 > none@5 valid_accuracy','better'),
    ('none@5 < both@5 valid_accuracy','worse'),
    ('both@5 < none@5 valid_loss','better'),
    ('both@5 < none@5 valid_loss','lower'),
    ('drop@5 ~ none@5 valid_accuracy','no better'),
    ('both@5 ~ none@5 seconds','as quick'),
])
def test_comparisons_that_hold(copy, args, word):
    add(copy, f'<!--? results/x.json {args} -->{word}<!--/-->')
    assert tool(copy, '--check')==(0, [])

def test_results_that_change_make_a_comparison_fall(copy):
    add(copy, BETTER)
    assert tool(copy, '--check')==(0, [])
    p = copy/'results'/'x.json'
    p.write_text(p.read_text().replace('"seed": 3, "valid_accuracy": 0.986', '"seed": 3, "valid_accuracy": 0.97'))
    told(copy, '"better" does not hold', 'crosses zero')

@pytest.mark.slow
def test_arms_that_differ_by_the_same_on_every_seed(copy):
    p = copy/'results'/'x.json'
    exp = json.loads(p.read_text())
    exp['runs'] += ([dict(r, arm='none@6', valid_accuracy=r['valid_accuracy']+.003)
                     for r in exp['runs'] if r['arm']=='none@5']
                    + [dict(r, arm='none@7') for r in exp['runs'] if r['arm']=='none@5'])
    p.write_text(json.dumps(exp))
    add(copy, '<!--? results/x.json none@6 > none@5 valid_accuracy -->better<!--/-->, '
              '<!--? results/x.json none@7 ~ none@5 valid_accuracy -->alike<!--/-->')
    assert command(copy, '--check')==(0, [])

def test_a_seed_that_is_there_twice_and_seeds_that_are_not_shared(copy):
    p = copy/'results'/'x.json'
    exp = json.loads(p.read_text())
    exp['runs'] += runs('none@5', [.97]) + [dict(o, seed=9) for o in runs('alone', [.97])]
    p.write_text(json.dumps(exp))
    add(copy, BETTER)
    told(copy, "has the seed 0 of 'none@5' twice")
    add(copy, '<!--? results/x.json both@5 > alone valid_accuracy -->better<!--/-->')
    assert any("0 seeds in common" in o for o in tool(copy, "--check")[1])

# --- markers

@pytest.mark.parametrize('text,parts', [
    (FIGURE.removesuffix('<!--/-->'), 'is not closed'),
    (FIGURE[:20], 'is not closed'),
    (FIGURE.replace(' -->98', ' 98'), 'is not closed'),
    ('98 %<!--/-->', 'closes nothing'),
])
def test_markers_that_are_not_closed(copy, text, parts):
    add(copy, text)
    code,lines = tool(copy, '--check')
    assert code==1 and lines[0].startswith('README.md: ') and parts in lines[0], lines

@pytest.mark.slow
def test_a_marker_that_begins_a_line(copy):
    for text in (f'\n{FIGURE}', f'\n- {BETTER}'):
        shutil.copy(repo/'README.md', copy)
        add(copy, text)
        told(copy, 'begins a line')

def test_markers_in_code_are_code(copy):
    add(copy, f'`{FIGURE[:20]}`\n\n```\n{BETTER} <!--= x\n```\n')
    assert tool(copy, '--check')==(0, [])



# --- files

@pytest.mark.slow
def test_files_that_are_missing(copy):
    (copy/'benchmarks'/'README.md').unlink()
    told(copy, 'benchmarks/README.md: there is no such file')

def test_results_that_are_missing(copy):
    (copy/'models'/'results.json').unlink()
    code,lines = tool(copy, '--check')
    assert code==1 and [o for o in lines if 'table' in o]==[
        f"{path}: the table '{name}' cannot be made (there is no models/results.json)"
        for path,name in (('README.md','results'), ('models/README.md','card'))]
