"What a user installs from an sdist or a wheel works away from this checkout"
import os, shutil, subprocess, sys, tarfile, zipfile
from pathlib import Path

import pytest

from conftest import repo

pytestmark = pytest.mark.slow

def run(*args, cwd, **env):
    p = subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=os.environ | env,
                       text=True, capture_output=True, timeout=600)
    assert p.returncode==0, p.stderr[-2000:]
    return p.stdout

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "An sdist made from what is checked in, and a wheel made from that sdist, as `python -m build` makes them"
    pytest.importorskip('build')
    folder = tmp_path_factory.mktemp('built')
    files = subprocess.run(['git','ls-files','-z','--cached','--others','--exclude-standard'],
                           cwd=repo, capture_output=True, check=True).stdout.decode()
    for o in filter(None, files.split('\0')):
        # the package needs none of these
        if not (repo/o).is_file() or o.startswith(('nbs/','results/','benchmarks/')): continue
        (folder/'src'/o).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repo/o, folder/'src'/o)
    pytest.importorskip('setuptools')
    run('-m', 'build', '--no-isolation', '--outdir', folder/'dist', folder/'src', cwd=folder)
    return {o.suffix: o for o in (folder/'dist').iterdir()}

def test_what_is_inside(built):
    with tarfile.open(built['.gz']) as t: names = {o.split('/', 1)[1] for o in t.getnames() if '/' in o}
    assert {'settings.ini','LICENSE','README.md','setup.py','pyproject.toml',
            'mnist_fastai/sample.npz','mnist_fastai/reader.pth'}<=names
    with zipfile.ZipFile(built['.whl']) as z: names = set(z.namelist())
    for o in ('sample.npz','SAMPLE.md','reader.pth','app.html','core.py','data.py','_modidx.py'):
        assert f'mnist_fastai/{o}' in names, o

@pytest.mark.parametrize('kind', ['.gz','.whl'], ids=['sdist','wheel'])
def test_it_trains_from_another_folder(built, kind, tmp_path):
    home = tmp_path/'site'
    run('-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation', '--target', home, built[kind],
        cwd=tmp_path)
    code = 'import mnist_fastai; print(mnist_fastai.__file__)'
    assert Path(run('-c', code, cwd=tmp_path, PYTHONPATH=str(home)).strip()).is_relative_to(home)
    run('-m', 'mnist_fastai.cli', '--epochs', 1, '--sample', '--out', tmp_path/'out',
        cwd=tmp_path, PYTHONPATH=str(home))
    assert ({o.name for o in (tmp_path/'out').glob('[!.]*')}
            =={'Network.pth','ImprovedNetwork.pth','losses.png','results.json'})
