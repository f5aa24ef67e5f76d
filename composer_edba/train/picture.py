"""The picture of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from composer_edba.train.series import ACCURACY, TARGET, Series, series_of, whole_batches

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(figures: Sequence[Mapping[str, float]], path: str | Path = "edba.png", title: str = "EDBA") -> Path:
    """Draw a run of any loop: what a pass drew and trained on, or the margin and its metrics, over the steps.

    Args:
        figures: those of each step, from ``SubsetLoader.figures``, ``engine.state.edba``, ``EDBACallback.figures`` or
            ``edba_figures``, copied as the loop goes; names may have the prefix ``edba/``. A step's ``loss`` is drawn
            too, if you add it.
        path: the PNG to write, which is returned; folders are made. Default ``edba.png``.
        title: above it. Default ``EDBA``.

    Raises:
        ValueError: if ``figures`` is empty.
        ImportError: without matplotlib.

    Example:
        >>> history = []
        >>> for inputs, target in loader:
        ...     ...
        ...     history.append(dict(loader.figures))
        >>> composer_edba.plot(history)
    """
    if not figures:
        raise ValueError("figures is empty: it must hold the figures of at least one step")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return plot_run(title, series_of(figures), path)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"composer_edba.plot needs matplotlib ({error.name} is not installed): pip install 'composer-edba[plot]'"
        ) from error


def plot_run(title: str, log: Mapping[str, Series], path: Path) -> Path:
    """Draws the run over its optimizer steps: stacked panels that share the x axis.

    A run with EDBA shows the accuracy, the batch and subset sizes, the margin, and the model and gradient metrics, each
    with its running average; one that leaves out by gradient mass the accuracy, the samples drawn and trained on and
    the training loss; one in which nothing was scored that without the subsets. A panel without anything to show is
    left out.

    Args:
        title: Above it.
        log: What the run logged, from :func:`read_log`.
        path: The PNG to write, which is returned.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [draw for draw, shows in _PANELS if any(_has_data(log, name) for name in shows)]
    if "edba/margin" not in log:
        panels += [_draw_loss] * _has_data(log, "loss/train/total")
    figure = Figure(figsize=(9, 1.1 + 2.0 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for draw, axis in zip(panels, axes, strict=True):
        draw(axis, log)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.yaxis.label.set_color("0.25")
        axis.tick_params(colors="0.35")
        axis.margins(x=0.01)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=3, frameon=False, fontsize=8.5, borderpad=0)
    axes[-1].set_xlabel("optimizer steps", color="0.25")
    axes[-1].xaxis.set_major_formatter("{x:,.0f}")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, weight="bold")
    figure.align_ylabels(axes)
    figure.savefig(path, dpi=130)
    return path


_BLUE, _ORANGE, _GREEN, _PURPLE, _GREY = "#1f5fa8", "#e07b1a", "#2a8f62", "#7a4fa3", "#5f6b76"


def _draw_accuracy(axis: Axes, log: Mapping[str, Series]) -> None:
    axis.set_ylabel("test accuracy (%)")
    if series := log.get(ACCURACY):
        percent, marker = 100 * series.values, 3.5 if len(series) < 60 else 0
        axis.plot(series.updates, percent, color=_BLUE, linewidth=1.8, marker="o", markersize=marker)
        text, last = f"{percent[-1]:.1f}", (series.updates[-1], percent[-1])
        axis.annotate(  # beside the last point, where no line runs
            text, last, (6, 0), textcoords="offset points", va="center", color=_BLUE, fontsize=9, weight="bold"
        )


def _draw_sizes(axis: Axes, log: Mapping[str, Series]) -> None:
    axis.set_ylabel("samples")
    sizes, target, subsets = whole_batches(log), log.get(TARGET), log.get("subset_size")
    if "edba/left_out_mass" in log:  # drawn until the batch is full of what carries the gradient
        _draw_line(axis, log.get("batch_size"), _BLUE, "drawn", width=1.6, drawstyle="steps-post")
        if subsets:
            _draw_line(axis, subsets, _ORANGE, "trained on", width=1.6, drawstyle="steps-post")
        axis.set_ylim(bottom=0)
        return
    if target and not (sizes and set(sizes.values) == set(target.values)):
        _draw_line(axis, target, _GREY, "size aimed at", width=0.9, drawstyle="steps-post")
    _draw_line(axis, sizes, _BLUE, "batch size", width=1.6, drawstyle="steps-post")
    scored = log.get("edba/margin")
    if subsets and scored:  # batches that are not scored are trained on whole
        chosen = np.isin(subsets.updates, scored.updates)
        _draw_points(axis, Series(subsets.updates[chosen], subsets.values[chosen]), _ORANGE, "subset size")
    axis.set_ylim(bottom=0)


