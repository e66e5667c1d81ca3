"Exported networks: the logits of torch, files that stand alone, and one clear sentence for bad files and networks"
import errno, json, logging, os, random, shutil, sys, tempfile, time
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.basics import set_seed
from torch import nn

from conftest import repo, run_python, unprivileged
from mnist_fastai.checkpoint import CheckpointError, load_network, save_network
from mnist_fastai.data import Mnist
from mnist_fastai.loaders import digit_dls
from mnist_fastai.models import Network
from mnist_fastai.training import Recipe, check_unseen, digit_learner, train

onnx = pytest.importorskip('onnx', reason="needs the extra: pip install -e '.[export]'")
ort,st = pytest.importorskip('onnxruntime'),pytest.importorskip('safetensors.torch')
pytest.importorskip('onnxscript')
from mnist_fastai import export
from mnist_fastai.export import *

posix = pytest.mark.skipif(os.name!='posix', reason='needs POSIX')
exporters = pytest.mark.parametrize('f', [export_onnx, export_safetensors])
recipes = dict(
    plain=Recipe('Network', epochs=1),
    improved=Recipe('ImprovedNetwork', epochs=1),
    linear=Recipe('Network', dict(sizes=(784,10)), epochs=1),
    small=Recipe('ImprovedNetwork', dict(sizes=[784,16,10], p=.5), epochs=1, bs=100),
    no_norm=Recipe('ImprovedNetwork', dict(sizes=(784,20,12,10), bn=False), epochs=1),
    conv=Recipe('ConvNet', dict(blocks=((4,8),)), epochs=1, bs=100, lr=1e-2),
    mean=Recipe('ConvNet', dict(blocks=((2,),), bn=False, mean=True), epochs=1))

@pytest.fixture(scope='module')
def few(sample):
    def first(ds, n): return ds.subset(slice(n))
    return Mnist(first(sample.train, 500), first(sample.valid, 200), first(sample.test, 200), 'sample')

@pytest.fixture(scope='module')
def learns(few): return {k: train(o, few, seed=7, device='cpu', quiet=True) for k,o in recipes.items()}

@pytest.fixture(scope='module')
def pths(learns, tmp_path_factory):
    d = tmp_path_factory.mktemp('pth')
    return {k: save_network(o, d/f'{k}.pth', dict(valid_accuracy=.5)) for k,o in learns.items()}

@pytest.fixture(scope='module')
def good(pths, tmp_path_factory):
    "A small file of each format"
    d,net = tmp_path_factory.mktemp('good'),load_network(pths['small'])
    return dict(onnx=export_onnx(net, d/'x.onnx'), st=export_safetensors(net, d/'x.safetensors'))

loaders = dict(onnx=load_onnx, st=load_safetensors)

def pixels(ds, n=None): return ds[:n][0].as_subclass(torch.Tensor)

def torch_logits(net, x):
    with torch.no_grad(): return net(x)

def same(a, b):
    x,y = a.state_dict(),b.state_dict()
    if type(a) is not type(b) or list(x)!=list(y): return False
    return all(torch.equal(x[k], y[k]) and x[k].dtype==y[k].dtype for k in x)

def agree(got, want):
    "Logits to 1e-4, probabilities to 1e-5, and every prediction"
    assert got.shape==want.shape and got.dtype==want.dtype
    assert (got-want).abs().max()<1e-4 and (got.softmax(1)-want.softmax(1)).abs().max()<1e-5
    assert torch.equal(got.argmax(1), want.argmax(1))

def check_sentence(e, path=None, *parts):
    "The message is one line, ends with a full stop, begins with the file, and holds `parts`"
    s = str(e.value)
    assert (path is None or s.startswith(f'{path} ')) and s.endswith('.') and '\n' not in s, s
    assert 'Traceback' not in s and len(s)<len(str(path))+400, s
    for o in parts: assert o in s.replace(str(path), ''), (o, s)

def check_rejected(load, path, *parts):
    with pytest.raises(CheckpointError) as e: load(path)
    check_sentence(e, path, *parts)

