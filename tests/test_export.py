"Exported networks: that they say what torch says, that a file stands alone, and every file or network that is refused"
import errno, json, logging, os, random, shutil, sys, tempfile, time
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.basics import set_seed
from torch import nn

from conftest import repo, run_python, unprivileged
from mnist_fastai.checkpoint import CheckpointError, load_network, save_network
from mnist_fastai.data import Digits, Mnist
from mnist_fastai.loaders import digit_dls
from mnist_fastai.interpret import logits_of
from mnist_fastai.improvement import ImprovedNetwork
from mnist_fastai.models import Network
from mnist_fastai.training import Recipe, check_unseen, digit_learner, train

onnx = pytest.importorskip('onnx', reason="needs the extra: pip install -e '.[export]'")
ort,st = pytest.importorskip('onnxruntime'),pytest.importorskip('safetensors.torch')
pytest.importorskip('onnxscript')
from mnist_fastai import export
from mnist_fastai.export import *

posix = pytest.mark.skipif(os.name!='posix', reason='needs POSIX')
RECIPES = dict(plain=Recipe('Network', epochs=1), improved=Recipe('ImprovedNetwork', epochs=1), linear=Recipe('Network', dict(sizes=(784,10)), epochs=1),
               small=Recipe('ImprovedNetwork', dict(sizes=[784,16,10], p=.5), epochs=1, bs=100), no_norm=Recipe('ImprovedNetwork', dict(sizes=(784,20,12,10), bn=False), epochs=1))
exporters = pytest.mark.parametrize('f', [export_onnx, export_safetensors])

@pytest.fixture(scope='module')
def few(sample): return Mnist(sample.train.subset(slice(500)), sample.valid.subset(slice(200)), sample.test.subset(slice(200)), 'sample')

@pytest.fixture(scope='module')
def learns(few): return {k: train(o, few, seed=7, device='cpu', quiet=True) for k,o in RECIPES.items()}

@pytest.fixture(scope='module')
def pths(learns, tmp_path_factory):
    d = tmp_path_factory.mktemp('pth')
    return {k: save_network(o, d/f'{k}.pth', dict(valid_accuracy=.5)) for k,o in learns.items()}

@pytest.fixture(scope='module')
def good(pths, tmp_path_factory):
    "Small files that open: ONNX and safetensors"
    d,net = tmp_path_factory.mktemp('good'),load_network(pths['small'])
    return dict(onnx=export_onnx(net, d/'x.onnx'), st=export_safetensors(net, d/'x.safetensors'))

def pixels(ds, n=None): return ds[:n][0].as_subclass(torch.Tensor)
def torch_says(net, x):
    with torch.no_grad(): return net(x)
def same(a, b):
    x,y = a.state_dict(),b.state_dict()
    return type(a) is type(b) and list(x)==list(y) and all(torch.equal(x[k], y[k]) and x[k].dtype==y[k].dtype for k in x)

def agree(got, want):
    "What the lesson promises: logits to 1e-4, probabilities to 1e-5, every class"
    assert got.shape==want.shape and got.dtype==want.dtype
    assert (got-want).abs().max()<1e-4 and (got.softmax(1)-want.softmax(1)).abs().max()<1e-5 and torch.equal(got.argmax(1), want.argmax(1))

def sentence(e, path=None, *parts):
    s = str(e.value)
    assert (path is None or s.startswith(f'{path} ')) and s.endswith('.') and '\n' not in s and 'Traceback' not in s and len(s) < len(str(path))+400, s
    for o in parts: assert o in s.replace(str(path), ''), (o, s)
    return s

def refuse(load, path, *parts):
    with pytest.raises(CheckpointError) as e: load(path)
    return sentence(e, path, *parts)

# --- the same answers

