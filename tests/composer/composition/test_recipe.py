"""EDBA inside of Composer's own recipe for CIFAR ResNets."""

import math

import pytest
import torch
from composer import Trainer
from composer.algorithms import BlurPool, ChannelsLast, LabelSmoothing, MixUp
from composer.loggers import InMemoryLogger

from composer_edba import EDBA
from tests.composer.composition import setups
from tests.composer.composition.run_pair import Witness


@pytest.mark.parametrize("place", [0, 2, 4])
def test_the_recipe_trains_on_what_edba_chose(place):
    algorithms = [BlurPool(min_channels=8), ChannelsLast(), LabelSmoothing(), MixUp(interpolate_loss=True)]
    algorithms.insert(place, EDBA.paper())
    witness, logger = Witness(algorithms), InMemoryLogger()
    model, loader = setups.images()
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        max_duration="8ep",
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        algorithms=algorithms,
        callbacks=[witness],
        loggers=[logger],
        progress_bar=False,
        seed=2,
    )
    trainer.fit()
    assert witness.order == ["EDBA"] * int(trainer.state.timestamp.batch)
    assert all(map(math.isfinite, witness.losses))
    for chosen, trained in zip(witness.chosen, witness.trained, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(chosen, trained, strict=True))
    assert min(len(batch[0]) for batch in witness.trained) < setups.BATCH
    losses = [float(value) for _, value in logger.data["edba/model_metric"]]
    assert sum(losses[-5:]) < sum(losses[:5])
