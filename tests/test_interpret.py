"Errors of a network: each measure on a case with a known result, each picture by what is drawn in it"
import json, math

import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
import matplotlib.pyplot as plt
from torch import nn

from conftest import linear, untrained
from mnist_fastai.data import Digits
from mnist_fastai.interpret import *
from mnist_fastai.improvement import ImprovedNetwork

def pixels(ds): return ds[:][0].as_subclass(torch.Tensor)

@pytest.fixture(scope='module')
def few(sample): return sample.valid.subset(slice(50))

# --- logits

@pytest.mark.parametrize('bs', [7,50,2048])
def test_logits_are_those_of_evaluation_mode_in_any_batch_size(few, bs):
    net = untrained(ImprovedNetwork(p=.5))
    with torch.no_grad(): net(pixels(few)) # changes the running statistics
    before = {k: v.clone() for k,v in net.state_dict().items()}
    logits = logits_of(net, few, bs)
    assert net.training and all(torch.equal(v, before[k]) for k,v in net.state_dict().items())
    assert type(logits) is torch.Tensor and not logits.requires_grad
    with torch.no_grad(): torch.testing.assert_close(logits, net.eval()(pixels(few)))
    logits_of(net, few)
    assert not net.training

def test_no_digits_have_no_logits(few): assert logits_of(linear(), few.subset(slice(0))).shape==(0,10)

@pytest.mark.parametrize('f', [logits_of, input_gradients, occlusion])
def test_digits_that_may_be_training_digits_raise_an_error(few, f):
    net = linear()
    net.train_sources = ('mnist',)
    with pytest.raises(ValueError, match='trained on mnist'): f(net, few.subset([0]))

def test_the_mode_is_restored_after_an_error(few):
    class Breaks(nn.Linear):
        def forward(self, x): raise RuntimeError('no')
    net = untrained(Breaks(1, 1)).train()
    with pytest.raises(RuntimeError): logits_of(net, few)
    assert net.training

# --- mistakes

def sure(preds, p=.9):
    "Logits whose predictions are `preds`, each with probability `p`"
    logits = torch.full((len(preds),10), math.log((1-p)/9))
    logits[range(len(preds)),preds] = math.log(p)
    return logits

def test_mistakes_of_two_networks_name_who_is_wrong():
    labels = torch.tensor([1,2,3,4])
    table = mistakes(dict(a=sure([1,0,0,4]), b=sure([1,2,5,7], .8)), labels)
    assert table.index.tolist()==[1,2,3] and table.label.tolist()==[2,3,4]
    assert table['a predicted'].tolist()==[0,0,4] and table['b predicted'].tolist()==[2,5,7]
    np.testing.assert_allclose(table['a probability'], .9, rtol=1e-5)
    np.testing.assert_allclose(table['b probability'], .8, rtol=1e-5)
    assert table.wrong.tolist()==['a','a and b','b']

def test_a_table_without_mistakes_keeps_its_columns():
    table = mistakes(dict(a=sure([1,2])), torch.tensor([1,2]))
    assert len(table)==0 and list(table.columns)==['label','a predicted','a probability','wrong']

@pytest.mark.parametrize('idxs', [[3,1], torch.tensor([3,1]), pd.Index([3,1])])
def test_predictions_are_shown_with_label_and_probability(few, idxs):
    axs = show_predictions(few, sure([4]*50, .75), idxs)
    want = [few.labels[3].item(),few.labels[1].item()]
    assert [ax.get_title() for ax in axs]==[f'{o} → 4, 75 %' for o in want]
    np.testing.assert_array_equal(axs[0].images[0].get_array(), few.images[3])

# --- which pixels matter

def test_gradients_of_a_linear_network_are_its_weights(few):
    net,two = linear(),few.subset(slice(2))
    w = net.layers[0].weight.detach().view(10,28,28)
    torch.testing.assert_close(input_gradients(net, two, 3), w[[3,3]])
    torch.testing.assert_close(input_gradients(net, two, torch.tensor([8,0])), w[[8,0]])
    torch.testing.assert_close(input_gradients(net, two), w[logits_of(net, two).argmax(1)])

def test_gradients_agree_with_finite_differences_and_leave_none_behind(few):
    net = untrained(ImprovedNetwork(p=.5))
    assert torch.equal(input_gradients(net, few, 0), input_gradients(net, few, 0))
    assert net.training and all(o.grad is None for o in net.parameters())
    one,h = few.subset([0]),1e-2
    grad = input_gradients(net, one, 0)[0,14,14].item()
    x = pixels(one).repeat(2,1,1,1)
    x[0,0,14,14] += h
    x[1,0,14,14] -= h
    with torch.no_grad(): up,down = net.eval()(x)[:,0]
    assert (up-down).item()/(2*h)==pytest.approx(grad, abs=1e-3)

