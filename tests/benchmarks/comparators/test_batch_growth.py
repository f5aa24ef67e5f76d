from itertools import chain, pairwise

import pytest
import torch

from benchmarks.comparators.batch_growth import BatchGrowth
from tests.support.small_runs import Watch, classifier, points_loader, trainer


def fit(algorithm, *, size=256, batch_size=8, **kwargs):
    watch = Watch()
    loader = points_loader(size, batch_size, with_index=True)
    run = trainer([algorithm], loader=loader, callbacks=[watch], **{"max_duration": "5ep", **kwargs})
    run.fit()
    return watch, run


def test_doubles_at_fifths_of_training():
    """As AdaBatch does, 128 to 2048 in 100 epochs; here 8 to 128 in 5."""
    watch, _ = fit(BatchGrowth())
    ends = [0, *(end[1] for end in watch.epoch_ends)]
    sizes = [set(watch.pools[first:last]) for first, last in pairwise(ends)]
    assert sizes == [{8}, {16}, {32}, {64}, {128}]
    # Each epoch is a pass over all samples, and a batch is one microbatch however large it grew.
    for first, last in pairwise(ends):
        assert sorted(chain(*watch.indices[first:last])) == list(range(256))
    assert watch.microbatches == watch.pools


@pytest.mark.parametrize("duration", ["10ep", "2560sp"])
def test_grows_inside_epochs(duration):
    watch, _ = fit(BatchGrowth(interval=0.25), max_duration=duration)
    sizes = [size for size, end in zip(watch.pools, watch.pools[1:], strict=False) if end >= size]
    assert sorted(set(sizes)) == [8, 16, 32, 64]
    # 2.5 epochs of 256 samples in batches of 8, and so on.
    assert sum(size for size in watch.pools[:80]) == 640
    assert [size for size in sizes if size == 8] == [8] * 80
    assert sum(watch.pools) == 2560


def test_duration_in_batches():
    watch, _ = fit(BatchGrowth(interval=0.5), max_duration="20ba")
    assert watch.pools == [8] * 10 + [16] * 10


def test_stops_at_the_largest_size():
    algorithm = BatchGrowth(interval=0.1, max_batch_size=50)
    watch, _ = fit(algorithm, max_duration="10ep")
    assert algorithm.batch_size == 50
    assert watch.pools[-6:] == [43, 43, 43, 43, 42, 42]  # a pass of 256 in the fewest batches of at most 50
    assert algorithm.samples_trained == sum(watch.pools) == 2560
    assert algorithm.distinct_samples == 256


def test_stops_at_the_whole_data_set():
    algorithm = BatchGrowth(interval=0.1, factor=8)
    fit(algorithm, max_duration="10ep")
    assert algorithm.batch_size == 256


def test_keeps_the_users_microbatches():
    watch, _ = fit(BatchGrowth(), device_train_microbatch_size=16)
    assert max(watch.pools) == 128
    assert max(watch.microbatches) == 16


def test_resumes_bitwise(tmp_path):
    def run(**kwargs):
        watch, end = fit(BatchGrowth(), model=classifier(dropout=0.0), **kwargs)
        return watch, [p.detach().clone() for p in end.state.model.parameters()]

    whole, weights = run(save_folder=str(tmp_path), save_interval="1ba")
    (checkpoint,) = tmp_path.glob("ep1-ba40-*.pt")
    resumed, resumed_weights = run(load_path=str(checkpoint))
    assert resumed.indices == whole.indices[40:]
    for one, two in zip(weights, resumed_weights, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, r"interval must be a share of training in \(0, 1\), not 0"),
        ({"factor": 1}, "factor must be greater than 1, not 1"),
        ({"max_batch_size": 0}, "max_batch_size must be at least 1, not 0"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchGrowth(**arguments)


def test_bound_below_the_loaders_size_is_refused():
    with pytest.raises(ValueError, match="max_batch_size=4 must be at least train_dataloader's batch_size, 8"):
        fit(BatchGrowth(max_batch_size=4))
