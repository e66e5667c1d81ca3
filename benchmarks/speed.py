#!/usr/bin/env python3
"""How fast an epoch of training is on `digit_dls`, beside the usual ways and beside the practical limit.

What importing and `mnist_train` cost is measured too.

usage: python benchmarks/speed.py --update-readme        (some 4 minutes on 2 idle cores)

It writes benchmarks/speed.json and the tables of README.md. What is measured, and how to read it, stands in README.md
in this folder.
"""
import argparse, io, json, os, platform, re, statistics, subprocess, sys, time
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import mnist_fastai # before fastai: it silences a warning of torch
import torch, torch.nn.functional as F
from torch import nn
from fastai.basics import CrossEntropyLossFlat, Learner, accuracy, set_seed
from fastai.callback.progress import ProgressCallback
from mnist_fastai.core import atomic_write
from mnist_fastai.files import DataError
from mnist_fastai.data import Mnist, load_mnist, mnist_mean, mnist_std
from mnist_fastai.loaders import digit_dls
from mnist_fastai.files import mnist_root
from mnist_fastai.improvement import ImprovedNetwork
from mnist_fastai.training import digit_learner, fused_adam

here,lr,n_all,n_png = Path(__file__).resolve().parent,1e-3,50_000,10_000

# --- an epoch
# Each function returns a function that trains one more epoch and returns the digits it saw and the seconds it took.

def learner_epoch(learn):
    "The training part of an epoch of a `Learner`, with all its callbacks; validation is not timed"
    seconds,inner,dl = [],learn._do_epoch_train,learn.dls.train
    def timed():
        start = time.perf_counter()
        inner()
        seconds.append(time.perf_counter() - start)
    learn._do_epoch_train = timed
    def epoch():
        with redirect_stdout(io.StringIO()): learn.fit(1)
        return (len(dl)*dl.bs if dl.drop_last else dl.n), seconds[-1]
    return epoch

def loop_epoch(batches, n):
    "An epoch of a plain loop over `batches()`"
    net = ImprovedNetwork().train()
    opt = torch.optim.Adam(net.parameters(), lr=lr, fused=True)
    def epoch():
        start = time.perf_counter()
        for xb,yb in batches():
            loss = F.cross_entropy(net(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
        return n, time.perf_counter() - start
    return epoch

# --- the ways

def ours(data, bs):
    "`digit_learner` as it comes, its output kept and not drawn"
    with redirect_stdout(io.StringIO()):
        return learner_epoch(digit_learner(digit_dls(data, bs, device='cpu'), ImprovedNetwork(), lr=lr))

def bare(data, bs):
    "Normalized floats in memory, indexed by a permutation: as little as can be done for each step"
    x,y = ((data.train.images.flatten(1).float()/255 - mnist_mean)/mnist_std, data.train.labels)
    def batches():
        for i in torch.randperm(len(x)).split(bs): yield x[i],y[i]
    return loop_epoch(batches, len(x))

def usual(data, workers):
    "torchvision's `MNIST`, `ToTensor`, `Normalize` and torch's `DataLoader`"
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import MNIST
    ds = MNIST(mnist_root(), transform=transforms.Compose([
        transforms.ToTensor(), transforms.Normalize((mnist_mean,), (mnist_std,))]))
    ds.data,ds.targets = ds.data[data.train.idxs],ds.targets[data.train.idxs] # the same digits
    dl = DataLoader(ds, batch_size=256, shuffle=True, num_workers=workers)
    return loop_epoch(lambda: dl, len(ds))

class OneChannel(nn.Module):
    "`ImageDataLoaders` give grey images three equal channels, and the network takes 784 pixels: one channel will do"
    def __init__(self): super().__init__(); self.net = ImprovedNetwork()
    def forward(self, x): return self.net(x[:,:1])

def image_learner(dls, net): # as fastai's users write it; no bar is drawn for any way
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), opt_func=fused_adam, lr=lr, metrics=accuracy)
    learn.remove_cb(ProgressCallback)
    return learner_epoch(learn)

