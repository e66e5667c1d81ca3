"Splits, images, labels and the loaders over them"
import hashlib, os, re, sys, warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import tensor
from torchvision import transforms
from torchvision.datasets import MNIST

from fastai.basics import Category, TensorCategory, TensorImageBW, L
from mnist_fastai.files import DataError, Unreachable
from mnist_fastai.loaders import DigitDataLoaders, DigitDL, digit_dls
from mnist_fastai.data import (Digits, Mnist, check_split, load_mnist, mnist_mean, mnist_splits, mnist_std,
                               split_train_valid, to_images, to_labels)

def plain(t): return t.as_subclass(torch.Tensor)
def counts(t, n=10): return plain(t).bincount(minlength=n).tolist()
def numbered(n):
    "`n` digits, each with its own position in its first two pixels"
    x = torch.zeros(n, 28, 28, dtype=torch.uint8)
    x[:,0,0],x[:,0,1] = torch.arange(n)%256,torch.arange(n)//256
    return Digits(x, torch.arange(n)%10, torch.arange(n))
def positions(xb):
    "What `numbered` wrote into the images of a batch"
    x = to_images((plain(xb)*mnist_std + mnist_mean).clamp(0,1)).long()
    return (x[:,0,0] + 256*x[:,0,1]).tolist()

# --- splits

def check_splits(data, sizes, source):
    assert isinstance(data, Mnist) and data.source==source and repr(data).startswith(source)
    for name,n in zip(mnist_splits, sizes):
        o = data[name]
        assert o is getattr(data, name) and len(o)==n and (o.split,o.source)==(name,source)
        assert o.images.shape==(n,28,28) and o.images.dtype==torch.uint8 and type(o.images) is torch.Tensor
        assert o.labels.shape==o.idxs.shape==(n,) and o.labels.dtype==o.idxs.dtype==torch.int64
        assert set(o.labels.tolist())==set(range(10)) and f'{n:,} digits' in repr(o)

def test_splits_of_mnist(full):
    check_splits(full, (50_000,10_000,10_000), 'mnist')
    train,valid = set(full.train.idxs.tolist()),set(full.valid.idxs.tolist())
    assert train.isdisjoint(valid) and train|valid==set(range(60_000))
    assert full.test.idxs.tolist()==list(range(10_000))
    shares = [np.array(counts(full[o].labels))/len(full[o]) for o in ('train','valid')]
    assert np.abs(shares[0]-shares[1]).max()<1e-3

def test_split_of_mnist_never_changes(full):
    "A new release of a library that drew another split would make every recorded result incomparable"
    assert (hashlib.sha256(full.valid.idxs.numpy().astype('<i8').tobytes()).hexdigest()
            =='bc6a3b569d2d07b6880eb7543153bc8caec92dbe3f6b4c643b7794d77d7d6ade')

def test_split_does_not_depend_on_any_seed(full):
    torch.manual_seed(7); np.random.seed(7)
    train,valid = split_train_valid(
        torch.cat([full.train.labels, full.valid.labels])[torch.cat([full.train.idxs, full.valid.idxs]).argsort()],
        10_000)
    assert torch.equal(train, full.train.idxs) and torch.equal(valid, full.valid.idxs)

def test_loading_draws_from_no_generator():
    torch.manual_seed(3); np.random.seed(3)
    a = torch.rand(3),np.random.rand(3)
    torch.manual_seed(3); np.random.seed(3)
    load_mnist(sample=True)
    assert torch.equal(torch.rand(3), a[0]) and (np.random.rand(3)==a[1]).all()

def test_images_are_those_of_torchvision(full, warm):
    train,test = MNIST(warm, train=True),MNIST(warm, train=False)
    for o,ds in ((full.train,train), (full.valid,train), (full.test,test)):
        assert torch.equal(o.images, ds.data[o.idxs]) and torch.equal(o.labels, ds.targets[o.idxs])

def test_splits_of_the_sample(sample):
    check_splits(sample, (4000,500,500), 'sample')
    for o,n in zip(mnist_splits, (400,50,50)): assert counts(sample[o].labels)==[n]*10
    idxs = torch.cat([sample[o].idxs for o in mnist_splits])
    assert sorted(idxs.tolist())==list(range(5000))

