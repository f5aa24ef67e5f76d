"""Scores that training remembers: a step records what its samples' last-layer gradients tell, and the batch sampler
chooses by that from pools of indices. There is no forward but the training's own; what is not chosen is never loaded.
"""

from __future__ import annotations

import abc
import itertools
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from composer_edba.loading.ranks import Attempt, gather_rows, rank, world_size
from composer_edba.scoring.training_scores import TrainingScores

__all__ = ["Choice", "Draw", "Memory", "Picked", "RememberedScores"]

Draw = Callable[[int], np.ndarray]


class Memory(Protocol):
    """What is known of each of ``size`` samples, by data-set index."""

    size: int

    @property
    def bytes(self) -> int:
        """Bytes that it takes; 0 before the first recording."""

    def reserve(self, rows: Tensor, features: int) -> None:
        """Have room for what :meth:`record` is given."""

    def record(self, indices: np.ndarray, rows: Tensor, step: int, *, features: int, bias: bool) -> None:
        """Take in what a step recorded of samples, int64 (B,): (B, columns), as TrainingScores gives them."""

    def state_dict(self) -> dict[str, Any] | None:
        """Everything that was recorded, as plain values and bytes; None if nothing was."""

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take up what :meth:`state_dict` gave, for a model on ``device``."""


class ChoosingSampler(Protocol):
    """What :class:`~composer_edba.loading.sampler.ResizableBatchSampler` has for who chooses in it."""

    agree: Callable[[Callable[[], int | None]], int | None] | None
    choose: Callable[..., tuple[list[int], list[int]]] | None
    share: float
    batch_size: int


@dataclass(frozen=True)
class Picked:
    """Pools that were drawn, a row a rank, and what was chosen of them.

    Attributes:
        pool: data-set indices that were drawn, int64 (R, B).
        chosen: which of them are loaded, bool (R, B); their number is a multiple of R.
        figures: what is logged of the choice; empty where the whole pool was taken without choosing.
        recorded: mean step at which the pool's scores were recorded; 0: unknown.
    """

    pool: np.ndarray
    chosen: np.ndarray
    figures: dict[str, float]
    recorded: float = 0.0


@dataclass(frozen=True)
class Choice(Picked):
    """What was chosen for one batch, equal on all ranks."""

    @cached_property
    def subset(self) -> np.ndarray:
        """Data-set indices that are loaded, (R, k): each rank's own first; where it has fewer than k, others'."""
        size, own = self.chosen.sum() // len(self.pool), [p[c] for p, c in zip(self.pool, self.chosen, strict=True)]
        spare, rows = np.concatenate([row[size:] for row in own]), []
        for row in own:
            lacking = max(0, size - len(row))
            rows.append(np.concatenate([row[:size], spare[:lacking]]))
            spare = spare[lacking:]
        return np.stack(rows)


class RememberedScores(abc.ABC):
    """Chooses in the batch sampler, by what it records in training steps.

    All ranks hold the same of all samples, because a DistributedSampler gives a sample to another rank every epoch, and
    make the same choice from the pools of all of them.

    Args:
        scheduled: ``scheduled(pool)``: whether a subset is chosen of pool number ``pool`` of all that were ever drawn.
        training: what records in a step.

    Attributes:
        cache: what is known of each sample; None before :meth:`install`.
        tells_loss: whether :meth:`end_step` tells the mean loss of what it keeps, too.
        gives_up: whether rows that are not one a sample are no error.
        fits: False: there were such, on some rank, in the last step.
    """

    tells_loss = gives_up = False
    fits = True

    def __init__(self, scheduled: Callable[[int], bool], training: TrainingScores):
        self.cache: Any = None
        self._scheduled, self._training = scheduled, training
        self._sampler: ChoosingSampler | None = None
        self._dataset: Any = None
        self._device = torch.device("cpu")
        self._pools = 0  # ever drawn, the number of the random stream
        self._passes_to_spin = 0  # passes that are begun only to restore the samplers
        self._spinning = self._completed = False  # in such a pass; this step has gone through all its microbatches
        self._skipped = 0  # first batches of a pass that are drawn again only to be skipped
        self._replay: dict[int, tuple[np.ndarray, dict[str, float], float]] = {}
        self._masks: list[np.ndarray] = []  # what was chosen for each batch drawn in this pass
        self._choices: dict[int, Choice] = {}  # those of the batches that are still to come
        self._recorded_indices: np.ndarray | None = None  # of the samples that this step records; None: it does not
        self._keep = True  # whether what it records goes into the cache
        self._left_out = False  # this rank's loop did not train on the batch
        self._seconds = [0.0, 0.0]  # choosing, recording

    @abc.abstractmethod
    def _new_memory(self, size: int) -> Memory:
        """One for a data set of ``size`` samples."""

    @abc.abstractmethod
    def _pick(self, number: int, size: int, least: int, rest: int | None, draw: Draw) -> Picked:
        """Draw pool ``number`` of the run by ``draw(n)``, the next (R, n) indices or fewer at the end; choose from it.

        Args:
            number: counts all pools of the run.
            size: samples that a rank's batch is to have.
            least: if a rank cannot have as many, what is chosen is of no matter.
            rest: samples that a rank has left in this pass; None: unknown.
            draw: see above.
        """

    # ---- the loader

    def install(
        self, sampler: ChoosingSampler, dataset: Any, device: torch.device, *, skipped: int = 0, spun: int = 0
    ) -> None:
        """Choose in ``sampler`` from now on.

        Args:
            sampler, dataset, device: the loader's sampler and data set, and the model's device.
            skipped: batches of an interrupted pass that are drawn once more, to be skipped. Default 0.
            spun: passes before it that are begun only to restore the samplers. Default 0.
        """
        self._training.unwatch()  # left by a fit that failed
        if self.cache is None or self._dataset is not dataset:
            self.cache = self._new_memory(len(dataset))
        self._dataset, self._sampler, self._device = dataset, sampler, device
        self._replay, self._skipped, self._passes_to_spin = {}, skipped, spun
        sampler.agree, sampler.choose = self._agree, self._choose

    def unhook(self) -> None:
        """Leave no hook on the model until the next step that records."""
        self._training.unhook()

    def uninstall(self) -> None:
        """Leave the sampler and the model as they were."""
        self._training.unwatch()
        if self._sampler is not None:
            self._sampler.agree = self._sampler.choose = None
            self._sampler.share = 1.0

    def state_dict(self) -> dict[str, Any]:
        """What is known, and what was chosen in this pass and not yet trained on: plain values and bytes."""
        masks = np.concatenate([mask.ravel() for mask in self._masks]) if self._masks else np.zeros(0, dtype=bool)
        return {
            "cache": None if self.cache is None else self.cache.state_dict(),
            "pools": self._pools,
            "mean_of_samples": self._training.mean_of_samples,
            "pool_sizes": [mask.shape[1] for mask in self._masks],
            "chosen": zlib.compress(np.packbits(masks).tobytes()),
            "queue": [[number, choice.figures, choice.recorded] for number, choice in sorted(self._choices.items())],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; after :meth:`install`."""
        if saved["cache"] is not None:
            self.cache.load_state_dict(saved["cache"], self._device)
        self._pools = saved["pools"]
        self._training.mean_of_samples = saved["mean_of_samples"]
        if self._skipped == 0:
            return
        queue = {number: (figures, recorded) for number, figures, recorded in saved["queue"]}
        packed = np.frombuffer(zlib.decompress(saved["chosen"]), dtype=np.uint8)
        ranks, sizes = world_size(), saved["pool_sizes"]
        bits = np.unpackbits(packed, count=ranks * sum(sizes)).astype(bool)
        for number, (size, end) in enumerate(zip(sizes, itertools.accumulate(sizes), strict=True)):
            mask = bits[ranks * (end - size) : ranks * end].reshape(ranks, size)
            self._replay[number] = (mask, *queue.get(number, ({}, 0.0)))

    # ---- choosing, inside of the loader's iterator

    def _agree(self, own: Callable[[], int | None]) -> int | None:
        """The length of a pass: if a rank's sampler gives less than it said, all ranks' passes end with it."""
        with Attempt(1) as mine:
            mine.numbers = [own() or 0]
        return min(mine.exchange(self._device)[0])

    def _draw(self, size: int, own: Callable[[int], Iterable[int]]) -> np.ndarray:
        """At most ``size`` indices of each rank, int64 (R, n): all advance their samplers in step.

        They are equally many: if a rank's sampler comes to its end before it said, all ranks' passes do.
        """
        with Attempt(size + 1) as mine:
            pool = np.asarray(drawn := list(own(size)))
            if drawn and (pool.dtype.kind not in "iu" or pool.min() < 0 or pool.max() >= self.cache.size):
                raise ValueError(
                    f"the loader's sampler gives {drawn[0]!r} and the like: scoring='cached' needs indices from 0 to "
                    f"{self.cache.size - 1}, the data set's length less 1. Use scoring='forward'"
                )
            if world_size() == 1:
                return pool.astype(np.int64).reshape(1, -1)
            mine.numbers = (len(drawn), *map(int, drawn), *[0] * (size - len(drawn)))
        lengths, *columns = mine.exchange(self._device)
        return np.array(columns[: min(lengths)], dtype=np.int64).reshape(-1, world_size()).T

    def _choose(
        self, number: int, size: int, least: int, rest: int | None, own: Callable[[int], Iterable[int]]
    ) -> tuple[list[int], list[int]]:
        """See :class:`~composer_edba.loading.sampler.ResizableBatchSampler`."""
        began = time.perf_counter()
        if number == 0:
            self._spinning = self._passes_to_spin > 0
            self._passes_to_spin -= self._spinning
            if not self._spinning:
                self._masks, self._choices = [], {}
        if self._spinning or number in self._replay or number < self._skipped:
            told = None if self._spinning else self._replay.get(number)
            pools = self._draw(size if told is None else told[0].shape[1], own)
            picked = Picked(pools, np.ones(pools.shape, dtype=bool), {}) if told is None else Picked(pools, *told)
        else:
            picked = self._pick(self._pools, size, least, rest, lambda size: self._draw(size, own))
        pool = picked.pool[rank()].tolist()
        if len(pool) < least:
            return pool, []
        choice = Choice(picked.pool, picked.chosen, picked.figures, picked.recorded)
        if not self._spinning:
            self._pools += number not in self._replay and number >= self._skipped
            self._masks.append(picked.chosen)
            self._choices[number] = choice
        loaded = choice.subset[rank()].tolist()
        self._seconds[0] += time.perf_counter() - began
        return pool, loaded

    # ---- a training step

    def take(self, number: int) -> Choice:
        """The choice behind batch ``number``, from 0, of the pass, which the loop has just got."""
        self.forget_resumption()
        choice = self._choices[number]
        self._choices = {later: each for later, each in self._choices.items() if later > number}  # others: skipped
        return choice

    def forget_resumption(self) -> None:
        """The interrupted pass has been drawn again, or was resumed at its very end."""
        self._replay, self._skipped = {}, 0

    def record(self, indices: np.ndarray | None, layer: nn.Module | None, keep: bool = True) -> None:
        """Have this step record what the last layer gives for its samples, data-set indices (R, k); None: nothing.

        With ``keep=False`` :meth:`end_step` tells their mean loss, and nothing of them is kept.
        """
        self._recorded_indices, self._completed = indices, False
        self._keep, self._left_out = keep, False
        if layer is None:
            self._training.unwatch()
        else:
            self._training.watch(layer)

    @property
    def recorder(self) -> TrainingScores | None:
        """What the step's microbatches go through; None: it does not record, or has gone through all of them."""
        # Of several runs through a step's microbatches (SAM's) the first counts: its weights are those of the step.
        return None if self._recorded_indices is None or self._completed else self._training

    @property
    def samples(self) -> int | None:
        """Samples of this step that this rank records; None: it does not record."""
        return None if self._recorded_indices is None else self._recorded_indices.shape[1]

    def leave_out(self) -> None:
        """This rank's loop did not train on the step's batch, so there is nothing to record of it."""
        self._left_out = self._completed = True

    def end_microbatches(self) -> None:
        """All microbatches of the step have had their forward."""
        self._completed = self._recorded_indices is not None

    def take_seconds(self) -> tuple[float, float]:
        """How long choosing and recording took since the last call; without the hooks inside of the forward."""
        (choosing, recording), self._seconds = self._seconds, [0.0, 0.0]
        return choosing, recording

    def end_step(self, step: int, factor: Tensor | float | None = None) -> float | None:
        """Enter what step number ``step`` found out; the mean loss of its samples where that is wanted.

        For ``factor`` see :meth:`~composer_edba.scoring.training_scores.TrainingScores.rows`.
        """
        if self._recorded_indices is None:
            return None
        loss, began = None, time.perf_counter()
        training, indices, self._recorded_indices, rows = self._training, self._recorded_indices, None, None
        with Attempt(3) as mine:
            rows = None if self._left_out else training.rows(factor)
            fits = rows is None or len(rows) == indices.shape[1]
            if rows is not None:
                if not fits and not self.gives_up:
                    raise ValueError(
                        f"{len(rows)} samples went through last_layer in a batch of {indices.shape[1]}: "
                        "scoring='cached' needs one row a sample. Use scoring='forward'"
                    )
                if self._keep and fits:
                    self.cache.reserve(rows, training.features)
                mine.numbers = (*rows.shape, True) if fits else (0, 0, False)
            else:
                mine.numbers = (0, 0, True)
        counts, columns, alike = mine.exchange(self._device)
        self.fits = all(alike)
        if any(counts) and self.fits:
            rows = torch.empty(0, max(columns), device=self._device) if rows is None else rows
            known, rows = indices[np.array(counts) > 0].ravel(), gather_rows(rows, counts)
            if self._keep:
                self.cache.record(known, rows, step, features=training.features, bias=training.bias)
            if self.tells_loss or not self._keep:
                loss = float(rows[:, -1].mean())
        if self._left_out:
            training.unwatch()
        self._seconds[1] += time.perf_counter() - began
        return loss
