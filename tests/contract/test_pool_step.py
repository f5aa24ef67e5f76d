"""With refill=False a step on a part of a pool has the size of the pool's, where the loss is the loop's business."""

import copy

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from torch.nn import functional as F

from composer_edba.ignite import EDBAHandler
from composer_edba.plain import SubsetLoader
from tests.support.torch_runs import loader, net

MASS = {"criterion": "gradient_mass", "interval": 1, "left_out": 0.3, "min_subset_size": 4, "refill": False}


def by_hand(model, batch, pool, dtype):
    """The gradients of the sum over the batch by the size of the pool."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    twin.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        (F.cross_entropy(twin(batch[0]), batch[1], reduction="sum") / pool).backward()
    return [parameter.grad for parameter in twin.parameters()]


@pytest.mark.parametrize("scoring", ["forward", "cached"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_in_a_plain_loop(scoring, dtype, parts, scale):
    """Also under autocast, with gradients accumulated over parts of the batch, and with a scaled loss."""
    model = net(dropout=0.0, batch_norm=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def precision():
        return torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None)

    data = SubsetLoader(loader(), model, F.cross_entropy, scoring=scoring, precision=precision, seed=1, **MASS)
    fewer = 0
    for _ in range(4):
        for x, y in data:
            wanted = by_hand(model, (x, y), data.figures["batch_size"], dtype)
            optimizer.zero_grad()
            for xs, ys in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
                with precision():
                    loss = F.cross_entropy(model(xs), ys) * (len(xs) / len(x))
                (loss * scale).backward()
            fewer += len(x) < data.figures["batch_size"]
            tolerance = {"rtol": 1e-4, "atol": 1e-6} if dtype is None else {"rtol": 0.05, "atol": 2e-3}
            for parameter, gradient in zip(model.parameters(), wanted, strict=True):
                parameter.grad /= scale
                torch.testing.assert_close(parameter.grad, gradient, **tolerance)
            optimizer.step()
    assert fewer > 6
    assert not model.fc._forward_hooks
    assert not model._forward_hooks


@pytest.mark.parametrize("scoring", ["forward", "cached"])
def test_in_ignite(scoring):
    model = net(dropout=0.0, batch_norm=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer, seen = create_supervised_trainer(model, optimizer, F.cross_entropy), []
    handler = EDBAHandler(model, F.cross_entropy, scoring=scoring, seed=1, **MASS)
    data = loader()
    handler.attach(trainer, data)

    @trainer.on(Events.GET_BATCH_COMPLETED)
    def before(engine):
        pool = engine.state.edba["batch_size"]
        engine.state.wanted = by_hand(model, engine.state.batch, pool, None)
        seen.append(len(engine.state.batch[0]) < pool)

    @trainer.on(Events.ITERATION_COMPLETED)
    def after(engine):
        for parameter, gradient in zip(model.parameters(), engine.state.wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)

    trainer.run(data, max_epochs=4)
    assert sum(seen) > 6


def test_a_layer_that_is_called_twice_cannot_be_given_the_pools_size_there():
    model = net(dropout=0.0, batch_norm=False)
    model.forward = lambda x: model.fc(model.body(x[:, 1:])) + model.fc(model.body(x[:, 1:]).tanh())

    def train(**settings):
        data = SubsetLoader(loader(), model, F.cross_entropy, scoring="cached", seed=1, **{**MASS, **settings})
        for _ in range(3):
            for x, y in data:
                F.cross_entropy(model(x), y).backward()
        return data.figures

    with pytest.raises(ValueError, match=r"called more than once in a forward.*refill=True"):
        train()
    refilled = train(refill=True)
    assert refilled["samples_trained"] < refilled["samples_drawn"] == 3 * 256
