"""One order of the samples, of which every rank has its part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import Sampler

from composer_edba.loading.ranks import rank, world_size

__all__ = ["RankShare"]


class RankShare(Sampler[int]):
    """Every R-th index of another sampler on each of R ranks, in rank 0's order, whatever the others' would be.

    As torch's DistributedSampler does it: the first samples come once more where the ranks' parts would differ in
    length. Iterating is a collective call.

    Args:
        sampler: gives the same indices on all ranks, in any order; it has a length.
        device: where the process group's backend wants its tensors.
    """

    def __init__(self, sampler: Any, device: torch.device):
        self.sampler, self._device = sampler, device

    def __len__(self) -> int:
        return -(-len(self.sampler) // world_size())

    def __iter__(self) -> Iterator[int]:
        order = torch.tensor(list(self.sampler), dtype=torch.int64)  # on all ranks: their random streams keep step
        if world_size() > 1:
            order = order.to(self._device)
            dist.broadcast(order, 0)
        indices = order.tolist()
        padded = (indices * (len(self) * world_size() // max(1, len(indices)) + 1))[: len(self) * world_size()]
        return iter(padded[rank() :: world_size()])

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler, if it wants to know."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
