"Synthetic pictures: the same for the same seed, and of the kinds they are named after"
import numpy as np
import pytest

from mnist_fastai.inference import Predictor
from mnist_fastai.synthetic import capture_kinds, draw_digit, ood_images, ood_kinds, simulate

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
