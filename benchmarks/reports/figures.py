"""The pictures of a report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.reports.comparison import Run, mean_curve
from benchmarks.suites.arms import arm_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_cell", "draw_leave_out", "draw_redraws", "flops_unit", "time_axis"]

Runs = Mapping[str, Sequence[Run]]

_CLOCKS = {
    "seconds": "seconds, evaluation left out",
    "processor_seconds": "processor seconds, evaluation left out",
}

# At most five arms have a colour: plain, EDBA, its random control, and the first of these two that are there.
_COLOURS = ("#222222", "#1f5fa8", "#e07b1a", "#2a8f62", "#b0489a")
_NEXT = ("dba", "dba_random", "plain_best_batch", "growth", "plain_decay", "edba_cached", "edba_whole", "edba_paper")
_OTHER = "0.72"


def _colours(arms: Collection[str]) -> dict[str, str]:
    """The colours of the arms that have one, in the order of their importance; the first three always keep theirs."""
    ours = "edba" if "edba" in arms else "edba_paper"
    first = ["plain", ours, f"{ours}_random"]
    rest = [arm for arm in dict.fromkeys([*_NEXT, *arms]) if arm in arms and arm not in first]
    free = [colour for arm, colour in zip(first, _COLOURS, strict=False) if arm not in arms]
    given = {arm: colour for arm, colour in zip(first, _COLOURS, strict=False) if arm in arms}
    return given | dict(zip(rest, [*_COLOURS[len(first) :], *free], strict=False))


def _name(arm: str) -> str:
    """Its title; of one that a command line made up, which may be of any length, the end, where such ones differ."""
    title = arm_title(arm)
    return title if len(title) <= 60 else f"... {title[-56:]}"


def _by_rank(runs: Runs) -> list[str]:
    """The coloured arms, then the others."""
    colours = _colours(runs)
    return [*colours, *(arm for arm in runs if arm not in colours)]


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


def draw_cell(runs: Runs, target: float, path: Path) -> str:
    """Accuracy over time, FLOPs and updates above; accuracy, cost of the target and batch sizes below.

    What would say nothing is left out: costs that no run reached, batch sizes that never moved.

    Args:
        runs: Runs by arm, evaluated on held-out samples.
        target: Validation accuracy whose cost is shown.
        path: The PNG to write.

    Returns:
        A caption.
    """
    order = sorted(runs, key=lambda arm: statistics.fmean(run.test_score() for run in runs[arm]))
    costs = {arm: [run.cost_of(target, time_axis(runs)) for run in runs[arm]] for arm in order}
    below = ["accuracies"]
    if any(cost is not None for found in costs.values() for cost in found):
        below.append("costs")
    if len({size for found in runs.values() for run in found for _, size in run.record["batch_size_path"]}) > 1:
        below.append("batch sizes")
    figure = _figure(13, 7.2 + 0.16 * max(0, len(runs) - 4))
    grid = figure.add_gridspec(2, 1, height_ratios=(4, 2.6 + 0.16 * max(0, len(runs) - 4)))
    top, bottom = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    curves = top.subplots(1, 3, sharey=True)
    clock, (unit, scale) = time_axis(runs), flops_unit(runs)
    _draw_curves(curves[0], runs, clock, _CLOCKS[clock], 1.0, target)
    _draw_curves(curves[1], runs, "flops", f"{unit}, scoring included", scale, target)
    _draw_curves(curves[2], runs, "updates", "updates", 1.0, target)
    curves[0].set_ylabel("validation accuracy (%)")
    panels = dict(zip(below, bottom.subplots(1, len(below), squeeze=False)[0], strict=True))
    _draw_accuracies(panels["accuracies"], runs, order)
    if "costs" in panels:
        _draw_costs(
            panels["costs"],
            costs,
            _colours(runs),
            f"{_CLOCKS[clock].partition(',')[0]} to {100 * target:.0f} % validation",
        )
    if "batch sizes" in panels:
        _draw_batch_sizes(panels["batch sizes"], runs)
    _legend(figure, curves[0])
    _save(figure, path)
    texts = {
        "accuracies": "test accuracy at the end (dots: seeds, stroke: mean)",
        "costs": "cost of the target (bars: mean of those that got there)",
        "batch sizes": "batch sizes",
    }
    bands = "range over seeds shaded" if _banded(runs) else "means over seeds"
    return (
        f"Above: validation accuracy, {bands}; the dotted line is the target of {100 * target:.0f} %. Below: "
        f"{', '.join(texts[name] for name in below)}."
    )


def _banded(runs: Runs) -> bool:
    """More bands than the colours hide each other."""
    return len(runs) <= len(_COLOURS)


def _draw_lines(panel: Axes, runs: Runs, axis: str, name: str, scale: float, factor: float) -> None:
    """``factor`` times the quantity ``name`` over ``scale`` times ``axis``, a line an arm, the coloured ones on top."""
    colours = _colours(runs)
    for rank, arm in enumerate(_by_rank(runs)):
        at, mean, low, high = mean_curve(runs[arm], axis, name)
        if arm not in colours:
            label = "other arms" if rank == len(colours) else None
            panel.plot(scale * at, factor * mean, color=_OTHER, linewidth=0.9, label=label, zorder=1)
            continue
        style = "--" if arm.endswith("_random") else "-"
        line: dict[str, Any] = {
            "color": colours[arm],
            "linewidth": 1.8,
            "label": _name(arm),
            "zorder": 3 - rank / 10,
        }
        panel.plot(scale * at, factor * mean, style, **line)
        if _banded(runs):
            panel.fill_between(scale * at, factor * low, factor * high, color=colours[arm], alpha=0.13, linewidth=0)
    _tidy(panel)


def _draw_curves(panel: Axes, runs: Runs, axis: str, label: str, scale: float, target: float) -> None:
    _draw_lines(panel, runs, axis, "validation_accuracy", scale, 100)
    panel.axhline(100 * target, color="0.5", linewidth=0.8, linestyle=(0, (1, 2)))
    panel.set_xlabel(label)
    panel.set_xlim(left=0)


def _draw_accuracies(panel: Axes, runs: Runs, order: Sequence[str]) -> None:
    colours = _colours(runs)
    for row, arm in enumerate(order):
        color = colours.get(arm, _OTHER)
        values = [100 * run.test_score() for run in runs[arm]]
        panel.scatter(values, [row] * len(values), s=22, color=color, alpha=0.45, linewidths=0)
        panel.scatter([statistics.fmean(values)], [row], s=70, color=color, marker="|", linewidths=2.2)
    panel.set_yticks(range(len(order)), [_name(arm) for arm in order])
    panel.set_ylim(-0.6, len(order) - 0.4)
    panel.set_xlabel("test accuracy, last epoch (%)")
    _tidy(panel, grid="x")


def _draw_costs(
    panel: Axes, reached: Mapping[str, Sequence[float | None]], colours: Mapping[str, str], label: str
) -> None:
    longest = max(cost for costs in reached.values() for cost in costs if cost is not None)
    for row, (arm, found) in enumerate(reached.items()):
        costs = [cost for cost in found if cost is not None]
        if costs:
            panel.barh(row, statistics.fmean(costs), height=0.62, color=colours.get(arm, _OTHER), alpha=0.75)
            panel.scatter(costs, [row] * len(costs), s=12, color="black", linewidths=0, zorder=3)
        if len(costs) < len(found):
            text = f"{len(costs)} of {len(found)} got there"
            panel.text(max(costs, default=0) + 0.05 * longest, row, text, va="center", fontsize=8, color="0.35")
    panel.set_yticks(range(len(reached)), [""] * len(reached))
    panel.set_ylim(-0.6, len(reached) - 0.4)
    short = any(None in costs for costs in reached.values())
    panel.set_xlim(0, (1.45 if short else 1.08) * longest)  # room for the words
    panel.set_xlabel(label)
    _tidy(panel, grid="x")


def _draw_batch_sizes(panel: Axes, runs: Runs) -> None:
    colours = _colours(runs)
    shown: list[int] = []
    for rank, arm in enumerate(_by_rank(runs)):
        line: dict[str, Any] = {
            "color": colours.get(arm, _OTHER),
            "linewidth": 1.1 if arm in colours else 0.8,
            "alpha": 0.7,
        }
        for run in runs[arm]:
            path = run.record["batch_size_path"]
            if path:
                shown += [size for _, size in path]
                updates, sizes = zip(*path, (run.last("updates"), path[-1][1]), strict=True)
                panel.step(updates, sizes, where="post", zorder=3 - rank / 10, **line)
    panel.set_yscale("log")
    panel.set_xlabel("updates")
    panel.set_ylabel("batch size, each run")
    least, largest = min(shown), max(shown)
    panel.set_ylim(least / 1.15, largest * 1.15)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if largest <= 10 * least else (1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:,.0f}")
    panel.yaxis.set_minor_locator(NullLocator())
    _tidy(panel)


def draw_redraws(runs: Runs, path: Path) -> None:
    """Accuracy and distinct samples over updates: what a subset that is drawn anew amounts to."""
    figure = _figure(9, 6.6)
    accuracy, distinct = figure.subplots(2, 1, sharex=True)
    _draw_lines(accuracy, runs, "updates", "validation_accuracy", 1.0, 100)
    _draw_lines(distinct, runs, "updates", "distinct_samples", 1.0, 1)
    accuracy.set_ylabel("validation accuracy (%)")
    distinct.set_ylabel("distinct samples trained on")
    distinct.set_yscale("log")
    distinct.yaxis.set_major_formatter("{x:,.0f}")
    distinct.set_xlabel("updates")
    _legend(figure, accuracy)
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
    colours = _colours(arms)
    for row, by_arm in enumerate(ratios.values()):
        for number, arm in enumerate(arms):
            if arm in by_arm:
                ratio, low, high = by_arm[arm]
                color = colours.get(arm, _OTHER)
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
            color = colours.get(arm, _OTHER)
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
    _legend(figure, panels[0])
    _save(figure, path)


def _legend(figure: Figure, panel: Axes) -> None:
    handles, labels = panel.get_legend_handles_labels()
    # About 0.075 inches a letter, and the line with its gaps: in one row, or in rows of as many.
    widths = [0.55 + 0.075 * len(label) for label in labels]
    rows = math.ceil(sum(widths) / (0.97 * figure.get_figwidth()))
    columns = math.ceil(len(labels) / rows)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12))
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
