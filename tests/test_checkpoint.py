"Saved networks: the way there and back, and every file that is not one, each for real"
import hashlib, io, json, os, pickle, random, struct, tarfile, tempfile, threading, zipfile
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.basics import Learner, set_seed
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn

import mnist_fastai
from conftest import repo, run_python, unprivileged
from mnist_fastai.checkpoint import CheckpointError, check_pickle, load_network, save_network
from mnist_fastai.core import versions, atomic_write
from mnist_fastai.data import DataInfo, Mnist
from mnist_fastai.loaders import digit_dls
from mnist_fastai.improvement import ImprovedNetwork
from mnist_fastai.models import Network
from mnist_fastai.training import Recipe, digit_learner, evaluate, train

posix = pytest.mark.skipif(os.name!='posix', reason='needs POSIX')
RECIPES = dict(plain=Recipe('Network', epochs=1), improved=Recipe('ImprovedNetwork', epochs=2),
               linear=Recipe('Network', dict(sizes=(784,10)), epochs=1, schedule='constant'),
               small=Recipe('ImprovedNetwork', dict(sizes=[784,16,10], p=.5), epochs=1, bs=100),
               no_norm=Recipe('ImprovedNetwork', dict(sizes=(784,20,12,10), p=0, bn=False), epochs=1))

@pytest.fixture(scope='session')
def few(sample):
    "Enough digits to be fitted to"
    return Mnist(sample.train.subset(slice(500)), sample.valid.subset(slice(200)), sample.test.subset(slice(200)),
                 'sample')

@pytest.fixture(scope='module')
def learns(few): return {k: train(o, few, seed=7, quiet=True) for k,o in RECIPES.items()}

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('checkpoints')

@pytest.fixture(scope='module')
def good(learns, folder):
    "A small file that opens"
    return save_network(learns['small'], folder/'good.pth', dict(valid_accuracy=.5))

@pytest.fixture
def path(tmp_path): return tmp_path/'x.pth'

def sentence(e, path, *parts):
    "The message is one short line: it begins with the file, holds `parts`, and shows nothing of another exception"
    s = str(e.value if hasattr(e, 'value') else e)
    assert (s.startswith(f'{path} ') and s.endswith('.') and '\n' not in s
            and 'Traceback' not in s and len(s) < len(str(path))+400), s
    for o in parts: assert o in s.removeprefix(str(path)), (o, s) # the path holds the test's name
    return s

def refuse(path, *parts):
    "`load_network` refuses `path` with a sentence that holds `parts`"
    with pytest.raises(CheckpointError) as e: load_network(path)
    return sentence(e, path, *parts)

def same(a, b):
    x,y = a.state_dict(),b.state_dict()
    return (type(a) is type(b) and list(x)==list(y)
            and all(torch.equal(x[k], y[k]) and x[k].dtype==y[k].dtype for k in x))

def opens_or_refuses(path, net):
    """The file opens as `net`, finite and equal, or is refused with a sentence; no other exception comes out.

    Returns whether it opens.
    """
    try: got = load_network(path)
    except CheckpointError as e: return bool(sentence(e, path)) and False
    assert same(got, net) and got.card==net.card and not got.training
    return True

def doctor(src, dst, state=None, drop=(), **card):
    "Copy the checkpoint `src` with another card or state"
    ck = torch.load(src, weights_only=True)
    new = {k: v for k,v in {**ck['state_dict'], **(state or {})}.items() if k not in drop}
    torch.save(dict(card=json.dumps({**json.loads(ck['card']), **card}), state_dict=new), dst)
    return dst

def logits(net, data):
    with torch.no_grad(): return net(data.valid[:64][0].as_subclass(torch.Tensor))

# --- the way there and back

@pytest.mark.parametrize('name', RECIPES)
def test_round_trip(learns, few, path, name):
    learn = learns[name]
    learn.model.eval()
    scores = {s: evaluate(learn, s) for s in ('valid','test')}
    assert save_network(learn, path, scores['valid'])==path
    set_seed(1)
    before = torch.get_rng_state()
    net = load_network(path)
    assert torch.equal(torch.get_rng_state(), before), 'opening a file draws random numbers'
    assert same(net, learn.model) and not any(o.training for o in net.modules())
    assert torch.equal(logits(net, few), logits(learn.model, few))
    assert {s: evaluate(net, s, learn.dls) for s in scores}==scores
    assert net.train_sources==('sample',) and all(o.requires_grad for o in net.parameters())
    assert all(getattr(net, k)==getattr(learn.model, k) for k in ('sizes','p','bn') if hasattr(net, k))

