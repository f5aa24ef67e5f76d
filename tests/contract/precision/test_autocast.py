"""Half precision in the network, float32 in what EDBA makes of it.

On a CPU Composer's own precision contexts do nothing and its Trainer takes float32 only, so the networks here bring
torch.autocast themselves. amp_fp16 with its gradient scaler needs a GPU and has not been run.
"""

import math

import pytest
import torch
from composer import Trainer
from composer.core import Precision, get_precision_context
from composer.models import ComposerClassifier
from torch import nn

from composer_edba import EDBA
from composer_edba.functional import Averages, gradient_inner_products, select_subset, subset_gradient_norms
from composer_edba.scoring.forward import Scorer
from tests.support.small_runs import CLASSES, FEATURES, Points, Watch, logged, trainer


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


class UnderAutocast(ComposerClassifier):
    """The whole network, and if asked for the loss too, under bfloat16 autocast; notes the type of its outputs."""

    loss_too = False

    def forward(self, batch):
        with bf16():
            outputs = super().forward(batch)
        self.output_type = outputs.dtype
        return outputs

    def loss(self, outputs, batch):
        if not self.loss_too:
            return super().loss(outputs, batch)
        with bf16():
            return nn.functional.cross_entropy(outputs, batch[1])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, CLASSES))


def points():
    data = Points()
    return [data.x[:100], data.y[:100]]


def score(model, batch):
    return Scorer()(model, batch, lambda outputs, batch: model.loss(outputs, batch))


@pytest.mark.parametrize("precision", ["amp_bf16", "amp_fp16"])
def test_composer_takes_no_half_precision_on_a_cpu(precision):
    """The evidence for what is said above; where this changes, the tests can use the Trainer's own precision."""
    with pytest.raises(ValueError, match="not supported for CPU training"):
        Trainer(model=ComposerClassifier(network(), num_classes=CLASSES), precision=precision, device="cpu")
    with get_precision_context(Precision(precision)):
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("loss_too", [False, True])
def test_it_trains_under_bf16_autocast(loss_too):
    model, watch = UnderAutocast(network(), num_classes=CLASSES), Watch()
    model.loss_too = loss_too
    run = trainer([EDBA.paper()], model=model, callbacks=[watch], max_duration="15ep")
    run.fit()
    assert model.output_type == torch.bfloat16
    assert 10 <= min(watch.subsets) < 64
    losses = logged(run, "edba/model_metric")
    assert all(map(math.isfinite, losses + logged(run, "edba/gradient_metric")))
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    # Float32 metrics hold more digits than bfloat16's eight bits.
    assert any(value != float(torch.tensor(value).bfloat16()) for value in logged(run, "edba/gradient_metric"))


@pytest.mark.parametrize("loss_too", [False, True])
def test_scores_under_bf16_are_float32_and_close_to_those_in_float32(loss_too):
    model, batch = UnderAutocast(network(), num_classes=CLASSES), points()
    model.loss_too = loss_too
    scores = score(model, batch)
    assert scores.inputs.dtype == scores.output_grads.dtype == scores.model_metric.dtype == torch.float32
    exact = score(ComposerClassifier(network(), num_classes=CLASSES), batch)
    expected, got = exact.inner_products(), scores.inner_products()
    norms = expected.diagonal().sqrt()
    assert ((got - expected).abs() / norms.outer(norms)).max() < 0.05
    # Rounded features, but exact sums: what the inner products make of the scores is float32's.
    h, d = scores.inputs.double(), scores.output_grads.double()
    exact_products = (h @ h.T + 1) * (d @ d.T)
    norms = exact_products.diagonal().sqrt()
    assert ((got - exact_products).abs() / norms.outer(norms)).max() < 1e-5


@pytest.mark.parametrize("law", ["uniform", "power_set", 0.3])
def test_inner_products_and_selection_inside_of_autocast_are_those_outside(law):
    h, d = torch.randn(60, 32), torch.randn(60, 10)
    positions = torch.randn(20, 5, 8), torch.randn(20, 5, 3)
    masks = torch.rand(30, 60) < 0.5

    def everything():
        products = gradient_inner_products(h, d)
        generator = torch.Generator().manual_seed(0)
        chosen = select_subset(products, 1.5, Averages(1.0, 3.0), subset_size_law=law, generator=generator)
        return products, gradient_inner_products(*positions), subset_gradient_norms(products, masks), chosen

    outside = everything()
    with bf16():
        inside = everything()
    for a, b in zip(outside[:3], inside[:3], strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a, b)
    assert torch.equal(outside[3].indices, inside[3].indices)
    assert outside[3].margin == inside[3].margin


def test_scoring_and_training_can_share_one_autocast_context():
    """Autocast would hand the scoring's copies of the weights, made without gradients, to the training forward."""
    model, batch = ComposerClassifier(network(), num_classes=CLASSES), points()
    with bf16():
        score(model, batch)
        loss = nn.functional.cross_entropy(model(batch), batch[1])
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_batches_of_bf16_trained_in_bf16_weights():
    """No autocast at all: the network itself is bfloat16."""
    model = ComposerClassifier(network().bfloat16(), num_classes=CLASSES)
    data = Points()
    data.x = data.x.bfloat16()
    loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)
    watch = Watch()
    run = trainer([EDBA.paper()], model=model, loader=loader, callbacks=[watch], max_duration="4ep")
    run.fit()
    assert min(watch.subsets) < 64
    assert all(map(math.isfinite, logged(run, "edba/gradient_metric")))
