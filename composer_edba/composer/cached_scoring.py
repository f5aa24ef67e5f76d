"""scoring="cached" in a Composer Trainer: subsets chosen before they are loaded, from what earlier steps recorded.

A training step records its samples' last-layer gradients, and the batch sampler chooses from a pool of indices by
them. There is no forward but the training's own, and what is not chosen is never loaded.
"""

from __future__ import annotations

import itertools
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from composer.core import Event, Precision, State, get_precision_context
from composer.utils import dist
from torch import Tensor, nn

from composer_edba.engine import step_generator
from composer_edba.loading.ranks import gather_rows
from composer_edba.loading.sampler import ResizableBatchSampler
from composer_edba.method.selector import SubsetSelector, highest_learning_rate
from composer_edba.scoring.cache import ScoreCache
from composer_edba.scoring.forward import mean_loss
from composer_edba.scoring.sample_losses import sample_losses
from composer_edba.scoring.training_scores import TrainingScores

__all__ = ["CachedScoring", "Choice"]


@dataclass(frozen=True)
class Choice:
    """What was chosen for one batch, equal on all ranks.

    Attributes:
        pool: data-set indices that were drawn, int64 (R, B), a row a rank.
        chosen: which of them are loaded, bool (R, B), as many a rank.
        figures: what the choice is to be logged with; empty where the whole pool was taken without choosing.
        recorded: mean number of the step at which the pool's scores were recorded; 0 without figures.
    """

    pool: np.ndarray
    chosen: np.ndarray
    figures: dict[str, float]
    recorded: float

    @property
    def subset(self) -> np.ndarray:
        """Data-set indices that are loaded, (R, k)."""
        return self.pool[self.chosen].reshape(len(self.pool), -1)


