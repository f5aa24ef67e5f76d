"""Gathering what each rank holds of a pool, so that every rank can make the same choice. torch.distributed only."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["from_rank_zero", "gather_objects", "gather_rows", "rank", "rank_sizes", "world_size"]


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def rank_sizes(size: int, device: torch.device) -> list[int]:
    """What each rank passes as ``size``, in their order; ``device`` is the one that the process group works on."""
    if world_size() == 1:
        return [size]
    return [int(n) for n in torch.cat(_all_gather(torch.tensor([size], device=device))).tolist()]


def from_rank_zero(number: int, device: torch.device) -> int:
    """Rank 0's ``number``, a signed 64-bit integer, on every rank."""
    return rank_sizes(number, device)[0]


def gather_objects(own: Any) -> list[Any]:
    """What each rank passes as ``own``, a plain value, in their order."""
    if world_size() == 1:
        return [own]
    told: list[Any] = [None] * world_size()
    dist.all_gather_object(told, own)
    return told


def gather_rows(rows: Tensor, sizes: list[int]) -> Tensor:
    """All ranks' rows, (sum of ``sizes``, ...), for (sizes[rank], ...) on each; shards may be uneven."""
    if len(sizes) == 1:
        return rows
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[:size] for part, size in zip(_all_gather(padded), sizes, strict=True)])


def _all_gather(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return parts
