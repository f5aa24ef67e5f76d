"""Durations, schedules, intervals and repeated fits stay right while the batch size changes."""

import math
from itertools import pairwise

import pytest
import torch
from composer.core import Time, TimeUnit
from composer.optim import CosineAnnealingScheduler, LinearWithWarmupScheduler, MultiStepScheduler
from torch.utils.data import DataLoader, Subset

from composer_edba import EDBA
from tests.support.small_runs import Points, Watch, epochs_before_steps, logged, points_loader, trainer
from tests.support.torch_runs import following

WILD = [64, 100, 30, 17, 128, 10, 55, 90, 23, 41, 12]


def scheduled(sizes):
    """EDBA that follows a list of batch sizes."""
    return EDBA.paper(batch_size_policy=following(sizes))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_epoch_is_one_pass_over_the_data(workers, drop_last):
    watch = Watch()
    loader = points_loader(with_index=True, num_workers=workers, drop_last=drop_last, persistent_workers=workers > 0)
    run = trainer([scheduled(WILD)], loader=loader, callbacks=[watch], max_duration="4ep")
    run.fit()
    assert len(watch.epoch_ends) == 4
    samples = [
        b - a for a, b in zip([0] + [e[2] for e in watch.epoch_ends], [e[2] for e in watch.epoch_ends], strict=False)
    ]
    if drop_last:
        assert all(256 - 128 <= s <= 256 for s in samples)
    else:
        assert samples == [256] * 4
        assert sum(watch.pools) == 1024
    assert len(set(watch.pools)) > 4
    assert watch.lengths[-1] >= 1


@pytest.mark.slow
def test_hundreds_of_resizes_never_leave_the_given_subset():
    """The index set is fixed: what is ever yielded are the given indices, each once an epoch."""
    given = sorted(torch.randperm(256)[:60].tolist())
    watch = Watch()
    loader = DataLoader(Subset(Points(with_index=True), given), batch_size=20, shuffle=True, num_workers=2)
    sizes = [13, 20, 31, 10, 25]
    run = trainer([scheduled(sizes)], loader=loader, callbacks=[watch], max_duration="120ep")
    run.fit()
    for sizes, least in ((logged(run, "edba/target_batch_size"), 300), (watch.pools, 100)):
        assert sum(a != b for a, b in pairwise(sizes)) > least
    seen = {index for batch in watch.indices for index in batch}
    assert seen <= set(given)
    distinct = logged(run, "edba/distinct_samples")
    assert distinct == sorted(distinct)
    assert distinct[-1] == len(seen) == 60
    running = set()
    for batch, count in zip(watch.indices, distinct, strict=True):
        running.update(batch)
        assert len(running) == count


def test_distinct_samples_count_only_what_was_trained_on():
    watch = Watch()
    run = trainer([scheduled([64])], loader=points_loader(with_index=True), callbacks=[watch], max_duration="1ep")
    run.fit()
    seen = {index for batch in watch.indices for index in batch}
    assert logged(run, "edba/distinct_samples")[-1] == len(seen) < 256


def test_durations_in_samples_and_batches():
    watch = Watch()
    run = trainer([scheduled(WILD)], callbacks=[watch], max_duration="1024sp")
    run.fit()
    assert 1024 <= int(run.state.timestamp.sample) < 1024 + 128
    assert [e[2] for e in watch.epoch_ends] == [256, 512, 768, 1024]

    watch = Watch()
    run = trainer([scheduled(WILD)], callbacks=[watch], max_duration="23ba")
    run.fit()
    assert int(run.state.timestamp.batch) == 23


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_that_ends_with_the_last_batch_of_the_duration_ends(drop_last):
    """Composer fires this EPOCH_END only if the epoch's length is right to the batch."""
    watch = Watch()
    loader = points_loader(size=250, drop_last=drop_last)
    run = trainer([scheduled([50, 75, 75, 75] if not drop_last else [100, 80, 40, 40])], loader=loader,
                  callbacks=[watch], max_duration="4ba" if not drop_last else "3ba")  # fmt: skip
    run.fit()
    assert len(watch.epoch_ends) == 1


def test_milestones_fall_at_their_epochs():
    watch = Watch()
    run = trainer(
        [scheduled(WILD)],
        loader=points_loader(size=1024),
        callbacks=[watch],
        max_duration="4ep",
        schedulers=MultiStepScheduler(["2ep", "3ep"], gamma=0.1),
    )
    run.fit()
    epochs = epochs_before_steps(watch, 1024)
    rates = watch.learning_rates
    drops = [epochs[step] for step in range(1, len(rates)) if rates[step] < rates[step - 1]]
    # Once each, with the first step after the epoch's last. (Left alone they come at 1.5 and 2.2 epochs.)
    assert drops == [min(e for e in epochs if e >= 2), min(e for e in epochs if e >= 3)]