class CachedScoring:
    """Records in training steps, chooses in the batch sampler.

    All ranks hold the same scores of all samples, because a DistributedSampler gives a sample to another rank every
    epoch, and make the same choice from the pools of all of them.

    Args:
        selector: chooses the subsets, and says how large the next pools should be.
        selects: ``selects(state, number, pool)``: whether a subset is chosen from the pool for batch ``number`` of the
            pass, which is number ``pool`` of all that were ever drawn.
        size_multiple: ``size_multiple(state, pool_size)``: what the sizes of subsets are multiples of.

    Attributes:
        cache: what is known of each sample; None before the first fit.
        handlers: what to do on which of the Trainer's events.
    """

    def __init__(
        self,
        selector: SubsetSelector,
        selects: Callable[[State, int, int], bool],
        size_multiple: Callable[[State, int], int],
    ):
        self.cache: ScoreCache | None = None
        self._choosing_seconds = 0.0
        self._recording_seconds = 0.0
        self._selector = selector
        self._selects = selects
        self._size_multiple = size_multiple
        self._training = TrainingScores()
        self._sampler: ResizableBatchSampler | None = None
        self._dataset: Any = None
        self._state: State | None = None
        self._pools = 0  # ever drawn, the number of the random stream
        self._passes_to_spin = 0  # passes that the Trainer begins only to restore the samplers
        self._spinning = False
        self._skipped = 0  # first batches of a pass that are drawn again only to be skipped
        self._asked = 0  # batches of this pass that the Trainer has asked for, those it skips included
        self._replay: dict[int, tuple[np.ndarray, dict[str, float], float]] = {}
        self._masks: list[np.ndarray] = []  # what was chosen for each batch drawn in this pass
        self._choices: dict[int, Choice] = {}  # those of the batches that are still to come
        self._recorded_indices: np.ndarray | None = None  # of the samples that this step records; None: it does not
        self._completed = False  # this step has gone through all of its microbatches
        self._factor: Tensor | float = 1.0
        self._mean_of_samples: bool | None = None  # whether the samples' own losses can be had; None: not yet tried
        self._losses: Tensor | None = None
        self.handlers: dict[Event, Callable[[State], None]] = {
            Event.EPOCH_START: self._epoch_start,
            Event.BEFORE_DATALOADER: self._before_dataloader,
            Event.BEFORE_TRAIN_BATCH: self._before_train_batch,
            Event.BEFORE_FORWARD: self._before_forward,
            Event.AFTER_FORWARD: self._after_forward,
            Event.BEFORE_LOSS: self._before_loss,
            Event.AFTER_LOSS: self._after_loss,
            Event.AFTER_TRAIN_BATCH: self._after_train_batch,
            Event.BATCH_END: self._batch_end,
            Event.FIT_END: self._fit_end,
        }

    # ---- FIT_START

    def install(self, sampler: ResizableBatchSampler, state: State, *, spins: bool) -> None:
        """Choose in ``sampler`` from now on.

        Args:
            sampler: that of the Trainer's loader.
            state: the Trainer's state.
            spins: whether the Trainer draws the batches of an interrupted pass once more, to skip them.
        """
        self._training.unwatch()  # left by a fit that failed
        dataset = state.dataloader.dataset
        if self.cache is None or self._dataset is not dataset:
            self.cache = ScoreCache(len(dataset))
        self._dataset = dataset
        self._state = state
        self._sampler = sampler
        self._asked = 0
        self._replay = {}
        self._passes_to_spin = int(state.timestamp.epoch) if spins else 0
        self._skipped = int(state.timestamp.batch_in_epoch) if spins else 0
        sampler.choose = self._choose

    def state_dict(self) -> dict[str, Any]:
        """What is known, and what was chosen in this pass and not yet trained on: plain values and bytes."""
        masks = np.concatenate([mask.ravel() for mask in self._masks]) if self._masks else np.zeros(0, dtype=bool)
        return {
            "cache": None if self.cache is None else self.cache.state_dict(),
            "pools": self._pools,
            "mean_of_samples": self._mean_of_samples,
            "pool_sizes": [mask.shape[1] for mask in self._masks],
            "chosen": zlib.compress(np.packbits(masks).tobytes()),
            "queue": [
                [number, self._choices[number].figures, self._choices[number].recorded]
                for number in sorted(self._choices)
            ],
        }

    def load_state_dict(self, saved: dict[str, Any], state: State) -> None:
        """Take up what :meth:`state_dict` gave; after :meth:`install`."""
        assert self.cache is not None
        if saved["cache"] is not None:
            self.cache.load_state_dict(saved["cache"], _device(state))
        self._pools = saved["pools"]
        self._mean_of_samples = saved["mean_of_samples"]
        if self._skipped == 0:
            return
        queue = {number: (figures, recorded) for number, figures, recorded in saved["queue"]}
        ranks, sizes = dist.get_world_size(), saved["pool_sizes"]
        packed = np.frombuffer(zlib.decompress(saved["chosen"]), dtype=np.uint8)
        bits, start = np.unpackbits(packed, count=ranks * sum(sizes)).astype(bool), 0
        for number, size in enumerate(sizes):
            mask = bits[start : start + ranks * size].reshape(ranks, size)
            self._replay[number] = (mask, *queue.get(number, ({}, 0.0)))
            start += ranks * size

    # ---- choosing, inside of the loader's iterator

    def _choose(self, number: int, pool: list[int]) -> list[int]:
        began = time.perf_counter()
        if number == 0:
            self._spinning = self._passes_to_spin > 0
            if self._spinning:
                self._passes_to_spin -= 1
            else:
                self._masks, self._choices = [], {}
        if self._spinning:
            return pool
        pools = self._pools_of_all_ranks(pool)
        if number in self._replay:
            chosen, figures, recorded = self._replay[number]
        elif number < self._skipped:
            chosen, figures, recorded = np.ones(pools.shape, dtype=bool), {}, 0.0
        else:
            chosen, figures, recorded = self._select(number, pools)
        self._masks.append(chosen)
        self._choices[number] = Choice(pools, chosen, figures, recorded)
        self._choosing_seconds += time.perf_counter() - began
        return list(itertools.compress(pool, chosen[dist.get_global_rank()].tolist()))

    def _pools_of_all_ranks(self, pool: list[int]) -> np.ndarray:
        """Data-set indices, (R, B): the ranks advance their samplers in step, and their pools are equally large."""
        assert self.cache is not None
        assert self._state is not None
        mine = np.asarray(pool)
        if mine.dtype.kind not in "iu" or mine.min() < 0 or mine.max() >= self.cache.size:
            raise ValueError(
                f"the train_dataloader's sampler gives {pool[0]!r} and the like: scoring='cached' needs indices from 0 "
                f"to {self.cache.size - 1}, the data set's length less 1. Use scoring='forward'"
            )
        mine = mine.astype(np.int64)
        ranks = dist.get_world_size()
        if ranks == 1:
            return mine.reshape(1, -1)
        rows = gather_rows(torch.from_numpy(mine).to(_device(self._state)), [len(mine)] * ranks)
        return rows.cpu().numpy().reshape(ranks, -1)

    def _select(self, number: int, pools: np.ndarray) -> tuple[np.ndarray, dict[str, float], float]:
        state, cache = self._state, self.cache
        assert state is not None
        assert cache is not None
        assert self._sampler is not None
        chosen, indices = np.ones(pools.shape, dtype=bool), pools.ravel()
        stream = self._pools
        self._pools += 1
        if not self._selects(state, number, stream) or not cache.knows(indices):
            return chosen, {}, 0.0
        scores = cache.scores(indices, _device(state))
        ranks, size = pools.shape
        selection = self._selector.select(
            scores.inner_products(),
            scores.model_metric,
            step_generator(int(state.rank_zero_seed), stream),
            size_multiple=self._size_multiple(state, size),
            group_sizes=[size] * ranks,
            learning_rate=highest_learning_rate(state.optimizers),
        )
        self._selector.warn_once_of_nonfinite(selection, f"at pool {stream}")
        if self._selector.policy is not None:
            self._sampler.batch_size = self._selector.policy.size
        chosen = np.zeros(indices.shape, dtype=bool)
        chosen[selection.indices.numpy()] = True
        return chosen.reshape(pools.shape), self._selector.figures(selection), float(cache.steps[indices].mean())

    # ---- a training step

    def take(self, samples: int) -> Choice:
        """The choice behind the batch that the Trainer has just got.

        Args:
            samples: how many it holds.

        Raises:
            ValueError: if they are not those that were chosen.
        """
        self._replay, self._skipped = {}, 0  # the interrupted pass has been drawn again
        number = self._asked - 1
        for earlier in [n for n in self._choices if n < number]:  # skipped
            del self._choices[earlier]
        choice = self._choices.pop(number)
        if samples != choice.subset.shape[1]:
            raise ValueError(
                f"the batch holds {samples} samples, and {choice.subset.shape[1]} were drawn for it: scoring='cached' "
                "needs to know which sample is which, so collate_fn and batch_transforms must keep every sample, in "
                "its place. Use scoring='forward'"
            )
        return choice

    def record(self, indices: np.ndarray | None, layer: nn.Module | None) -> None:
        """Have this step record what it finds out.

        Args:
            indices: data-set indices of its samples, (R, k); None: it does not record.
            layer: the last layer; None where nothing is recorded.
        """
        self._recorded_indices, self._completed = indices, False
        if layer is None:
            self._training.unwatch()
        else:
            self._training.watch(layer)

    def take_seconds(self) -> tuple[float, float]:
        """How long choosing and recording took since the last call; without the hooks inside of the forward."""
        seconds = self._choosing_seconds, self._recording_seconds
        self._choosing_seconds = self._recording_seconds = 0.0
        return seconds

    @property
    def _recording(self) -> bool:
        # Of several runs through the closure (SAM's) the first one counts: its weights are those of the step.
        return self._recorded_indices is not None and not self._completed

    def _epoch_start(self, state: State) -> None:
        self._asked = 0
        self._replay, self._skipped = {}, 0  # of a pass that was resumed at its very end

    def _before_dataloader(self, state: State) -> None:
        self._asked += 1

    def _before_train_batch(self, state: State) -> None:
        if self._recording:
            self._training.begin_step()

    def _before_forward(self, state: State) -> None:
        if self._recording:
            self._training.begin_forward()

    def _after_forward(self, state: State) -> None:
        if self._recording:
            self._training.end_forward()

    def _before_loss(self, state: State) -> None:
        """Before the loss itself, so that what it may leave in the model is its own."""
        if not self._recording:
            return
        self._losses, samples = None, self._training.samples
        if samples is None or self._mean_of_samples is False:
            return
        model: Any = state.model.module if state.is_model_ddp else state.model
        with get_precision_context(state.precision, state.precision_config):
            self._losses = sample_losses(model.loss, state.outputs, state.batch, samples)
        if self._losses is None:
            self._mean_of_samples = False

    def _after_loss(self, state: State) -> None:
        if not self._recording:
            return
        loss = mean_loss(state.loss).detach()
        if self._losses is not None and self._mean_of_samples is None:
            mean, wanted = float(self._losses.mean()), float(loss)
            if math.isfinite(wanted):
                self._mean_of_samples = abs(mean - wanted) <= 1e-3 * abs(wanted) + 1e-6
        self._training.add_losses(self._losses if self._losses is not None and self._mean_of_samples else loss)

    def _after_train_batch(self, state: State) -> None:
        if not self._recording:
            return
        self._completed = True
        assert self._recorded_indices is not None
        # Composer weighs the mean of each microbatch by its share of the batch.
        self._factor = float(self._recorded_indices.shape[1])
        if state.precision == Precision.AMP_FP16 and state.scaler is not None:
            self._factor = self._factor / state.scaler.scale(torch.ones((), device=_device(state)))

    def _batch_end(self, state: State) -> None:
        if self._recorded_indices is None:
            return
        began = time.perf_counter()
        assert self.cache is not None
        indices, self._recorded_indices = self._recorded_indices, None
        ranks, samples = indices.shape
        rows = self._training.rows(self._factor)
        if rows is not None:
            if len(rows) != samples:
                raise ValueError(
                    f"{len(rows)} samples went through last_layer in a batch of {samples}: scoring='cached' needs one "
                    "row a sample. Use scoring='forward'"
                )
            self.cache.record(
                indices.ravel(),
                gather_rows(rows, [samples] * ranks),
                int(state.timestamp.batch) - 1,
                features=self._training.features,
                bias=self._training.bias,
            )
        self._recording_seconds += time.perf_counter() - began

    def _fit_end(self, state: State) -> None:
        self._training.unwatch()
        if self._sampler is not None:
            self._sampler.choose = None


def _device(state: State) -> torch.device:
    return state.device.tensor_to_device(torch.empty(0)).device
