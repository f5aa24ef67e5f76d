"""Who else sizes the batch: Ignite's BatchSizeScheduler, and bs-scheduler in a plain loop."""

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import BatchSizeScheduler

from composer_edba.ignite import EDBAHandler
from composer_edba.plain import SubsetLoader
from tests.support.torch_runs import loader, net, sgd

LOSS = torch.nn.CrossEntropyLoss()
MASS = {"left_out": 0.3, "min_subset_size": 4, "seed": 3}
SIZES = [16, 32, 64]


def run_ignite(**settings):
    model, data, pools = net(dropout=0.0), loader(256, 16), []
    trainer = create_supervised_trainer(model, sgd(model), LOSS)
    schedule = BatchSizeScheduler(data, scheduler_fn=lambda event: SIZES[event])
    trainer.add_event_handler(Events.EPOCH_STARTED, schedule)
    handler = EDBAHandler(model, LOSS, **settings)
    handler.attach(trainer, data)

    @trainer.on(Events.ITERATION_COMPLETED)
    def note(engine):
        pools.append((engine.state.epoch, engine.state.edba["batch_size"], engine.state.edba["subset_size"]))

    trainer.run(data, max_epochs=3)
    return handler, pools


@pytest.mark.parametrize("settings", [MASS, {"criterion": "margin", "seed": 3, "min_subset_size": 4}])
def test_batches_follow_ignites_schedule(settings):
    handler, pools = run_ignite(**settings)
    for epoch, size in enumerate(SIZES, 1):
        found = [(drawn, trained) for number, drawn, trained in pools if number == epoch]
        assert sum(drawn for drawn, _ in found) == 256
        full = max(trained for _, trained in found) if settings is MASS else max(drawn for drawn, _ in found)
        assert full == size
    assert handler.batch_size == 64


def test_a_rule_of_its_own_says_that_the_schedule_has_no_effect():
    with pytest.warns(UserWarning, match="batch size, to 32, which has no effect") as caught:
        _, pools = run_ignite(criterion="margin", batch_size_policy="noise_scale", seed=3)
    assert len([each for each in caught if "no effect" in str(each.message)]) == 1
    assert {drawn for epoch, drawn, _ in pools if epoch == 1} == {16}


def test_batches_follow_bs_scheduler_in_a_plain_loop():
    bs_scheduler = pytest.importorskip("bs_scheduler")
    model, data = net(dropout=0.0), loader(256, 16)
    optimizer, seen = sgd(model), []
    subsets = SubsetLoader(data, model, LOSS, **MASS)
    schedule = bs_scheduler.LambdaBS(data, lambda epoch: 2**epoch, max_batch_size=64)
    for _ in range(3):
        seen.append([])
        for inputs, target in subsets:
            optimizer.zero_grad()
            LOSS(model(inputs), target).backward()
            optimizer.step()
            seen[-1].append(len(inputs))
        schedule.step()
    assert [max(sizes) for sizes in seen] == SIZES
    assert subsets.figures["samples_drawn"] == 3 * 256
