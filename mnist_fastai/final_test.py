"""The command `mnist_final_test`: evaluate a saved network on the test digits, once, and keep a log of it.

A plain file: why there is one evaluation, and what a log is for, is taught in lessons 7 and 9.
"""

__all__ = ['final_test', 'find_log', 'read_log', 'main']

import argparse, hashlib, json, sys
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path

from mnist_fastai.core import Locked, UserError, atomic_write, file_lock, printable, versions

default_log = 'results/final_test.json' #: below the folder of the network, or one above it, or the current folder
differ_most = 2 #: how many of 10,000 predictions may differ on another machine, which rounds otherwise

_format = 'mnist_fastai final test 1'
_keys = {'file','sha256','when','accuracy','loss','n','wrong','card','versions','device','threads','cpu'}

def read_log(
    log=default_log, # A file that `final_test` has written
)->list: # A dict for each evaluation, oldest first; none if there is no such file
    "What `final_test` has logged. Raises `ValueError` if the file is not whole"
    log = Path(log)
    try:
        content = json.loads(log.read_text(encoding='utf-8'))
        entries = content['looks'] if content['format']==_format else None
        if not isinstance(entries, list) or not all(isinstance(o, dict) and _keys<=set(o) for o in entries):
            raise ValueError('not what final_test writes')
    except FileNotFoundError: return []
    except OSError as e:
        raise OSError(f'{log} cannot be read ({e.strerror or e}): name another log with --log.') from None
    except (ValueError,KeyError,TypeError) as e:
        why = ' '.join(str(e).split())
        raise ValueError(f'{log} is damaged or no log of final_test ({why}): get it back from version control. '
                         'Nothing was written.') from None
    return entries

def _sha256(path): return hashlib.sha256(Path(path).read_bytes()).hexdigest()

def _find_entry(log, sha256): return next((o for o in read_log(log) if o['sha256']==sha256), None)

def find_log(
    path, # A file made by `save_network`
)->Path: # An existing log, or the place for a new one
    """The log of a checkpoint, wherever the command is started, so that no network is evaluated twice

    `default_log` is looked for below the folder of the checkpoint, below each folder above that, and below the current
    folder. A log that has the checkpoint comes before one that has not. A new log is written where it will be found
    again: below the current folder if that is above the checkpoint, else beside the checkpoint."""
    above,here = Path(path).resolve().parents,Path.cwd()
    logs = [o/default_log for o in (*above,here) if (o/default_log).is_file()]
    sha256 = _sha256(path)
    for log in logs:
        if _find_entry(log, sha256): return log
    if logs: return logs[0]
    return (here if here in above else above[0])/default_log

@contextmanager
def _locked(log):
    "One process at a time appends to `log`"
    with ExitStack() as stack:
        try: stack.enter_context(file_lock(log.with_name(f'.{log.name}.lock'), timeout=60))
        except Locked:
            raise OSError(f'Another process has been writing {log} for a minute: '
                          'wait for it or end it, then run again.') from None
        except OSError as e: raise _unwritable(log, e) from None
        yield

def _unwritable(log, e):
    return OSError(f'{log} cannot be written ({e.strerror or e}): make room, or name another log with --log. '
                   'Nothing was written.')

def _evaluate(net, data):
    "Accuracy, loss, and each error on the test digits: position in the split, prediction and its probability"
    import torch
    from mnist_fastai.interpret import logits_of
    logits,y = logits_of(net, data.test),data.test.labels
    if not logits.isfinite().all(): raise ValueError('its logits are not finite numbers: train it again.')
    probs,preds = logits.softmax(1).max(1)
    wrong = (preds!=y).nonzero().flatten().tolist()
    return dict(accuracy=(preds==y).double().mean().item(), loss=torch.nn.functional.cross_entropy(logits, y).item(),
                n=len(y), wrong=[[i, int(preds[i]), round(float(probs[i]), 4)] for i in wrong])

def _n_differ(a, b):
    "On how many digits two evaluations have different predictions"
    a,b = ({i: pred for i,pred,_ in o['wrong']} for o in (a,b))
    return sum(a.get(i)!=b.get(i) for i in a.keys() | b.keys())

