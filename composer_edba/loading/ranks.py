"""Gathering what each rank holds of a pool, so that every rank can make the same choice. torch.distributed only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "Attempt",
    "check_alike",
    "from_rank_zero",
    "gather_objects",
    "gather_rows",
    "rank",
    "rank_sizes",
    "seed_of",
    "world_size",
]


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class Attempt:
    """What may fail on one rank alone, while the others would wait for it in a collective call for ever.

    ``with Attempt(n) as mine: ...`` keeps an exception, ``mine.exchange(device)`` raises it, and an error that names
    rank and cause on the other ranks. All that is known of one rank alone goes along: ``mine.numbers``, n integers,
    to be set inside of the block.
    """

    def __init__(self, count: int = 0):
        self.numbers: Sequence[int] = (0,) * count
        self._error: Exception | None = None

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        if world_size() == 1 or not isinstance(error, Exception):
            return False
        self._error, self.numbers = error, (0,) * len(self.numbers)
        return True

    def exchange(self, device: torch.device) -> list[list[int]]:
        """For each of the numbers what every rank has, in their order; one collective call.

        Raises:
            RuntimeError: if another rank's attempt failed. This rank's own exception comes as it is.
        """
        if world_size() == 1:
            return [[number] for number in self.numbers]
        error = self._error
        text = "" if error is None else f"{type(error).__name__}: {error}"
        message = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
        mine = torch.tensor([len(message), *self.numbers], device=device)
        lengths, *numbers = torch.stack(_all_gather(mine)).T.tolist()
        if not any(lengths):
            return numbers
        messages = gather_rows(message, lengths)
        if error is not None:
            raise error
        failed = next(rank for rank, length in enumerate(lengths) if length)
        text = bytes(messages[: lengths[failed]].tolist()).decode()
        raise RuntimeError(f"all ranks stop, because EDBA failed on rank {failed}: {text}")


def check_alike(values: Sequence[Any], what: str) -> None:
    """Raise a ValueError unless all ranks have the same of ``what``."""
    if any(value != values[0] for value in values):
        raise ValueError(f"{what} must be the same on all ranks, and is {list(values)} in their order")


def rank_sizes(size: int, device: torch.device) -> list[int]:
    """What each rank passes as ``size``, in their order; ``device`` is the one that the process group works on."""
    if world_size() == 1:
        return [size]
    return [int(n) for n in torch.cat(_all_gather(torch.tensor([size], device=device))).tolist()]


def from_rank_zero(number: int, device: torch.device) -> int:
    """Rank 0's ``number``, a signed 64-bit integer, on every rank."""
    return rank_sizes(number, device)[0]


def seed_of(given: int | None, device: torch.device) -> int:
    """The seed of a run, the same on every rank: ``given``, or else torch's own, of rank 0."""
    return from_rank_zero(torch.initial_seed() & (2**63 - 1) if given is None else given, device)


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
