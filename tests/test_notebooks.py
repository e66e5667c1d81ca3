"The lessons as a reader meets them: what is saved in them, and how they are built"
import ast, json, re

import pytest

from conftest import repo

paths = sorted((repo/'nbs').glob('*.ipynb'))
lessons = [o for o in paths if re.match(r'\d\d_', o.name)]
order = ['01_data','02_eda','03_models','04_training','05_improvement','06_saving','07_evidence','08_errors','09_own_digits','10_app','11_export']
each = pytest.mark.parametrize('nb', paths, ids=lambda o: o.stem, indirect=True)
each_lesson = pytest.mark.parametrize('nb', lessons, ids=lambda o: o.stem, indirect=True)

@pytest.fixture
def nb(request): return json.loads(request.param.read_text(encoding='utf-8'))

def src(c): return ''.join(c['source'])
def code(nb): return [c for c in nb['cells'] if c['cell_type']=='code' and src(c).strip()]
def markdown(nb): return [src(c) for c in nb['cells'] if c['cell_type']=='markdown']
def directives(c): return set(re.findall(r'^#\| *(\w+)', src(c), re.M))
def exported(c): return bool(directives(c) & {'export','exporti','exports'})
def outputs(nb): return [(i,o) for i,c in enumerate(nb['cells']) for o in c.get('outputs', [])]
def tree(c):
    "The cell's syntax, without magics"
    return ast.parse('\n'.join('' if re.match(r'\s*[%!]', l) else l for l in src(c).splitlines()))

def output_text(o):
    "All text of an output that a reader may see"
    parts = [o.get('text', '')] + [v for k,v in o.get('data', {}).items() if k.startswith('text/') or k.endswith(('json','xml'))]
    return '\n'.join(p if isinstance(p, str) else ''.join(p) if isinstance(p, list) else json.dumps(p) for p in parts)

def test_the_order_of_names():
    assert [o.stem for o in lessons]==order

@each
def test_no_errors(nb):
    for i,o in outputs(nb):
        assert o['output_type']!='error', (i, o.get('ename'))
        assert 'Traceback (most recent call last)' not in output_text(o), i

@each
def test_no_stderr_and_no_warnings(nb):
    for i,o in outputs(nb):
        assert o.get('name')!='stderr', (i, output_text(o)[:200])
        assert not re.search(r'\b\w*Warning\b *:', output_text(o)), (i, output_text(o)[:200])

@each
def test_no_counts(nb):
    for i,c in enumerate(nb['cells']): assert c.get('execution_count') is None, i
    for i,o in outputs(nb): assert o.get('execution_count') is None, i

@each
def test_no_metadata(nb):
    assert set(nb['metadata'])<={'kernelspec','nbdev'}
    assert nb['metadata']['kernelspec']==dict(display_name='python3', language='python', name='python3')
    assert not [(i, c['metadata']) for i,c in enumerate(nb['cells']) if c.get('metadata')]
    ids = [c.get('id') for c in nb['cells']]
    assert len(set(ids))==len(ids) and nb['nbformat']==4

@each
def test_no_progress_bars_of_a_console(nb):
    for i,o in outputs(nb):
        assert '\r' not in output_text(o) and '\x1b' not in output_text(o), i
        assert 'progress-bar' not in output_text(o) and '<progress' not in output_text(o), i

machine = re.compile(r'/hom[e]/|/roo[t]/|/wor[k]/|/tm[p]/|/var/folder[s]/|site-package[s]|C:\\\\?User[s]|<ipython-inpu[t]|ipykernel_|\bat 0x[0-9a-f]{6,}')

@each
def test_no_path_of_a_machine(nb):
    for i,o in outputs(nb): assert not (m := machine.search(output_text(o))), (i, m[0])
    for i,c in enumerate(nb['cells']): assert not (m := machine.search(src(c))), (i, m[0])

@each
def test_title_and_blockquote(nb):
    assert nb['cells'][0]['cell_type']=='markdown'
    lines = [o for o in src(nb['cells'][0]).splitlines() if o.strip()]
    assert re.match(r'# \S', lines[0]) and re.match(r'> \S', lines[1])
    assert sum(len(re.findall(r'^# ', re.sub(r'```.*?```', '', o, flags=re.S), re.M)) for o in markdown(nb))==1

@each_lesson
def test_lesson_has_its_parts(nb):
    s = '\n'.join(markdown(nb))
    for o in ('After this lesson you can', '## What you have learned', '## Questions'): assert re.search(rf'^{o}', s, re.M), o
    questions = re.search(r'^## Questions\n(.*?)(?=^## |\Z)', s, re.M|re.S)[1]
    assert 5<=len(re.findall(r'^\d+\. .*\?', questions, re.M|re.S) and re.findall(r'^\d+\. ', questions, re.M))<=8

