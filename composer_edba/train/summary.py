"""What a run amounted to: a table on the console, ``summary.json`` and a plot."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from composer.algorithms import SelectiveBackprop
from composer.loggers import InMemoryLogger
from composer.utils import dist

from composer_edba import EDBA

if TYPE_CHECKING:
    from composer import Trainer
    from matplotlib.axes import Axes

SUMMARY_FILE = "summary.json"
PLOT_FILE = "run.png"
ACCURACY = "metrics/eval/MulticlassAccuracy"


@dataclass(frozen=True)
class Series:
    """A logged quantity: ``values[i]`` belongs to the optimizer step (update) number ``updates[i]``, from 1."""

    updates: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.updates)


@dataclass(frozen=True)
class RunSummary:
    """A finished run.

    Counts are sums over all ranks and, after a resume, include what was done before it. ``None`` stands for a figure
    that nothing has counted.

    Attributes:
        run_name: The run's name.
        test_accuracy: Share of the test set classified right at the last evaluation, never at the best one.
        updates: Optimizer steps.
        epochs: Completed passes over the training samples.
        train_size: Training samples that the run may draw from.
        samples_drawn: Samples that the loader gave.
        samples_scored: Samples that EDBA scored; 0 without EDBA.
        samples_trained: Samples that a gradient was taken of.
        distinct_samples: Different samples among those.
        distinct_is_bound: Whether ``distinct_samples`` is an upper bound instead of a count.
        overhead: Mean share of a step's time spent on scoring and selection.
        train_seconds: Wall-clock of training: loading and checkpoints included, evaluation excluded.
        final_batch_size: Batch size, summed over ranks, at the end.
        nonfinite_steps: Steps at which EDBA met a loss or gradient that is not finite; 0 without EDBA.
    """

    run_name: str
    test_accuracy: float | None
    updates: int
    epochs: int
    train_size: int
    samples_drawn: int
    samples_scored: int | None
    samples_trained: int | None
    distinct_samples: int | None
    distinct_is_bound: bool
    overhead: float | None
    train_seconds: float
    final_batch_size: int | None
    nonfinite_steps: int


def summarize(trainer: Trainer, train_size: int, partial_epochs: bool = False) -> RunSummary:
    """Reads a finished run's figures off its Trainer, which needs an ``InMemoryLogger``.

    Args:
        trainer: The Trainer, after ``fit()``.
        train_size: Training samples that the run may draw from.
        partial_epochs: Whether an epoch leaves samples out by chance, as with ``drop_last``. Default: ``False``.

    Raises:
        ValueError: When the Trainer has no ``InMemoryLogger``.
    """
    log = read_log(trainer)
    time = trainer.state.timestamp
    # What EDBA leaves out before loading it, Composer does not see.
    drawn = _last_count(log, "edba/samples_drawn") or int(time.sample)
    scored: int | None
    trained: int | None
    overhead: float | None
    if any(isinstance(algorithm, EDBA) for algorithm in trainer.state.algorithms):
        scored, trained = _last_count(log, "edba/samples_scored"), _last_count(log, "edba/samples_trained")
        distinct, is_bound = _last_count(log, "edba/distinct_samples"), False
        overhead = float(np.mean(log["edba/overhead"].values)) if "edba/overhead" in log else None
    elif "dba/overhead" in log:  # DBA runs on whole batches, and then chooses gradients
        scored, trained, distinct, is_bound = 0, drawn, _last_count(log, "dba/distinct_samples"), False
        overhead = float(np.mean(log["dba/overhead"].values))
    else:
        scored, trained, overhead = 0, drawn, 0.0
        # Without replacement an epoch visits no sample twice. When epochs leave out different ones, how many they
        # visit together is known only from above.
        distinct = min(drawn, train_size)
        is_bound = partial_epochs and int(time.epoch) + (int(time.batch_in_epoch) > 0) > 1
    if any(isinstance(algorithm, SelectiveBackprop) for algorithm in trainer.state.algorithms):
        # It scores and drops samples without counting them, after EDBA.
        scored, trained, overhead, is_bound = None, None, None, True
    accuracy = log.get(ACCURACY)
    return RunSummary(
        run_name=trainer.state.run_name,
        test_accuracy=float(accuracy.values[-1]) if accuracy else None,
        updates=int(time.batch),
        epochs=int(time.epoch),
        train_size=train_size,
        samples_drawn=drawn,
        samples_scored=scored,
        samples_trained=trained,
        distinct_samples=distinct,
        distinct_is_bound=is_bound,
        overhead=overhead,
        train_seconds=time.total_wct.total_seconds() if time.total_wct else 0.0,
        final_batch_size=_batch_size_now(trainer),
        nonfinite_steps=_last_count(log, "edba/nonfinite_steps") or _last_count(log, "dba/nonfinite_steps") or 0,
    )


def read_log(trainer: Trainer) -> dict[str, Series]:
    """Everything numeric that the Trainer logged, by name.

    Two series are added, both summed over ranks: ``batch_size``, the samples drawn for each update, and with EDBA
    ``subset_size``, the samples of them that were trained on.

    Raises:
        ValueError: When the Trainer has no ``InMemoryLogger``.
    """
    memory = next((d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger)), None)
    if memory is None:
        raise ValueError("trainer.logger.destinations: holds no InMemoryLogger; pass loggers=[InMemoryLogger()]")
    log = {}
    for name, entries in memory.data.items():
        # Most is logged within an update, before Composer counts it; these come after.
        lag = 0 if name.startswith(("metrics/eval/", "time/", "edba/overhead", "dba/overhead", "edba/cache")) else 1
        numeric = [(int(stamp.batch) + lag, float(value)) for stamp, value in entries if not isinstance(value, str)]
        log[name] = Series(*(np.array(column) for column in zip(*numeric, strict=True)))
    drawn = log.get("time/sample")
    if drawn and len(drawn) > 1:
        # Composer logs the samples drawn so far at the start of every update and once more at the end.
        sizes = np.diff(drawn.values)
        log["batch_size"] = Series(drawn.updates[1:], sizes)
    drawn = log.get("edba/samples_drawn")
    if drawn:
        log["batch_size"] = Series(drawn.updates, np.diff(drawn.values, prepend=_count_before(drawn)))
    trained = log.get("edba/samples_trained")
    if trained:
        log["subset_size"] = Series(trained.updates, np.diff(trained.values, prepend=_count_before(trained)))
    return log


def _count_before(total: Series) -> float:
    """A resumed run starts at the count of the run before it, which is not in this log."""
    return 0.0 if total.updates[0] == 1 else np.nan


def write_summary(
    summary: RunSummary, log: Mapping[str, Series], folder: Path, config: Mapping[str, Any], plot: bool = True
) -> None:
    """Prints the table and writes ``summary.json`` and the plot into ``folder``.

    The last line printed is the path of the plot, or of ``summary.json`` without one.

    Args:
        summary: The figures.
        log: What the run logged, from :func:`read_log`.
        folder: Made when it does not exist; files of an earlier run in it are overwritten.
        config: The run's configuration, kept in ``summary.json``.
        plot: Whether to write the plot. Default: ``True``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    print_table(summary)
    accuracy = log.get(ACCURACY)
    record = {
        "results": asdict(summary),
        "evaluations": [
            {"update": int(update), "test_accuracy": float(value)}
            for update, value in zip(accuracy.updates, accuracy.values, strict=True)
        ]
        if accuracy
        else [],
        "seed": config.get("seed"),
        "config": config,
        "versions": _versions(),
        "hardware": _hardware(),
    }
    path = folder / SUMMARY_FILE
    path.write_text(json.dumps(_finite(record), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if plot:
        path = plot_run(summary, log, folder / PLOT_FILE)
    print(path)


def print_table(summary: RunSummary) -> None:
    """Prints the figures as a table on standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=summary.run_name, show_header=False, title_justify="left", title_style="bold")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for row in table_rows(summary):
        table.add_row(*row)
    Console().print(table)


def table_rows(summary: RunSummary) -> list[tuple[str, str, str]]:
    """The table's rows: what, how much, and a remark."""
    distinct = _number(summary.distinct_samples)
    return [
        ("test accuracy", _percent(summary.test_accuracy, 2), "last evaluation"),
        ("optimizer steps", _number(summary.updates), f"{summary.epochs} full passes over the data"),
        ("samples scored", _number(summary.samples_scored), "forward only, to choose subsets"),
        ("samples trained on", _number(summary.samples_trained), f"of {_number(summary.samples_drawn)} drawn"),
        (
            "distinct samples",
            f"<= {distinct}" if summary.distinct_is_bound else distinct,
            f"of {_number(summary.train_size)} in the training set",
        ),
        ("overhead", _percent(summary.overhead, 1), "of a step: scoring and selection"),
        ("training time", f"{summary.train_seconds:,.1f} s", "wall-clock, evaluation excluded"),
        ("final batch size", _number(summary.final_batch_size), ""),
    ]


def plot_run(summary: RunSummary, log: Mapping[str, Series], path: Path) -> Path:
    """Draws the run over its optimizer steps: stacked panels that share the x axis.

    A run with EDBA shows the accuracy, the batch and subset sizes, the margin, the model metric and the gradient
    metric, each metric with its running average; any other run the accuracy, the batch size and the training loss.

    Args:
        summary: The figures.
        log: What the run logged, from :func:`read_log`.
        path: The PNG to write.

    Returns:
        ``path``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [_draw_accuracy, _draw_sizes]
    panels += [_draw_margin, _draw_model_metric, _draw_gradient_metric] if "edba/margin" in log else [_draw_loss]
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
    accuracy = "" if summary.test_accuracy is None else f":  {_percent(summary.test_accuracy, 1)} test accuracy"
    figure.suptitle(
        f"{summary.run_name}{accuracy} after {summary.updates:,} steps", x=0.01, ha="left", fontsize=12, weight="bold"
    )
    figure.align_ylabels(axes)
    figure.savefig(path, dpi=130)
    return path


_BLUE, _ORANGE, _GREEN, _PURPLE, _GREY = "#1f5fa8", "#e07b1a", "#2a8f62", "#7a4fa3", "#5f6b76"


def _draw_accuracy(axis: Axes, log: Mapping[str, Series]) -> None:
    axis.set_ylabel("test accuracy (%)")
    series = log.get(ACCURACY)
    if series:
        percent = 100 * series.values
        axis.plot(
            series.updates, percent, color=_BLUE, linewidth=1.8, marker="o", markersize=3.5 if len(series) < 60 else 0
        )
        axis.annotate(
            f"{percent[-1]:.1f}",
            (series.updates[-1], percent[-1]),
            textcoords="offset points",
            xytext=(6, 0),  # beside the last point, where no line runs
            va="center",
            color=_BLUE,
            fontsize=9,
            weight="bold",
        )


def _draw_sizes(axis: Axes, log: Mapping[str, Series]) -> None:
    axis.set_ylabel("samples")
    _draw_line(axis, _whole_batches(log), _BLUE, "batch size", width=1.6)
    _draw_points(axis, log.get("subset_size"), _ORANGE, "subset size")
    axis.set_ylim(bottom=0)


def _whole_batches(log: Mapping[str, Series]) -> Series | None:
    """The batch sizes without the remainder that ends an epoch, which says nothing about the size in force."""
    sizes, position = log.get("batch_size"), log.get("time/batch_in_epoch")
    if not sizes or not position:
        return None
    ends_epoch = position.values[1:] == 0
    smaller = np.diff(sizes.values, prepend=sizes.values[:1]) < 0
    whole = ~(ends_epoch & smaller)
    return Series(sizes.updates[whole], sizes.values[whole])


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
            at = series.updates[mask]
            axis.scatter(
                at,
                np.full(len(at), height),
                transform=axis.get_xaxis_transform(),
                marker=marker,
                s=14,
                color=_GREY,
                linewidths=0.8,
                label=f"{text} ({len(at):,})",
                clip_on=False,
            )


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


def _draw_line(axis: Axes, series: Series | None, color: str, label: str, width: float, alpha: float = 1.0) -> None:
    if series:
        values = np.where(np.isfinite(series.values), series.values, np.nan)
        axis.plot(series.updates, values, color=color, linewidth=width, alpha=alpha, label=label)


def _draw_points(axis: Axes, series: Series | None, color: str, label: str) -> None:
    if series:
        # The more steps, the fainter each: density carries the picture.
        alpha = min(0.6, max(0.05, 300 / len(series)))
        axis.scatter(series.updates, series.values, s=5, color=color, alpha=alpha, linewidths=0)
        axis.scatter([], [], s=12, color=color, label=label)


def _running_median(series: Series, points: int = 500) -> Series:
    """The median of the last fortieth of the run, at no more places than the eye can tell apart."""
    width = max(1, len(series) // 40)
    ends = np.unique(np.linspace(1, len(series), min(points, len(series))).astype(int))
    medians = [np.median(series.values[max(0, end - width) : end]) for end in ends]
    return Series(series.updates[ends - 1], np.array(medians))


def _batch_size_now(trainer: Trainer) -> int | None:
    sampler = getattr(trainer.state.train_dataloader, "batch_sampler", None)
    size = getattr(sampler, "batch_size", None)
    return None if size is None else int(size) * dist.get_world_size()


def _last_count(log: Mapping[str, Series], name: str) -> int | None:
    return int(log[name].values[-1]) if name in log else None


def _number(value: int | None) -> str:
    return "not counted" if value is None else f"{value:,}"


def _percent(value: float | None, digits: int) -> str:
    return "not measured" if value is None else f"{100 * value:.{digits}f} %"


def _finite(value: Any) -> Any:
    """The same value with ``None`` in place of what JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("composer-edba", "mosaicml", "torchvision", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    return versions


def _hardware() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "torch_num_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "ranks": dist.get_world_size(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
