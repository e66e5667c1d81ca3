"The package as a package: one description, light imports, modules that import downwards, and no trace of a machine"
import ast, os, re, runpy, shutil, subprocess, sys
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path

import pytest

import mnist_fastai
from conftest import repo, run_python

ini = ConfigParser(interpolation=None, delimiters=['='])
ini.read(repo/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib = repo/cfg['lib_path']
modules = sorted(o for o in lib.glob('*.py') if o.name not in ('__init__.py','_modidx.py'))

#: A module may import from those on the lines above it, and `eda` and `models` not from each other
layers = [['core'], ['files','images','synthetic','augment','callbacks'], ['data'],
          ['eda','loaders','models'], ['training'], ['improvement','checkpoint','convolution'],
          ['stats','experiments','interpret'], ['confidence','debugging','ensemble','preprocess'], ['inference'],
          ['app','cli','export','final_test','predict']]

# --- settings.ini

def captured_setup(folder, monkeypatch):
    "What setup.py in `folder` hands to setuptools"
    setuptools,res = pytest.importorskip('setuptools'),{}
    monkeypatch.setattr(setuptools, 'setup', lambda **kwargs: res.update(kwargs))
    runpy.run_path(str(folder/'setup.py'))
    return res

def test_setup_follows_settings(tmp_path, monkeypatch):
    "Change each value in a copy of settings.ini: what setup.py hands over changes with it"
    lib_copy = tmp_path/'other_lib'
    lib_copy.mkdir()
    (lib_copy/'__init__.py').write_text('"doc"\n__version__ = "9.8.7"\n')
    shutil.copy(repo/'setup.py', tmp_path)
    (tmp_path/'README.md').write_text('# read me')
    new = ConfigParser(interpolation=None, delimiters=['='])
    new['DEFAULT'] = {k: v for k,v in cfg.items() if not k.endswith('_requirements')} | dict(
        lib_name='other_name', lib_path='other_lib', description='100 % other',
        author='someone', license='MIT', min_python='3.99', keywords='one two',
        requirements='aaa>=1 bbb', dev_requirements='ccc', more_requirements='ddd eee',
        console_scripts='x=y:z', package_data='q.npz')
    with (tmp_path/'settings.ini').open('w') as f: new.write(f)
    kw = captured_setup(tmp_path, monkeypatch)
    want = dict(name='other_name', version='9.8.7', description='100 % other', author='someone', license='MIT',
                python_requires='>=3.99', keywords=['one','two'],
                install_requires=['aaa>=1','bbb'], extras_require=dict(dev=['ccc'], more=['ddd','eee']),
                packages=['other_lib'], package_data=dict(other_lib=['q.npz']), long_description='# read me')
    assert {k: kw[k] for k in want}==want
    assert kw['entry_points']==dict(console_scripts=['x=y:z'], nbdev=['other_lib=other_lib._modidx:d'])

def test_setup_holds_nothing_of_its_own():
    s = (repo/'setup.py').read_text(encoding='utf-8')
    # the two left out: an entry point's name, and what it calls
    names = ({re.split('[<>=!~;]', o)[0] for k in cfg if k.endswith('requirements') for o in cfg[k].split()}
             - {'nbdev','setuptools'})
    assert not re.search(r'\d+\.\d+', s)
    for o in (*names, cfg['description'], cfg['author'], cfg['license'], 'mnist'):
        assert not re.search(rf'\b{re.escape(o)}\b', s), o

def test_installed_package_agrees():
    dist = distribution(cfg['lib_name'])
    meta,again = dist.metadata,'settings.ini has changed since the package was installed: pip install -e . again'
    assert (meta['Name'].replace('-','_')==cfg['lib_name'] and meta['Summary']==cfg['description']
            and meta['Author']==cfg['author']), again
    assert meta['Version']==mnist_fastai.__version__ and meta['Requires-Python']=='>='+cfg['min_python'], again
    def canonical(s): return re.split('[<>=!~]', s)[0],frozenset(re.findall(r'[<>=!~]+[^,<>=!~]+', s))
    got = {}
    for o in dist.requires:
        req,_,marker = o.replace(' ','').partition(';')
        got.setdefault(re.sub(r'extra==["\'](\w+)["\']', r'\1', marker), set()).add(canonical(req))
    want = {'': 'requirements'} | {k.removesuffix('_requirements'): k for k in cfg if k.endswith('_requirements')}
    assert got=={extra: {canonical(o) for o in cfg[k].split()} for extra,k in want.items()}, again
    assert set(meta.get_all('Provides-Extra'))==set(want)-{''}, again
    scripts = {f'{o.name}={o.value}' for o in dist.entry_points if o.group=='console_scripts'}
    assert scripts==set(cfg['console_scripts'].split()), again

def test_scripts_resolve():
    scripts = {o.name: o for o in distribution(cfg['lib_name']).entry_points if o.group=='console_scripts'}
    assert {'mnist_train','mnist_final_test','mnist_predict','mnist_app',
            'nbdev_test','nbdev_export','nbdev_clean'}<=set(scripts)
    for o in scripts.values():
        assert callable(o.load()), o.name
        assert shutil.which(o.name, path=Path(sys.executable).parent) or shutil.which(o.name), o.name
    import nbdev.clean, nbdev.doclinks, nbdev.test # they are nbdev's own
    assert ([scripts[o].load() for o in ('nbdev_test','nbdev_export','nbdev_clean')]
            ==[nbdev.test.nbdev_test, nbdev.doclinks.nbdev_export, nbdev.clean.nbdev_clean])

def test_pyproject_repeats_lib_path_alone():
    s = (repo/'pyproject.toml').read_text(encoding='utf-8')
    table = re.search(r'^\[tool\.nbdev\]\n(.*?)(?=^\[|\Z)', s, re.M|re.S)[1]
    keys = dict(re.findall(r'^(\w+) *= *(.*)$', table, re.M))
    assert keys.pop('lib_path')==f'"{cfg["lib_path"]}"'
    assert not set(keys) & set(cfg) and not re.search(r'^\[project\]', s, re.M) # the other keys are nbdev's alone
    assert (not set(re.findall(r'^(\w+) *=', s, re.M))
            & {'name','version','description','dependencies','requires-python','nbs_path'})

def test_nbdev_reads_the_same():
    from nbdev.config import get_config
    c = get_config(path=repo)
    assert Path(c.lib_path)==lib and Path(c.nbs_path)==repo/cfg['nbs_path']

def test_requirements_are_not_pinned():
    for k in cfg:
        if k.endswith('requirements'): assert '==' not in cfg[k] and '===' not in cfg[k] and '~=' not in cfg[k], k
    assert 'mlxtend' not in str(dict(cfg))

def test_python_of_the_settings():
    assert sys.version_info>=tuple(map(int, cfg['min_python'].split('.')))
    for o in [*lib.glob('*.py'), repo/'setup.py']:
        ast.parse(o.read_text(encoding='utf-8'), feature_version=tuple(map(int, cfg['min_python'].split('.'))))

def test_package_data_is_there():
    for o in cfg['package_data'].split(): assert (lib/o).is_file()
    beside = {o.name for o in lib.iterdir()
              if o.is_file() and o.suffix not in ('.py','.pyc') and not o.name.startswith('.')}
    assert beside<=set(cfg['package_data'].split()), 'a file that would not be installed'

def test_version_is_written_once():
    s = '\n'.join(o.read_text(encoding='utf-8') for o in [repo/'settings.ini', repo/'setup.py', repo/'pyproject.toml'])
    assert (not re.search(r'^version\s*=\s*["\']?\d', s, re.M)
            and re.fullmatch(r'\d+\.\d+\.\d+', mnist_fastai.__version__))
    assert sum(o.read_text(encoding='utf-8').count('__version__ =') for o in lib.glob('*.py'))==1

#: What a module is called where that differs from what is installed
distributions = dict(PIL='pillow', sklearn='scikit-learn')

def test_all_that_is_imported_is_declared():
    extras = {'app': ['gradio','starlette'], 'export': ['onnx','onnxruntime','safetensors','torch'], 'dev': []}
    declared = {re.split('[<>=!~;]', o)[0] for o in cfg['requirements'].split()}
    for path in modules:
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import): names |= {o.name.split('.')[0] for o in node.names}
            if isinstance(node, ast.ImportFrom) and node.level==0: names.add(node.module.split('.')[0])
        names = {distributions.get(o, o) for o in names} - set(sys.stdlib_module_names) - {'mnist_fastai'}
        assert names<=declared | set(extras.get(path.stem, [])), (path.stem, names-declared)