def test_sample_is_the_same_every_time(sample):
    again = load_mnist(sample=True)
    for o in mnist_splits:
        assert torch.equal(again[o].images, sample[o].images) and torch.equal(again[o].idxs, sample[o].idxs)

@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.data())
def test_split_is_stratified_and_disjoint(per_class, data):
    n_valid = data.draw(st.integers(1, per_class-1))
    labels = torch.arange(10).repeat(per_class)
    train,valid = split_train_valid(labels, 10*n_valid)
    assert counts(labels[valid])==[n_valid]*10 and counts(labels[train])==[per_class-n_valid]*10
    assert sorted(train.tolist() + valid.tolist())==list(range(10*per_class))
    assert train.tolist()==sorted(train.tolist()) and valid.tolist()==sorted(valid.tolist())

@pytest.mark.parametrize('name', ['val', 'Train', '', None, 0, ['train'], b'test'])
def test_unknown_split(name, sample):
    with pytest.raises(ValueError, match=re.escape(f'There is no split {name!r}: use one of train, valid, test.')):
        sample[name]
    with pytest.raises(ValueError): check_split(name)

# --- which source

def test_sample_by_argument_and_by_environment(monkeypatch, capsys):
    assert load_mnist(sample=True).source=='sample'
    for v in ('1',' 1 '):
        monkeypatch.setenv('MNIST_FASTAI_SAMPLE', v)
        assert load_mnist().source=='sample'
    assert capsys.readouterr().out=='' # asked for, so there is nothing to tell

def test_the_sample_is_refused_by_environment(monkeypatch):
    monkeypatch.setenv('MNIST_FASTAI_SAMPLE', '0')
    with pytest.raises(Unreachable): load_mnist()
    assert load_mnist(sample=True).source=='sample' # an argument wins

def test_the_sample_is_refused_by_argument(monkeypatch):
    monkeypatch.setenv('MNIST_FASTAI_SAMPLE', '1')
    with pytest.raises(Unreachable): load_mnist(sample=False)

def test_empty_environment_is_none(monkeypatch, capsys):
    monkeypatch.setenv('MNIST_FASTAI_SAMPLE', '')
    assert load_mnist().source=='sample' and 'stands in' in capsys.readouterr().out

@pytest.mark.parametrize('value', ['yes','true','2','-1','01'])
def test_other_values_in_the_environment(value, monkeypatch):
    monkeypatch.setenv('MNIST_FASTAI_SAMPLE', value)
    with pytest.raises(DataError, match=re.escape(f'MNIST_FASTAI_SAMPLE is {value!r}: set it to 1')): load_mnist()

# --- images

x8 = torch.arange(784).view(28,28).to(torch.uint8) # every value from 0 to 255

images = dict(
    tensor=lambda: x8,
    array=lambda: x8.numpy(),
    float_tensor=lambda: x8/255,
    double_array=lambda: x8.numpy()/255,
    half=lambda: (x8/255).half(),
    channel=lambda: x8[None,None],
    batch_of_one=lambda: x8[None],
    typed=lambda: TensorImageBW(x8/255),
    grad=lambda: (x8/255).requires_grad_(),
    pil_L=lambda: Image.fromarray(x8.numpy()),
    pil_RGB=lambda: Image.fromarray(x8.numpy()).convert('RGB'),
    pil_RGBA=lambda: Image.fromarray(x8.numpy()).convert('RGBA'),
    list_of_one=lambda: [x8],
    fastai_list=lambda: L(x8),
    tuple_of_one=lambda: (x8.numpy(),),
    not_contiguous=lambda: x8.T.contiguous().T,
    upside_down_twice=lambda: np.ascontiguousarray(x8.numpy()[::-1])[::-1],
    read_only=lambda: np.asarray(Image.fromarray(x8.numpy())),
    big_endian=lambda: (x8.numpy()/255).astype('>f8'))

@pytest.mark.parametrize('how', images)
def test_what_an_image_may_be(how):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        res = to_images(images[how]())
    assert type(res) is torch.Tensor and res.dtype==torch.uint8 and res.shape==(1,28,28) and torch.equal(res[0], x8)

