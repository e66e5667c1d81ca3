#!/usr/bin/env python3
"""Run the experiments of lessons 9, 13 and 14 and keep every run in `results/`.

usage: python tools/grids.py [--seeds N] [--processes N] [--stale replace|keep] [NAME ...]
(default: all grids, seeds 1 to 10, 2 processes; forty minutes on 2 cores)

Runs that are in the files are not repeated, so a stopped grid goes on where it was.
"""
import argparse, sys, time
from pathlib import Path

root = Path(__file__).resolve().parents[1]

def main():
    sys.path.insert(0, str(root/'benchmarks')) # for the processes too
    from measures import measure
    from mnist_fastai.data import load_mnist
    from mnist_fastai.experiments import grids, run_experiment
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(grids())} (default: all)')
    p.add_argument('--seeds', type=int, default=10, help='how many (default: 10)')
    p.add_argument('--processes', type=int, default=2, help='runs at a time (default: 2)')
    p.add_argument('--stale', default='error', choices=('error','replace','keep'),
                   help='runs that were made otherwise: stop, make anew, or use as they are')
    args = p.parse_args()
    if unknown := set(args.names)-set(grids()):
        p.error(f'there is no grid {", ".join(sorted(unknown))}: choose from {", ".join(grids())}')
    data,folder = load_mnist(sample=False),root/'results'
    for name in args.names or grids():
        start = time.perf_counter()
        print(f'\n{name}', flush=True)
        run_experiment(grids()[name], range(1, args.seeds+1), folder/f'{name}.json', data,
                       processes=args.processes, stale=args.stale,
                       measure=measure if name in ('convolution','augmentation') else None)
        print(f'{name}: {time.perf_counter()-start:.0f} s', flush=True)

if __name__=='__main__':
    try: sys.exit(main())
    except KeyboardInterrupt:
        sys.exit('\nStopped. Finished runs are in results/; the same command continues from there.')
    except ValueError as e: sys.exit(str(e))
