#!/usr/bin/env python3
"""The accuracy of the two recipes over three seeds, on validation and on test, with its spread.

The accuracy of the nearest mean image, the bar for both, is computed too.

usage: python benchmarks/accuracy.py [SEED ...]        (default: 42 43 44)

It writes benchmarks/accuracy.json, and the looks at the test digits into results/final_test.json.

Each seed is a run of `mnist_train`. The recipes are chosen by `benchmarks/recipes.py`, on validation alone. The test
split is looked at here, after the choice, by `final_test`, once for each network.
"""
import json, sys
from pathlib import Path
from tempfile import TemporaryDirectory
import pandas as pd, torch
from mnist_fastai.core import versions
from mnist_fastai.cli import main as mnist_train
from mnist_fastai.data import load_mnist
from mnist_fastai.eda import NearestMean
from mnist_fastai.final_test import final_test

here = Path(__file__).parent

def nearest_mean(data):
    "Accuracy without a network, on validation"
    said = NearestMean().fit(data.train).predict(data.valid.images)
    return dict(valid_accuracy=(said==data.valid.labels).double().mean().item())

def main(seeds):
    data,rows = load_mnist(sample=False),[]
    for seed in seeds:
        with TemporaryDirectory() as tmp:
            if code := mnist_train(['--out', tmp, '--seed', str(seed), '--no-sample', '--device', 'cpu']): return code
            for name,res in json.loads((Path(tmp)/'results.json').read_text(encoding='utf-8'))['networks'].items():
                look = final_test(Path(tmp)/f'{name}.pth', here.parent/'results'/'final_test.json', data=data)
                rows.append(dict(network=name, seed=seed, epochs=res['epochs'], seconds=round(res['seconds'], 2),
                                 valid_accuracy=res['valid_accuracy'],
                                 test_accuracy=look['accuracy'], sha256=look['sha256']))
    df = pd.DataFrame(rows)
    print(df.groupby('network', sort=False)[['valid_accuracy','test_accuracy','seconds']]
          .agg(['mean','std']).to_string(float_format='{:.4f}'.format))
    res = dict(source=data.source, runs=rows, nearest_mean=nearest_mean(data), versions=versions(), device='cpu',
               threads=torch.get_num_threads(), cpu=torch.backends.cpu.get_cpu_capability())
    Path(__file__).with_suffix('.json').write_text(json.dumps(res, indent=1) + '\n', encoding='utf-8')

if __name__=='__main__': sys.exit(main([int(o) for o in sys.argv[1:]] or [42,43,44]))