def test_lists_mix_what_an_image_may_be():
    res = to_images([x8, Image.fromarray(x8.numpy()), x8.numpy()/255, x8[None].repeat(2,1,1)])
    assert res.shape==(5,28,28) and (res==x8).all()

def test_pil_of_one_bit():
    a = (x8.numpy()>100)
    assert torch.equal(to_images(Image.fromarray(a))[0], tensor(a*255).to(torch.uint8))

@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(0,3), st.just(28), st.just(28))),
       st.sampled_from([np.float16, np.float32, np.float64]))
def test_floats_are_the_bytes_again(a, dtype):
    assert torch.equal(to_images(a), tensor(a)) and torch.equal(to_images((a/255).astype(dtype)), tensor(a))

@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([0,1,2,3,27,28,29,784]), max_size=5).map(tuple)
         .filter(lambda o: np.prod(o, dtype=float)<1e6),
       st.sampled_from([np.uint8, np.float32]),
       st.booleans())
def test_any_other_shape_is_refused(shape, dtype, as_tensor):
    a = np.zeros(shape, dtype)
    if as_tensor: a = torch.from_numpy(a)
    ok = shape[-2:]==(28,28) and (len(shape) in (2,3) or len(shape)==4 and shape[1]==1)
    if ok: assert to_images(a).shape==((1,28,28) if len(shape)==2 else (shape[0],28,28))
    else:
        with pytest.raises(ValueError, match=re.escape(f'not {shape}.')): to_images(a)

bad_pixels = dict(
    to_255=x8.float(),
    negative=-(x8/255),
    above_1=x8/254,
    nan=torch.full((28,28), float('nan')),
    inf=torch.full((28,28), float('inf')),
    int64=x8.long(),
    bool=x8.bool(),
    int8=x8.numpy().astype(np.int8),
    uint16=x8.numpy().astype(np.uint16),
    complex=x8.numpy().astype(complex),
    int64_none=torch.zeros(0,28,28, dtype=torch.long))

@pytest.mark.parametrize('how', bad_pixels)
def test_other_ranges_and_types_of_pixels(how):
    with pytest.raises(ValueError, match='Pixels must be uint8 from 0 to 255, or floats from 0 to 1; these are'):
        to_images(bad_pixels[how])

def test_one_nan_is_enough():
    x = x8/255
    x[3,4] = float('nan')
    with pytest.raises(ValueError, match='Pixels must be'): to_images(x)

@pytest.mark.parametrize('bad', ['digit.png', None, 3, 2.5, b'x', {}, x8.tolist(), [x8,'x'], (o for o in [x8])],
                         ids=lambda o: type(o).__name__)
def test_what_is_no_image(bad):
    with pytest.raises(TypeError, match='An image is a tensor, an array or a PIL image, not '): to_images(bad)

def test_no_images():
    with pytest.raises(ValueError, match='the list is empty'): to_images([])

def test_image_of_another_size():
    with pytest.raises(ValueError, match=re.escape('not (32, 30).')): to_images(Image.new('L', (30,32)))

# --- labels

@pytest.mark.parametrize('labels', [
    [7,1], (7,1), L(7,1), tensor([7,1]),
    np.array([7,1]), np.array([7.,1.]), tensor([7,1], dtype=torch.uint8),
    [tensor(7),tensor(1)], [Category('7'),Category('1')], TensorCategory(tensor([7,1])),
    np.array([1,7])[::-1], np.array([7,1], np.uint16),
], ids=repr)
def test_what_labels_may_be(labels):
    y = to_labels(labels, 2)
    assert type(y) is torch.Tensor and y.dtype==torch.int64 and y.tolist()==[7,1]

@pytest.mark.parametrize('labels', [
    [7,10], [-1,7], [7.5,1], [7,float('nan')], [None,1],
    tensor([7,256]), tensor([1e30,1]),
    ['seven','one'], np.array(['seven','one']),
    [[7],[1,2]],
], ids=repr)
def test_labels_that_are_no_digits(labels):
    with pytest.raises(ValueError, match=re.escape('Labels must be whole numbers from 0 to 9.')): to_labels(labels, 2)

