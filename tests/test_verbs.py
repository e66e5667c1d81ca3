"""Every verb of fastai's `Learner`, on loaders over the sample. What they are given and give back is checked,
not only that they run"""
import io, pickle, re
from contextlib import redirect_stdout

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

# not *: it would bring test_* functions
from fastai.basics import CrossEntropyLossFlat, Learner, TensorImage, Transform, accuracy, load_learner
import fastai.callback.schedule, fastai.callback.progress, fastai.callback.hook # `fit_one_cycle`, `lr_find`, `summary`
from fastai.interpret import ClassificationInterpretation
from mnist_fastai.data import Digits, to_images
from mnist_fastai.loaders import digit_dls
from mnist_fastai.models import Network

def plain(t): return t.as_subclass(torch.Tensor)
def titles(): return [ax.get_title() for ax in plt.gcf().axes if ax.get_images()]

def make(data, path, bs=64, **kwargs):
    torch.manual_seed(1)
    return Learner(digit_dls(data, bs=bs, device='cpu', path=path), Network((784,32,10)),
                   loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=path, **kwargs)

@pytest.fixture(scope='module')
def small(sample):
    "400 digits of the sample's training split and 100 of the others, the classes mixed: enough for verbs that train"
    order = torch.Generator().manual_seed(1)
    parts = [o.subset(torch.randperm(len(o), generator=order)[:n])
             for o,n in ((sample.train,400), (sample.valid,100), (sample.test,100))]
    return type(sample)(*parts, 'sample')

@pytest.fixture(scope='module')
def fitted(sample, tmp_path_factory):
    "One learner that has seen the sample twice, for the verbs that do not train"
    learn = make(sample, tmp_path_factory.mktemp('fitted'))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 3e-3)
    return learn

@pytest.fixture
def quiet(fitted):
    with fitted.no_bar(), fitted.no_logging(): yield fitted

# --- training

@pytest.mark.parametrize('verb', ['fit','fit_one_cycle','fit_flat_cos','fine_tune'])
def test_training(verb, small, tmp_path):
    learn = make(small, tmp_path)
    before = learn.model.layers[0].weight.detach().clone()
    with learn.no_bar(), redirect_stdout(io.StringIO()) as out: getattr(learn, verb)(2, 3e-3)
    assert len(learn.recorder.losses)>=2*7 and not torch.equal(before, learn.model.layers[0].weight)
    assert learn.recorder.values[-1][-1]>.3 # accuracy; chance is .1
    assert out.getvalue().count('\n')>=2 and '\r' not in out.getvalue()

def test_fit_with_an_uneven_batch(small, tmp_path):
    learn = make(small, tmp_path, bs=399) # the last batch has one digit
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert len(learn.recorder.losses)==2

def test_lr_find(sample, tmp_path):
    learn = make(sample, tmp_path)
    before = learn.model.layers[0].weight.detach().clone()
    with learn.no_bar(), learn.no_logging(): res = learn.lr_find()
    assert 1e-5<res.valley<1 and torch.equal(before, learn.model.layers[0].weight)
    assert plt.gca().get_xlabel() and plt.gca().get_ylabel()
    assert not list(tmp_path.rglob('*.pth'))

def test_progress_bars_are_no_obstacle(small, tmp_path):
    with redirect_stdout(io.StringIO()): make(small, tmp_path).fit(1)

# --- measuring

@pytest.mark.parametrize('ds_idx', [0,1,2])
def test_validate_and_get_preds(ds_idx, quiet):
    ds = quiet.dls[ds_idx].dataset
    loss,acc = quiet.validate(ds_idx)
    inps,probs,targs,decoded,losses = quiet.get_preds(ds_idx, with_input=True, with_decoded=True, with_loss=True)
    x,y = ds[:]
    assert torch.equal(plain(inps), plain(x)) and torch.equal(plain(targs), ds.labels) # in order, train too
    with torch.no_grad(): logits = quiet.model.eval()(plain(x))
    assert torch.allclose(plain(probs), logits.softmax(1), atol=1e-5) and torch.equal(plain(decoded), logits.argmax(1))
    assert torch.allclose(plain(losses), nn.functional.cross_entropy(logits, ds.labels, reduction='none'), atol=1e-4)
    assert abs(acc - (logits.argmax(1)==ds.labels).float().mean())<1e-5 and abs(loss - losses.mean())<1e-4
    assert acc>.7

def test_get_preds_of_a_shuffled_loader_is_in_order(quiet):
    _,targs = quiet.get_preds(dl=quiet.dls.train)
    assert torch.equal(plain(targs), quiet.dls.train_ds.labels)

def test_get_preds_without_labels(quiet):
    ds = quiet.dls.test_ds
    probs,targs = quiet.get_preds(dl=quiet.dls.test_dl(ds.images))
    assert targs is None and torch.allclose(plain(probs), plain(quiet.get_preds(2)[0]))

