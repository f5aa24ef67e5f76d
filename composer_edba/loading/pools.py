"""The pools that a run draws from its loader: resized on demand, counted, and drawn once more after an interruption."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from composer_edba.loading.distinct import DistinctSamples
from composer_edba.loading.order import is_streaming, length_of
from composer_edba.loading.ranks import (
    Attempt,
    check_alike,
    gather_objects,
    gather_rows,
    rank,
    rank_sizes,
    world_size,
)
from composer_edba.loading.sampler import ResizableBatchSampler, resizable_copy, why_fixed
from composer_edba.loading.streams import preserved_random_streams

__all__ = ["Pools", "planned_updates"]


class Pools:
    """Owns the drawing from one loader at a time; messages call it ``loader_name``, and who resizes ``owner``."""

    sampler: ResizableBatchSampler | None = None  # the one in use; None if the loader's batches cannot be resized
    total: int | None = None  # samples in a pass over all ranks, as many from each as the shortest has; None if unknown
    shortest: int | None = None  # samples in the pass of the rank that has fewest; None if unknown
    uneven = False  # whether the ranks' passes differ in length
    taken = 0  # batches of the present pass that were trained on or skipped
    distinct: DistinctSamples | None = None  # the samples that were ever trained on; None if there are no indices
    seeks = False  # whether the loop has the data set itself go on inside of an interrupted pass
    rewinds = False  # whether that would give other samples, so that the data set begins the pass anew: to be skipped
    _given: Any = None
    _loader: Any = None
    _seen = 0  # samples in the batches taken, where no sampler tells
    _pass: list[int] | None = None  # the sampler's list of the pass that `taken` counts in
    _resumed = False  # the next pass that is drawn is an interrupted one
    _orders: list[dict[str, Any]] | None = None  # what decides the order of the present or last pass, a rank each
    _lengths: list[int]  # of the ranks' passes, -1 where there is none
    _loaded: Mapping[str, Any] | None = None  # a state's pass, until one begins
    _told_undrawn = _told_rule = False
    _given_size: int | None = None  # of the given loader's batches, as was last seen

    def __init__(self, owner: str = "EDBA", loader_name: str = "the loader"):
        self.owner, self.loader_name = owner, loader_name

    # ---- the loader

    def draw_from(self, loader: Any, device: torch.device) -> DataLoader | None:
        """Draw from now on from the resizable copy that this returns; None if ``loader`` has none.

        A loader that is resizable already is its own copy; an empty one raises a ValueError. ``device`` is where the
        process group's backend wants its tensors.
        """
        with Attempt(1) as mine:
            self._refuse_empty(loader)
            twin = resizable_copy(loader)
            mine.numbers = [twin is not None]
        check_alike(mine.exchange(device)[0], f"whether the batches of {self.loader_name} can be resized")
        self._given = loader
        self.end_pass()
        if twin is None:
            self.sampler = self._loader = self.total = self.shortest = self.distinct = None
            self.uneven = False
            return None
        assert isinstance(twin.batch_sampler, ResizableBatchSampler)
        if self.sampler is not twin.batch_sampler:
            self._orders = None
        self.sampler, self._loader = twin.batch_sampler, twin
        self.measure(device)
        in_order = twin.num_workers == 0 or getattr(twin, "in_order", True)
        size = length_of(twin.dataset) if in_order and self.sampler.total is not None else None
        if size is None or self.distinct is None or self.distinct.size != size:
            self.distinct = None if size is None else DistinctSamples(size)
        return twin

    def warn_of_fixed_batches(self, loader: Any) -> None:
        """Say why the batches of ``loader`` keep their size."""
        warnings.warn(
            f"{self.owner} cannot resize the batches of {self.loader_name} ({why_fixed(loader)}): it selects within "
            "the batches it is given",
            stacklevel=3,
        )

    @property
    def _own_length(self) -> int:
        """Samples in this rank's pass; -1: it has no length."""
        assert self.sampler is not None
        # Without a total it is an IterableDataset, perhaps with a length.
        own = length_of(self._loader.dataset) if self.sampler.total is None else self.sampler.total
        return -1 if own is None else own

    def measure(self, device: torch.device) -> None:
        """Find out how long a pass is now, as is done anew whenever one begins."""
        self._take_lengths(rank_sizes(self._own_length, device))

    def _take_lengths(self, lengths: list[int]) -> None:
        # On uneven ranks passes end with the shortest one's.
        self._lengths = lengths
        shortest = min(lengths)
        self.uneven = shortest < max(lengths)
        self.shortest, self.total = (None, None) if shortest < 0 else (shortest, shortest * len(lengths))

    def _refuse_empty(self, loader: Any) -> None:
        if length_of(loader) != 0:
            return
        reason = f" (batch_size={loader.batch_size})" if isinstance(loader, DataLoader) else ""
        if reason and loader.drop_last:
            reason = f" (drop_last=True with batch_size={loader.batch_size}: is the data set smaller than one batch?)"
        raise ValueError(
            f"{self.loader_name} is empty: it gives no batch{reason}. {self.owner} needs at least one sample"
        )

    # ---- the size

    def bounds(self, least: int, most: int) -> tuple[int, int]:
        """Smallest and largest batch, ``least`` and ``most`` where a pass holds as many."""
        maximum = most if self.sampler is None or self.sampler.total is None else min(most, self.shortest or most)
        return min(least, maximum), maximum

    def warn_of_first_size(self, first_size: int, least: int, most: int) -> None:
        """Warn of a loader whose batches lie outside of the bounds that the user gave."""
        if not least <= first_size <= most:
            minimum, maximum = self.bounds(least, most)
            warnings.warn(
                f"{self.loader_name}'s batch size {first_size} lies outside of min_batch_size={least} and "
                f"max_batch_size={most}: training starts at {min(max(first_size, minimum), maximum)}. Give "
                f"{self.owner} bounds that hold {first_size} to start there",
                stacklevel=4,
            )

    def follow_given(self) -> None:
        """Have the sizes be those of the given loader's batch sampler, whoever sets them."""
        given = getattr(self._given, "batch_sampler", None)
        if self.sampler is not None and given is not self.sampler:
            self.sampler.follows = given
            self.sampler.follow()

    def warn_of_another_rule(self) -> None:
        """Say once that somebody else sets the given loader's batch size, to no effect."""
        given = getattr(self._given, "batch_sampler", None)
        size = None if given is self.sampler else getattr(given, "batch_size", None)  # a further fit is given the copy
        before, self._given_size = self._given_size, size
        if before is not None and size not in (None, before) and not self._told_rule:
            self._told_rule = True
            warnings.warn(
                f"somebody sets {self.loader_name}'s batch size, to {size}, which has no effect: {self.owner}'s own "
                "batch_size_policy sizes its batches. With batch_size_policy='fixed' they would follow",
                stacklevel=4,
            )

    def resize(self, size: int | None) -> None:
        """Set the size of the batches drawn from now on, in samples a rank; None: leave it."""
        if self.sampler is not None and size is not None:
            self.sampler.batch_size = size

    def set_epoch(self, number: int) -> None:
        """Tell sampler and data set, if they want to know, that pass ``number`` comes, from 0."""
        told: list[Any] = [
            None if self.sampler is None else self.sampler.sampler,
            getattr(self._given, "dataset", None),
        ]
        for each in told:
            if hasattr(each, "set_epoch"):
                each.set_epoch(number)

    # ---- the present pass

    @property
    def seen(self) -> int:
        """Samples that this rank drew for the batches taken, whether loaded or not."""
        if self.sampler is None or self.sampler.total is None:  # workers may give less of an IterableDataset than asked
            return self._seen
        return self.sampler.seen(self.taken)

    @property
    def is_over(self) -> bool:
        """Whether all batches of the present pass were taken; False where that cannot be known."""
        sampler = self.sampler
        if sampler is None or sampler.drawn is not self._pass:
            return False
        if sampler.total is None and self.shortest is not None:
            return self.is_rest_over(self.shortest - self.seen)
        return sampler.is_last(self.taken)

    @property
    def batches_left(self) -> int:
        """An estimate of how many come in the present pass after those taken, at the present size."""
        sampler = self.sampler
        assert sampler is not None
        assert self.shortest is not None
        rest = max(0, self.shortest - self.seen) * sampler.share / sampler.batch_size
        return math.floor(rest) if sampler.drop_last else math.ceil(rest)

    def is_rest_over(self, rest: int) -> bool:
        """Whether no batch comes of the ``rest`` of an IterableDataset's samples on this rank."""
        assert self.sampler is not None
        return rest <= 0 or (self.sampler.drop_last and rest < self.sampler.batch_size)

    def notice_pass(self) -> None:
        """A batch has come: if it is a pass's first, all ranks tell each other about this pass; a collective call."""
        if self.sampler is None or self.sampler.drawn is self._pass:
            return
        if not self._resumed:
            self.taken = self._seen = 0
        self._pass = self.sampler.drawn
        self._begin_pass()
        self.sampler.forget_resumption()

    def next_batch(self, size: int) -> int:
        """Number in its pass, from 0, of the batch of ``size`` samples that comes now."""
        self.notice_pass()
        self._resumed = False
        self.taken += 1
        if self.sampler is not None and self.taken > len(self.sampler.drawn) and not self._told_undrawn:
            self._told_undrawn = True
            warnings.warn(
                f"{self.loader_name}, a {type(self._given).__name__}, gives batches that it did not draw through its "
                f"batch_sampler: {self.owner} cannot resize them, or know which samples they hold",
                stacklevel=4,
            )
        self._seen += size
        return self.taken - 1

    def _begin_pass(self) -> None:
        """Tell all ranks what decides this one's order: a checkpoint may hold the state of one of them alone."""
        assert self.sampler is not None
        saved, self._loaded = self._loaded, None
        checksum = self.sampler.checksum(self.taken)
        told = gather_objects((self.sampler.order.state_dict(), self._own_length, checksum))
        self._orders = [order for order, _, _ in told]
        if hasattr(self._given, "next_iter_state"):  # torchdata's: its state_dict() is to tell of this pass
            self._given._iterator = self._loader._iterator
        self._take_lengths([length for _, length, _ in told])
        known = saved is not None and self.taken > 0 and saved["checksum"] is not None
        if saved is not None and known and told[saved["rank"]][2] != saved["checksum"]:
            raise ValueError(
                f"{self.loader_name} does not draw the samples of the interrupted pass again, so what is left of it "
                "cannot be told: resume with the same data set and sampler, of the same seed and epoch (set_epoch), or "
                "from a checkpoint that was saved at an epoch's end"
            )

    def end_pass(self) -> None:
        """Forget the present pass and what was to be resumed: the loader's next iterator begins another one."""
        self._pass, self.taken, self._seen, self._resumed, self.rewinds = None, 0, 0, False, False
        if self.sampler is not None:
            self.sampler.forget_resumption(begun=False)

    def indices(self, number: int, size: int) -> Tensor | None:
        """Data-set indices of batch ``number``, int64 (``size``,); None if they are not known."""
        found = None if self.sampler is None else self.sampler.indices_of(number)
        known = self.distinct is not None and found is not None and len(found) == size
        return torch.tensor(found) if known else None

    def mark(self, indices: Tensor | None, sizes: list[int], device: torch.device) -> None:
        """Count samples as trained on: this rank's ``indices``, of ``sizes`` on all ranks; 0 where they are unknown."""
        if any(sizes):
            indices = torch.empty(0, dtype=torch.int64) if indices is None else indices
            gathered = indices if len(sizes) == 1 else gather_rows(indices.to(device), sizes).cpu()
            if self.distinct is not None:
                self.distinct.add(gathered.numpy())

    # ---- resuming

    @property
    def _samples(self) -> int | None:
        """What must be the same to go on inside of a pass: its samples, or where these are noted the data set's."""
        noted = self.sampler is not None and self.sampler.order.keeps_indices
        return length_of(self._loader.dataset) if noted else self.total

    def state_dict(self) -> dict[str, Any]:
        """The present pass, and what was ever trained on, as plain values."""
        taken, sampler = 0 if self.is_over else self.taken, self.sampler
        began = self._loaded
        if sampler is not None and self._orders is not None and began is None:
            began = {"drawn": list(sampler.drawn), "dropped": sampler.has_dropped, "orders": self._orders}
            began |= {"indices": sampler.indices_drawn, "lengths": self._lengths}
            began |= {"rank": rank(), "checksum": sampler.checksum(taken)}
        return {
            "samples": self._samples,
            "ranks": world_size(),
            "taken": taken,
            "seen": self._seen,
            "pass": began,
            "distinct": None if self.distinct is None else self.distinct.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any], taken: int, redrawn: bool = True) -> None:
        """Take up what :meth:`state_dict` gave, after :meth:`draw_from`; a ValueError if data or ranks are others.

        Args:
            saved: the state.
            taken: batches of the interrupted pass that were taken; 0: the next pass begins anew.
            redrawn: whether whoever iterates over the loader draws these batches once more, to skip them.
        """
        if self.distinct is not None and saved["distinct"] is not None:
            self.distinct.load_state_dict(saved["distinct"])
        sampler = self.sampler
        self._loaded = began = None if sampler is None else saved["pass"]
        if taken == 0:
            if sampler is not None and began is not None and rank() < len(began["orders"]):
                sampler.order.resume(began["orders"][rank()], over=began["indices"])
            return
        then, now = (saved["samples"], saved["ranks"]), (self._samples, world_size())
        if then != now:
            raise ValueError(
                f"the checkpoint lies inside of a pass over {_pass_words(*then)}, and {self.loader_name} makes one "
                f"over {_pass_words(*now)}: what is left of the pass cannot be told. Resume with the same data set, "
                "sampler and number of ranks, or from a checkpoint that was saved at an epoch's end"
            )
        if sampler is not None and began is not None:
            self._take_lengths(began["lengths"])  # a sampler's may be others in each pass
            dropped = began.get("dropped", False)  # 0.2.0 did not say
            redrawn = self._resume(taken, began["drawn"], dropped, began["orders"][rank()], self.seeks) or redrawn
        self._resumed, self.taken = True, taken if redrawn else 0
        self._seen = saved.get("seen", 0) if redrawn else 0  # 0.2 did not say

    def repeat(self, taken: int, size: int | None) -> None:
        """Have a pass drawn once more that no checkpoint tells of: in an earlier fit's sizes, or all of ``size``."""
        if self.sampler is None or size is None or taken == 0:
            return
        order = None if self._orders is None else self._orders[rank()]
        drawn, dropped = list(self.sampler.drawn), self.sampler.has_dropped
        self._resume(taken, drawn or [size] * taken, dropped, order, self.seeks and order is None)
        self._resumed, self.taken = True, taken

    def _resume(
        self, taken: int, drawn: list[int], dropped: bool, order: Mapping[str, Any] | None, seeks: bool
    ) -> bool:
        """Have the pass drawn in the sizes ``drawn``, and no others if its rest ``dropped`` out.

        Returns whether its first ``taken`` batches are known to be skipped.
        """
        assert self.sampler is not None
        dataset = self._loader.dataset
        sought = seeks and isinstance(dataset, IterableDataset)
        if sought and order is not None and is_streaming(dataset) and self._loader.num_workers > 0:
            # Its workers were dealt samples in batches of its own size: other batches took no first part of the pass.
            sought = set(drawn[:taken]) <= {dataset.batch_size}
        self.rewinds = self.seeks and not sought and isinstance(dataset, IterableDataset)
        self.sampler.resume(drawn, taken if sought else 0, dropped=dropped)
        if order is not None:
            self.sampler.order.resume(order, sought=sought)
        return sought or self.rewinds

    def rest_of_pass(self, loader: Any) -> Any:
        """What to iterate over to go on inside of an interrupted pass: ``loader``, less what was taken before.

        Batches that were taken are loaded again and thrown away; the global random streams do not notice.
        """
        if self.sampler is not None:
            self.sampler.order.draws_again = False
        return _RestOfPass(self, loader) if self._resumed else loader


