"Confidence and what breaks it: each measure on a case with a known answer"
import math

import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F

from mnist_fastai.data import Digits
from mnist_fastai.eda import NearestMean
from mnist_fastai.confidence import *
from mnist_fastai.interpret import logits_of
from mnist_fastai.models import Network
from conftest import linear

@pytest.fixture(scope='module')
def few(sample): return sample.valid.subset(slice(50))

def onehot(label, p=.9):
    "Logits that give `label` the probability `p`"
    res = torch.full((len(label),10), math.log((1-p)/9))
    res[range(len(label)),label] = math.log(p)
    return res

# --- calibration

def probs_of(rows):
    "Probabilities (n, 10) in which `rows` gives what is said and how surely"
    return torch.stack([onehot([d], p).double().softmax(1)[0] for d,p in rows])

def test_reliability():
    table = reliability(probs_of([(0,.95),(0,.93),(1,.55),(2,.51)]), torch.tensor([0,1,1,2]))
    assert len(table)==10 and table.n.tolist()==[0]*5 + [2] + [0]*3 + [2]
    np.testing.assert_allclose(table.loc[1.], [2,.94,.5], rtol=1e-5)
    np.testing.assert_allclose(table.loc[.6], [2,.53,1], rtol=1e-5)
    assert table.confidence.isna().sum()==table.accuracy.isna().sum()==8
    assert calibration_error(table)==pytest.approx((.44+.47)/2, rel=1e-5)

def test_every_digit_is_in_one_bin():
    rows = torch.zeros(3,10, dtype=torch.double)
    rows[:,0] = torch.tensor([.5,1.,1+1e-12], dtype=torch.double) # an upper end, the last end, and rounding beyond it
    table = reliability(rows, torch.tensor([0,0,0]))
    assert table.n.tolist()==[0,0,0,0,1,0,0,0,0,2]

@pytest.mark.parametrize('bins', [5,10,15])
def test_reliability_is_sklearns(sample, bins):
    from sklearn.calibration import calibration_curve
    p = torch.randn(500,10, generator=torch.Generator().manual_seed(0)).double().mul(2).softmax(1)
    table = reliability(p, sample.valid.labels, bins)
    frac,mean = calibration_curve(p.argmax(1)==sample.valid.labels, p.max(1).values, n_bins=bins)
    np.testing.assert_allclose(table.accuracy.dropna(), frac)
    np.testing.assert_allclose(table.confidence.dropna(), mean)
    assert table.n.sum()==500

def test_calibration_error_weights_bins_by_digits():
    table = pd.DataFrame(dict(n=[90,10,0], confidence=[.99,.71,math.nan], accuracy=[.98,.60,math.nan]))
    assert calibration_error(table)==pytest.approx(.02)

def test_calibration_error_is_zero_where_confidence_is_right():
    table = reliability(probs_of([(0,.75)]*4), torch.tensor([0,0,0,1]))
    assert calibration_error(table)==pytest.approx(0, abs=1e-6)

def exact_interval(k, n):
    "Ends of the 95 % interval (Clopper and Pearson) for k of n, as quantiles of beta distributions"
    from scipy.stats import beta
    return beta.ppf(.025, k, n-k+1),beta.ppf(.975, k+1, n-k)

def test_plot_reliability():
    table = reliability(probs_of([(0,.9)]*100), torch.tensor([0]*80 + [1]*20))
    ax = plot_reliability(dict(net=table))
    line = ax.lines[1]
    np.testing.assert_allclose([line.get_xdata()[0],line.get_ydata()[0]], [.9,.8], rtol=1e-5)
    low,high = ax.collections[0].get_segments()[0][:,1]
    assert (low,high)==pytest.approx(exact_interval(80, 100), abs=1e-6)
    assert ('accuracy' in ax.get_ylabel() and 'confidence' in ax.get_xlabel()
            and [o.get_text() for o in ax.get_legend().get_texts()]==['calibrated','net'])

@pytest.mark.parametrize('k', [.5,1.,3.])
def test_temperature_of_a_known_case(k):
    logits = torch.full((10,10), -1e4)
    logits[:,0],logits[:,1] = k*math.log(4),0. # honest would be ln 4
    assert fit_temperature(logits, torch.tensor([0]*8 + [1]*2))==pytest.approx(k, rel=1e-3)

def test_temperature_is_a_minimum(sample):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(500,10, generator=g)*3 + 4*F.one_hot(sample.valid.labels, 10)
    t = fit_temperature(logits, sample.valid.labels)
    def loss(t): return F.cross_entropy(logits.double()/t, sample.valid.labels).item()
    assert loss(t)<=min(loss(1), loss(t*1.01), loss(t/1.01))

