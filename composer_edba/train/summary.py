"""What a run amounted to: its figures, the table on the console and ``summary.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from composer.algorithms import SelectiveBackprop
from composer.utils import dist

from composer_edba import EDBA
from composer_edba.train.machine import hardware, versions
from composer_edba.train.picture import plot_run
from composer_edba.train.series import ACCURACY, Series, read_log
from composer_edba.train.verdict import what_edba_did

if TYPE_CHECKING:
    from composer import Trainer

SUMMARY_FILE = "summary.json"
PLOT_FILE = "run.png"


@dataclass(frozen=True)
class RunSummary:
    """A finished run: counts over all ranks, from before a resume too; ``None`` where nothing has counted."""

    run_name: str
    test_accuracy: float | None  # share classified right at the last evaluation, never at the best one
    updates: int  # optimizer steps
    epochs: int  # completed passes over the training samples
    train_size: int  # training samples that the run may draw from
    samples_drawn: int  # samples that the loader gave
    samples_scored: int | None  # samples that EDBA scored; 0 without EDBA
    samples_trained: int | None  # samples that a gradient was taken of
    distinct_samples: int | None  # different samples among those
    distinct_is_bound: bool  # whether distinct_samples is an upper bound instead of a count
    overhead: float | None  # mean share of a step's time spent on scoring and selection
    train_seconds: float  # wall-clock of training: loading and checkpoints included, evaluation excluded
    final_batch_size: int | None  # summed over ranks
    nonfinite_steps: int  # steps at which EDBA met a loss or gradient that is not finite; 0 without EDBA
    edba: str | None  # what EDBA did, in a sentence; None without EDBA

    @property
    def title(self) -> str:
        """The run in a line."""
        accuracy = "" if self.test_accuracy is None else f":  {100 * self.test_accuracy:.1f} % test accuracy"
        return f"{self.run_name}{accuracy} after {self.updates:,} steps"


def summarize(trainer: Trainer, train_size: int, partial_epochs: bool = False) -> RunSummary:
    """Reads a finished run's figures off its Trainer, which needs an ``InMemoryLogger``.

    Args:
        trainer: The Trainer, after ``fit()``.
        train_size: Training samples that the run may draw from.
        partial_epochs: Whether an epoch leaves samples out by chance, as with ``drop_last``.

    Raises:
        ValueError: When the Trainer has no ``InMemoryLogger``.
    """
    log, time = read_log(trainer), trainer.state.timestamp
    # What EDBA leaves out before loading it, Composer does not see.
    drawn = _last_count(log, "edba/samples_drawn") or int(time.sample)
    scored: int | None = 0  # DBA runs on whole batches, and then chooses gradients
    trained: int | None = drawn
    is_bound = False
    edba = next((algorithm for algorithm in trainer.state.algorithms if isinstance(algorithm, EDBA)), None)
    if edba is not None:
        scored, trained = _last_count(log, "edba/samples_scored"), _last_count(log, "edba/samples_trained")
        distinct, overhead = _last_count(log, "edba/distinct_samples"), _mean(log, "edba/overhead")
    elif "dba/overhead" in log:
        distinct, overhead = _last_count(log, "dba/distinct_samples"), _mean(log, "dba/overhead")
    else:
        # Without replacement an epoch visits no sample twice. When epochs leave out different ones, how many they
        # visit together is known only from above.
        distinct, overhead = min(drawn, train_size), 0.0
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
        edba=None if edba is None else what_edba_did(edba, log, drawn, trained),
    )


def write_summary(
    summary: RunSummary, log: Mapping[str, Series], folder: Path, config: Mapping[str, Any], plot: bool = True
) -> None:
    """Prints the table, writes ``summary.json`` and the plot, and prints the path of the last file written.

    Args:
        summary: The figures.
        log: What the run logged, from :func:`read_log`.
        folder: Made when it does not exist; files of an earlier run in it are overwritten.
        config: The run's configuration, kept in ``summary.json``.
        plot: Whether to write the plot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    print_table(summary)
    accuracy = log.get(ACCURACY)
    points = zip(accuracy.updates, accuracy.values, strict=True) if accuracy else ()
    record = {
        "results": asdict(summary),
        "evaluations": [{"update": int(update), "test_accuracy": float(value)} for update, value in points],
        "seed": config.get("seed"),
        "config": config,
        "versions": versions(),
        "hardware": hardware(),
    }
    path = folder / SUMMARY_FILE
    path.write_text(json.dumps(_finite(record), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if plot:
        path = plot_run(summary.title, log, folder / PLOT_FILE)
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
    console = Console(highlight=False)
    console.print(table)
    if summary.edba is not None:
        console.print(summary.edba, markup=False)


def table_rows(summary: RunSummary) -> list[tuple[str, str, str]]:
    """The table's rows: what, how much, and a remark."""
    distinct = "<= " * summary.distinct_is_bound + _number(summary.distinct_samples)
    passes = "pass" if summary.epochs == 1 else "passes"
    return [
        ("test accuracy", _percent(summary.test_accuracy, 2), "last evaluation"),
        ("optimizer steps", _number(summary.updates), f"{summary.epochs} full {passes} over the data"),
        ("samples scored", _number(summary.samples_scored), "forward only, to choose subsets"),
        ("samples trained on", _number(summary.samples_trained), f"of {_number(summary.samples_drawn)} drawn"),
        ("distinct samples", distinct, f"of {_number(summary.train_size)} in the training set"),
        ("overhead", _percent(summary.overhead, 1), "of a step: scoring and selection"),
        ("training time", f"{summary.train_seconds:,.1f} s", "wall-clock, evaluation excluded"),
        ("final batch size", _number(summary.final_batch_size), ""),
    ]


def _batch_size_now(trainer: Trainer) -> int | None:
    size = getattr(getattr(trainer.state.train_dataloader, "batch_sampler", None), "batch_size", None)
    return None if size is None else int(size) * dist.get_world_size()


def _last_count(log: Mapping[str, Series], name: str) -> int | None:
    return int(log[name].values[-1]) if name in log else None


def _mean(log: Mapping[str, Series], name: str) -> float | None:
    return float(np.mean(log[name].values)) if name in log else None


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
