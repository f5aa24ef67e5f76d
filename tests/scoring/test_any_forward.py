"""Scoring measures what training computes, and changes nothing of it, whatever a forward does."""

import functools
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from composer_edba.loading.batch import index_batch
from composer_edba.plain import SubsetLoader
from composer_edba.scoring.forward import Scorer

SIZE = 12


def vectors():
    return [torch.randn(SIZE, 6), torch.randint(4, (SIZE,))]


def cross_entropy(outputs, batch):
    return F.cross_entropy(outputs, batch[1])


def with_auxiliary(outputs, batch):
    return F.cross_entropy(outputs[0], batch[1]) + 0.3 * F.cross_entropy(outputs[1], batch[1])


def gradients(model, layer, batch, loss):
    """Each sample's gradient by the layer's parameters, from a training step of its own: (B, P)."""
    rows = []
    for sample in range(SIZE):
        one = index_batch(batch, torch.tensor([sample]), SIZE)
        model.zero_grad()
        loss(model(one), one).backward()  # not torch.autograd.grad, which reentrant checkpoints refuse
        rows.append(torch.cat([p.grad.flatten() for p in model.get_submodule(layer).parameters()]))
    model.zero_grad()
    return torch.stack(rows)


def assert_scores(model, batch, loss=cross_entropy, layer="head", scorer=None):
    """The scores are what training steps compute, though nothing of it is left behind, the second time too."""
    torch.manual_seed(0)
    expected = gradients(model, layer, batch, loss)
    expected = expected @ expected.T
    norms = expected.diagonal().sqrt()
    for chunk in (None, None, 5):
        scorer = Scorer() if scorer is None else scorer
        scorer.chunk_limit = chunk
        got = scorer(model, batch, loss).inner_products()
        assert scorer._layer is model.get_submodule(layer)
        assert ((got - expected).abs() / norms.outer(norms)).max() < 1e-4


class SoftmaxInEvaluation(nn.Module):
    def forward(self, x):
        return x if self.training else x.softmax(1)


class Net(nn.Module):
    """Two linear maps; what a case does with them is its ``run``."""

    def __init__(self, run=lambda net, x: net.head(net.hidden(x))):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head, self.auxiliary = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(5, 4)
        self.run, self.last = run, SoftmaxInEvaluation()

    def hidden(self, x):
        return self.body(x).tanh()

    def forward(self, batch):
        return self.run(self, batch[0])


# ---- what a forward does to its batch


class Centred(Net):
    """Changes its input in place."""

    def forward(self, batch):
        return super().forward([batch[0].sub_(1).mul_(2)])


class Popped(Net):
    """Changes the container."""

    def forward(self, batch):
        batch["mask"] = batch["x"] > 0
        batch["nested"]["seen"] = True
        return super().forward([batch.pop("x") * batch["mask"]])


def from_one(outputs, batch):
    """Labels count from one."""
    return F.cross_entropy(outputs, batch[1].sub_(1))


@pytest.mark.parametrize("case", ["input", "loss", "array", "container"])
def test_a_batch_that_the_forward_writes_into_is_trained_on_as_it_came(case):
    batch, model, loss, context = vectors(), Net(), cross_entropy, {}
    if case == "container":
        batch = {"x": batch[0], "y": batch[1], "nested": {"weights": torch.ones(SIZE)}}
        model, loss = Popped(), lambda outputs, batch: F.cross_entropy(outputs, batch["y"])
    elif case == "loss":
        batch[1] += 1
        loss = from_one
    else:
        model = Centred()
    whole = slice(None) if case == "container" else torch.arange(SIZE)
    before = index_batch(batch, whole, SIZE)
    if case == "array":
        batch, context = [part.numpy() for part in batch], {"prepare": lambda b: [torch.from_numpy(a) for a in b]}
    for chunk in (None, 5):
        scorer = Scorer()
        scorer.chunk_limit = chunk
        scorer.find_layer(model, batch, loss, **context)
        for _ in range(2):
            scores = scorer(model, batch, loss, **context)
            assert (
                str(batch) == str(before)
                if case == "container"
                else all(np.array_equal(a, b) for a, b in zip(batch, before, strict=True))
            )
        if chunk is None:
            pristine = index_batch(before, whole, SIZE)
            torch.testing.assert_close(scores.model_metric, loss(model(pristine), pristine).detach())


def test_a_batch_is_copied_only_for_a_model_that_writes_into_it():
    seen = []

    def watched(net, x):
        seen.append(x.data_ptr())
        return net.head(net.hidden(x))

    for kind, live in ((Net, True), (Centred, False)):
        scorer, model, batch = Scorer(), kind(watched), vectors()
        scorer(model, batch, cross_entropy)
        assert (seen[-1] == batch[0].data_ptr()) == live


