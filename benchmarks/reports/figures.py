"""The pictures of a report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.reports.comparison import Run, mean_curve
from benchmarks.suites.arms import arm_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_cell", "draw_leave_out", "draw_redraws", "flops_unit", "time_axis"]

Runs = Mapping[str, Sequence[Run]]

_CLOCKS = {
    "seconds": "seconds of wall-clock, evaluation excluded",
    "processor_seconds": "seconds of processor time, evaluation excluded",
}

_STYLES: dict[str, tuple[str, str]] = {
    "plain": ("#222222", "-"),
    "plain_decay": ("#777777", "--"),
    "plain_best_batch": ("#777777", ":"),
    "plain_full_data": ("#2a8f62", "-"),
    "edba": ("#1f5fa8", "-"),
    "edba_cached": ("#4aa3df", "-"),
    "edba_noise_scale": ("#16a3a3", "--"),
    "edba_fixed": ("#7a4fa3", "--"),
    "edba_random": ("#e07b1a", "-"),
    "edba_whole": ("#e07b1a", ":"),
    "edba_paper": ("#4527a0", "-"),
    "edba_paper_random": ("#d65a9c", "--"),
    "growth": ("#2a8f62", "-"),
    "selective_backprop": ("#c23b3b", "-"),
    "infobatch": ("#8c6239", "-"),
    "recipe": ("#b0489a", "-"),
    "recipe_edba": ("#b0489a", "--"),
    "adam": ("#777777", "--"),
    "dba": ("#9a6a00", "-"),
    "dba_random": ("#00695c", "--"),
    "redraw_on_resize": ("#c23b3b", "-"),
    "redraw_every_epoch": ("#8c6239", "--"),
}
_OTHERS = ("#5f6b76", "#ad1457", "#558b2f", "#00838f")
_BANDS = 6  # more bands than that hide each other


def time_axis(runs: Runs) -> str:
    """The clock that a comparison goes by: wall-clock on a GPU; on a CPU, which others use too, processor time."""
    on_gpu = any(run.record["hardware"]["gpu"] for arm in runs.values() for run in arm)
    return "seconds" if on_gpu else "processor_seconds"


def flops_unit(runs: Runs) -> tuple[str, float]:
    """The unit in which the largest run's FLOPs are at least 1, up to PFLOP, and the factor into it."""
    most = max(run.last("flops") for found in runs.values() for run in found)
    for name, scale in (("PFLOP", 1e-15), ("TFLOP", 1e-12)):
        if most * scale >= 1:
            return name, scale
    return "GFLOP", 1e-9


def draw_cell(runs: Runs, target: float, path: Path) -> None:
    """Accuracy over time, FLOPs and updates above; accuracy, cost of the target and batch sizes below.

    Args:
        runs: Runs by arm.
        target: Validation accuracy whose cost is shown.
        path: The PNG to write.
    """
    figure = _figure(13, 8.2 + 0.12 * max(0, len(runs) - 6))
    above, below = figure.subplots(2, 3)
    for panel in above[1:]:
        panel.sharey(above[0])
    clock, (unit, scale) = time_axis(runs), flops_unit(runs)
    _draw_curves(above[0], runs, clock, _CLOCKS[clock], 1.0, target)
    _draw_curves(above[1], runs, "flops", f"{unit}, scoring included", scale, target)
    _draw_curves(above[2], runs, "updates", "updates", 1.0, target)
    above[0].set_ylabel("validation accuracy (%)")
    order = sorted(runs, key=lambda arm: statistics.fmean(run.test_accuracy() for run in runs[arm]))
    _draw_accuracies(below[0], runs, order)
    _draw_costs(below[1], runs, order, target)
    _draw_batch_sizes(below[2], runs)
    handles, labels = above[0].get_legend_handles_labels()
    # About 0.075 inches a letter, and the line with its gaps: more columns would be cut off at the sides.
    fitting = int(figure.get_figwidth() / (0.6 + 0.075 * max(map(len, labels))))
    columns = max(1, min(fitting, 5, len(labels)))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    _save(figure, path)