@pytest.mark.parametrize('labels,shape', [
    ([7], '(1,)'),
    ([7,1,2], '(3,)'),
    (7, '()'),
    ([[7],[1]], '(2, 1)'),
    (tensor([[7,1]]), '(1, 2)'),
])
def test_labels_of_another_number(labels, shape):
    with pytest.raises(ValueError, match=re.escape(f'There are 2 images, and labels of shape {shape}')):
        Digits(torch.stack([x8,x8]), labels)

# --- Digits

def test_one_index_takes_one_or_many(sample):
    ds = sample.valid
    x,y = ds[3]
    assert (type(x) is TensorImageBW and type(y) is TensorCategory
            and x.shape==(1,28,28) and x.dtype==torch.float32 and y.shape==() and y.dtype==torch.int64)
    xb,yb = ds[[3,1,3]]
    assert (type(xb) is TensorImageBW and type(yb) is TensorCategory
            and xb.shape==(3,1,28,28) and plain(yb).tolist()==ds.labels[[3,1,3]].tolist())
    assert (torch.equal(plain(xb[0]), plain(x))
            and torch.equal(plain(ds[:][0]), torch.stack([plain(ds[i][0]) for i in range(len(ds))])))
    assert len(Digits(x8)[[0]])==1 # no labels, no second element

def test_values_are_torchvisions_to_the_bit(sample):
    tfm = transforms.Compose([transforms.ToTensor(), transforms.Normalize((mnist_mean,), (mnist_std,))])
    ds = sample.train
    ours = plain(ds[list(range(300))][0])
    assert torch.equal(ours, torch.stack([tfm(Image.fromarray(o.numpy())) for o in ds.images[:300]]))
    assert torch.equal(plain(Digits(x8)[0][0]), tfm(Image.fromarray(x8.numpy()))) # every value a pixel can have

def test_constants_come_from_the_training_split(full):
    x = full.train.images.double()/255
    assert abs(x.mean()-mnist_mean)<2e-4 and abs(x.std()-mnist_std)<2e-4

def test_reading_changes_nothing(sample):
    before = sample.valid.images.clone(),sample.valid.labels.clone()
    x,y = sample.valid[[0,1]]
    x.zero_(); y.zero_()
    x,_ = sample.valid[5]; x.zero_()
    assert torch.equal(sample.valid.images, before[0]) and torch.equal(sample.valid.labels, before[1])

@pytest.mark.parametrize('i', [[3,1], tensor([3,1]), slice(3,5), range(2), 'mask'], ids=str)
def test_subset(i, sample):
    ds = sample.valid
    if isinstance(i, str): i = ds.labels==7
    sub = ds.subset(i)
    assert type(sub) is Digits and (sub.split,sub.source)==(ds.split,ds.source)
    for o in ('images','labels','idxs'): assert torch.equal(getattr(sub, o), getattr(ds, o)[i])
    assert sub.images.untyped_storage().nbytes()==784*len(sub) and sub.labels.untyped_storage().nbytes()==8*len(sub)
    sub.images.zero_()
    assert ds.images[i].any()
    assert torch.equal(ds.iloc[i].labels, sub.labels) and ds.items is ds

def test_subset_without_labels():
    sub = Digits(torch.stack([x8]*3)).subset([0,2])
    assert len(sub)==2 and sub.labels is None and sub.idxs is None

def test_new_empty_holds_nothing(sample):
    e = sample.train.new_empty()
    assert len(e)==0 and e.vocab==sample.train.vocab and e.images.shape==(0,28,28)
    for o in (e.images, e.labels, e.idxs): assert o.untyped_storage().nbytes()==0

def test_decode_is_the_inverse(sample):
    for ds in (sample.valid, Digits(x8, [3])):
        for i in range(min(50, len(ds))):
            img,label = ds.decode(ds[i])
            assert (type(img) is TensorImageBW and img.min()>=0 and img.max()<=1
                    and isinstance(label, Category) and label==str(int(ds.labels[i])))
            assert torch.equal(to_images(plain(img)), ds.images[i:i+1])
    img, = Digits(x8).decode(Digits(x8)[0])
    assert torch.equal(to_images(plain(img))[0], x8)

