"""What a plain loop's state tells of the settings it was saved with."""

import warnings

import pytest
import torch

from composer_edba import SubsetLoader
from tests.support.torch_runs import loader, net, sgd

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
    saved = trained(interval=1)[0].state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SubsetLoader(loader(), net(), LOSS, seed=3, interval=1).load_state_dict(saved)
    again = SubsetLoader(loader(), net(), LOSS, seed=3, ema_decay=0.5)
    with pytest.warns(UserWarning, match=r"ema_decay: 0.9 -> 0.5, interval: 1 -> 10\. The") as caught:
        again.load_state_dict(saved)
    assert len(caught) == 1
    assert again.state_dict()["settings"]["interval"] == 10
    assert again.state_dict()["selector"] == saved["selector"]


def test_another_seed_than_the_states_counts():
    saved = trained(interval=1)[0].state_dict()
    again = SubsetLoader(loader(), net(), LOSS, seed=4, interval=1)
    with pytest.warns(UserWarning, match=r"now\): seed: 3 -> 4\. The"):
        again.load_state_dict(saved)
    next(iter(again))
    assert again.state_dict()["seed"] == 4