def _draw_curves(panel: Axes, runs: Runs, axis: str, label: str, scale: float, target: float) -> None:
    for arm, found in runs.items():
        color, line = _style(arm, runs)
        at, mean, low, high = mean_curve(found, axis, "validation_accuracy")
        panel.plot(scale * at, 100 * mean, line, color=color, linewidth=1.8, label=arm_title(arm))
        if len(runs) <= _BANDS:
            panel.fill_between(scale * at, 100 * low, 100 * high, color=color, alpha=0.13, linewidth=0)
    panel.axhline(100 * target, color="0.6", linewidth=0.8, linestyle=(0, (1, 2)))
    panel.set_xlabel(label)
    panel.set_xlim(left=0)
    _tidy(panel)


def _draw_accuracies(panel: Axes, runs: Runs, order: Sequence[str]) -> None:
    for row, arm in enumerate(order):
        color, _ = _style(arm, runs)
        values = [100 * run.test_accuracy() for run in runs[arm]]
        panel.scatter(values, [row] * len(values), s=22, color=color, alpha=0.45, linewidths=0)
        panel.scatter([statistics.fmean(values)], [row], s=70, color=color, marker="|", linewidths=2.2)
    panel.set_yticks(range(len(order)), [arm_title(arm) for arm in order])
    panel.set_ylim(-0.6, len(order) - 0.4)
    panel.set_xlabel("test accuracy, last epoch (%)")
    _tidy(panel, grid="x")


def _draw_costs(panel: Axes, runs: Runs, order: Sequence[str], target: float) -> None:
    axis = time_axis(runs)
    reached = {arm: [run.cost_of(target, axis) for run in runs[arm]] for arm in order}
    longest = max((cost for costs in reached.values() for cost in costs if cost is not None), default=1.0)
    for row, arm in enumerate(order):
        color, _ = _style(arm, runs)
        costs = [cost for cost in reached[arm] if cost is not None]
        if costs:
            panel.barh(row, statistics.fmean(costs), height=0.62, color=color, alpha=0.75)
            panel.scatter(costs, [row] * len(costs), s=12, color="black", linewidths=0, zorder=3)
        if len(costs) < len(reached[arm]):
            text = f"{len(costs)} of {len(reached[arm])} got there"
            panel.text(max(costs, default=0) + 0.035 * longest, row, text, va="center", fontsize=8, color="0.35")
    panel.set_yticks(range(len(order)), [""] * len(order))
    panel.set_ylim(-0.6, len(order) - 0.4)
    short = any(cost is None for costs in reached.values() for cost in costs)
    panel.set_xlim(0, (1.45 if short else 1.08) * longest)  # room for the words
    clock = "seconds" if axis == "seconds" else "processor seconds"
    panel.set_xlabel(f"{clock} to {100 * target:.0f} % validation accuracy")
    _tidy(panel, grid="x")


def _draw_batch_sizes(panel: Axes, runs: Runs) -> None:
    for arm, found in runs.items():
        color, line = _style(arm, runs)
        for run in found:
            path = run.record["batch_size_path"]
            if path:
                updates, sizes = zip(*path, (run.last("updates"), path[-1][1]), strict=True)
                panel.step(updates, sizes, line, where="post", color=color, linewidth=1.1, alpha=0.7)
    panel.set_yscale("log")
    panel.set_xlabel("updates")
    panel.set_title("batch size, each run", loc="left", fontsize=10, color="0.25")
    panel.yaxis.set_major_formatter("{x:,.0f}")
    panel.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    panel.yaxis.set_minor_formatter("{x:,.0f}")
    panel.tick_params(axis="y", which="minor", labelsize=7, colors="0.5")
    _tidy(panel)


