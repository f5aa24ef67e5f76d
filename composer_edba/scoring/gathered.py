"""The scores of the union of all ranks' pools."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch.distributed as dist
from torch.nn import functional as F

from composer_edba.loading.ranks import check_alike, gather_rows, rank
from composer_edba.scoring.memory import check_score_memory, score_memory
from composer_edba.scoring.pool_scores import PoolScores

__all__ = ["SHAPE", "gather_scores", "shape_of"]

SHAPE = 4  # numbers that shape_of gives


def shape_of(scores: PoolScores) -> tuple[int, ...]:
    """What the others must know of a rank's scores: positions (0: none), F, C, and the bytes that scores may take."""
    inputs, limit = scores.inputs, int(min(score_memory(scores.inputs.device), sys.maxsize))
    positions = inputs[0, ..., 0].numel() if inputs.ndim > 2 else 0
    return positions, inputs.shape[-1], scores.output_grads.shape[-1], limit


def gather_scores(scores: PoolScores, sizes: list[int], shapes: Sequence[list[int]]) -> PoolScores:
    """The scores of the union of all ranks' pools; the mean loss is that over all its samples.

    Ranks may differ in the number of positions (sequence length): the shorter ones are filled up with positions whose
    output gradients are zero, which add nothing to an inner product.

    Args:
        scores: this rank's.
        sizes: samples of each rank's pool.
        shapes: for each number of :func:`shape_of` that of every rank.

    Raises:
        ValueError: if the union's scores would not fit beside the training of some rank, or the last layers differ.
    """
    if len(sizes) == 1:
        return scores
    positions, features, classes, limits = shapes
    check_alike(list(zip(features, classes, strict=True)), "the last layer's numbers of inputs and outputs")
    most, device, total = max(positions), scores.inputs.device, scores.model_metric * sizes[rank()]
    check_score_memory(sum(sizes), max(1, most), features[0], classes[0], device, min(limits))
    dist.all_reduce(total)
    tables = [scores.inputs, scores.output_grads]
    if most:
        tables = [rows.reshape(len(rows), -1, rows.shape[-1]) for rows in tables]
        tables = [F.pad(rows, (0, 0, 0, most - rows.shape[1])) for rows in tables]
    inputs, output_grads = (gather_rows(rows, sizes) for rows in tables)
    return PoolScores(inputs, output_grads, total / sum(sizes), scores.bias)
