"""What the lines of a suite say: accuracies or R2, costs to a target, and differences between arms, paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = ["Difference", "Run", "at_equal", "by_cell", "mean_curve", "mean_text", "paired_difference"]

Array = npt.NDArray[np.float64]


class Run:
    """One line of a suite's file.

    Attributes:
        cell, arm, seed: what tells it apart.
        record: the line.
        metric: ``accuracy`` (share classified right), ``r2`` (coefficient of determination of a regression) or ``loss``
            (less is better).
        validated: whether samples were held out to be evaluated on.
    """

    def __init__(self, record: Mapping[str, Any]):
        self.record = record
        self.cell: str = record["cell"]
        self.arm: str = record["arm"]
        self.seed: int = record["seed"]
        self._evaluations: Sequence[Mapping[str, Any]] = record["evaluations"]
        self.metric = next((m for m in ("r2", "loss") if f"test_{m}" in self._evaluations[-1]), "accuracy")
        self.validated = "validation_accuracy" in self._evaluations[-1]

    def curve(self, name: str) -> Array:
        """A quantity at each evaluation: ``updates``, ``seconds``, ``flops``, ``validation_accuracy`` and so on.

        NaN where it was not counted, or not finite.
        """
        return np.array([evaluation.get(name) for evaluation in self._evaluations], dtype=np.float64)

    def last(self, name: str) -> float:
        """A quantity at the last evaluation; NaN if it was not counted, or not finite."""
        return float(self.curve(name)[-1])

    def test_score(self, chosen: bool = False) -> float:
        """:attr:`metric` of the test set at the end, or where validation chose: its first best evaluation.

        NaN if the run diverged, or nothing was there to choose by.
        """
        if not chosen:
            return self.last(f"test_{self.metric}")
        if not self.validated:
            return math.nan
        found = self._evaluations[self.chosen]
        return float(found.get("test_accuracy", found.get("test_part_accuracy", math.nan)))

    @property
    def chosen(self) -> int:
        """Index of the evaluation with the best validation accuracy."""
        return int(np.argmax(self.curve("validation_accuracy")))

    def validation_at(self, axis: str, budget: float) -> float:
        """Validation accuracy when ``axis`` had reached ``budget``, linear between evaluations; NaN outside of them."""
        spent = self.curve(axis)
        if not spent[0] <= budget <= spent[-1] * (1 + 1e-9):
            return math.nan
        return float(np.interp(budget, spent, self.curve("validation_accuracy")))

    def cost_of(self, target: float, axis: str) -> float | None:
        """What ``axis`` had reached when the validation accuracy first was ``target``, linear between evaluations.

        A target that the first evaluation meets costs at most what was spent by then; that is what it gives. None if
        the target was never met.
        """
        spent, accuracy = self.curve(axis), self.curve("validation_accuracy")
        met = np.flatnonzero(accuracy >= target)
        if len(met) == 0:
            return None
        at = int(met[0])
        if at == 0:
            return float(spent[0])
        share = (target - accuracy[at - 1]) / (accuracy[at] - accuracy[at - 1])
        return float(spent[at - 1] + share * (spent[at] - spent[at - 1]))


@dataclass(frozen=True)
class Difference:
    """Mean of differences that are paired by seed, and the 95 % confidence interval of that mean (Student's t).

    ``low`` and ``high`` are NaN with fewer than two pairs. ``sign`` is -1 where less is better.
    """

    mean: float
    low: float
    high: float
    pairs: int
    sign: int = 1

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``no difference shown``; of the mean alone nothing is said."""
        if self.low > 0 or self.high < 0:
            return "better" if self.sign * self.mean > 0 else "worse"
        return "no difference shown" if self.pairs > 1 else "too few seeds to tell"

    def text(self, scale: float = 100, digits: int = 2) -> str:
        """As ``-0.52 [-1.10, +0.06]``, by default in points of accuracy."""
        mean, low, high = (f"{scale * value:+.{digits}f}" for value in (self.mean, self.low, self.high))
        return mean if self.pairs < 2 else f"{mean} [{low}, {high}]"


def by_cell(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[Run]]]:
    """Runs by cell and arm, by seed within."""
    cells: dict[str, dict[str, list[Run]]] = {}
    for run in sorted(map(Run, records), key=lambda run: run.seed):
        cells.setdefault(run.cell, {}).setdefault(run.arm, []).append(run)
    return cells


def paired_difference(
    arm: Sequence[Run], other: Sequence[Run], measure: Callable[[Run, Run], tuple[float, float]]
) -> Difference | None:
    """The difference ``arm - other``, pair by pair of the seeds that both have.

    Args:
        arm: Runs of an arm.
        other: Runs of the arm it is compared with.
        measure: From a pair of runs, one of each arm, to what is subtracted; a pair with a NaN does not count.

    Returns:
        None without a pair that counts.
    """
    others = {run.seed: run for run in other}
    pairs = [measure(run, others[run.seed]) for run in arm if run.seed in others]
    differences = [mine - theirs for mine, theirs in pairs if not math.isnan(mine - theirs)]
    if not differences:
        return None
    mean, sign = statistics.fmean(differences), -1 if arm[0].metric == "loss" else 1
    if len(differences) < 2:
        return Difference(mean, math.nan, math.nan, 1, sign)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    reach = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return Difference(mean, mean - reach, mean + reach, len(differences), sign)


def at_equal(axis: str) -> Callable[[Run, Run], tuple[float, float]]:
    """A measure for :func:`paired_difference`: validation accuracy when both had spent as much of ``axis``.

    The budget is what the cheaper of the two had spent when it ended.
    """

    def measure(run: Run, other: Run) -> tuple[float, float]:
        budget = min(run.last(axis), other.last(axis))
        return run.validation_at(axis, budget), other.validation_at(axis, budget)

    return measure


def mean_curve(runs: Sequence[Run], axis: str, name: str, points: int = 200) -> tuple[Array, Array, Array, Array]:
    """``name`` over ``axis``, averaged over runs, where all of them have been evaluated.

    Returns:
        Positions on ``axis``, the mean, the least and the largest value there.
    """
    first = max(run.curve(axis)[0] for run in runs)
    last = min(run.curve(axis)[-1] for run in runs)
    at = np.linspace(first, max(first, last), points)
    values = np.stack([np.interp(at, run.curve(axis), run.curve(name)) for run in runs])
    return at, values.mean(0), values.min(0), values.max(0)


def mean_text(values: Iterable[float], scale: float = 1.0, digits: int = 2) -> str:
    """Mean ± standard deviation over seeds, as ``40.52 ± 1.36``; the value alone where it is always the same."""
    scaled = [scale * value for value in values if not math.isnan(value)]
    if not scaled:
        return "-"
    mean = f"{statistics.fmean(scaled):,.{digits}f}"
    return mean if len(set(scaled)) == 1 else f"{mean} ± {statistics.stdev(scaled):,.{digits}f}"
