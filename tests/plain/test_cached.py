"""scoring="cached" in a plain loop: what is remembered does not depend on what the loop does with its own loss."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from composer_edba import SubsetLoader
from composer_edba.scoring.forward import Scorer
from tests.support.torch_runs import loader, net, points, sgd

LOSS = nn.CrossEntropyLoss()


def quiet_net():
    """What is remembered of it is what a scoring forward finds at the end, if nothing moves its weights."""
    return net(dropout=0.0, batch_norm=False)


def wrapped(model, **settings):
    return SubsetLoader(loader(), model, LOSS, **{"preset": "paper", "scoring": "cached", "seed": 3, **settings})


def remembered(subsets):
    cache = subsets._loop.engine.remembered.cache
    return cache.scores(torch.arange(256).numpy(), torch.device("cpu"))


def fresh(model):
    x, y = points().tensors
    return Scorer()(_OfPair(model), (x, y), lambda outputs, batch: LOSS(outputs, batch[1]))


class _OfPair(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model(batch[0])


def assert_fresh(subsets, model):
    got, expected = remembered(subsets), fresh(model)
    torch.testing.assert_close(got.inputs, expected.inputs)
    torch.testing.assert_close(got.output_grads, expected.output_grads, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.model_metric, expected.model_metric)


@pytest.mark.parametrize("scale", [1.0, 1 / 8, 2.0**12], ids=["plain", "accumulated", "scaled"])
def test_the_loops_own_scale_of_the_loss_does_not_matter(scale):
    model = quiet_net()
    subsets = wrapped(model)
    for _ in range(2):
        for x, y in subsets:
            (LOSS(model(x), y) * scale).backward()
    assert_fresh(subsets, model)


def test_a_batch_may_go_through_in_parts():
    model = quiet_net()
    subsets = wrapped(model)
    for x, y in subsets:
        for part_x, part_y in zip(x.split(20), y.split(20), strict=True):
            (LOSS(model(part_x), part_y) * len(part_x) / len(x)).backward()
    assert_fresh(subsets, model)


def test_a_forward_of_the_users_own_gives_what_the_loss_takes():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.temperature = quiet_net(), 2.0

        def forward(self, x):
            return {"logits": self.net(x)}

    def forward(model, x):
        return model(x)["logits"] / model.temperature

    model = Named()
    subsets = wrapped(model, forward=forward)
    for x, y in subsets:
        LOSS(forward(model, x), y).backward()
    x, y = points().tensors
    expected = Scorer()(_OfPair(model.net), (x, y), lambda outputs, batch: LOSS(outputs / 2.0, batch[1]))
    torch.testing.assert_close(remembered(subsets).output_grads, expected.output_grads, rtol=1e-4, atol=1e-6)


def test_recording_leaves_the_training_as_it_is():
    """With the whole pool always chosen, the weights are those of a loop without EDBA, and so are the streams."""

    def train(cached):
        torch.manual_seed(5)
        model, data = net(), loader()
        subsets = SubsetLoader(
            data,
            model,
            LOSS,
            criterion="margin",
            scoring="cached",
            subset_size_law=1.0,
            interval=1,
            batch_size_policy="fixed",
            seed=0,
        )
        optimizer = sgd(model)
        for _ in range(3):
            for x, y in subsets if cached else data:
                optimizer.zero_grad()
                LOSS(model(x), y).backward()
                optimizer.step()
        return [*model.state_dict().values(), torch.get_rng_state()]

    assert all(map(torch.equal, train(True), train(False)))


def test_evaluation_and_a_second_forward_inside_of_the_loop_are_not_recorded():
    model = quiet_net()
    subsets = wrapped(model)
    for x, y in subsets:
        with torch.no_grad():
            model(torch.zeros_like(x))
        LOSS(model(x), y).backward()
        LOSS(model(torch.ones_like(x)), y).backward()
    assert_fresh(subsets, model)


def test_a_batch_that_is_left_out_stays_unknown_and_is_warned_of_once():
    model = quiet_net()
    subsets = wrapped(model)

    def train():
        for number, (x, y) in enumerate(subsets):
            if number > 1:
                LOSS(model(x), y).backward()

    with pytest.warns(UserWarning, match="did not go through the model in training") as caught:
        train()
    assert len(caught) == 1
    assert int((subsets._loop.engine.remembered.cache.steps < 0).sum()) == 128


def test_only_what_is_chosen_is_loaded():
    model = quiet_net()
    subsets, optimizer = wrapped(model, min_subset_size=5), sgd(model)
    loads, trained = [], []
    inner = subsets.dataset.__class__.__getitem__

    class Counting(subsets.dataset.__class__):
        def __getitem__(self, index):
            loads.append(index)
            return inner(self, index)

    subsets.dataset.__class__ = Counting
    for _ in range(4):
        for x, y in subsets:
            trained += x[:, 0].long().tolist()
            optimizer.zero_grad()
            LOSS(model(x), y).backward()
            optimizer.step()
    assert sorted(loads) == sorted(trained)
    assert len(trained) < 4 * 256


def test_training_another_model_is_told():
    """A model that is not the one that was given is never seen to train."""
    model = quiet_net()
    subsets, other = wrapped(model), copy.deepcopy(model)

    def train():
        for x, y in subsets:
            F.cross_entropy(other(x), y).backward()

    with pytest.warns(UserWarning, match="did not go through the model"):
        train()


def test_no_warning_in_an_ordinary_run():
    model = quiet_net()
    subsets, optimizer = wrapped(model), sgd(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            for x, y in subsets:
                optimizer.zero_grad()
                LOSS(model(x), y).backward()
                optimizer.step()
