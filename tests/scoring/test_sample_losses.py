"""Each sample's own loss from a loss over a batch."""

from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from composer_edba.scoring.sample_losses import sample_losses

B, C = 6, 4


def data(seed=0, size=B):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(size, C, generator=generator, requires_grad=True)
    return outputs, torch.randint(C, (size,), generator=generator)


Named = namedtuple("Named", ["x", "y"])

LOSSES = {
    "cross entropy": lambda outputs, batch: F.cross_entropy(outputs, batch[1]),
    "label smoothing": lambda outputs, batch: F.cross_entropy(outputs, batch[1], label_smoothing=0.2),
    "one-hot": lambda outputs, batch: F.cross_entropy(outputs, F.one_hot(batch[1], C).float()),
    "squared": lambda outputs, batch: F.mse_loss(outputs[:, 0], batch[1].float()),
    "binary": lambda outputs, batch: F.binary_cross_entropy_with_logits(outputs, F.one_hot(batch[1], C).float()),
    "two parts": lambda outputs, batch: (F.cross_entropy(outputs, batch[1]), 0.1 * outputs.square().mean()),
    "total": lambda outputs, batch: {"total": F.cross_entropy(outputs, batch[1]), "other": outputs.mean()},
}


def total(value):
    if isinstance(value, dict):
        return value["total"]
    return sum(value) if isinstance(value, tuple) else value


@given(st.sampled_from(sorted(LOSSES)), st.integers(0, 2**31), st.integers(1, 20))
def test_they_are_those_of_batches_of_one_and_have_the_loss_as_their_mean(name, seed, size):
    loss = LOSSES[name]
    outputs, target = data(seed, size)
    losses = sample_losses(loss, outputs, [torch.zeros(size, 3), target], size)
    one_by_one = [total(loss(outputs[i : i + 1], [None, target[i : i + 1]])) for i in range(size)]
    torch.testing.assert_close(losses, torch.stack(one_by_one).detach())
    torch.testing.assert_close(losses.mean(), total(loss(outputs, [None, target])).detach())
    assert not losses.requires_grad


@pytest.mark.parametrize("kind", [list, tuple, dict, Named])
def test_batches_of_any_nesting(kind):
    outputs, target = data()
    batch = {"x": target, "y": target} if kind is dict else Named(target, target)
    batch = batch if kind in (dict, Named) else kind(batch)
    key = "y" if kind is dict else 1
    losses = sample_losses(lambda o, b: F.cross_entropy(o["logits"], b[key]), {"logits": outputs, "n": 3}, batch, B)
    torch.testing.assert_close(losses, F.cross_entropy(outputs, target, reduction="none").detach())


def looks_at_values(outputs, batch):
    return outputs.mean() if outputs.max().item() > 0 else outputs.sum()


def needs_two(outputs, batch):
    if len(outputs) < 2:
        raise AssertionError("two samples, please")
    return outputs.mean()


def draws(outputs, batch):
    return (outputs * torch.rand_like(outputs)).mean()


@pytest.mark.parametrize("loss", [looks_at_values, needs_two, draws])
def test_a_loss_that_cannot_be_mapped_gives_none(loss):
    outputs, target = data()
    before = torch.get_rng_state()
    assert sample_losses(loss, outputs, [None, target], B) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert outputs.grad is None


def test_class_weights_are_seen_in_the_mean():
    """Such a loss is no mean over samples; its caller compares the two."""
    weight = torch.tensor([0.1, 1.0, 3.0, 9.0])
    outputs, target = data()
    losses = sample_losses(lambda o, b: F.cross_entropy(o, b[1], weight), outputs, [None, target], B)
    assert abs(losses.mean() - F.cross_entropy(outputs, target, weight)) > 0.01


@pytest.mark.parametrize("what", ["outputs", "target"])
def test_a_loss_that_works_in_place_is_tried_on_copies_and_gives_none(what):
    def in_place(outputs, batch):
        return F.cross_entropy(
            *((outputs.mul_(2), batch[1]) if what == "outputs" else (outputs, batch[1].sub_(1).abs()))
        )

    outputs, target = data()
    before = outputs.detach().clone(), target.clone()
    assert sample_losses(in_place, outputs, [None, target], B, trial=True) is None
    assert torch.equal(outputs, before[0])
    assert torch.equal(target, before[1])
