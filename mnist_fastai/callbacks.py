"""What a recipe can switch on in a training, as fastai callbacks, and a training that goes on after a stop.

A plain file. `training` adds the first three for a recipe that asks for them; lessons 13 and 14 measure what they do.
`Resume` is for long trainings: `train(recipe, data, seed, cbs=Resume(path))`.
"""

__all__ = ['precisions', 'fastest_precision', 'choose_precision', 'BFloat16', 'SmoothLabels', 'AverageWeights',
           'Resume', 'ResumeError']

import functools, json, sys, time, warnings, zlib
from contextlib import ExitStack
from dataclasses import asdict

from fastai.basics import *

from .core import UserError, atomic_write, check_choice

precisions = 'float32','bfloat16','fastest' #: what a recipe may ask for, see `choose_precision`

@functools.cache
def fastest_precision(
    device='cpu', # Its type
    gain:float=1.15, # How many times as fast bfloat16 must be
)->str: # 'bfloat16' or 'float32'
    """Which precision trains a small convolution faster on this machine: measured once in a process, half a second

    CPU seconds count, which other programs hardly change. It changes no random number. Off the CPU it is float32:
    there nothing is measured."""
    if torch.device(device).type!='cpu': return 'float32'
    with torch.random.fork_rng(devices=[]): conv = nn.Conv2d(32, 32, 3, padding=1)
    conv.to(memory_format=torch.channels_last)
    xb = torch.zeros(64, 32, 14, 14).to(memory_format=torch.channels_last)

    def seconds(bfloat16, steps=8): # more than one step, since some systems count in 1/64 s
        start = time.process_time()
        for _ in range(steps):
            with torch.autocast('cpu', torch.bfloat16, enabled=bfloat16): out = conv(xb)
            out.float().sum().backward()
        return time.process_time()-start

    times = [(seconds(False),seconds(True)) for _ in range(4)]
    float32,bfloat16 = (min(o) for o in zip(*times[1:])) # the first calls are slower
    return 'bfloat16' if float32>gain*bfloat16 else 'float32'

def choose_precision(
    precision:str, # One of `precisions`
    device='cpu',
    cbs=None, # Callbacks of the training
)->str: # 'bfloat16' or 'float32'
    """What 'fastest' means here: see `fastest_precision`; a training that a `Resume` goes on with keeps what it had

    Raises `ValueError` for an unknown precision, `ResumeError` for a file that no training can go on from."""
    if check_choice(precision, precisions, 'precision')!='fastest': return precision
    states = [state for o in L(cbs) if isinstance(o, Resume) and (state := o.stopped())]
    return states[0]['plan'].get('precision') if states else fastest_precision(torch.device(device).type)

def _only_measures(learn):
    "Whether fastai calls the events of a fit for `validate`, `get_preds` or `lr_find`"
    return learn.lock.locked() or hasattr(learn, 'lr_finder')

class BFloat16(Callback):
    "The forward pass of training in bfloat16, by torch's autocast; weights, gradients and validation stay in float32"
    order = 5
    def __init__(self): self.running = ExitStack() # `train` closes it if the training is stopped

    def before_batch(self):
        if not self.training: return
        # without a cache: an interrupted pass must not leave old weights in it
        autocast = torch.autocast(self.dls.device.type, torch.bfloat16, cache_enabled=False)
        self.running.enter_context(autocast)

    def after_pred(self):
        self.running.close()
        self.learn.pred = self.pred.float()

    def _close(self): self.running.close()
    after_cancel_batch = after_fit = _close

class SmoothLabels(Callback):
    """Label smoothing in training: the wanted probability of the label is `1-eps`, and `eps` is spread over all classes

    Validation keeps the loss of the learner. Source: Szegedy et al., arXiv 1512.00567, section 7"""
    def __init__(self, eps): self.loss = CrossEntropyLossFlat(label_smoothing=eps)

    def after_loss(self):
        if not self.training: return
        self.learn.loss_grad = self.loss(self.pred, *self.yb)
        self.learn.loss = self.loss_grad.clone()