# ---- a forward that knows whether it trains


def softmax_in_evaluation(net, x):
    outputs = net.head(net.hidden(x))
    return outputs if net.training else outputs.softmax(1)


def softmax_module(net, x):
    return net.last(net.head(net.hidden(x)))


def auxiliary_in_training(net, x):
    h = net.hidden(x)
    outputs = net.head(h)
    return (outputs, net.auxiliary(h)) if net.training else outputs


def grad_mode_around_the_head(net, x):
    with torch.set_grad_enabled(net.training):
        outputs = net.head(net.hidden(x))
    return outputs.log_softmax(1)


def grad_mode_in_the_body(net, x):
    with torch.set_grad_enabled(net.training):
        h = net.hidden(x)
    return net.head(h)


def grad_mode_set(net, x):
    torch.set_grad_enabled(net.training)
    return net.head(net.hidden(x))


def checkpointed(net, x, reentrant, all_of_it):
    if all_of_it:
        return checkpoint(lambda x: net.head(net.hidden(x)).log_softmax(1), x, use_reentrant=reentrant)
    return checkpoint(net.head, checkpoint(net.hidden, x, use_reentrant=reentrant), use_reentrant=reentrant)


def grad_mode_and_checkpoint(net, x):
    with torch.set_grad_enabled(net.training):
        outputs = checkpoint(lambda x: net.head(net.hidden(x)).log_softmax(1), x, use_reentrant=False)
    return outputs.exp().log()


FORWARDS = {
    "softmax_in_evaluation": softmax_in_evaluation,
    "softmax_module": softmax_module,
    "auxiliary_in_training": auxiliary_in_training,
    "grad_mode_around_the_head": grad_mode_around_the_head,
    "grad_mode_in_the_body": grad_mode_in_the_body,
    "grad_mode_set": grad_mode_set,
    "grad_mode_and_checkpoint": grad_mode_and_checkpoint,
    **{
        f"checkpoint_{reentrant}_{whole}": functools.partial(checkpointed, reentrant=reentrant, all_of_it=whole)
        for reentrant in (True, False)
        for whole in (True, False)
    },
}


@pytest.mark.parametrize("name", FORWARDS)
def test_a_forward_that_depends_on_the_mode_is_scored_as_it_trains(name):
    loss = with_auxiliary if name == "auxiliary_in_training" else cross_entropy
    batch = vectors()
    batch[0].requires_grad_("checkpoint_True" in name)  # without, a reentrant checkpoint trains nothing
    model = Net(FORWARDS[name])
    assert_scores(model, batch, loss)
    assert model.training
    assert torch.is_grad_enabled()


def test_a_reentrant_checkpoint_in_the_body_gives_no_warning():
    model = Net(lambda net, x: net.head(checkpoint(net.hidden, x, use_reentrant=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Scorer()(model, vectors(), cross_entropy)


def test_a_forward_that_hides_the_head_from_autograd_is_refused_with_the_cause():
    def hidden(net, x):
        return net.head(net.hidden(x)).detach() + net.auxiliary.bias

    with pytest.raises(ValueError, match=r"last_layer \(Linear\): the loss does not depend on its output.*detach"):
        Scorer()(Net(hidden), vectors(), cross_entropy)


class DropPath(nn.Module):
    def forward(self, x):
        return x * torch.empty(len(x), 1).bernoulli_(0.5) / 0.5 if self.training else x


class Attention(nn.Module):
    """Draws in attention, as transformers' models do."""

    def __init__(self, positional=False):
        super().__init__()
        self.query, self.positional = nn.Linear(6, 6), positional

    def forward(self, x):
        q = self.query(x).unflatten(1, (1, 3, 2))
        p = 0.5 if self.training else 0.0
        options = ((None, p), {}) if self.positional else ((), {"dropout_p": p})
        return F.scaled_dot_product_attention(q, q, q, *options[0], **options[1]).flatten(1)


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x, 0.5, self.training)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 6, num_layers=2, dropout=0.5)

    def forward(self, x):
        return self.lstm(x.unsqueeze(0))[0].squeeze(0)


class OwnAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, dropout=0.5, batch_first=True)

    def forward(self, x):
        x = x.unflatten(1, (3, 2))
        return self.attention(x, x, x)[0].flatten(1)