_NOTHING = object()


class _RestOfPass:
    def __init__(self, pools: Pools, loader: Any):
        self._pools, self._loader = pools, loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        pools, given = self._pools, self._pools._given
        if not pools._resumed or pools.taken == 0:
            return iter(self._loader)
        if getattr(given, "next_iter_state", None) is not None:  # torchdata's skips them by itself
            self._loader.load_state_dict(given.next_iter_state)
            given.next_iter_state, batches = None, iter(self._loader)
            if batches._num_yielded != pools.taken:
                raise ValueError(
                    f"the state of {pools.loader_name} lies after batch {batches._num_yielded} of a pass, and that of "
                    f"{pools.owner} after batch {pools.taken}: load states that were saved together"
                )
            return batches
        sampler = pools.sampler
        stream = sampler.order.stream() if sampler is not None and sampler.order.is_iterable else None
        with preserved_random_streams():
            if stream is not None:  # by which the data set itself may have shuffled when the pass began
                torch.set_rng_state(stream)
            batches = iter(self._loader)
            for _ in range(self._pools.taken):
                next(batches, None)
        first = next(batches, _NOTHING)
        if first is not _NOTHING:
            return itertools.chain([first], batches)
        self._pools.end_pass()  # it was over
        return iter(())


def _pass_words(samples: int | None, ranks: int) -> str:
    return f"{'an unknown number of' if samples is None else samples} samples on {ranks} rank{'s' * (ranks != 1)}"


def planned_updates(passes: float, updates_per_pass: int) -> int:
    """How many updates plain training has made after so many passes over the data.

    A schedule that steps with every update is to have made as many: it then decays as planned, though batches were
    refilled, or have grown.
    """
    return int(passes * updates_per_pass + 1e-6)