@pytest.mark.parametrize('name', ('Network','ImprovedNetwork'))
def test_the_committed_networks_agree_on_all_of_validation(name, full, tmp_path):
    path = repo/'models'/f'{name}.pth'
    if not path.exists(): pytest.skip(f'models/{path.name} is not there')
    net = load_network(path)
    want,x = logits_of(net, full.valid),pixels(full.valid)
    assert len(x)==10_000
    exported = export_onnx(net, tmp_path/'x.onnx')
    agree(load_onnx(exported)(x), want)
    assert torch.equal(logits_of(load_safetensors(export_safetensors(net, tmp_path/'x.safetensors')), full.valid), want)
    said = load_onnx(quantize_onnx(exported, tmp_path/'x.int8.onnx'))(x).argmax(1)
    assert (said!=want.argmax(1)).sum()<30

@pytest.mark.slow
@pytest.mark.parametrize('name', RECIPES)
def test_every_architecture_agrees(name, pths, few, tmp_path):
    net,x = load_network(pths[name]),pixels(few.valid)
    path = export_onnx(net, tmp_path/'x.onnx')
    agree(load_onnx(path)(x), torch_says(net, x))
    ops = {o.op_type for o in onnx.load(path).graph.node}
    assert not ops & {'BatchNormalization','Dropout'} and ('Relu' in ops)==(name!='linear')

@pytest.mark.parametrize('n', [1,2,7,2048])
def test_any_number_of_digits(good, pths, sample, n):
    x = pixels(sample.train, n)
    assert len(x)==n
    agree(load_onnx(good['onnx'])(x), torch_says(load_network(pths['small']), x))

def test_every_form_of_a_batch(good, few):
    net,x = load_onnx(good['onnx']),pixels(few.valid, 5)
    want = net(x)
    for o in x[:,0], x.flatten(1), x.double(), x.clone().requires_grad_(), x.transpose(2,3).contiguous().transpose(2,3): assert torch.equal(net(o), want)
    with pytest.raises(ValueError, match='A batch of digits'): net(x[:,:,:27])
    with pytest.raises(TypeError, match='normalized floats'): net(few.valid.images)

def test_what_an_open_file_knows(good, pths, sample):
    a,b = load_network(pths['small']),load_onnx(good['onnx'])
    assert b.card==a.card and b.train_sources==a.train_sources==('sample',) and b.session.get_providers()==['CPUExecutionProvider']
    assert b.session.get_session_options().intra_op_num_threads==torch.get_num_threads()
    other = sample.valid.replace(source='mnist', overlaps=('sample',))
    with pytest.raises(ValueError, match='trained on sample'): check_unseen(b, other)

# --- one file

def test_the_file_stands_alone(pths, few, tmp_path):
    (tmp_path/'a').mkdir(), (tmp_path/'b').mkdir()
    net,x = load_network(pths['improved']),pixels(few.valid)
    path = export_onnx(net, tmp_path/'a'/'x.onnx')
    assert [o.name for o in (tmp_path/'a').iterdir()]==['x.onnx'] and path.stat().st_size>2_000_000
    moved = shutil.move(path, tmp_path/'b'/'y.onnx')
    shutil.rmtree(tmp_path/'a')
    agree(load_onnx(moved)(x), torch_says(net, x))
    assert not any(o.external_data or o.data_location for o in onnx.load(moved, load_external_data=False).graph.initializer)

user = '''
import sys, json, numpy as np, onnxruntime as ort
net = ort.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])
about = net.get_modelmeta().custom_metadata_map
x = (np.load(sys.argv[2])[:,None]/255 - float(about['mean']))/float(about['std'])
np.save(sys.argv[3], net.run(['logits'], {'pixels': x.astype(np.float32)})[0])
print('torch' in sys.modules, json.loads(about['card'])['arch'])
'''

