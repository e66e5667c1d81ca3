"""The command `mnist_train`: train both networks, compare them, save them.

A plain file: what it does is taught in lessons 6 to 8, and this only strings it together.
"""

__all__ = ['main']

import argparse, io, json, math, sys
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryFile

from mnist_fastai.core import Locked, UserError, atomic_write, file_lock, printable, versions

def _number(kind, ok, what):
    "An argparse type: a number of `kind` that is `ok`, or else the message that it is not `what`"
    def parse(s):
        try:
            if ok(v := kind(s)): return v
        except ValueError: pass
        raise argparse.ArgumentTypeError(f'{s!r} is not {what}')
    return parse

def _parser():
    count = _number(int, lambda v: v>0, 'a whole number from 1 up')
    rate = _number(float, lambda v: 0<v<math.inf, 'a number above 0')
    seed = _number(int, lambda v: 0<=v<2**32, f'a whole number from 0 to {2**32-1}')
    p = argparse.ArgumentParser('mnist_train', description='Train networks on MNIST, compare them, and save them.',
                                epilog='An option that is left out is taken from the recipe of lesson 7.')
    p.add_argument('--out', type=Path, default=Path('trained'),
                   help='folder for NAME.pth of each network, losses.png, results.json (default: trained)')
    p.add_argument('--networks', nargs='+', metavar='NAME', default=['Network','ImprovedNetwork'],
                   help='names of recipes (default: Network ImprovedNetwork)')
    p.add_argument('--epochs', type=count, help='passes over the training split')
    p.add_argument('--batch-size', type=count, dest='bs', help='digits a step')
    p.add_argument('--lr', type=rate, help='highest learning rate')
    p.add_argument('--seed', type=seed, default=42, help='of the run (default: 42)')
    p.add_argument('--device', help='cpu, cuda or mps (default: a GPU if there is one)')
    p.add_argument('--sample', action=argparse.BooleanOptionalAction,
                   help='use the packaged sample; or never use it (default: where MNIST cannot be reached)')
    p.add_argument('--mirror',
                   help='URL or absolute folder of the four archives, tried first (default: MNIST_FASTAI_MIRROR)')
    p.add_argument('--root',
                   help='folder where MNIST is kept (default: MNIST_FASTAI_ROOT, else the data folder of fastai)')
    return p

def _device(name):
    "The device called `name`, if this machine has it"
    import torch
    if name is None: return None
    try:
        torch.zeros(1, device=name).item() # a device without memory, such as meta, fails here
        return torch.device(name)
    except Exception: raise ValueError(f'There is no device {name!r} here: use cpu, or leave --device out.') from None

class _Output:
    "The folder that results are written to; `done` holds the names of the finished files"
    def __init__(self, folder): self.folder,self.done = folder,[]

    def prepare(self):
        "Make the folder, and check before time is spent that it can be written to"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=self.folder).close()
        except OSError as e: raise self.error(self.folder, e) from None

    def lock(self): return file_lock(self.folder/'.mnist_train.lock') # two commands would mix their files

    def write(self, name, save):
        "Call `save` with the path of the file called `name`"
        path = self.folder/name
        try: save(path)
        except OSError as e: raise UserError(f'{self.error(path, e)} {self.finished()}') from None
        self.done.append(name)

    def error(self, path, e):
        return UserError(f'{path} cannot be written to ({e.strerror or e}): '
                         'make room, or choose another folder with --out.')

    def finished(self):
        if not self.done: return 'Nothing was finished or written.'
        return f'Finished and whole in {self.folder}: {", ".join(self.done)}.'

