"""The report of the cost suite, from its figures alone: tables in markdown, and a plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cost.outcome import clock_text
from benchmarks.machine import described
from benchmarks.reports.document import Block, Cell, Heading, Paragraph, Picture, Table, to_markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["as_markdown", "growth_exponent", "plot"]

# The bars, which the first table holds the figures against.
MOST_CANDIDATES_RATIO = 200
MOST_STEP_RATIO = 1.05
MOST_MASS_RATIO, MOST_MASS_MS = 1.01, 0.3
MOST_PEAK_RATIO = 1.05

_SELECTION_NAMES = {
    "edba": "EDBA",
    "masks_times_matrix": "masks x matrix",
    "matrix_vector": "one by one, mask x gradients",
    "mean_of_rows": "one by one, mean of rows",
}
_STEP_NAMES = {
    "edba": "EDBA",
    "floor": "floor: forward of the pool + plain step on the subset",
    "plain_on_subset": "plain step on the subset",
    "plain_on_pool": "plain step on the pool",
    "selective_backprop": "SelectiveBackprop",
}
_TRAINER_NAMES = {
    "edba_before_start": "EDBA before its start",
    "edba_interrupted": "EDBA, a step that interrupt leaves out",
    "edba_mass": "EDBA, gradient mass",
    "edba_cached": "EDBA, cached scoring",
    "edba_forward": "EDBA, forward scoring",
    "plain": "plain on whole pools",
    "plain_on_subset": "plain on subsets of the same sizes",
}


def growth_exponent(pools: Sequence[float], values: Sequence[float]) -> float:
    """p of the least-squares fit values = c * pools ** p, on logarithms; needs two different pools."""
    return float(np.polyfit(np.log(pools), np.log(values), 1)[0])


def as_markdown(report: Mapping[str, Any], picture: Path) -> str:
    """All tables, and the picture in the same folder."""
    blocks: list[Block] = [
        Heading(1, "What EDBA costs"),
        Paragraph(
            f"{described(report['machine'])}. At most {report['rounds']} rounds, all arms of a table in turns; medians "
            f"(quartiles), ratios formed round by round. {clock_text(report['machine'])}"
        ),
        *_bars(report),
        Picture(picture, "candidates a second, time of a step, ratios and peak memory over the pool size"),
    ]
    if report["selection"]:
        blocks += _selection(report["selection"])
    if report["steps"]:
        blocks += _steps(report["steps"])
    if report["trainer"]:
        blocks += _trainer(report["trainer"])
    blocks += _growth(report)
    blocks.append(Paragraph("Made by `python -m benchmarks cost`."))
    return to_markdown(blocks)


def _bars(report: Mapping[str, Any]) -> list[Block]:
    rows: list[list[str | Cell]] = []

    def add(what: str, bar: str, ratio: Sequence[float], met: bool, digits: int) -> None:
        verdict = Cell("met", "good") if met else Cell("missed", "bad")
        rows.append([what, bar, _spread(ratio, digits), verdict])

    if report["selection"]:
        pool = max(row["pool"] for row in report["selection"])
        asked = min(row["asked_for"] for row in report["selection"])
        for row in report["selection"]:
            if (row["pool"], row["asked_for"]) != (pool, asked):
                continue
            for rival in ("mean_of_rows", "matrix_vector"):
                ratio = row["edba_over"][rival]
                add(
                    f"candidates a second over {_SELECTION_NAMES[rival]}, B = {pool}, "
                    f"{row['classes']} x {row['features']}",
                    f">= {MOST_CANDIDATES_RATIO}",
                    ratio,
                    ratio[0] >= MOST_CANDIDATES_RATIO,
                    0,
                )
    for row in report["steps"]:
        if "edba_over" in row:
            ratio = row["edba_over"]["floor"]
            add(
                f"step over its floor, B = {row['pool']}",
                f"<= {MOST_STEP_RATIO}",
                ratio,
                ratio[0] <= MOST_STEP_RATIO,
                3,
            )
    for row in report["steps"]:
        if "plain_on_pool" in row.get("peak_bytes", {}):
            peak = row["peak_bytes"]["edba"] / row["peak_bytes"]["plain_on_pool"]
            what = f"peak memory over that of a plain step on the pool, B = {row['pool']}"
            add(what, f"<= {MOST_PEAK_RATIO}", [peak], peak <= MOST_PEAK_RATIO, 3)
    for row in report["trainer"]:
        if (
            "edba_mass" in row["ratio"]
        ):  # on the smallest of networks Composer's own step is shorter than any share of it
            small, seconds = row["model"] == "digits_cnn", row["seconds"]
            added = 1e3 * (seconds["edba_mass"]["median"] - seconds["plain"]["median"])
            ratio = row["ratio"]["edba_mass"]["quartiles"]
            what = f"{_TRAINER_NAMES['edba_mass']}, over plain: {row['model']}, B = {row['pool']}"
            if small:
                add(f"{what}, ms added", f"<= {MOST_MASS_MS}", [added], added <= MOST_MASS_MS, 2)
            else:
                add(what, f"<= {MOST_MASS_RATIO}", ratio, ratio[0] <= MOST_MASS_RATIO, 3)
        for name in ("edba_cached", "edba_before_start", "edba_interrupted"):
            compared = row["ratio"][name]
            add(
                f"{_TRAINER_NAMES[name]}, over {_TRAINER_NAMES[compared['to']]}: {row['model']}, B = {row['pool']}",
                f"<= {MOST_STEP_RATIO}",
                compared["quartiles"],
                compared["quartiles"][0] <= MOST_STEP_RATIO,
                3,
            )
    if not rows:
        return []
    return [Heading(2, "The bars"), Table(["", "bar", "measured", ""], rows)]


def _selection(selection: Sequence[Mapping[str, Any]]) -> list[Block]:
    header = ["B", "last layer", "candidates", *(f"{name}, 1/s" for name in _SELECTION_NAMES.values())]
    header += ["inner products, share of EDBA's time"]
    rows = []
    for row in selection:
        rate = row["candidates_per_second"]
        share = row["seconds"]["edba_inner_products"]["median"] / row["seconds"]["edba"]["median"]
        rows.append(
            [
                str(row["pool"]),
                f"{row['classes']} x {row['features']}",
                f"{row['judged']:,}",
                *(_count(rate[name]) + ("*" if _cut(row, name) else "") for name in _SELECTION_NAMES),
                f"{100 * min(1, share):.0f} %",
            ]
        )
    text = (
        "From the last layer's inputs and output gradients to the best candidate, candidates a second. EDBA and masks "
        "x matrix make the inner products first; the two others have the materialised per-sample gradients at hand for "
        "nothing, (B, C (F + 1)). Every way draws its own random subsets. The number of candidates is what EDBA judges "
        "when asked for the least number of them: whole orders, all prefixes."
    )
    cut = [row for row in selection if row["classes_held"] < row["classes"]]
    if cut:
        largest = max(row["materialised_bytes"] for row in cut)
        text += (
            f" \\* Gradients too large for the memory that was free ({largest / 2**30:.1f} GiB and a copy): timed on "
            "the first classes and multiplied up, which leaves out only what the larger ones would cost beyond that."
        )
    return [Heading(2, "Selection alone"), Paragraph(text), Table(header, rows)]


def _cut(row: Mapping[str, Any], name: str) -> bool:
    return row["classes_held"] < row["classes"] and name in ("matrix_vector", "mean_of_rows")


def _steps(steps: Sequence[Mapping[str, Any]]) -> list[Block]:
    first = next((row for row in steps if "model" in row), None)
    blocks: list[Block] = [Heading(2, "A step")]
    if first is not None:
        layout = ", channels last" if first["channels_last"] else ""
        blocks.append(
            Paragraph(
                f"{first['model']}, {first['precision']}{layout}, random 32 x 32 images, SGD with momentum; the subset "
                "has 55 % of the pool in every arm. SelectiveBackprop is Composer's own `select_using_loss` at the "
                "same share. Peak memory is that of the run's first step beyond network, pool and Python."
            )
        )
    rows = []
    for row in steps:
        for name in row.get("seconds", row.get("peak_bytes", {})):
            figures = row.get("seconds", {}).get(name)
            ratio = row.get("edba_over", {}).get(name)
            peak = row.get("peak_bytes", {}).get(name)
            rows.append(
                [
                    str(row["pool"]),
                    _STEP_NAMES[name],
                    "" if figures is None else _milliseconds(figures),
                    "" if ratio is None else _spread(ratio, 3),
                    "" if peak is None else f"{peak / 2**20:,.0f}",
                    str(row.get("rounds", "")),
                ]
            )
        for name, reason in row.get("left_out", {}).items():
            rows.append([str(row["pool"]), f"{_STEP_NAMES[name]}: not run, {reason}", "", "", "", ""])
    header = ["B", "step", "ms", "EDBA / this", "peak MiB", "rounds"]
    return [*blocks, Table(header, rows)]


def _trainer(trainer: Sequence[Mapping[str, Any]]) -> list[Block]:
    rows = []
    for row in trainer:
        for name, figures in row["seconds"].items():
            compared = row["ratio"].get(name)
            rows.append(
                [
                    row["model"],
                    str(row["pool"]),
                    _TRAINER_NAMES[name],
                    _milliseconds(figures),
                    "" if compared is None else _spread(compared["quartiles"], 3),
                    "" if compared is None else _TRAINER_NAMES[compared["to"]],
                    _added(row, name),
                ]
            )
    chosen = " and ".join(f"{row['mean_subset']:.0f} of {row['pool']}" for row in trainer)
    text = (
        "Steps of real Composer Trainers, loading included, that train an epoch each in turns. Subsets have EDBA's "
        f"default sizes; cached scoring chose {chosen} samples on average, and its plain counterpart trains on batches "
        "of the very sizes of that round."
    )
    header = ["network", "B", "Trainer", "ms a step", "ratio", "to", "added ms"]
    return [Heading(2, "In the Trainer"), Paragraph(text), Table(header, rows)]


def _added(row: Mapping[str, Any], name: str) -> str:
    compared = row["ratio"].get(name)
    if compared is None:
        return ""
    return f"{1e3 * (row['seconds'][name]['median'] - row['seconds'][compared['to']]['median']):+.1f}"


def _growth(report: Mapping[str, Any]) -> list[Block]:
    rows: list[list[str]] = []

    def add(what: str, points: Iterable[tuple[float, float]]) -> None:
        pools, values = zip(*points, strict=True)
        if len(set(pools)) > 1:
            exponent = growth_exponent(pools, values)
            rows.append([what, f"{exponent:.2f}", f"{2**exponent:.2f}", " ".join(f"{pool:g}" for pool in pools)])

    asked = sorted({row["asked_for"] for row in report["selection"]})
    for layer in dict.fromkeys((row["classes"], row["features"]) for row in report["selection"]):
        for number in asked:
            add(
                f"selection alone, {layer[0]} x {layer[1]}, {number:,} candidates, time",
                [
                    (row["pool"], row["seconds"]["edba"]["median"])
                    for row in report["selection"]
                    if (row["classes"], row["features"], row["asked_for"]) == (*layer, number)
                ],
            )
    timed = [row for row in report["steps"] if "seconds" in row]
    for name in timed[0]["seconds"] if timed else ():
        rows_of_it = [row for row in timed if name in row["seconds"]]
        add(f"{_STEP_NAMES[name]}, time", [(row["pool"], row["seconds"][name]["median"]) for row in rows_of_it])
    weighed = [row for row in report["steps"] if "peak_bytes" in row]
    for name in weighed[0]["peak_bytes"] if weighed else ():
        rows_of_it = [row for row in weighed if name in row["peak_bytes"]]
        add(f"{_STEP_NAMES[name]}, peak memory", [(row["pool"], row["peak_bytes"][name]) for row in rows_of_it])
    if not rows:
        return []
    return [
        Heading(2, "Growth with B"),
        Paragraph("Exponent p of c B^p, fitted by least squares on logarithms."),
        Table(["", "p", "a doubling of B costs x", "B"], rows),
    ]


def _spread(ratio: Sequence[float], digits: int) -> str:
    median, *quartiles = (f"{value:,.{digits}f}" for value in ratio)
    return f"{median} ({quartiles[0]} to {quartiles[1]})" if quartiles else median


def _milliseconds(figures: Mapping[str, float]) -> str:
    digits = max(0, 2 - math.floor(math.log10(1e3 * figures["median"])))
    return _spread([1e3 * figures[name] for name in ("median", "low", "high")], digits)


def _count(figures: Mapping[str, float]) -> str:
    digits = 0 if figures["median"] >= 10 else 2
    return f"{figures['median']:,.{digits}f}"


# ---- the plot

_COLORS = {
    "edba": "#1f5fa8",
    "masks_times_matrix": "#16a3a3",
    "matrix_vector": "#e07b1a",
    "mean_of_rows": "#9a6a00",
    "floor": "#777777",
    "plain_on_subset": "#2a8f62",
    "plain_on_pool": "#222222",
    "selective_backprop": "#c23b3b",
}


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Candidates a second over B above; steps, ratios and memory below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 8.4), layout="constrained")
    FigureCanvasAgg(figure)
    # Apart, so that the long labels of the ratios leave the panels above alone.
    parts: Any = figure.subfigures(2, 1)
    above, below = (part.subplots(1, 3) for part in parts)
    _plot_selection(above, report["selection"])
    _plot_steps(below[0], [row for row in report["steps"] if "seconds" in row])
    _plot_ratios(below[1], report)
    _plot_memory(below[2], [row for row in report["steps"] if "peak_bytes" in row])
    for axes in (*above, *below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors="0.35")
        axes.set_visible(axes.has_data())
    figure.suptitle(f"What EDBA costs  ({described(report['machine'])})", x=0.01, ha="left", fontsize=10.5)
    figure.savefig(path, dpi=130)


def _plot_selection(panels: Sequence[Axes], selection: Sequence[Mapping[str, Any]]) -> None:
    layers = list(dict.fromkeys((row["classes"], row["features"]) for row in selection))
    rates = [row["candidates_per_second"][name]["median"] for row in selection for name in _SELECTION_NAMES]
    asked = sorted({row["asked_for"] for row in selection})
    for panel, layer in zip(panels, layers, strict=False):
        of_layer = [row for row in selection if (row["classes"], row["features"]) == layer]
        for number in asked[1:]:
            many = [row for row in of_layer if row["asked_for"] == number]
            rate = [row["candidates_per_second"]["edba"]["median"] for row in many]
            label = f"EDBA, {number:,} candidates at once"
            panel.plot([row["pool"] for row in many], rate, color=_COLORS["edba"], linestyle=":", label=label)
        rows = [row for row in of_layer if row["asked_for"] == asked[0]]
        for name, label in _SELECTION_NAMES.items():
            figures = [row["candidates_per_second"][name] for row in rows]
            _line(panel, [row["pool"] for row in rows], figures, name, label)
        _pool_axis(panel, [row["pool"] for row in rows])
        panel.set_xlim(right=1.9 * max(row["pool"] for row in rows))  # room for the factor beside the last pool
        panel.set_yscale("log")
        panel.set_ylim(min(rates) / 2, max(rates) * 2)
        panel.tick_params(which="minor", left=False)
        panel.grid(axis="y", color="0.92")
        panel.set_title(f"last layer {layer[0]} x {layer[1]}", fontsize=10.5)
        last = rows[-1]
        panel.annotate(
            f"{last['edba_over']['matrix_vector'][0]:,.0f} x",
            (last["pool"], math.sqrt(math.prod(last["candidates_per_second"][n]["median"] for n in _ENDS))),
            textcoords="offset points",
            xytext=(6, 0),
            va="center",
            color="0.3",
        )
        panel.annotate(
            "",
            (last["pool"], last["candidates_per_second"]["edba"]["median"]),
            (last["pool"], last["candidates_per_second"]["matrix_vector"]["median"]),
            arrowprops={"arrowstyle": "<->", "color": "0.55", "shrinkA": 4, "shrinkB": 4},
        )
    if layers:
        panels[0].set_ylabel("candidates judged a second")
        panels[0].legend(frameon=False, fontsize=8.5, loc="lower left")


_ENDS = ("edba", "matrix_vector")


def _plot_steps(panel: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    for name in rows[0]["seconds"]:
        label = "floor" if name == "floor" else _STEP_NAMES[name]
        found = [row for row in rows if name in row["seconds"]]
        _line(panel, [row["pool"] for row in found], [row["seconds"][name] for row in found], name, label)
    _pool_axis(panel, [row["pool"] for row in rows])
    panel.set_yscale("log")
    panel.grid(axis="y", color="0.92")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(_seldom)
    panel.set_title(f"seconds a step, {rows[0]['model']}", fontsize=10.5)
    panel.legend(frameon=False, fontsize=8.5)


def _plot_ratios(panel: Axes, report: Mapping[str, Any]) -> None:
    rows = [
        (f"EDBA / floor, B = {row['pool']}", row["edba_over"]["floor"], _COLORS["edba"])
        for row in report["steps"]
        if "edba_over" in row
    ]
    short = {
        "edba_cached": "cached / plain on subset",
        "edba_before_start": "before start / plain",
        "edba_interrupted": "interrupted / plain",
        "edba_mass": "gradient mass / plain",
    }
    for row in report["trainer"]:
        for name, label in short.items():
            if name not in row["ratio"]:
                continue
            rows.append((f"{label},\n{row['model']}, B = {row['pool']}", row["ratio"][name]["quartiles"], "#7a4fa3"))
    for place, (_, (median, low, high), color) in enumerate(rows):
        panel.plot([low, high], [place, place], color=color, linewidth=3, alpha=0.4, solid_capstyle="butt")
        panel.plot([median], [place], marker="o", color=color)
        panel.annotate(
            f"{median:.3f}", (high, place), textcoords="offset points", xytext=(5, 0), va="center", fontsize=8.5
        )
    panel.axvline(1, color="0.75", linewidth=0.8)
    panel.axvline(MOST_STEP_RATIO, color=_COLORS["selective_backprop"], linewidth=0.9, linestyle="--")
    panel.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.15)
    panel.set_title("ratios of times, quartiles; dashed: the bar, 1.05", fontsize=10.5)


def _plot_memory(panel: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    # Some coincide: the first are drawn wider, to show below the others.
    for width, name in zip((7, 4.5, 2, 1.7, 1.7), rows[0]["peak_bytes"], strict=False):
        found = [row for row in rows if name in row["peak_bytes"]]
        points = [row["peak_bytes"][name] / 2**30 for row in found]
        label = "floor" if name == "floor" else _STEP_NAMES[name]
        pools = [row["pool"] for row in found]
        panel.plot(pools, points, marker="o", markersize=4, color=_COLORS[name], linewidth=width, label=label)
    _pool_axis(panel, [row["pool"] for row in rows])
    panel.set_yscale("log")
    panel.grid(axis="y", color="0.92")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(_seldom)
    panel.set_title("peak memory of a step, GiB", fontsize=10.5)
    panel.legend(frameon=False, fontsize=8.5)


def _line(panel: Axes, pools: Sequence[int], figures: Sequence[Mapping[str, float]], name: str, label: str) -> None:
    median = [f["median"] for f in figures]
    panel.plot(pools, median, marker="o", markersize=4, color=_COLORS[name], linewidth=1.7, label=label)
    panel.fill_between(
        pools, [f["low"] for f in figures], [f["high"] for f in figures], color=_COLORS[name], alpha=0.2, linewidth=0
    )


def _seldom(value: float, position: float) -> str:
    """Labels at 2 and 5 only, on the axis between the powers of ten."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _pool_axis(panel: Axes, pools: Sequence[int]) -> None:
    panel.set_xscale("log")
    panel.set_xticks(sorted(set(pools)), [str(pool) for pool in sorted(set(pools))])
    panel.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    panel.set_xlabel("pool size B")
