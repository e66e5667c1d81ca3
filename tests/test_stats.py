"Comparisons over seeds, against what is known by hand"
from math import comb

import pytest
from hypothesis import given, settings, strategies as st

from mnist_fastai.stats import compare, mcnemar, paired, plot_compare

def as_runs(**arms): return [dict(arm=k, seed=i, valid_accuracy=v) for k,vs in arms.items() for i,v in enumerate(vs)]

def test_by_hand():
    "Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t = 3.4641 with two degrees of freedom, whose 97.5 % point is 4.30265"
    row = compare(as_runs(a=[11.,13,15], b=[10.,11,12]), [('a','b')]).loc[[('a','b')]].iloc[0]
    assert row.n==3 and row['mean']==13 and row.baseline==11 and row.difference==2 and row.sign_flips==0
    assert (row.low, row.high)==pytest.approx((2-4.30265/3**.5, 2+4.30265/3**.5), abs=1e-4)
    assert row.p==pytest.approx(.0742, abs=1e-4) and 1<=row.boot_low<=row.boot_high<=3

def test_the_order_of_a_pair():
    runs = as_runs(a=[1.,2,4], b=[2.,1,2])
    t = compare(runs, [('a','b'), ('b','a')])
    assert t.difference.iloc[0]==-t.difference.iloc[1] and t.low.iloc[0]==-t.high.iloc[1] and list(t.sign_flips)==pytest.approx([1/3,1/3])

def test_pairs_go_by_seed():
    runs = [dict(arm='a', seed=s, valid_accuracy=v) for s,v in ((3,.3),(1,.1),(2,.2))] + [dict(arm='b', seed=s, valid_accuracy=v) for s,v in ((2,.1),(3,.1),(7,.9))]
    table = paired(runs, 'a', 'b')
    assert list(table.columns)==['a','b'] and table.a.tolist()==[.2,.3] and table.b.tolist()==[.1,.1] and table.index.tolist()==[2,3]

def test_bad_pairs():
    runs = as_runs(a=[1.,2], b=[1.])
    with pytest.raises(ValueError, match="no runs of 'c': the arms are a, b"): compare(runs, [('c','a')])
    with pytest.raises(ValueError, match='1 seeds in common'): compare(runs, [('a','b')])
    with pytest.raises(ValueError, match='no runs of'): compare([], [('a','b')])
    with pytest.raises(ValueError, match="a number as 'speed'"): compare(as_runs(a=[1.,2], b=[1.,2]), [('a','b')], 'speed')

def test_no_difference_at_all():
    row = compare(as_runs(a=[.5,.6,.7], b=[.5,.6,.7]), [('a','b')]).iloc[0]
    assert row.difference==row.low==row.high==row.boot_low==row.boot_high==row.sign_flips==0

@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0, 1, width=16)]*2), min_size=3, max_size=12).filter(lambda o: len({a-b for a,b in o})>1))
def test_intervals_hold_the_mean(pairs):
    a,b = zip(*pairs)
    row = compare(as_runs(a=a, b=b), [('a','b')]).iloc[0]
    assert row.low<=row.difference<=row.high and (row.p<.05)==(not row.low<=0<=row.high) and 0<=row.sign_flips<=1

@settings(max_examples=50, deadline=None)
@given(st.integers(0, 15), st.integers(0, 15), st.integers(0, 5))
def test_mcnemar(a, b, both):
    res = mcnemar(range(a+both), [[i,0,.5] for i in [*range(a, a+both), *range(100, 100+b)]])
    n,k = a+b,min(a,b)
    assert res==dict(only=a, only_baseline=b, both=both, p=pytest.approx(min(1, 2*sum(comb(n, i) for i in range(k+1))/2**n)))

def test_the_plot():
    ax = plot_compare(as_runs(a=[.98,.97,.99], b=[.97,.95,.98], c=[.96,.99,.99]), [('a','b'), ('c','b')])
    assert ax.get_xlabel()=='difference in validation accuracy, percentage points' and ax.get_ylabel() and [o.get_text() for o in ax.get_yticklabels()]==['a − b','c − b']
    assert sorted(ax.lines[0].get_xdata())==pytest.approx([1,1,2])
