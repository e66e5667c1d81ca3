"""A network is one class in one file

This module registers a small convolutional network, and everything in the library takes it.
`run_experiment` starts processes that import this module to know it."""
import json
from dataclasses import asdict

import pytest, torch
from torch import nn

from conftest import run_python
from mnist_fastai.checkpoint import CheckpointError, load_network, save_network
from mnist_fastai.cli import main as mnist_train
from mnist_fastai.data import Mnist
from mnist_fastai.experiments import reproduce, run_experiment
from mnist_fastai.loaders import digit_dls
from mnist_fastai.models import find_model, model_name, register_model
from mnist_fastai.training import Recipe, evaluate, recipes, train

@register_model
class SmallConv(nn.Module):
    "Two convolutions, the mean of each channel, a linear layer"
    def __init__(self, widths=(8,16), p=.1, *, bn=True):
        super().__init__()
        layers,ni = [],1
        for nf in widths:
            layers += [nn.Conv2d(ni, nf, 3, stride=2, padding=1),
                       nn.BatchNorm2d(nf) if bn else nn.Identity(), nn.ReLU()]
            ni = nf
        self.body,self.head = nn.Sequential(*layers, nn.Dropout(p)),nn.Linear(ni, 10)

    def forward(self, x): return self.head(self.body(x.view(-1, 1, 28, 28)).mean((2,3)))

recipe = Recipe('SmallConv', dict(widths=(4,8)), epochs=2, bs=100, lr=1e-2, augment=dict(rotate=5))

@pytest.fixture(scope='module')
def few(sample):
    return Mnist(sample.train.subset(slice(500)), sample.valid.subset(slice(200)), sample.test, sample.source)

@pytest.fixture(scope='module')
def learn(few): return train(recipe, few, 1, 'cpu', quiet=True)

def test_names_and_arguments(learn):
    assert find_model('SmallConv') is SmallConv is type(learn.model) and model_name(learn.model)=='SmallConv'
    assert learn.model.init_kwargs==dict(widths=(4,8), p=.1, bn=True) and learn.model.train_sources==('sample',)
    assert SmallConv((2,), bn=False).init_kwargs==dict(widths=(2,), p=.1, bn=False)

def test_the_recipe_is_plain_data(): assert Recipe(**json.loads(json.dumps(asdict(recipe))))==recipe

def test_saved_and_loaded(learn, few, tmp_path):
    net = load_network(save_network(learn, tmp_path/'conv.pth', evaluate(learn)))
    assert type(net) is SmallConv and net.init_kwargs['widths']==[4,8] and Recipe(**net.card['recipe'])==recipe
    assert evaluate(net, 'valid', digit_dls(few, device='cpu'))==evaluate(learn)

@pytest.mark.slow
def test_a_grid_of_it(few, tmp_path):
    runs = run_experiment(dict(conv=recipe, linear=Recipe('Network', epochs=1, bs=100)), [1],
                          tmp_path/'x.json', few, quiet=True)
    assert [o['arm'] for o in runs]==['conv','linear'] and runs[0]['recipe']['augment']==dict(rotate=5)
    table,_ = reproduce(runs, ['conv'], [1], few, quiet=True)
    assert table.equal.all() # an augmented recipe too

@pytest.mark.slow
def test_exported(learn, tmp_path):
    for o in ('onnx','onnxruntime','onnxscript','safetensors'): pytest.importorskip(o)
    from mnist_fastai.export import export_onnx, export_safetensors, load_onnx, load_safetensors
    x = torch.randn(5, 1, 28, 28)
    want = learn.model.eval().cpu()(x).detach()
    for write,read in ((export_onnx,load_onnx), (export_safetensors,load_safetensors)):
        net = read(write(learn, tmp_path/'conv'))
        assert (torch.allclose(net(x), want, atol=1e-4)
                and net.card['arch']=='SmallConv' and net.train_sources==('sample',))

def test_the_command_takes_its_recipe(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(recipes, 'SmallConv', recipe)
    assert mnist_train(['--networks', 'SmallConv', '--sample', '--epochs', '1', '--out', str(tmp_path)])==0
    assert (type(load_network(tmp_path/'SmallConv.pth')) is SmallConv
            and 'SmallConv: epochs 1' in capsys.readouterr().out)

# --- what is not registered

class Bare(SmallConv): "Registered is the class above it alone"

def test_a_class_that_is_not_registered(few, tmp_path):
    from mnist_fastai.training import digit_learner
    net = Bare()
    assert not hasattr(net, 'init_kwargs') # its arguments are not those of SmallConv
    with pytest.raises(ValueError, match='Bare is not a registered network: put @register_model'): model_name(net)
    with pytest.raises(ValueError, match="There is no network 'Bare'"): find_model('Bare')
    learn = digit_learner(digit_dls(few, device='cpu'), net)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    for o in (learn, net, None, net.state_dict()):
        with pytest.raises(ValueError): save_network(o, tmp_path/'x.pth')
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('name', [
    'load_mnist','os','os.path','mnist_fastai.app','Network.forward','../x','',None,5,('a',),'NoNet'])
def test_a_name_that_is_none(name):
    with pytest.raises(ValueError, match='There is no network'): find_model(name)

def test_arguments_must_have_names():
    for f in (lambda self, *sizes: None, lambda self, **kw: None, lambda self, x, /: None):
        with pytest.raises(TypeError, match='must all have names'):
            register_model(type('Odd', (nn.Module,), dict(__init__=f)))

def test_only_the_module_that_defines_a_name_is_imported():
    code = """
import sys
from mnist_fastai.models import find_model
assert not [o for o in sys.modules if o.startswith('mnist_fastai.') and o!='mnist_fastai.models']
try: find_model('Nothing')
except ValueError: pass
try: find_model('os')
except ValueError: pass
assert 'mnist_fastai.training' not in sys.modules
print(find_model('ImprovedNetwork').__module__, 'mnist_fastai.app' in sys.modules, 'mnist_fastai.export' in sys.modules)
"""
    p = run_python(code)
    assert p.stdout.strip()=='mnist_fastai.improvement False False', p.stderr

@pytest.mark.slow
def test_a_class_of_your_own_stands_in_for_the_librarys():
    code = """
from mnist_fastai.models import Network, find_model, register_model
@register_model
class ImprovedNetwork(Network): pass
from mnist_fastai.improvement import ImprovedNetwork as librarys
print(find_model('ImprovedNetwork') is ImprovedNetwork is not librarys)
"""
    p = run_python(code)
    assert p.stdout.strip()=='True', p.stderr

@pytest.mark.slow
def test_a_file_names_a_network_that_is_not_known_here(learn, tmp_path):
    path = save_network(learn, tmp_path/'conv.pth')
    p = run_python('import sys\n'
                   'from mnist_fastai.checkpoint import *\n'
                   'try: load_network(sys.argv[1])\n'
                   'except CheckpointError as e: print(e)', path)
    assert "holds a network 'SmallConv', not known here: import the module that registers it" in p.stdout, p.stderr