RANDOM = {
    "dropout": lambda: nn.Dropout(0.5),
    "alpha_dropout": lambda: nn.AlphaDropout(0.5),
    "feature_alpha_dropout": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 2, 1)), nn.FeatureAlphaDropout(0.5), nn.Flatten()
    ),
    "rrelu": nn.RReLU,
    "drop_path": DropPath,
    "lstm": Recurrent,
    "multihead_attention": OwnAttention,
    "attention": Attention,
    "attention_positional": lambda: Attention(True),
    **{f"functional_{f.__name__}": lambda f=f: Functional(f) for f in (F.dropout, F.alpha_dropout, torch.dropout)},
}


@pytest.mark.parametrize("name", RANDOM)
def test_dropout_and_the_like_are_off_however_they_are_called(name):
    torch.manual_seed(0)
    noise = RANDOM[name]()
    model, batch = Net(lambda net, x: net.head(net.hidden(net.noise(x)))), vectors()
    model.noise = noise
    metric = Scorer()(model, batch, cross_entropy).model_metric
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(metric, cross_entropy(model.eval()(batch), batch).detach())


# ---- a layer that is called several times


def fed_back(net, x):
    first = net.head(net.hidden(x))
    return first + net.head(F.pad(first, (0, 1)))


def three_steps(net, x):
    state = net.hidden(x)
    for _ in range(3):
        state = F.pad(net.head(state).tanh(), (0, 1))
    return state[:, :4]


def independent(net, x):
    return net.head(net.hidden(x)) * net.head(net.hidden(-x)).exp()  # the second goes through the body again


def one_not_used(net, x):
    net.head(net.hidden(-x))
    return net.head(net.hidden(x))


@pytest.mark.parametrize("run", [fed_back, three_steps, independent, one_not_used])
def test_calls_of_the_last_layer_may_depend_on_each_other(run):
    assert_scores(Net(run), vectors())


def masked(net, x):
    outputs = net.head(net.hidden(x))
    outputs[:, 0] = -5.0
    return outputs.div_(2)


def activated(net, x):
    return F.elu_(net.head(net.hidden(x)))


@pytest.mark.parametrize("run", [masked, activated])
def test_the_last_layers_output_may_be_changed_in_place(run):
    assert_scores(Net(run), vectors())


# ---- what a forward remembers


class Renormalising(nn.BatchNorm1d):
    """Updates statistics of its own, and has a buffer more."""

    def __init__(self, features):
        super().__init__(features)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.running_mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return (x - x.mean(0)) * self.weight + self.bias


class Remembering(nn.Module):
    """Keeps what it sees in every kind of attribute."""

    def __init__(self):
        super().__init__()
        self.count, self.mean, self.scale = 0, None, torch.ones(())
        self.log, self.cache, self.seen = [0], {"first": 0}, {1}

    def forward(self, x):
        self.count += 1
        self.mean = x.detach().mean()
        self.scale *= 2
        self.log.append(self.count)
        self.cache["first"] = self.cache[self.count] = x
        self.seen.add(len(self.log))
        self.new = x
        return x * self.scale / self.scale


@pytest.mark.parametrize("batch_norm", ["pool", "running"])
def test_statistics_of_a_batch_norm_of_the_models_own_are_put_back(batch_norm):
    model, batch = Net(lambda net, x: net.head(net.norm(net.hidden(x)))), vectors()
    model.norm = Renormalising(5)
    model(batch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Scorer(batch_norm=batch_norm)(model, batch, cross_entropy)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.norm.track_running_stats


def test_attributes_are_put_back():
    model, batch = Net(lambda net, x: net.head(net.hidden(net.memory(x)))), vectors()
    model.memory = Remembering()
    for _ in range(2):
        Scorer()(model, batch, cross_entropy)
        assert (model.memory.count, model.memory.mean, float(model.memory.scale)) == (0, None, 1.0)
        assert (model.memory.log, model.memory.cache, model.memory.seen) == ([0], {"first": 0}, {1})
        assert not hasattr(model.memory, "new")
    model(batch)
    assert model.memory.count == 1
    assert model.memory.log == [0, 1]


def test_a_plain_loop_checks_its_model_once():
    calls = []
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    model.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    data = DataLoader(TensorDataset(torch.randn(64, 6), torch.randint(4, (64,))), batch_size=16)
    per_step = []
    for _ in SubsetLoader(
        data, model, nn.CrossEntropyLoss(), criterion="margin", optimizer=torch.optim.SGD(model.parameters())
    ):
        per_step.append(len(calls))
        calls.clear()
    assert per_step[0] > 1
    assert per_step[1:] == [1] * (len(per_step) - 1)