# --- imports

imports = """
import sys
def has(*names): return [o for o in names if o in sys.modules]
import mnist_fastai
print(has('torch','fastai','numpy','matplotlib'))
import mnist_fastai.files
print(has('torch','fastai','torchvision'))
import mnist_fastai.data
print(has('mnist_fastai.training','torchvision','torchvision.datasets','fastai.vision','fastai.vision.core',\
'fastai.vision.learner','sklearn.datasets','nbdev'))
import mnist_fastai.models
print(has('torchvision','fastai.vision'))
"""

def test_imports_are_light_and_silent():
    p = run_python(imports)
    assert p.returncode==0, p.stderr
    assert p.stdout.splitlines()==['[]']*4
    assert p.stderr=='' # no warning of torch's, which would be kept in every notebook

def imported(path):
    "Modules of this package that the one at `path` imports, wherever in it"
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom):
            if node.level==1 or node.module=='mnist_fastai':
                if node.module in (None,'mnist_fastai'): yield from (o.name for o in node.names)
                else: yield node.module.split('.')[0]
            elif (node.module or '').startswith('mnist_fastai.'): yield node.module.split('.')[1]
        if isinstance(node, ast.Import):
            yield from (o.name.split('.')[1] for o in node.names if o.name.startswith('mnist_fastai.'))

