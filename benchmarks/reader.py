"""How the reader was chosen and how it does: the network that reads other writers' digits in lessons 17 and 18, in
`mnist_predict` and in `mnist_app`.

    python benchmarks/reader.py --grid   # tries the recipes below on validation digits, can be resumed: reader.csv
    python benchmarks/reader.py          # the reader and `ImprovedNetwork` over the seeds 42-44: reader.json
    python benchmarks/reader.py --save   # the same, and puts the network of the first seed into the package

Recipes are judged by validation digits in the forms of `mnist_fastai.synthetic`, brought into MNIST's form by
`preprocess`. The foreign digits (`load_digits` of scikit-learn) are read by the second command alone, after the choice.
"""
import argparse, csv, json, sys, time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np, torch

from measures import accuracy, foreign_digits
import mnist_fastai.inference # adds recipes['Reader']
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

def augment(rotate, scale, shear, thickness):
    return dict(rotate=rotate, scale=scale, shear=shear, shift=1.5, thickness=thickness)

little,middle,much = augment(10, .1, .1, .4),augment(15, .2, .2, .7),augment(20, .3, .4, 1.)
wide = (784,1024,512,256,10)

def variant(augment, epochs=20, **kwargs):
    return replace(recipes['Reader'], kwargs=dict(p=0.) | kwargs, epochs=epochs, augment=augment)

#: Tried, by the names in reader.csv ("bending" is augmentation)
grid = {
    'no bending': recipes['ImprovedNetwork'],
    'a little': variant(little),
    'middle': variant(middle),
    'much': variant(much),
    'middle, pen as it is': variant(middle | dict(thickness=0)),
    'middle, dropout 0.1': variant(middle, p=.1),
    'much, 30 epochs': variant(much, epochs=30),
    'much, wide layers': variant(much, sizes=wide),
}

def preprocess_or_blank(picture):
    try: return preprocess(picture)
    except BlankError: return torch.zeros(28, 28, dtype=torch.uint8)

def all_forms(ds):
    "Images of `ds` as they are and in every simulated form, preprocessed"
    forms = {kind: torch.stack([preprocess_or_blank(o) for o in simulate(ds, kind)]) for kind in capture_kinds}
    return dict(clean=ds.images) | forms

def accuracies(net, forms, labels): return {kind: accuracy(net, Digits(o), labels) for kind,o in forms.items()}

def timed_train(recipe, data, seed):
    "The learner and its seconds"
    start = time.perf_counter()
    learn = train(recipe, data, seed, 'cpu', quiet=True)
    return learn,round(time.perf_counter()-start, 1)

def read_csv(path): return list(csv.DictReader(path.open(encoding='utf-8', newline=''))) if path.exists() else []

def write_csv(path, rows):
    def line(values): return ','.join(f'"{v}"' if ',' in str(v) else str(v) for v in values)
    text = '\n'.join([line(rows[0]), *(line(o.values()) for o in rows)])
    atomic_write(path, (text + '\n').encode())

def run_grid(data, seeds):
    ds,path = data.valid.subset(slice(0, None, 5)),here/'reader.csv'
    forms = all_forms(ds)
    for seed in seeds:
        for name,recipe in grid.items():
            if any((o['recipe'],int(o['seed']))==(name,seed) for o in read_csv(path)): continue
            learn,seconds = timed_train(recipe, data, seed)
            acc = accuracies(learn.model, forms, ds.labels)
            row = dict(recipe=name, seed=seed) | {kind: round(100*v, 3) for kind,v in acc.items()}
            row |= dict(seconds=seconds, threads=torch.get_num_threads(), torch=torch.__version__)
            rows = read_csv(path) + [row] # read again: another process may try other seeds
            rows.sort(key=lambda o: (list(grid).index(o['recipe']), int(o['seed'])))
            write_csv(path, rows)
            mean = np.mean(list(acc.values()))
            print(f'{name}, seed {seed}: {100*mean:.2f} % in all forms, {seconds:.0f} s', flush=True)

def decision_threshold(net, ds):
    "The confidence that 2 % of one half of the digits are below"
    return logits_of(net, ds)[::2].double().softmax(1).amax(1).quantile(.02).item()

def run_arms(data, seeds, save):
    ds,foreign = data.valid.subset(slice(0, None, 5)),foreign_digits()
    forms = all_forms(ds)
    arms = dict(ImprovedNetwork=recipes['ImprovedNetwork'], reader=recipes['Reader'])
    runs,out = [],{}
    for arm,recipe in arms.items():
        for seed in seeds:
            learn,seconds = timed_train(recipe, data, seed)
            net = learn.model
            acc = accuracies(net, forms, ds.labels)
            run = dict(arm=arm, seed=seed, valid_accuracy=accuracy(net, data.valid, data.valid.labels),
                       forms=float(np.mean(list(acc.values()))), **{f'form_{kind}': v for kind,v in acc.items()},
                       load_digits=accuracy(net, foreign, foreign.labels), seconds=seconds)
            runs.append(run)
            print(f'{arm}, seed {seed}: validation {100*run["valid_accuracy"]:.2f} %, '
                  f'all forms {100*run["forms"]:.2f} %, load_digits {100*run["load_digits"]:.2f} %, '
                  f'{seconds:.0f} s', flush=True)
            if arm=='reader' and seed==seeds[0]:
                out = dict(sure_from=decision_threshold(net, data.valid))
                metrics = out | {k: run[k] for k in ('valid_accuracy','load_digits')}
                if save: save_network(learn, here.parent/'mnist_fastai'/'reader.pth', metrics)
    out |= dict(runs=runs, recipes={k: asdict(o) for k,o in arms.items()}, source=data.source, n_train=len(data.train))
    out |= dict(versions=versions(), device='cpu', threads=torch.get_num_threads(),
                cpu=torch.backends.cpu.get_cpu_capability())
    atomic_write(here/'reader.json', (json.dumps(out, indent=1) + '\n').encode())

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--grid', action='store_true', help='try the recipes, seeds 1-3')
    p.add_argument('--seeds', type=int, nargs='+', help='others than 1-3 with --grid, 42-44 without')
    p.add_argument('--save', action='store_true', help='put the network of the first seed into the package')
    args = p.parse_args()
    data = load_mnist(sample=False)
    try:
        if args.grid: run_grid(data, args.seeds or (1,2,3))
        else: run_arms(data, args.seeds or (42,43,44), args.save)
    except KeyboardInterrupt: sys.exit('\nStopped. What was finished is kept, and --grid goes on from there.')
