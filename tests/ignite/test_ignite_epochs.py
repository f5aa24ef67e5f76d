"""Ignite's epochs under batches of changing size: each is one pass over the data."""

import pytest
import torch
from ignite.engine import DeterministicEngine, Events
from ignite.handlers import ProgressBar
from torch.utils.data import DataLoader, IterableDataset

from composer_edba.ignite import EDBAHandler
from tests.ignite.ignite_runs import LOSS, attached
from tests.support.torch_runs import loader, net, points


def test_subsets_of_the_pools_are_trained_on():
    trainer, handler, data, watch = attached()
    trainer.run(data, max_epochs=4)
    assert trainer.state.epoch == 4
    assert watch.pools[0] == len(watch.subsets[0]) == 64  # the first step's averages begin with the whole pool
    assert any(len(subset) < pool for subset, pool in zip(watch.subsets, watch.pools, strict=True))
    assert all(len(set(subset)) == len(subset) >= 10 for subset in watch.subsets)
    assert handler.batch_size is not None
    assert data.batch_size == 64
    assert type(data.batch_sampler) is torch.utils.data.BatchSampler


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sizes", [[64, 20, 11, 128, 37, 10], [10, 200, 200, 30], [64]])
def test_every_epoch_sees_each_sample_once(sizes, workers):
    trainer, _, data, watch = attached(data=loader(num_workers=workers), sizes=sizes)
    trainer.run(data, max_epochs=5)
    assert trainer.state.epoch == 5
    assert [sorted(epoch) for epoch in watch.epochs] == [list(range(256))] * 5
    assert trainer.state.iteration == len(watch.pools)
    if len(sizes) > 1:
        assert len(set(watch.pools)) >= len(set(sizes)) - 1


def test_dropping_the_last_batch_leaves_out_less_than_a_batch():
    trainer, _, data, watch = attached(data=loader(drop_last=True), sizes=[48, 30, 17])
    trainer.run(data, max_epochs=3)
    assert all(len(set(epoch)) == len(epoch) and 256 - 48 < len(epoch) <= 256 for epoch in watch.epochs)


def test_data_of_unknown_length():
    class Stream(IterableDataset):
        def __iter__(self):
            data = points(100)
            return (data[index] for index in range(100))

    data = DataLoader(Stream(), batch_size=16)
    trainer, _, data, watch = attached(data=data, sizes=[16, 5, 31])
    trainer.run(data, max_epochs=3)
    assert [sorted(epoch) for epoch in watch.epochs] == [list(range(100))] * 3
    assert "edba/distinct_samples" not in trainer.state.metrics


def test_an_epoch_length_of_the_users_own_stays():
    trainer, _, data, watch = attached(sizes=[64, 20, 11])
    trainer.run(data, max_epochs=3, epoch_length=7)
    assert set(watch.lengths) == {7}
    assert (trainer.state.iteration, trainer.state.epoch) == (21, 3)


def test_a_number_of_iterations_is_that_number():
    trainer, _, data, watch = attached(sizes=[64, 20, 11])
    trainer.run(data, max_iters=50)
    assert trainer.state.iteration == len(watch.pools) == 50
    assert [len(epoch) for epoch in watch.epochs[:-1]] == [256] * (len(watch.epochs) - 1)
    assert trainer.state.max_epochs is None


def test_a_second_run_goes_on_with_averages_and_size():
    trainer, handler, data, watch = attached()
    trainer.run(data, max_epochs=2)
    first = len(watch.pools)
    averages = handler.state_dict()["selector"]["averages"]
    trainer.run(data, max_epochs=2)
    assert len(watch.pools) > first
    assert len(watch.subsets[first]) < watch.pools[first]  # no first step, which takes the whole pool
    assert [sorted(epoch) for epoch in watch.epochs] == [list(range(256))] * 4
    assert handler.state_dict()["selector"]["averages"] != averages


