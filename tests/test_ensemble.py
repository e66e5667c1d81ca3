"Ensembles: the mean of probabilities as one network, errors that networks share, and a student with soft labels"
import math
from dataclasses import replace

import pytest, torch, torch.nn.functional as F
from fastai.callback.core import Callback

from conftest import linear, untrained
from mnist_fastai.callbacks import Resume
from mnist_fastai.checkpoint import CheckpointError, load_network, save_network
from mnist_fastai.confidence import robustness
from mnist_fastai.core import UserError
from mnist_fastai.convolution import ConvNet
from mnist_fastai.data import DataInfo, Mnist
from mnist_fastai.ensemble import Ensemble, SoftLabels, distill, records, shared_errors
from mnist_fastai.inference import Predictor
from mnist_fastai.interpret import logits_of
from mnist_fastai.loaders import digit_dls
from mnist_fastai.models import Network, find_model
from mnist_fastai.training import Recipe, digit_learner, evaluate, train

fast = Recipe('Network', dict(sizes=(784,16,10)), epochs=2, bs=64, lr=1e-2)
conv = Recipe('ConvNet', dict(blocks=((4,),)), epochs=1, bs=64, lr=1e-2)

def fit(recipe, data, seed=1): return train(recipe, data, seed, device='cpu', quiet=True)

@pytest.fixture(scope='module')
def small(sample): return Mnist(sample.train.subset(slice(600)), sample.valid, sample.test, sample.source)

@pytest.fixture(scope='module')
def nets(small): return [fit(fast, small).model, fit(fast, small, 2).model, fit(conv, small).model]

@pytest.fixture(scope='module')
def ensemble(nets): return Ensemble(nets)

def mean_probs(nets, ds): return torch.stack([logits_of(o, ds).softmax(1) for o in nets]).mean(0)

# --- one network

def test_the_probabilities_are_the_mean_of_the_members(ensemble, nets, small):
    logits = logits_of(ensemble, small.valid)
    torch.testing.assert_close(logits.softmax(1), mean_probs(nets, small.valid))
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(len(logits))) # they are log probabilities already

def test_certain_members_give_finite_logits():
    nets = [linear(), linear(1)]
    for o in nets: o.layers[0].weight.data *= 1e6
    assert logits_of(Ensemble(nets), _digits()).isfinite().all()

def _digits():
    from mnist_fastai.data import Digits
    torch.manual_seed(0)
    return Digits(torch.randint(256, (8,28,28), dtype=torch.uint8), torch.arange(8))

def test_it_goes_where_a_network_goes(ensemble, nets, small):
    learn = digit_learner(digit_dls(small, device='cpu'), ensemble)
    right = (mean_probs(nets, small.valid).argmax(1)==small.valid.labels).double().mean().item()
    assert evaluate(learn)['accuracy']==pytest.approx(right)
    table = robustness(dict(ensemble=[ensemble]), small.valid, 'shift', [0])
    assert table.accuracy[0]==pytest.approx(right)
    digit = small.valid.images[0]
    assert 0<=Predictor(ensemble)(255-digit.numpy()).confidence<=1

def test_members_keep_their_mode(nets, small):
    "Batch normalization of a member must not learn from digits that an ensemble only predicts"
    net = nets[2].eval()
    logits_of(Ensemble([net]), small.valid)
    assert not any(o.training for o in net.modules())

def test_one_member_predicts_as_alone(nets, small):
    alone = logits_of(nets[0], small.valid).log_softmax(1)
    torch.testing.assert_close(logits_of(Ensemble(nets[:1]), small.valid), alone)

# --- data of the members

def test_it_knows_all_sources_and_the_data_of_its_members(ensemble, nets):
    assert ensemble.train_sources==('sample',) and ensemble.data_info==nets[0].data_info
    a,b = linear(),linear(1)
    a.train_sources,b.train_sources = ('mnist','own'),('sample',)
    assert Ensemble([a,b]).train_sources==('mnist','own','sample')

def test_a_member_of_unknown_origin_makes_the_ensemble_unknown(sample):
    both = Ensemble([linear(), Network((784,10))])
    with pytest.raises(ValueError, match='not known what this network was trained on'): logits_of(both, sample.valid)

