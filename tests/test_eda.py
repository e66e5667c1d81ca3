"Exploration: counts, grids, distances, projection and the baseline, on the packaged sample"
import numpy as np, pytest, torch
import matplotlib.pyplot as plt
from hypothesis import given, settings, strategies as st
from PIL import Image
from mnist_fastai.data import Digits
from mnist_fastai.eda import *

def random_images(n, seed=0):
    return torch.randint(0, 256, (n,28,28), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))

# --- counting

def test_class_counts(sample):
    df = class_counts(sample)
    assert list(df.columns)==['train','valid','test'] and df.index.tolist()==list(range(10)) and df.index.name=='digit'
    assert (df.train==400).all() and (df.valid==50).all() and (df.test==50).all()

def test_class_counts_keeps_a_row_for_a_missing_digit(sample):
    from mnist_fastai.data import Mnist
    few = sample.train.subset(sample.train.labels<3)
    assert class_counts(Mnist(few, few, few, 'sample')).train.tolist()==[400]*3 + [0]*7

def test_by_class(sample):
    groups = by_class(sample.valid)
    assert [len(o) for o in groups]==[50]*10
    for i,o in enumerate(groups): assert torch.equal(o, sample.valid.images[sample.valid.labels==i])

def test_by_class_refuses_what_has_no_labels_or_not_all(sample):
    with pytest.raises(ValueError, match='no labels'): by_class(Digits(random_images(3)))
    with pytest.raises(ValueError, match='labelled 0 or 9:'):
        by_class(sample.train.subset((sample.train.labels>0) & (sample.train.labels<9)))

@pytest.mark.parametrize('f', [
    mean_images, std_images, distance_to_mean, plot_ink, class_grid,
    lambda ds: NearestMean().fit(ds),
])
def test_what_needs_all_ten_says_so(f, sample):
    with pytest.raises(ValueError, match='labelled 4:'): f(sample.valid.subset(sample.valid.labels!=4))

def test_pixel_counts(sample):
    x = sample.valid.images
    counts = pixel_counts(x)
    assert counts.shape==(256,) and counts.sum()==x.numel()
    assert counts.tolist()==np.bincount(x.numpy().ravel(), minlength=256).tolist()

# --- images as points

def test_to_points_takes_what_to_images_takes():
    x = random_images(3)
    p = to_points(x)
    assert p.shape==(3,784) and p.dtype==torch.float32
    torch.testing.assert_close(p, x.flatten(1)/255)
    for o in (x.numpy(), x[:,None], [Image.fromarray(i.numpy()) for i in x], x/255):
        torch.testing.assert_close(to_points(o), p)
    with pytest.raises(ValueError, match=r'\(n, 28, 28\)'): to_points(torch.zeros(3,32,32, dtype=torch.uint8))

def test_to_points_leaves_its_input_alone():
    x = random_images(2)
    before = x.clone()
    to_points(x).add_(1)
    assert torch.equal(x, before)

def test_ink():
    x = torch.zeros(3,28,28, dtype=torch.uint8)
    x[1],x[2,:14] = 255,255
    assert ink(x).tolist()==[0,1,.5]

# --- classes

def test_mean_and_std_are_numpys(sample):
    x,y = sample.valid.images.numpy()/255,sample.valid.labels.numpy()
    np.testing.assert_allclose(mean_images(sample.valid), np.stack([x[y==i].mean(0) for i in range(10)]), atol=1e-5)
    np.testing.assert_allclose(std_images(sample.valid), np.stack([x[y==i].std(0) for i in range(10)]), atol=1e-5)

def test_one_image_a_class_has_no_spread():
    ds = Digits(random_images(10), torch.arange(10))
    assert std_images(ds).abs().max()==0
    assert distance_to_mean(ds).max()<1e-4

def test_distance_to_mean(sample):
    ds = sample.valid
    d = distance_to_mean(ds)
    expected = (to_points(ds.images) - mean_images(ds).flatten(1)[ds.labels]).pow(2).sum(1).sqrt()
    assert d.shape==(500,)
    torch.testing.assert_close(d, expected, atol=1e-4, rtol=1e-4)

# --- neighbours

@settings(max_examples=20, deadline=None)
@given(n=st.integers(1,7), m=st.integers(1,9), bs=st.integers(1,8), seed=st.integers(0,99))
def test_nearest_is_the_same_in_pieces(n, m, bs, seed):
    a,b = random_images(n, seed),random_images(m, seed+100)
    d,i = nearest(a, b, bs=bs)
    whole = (to_points(a)[:,None] - to_points(b)[None]).norm(dim=2)
    assert d.shape==i.shape==(n,)
    assert torch.equal(i, whole.argmin(1))
    torch.testing.assert_close(d, whole.min(1).values, atol=1e-3, rtol=1e-4)

def test_nearest_agrees_with_sklearn(sample):
    from sklearn.neighbors import NearestNeighbors
    d,i = nearest(sample.valid.images, sample.train.images)
    d2,i2 = (NearestNeighbors(n_neighbors=1).fit(to_points(sample.train.images).numpy())
             .kneighbors(to_points(sample.valid.images).numpy()))
    np.testing.assert_allclose(d, d2[:,0], atol=1e-3)
    assert (i.numpy()==i2[:,0]).mean()>.99