def test_the_gradient_of_a_digit_does_not_depend_on_the_others(few):
    net = untrained(ImprovedNetwork())
    torch.testing.assert_close(
        input_gradients(net, few)[7:8], input_gradients(net, few.subset([7])), atol=1e-5, rtol=1e-4)

def test_occlusion_of_a_linear_network_is_the_ink_that_is_covered(few):
    net,two = linear(),few.subset(slice(2))
    ink = two.images.float()/255/.3081 * net.layers[0].weight.detach().view(10,28,28)[[3,8]]
    for size in (1,5):
        want = F.conv2d(ink[:,None], torch.ones(1,1,size,size), padding=size//2)[:,0]
        torch.testing.assert_close(occlusion(net, two, torch.tensor([3,8]), size), want, atol=1e-4, rtol=1e-4)

def test_occlusion_is_of_the_prediction_by_default(few):
    net,one = linear(),few.subset([0])
    torch.testing.assert_close(occlusion(net, one), occlusion(net, one, logits_of(net, one).argmax().item()))

@pytest.mark.parametrize('f', [input_gradients, occlusion])
@pytest.mark.parametrize('digit', [-1,10])
def test_another_digit_than_0_to_9_raises_an_error(few, f, digit):
    with pytest.raises(ValueError, match='from 0 to 9'): f(linear(), few.subset([0]), digit)

@pytest.mark.parametrize('size', [0,4,-1])
def test_a_square_without_a_middle_pixel_raises_an_error(few, size):
    with pytest.raises(ValueError, match='odd'): occlusion(linear(), few.subset([0]), size=size)

def test_maps_share_one_scale_with_a_color_bar_and_have_the_outline_of_the_digit(few):
    maps = torch.zeros(2,28,28)
    maps[0,3,4],maps[0,5,6] = -4,2
    ds = Digits(torch.stack([few.images[0], torch.zeros(28,28, dtype=torch.uint8)])) # nothing to outline in the second
    axs = show_maps(ds, maps, ['a','b'], label='slope')
    assert [ax.images[0].get_clim() for ax in axs]==[(-4,4),(-4,4)]
    for ax,m in zip(axs, maps): np.testing.assert_array_equal(ax.images[0].get_array(), m)
    assert axs[0].figure.axes[-1].get_ylabel()=='slope'
    red,blue = [axs[0].images[0].to_rgba(o) for o in (-4,4)]
    assert red[0]>red[2] and blue[2]>blue[0]
    assert [ax.get_title() for ax in axs]==['a','b'] and axs[0].collections and not axs[1].collections

# --- labels that may be wrong

runs = [
    dict(arm='a', seed=0, wrong=[[7,3,.95],[8,1,.99],[9,2,.97]]),
    dict(arm='a', seed=1, wrong=[[7,3,.99],[8,1,.50],[9,4,.98]]),
    dict(arm='b', seed=0, wrong=[[7,3,.91],[9,4,.92]]),
    dict(arm='b', seed=1, wrong=[]),
]

def test_label_issues_put_the_largest_share_of_runs_first():
    table = label_issues(runs)
    assert table.index.tolist()==[7,9,8] and table.index.name=='index'
    assert list(table.columns)==['predicted','share of runs','mean probability']
    assert table.predicted.tolist()==[3,4,1] and table['share of runs'].tolist()==[.75,.5,.25]
    np.testing.assert_allclose(table['mean probability'], [.95,.95,.99])
    assert label_issues(json.loads(json.dumps(runs))).equals(table)
    assert label_issues(runs + 4*[dict(wrong=[])])['share of runs'].tolist()==[.375,.25,.125]

def test_of_equal_shares_the_higher_mean_probability_is_first():
    assert label_issues([dict(wrong=[[5,1,.92],[6,1,.97],[5,2,.93]])]).index.tolist()==[6,5]
    assert label_issues([dict(wrong=[[5,1,.92],[6,1,.97],[5,2,.93]])]).predicted.tolist()==[1,2]

def test_label_issues_count_predictions_from_the_least_probability_on():
    assert label_issues(runs, .99).index.tolist()==[7,8] and label_issues(runs, .5)['share of runs'][8]==.5

def test_label_issues_without_a_candidate_or_without_runs():
    assert len(label_issues(runs, .999))==len(label_issues([dict(wrong=[])]))==0
    with pytest.raises(ValueError, match='There are no runs'): label_issues([])
