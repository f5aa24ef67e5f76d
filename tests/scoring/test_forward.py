"""The scoring forward: right for any head, and without a trace on the model."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from composer_edba.scoring.forward import Scorer
from composer_edba.train import models


class Classifier(nn.Module):
    """Takes [x, y] batches, as a ComposerModel does."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, batch):
        return self.net(batch[0])


def cross_entropy(outputs, batch):
    return nn.functional.cross_entropy(outputs, batch[1])


def mlp(dropout=0.0):
    return Classifier(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 4)))


def conv_net(norm=nn.BatchNorm2d):
    return Classifier(
        nn.Sequential(
            nn.Conv2d(3, 8, 3),
            norm(8),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )
    )


def vectors(samples=20):
    return [torch.randn(samples, 6), torch.randint(4, (samples,))]


def images(samples=20):
    return [torch.randn(samples, 3, 8, 8), torch.randint(4, (samples,))]


def whole_model_gram(model, layer, batch, loss):
    """⟨g_i, g_j⟩ by torch.func through the whole model, for the parameters of ``layer`` (a prefix of names)."""
    parameters = {k: v for k, v in model.named_parameters() if k.startswith(layer)}

    def sample_loss(parameters, x, y):
        single = [x.unsqueeze(0), y.unsqueeze(0)]
        return loss(functional_call(model, parameters, (single,)), single)

    gradients = vmap(grad(sample_loss), in_dims=(None, 0, 0))(parameters, *batch)
    flat = torch.cat([g.flatten(1) for g in gradients.values()], 1)
    return flat @ flat.T


def assert_gram(scores, expected):
    got = scores.inner_products()
    norms = expected.diagonal().sqrt()
    assert ((got - expected).abs() / norms.outer(norms)).max() < 1e-5


class LogSoftmaxHead(nn.Module):
    """What follows the last layer belongs to the loss."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.head = nn.Linear(5, 4)
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch):
        return {"logits": (self.head(self.body(batch[0]).tanh()) * self.temperature).log_softmax(-1)}


class EarlyRegistered(nn.Module):
    """Registers its last layer first."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(5, 4)
        self.first = nn.Linear(6, 5)

    def forward(self, batch):
        return self.last(self.first(batch[0]).relu())


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, batch):
        return self.head(self.body(batch[0]).relu())


class SharedHead(nn.Module):
    """Calls its last layer twice."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, batch):
        h = self.body(batch[0])
        return self.head(h.relu()) + self.head(h.tanh())


@pytest.mark.parametrize(
    ("model", "layer", "loss"),
    [
        (mlp(), "net.3", cross_entropy),
        (LogSoftmaxHead(), "head", lambda out, batch: nn.functional.nll_loss(out["logits"], batch[1])),
        (EarlyRegistered(), "last", cross_entropy),
        (SharedHead(), "head", cross_entropy),
        (mlp(), "net.3", lambda out, b: nn.functional.mse_loss(out, torch.eye(4)[b[1]])),
        (mlp(), "net.3", lambda out, b: (cross_entropy(out, b), 0.1 * out.square().mean())),
        (mlp(), "net.3", lambda out, b: {"total": cross_entropy(out, b), "shown": out.mean()}),
    ],
)
def test_scores_are_the_per_sample_gradients_of_the_models_own_loss(model, layer, loss):
    batch = vectors()

    def total(out, batch):
        value = loss(out, batch)
        if isinstance(value, dict):
            return value["total"]
        return sum(value) if isinstance(value, tuple) else value

    scores = Scorer()(model, batch, loss)
    assert_gram(scores, whole_model_gram(model, layer, batch, total))
    torch.testing.assert_close(scores.model_metric, total(model(batch), batch).detach())


def test_a_segmentation_head_is_a_linear_map_over_pixels():
    model, batch = Segmenter(), [torch.randn(7, 3, 5, 6), torch.randint(4, (7, 5, 6))]
    scores = Scorer()(model, batch, cross_entropy)
    assert_gram(scores, whole_model_gram(model, "head", batch, cross_entropy))


def test_a_layer_can_be_named_or_given():
    model, batch = mlp(), vectors()
    expected = whole_model_gram(model, "net.0", batch, cross_entropy)
    assert_gram(Scorer("net.0")(model, batch, cross_entropy), expected)
    assert_gram(Scorer(model.net[0])(model, batch, cross_entropy), expected)


def test_a_layer_without_bias_has_no_bias_gradient():
    model = Classifier(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4, bias=False)))
    batch = vectors()
    assert_gram(Scorer()(model, batch, cross_entropy), whole_model_gram(model, "net.2", batch, cross_entropy))


def snapshot(model):
    return {
        "tensors": [(k, v.clone()) for k, v in model.state_dict(keep_vars=False).items()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "tracking": [getattr(m, "track_running_stats", None) for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "cpu": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
        "grad_mode": torch.is_grad_enabled(),
    }


def assert_same(before, after):
    for (name, a), (_, b) in zip(before["tensors"], after["tensors"], strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(before["grads"], after["grads"], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert torch.equal(before["cpu"], after["cpu"])
    assert np.array_equal(before["numpy"], after["numpy"])
    for key in ("requires_grad", "modes", "tracking", "hooks", "python", "grad_mode"):
        assert before[key] == after[key], key


class Meddling(nn.Module):
    """Does what eval mode does not stop: counts its calls in buffers and draws from every random stream."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last_mean", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        self.last_mean = x.mean().detach().reshape(1)
        noise = float(torch.rand(1)) + np.random.rand() + random.random()
        return nn.functional.dropout(x, 0.1, training=True) + 0 * noise