def test_the_card_says_everything(learns, path):
    for name,learn in learns.items():
        card = load_network(save_network(learn, path, dict(a=1, b=.1))).card
        assert Recipe(**card['recipe'])==Recipe(**json.loads(json.dumps(asdict(RECIPES[name]))))
        assert (card['arch']==RECIPES[name].arch and card['epochs']==RECIPES[name].epochs
                and card['seed']==7 and card['source']==['sample'])
        assert (card['normalization']==[.1307,.3081] and card['metrics']==dict(a=1, b=.1)
                and card['device']=='cpu' and card['threads']==torch.get_num_threads())
        assert card['versions']==versions() and versions()['mnist_fastai']==mnist_fastai.__version__
        assert set(versions())=={'python','torch','fastai','numpy','mnist_fastai'}

def test_a_loaded_network_learns_on(learns, few, good, path):
    learn = digit_learner(digit_dls(few), load_network(good))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    net = load_network(save_network(learn, path))
    assert (not same(net, load_network(good)) and net.card['seed'] is None
            and net.card['recipe'] is None and net.card['epochs']==1)

def test_metrics_of_numpy_and_torch(learns, path):
    m = dict(a=np.float64(.25), b=torch.tensor(2), c=np.int64(3), d=np.float32(.5), e='words', f=None)
    card = load_network(save_network(learns['small'], path, m)).card
    assert card['metrics']==dict(a=.25, b=2, c=3, d=.5, e='words', f=None)

@pytest.mark.parametrize('name', ('plain','improved'))
def test_one_run_one_file(few, tmp_path, name):
    def save(seed):
        return save_network(train(RECIPES[name], few, seed=seed, quiet=True), tmp_path/f'{random.random()}.pth',
                            dict(a=1)).read_bytes()
    a = save(7)
    assert a==save(7) and a!=save(8)

def test_trained_on_is_kept(good, path, few):
    net = load_network(doctor(good, path, source=['mnist']))
    assert net.train_sources==('mnist',)
    for s in ('train','valid','test'):
        with pytest.raises(ValueError, match='trained on mnist'): evaluate(net, s, digit_dls(few))

def test_a_network_of_mnist_is_not_scored_on_the_sample(full, sample, path):
    few = Mnist(*(full[s].subset(slice(300)) for s in ('train','valid','test')), 'mnist')
    net = load_network(save_network(train(RECIPES['small'], few, quiet=True), path))
    assert evaluate(net, 'test', digit_dls(few))['source']=='mnist'
    with pytest.raises(ValueError, match='trained on mnist'): evaluate(net, 'test', digit_dls(sample))

def test_weights_keep_no_hold_on_more(learns, path, few):
    "A parameter that is a slice of something larger is saved without the rest"
    learn = digit_learner(digit_dls(few), Network((784,10)))
    learn.model.layers[0].weight.data = torch.randn(10_000, 784)[:10]
    learn.model.train_sources,learn.model.data_info = ('sample',),DataInfo()
    assert save_network(learn, path).stat().st_size < 60_000
    assert same(load_network(path), learn.model)

def test_the_longest_card_that_is_saved_opens(learns, path):
    n = 12_000
    while True:
        try: save_network(learns['small'], path, dict(a='x'*n)); break
        except ValueError: n -= 1 if n<9_500 else 100
    assert len(load_network(path).card['metrics']['a'])==n>9_000

# --- what is not saved

class Own(ImprovedNetwork): pass

def test_what_save_network_refuses(learns, few, path):
    path.write_bytes(b'before')
    dls = digit_dls(few)
    for model,why in ((Own(), 'Own is not a registered'),
                      (nn.Linear(784, 10), 'Linear is not a registered'),
                      (Network(), 'fit it')):
        with pytest.raises(ValueError, match=why): save_network(digit_learner(dls, model), path)
    net = Network((784,10))
    net.train_sources = ('sample',)
    with pytest.raises(ValueError, match='fit it'):
        save_network(Learner(dls, net, loss_func=nn.CrossEntropyLoss()), path)
    for bad in float('nan'),float('inf'):
        net = Network((784,10))
        net.train_sources,net.data_info = ('sample',),DataInfo()
        net.layers[0].bias.data[3] = bad
        with pytest.raises(ValueError, match='not finite'): save_network(digit_learner(dls, net), path)
    for bad in dict(a=object()),dict(a=Path()),dict(a=torch.zeros(2)),{(1,2):3},[1,2],5,dict(a={1,2}):
        with pytest.raises(ValueError, match='metrics must be'): save_network(learns['small'], path, bad)
    with pytest.raises(ValueError, match='save fewer'): save_network(learns['small'], path, dict(a=[.123]*2000))
    assert path.read_bytes()==b'before' and [o.name for o in path.parent.iterdir()]==[path.name]