def test_get_preds_with_labels(quiet):
    ds = quiet.dls.test_ds
    for dl in (quiet.dls.test_dl((ds.images,ds.labels), with_labels=True),
               quiet.dls.test_dl(Digits(ds.images, ds.labels), bs=7)):
        _,targs = quiet.get_preds(dl=dl)
        assert torch.equal(plain(targs), ds.labels)
    assert quiet.validate(dl=dl)==quiet.validate(2) or np.allclose(quiet.validate(dl=dl), quiet.validate(2), atol=1e-4)

# --- one digit

def test_predict(quiet):
    ds = quiet.dls.test_ds
    want = quiet.get_preds(2, with_decoded=True)
    for i in range(3):
        x = ds.images[i]
        for item in (x, x.numpy(), Image.fromarray(x.numpy()), x/255, x.numpy()/255, x[None],
                     Image.fromarray(x.numpy()).convert('RGB')):
            label,n,probs = quiet.predict(item)
            assert (label==str(int(want[2][i])) and int(n)==int(want[2][i])
                    and torch.allclose(plain(probs), plain(want[0][i]), atol=1e-5))
    assert len(quiet.dls.valid_ds)==500

def test_predict_with_input(quiet):
    x = quiet.dls.test_ds.images[0]
    inp,label,n,probs = quiet.predict(x, with_input=True)
    assert torch.equal(to_images(plain(inp))[0], x) # decoded: what a person can look at

@pytest.mark.parametrize('item,error', [
    (torch.zeros(32,32), ValueError),
    ('digit.png', TypeError),
    (torch.full((28,28), 2.), ValueError)], ids=['size','path','range'])
def test_predict_of_something_else(item, error, quiet):
    with pytest.raises(error) as e: quiet.predict(item)
    assert '\n' not in str(e.value)

# --- showing

def shown():
    return np.stack([np.asarray(o.get_images()[0].get_array()).squeeze() for o in plt.gcf().axes if o.get_images()])

@pytest.mark.parametrize('name', ['train','valid','test'])
def test_show_batch(name, quiet):
    dl = getattr(quiet.dls, name)
    dl.show_batch(max_n=9)
    assert len(titles())==9 and all(re.fullmatch('[0-9]', o) for o in titles())
    if name!='train':
        assert titles()==[str(int(o)) for o in dl.dataset.labels[:9]]
        assert np.allclose(shown()*255, dl.dataset.images[:9], atol=1e-3)

def test_show_batch_of_a_given_one(quiet):
    b = quiet.dls.valid.one_batch()
    quiet.dls.show_batch(b, max_n=4)
    assert titles()==[str(int(o)) for o in b[1][:4]]

def test_show_batch_unique(quiet):
    dl = quiet.dls.train
    dl.show_batch(max_n=9, unique=True)
    x = shown()
    assert len(x)==9 and (x==x[0]).all() and x[0].any() and len(set(titles()))==1 # one digit, nine times
    seen = torch.cat([plain(yb) for _,yb in dl])
    assert torch.equal(seen.bincount(), dl.dataset.labels.bincount()) # the loader is whole again
    dl.show_batch(max_n=9)
    assert not (shown()==shown()[0]).all()

def test_show_batch_without_labels(quiet):
    ds = quiet.dls.test_ds
    quiet.dls.test_dl(ds.images[:4]).show_batch()
    assert len(shown())==4 and np.allclose(shown()*255, ds.images[:4], atol=1e-3)

@pytest.mark.parametrize('ds_idx', [0,1,2])
def test_show_results(ds_idx, quiet):
    quiet.show_results(ds_idx, max_n=6, shuffle=False)
    # the label, and below it the prediction
    assert len(titles())==6 and all(re.fullmatch('[0-9]\n[0-9]', o) for o in titles())
    if ds_idx:
        ds,pred = quiet.dls[ds_idx].dataset,quiet.get_preds(ds_idx, with_decoded=True)[2]
        assert titles()==[f'{int(y)}\n{int(p)}' for y,p in zip(ds.labels[:6], pred)]

# --- interpretation

@pytest.mark.parametrize('ds_idx', [0,1,2])
def test_confusion_matrix(ds_idx, quiet):
    interp = ClassificationInterpretation.from_learner(quiet, ds_idx)
    ds,cm = quiet.dls[ds_idx].dataset,interp.confusion_matrix()
    assert cm.shape==(10,10) and cm.sum()==len(ds) and cm.sum(1).tolist()==ds.labels.bincount(minlength=10).tolist()
    assert abs(np.trace(cm)/len(ds)-quiet.validate(ds_idx)[1])<1e-5

def test_interpretation(quiet):
    interp = ClassificationInterpretation.from_learner(quiet)
    interp.plot_confusion_matrix()
    assert ([o.get_text() for o in plt.gca().get_xticklabels()]==list('0123456789')
            and plt.gca().get_xlabel()=='Predicted')
    interp.plot_confusion_matrix(normalize=True)
    cm = interp.confusion_matrix()
    a,b,n = interp.most_confused()[0]
    assert a!=b and cm[int(a),int(b)]==n==(cm-np.diag(np.diag(cm))).max()
    with redirect_stdout(io.StringIO()) as out: interp.print_classification_report()
    assert re.search(r'^ +9 .*\b50$', out.getvalue(), re.M)

