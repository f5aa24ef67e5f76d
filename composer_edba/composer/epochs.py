"""``state.dataloader_len`` kept true through every epoch of batches that change their size.

Composer reads that number of batches once and cuts the epoch off there; progress bars and callbacks show it.
"""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction
from typing import Any, cast

import torch
from composer.core import State, Time, TimeUnit
from composer.loggers import Logger, ProgressBarLogger
from composer.utils import dist, reproducibility

from composer_edba.composer.clock import DataClock
from composer_edba.composer.running_trainer import running_trainer
from composer_edba.loading.pools import Pools
from composer_edba.loading.sampler import ResizableBatchSampler

__all__ = ["EpochLength"]


class EpochLength:
    """Manages the length of one Trainer's epochs, whose batches come from ``pools``, and tells its schedules the time.

    The length is an estimate, the batches taken and the rest of the pass at the present size, true at the epoch's end.
    """

    def __init__(self, pools: Pools) -> None:
        self._pools, self._clock, self._manages = pools, DataClock(pools), False
        self._written: Time[int] | None = None  # the length that was last set here
        self._subset_batches: int | None = None
        self._full: Time[int] | None = None  # the length that Composer set by itself, as the loader's

    # ---- BEFORE_LOAD

    def note_full(self, state: State) -> None:
        """Before a checkpoint, and who hears of it, may change the loader's length: is Composer's that length?"""
        length, loader = state.dataloader_len, cast(Any, state.dataloader)
        with contextlib.suppress(TypeError):
            self._full = length if length is not None and int(length) == len(loader) else None

    # ---- FIT_START

    def ask_user(self, state: State) -> None:
        """Take in the user's train_subset_num_batches, before the loader is replaced: a length below the loader's."""
        self._subset_batches = None
        self._pools.seeks = "train" in state.dataset_resumption
        # What this object wrote in an earlier fit is no wish of the user's.
        if state.dataloader_len is None or (self._manages and state.dataloader_len == self._written):
            return
        if self._full is not None and state.dataloader_len == self._full:
            return
        length, loader = int(state.dataloader_len), cast(Any, state.dataloader)
        try:
            shortened = length < len(loader)
        except TypeError:
            shortened = True
        self._subset_batches = length if shortened else None

    def install(self, state: State, loader: Any) -> None:
        """Have ``state`` train on ``loader``, what the pools are drawn from, its batches' sizes being theirs."""
        sampler, subset = self._pools.sampler, self._subset_batches
        self._manages = sampler is not None and subset is None and self._pools.total is not None
        if sampler is None:
            return
        if subset is not None:
            # A growing batch shortens the pass: without this the setter would clamp the user's number, and warn.
            sampler.least_length = subset
        if loader is not state.dataloader:
            state.set_dataloader(loader, state.dataloader_label, -1 if subset is None else subset)
            state.train_dataloader = loader  # pyright: ignore[reportAttributeAccessIssue]
        self._clock.begin_fit(state, loader, subset)
        if self._manages:  # a resumed epoch has no EPOCH_START
            state._dataloader_len = None

    # ---- the events of an epoch

    def resume(self, state: State) -> None:
        """BEFORE_DATALOADER: in an interrupted epoch, what Composer leaves undone where a data set has its state."""
        if int(state.timestamp.batch_in_epoch) == 0 or "train" not in state.dataset_resumption:
            return
        if self._pools.rewinds:  # the trainer is to skip, as with other data sets
            del state.dataset_resumption["train"]
        elif (trainer := running_trainer()) is not None and trainer._rng_state is not None:
            reproducibility.load_rng_state(trainer._rng_state)
            trainer._rng_state = None

    def open(self, state: State, logger: Logger) -> None:
        """EPOCH_START: no bound while the iterator is being made."""
        if self._manages:
            self.estimate(state, logger)
            for bar in _progress_bars(logger):
                bar.epoch_start(state, logger)  # which builds it with the length there is, once
            state._dataloader_len = None

    def estimate(self, state: State, logger: Logger) -> None:
        """BEFORE_DATALOADER: a length for whoever asks."""
        if self._manages:
            self._set(state, logger, self._expected(state))

    def close(self, state: State, logger: Logger) -> None:
        """BATCH_END: with a duration in samples or batches the trainer ends an epoch only if the length says so."""
        if not self._clock.runs:
            return
        assert self._pools.sampler is not None
        taken = int(state.timestamp.batch_in_epoch)
        over = self._is_over(state, self._pools.sampler, taken)
        if over or taken == self._subset_batches:
            self._clock.ended = int(state.timestamp.epoch), taken
        if self._manages:
            self._set(state, logger, taken if over else max(taken + 1, self._expected(state)))

    def _expected(self, state: State) -> int:
        sampler, timestamp = self._pools.sampler, state.timestamp
        assert sampler is not None
        assert self._pools.shortest is not None
        passes = int(timestamp.epoch) + 1 - self._clock.progress(timestamp)
        rest = passes * self._pools.shortest * Fraction(sampler.share) / sampler.batch_size
        return int(timestamp.batch_in_epoch) + (math.floor if sampler.drop_last else math.ceil)(rest)

    def _set(self, state: State, logger: Logger, length: int) -> None:
        assert self._pools.sampler is not None
        assert state.max_duration is not None
        # The private field: the public setter clamps, and warns.
        self._written = Time(length, TimeUnit.BATCH)
        state._dataloader_len = self._written  # type: ignore[assignment]
        # After an evaluation the trainer puts the length back through the setter.
        self._pools.sampler.least_length = length
        if state.max_duration.unit == TimeUnit.EPOCH:  # else the bar's end is that of training
            for bar in _progress_bars(logger):
                if bar.train_pbar is not None:
                    bar.train_pbar.pbar.total = length

    def _is_over(self, state: State, sampler: ResizableBatchSampler, taken: int) -> bool:
        if sampler.total is None:  # an IterableDataset with a length
            ranks, total = dist.get_world_size(), self._pools.total
            rest = None if total is None else (total - int(state.timestamp.sample_in_epoch)) // ranks
            return rest is not None and self._pools.is_rest_over(rest)
        if not self._pools.uneven:
            return sampler.is_last(taken)
        # The trainer stops all ranks when the first runs out, and all must agree that the epoch has ended.
        last = state.device.tensor_to_device(torch.tensor(int(sampler.is_last(taken))))
        dist.all_reduce(last, "MAX")
        return bool(last)


def _progress_bars(logger: Logger) -> list[ProgressBarLogger]:
    return [bar for bar in logger.destinations if isinstance(bar, ProgressBarLogger)]
