"""What the comparators share that decide which samples the train loader draws, and how many at a time."""

from __future__ import annotations

import copy
from typing import Any

import torch
from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import dist

from composer_edba.composer.base import EventAlgorithm
from composer_edba.composer.epochs import EpochLength
from composer_edba.composer.microbatches import Microbatches
from composer_edba.loading.batch import batch_size
from composer_edba.loading.pools import Pools
from composer_edba.loading.sampler import ResizableBatchSampler, resizable_copy

__all__ = ["LoaderAlgorithm"]


class LoaderAlgorithm(EventAlgorithm):
    """Owns a Trainer's train loader: lengths of epochs, microbatches, counts and resuming, all as EDBA has them.

    A comparator fills in :meth:`begin_fit`, :meth:`begin_epoch` and :meth:`begin_batch`. Runs on one rank.

    Attributes:
        label: first part of the names under which it logs.
    """

    label = "loader"

    def __init__(self) -> None:
        self._pools = Pools(type(self).__name__, "train_dataloader")
        self._length = EpochLength(self._pools)
        self._microbatches = Microbatches()
        self._samples_trained = 0
        self._resume_from: dict[str, Any] | None = None
        self._handlers = {
            Event.INIT: self._init,
            Event.FIT_START: self._fit_start,
            Event.EPOCH_START: self._epoch_start,
            Event.BEFORE_DATALOADER: self._estimate_length,
            Event.AFTER_DATALOADER: self._after_dataloader,
            Event.BATCH_END: self._batch_end,
        }

    # ---- what a comparator does

    def begin_fit(self, state: State) -> None:
        """FIT_START, with the loader resizable and :attr:`sampler` its batch sampler."""

    def begin_epoch(self, state: State) -> None:
        """EPOCH_START; a resumed epoch has none."""

    def begin_batch(self, state: State, indices: list[int]) -> None:
        """AFTER_DATALOADER: ``indices`` are the batch's samples in the data set."""

    # ---- what all have

    @property
    def sampler(self) -> ResizableBatchSampler:
        """The train loader's batch sampler, from FIT_START on."""
        assert self._pools.sampler is not None
        return self._pools.sampler

    @property
    def samples_trained(self) -> int:
        """Samples that were trained on, with repetitions."""
        return self._samples_trained

    @property
    def distinct_samples(self) -> int:
        """Different samples among those."""
        return 0 if self._pools.distinct is None else len(self._pools.distinct)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same batches, as plain values."""
        return {
            **super().state_dict(),
            "pools": self._pools.state_dict(),
            "samples_trained": self._samples_trained,
        }

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Take up what :meth:`state_dict` gave, at the next FIT_START: the loader is not known before."""
        self._resume_from = copy.deepcopy(state)

    def take_up(self, saved: dict[str, Any], state: State) -> None:
        """FIT_START of a resumed run, after :meth:`begin_fit`."""
        self._pools.load_state_dict(saved["pools"], int(state.timestamp.batch_in_epoch))
        self._samples_trained = saved["samples_trained"]

    # ---- events

    def _init(self, state: State, logger: Logger) -> None:
        self._microbatches.ask_user(state)

    def _before_load(self, state: State, logger: Logger) -> None:
        self._length.note_full(state)

    def _fit_start(self, state: State, logger: Logger) -> None:
        name = type(self).__name__
        if dist.get_world_size() > 1:
            raise ValueError(f"{name} runs on 1 rank, not on {dist.get_world_size()}")
        if resizable_copy(state.dataloader) is None:
            raise ValueError(
                f"train_dataloader must be a torch DataLoader with a batch_size and torch's own batch sampler for "
                f"{name}, not {type(state.dataloader).__name__}"
            )
        self._length.ask_user(state)
        twin = self._pools.draw_from(state.dataloader, torch.device("cpu"))
        self._length.install(state, twin)
        first_size = self.sampler.batch_size
        self.begin_fit(state)
        if self._resume_from is None:
            self._pools.repeat(int(state.timestamp.batch_in_epoch), first_size)
        else:
            self.take_up(self._resume_from, state)
            self._resume_from = None

    def _epoch_start(self, state: State, logger: Logger) -> None:
        self._pools.end_pass()
        self.begin_epoch(state)
        self._length.open(state, logger)

    def _estimate_length(self, state: State, logger: Logger) -> None:
        self._length.estimate(state, logger)

    def _after_dataloader(self, state: State, logger: Logger) -> None:
        size = batch_size(state.batch)
        drawn = self._pools.indices(self._pools.next_batch(size), size)
        assert drawn is not None
        indices = drawn.tolist()
        self._pools.mark(drawn, [size], drawn.device)
        self._samples_trained += size
        if self._microbatches.cut(state, size) < size:
            raise ValueError(
                f"device_train_microbatch_size={self._microbatches.limit} leaves a microbatch of one of {size} samples;"
                " raise it"
            )
        self.begin_batch(state, indices)
        figures = {
            "batch_size": len(indices),
            "samples_trained": self._samples_trained,
            "distinct_samples": self.distinct_samples,
        }
        logger.log_metrics({f"{self.label}/{name}": value for name, value in figures.items()})

    def _batch_end(self, state: State, logger: Logger) -> None:
        self._length.close(state, logger)