def test_a_user_needs_numpy_and_onnxruntime_alone(good, pths, few, tmp_path):
    np.save(tmp_path/'in.npy', few.valid.images[:9].numpy())
    p = run_python(user, good['onnx'], tmp_path/'in.npy', tmp_path/'out.npy')
    assert p.stdout.split()==['False','ImprovedNetwork'], p.stderr
    agree(torch.from_numpy(np.load(tmp_path/'out.npy')), torch_says(load_network(pths['small']), pixels(few.valid, 9)))

def test_metadata(good, pths):
    m,card = onnx.load(good['onnx']),load_network(pths['small']).card
    about = {o.key: o.value for o in m.metadata_props}
    assert set(about)=={'card','mean','std','weights','input','output','sha256'} and json.loads(about['card'])==card
    assert [float(about['mean']),float(about['std'])]==card['normalization']==[.1307,.3081]
    assert '(n, 1, 28, 28)' in about['input'] and 'float32' in about['input'] and '(n, 10)' in about['output']
    assert [o.name for o in m.graph.input]==['pixels'] and [o.name for o in m.graph.output]==['logits']
    assert m.graph.input[0].type.tensor_type.shape.dim[0].dim_param=='n'==m.graph.output[0].type.tensor_type.shape.dim[0].dim_param
    onnx.checker.check_model(m, full_check=True)

def test_nothing_of_this_machine_is_in_the_file(good):
    s = good['onnx'].read_bytes()
    for o in 'stack_trace', 'pkg.torch', 'models.py', str(repo), str(Path(export.__file__).parent), str(Path.home()/'')+os.sep: assert o.encode() not in s, o

def test_one_network_one_file(pths, good, tmp_path):
    net = load_network(pths['small'])
    assert export_onnx(net, tmp_path/'a.onnx').read_bytes()==good['onnx'].read_bytes()
    assert export_safetensors(net, tmp_path/'a.safetensors').read_bytes()==good['st'].read_bytes()
    assert quantize_onnx(good['onnx'], tmp_path/'a').read_bytes()==quantize_onnx(good['onnx'], tmp_path/'b').read_bytes()

def test_nothing_is_printed(pths, tmp_path, capfd, recwarn, caplog):
    quantize_onnx(export_onnx(load_network(pths['small']).train(), tmp_path/'a.onnx'), tmp_path/'b.onnx')
    out = capfd.readouterr()
    assert (out.out,out.err)==('','') and not recwarn.list
    assert not [o for o in caplog.records if o.levelno>=logging.WARNING]

# --- the network that was given

@exporters
def test_a_network_in_training_mode(f, pths, tmp_path):
    net,same_net = load_network(pths['improved']),load_network(pths['improved'])
    net.train()
    for o in net.parameters(): o.grad = torch.ones_like(o)
    set_seed(3)
    before = torch.get_rng_state()
    path = f(net, tmp_path/'x')
    assert all(o.training for o in net.modules()) and same(net, same_net) and net.card==same_net.card, 'it was changed'
    assert torch.equal(torch.get_rng_state(), before) and all((o.grad==1).all() and o.requires_grad for o in net.parameters())
    assert path.read_bytes()==f(same_net, tmp_path/'y').read_bytes()
    assert not same_net.training

@exporters
def test_a_learner(f, learns, pths, few, tmp_path):
    training = learns['small'].model.training
    path = f(learns['small'], tmp_path/'x')
    net = dict(export_onnx=load_onnx, export_safetensors=load_safetensors)[f.__name__](path)
    card = load_network(pths['small']).card
    assert net.card=={**card, 'metrics': {}} and learns['small'].model.training==training
    x = pixels(few.valid)
    agree(net(x).detach(), torch_says(load_network(pths['small']), x))

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@exporters
def test_a_network_on_a_gpu(f, pths, tmp_path):
    net = load_network(pths['improved']).cuda()
    assert f(net, tmp_path/'x').read_bytes()==f(load_network(pths['improved']), tmp_path/'y').read_bytes()
    assert all(o.is_cuda for o in net.state_dict().values())

