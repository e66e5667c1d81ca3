"Instruments for a training: each one finds a planted fault and stays silent without it"
from dataclasses import replace

import numpy as np, pytest, torch, torch.nn.functional as F
from fastai.basics import Learner, OptimWrapper
from torch import nn

from mnist_fastai.data import DataInfo, Digits, Mnist
from mnist_fastai.debugging import *
from mnist_fastai.improvement import ImprovedNetwork
from mnist_fastai.loaders import DigitDataLoaders, digit_dls
from mnist_fastai.models import Network
from mnist_fastai.training import digit_learner, find_recipe, fused_adam, train

def pixels(ds): return ds[:][0].as_subclass(torch.Tensor)

def fit(data, net=Network, seed=1, epochs=5, change=None, **kwargs):
    "A short training without output"
    torch.manual_seed(seed)
    learn = digit_learner(digit_dls(data, device='cpu'), net(), **kwargs)
    if change: change(learn)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
    return learn

@pytest.fixture(scope='module')
def healthy(sample): return fit(sample)

# --- the ten faults

class EqualWeights(Network):
    def __init__(self):
        super().__init__()
        for p in self.parameters(): nn.init.constant_(p, .01)

class BigWeights(Network):
    def __init__(self):
        super().__init__()
        for p in self.parameters(): nn.init.normal_(p, std=.2)

class EndsWithSoftmax(Network):
    def forward(self, x): return super().forward(x).softmax(1)

class EndsWithReLU(Network):
    def forward(self, x): return F.relu(super().forward(x))

class NeverFive(Network):
    def forward(self, x): return super().forward(x) - (not self.training)*100*F.one_hot(torch.tensor(5), 10)

class DeadLayer(Network):
    def forward(self, x):
        nn.init.constant_(self.layers[1].bias, -1000.)
        return super().forward(x)

class NoRunningStatistics(ImprovedNetwork):
    def __init__(self):
        super().__init__(p=0)
        self.norms = nn.ModuleList(nn.BatchNorm1d(o.num_features, track_running_stats=False) for o in self.norms)

class NoZeroGrad(OptimWrapper):
    def zero_grad(self): pass

def no_zero_grad(params, lr): return NoZeroGrad(params, torch.optim.Adam, lr=lr)
def other_network(params, **kwargs): return fused_adam(Network().parameters(), **kwargs)
def no_shuffle(learn): learn.dls.train.shuffle = False

def with_train(data, train): return Mnist(train, data.valid, data.test, data.source)
def shuffled_labels(data):
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    return with_train(data, data.train.replace(labels=data.train.labels[order]))
def by_class(data): return with_train(data, data.train.subset(data.train.labels.argsort(stable=True)))
def not_normalized(data):
    return Mnist(data.train, data.valid.replace(info=DataInfo(mean=0., std=1.)), data.test, data.source)
def leaked(data, n=3, shift=0):
    images = data.train.images.clone()
    images[10:10+n] = data.valid.images[:n].roll(shift, dims=2)
    return with_train(data, data.train.replace(images=images))

# name of the finding, words in its sentence, and what is wrong
faults = {
    'wrong optimizer': ('optimizer', 'holds 0 of the 8', dict(opt_func=other_network)),
    'rate too high': ('rising loss', 'lower the learning rate', dict(lr=.1)),
    'rate too low': ('slow', 'raise the learning rate', dict(lr=1e-5)),
    'shuffled labels': ('labels', 'do the labels belong', dict(data=shuffled_labels)),
    'equal weights': ('equal units', 'layers.0.weight', dict(net=EqualWeights)),
    'no zero_grad': ('gradients', 'zero_grad', dict(opt_func=no_zero_grad)),
    'class order': ('order', 'shuffle', dict(data=by_class, change=no_shuffle)),
    'softmax twice': ('outputs', 'return the logits', dict(net=EndsWithSoftmax)),
    'ReLU on logits': ('outputs', 'remove the activation function', dict(net=EndsWithReLU)),
    'not normalized': ('inputs', 'normalize both', dict(data=not_normalized)),
    'leaked digits': ('duplicates', '3 of the 500', dict(data=leaked)),
    'big first weights': ('first loss', 'first weights', dict(net=BigWeights)),
    'a class is never predicted': ('classes', 'Never predicted: 5.', dict(net=NeverFive)),
    'a dead layer': ('dead units', '100%', dict(net=DeadLayer)),
    'statistics of the batch': ('batch', 'running statistics', dict(net=NoRunningStatistics)),
    'steps of no size': ('labels', 'does not even learn one batch', dict(lr=1e-9)),
}

@pytest.mark.parametrize('name', faults)
def test_a_fault_is_named(sample, name):
    finding,words,kwargs = faults[name]
    kwargs = dict(kwargs)
    data = kwargs.pop('data', lambda o: o)(sample)
    found = check_training(fit(data, **kwargs))
    assert words in found.get(finding, ''), found

def test_a_healthy_training_has_no_findings(healthy): assert check_training(healthy)=={}