def _train_one(name, recipe, args, data, device, out):
    "Train and save one network; the learner, and its row of results"
    import numpy as np
    from mnist_fastai.checkpoint import save_network
    from mnist_fastai.improvement import summarize
    from mnist_fastai.training import train
    print(f'\n{name}: epochs {recipe.epochs}, batch size {recipe.bs}, '
          f'learning rate up to {recipe.lr:g}, seed {args.seed}')
    learn = train(recipe, data, args.seed, device)
    if not np.isfinite(learn.history.epochs[['train_loss','valid_loss']].to_numpy()).all():
        raise ValueError(f'The loss of {name} is no longer a number: choose a smaller --lr than {recipe.lr:g}.')
    table = summarize({name: learn}, ('valid','test'))
    row = table.to_dict('index')[name]
    metrics = {k: v for k,v in row.items() if k.startswith(('valid_','test_'))}
    out.write(f'{name}.pth', lambda path: save_network(learn, path, metrics))
    return learn,table

def _run(args, out):
    "Train, save, compare"
    import matplotlib
    matplotlib.use('agg')
    from mnist_fastai.data import load_mnist
    from mnist_fastai.improvement import recipes # which brings the two recipes
    from mnist_fastai.loaders import digit_dls
    from mnist_fastai.models import find_model
    from mnist_fastai.training import digit_learner, find_recipe
    device = _device(args.device)
    changes = {k: v for k,v in dict(epochs=args.epochs, bs=args.bs, lr=args.lr).items() if v is not None}
    plan = {name: replace(find_recipe(name), **changes) for name in args.networks}
    out.prepare()
    with out.lock():
        data = load_mnist(args.root, args.mirror, args.sample)
        what = dict(mnist='MNIST, every file verified',
                    sample='the packaged sample of MNIST; results are from the sample')
        print(f'Data: {what[data.source]} ({len(data.train):,} digits to train on, '
              f'{len(data.valid):,} for validation, {len(data.test):,} for the test).')
        for r in plan.values(): # what cannot be trained raises its error before anything is trained
            digit_learner(digit_dls(data, r.bs), find_model(r.arch)(**r.kwargs))
        trained = {name: _train_one(name, recipe, args, data, device, out) for name,recipe in plan.items()}
        _write_results(trained, plan, args.seed, data.source, out)

def _write_results(trained, plan, seed, source, out):
    "Write the plot and the results of all networks, and print the table"
    import pandas as pd, torch
    from mnist_fastai.training import plot_losses
    learns = {name: learn for name,(learn,_) in trained.items()}
    results = {}
    for name,(learn,table) in trained.items():
        history = learn.history.epochs.drop(columns='fit').to_dict('records')
        results[name] = dict(table.to_dict('index')[name], seed=seed, recipe=asdict(plan[name]), history=history)
    png = io.BytesIO()
    plot_losses(learns).figure.savefig(png, dpi=120, bbox_inches='tight')
    out.write('losses.png', lambda path: atomic_write(path, png.getvalue()))
    res = dict(source=source, networks=results, versions=versions(), device=str(learn.dls.device),
               threads=torch.get_num_threads())
    text = json.dumps(res, indent=1, allow_nan=False) + '\n'
    out.write('results.json', lambda path: atomic_write(path, text.encode()))
    formats = dict(parameters='{:,}'.format, seconds='{:.1f}'.format)
    table = pd.concat([table for _,table in trained.values()])
    print('\n' + table.to_string(formatters=formats, float_format='{:.4f}'.format))
    print(f'\nWritten to {out.folder}: ' + ', '.join(out.done))

def main(argv=None):
    "Entry point of `mnist_train`; returns the exit code"
    args = _parser().parse_args(argv)
    out = _Output(args.out)
    if hasattr(sys.stdout, 'reconfigure'): sys.stdout.reconfigure(line_buffering=True) # progress through a pipe, too
    try:
        _run(args, out)
        return 0
    except KeyboardInterrupt:
        print(f'\nStopped. {printable(out.finished())}', file=sys.stderr)
        return 130
    except Locked:
        why = f'Another mnist_train writes into {args.out}: wait for it, or choose another folder with --out.'
    except (UserError,ImportError,ValueError,OSError) as e: why = e
    print(f'mnist_train: {printable(why)}', file=sys.stderr)
    return 1

if __name__=='__main__': sys.exit(main())
