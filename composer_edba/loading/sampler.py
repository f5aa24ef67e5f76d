"""A DataLoader whose batch size can change at any time, also in the middle of a pass.

The index set never changes: a pass draws each index of the loader's own sampler once, however often the size changes.
"""

from __future__ import annotations

import base64
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

__all__ = ["ResizableBatchSampler", "check_indexed", "length_of", "resizable_copy", "why_fixed"]


def length_of(sized: Any) -> int | None:
    """``len(sized)``; None if it has no length."""
    try:
        return len(sized)
    except TypeError:
        return None


class ResizableBatchSampler(Sampler[list[int]]):
    """A BatchSampler whose ``batch_size`` may be assigned at any time.

    A new size shows in the next batch that is drawn, which with W workers and a prefetch factor of P lies W * P
    batches ahead of the one in use. A last batch of one sample, which batch normalisation cannot train on, is joined
    to the one before it, unless the batches are of one sample anyway.

    Once a batch of a pass has another size than the first, what is left of the pass is cut evenly into the fewest
    batches that are no larger: 1,437 samples in batches of 640 are 479, 479 and 479. A handful left over could undo an
    epoch's training: a step on that few, at a learning rate for many, with their batch statistics. A pass in batches of
    the first size ends as a BatchSampler's does.

    Args:
        sampler: yields a pass's indices.
        batch_size: samples in a batch, at least 1.
        drop_last: leave out a last batch that is smaller.

    Attributes:
        batch_size: size of the batches drawn from now on.
        drawn: sizes asked for in this pass so far, the prefetch queue included; a new list in each pass.
        least_length: ``len()`` gives at least this many batches.
        choose: ``choose(number, indices)`` gives those of the indices drawn for batch ``number`` of the pass that are
            to be loaded; None: all.
    """

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool = False):
        self.sampler = sampler
        self.batch_size = self._first_size = batch_size
        self.drop_last = drop_last
        self.drawn: list[int] = []
        self.least_length = 0
        self._replay: Sequence[int] = ()  # sizes of an interrupted pass, which its first batches have once more
        self._rng_state: Tensor | None = None  # torch's, when this pass began: a shuffling sampler's order
        self._replay_rng_state: Tensor | None = None
        self.choose: Callable[[int, list[int]], list[int]] | None = None
        self._ends: list[int] = []  # samples drawn up to the end of each batch
        self._indices: dict[int, list[int]] = {}
        self._seen = 0
        self._ended = False
        self._resized = False  # whether a batch of this pass had another size than the first

    @property
    def total(self) -> int | None:
        """Indices in a pass; None if the sampler has no length."""
        return length_of(self.sampler)

    def __iter__(self) -> Iterator[list[int]]:
        self.drawn, self._ends, self._indices, self._seen, self._ended = [], [], {}, 0, False
        self._resized = False
        if self._replay_rng_state is not None:
            torch.set_rng_state(self._replay_rng_state)
        self._rng_state = torch.get_rng_state()
        total = self.total
        indices = iter(self.sampler)
        while True:
            number = len(self.drawn)
            asked = int(self._replay[number] if number < len(self._replay) else self.batch_size)
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
        if self._resized or size != self._first_size:
            parts = -(-rest // size)
            even = -(-rest // max(1, parts))
            return rest if rest <= 3 and size > 1 else even  # no batch of one sample
        return rest if size > 1 and rest - size == 1 else size

    def __len__(self) -> int:
        """Batches in a pass: those drawn, and the rest of it at the present size."""
        if self.total is None:
            raise TypeError("the sampler has no length")
        rest = 0 if self._ended else max(0, self.total - self._seen)
        full, tail = divmod(rest, self.batch_size)
        resized = self._resized or self.batch_size != self._first_size
        joined = tail == 1 < self.batch_size and full > 0 and (not resized or rest <= 3)
        partial = tail > 0 and not self.drop_last and not joined
        return max(self.least_length, len(self.drawn) + full + partial)

    # ---- an interrupted pass

    def pass_state(self) -> dict[str, Any]:
        """What :meth:`resume` needs to draw this pass once more, as plain values."""
        state = self._rng_state
        return {
            "drawn": list(self.drawn),
            "rng_state": None if state is None else base64.b64encode(state.numpy().tobytes()).decode(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Have the passes from now on, until :meth:`forget_resumption`, begin with the batches of an interrupted one.

        Args:
            state: from :meth:`pass_state`; without ``rng_state`` only the sizes are repeated.
        """
        self._replay = list(state["drawn"])
        if state.get("rng_state") is not None:
            content = bytearray(base64.b64decode(state["rng_state"]))
            self._replay_rng_state = torch.frombuffer(content, dtype=torch.uint8)

    def forget_resumption(self) -> None:
        """The interrupted pass has been drawn again: the next one begins anew."""
        self._replay, self._replay_rng_state = (), None

    def indices_of(self, number: int) -> list[int] | None:
        """Indices loaded for batch ``number`` of this pass; forgets earlier batches'. None if it was not drawn."""
        self._indices = {n: indices for n, indices in self._indices.items() if n >= number}
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


def why_fixed(loader: Any) -> str | None:
    """Why the batches of ``loader`` cannot be resized, in words; None: they can."""
    if not isinstance(loader, DataLoader):
        return f"a {type(loader).__name__} is no torch DataLoader"
    if loader.batch_sampler is None:
        return "it has batch_size=None"
    if type(loader.batch_sampler) not in (BatchSampler, ResizableBatchSampler):
        return f"it has a batch sampler of its own, {type(loader.batch_sampler).__name__}"
    return None


def resizable_copy(loader: Any, batch_size: int | None = None) -> DataLoader | None:
    """A shallow copy of ``loader`` that draws through a :class:`ResizableBatchSampler`.

    The copy keeps everything else, and the given object stays as it is. A new DataLoader would lose what a subclass
    adds, and its ``sampler`` attribute, on which ``set_epoch`` relies.

    Args:
        loader: a DataLoader.
        batch_size: first size; None: the loader's own.

    Returns:
        The copy; ``loader`` itself if it is one already; None if its batches cannot be resized, see :func:`why_fixed`.
    """
    if why_fixed(loader) is not None:
        return None
    given = loader.batch_sampler
    if isinstance(given, ResizableBatchSampler):
        return loader
    twin = copy.copy(loader)
    # DataLoader.__setattr__ forbids a new batch_sampler.
    twin.__dict__["batch_sampler"] = ResizableBatchSampler(
        given.sampler, batch_size or given.batch_size, given.drop_last
    )
    twin.__dict__["_iterator"] = None  # persistent workers belong to the given loader
    return twin


def check_indexed(loader: Any) -> None:
    """Refuse a loader for which scoring="cached" cannot know which sample is which.

    Raises:
        ValueError: names what the loader lacks, and what to do.
    """
    lacks = why_fixed(loader) or _why_unindexed(loader.dataset, loader)
    if lacks is None:
        return
    raise ValueError(
        f"scoring='cached' keeps scores by data-set index and chooses in the sampler, which this loader does not "
        f"allow: {lacks}. Use scoring='forward'"
    )


def _why_unindexed(dataset: Any, loader: DataLoader) -> str | None:
    if isinstance(dataset, IterableDataset):
        return f"its data set, a {type(dataset).__name__}, is an IterableDataset"
    if not hasattr(loader.sampler, "__len__"):
        return f"its sampler, a {type(loader.sampler).__name__}, has no length"
    if loader.num_workers > 0 and not getattr(loader, "in_order", True):
        return "it has in_order=False, so its batches come in another order than they were chosen in"
    return None if hasattr(dataset, "__len__") else f"its data set, a {type(dataset).__name__}, has no length"
