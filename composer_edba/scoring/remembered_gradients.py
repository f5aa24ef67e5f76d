"""Whole last-layer gradients that training remembers, from which any subset's gradient can be computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from typing_extensions import override

from composer_edba.loading.ranks import Attempt, check_alike
from composer_edba.method.choice import Selection
from composer_edba.scoring.cache import ScoreCache
from composer_edba.scoring.pool_scores import PoolScores
from composer_edba.scoring.remembered import Draw, Memory, Picked, RememberedScores
from composer_edba.scoring.training_scores import TrainingScores

__all__ = ["RememberedGradients"]


class RememberedGradients(RememberedScores):
    """Chooses a subset of each pool by the gradients that its samples had when they were last trained on.

    Args:
        decide: ``decide(scores, sizes, pool, where)``: the subset of pool number ``pool`` of all that were ever drawn,
            by the scores of all ranks' samples, ``sizes`` of each; ``where`` says where for a warning.
        figures: what is logged of a selection.
        scheduled, training: see :class:`~composer_edba.scoring.remembered.RememberedScores`.
    """

    def __init__(
        self,
        decide: Callable[[PoolScores, list[int], int, str], Selection],
        figures: Callable[[Selection], dict[str, float]],
        scheduled: Callable[[int], bool],
        training: TrainingScores,
    ):
        super().__init__(scheduled, training)
        self._decide, self._figures = decide, figures

    @override
    def _new_memory(self, size: int) -> Memory:
        return ScoreCache(size)

    @override
    def _pick(self, number: int, size: int, least: int, rest: int | None, draw: Draw) -> Picked:
        pools, cache = draw(size), self.cache
        indices, (ranks, drawn) = pools.ravel(), pools.shape
        everything = np.ones(pools.shape, dtype=bool)
        if drawn < least or not self._scheduled(number) or not cache.knows(indices):
            return Picked(pools, everything, {})
        with Attempt(1) as mine:
            selection = self._decide(cache.scores(indices, self._device), [drawn] * ranks, number, f"at pool {number}")
            mine.numbers = [0 if self._sampler is None else self._sampler.batch_size]
        check_alike(mine.exchange(self._device)[0], "the size that batch_size_policy gives")
        chosen = ~everything
        chosen.flat[selection.indices.numpy()] = True
        return Picked(pools, chosen, self._figures(selection), float(cache.steps[indices].mean()))
