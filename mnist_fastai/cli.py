"""The command `mnist_train`: train both networks, compare them, save them.

A plain file: what it does is taught in lessons 4 to 6, and this only strings it together.
"""

__all__ = ['main']

import argparse, io, json, math, os, sys
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryFile

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
    p = argparse.ArgumentParser('mnist_train', description='Train Network and ImprovedNetwork on MNIST, compare them, and save both.',
                                epilog='Where an option is left out, the recipe of lesson 5 holds.')
    p.add_argument('--out', type=Path, default=Path('trained'), help='folder for Network.pth, ImprovedNetwork.pth, losses.png, results.json (default: trained)')
    p.add_argument('--networks', nargs='+', metavar='NAME', choices=['Network','ImprovedNetwork'], default=['Network','ImprovedNetwork'], help='which to train (default: both)')
    p.add_argument('--epochs', type=count, help='passes over the training split')
    p.add_argument('--batch-size', type=count, dest='bs', help='digits a step')
    p.add_argument('--lr', type=rate, help='highest learning rate')
    p.add_argument('--seed', type=seed, default=42, help='of the run (default: 42)')
    p.add_argument('--device', help='cpu, cuda or mps (default: a GPU if there is one)')
    p.add_argument('--sample', action=argparse.BooleanOptionalAction, help='use the packaged sample; or never use it (default: where MNIST cannot be had)')
    p.add_argument('--mirror', help='URL or absolute folder of the four archives, tried first (default: MNIST_FASTAI_MIRROR)')
    p.add_argument('--root', help='folder where MNIST is kept (default: MNIST_FASTAI_ROOT, else the data folder of fastai)')
    return p

def _device(name):
    "The device called `name`, if this machine has it"
    import torch
    if name is None: return None
    try:
        torch.zeros(1, device=name).item() # a device without memory, such as meta, fails here
        return torch.device(name)
    except Exception: raise ValueError(f'There is no device {name!r} here: use cpu, or leave --device out.') from None

def _writable(out):
    "Make `out`, and make sure before time is spent that it can be written to"
    try:
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()
    except OSError as e: raise OSError(f'{out} cannot be written to ({e.strerror or e}): make room, or choose another folder with --out.') from None

def _run(args, done):
    "Train, save, compare; the names of finished files go into `done`"
    import matplotlib
    matplotlib.use('agg')
    import numpy as np, pandas as pd, torch
    from mnist_fastai.checkpoint import save_network, versions, write_whole
    from mnist_fastai.data import digit_dls, load_mnist
    from mnist_fastai.improvement import recipes, summarize
    from mnist_fastai.training import archs, digit_learner, plot_losses, train
    device = _device(args.device)
    _writable(args.out)
    data = load_mnist(args.root, args.mirror, args.sample)
    print({'mnist':'Data: MNIST, every file verified', 'sample':'Data: the packaged sample of MNIST; results are from the sample'}[data.source] +
          f' ({len(data.train):,} digits to train on, {len(data.valid):,} for validation, {len(data.test):,} for the test).')
    changes = {k: v for k,v in dict(epochs=args.epochs, bs=args.bs, lr=args.lr).items() if v is not None}
    plan = {name: replace(recipes[name], **changes) for name in args.networks}
    for r in plan.values(): digit_learner(digit_dls(data, r.bs), archs[r.arch](**r.kwargs)) # what cannot be trained is told before anything is
    learns,rows,results = {},[],{}
    for name,recipe in plan.items():
        print(f'\n{name}: epochs {recipe.epochs}, batch size {recipe.bs}, learning rate up to {recipe.lr:g}, seed {args.seed}')
        learn = learns[name] = train(recipe, data, args.seed, device)
        h = learn.history.epochs
        if not np.isfinite(h[['train_loss','valid_loss']].to_numpy()).all():
            raise ValueError(f'The loss of {name} is no longer a number: choose a smaller --lr than {recipe.lr:g}.')
        rows.append(summarize({name: learn}, ('valid','test')))
        row = rows[-1].to_dict('index')[name]
        results[name] = dict(row, seed=args.seed, recipe=asdict(recipe), history=h.drop(columns='fit').to_dict('records'))
        done.append(save_network(learn, args.out/f'{name}.pth', {k: v for k,v in row.items() if k.startswith(('valid_','test_'))}))
    ax,png = plot_losses(learns),io.BytesIO()
    ax.figure.savefig(png, dpi=120, bbox_inches='tight')
    done.append(write_whole(args.out/'losses.png', png.getvalue()))
    res = dict(source=data.source, networks=results, versions=versions(), device=str(learn.dls.device), threads=torch.get_num_threads())
    done.append(write_whole(args.out/'results.json', (json.dumps(res, indent=1, allow_nan=False) + '\n').encode()))
    formats = dict(parameters='{:,}'.format, seconds='{:.1f}'.format)
    print('\n' + pd.concat(rows).to_string(formatters=formats, float_format='{:.4f}'.format))
    print(f'\nWritten to {args.out}: ' + ', '.join(o.name for o in done))

def main(argv=None):
    "Entry point of `mnist_train`; returns the exit code"
    args,done = _parser().parse_args(argv),[]
    if hasattr(sys.stdout, 'reconfigure'): sys.stdout.reconfigure(line_buffering=True) # progress is seen through a pipe, too
    try:
        from mnist_fastai.files import DataError
        _run(args, done)
    except KeyboardInterrupt:
        whole = ', '.join(o.name for o in done)
        print('\nStopped. ' + (f'Finished and whole in {args.out}: {whole}.' if whole else 'Nothing was finished, so nothing was written.'), file=sys.stderr)
        return 130
    except (DataError, ValueError, OSError) as e:
        print(f'mnist_train: {e}', file=sys.stderr)
        return 1
    return 0

def few_threads(cells):
    "Called by nbdev_test before its workers start (see pyproject.toml): one thread each, or they wait for one another"
    os.environ.setdefault('OMP_NUM_THREADS', '1')

if __name__=='__main__': sys.exit(main())