@pytest.mark.parametrize('name', ['Network','ImprovedNetwork','ConvNet'])
def test_the_recipes_of_the_course_have_no_findings(sample, name):
    assert check_training(train(replace(find_recipe(name), epochs=4), sample, 1, device='cpu', quiet=True))=={}

@pytest.mark.slow
@pytest.mark.parametrize('name', ['Network','ImprovedNetwork','ConvNet'])
def test_the_full_recipes_have_no_findings(full, name):
    assert check_training(train(find_recipe(name), full, 1, device='cpu', quiet=True))=={}

@pytest.mark.parametrize('change', [dict(augment=dict(rotate=8., shift=1.)), dict(label_smoothing=.1), dict(ema=.9),
                                    dict(precision='bfloat16')], ids=lambda o: next(iter(o)))
def test_what_a_recipe_may_switch_on_is_no_fault(sample, change):
    recipe = replace(find_recipe('Network'), epochs=5, **change)
    assert check_training(train(recipe, sample, 1, device='cpu', quiet=True))=={}

@pytest.mark.parametrize('limits,finding', [
    (dict(first_loss=.5), 'first loss'), (dict(rise=.5), 'rising loss'), (dict(mean=-1.), 'inputs'),
    (dict(std=1.), 'inputs'), (dict(one_class=.05), 'order'), (dict(spread=9.), 'equal units'),
    (dict(dead=-1.), 'dead units'), (dict(batch=-1.), 'batch')], ids=lambda o: str(o))
def test_a_narrower_limit_finds_more(healthy, limits, finding):
    assert list(check_training(healthy, limits=CheckLimits(**limits)))==[finding]

@pytest.mark.parametrize('limits,name,finding', [
    (dict(slow=1.), 'rate too low', 'slow'), (dict(learned=.1), 'rate too low', 'slow'),
    (dict(fitted=1.1), 'shuffled labels', 'labels'), (dict(expected=501), 'a class is never predicted', 'classes')],
    ids=lambda o: str(o))
def test_a_wider_limit_finds_less(sample, limits, name, finding):
    kwargs = dict(faults[name][2])
    learn = fit(kwargs.pop('data', lambda o: o)(sample), **kwargs)
    assert finding in check_training(learn) and finding not in check_training(learn, limits=CheckLimits(**limits))

def test_one_batch_is_learned_or_not_by_its_limit(sample):
    learn = fit(shuffled_labels(sample))
    assert 'does not even learn' in check_training(learn, limits=CheckLimits(memorized=0.))['labels']

def test_a_cause_comes_before_its_symptoms(sample):
    assert list(check_training(fit(sample, EqualWeights)))[0]=='equal units'

def test_pixels_to_255_are_no_fault(sample):
    info = DataInfo(mean=0., std=1/255)
    parts = [o.replace(info=info) for o in (sample.train,sample.valid,sample.test)]
    assert check_training(fit(Mnist(*parts, sample.source)))=={}

def test_a_leaked_digit_that_was_shifted_is_not_seen(sample):
    assert check_training(fit(leaked(sample, shift=1)))=={}

def test_a_training_that_becomes_nan_is_named(sample):
    class Nan(Network):
        def forward(self, x): return super().forward(x)*float('nan')
    assert 'rising loss' in check_training(fit(sample, Nan, epochs=1))

def test_the_check_changes_nothing(sample):
    learn = fit(sample, ImprovedNetwork, epochs=1)
    learn.dls.train.order = torch.Generator().manual_seed(0)
    states = learn.model.train().state_dict()
    before = {k: v.clone() for k,v in states.items()}
    random,order,step = torch.get_rng_state(),learn.dls.train.order.get_state(),len(learn.history.batches)
    check_training(learn)
    overfit_batch(learn, steps=2)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items()) and learn.model.training
    assert all(p.grad is None for p in learn.model.parameters()) and len(learn.history.batches)==step
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(learn.dls.train.order.get_state(), order)

# --- bad input

def test_a_learner_that_was_never_fitted(sample):
    learn = digit_learner(digit_dls(sample, device='cpu'), Network())
    with pytest.raises(ValueError, match='never fitted'): check_training(learn)

def test_a_learner_with_a_learning_rate_finder_alone_was_never_fitted(sample, tmp_path):
    learn = digit_learner(digit_dls(sample, device='cpu', path=tmp_path), Network())
    with learn.no_bar(): learn.lr_find(num_it=3, show_plot=False)
    with pytest.raises(ValueError, match='never fitted'): check_training(learn)

def test_a_learner_without_loaders():
    learn = Learner(None, Network(), loss_func=F.cross_entropy)
    with pytest.raises(ValueError, match='give it loaders'): check_training(learn)

def test_a_learner_without_digits(healthy, sample):
    empty = sample.valid.subset(slice(0))
    data = Mnist(sample.train, empty, sample.test, sample.source)
    learn = digit_learner(digit_dls(data, device='cpu'), Network())
    with pytest.raises(ValueError, match='give it loaders'): check_training(learn)

def test_a_learner_without_a_history(sample):
    learn = Learner(digit_dls(sample, device='cpu'), Network(), loss_func=F.cross_entropy)
    with pytest.raises(ValueError, match='history'): check_training(learn)

