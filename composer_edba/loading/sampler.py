"""A DataLoader whose batch size can change at any time; a pass still draws each of its sampler's indices once."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from composer_edba.loading.order import PassOrder, is_streaming

__all__ = ["ResizableBatchSampler", "check_indexed", "resizable_copy", "why_fixed", "why_unindexed"]

Choose = Callable[[int, int, int, "int | None", Callable[[int], Iterable[int]]], tuple[list[int], list[int]]]


class ResizableBatchSampler(Sampler[list[int]]):
    """A BatchSampler whose ``batch_size`` may be assigned at any time.

    A new size shows in the next batch drawn, with W workers and a prefetch factor of P W * P batches ahead of the one
    in use. A last batch of one sample, which batch normalisation cannot train on, is joined to the one before it,
    unless all have one. Once a batch of a pass has another size than the first, what is left of the pass is cut evenly
    into the fewest batches that are no larger: a step on a handful could undo an epoch (docs/method.md).

    Args:
        sampler: yields a pass's indices.
        batch_size: samples in the batches drawn from now on, at least 1.
        drop_last: leave out a last batch that is smaller.

    Attributes:
        drawn: sizes asked for in this pass so far, the prefetch queue included; a new list in each pass.
        least_length: ``len()`` gives at least this many batches.
        agree: ``agree(own)`` gives the length of a pass, from ``own()``, which opens this rank's; None: its own.
        choose: ``choose(number, size, least, rest, own)`` gives the indices drawn for batch ``number`` of a pass, of
            whose indices ``rest`` are left, by ``own(n)``, the next n; and those to load, about ``size`` or none if
            there are not even ``least``. None: the next ``size`` are drawn, and all of them loaded.
        share: how many are loaded of those that ``choose`` draws to load ``size``, in (0, 1]; 1: it draws ``size``.
        follows: the batch sampler that it stands in for: where somebody else sets the ``batch_size`` of that, as
            schedulers of batch sizes do, it is this one's from then on. None: it follows none.
        order: what decides the order of its passes.
    """

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool = False):
        self.order = PassOrder(sampler)
        self.batch_size = self._first_size = batch_size
        self.drop_last, self.least_length = drop_last, 0
        self.agree: Callable[[Callable[[], int | None]], int | None] | None = None
        self.choose: Choose | None = None
        self.share = 1.0
        self.follows: Any = None
        self._followed: int | None = None
        self._source: Iterator[int] = iter(())  # the present pass's indices
        self._replay: Sequence[int] = ()  # sizes of an interrupted pass, which its first batches have once more
        self._replays_end = False  # and it has no others
        self._skipped = 0  # so many of these are not yielded
        self._begin()

    def _begin(self) -> None:
        self.drawn: list[int] = []
        self._ends: list[int] = []  # samples drawn up to the end of each batch
        self._indices: dict[int, list[int]] = {}
        self._checksums: list[int] = []  # of all indices drawn up to the end of each batch
        self._seen, self._left_out, self._ended = 0, 0, False
        self._resized = False  # whether a batch of this pass had another size than the first

    @property
    def sampler(self) -> Any:
        """Yields a pass's indices."""
        return self.order.sampler

    @sampler.setter
    def sampler(self, sampler: Any) -> None:
        self.order.sampler = sampler

    @property
    def total(self) -> int | None:
        """Indices in the present pass, between passes in the next one; None if the sampler has no length."""
        return self.order.length

    def __iter__(self) -> Iterator[list[int]]:
        self._begin()
        self.order.begin()  # at once: a DataLoader's iterator draws its workers' seed before it asks for indices
        return self._batches()

    def follow(self) -> None:
        """Take over the size of the batch sampler that it follows, if that has changed."""
        size = getattr(self.follows, "batch_size", None)
        if size is not None and size != self._followed:
            if self._followed is not None:
                self.batch_size = int(size)
            self._followed = size

    def _open(self) -> int | None:
        self._source = self.order.indices()
        return self.total

    def _batches(self) -> Iterator[list[int]]:
        total = self._open() if self.agree is None else self.agree(self._open)
        indices = self._source
        while total is None or self._seen < total:
            number = len(self.drawn)
            if self._replays_end and number == len(self._replay):
                # Its rest was too small for the size of that time, whatever the size is now.
                self._left_out = len(list(indices))
                break
            self.follow()
            asked = int(self._replay[number] if number < len(self._replay) else self.batch_size)
            rest = None if total is None else total - self._seen
            size = asked if rest is None or self.drop_last else self._fitted(asked, rest)
            own = functools.partial(itertools.islice, indices)
            batch, loaded = (self.choose or _everything)(number, size, size if self.drop_last else 1, rest, own)
            if not loaded:
                self._left_out = len(batch)
                break
            self.drawn.append(asked)
            self._resized = self._resized or asked != self._first_size
            self._seen += len(batch)
            self._ends.append(self._seen)
            self._checksums.append(zlib.crc32(repr(batch).encode(), self._checksums[-1] if number else 0))
            if number >= self._skipped:
                self._indices[number] = loaded
                yield loaded
        self._ended = True

    def _fitted(self, size: int, rest: int) -> int:
        """``size``, or what the next batch has in its place because the ``rest`` of the pass ends soon after it."""
        if self.share < 1:
            expected = rest * self.share
            return math.ceil(expected / 2) if size < expected < 2 * size else size
        if self._resized or size != self._first_size:
            batches = max(1, -(-rest // size))
            return rest if rest <= 3 and size > 1 else -(-rest // batches)  # no batch of one sample
        return rest if size > 1 and rest - size == 1 else size

    def __len__(self) -> int:
        """Batches in a pass: those drawn, and the rest of it at the present size."""
        if self.total is None:
            raise TypeError("the sampler has no length")
        self.follow()
        rest = 0 if self._ended else max(0, self.total - self._seen)
        full, tail = divmod(math.ceil(rest * self.share), self.batch_size)
        resized = self._resized or self.batch_size != self._first_size
        joined = tail == 1 < self.batch_size and full > 0 and (not resized or rest <= 3)
        partial = tail > 0 and not self.drop_last and not joined
        return max(self.least_length, len(self.drawn) + full + partial)

    # ---- an interrupted pass

    def resume(self, drawn: Sequence[int], skipped: int = 0, *, dropped: bool = False) -> None:
        """Have passes begin with batches of the sizes ``drawn``, until :meth:`forget_resumption`.

        Args:
            drawn: as in the interrupted pass.
            skipped: so many of them are not yielded: a data set that goes on in mid-pass by itself has them behind it.
                Default 0.
            dropped: whether all that came after these was left out. Default False.
        """
        self._replay, self._skipped, self._replays_end = list(drawn), skipped, dropped

    def forget_resumption(self, *, begun: bool = True) -> None:
        """The interrupted pass has been drawn again: the next one begins anew. For ``begun`` see PassOrder's."""
        self._replay, self._skipped, self._replays_end = (), 0, False
        self.order.forget_resumption(begun=begun)

    def checksum(self, taken: int) -> int | None:
        """A number that tells the samples of the first ``taken`` batches of this pass from others; None: not drawn."""
        return self._checksums[taken - 1] if 0 < taken <= len(self._checksums) else None

    @property
    def has_dropped(self) -> bool:
        """Whether this pass's end was left out, being smaller than a batch, ahead of the batches in use perhaps."""
        return self._left_out > 0

    def indices_of(self, number: int) -> list[int] | None:
        """Indices loaded for batch ``number`` of this pass; forgets earlier batches'. None if it was not drawn."""
        self._indices = {n: indices for n, indices in self._indices.items() if n >= number}
        return self._indices.pop(number, None)

    @property
    def indices_drawn(self) -> int:
        """Indices drawn in this pass so far, those for the prefetch queue and those left out too."""
        return self._seen + self._left_out

    def seen(self, taken: int) -> int:
        """Samples that were drawn for the first ``taken`` batches of this pass, whether loaded or not."""
        taken = min(taken, len(self._ends))
        return self._ends[taken - 1] if taken > 0 else 0

    def is_last(self, taken: int) -> bool:
        """Whether a pass of which ``taken`` batches were used has no further batch."""
        if self._ended or self.total is None or taken < len(self.drawn):
            return self._ended and taken >= len(self.drawn)
        rest = self.total - self._seen
        return rest <= 0 or (self.drop_last and rest < self.batch_size)


def _everything(
    number: int, size: int, least: int, rest: int | None, own: Callable[[int], Iterable[int]]
) -> tuple[list[int], list[int]]:
    batch = list(own(size))
    return batch, batch if len(batch) >= least else []


def why_fixed(loader: Any) -> str | None:
    """Why the batches of ``loader`` cannot be resized, in words; None: they can."""
    if not isinstance(loader, DataLoader):
        return f"a {type(loader).__name__} is no torch DataLoader"
    if hasattr(loader, "base_dataloader"):
        return "it was prepared by Accelerate, and draws from another loader inside: see composer_edba.accelerate"
    if loader.batch_sampler is None:
        return "it has batch_size=None"
    own = type(loader.batch_sampler)
    stateful = own.__module__ == "torchdata.stateful_dataloader.sampler"
    if own not in (BatchSampler, ResizableBatchSampler) and not stateful:
        return f"it has a batch sampler of its own, {own.__name__}"
    method = getattr(loader.dataset, "batching_method", "random")
    if is_streaming(loader.dataset) and method != "random":
        return f"its StreamingDataset makes up the batches, batching_method={method!r}"
    return None


def resizable_copy(loader: Any, batch_size: int | None = None) -> DataLoader | None:
    """A shallow copy of ``loader`` that draws through a :class:`ResizableBatchSampler`; None: see :func:`why_fixed`.

    A new DataLoader would lose what a subclass adds, and its ``sampler``, on which ``set_epoch`` relies. ``batch_size``
    is the first; None: the loader's own. A ``loader`` that is resizable already is given back, at the size it has.
    """
    if why_fixed(loader) is not None:
        return None
    if isinstance(given := loader.batch_sampler, ResizableBatchSampler):
        return loader
    twin = copy.copy(loader)
    # DataLoader.__setattr__ forbids a new batch_sampler.
    sampler = ResizableBatchSampler(given.sampler, batch_size or given.batch_size, given.drop_last)
    twin.__dict__["batch_sampler"] = sampler
    twin.__dict__["_iterator"] = None  # persistent workers belong to the given loader
    if hasattr(twin, "next_iter_state"):  # and so does what torchdata's loader was to resume
        twin.next_iter_state, twin._initial_iter_for_state_dict = None, False
    sampler.order = PassOrder(given.sampler, twin)
    return twin


def check_indexed(loader: Any) -> None:
    """Raise a ValueError for a loader for which scoring="cached" cannot know which sample is which."""
    if lacks := why_unindexed(loader):
        raise ValueError(
            f"scoring='cached' keeps scores by data-set index and chooses in the sampler, which this loader does not "
            f"allow: {lacks}. Use scoring='forward'"
        )


def why_unindexed(loader: Any) -> str | None:
    """Why it cannot be known which sample of ``loader`` is which when it is drawn, in words; None: it can."""
    if fixed := why_fixed(loader):
        return fixed
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        return f"its data set, a {type(dataset).__name__}, is an IterableDataset"
    if not hasattr(loader.sampler, "__len__"):
        return f"its sampler, a {type(loader.sampler).__name__}, has no length"
    if loader.num_workers > 0 and not getattr(loader, "in_order", True):
        return "it has in_order=False, so its batches come in another order than they were chosen in"
    return None if hasattr(dataset, "__len__") else f"its data set, a {type(dataset).__name__}, has no length"
