"""The pools that a run draws from its loader: resized on demand, counted, and drawn once more after an interruption."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from composer_edba.loading.distinct import DistinctSamples
from composer_edba.loading.ranks import Attempt, check_alike, gather_rows, rank_sizes, world_size
from composer_edba.loading.sampler import ResizableBatchSampler, length_of, resizable_copy, why_fixed

__all__ = ["Pools"]


class Pools:
    """Owns the drawing from one loader at a time; messages call it ``loader_name``, and who resizes ``owner``."""

    sampler: ResizableBatchSampler | None = None  # the one in use; None if the loader's batches cannot be resized
    total: int | None = None  # samples in a pass over all ranks, as many from each as the shortest has; None if unknown
    shortest: int | None = None  # samples in the pass of the rank that has fewest; None if unknown
    uneven = False  # whether the ranks' passes differ in length
    taken = 0  # batches of the present pass that were trained on or skipped
    distinct: DistinctSamples | None = None  # the samples that were ever trained on; None if there are no indices
    _loader: Any = None
    _seen = 0  # samples in the batches taken, where no sampler tells
    _pass: list[int] | None = None  # the sampler's list of the pass that `taken` counts in
    _resumed = False  # the next pass that is drawn is an interrupted one

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
        self.end_pass()
        if twin is None:
            self.sampler = self._loader = self.total = self.shortest = self.distinct = None
            self.uneven = False
            return None
        assert isinstance(twin.batch_sampler, ResizableBatchSampler)
        self.sampler, self._loader = twin.batch_sampler, twin
        self.measure(device)
        size = None if self.sampler.total is None else length_of(twin.dataset)
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

    def measure(self, device: torch.device) -> None:
        """Find out how long a pass is now; on uneven ranks it ends with the shortest one's."""
        assert self.sampler is not None
        # Without a total it is an IterableDataset, perhaps with a length.
        own = length_of(self._loader.dataset) if self.sampler.total is None else self.sampler.total
        totals = rank_sizes(-1 if own is None else own, device)
        shortest = min(totals)
        self.uneven = shortest < max(totals)
        self.shortest, self.total = (None, None) if shortest < 0 else (shortest, shortest * len(totals))

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

    def resize(self, size: int | None) -> None:
        """Set the size of the batches drawn from now on, in samples a rank; None: leave it."""
        if self.sampler is not None and size is not None:
            self.sampler.batch_size = size

    # ---- the present pass

    @property
    def seen(self) -> int:
        """Samples that this rank drew for the batches taken, whether loaded or not."""
        return self._seen if self.sampler is None else self.sampler.seen(self.taken)

    @property
    def is_over(self) -> bool:
        """Whether all batches of the present pass were taken; False where that cannot be known."""
        sampler = self.sampler
        return sampler is not None and sampler.drawn is self._pass and sampler.is_last(self.taken)

    def next_batch(self, size: int) -> int:
        """Number in its pass, from 0, of the batch of ``size`` samples that comes now."""
        if self.sampler is not None and self.sampler.drawn is not self._pass:  # it has begun a pass
            if not self._resumed:
                self.taken = self._seen = 0
            self._pass = self.sampler.drawn
            self.sampler.forget_resumption()
        self._resumed = False
        self.taken += 1
        self._seen += size
        return self.taken - 1

    def end_pass(self) -> None:
        """Forget the present pass and what was to be resumed: the loader's next iterator begins another one."""
        self._pass, self.taken, self._seen, self._resumed = None, 0, 0, False
        if self.sampler is not None:
            self.sampler.forget_resumption()

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

    def state_dict(self) -> dict[str, Any]:
        """The present pass, and what was ever trained on, as plain values."""
        return {
            "samples": self.total,
            "ranks": world_size(),
            "taken": 0 if self.is_over else self.taken,
            "pass": None if self.sampler is None or self._pass is None else self.sampler.pass_state(),
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
        if taken == 0:
            return
        then, now = (saved["samples"], saved["ranks"]), (self.total, world_size())
        if then != now:
            raise ValueError(
                f"the checkpoint lies inside of a pass over {_pass_words(*then)}, and {self.loader_name} makes one "
                f"over {_pass_words(*now)}: what is left of the pass cannot be told. Resume with the same data set, "
                "sampler and number of ranks, or from a checkpoint that was saved at an epoch's end"
            )
        if self.sampler is not None and saved["pass"] is not None:
            self.sampler.resume(saved["pass"])
        self._resumed, self.taken = True, taken if redrawn else 0

    def repeat(self, taken: int, size: int | None) -> None:
        """Have a pass drawn once more that no checkpoint tells of: in an earlier fit's sizes, or all of ``size``."""
        if self.sampler is not None and size is not None and taken > 0:
            self.sampler.resume({"drawn": list(self.sampler.drawn) or [size] * taken})
            self._resumed, self.taken = True, taken

    def rest_of_pass(self, loader: Any) -> Any:
        """What to iterate over to go on inside of an interrupted pass: ``loader``, less what was taken before.

        Batches that were taken are loaded again, from the random state the pass began with, and thrown away.
        """
        return _RestOfPass(self, loader) if self._resumed else loader


class _RestOfPass:
    def __init__(self, pools: Pools, loader: Any):
        self._pools, self._loader = pools, loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        now, batches = torch.get_rng_state(), iter(self._loader)
        if self._pools._resumed:
            for _ in range(self._pools.taken):
                next(batches)
            torch.set_rng_state(now)
        return batches


def _pass_words(samples: int | None, ranks: int) -> str:
    return f"{'an unknown number of' if samples is None else samples} samples on {ranks} rank{'s' * (ranks != 1)}"