def draw_redraws(runs: Runs, path: Path) -> None:
    """Accuracy and distinct samples over updates: what a subset that is drawn anew amounts to."""
    figure = _figure(9, 6.6)
    accuracy, distinct = figure.subplots(2, 1, sharex=True)
    for arm, found in runs.items():
        color, line = _style(arm, runs)
        for panel, name, scale in ((accuracy, "validation_accuracy", 100), (distinct, "distinct_samples", 1)):
            at, mean, low, high = mean_curve(found, "updates", name)
            panel.plot(at, scale * mean, line, color=color, linewidth=1.8, label=arm_title(arm))
            panel.fill_between(at, scale * low, scale * high, color=color, alpha=0.13, linewidth=0)
    accuracy.set_ylabel("validation accuracy (%)")
    distinct.set_ylabel("distinct samples trained on")
    distinct.set_yscale("log")
    distinct.yaxis.set_major_formatter("{x:,.0f}")
    distinct.set_xlabel("updates")
    handles, labels = accuracy.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    for panel in (accuracy, distinct):
        _tidy(panel)
    _save(figure, path)


def draw_leave_out(
    ratios: Mapping[str, Mapping[str, tuple[float, float, float]]],
    over_training: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    path: Path,
) -> None:
    """How much more often mislabelled samples are left out than others.

    Args:
        ratios: By cell and arm, the ratio over all of training with its interval.
        over_training: By cell and arm, the same for each part of training.
        path: The PNG to write.
    """
    figure = _figure(2.6 + 2.6 * len(ratios), 3.9)
    panels = figure.subplots(1, len(ratios) + 1, squeeze=False)[0]
    arms = list(dict.fromkeys(arm for by_arm in ratios.values() for arm in by_arm))
    for row, by_arm in enumerate(ratios.values()):
        for number, arm in enumerate(arms):
            if arm in by_arm:
                ratio, low, high = by_arm[arm]
                color, _ = _style(arm, {})
                height = row + 0.16 * (number - (len(arms) - 1) / 2)
                panels[0].plot([low, high], [height, height], color=color, linewidth=2)
                panels[0].plot([ratio], [height], "o", color=color, label=arm_title(arm) if row == 0 else None)
    panels[0].set_yticks(range(len(ratios)), list(ratios))
    panels[0].invert_yaxis()
    panels[0].axvline(1, color="0.5", linewidth=0.8)
    panels[0].set_xlabel("ratio of leave-out rates,\nwhole training, 95 % interval")
    _tidy(panels[0], grid="x")
    for panel, (cell, parts_by_arm) in zip(panels[1:], over_training.items(), strict=True):
        for arm, parts in parts_by_arm.items():
            color, _ = _style(arm, {})
            middle = (np.arange(len(parts)) + 0.5) / len(parts)
            ratio, low, high = np.array(parts).T
            panel.plot(middle, ratio, color=color, linewidth=1.6)
            panel.fill_between(middle, low, high, color=color, alpha=0.15, linewidth=0)
        panel.axhline(1, color="0.5", linewidth=0.8)
        panel.set_title(cell, loc="left", fontsize=10)
        panel.set_xlabel("share of training")
        if panel is not panels[1]:
            panel.sharey(panels[1])
        _tidy(panel)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    _save(figure, path)


def _style(arm: str, runs: Runs) -> tuple[str, str]:
    if arm in _STYLES:
        return _STYLES[arm]
    others = [name for name in runs if name not in _STYLES]
    return (_OTHERS[others.index(arm) % len(_OTHERS)] if arm in others else _OTHERS[0]), "-."


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _tidy(panel: Axes, grid: Any = "y") -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis=grid, color="0.9", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(colors="0.3")
    panel.xaxis.label.set_color("0.25")
    panel.yaxis.label.set_color("0.25")


def _save(figure: Figure, path: Path) -> None:
    # Without the name and version of the software, which would differ between machines.
    figure.savefig(path, dpi=110, metadata={"Software": None})
