"""Durations, schedules, intervals and repeated fits stay right while the batch size changes."""

import io
import math
import os
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from composer.core import Evaluator, Time, TimeUnit
from composer.loggers import ProgressBarLogger
from composer.optim import (
    ConstantScheduler,
    ConstantWithWarmupScheduler,
    CosineAnnealingScheduler,
    CosineAnnealingWarmRestartsScheduler,
    CosineAnnealingWithWarmupScheduler,
    ExponentialScheduler,
    LinearScheduler,
    LinearWithWarmupScheduler,
    MultiStepScheduler,
    MultiStepWithWarmupScheduler,
    PolynomialWithWarmupScheduler,
    StepScheduler,
)
from torch import nn
from torch.utils.data import DataLoader, Subset

from composer_edba import EDBA
from tests.support.small_runs import (
    CLASSES,
    FEATURES,
    Points,
    PointsClassifier,
    Watch,
    epochs_before_steps,
    logged,
    points_loader,
    trainer,
)
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


SCHEDULES = {
    "cosine": lambda: CosineAnnealingScheduler(),
    "cosine in ep": lambda: CosineAnnealingScheduler(t_max="3ep", alpha_f=0.1),
    "restarts": lambda: CosineAnnealingWarmRestartsScheduler(t_0="1ep", t_mult=2.0),
    "exponential": lambda: ExponentialScheduler(gamma=0.5, decay_period="1ep"),
    "milestones": lambda: MultiStepScheduler(["1ep", "0.4dur", "3ep"], gamma=0.1),
    "steps": lambda: StepScheduler("1ep", gamma=0.5),
    "constant": lambda: ConstantScheduler(alpha=0.5, t_max="2ep"),
    "linear": lambda: LinearWithWarmupScheduler(t_warmup="1ep", alpha_i=1.0, alpha_f=0.0),
    "cosine after": lambda: CosineAnnealingWithWarmupScheduler(t_warmup="0.2dur", t_max="4ep", alpha_f=0.2),
    "polynomial": lambda: PolynomialWithWarmupScheduler(t_warmup="1ep", power=2.0, scale_warmup=True),
    "constant after": lambda: ConstantWithWarmupScheduler(t_warmup="2ep"),
    "milestones after": lambda: MultiStepWithWarmupScheduler(t_warmup="1ep", milestones=["2ep"]),
    "batches too": lambda: LinearWithWarmupScheduler(t_warmup="10ba", t_max="1dur"),
    "user's": lambda: lambda state: 1 - state.timestamp.batch.value / (4 * int(state.dataloader_len)),
}


def linear_model():
    torch.manual_seed(0)
    return PointsClassifier(nn.Sequential(nn.Linear(FEATURES, CLASSES)), num_classes=CLASSES)


def watched(algorithms, schedulers, *, size=640, batch_size=32, drop_last=False, max_duration="4ep", **kwargs):
    """A fit of a tiny model; the Watch, and each step's time: passes over the data when its pool was drawn."""
    watch, loader = Watch(), points_loader(size=size, batch_size=batch_size, drop_last=drop_last)
    run = trainer(algorithms, loader=loader, model=linear_model(), callbacks=[watch, *kwargs.pop("callbacks", [])],
                  max_duration=max_duration, schedulers=schedulers, **kwargs)  # fmt: skip
    run.fit()
    ends = {batch: epoch for epoch, batch, _ in watch.epoch_ends}
    times, seen = [], 0.0
    for step, pool in enumerate(watch.pools):
        times.append(seen)
        seen = ends.get(step + 1, seen + pool / size)  # drop_last leaves some out
    return watch, times, run


def assert_follows(watch, times, plain, epochs=4):
    """At the same fraction of the data the rates are those of ``plain``, to one of its steps."""
    for rate, time in zip(watch.learning_rates, times, strict=True):
        step = int(time / epochs * len(plain))
        near = plain[max(0, step - 1) : step + 2]
        assert min(near) - 1e-9 <= rate <= max(near) + 1e-9, time


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_in_epochs_and_durations_follow_the_data(name):
    plain, _, _ = watched([], SCHEDULES[name]())
    watch, times, _ = watched([scheduled(WILD)], SCHEDULES[name]())
    assert len(watch.pools) != len(plain.pools)
    assert_follows(watch, times, plain.learning_rates)


@pytest.mark.parametrize("name", ["cosine", "linear", "cosine in ep"])
@pytest.mark.parametrize("ratio", [0.75, 1.5])
def test_scaled_schedules_follow_the_data(name, ratio):
    plain, _, _ = watched([], SCHEDULES[name](), scale_schedule_ratio=ratio)
    watch, times, run = watched([scheduled(WILD)], SCHEDULES[name](), scale_schedule_ratio=ratio)
    assert_follows(watch, times, plain.learning_rates, run.state.max_duration.value)


