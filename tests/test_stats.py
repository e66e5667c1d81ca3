"Comparisons over seeds, checked against results known by hand"
from math import comb

import pytest
from hypothesis import given, settings, strategies as st

from mnist_fastai.stats import compare, mcnemar, paired, plot_compare

def as_runs(**arms):
    "Runs with seeds 0, 1, … from the accuracies of each arm"
    return [dict(arm=arm, seed=seed, valid_accuracy=acc) for arm,accs in arms.items() for seed,acc in enumerate(accs)]

def test_compare_by_hand():
    "Differences 1, 2, 3: mean 2, standard error 1/√3, and 4.30265 is the t factor for two degrees of freedom"
    row = compare(as_runs(a=[11.,13,15], b=[10.,11,12]), [('a','b')]).loc[[('a','b')]].iloc[0]
    assert row.n==3 and row['mean']==13 and row.baseline==11 and row.difference==2 and row.sign_flips==0
    assert (row.low, row.high)==pytest.approx((2-4.30265/3**.5, 2+4.30265/3**.5), abs=1e-4)
    assert row.p==pytest.approx(.0742, abs=1e-4) and 1<=row.boot_low<=row.boot_high<=3

def test_level_of_the_intervals():
    "For two degrees of freedom the factor of a 90 % interval is 2.91999"
    row = compare(as_runs(a=[11.,13,15], b=[10.,11,12]), [('a','b')], level=.9).iloc[0]
    assert (row.low, row.high)==pytest.approx((2-2.91999/3**.5, 2+2.91999/3**.5), abs=1e-4)

def test_swapping_the_arms_changes_the_sign():
    runs = as_runs(a=[1.,2,4], b=[2.,1,2])
    table = compare(runs, [('a','b'), ('b','a')])
    assert table.difference.iloc[0]==-table.difference.iloc[1] and table.low.iloc[0]==-table.high.iloc[1]
    assert list(table.sign_flips)==pytest.approx([1/3,1/3])

def test_runs_are_paired_by_seed():
    "The runs come in any order, and only seeds 2 and 3 are in both arms"
    a,b = {3: .3, 1: .1, 2: .2},{2: .1, 3: .1, 7: .9}
    runs = [dict(arm=arm, seed=s, valid_accuracy=v) for arm,accs in (('a',a),('b',b)) for s,v in accs.items()]
    table = paired(runs, 'a', 'b')
    assert list(table.columns)==['a','b'] and table.index.tolist()==[2,3]
    assert table.a.tolist()==[.2,.3] and table.b.tolist()==[.1,.1]

def test_other_metrics_can_be_compared():
    runs = [dict(o, valid_loss=1-o['valid_accuracy']) for o in as_runs(a=[.5,.75,1.], b=[.25,.25,.75])]
    assert compare(runs, [('a','b')], 'valid_loss').difference.iloc[0]==-compare(runs, [('a','b')]).difference.iloc[0]

@pytest.mark.parametrize('runs,pair,metric,message', [
    (as_runs(a=[1.,2], b=[1.,2]), ('c','a'), 'valid_accuracy', "no runs of 'c': the arms are a, b"),
    ([], ('a','b'), 'valid_accuracy', "no runs of 'a'"),
    (as_runs(a=[1.,2], b=[1.]), ('a','b'), 'valid_accuracy', '1 seeds in common'),
    (as_runs(a=[1.,2], b=[1.,2]), ('a','b'), 'speed', "a number as 'speed'"),
    (as_runs(a=[1.,float('nan')], b=[1.,2]), ('a','b'), 'valid_accuracy', "a number as 'valid_accuracy'"),
    (2*as_runs(a=[1.,2], b=[1.,2]), ('a','b'), 'valid_accuracy', 'two runs with one seed')])
def test_bad_comparisons_raise_value_error(runs, pair, metric, message):
    with pytest.raises(ValueError, match=message): compare(runs, [pair], metric)

@pytest.mark.parametrize('shift,p', [(0,1), (.25,0)])
def test_differences_without_spread(shift, p):
    row = compare(as_runs(a=[.5+shift,.25+shift,.75+shift], b=[.5,.25,.75]), [('a','b')]).iloc[0]
    assert row.difference==row.low==row.high==row.boot_low==row.boot_high==shift and row.p==p and row.sign_flips==0

accuracies = st.lists(st.tuples(*[st.floats(0, 1, width=16)]*2), min_size=3, max_size=12)

@settings(max_examples=30, deadline=None)
@given(accuracies.filter(lambda o: len({a-b for a,b in o})>1))
def test_the_interval_contains_the_mean_and_agrees_with_p(pairs):
    a,b = zip(*pairs)
    row = compare(as_runs(a=a, b=b), [('a','b')]).iloc[0]
    assert row.low<=row.difference<=row.high and 0<=row.sign_flips<=1
    assert (row.p<.05)==(not row.low<=0<=row.high)

@settings(max_examples=50, deadline=None)
@given(st.integers(0, 15), st.integers(0, 15), st.integers(0, 5))
def test_mcnemar_is_a_toss_of_coins(a, b, both):
    "Positions in the first list, entries of runs in the second"
    res = mcnemar(range(a+both), [[i,0,.5] for i in [*range(a, a+both), *range(100, 100+b)]])
    n,few = a+b,min(a,b)
    p = min(1, 2*sum(comb(n, i) for i in range(few+1))/2**n)
    assert res==dict(only=a, only_baseline=b, both=both, p=pytest.approx(p))

def test_plot_shows_points_and_names_the_pairs():
    runs = as_runs(a=[.98,.97,.99], b=[.97,.95,.98], c=[.96,.99,.99])
    ax = plot_compare(runs, [('a','b'), ('c','b')])
    assert ax.get_xlabel()=='difference in validation accuracy, percentage points' and ax.get_ylabel()
    assert [o.get_text() for o in ax.get_yticklabels()]==['a − b','c − b']
    assert sorted(ax.lines[0].get_xdata())==pytest.approx([1,1,2])