SIDE_EFFECT_MODELS = {
    "batch_norm": conv_net,
    "no_tracking": lambda: conv_net(lambda n: nn.BatchNorm2d(n, track_running_stats=False)),
    "cumulative_batch_norm": lambda: conv_net(lambda n: nn.BatchNorm2d(n, momentum=None)),
    "instance_norm": lambda: conv_net(lambda n: nn.InstanceNorm2d(n, affine=True, track_running_stats=True)),
    "sync_batch_norm": lambda: conv_net(nn.SyncBatchNorm),
    "meddling": lambda: Classifier(nn.Sequential(nn.Flatten(), Meddling(), nn.Linear(192, 4))),
    "preresnet20_basic": lambda: Classifier(models.build_model("preresnet20_basic", 4)),
    "preresnet56": lambda: Classifier(models.build_model("preresnet56", 4)),
    "resnet9": lambda: Classifier(models.build_model("resnet9", 4)),
}


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("name", SIDE_EFFECT_MODELS)
def test_scoring_leaves_no_trace(name, chunk):
    model = SIDE_EFFECT_MODELS[name]()
    side = 32 if "resnet" in name else 8
    batch = [torch.randn(12, 3, side, side), torch.randint(4, (12,))]
    model.train()
    if name != "sync_batch_norm":  # trains on GPUs only
        cross_entropy(model(batch), batch).backward()
    scorer = Scorer()
    scorer.chunk_limit = chunk
    before = snapshot(model)
    for _ in range(2):
        scorer(model, batch, cross_entropy)
    assert_same(before, snapshot(model))


def test_scoring_leaves_no_trace_when_it_fails():
    model, batch = conv_net(), images()
    model.train()
    model(batch)
    before = snapshot(model)

    def broken(outputs, batch):
        raise RuntimeError("a broken loss")

    with pytest.raises(RuntimeError, match="a broken loss"):
        Scorer("net.6")(model, batch, broken)
    assert_same(before, snapshot(model))


def test_frozen_modules_stay_frozen_and_keep_their_running_statistics_in_use():
    model, batch = conv_net(), images()
    for _ in range(3):
        model([batch[0] + 1, batch[1]])
    model.net[1].eval()
    scores = Scorer()(model, batch, cross_entropy)
    assert not model.net[1].training
    frozen = copy.deepcopy(model).eval()
    torch.testing.assert_close(scores.model_metric, cross_entropy(frozen(batch), batch).detach())


def test_batch_norm_uses_the_pools_own_statistics_and_dropout_is_off():
    model, batch = conv_net(), images()
    model([batch[0] * 3 + 5, batch[1]])  # running statistics far from the pool's
    scores = Scorer()(model, batch, cross_entropy)
    reference = copy.deepcopy(model)
    reference.net[3].eval()
    torch.testing.assert_close(scores.model_metric, cross_entropy(reference(batch), batch).detach())


@pytest.mark.parametrize("chunk", [1, 2, 3, 6, 19, 20, 50])
def test_chunks_give_the_scores_of_the_whole_where_samples_do_not_mix(chunk):
    model, batch = mlp(0.5), vectors(20)
    whole = Scorer()(model, batch, cross_entropy)
    scorer = Scorer()
    scorer.chunk_limit = chunk
    parts = scorer(model, batch, cross_entropy)
    torch.testing.assert_close(parts.inner_products(), whole.inner_products())
    torch.testing.assert_close(parts.model_metric, whole.model_metric)


class Hungry(Classifier):
    """Runs out of memory above a number of samples."""

    fits = 10
    largest = 0  # of the class: attributes of a module are put back after scoring

    def forward(self, batch):
        if len(batch[0]) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        Hungry.largest = max(Hungry.largest, len(batch[0]))
        return super().forward(batch)


