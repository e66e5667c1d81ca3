"""What a recipe can switch on in a training, as fastai callbacks, and a training that goes on after a stop.

A plain file. `training` adds the first three for a recipe that asks for them; lessons 13 and 14 measure what they do.
`Resume` is for long trainings: `train(recipe, data, seed, cbs=Resume(path))`.
"""

__all__ = ['precisions', 'fastest_precision', 'BFloat16', 'SmoothLabels', 'AverageWeights', 'Resume']

import functools, json, time
from contextlib import ExitStack
from dataclasses import asdict

from fastai.basics import *

from .core import UserError, atomic_write

precisions = 'float32','bfloat16','fastest' #: what a recipe may ask for, see `fastest_precision`

@functools.cache
def fastest_precision(
    device='cpu', # Its type
    gain:float=1.15, # How many times as fast bfloat16 must be
)->str: # 'bfloat16' or 'float32'
    "Which precision trains a small convolution faster on this machine. Measured once in a process; float32 off the CPU"
    if torch.device(device).type!='cpu': return 'float32'
    conv = nn.Conv2d(32, 32, 3, padding=1).to(memory_format=torch.channels_last)
    xb = torch.zeros(64, 32, 14, 14).to(memory_format=torch.channels_last)

    def seconds(bfloat16):
        start = time.perf_counter()
        with torch.autocast('cpu', torch.bfloat16, enabled=bfloat16): out = conv(xb)
        out.float().sum().backward()
        return time.perf_counter()-start

    with torch.random.fork_rng(devices=[]):
        times = [(seconds(False),seconds(True)) for _ in range(8)]
    float32,bfloat16 = (min(o) for o in zip(*times[2:]))
    return 'bfloat16' if float32>gain*bfloat16 else 'float32'

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

class SmoothLabels(Callback):
    """Label smoothing in training: the wanted probability of the label is `1-eps`, and `eps` is spread over all classes

    Validation keeps plain cross-entropy. Source: arXiv 1512.00567, section 7"""
    def __init__(self, eps): self.eps = eps
    def before_train(self): self.learn.loss_func.func.label_smoothing = self.eps
    def after_train(self): self.learn.loss_func.func.label_smoothing = 0.
    after_cancel_train = after_cancel_fit = before_validate = after_train

class AverageWeights(Callback):
    """An exponential moving average of the weights, `decay` of it kept at each step, validates and is what remains

    Source: Polyak and Juditsky, SIAM J. Control Optim. 30 (1992)"""
    order = 75 # after the schedule
    def __init__(self, decay): self.decay = decay

    def before_fit(self):
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(self.decay)
        self.average = torch.optim.swa_utils.AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)

    def after_batch(self):
        if self.training: self.average.update_parameters(self.model)

    def _swap(self):
        ours,theirs = self.model.state_dict(),self.average.module.state_dict()
        with torch.no_grad():
            for k,v in ours.items():
                kept = v.clone()
                v.copy_(theirs[k])
                theirs[k].copy_(kept)

    def before_validate(self): self._swap()
    def after_validate(self): self._swap()
    after_cancel_validate = after_validate
    def after_fit(self): self._swap()
    def state_dict(self): return self.average.state_dict()
    def load_state_dict(self, state): self.average.load_state_dict(state)

_format = 'mnist_fastai training 1'

def _random_state(dls):
    "The states of the random number generators that a training draws from"
    states = [torch.get_rng_state()]
    if dls.train.order is not None: states.append(dls.train.order.get_state())
    if dls.device.type!='cpu': states.append(torch.get_device_module(dls.device).get_rng_state())
    return states

def _set_random_state(dls, states):
    states = [o.cpu() for o in states]
    torch.set_rng_state(states.pop(0))
    if dls.train.order is not None: dls.train.order.set_state(states.pop(0))
    if dls.device.type!='cpu': torch.get_device_module(dls.device).set_rng_state(states.pop(0))

def _plain(o):
    "`o` with numpy's numbers, at any depth, as Python's: others are not loaded from a file"
    if isinstance(o, dict): return {k: _plain(v) for k,v in o.items()}
    if isinstance(o, (list,tuple)): return type(o)(map(_plain, o))
    return o.item() if isinstance(o, np.generic) else o

class Resume(Callback):
    """Keep the whole state of a training in a file after each epoch. The same training, started again, goes on from it

    The state is the network, the optimizer, the random numbers and the history: the result is the same as without a
    stop. After the last epoch the file stays, until its user removes it. Raises `UserError` for a file that is damaged
    or of another training; nothing in it is executed."""
    order = 80 # after all that the state holds has been updated
    def __init__(self,
        path, # File of the state
    ): self.path,self.done = Path(path),0

    def _plan(self):
        "What must be the same for a training to go on, as JSON"
        recipe,ds = getattr(self.learn, 'recipe', None),self.dls.train_ds
        plan = dict(recipe=recipe and asdict(recipe), seed=getattr(self.learn, 'seed', None), epochs=self.n_epoch,
                    source=ds.source, digits=len(ds), bs=self.dls.train.bs,
                    precision=getattr(self.learn, 'precision', None), device=self.dls.device.type)
        return json.dumps(plan, sort_keys=True)

    def _with_state(self): return {type(o).__name__: o for o in self.learn.cbs if hasattr(o, 'state_dict')}

    def _load(self):
        advice = 'delete it to train from the beginning.'
        try: state = torch.load(self.path, map_location='cpu', weights_only=True)
        except OSError as e:
            raise UserError(f'{self.path} cannot be read ({e.strerror or e}): make it readable, or {advice}') from None
        except Exception: state = None
        if not isinstance(state, dict) or state.get('format')!=_format:
            raise UserError(f'{self.path} is damaged or holds no training that was stopped: {advice}')
        if state['plan']!=self._plan():
            raise UserError(f'{self.path} holds a stopped training with another recipe, seed or data: '
                            f'start that one again, or {advice}')
        return state

    def before_fit(self):
        if hasattr(self.learn, 'lr_finder') or hasattr(self, 'gather_preds') or not self.path.exists(): return
        state = self._load()
        self.model.load_state_dict(state['model'])
        self.opt.load_state_dict(state['optimizer'])
        for name,cb in self._with_state().items(): cb.load_state_dict(state['callbacks'][name])
        self.recorder.smooth_loss.val,self.recorder.smooth_loss.count = state['smooth_loss']
        _set_random_state(self.dls, state['random'])
        self.done,self.rows = state['done'],state['rows']

    def before_epoch(self):
        "An epoch that is done already shows its row again"
        if self.epoch>=self.done: return
        *row,seconds = self.rows[self.epoch]
        self.recorder.log += row
        self.recorder.start_epoch = time.time()-seconds
        raise CancelEpochException

    def after_epoch(self):
        if self.epoch<self.done or not self.history.trained: return
        self.done = self.epoch+1
        self.rows = getattr(self, 'rows', []) + [[*self.recorder.final_record, time.time()-self.recorder.start_epoch]]
        smooth_loss = self.recorder.smooth_loss
        state = dict(format=_format, plan=self._plan(), done=self.done, rows=self.rows, model=self.model.state_dict(),
                     optimizer=self.opt.state_dict(), random=_random_state(self.dls),
                     smooth_loss=[smooth_loss.val,smooth_loss.count],
                     callbacks={name: cb.state_dict() for name,cb in self._with_state().items()})
        buf = io.BytesIO()
        torch.save(_plain(state), buf)
        atomic_write(self.path, buf.getvalue())