def test_weights_that_are_a_slice_of_more(pths, tmp_path):
    net = load_network(pths['linear'])
    net.layers[0].weight.data = torch.cat([net.layers[0].weight.data, torch.randn(10_000,784)])[:10]
    for f in export_onnx,export_safetensors: assert f(net, tmp_path/'x').stat().st_size<60_000

@exporters
def test_networks_that_are_refused(f, pths, few, tmp_path):
    def refused(o, *parts):
        with pytest.raises(ValueError) as e: f(o, tmp_path/'x')
        sentence(e, None, *parts)
    for o in nn.Linear(784,10), type('Network', (Network,), {})(), None, 'models/Network.pth', pths['small']: refused(o, 'not a registered network')
    refused(Network(), 'no card', 'load_network')
    refused(digit_learner(digit_dls(few), Network()), 'fit it')
    net = load_network(pths['small'])
    net.norms[0].running_var[0] = float('nan')
    refused(net, 'not finite')
    for k,v,why in ('arch','ConvNet','not known here'), ('normalization',[0,0],'normalization'), ('source',[],'source'), ('kwargs',{},'do not fit'), ('format','x','save_network'):
        net = load_network(pths['small'])
        net.card = dict(net.card, **{k: v})
        refused(net, 'This network', why)
    assert not list(tmp_path.iterdir())

def test_a_runtime_that_says_something_else(pths, tmp_path, monkeypatch):
    monkeypatch.setattr(OnnxNetwork, '__call__', lambda self, x: torch.zeros(len(x), 10))
    with pytest.raises(RuntimeError) as e: export_onnx(load_network(pths['small']), tmp_path/'x.onnx')
    sentence(e, None, 'was not written', 'update')
    assert not list(tmp_path.iterdir())

# --- without the extra

@pytest.mark.slow
def test_the_module_needs_no_extra():
    p = run_python("""
import sys
for o in 'onnx','onnxscript','onnxruntime','safetensors': sys.modules[o] = None
import mnist_fastai.export
print('imported')
""")
    assert p.stdout=='imported\n' and p.stderr=='', p.stderr

@pytest.mark.slow
def test_each_missing_module(pths, good, tmp_path, monkeypatch):
    net = load_network(pths['small'])
    calls = dict(onnx=[lambda: export_onnx(net, tmp_path/'x'), lambda: load_onnx(good['onnx']), lambda: quantize_onnx(good['onnx'], tmp_path/'x')],
                 onnxscript=[lambda: export_onnx(net, tmp_path/'x')])
    calls['onnxruntime'] = calls['onnx']
    calls['safetensors.torch'] = [lambda: export_safetensors(net, tmp_path/'x'), lambda: load_safetensors(good['st'])]
    for name,fs in calls.items():
        for f in fs:
            with monkeypatch.context() as m:
                for o in [o for o in sys.modules if o==name or o.startswith(name+'.')]: m.setitem(sys.modules, o, None)
                with pytest.raises(ImportError) as e: f()
            sentence(e, None, "pip install -e '.[export]'", name.split('.')[0])
            f()
            (tmp_path/'x').unlink(missing_ok=True)

# --- where nothing can be written

writers = ('export_onnx','export_safetensors','quantize_onnx')
def write(name, net, good, path): return quantize_onnx(good['onnx'], path) if name=='quantize_onnx' else getattr(export, name)(net, path)

@posix
@pytest.mark.parametrize('name', writers)
def test_a_folder_that_is_read_only(name, pths, good):
    net,whole = load_network(pths['small']),good['onnx'].read_bytes()
    with tempfile.TemporaryDirectory() as d:
        path,source = Path(d)/'x',Path(d)/'source.onnx'
        path.write_bytes(b'before'), source.write_bytes(whole)
        os.chmod(d, 0o555)
        with unprivileged():
            with pytest.raises(OSError) as e: write(name, net, dict(onnx=source), path)
        os.chmod(d, 0o755)
        sentence(e, path, 'cannot be written', 'Permission denied', 'choose another folder')
        assert path.read_bytes()==b'before' and len(list(Path(d).iterdir()))==2