def image_loaders(path):
    from fastai.vision.data import ImageDataLoaders
    return image_learner(ImageDataLoaders.from_folder(path, bs=256, device='cpu'), OneChannel())

def grey_block(path):
    from fastai.vision.all import (
        CategoryBlock, DataBlock, GrandparentSplitter, ImageBlock, PILImageBW, get_image_files, parent_label)
    block = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_items=get_image_files, get_y=parent_label,
                      splitter=GrandparentSplitter())
    return image_learner(block.dataloaders(path, bs=256, device='cpu'), ImprovedNetwork())

def write_pngs(data, path, n):
    "The first `n` training digits, and 100 of validation, as PNG files in a folder for each class"
    from PIL import Image
    for split,digits in (('train',data.train.subset(slice(n))), ('valid',data.valid.subset(slice(100)))):
        for i in range(10): (path/split/str(i)).mkdir(parents=True)
        for i,(x,y) in enumerate(zip(digits.images.numpy(), digits.labels.tolist())):
            Image.fromarray(x).save(path/split/str(y)/f'{i}.png')

def measure(data, path, n, repeats):
    "All ways in turn, `repeats` times, every other time from last to first; a list for each way"
    images = min(n, n_png)
    print(f'Writing {images:,} PNG files', flush=True)
    write_pngs(data, path, images)
    data = Mnist(data.train.subset(slice(n)), data.valid.subset(slice(256)), data.test, data.source)
    ways = {
        'Learner on digit_dls, bs 256': lambda: ours(data, 256),
        'Learner on digit_dls, bs 512': lambda: ours(data, 512),
        'bare loop in memory, bs 256': lambda: bare(data, 256),
        'bare loop in memory, bs 512': lambda: bare(data, 512),
        'torchvision, torch DataLoader, 0 workers': lambda: usual(data, 0),
        'torchvision, torch DataLoader, 2 workers': lambda: usual(data, 2),
        'fastai ImageDataLoaders, PNG': lambda: image_loaders(path),
        'fastai grey DataBlock, PNG': lambda: grey_block(path)}
    set_seed(42)
    ways,runs = {k: f() for k,f in ways.items()},{k: [] for k in ways}
    # untimed: what torch does once
    bare(Mnist(data.train.subset(slice(5120)), data.valid, data.test, data.source), 256)()
    for i in range(repeats):
        for k in list(ways)[::1 if i%2==0 else -1]:
            seen,seconds = ways[k]()
            runs[k].append(dict(digits=seen, seconds=seconds, rate=seen/seconds))
            print(f'round {i+1} of {repeats}  {k:42}{seen:>7,} digits {seconds:7.2f} s '
                  f'{seen/seconds:8,.0f} a second', flush=True)
    return runs

# --- importing and training, in processes of their own

def import_seconds(n=5):
    "Seconds that two imports take, alternating, after one of each that does not count"
    code,res = ('import time; t = time.perf_counter(); import {}; print(time.perf_counter()-t)',
                {'fastai.basics':[], 'mnist_fastai.data':[]})
    for i in range(n+1):
        for k,v in res.items():
            out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code.format(k)],
                                 check=True, capture_output=True, text=True).stdout
            if i: v.append(float(out))
    return res

# A process of its own, and a small one: the peak of a child counts from what its parent held
_watch = '''
import json, subprocess, sys, time
start = time.perf_counter()
p = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
res = dict(seconds=time.perf_counter()-start, code=p.returncode, output=p.stdout, peak=None)
try:
    import resource
    res['peak'] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss*(1 if sys.platform=='darwin' else 1024)
except ImportError: pass
print(json.dumps(res))'''

