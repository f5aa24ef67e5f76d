"""What EDBA says of algorithms and settings that cannot run beside it."""

import composer.functional as cf
import pytest
from composer import Trainer
from composer.algorithms import GhostBatchNorm, SelectiveBackprop
from composer.models import ComposerClassifier
from torch import nn

from composer_edba import EDBA
from tests.composer.composition import setups
from tests.support.small_runs import classifier, points_loader, trainer

GHOST = {"min_subset_size": 16, "min_batch_size": 16}


def run(algorithms, loader, model=None, **kwargs):
    fit = trainer(algorithms, loader=loader, model=model or classifier(), max_duration="2ep", **kwargs)
    fit.fit()
    return fit


@pytest.mark.parametrize(
    ("edba", "loader", "limit", "message"),
    [
        ({}, {"drop_last": True}, None, r"min_subset_size is 10: use EDBA\(min_subset_size=16, min_batch_size=16\)"),
        ({"min_subset_size": 16}, {"drop_last": True}, None, r"min_batch_size is 10: use 16 or more"),
        (GHOST, {}, None, r"last batch of a pass may hold 1: build the train_dataloader with drop_last=True"),
        (
            {**GHOST, "batch_size_policy": "fixed"},
            {"batch_size": 50},
            None,
            r"last batch of a pass may hold 6: build the train_dataloader with drop_last=True",
        ),
        (
            GHOST,
            {"drop_last": True},
            20,
            r"a subset of 21 is cut into microbatches of 11 or fewer, because device_train_microbatch_size is 20",
        ),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_ghost_batches_larger_than_what_may_come_are_refused(edba, loader, limit, message, order):
    algorithms = [EDBA.paper(**edba), GhostBatchNorm(16)][::order]
    with pytest.raises(ValueError, match=r"GhostBatchNorm\(ghost_batch_size=16\) needs at least 16.*" + message):
        run(algorithms, points_loader(**loader), device_train_microbatch_size=limit)


@pytest.mark.parametrize(
    ("edba", "loader", "limit"),
    [
        (GHOST, {"drop_last": True}, None),
        (GHOST, {"drop_last": True, "size": 250}, 64),
        ({**GHOST, "batch_size_policy": "fixed"}, {}, None),
        ({**GHOST, "batch_size_policy": "fixed"}, {"size": 272}, 40),
    ],
)
def test_ghost_batches_that_always_fit_train(edba, loader, limit):
    """Composer's layer raises an error for any forward with fewer samples."""
    fit = run([EDBA.paper(**edba), GhostBatchNorm(16)], points_loader(**loader), device_train_microbatch_size=limit)
    assert int(fit.state.timestamp.epoch) == 2


def test_ghost_batches_made_by_hand_are_seen_too():
    model = classifier()
    cf.apply_ghost_batchnorm(model, ghost_batch_size=32)
    with pytest.raises(ValueError, match=r"ghost_batch_size=32.*min_subset_size is 10"):
        run([EDBA.paper()], points_loader(drop_last=True), model)


def test_ghost_batches_of_a_model_without_batch_norm_do_no_harm():
    run([GhostBatchNorm(32), EDBA.paper()], points_loader(), classifier(batch_norm=False))


class OwnEDBA(EDBA):
    """A user's subclass."""


@pytest.mark.parametrize("kinds", [(EDBA, OwnEDBA), (OwnEDBA, EDBA), (OwnEDBA, OwnEDBA)])
def test_a_second_edba_is_refused_whatever_its_class(kinds):
    with pytest.raises(ValueError, match="algorithms holds EDBA more than once"):
        trainer([kind() for kind in kinds])


def test_an_algorithm_that_a_checkpoint_brings_is_refused_too():
    """Composer appends those after INIT."""
    fit = trainer([EDBA.paper()], max_duration="1ep")
    fit.state.algorithms.append(SelectiveBackprop())
    with pytest.raises(ValueError, match=r"SelectiveBackprop\(keep=0.5\) beside EDBA"):
        fit.fit()


def test_selective_backprop_that_keeps_everything_is_let_through():
    run([SelectiveBackprop(keep=1.0), EDBA.paper()], points_loader())


def test_a_layer_given_as_a_module_that_surgery_replaced_is_explained():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * setups.SIDE**2, 16), nn.ReLU(), nn.Linear(16, setups.CLASSES))
    model = ComposerClassifier(net, num_classes=setups.CLASSES)
    edba = EDBA.paper(last_layer=net[-1])
    cf.apply_factorization(model, min_features=16, latent_features=4)
    _, loader = setups.images()
    fit = Trainer(model=model, train_dataloader=loader, max_duration="1ep", algorithms=[edba], progress_bar=False)
    with pytest.raises(ValueError, match=r"surgery may have replaced it\): name it by a string instead"):
        fit.fit()
