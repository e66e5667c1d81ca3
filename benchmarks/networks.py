#!/usr/bin/env python3
"""Accuracy against training seconds: the networks of lessons 13 to 15, and what a user would pick instead.

usage: python benchmarks/networks.py --update-readme        (hours on 2 cores; every part can be stopped and goes on)

    --arms NAME ...    these rows only (default: all); calls with different arms may run side by side
    --seeds N ...      these seeds (default: 1 2 3)
    --digits           only print the validation digits that every network of the file gets wrong
    --test             only evaluate the saved networks of the first seed on the test digits, once, and log it
    --short            a minute on the packaged sample, to try the script; nothing is kept without --out

It writes benchmarks/networks.json, a run as soon as it is finished, and keeps the networks in benchmarks/networks/.
Everything is trained on the 50,000 training digits, with one thread, and chosen and compared on validation; only --test
opens the test split. How seconds are measured stands in README.md in this folder.
"""
import argparse, itertools, json, math, os, re, statistics, sys, time
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from measures import foreign_digits, measure
import numpy as np, torch, torch.nn.functional as F
from torch import nn
from fastai.basics import Callback, CrossEntropyLossFlat, Learner, accuracy, set_seed
from fastai.layers import SimpleCNN
from fastai.vision.models.xresnet import xresnet18
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits
from mnist_fastai.callbacks import Resume, fastest_precision
from mnist_fastai.checkpoint import load_network, save_network
from mnist_fastai.core import Locked, UserError, atomic_write, file_lock
from mnist_fastai.data import Mnist, load_mnist, mnist_mean, mnist_std
from mnist_fastai.ensemble import Ensemble, records
from mnist_fastai.experiments import environment, environment_diff, read_results
from mnist_fastai.final_test import final_test, read_log
from mnist_fastai.interpret import logits_of
from mnist_fastai.loaders import digit_dls
from mnist_fastai.training import Recipe, digit_learner, note_data, train

here = Path(__file__).resolve().parent
log = here.parent/'results'/'final_test.json'

# --- the rows of the table

@dataclass(frozen=True)
class Group:
    "An ensemble: of which records, and how many seeds of each"
    members:dict

#: The first group of seeds makes row 1 of an ensemble, the next group row 2, as far as there are networks
ensembles = {'ensemble, small': Group(dict(ConvNet=3)),
             'ensemble': Group(dict(large=2, ConvNet=2)),
             'ensemble, large': Group(dict(large=3, ConvNet=3))}

@dataclass(frozen=True)
class Other:
    "What a user would pick instead, trained for so many seconds"
    name:str # In `fits`
    seconds:float
    probe:int = 100 # How many steps are taken first, to foresee the seconds of an epoch

def others(budgets, probe=100):
    "The rows of what a user would pick instead, for each number of seconds"
    return {f'{name}, {s:g} s': Other(name, s, probe) for s in budgets for name in fits}

# --- seconds

class Clock(Callback):
    """CPU seconds of the training loop, all threads of this process together, and seconds on the clock

    Validation is not counted. `Resume` keeps both, so the parts of a stopped training add up."""
    def __init__(self): self.cpu_seconds,self.wall_seconds = 0.,0.
    def start(self): self.started = time.process_time(),time.perf_counter()
    def stop(self):
        self.cpu_seconds += time.process_time()-self.started[0]
        self.wall_seconds += time.perf_counter()-self.started[1]

    def before_train(self): self.start()
    def after_train(self): self.stop()
    def state_dict(self): return dict(cpu=self.cpu_seconds, wall=self.wall_seconds)
    def load_state_dict(self, state): self.cpu_seconds,self.wall_seconds = state['cpu'],state['wall']

def seconds_of(clock, n):
    "What a run says of its seconds; `n` digits were seen. Two idle cores take half the CPU seconds of one"
    return dict(train_seconds=round(clock.cpu_seconds/2, 2), wall_seconds=round(clock.wall_seconds, 2),
                samples_a_cpu_second=round(n/clock.cpu_seconds))

# --- scores

def wrong_of(probs, preds, labels):
    "The errors: position, prediction, its probability, as `run_once` gives them"
    def prob(i): return None if probs is None else finite(round(float(probs[i,preds[i]]), 3))
    return [[i, int(preds[i]), prob(i)] for i in (preds!=labels).nonzero().flatten().tolist()]

