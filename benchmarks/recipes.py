#!/usr/bin/env python3
"""Choose the two recipes of `mnist_fastai.improvement` by accuracy on validation.

usage: python benchmarks/recipes.py [SEED ...]        (default: 1 2 3)

It takes some 20 minutes; two calls with different seeds share 2 cores well. It writes benchmarks/recipes.csv, a line as
soon as a run is finished. Runs in the file are not repeated, so a stopped search goes on where it was. The test split
is not touched.
"""
import csv, sys
from pathlib import Path
import torch
from mnist_fastai.data import load_mnist
from mnist_fastai.training import Recipe, evaluate, train

epochs,out = 10,Path(__file__).with_suffix('.csv')
seeds = [int(o) for o in sys.argv[1:]] or [1,2,3]
grid = ([Recipe('Network', {}, epochs, 256, lr, wd=wd, sqr_mom=.99) for lr,wd in
         ((5e-3,0.),(5e-3,.05),(5e-3,.2),(3e-3,.1),(3e-3,.2),(3e-3,.4),(2e-3,.4))] +
        [Recipe('ImprovedNetwork', dict(p=p), epochs, 256, lr, wd=wd, sqr_mom=.99) for p,lr,wd in
         ((.2,5e-3,0.),(.2,5e-3,.1),(.2,5e-3,.2),(.2,5e-3,.4),(.2,3e-3,.2),(.2,1e-2,.1),
          (.15,5e-3,.1),(.15,5e-3,.2),(.3,5e-3,.2))])

def key(recipe, seed):
    return [recipe.arch, str(recipe.kwargs.get('p', '')), str(recipe.bs), str(recipe.lr), str(recipe.wd),
            str(recipe.sqr_mom), str(recipe.epochs), str(seed)]

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
                if not done and f.tell()==0:
                    w.writerow('network p bs lr wd sqr_mom epochs seed valid_accuracy valid_loss'.split())
                w.writerow(row)
            print(*row, flush=True)

if __name__=='__main__': sys.exit(main())
