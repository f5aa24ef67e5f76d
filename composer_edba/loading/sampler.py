"""A DataLoader whose batch size can change at any time, also in the middle of a pass.

The index set never changes: a pass draws each index of the loader's own sampler once, however often the size changes.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler

__all__ = ["ResizableBatchSampler", "resizable_copy"]


class ResizableBatchSampler(Sampler[list[int]]):
    """A BatchSampler whose ``batch_size`` may be assigned at any time.

    A new size shows in the next batch that is drawn, which with W workers and a prefetch factor of P lies W * P
    batches ahead of the one in use. A last batch of one sample, which batch normalisation cannot train on, is joined
    to the one before it, unless the batches are of one sample anyway.

    In a pass whose batches have not all had the first size, the last two share what is left equally, so that neither
    is smaller than half the size. Otherwise what sizes that come and go leave over could be a handful of samples, and a
    step on that few, at a learning rate for many, with batch statistics of that few, can undo an epoch's training. A
    pass in batches of the first size ends as a BatchSampler's does.

    Args:
        sampler: yields a pass's indices.
        batch_size: samples in a batch, at least 1.
        drop_last: leave out a last batch that is smaller.

    Attributes:
        batch_size: size of the batches drawn from now on.
        drawn: sizes asked for in this pass so far, batches in the prefetch queue included.
        replay: sizes to impose on the first batches of a pass in place of ``batch_size``: those of an interrupted
            pass, which make a resumed one draw the same batches.
        least_length: ``len()`` gives at least this many batches.
        pass_rng_state: torch's global random state when this pass began, from which a shuffling sampler draws its
            order; None before the first pass.
        replay_rng_state: state to begin a pass with, that of the interrupted pass; None: the present one.
        choose: ``choose(number, indices)`` gives those of the indices drawn for batch ``number`` of the pass that are
            to be loaded; None: all.
    """

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool = False):
        self.sampler = sampler
        self.batch_size = batch_size
        self._first_size = batch_size
        self.drop_last = drop_last
        self.drawn: list[int] = []
        self.replay: Sequence[int] = ()
        self.least_length = 0
        self.pass_rng_state: Tensor | None = None
        self.replay_rng_state: Tensor | None = None
        self.choose: Callable[[int, list[int]], list[int]] | None = None
        self._ends: list[int] = []  # samples drawn up to the end of each batch
        self._indices: dict[int, list[int]] = {}
        self._seen = 0
        self._ended = False
        self._resized = False  # whether a batch of this pass had another size than the first

    @property
    def total(self) -> int | None:
        """Indices in a pass; None if the sampler has no length."""
        try:
            return len(self.sampler)
        except TypeError:
            return None

    def __iter__(self) -> Iterator[list[int]]:
        self.drawn, self._ends, self._indices, self._seen, self._ended = [], [], {}, 0, False
        self._resized = False
        if self.replay_rng_state is not None:
            torch.set_rng_state(self.replay_rng_state)
        self.pass_rng_state = torch.get_rng_state()
        total = self.total
        indices = iter(self.sampler)
        while True:
            number = len(self.drawn)
            asked = int(self.replay[number] if number < len(self.replay) else self.batch_size)
            size = asked
            if total is not None and not self.drop_last:
                size = self._fitted(size, total - self._seen)
            batch = list(itertools.islice(indices, size))
            if not batch or (self.drop_last and len(batch) < size):
                self._ended = True
                return
            self.drawn.append(asked)
            self._resized = self._resized or asked != self._first_size
            self._seen += len(batch)
            self._ends.append(self._seen)
            if self.choose is not None:
                batch = self.choose(number, batch)
            self._indices[number] = batch
            yield batch

    def _fitted(self, size: int, rest: int) -> int:
        """``size``, or what the next batch has in its place because the ``rest`` of the pass ends soon after it."""
        resized = self._resized or size != self._first_size
        if resized and size < rest < 2 * size and rest > 3:
            return rest - rest // 2
        return rest if size > 1 and rest - size == 1 else size

    def __len__(self) -> int:
        """Batches in a pass: those drawn, and the rest of it at the present size."""
        if self.total is None:
            raise TypeError("the sampler has no length")
        rest = self.total - self._seen if not self._ended else 0
        if self.drawn and self._seen >= self.total:  # the next pass has not begun
            rest = 0
        full, tail = divmod(max(0, rest), self.batch_size)
        partial = False
        if tail > 0 and not self.drop_last:
            last_two = self.batch_size + tail
            partial = full == 0 or self._fitted(self.batch_size, last_two) < last_two
        return max(self.least_length, len(self.drawn) + full + partial)

    def indices_of(self, number: int) -> list[int] | None:
        """Indices loaded for batch ``number`` of this pass; forgets earlier batches'. None if it was not drawn."""
        for earlier in [n for n in self._indices if n < number]:
            del self._indices[earlier]
        return self._indices.pop(number, None)

    def seen(self, taken: int) -> int:
        """Samples that were drawn for the first ``taken`` batches of this pass, whether loaded or not."""
        taken = min(taken, len(self._ends))
        return self._ends[taken - 1] if taken > 0 else 0

    def is_last(self, taken: int) -> bool:
        """Whether a pass of which ``taken`` batches were used has no further batch."""
        if taken < len(self.drawn):
            return False
        if self._ended:
            return True
        rest = None if self.total is None else self.total - self._seen
        return rest is not None and (rest <= 0 or (self.drop_last and rest < self.batch_size))


def resizable_copy(loader: Any, batch_size: int | None = None) -> DataLoader | None:
    """A shallow copy of ``loader`` that draws through a :class:`ResizableBatchSampler`.

    The copy keeps the class, data set, sampler, workers and everything else, and the given object stays as it is. A
    new DataLoader would lose what a subclass adds, and its ``sampler`` attribute, on which ``set_epoch`` relies.

    Args:
        loader: a DataLoader.
        batch_size: first size; None: the loader's own.

    Returns:
        The copy; ``loader`` itself if it is such a copy already; None if its batches cannot be resized: no DataLoader,
        ``batch_size=None``, or a batch sampler of the user's own.
    """
    if not isinstance(loader, DataLoader):
        return None
    batch_sampler = loader.batch_sampler
    if isinstance(batch_sampler, ResizableBatchSampler):
        return loader
    if type(batch_sampler) is not BatchSampler:
        return None
    twin = copy.copy(loader)
    # DataLoader.__setattr__ forbids a new batch_sampler.
    twin.__dict__["batch_sampler"] = ResizableBatchSampler(
        batch_sampler.sampler, batch_size or batch_sampler.batch_size, batch_sampler.drop_last
    )
    twin.__dict__["_iterator"] = None  # persistent workers belong to the given loader
    return twin