@pytest.mark.parametrize("case", range(4))
def test_a_cosine_never_rises_whatever_the_sizes(case):
    random = np.random.default_rng(case)
    sizes = (2 ** random.uniform(2, 8, 100)).astype(int).tolist()
    size, batch_size = int(random.integers(200, 700)), int(random.integers(8, 80))
    for schedule in ("cosine", "cosine in ep"):
        watch, times, _ = watched([scheduled(sizes)], SCHEDULES[schedule](), size=size, batch_size=batch_size,
                                  drop_last=case == 3)  # fmt: skip
        assert watch.learning_rates == sorted(watch.learning_rates, reverse=True)
        end, alpha = (4, 0) if schedule == "cosine" else (3, 0.1)
        for rate, time in zip(watch.learning_rates, times, strict=True):
            expected = alpha + (1 - alpha) * 0.5 * (1 + math.cos(math.pi * min(1, time / end)))
            assert rate / 0.05 == pytest.approx(expected, abs=1e-6 if case < 3 else 0.05)


def test_a_fixed_size_has_the_rates_of_a_run_without():
    plain, _, _ = watched([], SCHEDULES["cosine"]())
    watch, _, _ = watched([EDBA.paper(batch_size_policy="fixed")], SCHEDULES["cosine"]())
    assert watch.learning_rates == plain.learning_rates


def test_schedules_follow_what_was_drawn_where_only_the_chosen_is_loaded():
    edba = EDBA.paper(batch_size_policy=following(WILD), scoring="cached")
    watch, _, run = watched([edba], SCHEDULES["cosine"]())
    assert int(run.state.timestamp.sample) == 4 * 640 > edba._engine.samples_trained
    drawn = np.cumsum([0, *logged(run, "edba/batch_size")])[:-1]
    expected = 0.025 * (1 + np.cos(np.pi * drawn / (4 * 640)))
    assert watch.learning_rates == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_duration_in_batches_keeps_its_fractions_and_the_data_its_epochs():
    watch, times, _ = watched([scheduled(WILD)], SCHEDULES["linear"](), max_duration="60ba")
    rates = [rate / 0.05 for rate in watch.learning_rates]
    warm = sum(time < 1 for time in times)
    assert rates[:warm] == pytest.approx(times[:warm], abs=1e-6)
    assert rates[warm:] == sorted(rates[warm:], reverse=True)
    assert rates[warm] == pytest.approx(1, abs=0.05)
    assert rates[-1] == pytest.approx(0, abs=0.05)
    watch, times, _ = watched([scheduled(WILD)], MultiStepScheduler(["2ep", "0.8dur"]), max_duration="60ba")
    expected = [0.05 * 0.1 ** ((time >= 2) + (step >= 48)) for step, time in enumerate(times)]
    assert watch.learning_rates == pytest.approx(expected)


def test_an_end_in_epochs_before_the_last_batch_is_no_error():
    """Composer wants t_max to be as long as training; at the loader's own size it is."""
    schedule = CosineAnnealingWithWarmupScheduler("1ep", t_max="3ep")
    watch, _, _ = watched([scheduled(WILD)], schedule, max_duration="60ba")
    peak = watch.learning_rates.index(max(watch.learning_rates))
    assert watch.learning_rates[peak:] == sorted(watch.learning_rates[peak:], reverse=True)


def test_schedules_stepped_once_an_epoch_see_whole_epochs():
    for drop_last in (False, True):
        watch, _, _ = watched([scheduled(WILD)], MultiStepScheduler(["1ep", "3ep"]), size=250, drop_last=drop_last,
                              step_schedulers_every_batch=False)  # fmt: skip
        ends = [0, *(batch for _, batch, _ in watch.epoch_ends)]
        rates = [set(watch.learning_rates[first:end]) for first, end in pairwise(ends)]
        assert [len(rate) for rate in rates] == [1] * 4
        assert [rate.pop() for rate in rates] == pytest.approx([0.05, 0.005, 0.005, 0.0005])


def test_what_asks_for_no_length_sees_the_true_time():
    seen = []

    def schedule(state):
        seen.append(int(state.timestamp.batch))
        return 1.0

    watch, _, _ = watched([scheduled(WILD)], schedule)
    assert seen[2::2] == list(range(len(watch.pools)))
    watch, _, _ = watched([scheduled(WILD)], MultiStepScheduler(["13ba"]))
    assert [rate < 0.05 for rate in watch.learning_rates].index(True) == 13


def test_later_fits_go_on_in_time():
    watch, times, run = watched([scheduled(WILD)], SCHEDULES["cosine"](), max_duration="2ep")
    lambdas = run.state.schedulers[0].lr_lambdas
    for schedulers in (None, LinearScheduler(t_max="6ep")):
        before = len(watch.pools)
        run.fit(duration="2ep", schedulers=schedulers)
        times = [passes for passes in np.cumsum([0, *watch.pools])[:-1] / 640]
        end = run.state.max_duration.value
        # Composer steps schedules after the batch: without new ones the first still has the last fit's rate.
        for rate, time in [*zip(watch.learning_rates, times, strict=True)][before:]:
            expected = 0.5 * (1 + math.cos(math.pi * time / end)) if schedulers is None else 1 - time / 6
            assert rate / 0.05 == pytest.approx(expected, abs=1e-6)
        if schedulers is None:
            assert len(run.state.schedulers[0].lr_lambdas) == len(lambdas) == 1
            assert not hasattr(run.state.schedulers[0].lr_lambdas[0].__wrapped__, "__wrapped__")