def test_members_of_different_data_are_an_error():
    a,b = linear(),linear(1)
    a.data_info,b.data_info = DataInfo(),DataInfo(mean=.5)
    with pytest.raises(ValueError, match='different normalization'): Ensemble([a,b])

def test_an_ensemble_needs_networks(small):
    with pytest.raises(ValueError, match='no members'): Ensemble([])
    learn = fit(replace(fast, epochs=1), small)
    with pytest.raises(ValueError, match='not Learner: of a Learner, give `.model`'): Ensemble([learn])

# --- files

def test_a_saved_ensemble_predicts_the_same(ensemble, small, tmp_path):
    learn = digit_learner(digit_dls(small, device='cpu'), ensemble)
    net = load_network(save_network(learn, tmp_path/'e.pth', dict(accuracy=.9)))
    torch.testing.assert_close(logits_of(net, small.valid), logits_of(ensemble, small.valid), atol=1e-4, rtol=1e-4)
    assert net.train_sources==('sample',) and [type(o).__name__ for o in net.members]==['Network','Network','ConvNet']

def test_a_file_may_name_registered_members_only(ensemble, small, tmp_path):
    class Own(Network): pass
    own = Own((784,10))
    own.train_sources,own.data_info = ('sample',),DataInfo()
    learn = digit_learner(digit_dls(small, device='cpu'), Ensemble([own]))
    with pytest.raises(ValueError, match='Own is not a registered network'): save_network(learn, tmp_path/'e.pth')
    assert find_model('Ensemble') is Ensemble
    with pytest.raises(ValueError, match='There is no network'): Ensemble([('Unknown', {})])

# --- shared errors

def test_counts_of_shared_errors():
    labels = torch.tensor([0,1,2,3])
    right = 9.*F.one_hot(labels, 10)
    a,b = right.clone(),right.clone()
    a[:2],b[1:2] = right[[2,2]],right[[3]]
    table = shared_errors(dict(a=a, b=b), labels) # a is wrong on 0 and 1, b on 1
    assert table.digits.tolist()==[2,1,1] and list(table.index)==[0,1,2]
    assert table.independent.tolist()==pytest.approx([4*.5*.75, 4*(.5*.75+.5*.25), 4*.5*.25])

def test_shared_errors_of_no_networks():
    with pytest.raises(ValueError, match='no networks'): shared_errors({}, torch.tensor([1]))

# --- distillation

def test_soft_labels_are_learned(ensemble, small):
    "A student of soft labels comes nearer to the teacher's probabilities than one of labels"
    hard,soft = fit(fast, small),distill(ensemble, fast, small, 1, device='cpu', quiet=True)
    wanted = logits_of(ensemble, small.valid).softmax(1)
    def distance(learn): return -(wanted*logits_of(learn.model, small.valid).log_softmax(1)).sum(1).mean()
    assert distance(soft)<distance(hard)-.01

def test_the_loss_is_the_cross_entropy_of_soft_labels_at_the_temperature(ensemble, small):
    class Watch(Callback):
        order,seen = SoftLabels.order+1,[]
        def after_loss(self):
            if not self.training: return
            with torch.no_grad(): soft = (ensemble(self.xb[0].as_subclass(torch.Tensor))/2).softmax(1)
            logits = self.pred.detach().as_subclass(torch.Tensor)
            wanted = -(soft*(logits/2).log_softmax(1)).sum(1).mean()
            Watch.seen.append([o.item() for o in (wanted, self.loss, self.loss_grad)])
    distill(ensemble, replace(fast, epochs=1), small, 1, T=2., cbs=Watch(), device='cpu', quiet=True)
    wanted,loss,loss_grad = torch.tensor(Watch.seen).T
    assert len(wanted)>1
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(loss_grad, wanted)

def test_the_teacher_replaces_the_labels(ensemble, small):
    "With wrong labels the student learns the same"
    wrong = Mnist(small.train.replace(labels=(small.train.labels+1)%10), small.valid, small.test, small.source)
    a,b = (distill(ensemble, fast, o, 1, device='cpu', quiet=True).model for o in (small,wrong))
    assert all(p.equal(q) for p,q in zip(a.parameters(), b.parameters()))