def _draw_margin(axis: Axes, log: Mapping[str, Series]) -> None:
    axis.set_ylabel("margin")
    series = log["edba/margin"]
    drawable = np.isfinite(series.values) & (series.values > 0)
    if drawable.any():
        shown = Series(series.updates[drawable], series.values[drawable])
        _draw_points(axis, shown, _GREEN, "each step")
        _draw_line(axis, _running_median(shown), _GREEN, "running median", width=1.6)
        axis.set_yscale("log")
    # Equation 1 has no finite value where the gradient metric equals its average; such steps stand on the edges.
    for mask, height, marker, text in (
        (np.isinf(series.values), 0.97, "^", "infinite"),
        (np.isnan(series.values), 0.97, "x", "undefined"),
        (series.values == 0, 0.03, "v", "zero"),
    ):
        if mask.any():
            at, edge = series.updates[mask], axis.get_xaxis_transform()
            heights, label = np.full(len(at), height), f"{text} ({len(at):,})"
            style: dict[str, Any] = {
                "marker": marker,
                "s": 14,
                "color": _GREY,
                "linewidths": 0.8,
                "label": label,
                "clip_on": False,
            }
            axis.scatter(at, heights, transform=edge, **style)


def _draw_model_metric(axis: Axes, log: Mapping[str, Series]) -> None:
    axis.set_ylabel("model metric\n(pool loss)")
    _draw_line(axis, log.get("edba/model_metric"), _PURPLE, "pool", width=0.8, alpha=0.4)
    _draw_line(axis, log.get("edba/model_average"), _PURPLE, "running average", width=1.8)


def _draw_gradient_metric(axis: Axes, log: Mapping[str, Series]) -> None:
    axis.set_ylabel("gradient metric\n(subset norm)")
    _draw_line(axis, log.get("edba/gradient_metric"), _ORANGE, "chosen subset", width=0.8, alpha=0.45)
    _draw_line(axis, log.get("edba/gradient_average"), _ORANGE, "running average", width=1.8)


def _draw_loss(axis: Axes, log: Mapping[str, Series]) -> None:
    axis.set_ylabel("training loss")
    series = log.get("loss/train/total")
    _draw_line(axis, series, _PURPLE, "each step", width=0.8, alpha=0.4)
    _draw_line(axis, _running_median(series) if series else None, _PURPLE, "running median", width=1.8)


def _draw_line(
    axis: Axes, series: Series | None, color: str, label: str, width: float, alpha: float = 1.0, **style: Any
) -> None:
    if series:
        values = np.where(np.isfinite(series.values), series.values, np.nan)
        axis.plot(series.updates, values, color=color, linewidth=width, alpha=alpha, label=label, **style)


def _draw_points(axis: Axes, series: Series, color: str, label: str) -> None:
    if series:
        # The more steps, the fainter each: density carries the picture.
        size, alpha = 5 if len(series) > 100 else 14, min(0.6, max(0.05, 300 / len(series)))
        axis.scatter(series.updates, series.values, s=size, color=color, alpha=alpha, linewidths=0)
        axis.scatter([], [], s=12, color=color, label=label)


def _running_median(series: Series, points: int = 500) -> Series:
    """The median of the last fortieth of the run, at no more places than the eye can tell apart."""
    width = max(1, len(series) // 40)
    ends = np.unique(np.linspace(1, len(series), min(points, len(series))).astype(int))
    medians = [np.median(series.values[max(0, end - width) : end]) for end in ends]
    return Series(series.updates[ends - 1], np.array(medians))


def _has_data(log: Mapping[str, Series], name: str) -> bool:
    # A margin that is infinite or undefined is drawn too.
    return name in log and bool(name == "edba/margin" or np.isfinite(log[name].values).any())


_PANELS: tuple[tuple[Callable[[Axes, Mapping[str, Series]], None], tuple[str, ...]], ...] = (
    (_draw_accuracy, (ACCURACY,)),
    (_draw_sizes, ("batch_size", "subset_size")),
    (_draw_margin, ("edba/margin",)),
    (_draw_model_metric, ("edba/model_metric", "edba/model_average")),
    (_draw_gradient_metric, ("edba/gradient_metric", "edba/gradient_average")),
)
