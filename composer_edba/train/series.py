"""What a run logged, as series over its optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from composer import Trainer

ACCURACY = "metrics/eval/MulticlassAccuracy"
TARGET = "target_batch_size"


@dataclass(frozen=True)
class Series:
    """A logged quantity: ``values[i]`` belongs to the optimizer step (update) number ``updates[i]``, from 1."""

    updates: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.updates)


def read_log(trainer: Trainer) -> dict[str, Series]:
    """Everything numeric that the Trainer logged, by name.

    Series are added that are summed over ranks: ``batch_size``, the samples drawn for each update, and with EDBA
    ``subset_size``, the samples of them that were trained on, and ``target_batch_size``, the size aimed at.

    Raises:
        ValueError: When the Trainer has no ``InMemoryLogger``.
    """
    # Here, so that the pictures of runs without Composer need none.
    from composer.loggers import InMemoryLogger
    from composer.utils import dist

    memory = next((each for each in trainer.logger.destinations if isinstance(each, InMemoryLogger)), None)
    if memory is None:
        raise ValueError("trainer.logger.destinations: holds no InMemoryLogger; pass loggers=[InMemoryLogger()]")
    log = {}
    for name, entries in memory.data.items():
        # Most is logged within an update, before Composer counts it; these come after.
        lag = 0 if name.startswith(("metrics/eval/", "time/", "edba/overhead", "dba/overhead", "edba/cache")) else 1
        numeric = [(int(stamp.batch) + lag, float(value)) for stamp, value in entries if not isinstance(value, str)]
        log[name] = Series(*(np.array(column) for column in zip(*numeric, strict=True)))
    if (drawn := log.get("time/sample")) and len(drawn) > 1:
        # Composer logs the samples drawn so far at the start of every update and once more at the end.
        log["batch_size"] = Series(drawn.updates[1:], np.diff(drawn.values))
    for count, size in (("edba/samples_drawn", "batch_size"), ("edba/samples_trained", "subset_size")):
        if total := log.get(count):
            # A resumed run starts at the count of the run before it, which is not in this log.
            before = 0.0 if total.updates[0] == 1 else np.nan
            log[size] = Series(total.updates, np.diff(total.values, prepend=before))
    if target := log.get("edba/target_batch_size"):
        log[TARGET] = Series(target.updates, target.values * dist.get_world_size())
    return log


def series_of(figures: Sequence[Mapping[str, float]]) -> dict[str, Series]:
    """The figures of a run's steps, a mapping each, as :func:`read_log` gives a Trainer's."""
    names = dict.fromkeys(name for step in figures for name in step)
    log = {}
    for name in names:
        told = [(update, float(step[name])) for update, step in enumerate(figures, 1) if name in step]
        series = Series(*(np.array(column) for column in zip(*told, strict=True)))
        log[f"edba/{name.removeprefix('edba/')}"] = series
    for name, size in (("batch_size", "batch_size"), ("subset_size", "subset_size"), ("target_batch_size", TARGET)):
        if found := log.get(f"edba/{name}"):
            log[size] = found
    if loss := log.get("edba/loss"):
        log["loss/train/total"] = loss
    return log


def whole_batches(log: Mapping[str, Series]) -> Series | None:
    """The batch sizes without the remainder that ends an epoch, which says nothing about the size in force."""
    sizes, position = log.get("batch_size"), log.get("time/batch_in_epoch")
    if not sizes or not position:
        return sizes
    smaller = np.diff(sizes.values, prepend=sizes.values[:1]) < 0
    whole = ~(smaller & (position.values[1:] == 0))  # 0: the update ended an epoch
    return Series(sizes.updates[whole], sizes.values[whole])