# --- the same logits

@pytest.mark.parametrize('name', ('models/Network','models/ImprovedNetwork','mnist_fastai/reader'))
def test_the_committed_networks_agree_on_all_validation_digits(name, full, tmp_path):
    path = repo/f'{name}.pth'
    if not path.exists(): pytest.skip(f'{name}.pth is not there')
    net,x = load_network(path),pixels(full.valid)
    want = torch_logits(net, x)
    assert len(x)==10_000
    exported = export_onnx(net, tmp_path/'x.onnx')
    agree(load_onnx(exported)(x), want)
    assert torch.equal(torch_logits(load_safetensors(export_safetensors(net, tmp_path/'x.safetensors')), x), want)
    preds = load_onnx(quantize_onnx(exported, tmp_path/'x.int8.onnx'))(x).argmax(1)
    assert (preds!=want.argmax(1)).sum()<30

@pytest.mark.slow
@pytest.mark.parametrize('name', recipes)
def test_every_architecture_agrees(name, pths, few, tmp_path):
    net,x = load_network(pths[name]),pixels(few.valid)
    path = export_onnx(net, tmp_path/'x.onnx')
    agree(load_onnx(path)(x), torch_logits(net, x))
    ops = {o.op_type for o in onnx.load(path).graph.node}
    assert not ops & {'BatchNormalization','Dropout'} and ('Relu' in ops)==(name!='linear')

@pytest.mark.parametrize('n', [1,2,7,2048])
def test_any_number_of_digits(good, pths, sample, n):
    x = pixels(sample.train, n)
    assert len(x)==n
    agree(load_onnx(good['onnx'])(x), torch_logits(load_network(pths['small']), x))

def test_every_form_of_a_batch(good, few):
    net,x = load_onnx(good['onnx']),pixels(few.valid, 5)
    want = net(x)
    strided = x.transpose(2,3).contiguous().transpose(2,3)
    for o in x[:,0], x.flatten(1), x.double(), x.clone().requires_grad_(), strided: assert torch.equal(net(o), want)
    with pytest.raises(ValueError, match='A batch of digits'): net(x[:,:,:27])
    with pytest.raises(TypeError, match='normalized floats'): net(few.valid.images)

def test_an_open_file_knows_its_card(good, pths, sample):
    a,b = load_network(pths['small']),load_onnx(good['onnx'])
    assert b.card==a.card and b.train_sources==a.train_sources==('sample',) and b.data_info==a.data_info
    assert b.session.get_providers()==['CPUExecutionProvider']
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
    agree(load_onnx(moved)(x), torch_logits(net, x))

user = '''
import sys, json, numpy as np, onnxruntime as ort
net = ort.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])
about = net.get_modelmeta().custom_metadata_map
x = (np.load(sys.argv[2])[:,None]/255 - float(about['mean']))/float(about['std'])
np.save(sys.argv[3], net.run(['logits'], {'pixels': x.astype(np.float32)})[0])
print('torch' in sys.modules, json.loads(about['card'])['arch'])
'''

def test_a_user_needs_only_numpy_and_onnxruntime(good, pths, few, tmp_path):
    np.save(tmp_path/'in.npy', few.valid.images[:9].numpy())
    p = run_python(user, good['onnx'], tmp_path/'in.npy', tmp_path/'out.npy')
    assert p.stdout.split()==['False','ImprovedNetwork'], p.stderr
    want = torch_logits(load_network(pths['small']), pixels(few.valid, 9))
    agree(torch.from_numpy(np.load(tmp_path/'out.npy')), want)

def test_metadata(good, pths):
    m,card = onnx.load(good['onnx']),load_network(pths['small']).card
    about = {o.key: o.value for o in m.metadata_props}
    assert set(about)=={'card','mean','std','weights','input','output'} and json.loads(about['card'])==card
    assert [float(about['mean']),float(about['std'])]==card['normalization']==[.1307,.3081]
    assert '(n, 1, 28, 28)' in about['input'] and 'float32' in about['input'] and '(n, 10)' in about['output']
    onnx.checker.check_model(m, full_check=True)