@pytest.mark.slow
@pytest.mark.parametrize('name', writers)
def test_a_disk_that_is_full(name, pths, good, tmp_path, monkeypatch):
    "At whichever step of writing it shows, what was there stays, and nothing beside it"
    net,path = load_network(pths['small']),tmp_path/'x'
    path.write_bytes(b'before')
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, 'No space left on device')
    for step in 'fsync','replace','chmod':
        with monkeypatch.context() as m:
            m.setattr(os, step, full)
            with pytest.raises(OSError) as e: write(name, net, good, path)
        sentence(e, path, 'No space left on device', 'make room')
        assert path.read_bytes()==b'before' and list(tmp_path.iterdir())==[path], step

def test_no_room_for_temporary_files(good, tmp_path, monkeypatch):
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(tempfile, 'mkdtemp', full)
    with pytest.raises(OSError) as e: quantize_onnx(good['onnx'], tmp_path/'x')
    sentence(e, tmp_path/'x', 'make room')
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('name', writers)
def test_a_folder_in_the_way(name, pths, good, tmp_path):
    with pytest.raises(OSError) as e: write(name, load_network(pths['small']), good, tmp_path)
    sentence(e, tmp_path, 'cannot be written')
    assert not list(tmp_path.iterdir())

def test_folders_are_made(pths, good, tmp_path):
    for name in writers: assert write(name, load_network(pths['small']), good, str(tmp_path/name/'x')).is_file()

# --- files that are none, or damaged

def test_no_file(tmp_path):
    for load in load_onnx,load_safetensors,lambda o: quantize_onnx(o, tmp_path/'new'):
        refuse(load, tmp_path/'missing', 'cannot be read', 'correct the path')
        refuse(load, tmp_path, 'cannot be read')
    assert not list(tmp_path.iterdir())

def test_files_of_another_kind(good, pths, tmp_path):
    path = tmp_path/'x'
    rng = random.Random(5)
    contents = [b'', b'text', b'\x80\x02]', b'PK\3\4', bytes(100), b'\xff'*100, pths['small'].read_bytes(), b'{"card": 1}'] + [rng.randbytes(n) for n in (1,8,50,5000)]
    for o in contents:
        path.write_bytes(o)
        for load in load_onnx,load_safetensors: refuse(load, path)
    refuse(load_onnx, good['st'])
    refuse(load_safetensors, good['onnx'])