# --- what is no file, or no whole one

def test_missing_folder_unreadable(tmp_path):
    refuse(tmp_path/'missing.pth', 'cannot be read', 'mnist_train')
    refuse(tmp_path, 'is not a regular file')
    refuse(tmp_path/'no'/'folder.pth', 'cannot be read')
    refuse(str(tmp_path/'text.pth'), 'cannot be read') # a string is as good as a path

@posix
def test_a_pipe_and_a_device(tmp_path):
    "To open a pipe is to wait until somebody writes into it"
    os.mkfifo(tmp_path/'pipe.pth')
    (tmp_path/'link.pth').symlink_to('pipe.pth')
    code = """import sys
from mnist_fastai.checkpoint import *
try: load_network(sys.argv[1])
except CheckpointError as e: print(e)"""
    for o in tmp_path/'pipe.pth', tmp_path/'link.pth', '/dev/zero':
        assert run_python(code, o, timeout=30).stdout==f'{o} is not a regular file: give a file made by save_network.\n'

@posix
def test_unreadable(good):
    with tempfile.TemporaryDirectory() as d:
        p = Path(d)/'x.pth'
        p.write_bytes(good.read_bytes())
        os.chmod(d, 0o755)
        p.chmod(0)
        with unprivileged(): refuse(p, 'Permission denied')

def test_empty_and_text(path):
    path.write_bytes(b'')
    refuse(path, 'is empty')
    for o in (b'The weights are elsewhere.',
              b'<!DOCTYPE html><html></html>',
              b'version https://git-lfs.github.com/spec/v1',
              b'\x93NUMPY\x01\x00',
              b'P',
              b'\0'*5000):
        path.write_bytes(o)
        refuse(path, 'truncated' if o==b'P' else 'is not a checkpoint')

def test_truncated_at_every_length(good, path):
    whole = good.read_bytes()
    rng = random.Random(1)
    lengths = [*range(1, 130),
               *rng.sample(range(130, len(whole)-3000), 60),
               *range(len(whole)-3000, len(whole), 13),
               *range(len(whole)-130, len(whole))]
    for n in lengths:
        path.write_bytes(whole[:n])
        refuse(path, 'truncated')

def test_something_added(good, path):
    whole = good.read_bytes()
    for a,b in (b'x',b''), (b'',b'x'), (b'',whole), (b'\x80\x02N.',b''), (b'',bytes(70_000)):
        path.write_bytes(a + whole + b)
        opens_or_refuses(path, load_network(good))

def test_one_flipped_byte_anywhere(good, path):
    "Also in the places that torch does not check: weights, and what zip says of its members"
    whole,net = good.read_bytes(),load_network(good)
    rng,n = random.Random(2),len(whole)
    end = n-3000 # from here on: the last members and the directory
    places = [*range(0, 64), *rng.sample(range(64, end), 250), *rng.sample(range(end, n), 500), *range(n-100, n)]
    opened = 0
    for i in places:
        new = bytearray(whole)
        new[i] ^= rng.choice((1, 2, 64, 128, 255))
        path.write_bytes(new)
        opened += opens_or_refuses(path, net)
    assert 0 < opened < len(places)/3

def test_a_flipped_weight_is_noticed(good, path):
    whole,net = bytearray(good.read_bytes()),load_network(good)
    i = whole.find(net.layers[0].weight.detach().numpy().tobytes())
    assert i>0
    for j in range(i, i+40):
        new = whole.copy()
        new[j] ^= 1 # finite as ever
        path.write_bytes(new)
        assert torch.load(path, weights_only=True) # torch sees nothing
        refuse(path, 'damaged')

quick = settings(max_examples=150, deadline=None,
                 suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)

@quick
@given(head=st.sampled_from([b'', b'\x80\x02', b'\x80\x04', b'PK\3\4', b'PK\5\6', b'PK']), body=st.binary(max_size=300))
def test_random_bytes(path, head, body):
    path.write_bytes(head + body)
    refuse(path)