def test_nothing_of_this_machine_is_in_the_file(good):
    s = good['onnx'].read_bytes()
    folders = str(repo), str(Path(export.__file__).parent), str(Path.home()/'')+os.sep
    for o in ('stack_trace', 'pkg.torch', 'models.py', *folders): assert o.encode() not in s, o

def test_the_same_network_gives_the_same_bytes(pths, good, tmp_path):
    net = load_network(pths['small'])
    assert export_onnx(net, tmp_path/'a.onnx').read_bytes()==good['onnx'].read_bytes()
    assert export_safetensors(net, tmp_path/'a.safetensors').read_bytes()==good['st'].read_bytes()

def test_nothing_is_printed(pths, tmp_path, capfd, recwarn, caplog):
    quantize_onnx(export_onnx(load_network(pths['small']).train(), tmp_path/'a.onnx'), tmp_path/'b.onnx')
    out = capfd.readouterr()
    assert (out.out,out.err)==('','') and not recwarn.list
    assert not [o for o in caplog.records if o.levelno>=logging.WARNING]

# --- the network that was given

@exporters
def test_a_network_in_training_mode(f, pths, tmp_path):
    "It is exported in evaluation mode, and not changed"
    net,same_net = load_network(pths['improved']),load_network(pths['improved'])
    net.train()
    for o in net.parameters(): o.grad = torch.ones_like(o)
    set_seed(3)
    before = torch.get_rng_state()
    path = f(net, tmp_path/'x')
    assert all(o.training for o in net.modules()) and same(net, same_net) and net.card==same_net.card
    assert torch.equal(torch.get_rng_state(), before)
    assert all((o.grad==1).all() and o.requires_grad for o in net.parameters())
    assert path.read_bytes()==f(same_net, tmp_path/'y').read_bytes()

@exporters
def test_a_learner(f, learns, pths, few, tmp_path):
    training = learns['small'].model.training
    path = f(learns['small'], tmp_path/'x')
    net = dict(export_onnx=load_onnx, export_safetensors=load_safetensors)[f.__name__](path)
    assert net.card=={**load_network(pths['small']).card, 'metrics': {}} and learns['small'].model.training==training
    x = pixels(few.valid)
    agree(net(x).detach(), torch_logits(load_network(pths['small']), x))

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@exporters
def test_a_network_on_a_gpu(f, pths, tmp_path):
    net = load_network(pths['improved']).cuda()
    assert f(net, tmp_path/'x').read_bytes()==f(load_network(pths['improved']), tmp_path/'y').read_bytes()
    assert all(o.is_cuda for o in net.state_dict().values())

def test_weights_that_are_a_slice_of_a_larger_tensor(pths, tmp_path):
    net = load_network(pths['linear'])
    net.layers[0].weight.data = torch.cat([net.layers[0].weight.data, torch.randn(10_000,784)])[:10]
    for f in export_onnx,export_safetensors: assert f(net, tmp_path/'x').stat().st_size<60_000

@exporters
def test_networks_that_cannot_be_exported(f, pths, few, tmp_path):
    def check(o, *parts):
        with pytest.raises(ValueError) as e: f(o, tmp_path/'x')
        check_sentence(e, None, *parts)
    unregistered = type('Network', (Network,), {})()
    for o in nn.Linear(784,10), unregistered, None, 'models/Network.pth', pths['small']:
        check(o, 'not a registered network')
    check(Network(), 'no card', 'load_network')
    check(digit_learner(digit_dls(few), Network()), 'fit it')
    net = load_network(pths['small'])
    net.norms[0].running_var[0] = float('nan')
    check(net, 'not finite')
    cards = [('arch','NoNet','not known here'), ('normalization',[0,0],'normalization'), ('source',[],'source'),
             ('kwargs',{},'do not fit'), ('format','x','save_network')]
    for k,v,why in cards:
        net = load_network(pths['small'])
        net.card = dict(net.card, **{k: v})
        check(net, 'This network', why)
    assert not list(tmp_path.iterdir())