def train_seconds(*args):
    "`mnist_train`, all of it: seconds, and bytes at its peak"
    with TemporaryDirectory() as tmp:
        cmd = [sys.executable, '-m', 'mnist_fastai.cli', '--out', tmp, *args]
        res = json.loads(subprocess.run([sys.executable, '-c', _watch, *cmd],
                                        check=True, capture_output=True, text=True).stdout)
    if res['code']: sys.exit(f'mnist_train ended with {res["code"]}:\n{res["output"]}')
    return dict(seconds=res['seconds'], peak=res['peak'])

# --- the result

def machine():
    cpu,info = platform.processor(),Path('/proc/cpuinfo')
    if info.exists() and (m := re.search(r'model name\s*: (.+)', info.read_text())): cpu = m[1]
    return dict(processor=cpu or platform.machine(), cpus=os.cpu_count(), threads=torch.get_num_threads(),
                capability=torch.backends.cpu.get_cpu_capability(), system=platform.system(),
                load=round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None,
                **{o: version(o) for o in ('torch','torchvision','fastai','mnist_fastai')},
                python=platform.python_version())

def targets(res):
    "What is aimed at: its name, what was measured, the aim, and whether it is met (None: not measured)"
    def ratio(a, b): # of the same round
        return statistics.median(x['rate']/y['rate'] for x,y in zip(res['runs'][a], res['runs'][b]))
    us = 'Learner on digit_dls, bs '
    rows = [(f'Learner on digit_dls against {b}', ratio(us + '256', b), lo) for b,lo in (
        ('torchvision, torch DataLoader, 0 workers', 3),
        ('torchvision, torch DataLoader, 2 workers', 3),
        ('fastai ImageDataLoaders, PNG', 10),
        ('fastai grey DataBlock, PNG', 7),
        ('bare loop in memory, bs 256', .8))]
    rows.append(('Learner on digit_dls against bare loop in memory, bs 512',
                 ratio(us + '512', 'bare loop in memory, bs 512'), .87))
    rows = [(name, f'{v:.2f} times', f'at least {lo:g}', v>=lo) for name,v,lo in rows]
    rows += [(f'bare loop against {b}: what any loader can reach at most',
              f'{ratio("bare loop in memory, bs 256", b):.2f} times', '', None)
             for b in ('torchvision, torch DataLoader, 0 workers', 'fastai ImageDataLoaders, PNG')]
    imports,train = ({k: statistics.median(v) for k,v in res['imports'].items()},
                     res['train'] or dict(seconds=None, peak=None))
    for name,v,hi,unit in (
            ('import mnist_fastai.data, beyond import fastai.basics',
             imports['mnist_fastai.data']-imports['fastai.basics'], .3, 's'),
            ('mnist_train, both networks, from a warm cache', train['seconds'], 60, 's'),
            ('mnist_train, memory at its peak', train['peak'] and train['peak']/1e9, 1.5, 'GB')):
        rows.append((name, 'not measured' if v is None else f'{v:.2f} {unit}', f'below {hi:g} {unit}',
                     None if v is None else v<hi))
    return rows

def markdown(res):
    "The result as two tables and a line about the machine"
    m,rates = res['machine'],{k: [o['rate'] for o in v] for k,v in res['runs'].items()}
    lines = ['| way | digits an epoch | samples a second, median | lowest to highest |', '|---|--:|--:|--:|']
    for k,v in rates.items():
        lines.append(f'| {k} | {res["runs"][k][0]["digits"]:,} | {statistics.median(v):,.0f} | '
                     f'{min(v):,.0f} to {max(v):,.0f} |')
    # the same script on other machines
    others = [json.loads(o.read_text(encoding='utf-8')) for o in sorted(here.glob('speed-*.json'))]
    columns = [targets(o) for o in (res, *others)]
    lines += ['', '| what | target | ' + ' | '.join(
        f'{o["machine"]["processor"]}, {o["machine"]["capability"]}' for o in (res, *others)) + ' |',
              '|---|--:|' + '--:|'*len(columns)]
    for rows in zip(*columns):
        lines.append(f'| {rows[0][0]} | {rows[0][2]} | ' + ' | '.join(
            v + {True:'', False:' (**not met**)', None:''}[met] for _,v,_,met in rows) + ' |')
    n = len(next(iter(rates.values())))
    lines += ['', f'{n} round{"s"*(n>1)}, on {m["processor"]}, {m["cpus"]} CPUs, '
                  f'{m["threads"]} thread{"s"*(m["threads"]>1)} of torch, {m["capability"]}, '
                  f'load {m["load"]} at the start; {m["system"]}, Python {m["python"]}, '
                  + ', '.join(f'{o} {m[o]}' for o in ('torch','torchvision','fastai','mnist_fastai')) + '.']
    return '\n'.join(lines)