def test_batch_norm_can_use_its_running_statistics():
    torch.manual_seed(0)
    model, batch = conv_net(), images()
    for _ in range(3):
        model(images())
    before = copy.deepcopy(model.state_dict())
    scores = Scorer(batch_norm="running")(model, batch, cross_entropy)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.net[1].training
    assert model.net[1].track_running_stats
    pool = Scorer()(model, batch, cross_entropy)
    halves = Scorer(batch_norm="running")
    halves.chunk_limit = 10
    torch.testing.assert_close(halves(model, batch, cross_entropy).inner_products(), scores.inner_products())
    assert not torch.allclose(pool.inner_products(), scores.inner_products(), rtol=1e-2)
    model.eval()
    torch.testing.assert_close(Scorer()(model, batch, cross_entropy).inner_products(), scores.inner_products())


def test_out_of_memory_halves_the_chunk_and_is_remembered():
    model = Hungry(mlp().net)
    batch = vectors(64)
    model.fits = 64
    expected = Scorer()(model, batch, cross_entropy).inner_products()
    model.fits, Hungry.largest = 16, 0
    scorer = Scorer()
    with pytest.warns(UserWarning, match="in chunks of"):
        scores = scorer(model, batch, cross_entropy)
    assert scorer.chunk_limit == 16
    torch.testing.assert_close(scores.inner_products(), expected)
    scorer(model, batch, cross_entropy)  # no second warning, which would be an error
    assert model.largest == 16


def test_out_of_memory_with_two_samples_is_raised():
    model = Hungry(mlp().net)
    scorer = Scorer()
    scorer(model, vectors(8), cross_entropy)
    model.fits = 1
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="in chunks of"):
        scorer(model, vectors(8), cross_entropy)


def test_features_and_logits_are_taken_to_float32_under_autocast():
    model, batch = mlp(), vectors()
    scores = Scorer()(model, batch, cross_entropy, precision=lambda: torch.autocast("cpu", torch.bfloat16))
    assert scores.inputs.dtype == scores.output_grads.dtype == scores.model_metric.dtype == torch.float32
    expected = whole_model_gram(model, "net.3", batch, cross_entropy)
    norms = expected.diagonal().sqrt()
    assert ((scores.inner_products() - expected).abs() / norms.outer(norms)).max() < 0.05


@pytest.mark.parametrize("fault", ["none", "name", "kind", "stranger", "batch", "sum", "vector", "number", "detached"])
def test_what_cannot_be_scored_is_refused_with_what_would_be_right(fault):
    model, batch, layer, loss = mlp(), vectors(), None, cross_entropy
    if fault == "none":
        model = Classifier(nn.Sequential(nn.Conv1d(1, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()))
        batch[0] = torch.randn(20, 1, 9)
        message = r"no last layer found.*modules seen: AdaptiveAvgPool1d, Conv1d, Flatten.*last_layer='name.of.it'"
    elif fault == "name":
        layer, message = "net.9", r"last_layer is 'net.9', which the model does not have.*net.0, net.3"
    elif fault == "kind":
        layer, message = "net.1", r"last_layer is a ReLU: it must be a Linear or a 1x1 convolution"
    elif fault == "stranger":
        layer, message = nn.Linear(2, 2), r"not part of the model"
    elif fault == "batch":
        model = Classifier(nn.Sequential(nn.Flatten(0), nn.Linear(120, 4), nn.Unflatten(0, (1, 4))))
        loss = lambda out, batch: out.mean()  # noqa: E731
        message = r"shape \(.*\) for a batch of .* samples: its first dimension must be the batch|shapes cannot be"
        layer = "net.1"
    elif fault == "sum":
        loss = lambda out, b: nn.functional.cross_entropy(out, b[1], reduction="sum")  # noqa: E731
        message = r"not a mean over the samples: .* when each of them counts twice. Use reduction='mean'"
    elif fault == "vector":
        loss = lambda out, b: nn.functional.cross_entropy(out, b[1], reduction="none")  # noqa: E731
        message = r"the loss has shape \(8,\): EDBA needs a scalar"
    elif fault == "number":
        loss, message = lambda out, b: 3.0, r"the loss has type float"
    else:
        loss, message = lambda out, b: torch.tensor(1.0), r"the loss does not depend on its output"
    with pytest.raises((ValueError, RuntimeError), match=message):
        Scorer(layer)(model, batch, loss)


def test_an_output_whose_first_dimension_is_not_the_batch_is_refused():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 4)

        def forward(self, batch):
            return self.head(batch[0].unsqueeze(0).expand(3, -1, -1)).mean(0)

    with pytest.raises(ValueError, match=r"output has shape \(3, 8, 4\) for a batch of 8 samples"):
        Scorer()(TimeFirst(), vectors(), cross_entropy)


def test_the_last_layer_is_found_anew_for_another_model():
    scorer, batch = Scorer(), vectors()
    scorer(mlp(), batch, cross_entropy)
    other = EarlyRegistered()
    assert_gram(scorer(other, batch, cross_entropy), whole_model_gram(other, "last", batch, cross_entropy))