def test_a_runtime_that_gives_other_logits(pths, tmp_path, monkeypatch):
    monkeypatch.setattr(OnnxNetwork, '__call__', lambda self, x: torch.zeros(len(x), 10))
    with pytest.raises(RuntimeError) as e: export_onnx(load_network(pths['small']), tmp_path/'x.onnx')
    check_sentence(e, None, 'was not written', 'update')
    assert not list(tmp_path.iterdir())

# --- without the extra

@pytest.mark.slow
def test_the_module_can_be_imported_without_the_extra():
    p = run_python("""
import sys
for o in 'onnx','onnxscript','onnxruntime','safetensors': sys.modules[o] = None
import mnist_fastai.export
print('imported')
""")
    assert p.stdout=='imported\n' and p.stderr=='', p.stderr

@pytest.mark.slow
def test_each_missing_module(pths, good, tmp_path, monkeypatch):
    net,x = load_network(pths['small']),tmp_path/'x'
    onnx_calls = [lambda: export_onnx(net, x), lambda: load_onnx(good['onnx']), lambda: quantize_onnx(good['onnx'], x)]
    st_calls = [lambda: export_safetensors(net, x), lambda: load_safetensors(good['st'])]
    calls = {'onnx': onnx_calls, 'onnxruntime': onnx_calls, 'onnxscript': onnx_calls[:1], 'safetensors': st_calls}
    for name,fs in calls.items():
        for f in fs:
            with monkeypatch.context() as m:
                for o in [o for o in sys.modules if o==name or o.startswith(name+'.')]: m.setitem(sys.modules, o, None)
                with pytest.raises(ImportError) as e: f()
            check_sentence(e, None, "pip install -e '.[export]'", name)
            f()
            x.unlink(missing_ok=True)

# --- where nothing can be written

writers = ('export_onnx','export_safetensors','quantize_onnx')
def write(name, net, good, path):
    return quantize_onnx(good['onnx'], path) if name=='quantize_onnx' else getattr(export, name)(net, path)

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
        check_sentence(e, path, 'cannot be written', 'Permission denied', 'choose another folder')
        assert path.read_bytes()==b'before' and len(list(Path(d).iterdir()))==2

@pytest.mark.slow
@pytest.mark.parametrize('name', writers)
def test_a_disk_that_is_full(name, pths, good, tmp_path, monkeypatch):
    "At each step of writing: the old file stays, and nothing is left beside it"
    net,path = load_network(pths['small']),tmp_path/'x'
    path.write_bytes(b'before')
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, 'No space left on device')
    for step in 'fsync','replace','chmod':
        with monkeypatch.context() as m:
            m.setattr(os, step, full)
            with pytest.raises(OSError) as e: write(name, net, good, path)
        check_sentence(e, path, 'No space left on device', 'make room')
        assert path.read_bytes()==b'before' and list(tmp_path.iterdir())==[path], step

@pytest.mark.parametrize('name', writers)
def test_a_folder_in_the_way(name, pths, good, tmp_path):
    with pytest.raises(OSError) as e: write(name, load_network(pths['small']), good, tmp_path)
    check_sentence(e, tmp_path, 'cannot be written')
    assert not list(tmp_path.iterdir())

def test_folders_are_made(pths, good, tmp_path):
    for name in writers: assert write(name, load_network(pths['small']), good, str(tmp_path/name/'x')).is_file()

# --- files of another kind, and damaged ones

def test_no_file_and_no_regular_file(tmp_path):
    (tmp_path/'empty').touch()
    for load in load_onnx,load_safetensors,lambda o: quantize_onnx(o, tmp_path/'new'):
        check_rejected(load, tmp_path/'missing', 'cannot be read', 'correct the path')
        check_rejected(load, tmp_path, 'not a regular file')
        check_rejected(load, tmp_path/'empty', 'is empty')
    assert not (tmp_path/'new').exists()

