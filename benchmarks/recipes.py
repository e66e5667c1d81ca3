#!/usr/bin/env python3
"""Choose the two recipes of `mnist_fastai.improvement` by accuracy on validation.

usage: python benchmarks/recipes.py [SEED ...]        (default: 1 2 3; some 20 minutes on 2 cores; writes benchmarks/recipes.csv, a line as soon as a run is finished)

Runs in the file are not repeated, so a stopped search goes on where it was. The test split is not touched.
"""
import csv, sys
from pathlib import Path
import torch
from mnist_fastai.data import load_mnist
from mnist_fastai.training import Recipe, evaluate, train

epochs,out = 7,Path(__file__).with_suffix('.csv')
seeds = [int(o) for o in sys.argv[1:]] or [1,2,3]
grid = [Recipe('Network', {}, epochs, bs, lr) for bs,lr in ((256,2e-3),(256,3e-3),(256,5e-3),(256,1e-2),(512,3e-3),(512,5e-3))]
adam = dict(sqr_mom=.99)
adamw = dict(sqr_mom=.99, wd=.05)
grid += [Recipe('ImprovedNetwork', dict(p=p), epochs, bs, lr) for p,bs,lr in
         ((.1,256,5e-3),(.1,256,1e-2),(.1,512,1e-2),(.05,256,1e-2),(.15,256,1e-2),(.2,256,1e-2))]
grid += [Recipe('Network', {}, epochs, 256, 5e-3, **o) for o in (adam,adamw)] + [Recipe('ImprovedNetwork', dict(p=.15), epochs, 256, 1e-2, **o) for o in (adam,adamw)]

def key(recipe, seed): return [recipe.arch, str(recipe.kwargs.get('p', '')), str(recipe.bs), str(recipe.lr), str(recipe.wd), str(recipe.sqr_mom), str(recipe.epochs), str(seed)]

def main():
    torch.set_num_threads(1) # a result depends on the number of threads; with one, two searches can share a machine
    data = load_mnist(sample=False)
    done = [row[:8] for row in csv.reader(out.open())] if out.exists() else []
    for seed in seeds:
        for recipe in grid:
            if key(recipe, seed) in done: continue
            learn = train(recipe, data, seed, device='cpu', quiet=True)
            scores = evaluate(learn)
            row = key(recipe, seed) + [f"{scores['accuracy']:.4f}", f"{scores['loss']:.4f}"]
            with out.open('a', newline='') as f:
                w = csv.writer(f, lineterminator='\n')
                if not done and f.tell()==0: w.writerow('network p bs lr wd sqr_mom epochs seed valid_accuracy valid_loss'.split())
                w.writerow(row)
            print(*row, flush=True)

if __name__=='__main__': sys.exit(main())
