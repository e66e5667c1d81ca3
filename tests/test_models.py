"""The two networks.

What they take and refuse, their layers and parameters, dropout and batch normalization in both modes.
"""
import copy, io, math
import numpy as np, pytest, torch, torch.nn.functional as F
from hypothesis import assume, given, settings, strategies as st
from mnist_fastai.data import *
from mnist_fastai.loaders import digit_dls
from mnist_fastai.improvement import ImprovedNetwork
from mnist_fastai.models import *
from torch import nn, Tensor

quick = settings(max_examples=30, deadline=None)
small = (784,16,8,10)
forms = (28,28),(1,28,28),(784,)
hidden = st.lists(st.integers(1, 40), max_size=4)

def rand_batch(n=8, seed=0): return torch.randn(n, 784, generator=torch.Generator().manual_seed(seed))

def seeded(cls, *args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return cls(*args, **kwargs)

@pytest.fixture(params=[Network, ImprovedNetwork])
def cls(request): return request.param

# What a batch may be

@quick
@given(st.integers(0, 5), st.sampled_from(forms))
def test_flat_images_gives_a_row_each(n, form):
    x = torch.arange(n*784).float().view(n, *form)
    out = flat_images(x)
    assert out.shape==(n,784)
    assert out.flatten().tolist()==x.flatten().tolist()

@quick
@given(st.lists(st.integers(0, 30), max_size=5))
@pytest.mark.parametrize('to_shape', [
    tuple,
    lambda o: (2,14,56)[:len(o)],
    lambda o: (*o[:1],28,28,1),
    lambda o: (*o[:1],1,784),
])
def test_flat_images_refuses_other_shapes(to_shape, dims):
    shape = to_shape(dims)
    assume(tuple(shape[1:]) not in forms and math.prod(shape)<1e6)
    with pytest.raises(ValueError) as e: flat_images(torch.zeros(shape))
    assert str(e.value)==f'A batch of digits is (n, 28, 28), (n, 1, 28, 28) or (n, 784), not {tuple(shape)}.'

@pytest.mark.parametrize('x,what', [
    (torch.zeros(2,28,28, dtype=torch.uint8), 'torch.uint8'),
    (torch.zeros(2,784, dtype=torch.long), 'torch.int64'),
    (np.zeros((2,28,28), np.float32), 'ndarray'),
    ([[0.]*784], 'list'),
    (None, 'NoneType'),
])
def test_flat_images_refuses_what_is_no_float_tensor(x, what):
    with pytest.raises(TypeError, match='tensor of normalized floats') as e: flat_images(x)
    assert what in str(e.value)

def test_three_forms_give_the_same_logits(cls):
    model,x = seeded(cls, small).eval(),rand_batch()
    outs = [model(x.view(-1, *o)) for o in forms]
    assert all(torch.equal(o, outs[0]) for o in outs)

def test_a_model_refuses_what_is_no_batch(cls):
    with pytest.raises(ValueError, match=r'not \(28, 28\)'): cls(small)(torch.zeros(28,28))
    with pytest.raises(TypeError, match='torch.uint8'): cls(small)(torch.zeros(2,28,28, dtype=torch.uint8))

def test_a_batch_of_the_loader_goes_through(cls):
    dls = digit_dls(load_mnist(sample=True), bs=64, device='cpu')
    xb,yb = dls.train.one_batch()
    z = cls()(xb)
    assert z.shape==(64,10) and z.dtype==torch.float32
    loss = F.cross_entropy(z.as_subclass(Tensor), yb.as_subclass(Tensor))
    assert abs(loss.item()-math.log(10))<.5
    loss.backward()

# Sizes and parameters

@quick
@given(hidden)
def test_sizes_make_the_layers(hidden):
    sizes = (784,*hidden,10)
    net = Network(list(sizes))
    assert net.sizes==sizes and check_sizes(sizes)==sizes
    assert [(l.in_features, l.out_features) for l in net.layers]==list(zip(sizes, sizes[1:]))
    assert count_parameters(net)==sum(ni*nf+nf for ni,nf in zip(sizes, sizes[1:]))
    assert net(rand_batch(3)).shape==(3,10)

@quick
@given(hidden)
def test_improved_adds_two_parameters_a_hidden_unit(hidden):
    sizes = (784,*hidden,10)
    net = ImprovedNetwork(sizes)
    assert len(net.norms)==len(hidden)
    assert count_parameters(net)==count_parameters(Network(sizes)) + 2*sum(hidden)
    assert count_parameters(ImprovedNetwork(sizes, bn=False))==count_parameters(Network(sizes))
    assert net(rand_batch(3)).shape==(3,10)

@pytest.mark.parametrize('sizes', [
    (), (784,), (10,), (784,64), (64,10),
    (784,0,10), (784,-5,10), (784,64.,10), (784,'64',10), (784,None,10),
    (10,784), 784, '784', None, {784,10},
])
def test_bad_sizes_get_a_sentence(cls, sizes):
    with pytest.raises(ValueError, match='lead from 784 pixels to 10 logits') as e: cls(sizes)
    assert str(e.value).endswith(f'not {sizes!r}.')

def test_sizes_become_plain_numbers():
    net = Network([784, np.int64(16), 10])
    assert net.sizes==(784,16,10) and [type(o) for o in net.sizes]==[int]*3

def test_defaults():
    assert Network().sizes==ImprovedNetwork().sizes==(784,512,256,128,10)
    net = ImprovedNetwork()
    assert (net.p,net.bn)==(.2,True) and net.drop.p==.2

def test_count_parameters_leaves_out_what_is_frozen():
    net = Network(small)
    n = count_parameters(net)
    for o in net.layers[0].parameters(): o.requires_grad_(False)
    assert count_parameters(net)==n - (784*16+16)

def test_names_in_the_state():
    linear = [f'layers.{i}.{o}' for i in range(3) for o in ('weight','bias')]
    norm = [f'norms.{i}.{o}' for i in range(2)
            for o in ('weight','bias','running_mean','running_var','num_batches_tracked')]
    assert list(Network(small).state_dict())==linear
    assert list(ImprovedNetwork(small, bn=False).state_dict())==linear
    assert list(ImprovedNetwork(small).state_dict())==linear + norm

def test_state_survives_a_file(cls):
    model,other,x = seeded(cls, small),seeded(cls, small, seed=1),rand_batch()
    model(x) # running statistics that are not the first ones
    f = io.BytesIO(); torch.save(model.state_dict(), f); f.seek(0)
    assert not torch.equal(model.eval()(x), other.eval()(x))
    other.load_state_dict(torch.load(f, weights_only=True))
    assert torch.equal(model(x), other(x))

def test_a_new_network_does_not_say_what_it_learned_from(cls):
    assert not hasattr(cls(small), 'train_sources') # unknown, until a learner notes it

@pytest.mark.parametrize('cls', [Network, ImprovedNetwork])
def test_arguments_are_kept(cls):
    net = cls(small)
    assert net.init_kwargs['sizes']==small and find_model(cls.__name__) is cls and model_name(net)==cls.__name__
    again = cls(**copy.deepcopy(net.init_kwargs))
    assert [o.shape for o in again.parameters()]==[o.shape for o in net.parameters()]
    assert ImprovedNetwork(p=.1).init_kwargs==dict(sizes=(784,512,256,128,10), p=.1, bn=True)

# What they compute

def test_network_is_its_formula():
    net,x = seeded(Network, small),rand_batch()
    (w1,b1),(w2,b2),(w3,b3) = [(l.weight, l.bias) for l in net.layers]
    h = (x@w1.T+b1).clamp(min=0)
    h = (h@w2.T+b2).clamp(min=0)
    torch.testing.assert_close(net(x), h@w3.T+b3)

@pytest.mark.parametrize('training', [True, False])
def test_improved_is_its_formula(training):
    net,x = seeded(ImprovedNetwork, small, p=.3).train(),rand_batch(32)
    for i in range(3): net(rand_batch(32, seed=i+1)) # running statistics worth the name
    for o in net.norms: nn.init.uniform_(o.weight, .5, 2); nn.init.uniform_(o.bias, -1, 1)
    net.train(training)
    ref = copy.deepcopy(net)
    torch.manual_seed(3); out = net(x)
    torch.manual_seed(3); h = x
    for l,n in zip(ref.layers, ref.norms):
        h = F.batch_norm(l(h), n.running_mean, n.running_var, n.weight, n.bias, training)
        h = F.dropout(F.relu(h), .3, training)
    assert torch.equal(out, ref.layers[-1](h))

def test_logits_are_not_cut(cls):
    z = seeded(cls)(rand_batch(64))
    assert (z<0).any() and (z>0).any()

def test_every_parameter_gets_a_gradient(cls):
    model = seeded(cls, small)
    F.cross_entropy(model(rand_batch(64)), torch.arange(64)%10).backward()
    rows = model.layers[-1].weight.grad.abs().sum(1)
    assert (rows>0).all()
    assert all(o.grad is not None for o in model.parameters())

@quick
@given(hidden, st.integers(0, 1000), st.booleans())
def test_switched_off_improved_is_network(hidden, seed, training):
    sizes = (784,*hidden,10)
    a,b = seeded(Network, sizes, seed=seed),seeded(ImprovedNetwork, sizes, p=0, bn=False, seed=seed)
    x = rand_batch(4, seed)
    za,zb = a.train(training)(x),b.train(training)(x)
    assert torch.equal(za, zb)
    za.sum().backward(); zb.sum().backward()
    assert all(torch.equal(o.grad, q.grad) for o,q in zip(a.parameters(), b.parameters()))

def test_one_seed_gives_both_the_same_linear_layers():
    a,b = seeded(Network, small),seeded(ImprovedNetwork, small)
    assert all(torch.equal(o.weight, q.weight) and torch.equal(o.bias, q.bias) for o,q in zip(a.layers, b.layers))

# Dropout and batch normalization

@pytest.mark.parametrize('p', [1, 1.5, -.1, float('nan'), '0.2', None, [.2]])
def test_bad_p_gets_a_sentence(p):
    with pytest.raises(ValueError, match='at least 0 and below 1'): ImprovedNetwork(small, p=p)

def test_dropout_is_on_in_training_alone():
    net,x = seeded(ImprovedNetwork, small, p=.5, bn=False),rand_batch()
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    assert torch.equal(net(x), seeded(Network, small)(x))

def test_dropout_keeps_the_mean():
    """A hidden layer of ones before the last, which is linear.

    The mean of many draws is what evaluation gives, within 5 standard errors.
    """
    net,n,p = seeded(ImprovedNetwork, (784,50,10), p=.3, bn=False),20_000,.3
    with torch.no_grad():
        net.layers[0].weight.zero_(); net.layers[0].bias.fill_(1.)
        z,ref = net(torch.zeros(n, 784)),net.eval()(torch.zeros(1, 784))[0]
    se = (net.layers[1].weight.pow(2).sum(1)*p/((1-p)*n)).sqrt()
    assert ((z.mean(0)-ref).abs()<5*se).all()

def test_training_moves_the_running_statistics_and_evaluation_does_not():
    net,x = seeded(ImprovedNetwork, small),rand_batch(32)
    norm,h = net.norms[0],net.layers[0](x).detach()
    net(x)
    torch.testing.assert_close(norm.running_mean, .1*h.mean(0))
    torch.testing.assert_close(norm.running_var, .9 + .1*h.var(0))
    before = copy.deepcopy(net.state_dict())
    net.eval()(x)
    assert all(torch.equal(o, before[k]) for k,o in net.state_dict().items())

def test_a_batch_of_one():
    net,x = seeded(ImprovedNetwork, small),rand_batch(1)
    with pytest.raises(ValueError, match='Expected more than 1 value per channel'): net(x)
    assert net.eval()(x).shape==(1,10)
    assert ImprovedNetwork(small, bn=False)(x).shape==Network(small)(x).shape==(1,10)

def test_in_evaluation_company_does_not_matter(cls):
    model,x = seeded(cls, small),rand_batch(16)
    model(x); model.eval()
    torch.testing.assert_close(torch.cat([model(o[None]) for o in x]), model(x))