def test_something_else_than_a_learner():
    with pytest.raises(ValueError, match='give it loaders'): check_training(Network())

# --- each instrument on a known case

def test_overfit_batch_learns_shuffled_labels_but_not_with_the_wrong_parameters(sample):
    def last(data, **kwargs):
        torch.manual_seed(1)
        return overfit_batch(digit_learner(digit_dls(data, device='cpu'), Network(), **kwargs))[-1]
    assert last(sample)<.01 and last(shuffled_labels(sample))<.1
    assert last(sample, opt_func=other_network)>2

def test_step_stats_of_plain_gradient_descent(sample):
    def sgd(params, lr): return OptimWrapper(params, torch.optim.SGD, lr=lr)
    one = with_train(sample, sample.train.subset(slice(256)))
    torch.manual_seed(1)
    net = Network((784,10))
    w = net.layers[0].weight.detach().clone()
    stats = StepStats()
    learn = digit_learner(digit_dls(one, device='cpu'), net, lr=.5, opt_func=sgd, cbs=stats)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    table = stats.table()
    assert table.layer.tolist()==['layers.0.weight']
    change = (net.layers[0].weight-w).abs().mean().item()
    np.testing.assert_allclose(table.gradient[0], change/.5, rtol=1e-4)
    np.testing.assert_allclose(table.ratio[0], change/w.abs().mean().item(), rtol=1e-4)

def test_step_stats_count_a_missing_gradient_as_0(sample):
    class Cut(Network):
        def forward(self, x): return self.layers[1](F.relu(self.layers[0](x.flatten(1))).detach())
    stats = StepStats()
    fit(sample, lambda: Cut((784,16,10)), epochs=1, cbs=stats)
    means = stats.table().groupby('layer').mean()
    assert means.loc['layers.0.weight'].tolist()==[0,0] and (means.loc['layers.1.weight']>0).all()

@pytest.mark.parametrize('net', [Network, ImprovedNetwork])
def test_gradients_of_the_networks_are_right(sample, net):
    torch.manual_seed(1)
    assert gradient_check(net(), pixels(sample.train)[:32], sample.train.labels[:32], n=3)<1e-3

def test_a_wrong_gradient_is_found(sample):
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x): return x.clone()
        @staticmethod
        def backward(ctx, g): return g/2
    class Wrong(Network):
        def forward(self, x): return self.layers[1](Half.apply(F.relu(self.layers[0](x.flatten(1)))))
    torch.manual_seed(1)
    error = gradient_check(Wrong((784,16,10)), pixels(sample.train)[:32], sample.train.labels[:32])
    assert .4<error<.6

def test_dead_units_are_counted_before_relu(sample):
    net,x = Network((784,4,10)),pixels(sample.train)[:100]
    with torch.no_grad(): net.layers[0].bias[:3] = torch.tensor([-1e4,-1e4,1e4])
    with torch.no_grad(): net.layers[0].bias[3] = 1e4
    assert dead_units(net, x)==[.5]

def test_dead_units_of_a_network_with_batch_normalization_are_those_after_it(sample):
    net,x = ImprovedNetwork((784,4,10), p=0),pixels(sample.train)[:100]
    with torch.no_grad(): net.layers[0].bias[:] = -1e4 # running statistics of such a layer
    net.train()
    for _ in range(200): net(x)
    assert dead_units(net, x)==[0.]
    with torch.no_grad(): net.norms[0].bias[0] = -1e4
    assert dead_units(net, x)==[.25] and net.training

def test_batch_classes_counts_the_batches_that_come_next(sample):
    dl = digit_dls(by_class(sample), bs=100, device='cpu').train
    counts = batch_classes(dl, 5)
    assert counts.shape==(5,10) and (counts.sum(1)==100).all() and (counts>0).all(1).all()
    dl.shuffle = False
    assert batch_classes(dl, 3).argmax(1).tolist()==[0,0,0] and len(batch_classes(dl, 1000))==40

def test_input_stats_are_those_of_normalized_pixels(sample):
    table = input_stats(digit_dls(not_normalized(sample), device='cpu'), n=10_000)
    x = pixels(sample.train)
    np.testing.assert_allclose(table.loc['train'], [x.min(),x.max(),x.mean(),x.std()], rtol=1e-3, atol=1e-4)
    assert table.loc['valid','min']==0 and table.loc['valid','max']==1

def test_duplicates_are_found_at_their_positions(sample):
    a,b = sample.train.subset([5,6,7,5]),sample.valid.subset([0,1])
    assert find_duplicates(a, b)==[]
    assert find_duplicates(a, Digits(torch.cat([b.images, a.images[1:2]])))==[(1,2)]
    assert find_duplicates(a, a.subset([0]))==[(3,0)]

def test_outputs_that_depend_on_the_batch(sample):
    x = pixels(sample.train)[:64]
    torch.manual_seed(1)
    assert depends_on_batch(ImprovedNetwork(), x)<1e-4 and depends_on_batch(NoRunningStatistics(), x)>.01