def test_show(sample):
    import matplotlib.pyplot as plt
    ax = sample.valid.show(sample.valid[2])
    assert ax.get_title()==str(int(sample.valid.labels[2])) and len(ax.get_images())==1
    assert np.allclose(np.asarray(ax.get_images()[0].get_array()).squeeze()*255, sample.valid.images[2], atol=1e-3)
    _,mine = plt.subplots()
    assert sample.valid.show(sample.valid[2], ctx=mine) is mine
    assert Digits(x8).show(Digits(x8)[0]) is not None

def test_vocab_gives_ten_classes(sample):
    ds = sample.train
    assert list(ds.vocab)==[str(i) for i in range(10)] and ds.vocab.o2i['7']==7 and ds.c==10 and digit_dls(sample).c==10

def test_set_split_idx_is_put_back(sample):
    ds = sample.valid
    with pytest.raises(KeyError), ds.set_split_idx(0):
        assert ds.split_idx==0
        raise KeyError
    assert ds.split_idx==1

# --- loaders

@settings(max_examples=80, deadline=None)
@given(st.integers(1, 300), st.integers(1, 400), st.booleans(), st.booleans())
def test_every_digit_once(n, bs, shuffle, drop_last):
    dl = DigitDL(numbered(n), bs=bs, shuffle=shuffle, drop_last=drop_last)
    batches = list(dl)
    sizes = [bs]*(n//bs) + ([n%bs] if n%bs and not drop_last else [])
    assert [len(xb) for xb,_ in batches]==sizes and len(dl)==len(sizes)
    seen = [i for xb,yb in batches for i in positions(xb)]
    assert [i%10 for i in seen]==[int(i) for _,yb in batches for i in yb] # images and labels stay together
    assert len(set(seen))==len(seen)==sum(sizes) and set(seen)<=set(range(n))
    if not shuffle: assert seen==list(range(sum(sizes)))

def test_batches_are_typed_and_normalized(sample):
    dls = digit_dls(sample, bs=64)
    assert isinstance(dls, DigitDataLoaders) and len(dls.loaders)==3
    for dl,n in ((dls.train,64), (dls.valid,500), (dls.test,500)):
        xb,yb = dl.one_batch()
        assert type(xb) is TensorImageBW and type(yb) is TensorCategory
        assert xb.shape==(n,1,28,28) and xb.dtype==torch.float32 and yb.shape==(n,) and yb.dtype==torch.int64
    assert (dls.train_ds,dls.valid_ds,dls.test_ds)==(sample.train,sample.valid,sample.test)
    assert (dls.train.bs,dls.valid.bs,dls.test.bs)==(64,2048,2048)
    assert len(digit_dls(sample, valid_bs=100).test)==5

def test_full_epoch(full):
    dls = digit_dls(full, bs=256)
    ys = [yb for _,yb in dls.train]
    assert [len(o) for o in ys]==[256]*195+[80] and counts(torch.cat(ys))==counts(full.train.labels)

def test_train_is_shuffled_and_the_others_are_not(sample):
    dls = digit_dls(sample)
    def order(dl): return torch.cat([plain(xb) for xb,_ in dl]),torch.cat([plain(yb) for _,yb in dl])
    a,b = order(dls.train)[1],order(dls.train)[1]
    assert not torch.equal(a, b) and not torch.equal(a, sample.train.labels)
    for dl,ds in ((dls.valid,sample.valid), (dls.test,sample.test)):
        for _ in range(2):
            x,y = order(dl)
            assert torch.equal(y, ds.labels) and torch.equal(x, plain(ds[:][0]))

def test_one_seed_gives_the_same_batches(sample):
    def epochs(dl, seed, n=2):
        torch.manual_seed(seed)
        return [positions(xb) for _ in range(n) for xb,_ in dl]
    ds = numbered(1000)
    dl = DigitDL(ds, bs=64, shuffle=True)
    first = epochs(dl, 5)
    assert epochs(dl, 5)==first # reseeding
    assert epochs(DigitDL(ds, bs=64, shuffle=True), 5)==first # rebuilding
    assert epochs(dl, 6)!=first
    assert first[:16]!=first[16:] # two epochs differ
    import random
    random.seed(1); np.random.seed(1)
    assert epochs(dl, 5)==first # no other generator has a part in it

@pytest.mark.skipif(sys.platform.startswith('linux') and not os.access('/dev/shm', os.W_OK),
                    reason='workers need shared memory')
@pytest.mark.parametrize('shuffle', [False,True])
def test_workers(shuffle):
    n = 1000
    for drop_last in (False,True):
        batches = list(DigitDL(numbered(n), bs=64, shuffle=shuffle, drop_last=drop_last, num_workers=2))
        seen = [i for xb,_ in batches for i in positions(xb)]
        assert [len(xb) for xb,_ in batches]==[64]*15 + [40]*(not drop_last)
        assert len(set(seen))==len(seen)
        if not shuffle: assert seen==list(range(len(seen)))

def test_device(sample):
    dls = digit_dls(sample, device='meta') # holds shapes and no values, so it is on every machine
    for dl in dls.loaders: assert all(o.device.type=='meta' for o in dl.one_batch())
    assert sample.train.images.device.type=='cpu'
    dls.cpu()
    for dl in dls.loaders: assert all(o.device.type=='cpu' for o in dl.one_batch())
    assert str(digit_dls(sample, device='cpu').device)=='cpu'
    if torch.cuda.is_available(): assert digit_dls(sample).one_batch()[0].is_cuda

@pytest.mark.parametrize('bs', [0, -1, 2.5, True, '64', None, 64.0, [64], tensor(64)], ids=repr)
def test_bad_batch_sizes(bs, sample):
    told = re.escape(f'The batch size must be a positive integer, not {bs!r}.')
    with pytest.raises(ValueError, match=told): digit_dls(sample, bs=bs)
    with pytest.raises(ValueError, match=told): digit_dls(sample, valid_bs=bs)
    with pytest.raises(ValueError, match=told): DigitDL(sample.train, bs=bs)

def test_batch_size_of_numpy(sample): assert digit_dls(sample, bs=np.int64(100)).one_batch()[0].shape[0]==100

def test_dls_load_mnist_by_default(monkeypatch):
    monkeypatch.setenv('MNIST_FASTAI_SAMPLE', '1')
    assert digit_dls().train_ds.source=='sample'

# --- digits of one's own

def test_test_dl(sample):
    dls,x,y = digit_dls(sample),sample.test.images[:5],sample.test.labels[:5]
    want = plain(sample.test[:5][0])
    for items in (x, x.numpy(), x/255, x[:,None], list(x), [Image.fromarray(o.numpy()) for o in x], Digits(x)):
        dl = dls.test_dl(items)
        batches = list(dl)
        assert len(batches)==1 and len(batches[0])==1 and torch.equal(plain(batches[0][0]), want) and dl.n==5
    pairs = list(zip(x, y))
    for dl in (dls.test_dl((x,y), with_labels=True),
               dls.test_dl(pairs, with_labels=True),
               dls.test_dl(L(pairs), with_labels=True),
               dls.test_dl([(Image.fromarray(a.numpy()),int(b)) for a,b in pairs], with_labels=True),
               dls.test_dl(Digits(x, y)),
               dls.test_dl(Digits(x, y), with_labels=True)):
        (xb,yb), = dl
        assert torch.equal(plain(xb), want) and torch.equal(plain(yb), y)
    assert [len(o[0]) for o in dls.test_dl(x, bs=2)]==[2,2,1]
    assert len(dls.valid_ds)==500 # the loaders are as they were

def test_test_dl_of_something_else(sample):
    dls = digit_dls(sample)
    with pytest.raises(ValueError, match='must be'): dls.test_dl(torch.zeros(3,32,32))
    with pytest.raises(TypeError, match='An image is'): dls.test_dl('digit.png')
    with pytest.raises(ValueError, match='batch size'): dls.test_dl([x8], bs=0)
    with pytest.raises(ValueError, match='3 images'): dls.test_dl((torch.zeros(3,28,28), [1,2]), with_labels=True)

@pytest.mark.parametrize('items', [[], [x8], x8, (x8,[1],2), [(x8,1),(x8,)], Digits(x8)],
                         ids=lambda o: f'{type(o).__name__} {len(o)}')
def test_test_dl_with_labels_that_are_not_there(items, sample):
    with pytest.raises(ValueError, match='labels'): digit_dls(sample).test_dl(items, with_labels=True)