# --- abstaining

def test_coverage():
    table = risk_coverage(torch.tensor([.2,.9,.5,.7]), torch.tensor([False,True,False,True]))
    assert table.index.tolist()==[.25,.5,.75,1.] and table.index.name=='coverage'
    np.testing.assert_allclose(table.risk, [0,0,1/3,.5])
    np.testing.assert_allclose(table.lowest, [.9,.7,.5,.2], rtol=1e-6)

def test_digits_with_equal_confidence_are_taken_together():
    sure,right = torch.tensor([1.,1.,1.,.5,.5]),torch.tensor([True,False,True,True,False])
    for i in (torch.arange(5), torch.tensor([1,4,0,3,2])): # whatever their order
        table = risk_coverage(sure[i], right[i])
        assert table.index.tolist()==[.6,1.] and table.risk.tolist()==pytest.approx([1/3,.4])
    assert risk_coverage(torch.ones(3), right[:3]).index.tolist()==[1.]

def test_plot_coverage():
    ax = plot_risk_coverage(dict(a=risk_coverage(torch.tensor([.9,.5]), torch.tensor([True,False]))))
    assert ax.lines[0].get_xydata().tolist()==[[50,0],[100,50]]
    assert 'coverage' in ax.get_xlabel() and 'risk' in ax.get_ylabel() and ax.get_legend()

# --- distortions

nothing = {k: 1 if k=='scale' else 0 for k in distortions}

@pytest.mark.parametrize('kind', distortions)
def test_the_neutral_amount_changes_no_pixel(sample, kind):
    ds = distort(sample.valid, kind, nothing[kind])
    assert torch.equal(ds.images, sample.valid.images) and torch.equal(ds.labels, sample.valid.labels)
    assert torch.equal(ds.idxs, sample.valid.idxs) and (ds.split,ds.source)==('valid','sample')
    amounts = list(distortions[kind].amounts)
    assert nothing[kind] in amounts and amounts==sorted(amounts)
    for a in amounts: # each within its limits, and each a change except the neutral one
        assert torch.equal(distort(sample.valid, kind, a).images, ds.images)==(a==nothing[kind])

def test_the_original_is_left_alone(few):
    before = few.images.clone()
    for k,v in distortions.items(): distort(few, k, v.amounts[-1])
    assert torch.equal(few.images, before)

@pytest.mark.parametrize('a,k', [(90,1),(180,2),(-90,-1),(360,0)])
def test_quarter_turns(few, a, k): assert torch.equal(distort(few, 'rotation', a).images, few.images.rot90(k, (1,2)))

@pytest.mark.parametrize('a', [1,5,-3])
def test_whole_shifts(few, a):
    x = distort(few, 'shift', a).images
    want = few.images.roll(a, 2)
    if a>0: want[:,:,:a] = 0
    else: want[:,:,a:] = 0
    assert torch.equal(x, want)

def test_half_a_shift_is_a_mean(few):
    x = few.images.float()
    want = (x[:,:,1:]+x[:,:,:-1])/2
    assert (distort(few, 'shift', .5).images[:,:,1:].float()-want).abs().max()<=.51

def square(a, b):
    x = torch.zeros(1,28,28, dtype=torch.uint8)
    x[:,a:b,a:b] = 255
    return Digits(x, torch.tensor([0]))

def test_scale():
    assert torch.equal(distort(square(10,18), 'scale', 2).images>127, square(6,22).images>127)
    assert torch.equal(distort(square(6,22), 'scale', .5).images>127, square(10,18).images>127)

def test_blur_is_scipys():
    from scipy.ndimage import gaussian_filter
    dot = square(14,15)
    want = gaussian_filter(dot.images[0].numpy().astype(float), 2, truncate=3)
    assert np.abs(distort(dot, 'blur', 2).images[0].numpy()-want).max()<=.51

def test_noise(few):
    grey = Digits(torch.full((200,28,28), 127, dtype=torch.uint8))
    x = distort(grey, 'noise', .1).images.float()/255
    assert x.std().item()==pytest.approx(.1, rel=.02) and x.mean().item()==pytest.approx(127/255, abs=.002)
    assert torch.equal(distort(few, 'noise', .3).images, distort(few, 'noise', .3).images)
    assert not torch.equal(distort(few, 'noise', .3).images, distort(few, 'noise', .3, seed=1).images)
    assert not torch.equal(*distort(Digits(few.images[[0,0]]), 'noise', .3).images) # each digit has its own

