"""EDBA on tasks beyond image classification: trains, and measures the gradients that the model really has.

Where the loss is a mean over all positions (tokens, pixels) that count, sample i with n_i of N such positions
contributes g_i = (B n_i / N) ∇ (its own mean loss): then the mean of the g_i over the pool is the pool's gradient, and
that over a subset the subset's, but for the factor by which its samples have more positions than the pool's have.
"""

import pytest
import torch
from composer import DataSpec, Event, Trainer
from composer.loggers import InMemoryLogger
from torch.utils.data import DataLoader

from composer_edba import EDBA
from composer_edba.functional import Averages, select_subset
from composer_edba.loading.batch import batch_size, index_batch
from composer_edba.loading.parts import balanced_parts
from composer_edba.scoring.forward import Scorer
from tests.contract.tasks.tasks import TASKS

BATCH = 32


def made(name):
    torch.manual_seed(0)
    model, data = TASKS[name].make()
    return TASKS[name], model, DataLoader(data, batch_size=BATCH, shuffle=True)


def last_layer_gradient(model, layer, batch):
    loss = model.loss(model(batch), batch)
    gradients = torch.autograd.grad(loss, list(model.get_submodule(layer).parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def counted_positions(task, batch):
    """Positions of each sample that count in the loss, (B,)."""
    if task.positions is None:
        return torch.ones(batch_size(batch))
    return task.positions(batch).flatten(1).sum(1).float()


def brute_force_gram(task, model, batch):
    """⟨g_i, g_j⟩ from one forward and backward pass of the real model for each sample."""
    size = batch_size(batch)
    counts = counted_positions(task, batch)
    gradients = []
    for sample in range(size):
        gradient = last_layer_gradient(model, task.layer, index_batch(batch, torch.tensor([sample]), size))
        gradients.append(gradient * counts[sample] * size / counts.sum())
    stacked = torch.stack(gradients)
    return stacked @ stacked.T


@pytest.mark.parametrize("limit", [None, 7])
@pytest.mark.parametrize("name", TASKS)
def test_inner_products_are_those_of_brute_force_gradients(name, limit):
    task, model, loader = made(name)
    batch = next(iter(loader))
    expected = brute_force_gram(task, model, batch)
    scorer = Scorer()
    scores = scorer(model, batch, lambda outputs, batch: model.loss(outputs, batch))
    assert scorer._layer is model.get_submodule(task.layer)
    norms = expected.diagonal().sqrt()
    scale = norms.outer(norms)
    assert ((scores.inner_products() - expected).abs() <= 1e-5 * scale).all()
    assert scores.inner_products().mean().clamp_min(0).sqrt() == pytest.approx(
        float(last_layer_gradient(model, task.layer, batch).norm()), rel=1e-4
    )
    if limit is None:
        return
    # In chunks each one's mean counts by its samples, as in Composer's microbatches.
    scorer.chunk_limit = limit
    chunked = scorer(model, batch, lambda outputs, batch: model.loss(outputs, batch))
    parts = [index_batch(batch, part, BATCH) for part in torch.arange(BATCH).split(balanced_parts(BATCH, limit))]
    counts = counted_positions(task, batch)
    factors = torch.cat([(counts.mean() / counted_positions(task, p).mean()).expand(batch_size(p)) for p in parts])
    assert ((chunked.inner_products() - expected * factors.outer(factors)).abs() <= 1e-4 * scale).all()


class Pools:
    """Has EDBA tell which pool it chose from, what it chose, and with which last-layer gradient that trains."""

    def __init__(self, edba, task, model):
        self.positions, self.gradients, self.sizes = [], [], []
        apply = edba.apply

        def watched(event, state, logger):
            pool = state.batch if event == Event.AFTER_DATALOADER else None
            apply(event, state, logger)
            if event != Event.AFTER_DATALOADER:
                return
            self.sizes.append(batch_size(state.batch))
            ratio = counted_positions(task, state.batch).mean() / counted_positions(task, pool).mean()
            self.gradients.append(float(last_layer_gradient(model, task.layer, state.batch).norm() * ratio))

        edba.apply = watched


@pytest.mark.parametrize("name", TASKS)
def test_it_trains_on_the_subset_whose_gradient_was_measured(name):
    task, model, loader = made(name)
    edba, logger = EDBA.paper(), InMemoryLogger()
    pools = Pools(edba, task, model)
    trainer = Trainer(
        model=model,
        train_dataloader=loader
        if task.split is None
        else DataSpec(loader, split_batch=task.split, get_num_samples_in_batch=batch_size),
        max_duration="6ep",
        optimizers=torch.optim.Adam(model.parameters(), 3e-3),
        algorithms=[edba],
        loggers=[logger],
        progress_bar=False,
        seed=3,
    )
    trainer.fit()
    measured = [float(value) for _, value in logger.data["edba/gradient_metric"]]
    assert measured == pytest.approx(pools.gradients, rel=1e-3, abs=1e-6)
    assert min(pools.sizes) < BATCH
    losses = [float(value) for _, value in logger.data["edba/model_metric"]]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_a_pool_without_any_position_that_counts_is_taken_whole():
    """Its loss is 0 / 0, in training too; the averages must not take that in."""
    _, model, loader = made("token_classifier")
    batch = next(iter(loader))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    scores = Scorer()(model, batch, lambda outputs, batch: model.loss(outputs, batch))
    selection = select_subset(scores.inner_products(), scores.model_metric, Averages(3.0, 1.0))
    assert not selection.finite
    assert len(selection.indices) == BATCH


def test_a_subset_without_any_position_that_counts_is_never_chosen():
    """Its loss would be 0 / 0, though a gradient metric of zero may be just what the margin asks for."""
    _, model, loader = made("token_classifier")
    batch = next(iter(loader))
    batch["labels"][1:] = -100
    scores = Scorer()(model, batch, lambda outputs, batch: model.loss(outputs, batch))
    for seed in range(20):
        selection = select_subset(
            scores.inner_products(),
            scores.model_metric,
            Averages(float(scores.model_metric) + 1, 1.0),  # wants a metric of 0
            generator=torch.Generator().manual_seed(seed),
        )
        assert 0 in selection.indices