def finite(v): return v if math.isfinite(v) else None # JSON has no NaN

def scores(net, data):
    "What a run says of a network"
    logits,y = logits_of(net, data.valid),data.valid.labels
    wrong = wrong_of(logits.softmax(1), logits.argmax(1), y)
    return dict(parameters=sum(o.numel() for o in net.parameters()), valid_accuracy=1-len(wrong)/len(y),
                valid_loss=finite(F.cross_entropy(logits, y).item()), **measure(net, data), wrong=wrong)

# --- records

def slug(arm, seed): return re.sub(r'\W+', '-', arm) + f'-{seed}'

def state_file(folder, name, precision):
    "The file of a stopped training, and the precision: what is fastest is measured once, and not again after a stop"
    old = list(folder.glob(f'{name}.*.state'))
    if old and precision=='fastest': precision = old[0].suffixes[-2][1:]
    if precision=='fastest': precision = fastest_precision()
    return folder/f'{name}.{precision}.state',precision

def epochs_of(learn):
    "A dict for each epoch"
    table = learn.history.epochs.drop(columns=['fit','seconds'])
    return table.replace({np.nan: None}).to_dict('records')

def train_record(arm, seed, recipe, data, path, quiet):
    "Train a record, or go on with it, and keep its network"
    folder,name,clock = path.with_suffix(''),slug(arm, seed),Clock()
    state,precision = state_file(folder, name, recipe.precision)
    folder.mkdir(parents=True, exist_ok=True)
    learn = train(recipe, data, seed, 'cpu', quiet=quiet, cbs=[clock, Resume(state)], precision=precision)
    note_data(learn.model, learn.dls) # a training that had been stopped after its last epoch has not
    res = dict(scores(learn.model, data), epochs=recipe.epochs, precision=learn.precision, history=epochs_of(learn),
               **seconds_of(clock, recipe.epochs*len(data.train)))
    metrics = {k: res[k] for k in ('valid_accuracy','shifts_accuracy','load_digits','train_seconds')}
    file = save_network(learn, folder/f'{name}.pth', metrics)
    return res | dict(sha256=sha256(file.read_bytes()).hexdigest()),state

# --- ensembles

def members_of(group, i, runs):
    "The runs of group `i` of an ensemble, from 1; none if there are not enough seeds"
    res = []
    for arm,n in group.members.items():
        mine = sorted((o for o in runs if o['arm']==arm), key=lambda o: o['seed'])[(i-1)*n:i*n]
        if len(mine)<n: return []
        res += mine
    return res

def average_record(arm, seed, group, data, path, quiet):
    "Average the networks of a group, and keep them as one network"
    folder,runs = path.with_suffix(''),members_of(group, seed, found(path))
    net = Ensemble([load_network(folder/f'{slug(o["arm"], o["seed"])}.pth') for o in runs])
    learn = digit_learner(digit_dls(data, device='cpu'), net)
    learn.seed = seed
    file = save_network(learn, folder/f'{slug(arm, seed)}.pth')
    cpu = sum(o['train_seconds'] for o in runs)
    res = dict(scores(net, data), members=[[o['arm'],o['seed'],o['sha256']] for o in runs],
               train_seconds=round(cpu, 2), wall_seconds=round(sum(o['wall_seconds'] for o in runs), 2),
               sha256=sha256(file.read_bytes()).hexdigest())
    return res,None

# --- what a user would pick instead
# Each function trains for some seconds, foreseen by a few steps that are not counted, and returns the scores.