def test_nearest_of_nothing():
    x = random_images(2)
    for a,b in ((x[:0], x), (x, x[:0])):
        with pytest.raises(ValueError, match='is empty'): nearest(a, b)

@settings(max_examples=20, deadline=None)
@given(n=st.integers(1,700))
def test_thin(sample, n):
    o = thin(sample.valid, n)
    assert len(o)==min(n, 500)
    places = [sample.valid.idxs.tolist().index(i) for i in o.idxs.tolist()]
    assert places==sorted(set(places)) # each once, in order
    if n>=50: assert o.labels.unique().numel()==10

# --- pictures

@pytest.mark.parametrize('n,ncols,rows', [(1,10,1), (7,10,1), (10,5,2), (11,5,3)])
def test_show_digits_shows_every_image(n, ncols, rows):
    x = random_images(n)
    axs = show_digits(x, range(n), ncols=ncols)
    assert len(axs)==n and [ax.get_title() for ax in axs]==[str(i) for i in range(n)]
    for ax,im in zip(axs, x): np.testing.assert_array_equal(ax.images[0].get_array(), im)
    fig = axs[0].figure
    assert axs[0].get_gridspec().nrows==rows
    assert not any(ax.axison for ax in fig.axes) # those left over are empty, frames and all

def test_show_digits_keeps_one_scale():
    for x,top in ((random_images(1), 255),
                  (random_images(1)//9, 255),
                  (random_images(1)/2550, 1),
                  (torch.zeros(784), 1)):
        im = show_digits(x)[0].images[0]
        assert im.get_clim()==(0,top) and im.get_cmap().name=='gray_r'
    assert show_digits(torch.zeros(784), vmin=-1, cmap='PuOr')[0].images[0].get_clim()==(-1,1)

def test_show_digits_takes_tensors_and_names_what_it_cannot_show():
    x = random_images(2)
    for o in (x, x[:,None], x.flatten(1), x.numpy(), x.float().requires_grad_()):
        assert len(show_digits(o, torch.tensor([3,4])))==2
    with pytest.raises(ValueError, match='2 images and 1 titles'): show_digits(x, ['a'])
    with pytest.raises(ValueError, match=r'not \(2, 32, 32\)'): show_digits(torch.zeros(2,32,32))
    with pytest.raises(ValueError, match='not 0'): show_digits(x[:0])
    with pytest.raises(ValueError, match='not 401'): show_digits(torch.zeros(401,784))

def test_class_grid(sample):
    axs = class_grid(sample.valid, 3)
    assert [ax.get_title() for ax in axs]==[str(i) for i in range(10) for _ in range(3)]
    assert len(class_grid(sample.valid.subset(slice(100)), 10))%10==0

@pytest.mark.parametrize('plot', [lambda d, ax: plot_ink(d, ax), lambda d, ax: plot_pixel_histogram(d.images, ax),
                                  lambda d, ax: plot_points(to_points(d.images)[:,300:302], d.labels, ax)])
def test_plots_label_themselves_and_return_their_axes(sample, plot):
    mine = plt.subplots()[1]
    assert plot(sample.valid, mine) is mine
    new = plot(sample.valid, None)
    assert new is not mine
    for ax in (mine, new): assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title()

def test_plot_ink_has_a_box_for_each_digit(sample):
    ax = plot_ink(sample.valid)
    assert [o.get_text() for o in ax.get_xticklabels()]==[str(i) for i in range(10)]

def test_plot_points_draws_every_point(sample):
    points = pca_points(sample.valid.images)[0]
    ax = plot_points(points, sample.valid.labels)
    assert sum(len(o.get_offsets()) for o in ax.collections)==500
    assert len({tuple(o.get_facecolor()[0]) for o in ax.collections})==10

# --- projection and baseline

def test_pca_points_are_those_of_the_svd(sample):
    points,share = pca_points(sample.valid.images, 3)
    C = to_points(sample.valid.images)
    C = C - C.mean(0)
    U,S,Vt = torch.linalg.svd(C, full_matrices=False)
    assert points.shape==(500,3)
    torch.testing.assert_close(points.abs(), (C @ Vt[:3].T).abs(), atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(share.float(), (S**2/(S**2).sum())[:3], atol=1e-4, rtol=1e-3)

def test_nearest_mean(sample):
    base = NearestMean().fit(sample.train)
    preds = base.predict(sample.valid.images)
    by_hand = (to_points(sample.valid.images)[:,None] - base.means.flatten(1)).norm(dim=2).argmin(1)
    assert preds.dtype==torch.int64 and torch.equal(preds, by_hand)
    assert (preds==sample.valid.labels).float().mean()>.7
    assert base.predict(base.means).tolist()==list(range(10)) # each mean is nearest to itself

def test_nearest_mean_takes_one_image_or_none(sample):
    base = NearestMean().fit(sample.train)
    x = sample.valid.images
    assert base.predict(x[0]).shape==(1,) and base.predict(x[:0]).shape==(0,)
    assert base.predict(Image.fromarray(x[0].numpy())).tolist()==base.predict(x[0]).tolist()

def test_nearest_mean_before_fit():
    with pytest.raises(RuntimeError, match='call `fit`'): NearestMean().predict(random_images(1))