@pytest.mark.parametrize('kind', ('onnx','st'))
def test_truncated_files(kind, good, tmp_path):
    whole,path = good[kind].read_bytes(),tmp_path/'x'
    load = dict(onnx=load_onnx, st=load_safetensors)[kind]
    for n in {*range(0, 40), *range(0, len(whole), len(whole)//60), *range(len(whole)-90, len(whole))}:
        path.write_bytes(whole[:n])
        refuse(load, path)
    for more in b'\0', b'more', whole: # and longer ones
        path.write_bytes(whole+more)
        refuse(load, path)

@pytest.mark.parametrize('kind', ('onnx','st'))
def test_flipped_bytes(kind, good, pths, tmp_path):
    "A changed byte is noticed, except one that changes nothing of the network and its card"
    whole,path,net = good[kind].read_bytes(),tmp_path/'x',load_network(pths['small'])
    load,rng = dict(onnx=load_onnx, st=load_safetensors)[kind],random.Random(3)
    for i in rng.sample(range(len(whole)), 150) + rng.sample(range(1600), 100) + rng.sample(range(len(whole)-1600, len(whole)), 100):
        new = bytearray(whole)
        new[i] ^= rng.choice((1,2,64,128,255))
        path.write_bytes(new)
        try: got = load(path)
        except CheckpointError as e: assert str(e).startswith(f'{path} ') and '\n' not in str(e)
        else: assert kind=='st' and same(got, net) and got.card==net.card, i

def test_a_flipped_weight(good, pths, tmp_path):
    w,path = load_network(pths['small']).layers[1].weight.detach().numpy().tobytes(),tmp_path/'x'
    for kind,load in ('onnx',load_onnx), ('st',load_safetensors):
        new = bytearray(good[kind].read_bytes())
        i = new.find(w)
        assert i>0
        new[i] ^= 1 # finite as ever
        path.write_bytes(new)
        refuse(load, path, 'is damaged')

# --- forged, with a fingerprint that is right

def forge(good, path, change):
    "An ONNX file whose graph `change` has altered, sealed as `export_onnx` seals"
    m = onnx.load(good['onnx'])
    card = json.loads(next(o.value for o in m.metadata_props if o.key=='card'))
    change(m)
    path.write_bytes(export._seal(m, card, 'float32'))
    return path

def external(t, name):
    t.ClearField('raw_data')
    t.data_location = onnx.TensorProto.EXTERNAL
    t.external_data.add(key='location', value=str(name))

def test_no_other_file_is_read(good, tmp_path, monkeypatch):
    "A file that asks for another's bytes would put them into its logits; the other file is there, and would be found"
    monkeypatch.chdir(tmp_path)
    biases = [i for i,o in enumerate(onnx.load(good['onnx']).graph.initializer) if list(o.dims)==[10]]
    (tmp_path/'secret').write_bytes(np.arange(10, dtype='<f4').tobytes())
    path = forge(good, tmp_path/'x', lambda m: external(m.graph.initializer[biases[0]], 'secret'))
    open_session = ort.InferenceSession(path, providers=['CPUExecutionProvider'])
    assert np.ptp(open_session.run(None, {'pixels': np.zeros((1,1,28,28), 'f4')})[0])>5 # so it works where nobody looks
    for load in load_onnx,lambda o: quantize_onnx(o, tmp_path/'new'): refuse(load, path, 'another file', 'was not opened')
    for name in '../secret', tmp_path/'secret', '/etc/passwd', '': refuse(load_onnx, forge(good, path, lambda m: external(m.graph.initializer[0], name)), 'another file')
    def constant(m):
        t = m.graph.initializer.pop(biases[0])
        external(t, 'secret')
        m.graph.node.insert(0, onnx.helper.make_node('Constant', [], [t.name], value=t))
    refuse(load_onnx, forge(good, path, constant), 'another file')
    def unmarked(m): m.graph.initializer[0].external_data.add(key='location', value='secret')
    refuse(load_onnx, forge(good, path, unmarked), 'another file')
    assert not (tmp_path/'new').exists()

def test_more_than_a_plain_graph(good, tmp_path):
    path = tmp_path/'x'
    def loop(m):
        body = onnx.helper.make_graph([], 'body', [], [])
        m.graph.node.append(onnx.helper.make_node('Loop', ['',''], ['never'], body=body))
    def sparse(m): m.graph.sparse_initializer.add().dims.append(3)
    def function(m): m.functions.add(name='f', domain='mine')
    def domain(m): m.graph.node.append(onnx.helper.make_node('Relu', ['pixels'], ['never'], domain='com.example'))
    for o in loop,sparse,function,domain: refuse(load_onnx, forge(good, path, o), 'more than a plain graph', 'was not opened')
    def unknown(m): m.graph.node.append(onnx.helper.make_node('NoSuchOperator', ['pixels'], ['never']))
    refuse(load_onnx, forge(good, path, unknown))

def test_graphs_that_read_no_digits(good, tmp_path):
    path = tmp_path/'x'
    def name(m): m.graph.input[0].name = 'image'
    def dtype(m): m.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    def fixed(m): m.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    def size(m): m.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 32
    def outs(m): m.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 11
    def more(m): m.graph.output.append(m.graph.output[0])
    def none(m): del m.graph.output[:]
    for o in name,dtype,fixed,size,outs,more,none: refuse(load_onnx, forge(good, path, o), 'does not lead from')
    def nan(m): m.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.full((16,784), np.nan, 'f4'), m.graph.initializer[0].name))
    refuse(load_onnx, forge(good, path, nan), 'are no numbers')