class AverageWeights(Callback):
    """An exponential moving average of the weights, `decay` of it kept at each step, validates and is what remains

    The average begins with the weights after the first step. What layers keep beside weights, such as the means of
    batch normalization, is averaged too. Source: Polyak and Juditsky, SIAM J. Control Optim. 30 (1992)"""
    order = 75 # after the schedule
    def __init__(self, decay): self.decay = decay

    def before_fit(self):
        self.run = not _only_measures(self.learn)
        if not self.run: return
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(self.decay)
        self.average = torch.optim.swa_utils.AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        self.swapped = False

    def after_batch(self):
        if self.training: self.average.update_parameters(self.model)

    def _swap(self, wanted):
        "Let the network have the average, if `wanted`, or its own weights"
        if self.swapped==wanted: return
        self.swapped = wanted
        ours,theirs = ([*net.parameters(), *net.buffers()] for net in (self.model, self.average.module))
        for a,b in zip(ours, theirs):
            kept = a.detach().clone()
            a.detach().copy_(b)
            b.detach().copy_(kept)

    def before_validate(self): self._swap(True)
    def after_validate(self): self._swap(False)
    after_cancel_validate = after_validate
    def after_fit(self): self._swap(True)
    def state_dict(self): return self.average.state_dict()
    def load_state_dict(self, state): self.average.load_state_dict(state)

_format = 'mnist_fastai training 2'

class ResumeError(UserError):
    "A file that a training cannot go on from; the message says why and what to do"
    def __init__(self, message):
        super().__init__(message)
        self.message = self.args[0]
    def __str__(self): return self.message # fastai puts the name of the callback before the argument

def _device_random(device): return torch.get_device_module(device), [] if device.type=='mps' else [device]

def _random_state(dls):
    "The states of the random number generators that a training may draw from"
    kind,keys,*rest = np.random.get_state()
    state = dict(torch=torch.get_rng_state(), python=random.getstate(), numpy=[kind,keys.tolist(),*rest])
    if dls.train.order is not None: state['order'] = dls.train.order.get_state()
    if dls.device.type!='cpu':
        module,which = _device_random(dls.device)
        state['device'] = module.get_rng_state(*which)
    return state

def _set_random_state(dls, state):
    "What `_random_state` gave"
    torch.set_rng_state(state['torch'])
    random.setstate(state['python'])
    kind,keys,*rest = state['numpy']
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    if dls.train.order is not None: dls.train.order.set_state(state['order'])
    if dls.device.type!='cpu':
        module,which = _device_random(dls.device)
        module.set_rng_state(state['device'], *which)

def _plain(o):
    "`o`, at any depth, with Python's numbers in place of numpy's, which schedules give and no safe file holds"
    if isinstance(o, dict): return {k: _plain(v) for k,v in o.items()}
    if isinstance(o, (list,tuple)): return type(o)(map(_plain, o))
    return o.item() if isinstance(o, np.generic) else o

def _training_plan(learn):
    "What must be the same for a training to go on: plain data"
    recipe,ds = getattr(learn, 'recipe', None),learn.dls.train_ds
    checksum = zlib.crc32(ds.labels.numpy(), zlib.crc32(ds.images.contiguous().numpy()))
    plan = asdict(recipe) if recipe else dict(arch=type(learn.model).__name__)
    plan |= dict(seed=getattr(learn, 'seed', None), epochs=learn.n_epoch, bs=learn.dls.train.bs,
                 precision=getattr(learn, 'precision', None), device=learn.dls.device.type,
                 data=f'{ds.source or "own"}, {len(ds):,} digits, checksum {checksum:08x}')
    return json.loads(json.dumps(plan))

