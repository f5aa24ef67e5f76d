"""Gathering what each rank holds of a pool, so that every rank can make the same choice. torch.distributed only."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from composer_edba.scoring.forward import PoolScores
from composer_edba.scoring.memory import check_score_memory

__all__ = ["from_rank_zero", "gather_rows", "gather_scores", "rank", "rank_sizes", "world_size"]


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def rank_sizes(size: int, device: torch.device) -> list[int]:
    """What each rank passes as ``size``, in the order of ranks.

    Args:
        size: this rank's number.
        device: where the process group's backend wants its tensors.
    """
    if world_size() == 1:
        return [size]
    return [int(n) for n in torch.cat(_all_gather(torch.tensor([size], device=device))).tolist()]


def from_rank_zero(number: int, device: torch.device) -> int:
    """Rank 0's ``number``, a signed 64-bit integer, on every rank."""
    if world_size() == 1:
        return number
    shared = torch.tensor([number], device=device)
    dist.broadcast(shared, 0)
    return int(shared)


def gather_rows(rows: Tensor, sizes: list[int]) -> Tensor:
    """All ranks' rows, (sum of ``sizes``, ...), for (sizes[rank], ...) on each; shards may be uneven."""
    if len(sizes) == 1:
        return rows
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[:size] for part, size in zip(_all_gather(padded), sizes, strict=True)])


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
    return PoolScores(
        gather_rows(scores.inputs, sizes),
        gather_rows(scores.output_grads, sizes),
        total / sum(sizes),
        scores.bias,
    )


def _equally_long(scores: PoolScores, samples: int) -> PoolScores:
    """The scores with positions flattened, (B, T, F) and (B, T, C), and as many on every rank."""
    inputs, output_grads = scores.inputs, scores.output_grads
    device = inputs.device
    positions = inputs[0, ..., 0].numel() if inputs.ndim > 2 else 0  # 0: a plain (B, F), alike on all ranks
    most = max(rank_sizes(positions, device))
    check_score_memory(samples, max(1, most), inputs.shape[-1], output_grads.shape[-1], device)
    if most == 0:
        return scores
    missing = most - positions
    padded = [F.pad(rows.flatten(1, -2), (0, 0, 0, missing)) for rows in (inputs, output_grads)]
    return PoolScores(padded[0], padded[1], scores.model_metric, scores.bias)


def _all_gather(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return parts