def test_top_losses(quiet):
    interp,ds = ClassificationInterpretation.from_learner(quiet),quiet.dls.valid_ds
    losses,idx = interp.top_losses(5)
    all_losses = quiet.get_preds(1, with_loss=True)[2]
    assert torch.allclose(plain(losses), plain(all_losses).topk(5).values, atol=1e-5)
    _,_,items = interp.top_losses(5, items=True)
    assert (isinstance(items, Digits) and torch.equal(items.images, ds.images[idx])
            and torch.equal(items.labels, ds.labels[idx]))
    interp.plot_top_losses(4)
    pred = quiet.get_preds(1, with_decoded=True)[2]
    assert np.allclose(shown()*255, ds.images[idx[:4]], atol=1e-3)
    assert [o[:3] for o in titles()]==[f'{int(pred[i])}/{int(ds.labels[i])}' for i in idx[:4]]
    plt.close('all')
    interp.plot_top_losses(4, largest=False)
    assert len(shown())==4
    plt.close('all')
    interp.plot_top_losses([1,2])
    assert np.allclose(shown()*255, ds.images[idx[1:3]], atol=1e-3)

def test_interpretation_shows_results(quiet):
    interp,ds = ClassificationInterpretation.from_learner(quiet),quiet.dls.valid_ds
    interp.show_results([3,5,8])
    assert ([o[0] for o in titles()]==[str(int(ds.labels[i])) for i in (3,5,8)]
            and np.allclose(shown()*255, ds.images[[3,5,8]], atol=1e-3))

def test_interpretation_of_digits_of_ones_own(quiet):
    ds = quiet.dls.test_ds.subset(slice(60))
    interp = ClassificationInterpretation.from_learner(quiet, dl=quiet.dls.test_dl(ds))
    assert interp.confusion_matrix().sum()==60
    interp.plot_top_losses(2)
    assert len(shown())==2

# --- the rest

@pytest.mark.parametrize('ds_idx', [0,1,2])
def test_tta(ds_idx, quiet):
    ds = quiet.dls[ds_idx].dataset
    probs,targs = quiet.tta(ds_idx, n=2)
    assert torch.equal(plain(targs), ds.labels) and ds.split_idx==(1 if ds_idx else 0)
    # there is nothing to augment, so it is the same
    assert torch.allclose(plain(probs), plain(quiet.get_preds(ds_idx)[0]), atol=1e-5)

def test_tta_with_a_transform(quiet):
    seen = []
    class Shift(Transform):
        split_idx = 0 # in training and for the augmented predictions alone
        def encodes(self, x:TensorImage): seen.append(len(x)); return x.roll(2, -1)
    probs,targs = quiet.tta(n=1, batch_tfms=[Shift()])
    assert seen and torch.equal(plain(targs), quiet.dls.valid_ds.labels)
    assert not torch.allclose(plain(probs), plain(quiet.get_preds()[0]), atol=1e-3)

def test_summary(quiet):
    s = str(quiet.summary())
    assert '25120' in s and '330' in s and 'Total params: 25,450' in s

def test_save_and_load(small, tmp_path):
    learn = make(small, tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    learn.save('here')
    before = learn.model.layers[0].weight.detach().clone()
    with torch.no_grad(): learn.model.layers[0].weight.zero_()
    learn.load('here')
    assert torch.equal(before, learn.model.layers[0].weight) and (tmp_path/'models'/'here.pth').is_file()

def test_export_and_load_learner(quiet, sample):
    quiet.export('net.pkl')
    path = quiet.path/'net.pkl'
    n_weights = sum(o.numel() for o in quiet.model.parameters())
    size = path.stat().st_size
    # weights and two moments of each; 4,000 images are 3 MB
    assert size < 3*4*n_weights + 100_000 < sample.train.images.nbytes
    again = load_learner(path)
    assert [len(o.dataset) for o in again.dls.loaders]==[0,0,0]
    ds = sample.test
    with again.no_bar(), again.no_logging():
        for i in range(3): assert again.predict(ds.images[i])[0]==quiet.predict(ds.images[i])[0]
        probs,_ = again.get_preds(dl=again.dls.test_dl(ds.images))
        assert torch.equal(plain(probs), plain(quiet.get_preds(dl=quiet.dls.test_dl(ds.images))[0]))
    assert len(quiet.dls.train_ds)==4000 # the learner that was exported is as it was
    path.unlink()

def test_export_of_a_learner_on_all_of_mnist(full, tmp_path):
    "48 MB of images would be in the file if the empty split held on to them"
    learn = make(full, tmp_path)
    learn.export('net.pkl')
    assert (tmp_path/'net.pkl').stat().st_size<1_000_000

def test_loaders_can_be_pickled(small):
    dls = pickle.loads(pickle.dumps(digit_dls(small)))
    assert torch.equal(dls.train_ds.images, small.train.images) and dls.one_batch()[0].shape==(256,1,28,28)

def test_nothing_is_left_behind(tmp_path, small, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = make(small, tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1); learn.get_preds(); learn.predict(small.test.images[0])
    assert list(tmp_path.iterdir())==[]