def test_onnx_files_of_others(good, tmp_path):
    m = onnx.load(good['onnx'])
    del m.metadata_props[:]
    (tmp_path/'x').write_bytes(m.SerializeToString())
    refuse(load_onnx, tmp_path/'x', 'not made by export_onnx')
    m = onnx.load(good['onnx'])
    m.producer_name = 'another'
    (tmp_path/'x').write_bytes(m.SerializeToString())
    refuse(load_onnx, tmp_path/'x', 'was changed')

CARDS = [dict(arch='ConvNet'), dict(arch='Network'), dict(normalization=[0,0]), dict(source=[]), dict(seed='x'), dict(format='x'), dict(metrics=None), dict(kwargs={}),
         dict(kwargs=dict(sizes=[784])), dict(kwargs=dict(sizes=[784,10**9,10])), dict(kwargs=dict(nothing=1)), dict(threads='x'*12_000)]
STATES = [{'layers.1.bias': torch.zeros(9)}, {'layers.1.bias': torch.zeros(10).double()}, {'layers.1.bias': torch.zeros(10).half()}, {'layers.1.bias': torch.zeros(10).bfloat16()},
          {'layers.1.bias': torch.full((10,), float('nan'))}, {'layers.2.bias': torch.zeros(10)}, {'norms.0.running_var': torch.full((16,), float('inf'))}]

@pytest.mark.parametrize('change', [*CARDS, *STATES], ids=lambda o: f'{list(o)[0]}')
def test_a_forged_safetensors_is_refused_as_a_pth_is(change, pths, tmp_path):
    ck = torch.load(pths['small'], weights_only=True)
    card,state = json.loads(ck['card']),dict(ck['state_dict'])
    if isinstance(next(iter(change.values())), torch.Tensor): state |= change
    else: card |= change
    torch.save(dict(card=json.dumps(card), state_dict=state), tmp_path/'x.pth')
    plain = {k: v.float() if v.dtype==torch.bfloat16 else v for k,v in state.items()}
    (tmp_path/'x.safetensors').write_bytes(st.save(state, dict(card=json.dumps(card | dict(sha256=export._digest(card, plain))))))
    a,b = refuse(load_network, tmp_path/'x.pth'),refuse(load_safetensors, tmp_path/'x.safetensors')
    if 'threads' not in change: assert a.replace('.pth','')==b.replace('.safetensors','')

def test_a_safetensors_without_a_card(good, pths, tmp_path):
    state,path = load_network(pths['small']).state_dict(),tmp_path/'x'
    for o in None, {}, dict(other='x'), dict(card=''), dict(card='[]'), dict(card='null'), dict(card='['*5000), dict(card='{}'):
        path.write_bytes(st.save(state, o))
        refuse(load_safetensors, path)
    path.write_bytes(st.save(state, None))
    refuse(load_safetensors, path, 'not made by export_safetensors')

def test_safetensors_there_and_back(pths, tmp_path):
    for name in RECIPES:
        net = load_network(pths[name])
        got = load_safetensors(export_safetensors(net, tmp_path/'x'))
        assert same(got, net) and got.card==net.card and got.train_sources==net.train_sources and not any(o.training for o in got.modules())
    assert {k: tuple(v.shape) for k,v in st.load((tmp_path/'x').read_bytes()).items()}=={k: tuple(v.shape) for k,v in net.state_dict().items()} # as others read it

# --- eight bits