@pytest.mark.parametrize("schedule", ["cosine", "warmup"])
def test_schedules_in_epochs_follow_the_samples(schedule):
    watch = Watch()
    scheduler = (
        CosineAnnealingScheduler()
        if schedule == "cosine"
        else LinearWithWarmupScheduler(t_warmup="1ep", alpha_i=1.0, alpha_f=0.0)
    )
    run = trainer(
        [scheduled(WILD)],
        loader=points_loader(size=2048),
        callbacks=[watch],
        max_duration="4ep",
        schedulers=scheduler,
    )
    run.fit()
    for step, epoch in enumerate(epochs_before_steps(watch, 2048)):
        if epoch < 0.3:  # the average of the first few batches is not yet that of an epoch
            continue
        cosine = 0.5 * (1 + math.cos(math.pi * epoch / 4))
        expected = cosine if schedule == "cosine" else min(epoch, (4 - epoch) / 3)
        assert watch.learning_rates[step] / 0.05 == pytest.approx(expected, abs=0.06), epoch


@pytest.mark.parametrize(("interval", "expected"), [("1ep", 4), ("3ba", None), ("0.5dur", 2)])
def test_evaluation_intervals(interval, expected):
    watch = Watch()
    run = trainer(
        [scheduled(WILD)],
        callbacks=[watch],
        max_duration="4ep" if interval != "0.5dur" else "1024sp",
        eval_dataloader=points_loader(shuffle=False),
        eval_interval=interval,
    )
    run.fit()
    batches = int(run.state.timestamp.batch)
    if expected is None:
        due = [b for _, b in watch.evaluations if b % 3 == 0]
        assert due == list(range(3, batches + 1, 3))
    else:
        assert len(watch.evaluations) == expected


def test_repeated_fits_go_on_with_the_same_loader_and_size():
    watch = Watch()
    loader = points_loader()
    run = trainer([scheduled(WILD)], loader=loader, callbacks=[watch], max_duration="1ep")
    run.fit()
    ours = run.state.train_dataloader
    run.fit(duration="2ep")
    assert run.state.train_dataloader is ours
    assert sum(watch.pools) == 3 * 256
    run.fit(train_dataloader=loader, duration="1ep")  # the user's own object once more
    assert sum(watch.pools) == 4 * 256
    assert [e[2] for e in watch.epoch_ends] == [256, 512, 768, 1024]
    assert loader.batch_sampler.batch_size == 64
    assert [len(batch[0]) for batch in loader] == [64] * 4
    run.fit(train_dataloader=points_loader(size=90), duration="2ep")
    assert sum(watch.pools) == 4 * 256 + 2 * 90


def test_train_subset_num_batches_is_kept():
    watch = Watch()
    run = trainer([scheduled([64, 30, 40])], callbacks=[watch], max_duration="3ep", train_subset_num_batches=3)
    run.fit()
    assert len(watch.pools) == 9
    assert set(watch.lengths) == {3}
    # A start size at which the loader alone would be shorter than what the user asked for.
    watch = Watch()
    run = trainer([scheduled([128, 64])], callbacks=[watch], max_duration="1ep", train_subset_num_batches=3)
    run.fit()
    assert len(watch.pools) <= 3


def test_the_batch_size_is_bounded_by_the_data_set():
    run = trainer([EDBA.paper(max_batch_size=1000)], loader=points_loader(size=70, batch_size=64), max_duration="3ep")
    run.fit()
    assert run.state.algorithms[-1]._engine._selector.policy.maximum == 70


def test_the_length_that_evaluation_restores_is_not_clamped():
    """The setter that evaluation goes through would warn, which is an error here."""
    watch = Watch()
    run = trainer(
        [scheduled([10, 120, 120, 10, 128])],
        callbacks=[watch],
        max_duration="6ep",
        eval_dataloader=points_loader(shuffle=False),
        eval_interval="1ba",
    )
    run.fit()
    assert sum(watch.pools) == 6 * 256


def test_the_estimate_is_batches_per_epoch_so_far():
    watch = Watch()
    run = trainer([scheduled(WILD)], loader=points_loader(size=1024), callbacks=[watch], max_duration="3ep")
    run.fit()
    ends = {batch for _, batch, _ in watch.epoch_ends}
    epochs = epochs_before_steps(watch, 1024)
    for step in range(5, len(epochs)):
        # Watch reads what AFTER_TRAIN_BATCH set, before this step counted, or one more than the batches done.
        if step + 1 not in ends:
            assert watch.lengths[step] == pytest.approx(step / epochs[step], abs=1.6)
    assert run.state.dataloader_len.unit == TimeUnit.BATCH
    assert isinstance(run.state.dataloader_len, Time)


def test_growing_batches_in_a_real_run():
    """With the policy's own votes: a loss that falls below what subsets can follow makes the batch grow."""
    watch = Watch()
    edba = EDBA.paper(min_subset_size=8)
    run = trainer([edba], loader=points_loader(size=512, batch_size=32), callbacks=[watch], max_duration="60ep",
                  optimizers=None)  # fmt: skip
    run.fit()
    assert edba.batch_size != 32
    assert sum(watch.pools) == 60 * 512
