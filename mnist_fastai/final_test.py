"""The command `mnist_final_test`: the one look of a saved network at the test digits, and the log that keeps it.

A plain file: why there is one look, and what a log is for, is taught in lesson 9.
"""

__all__ = ['final_test', 'read_log', 'main']

import argparse, hashlib, json, os, sys
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path

default_log,differ_most = 'results/final_test.json',2 # how many of 10,000 answers may differ on another machine, where rounding does
_format,_keys = 'mnist_fastai final test 1',{'file','sha256','when','accuracy','loss','n','wrong','card','versions','device','threads','cpu'}

def read_log(
    log=default_log, # The file of looks that were taken
)->list: # A dict for each, oldest first; none if there is no such file
    "What `final_test` has logged. Raises `ValueError` if the file is not whole"
    log = Path(log)
    try:
        d = json.loads(log.read_text(encoding='utf-8'))
        looks = d['looks'] if d['format']==_format else None
        if not isinstance(looks, list) or not all(isinstance(o, dict) and _keys<=set(o) for o in looks): raise ValueError('not what final_test writes')
    except FileNotFoundError: return []
    except OSError as e: raise OSError(f'{log} cannot be read ({e.strerror or e}): name another log with --log.') from None
    except (ValueError,KeyError,TypeError) as e:
        raise ValueError(f'{log} is damaged or no log of final_test ({" ".join(str(e).split())}): get it back from version control. Nothing was written.') from None
    return looks

@contextmanager
def _locked(log):
    "One process at a time appends to `log`"
    from mnist_fastai.core import Locked, file_lock
    with ExitStack() as stack:
        try: stack.enter_context(file_lock(log.with_name(f'.{log.name}.lock'), timeout=60))
        except Locked:
            raise OSError(f'Another process has been writing {log} for a minute: '
                          'wait for it or end it, then run again.') from None
        except OSError as e:
            raise OSError(f'{log} cannot be written ({e.strerror or e}): make room, or name another log with --log.') from None
        yield

def _look(net, data):
    "Loss, accuracy, and each wrong answer on the test digits: position in the split, answer, and probability given to it"
    import torch
    from mnist_fastai.interpret import logits_of
    logits,y = logits_of(net, data.test),data.test.labels
    p,said = logits.softmax(1).max(1)
    wrong = (said!=y).nonzero().flatten().tolist()
    return dict(accuracy=(said==y).double().mean().item(), loss=torch.nn.functional.cross_entropy(logits, y).item(), n=len(y),
                wrong=[[i, int(said[i]), round(float(p[i]), 4)] for i in wrong])

def _differ(a, b):
    "On how many digits two looks have other answers"
    a,b = ({i: said for i,said,_ in o['wrong']} for o in (a,b))
    return sum(a.get(i)!=b.get(i) for i in set(a) | set(b))

def _check_again(seen, now, path, log):
    "Raise `ValueError` unless a second look at a logged checkpoint finds what the first did"
    n = _differ(seen, now)
    if n>differ_most or abs(seen['accuracy']-now['accuracy'])*seen['n']>differ_most+.5 or abs(seen['loss']-now['loss'])>1e-3:
        raise ValueError(f'{path} answers {n} of {seen["n"]:,} test digits other than {log} says, with accuracy {now["accuracy"]:.4f} and loss {now["loss"]:.4f} '
                         f'against {seen["accuracy"]:.4f} and {seen["loss"]:.4f}: the log was changed, or this machine computes otherwise.')
    print(f'{path}: as logged on {seen["when"][:10]}, test accuracy {100*seen["accuracy"]:.2f} %, {n} of {seen["n"]:,} answers differ; nothing was written.')
    return dict(seen, logged=False, differ=n)

def final_test(
    path, # A file made by `save_network` from a network trained on MNIST
    log=default_log, # File to append to
    verify:bool=False, # Whether only to look again at a logged checkpoint, and never to write
    data=None, # By default `load_mnist(sample=False)`
)->dict: # The entry of the log; `logged`: whether it is new; `differ`: how many answers are not those of the log
    """Evaluate a saved network on the 10,000 test digits, and log it: once for each checkpoint, known by its SHA-256.

    For a logged checkpoint it looks again, compares, and writes nothing. Raises `ValueError` for a network or digits that are not of MNIST,
    a log that is damaged or says otherwise, and with `verify` for a checkpoint that is not logged; `OSError` if the log cannot be written."""
    import torch
    from mnist_fastai.checkpoint import load_network
    from mnist_fastai.core import atomic_write, versions
    from mnist_fastai.data import load_mnist
    path,log = Path(path),Path(log)
    net = load_network(path)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    if set(net.train_sources)!={'mnist'}:
        raise ValueError(f'{path} was trained on {" and ".join(map(repr, net.train_sources))}: the final test is for networks trained on the training split of MNIST alone.')
    def find(): return next((o for o in read_log(log) if o['sha256']==sha), None)
    seen = find()
    if verify and not seen: raise ValueError(f'{path} is not in {log}: leave --verify out to take the one look and log it.')
    data = data or load_mnist(sample=False)
    if data.source!='mnist': raise ValueError('The final test is on the test split of MNIST, and these digits are of the sample: load MNIST.')
    now = _look(net, data)
    if seen: return _check_again(seen, now, path, log)
    with _locked(log):
        if seen := find(): return _check_again(seen, now, path, log) # another process was first
        entry = dict(file=path.name, sha256=sha, when=datetime.now(timezone.utc).isoformat(timespec='seconds'), **now, card={k: net.card[k] for k in ('arch','seed','recipe')},
                     versions=versions(), device='cpu', threads=torch.get_num_threads(), cpu=torch.backends.cpu.get_cpu_capability())
        looks = ',\n'.join(json.dumps(o, allow_nan=False) for o in [*read_log(log), entry]) # a line each, so that a difference shows what was added
        try: atomic_write(log, f'{{"format": "{_format}", "looks": [\n{looks}\n]}}\n'.encode())
        except OSError as e: raise OSError(f'{log} cannot be written ({e.strerror or e}): make room, or name another log with --log. Nothing was written.') from None
    print(f'{path}: test accuracy {100*entry["accuracy"]:.2f} %, loss {entry["loss"]:.4f}, {len(entry["wrong"])} of {entry["n"]:,} wrong; logged in {log}.')
    return dict(entry, logged=True, differ=0)

def main(argv=None):
    "Entry point of `mnist_final_test`; returns the exit code"
    p = argparse.ArgumentParser('mnist_final_test', description='The one look of a saved network at the test digits of MNIST, logged. A logged network is looked at again, and nothing is written.')
    p.add_argument('paths', nargs='+', metavar='PATH', help='files made by save_network or mnist_train')
    p.add_argument('--log', default=default_log, help=f'file to append to (default: {default_log})')
    p.add_argument('--verify', action='store_true', help='never write; a network that is not logged is a fault')
    args,code = p.parse_args(argv),0
    try:
        from mnist_fastai.checkpoint import CheckpointError
        from mnist_fastai.data import load_mnist
        from mnist_fastai.files import DataError
        data = None
        for path in args.paths:
            try: final_test(path, args.log, args.verify, data := data or load_mnist(sample=False))
            except (CheckpointError,DataError,ValueError,OSError) as e:
                print(f'mnist_final_test: {e}', file=sys.stderr)
                code = 1
    except KeyboardInterrupt:
        print('\nStopped. The log is whole.', file=sys.stderr)
        return 130
    return code

if __name__=='__main__': sys.exit(main())
