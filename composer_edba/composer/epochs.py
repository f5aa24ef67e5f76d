"""``state.dataloader_len`` kept true through every epoch of batches that change their size.

Composer reads that number of batches once, cuts the epoch off there, and converts '2ep' to batches with it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from composer.core import State, Time, TimeUnit
from composer.utils import dist

from composer_edba.loading.pools import Pools
from composer_edba.loading.sampler import ResizableBatchSampler

__all__ = ["EpochLength"]


class EpochLength:
    """Manages the length of one Trainer's epochs, whose batches come from ``pools``."""

    def __init__(self, pools: Pools) -> None:
        self._pools, self._manages = pools, False
        self._written: Time[int] | None = None  # the length that was last set here
        self._subset_batches: int | None = None

    # ---- FIT_START

    def ask_user(self, state: State) -> None:
        """Take in the user's train_subset_num_batches, before the loader is replaced: a length below the loader's."""
        self._subset_batches = None
        # What this object wrote in an earlier fit is no wish of the user's.
        if state.dataloader_len is None or (self._manages and state.dataloader_len == self._written):
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
        self.open(state)

    # ---- the events of an epoch

    def open(self, state: State) -> None:
        """FIT_START (a resumed epoch has no EPOCH_START), EPOCH_START: no bound while the iterator is being made."""
        if self._manages:
            state._dataloader_len = None

    def estimate(self, state: State) -> None:
        """BEFORE_DATALOADER, AFTER_TRAIN_BATCH: batches per epoch, averaged over training so far.

        With this average Composer's '2ep' -> batches comes out where two epochs are over.
        """
        if not self._manages:
            return
        sampler, samples, timestamp = self._pools.sampler, self._pools.total, state.timestamp
        assert sampler is not None
        assert samples is not None
        drawn = int(timestamp.sample_in_epoch)
        if sampler.choose is not None:  # the Trainer sees chosen samples only
            drawn = sampler.seen(int(timestamp.batch_in_epoch)) * dist.get_world_size()
        epochs = int(timestamp.epoch) + min(1.0, drawn / samples)
        if int(timestamp.batch) > 0 and epochs > 0:
            length = _batches_per_epoch(int(timestamp.batch), epochs)
        else:
            length = max(1, -(-(samples // dist.get_world_size()) // sampler.batch_size))
        self._set(state, sampler, length)

    def close(self, state: State) -> None:
        """BATCH_END: with a duration in samples or batches the trainer ends an epoch only if the length says so."""
        if not self._manages:
            return
        assert self._pools.sampler is not None
        taken = int(state.timestamp.batch_in_epoch)
        if self._is_over(state, self._pools.sampler, taken):
            self._set(state, self._pools.sampler, taken)
        elif state.dataloader_len is not None and int(state.dataloader_len) == taken:
            self._set(state, self._pools.sampler, taken + 1)

    def _set(self, state: State, sampler: ResizableBatchSampler, length: int) -> None:
        # The private field: the public setter clamps, and warns.
        self._written = Time(length, TimeUnit.BATCH)
        state._dataloader_len = self._written  # type: ignore[assignment]
        # After an evaluation the trainer puts the length back through the setter.
        sampler.least_length = length

    def _is_over(self, state: State, sampler: ResizableBatchSampler, taken: int) -> bool:
        if sampler.total is None:  # an IterableDataset with a length
            assert self._pools.total is not None
            return int(state.timestamp.sample_in_epoch) >= self._pools.total
        if not self._pools.uneven:
            return sampler.is_last(taken)
        # The trainer stops all ranks when the first runs out, and all must agree that the epoch has ended.
        last = state.device.tensor_to_device(torch.tensor(int(sampler.is_last(taken))))
        dist.all_reduce(last, "MAX")
        return bool(last)


def _batches_per_epoch(batches: int, epochs: float) -> int:
    """``batches / epochs`` as a whole number, such that m epochs are over when m times that many batches are.

    Plain rounding would let a milestone at '2ep' come and go with each batch around it. With m whole epochs over, a
    length L tells right if m L <= batches < (m + 1) L. Where none does, after many short epochs, it is the nearest.
    """
    nearest, whole = max(1, round(batches / epochs)), int(epochs)
    if whole == 0:
        return max(nearest, batches + 1)
    least, most = batches // (whole + 1) + 1, batches // whole
    return min(max(nearest, least), most) if least <= most else nearest
