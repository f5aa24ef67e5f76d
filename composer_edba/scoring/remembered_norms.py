"""Pools of which the samples that carry the gradient are loaded, by the norms that training remembers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from composer_edba.loading.ranks import world_size
from composer_edba.scoring.norms import NormMemory
from composer_edba.scoring.remembered import Draw, Memory, Picked, RememberedScores
from composer_edba.scoring.training_scores import TrainingScores

__all__ = ["RememberedNorms"]

_SHARE_DECAY = 0.9  # of the running mean of how many of a pool are chosen
# A pool is first drawn too small by so many standard deviations of what is chosen of it, and then filled up: of one too
# large more would have to be left out.
_DEVIATIONS = 3.0
_LEAST_REST = 0.25  # of a batch: what is left of a pass is none of its own if it is expected to give less


class RememberedNorms(RememberedScores):
    """Leaves out the samples of each pool that carried least of its gradient when they were last trained on.

    Refilled, pools are drawn until as many samples are chosen as a batch has, so that all batches have the loader's
    size. Of the samples that a pass ends with, as many are added as were left out last, so that no small batch is left.

    Args:
        settings: all of them.
        scheduled, training: see :class:`~composer_edba.scoring.remembered.RememberedScores`.
        generator: ``generator(pool)``: the random stream of pool number ``pool``.
        size_multiple: ``size_multiple(size)``: what sizes of subsets of so many samples are to be multiples of.
        refill: whether batches are refilled.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        scheduled: Callable[[int], bool],
        training: TrainingScores,
        generator: Callable[[int], torch.Generator],
        size_multiple: Callable[[int], int],
        refill: bool,
    ):
        super().__init__(scheduled, training)
        self._settings, self._generator, self._size_multiple = settings, generator, size_multiple
        self._refill = refill
        self._share = self._yield = 1.0  # running means: how many of a pool that is chosen from, and of any, are loaded

    @override
    def _new_memory(self, size: int) -> Memory:
        return NormMemory(size)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "shares": [self._share, self._yield]}

    @override
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        super().load_state_dict(saved)
        self._share, self._yield = saved.get("shares", (1.0, 1.0))
        self._tell_sampler()

    @override
    def install(self, *args: Any, **arguments: Any) -> None:
        super().install(*args, **arguments)
        self._tell_sampler()

    def _note_yield(self, share: float) -> None:
        self._yield = _SHARE_DECAY * self._yield + (1 - _SHARE_DECAY) * share
        self._tell_sampler()

    def _tell_sampler(self) -> None:
        if self._sampler is not None and self._refill:
            self._sampler.share = self._yield

    @override
    def _pick(self, number: int, size: int, least: int, rest: int | None, draw: Draw) -> Picked:
        if not self._scheduled(number):
            pools = draw(size)
            self._note_yield(1.0)
            return Picked(pools, np.ones(pools.shape, dtype=bool), {})
        if self._refill:
            assert rest is not None
            pools, chosen = self._fill(size, least, rest, draw)
        else:
            pools = draw(size)
            multiple = math.lcm(self._settings["size_multiple"], self._size_multiple(size))
            chosen = self._chosen(pools, size, size_multiple=multiple)
        indices, mask = pools.ravel(), np.zeros(pools.shape, dtype=bool)
        if self._settings["criterion"] == "random_mass" and len(chosen):
            chosen = torch.randperm(len(indices), generator=self._generator(number)).numpy()[: len(chosen)]
        mask.flat[chosen] = True
        if pools.shape[1] < least or not len(indices):
            return Picked(pools, mask, {})
        self.cache.enter(indices, mask.ravel())
        if not self.cache.knows_any(indices):
            return Picked(pools, mask, {})
        return Picked(pools, mask, {"left_out_mass": self.cache.left_out_mass(indices, mask.ravel())})

    def _chosen(self, pools: np.ndarray, size: int, **bounds: Any) -> np.ndarray:
        """Positions in the raveled pools of what is chosen for batches of ``size``, as many a rank; bounds a rank."""
        if not pools.size:
            return np.zeros(0, dtype=np.int64)
        bounds = {"min_subset_size": min(size, self._settings["min_subset_size"]), "size_multiple": 1, **bounds}
        bounds = {name: bound * len(pools) for name, bound in bounds.items()}
        return self.cache.choose(pools.ravel(), self._settings["left_out"], self._settings["recheck"], **bounds)

    def _fill(self, size: int, least: int, rest: int, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """Pools of which ``size`` samples a rank are chosen, and these; fewer at the end of a pass."""
        least_share = 1 - _DEVIATIONS / math.sqrt(size * world_size())
        pools = draw(min(rest, max(size, int(least_share * size / self._share))))
        while True:
            chosen = self._chosen(pools, size, max_subset_size=size)
            left, missing = rest - pools.shape[1], size - len(chosen) // len(pools)
            if left <= 0 or missing <= 0:
                break
            more = draw(min(left, missing))
            pools = np.concatenate([pools, more], axis=1)
            if more.shape[1] < min(left, missing):  # a sampler has come to its end before it said
                rest = pools.shape[1]
        drawn = pools.shape[1]
        if left > 0 and drawn > 0:
            share = min(1.0, size / drawn)
            self._share = _SHARE_DECAY * self._share + (1 - _SHARE_DECAY) * share
            self._note_yield(share)
        if least == 1 and 0 < left * self._share < _LEAST_REST * size:
            pools = np.concatenate([pools, draw(left)], axis=1)
            left = 0
        if left <= 0:
            chosen = self._chosen(pools, size, min_subset_size=min(size, pools.shape[1]), max_subset_size=size)
        return pools, chosen
