"""Networks that mix samples are found, the module is named, and nothing is changed by looking."""

import copy

import pytest
import torch
from torch import nn

from composer_edba.dba.sample_mixing import check_samples_stay_apart


class Centred(nn.Module):
    """Subtracts the batch's mean, in training alone; remembers it in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        if not self.training:
            return x - self.mean
        self.mean.lerp_(x.mean(0).detach(), 0.1)
        return x - x.mean(0)


class Attending(nn.Module):
    """Mixes in a forward of its own, between layers that do not."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.a(x)
        return self.b((x @ x.T).softmax(1) @ x)


def network(*layers):
    return nn.Sequential(nn.Linear(4, 4), *layers, nn.Linear(4, 2))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Identity(),
        nn.LayerNorm(4),
        nn.GroupNorm(2, 4),
        nn.Dropout(0.5),
        nn.Sequential(nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2), nn.Flatten()),
        nn.Sequential(
            nn.Unflatten(1, (2, 2)), nn.TransformerEncoderLayer(2, 1, 4, 0.1, batch_first=True), nn.Flatten()
        ),
    ],
    ids=lambda layer: type(layer).__name__ if not isinstance(layer, nn.Sequential) else type(layer[1]).__name__,
)
@pytest.mark.parametrize("samples", [1, 2, 20])
def test_samples_that_stay_apart_pass(layer, samples):
    check_samples_stay_apart(network(layer).train(), torch.randn(samples, 4))


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.BatchNorm1d(4), r"'1' \(BatchNorm1d\) normalises over the samples.*GroupNorm"),
        (nn.SyncBatchNorm(4), r"'1' \(SyncBatchNorm\) normalises over the samples"),
        (Centred(), r"'1' \(Centred\) mixes samples.*GroupNorm"),
        (Attending(), r"'1' \(Attending\) mixes samples"),
        (nn.Sequential(nn.Tanh(), Centred()), r"'1\.1' \(Centred\) mixes samples"),
        # Sequence first: dimension 1 is the batch, and attention runs over samples.
        (
            nn.Sequential(nn.Unflatten(1, (2, 2)), nn.TransformerEncoderLayer(2, 1, 4), nn.Flatten()),
            r"'1\.1.*' \(.*\) mixes samples",
        ),
    ],
    ids=["batch_norm", "sync_batch_norm", "own", "between_layers", "nested", "wrong_dimension"],
)
def test_samples_that_mix_are_refused_by_name(layer, named):
    with pytest.raises(ValueError, match=named):
        check_samples_stay_apart(network(layer).train(), torch.randn(6, 4))


def test_what_mixes_only_in_training_is_fine_when_frozen():
    for layer in (nn.BatchNorm1d(4), Centred()):
        check_samples_stay_apart(network(layer.eval()), torch.randn(6, 4))


def test_nothing_changes():
    model = network(Centred(), nn.Dropout(0.5)).train()
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(ValueError, match="Centred"):
        check_samples_stay_apart(model, torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_batches_with_structure():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network(Centred())

        def forward(self, batch):
            return {"logits": self.net(batch["x"])}

    with pytest.raises(ValueError, match=r"'net\.1' \(Centred\)"):
        check_samples_stay_apart(Named().train(), {"x": torch.randn(6, 4), "y": torch.randint(2, (6,))})
