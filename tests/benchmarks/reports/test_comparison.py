"""Costs of a target, equal budgets and paired intervals, against values worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.reports.comparison import Run, at_equal, by_cell, mean_curve, mean_text, paired_difference


def run(validation, test=None, arm="plain", seed=0, updates=(10, 20, 30)):
    test = validation if test is None else test
    evaluations = [
        {"updates": u, "validation_accuracy": v, "test_part_accuracy": t}
        for u, v, t in zip(updates, validation, test, strict=True)
    ]
    evaluations[-1]["test_accuracy"] = evaluations[-1].pop("test_part_accuracy")
    return Run({"cell": "c", "arm": arm, "seed": seed, "evaluations": evaluations})


def test_cost_of_a_target_is_linear_between_evaluations():
    found = run([0.2, 0.4, 0.3])
    assert found.cost_of(0.3, "updates") == pytest.approx(15)
    assert found.cost_of(0.4, "updates") == pytest.approx(20)
    assert found.cost_of(0.1, "updates") == 10
    assert found.cost_of(0.41, "updates") is None


def test_the_epoch_is_chosen_on_validation_and_never_on_test():
    found = run([0.2, 0.5, 0.4], test=[0.9, 0.3, 0.6])
    assert found.test_score() == 0.6
    assert found.test_score(chosen=True) == 0.3


def test_equal_budget_is_what_the_cheaper_of_a_pair_spent():
    long, short = run([0.2, 0.4, 0.6]), run([0.5, 0.6, 0.7], updates=(5, 10, 25))
    assert at_equal("updates")(long, short) == (pytest.approx(0.5), 0.7)
    assert at_equal("updates")(short, long) == (0.7, pytest.approx(0.5))
    mine, theirs = at_equal("updates")(long, run([0.1], updates=(5,)))
    assert math.isnan(mine)  # not evaluated so early
    assert theirs == 0.1


def last(one, other):
    return one.test_score(), other.test_score()


def test_differences_are_paired_by_seed():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(5), rng.random(5)
    arm = [run([0, 0, value], seed=seed) for seed, value in enumerate(ours)]
    other = [run([0, 0, value], seed=seed) for seed, value in reversed(list(enumerate(theirs)))]
    found = paired_difference([*arm, run([0, 0, 1.0], seed=9)], other, last)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.pairs == 5
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.mean == pytest.approx(np.mean(ours - theirs))


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.02, 0.021, 0.019], "better"),
        ([-0.02, -0.021, -0.019], "worse"),
        ([0.02, -0.02, 0.001], "no difference shown"),
        ([0.5], "too few seeds to tell"),
    ],
)
def test_verdicts(differences, verdict):
    arm = [run([0, 0, 0.4 + d], seed=s) for s, d in enumerate(differences)]
    other = [run([0, 0, 0.4], seed=s) for s in range(len(differences))]
    assert paired_difference(arm, other, last).verdict == verdict


def test_no_common_seed_is_no_difference():
    assert paired_difference([run([0, 0, 1], seed=0)], [run([0, 0, 1], seed=1)], last) is None


def test_mean_curve_stays_where_all_runs_were_evaluated():
    at, mean, low, high = mean_curve(
        [run([0, 0.2, 0.4]), run([0.2, 0.4], updates=(15, 25))], "updates", "validation_accuracy"
    )
    assert (at[0], at[-1]) == (15, 25)
    assert (low[0], mean[0], high[0]) == (pytest.approx(0.1), pytest.approx(0.15), pytest.approx(0.2))
    assert (mean[-1], high[-1]) == (pytest.approx(0.35), pytest.approx(0.4))


def test_runs_by_cell_and_arm_in_the_order_of_seeds():
    cells = by_cell([run([0, 0, 0], seed=s, arm=a).record for s in (1, 0) for a in ("b", "a")])
    assert [r.seed for r in cells["c"]["a"]] == [0, 1]


def test_mean_text():
    assert mean_text([0.39, 0.41], 100, 1) == "40.0 ± 1.4"
    assert mean_text([12345.0], digits=0) == "12,345"
    assert mean_text([math.nan]) == "-"