def _compare(old, new, path, log):
    "Raise `ValueError` unless a second evaluation of a logged checkpoint gives what the first did"
    n,total = _n_differ(old, new),old['n']
    other_accuracy = abs(old['accuracy']-new['accuracy'])*total > differ_most+.5
    other_loss = abs(old['loss']-new['loss'])>1e-3
    if n>differ_most or other_accuracy or other_loss:
        raise ValueError(f'{path} predicts {n} of {total:,} test digits other than {log} says, with accuracy '
                         f'{new["accuracy"]:.4f} and loss {new["loss"]:.4f} against {old["accuracy"]:.4f} and '
                         f'{old["loss"]:.4f}: the log was changed, or this machine computes otherwise.')
    print(printable(f'{path}: as logged on {old["when"][:10]} in {log}, test accuracy {100*old["accuracy"]:.2f} %, '
                    f'{n} of {total:,} predictions differ; nothing was written.'))
    return dict(old, logged=False, differ=n)

def _append(log, entry):
    "Add an entry to the log, a line each, so that a difference in version control shows what was added"
    lines = ',\n'.join(json.dumps(o, allow_nan=False) for o in [*read_log(log), entry])
    try: atomic_write(log, f'{{"format": "{_format}", "looks": [\n{lines}\n]}}\n'.encode())
    except OSError as e: raise _unwritable(log, e) from None

def final_test(
    path, # A file made by `save_network` from a network trained on MNIST
    log=None, # File to append to; by default see `find_log`
    verify:bool=False, # Whether only to check a logged checkpoint, and never to write
    data=None, # By default `load_mnist(sample=False)`
)->dict: # The entry of the log; `logged`: whether it is new; `differ`: how many predictions differ from the log
    """Evaluate a saved network on the 10,000 test digits, and log it: once for each checkpoint, known by its SHA-256

    A logged checkpoint is evaluated again and compared, and nothing is written. Raises `ValueError` for a network or
    digits that are not of MNIST, for logits that are not finite, for a log that is damaged or says otherwise, and with
    `verify` for a checkpoint that is not logged. Raises `OSError` if the log cannot be written."""
    import torch
    from mnist_fastai.checkpoint import load_network
    from mnist_fastai.data import load_mnist
    path = Path(path)
    net = load_network(path)
    log,sha256 = Path(log or find_log(path)),_sha256(path)
    if set(net.train_sources)!={'mnist'}:
        sources = ' and '.join(map(repr, net.train_sources))
        raise ValueError(f'{path} was trained on {sources}: the final test is for networks trained on the training '
                         'split of MNIST alone.')
    old = _find_entry(log, sha256)
    if verify and not old: raise ValueError(f'{path} is not in {log}: leave --verify out to evaluate and log it once.')
    data = data or load_mnist(sample=False)
    if data.source!='mnist':
        raise ValueError('The final test is on the test digits of MNIST, and these digits are of the sample: '
                         'load MNIST.')
    try: new = _evaluate(net, data)
    except ValueError as e: raise ValueError(f'{path} cannot be evaluated: {e}') from None
    if old: return _compare(old, new, path, log)
    with _locked(log):
        if old := _find_entry(log, sha256): return _compare(old, new, path, log) # another process was first
        entry = dict(file=path.name, sha256=sha256, when=datetime.now(timezone.utc).isoformat(timespec='seconds'),
                     **new, card={k: net.card[k] for k in ('arch','seed','recipe')}, versions=versions(), device='cpu',
                     threads=torch.get_num_threads(), cpu=torch.backends.cpu.get_cpu_capability())
        _append(log, entry)
    print(printable(f'{path}: test accuracy {100*entry["accuracy"]:.2f} %, loss {entry["loss"]:.4f}, '
                    f'{len(entry["wrong"])} of {entry["n"]:,} wrong; logged in {log}.'))
    return dict(entry, logged=True, differ=0)

def _parser():
    p = argparse.ArgumentParser('mnist_final_test', description='Evaluate saved networks on the test digits of MNIST, '
                                'once each, and log it. A logged network is compared with its entry instead.')
    p.add_argument('paths', nargs='+', metavar='PATH', help='files made by save_network or mnist_train')
    p.add_argument('--log', help=f'file to append to (default: {default_log} below the folder of the network, '
                                 'a folder above it, or the current folder)')
    p.add_argument('--verify', action='store_true', help='never write; a network that is not logged is an error')
    return p

def main(argv=None):
    "Entry point of `mnist_final_test`; returns the exit code"
    args,code = _parser().parse_args(argv),0
    def tell(e): print(f'mnist_final_test: {printable(e)}', file=sys.stderr)
    try:
        from mnist_fastai.data import load_mnist
        data = None
        for path in args.paths:
            try: final_test(path, args.log, args.verify, data := data or load_mnist(sample=False))
            except (UserError,ValueError,OSError) as e:
                tell(e)
                code = 1
    except ImportError as e:
        tell(e)
        return 1
    except KeyboardInterrupt:
        print('\nStopped. The log is whole.', file=sys.stderr)
        return 130
    return code

if __name__=='__main__': sys.exit(main())
