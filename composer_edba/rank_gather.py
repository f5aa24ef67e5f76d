"""Gathering what each rank holds of a pool, so that every rank can make the same choice."""

from __future__ import annotations

import torch
from composer.devices import Device
from composer.utils import dist
from torch import Tensor

from composer_edba.scoring import PoolScores

__all__ = ["gather_rows", "gather_scores", "rank_sizes"]


def rank_sizes(size: int, device: Device) -> list[int]:
    """What each rank passes as ``size``, in the order of ranks."""
    if dist.get_world_size() == 1:
        return [size]
    return [int(n) for n in torch.cat(list(dist.all_gather(device.tensor_to_device(torch.tensor([size]))))).tolist()]


def gather_rows(rows: Tensor, sizes: list[int]) -> Tensor:
    """All ranks' rows, (sum of ``sizes``, ...), for (sizes[rank], ...) on each; shards may be uneven."""
    if len(sizes) == 1:
        return rows
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[:size] for part, size in zip(dist.all_gather(padded), sizes, strict=True)])


def gather_scores(scores: PoolScores, sizes: list[int]) -> PoolScores:
    """The scores of the union of all ranks' pools; the mean loss is that over all its samples."""
    if len(sizes) == 1:
        return scores
    total = scores.model_metric * sizes[dist.get_global_rank()]
    dist.all_reduce(total)
    return PoolScores(
        gather_rows(scores.inputs, sizes),
        gather_rows(scores.output_grads, sizes),
        total / sum(sizes),
        scores.bias,
    )
