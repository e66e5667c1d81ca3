"Synthetic pictures: the same for the same seed, and of the kinds they are named after"
import numpy as np
import pytest

from mnist_fastai.data import Digits
from mnist_fastai.inference import Predictor
from mnist_fastai.interpret import logits_of
from mnist_fastai.synthetic import *

@pytest.fixture(scope='module')
def reader(): return Predictor()

def test_simulated_pictures_repeat_themselves(sample):
    ds = sample.valid.subset(slice(0,6))
    for k in capture_kinds:
        a,b,c = simulate(ds, k),simulate(ds, k),simulate(ds, k, seed=1)
        assert len(a)==6 and all(o.dtype==np.uint8 and o.ndim==2 for o in a) and all((x==y).all() for x,y in zip(a,b))
        if k in ('shifted','slanted','photographed','thick'): assert not all((x==y).all() for x,y in zip(a,c))
    with pytest.raises(ValueError, match='no kind'): simulate(ds, 'folded')

def test_ood_images_repeat_themselves(sample):
    for k in ood_kinds:
        ims = ood_images(k, 3, sample.valid)
        assert len(ims)==3 and all(o.dtype==np.uint8 for o in ims)
        assert all((a==b).all() for a,b in zip(ims, ood_images(k, 3, sample.valid)))
    with pytest.raises(ValueError, match='no kind'): ood_images('shoes', 3)

def test_drawn_digits_can_be_read(reader):
    rng = np.random.default_rng(0)
    right = [reader(draw_digit(d, rng)).label==d for d in (2,3,4,5,6,7,8,9) for _ in range(10)]
    assert np.mean(right)>.9 and np.asarray(draw_digit(1, rng)).shape==(200,160)

def test_your_own_writing_is_that_of_the_first_styles():
    for digit,styles in digit_styles.items():
        rngs = [np.random.default_rng(digit) for _ in range(2)]
        for _ in range(3):
            a,b = draw_digit(digit, rngs[0]),draw_digit(digit, rngs[1], next(iter(styles)))
            assert a.tobytes()==b.tobytes()
    assert [next(iter(o)) for o in digit_styles.values()][:2]==['slashed','upstroke'] # what lessons 16 to 18 show
    rng = np.random.default_rng(7)
    levels = [np.asarray(draw_digit(d, rng)).mean() for d in range(10)] # of the pictures before there were styles
    assert np.allclose(levels, [233.4,244.45,244.62,245.84,243.32,245.32,243.81,243.38,241.78,243.22], atol=.05)

def test_styles_differ_and_have_names():
    assert list(digit_styles)==list(range(10)) and all(len(o)>=4 for o in digit_styles.values())
    for digit,styles in digit_styles.items():
        pictures = [draw_digit(digit, np.random.default_rng(0), o).tobytes() for o in styles]
        assert len(set(pictures))==len(styles)
    with pytest.raises(ValueError, match="no style of 7 'printed': use one of crossed"):
        draw_digit(7, np.random.default_rng(0), 'printed')

def test_drawn_digits_have_the_form_of_mnist():
    images,labels = drawn_digits(300, seed=3)
    assert images.shape==(300,28,28) and images.dtype==np.uint8 and (np.bincount(labels)==30).all()
    for x in images:
        rows,cols = np.flatnonzero(x.any(1)),np.flatnonzero(x.any(0))
        assert 17<=max(np.ptp(rows), np.ptp(cols))+1<=20
        mass = x/x.sum()
        assert abs((mass.sum(1)*np.arange(28)).sum()-14)<.51 and abs((mass.sum(0)*np.arange(28)).sum()-14)<.51

def test_drawn_digits_repeat_themselves_and_show_their_label(reader):
    (a,la),(b,lb),(c,_) = drawn_digits(200),drawn_digits(200),drawn_digits(200, seed=1)
    assert (a==b).all() and (la==lb).all() and not (a==c).all()
    assert len(drawn_digits(0)[0])==0
    predicted = logits_of(reader.net, Digits(a)).argmax(1).numpy()
    assert (predicted==la).mean()>.85