class Resume(Callback):
    """Keep the whole state of a training in a file after each epoch. The same training, started again, goes on from it

    The state is the network, the optimizer, the random numbers and the history: the result is the same as without a
    stop. After the last epoch the file stays, until its user removes it, and the callback leaves the learner. It is
    for the learners of `train` and `digit_learner`.

    Raises `ResumeError` for a file that is damaged or of another training; nothing in it is executed. If the file
    cannot be written, the training goes on, and one line on stderr says so."""
    order = 80 # after all that the state holds has been updated
    def __init__(self,
        path, # File of the state
    ): self.file,self.done,self.rows,self.kept,self.failed = Path(path),0,[],0,False

    def stopped(self)->dict: # None if there is no file
        "The state in the file; among it `plan`, and `done`, the number of epochs"
        if not self.file.exists(): return None
        try:
            if not self.file.is_file(): raise OSError('not a regular file') # to open a pipe is to wait
            with warnings.catch_warnings(action='ignore'): # about pickles of another kind
                state = torch.load(self.file, map_location='cpu', weights_only=True)
            ok = state['format']==_format and isinstance(state['plan'], dict) and 0<state['done']==len(state['rows'])
        except OSError as e:
            raise ResumeError(f'{self.file} cannot be read ({e.strerror or e}): make it readable, '
                              'or delete it to train from the beginning.') from None
        except Exception: ok = False
        if not ok: raise self._damaged()
        return state

    def _damaged(self):
        return ResumeError(f'{self.file} is damaged or holds no stopped training: '
                           'delete it to train from the beginning.')

    def _check(self, plan):
        "Raise `ResumeError` if `plan`, from a file, is another than that of this training"
        here = self.plan
        other = [f'{k} {plan.get(k)}, not {here.get(k)}' for k in {**here, **plan} if plan.get(k)!=here.get(k)]
        if other:
            raise ResumeError(f'{self.file} holds a stopped training with {"; ".join(other)}: start that one again, '
                              'or delete the file to train from the beginning.')

    def _with_state(self): return {type(o).__name__: o for o in self.learn.cbs if hasattr(type(o), 'state_dict')}

    def before_fit(self):
        self.run = not _only_measures(self.learn)
        if not self.run: return
        self.done,self.rows,self.kept = 0,[],0
        self.plan,state = _training_plan(self.learn),self.stopped()
        if not state: return
        self._check(state['plan'])
        try: self._restore(state)
        except UserError: raise # of another callback, about its own part
        except Exception: raise self._damaged() from None
        if self.learn.logger is noop: return
        left = f'goes on after epoch {self.done} of {self.n_epoch}' if self.done<self.n_epoch else 'was finished before'
        print(f'This training {left}: its state is in {self.file}')

    def _restore(self, state):
        self.model.load_state_dict(state['model'])
        self.opt.load_state_dict(state['optimizer'])
        for name,cb in self._with_state().items(): cb.load_state_dict(state['callbacks'][name])
        _set_random_state(self.dls, state['random'])
        self.done,self.rows,self.kept = state['done'],state['rows'],state['done']
        self.recorded = {k: state['recorder'][k] for k in ('lrs','iters','losses','smooth_loss','count')}

    def before_epoch(self):
        "An epoch that is done already shows its row again"
        if self.epoch>=self.done: return
        *row,seconds = self.rows[self.epoch]
        self.recorder.log += row
        self.recorder.start_epoch = time.time()-seconds
        raise CancelEpochException

    def after_epoch(self):
        if self.epoch<self.done:
            if self.epoch==self.done-1: self._restore_recorder()
        elif self.history.trained: self._keep()

    def _restore_recorder(self):
        r,o = self.recorder,self.recorded
        r.lrs,r.iters,r.losses = o['lrs'],o['iters'],list(o['losses'])
        r.smooth_loss.val,r.smooth_loss.count = o['smooth_loss'],o['count']
        self.learn.train_iter = o['count']

    def _keep(self):
        "Write the state after an epoch"
        r = self.recorder
        self.done = self.epoch+1
        self.rows.append([*r.final_record, time.time()-r.start_epoch])
        recorded = dict(lrs=r.lrs, iters=r.iters, losses=torch.stack(r.losses).as_subclass(Tensor),
                        smooth_loss=r.smooth_loss.val.as_subclass(Tensor), count=r.smooth_loss.count)
        state = dict(format=_format, plan=self.plan, done=self.done, rows=self.rows,
                     model=self.model.state_dict(), optimizer=self.opt.state_dict(), random=_random_state(self.dls),
                     recorder=recorded, callbacks={name: cb.state_dict() for name,cb in self._with_state().items()})
        buf = io.BytesIO()
        torch.save(_plain(state), buf)
        try: atomic_write(self.file, buf.getvalue())
        except OSError as e: self._warn(e)
        else: self.kept,self.failed = self.done,False

    def _warn(self, e):
        "Say once that the state could not be written"
        if self.failed: return
        self.failed = True
        after = f'goes on after epoch {self.kept}' if self.kept else 'begins again'
        print(f'{self.file} cannot be written ({e.strerror or e}): make room. The training goes on; '
              f'if it is stopped, it {after}.', file=sys.stderr)

    def after_fit(self): self.learn.remove_cb(self)
