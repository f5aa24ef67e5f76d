"""A Composer Trainer, an Ignite trainer, a plain loop and the other frameworks' train on the same subsets to the same
weights, bit for bit.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch

from tests.support.accelerate_loop import run_accelerate
from tests.support.lightning_loop import run_lightning
from tests.support.loops import LOOPS
from tests.support.task import BATCH, SAMPLES, Record, Task
from tests.support.transformers_loop import run_transformers

FACES = {"lightning": run_lightning, "transformers": run_transformers, "accelerate": run_accelerate}

ALWAYS = {"batch_size", "subset_size", "samples_scored", "samples_trained", "distinct_samples"}
SCORED = {"margin", "model_metric", "gradient_metric", "model_average", "gradient_average"}
BY_MASS = {"criterion": "gradient_mass", "interval": 1, "left_out": 0.3, "min_subset_size": 4}


@dataclass(frozen=True)
class Case:
    """A configuration of EDBA and a task for it.

    Attributes:
        settings: EDBA's.
        passes: over the data.
        task: what is trained.
        moves: whether the batch size changes in so short a run.
        scorings: that can be used with these settings.
        loops: that have these settings.
    """

    settings: dict[str, Any]
    passes: int = 4
    task: Task = field(default_factory=Task)
    moves: bool = False
    scorings: tuple[str, ...] = ("forward", "cached")
    loops: tuple[str, ...] = tuple(LOOPS)


# Short windows, so that a short run decides more than once.
BY_LOSS = {
    "criterion": "margin",
    "interval": 1,
    "batch_size_policy": "loss",
    "policy_options": {"window": 2, "tolerance": 1.1},
}
BY_MARGIN = {
    "criterion": "margin",
    "interval": 1,
    "batch_size_policy": "margin",
    "policy_options": {"window": 2, "cooldown": 1, "threshold": 0.05, "hysteresis": 0.0},
}
BY_NOISE = {
    "criterion": "margin",
    "interval": 1,
    "batch_size_policy": "noise_scale",
    "policy_options": {"window": 3, "cooldown": 1},
}

CASES = {
    "default": Case({}, passes=8, moves=True, scorings=("auto",)),
    "margin, seldom": Case({"criterion": "margin", "interval": 10}, passes=8),
    "paper": Case({"preset": "paper"}),
    "paper, random": Case({"preset": "paper", "criterion": "random"}),
    "paper, difference": Case({"preset": "paper", "criterion": "difference"}),
    "loss": Case(BY_LOSS, passes=6, moves=True),
    "margin": Case(BY_MARGIN, passes=6, moves=True),
    "noise_scale": Case(BY_NOISE, passes=6, moves=True),
    "fixed": Case({"criterion": "margin", "interval": 1, "batch_size_policy": "fixed"}),
    "bounds": Case({**BY_NOISE, "min_batch_size": 24, "max_batch_size": 48, "min_subset_size": 20}, moves=True),
    "interval": Case({**BY_LOSS, "interval": 3}, passes=8, moves=True),
    "interrupt": Case({**BY_NOISE, "interrupt": 3}, passes=6, moves=True),
    "candidates": Case({**BY_LOSS, "num_candidates": 64, "subset_size_law": "power_set", "ema_decay": 0.5}, moves=True),
    "running statistics": Case({**BY_LOSS, "scoring_batch_norm": "running"}, moves=True, scorings=("forward",)),
    # Both inside of an epoch.
    "span": Case({**BY_NOISE, "start": 0.3, "end": 0.8}, passes=8, moves=True, loops=("composer", "ignite")),
    "span by loss": Case({**BY_LOSS, "start": 0.3, "end": 0.8}, passes=8, moves=True, loops=("composer", "ignite")),
    "schedule": Case(BY_LOSS, passes=6, task=Task(decay=0.98), moves=True),
    "shuffled": Case(BY_NOISE, passes=6, task=Task(shuffle=True), moves=True),
    "dropout": Case(BY_NOISE, passes=6, task=Task(shuffle=True, dropout=0.1), moves=True),
    "drop_last": Case(BY_NOISE, passes=6, task=Task(drop_last=True), moves=True),
    "workers": Case(BY_NOISE, task=Task(shuffle=True, workers=2), moves=True),
    "mass": Case(BY_MASS, passes=8, moves=True, scorings=("cached",)),
    "mass, shuffled": Case(BY_MASS, passes=6, task=Task(shuffle=True), moves=True, scorings=("cached",)),
    "mass, drop_last": Case(BY_MASS, passes=6, task=Task(drop_last=True), moves=True, scorings=("cached",)),
    "mass, workers": Case(BY_MASS, passes=6, task=Task(shuffle=True, workers=2), moves=True, scorings=("cached",)),
    "mass, seldom": Case({**BY_MASS, "interval": 3}, passes=6, moves=True, scorings=("cached",)),
    "mass, random": Case({**BY_MASS, "criterion": "random_mass"}, passes=6, moves=True, scorings=("cached",)),
    "mass, loss": Case({**BY_LOSS, **BY_MASS}, passes=6, moves=True, scorings=("cached",)),
    "mass, span": Case(
        {**BY_MASS, "start": 0.3, "end": 0.8}, passes=8, moves=True, scorings=("cached",), loops=("composer", "ignite")
    ),
    # Weights that are powers of two, so that it is the same where in the backward they come in.
    "mass, kept": Case({**BY_MASS, "refill": False, "size_multiple": 16, "recheck": 2}, passes=8),
    "mass, kept, loss": Case({**BY_LOSS, **BY_MASS, "refill": False}, passes=6, moves=True, loops=("composer",)),
}


def combinations(*loops):
    """Every case with each of its ways of scoring and those of ``loops`` that have its settings."""
    return [
        (name, scoring, loop)
        for name, case in CASES.items()
        for scoring in case.scorings
        for loop in case.loops
        if loop in loops
    ]


def run(name, scoring, loop, **arguments) -> Record:
    case = CASES[name]
    return {**LOOPS, **FACES}[loop]({**case.settings, "scoring": scoring}, case.passes, case.task, **arguments)


whole = cache(run)


def assert_same(record, expected, first=0):
    """``record`` tells of the steps of ``expected`` from number ``first`` on, and ends with its weights."""
    assert len(record.steps) == len(expected.steps) - first
    for number, step in enumerate(record.steps, first):
        assert step == expected.steps[number], number
    assert record.weights.keys() == expected.weights.keys()
    for name, tensor in expected.weights.items():
        assert torch.equal(record.weights[name], tensor), name


@pytest.mark.parametrize(("name", "scoring", "loop"), combinations("composer"))
def test_the_cases_have_something_to_compare(name, scoring, loop):
    steps, case = whole(name, scoring, loop).steps, CASES[name]
    figures = [step["figures"] for step in steps]
    assert all(names.keys() >= ALWAYS for names in figures)
    assert any(names.keys() >= SCORED or "left_out_mass" in names for names in figures)
    assert any(names["subset_size"] < names["batch_size"] for names in figures)
    assert all(len(step["indices"]) == step["figures"]["subset_size"] for step in steps)
    assert {step["pass"] for step in steps} == set(range(case.passes))
    sizes = {names["batch_size"] for names in figures}
    assert (not sizes <= {BATCH, SAMPLES % BATCH}) == case.moves, sizes


@pytest.mark.parametrize(("name", "scoring", "loop"), combinations("ignite", "plain"))
def test_every_loop_is_that_of_composer(name, scoring, loop):
    assert_same(whole(name, scoring, loop), whole(name, scoring, "composer"))


@pytest.mark.parametrize(("name", "scoring", "loop"), combinations(*LOOPS))
def test_resumed_in_mid_pass_it_is_the_uninterrupted_run(tmp_path, name, scoring, loop):
    expected = whole(name, scoring, loop)
    steps = expected.steps
    passes = [step["pass"] for step in steps]
    done = next(n for n in range(len(steps) // 2, len(steps)) if passes[n - 1] == passes[n])
    stopped = run(name, scoring, loop, stop_after=done, save_to=tmp_path / "state.pt")
    assert stopped.steps == steps[:done]
    assert_same(run(name, scoring, loop, resume_from=stopped.state), expected, done)


# Those that differ most in what they ask of a loop; the others are slow.
QUICK = {"default", "loss", "shuffled", "mass, workers", "mass, loss", "mass, kept", "span"}
# Lightning and Transformers do not show a loss of outputs and target, of which remembered margins take each sample's.
BY_STEP = ("lightning", "transformers")


def cases_of_faces():
    for loop in FACES:
        for name, case in CASES.items():
            if case.loops != tuple(LOOPS) and loop == "accelerate":
                continue
            for scoring in case.scorings:
                if scoring == "cached" and not name.startswith("mass") and loop in BY_STEP:
                    continue
                yield pytest.param(name, scoring, loop, marks=[] if name in QUICK else [pytest.mark.slow])


@pytest.mark.parametrize(("name", "scoring", "loop"), [*cases_of_faces()])
def test_every_framework_is_composer_also_when_resumed(tmp_path, name, scoring, loop):
    expected = whole(name, scoring, "composer")
    assert_same(run(name, scoring, loop), expected)
    steps = expected.steps
    passes = [step["pass"] for step in steps]
    for at_pass_end in (False, True):
        done = next(n for n in range(len(steps) // 2, len(steps)) if (passes[n - 1] == passes[n]) is not at_pass_end)
        folder = tmp_path / str(at_pass_end)
        folder.mkdir()
        stopped = run(name, scoring, loop, stop_after=done, at_pass_end=at_pass_end, save_to=folder / "state.ckpt")
        assert stopped.steps == steps[:done]
        assert_same(run(name, scoring, loop, resume_from=stopped.state), expected, done)


@pytest.mark.parametrize("loop", LOOPS)
def test_another_seed_gives_other_subsets(loop):
    other = run("paper", "forward", loop, seed=6)
    assert [step["indices"] for step in other.steps] != [
        step["indices"] for step in whole("paper", "forward", loop).steps
    ]
