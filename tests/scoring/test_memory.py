"""Large vocabularies times long sequences: bounded blocks, and an error before memory ends."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from composer_edba.functional import gradient_inner_products
from composer_edba.method import equation
from composer_edba.scoring.forward import Scorer
from composer_edba.scoring.memory import check_score_memory


class LargestTensor(TorchDispatchMode):
    """Notes the elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for tensor in result if isinstance(result, (list, tuple)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize(
    ("samples", "positions", "features", "classes"),
    [
        (6, 40, 16, 3000),  # over gradients: 288,000 numbers if made at once
        (30, 5, 200, 900),  # over pairs of positions
        (4, 3000, 8, 5),  # a segmentation head
    ],
)
def test_inner_products_stay_within_a_block_whatever_the_sizes(monkeypatch, samples, positions, features, classes):
    h, d = torch.randn(samples, positions, features), torch.randn(samples, positions, classes)
    gradients = torch.einsum("btc,btf->bcf", d.double(), h.double()).flatten(1)
    biases = d.double().sum(1)
    expected = gradients @ gradients.T + biases @ biases.T
    block = 20_000
    monkeypatch.setattr(equation, "_BLOCK_FLOATS", block)
    with LargestTensor() as largest:
        products = gradient_inner_products(h, d)
    # One row of pairs, one class of gradients or one slice of d is the least that a block can be.
    allowed = max(block, samples * features, samples * positions, positions**2 * samples if positions == 5 else 0)
    assert largest.elements <= allowed
    norms = expected.diagonal().sqrt()
    assert ((products - expected).abs() / norms.outer(norms)).max() < 1e-5


def test_the_error_names_the_sizes_and_what_would_fit():
    with pytest.raises(ValueError, match="scoring 1000 samples at 4096 positions each") as caught:
        check_score_memory(1000, 4096, 768, 50_257, torch.device("cpu"), limit=8 * 2**30)
    message = str(caught.value)
    assert "768 inputs and 50257 outputs of the last layer, would keep 779 GiB, and EDBA stays below 8 GiB" in message
    assert "batches of at most 10 samples (max_batch_size), or name a narrower layer as last_layer" in message
    check_score_memory(10, 4096, 768, 50_257, torch.device("cpu"), limit=8 * 2**30)


class Tokens(nn.Module):
    """Spreads a number over many tokens and a vocabulary; counts the samples of its forward passes."""

    largest = 0  # of the class: attributes of a module are put back after scoring

    def __init__(self, tokens=200, vocabulary=300):
        super().__init__()
        self.tokens, self.body, self.head = tokens, nn.Linear(1, 4), nn.Linear(4, vocabulary)

    def forward(self, batch):
        Tokens.largest = max(Tokens.largest, len(batch[0]))
        h = self.body(batch[0]).tanh().unsqueeze(1).expand(-1, self.tokens, -1)
        return self.head(h)


def cross_entropy(outputs, batch):
    return nn.functional.cross_entropy(outputs.flatten(0, 1), batch[1].repeat_interleave(outputs.shape[1]))


def test_a_pool_that_would_not_fit_is_refused_after_the_probe_alone(monkeypatch):
    monkeypatch.setattr("composer_edba.scoring.memory.device_memory", lambda device: 5 * 4 * 200 * 304 * 44)
    model, Tokens.largest = Tokens(), 0
    batch = [torch.randn(64, 1), torch.randint(300, (64,))]
    with pytest.raises(ValueError, match=r"scoring 64 samples at 200 positions.*at most 44 samples"):
        Scorer()(model, batch, cross_entropy)
    assert model.largest == 16  # eight samples, each twice
    # A narrower layer is the way out that the error names.
    assert Scorer("body")(model, batch, cross_entropy).inputs.shape == (64, 1)


def test_a_pool_that_has_grown_too_large_is_refused_before_its_forward(monkeypatch):
    model, scorer = Tokens(10, 30), Scorer()
    batch = [torch.randn(64, 1), torch.randint(30, (64,))]
    monkeypatch.setattr("composer_edba.scoring.memory.device_memory", lambda device: 5 * 4 * 340 * 40)
    scorer(model, [tensor[:40] for tensor in batch], cross_entropy)
    Tokens.largest = 0
    with pytest.raises(ValueError, match=r"scoring 64 samples at 10 positions.*at most 40 samples"):
        scorer(model, batch, cross_entropy)
    assert model.largest == 0