def test_distillation_changes_no_teacher(small):
    "Not its weights, nor its mode, nor its statistics"
    teacher = fit(conv, small).model.train()
    before = {k: v.clone() for k,v in teacher.state_dict().items()}
    distill(teacher, replace(fast, epochs=1), small, 1, device='cpu', quiet=True)
    assert teacher.training and all(v.equal(before[k]) for k,v in teacher.state_dict().items())

def test_a_student_comes_from_the_data_of_its_teacher(small, tmp_path):
    teacher = linear()
    teacher.train_sources,teacher.data_info = ('own',),small.info
    learn = distill(teacher, replace(fast, epochs=1), small, 1, device='cpu', quiet=True)
    assert learn.model.train_sources==('own','sample')
    assert learn.recipe is None and load_network(save_network(learn, tmp_path/'s.pth')).card['recipe'] is None

def test_label_smoothing_has_no_effect_on_soft_labels(ensemble, small):
    both = [replace(fast, epochs=1, label_smoothing=o) for o in (0.,.2)]
    a,b = (distill(ensemble, o, small, 1, device='cpu', quiet=True) for o in both)
    assert a.history.epochs.train_loss.tolist()==b.history.epochs.train_loss.tolist()

def test_the_teacher_sees_what_the_student_sees(small):
    "With augmentation, the teacher is given the changed digits"
    class Spy(Network):
        seen = []
        def forward(self, x): Spy.seen.append(x.clone()); return super().forward(x)
    teacher = Spy((784,10))
    teacher.train_sources,teacher.data_info = ('sample',),small.info
    some = Mnist(small.train.subset(slice(64)), small.valid, small.test, small.source)
    distill(teacher, replace(fast, epochs=1, augment=dict(shift=3.)), some, 1, device='cpu', quiet=True)
    plain = some.train[:][0].as_subclass(torch.Tensor)
    assert len(Spy.seen)==1 and type(Spy.seen[0]) is torch.Tensor
    assert not any((plain-x).abs().amax((1,2,3)).min()<1e-3 for x in Spy.seen[0])

@pytest.mark.parametrize('other', ['teacher','T'])
def test_a_stopped_distillation_goes_on_with_the_same_teacher_only(ensemble, nets, small, tmp_path, other):
    class StopAfterFirst(Callback):
        order = 90
        def after_epoch(self): raise KeyboardInterrupt
    def run(teacher, T=3., cbs=()):
        return distill(teacher, fast, small, 1, T, cbs=[Resume(tmp_path/'state'), *cbs], device='cpu', quiet=True)
    whole = distill(ensemble, fast, small, 1, device='cpu', quiet=True)
    with pytest.raises(KeyboardInterrupt): run(ensemble, cbs=[StopAfterFirst()])
    with pytest.raises(UserError):
        if other=='teacher': run(nets[0])
        else: run(ensemble, 2.)
    again = run(ensemble)
    assert all(p.equal(q) for p,q in zip(whole.model.parameters(), again.model.parameters()))

def test_a_teacher_must_be_known_and_must_not_know_the_validation_digits(small):
    def teach(teacher, **kwargs): return distill(teacher, fast, small, device='cpu', quiet=True, **kwargs)
    for net in Network((784,10)),untrained(Network((784,10))):
        with pytest.raises(ValueError, match='not known what the teacher was trained on'): teach(net)
    net = Network((784,10))
    net.train_sources = ('mnist',)
    with pytest.raises(ValueError, match='trained on mnist, which may hold the same digits'): teach(net)
    with pytest.raises(ValueError, match='must be a network, not Learner'): teach(fit(replace(fast, epochs=1), small))
    net.train_sources = ('sample',)
    for T in (0,-1,math.nan):
        with pytest.raises(ValueError, match='must be a number above 0'): teach(net, T=T)

# --- the recipes of the benchmark

def test_every_record_can_be_built_and_is_plain_data():
    import json
    from dataclasses import asdict
    for r in records.values():
        net = find_model(r.arch)(**r.kwargs).eval()
        assert net(torch.zeros(2, 1, 28, 28)).shape==(2,10)
        assert Recipe(**json.loads(json.dumps(asdict(r))))==r
