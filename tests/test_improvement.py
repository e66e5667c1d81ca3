"The recipes of the course, and the table that compares runs."
import csv
from dataclasses import replace
from pathlib import Path

import pandas as pd, pytest

from mnist_fastai.data import Mnist
from mnist_fastai.improvement import *
from mnist_fastai.models import count_parameters
from mnist_fastai.training import Recipe, evaluate, train

root = Path(__file__).parents[1]
NAMES = ['Network','ImprovedNetwork']
two = {o: recipes[o] for o in NAMES}

def test_a_recipe_for_each_network_on_one_budget():
    assert all(recipes[o].arch==o for o in NAMES)
    assert len({recipes[o].epochs for o in NAMES})==1 and len({recipes[o].bs for o in NAMES})==1

def test_the_recipes_are_the_best_of_the_search():
    with (root/'benchmarks'/'recipes.csv').open() as f: runs = pd.DataFrame(list(csv.DictReader(f)))
    runs['valid_accuracy'] = runs.valid_accuracy.astype(float)
    keys = 'p bs lr wd sqr_mom epochs'.split()
    for name,r in two.items():
        means = runs[runs.network==name].groupby(keys).valid_accuracy.agg(['mean','count'])
        assert (means['count']>=3).all()
        best = dict(zip(keys, means['mean'].idxmax()))
        assert best=={k: str(r.kwargs.get('p', '') if k=='p' else getattr(r, k)) for k in keys}

@pytest.fixture(scope='module')
def learns(sample):
    return {k: train(replace(r, epochs=1), sample, seed=1, device='cpu', quiet=True) for k,r in two.items()}

def test_compare(learns):
    table = summarize(learns, ('valid','test'))
    assert list(table.index)==NAMES
    assert list(table.columns)=='parameters epochs seconds valid_loss valid_accuracy test_loss test_accuracy'.split()
    for k,learn in learns.items():
        assert table.parameters[k]==count_parameters(learn.model) and table.epochs[k]==1 and table.seconds[k]>0
        assert (table.test_accuracy[k]==evaluate(learn, 'test')['accuracy']
                and table.valid_loss[k]==evaluate(learn)['loss'])

def test_compare_looks_at_validation_alone_unless_told_otherwise(learns):
    assert not [o for o in summarize(learns).columns if 'test' in o]

def test_compare_refuses_an_unknown_split(learns):
    with pytest.raises(ValueError, match='There is no split'): summarize(learns, ('exam',))

def test_a_recipe_reaches_the_optimizer(learns):
    for k,learn in learns.items():
        group = learn.opt.opt.param_groups[0]
        assert group['weight_decay']==recipes[k].wd and group['betas'][1]==recipes[k].sqr_mom and group['fused']
    plain = train(Recipe('Network', epochs=1), _data(learns['Network']), device='cpu', quiet=True)
    assert type(plain.opt.opt).__name__=='Adam' and plain.opt.opt.param_groups[0]['betas'][1]==.999

def _data(learn):
    return Mnist(*(o.dataset for o in learn.dls.loaders), learn.dls.source)
