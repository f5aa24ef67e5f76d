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
    tables, device, total = (scores.inputs, scores.output_grads), scores.inputs.device, scores.model_metric
    positions = tables[0][0, ..., 0].numel() if tables[0].ndim > 2 else 0  # 0: a plain (B, F), alike on all ranks
    most = max(rank_sizes(positions, device))
    check_score_memory(sum(sizes), max(1, most), tables[0].shape[-1], tables[1].shape[-1], device)
    total = total * sizes[rank()]
    dist.all_reduce(total)
    inputs, output_grads = (
        gather_rows(F.pad(rows.flatten(1, -2), (0, 0, 0, most - positions)) if most else rows, sizes) for rows in tables
    )
    return PoolScores(inputs, output_grads, total / sum(sizes), scores.bias)
