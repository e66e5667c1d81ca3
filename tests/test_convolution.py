"The convolutional network: what it accepts, what it computes, that it learns, and that it is saved"
import json
from dataclasses import asdict, replace

import pytest, torch
from torch import nn

from mnist_fastai.checkpoint import load_network, save_network
from mnist_fastai.convolution import *
from mnist_fastai.data import Mnist
from mnist_fastai.loaders import digit_dls
from mnist_fastai.models import count_parameters, find_model
from mnist_fastai.training import Recipe, evaluate, find_recipe, train

def by_hand(ni, nf, side=3, stride=1, bn=True):
    "A convolution, batch normalization if wanted, ReLU; from PyTorch's layers"
    conv = nn.Conv2d(ni, nf, side, stride, padding=side//2, bias=not bn)
    return nn.Sequential(conv, *([nn.BatchNorm2d(nf)] if bn else []), nn.ReLU())

@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(6, 1, 28, 28)

def same(net, layers, x):
    "Whether the network computes the same as `layers` if both have the same weights, in both modes"
    net.layers.load_state_dict(layers.state_dict())
    return all(torch.allclose(net.train(mode)(x), layers.train(mode)(x), atol=1e-5) for mode in (True,False))

# --- what it computes

def test_it_equals_layers_put_together_by_hand(x):
    layers = nn.Sequential(by_hand(1, 16, 5, 2), by_hand(16, 32), nn.MaxPool2d(2),
                           by_hand(32, 32), by_hand(32, 64), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(576, 10))
    assert same(ConvNet(), layers, x)

def test_without_pooling_and_batch_normalization(x):
    layers = nn.Sequential(by_hand(1, 4, 5, 3, bn=False), by_hand(4, 6, bn=False), nn.Flatten(), nn.Linear(600, 10))
    assert same(ConvNet(((4,6),), stride=3, pool=False, bn=False), layers, x) # 28 pixels, stride 3: 10 places

def test_the_mean_of_each_channel(x):
    layers = nn.Sequential(by_hand(1, 4, 5, 2), nn.MaxPool2d(2), by_hand(4, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                           nn.Linear(8, 10))
    assert same(ConvNet(((4,),(8,)), mean=True), layers, x)

@pytest.mark.parametrize('shape', [(6,28,28), (6,1,28,28), (6,784)], ids=str)
def test_all_shapes_of_a_batch(x, shape):
    net = ConvNet(((4,),)).eval()
    assert net(x.view(shape)).shape==(6,10) and torch.equal(net(x.view(shape)), net(x))

def test_another_shape_is_an_error():
    with pytest.raises(ValueError, match='A batch of digits is'): ConvNet()(torch.zeros(2, 3, 28, 28))

def test_the_first_feature_maps_move_with_the_digit(x):
    "By half as many places, as the stride is 2"
    net = ConvNet(pool=False).eval()
    digit = torch.zeros(1, 1, 28, 28)
    digit[:,:,10:18,10:18] = x[:1,:,:8,:8]
    maps,moved = [net.layers[0](o) for o in (digit,digit.roll(4, dims=-1))]
    assert torch.allclose(moved, maps.roll(2, dims=-1), atol=1e-5) and not torch.allclose(moved, maps, atol=.1)

# --- parameters

@pytest.mark.parametrize('kwargs,n', [
    ({}, 38_714), (dict(bn=False), 38_570), (dict(mean=True), 33_594),
    (dict(blocks=((16,),), pool=False, bn=False), 16*25+16 + 16*14*14*10+10),
    (dict(blocks=((16,),), stride=1, bn=False), 16*25+16 + 16*14*14*10+10)], ids=str)
def test_parameters(kwargs, n): assert count_parameters(ConvNet(**kwargs))==n

def test_far_fewer_than_of_the_linear_network():
    assert 10*count_parameters(ConvNet())<count_parameters(find_model('Network')())

# --- arguments that describe no network

@pytest.mark.parametrize('blocks', [(), [], ((),), ((16,),()), (16,32), ((16,0),), ((-3,),), ((16.,),), (('16',),), 5,
                                    None, '16', ((16,),None)], ids=repr)
def test_wrong_blocks(blocks):
    with pytest.raises(ValueError, match='The blocks must hold the channels of each convolution') as e: ConvNet(blocks)
    assert repr(blocks) in str(e.value)

@pytest.mark.parametrize('stride', [0, -1, 1.5, '2', None], ids=repr)
def test_wrong_stride(stride):
    with pytest.raises(ValueError, match='The stride must be a whole number above 0'): ConvNet(stride=stride)

def test_nothing_is_left_of_the_image():
    four = ((4,),)*4
    with pytest.raises(ValueError, match='after each of 4 blocks leaves nothing of the image'): ConvNet(four)
    with pytest.raises(ValueError, match='leaves nothing of the image'): ConvNet(((4,),), stride=28)
    for kwargs in dict(stride=1),dict(pool=False),dict(mean=True): ConvNet(four, **kwargs)

def test_lists_are_blocks_too(): assert count_parameters(ConvNet([[16,32],[32,64]]))==38_714

# --- recipe and steps

def test_its_recipe():
    recipe = find_recipe('ConvNet')
    assert recipe is recipes['ConvNet'] and find_model(recipe.arch) is ConvNet
    assert Recipe(**json.loads(json.dumps(asdict(recipe))))==recipe and not recipe.augment

def test_the_steps_differ_in_the_network_alone():
    last = steps['batch normalization']
    assert last==recipes['ConvNet'] and len(steps)==7
    assert all(replace(o, arch=last.arch, kwargs=last.kwargs)==last for o in steps.values())
    numbers = [count_parameters(find_model(o.arch)(**o.kwargs)) for o in steps.values()]
    assert numbers==[101_770, 31_786, 31_786, 8_266, 20_746, 38_570, 38_714]

@pytest.fixture(scope='module')
def few(sample):
    return Mnist(sample.train.subset(slice(1000)), sample.valid, sample.test, sample.source)

@pytest.fixture(scope='module')
def learn(few): return train(replace(recipes['ConvNet'], epochs=4), few, 1, 'cpu', quiet=True, precision='float32')

def test_it_learns(learn): assert evaluate(learn)['accuracy']>.9

def test_every_step_can_be_trained(few):
    tiny = Mnist(few.train.subset(slice(128)), few.valid.subset(slice(50)), few.test, few.source)
    for recipe in steps.values():
        losses = train(replace(recipe, epochs=1), tiny, 1, 'cpu', quiet=True).history.epochs.valid_loss
        assert losses.isna().sum()==0

def test_saved_contiguous_and_loaded(learn, few, tmp_path):
    "Training takes the weights in channels-last order; a file has the usual order"
    weight = learn.model.layers[1][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    path = save_network(learn, tmp_path/'conv.pth', evaluate(learn))
    stored = torch.load(path, weights_only=True)['state_dict']
    assert all(o.is_contiguous() for o in stored.values())
    net = load_network(path)
    assert type(net) is ConvNet and torch.equal(net.layers[1][0].weight, weight)
    assert evaluate(net, 'valid', digit_dls(few, device='cpu'))['accuracy']==evaluate(learn)['accuracy']
