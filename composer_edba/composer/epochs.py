"""The Trainer's loader made resizable, with ``state.dataloader_len`` kept true through every epoch.

Composer reads the number of batches in an epoch once, cuts the epoch off there, and converts '2ep' to batches with it.
When the batch size changes that number is wrong, so it is managed here, event by event.
"""

from __future__ import annotations

import base64
import warnings
from typing import Any

import torch
from composer.core import State, Time, TimeUnit
from composer.utils import dist
from torch.utils.data import DataLoader

from composer_edba.composer.rank_gather import rank_sizes
from composer_edba.loading.sampler import ResizableBatchSampler, resizable_copy

__all__ = ["TrainerLoader"]


class TrainerLoader:
    """Owns the resizing of one Trainer's train loader.

    Attributes:
        sampler: the batch sampler in use; None if the loader cannot be resized.
    """

    def __init__(self) -> None:
        self.sampler: ResizableBatchSampler | None = None
        self._manages_length = False
        self._written: Time[int] | None = None  # the length that was last set here
        self._samples: int | None = None  # in an epoch, over all ranks
        self._shortest: int | None = None  # the same of the rank that has fewest
        self._uneven = False  # whether the ranks' passes differ in length

    @property
    def resizable(self) -> bool:
        """Whether the batches of the loader can be resized."""
        return self.sampler is not None

    @property
    def uneven(self) -> bool:
        """Whether the ranks' passes differ in length."""
        return self._uneven

    @property
    def largest_batch(self) -> int | None:
        """Samples that each rank's pass holds at least, which no batch can exceed; None if unknown."""
        return None if self.sampler is None or self.sampler.total is None else self._shortest

    # ---- FIT_START

    def install(self, state: State) -> int | None:
        """Replace ``state``'s loader by a resizable copy; a loader that is one already stays.

        Returns:
            The loader's batch size; None if it cannot be resized, which is warned of.

        Raises:
            ValueError: if the loader is empty.
        """
        loader = state.dataloader
        _refuse_empty(loader)
        # A length that this object wrote in an earlier fit is no wish of the user's.
        wrote_it = self._manages_length and state.dataloader_len == self._written
        subset_batches = None if wrote_it else _subset_batches(state)
        twin = resizable_copy(loader)
        if twin is None:
            self.sampler, self._manages_length, self._samples, self._shortest = None, False, None, None
            warnings.warn(
                f"EDBA cannot resize the batches of this train_dataloader ({_why_fixed(loader)}): it selects within "
                "the batches it is given",
                stacklevel=2,
            )
            return None
        self.sampler = twin.batch_sampler  # type: ignore[assignment]
        assert isinstance(self.sampler, ResizableBatchSampler)
        self.measure_pass(state)
        self._manages_length = subset_batches is None and self._samples is not None
        if subset_batches is not None:
            # A growing batch shortens the pass: without this the setter would clamp the user's number, and warn.
            self.sampler.least_length = subset_batches
        if twin is not loader:
            state.set_dataloader(twin, state.dataloader_label, -1 if subset_batches is None else subset_batches)
            state.train_dataloader = twin  # pyright: ignore[reportAttributeAccessIssue]
        self.open_epoch(state)
        return self.sampler.batch_size

    def state_dict(self) -> dict[str, Any]:
        """Sizes drawn in this pass, the random state it began with and what it is a pass over, as plain values."""
        data = {"samples": self._samples, "ranks": dist.get_world_size()}
        if self.sampler is None:
            return {"drawn": [], "rng_state": None, **data}
        state = self.sampler.pass_rng_state
        return {
            "drawn": list(self.sampler.drawn),
            "rng_state": None if state is None else base64.b64encode(state.numpy().tobytes()).decode(),
            **data,
        }

    def load_state_dict(self, saved: dict[str, Any], state: State) -> None:
        """Have the interrupted pass, if ``state`` is in one, draw the same batches once more.

        Composer restores the random state of the checkpoint only after that. What it begins the pass with is right
        where nothing but the samplers drew from the global stream, so not with dropout on a CPU.

        Raises:
            ValueError: if the pass cannot be drawn again because the data or the ranks are others.
        """
        if int(state.timestamp.batch_in_epoch) == 0:
            return
        ranks = dist.get_world_size()
        if (saved["samples"], saved["ranks"]) != (self._samples, ranks):
            raise ValueError(
                f"the checkpoint lies inside of epoch {int(state.timestamp.epoch)}, a pass over "
                f"{_pass_words(saved['samples'], saved['ranks'])}, and train_dataloader makes one over "
                f"{_pass_words(self._samples, ranks)}: what is left of the epoch cannot be told. Resume with the same "
                "data set, sampler and number of ranks, or from a checkpoint that was saved at an epoch's end"
            )
        if self.sampler is not None:
            self.sampler.replay = saved["drawn"]
            if saved["rng_state"] is not None:
                rng_state = bytearray(base64.b64decode(saved["rng_state"]))
                self.sampler.replay_rng_state = torch.frombuffer(rng_state, dtype=torch.uint8)

    def replay_without_state(self, size: int | None, state: State) -> None:
        """Have a pass that ``state`` is inside of draw its batches once more, where no checkpoint says how.

        Those of an earlier fit have the sizes that were drawn. Otherwise they were drawn without EDBA, by the loader
        itself, in batches of ``size``: also if EDBA's bounds do not hold that size.
        """
        taken = int(state.timestamp.batch_in_epoch)
        if self.sampler is not None and size is not None and taken > 0:
            self.sampler.replay = list(self.sampler.drawn) or [size] * taken

    def resize(self, size: int) -> None:
        """Set the size of the batches drawn from now on."""
        if self.sampler is not None:
            self.sampler.batch_size = size

    # ---- the events of an epoch

    def open_epoch(self, state: State) -> None:
        """FIT_START (a resumed epoch has no EPOCH_START), EPOCH_START: no bound while the iterator is being made."""
        if self._manages_length:
            state._dataloader_len = None

    def forget_replay(self) -> None:
        """EPOCH_START, and the first batch after a resumption: the interrupted pass has been drawn again."""
        if self.sampler is not None:
            self.sampler.replay = ()
            self.sampler.replay_rng_state = None

    def estimate_length(self, state: State) -> None:
        """BEFORE_DATALOADER, AFTER_TRAIN_BATCH: batches per epoch, averaged over training so far.

        With this average Composer's '2ep' -> batches comes out where two epochs are over.
        """
        if not self._manages_length:
            return
        assert self.sampler is not None
        samples = self._samples
        assert samples is not None
        timestamp = state.timestamp
        drawn = int(timestamp.sample_in_epoch)
        if self.sampler.choose is not None:  # the Trainer sees chosen samples only
            drawn = self.sampler.seen(int(timestamp.batch_in_epoch)) * dist.get_world_size()
        epochs = int(timestamp.epoch) + min(1.0, drawn / samples)
        if int(timestamp.batch) > 0 and epochs > 0:
            length = _batches_per_epoch(int(timestamp.batch), epochs)
        else:
            length = max(1, -(-(samples // dist.get_world_size()) // self.sampler.batch_size))
        self._set_length(state, length)

    def close_epoch(self, state: State) -> None:
        """BATCH_END: with a duration in samples or batches the trainer ends an epoch only if the length says so."""
        if not self._manages_length:
            return
        assert self.sampler is not None
        taken = int(state.timestamp.batch_in_epoch)
        if self._pass_is_over(state, taken):
            self._set_length(state, taken)
        elif state.dataloader_len is not None and int(state.dataloader_len) == taken:
            self._set_length(state, taken + 1)

    def _set_length(self, state: State, length: int) -> None:
        # The private field: the public setter clamps, and warns.
        assert self.sampler is not None
        self._written = Time(length, TimeUnit.BATCH)
        state._dataloader_len = self._written  # type: ignore[assignment]
        # After an evaluation the trainer puts the length back through the setter.
        self.sampler.least_length = length

    def _pass_is_over(self, state: State, taken: int) -> bool:
        assert self.sampler is not None
        if self.sampler.total is None:  # an IterableDataset with a length
            assert self._samples is not None
            return int(state.timestamp.sample_in_epoch) >= self._samples
        if not self._uneven:
            return self.sampler.is_last(taken)
        # The trainer stops all ranks when the first runs out, and all must agree that the epoch has ended.
        last = state.device.tensor_to_device(torch.tensor(int(self.sampler.is_last(taken))))
        dist.all_reduce(last, "MAX")
        return bool(last)

    def measure_pass(self, state: State) -> None:
        """FIT_START, and EPOCH_START where passes differ: set the number of samples in an epoch.

        On uneven ranks it ends with the shortest one's pass.
        """
        assert self.sampler is not None
        total = self.sampler.total
        if total is None:
            try:
                total = len(state.dataloader.dataset)
            except TypeError:
                total = -1
        totals = rank_sizes(total, state.device)
        self._uneven = len(set(totals)) > 1
        self._shortest = min(totals)
        self._samples = self._shortest * len(totals) if self._shortest >= 0 else None


def _batches_per_epoch(batches: int, epochs: float) -> int:
    """``batches / epochs`` as a whole number, such that m epochs are over when m times that many batches are.

    Plain rounding would let a milestone at '2ep' come and go with each batch around it. With m whole epochs over, a
    length L tells right if m L <= batches < (m + 1) L. Where no whole number does, after more epochs than there are
    batches in one, the nearest is taken.
    """
    nearest = max(1, round(batches / epochs))
    whole = int(epochs)
    if whole == 0:
        return max(nearest, batches + 1)
    least, most = batches // (whole + 1) + 1, batches // whole
    return min(max(nearest, least), most) if least <= most else nearest


def _subset_batches(state: State) -> int | None:
    """The user's train_subset_num_batches, which shows only as a length below the loader's."""
    try:
        full = len(state.dataloader)
    except TypeError:
        full = None
    if state.dataloader_len is None:
        return None
    length = int(state.dataloader_len)
    return length if full is None or length < full else None


def _pass_words(samples: int | None, ranks: int) -> str:
    return f"{'an unknown number of' if samples is None else samples} samples on {ranks} rank{'s' * (ranks != 1)}"


def _refuse_empty(loader: Any) -> None:
    try:
        empty = len(loader) == 0
    except TypeError:
        return
    if empty:
        reason = ""
        if isinstance(loader, DataLoader) and loader.drop_last:
            reason = f" (drop_last=True with batch_size={loader.batch_size}: is the data set smaller than one batch?)"
        raise ValueError(f"train_dataloader is empty: it gives no batch{reason}. EDBA needs at least one sample")


def _why_fixed(loader: Any) -> str:
    if not isinstance(loader, DataLoader):
        return f"a {type(loader).__name__} is no torch DataLoader"
    if loader.batch_sampler is None:
        return "it has batch_size=None"
    return f"it has a batch sampler of its own, {type(loader.batch_sampler).__name__}"
