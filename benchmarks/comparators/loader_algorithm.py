"""What the comparators share that decide which samples the train loader draws, and how many at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist

from composer_edba.composer.epochs import TrainerLoader
from composer_edba.loading.distinct import DistinctSamples
from composer_edba.loading.parts import equal_part_size
from composer_edba.loading.sampler import ResizableBatchSampler, resizable_copy

__all__ = ["LoaderAlgorithm"]


class LoaderAlgorithm(Algorithm):
    """Owns a Trainer's train loader: lengths of epochs, microbatches, counts and resuming, all as EDBA has them.

    A comparator fills in :meth:`begin_fit`, :meth:`begin_epoch` and :meth:`begin_batch`. Runs on one rank.

    Attributes:
        label: first part of the names under which it logs.
    """

    label = "loader"

    def __init__(self) -> None:
        self._loader = TrainerLoader()
        self._distinct: DistinctSamples | None = None
        self._samples_trained = 0
        self._user_limit: int | None = None  # microbatch size that the user set
        self._resume_from: dict[str, Any] | None = None
        self._handlers: dict[Event, Callable[[State, Logger], None]] = {
            Event.INIT: self._init,
            Event.FIT_START: self._fit_start,
            Event.EPOCH_START: self._epoch_start,
            Event.BEFORE_DATALOADER: self._estimate_length,
            Event.AFTER_DATALOADER: self._after_dataloader,
            Event.AFTER_TRAIN_BATCH: self._estimate_length,
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
        assert self._loader.sampler is not None
        return self._loader.sampler

    @property
    def samples_trained(self) -> int:
        """Samples that were trained on, with repetitions."""
        return self._samples_trained

    @property
    def distinct_samples(self) -> int:
        """Different samples among those."""
        return 0 if self._distinct is None else len(self._distinct)

    def match(self, event: Event, state: State) -> bool:
        """Whether this algorithm has something to do at ``event``."""
        return event in self._handlers

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Do it."""
        self._handlers[event](state, logger)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same batches, as plain values."""
        return {
            **super().state_dict(),
            "loader": self._loader.state_dict(),
            "distinct": None if self._distinct is None else self._distinct.state_dict(),
            "samples_trained": self._samples_trained,
        }

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Take up what :meth:`state_dict` gave, at the next FIT_START: the loader is not known before."""
        self._resume_from = copy.deepcopy(state)

    def take_up(self, saved: dict[str, Any], state: State) -> None:
        """FIT_START of a resumed run, after :meth:`begin_fit`."""
        self._loader.load_state_dict(saved["loader"], state)
        if self._distinct is not None:
            self._distinct.load_state_dict(saved["distinct"])
        self._samples_trained = saved["samples_trained"]

    # ---- events

    def _init(self, state: State, logger: Logger) -> None:
        limit = state.device_train_microbatch_size
        self._user_limit = None if limit is None else int(limit)

    def _fit_start(self, state: State, logger: Logger) -> None:
        name = type(self).__name__
        if dist.get_world_size() > 1:
            raise ValueError(f"{name} runs on 1 rank, not on {dist.get_world_size()}")
        if resizable_copy(state.dataloader) is None:
            raise ValueError(
                f"train_dataloader must be a torch DataLoader with a batch_size and torch's own batch sampler for "
                f"{name}, not {type(state.dataloader).__name__}"
            )
        first_size = self._loader.install(state)
        size = len(state.dataloader.dataset)
        if self._distinct is None or self._distinct.size != size:
            self._distinct = DistinctSamples(size)
        self.begin_fit(state)
        if self._resume_from is None:
            self._loader.replay_without_state(first_size, state)
        else:
            self.take_up(self._resume_from, state)
            self._resume_from = None

    def _epoch_start(self, state: State, logger: Logger) -> None:
        self._loader.forget_replay()
        self.begin_epoch(state)
        self._loader.open_epoch(state)

    def _estimate_length(self, state: State, logger: Logger) -> None:
        self._loader.estimate_length(state)

    def _after_dataloader(self, state: State, logger: Logger) -> None:
        self._loader.forget_replay()
        indices = self.sampler.indices_of(int(state.timestamp.batch_in_epoch))
        assert indices is not None
        assert self._distinct is not None
        self._distinct.add(indices)
        self._samples_trained += len(indices)
        # A batch larger than the loader's first size would otherwise be cut by that.
        microbatch_size = equal_part_size(len(indices), self._user_limit)
        if microbatch_size is None:
            raise ValueError(
                f"device_train_microbatch_size={self._user_limit} leaves a microbatch of one of {len(indices)} "
                "samples; raise it"
            )
        state.device_train_microbatch_size = microbatch_size
        self.begin_batch(state, indices)
        figures = {
            "batch_size": len(indices),
            "samples_trained": self._samples_trained,
            "distinct_samples": self.distinct_samples,
        }
        logger.log_metrics({f"{self.label}/{name}": value for name, value in figures.items()})

    def _batch_end(self, state: State, logger: Logger) -> None:
        self._loader.close_epoch(state)
