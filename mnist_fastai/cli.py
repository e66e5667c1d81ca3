"""The command `mnist_train`: train networks, compare them, save them.

While it runs, the state of each training is kept in the output folder, as NAME.resume, and the same command goes on
from there after a stop. All states are removed at the end.

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
                                epilog='An option that is left out is taken from the recipe of the network. After '
                                       'Ctrl-C or a crash, the same command goes on after the last finished epoch.')
    p.add_argument('--out', type=Path, default=Path('trained'),
                   help='folder for NAME.pth of each network, losses.png, results.json (default: trained)')
    p.add_argument('--networks', nargs='+', metavar='NAME', default=['Network','ImprovedNetwork'],
                   help='names of recipes, such as ConvNet (default: Network ImprovedNetwork)')
    p.add_argument('--epochs', type=count, help='passes over the training split')
    p.add_argument('--batch-size', type=count, dest='bs', help='digits a step')
    p.add_argument('--lr', type=rate, help='highest learning rate')
    p.add_argument('--precision', choices=('float32','bfloat16','fastest'),
                   help='of the forward pass in training; fastest is what a short measurement finds faster here')
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

    def state(self, name): return self.folder/f'{name}.resume' # of the training of that network

    def remove_state(self, name):
        "Remove the state of a training, and what a killed command has left of one"
        for o in (self.state(name), *self.folder.glob(f'.new-{name}.resume-*')): o.unlink(missing_ok=True)

    def stopped(self, names):
        "What to say after Ctrl-C"
        kept = any(self.state(o).exists() for o in names)
        return self.finished() + kept*' The same command goes on after the last finished epoch.'

def _check_training(recipe, args, data, device, state):
    "Do all of a training but its epochs: what cannot be trained or gone on with raises its error. Gives the precision"
    from fastai.callback.core import Callback
    from fastai.learner import CancelFitException
    from mnist_fastai.callbacks import Resume
    from mnist_fastai.training import train
    class Cancel(Callback):
        order = Resume.order + 1
        def before_fit(self): raise CancelFitException
    return train(recipe, data, args.seed, device, quiet=True, cbs=[Resume(state),Cancel()]).precision

def _train_one(name, recipe, precision, args, data, device, out):
    "Train and save one network; the learner, and its row of results"
    import numpy as np
    from mnist_fastai.callbacks import Resume
    from mnist_fastai.checkpoint import save_network
    from mnist_fastai.improvement import summarize
    from mnist_fastai.training import train
    print(f'\n{name}: epochs {recipe.epochs}, batch size {recipe.bs}, '
          f'learning rate up to {recipe.lr:g}, seed {args.seed}, {precision}')
    learn = train(recipe, data, args.seed, device, cbs=Resume(out.state(name)), precision=precision)
    if not np.isfinite(learn.history.epochs[['train_loss','valid_loss']].to_numpy()).all():
        out.remove_state(name)
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
    from mnist_fastai.training import find_recipe
    device = _device(args.device)
    options = dict(epochs=args.epochs, bs=args.bs, lr=args.lr, precision=args.precision)
    changes = {k: v for k,v in options.items() if v is not None}
    plan = {name: replace(find_recipe(name), **changes) for name in args.networks}
    out.prepare()
    with out.lock():
        data = load_mnist(args.root, args.mirror, args.sample)
        what = dict(mnist='MNIST, every file verified',
                    sample='the packaged sample of MNIST; results are from the sample')
        print(f'Data: {what[data.source]} ({len(data.train):,} digits to train on, '
              f'{len(data.valid):,} for validation, {len(data.test):,} for the test).')
        chosen = {name: _check_training(r, args, data, device, out.state(name)) for name,r in plan.items()}
        trained = {name: _train_one(name, r, chosen[name], args, data, device, out) for name,r in plan.items()}
        _write_results(trained, plan, args.seed, data.source, out)
        for name in plan: out.remove_state(name)

def _write_results(trained, plan, seed, source, out):
    "Write the plot and the results of all networks, and print the table"
    import pandas as pd, torch
    from mnist_fastai.training import plot_losses
    learns = {name: learn for name,(learn,_) in trained.items()}
    results = {}
    for name,(learn,table) in trained.items():
        history = learn.history.epochs.drop(columns='fit').to_dict('records')
        results[name] = dict(table.to_dict('index')[name], seed=seed, precision=learn.precision,
                             recipe=asdict(plan[name]), history=history)
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
        print(f'\nStopped. {printable(out.stopped(args.networks))}', file=sys.stderr)
        return 130
    except Locked:
        why = f'Another mnist_train writes into {args.out}: wait for it, or choose another folder with --out.'
    except (UserError,ImportError,ValueError,OSError) as e: why = e
    print(f'mnist_train: {printable(why)}', file=sys.stderr)
    return 1

if __name__=='__main__': sys.exit(main())
