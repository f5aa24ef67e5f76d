"""What an accuracy costs: each arm at several budgets, every run with a whole schedule, against the best plain ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from benchmarks.reports.comparison import Run
from benchmarks.reports.document import Block, Cell, Heading, Paragraph, Picture, Table
from benchmarks.suites.arms import arm_title

__all__ = ["COSTS", "PLAIN", "Ratio", "cost_of_accuracy", "cost_ratio", "draw_frontiers", "frontier_blocks", "machine"]

PLAIN = ("plain", "plain_500")
_RESAMPLES = 2000
_COLOURS = ("#1f5fa8", "#e07b1a", "#2a8f62", "#b0489a", "#8a6d1f", "#4a4a9c", "#9c4a4a")

Frontier = Mapping[str, Sequence[Run]]  # runs of an arm by cell
Cost = Callable[[Run], float]


def _samples(run: Run) -> float:
    return run.last("samples_trained") + run.last("samples_scored") / 3


COSTS: dict[str, tuple[str, Cost]] = {
    "samples": ("samples trained on, and a third of those only scored", _samples),
    "updates": ("updates", lambda run: run.last("updates")),
    "seconds": ("processor seconds of one core", lambda run: run.last("processor_seconds")),
}
"""By name: words for an axis, and what a run spent."""


def cost_of_accuracy(points: Sequence[tuple[float, float]], accuracy: float) -> float:
    """The least cost at which plain training reaches ``accuracy``.

    Args:
        points: cost and accuracy of each budget, in any order. A budget that a cheaper one equals is no part of the
            frontier. Between the others the accuracy is linear in the logarithm of the cost.
        accuracy: what is to be reached.

    Returns:
        NaN where the frontier begins above it or ends below it: nothing is extrapolated.
    """
    frontier: list[tuple[float, float]] = []
    for cost, reached in sorted(points, key=lambda point: (point[0], -point[1])):
        if not frontier or reached > frontier[-1][1]:
            frontier.append((cost, reached))
    if not frontier or not frontier[0][1] <= accuracy <= frontier[-1][1]:
        return math.nan
    costs, accuracies = zip(*frontier, strict=True)
    return float(np.exp(np.interp(accuracy, accuracies, np.log(costs))))


@dataclass(frozen=True)
class Ratio:
    """An arm's cost over the best plain one's at the arm's accuracy.

    Attributes:
        value: below 1 the arm is cheaper; NaN: plain's budgets do not reach that accuracy, or begin above it.
        low, high: 95 % of the bootstrap over seeds, of the resamples that have a ratio; NaN with one seed.
        without: share of the resamples that have none.
    """

    value: float
    low: float
    high: float
    without: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "no overlap"
        if math.isnan(self.low):
            return f"{self.value:.2f} (one seed)"
        missing = f"; {self.without:.0%} of resamples without overlap" if self.without > 0.025 else ""
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f}{missing})"


def cost_ratio(runs: Sequence[Run], plain: Mapping[str, Frontier], cost: Cost, seed: int = 0) -> Ratio:
    """How much of plain's cost an arm's runs at one budget needed for their mean accuracy.

    Seeds are drawn anew, with replacement, for the arm and for each of plain's budgets; the interval holds what that
    does to the ratio.

    Args:
        runs: the arm's at one budget.
        plain: by arm of plain training, its runs by cell.
        cost: what a run spent.
        seed: of the bootstrap.
    """
    budgets = [found for frontier in plain.values() for found in frontier.values()]

    def ratio(own: Sequence[Run], others: Sequence[Sequence[Run]]) -> float:
        accuracy = statistics.fmean(run.test_score() for run in own)
        points = [
            (statistics.fmean(map(cost, found)), statistics.fmean(run.test_score() for run in found))
            for found in others
        ]
        return statistics.fmean(map(cost, own)) / cost_of_accuracy(points, accuracy)

    value = ratio(runs, budgets)
    if len(runs) < 2 or all(len(found) < 2 for found in budgets):
        return Ratio(value, math.nan, math.nan, 0.0)
    generator = np.random.default_rng(seed)

    def resampled(found: Sequence[Run]) -> list[Run]:
        return [found[int(n)] for n in generator.integers(len(found), size=len(found))]

    drawn = np.array([ratio(resampled(runs), [*map(resampled, budgets)]) for _ in range(_RESAMPLES)])
    known = drawn[~np.isnan(drawn)]
    if math.isnan(value) or len(known) == 0:
        return Ratio(value, math.nan, math.nan, 1.0)
    low, high = np.quantile(known, [0.025, 0.975])
    return Ratio(value, float(low), float(high), 1 - len(known) / _RESAMPLES)


def machine(runs: Sequence[Run]) -> tuple[float, float] | None:
    """Processor seconds an update, a, and a sample trained on, b, that explain the runs' best.

    Least squares of the relative error, neither below zero. None: the runs' updates are too much of one size to tell.
    """
    rows = np.array([[run.last("updates"), _samples(run)] for run in runs])
    seconds = np.array([run.last("processor_seconds") for run in runs])
    sizes = rows[:, 1] / rows[:, 0]
    if sizes.max() < 1.3 * sizes.min():
        return None
    from scipy.optimize import nnls

    (a, b), _ = nnls(rows / seconds[:, None], np.ones(len(seconds)))
    return float(a), float(b)


def draw_frontiers(arms: Mapping[str, Frontier], path: Path) -> str:
    """Accuracy over each of the costs, a line an arm and a point a run; returns a caption."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(COSTS), sharey=True)
    free = iter(_COLOURS)
    colours = {arm: "#222222" if arm in PLAIN else next(free, "0.6") for arm in arms}
    for axis, (words, cost) in zip(axes, COSTS.values(), strict=True):
        for arm, frontier in arms.items():
            means = sorted(
                (statistics.fmean(map(cost, found)), 100 * statistics.fmean(run.test_score() for run in found))
                for found in frontier.values()
            )
            style = {"color": colours[arm], "linestyle": "--" if arm == "plain_500" else "-"}
            axis.plot(*zip(*means, strict=True), marker="o", markersize=5, label=arm_title(arm), **style)
            every = [(cost(run), 100 * run.test_score()) for found in frontier.values() for run in found]
            axis.scatter(*zip(*every, strict=True), s=9, color=colours[arm], alpha=0.45, linewidths=0)
        axis.set_xscale("log")
        for which in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            which(ScalarFormatter())
        axis.tick_params(axis="x", which="both", labelsize=8, labelrotation=30)
        axis.set_xlabel(words)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("test accuracy, last epoch, %")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return (
        "Accuracy over cost: a line joins the means of an arm's budgets, a small point is a run. Every run has its own "
        "whole schedule. Further left and higher is better."
    )