def test_a_pass_that_ends_before_the_given_number_of_batches_is_an_epoch():
    watch, _, _ = watched([scheduled([128])], CosineAnnealingScheduler(), train_subset_num_batches=10)
    assert len(watch.pools) < 40
    ends = [batch for _, batch, _ in watch.epoch_ends]
    first = [watch.learning_rates[batch] / 0.05 for batch in ends[:-1]]
    assert first == pytest.approx([0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in (1, 2, 3)])


def starts_new_run(evaluator):
    """Another Trainer, without EDBA, with what an earlier one had."""
    watch, _, _ = watched([], None, eval_dataloader=evaluator, eval_interval="0.25dur")
    return [batch for _, batch in watch.evaluations]


@pytest.mark.parametrize(
    ("interval", "duration"),
    [
        ("0.25dur", "4ep"),
        ("0.25dur", "1ep"),
        ("0.1dur", "3ep"),
        ("0.3dur", "4ep"),
        ("0.5dur", "60ba"),
        ("1ep", "2ep"),
    ],
)
def test_evaluations_and_checkpoints_in_fractions_of_training_follow_the_data(interval, duration, tmp_path):
    found = []
    for algorithms in ([], [EDBA.paper(batch_size_policy="fixed")], [scheduled([50, 40, 17, 60, 30, 23, 41, 12])]):
        folder = tmp_path / str(len(found))
        kept = {"save_interval": interval, "save_folder": str(folder), "save_filename": "{epoch}-{batch}.pt"}
        watch, _, _ = watched(algorithms, None, max_duration=duration, eval_interval=interval,
                              eval_dataloader=points_loader(size=32, batch_size=32, shuffle=False), **kept)  # fmt: skip
        samples = [0, *np.cumsum(watch.pools).tolist()]
        saved = {path.stem for path in folder.glob("*-*.pt") if path.stem[0].isdigit()}
        steps = (sorted(int(name.split("-")[1]) for name in saved), [batch for _, batch in watch.evaluations])
        found.append((saved, [[samples[batch] for batch in some] for some in steps]))
    plain, fixed, changing = found
    assert fixed == plain
    for those, references in zip(changing[1], plain[1], strict=True):
        assert len(those) == len(references)
        for sample, reference in zip(those, references, strict=True):
            assert duration.endswith("ba") or reference <= sample < reference + 64


def test_an_evaluator_can_be_used_again_without():
    evaluator = Evaluator(
        label="eval", dataloader=points_loader(size=32, batch_size=32, shuffle=False), eval_interval="0.25dur"
    )
    before = starts_new_run(evaluator)
    watched([scheduled(WILD)], None, eval_dataloader=evaluator)
    watched([scheduled(WILD)], None, eval_dataloader=evaluator, max_duration="2ep")
    assert starts_new_run(evaluator) == before == [20, 40, 60, 80]


class Terminal(io.StringIO):
    """What a progress bar is written to, as if it were a pipe."""

    def fileno(self):
        return self._pipe

    def __enter__(self):
        self._pipe, self._end = os.pipe()
        return self

    def __exit__(self, *_):
        os.close(self._pipe)
        os.close(self._end)


def test_the_progress_bar_has_a_total_and_a_time_left():
    with Terminal() as stream:
        watch, _, _ = watched([scheduled(WILD)], None, size=256, loggers=[ProgressBarLogger(stream=stream)])
        written = stream.getvalue()
    assert "?" not in "".join(re.findall(r"\d+/\S+", written))
    bars = [[(int(n), int(total)) for n, total in re.findall(r"(\d+)/(\d+) ", line)]
            for line in re.split(r"Epoch +\d+:", written)[1:]]  # fmt: skip
    shown = [pair for bar in bars for pair in bar]
    assert all(n <= total for n, total in shown)
    assert (0, 4) in shown
    ends = [0, *(batch for _, batch, _ in watch.epoch_ends)]
    for first, end in pairwise(ends):
        assert (end - first, end - first) in shown


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


def test_the_estimate_is_the_batches_of_the_pass():
    watch = Watch()
    run = trainer([scheduled(WILD)], loader=points_loader(size=1024), callbacks=[watch], max_duration="3ep")
    run.fit()
    aimed_at = logged(run, "edba/target_batch_size")
    ends = [0, *(batch for _, batch, _ in watch.epoch_ends)]
    for first, end in pairwise(ends):
        taken, left = 0, 1024
        for step in range(first, end):
            taken, left = taken + 1, left - watch.pools[step]
            assert watch.lengths[step] == taken + math.ceil(left / aimed_at[step])
        assert watch.lengths[end - 1] == end - first
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