@posix
@pytest.mark.parametrize('kind', loaders)
def test_a_pipe_does_not_hang(kind, tmp_path):
    "In a process of its own, with a time limit: opening a pipe waits until somebody writes into it"
    os.mkfifo(tmp_path/'x')
    p = run_python('import sys, mnist_fastai.export as e\ntry: getattr(e, sys.argv[1])(sys.argv[2])\n'
                   'except e.CheckpointError as o: print(o)', loaders[kind].__name__, tmp_path/'x')
    assert p.stdout.strip()==f'{tmp_path/"x"} is not a regular file: give an exported file.', p.stderr

def test_files_of_another_kind(good, pths, tmp_path):
    path,rng = tmp_path/'x',random.Random(5)
    contents = [b'text', b'\x80\x02]', b'PK\3\4', bytes(100), b'\xff'*100, pths['small'].read_bytes(), b'{"card": 1}']
    for o in contents + [rng.randbytes(n) for n in (1,8,50,5000)]:
        path.write_bytes(o)
        for load in loaders.values(): check_rejected(load, path)
    check_rejected(load_onnx, good['st'])
    check_rejected(load_safetensors, good['onnx'])

@pytest.mark.parametrize('kind', loaders)
def test_truncated_files(kind, good, tmp_path):
    whole,path = good[kind].read_bytes(),tmp_path/'x'
    for n in {*range(1, 40), *range(1, len(whole), len(whole)//60), *range(len(whole)-130, len(whole))}:
        path.write_bytes(whole[:n])
        check_rejected(loaders[kind], path)
    for more in b'\0', b'more', whole: # and longer ones
        path.write_bytes(whole+more)
        check_rejected(loaders[kind], path)

@pytest.mark.parametrize('kind', loaders)
def test_flipped_bytes(kind, good, few, tmp_path):
    "Whatever a flipped byte does, it never gives another error than `CheckpointError`"
    whole,path,rng = good[kind].read_bytes(),tmp_path/'x',random.Random(3)
    ends = rng.sample(range(1600), 100) + rng.sample(range(len(whole)-1600, len(whole)), 100)
    opened = 0
    for i in rng.sample(range(len(whole)), 50) + ends:
        new = bytearray(whole)
        new[i] ^= rng.choice((1,2,64,128,255))
        path.write_bytes(new)
        try: loaders[kind](path)
        except CheckpointError as e: assert str(e).startswith(f'{path} ') and '\n' not in str(e)
        else: opened += 1
    assert opened<250

def change(good, path, f):
    "The ONNX file, changed by `f`"
    m = onnx.load(good['onnx'])
    f(m)
    path.write_bytes(m.SerializeToString())
    return path

def take_from(t, name):
    "The numbers of the tensor `t` are to be read from the file `name`"
    t.ClearField('raw_data')
    t.data_location = onnx.TensorProto.EXTERNAL
    t.external_data.add(key='location', value=str(name))

def test_no_other_file_is_read(good, tmp_path, monkeypatch):
    "ONNX Runtime alone would read the other file into the logits"
    monkeypatch.chdir(tmp_path)
    bias, = [i for i,o in enumerate(onnx.load(good['onnx']).graph.initializer) if list(o.dims)==[10]]
    (tmp_path/'secret').write_bytes(np.arange(10, dtype='<f4').tobytes())
    path = change(good, tmp_path/'x', lambda m: take_from(m.graph.initializer[bias], 'secret'))
    session = ort.InferenceSession(path, providers=['CPUExecutionProvider'])
    assert np.ptp(session.run(None, {'pixels': np.zeros((1,1,28,28), 'f4')})[0])>5
    for load in load_onnx,lambda o: quantize_onnx(o, tmp_path/'new'):
        check_rejected(load, path, 'another file', 'was not opened')
    for name in '../secret', tmp_path/'secret', '/etc/passwd', '':
        check_rejected(load_onnx, change(good, path, lambda m: take_from(m.graph.initializer[0], name)), 'another file')
    def constant(m):
        t = m.graph.initializer.pop(bias)
        take_from(t, 'secret')
        m.graph.node.insert(0, onnx.helper.make_node('Constant', [], [t.name], value=t))
    check_rejected(load_onnx, change(good, path, constant), 'another file')
    def unmarked(m): m.graph.initializer[0].external_data.add(key='location', value='secret')
    check_rejected(load_onnx, change(good, path, unmarked), 'another file')
    assert not (tmp_path/'new').exists()

def test_more_than_a_plain_graph(good, tmp_path):
    path = tmp_path/'x'
    def loop(m):
        body = onnx.helper.make_graph([], 'body', [], [])
        m.graph.node.append(onnx.helper.make_node('Loop', ['',''], ['never'], body=body))
    def sparse(m): m.graph.sparse_initializer.add().dims.append(3)
    def function(m): m.functions.add(name='f', domain='mine')
    def training(m): m.training_info.add()
    def domain(m): m.graph.node.append(onnx.helper.make_node('Relu', ['pixels'], ['never'], domain='com.example'))
    for f in loop,sparse,function,training,domain:
        check_rejected(load_onnx, change(good, path, f), 'more than a plain graph', 'was not opened')
    def unknown(m): m.graph.node.append(onnx.helper.make_node('NoSuchOperator', ['pixels'], ['never']))
    check_rejected(load_onnx, change(good, path, unknown))

def test_graphs_with_other_inputs_or_outputs(good, tmp_path):
    path = tmp_path/'x'
    def name(m): m.graph.input[0].name = 'image'
    def dtype(m): m.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    def fixed(m): m.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    def size(m): m.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 32
    def outs(m): m.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 11
    def more(m): m.graph.output.append(m.graph.output[0])
    def none(m): del m.graph.output[:]
    for f in name,dtype,fixed,size,outs,more,none:
        check_rejected(load_onnx, change(good, path, f), 'does not lead from')

@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_weights_that_are_not_finite(value, good, tmp_path):
    def weight(m):
        t = m.graph.initializer[0]
        t.CopyFrom(onnx.numpy_helper.from_array(np.full(t.dims, value, 'f4'), t.name))
    check_rejected(load_onnx, change(good, tmp_path/'x', weight), 'not finite')
    def constant(m):
        t = m.graph.initializer.pop(0)
        t.CopyFrom(onnx.numpy_helper.from_array(np.full(t.dims, value, 'f4'), t.name))
        m.graph.node.insert(0, onnx.helper.make_node('Constant', [], [t.name], value=t))
    check_rejected(load_onnx, change(good, tmp_path/'x', constant), 'not finite')

no_cards = '', '[]', 'null', '{}', '['*5000, 'x'*50_000

def test_onnx_files_without_a_valid_card(good, tmp_path):
    path = tmp_path/'x'
    def none(m): del m.metadata_props[:]
    check_rejected(load_onnx, change(good, path, none), 'has no card', 'export_onnx')
    for text in no_cards:
        def other(m): next(o for o in m.metadata_props if o.key=='card').value = text
        check_rejected(load_onnx, change(good, path, other))

def write_safetensors(path, pth, card={}, state={}):
    "The network of `pth` as safetensors, with a changed card and changed tensors"
    ck = torch.load(pth, weights_only=True)
    path.write_bytes(st.save({**ck['state_dict'], **state}, dict(card=json.dumps({**json.loads(ck['card']), **card}))))
    return path

def test_files_with_a_fingerprint_are_still_opened(good, pths, tmp_path):
    "Earlier versions wrote one"
    net = load_safetensors(write_safetensors(tmp_path/'x', pths['small'], dict(sha256='0'*64)))
    assert same(net, load_network(pths['small']))
    def add(m): m.metadata_props.add(key='sha256', value='0'*64)
    assert load_onnx(change(good, tmp_path/'x', add)).card==load_onnx(good['onnx']).card

cards = [dict(arch='NoNet'), dict(arch='Network'), dict(normalization=[0,0]), dict(source=[]), dict(seed='x'),
         dict(format='x'), dict(metrics=None), dict(kwargs={}), dict(kwargs=dict(sizes=[784])),
         dict(kwargs=dict(sizes=[784,10**9,10])), dict(kwargs=dict(nothing=1)), dict(threads='x'*12_000)]
bias = torch.zeros(10)
states = [*({'layers.1.bias': o} for o in (bias[:9], bias.double(), bias.half(), bias.bfloat16(), bias*float('nan'))),
          {'layers.2.bias': bias}, {'norms.0.running_var': torch.full((16,), float('inf'))}]

@pytest.mark.parametrize('card', cards, ids=lambda o: list(o)[0])
def test_safetensors_with_another_card(card, pths, tmp_path):
    check_rejected(load_safetensors, write_safetensors(tmp_path/'x', pths['small'], card))

@pytest.mark.parametrize('state', states, ids=lambda o: list(o)[0])
def test_safetensors_with_other_tensors(state, pths, tmp_path):
    "Other shapes, types or names, and numbers that are not finite"
    path = write_safetensors(tmp_path/'x', pths['small'], state=state)
    check_rejected(load_safetensors, path, 'weights', 'train it again')

def test_safetensors_without_a_card(pths, tmp_path):
    state,path = load_network(pths['small']).state_dict(),tmp_path/'x'
    for o in None, {}, dict(other='x'), *(dict(card=text) for text in no_cards):
        path.write_bytes(st.save(state, o))
        check_rejected(load_safetensors, path)
    path.write_bytes(st.save(state, None))
    check_rejected(load_safetensors, path, 'has no card', 'export_safetensors')

def test_safetensors_there_and_back(pths, tmp_path):
    for name in recipes:
        net = load_network(pths[name])
        got = load_safetensors(export_safetensors(net, tmp_path/'x'))
        assert same(got, net) and got.card==net.card and got.train_sources==net.train_sources
        assert not any(o.training for o in got.modules())
        raw = st.load((tmp_path/'x').read_bytes()) # as other programs read it
        assert {k: v.shape for k,v in raw.items()}=={k: v.shape for k,v in net.state_dict().items()}

# --- eight bits

def test_quantize(pths, few, tmp_path):
    net,x = load_network(pths['improved']),pixels(few.valid)
    path,small = export_onnx(net, tmp_path/'x.onnx'),tmp_path/'y.onnx'
    before = path.read_bytes()
    assert quantize_onnx(path, small)==small and path.read_bytes()==before
    assert small.stat().st_size<len(before)/3 and sorted(o.name for o in tmp_path.iterdir())==['x.onnx','y.onnx']
    got = load_onnx(small)
    assert got.card==net.card and got.session.get_modelmeta().custom_metadata_map['weights'].startswith('int8')
    d = (got(x)-torch_logits(net, x)).abs().max()
    assert 0<d<.05*torch_logits(net, x).abs().max()
    for o in onnx.load(small).graph.initializer: # each unit has a scale of its own, so it uses the whole range
        if o.data_type==onnx.TensorProto.INT8 and len(o.dims)==2:
            assert (abs(onnx.numpy_helper.to_array(o).astype(int)).max(0)==127).all()

@pytest.mark.parametrize('name', ['conv','mean'])
def test_quantize_a_convolution(name, pths, few, tmp_path):
    "Each channel has a scale of its own; a convolution is as fast as before, its weights take a quarter"
    net,x = load_network(pths[name]),pixels(few.valid)
    path = export_onnx(net, tmp_path/'x.onnx')
    m = onnx.load(quantize_onnx(path, tmp_path/'y.onnx'))
    onnx.checker.check_model(m, full_check=True)
    ops = [o.op_type for o in m.graph.node]
    assert ops.count('DequantizeLinear')==ops.count('Conv')>0 and 'ConvInteger' not in ops and 'MatMulInteger' in ops
    weights = [onnx.numpy_helper.to_array(o) for o in m.graph.initializer]
    assert all(o.dtype==np.int8 for o in weights if o.size>200)
    convs = [o for o in weights if o.ndim==4 and o.dtype==np.int8]
    assert len(convs)==ops.count('Conv')
    for o in convs: assert (abs(o.astype(int)).reshape(len(o), -1).max(1)==127).all()
    got,want = load_onnx(tmp_path/'y.onnx')(x),torch_logits(net, x)
    assert 0<(got-want).abs().max()<.05*want.abs().max()

def test_quantize_a_channel_of_zeros(pths, few, tmp_path):
    net,x = load_network(pths['mean']),pixels(few.valid)
    with torch.no_grad(): next(net.parameters())[0] = 0
    small = load_onnx(quantize_onnx(export_onnx(net, tmp_path/'x'), tmp_path/'y'))
    want = torch_logits(net, x)
    assert (small(x)-want).abs().max()<.05*want.abs().max()
    scales = [o for o in onnx.load(tmp_path/'y').graph.initializer if o.name.endswith('_scale')]
    assert scales and all((onnx.numpy_helper.to_array(o)>0).all() for o in scales)

@pytest.mark.parametrize('name', ['small','conv'])
def test_files_that_are_quantized_already(name, pths, tmp_path):
    small = quantize_onnx(export_onnx(load_network(pths[name]), tmp_path/'x.onnx'), tmp_path/'y.onnx')
    with pytest.raises(ValueError, match='eight bits already'): quantize_onnx(small, tmp_path/'z.onnx')

def test_files_that_cannot_be_quantized(good, tmp_path):
    small = quantize_onnx(good['onnx'], tmp_path/'y.onnx')
    with pytest.raises(ValueError) as e: quantize_onnx(small, tmp_path/'z.onnx')
    check_sentence(e, small, 'eight bits already')
    small.write_bytes(good['onnx'].read_bytes()[:-1])
    check_rejected(lambda o: quantize_onnx(o, tmp_path/'z.onnx'), small, 'is damaged')
    assert not (tmp_path/'z.onnx').exists()

# --- the table

class Zeros:
    "Not a network: predicts 0 for every digit"
    train_sources = ()
    def __call__(self, x): return torch.eye(10)[torch.zeros(len(x), dtype=torch.long)]

def test_compare_formats(pths, good, few):
    ways = dict(torch=(pths['small'],load_network), ONNX=(good['onnx'],load_onnx),
                zeros=(good['onnx'],lambda path: Zeros()))
    table,labels = compare_formats(ways, few.valid, rounds=3),few.valid.labels
    preds = torch_logits(load_network(pths['small']), pixels(few.valid)).argmax(1)
    assert list(table.index)==list(ways)
    assert table.accuracy['torch']==table.accuracy['ONNX']==(preds==labels).double().mean()
    assert table.accuracy['zeros']==(labels==0).double().mean()
    assert table.changed.tolist()==[0, 0, (preds!=0).sum()]
    assert table.MB['torch']==pths['small'].stat().st_size/1e6
    assert (table[['load_ms','one_ms','thousand_ms']]>0).all(axis=None)

class Uneven(Zeros):
    "Every seventh call takes long"
    calls = 0
    def __call__(self, x):
        self.calls += 1
        if self.calls%7==0: time.sleep(.5)
        return super().__call__(x)

def test_a_few_slow_calls_do_not_change_the_median(good, few):
    table = compare_formats(dict(uneven=(good['onnx'],lambda path: Uneven())), few.valid, rounds=9)
    assert (table[['one_ms','thousand_ms']]<40).all(axis=None)

def test_compare_formats_rejects_digits_of_the_training(good, few):
    ds = few.valid.replace(source='mnist', overlaps=('sample',))
    with pytest.raises(ValueError, match='trained on sample'): compare_formats(dict(a=(good['onnx'],load_onnx)), ds)
