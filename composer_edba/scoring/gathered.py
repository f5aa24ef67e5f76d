"""The scores of the union of all ranks' pools."""

from __future__ import annotations

import torch.distributed as dist
from torch.nn import functional as F

from composer_edba.loading.ranks import gather_rows, rank, rank_sizes
from composer_edba.scoring.forward import PoolScores
from composer_edba.scoring.memory import check_score_memory

__all__ = ["gather_scores"]


def gather_scores(scores: PoolScores, sizes: list[int]) -> PoolScores:
    """The scores of the union of all ranks' pools; the mean loss is that over all its samples.

    Ranks may differ in the number of positions (sequence length): the shorter ones are filled up with positions whose
    output gradients are zero, which add nothing to an inner product.

    Raises:
        ValueError: if the union's scores would not fit beside the training.
    """
    if len(sizes) == 1:
        return scores
    scores = _equally_long(scores, sum(sizes))
    total = scores.model_metric * sizes[rank()]
    dist.all_reduce(total)
    inputs, output_grads = gather_rows(scores.inputs, sizes), gather_rows(scores.output_grads, sizes)
    return PoolScores(inputs, output_grads, total / sum(sizes), scores.bias)


def _equally_long(scores: PoolScores, samples: int) -> PoolScores:
    """The scores with positions flattened, (B, T, F) and (B, T, C), and as many on every rank."""
    inputs, output_grads = scores.inputs, scores.output_grads
    device = inputs.device
    positions = inputs[0, ..., 0].numel() if inputs.ndim > 2 else 0  # 0: a plain (B, F), alike on all ranks
    most = max(rank_sizes(positions, device))
    check_score_memory(samples, max(1, most), inputs.shape[-1], output_grads.shape[-1], device)
    if most == 0:
        return scores
    inputs, output_grads = (F.pad(rows.flatten(1, -2), (0, 0, 0, most - positions)) for rows in (inputs, output_grads))
    return PoolScores(inputs, output_grads, scores.model_metric, scores.bias)