def test_an_epoch_that_is_terminated_is_followed_by_a_whole_one():
    trainer, _, data, watch = attached(sizes=[64, 20, 11])
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda engine: engine.terminate_epoch())
    trainer.run(data, max_epochs=3)
    assert len(watch.epochs[0]) < 256
    assert [sorted(epoch) for epoch in watch.epochs[1:]] == [list(range(256))] * 2


def test_an_interrupted_run_goes_on():
    trainer, _, data, watch = attached(sizes=[64, 20, 11])
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda engine: engine.interrupt())
    trainer.run(data, max_epochs=2)
    assert trainer.state.iteration == 3
    trainer.run(data, max_epochs=2)
    assert [sorted(epoch) for epoch in watch.epochs] == [list(range(256))] * 2


def test_epoch_length_tells_no_epoch_too_many():
    trainer, _, data, watch = attached(sizes=[200, 10, 10, 10, 90])
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED | Events.EPOCH_COMPLETED,
        lambda engine: seen.append((engine.state.iteration, engine.state.epoch, engine.state.epoch_length)),
    )
    trainer.run(data, max_epochs=6)
    assert all(iteration // length <= epoch for iteration, epoch, length in seen)
    assert len(watch.pools) / 12 < trainer.state.epoch_length < len(watch.pools) / 3


def test_a_distributed_sampler_follows_set_epoch():
    data = points()
    sampler = torch.utils.data.DistributedSampler(data, num_replicas=2, rank=0, seed=3)
    data = DataLoader(data, batch_size=64, sampler=sampler, num_workers=1)
    trainer, _, data, watch = attached(data=data, sizes=[64, 20, 11])
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: sampler.set_epoch(engine.state.epoch - 1))
    trainer.run(data, max_epochs=3)
    for number, epoch in enumerate(watch.epochs):
        sampler.set_epoch(number)
        assert epoch == list(sampler)


def test_the_progress_bar_follows(capsys):
    trainer, _, data, _ = attached(sizes=[64, 20, 11])
    ProgressBar(persist=True, ncols=200).attach(trainer, metric_names=["edba/subset_size"])
    trainer.run(data, max_epochs=2)
    shown = capsys.readouterr().err
    assert "Epoch [2/2]" in shown
    assert f"edba/subset_size={trainer.state.metrics['edba/subset_size']}" in shown


def test_a_deterministic_engine_needs_batches_of_one_size():
    model = net()
    engine = DeterministicEngine(lambda engine, batch: None)
    with pytest.raises(ValueError, match="batch_size_policy='fixed'"):
        EDBAHandler(model, LOSS, preset="paper").attach(engine, loader())
    subsets = []

    def step(engine, batch):
        model.zero_grad()
        LOSS(model(batch[0]), batch[1]).backward()
        subsets.append(len(batch[0]))

    engine = DeterministicEngine(step)
    data = loader()
    EDBAHandler(model, LOSS, preset="paper", batch_size_policy="fixed").attach(engine, data)
    engine.run(data, max_epochs=3)
    assert len(subsets) == 12
    assert min(subsets) < 64


def test_start_and_end_are_fractions_of_training():
    trainer, _, data, watch = attached(settings={"start": 0.25, "end": 0.75}, sizes=[64])
    trainer.run(data, max_epochs=4)
    scored = [len(subset) < pool for subset, pool in zip(watch.subsets, watch.pools, strict=True)]
    assert not any(scored[:4])
    assert any(scored[5:12])
    assert not any(scored[12:])
    trainer, _, data, watch = attached(settings={"start": 0.5}, sizes=[64])
    trainer.run(data, max_iters=8)
    assert [len(subset) for subset in watch.subsets[:4]] == [64] * 4
    assert min(len(subset) for subset in watch.subsets[5:]) < 64


def test_interrupt_leaves_every_nth_batch_whole():
    trainer, _, data, watch = attached(settings={"interrupt": 2}, sizes=[64])
    trainer.run(data, max_epochs=3)
    assert [len(subset) for subset in watch.subsets[1::2]] == [64] * 6
    assert min(len(subset) for subset in watch.subsets[2::2]) < 64
