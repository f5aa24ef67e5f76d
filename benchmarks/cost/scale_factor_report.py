"""The report on ``scale_factor``, from its figures alone: tables in markdown, and a plot."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cost.outcome import clock_text
from benchmarks.machine import described
from benchmarks.reports.document import Block, Heading, Paragraph, Picture, Table, to_markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["as_markdown", "plot"]

_PHASES = 4
_Near = list[tuple[int, np.ndarray]]
_FIGURES = {
    "samples": "samples",
    "candidates": "candidates",
    "one_size": "candidates of one size",
    "overlap": "overlap",
    "chance": "by chance",
    "margin": "its margin",
    "best_margin": "full scale's choice",
    "random_margin": "random subset",
}


def as_markdown(report: Mapping[str, Any], picture: Path) -> str:
    """All tables, and the picture in the same folder."""
    runs = report["runs"]
    accuracies = ", ".join(f"{100 * run['test_accuracy']:.1f}" for run in runs)
    blocks: list[Block] = [
        Heading(1, "Scoring at a lower resolution"),
        Paragraph(
            f"{described(report['machine'])}. {report['model']} trained with EDBA at full resolution, pools of "
            f"{report['pool']} of {report['samples']:,} augmented CIFAR-10 images (32 x 32), one-cycle learning rate "
            f"up to {report['lr']}, {len(runs)} seeds; test accuracy at the end {accuracies} %. At every step the pool "
            "is also scored at lower resolutions, each with running averages of its own and the same candidates."
        ),
        Picture(picture, "rank correlation, overlap and margins over training, and the time saved"),
        Heading(2, "What it does to the choice"),
        Paragraph(
            "Spearman's rank correlation with full resolution of the samples' gradient norms, of the candidates' "
            "gradient metrics (all sizes: larger subsets have smaller ones whatever the images), and of those of 1,024 "
            "candidates of half the pool; Jaccard overlap of the chosen subset with the one chosen at full resolution; "
            "and margins at full resolution, of the subset chosen at this scale, of the one chosen at full resolution, "
            "and of a random subset as large as the first. Medians over the steps of a phase; their mean and range "
            "over seeds. `redrawn` is full resolution with other random candidates."
        ),
        Table(["steps", "scale", *_FIGURES.values()], _choice_rows(report)),
        Heading(2, "What it saves"),
        Paragraph(
            "Scoring and selection of one pool, in turns, medians (quartiles); a step is that and a training step on "
            f"55 % of the pool. {clock_text(report['machine'])}"
        ),
        Table(["scale", "ms", "over full resolution", "step over that at full resolution"], _time_rows(report)),
        Paragraph("Made by `python -m benchmarks scale-factor`."),
    ]
    return to_markdown(blocks)


def _phases(report: Mapping[str, Any]) -> list[tuple[int, int]]:
    """First and last step of each phase."""
    end = report["runs"][0]["step"][-1] + 1
    edges = [round(end * i / _PHASES) for i in range(_PHASES + 1)]
    return [(first, last - 1) for first, last in itertools.pairwise(edges)]


def _medians(report: Mapping[str, Any], scale: str, name: str, first: int, last: int) -> list[float]:
    """Of each seed, the median over steps ``first`` to ``last``."""
    return [
        statistics.median(
            value for step, value in zip(run["step"], run["scales"][scale][name], strict=True) if first <= step <= last
        )
        for run in report["runs"]
    ]


def _choice_rows(report: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for first, last in _phases(report):
        for scale in [*map(str, report["scales"]), "redrawn"]:
            row = [f"{first} to {last}", scale]
            for name in _FIGURES:
                if name not in report["runs"][0]["scales"][scale]:
                    row.append("")
                    continue
                values = _medians(report, scale, name, first, last)
                row.append(f"{_short(statistics.fmean(values))} ({_short(min(values))} to {_short(max(values))})")
            rows.append(row)
    return rows


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _time_rows(report: Mapping[str, Any]) -> list[list[str]]:
    timing = report["timing"]
    rows = []
    for name, figures in timing["seconds"].items():
        ms = [f"{1e3 * figures[key]:.1f}" for key in ("median", "low", "high")]
        ratio = timing["over_full"].get(name)
        rows.append(
            [
                "training step" if name == "train" else name,
                f"{ms[0]} ({ms[1]} to {ms[2]})",
                "" if ratio is None else f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})",
                f"{timing['step_over_full'][name]:.2f}" if name in timing["step_over_full"] else "",
            ]
        )
    return rows


# ---- the plot

_COLORS = {"0.75": "#16a3a3", "0.5": "#1f5fa8", "0.25": "#c23b3b"}
_OTHERS = ("#e07b1a", "#7a4fa3", "#2a8f62", "#9a6a00")


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Rank correlation, overlap and margin over training; time saved."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 8), layout="constrained")
    FigureCanvasAgg(figure)
    (samples, overlap), (margins, times) = figure.subplots(2, 2)
    scales = [str(scale) for scale in report["scales"]]
    color = {scale: _COLORS.get(scale, _OTHERS[i % len(_OTHERS)]) for i, scale in enumerate(scales)}
    for scale in scales:
        _quartiles(samples, report, scale, "samples", color[scale], f"scale {scale}")
        _quartiles(margins, report, scale, "margin", color[scale], f"chosen at scale {scale}")
        _above_chance(overlap, report, scale, color[scale], f"scale {scale}")
    _above_chance(overlap, report, "redrawn", "0.45", "full resolution, other candidates")
    overlap.axhline(0, color="0.6", linewidth=0.8)
    _quartiles(margins, report, scales[0], "best_margin", "black", "chosen at full resolution")
    _quartiles(margins, report, scales[-1], "random_margin", "0.7", "a random subset", linestyle=":")
    margins.set_yscale("log")
    samples.set(ylabel="Spearman's rank correlation", title="norms of the samples' gradients, with full resolution")
    overlap.set(
        ylabel="Jaccard overlap above chance", title="the chosen subset, with the one chosen at full resolution: means"
    )
    margins.set(ylabel="margin at full resolution", title="margin of the chosen subset: medians and quartiles")
    samples.set_ylim(top=1)
    overlap.set_ylim(top=max(0.3, overlap.get_ylim()[1]))
    for panel in (samples, overlap, margins):
        panel.set_xlabel("training steps")
        panel.legend(frameon=False, fontsize=8.5)
        panel.grid(axis="y", color="0.92")
    _bars(times, report, scales, color)
    for panel in (samples, overlap, margins, times):
        panel.title.set_fontsize(10.5)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(colors="0.35")
    figure.suptitle(
        f"Scoring at a lower resolution: {report['model']}, pools of {report['pool']}, {len(report['runs'])} seeds",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    figure.savefig(path, dpi=130)


def _near(report: Mapping[str, Any], values: Callable[[Mapping[str, Any]], Sequence[float]], share: float) -> _Near:
    """Steps, and of each all seeds' values at the ``share`` of all steps that lies around it."""
    steps = np.array(report["runs"][0]["step"])
    table = np.array([values(run) for run in report["runs"]])
    half = max(1, round(share * len(steps) / 2))
    shown = range(0, len(steps), max(1, half // 2))
    return [(int(steps[at]), table[:, max(0, at - half) : at + half + 1].ravel()) for at in shown]


def _quartiles(
    panel: Axes, report: Mapping[str, Any], scale: str, name: str, color: str, label: str, linestyle: str = "-"
) -> None:
    near = _near(report, lambda run: run["scales"][scale][name], 0.05)
    steps = [step for step, _ in near]
    low, median, high = np.array([np.quantile(values, [0.25, 0.5, 0.75]) for _, values in near]).T
    panel.plot(steps, median, color=color, label=label, linestyle=linestyle, linewidth=1.7)
    panel.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)


def _above_chance(panel: Axes, report: Mapping[str, Any], scale: str, color: str, label: str) -> None:
    """Means, since a choice is often the very same candidate or has nothing to do with it."""
    near = _near(
        report, lambda run: np.subtract(run["scales"][scale]["overlap"], run["scales"][scale]["chance"]).tolist(), 0.1
    )
    steps = [step for step, _ in near]
    mean = np.array([values.mean() for _, values in near])
    error = np.array([values.std(ddof=1) / np.sqrt(len(values)) for _, values in near])
    panel.plot(steps, mean, color=color, label=label, linewidth=1.7)
    panel.fill_between(steps, mean - error, mean + error, color=color, alpha=0.15, linewidth=0)


def _bars(panel: Axes, report: Mapping[str, Any], scales: Sequence[str], color: Mapping[str, str]) -> None:
    timing = report["timing"]
    order = ["1.0", *scales]
    train = 1e3 * timing["seconds"]["train"]["median"]
    for place, scale in enumerate(order):
        score = 1e3 * timing["seconds"][scale]["median"]
        panel.barh(place, train, color="0.85", height=0.6)
        panel.barh(place, score, left=train, color=color.get(scale, "black"), height=0.6)
        panel.annotate(
            f"step {100 * (timing['step_over_full'][scale] - 1):+.0f} %" if scale != "1.0" else "",
            (train + score, place),
            textcoords="offset points",
            xytext=(5, 0),
            va="center",
            fontsize=9,
        )
    panel.set_yticks(range(len(order)), ["full", *scales])
    panel.invert_yaxis()
    panel.margins(x=0.2)
    panel.set(xlabel="ms", ylabel="scale", title="a step: training on 55 % of the pool (grey), scoring and selection")