def frontier_blocks(cells: Mapping[str, Mapping[str, Sequence[Run]]], path: Path) -> list[Block]:
    """The picture, the ratios, the accuracies and what the machine's time is made of.

    Args:
        cells: runs by budget and arm.
        path: the PNG to write.
    """
    arms: dict[str, dict[str, Sequence[Run]]] = {}
    for cell, by_arm in cells.items():
        for arm, found in by_arm.items():
            arms.setdefault(arm, {})[cell] = found
    plain = {arm: frontier for arm, frontier in arms.items() if arm in PLAIN}
    blocks: list[Block] = [Picture(path, draw_frontiers(arms, path))]
    rows: list[list[str | Cell]] = []
    for arm, frontier in arms.items():
        for cell, runs in frontier.items() if arm not in PLAIN else ():
            ratios = [cost_ratio(runs, plain, cost) for _, cost in COSTS.values()]
            told = [Cell(str(r), "good" if r.high < 1 else "bad" if r.low > 1 else "") for r in ratios]
            accuracy = 100 * statistics.fmean(run.test_score() for run in runs)
            rows.append([f"{arm_title(arm)}, {_words(cell)}", str(len(runs)), f"{accuracy:.2f}", *told])
    if rows and plain:
        head = ["", "seeds", "test accuracy %", *(f"cost ratio, {name}" for name in COSTS)]
        blocks += [
            Heading(2, "Cost at equal accuracy"),
            Paragraph(
                "An arm's cost over that of the best plain training at the arm's accuracy, read off the plain "
                "frontier, between whose budgets accuracy is taken as linear in the logarithm of the cost. Below 1 "
                "the arm is cheaper. In brackets 95 % of a bootstrap over seeds, of the arm's and of plain's; not "
                "corrected for the number of comparisons."
            ),
            Table(head, rows),
        ]
    rows = [
        [f"{_words(cell)}, {arm_title(arm)}", *_summary(runs)] for cell, a in cells.items() for arm, runs in a.items()
    ]
    blocks += [
        Heading(2, "Every budget"),
        Table(["", "seeds", "test accuracy %", *(words for words, _ in COSTS.values())], rows),
    ]
    everything = [run for by_arm in cells.values() for runs in by_arm.values() for run in runs]
    if (parts := machine(everything)) is not None:
        a, b = parts
        blocks.append(
            Paragraph(
                f"These runs' processor time is best told by {1e3 * a:.3g} ms an update and {1e6 * b:.3g} µs a sample "
                "trained on. The machine was shared meanwhile: seconds are rough, samples and updates exact."
            )
        )
    return blocks


def _summary(runs: Sequence[Run]) -> list[str]:
    scores = [100 * run.test_score() for run in runs]
    spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    spent = [f"{statistics.fmean(map(cost, runs)):,.0f}" for _, cost in COSTS.values()]
    return [str(len(runs)), f"{statistics.fmean(scores):.2f}{spread}", *spent]


def _words(cell: str) -> str:
    number, _, unit = cell.partition("_")
    return f"{number} {unit} planned"
