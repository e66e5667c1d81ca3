#!/usr/bin/env python3
"""Three ways to train several small networks on one machine: \
one after another, side by side in processes, or as one batched network.

usage: python benchmarks/grid.py [--networks N] [--epochs N] [--grid]        (default: 4 networks, 2 epochs)

It takes some two minutes, and writes benchmarks/grid.json and the table in README.md. With --grid the time of a whole
grid is taken as well: four arms, ten seeds, five epochs, as in lesson 9, into a file that is thrown away.
"""
import argparse, json, os, sys, time
from pathlib import Path
from tempfile import TemporaryDirectory
import torch
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from mnist_fastai.core import versions, atomic_write
from mnist_fastai.data import load_mnist
from mnist_fastai.experiments import ablation, environment, run_experiment
from mnist_fastai.improvement import ImprovedNetwork
from mnist_fastai.training import Recipe, train

here,bs = Path(__file__).parent,512

def one_after_another(data, n, recipe):
    "Seconds of training, with all threads of torch"
    return sum(train(recipe, data, seed, 'cpu', quiet=True).history.epochs.seconds.sum() for seed in range(n))

def in_processes(data, n, recipe):
    """Seconds from the first start of a process to the last result, and seconds without the start

    Without the start: the longer of the two processes' training."""
    with TemporaryDirectory() as d:
        start = time.perf_counter()
        runs = run_experiment({'a': recipe}, range(n), Path(d)/'x.json', data, processes=2, quiet=True)
        return time.perf_counter()-start, sum(o['seconds'] for o in runs)/2

def batched(data, n, recipe):
    """Seconds of training `n` networks as one, by `vmap`

    Each sees the digits in an order of its own, and is validated after each epoch, like the others."""
    torch.manual_seed(0)
    nets = [ImprovedNetwork(**recipe.kwargs) for _ in range(n)]
    params,buffers = stack_module_state(nets)
    params = {k: v.detach().requires_grad_() for k,v in params.items()}
    net = nets[0].to('meta')
    def loss(p, b, x, y): return nn.functional.cross_entropy(functional_call(net, (p,b), (x,)), y)
    step = vmap(grad_and_value(loss), randomness='different')
    predict = vmap(lambda p,b,x: functional_call(net, (p,b), (x,)), in_dims=(0,0,None))
    opt = torch.optim.Adam(params.values(), lr=recipe.lr, fused=True)
    (x,y),(xv,yv) = ((o[:][0].as_subclass(torch.Tensor).flatten(1), o.labels) for o in (data.train, data.valid))
    start = time.perf_counter()
    for _ in range(recipe.epochs):
        net.train()
        order = torch.stack([torch.randperm(len(x)) for _ in range(n)])
        for idx in order.split(bs, 1):
            grads,_ = step(params, buffers, x[idx], y[idx])
            for k,p in params.items(): p.grad = grads[k]
            opt.step()
        net.eval()
        with torch.no_grad():
            accs = torch.stack([(predict(params, buffers, o).argmax(2)==t).double().mean(1)
                                for o,t in zip(xv.split(2048), yv.split(2048))]).mean(0)
    if accs.min()<.9: sys.exit(f'The batched networks did not learn: {accs.tolist()}')
    return time.perf_counter()-start

def markdown(res):
    per = res['networks']*res['epochs']
    rows = [(f'one after another, {res["threads"]} threads', res['sequential']),
            ('side by side, 2 processes with one thread each', res['processes']),
            ('the same, with the start of the processes', res['processes_all']),
            (f'{res["networks"]} as one batched network (`vmap`), {res["threads"]} threads', res['batched'])]
    lines = ['| way | seconds a network and epoch | against the first |','|---|--:|--:|'] + [
        f'| {k} | {v/per:.2f} | {res["sequential"]/v:.2f} times as fast |' for k,v in rows]
    if res['grid']:
        lines += ['', f'A grid of four arms, ten seeds and five epochs, two processes: {res["grid"]:.0f} s in all.']
    c = res['circumstances']
    return '\n'.join(lines + [
        '',
        f'{res["networks"]} networks (784-512-256-128-10 with batch normalization and dropout), '
        f'{res["epochs"]} epochs, batch size {bs}; {c["processor"]}, {res["cpus"]} CPUs, '
        f'{c["capability"]}, load {res["load"]} at the start; torch {c["versions"]["torch"]}.'])

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--networks', type=int, default=4)
    p.add_argument('--epochs', type=int, default=2)
    p.add_argument('--grid', action='store_true', help='take the time of a whole grid, too: some minutes more')
    args = p.parse_args()
    data,recipe = (load_mnist(sample=False),
                   Recipe('ImprovedNetwork', dict(p=.2), epochs=args.epochs, bs=bs, schedule='constant'))
    res = dict(networks=args.networks, epochs=args.epochs, threads=torch.get_num_threads(), cpus=os.cpu_count(),
               load=round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None,
               circumstances=environment(data), grid=None)
    train(Recipe('Network', epochs=1, bs=bs), data, 0, 'cpu', quiet=True) # the first run of a process is slower
    res['sequential'] = float(one_after_another(data, args.networks, recipe))
    res['batched'] = batched(data, args.networks, recipe)
    res['processes_all'],res['processes'] = in_processes(data, args.networks, recipe)
    if args.grid:
        with TemporaryDirectory() as d:
            start = time.perf_counter()
            run_experiment(ablation(epochs=5, bs=bs, lr=5e-3), range(10), Path(d)/'grid.json', data)
            res['grid'] = time.perf_counter()-start
    table = markdown(res)
    print(table)
    atomic_write(here/'grid.json', (json.dumps(res, indent=1) + '\n').encode())
    text,(a,b) = (here/'README.md').read_text(encoding='utf-8'),('<!-- grid -->','<!-- /grid -->')
    atomic_write(here/'README.md', f'{text[:text.index(a)+len(a)]}\n{table}\n{text[text.index(b):]}'.encode())

if __name__=='__main__': main()
