"""Suites, cells, arms and seeds as data: what is planned, and in which order."""

from pathlib import Path

import pytest

import composer_edba
from benchmarks.suites.arms import ARMS, arm_title, parse_arm
from benchmarks.suites.small_tasks import TASKS
from benchmarks.suites.suites import SUITES, YAMLS, planned_runs


def test_seeds_come_first_and_arms_take_turns():
    runs = [spec.key for spec in planned_runs("paper", "cpu", cells=["cifar10_1pct", "cifar10_10pct"])]
    assert runs[:6] == [
        (cell, arm, 0)
        for cell in ("cifar10_1pct", "cifar10_10pct")
        for arm in ("plain", "edba_paper", "edba_paper_random")
    ]
    seeds = [seed for _, _, seed in runs]
    assert seeds == sorted(seeds)
    assert {cell: max(s for c, _, s in runs if c == cell) + 1 for cell, _, _ in runs} == {
        "cifar10_1pct": 5,
        "cifar10_10pct": 2,
    }
    assert len(set(runs)) == len(runs)


def test_given_seeds_and_arms_hold_for_all_cells():
    runs = [spec.key for spec in planned_runs("speed", "cpu", arms=["growth"], seeds=[1000])]
    assert runs == [(cell, "growth", 1000) for cell in SUITES["speed"].sizes["cpu"]]


def test_every_run_has_its_seed_its_subset_and_held_out_samples():
    for name, suite in SUITES.items():
        for size in suite.sizes:
            for spec in planned_runs(name, size):
                kind, _, task = spec.base.partition(":")
                assert (YAMLS / spec.base).is_file() or (kind == "task" and task in TASKS)
                assert spec.overrides["seed"] == spec.overrides["data.subset_seed"] == spec.seed
                # Where nothing is held out there is one look at the test set, and so nothing to choose by it.
                assert spec.overrides.get("data.validation_samples", 0) > 0 or spec.evaluations == 1
                assert (spec.evaluations == 1) is (name in ("tasks", "defaults", "cifar10", "cifar100"))


def test_the_yaml_files_are_those_of_the_package():
    assert YAMLS.parent.parent == Path(composer_edba.__file__).parent


def test_an_arm_may_carry_changes_which_win():
    (spec,) = planned_runs("speed", "cpu", cells=["one_cycle"], arms=["plain_decay@optimizer.lr=0.5"], seeds=[7])
    (base,) = planned_runs("speed", "cpu", cells=["one_cycle"], arms=["plain_decay"], seeds=[7])
    assert spec.arm == "plain_decay@optimizer.lr=0.5"
    assert spec.overrides == {**base.overrides, "optimizer.lr": 0.5}
    assert spec.overrides != base.overrides
    assert "optimizer.lr=0.5" in spec.override_strings()
    assert arm_title(spec.arm) == f"{ARMS['plain_decay'].title}, optimizer.lr=0.5"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("papers", "cpu", {}), "suite 'papers' is unknown; there are paper"),
        (("paper", "tpu", {}), "size 'tpu' is unknown; there are cpu, gpu"),
        (("paper", "cpu", {"cells": ["cifar11"]}), "cell 'cifar11' is unknown; there are cifar10_100samples"),
        (("paper", "cpu", {"arms": ["edbaa"]}), "arm 'edbaa' is unknown; there are plain"),
        (("paper", "cpu", {"arms": ["edba@lr"]}), "'lr' must be key=value"),
        (("paper", "cpu", {"arms": ["edba@lr=[1"]}), "the value '\\[1' of lr is not valid YAML"),
    ],
)
def test_unknown_names_are_refused_with_what_there_is(arguments, message):
    name, size, chosen = arguments
    with pytest.raises(ValueError, match=message):
        list(planned_runs(name, size, **chosen))


def test_changes_are_yaml():
    assert parse_arm("edba@a.b=1e-3,c=true,d=text") == ("edba", {"a.b": 0.001, "c": True, "d": "text"})
