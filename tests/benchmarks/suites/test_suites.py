"""Suites, cells, arms and seeds as data: what is planned, and in which order."""

from collections import Counter
from pathlib import Path

import pytest

import composer_edba
from benchmarks.suites.arms import ARMS, arm_title, parse_arm
from benchmarks.suites.small_tasks import TASKS
from benchmarks.suites.suites import SUITES, YAMLS, planned_runs
from composer_edba.train.config import load_config


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


def test_arms_may_have_another_number_of_seeds_than_their_cell():
    runs = [spec.key for spec in planned_runs("cifar10", "cpu", cells=["5_epochs", "10_epochs"])]
    count = Counter((cell, arm) for cell, arm, _ in runs)
    assert count["5_epochs", "plain"] == count["10_epochs", "plain"] == count["10_epochs", "edba_mass"] == 5
    assert count["5_epochs", "plain_500"] == count["10_epochs", "infobatch"] == 3
    assert [seed for _, _, seed in runs] == sorted(seed for _, _, seed in runs)
    changed = [spec.seed for spec in planned_runs("cifar10", "cpu", cells=["5_epochs"], arms=["plain@seed=9"])]
    assert changed == [0, 1, 2, 3, 4]


def test_budgets_differ_in_their_duration_alone():
    suites = {name: suite for name, suite in SUITES.items() if suite.budgets}
    assert {"cifar10", "cifar100", "cifar10_fifth"} <= set(suites)
    for suite in suites.values():
        for cells in suite.sizes.values():
            assert all("plain" in cell.arms for cell in cells.values())
            durations = [cell.overrides["trainer.max_duration"] for cell in cells.values()]
            assert durations == [f"{name.removesuffix('_epochs')}ep" for name in cells]
            same = [({**cell.overrides, "trainer.max_duration": None}, cell.arm_overrides) for cell in cells.values()]
            assert all(settings == same[0] for settings in same)


def test_full_size_is_all_images_at_their_own_resolution():
    for spec in planned_runs("cifar100", "cpu", cells=["10_epochs"], arms=["plain", "plain_500"], seeds=[0]):
        config = load_config(YAMLS / spec.base, spec.override_strings())
        assert (config.data.name, config.data.samples, config.data.fraction) == ("cifar100", None, None)
        assert (config.data.validation_samples, config.data.image_size) == (0, None)
        assert (config.data.batch_size, config.optimizer.lr) == ((500, 0.8) if "500" in spec.arm else (250, 0.4))
        assert (config.scheduler.name, config.trainer.max_duration) == ("linear_with_warmup", "10ep")


def test_every_run_has_its_seed_its_subset_and_held_out_samples():
    for name, suite in SUITES.items():
        for size in suite.sizes:
            for spec in planned_runs(name, size):
                kind, _, task = spec.base.partition(":")
                assert (YAMLS / spec.base).is_file() or (kind == "task" and task in TASKS)
                assert spec.overrides["seed"] == spec.overrides["data.subset_seed"] == spec.seed
                # Where nothing is held out there is one look at the test set, and so nothing to choose by it.
                assert spec.overrides.get("data.validation_samples", 0) > 0 or spec.evaluations == 1
                assert (spec.evaluations == 1) is (name in ("tasks", "defaults") or suite.budgets)


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
