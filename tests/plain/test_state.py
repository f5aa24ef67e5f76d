"""What a plain loop's state tells of the settings it was saved with."""

import copy
import pickle
import warnings

import pytest
import torch

from composer_edba import SubsetLoader
from tests.support.torch_runs import loader, net, points, sgd

LOSS = torch.nn.CrossEntropyLoss()


def trained(passes=1, **settings):
    model = net()
    subsets, optimizer = SubsetLoader(loader(), model, LOSS, seed=3, **settings), sgd(model)
    for _ in range(passes):
        for inputs, target in subsets:
            optimizer.zero_grad()
            LOSS(model(inputs), target).backward()
            optimizer.step()
    return subsets, model


def test_other_settings_are_told_and_the_same_are_not():
    saved = trained(interval=2)[0].state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SubsetLoader(loader(), net(), LOSS, seed=3, interval=2).load_state_dict(saved)
    again = SubsetLoader(loader(), net(), LOSS, seed=3, ema_decay=0.5)
    with pytest.warns(UserWarning, match=r"ema_decay: 0.9 -> 0.5, interval: 2 -> 1\. The") as caught:
        again.load_state_dict(saved)
    assert len(caught) == 1
    assert again.state_dict()["settings"]["interval"] == 1
    assert again.state_dict()["selector"] == saved["selector"]


def test_another_seed_than_the_states_counts():
    saved = trained(criterion="margin")[0].state_dict()
    again = SubsetLoader(loader(), net(), LOSS, seed=4, criterion="margin")
    with pytest.warns(UserWarning, match=r"now\): seed: 3 -> 4\. The"):
        again.load_state_dict(saved)
    next(iter(again))
    assert again.state_dict()["seed"] == 4


# ---- hooks of scoring="cached"


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def assert_free(model):
    assert hooks(model) == 0
    pickle.dumps(model)
    copy.deepcopy(model)


def test_no_hook_stays_on_the_model_between_passes():
    subsets, model = trained(2, preset="paper", scoring="cached")
    assert_free(model)
    steps = subsets._loop.engine.remembered.cache.steps.copy()
    inside = []
    for inputs, target in subsets:
        inside.append(hooks(model))
        LOSS(model(inputs), target).backward()
    assert set(inside) == {3}
    assert (subsets._loop.engine.remembered.cache.steps > steps).any()
    assert_free(model)


def test_nor_after_a_pass_that_is_broken_off_or_fails_and_its_last_step_counts():
    saved = []
    for way in ("state inside", "broken off", "failed"):
        torch.manual_seed(5)
        model = net(dropout=0.0)
        subsets = SubsetLoader(loader(), model, LOSS, seed=3, preset="paper", scoring="cached")
        try:
            for number, (inputs, target) in enumerate(subsets):
                LOSS(model(inputs), target).backward()
                if number == 2 and way == "state inside":
                    subsets.state_dict()
                if number == 2 and way == "failed":
                    raise RuntimeError("stop")
                if number == 2:
                    break
        except RuntimeError:
            pass
        assert_free(model)
        saved.append(subsets.state_dict()["remembered"])
    assert saved[0] == saved[1] == saved[2]


def test_putting_them_back_compiles_nothing_anew():
    torch._dynamo.reset()
    graphs, model = [], net()

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled, optimizer = torch.compile(model, backend=backend), sgd(model)
    subsets = SubsetLoader(loader(), model, LOSS, seed=3, preset="paper", scoring="cached")
    counts = []
    for _ in range(6):
        for inputs, target in subsets:
            optimizer.zero_grad()
            LOSS(compiled(inputs), target).backward()
            optimizer.step()
        compiled.eval()
        with torch.no_grad():
            compiled(points().tensors[0])
        compiled.train()
        counts.append(len(graphs))
    torch._dynamo.reset()
    assert counts[1:] == counts[1:2] * 5
    assert int(subsets._loop.engine.remembered.cache.steps.min()) > 0