def fitting(step_seconds, n, bs, seconds, most=None):
    "How many epochs of how many digits fit: whole epochs of all `n`, or, if not even one does, a part of one"
    steps,whole = 2*seconds/step_seconds,-(-n//bs)
    if steps<whole: return 1,max(2, int(steps))*bs
    epochs = int(steps//whole)
    return min(epochs, most or epochs),n

def some(ds, n, seed):
    "`n` digits of `ds`, drawn by `seed`"
    return ds.subset(torch.randperm(len(ds), generator=torch.Generator().manual_seed(seed))[:n])

class Pictures(torch.utils.data.Dataset):
    "What torchvision's `MNIST` gives: a PIL image, transformed, and its label"
    def __init__(self, ds, tfm): self.images,self.labels,self.tfm = ds.images.numpy(),ds.labels.tolist(),tfm
    def __len__(self): return len(self.labels)
    def __getitem__(self, i):
        from PIL import Image
        return self.tfm(Image.fromarray(self.images[i])),self.labels[i]

def example_network():
    "The network of https://github.com/pytorch/examples/tree/main/mnist"
    return nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Dropout(.25), nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(),
                         nn.Dropout(.5), nn.Linear(128, 10))

def example_steps(net, opt, dl):
    "One epoch"
    net.train()
    for xb,yb in dl:
        opt.zero_grad()
        F.cross_entropy(net(xb), yb).backward()
        opt.step()

def fit_example(data, seed, seconds, probe):
    "The example of PyTorch: Adadelta, a rate that falls by .7 an epoch, batches of 64, 14 epochs at most"
    from torchvision import transforms
    tfm = transforms.Compose([transforms.ToTensor(), transforms.Normalize((mnist_mean,), (mnist_std,))])
    def start(ds):
        set_seed(seed)
        net = example_network()
        opt = torch.optim.Adadelta(net.parameters(), lr=1.)
        return net,opt,torch.utils.data.DataLoader(Pictures(ds, tfm), batch_size=64, shuffle=True)
    def epoch_seconds(n):
        parts,before = start(some(data.train, n, seed)),time.process_time()
        example_steps(*parts)
        return time.process_time()-before
    epoch_seconds(64) # what torch does once
    epochs,n = fitting(epoch_seconds(64*probe)/probe, len(data.train), 64, seconds, most=14)
    net,opt,dl = start(some(data.train, n, seed))
    schedule,clock = torch.optim.lr_scheduler.StepLR(opt, 1, .7),Clock()
    clock.start()
    for _ in range(epochs):
        example_steps(net, opt, dl)
        schedule.step()
    clock.stop()
    net.train_sources = (data.source,)
    return dict(scores(net, data), epochs=epochs, digits_seen=n, lr=1., **seconds_of(clock, epochs*n))

def fit_fastai(make, data, seed, seconds, probe):
    "A plain `Learner`: fastai's Adam, batches of 64, `lr_find` (not counted), then `fit_one_cycle` at what it suggests"
    with TemporaryDirectory() as tmp:
        def start(ds):
            set_seed(seed)
            dls = digit_dls(Mnist(ds, data.valid, data.test, data.source), 64, device='cpu', path=tmp)
            return Learner(dls, make(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=Clock())
        learn = start(data.train)
        with learn.no_bar(), learn.no_logging():
            before = time.process_time()
            lr = learn.lr_find(num_it=probe, show_plot=False).valley
            step_seconds = (time.process_time()-before)/len(learn.recorder.lrs)
        epochs,n = fitting(step_seconds, len(data.train), 64, seconds)
        learn = start(some(data.train, n, seed))
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    note_data(learn.model, learn.dls)
    return dict(scores(learn.model, data), epochs=epochs, digits_seen=n, lr=lr, **seconds_of(learn.clock, epochs*n))

def pixels(ds): return ds.images.flatten(1).numpy()

def timed_fit(model, ds):
    "Fit a model of scikit-learn on the raw pixels, 0 to 255; the model and a clock of the fit"
    x,y,clock = pixels(ds),ds.labels.numpy(),Clock()
    clock.start()
    model.fit(x, y)
    clock.stop()
    return model,clock

def model_scores(model, clock, data, n, **more):
    "What a run says of a model of scikit-learn"
    y,foreign = data.valid.labels,foreign_digits()
    probs = torch.from_numpy(model.predict_proba(pixels(data.valid))) if hasattr(model, 'predict_proba') else None
    wrong = wrong_of(probs, torch.from_numpy(model.predict(pixels(data.valid))), y)
    loss = dict(valid_loss=F.nll_loss(probs.clamp(min=1e-12).log(), y).item()) if probs is not None else {}
    right = torch.from_numpy(model.predict(pixels(foreign)))==foreign.labels
    return dict(valid_accuracy=1-len(wrong)/len(y), **loss, load_digits=right.double().mean().item(),
                wrong=wrong, digits_seen=n, **more, **seconds_of(clock, n))

def fit_svc(data, seed, seconds, probe):
    """`SVC()` on as many digits as fit: the largest of ever larger fits within the seconds

    Seconds are taken to grow as a power of the number of digits: at first 2.2, and after a fit that took too long what
    is seen between it and the best one."""
    ds,n,power,most = some(data.train, len(data.train), seed),min(250, len(data.train)),2.2,2.
    best = timed_fit(SVC(), ds.subset(slice(n)))
    while True:
        growth = (2*seconds/best[1].cpu_seconds)**(1/power)
        more = min(len(ds), int(n*min(most, .98*growth)))
        if more<1.05*n: break
        tried = timed_fit(SVC(), ds.subset(slice(more)))
        if tried[1].cpu_seconds<=2*seconds: n,best = more,tried
        else: power,most = math.log(tried[1].cpu_seconds/best[1].cpu_seconds)/math.log(more/n),.98*more/n
    return model_scores(*best, data, n, epochs=1)

def fit_boosting(data, seed, seconds, probe):
    "`HistGradientBoostingClassifier()`, with as many iterations as fit, and 100, its default, at most"
    def fit(n): return timed_fit(HistGradientBoostingClassifier(max_iter=n, random_state=seed), data.train)
    few,more = (1,2) if probe<100 else (2,6)
    first,second = (fit(n)[1].cpu_seconds for n in (few,more))
    each = max((second-first)/(more-few), 1e-3)
    model,clock = fit(int(min(100, max(1, few + (2*seconds-first)//each))))
    return model_scores(model, clock, data, len(data.train), epochs=1, iterations=model.n_iter_)

fits = {
    "PyTorch's example": fit_example,
    'fastai SimpleCNN': partial(fit_fastai, lambda: SimpleCNN((1,8,16,32,64,10))),
    'fastai xresnet18': partial(fit_fastai, lambda: xresnet18(n_out=10, c_in=1)),
    'scikit-learn SVC': fit_svc,
    'scikit-learn HistGradientBoosting': fit_boosting}

def fit_other(arm, seed, other, data, path, quiet):
    return dict(fits[other.name](data, seed, other.seconds, other.probe), precision='float32'),None

# --- the file

def found(path): return read_results(path) if path.exists() else []

def same(a, b): return (a['arm'],a['seed'])==(b['arm'],b['seed'])

def keep(path, run):
    "Put a run into the file, which another process may write too, in place of an older one of its arm and seed"
    with file_lock(path.with_name(f'.{path.name}.lock'), timeout=60):
        runs = [*(o for o in found(path) if not same(o, run)), run]
        lines = ',\n'.join(json.dumps(o, allow_nan=False, separators=(',',':')) for o in runs)
        atomic_write(path, f'{{"format":"mnist_fastai experiment 1","runs":[\n{lines}\n]}}\n'.encode())

def is_done(run, recipe, where, path, stale):
    "Whether the file has this run. Raises `UserError` if it was made otherwise and `stale` does not say what to do"
    old = next((o for o in found(path) if same(o, run)), None)
    if old is None: return False
    if isinstance(recipe, Group):
        return old['members']==[[o['arm'],o['seed'],o['sha256']] for o in members_of(recipe, run['seed'], found(path))]
    diff = environment_diff(old, recipe, where)
    if diff and stale=='error':
        raise UserError(f"{run['arm']}, seed {run['seed']}, in {path} was made otherwise ({'; '.join(diff)}): "
                        'use --stale replace or --stale keep, or another file with --out.')
    return not diff or stale=='keep'

makers = {Recipe: train_record, Group: average_record, Other: fit_other}

def make(arm, seed, recipe, data, where, path, stale, quiet):
    "Make one run, unless it is in the file or another process is at it, and keep it"
    run = dict(arm=arm, seed=seed)
    try:
        with file_lock(path.with_suffix('')/f'.{slug(arm, seed)}.lock'):
            if is_done(run, recipe, where, path, stale): return
            print(f'{arm}, seed {seed}', flush=True)
            load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else None
            res,state = makers[type(recipe)](arm, seed, recipe, data, path, quiet)
            more = dict(load=load, libraries={o: version(o) for o in ('scikit-learn','torchvision')})
            keep(path, json.loads(json.dumps(run | dict(recipe=asdict(recipe)) | where | more | res)))
            if state: state.unlink(missing_ok=True)
            print(f'{arm}, seed {seed}: {100*res["valid_accuracy"]:.2f} %, {res["train_seconds"]:.1f} s', flush=True)
    except Locked: print(f'{arm}, seed {seed}: another process is making it', flush=True)

def run_all(arms, names, seeds, data, path, stale, quiet=False):
    "Make the runs of all arms; ensembles last, of as many groups of seeds as there are"
    where = environment(data)
    with threadpool_limits(1):
        torch.set_num_threads(1)
        for seed in seeds:
            for arm in names:
                if not isinstance(arms[arm], Group): make(arm, seed, arms[arm], data, where, path, stale, quiet)
        for arm in names:
            if not isinstance(arms[arm], Group): continue
            for i in itertools.count(1):
                runs = members_of(arms[arm], i, found(path))
                here_all = all((path.with_suffix('')/f'{slug(o["arm"], o["seed"])}.pth').exists() for o in runs)
                if not runs or not here_all: break
                make(arm, i, arms[arm], data, where, path, stale, quiet)

# --- what the file says

def cell(runs, metric, form, scale=1):
    "Mean and standard deviation over the seeds; empty if a run has no such number"
    vals = [scale*o[metric] for o in runs if o.get(metric) is not None]
    if len(vals)<len(runs): return ''
    text = format(statistics.mean(vals), form)
    return f'{text} ± {statistics.stdev(vals):{form}}' if len(vals)>1 else text

def tested(runs, looks):
    "Accuracy of the logged evaluation on the test digits of one of these networks"
    mine = [looks[o['sha256']] for o in runs if o.get('sha256') in looks]
    return f'{100*mine[0]:.2f}' if mine else ''

def how_long(runs):
    "Epochs, or what stands for them"
    r = runs[0]
    if 'members' in r: return f'{len(r["members"])} networks'
    def span(k):
        lo,hi = min(o[k] for o in runs),max(o[k] for o in runs)
        return f'{lo:,}' if lo==hi else f'{lo:,} to {hi:,}'
    if 'iterations' in r: return f'{span("iterations")} iterations'
    if 'digits_seen' in r and r['epochs']==1: return f'{span("digits_seen")} digits'
    return span('epochs')

def markdown(runs, names, looks):
    "The table, and a line about data and machine"
    head = ['network','training seconds','epochs','parameters','n',
            'validation','five shifts averaged','`load_digits`','test']
    lines = ['| ' + ' | '.join(head) + ' |', '|---|' + '--:|'*(len(head)-1)]
    for arm in dict.fromkeys([*names, *(o['arm'] for o in runs)]):
        mine = [o for o in runs if o['arm']==arm]
        if not mine: continue
        size = f'{mine[0]["parameters"]:,}' if 'parameters' in mine[0] else ''
        cells = [arm, cell(mine, 'train_seconds', '.1f'), how_long(mine), size, len(mine),
                 cell(mine, 'valid_accuracy', '.2f', 100), cell(mine, 'shifts_accuracy', '.2f', 100),
                 cell(mine, 'load_digits', '.1f', 100), tested(mine, looks)]
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    def all_of(f): return ' or '.join(dict.fromkeys(str(f(o)) for o in runs))
    seeds = ', '.join(map(str, sorted({o['seed'] for o in runs if 'members' not in o})))
    libraries = all_of(lambda o: f"torch {o['versions']['torch']}, fastai {o['versions']['fastai']}, "
                                 f"scikit-learn {o['libraries']['scikit-learn']}, Python {o['versions']['python']}")
    precisions = ' or '.join(sorted({o['precision'] for o in runs if 'history' in o}))
    trained = f'; our networks trained in {precisions}' if precisions else ''
    return '\n'.join(lines) + (
        f"\n\nAccuracies in percent, mean ± standard deviation over n runs; seeds {seeds}. "
        f"Data: {all_of(lambda o: o['source'])} (fingerprint {all_of(lambda o: o['digits'])}). "
        f"Device: {all_of(lambda o: o['device'])}, one thread, {all_of(lambda o: o['processor'])}, "
        f"{all_of(lambda o: o['capability'])}{trained}; {libraries}.")

def table(path, names):
    looks = {o['sha256']: o['accuracy'] for o in read_log(log)}
    return markdown(found(path), names, looks)

def update_readme(text, readme=here/'README.md'):
    old,(a,b) = readme.read_text(encoding='utf-8'),('<!-- networks -->','<!-- /networks -->')
    if old.count(a)!=1 or old.count(b)!=1:
        raise UserError(f'{readme} must have {a} and {b} once each: put them back.')
    atomic_write(readme, (old[:old.index(a)+len(a)] + f'\n{text}\n' + old[old.index(b):]).encode())

def hard_digits(runs):
    "Positions of the validation digits that all these networks get wrong"
    return sorted(set.intersection(*({i for i,*_ in o['wrong']} for o in runs))) if runs else []

def print_digits(runs, labels):
    "The hard digits with their labels, and what is predicted for them"
    hard = hard_digits(runs)
    print(f'{len(hard)} of {len(labels):,} validation digits are wrong in all of {len(runs)} runs.')
    for i in hard:
        preds = [pred for o in runs for j,pred,_ in o['wrong'] if j==i]
        print(f'position {i:>5}, label {labels[i]}, predicted ' +
              ', '.join(f'{p} ({preds.count(p)} times)' for p in sorted(set(preds), key=preds.count, reverse=True)))

def evaluate_on_test(arms, path, seed, data):
    "The one evaluation of each kept network, logged in results/final_test.json"
    for arm,recipe in arms.items():
        file = path.with_suffix('')/f'{slug(arm, 1 if isinstance(recipe, Group) else seed)}.pth'
        if file.exists(): final_test(file, log, data=data)

# --- the command

def parse(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--arms', nargs='+', metavar='NAME', help='rows of the table (default: all)')
    p.add_argument('--seeds', nargs='+', type=int, metavar='N', help='default: 1 2 3')
    p.add_argument('--budgets', nargs='+', type=float, default=[15,75], metavar='S',
                   help='training seconds of what a user would pick instead (default: 15 75)')
    p.add_argument('--out', type=Path, help='another file of results; networks are kept in a folder of that name')
    p.add_argument('--stale', default='error', choices=('error','replace','keep'),
                   help='runs that were made otherwise: stop, make anew, or use as they are')
    p.add_argument('--short', action='store_true', help='one epoch on the packaged sample')
    p.add_argument('--digits', action='store_true', help='print the digits that all records get wrong, and stop')
    p.add_argument('--test', action='store_true', help='evaluate on the test digits, and stop')
    p.add_argument('--update-readme', action='store_true', help='put the table into README.md beside this script')
    args = p.parse_args(argv)
    arms = dict(records) | ensembles
    if args.short:
        if args.update_readme or args.test: p.error('--short is to try the script: leave the other option out')
        arms = {k: replace(o, epochs=1) if isinstance(o, Recipe) else Group({m: 1 for m in o.members})
                for k,o in arms.items()}
        args.budgets = [.2]
    arms |= others(args.budgets, 15 if args.short else 100)
    unknown = [o for o in args.arms or () if o not in arms]
    if min(args.budgets)<=0: p.error('--budgets are seconds above 0')
    if unknown: p.error(f'there is no {unknown[0]!r}: choose from ' + ', '.join(map(repr, arms)))
    return args,arms

def main(argv=None):
    args,arms = parse(argv)
    names,seeds = args.arms or list(arms),args.seeds or ([1] if args.short else [1,2,3])
    sys.stdout.reconfigure(line_buffering=True) # a log can be watched
    if args.short and not args.out:
        with TemporaryDirectory() as tmp: return work(args, arms, names, seeds, Path(tmp)/'networks.json')
    return work(args, arms, names, seeds, args.out or here/'networks.json')

def work(args, arms, names, seeds, path):
    data = load_mnist(sample=args.short)
    if args.test: return evaluate_on_test({k: arms[k] for k in names}, path, seeds[0], data)
    ours = [o for o in found(path) if o['arm'] in records]
    if args.digits: return print_digits(ours, data.valid.labels.tolist())
    run_all(arms, names, seeds, data, path, args.stale, quiet=args.short)
    text = table(path, arms)
    print(f'\n{text}')
    if args.update_readme: update_readme(text)

if __name__=='__main__':
    try: sys.exit(main())
    except KeyboardInterrupt: sys.exit('\nStopped. What was finished is kept, and the same command goes on from there.')
    except (UserError,ValueError) as e: sys.exit(str(e))
