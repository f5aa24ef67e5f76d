"""Scores that training remembers: a step records its samples' last-layer gradients, and the batch sampler chooses by
them from a pool of indices. There is no forward but the training's own, and what is not chosen is never loaded.
"""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from composer_edba.loading.ranks import Attempt, check_alike, gather_rows, rank, world_size
from composer_edba.loading.sampler import ResizableBatchSampler
from composer_edba.method.choice import Selection
from composer_edba.scoring.cache import ScoreCache
from composer_edba.scoring.forward import PoolScores
from composer_edba.scoring.training_scores import TrainingScores

__all__ = ["Choice", "RememberedScores"]

Decide = Callable[[PoolScores, list[int], int, str], Selection]
Scheduled = Callable[[int], bool]
Figures = Callable[[Selection], dict[str, float]]


@dataclass(frozen=True)
class Choice:
    """What was chosen for one batch, equal on all ranks.

    Attributes:
        pool: data-set indices that were drawn, int64 (R, B), a row a rank.
        chosen: which of them are loaded, bool (R, B), as many a rank.
        figures: what is logged of the choice; empty where the whole pool was taken without choosing.
        recorded: mean step at which the pool's scores were recorded; 0 without figures.
    """

    pool: np.ndarray
    chosen: np.ndarray
    figures: dict[str, float]
    recorded: float

    @property
    def subset(self) -> np.ndarray:
        """Data-set indices that are loaded, (R, k)."""
        return self.pool[self.chosen].reshape(len(self.pool), -1)


