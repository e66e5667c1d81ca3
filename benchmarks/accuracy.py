#!/usr/bin/env python3
"""The accuracy of the two recipes over three seeds, on validation and on test, with its spread.

usage: python benchmarks/accuracy.py [SEED ...]        (default: 42 43 44; writes benchmarks/accuracy.json)

The recipes are chosen by `benchmarks/recipes.py`, on validation alone. The test split is looked at here, after the choice.
"""
import json, sys
from pathlib import Path
import pandas as pd, torch
from mnist_fastai.checkpoint import versions
from mnist_fastai.data import load_mnist
from mnist_fastai.improvement import recipes
from mnist_fastai.training import evaluate, train

def main(seeds):
    data,rows = load_mnist(sample=False),[]
    for seed in seeds:
        for name,recipe in recipes.items():
            learn = train(recipe, data, seed, device='cpu', quiet=True)
            h = learn.history.epochs
            rows.append(dict(network=name, seed=seed, epochs=len(h), seconds=round(float(h.seconds.sum()), 2),
                             **{f'{s}_accuracy': evaluate(learn, s)['accuracy'] for s in ('valid','test')}))
            print(*rows[-1].values(), flush=True)
    df = pd.DataFrame(rows)
    print(df.groupby('network', sort=False)[['valid_accuracy','test_accuracy','seconds']].agg(['mean','std']).to_string(float_format='{:.4f}'.format))
    res = dict(source=data.source, runs=rows, versions=versions(), device='cpu', threads=torch.get_num_threads(), cpu=torch.backends.cpu.get_cpu_capability())
    Path(__file__).with_suffix('.json').write_text(json.dumps(res, indent=1) + '\n', encoding='utf-8')

if __name__=='__main__': main([int(o) for o in sys.argv[1:]] or [42,43,44])
