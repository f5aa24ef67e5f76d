"""The report on DBA's costs, from its figures alone: tables in markdown, and a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import described
from benchmarks.reports.document import Block, Heading, Paragraph, Picture, Table, to_markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["as_markdown", "plot"]

TITLES = {"plain": "plain", "edba": "EDBA", "dba": "DBA, layer by layer", "dba_at_once": "DBA, all layers at once"}
_SETTINGS = (
    "FP32, SGD with momentum, random images that change from step to step, DBA's defaults and EDBA's choice from every "
    "batch by the paper's settings"
)


def as_markdown(report: Mapping[str, Any], picture: Path) -> str:
    """All tables, and the picture in the same folder."""
    limit = report["limit_bytes"] / 2**30
    clock = "processor time" if report["machine"]["kind"] == "cpu" and report["machine"]["threads"] == 1 else "time"
    result: list[Block] = [
        Heading(1, "What DBA costs"),
        Paragraph(
            f"{described(report['machine'])}. {_SETTINGS}. All arms of a row in turns; medians with quartiles of the "
            f"{clock}. Peak memory is that of three first steps beyond network, batches and Python. "
            f"**A step may take {limit:g} GiB**; what does not fit is not run. EDBA trains on the subset it chose, DBA "
            "runs forward and backward on the whole batch and then chooses for each layer."
        ),
        Paragraph(
            "*All layers at once* keeps every per-sample gradient, as DBA is described; *layer by layer* is "
            "`composer_edba.DBA`, which chooses the same samples and keeps one layer's, and none of a Linear."
        ),
        Picture(picture, "Time of a step over that of a plain one, and peak memory, over the batch size"),
        Heading(2, "Time and memory of a step"),
    ]
    rows = []
    for row in report["cost"]:
        for arm in TITLES:
            rows.append([f"{row['network']} ({_millions(row['parameters'])})", str(row["batch"]), TITLES[arm]])
            figures = row["seconds"].get(arm)
            peak = row["peak_bytes"].get(arm)
            if figures is None:
                needed = max(row["gradient_bytes"][arm], peak or 0) / 2**30
                what = "gradients alone" if peak is None else "measured"
                rows[-1] += [f"**does not fit**: {needed:.1f} GiB ({what})", "", ""]
                continue
            ratio = row["over_plain"].get(arm)
            assert peak is not None
            rows[-1] += [
                _spread([1e3 * figures[key] for key in ("median", "low", "high")]),
                "" if ratio is None else _spread(ratio),
                f"{peak / 2**20:,.0f}",
            ]
    result.append(Table(["network", "B", "step", "ms", "over a plain step", "peak MiB"], rows))
    result += [
        Heading(2, "How good the search is"),
        Paragraph(
            "Digits, one hidden layer, subsets of any size; the margin of equation 1 that each way of choosing finds, "
            "over the layers of the steps of a training. *By margin* looks at the margin alone, *by norm*, the "
            "default, at the norm of margin zero. A margin below 1 lies on that norm's side of the pole at the "
            "average. The last row is what EDBA's way of choosing, among random subsets, finds in the same situations."
        ),
        *(_search_table(search) for search in report["search"]),
        Paragraph("Made by `python -m benchmarks cost-dba`."),
    ]
    return to_markdown(result)


def _search_table(search: Mapping[str, Any]) -> Table:
    best = search["median_best"]
    reached = [] if best is None else [f"best of all subsets reached (its median {best:.4f})"]
    header = [f"B = {search['batch']}, {search['situations']} situations", *reached, "margin < 1", "median margin"]
    return Table(
        [*header, "mean size"],
        [
            [
                way["way"],
                *([] if best is None else [f"{100 * way['best_reached']:.0f} %"]),
                f"{100 * way['below_one']:.0f} %",
                f"{way['median_margin']:.4f}",
                f"{way['mean_size']:.1f}",
            ]
            for way in search["ways"]
        ],
    )


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.2g} M"


def _spread(values: Sequence[float]) -> str:
    digits = max(0, 2 - math.floor(math.log10(values[0])))
    median, low, high = (f"{value:,.{digits}f}" for value in values)
    return f"{median} ({low} to {high})"


_COLORS = {"plain": "#222222", "edba": "#1f5fa8", "dba": "#e07b1a", "dba_at_once": "#c23b3b"}


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Above, a step's time over a plain one's; below, peak memory; a column a network."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    networks = list(dict.fromkeys(row["network"] for row in report["cost"]))
    figure = Figure(figsize=(3.6 * len(networks) + 0.6, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(networks), squeeze=False, sharex=True, sharey="row")
    for column, network in enumerate(networks):
        rows = [row for row in report["cost"] if row["network"] == network]
        above, below = panels[:, column]
        for arm in TITLES:
            _plot_times(above, rows, arm)
            _plot_memory(below, rows, arm)
        limit = report["limit_bytes"] / 2**30
        below.axhline(limit, color="0.6", linestyle="--", linewidth=0.9)
        above.set_title(f"{network}\n{_millions(rows[0]['parameters'])} parameters", fontsize=10)
        for panel in (above, below):
            panel.set(xscale="log", yscale="log")
            panel.set_xticks([row["batch"] for row in rows], [str(row["batch"]) for row in rows])
            panel.minorticks_off()
            panel.grid(axis="y", color="0.92")
            panel.spines[["top", "right"]].set_visible(False)
        below.set_xlabel("batch size")
        if column == 0:
            above.set_ylabel("time of a step / plain step")
            below.set_ylabel("peak memory of a step, GiB")
            below.annotate(f"limit, {limit:g} GiB", (rows[0]["batch"], limit), fontsize=8, color="0.4", va="bottom")
    _name_ratios(panels[0])
    handles, labels = panels[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels) + 1, frameon=False)
    figure.suptitle(f"What DBA costs  ({described(report['machine'])})", x=0.01, ha="left", fontsize=10)
    figure.savefig(path, dpi=130)


def _name_ratios(panels: Sequence[Axes]) -> None:
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100]
    low, high = panels[0].get_ylim()
    kept = [tick for tick in ticks if low <= tick <= high]
    panels[0].set_yticks(kept, [f"{tick:g}x" for tick in kept])
    for panel in panels:
        panel.axhline(1, color=_COLORS["plain"], linewidth=1)


def _plot_times(panel: Axes, rows: Sequence[Mapping[str, Any]], arm: str) -> None:
    timed = [row for row in rows if arm in row["over_plain"]]
    if timed:
        sizes = [row["batch"] for row in timed]
        median, low, high = zip(*(row["over_plain"][arm] for row in timed), strict=True)
        panel.plot(sizes, median, marker="o", markersize=4, color=_COLORS[arm])
        panel.fill_between(sizes, low, high, color=_COLORS[arm], alpha=0.2, linewidth=0)


def _plot_memory(panel: Axes, rows: Sequence[Mapping[str, Any]], arm: str) -> None:
    fitting = [row for row in rows if arm in row["seconds"]]
    panel.plot(
        [row["batch"] for row in fitting],
        [row["peak_bytes"][arm] / 2**30 for row in fitting],
        marker="o",
        markersize=4,
        color=_COLORS[arm],
        label=TITLES[arm],
    )
    too_large = [row for row in rows if arm not in row["seconds"]]
    panel.plot(
        [row["batch"] for row in too_large],
        [max(row["gradient_bytes"][arm], row["peak_bytes"].get(arm, 0)) / 2**30 for row in too_large],
        marker="x",
        linestyle="",
        color=_COLORS[arm],
        label="does not fit" if too_large else None,
    )