class RememberedScores:
    """Chooses in the batch sampler, by what it records in training steps.

    All ranks hold the same scores of all samples, because a DistributedSampler gives a sample to another rank every
    epoch, and make the same choice from the pools of all of them.

    Args:
        decide: ``decide(scores, sizes, pool, where)``: the subset of pool number ``pool`` of all that were ever drawn,
            by the scores of all ranks' samples, ``sizes`` of each; ``where`` says where for a warning.
        scheduled: ``scheduled(pool)``: whether a subset of it is chosen.
        figures: what is logged of a selection.
        derives: see :class:`~composer_edba.scoring.training_scores.TrainingScores`.

    Attributes:
        cache: what is known of each sample; None before :meth:`install`.
    """

    def __init__(self, decide: Decide, scheduled: Scheduled, figures: Figures, derives: bool):
        self.cache: ScoreCache | None = None
        self._decide, self._scheduled, self._figures = decide, scheduled, figures
        self._training = TrainingScores(derives)
        self._sampler: ResizableBatchSampler | None = None
        self._dataset: Any = None
        self._device = torch.device("cpu")
        self._pools = 0  # ever drawn, the number of the random stream
        self._passes_to_spin = 0  # passes that are begun only to restore the samplers
        self._spinning = self._completed = False  # in such a pass; this step has gone through all its microbatches
        self._skipped = 0  # first batches of a pass that are drawn again only to be skipped
        self._replay: dict[int, tuple[np.ndarray, dict[str, float], float]] = {}
        self._pools_drawn: np.ndarray = np.zeros((1, 0), dtype=np.int64)  # the last ones, of all ranks
        self._masks: list[np.ndarray] = []  # what was chosen for each batch drawn in this pass
        self._choices: dict[int, Choice] = {}  # those of the batches that are still to come
        self._recorded_indices: np.ndarray | None = None  # of the samples that this step records; None: it does not
        self._keep = True  # whether what it records goes into the cache
        self._left_out = False  # this rank's loop did not train on the batch
        self._seconds = [0.0, 0.0]  # choosing, recording

    # ---- the loader

    def install(
        self, sampler: ResizableBatchSampler, dataset: Any, device: torch.device, *, skipped: int = 0, spun: int = 0
    ) -> None:
        """Choose in ``sampler`` from now on.

        Args:
            sampler, dataset, device: the loader's sampler and data set, and the model's device.
            skipped: batches of an interrupted pass that are drawn once more, to be skipped. Default 0.
            spun: passes before it that are begun only to restore the samplers. Default 0.
        """
        self._training.unwatch()  # left by a fit that failed
        if self.cache is None or self._dataset is not dataset:
            self.cache = ScoreCache(len(dataset))
        self._dataset, self._sampler, self._device = dataset, sampler, device
        self._replay, self._skipped, self._passes_to_spin = {}, skipped, spun
        sampler.agree, sampler.draw, sampler.choose = self._agree, self._draw, self._choose

    def unhook(self) -> None:
        """Leave no hook on the model until the next step that records."""
        self._training.unhook()

    def uninstall(self) -> None:
        """Leave the sampler and the model as they were."""
        self._training.unwatch()
        if self._sampler is not None:
            self._sampler.agree = self._sampler.draw = self._sampler.choose = None

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
        assert self.cache is not None
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

    def _draw(self, size: int, own: Callable[[], Iterable[int]]) -> list[int]:
        """A pool of at most ``size``, with those of the other ranks, which advance their samplers in step.

        They are equally large: if a rank's sampler comes to its end before it said, all ranks' passes do.
        """
        assert self.cache is not None
        with Attempt(size + 1) as mine:
            pool, began = np.asarray(drawn := list(own())), time.perf_counter()
            if drawn and (pool.dtype.kind not in "iu" or pool.min() < 0 or pool.max() >= self.cache.size):
                raise ValueError(
                    f"the loader's sampler gives {drawn[0]!r} and the like: scoring='cached' needs indices from 0 to "
                    f"{self.cache.size - 1}, the data set's length less 1. Use scoring='forward'"
                )
            mine.numbers = (len(drawn), *map(int, drawn), *[0] * (size - len(drawn)))
        lengths, *columns = mine.exchange(self._device)
        self._pools_drawn = np.array(columns[: min(lengths)], dtype=np.int64).reshape(-1, world_size()).T
        self._seconds[0] += time.perf_counter() - began
        return drawn[: min(lengths)]

    def _choose(self, number: int, pool: list[int]) -> list[int]:
        began = time.perf_counter()
        if number == 0:
            self._spinning = self._passes_to_spin > 0
            self._passes_to_spin -= self._spinning
            if not self._spinning:
                self._masks, self._choices = [], {}
        if self._spinning:
            return pool
        pools = self._pools_drawn
        if number in self._replay:
            chosen, figures, recorded = self._replay[number]
        elif number < self._skipped:
            chosen, figures, recorded = np.ones(pools.shape, dtype=bool), {}, 0.0
        else:
            chosen, figures, recorded = self._select(pools)
        self._masks.append(chosen)
        self._choices[number] = Choice(pools, chosen, figures, recorded)
        self._seconds[0] += time.perf_counter() - began
        return list(itertools.compress(pool, chosen[rank()].tolist()))

    def _select(self, pools: np.ndarray) -> tuple[np.ndarray, dict[str, float], float]:
        cache, pool, indices = self.cache, self._pools, pools.ravel()
        assert cache is not None
        self._pools += 1
        if not self._scheduled(pool) or not cache.knows(indices):
            return np.ones(pools.shape, dtype=bool), {}, 0.0
        ranks, size = pools.shape
        with Attempt(1) as mine:
            selection = self._decide(cache.scores(indices, self._device), [size] * ranks, pool, f"at pool {pool}")
            mine.numbers = [0 if self._sampler is None else self._sampler.batch_size]
        check_alike(mine.exchange(self._device)[0], "the size that batch_size_policy gives")
        chosen = np.zeros(pools.shape, dtype=bool)
        chosen.flat[selection.indices.numpy()] = True
        return chosen, self._figures(selection), float(cache.steps[indices].mean())

    # ---- a training step

    def take(self, number: int, samples: int) -> Choice:
        """The choice behind batch ``number``, from 0, of the pass, which the loop has just got, of ``samples`` samples.

        Raises:
            ValueError: if they are not those that were chosen.
        """
        self.forget_resumption()
        choice = self._choices[number]
        self._choices = {later: each for later, each in self._choices.items() if later > number}  # others: skipped
        if samples != choice.subset.shape[1]:
            raise ValueError(
                f"the batch holds {samples} samples, and {choice.subset.shape[1]} were drawn for it: scoring='cached' "
                "needs to know which sample is which, so collate_fn and batch transforms must keep every sample, in "
                "its place. Use scoring='forward'"
            )
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
        """Enter what step number ``step`` found out; the mean loss of its samples where that alone was wanted.

        For ``factor`` see :meth:`~composer_edba.scoring.training_scores.TrainingScores.rows`.
        """
        if self._recorded_indices is None:
            return None
        loss, began = None, time.perf_counter()
        assert self.cache is not None
        training, indices, self._recorded_indices, rows = self._training, self._recorded_indices, None, None
        with Attempt(2) as mine:
            rows = None if self._left_out else training.rows(factor)
            if rows is not None:
                if len(rows) != indices.shape[1]:
                    raise ValueError(
                        f"{len(rows)} samples went through last_layer in a batch of {indices.shape[1]}: "
                        "scoring='cached' needs one row a sample. Use scoring='forward'"
                    )
                if self._keep:
                    self.cache.reserve(rows, training.features)
                mine.numbers = rows.shape
        counts, columns = mine.exchange(self._device)
        if any(counts):
            rows = torch.empty(0, max(columns), device=self._device) if rows is None else rows
            known, rows = indices[np.array(counts) > 0].ravel(), gather_rows(rows, counts)
            if self._keep:
                self.cache.record(known, rows, step, features=training.features, bias=training.bias)
            else:
                loss = float(rows[:, -1].mean())
        if self._left_out:
            training.unwatch()
        self._seconds[1] += time.perf_counter() - began
        return loss