def test_quantize(pths, few, tmp_path):
    net,x = load_network(pths['improved']),pixels(few.valid)
    path = export_onnx(net, tmp_path/'x.onnx')
    before = path.read_bytes()
    assert quantize_onnx(path, tmp_path/'y.onnx')==tmp_path/'y.onnx' and path.read_bytes()==before
    assert (tmp_path/'y.onnx').stat().st_size<len(before)/3 and sorted(o.name for o in tmp_path.iterdir())==['x.onnx','y.onnx']
    got = load_onnx(tmp_path/'y.onnx')
    assert got.card==net.card and got.session.get_modelmeta().custom_metadata_map['weights'].startswith('int8')
    d = (got(x)-torch_says(net, x)).abs().max()
    assert 0<d<.05*torch_says(net, x).abs().max()
    for o in onnx.load(tmp_path/'y.onnx').graph.initializer: # a scale for each unit: every unit uses the whole range
        if o.data_type==onnx.TensorProto.INT8 and len(o.dims)==2: assert (abs(onnx.numpy_helper.to_array(o).astype(int)).max(0)==127).all()
    with pytest.raises(ValueError) as e: quantize_onnx(tmp_path/'y.onnx', tmp_path/'z.onnx')
    sentence(e, tmp_path/'y.onnx', 'eight bits already')
    (tmp_path/'y.onnx').write_bytes(before[:-1])
    refuse(lambda o: quantize_onnx(o, tmp_path/'z.onnx'), tmp_path/'y.onnx', 'is damaged')
    assert not (tmp_path/'z.onnx').exists()

# --- the table

class Constant:
    "Not a network, and trained on nothing"
    train_sources = ()
    def __call__(self, x): return torch.eye(10)[torch.zeros(len(x), dtype=torch.long)]

def test_compare_formats(pths, good, few):
    def fails(path): raise RuntimeError('There is no compiler.\nAnd more')
    def slow(path): time.sleep(1); return load_onnx(path)
    ways = dict(torch=(pths['small'],load_network), compiled=(pths['small'],fails), missing=(Path('nowhere'),load_onnx), ONNX=(good['onnx'],load_onnx), slow=(good['onnx'],slow),
                constant=(good['onnx'],lambda path: Constant()))
    table = compare_formats(ways, few.valid, rounds=2)
    assert list(table.index)==list(ways) and (table.threads==torch.get_num_threads()).all()
    assert table.note['compiled']=='RuntimeError: There is no compiler.' and 'CheckpointError' in table.note['missing'] and (table.note[['torch','ONNX']]=='').all()
    assert table.loc[['compiled','missing']].drop(columns=['threads','note']).isna().all(axis=None)
    said = logits_of(load_network(pths['small']), few.valid).argmax(1)
    assert table.accuracy['torch']==table.accuracy['ONNX']==(said==few.valid.labels).double().mean() and table.changed['ONNX']==table.changed['torch']==0
    assert table.changed['constant']==(said!=0).sum() and table.accuracy['constant']==(few.valid.labels==0).double().mean()
    assert table.MB['torch']==pths['small'].stat().st_size/1e6
    times = table.loc[['torch','ONNX'],['load_ms','one_ms','thousand_ms']]
    assert (times>0).all(axis=None) and (times.thousand_ms>times.one_ms).all()
    assert (table.load_spread[['torch','ONNX']]>0).all() and np.isnan(table.load_spread['slow']) and table.one_spread['slow']>0 # opened once

def test_compare_formats_refuses_digits_that_were_learned(pths, good, few):
    ds = few.valid.replace(source='mnist', overlaps=('sample',))
    with pytest.raises(ValueError, match='trained on sample'): compare_formats(dict(a=(good['onnx'],load_onnx)), ds)

def test_times():
    assert len(export._times(lambda: None, 5))==5
    assert 9<min(export._times(lambda: time.sleep(.01), 2))<200
