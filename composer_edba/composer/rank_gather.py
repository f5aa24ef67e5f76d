"""What the ranks of a Composer Trainer hold of a pool; the rest of it is in :mod:`composer_edba.loading.ranks`."""

from __future__ import annotations

import torch
from composer.devices import Device

from composer_edba.loading import ranks

__all__ = ["rank_sizes"]


def rank_sizes(size: int, device: Device) -> list[int]:
    """What each rank passes as ``size``, in the order of ranks; the Trainer's device carries it."""
    if ranks.world_size() == 1:
        return [size]
    return ranks.rank_sizes(size, device.tensor_to_device(torch.empty(0)).device)
