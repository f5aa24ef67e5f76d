"""What the comparators share that leave out part of the data set in each epoch."""

from __future__ import annotations

import base64
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from composer.core import State
from torch import Tensor
from torch.utils.data import Sampler

from benchmarks.comparators.loader_algorithm import LoaderAlgorithm

__all__ = ["PrunedEpochs", "packed", "unpacked"]


class PrunedEpochs(LoaderAlgorithm):
    """Decides when an epoch begins which samples it has: a pass over those in the loader's order, in its batches.

    A ``max_duration`` in epochs has fewer steps than without pruning, which is where it saves, and a schedule in epochs
    or shares of the duration goes by them: it is complete at the end of the shorter run. A comparator fills in
    :meth:`prune`, and ``stream``.

    Attributes:
        stream: a number that keeps its random stream apart from others of the same seed.
    """

    stream: int

    def __init__(self) -> None:
        super().__init__()
        self._weights: Tensor | None = None  # in this epoch, by data-set index; 0: left out

    @abstractmethod
    def prune(self, state: State) -> Tensor:
        """The weights of the samples in the epoch that begins, ``(N,)``, float32; 0: left out of it."""

    @property
    def kept(self) -> int:
        """Samples in this epoch."""
        return 0 if self._weights is None else int(torch.count_nonzero(self._weights))

    def generator(self, state: State, number: int) -> torch.Generator:
        """The random stream of the epoch, or whatever else, ``number``: nothing to save, no other stream is moved."""
        seeds = np.random.SeedSequence([self.stream, int(state.rank_zero_seed), number])
        return torch.Generator().manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def state_dict(self) -> dict[str, Any]:
        """The base class's, and the weights of this epoch."""
        return {**super().state_dict(), "weights": packed(self._weights)}

    def take_up(self, saved: dict[str, Any], state: State) -> None:
        """Go on inside an epoch with its samples."""
        weights = unpacked(saved["weights"])
        assert self._weights is not None
        # Another data set's say nothing.
        if weights is not None and len(weights) == len(self._weights) and int(state.timestamp.batch_in_epoch) > 0:
            self._set_weights(weights)
        super().take_up(saved, state)

    def begin_fit(self, state: State) -> None:
        """Put the pruning in front of the loader's sampler."""
        inner = self.sampler.sampler
        size = len(state.dataloader.dataset)
        if not isinstance(inner, _KeptSampler):
            if self.sampler.total != size:
                raise ValueError(
                    f"train_dataloader's sampler must give each of the {size} samples of its data set once for "
                    f"{type(self).__name__}, not {self.sampler.total}; cut the data set down instead"
                )
            self.sampler.sampler = inner = _KeptSampler(inner, size)
        self._kept_sampler = inner
        if self._weights is None or len(self._weights) != size:
            self._set_weights(torch.ones(size))

    def begin_epoch(self, state: State) -> None:
        """Leave out samples."""
        self._set_weights(self.prune(state))

    def _set_weights(self, weights: Tensor) -> None:
        self._weights = weights
        self._kept_sampler.kept = weights > 0
        self._pools.measure(torch.device("cpu"))


class _KeptSampler(Sampler[int]):
    """Those of another sampler's indices that are kept, in its order."""

    def __init__(self, sampler: Any, size: int):
        self.sampler = sampler
        self.kept = torch.ones(size, dtype=torch.bool)

    def __iter__(self) -> Iterator[int]:
        kept = self.kept.tolist()
        return (int(index) for index in self.sampler if kept[index])

    def __len__(self) -> int:
        return int(self.kept.sum())


def packed(values: Tensor | None) -> str | None:
    """Float32 numbers as a checkpoint holds them."""
    return None if values is None else base64.b64encode(values.numpy().tobytes()).decode()


def unpacked(text: str | None) -> Tensor | None:
    """What :func:`packed` was given."""
    return None if text is None else torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32)
