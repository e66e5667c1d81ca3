"""How the reader was chosen and how it does: the network that reads people's own digits in lessons 16 and 18, in `mnist_predict` and in `mnist_app`.

    python benchmarks/reader.py --grid      # tries the recipes below on validation digits, goes on where it was stopped: reader.csv
    python benchmarks/reader.py             # the chosen recipe and the one without bending over the seeds 42-44: reader.json
    python benchmarks/reader.py --save      # the same, and puts the network of the first seed into the package

Recipes are judged by digits of the validation split in the forms of `mnist_fastai.synthetic`, prepared by `preprocess`. The foreign digits (`load_digits` of
scikit-learn) are read by the second command alone, after the choice.
"""
import argparse, csv, json, sys, time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np, torch

from mnist_fastai.checkpoint import save_network
from mnist_fastai.core import versions, atomic_write
from mnist_fastai.data import Digits, load_mnist
from mnist_fastai.improvement import recipes
from mnist_fastai.images import BlankError
from mnist_fastai.preprocess import preprocess
from mnist_fastai.interpret import logits_of
from mnist_fastai.synthetic import simulate, capture_kinds
from mnist_fastai.training import train

here = Path(__file__).parent
little,middle,much = (dict(rotate=r, scale=s, shear=h, shift=1.5, thickness=t) for r,s,h,t in ((10,.1,.1,.4), (15,.2,.2,.7), (20,.3,.4,1.)))
wide = (784,1024,512,256,10)
#: Tried, by name
grid = {
    'no bending': recipes['ImprovedNetwork'],
    'a little': replace(recipes['Reader'], kwargs=dict(p=0.), epochs=20, augment=little),
    'middle': replace(recipes['Reader'], kwargs=dict(p=0.), epochs=20, augment=middle),
    'much': replace(recipes['Reader'], kwargs=dict(p=0.), epochs=20, augment=much),
    'middle, pen as it is': replace(recipes['Reader'], kwargs=dict(p=0.), epochs=20, augment=middle | dict(thickness=0)),
    'middle, dropout 0.1': replace(recipes['Reader'], kwargs=dict(p=.1), epochs=20, augment=middle),
    'much, 30 epochs': replace(recipes['Reader'], kwargs=dict(p=0.), epochs=30, augment=much),
    'much, wide layers': replace(recipes['Reader'], kwargs=dict(p=0., sizes=wide), epochs=20, augment=much),
}

def form(picture):
    try: return preprocess(picture)
    except BlankError: return torch.zeros(28, 28, dtype=torch.uint8)

def forms_of(ds):
    "`ds` as it is and in every form, prepared"
    return dict(clean=ds.images) | {k: torch.stack([form(o) for o in simulate(ds, k)]) for k in capture_kinds}

def accuracies(net, forms, labels): return {k: (logits_of(net, Digits(o)).argmax(1)==labels).double().mean().item() for k,o in forms.items()}

def run_grid(data, seeds):
    ds = data.valid.subset(slice(0, None, 5))
    forms,path = forms_of(ds),here/'reader.csv'
    def kept(): return list(csv.DictReader(path.open(encoding='utf-8', newline=''))) if path.exists() else []
    for seed in seeds:
        for name,recipe in grid.items():
            rows = kept()
            if any((o['recipe'],int(o['seed']))==(name,seed) for o in rows): continue
            start = time.perf_counter()
            learn = train(recipe, data, seed, 'cpu', quiet=True)
            seconds = time.perf_counter()-start
            acc,rows = accuracies(learn.model, forms, ds.labels),kept() # another process may try other seeds
            rows.append(dict(recipe=name, seed=seed, **{k: round(100*v, 3) for k,v in acc.items()}, seconds=round(seconds, 1), threads=torch.get_num_threads(), torch=torch.__version__))
            rows.sort(key=lambda o: (list(grid).index(o['recipe']), int(o['seed'])))
            text = '\n'.join(','.join(f'"{v}"' if ',' in str(v) else str(v) for v in o) for o in [list(rows[0]), *(list(o.values()) for o in rows)])
            atomic_write(path, (text + '\n').encode())
            print(f'{name}, seed {seed}: {100*np.mean(list(acc.values())):.2f} % in all forms, {seconds:.0f} s', flush=True)

def run_arms(data, seeds, save):
    from sklearn.datasets import load_digits
    ds,f = data.valid.subset(slice(0, None, 5)),load_digits()
    forms,foreign = forms_of(ds),torch.stack([preprocess((o/16).astype(np.float32)) for o in f.images])
    runs,out = [],{}
    for arm,recipe in dict(ImprovedNetwork=recipes['ImprovedNetwork'], reader=recipes['Reader']).items():
        for seed in seeds:
            start = time.perf_counter()
            learn = train(recipe, data, seed, 'cpu', quiet=True)
            seconds,net = time.perf_counter()-start,learn.model
            logits,right = logits_of(net, data.valid),lambda o,y: (o.argmax(1)==y).double().mean().item()
            acc = accuracies(net, forms, ds.labels)
            run = dict(arm=arm, seed=seed, valid_accuracy=right(logits, data.valid.labels), forms=float(np.mean(list(acc.values()))), **{f'form_{k}': v for k,v in acc.items()},
                       load_digits=right(logits_of(net, Digits(foreign)), torch.tensor(f.target)), seconds=round(seconds, 1))
            runs.append(run)
            print(f'{arm}, seed {seed}: validation {100*run["valid_accuracy"]:.2f} %, all forms {100*run["forms"]:.2f} %, load_digits {100*run["load_digits"]:.2f} %, {seconds:.0f} s', flush=True)
            if arm=='reader' and seed==seeds[0]:
                threshold = logits[::2].double().softmax(1).amax(1).quantile(.02).item() # 2 % of one half of validation are below
                out = dict(sure_from=threshold)
                if save: save_network(learn, here.parent/'mnist_fastai'/'reader.pth', dict(sure_from=threshold, valid_accuracy=run['valid_accuracy'], load_digits=run['load_digits']))
    out |= dict(runs=runs, recipes={k: asdict(o) for k,o in dict(ImprovedNetwork=recipes['ImprovedNetwork'], reader=recipes['Reader']).items()}, source=data.source, n_train=len(data.train),
               versions=versions(), device='cpu', threads=torch.get_num_threads(), cpu=torch.backends.cpu.get_cpu_capability())
    atomic_write(here/'reader.json', (json.dumps(out, indent=1) + '\n').encode())

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--grid', action='store_true', help='try the recipes, seeds 1-3')
    p.add_argument('--seeds', type=int, nargs='+', help='others than 1-3 with --grid, 42-44 without')
    p.add_argument('--save', action='store_true', help='put the network of seed 42 into the package')
    args = p.parse_args()
    data = load_mnist(sample=False)
    try: run_grid(data, args.seeds or (1,2,3)) if args.grid else run_arms(data, args.seeds or (42,43,44), args.save)
    except KeyboardInterrupt: sys.exit('\nStopped. What was finished is kept, and --grid goes on from there.')
