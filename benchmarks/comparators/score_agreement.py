"""How well cached scores agree with fresh ones while a network trains."""

from __future__ import annotations

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.models import ComposerModel
from scipy.stats import spearmanr
from torch import Tensor

from composer_edba.composer.algorithm import EDBA
from composer_edba.composer.running_trainer import running_trainer
from composer_edba.scoring.cache import ScoreCache
from composer_edba.scoring.forward import Scorer

__all__ = ["ScoreAgreement"]


class ScoreAgreement(Algorithm):
    """Score the pools that EDBA has chosen from by ``scoring="cached"`` once more, by a forward pass.

    Only looks: neither the network nor any random stream changes. The fresh scores are of newly augmented views. On one
    rank, with one of this package's data sets, and a loader without workers, so that the cache is as it was when the
    subset was chosen.

    Args:
        every: updates between two looks, at least 1. Default 20.

    Attributes:
        looks: one mapping a look: ``update``, ``rank_correlation`` (Spearman's, of the norms of the samples'
            last-layer gradients), ``gradient_metric_cached`` and ``gradient_metric_fresh`` (G of the chosen subset),
            ``pool_metric_fresh`` (G of the whole pool) and ``score_age`` (in updates, mean over the pool).
    """

    def __init__(self, every: int = 20):
        if every < 1:
            raise ValueError(f"every is {every}: it must be at least 1")
        self.every = every
        self.looks: list[dict[str, float]] = []
        self._scorer = Scorer()

    def match(self, event: Event, state: State) -> bool:
        """After the choice, before the step."""
        return event == Event.BATCH_START and int(state.timestamp.batch) % self.every == 0

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Look, if this step's subset was chosen by cached scores."""
        edba = next(algorithm for algorithm in state.algorithms if isinstance(algorithm, EDBA))
        chosen, cache = edba.last_selection, edba.score_cache
        if chosen is None or not isinstance(cache, ScoreCache):
            return
        indices = chosen.pool.numpy()
        trainer, dataset, model = running_trainer(), state.dataloader.dataset, state.model
        assert trainer is not None
        assert trainer._train_data_spec is not None
        assert isinstance(model, ComposerModel)
        with torch.random.fork_rng():
            batch = trainer._train_data_spec.batch_transforms(
                state.device.batch_to_device(dataset.__getitems__(indices.tolist()))
            )
        fresh = self._scorer(model, batch, model.loss).inner_products()
        cached = cache.scores(indices, fresh.device).inner_products()
        subset = torch.isin(chosen.pool, chosen.subset)
        self.looks.append(
            {
                "update": int(state.timestamp.batch),
                "rank_correlation": float(spearmanr(_norms(cached), _norms(fresh)).statistic),
                "gradient_metric_cached": _metric(cached, subset),
                "gradient_metric_fresh": _metric(fresh, subset),
                "pool_metric_fresh": _metric(fresh, torch.ones_like(subset)),
                "score_age": int(state.timestamp.batch) - float(cache.steps[indices].mean()),
            }
        )


def _norms(inner_products: Tensor) -> Tensor:
    return inner_products.diagonal().clamp_min(0).sqrt().cpu()


def _metric(inner_products: Tensor, members: Tensor) -> float:
    members = members.to(inner_products.device)
    return float(inner_products[members][:, members].mean().clamp_min(0).sqrt())