@pytest.mark.parametrize('path', modules, ids=lambda o: o.stem)
def test_imports_go_downwards(path):
    rank = {o: i for i,layer in enumerate(layers) for o in layer}
    assert path.stem in rank, f'say in `layers` where {path.stem} stands'
    names = set(imported(path)) - {'__version__','_modidx'}
    assert not names - set(rank), names
    for o in names: assert rank[o]<rank[path.stem], f'{path.stem} imports {o}, which stands beside or above it'

@pytest.mark.parametrize('path', modules, ids=lambda o: o.stem)
def test_modules_say_what_they_are(path):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    assert ast.get_docstring(tree), 'the blockquote below the title of the notebook is missing'
    names = next((ast.literal_eval(o.value) for o in tree.body
                  if isinstance(o, ast.Assign) and o.targets[0].id=='__all__'), None)
    assert names, 'nothing is exported'
    for o in tree.body: # what is exported says what it does
        if isinstance(o, (ast.FunctionDef,ast.ClassDef)) and o.name in names and not ast.get_docstring(o):
            assert isinstance(o, ast.ClassDef) and len(o.body)<3, f'{o.name} has no docstring'

@pytest.mark.parametrize('path', modules, ids=lambda o: o.stem)
def test_generated_modules_come_from_a_notebook(path):
    s = path.read_text(encoding='utf-8')
    if path.stem in ('callbacks','core','files','images','synthetic','cli','final_test','predict'): return
    nb = re.search(r'# AUTOGENERATED! DO NOT EDIT! File to edit: \.\./(\S+)\.$', s, re.M)
    assert nb and (repo/nb[1]).is_file()

# --- nothing of the machine it was made on

machine = re.compile(r'/wor[k]/|/tmp/ven[v]|/roo[t]/|/site-package[s]/|/home/\w+/|C:\\User[s]|<ipython-inpu[t]')

def text_files():
    if not (repo/'.git').exists() or not shutil.which('git'): pytest.skip('not a checkout')
    p = subprocess.run(['git','ls-files','-z','--cached','--others','--exclude-standard'],
                       cwd=repo, capture_output=True, check=True)
    for o in p.stdout.decode().split('\0'):
        path = repo/o
        if not o or not path.is_file(): continue
        raw = path.read_bytes()
        if b'\0' not in raw[:8192]: yield o,raw.decode('utf-8')

def test_no_path_of_a_machine():
    found = [f'{name}: {m[0]}' for name,s in text_files() if (m := machine.search(s))]
    assert not found, found

def test_text_files_are_text():
    for name,s in text_files():
        assert '\r' not in s, name
        if s and not name.endswith(('.ipynb','.txt','.svg')) and '\n# AUTOGENERATED!' not in s:
            assert s.endswith('\n'), name

def test_no_merge_marks_and_no_large_files():
    for name,s in text_files(): assert not re.search(r'^(<<<<<<<|>>>>>>>) ', s, re.M), name
    p = subprocess.run(['git','ls-files','-z'], cwd=repo, capture_output=True, check=True)
    for o in p.stdout.decode().split('\0'):
        if o and (repo/o).is_file(): assert (repo/o).stat().st_size<5_000_000, o
