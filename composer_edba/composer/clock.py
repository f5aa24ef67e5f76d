"""Composer's schedules and intervals, told the time by the data: batches that change their size are no measure of it.

Composer counts time in batches, and converts '2ep' and '0.5dur' to them with the whole number ``state.dataloader_len``.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from types import FunctionType, SimpleNamespace
from typing import Any

from composer.core import Event, State, Time, Timestamp, TimeUnit
from composer.optim.scheduler import compile_composer_scheduler
from composer.utils import create_interval_scheduler, dist, ensure_tuple
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from composer_edba.loading.pools import Pools

__all__ = ["DataClock"]


class DataClock:
    """Tells the time of a fit in passes over the data that ``pools`` are drawn from.

    Attributes:
        ended: epoch and number of batches of the last pass that ended, which need not have drawn all samples.
    """

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._loader: Any = None
        self._subset_batches: int | None = None
        self.ended: tuple[int, int] | None = None

    # ---- the time

    @property
    def runs(self) -> bool:
        """Whether it can tell the time: the length of a pass is known."""
        return self._pools.sampler is not None and (self._subset_batches or self._pools.shortest) is not None

    @property
    def loader_batches(self) -> int:
        """Batches in a pass at the loader's own size, which Composer takes for its length without this package."""
        if self._subset_batches is not None:
            return self._subset_batches
        assert self._pools.shortest is not None
        full, rest = divmod(self._pools.shortest, self._loader.batch_size)
        return max(1, full + (rest > 0 and not self._loader.drop_last))

    @property
    def ticks(self) -> int:
        """Finest parts of a pass that can be told: the samples a rank draws in it at the loader's own size."""
        if self._subset_batches is not None:
            return self._subset_batches
        assert self._pools.shortest is not None
        return self.loader_batches * self._loader.batch_size if self._loader.drop_last else self._pools.shortest

    def progress(self, timestamp: Timestamp) -> Fraction:
        """Passes done at ``timestamp``, which lies in the present one or at the end of the last."""
        epoch, taken, sampler = int(timestamp.epoch), int(timestamp.batch_in_epoch), self._pools.sampler
        assert sampler is not None
        if (epoch, taken) == self.ended:
            return Fraction(epoch + 1)
        if self._subset_batches is not None:
            done = Fraction(taken)
        elif sampler.total is None or self._pools.uneven:  # must be the same on all ranks
            done = Fraction(int(timestamp.sample_in_epoch), dist.get_world_size())
        else:  # the Trainer may see fewer samples: chosen ones only, or what a collate_fn left
            done = Fraction(self.ticks if sampler.is_last(taken) else sampler.seen(taken))
        return epoch + min(done / self.ticks, Fraction(1))

    # ---- who is told

    def begin_fit(self, state: State, loader: Any, subset_batches: int | None) -> None:
        """FIT_START: tell the time to what Composer made of its schedules, and of its intervals in ``dur``.

        What they read of ``state`` while they run then keeps to the data. They stay that way, to no effect in a Trainer
        other than this one. Schedulers of torch and intervals that are the user's functions are left alone.

        Args:
            state: the Trainer's.
            loader: what the pools are drawn from.
            subset_batches: number of batches after which the user ends a pass; None: it is drawn to its end.
        """
        self._loader, self._subset_batches, self.ended = loader, subset_batches, None
        for scheduler in state.schedulers:
            if isinstance(scheduler, LambdaLR):
                self._tell_schedule(scheduler, state)
        for owner in (*state.evaluators, *state.callbacks):
            for name, check in [*vars(owner).items()]:
                if _made_by(create_interval_scheduler, check):
                    setattr(owner, name, self._told_interval(check, state))

    def _tell_schedule(self, scheduler: LambdaLR, state: State) -> None:
        if not all(_made_by(compile_composer_scheduler, factor) for factor in scheduler.lr_lambdas):
            return
        scheduler.lr_lambdas = [self._told_schedule(factor, state) for factor in scheduler.lr_lambdas]
        if scheduler.last_epoch == 0 and int(state.timestamp.batch) > 0:  # made for this fit, at Composer's time
            for group, rate, factor in zip(
                scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = rate * factor(0)

    def _told_schedule(self, given: Any, state: State) -> Callable[[int], float]:
        given = getattr(given, "__wrapped__", given)  # by an earlier fit
        in_batches = _may_name_batches(inspect.getclosurevars(given).nonlocals["scheduler"])

        def at(epoch: int, shown: dict[str, Any]) -> float:
            with _showing(state, **shown):
                factor = given(epoch)
            return factor if shown["_dataloader_len"].was_read else given(epoch)  # nothing was converted: the true time

        @functools.wraps(given)
        def told(epoch: int) -> float:
            if not self.runs:
                return given(epoch)
            if not in_batches:
                # Composer's check that the schedule lasts as long as training may come out otherwise in these parts.
                with contextlib.suppress(ValueError):
                    return at(epoch, self._finely(state))
            return at(epoch, self._in_batches(state))

        return told

    def _in_batches(self, state: State) -> dict[str, Any]:
        """What ``state`` is to say if its batches were the loader's; they are if training lasts a number of them."""
        assert state.max_duration is not None
        shown = self._counting(state, self.loader_batches)
        return {**shown, "timestamp": state.timestamp} if state.max_duration.unit == TimeUnit.BATCH else shown

    def _finely(self, state: State) -> dict[str, Any]:
        """What ``state`` is to say if its batches were :attr:`ticks`; a number of batches to train for grows with them.

        By as much as those that were taken have, so that training's share that is over stays true.
        """
        shown, end, taken = self._counting(state, self.ticks), state.max_duration, int(state.timestamp.batch)
        assert end is not None
        if end.unit == TimeUnit.BATCH:
            batch = int(shown["timestamp"].batch)
            rate = Fraction(batch, taken) if batch and taken else Fraction(self.ticks, self.loader_batches)
            shown["_max_duration"] = Time(int(end.value * rate), TimeUnit.BATCH)
        return shown

    def _counting(self, state: State, parts: int) -> dict[str, Any]:
        now = state.timestamp
        batch = int(self.progress(now) * parts)
        timestamp = now.copy(batch=batch, batch_in_epoch=batch - int(now.epoch) * parts)
        return {"timestamp": timestamp, "_dataloader_len": _NoticedTime(parts, TimeUnit.BATCH)}

    def _told_interval(self, given: Any, state: State) -> Callable[[State, Event], bool]:
        given = getattr(given, "__wrapped__", given)
        interval = inspect.getclosurevars(given).nonlocals["time_interval"]

        @functools.wraps(given)
        def told(asking: State, event: Event) -> bool:
            before, end = asking.previous_timestamp, asking.max_duration
            in_epochs = interval.unit == TimeUnit.DURATION and end is not None and end.unit == TimeUnit.EPOCH
            if asking is not state or not self.runs or before is None or not in_epochs:
                return given(asking, event)
            epochs = end.value * float(interval)
            # Composer's own period, of whole batches, though of the loader's size.
            period = Fraction(math.ceil(epochs * self.loader_batches), self.loader_batches)
            due = self.progress(before) // period < self.progress(asking.timestamp) // period
            # It asks whether the batches so far are a multiple of the batches in the interval: so many, or one more.
            batches = int(asking.timestamp.batch) + (-0.5 if due else 0.5)
            with _showing(asking, _dataloader_len=SimpleNamespace(value=batches / epochs)):
                return given(asking, event)

        return told


class _NoticedTime(Time[int]):
    """Notices that it is read."""

    was_read = False

    @property
    @override
    def value(self) -> int:
        self.was_read = True
        return super().value


@contextlib.contextmanager
def _showing(state: State, **values: Any) -> Iterator[None]:
    """Have the attributes of ``state`` other values for a while."""
    before = {name: getattr(state, name) for name in values}
    try:
        for name, value in values.items():
            setattr(state, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(state, name, value)


def _made_by(maker: Callable[..., Any], function: Any) -> bool:
    """Whether ``maker`` of Composer defined ``function`` inside of itself, or this module did around such a one."""
    inside = isinstance(function, FunctionType) and function.__module__ == maker.__module__
    return inside and function.__qualname__.startswith(f"{maker.__qualname__}.")


def _may_name_batches(schedule: Any) -> bool:
    """Whether times of ``schedule`` are in batches, which must then find a clock in batches, or cannot be known."""
    if type(schedule).__module__ != compile_composer_scheduler.__module__:
        return True
    times = [time for value in vars(schedule).values() for time in ensure_tuple(value)]
    return any(Time.from_input(time).unit == TimeUnit.BATCH for time in times if isinstance(time, (str, Time)))
