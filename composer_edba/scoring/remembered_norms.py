"""Pools of which the samples that carry the gradient are loaded, by the norms that training remembers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from composer_edba.method.gradient_mass import GrowingPool
from composer_edba.scoring.norms import NormMemory
from composer_edba.scoring.remembered import Draw, Memory, Picked, RememberedScores
from composer_edba.scoring.training_scores import TrainingScores

__all__ = ["RememberedNorms"]

_SHARE_DECAY = 0.9  # of the running mean of how many of a pool are chosen
_LEAST_REST = 0.1  # of a batch: what is left of a pass is none of its own if it is expected to give less


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
        self._share = 1.0  # running mean of how many of a pool are loaded

    @override
    def _new_memory(self, size: int) -> Memory:
        return NormMemory(size)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "share": self._share}

    @override
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        super().load_state_dict(saved)
        self._share = saved.get("share", 1.0)
        self._tell_sampler()

    @override
    def install(self, *args: Any, **arguments: Any) -> None:
        super().install(*args, **arguments)
        self._tell_sampler()

    def _note_share(self, share: float) -> None:
        self._share = _SHARE_DECAY * self._share + (1 - _SHARE_DECAY) * share
        self._tell_sampler()

    def _tell_sampler(self) -> None:
        if self._sampler is not None and self._refill:
            self._sampler.share = self._share

    @override
    def _pick(self, number: int, size: int, least: int, rest: int | None, draw: Draw) -> Picked:
        if not self._scheduled(number):
            pools = draw(size)
            self._note_share(1.0)
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
        growing, parts, drawn, missing = GrowingPool(self._settings["left_out"]), [], 0, size
        while rest > 0 and missing > 0:
            # Of what is drawn for the missing ones no more than these can be chosen: each draw adds one at most.
            parts.append(draw(wanted := min(rest, missing)))
            if (found := parts[-1].shape[1]) < wanted:  # a sampler has come to its end before it said
                rest = found
            drawn, rest = drawn + found, rest - found
            kept = growing.add(*self.cache.known(parts[-1].ravel(), self._settings["recheck"]))
            missing = size - kept // len(parts[-1])
        if rest > 0:
            self._note_share(min(1.0, size / drawn))
            if self._share < 1 and least == 1 and rest * self._share < _LEAST_REST * size:
                parts.append(draw(rest))
                rest = 0
        pools = np.concatenate(parts, axis=1)
        # At the end of a pass what was left out last fills the batch up.
        return pools, self._chosen(pools, size, min_subset_size=min(size, pools.shape[1]), max_subset_size=size)