def put_into(text, table):
    "`text` with `table` between its two marks"
    a,b = '<!-- table -->','<!-- end of table -->'
    if text.count(a)!=1 or text.count(b)!=1:
        raise ValueError(f'The README must have {a} and {b} once each: put them back.')
    return text[:text.index(a)+len(a)] + f'\n{table}\n' + text[text.index(b):]

def update_readme(table):
    atomic_write(here/'README.md', put_into((here/'README.md').read_text(encoding='utf-8'), table).encode())

def main():
    p = argparse.ArgumentParser(
        description='Measure how fast training is, several ways side by side, on the full MNIST and the CPU.')
    p.add_argument('--epochs-of', type=int, default=n_all, metavar='N',
                   help=f'digits in an epoch; fewer than {n_all:,} only to try the script')
    p.add_argument('--repeats', type=int, default=3, help='rounds, each with all ways (default: 3)')
    p.add_argument('--out', type=Path,
                   help='JSON file for all that was measured (default: speed.json beside this script, '
                        'after whole epochs)')
    p.add_argument('--no-train', action='store_true', help='leave out mnist_train')
    p.add_argument('--tables', action='store_true', help='measure nothing: put the tables of speed.json into README.md')
    p.add_argument('--update-readme', action='store_true', help='put the tables into README.md beside this script')
    args = p.parse_args()
    n,whole = args.epochs_of,args.epochs_of==n_all
    if args.tables: return update_readme(markdown(json.loads((here/'speed.json').read_text(encoding='utf-8'))))
    if not 512<=n<=n_all or n%256==1:
        p.error(f'--epochs-of must be 512 to {n_all:,} and leave no batch of one digit, not {n}')
    if args.repeats<1: p.error(f'--repeats must be at least 1, not {args.repeats}')
    if args.update_readme and not whole: p.error('--update-readme is for whole epochs: leave --epochs-of out')
    if os.environ.get('MNIST_FASTAI_SAMPLE', '').strip()=='1':
        sys.exit('The benchmark is of the full MNIST and not of the sample: leave MNIST_FASTAI_SAMPLE out.')
    try: data = load_mnist(sample=False)
    except DataError as e:
        sys.exit('The benchmark is of the full MNIST, which cannot be had. '
                 + re.sub(', or set MNIST_FASTAI_SAMPLE.*', '.', str(e)))
    res = dict(machine=machine())
    if (load := res['machine']['load'] or 0)>.5:
        print(f'This machine is busy (load {load}): do not quote these figures.', file=sys.stderr)
    res['imports'] = import_seconds()
    if not args.no_train: print('Running mnist_train', flush=True)
    res['train'] = None if args.no_train else train_seconds('--no-sample')
    with TemporaryDirectory() as tmp: res['runs'] = measure(data, Path(tmp), n, args.repeats)
    res['targets'] = targets(res)
    table = markdown(res)
    print(f'\n{table}')
    out = args.out or (here/'speed.json' if whole else None)
    if out: print(f'\nWritten to {atomic_write(out, (json.dumps(res, indent=1) + chr(10)).encode())}')
    if args.update_readme: update_readme(table)

if __name__=='__main__': main()
