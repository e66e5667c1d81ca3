"""A network is one class in one file

This module registers a small convolutional network. Everything in the library takes it, and `ConvNet` of the library.
`run_experiment` starts processes that import this module to know it."""
import json
from dataclasses import asdict, replace

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
tiny = Recipe('ConvNet', dict(blocks=((2,),)), epochs=1, bs=100, lr=1e-2, label_smoothing=.1, ema=.5,
              precision='bfloat16')
both = pytest.mark.parametrize('recipe', [recipe,tiny], ids=['own','ConvNet'])

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
@both
def test_a_grid_of_it(few, tmp_path, recipe):
    runs = run_experiment(dict(conv=recipe, linear=Recipe('Network', epochs=1, bs=100)), [1],
                          tmp_path/'x.json', few, quiet=True)
    assert [o['arm'] for o in runs]==['conv','linear'] and runs[0]['recipe']['augment']==recipe.augment
    assert runs[0]['precision']==recipe.precision
    table,_ = reproduce(runs, ['conv'], [1], few, quiet=True)
    assert table.equal.all() # an augmented recipe too

@pytest.mark.slow
@both
def test_exported(few, tmp_path, recipe):
    for o in ('onnx','onnxruntime','onnxscript','safetensors'): pytest.importorskip(o)
    from mnist_fastai.export import export_onnx, export_safetensors, load_onnx, load_safetensors, quantize_onnx
    learn,x = train(recipe, few, 1, 'cpu', quiet=True),torch.randn(5, 1, 28, 28)
    want = learn.model.eval().cpu()(x).detach()
    for write,read in ((export_onnx,load_onnx), (export_safetensors,load_safetensors)):
        net = read(write(learn, tmp_path/'conv'))
        assert (torch.allclose(net(x), want, atol=1e-4)
                and net.card['arch']==recipe.arch and net.train_sources==('sample',))
    small = load_onnx(quantize_onnx(export_onnx(learn, tmp_path/'x'), tmp_path/'y'))
    assert (small(x)-want).abs().max()<.1*want.abs().max() and small.card==load_onnx(tmp_path/'x').card

@both
def test_saved_and_loaded_with_its_precision(few, tmp_path, recipe):
    learn = train(recipe, few, 1, 'cpu', quiet=True)
    net = load_network(save_network(learn, tmp_path/'x.pth'))
    assert Recipe(**net.card['recipe'])==recipe and net.card['precision']==recipe.precision
    kernels = [o for o in net.parameters() if o.ndim==4]
    assert all(o.is_contiguous(memory_format=torch.channels_last) for o in kernels) # the faster format of its training
    assert evaluate(net, 'valid', digit_dls(few, device='cpu'))==evaluate(learn)

@both
def test_looked_at(few, recipe):
    from mnist_fastai.interpret import input_gradients, logits_of, occlusion
    net,ds = train(recipe, few, 1, 'cpu', quiet=True).model,few.valid.subset(slice(2))
    assert logits_of(net, ds).shape==(2,10)
    for f in input_gradients,occlusion:
        maps = f(net, ds)
        assert maps.shape==(2,28,28) and maps.isfinite().all() and maps.abs().max()>0

@both
def test_reads_pictures(few, tmp_path, recipe, capsys):
    from PIL import Image
    from mnist_fastai.inference import Predictor
    from mnist_fastai.predict import main as mnist_predict
    path = save_network(train(recipe, few, 1, 'cpu', quiet=True), tmp_path/'x.pth')
    Image.fromarray(few.valid.images[0].numpy()).save(tmp_path/'a.png')
    p = Predictor(path)(tmp_path/'a.png')
    assert mnist_predict([str(tmp_path/'a.png'), '--model', str(path)])==0
    assert capsys.readouterr().out.strip()==f'{tmp_path/"a.png"}: {p.text}'

@both
def test_fine_tuned_by_its_own_recipe(few, tmp_path, recipe):
    from mnist_fastai.inference import fine_tune, recipes as known
    net = load_network(save_network(train(recipe, few, 1, 'cpu', quiet=True), tmp_path/'x.pth'))
    before,own = {k: v.clone() for k,v in net.state_dict().items()},few.valid.subset(slice(20))
    learn = fine_tune(net, own, few, device='cpu')
    assert learn.recipe==replace(recipe, epochs=1, lr=1e-3) and learn.precision==recipe.precision
    assert learn.model.train_sources==('own','sample')
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())
    assert any(not torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    del net.card
    assert fine_tune(net, own, few, lr=.01, device='cpu').recipe==replace(known['Reader'], epochs=1, lr=.01)

@both
def test_tested_once(few, tmp_path, recipe):
    "By the final test, whose digits are those of MNIST; here a few with its name"
    from mnist_fastai.final_test import final_test, read_log
    data = Mnist(*(few[o].replace(source='mnist', overlaps=()) for o in ('train','valid','test')), 'mnist')
    path = save_network(train(recipe, data, 1, 'cpu', quiet=True), tmp_path/'x.pth')
    res = final_test(path, tmp_path/'log.json', data=data)
    assert res['logged'] and read_log(tmp_path/'log.json')[0]['card']['arch']==recipe.arch
    assert final_test(path, tmp_path/'log.json', verify=True, data=data)['differ']==0

def test_a_last_batch_of_one_digit():
    """Batch normalization of a convolution takes it, unless one number for each channel is left

    Found out by trying, which changes neither the network nor the random numbers."""
    from mnist_fastai.convolution import ConvNet
    from mnist_fastai.data import Digits
    from mnist_fastai.training import digit_learner
    ds = Digits(torch.zeros(5, 28, 28, dtype=torch.uint8), torch.arange(5))
    dls = digit_dls(Mnist(ds, ds, ds, ''), 4, device='cpu')
    net = SmallConv((2,))
    before,state = {k: v.clone() for k,v in net.state_dict().items()},torch.get_rng_state()
    digit_learner(dls, net)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())
    digit_learner(dls, ConvNet(((2,),)))
    with pytest.raises(ValueError, match='the last batch of 5 digits has one digit'):
        digit_learner(dls, ConvNet(((2,),(2,),(2,),(2,)), mean=True))

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
