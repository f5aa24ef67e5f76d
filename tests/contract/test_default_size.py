"""By default the batch is the loader's, whatever the loss."""

from functools import cache

import pytest
import torch
from composer.models import ComposerModel
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from composer_edba import EDBA, SubsetLoader
from tests.support.small_runs import logged, trainer

SAMPLES, BATCH, EPOCHS = 1024, 32, 5


def mse(outputs, targets):
    return F.mse_loss(outputs[:, :1], targets)


def nll(outputs, targets):
    """Gaussian, of a mean and the logarithm of a variance: below zero before long."""
    return F.gaussian_nll_loss(outputs[:, :1], targets, outputs[:, 1:].exp())


def loader():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, 8, generator=generator)
    y = x[:, :1].sin() + x[:, 1:2] + 0.1 * torch.randn(SAMPLES, 1, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))


class Regression(ComposerModel):
    def __init__(self, loss_fn):
        super().__init__()
        self.net, self.loss_fn = net(), loss_fn

    def forward(self, batch):
        return self.net(batch[0])

    def loss(self, outputs, batch):
        return self.loss_fn(outputs, batch[1])


@pytest.mark.parametrize("loss_fn", [mse, nll])
def test_a_regression_is_trained_on_batches_of_the_loaders_size(loss_fn):
    model = Regression(loss_fn)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    run = trainer([edba := EDBA()], model=model, loader=loader(), max_duration=f"{EPOCHS}ep", optimizers=optimizer)
    run.fit()
    trained = logged(run, "edba/subset_size")
    full = [size for size in trained if size == BATCH]
    assert edba.batch_size == BATCH
    assert len(full) >= len(trained) - 3 * EPOCHS, "but for the ends of passes"
    assert len(trained) < EPOCHS * SAMPLES // BATCH, "some samples were left out"
    assert logged(run, "edba/samples_drawn")[-1] == EPOCHS * SAMPLES


def sizes(loss_fn, scale=1.0, shift=0.0):
    """The sizes of all batches of a run in a plain loop, trained on the scaled and shifted loss."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)

    def loss(outputs, targets):
        return scale * loss_fn(outputs, targets) + shift

    subsets, drawn = SubsetLoader(loader(), model, loss, seed=0), []
    for _ in range(EPOCHS):
        for inputs, target in subsets:
            optimizer.zero_grad()
            loss(model(inputs), target).backward()
            optimizer.step()
            drawn.append(len(target))
    return drawn


unchanged = cache(sizes)


@pytest.mark.parametrize("loss_fn", [mse, nll])
@pytest.mark.parametrize(("scale", "shift"), [(100.0, 0.0), (1.0, 2.0), (1.0, -2.0)])
def test_the_losss_scale_and_zero_change_no_size(loss_fn, scale, shift):
    assert sizes(loss_fn, scale, shift) == unchanged(loss_fn)