@each_lesson
def test_lesson_exports_its_module(nb):
    names = [m[1] for c in code(nb) if (m := re.search(r'^#\| *default_exp +(\w+)', src(c), re.M))]
    assert len(names)==1 and (repo/'mnist_fastai'/f'{names[0]}.py').is_file()

@each
def test_it_parses(nb):
    for i,c in enumerate(code(nb)): tree(c)

@each
def test_sentences_stand_between_cells(nb):
    run = 0
    for i,c in enumerate(nb['cells']):
        if not src(c).strip(): continue
        if c['cell_type']=='markdown': run = 0
        elif not directives(c) & {'hide','default_exp'}:
            run += 1
            assert run<=4, f'cell {i}: {src(c)[:60]!r}'

@each
def test_cells_are_short(nb):
    for i,c in enumerate(code(nb)):
        n = len([l for l in src(c).splitlines() if l.strip() and not l.lstrip().startswith('#')])
        assert n<=25 or exported(c), f'{n} lines: {src(c)[:60]!r}'

def speaks(c):
    "Whether a cell prints, or ends in a value, for sure"
    body = tree(c).body
    if any(isinstance(o, ast.Expr) and isinstance(o.value, ast.Call) and getattr(o.value.func, 'id', '')=='print' for o in body): return True
    if not body or not isinstance(body[-1], ast.Expr) or src(c).rstrip().endswith(';'): return False
    return isinstance(body[-1].value, (ast.Name,ast.Attribute,ast.Tuple,ast.BinOp,ast.Compare,ast.JoinedStr))

@each
def test_outputs_are_saved(nb):
    assert outputs(nb), 'run it: nbdev_test --save'
    for c in code(nb):
        if speaks(c) and not exported(c) and not directives(c) & {'eval','hide','output'}: assert c['outputs'], f'no output: {src(c)[:80]!r}'

plots = {'plot','hist','bar','barh','scatter','errorbar','fill_between','boxplot','violinplot','semilogx','semilogy','loglog','hexbin'}
unlabelled_by_fastai = {'plot_loss','plot_sched'}

def called(t): return {getattr(o.func, 'attr', getattr(o.func, 'id', None)): o for o in ast.walk(t) if isinstance(o, ast.Call)}

def draws(t):
    "Names of the plotting methods that are called on axes, figures, frames or fastai's recorder, grids of pictures not among them"
    return [o.func.attr for o in ast.walk(t) if isinstance(o, ast.Call) and isinstance(o.func, ast.Attribute) and o.func.attr in plots | unlabelled_by_fastai]

def labels(t, helpers={}):
    "Which axes are named: by `set_xlabel(..)`, `xlabel(..)`, an argument `xlabel=`, or by a function among `helpers`, which say what they name"
    names = set(called(t)) | {k.arg for o in ast.walk(t) if isinstance(o, ast.Call) for k in o.keywords}
    own = {o for o in 'xy' if names & {f'{o}label',f'set_{o}label',f'sup{o}label'}}
    return own.union(*(helpers.get(o, ()) for o in names))

def labelling(trees):
    "What each function defined in `trees` names, itself or by those that it calls"
    defs,res = {o.name: o for t in trees for o in ast.walk(t) if isinstance(o, ast.FunctionDef)},{}
    while (new := {k: labels(t, res) for k,t in defs.items()})!=res: res = new
    return res

@each
def test_plots_have_labels(nb):
    "A cell that draws names both axes, itself or by a function; exported functions are held to the same where they stand"
    lib = [ast.parse(o.read_text(encoding='utf-8')) for o in (repo/'mnist_fastai').glob('*.py')]
    helpers = labelling(lib + [tree(c) for c in code(nb)])
    for c in code(nb):
        if draws(tree(c)): assert labels(tree(c), helpers)=={'x','y'}, f'{draws(tree(c))} without a label: {src(c)[:80]!r}'

@each
def test_figures_are_spoken_about(nb):
    "Before and after a figure there is a sentence: what to look for, and what was seen"
    cells = [c for c in nb['cells'] if src(c).strip() and not (c['cell_type']=='code' and directives(c) & {'hide'})]
    for i,c in enumerate(cells):
        if not any('image/png' in o.get('data', {}) for o in c.get('outputs', [])): continue
        near = [o['cell_type'] for o in cells[max(0,i-4):i]]
        assert 'markdown' in near and 'markdown' in [o['cell_type'] for o in cells[i+1:i+5]], src(c)[:80]

@each
def test_no_figure_is_saved_as_text_alone(nb):
    for c in code(nb):
        for o in c['outputs']:
            s = output_text(o)
            assert not re.match(r'\s*(<Axes|<Figure|\[<matplotlib|<matplotlib|array\(\[<Axes)', s) or 'image/png' in o.get('data', {}), f'end the line with a semicolon: {src(c)[-80:]!r}'

@each
def test_words_of_this_course(nb):
    for s in markdown(nb): assert not re.search(r'\b(TODO|FIXME|XXX|lorem)\b', s)