def test_thickness():
    for a in (1,2): assert torch.equal(distort(square(10,18), 'thickness', a).images, square(10-a,18+a).images)
    assert torch.equal(distort(square(10,18), 'thickness', -1).images, square(11,17).images)
    half = distort(square(10,18), 'thickness', 1.5).images[0]
    assert half[9,9]==255 and half[8,8] in (127,128) and half[7,7]==0
    # nothing is taken off at the edge
    assert torch.equal(distort(square(0,28), 'thickness', -1).images, square(0,28).images)

def test_inversion(few):
    assert torch.equal(distort(few, 'inversion', 1).images, 255-few.images)
    assert set(distort(few, 'inversion', .5).images.unique().tolist())<={127,128}

def test_many_digits_are_distorted_like_a_few(sample):
    many = sample.train.subset(slice(2100)) # more than one part
    for k in set(distortions)-{'noise'}:
        a = distortions[k].amounts[-2]
        assert torch.equal(distort(many, k, a).images[2040:], distort(many.subset(slice(2040,None)), k, a).images), k
    x = distort(Digits(many.images[:1].expand(2100,28,28)), 'noise', .3).images
    assert not torch.equal(x[2048:], x[:52]) # the second part has noise of its own

def test_unknown_kinds_and_amounts_outside_the_limits_are_errors(few):
    with pytest.raises(ValueError, match="There is no distortion 'fold': use one of rotation"): distort(few, 'fold', 1)
    for kind,a in (('inversion',1.1), ('scale',0), ('blur',-1), ('noise',float('nan'))):
        with pytest.raises(ValueError, match=f'The amount of {kind} .* must be from'): distort(few, kind, a)

class Fixed(torch.nn.Module):
    "Predicts `digit` for every picture, with probability `p`"
    def __init__(self, digit, p):
        super().__init__()
        self.logits,self.train_sources = torch.nn.Parameter(onehot([digit], p)),()
    def forward(self, x): return self.logits.expand(len(x), 10)

def test_robustness(sample):
    ds,net = sample.valid,linear()
    table = robustness(dict(linear=[net], fixed=[Fixed(3, .9),Fixed(4, .5)]), ds, 'inversion', [0,1])
    assert list(table.columns)==['kind','amount','network','accuracy','confidence']
    assert table.network.tolist()==['linear','fixed','fixed']*2 and table.amount.tolist()==[0]*3 + [1]*3
    share = [(ds.labels==d).double().mean().item() for d in (3,4)]
    fixed = table[table.network=='fixed']
    assert fixed.accuracy.tolist()==share*2 and fixed.confidence.tolist()==pytest.approx([.9,.5]*2)
    for row,images in zip(table[table.network=='linear'].itertuples(), (ds.images,255-ds.images)):
        p,predicted = logits_of(net, ds.replace(images=images)).double().softmax(1).max(1)
        assert row.accuracy==(predicted==ds.labels).double().mean().item()
        assert row.confidence==pytest.approx(p.mean().item())

def test_plot_robustness(sample):
    table = robustness(dict(fixed=[Fixed(3, .9),Fixed(3, .5)]), sample.valid, 'blur', [0,2])
    ax = plot_robustness(table)
    accuracy,confidence = ax.lines
    np.testing.assert_allclose(accuracy.get_xydata(), [[0,100*table.accuracy[0]],[2,100*table.accuracy[0]]])
    np.testing.assert_allclose(confidence.get_xydata(), [[0,70],[2,70]], rtol=1e-5)
    band = ax.collections[1].get_paths()[0].vertices[:,1] # of confidence: from the lowest to the highest network
    assert (band.min(),band.max())==pytest.approx((50,90), rel=1e-5)
    assert 'blur' in ax.get_xlabel() and ax.get_ylabel() and len(ax.get_legend().get_texts())==2

def test_robustness_takes_the_amounts_of_the_distortion(sample):
    table = robustness(dict(net=[linear()]), sample.valid, 'thickness')
    assert table.amount.tolist()==list(distortions['thickness'].amounts)
    for amounts in ([1],None):
        with pytest.raises(ValueError, match='There is no distortion'):
            robustness(dict(net=[linear()]), sample.valid, 'fold', amounts)

# --- on MNIST

def test_accuracy_falls_with_the_angle(full):
    "The nearest-mean classifier reads fewer digits the further they are rotated"
    nm,ds = NearestMean().fit(full.train),full.valid.subset(slice(2000))
    acc = {a: (nm.predict(distort(ds, 'rotation', a).images)==ds.labels).double().mean().item()
           for a in (-60,-30,0,30,60)}
    assert acc[60]<acc[30]<acc[0] and acc[-60]<acc[-30]<acc[0] and acc[0]>.75