@quick
@given(data=st.data())
def test_random_damage(good, path, data):
    whole = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        i = data.draw(st.integers(0, len(whole)-1) | st.integers(len(whole)-2500, len(whole)-1))
        piece = data.draw(st.binary(max_size=16))
        whole[i:i+data.draw(st.sampled_from([0, len(piece)]))] = piece # inserted or written over
    path.write_bytes(whole)
    opens_or_refuses(path, load_network(good))

# --- what would run a stranger's code

class Surprise:
    "Makes a folder when it is unpickled"
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.mkdir, (str(self.mark),)

def zip_of(path, members, how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', how) as z:
        for k,v in members.items(): z.writestr(k, v)
    return path

def members(path):
    with zipfile.ZipFile(path) as z: return {o.filename: z.read(o) for o in z.infolist()}

def test_the_surprise_works(tmp_path, path):
    torch.save(Surprise(tmp_path/'mark'), path)
    torch.load(path, weights_only=False)
    assert (tmp_path/'mark').is_dir()

def test_a_strangers_code_does_not_run(tmp_path, path, good):
    s,ck = Surprise(tmp_path/'mark'),torch.load(good, weights_only=True)
    why = 'was not opened'
    for p in range(6):
        path.write_bytes(pickle.dumps(s, p))
        refuse(path, why if p>1 else 'is not a checkpoint')
    for o in (s,
              [s],
              dict(card=s, state_dict={}),
              {**ck, 'more': s},
              dict(card=ck['card'], state_dict={**ck['state_dict'], 'layers.0.bias': s}),
              OrderedDict(a=s)):
        torch.save(o, path)
        refuse(path, why)
        # torch's format before zip: pickles, one after another
        torch.save(o, path, _use_new_zipfile_serialization=False)
        refuse(path, why)
    for code in (b"cposix\nmkdir\n(V%b\ntR." % str(s.mark).encode(),
                 b"cbuiltins\nexec\n(Vimport os; os.mkdir(%b)\ntR." % repr(str(s.mark)).encode(),
                 b"ctorch.serialization\nload\n(Vx\ntR.",
                 b"ctorch\nload\n(Vx\ntR."):
        zip_of(path, {**members(good), 'archive/data.pkl': code})
        refuse(path, why)
    assert not s.mark.exists()

def test_archives_that_are_something_else_too(tmp_path, path, good):
    "A tar, which torch opened in an older way, and a bare pickle, each with a zip behind it"
    s,tail = Surprise(tmp_path/'mark'),zip_of(tmp_path/'z.zip', {'a':'b'}).read_bytes()
    with tarfile.open(path, 'w') as t:
        for name in 'sys_info','pickle','storages','tensors':
            b = pickle.dumps(s, 2)
            info = tarfile.TarInfo(name)
            info.size = len(b)
            t.addfile(info, io.BytesIO(b))
    tar = path.read_bytes()
    for content,why in ((tar, 'is not a checkpoint'),
                        (tar+tail, 'is not a checkpoint'),
                        (pickle.dumps(s, 2)+tail, 'was not opened')):
        path.write_bytes(content)
        refuse(path, why)
    assert zipfile.is_zipfile(path) and not s.mark.exists()

def test_programs(tmp_path, path, good, learns):
    zip_of(path, {**members(good), 'archive/constants.pkl': b'\x80\x02).'}) # what marks TorchScript
    refuse(path, 'was not opened')
    learns['small'].export(path)
    refuse(path, 'was not opened')
    torch.save(learns['small'].model, path)
    refuse(path, 'was not opened')

def test_other_archives(path, good):
    zip_of(path, {'readme.txt':'text'})
    refuse(path)
    zip_of(path, {})
    refuse(path)
    np.savez(path.with_suffix('.npz'), a=np.zeros(3))
    refuse(path.with_suffix('.npz'))
    zip_of(path, {k: v for k,v in members(good).items() if not k.endswith('data/0')})
    refuse(path, 'is damaged')
    assert opens_or_refuses(zip_of(path, members(good)), load_network(good)) # the same members, zipped by another

# --- what asks for too much

def spoil_pickle(path, good, entry):
    "Write a copy of the checkpoint `good` whose pickle has one more entry; `entry` is in opcodes, a key and a value"
    content = members(good)['archive/data.pkl']
    assert content.endswith(b'u.')
    return zip_of(path, {**members(good), 'archive/data.pkl': content[:-2] + entry + b'u.'})

def word(s): return b'X' + struct.pack('<I', len(s)) + s.encode()
def number(n): return b'J' + struct.pack('<i', n)

@pytest.mark.parametrize('call', [
    b'cbuiltins\nbytearray\n' + number(300_000_000),
    b'cbuiltins\nset\n]',
    b'ccollections\nCounter\n}',
], ids=['bytearray','set','Counter'])
def test_types_that_can_take_any_memory_or_time(path, good, call):
    "`weights_only` allows them; a checkpoint never has them"
    assert 'more' in torch.load(spoil_pickle(path, good, word('more') + call + b'\x85R'), weights_only=True)
    refuse(path, 'was not opened')

@pytest.mark.parametrize('value', [b']', b'}', b')', b'N', b'G' + bytes(8), b'\x8a\x01\x05', number(5), word('text')],
                         ids=['list','dict','tuple','None','float','long','int','text'])
def test_a_pickle_with_anything_more(path, good, value):
    refuse(spoil_pickle(path, good, word('more') + value), 'not made by save_network')

def test_a_key_that_takes_long_to_hash(path, good):
    "A tuple of two references to a tuple of two references to ...: each level doubles the time"
    key = b')r' + number(1000)[1:]
    for i in range(1000, 1016): key += b'j' + number(i)[1:] + b'j' + number(i)[1:] + b'\x86r' + number(i+1)[1:]
    assert torch.load(spoil_pickle(path, good, key + word('value')), weights_only=True)
    refuse(path, 'not made by save_network')

def test_a_pickle_that_is_too_long(path, good):
    names = [f'{i:0900}' for i in range(250)]
    refuse(doctor(good, path, {k: torch.zeros(1) for k in names[:150]}), 'do not fit')
    refuse(doctor(good, path, {k: torch.zeros(1) for k in names}), 'not made by save_network')

@pytest.mark.parametrize('name', ['archive/data.pkl','archive/DATA.PKL','other/data.pkl'])
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_two_pickles(path, good, name):
    "Only one of them would be checked"
    path.write_bytes(good.read_bytes())
    with zipfile.ZipFile(path, 'a') as z: z.writestr(name, members(good)['archive/data.pkl'])
    refuse(path, 'not made by save_network')

def test_a_tensor_larger_than_its_numbers(path, good):
    content = members(good)['archive/data.pkl']
    i = content.find(b'K\x10\x85') # the shape (16,) of the first bias
    assert i>0
    zip_of(path, {**members(good), 'archive/data.pkl': content[:i] + number(500_000_000) + content[i+2:]})
    refuse(path, 'is damaged')

@pytest.mark.parametrize('n', [0, 1, 2, 999, 1000, 1001, 1002])
def test_the_layout_of_a_pickle_of_any_length(n, path):
    "pickle writes a dict in parts of 1000 entries, and a part of one entry with another opcode"
    torch.save(dict(card='{}', state_dict={str(i): torch.zeros(i%4*(1,)) for i in range(n)}), path)
    check_pickle(members(path)['x/data.pkl'])

def test_packed_data(path, good):
    # random numbers hardly shrink
    for how in zipfile.ZIP_DEFLATED,zipfile.ZIP_BZIP2:
        opens_or_refuses(zip_of(path, members(good), how), load_network(good))
    for name in 'archive/data/0','archive/more':
        zip_of(path, {**members(good), name: bytes(300_000_000)}, zipfile.ZIP_DEFLATED)
        assert path.stat().st_size<1_000_000
        refuse(path, 'compressed')

def test_a_member_that_claims_to_be_larger(path, good):
    whole = bytearray(good.read_bytes())
    i = whole.find(b'PK\1\2') # the directory's first entry
    for size in len(whole)+1, 2**31:
        whole[i+20:i+28] = struct.pack('<II', size, size)
        path.write_bytes(whole)
        refuse(path, 'compressed')

def test_a_storage_that_claims_to_be_larger(path, good):
    "Reading past the member's end would show the process's memory"
    zip_of(path, {k: v[:4] if k.endswith('data/0') else v for k,v in members(good).items()})
    refuse(path, 'is damaged')

def test_enormous_sizes_cost_nothing(path, good):
    # if any of it were allocated, it could not be built
    for sizes in [784,10**9,10], [784,10**9,10**9,10], [784]+[10**6]*50+[10]:
        refuse(doctor(good, path, kwargs=dict(sizes=sizes, p=.5, bn=True)), 'do not fit')
    for sizes in [784,10**18,10], [784,10**30,10], [784]*4000, [784]+[1]*2000+[10]:
        refuse(doctor(good, path, kwargs=dict(sizes=sizes, p=.5, bn=True)))

def test_overlapping_and_repeated_numbers(path, few, good):
    learn = digit_learner(digit_dls(few), Network((784,512,512,512,10)))
    learn.model.train_sources,learn.model.data_info = ('sample',),DataInfo()
    big = save_network(learn, path.with_name('big.pth'))
    w = torch.randn(512,512)
    refuse(doctor(big, path, {f'layers.{i}.weight': w.detach() for i in (1,2)}), 'overlap') # one storage for two
    one = torch.ones(1)
    refuse(doctor(good, path, {'layers.0.weight': one.expand(16,784)}), 'do not fit', 'layers.0.weight')

# --- what does not fit

def other_kinds(t):
    "Values in place of the tensor `t`, each with a part of the message"
    for o in (t.double(), t.half(), t.int(), t.bool(), t.to(torch.complex64), t.to(torch.bfloat16),
              t[None], t[:-1], t.flatten()[:1], torch.zeros(0), t.mT if t.ndim>1 else t.view(2, -1)):
        yield o,'do not fit'
    for o in (t.to_sparse(), t.view(2, -1).to_sparse_csr(), t.to('meta'), nn.Parameter(t.clone())):
        yield o,'was not opened'
    for o in (t.tolist(), None, 1., 'text', {}): yield o,'not made by save_network'

@pytest.mark.filterwarnings('ignore:Validating sparse tensor', 'ignore:Sparse CSR tensor')
def test_weights_of_another_kind(path, good):
    state = torch.load(good, weights_only=True)['state_dict']
    for k in 'layers.0.weight','norms.0.running_var':
        for v,why in other_kinds(state[k]): refuse(doctor(good, path, {k: v}), why, k if why=='do not fit' else '')

def test_missing_and_extra_weights(path, good):
    for k in torch.load(good, weights_only=True)['state_dict']: refuse(doctor(good, path, drop=[k]), 'do not fit', k)
    refuse(doctor(good, path, {'layers.2.bias': torch.zeros(10)}), 'do not fit', 'layers.2.bias')
    refuse(doctor(good, path, {'x'*100_000: torch.zeros(1)}), 'do not fit')
    for k in 5, None, ('a','b'): refuse(doctor(good, path, {k: torch.zeros(1)}), 'not made by save_network')

def test_weights_that_are_no_numbers(path, good):
    state = torch.load(good, weights_only=True)['state_dict']
    for k,v in state.items():
        if not v.is_floating_point(): continue
        for bad in float('nan'), float('inf'), -float('inf'):
            w = v.clone()
            w.view(-1)[-1] = bad
            refuse(doctor(good, path, {k: w}), 'not finite')

def test_a_variance_below_zero(path, good):
    "Every logit would be NaN"
    var = torch.load(good, weights_only=True)['state_dict']['norms.0.running_var'].clone()
    var[3] = -1
    refuse(doctor(good, path, {'norms.0.running_var': var}), 'a variance below 0')

def test_weights_that_carry_attributes(path, good):
    "A tensor in a file may bring attributes of its own that hide its methods"
    t = torch.load(good, weights_only=True)['state_dict']['layers.0.bias']
    for k in 'isfinite','is_contiguous','numel': setattr(t, k, 'a word')
    assert opens_or_refuses(doctor(good, path, {'layers.0.bias': t}), load_network(good)) in (True,False)

def test_control_characters_stay_out_of_messages(path, good, tmp_path):
    "They could clear a terminal, or show a message that is not ours"
    red = '\x1b[31m\r\n\u202e'
    for file,why in ((doctor(good, path, {red: torch.zeros(1)}), 'do not fit'),
                     (doctor(good, tmp_path/'a.pth', arch=red), 'not known here'),
                     (doctor(good, tmp_path/'b.pth', kwargs={red: 1}), 'cannot be built'),
                     (doctor(good, tmp_path/'c.pth', kwargs=dict(p=red)), 'cannot be built'),
                     (tmp_path/'missing\n\x1b[2J.pth', 'cannot be read')):
        with pytest.raises(CheckpointError, match=why) as e: load_network(file)
        assert str(e.value).isprintable(), str(e.value)

def test_another_architecture(learns, path, good):
    for o in 'NoNet', 'network', '', '__class__', 'x'*5000, 'ImprovedNetwork\n':
        refuse(doctor(good, path, arch=o), 'not known here')
    refuse(doctor(good, path, arch='Network', kwargs=dict(sizes=[784,16,10])), 'do not fit', 'norms.')
    for kw in ({}, dict(sizes=[784,17,10]), dict(sizes=[784,16,16,10]), dict(bn=False, sizes=[784,16,10])):
        refuse(doctor(good, path, kwargs=kw), 'do not fit')
    for kw in (dict(sizes=[784]), dict(sizes=None), dict(p=2), dict(p='x'), dict(nothing=1),
               dict(sizes=[784,-1,10]), dict(sizes='x'*8000), {'':1}):
        refuse(doctor(good, path, kwargs=kw), 'cannot be built')

def test_another_normalization(path, good, few):
    for o in [.1307], [.1307,0], [.1307,-1], [float('nan'),1], ['x'*5000], [None,None], []:
        refuse(doctor(good, path, normalization=o), 'normalization')
    # made for other data: it opens, and is not measured on ours
    net = load_network(doctor(good, path, normalization=[.5,.25]))
    assert net.data_info==DataInfo(.5, .25)
    with pytest.raises(ValueError, match='mean 0.5, and these digits have 0.1307; std 0.25'):
        evaluate(net, 'valid', digit_dls(few))

def test_formats(path, good, few):
    "1 and 2 are read, and a newer one says that it is newer"
    ck = torch.load(good, weights_only=True)
    card = json.loads(ck['card'])
    assert card['format']=='mnist_fastai 2' and (card['classes'],card['size'])==(list('0123456789'),[28,28])
    old = {k: v for k,v in card.items() if k not in ('classes','size')} | dict(format='mnist_fastai 1')
    torch.save({**ck, 'card': json.dumps(old)}, path)
    net = load_network(path)
    assert (same(net, load_network(good)) and net.data_info==DataInfo()
            and evaluate(net, 'valid', digit_dls(few))['n']==200)
    for o in 'mnist_fastai 3', 'mnist_fastai 12':
        refuse(doctor(good, path, format=o), 'newer than this library', 'update')
    for o in 'mnist_fastai', 'mnist_fastai x', 'other 2', '2':
        refuse(doctor(good, path, format=o), 'not made by save_network')

CARD = ('format arch kwargs normalization classes size source seed epochs recipe precision metrics versions device '
        'threads').split()

def nested(n):
    o = []
    for _ in range(n): o = [o]
    return o

@pytest.mark.parametrize('key', CARD)
def test_a_card_of_wrong_types(path, good, key):
    net = load_network(good)
    assert set(net.card)==set(CARD)
    for v in (None, True, 0, -5, 10**400, 1.5, float('nan'),
              '', 'x', 'x'*5000, 'x'*10**6,
              [], [1], [None]*9, ['x'*9000],
              {}, {'a':[]}, nested(300)):
        try: got = load_network(doctor(good, path, **{key: v}))
        except CheckpointError as e: sentence(e, path)
        else: assert same(got, net) and isinstance(got.card[key], (dict,list,str,int,type(None)))
    ck = torch.load(good, weights_only=True)
    card = json.loads(ck['card'])
    del card[key]
    torch.save({**ck, 'card': json.dumps(card)}, path)
    if key=='precision': assert same(load_network(path), net) # older cards do not have it
    else: refuse(path, 'not made by save_network' if key=='format' else f'no valid {key}')

def test_the_precision_of_a_card(path, good):
    for v in (5, [], {}, True): refuse(doctor(good, path, precision=v), 'no valid precision')
    for v in ('float32', 'bfloat16', None): assert load_network(doctor(good, path, precision=v)).card['precision']==v

def test_what_is_no_card(path, good):
    ck = torch.load(good, weights_only=True)
    deep = '['*5000 + ']'*4000
    for card in (None, 5, [], {}, json.loads(ck['card']), b'x',
                 '', 'text', '5', '[]', 'null', '{', deep, '['*4000+']'*4000,
                 '{"format": "mnist_fastai 1"}', '{"format": "mnist_fastai 2"}',
                 ck['card']+' '*10**6, torch.zeros(2)):
        torch.save({**ck, 'card': card}, path)
        refuse(path)
    for o in (None, 5, [], {}, ck['state_dict'], [ck], torch.zeros(3),
              dict(card=ck['card']), dict(state_dict=ck['state_dict']),
              {**ck,'state_dict':[]}, {**ck,'state_dict':None}, {'card':5,5:6}):
        torch.save(o, path)
        refuse(path, 'not made by save_network')
    torch.save({**ck, 'state_dict': {}}, path)
    refuse(path, 'do not fit')

# --- written whole

@contextmanager
def full_disk(n):
    "No file can grow beyond `n` bytes for a while"
    import resource
    soft,hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

def test_write_whole(tmp_path):
    p = tmp_path/'a'/'b'/'x.bin'
    assert atomic_write(p, b'one')==p and p.read_bytes()==b'one'
    assert atomic_write(str(p), b'two')==p and p.read_bytes()==b'two'
    assert atomic_write(p, b'').read_bytes()==b'' and [o.name for o in p.parent.iterdir()]==['x.bin']
    if os.name=='posix': assert p.stat().st_mode & 0o777==0o644
    long = tmp_path/('x'*250)
    assert atomic_write(long, b'1').read_bytes()==b'1'

def test_write_whole_of_no_bytes(tmp_path):
    p = atomic_write(tmp_path/'x.bin', b'one')
    for o in 'text', None, 5:
        with pytest.raises(TypeError): atomic_write(p, o)
    assert p.read_bytes()==b'one' and list(tmp_path.iterdir())==[p]

def test_write_whole_over_a_folder(tmp_path):
    (tmp_path/'x').mkdir()
    (tmp_path/'f').write_text('a file')
    with pytest.raises(OSError): atomic_write(tmp_path/'x', b'one')
    with pytest.raises(OSError): atomic_write(tmp_path/'f'/'x', b'one')
    assert sorted(o.name for o in tmp_path.iterdir())==['f','x'] and not list((tmp_path/'x').iterdir())

@posix
def test_a_disk_that_is_full(tmp_path):
    p = atomic_write(tmp_path/'x.bin', b'before')
    with full_disk(100_000):
        with pytest.raises(OSError, match='File too large'): atomic_write(p, bytes(3_000_000))
    assert p.read_bytes()==b'before' and list(tmp_path.iterdir())==[p]

@posix
def test_a_folder_that_is_read_only():
    with tempfile.TemporaryDirectory() as d:
        p = atomic_write(Path(d)/'x.bin', b'before')
        os.chmod(d, 0o555)
        with unprivileged():
            with pytest.raises(PermissionError): atomic_write(p, b'after')
        assert p.read_bytes()==b'before' and list(Path(d).iterdir())==[p]
        os.chmod(d, 0o755)

def test_whoever_looks_finds_a_whole_file(tmp_path):
    p,contents,done = tmp_path/'x.bin',[bytes([i])*200_000 for i in (1,2)],threading.Event()
    atomic_write(p, contents[0])
    def write():
        for i in range(60): atomic_write(p, contents[i%2])
        done.set()
    t = threading.Thread(target=write)
    t.start()
    seen = set()
    while not done.is_set(): seen.add(p.read_bytes())
    t.join()
    assert seen<=set(contents) and list(tmp_path.iterdir())==[p]

# --- the two networks of the course

@pytest.mark.parametrize('name', ('Network','ImprovedNetwork'))
def test_the_committed_networks(name, full):
    path = repo/'models'/f'{name}.pth'
    if not path.exists(): pytest.skip(f'models/{path.name} is not there')
    net,dls = load_network(path),digit_dls(full)
    assert type(net).__name__==name and net.train_sources==('mnist',) and net.card['recipe']['arch']==name
    for split in 'valid','test':
        got = evaluate(net, split, dls)
        assert abs(got['accuracy']-net.card['metrics'][f'{split}_accuracy'])*got['n'] < 2.5, (
            'more than two digits apart')
        assert abs(got['loss']-net.card['metrics'][f'{split}_loss']) < 1e-3

def test_the_committed_results():
    path = repo/'models'/'results.json'
    if not path.exists(): pytest.skip('models/results.json is not there')
    res = json.loads(path.read_text())
    assert res['source']=='mnist' and set(res['networks'])=={'Network','ImprovedNetwork'}
    for name,row in res['networks'].items():
        card = load_network(repo/'models'/f'{name}.pth').card
        assert card['metrics'] and all(row[k]==v for k,v in card['metrics'].items())
        assert {'valid_accuracy','valid_loss','test_accuracy','test_loss'}<=set(card['metrics'])
        assert all(row[k]==card[k] for k in ('seed','epochs','recipe')) and len(row['history'])==row['epochs']
        assert all(res[k]==card[k] for k in ('versions','device','threads'))
