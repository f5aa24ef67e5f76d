"""Each sample's own loss, from a loss that only gives the mean over a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from composer_edba.scoring.forward import mean_loss

__all__ = ["sample_losses"]


def sample_losses(
    loss: Callable[[Any, Any], Any], outputs: Any, batch: Any, size: int, trial: bool = False
) -> Tensor | None:
    """The losses of ``size`` batches of one sample each, float32 (B,), without a graph.

    The loss is mapped over the samples by torch.func.vmap; None if it cannot be: it looks at values, works in place,
    draws random numbers, or does not take a batch of one.

    Args:
        loss: ``loss(outputs, batch)``, the mean over the samples.
        outputs, batch: the network's outputs and the batch; tensors whose first dimension is ``size`` hold the samples.
        size: B.
        trial: work on copies, as the loss may turn out to write into the outputs or the batch. Default: False.
    """
    leaves, structure = pytree.tree_flatten((outputs, batch))
    mapped = [isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == size for leaf in leaves]

    def of_one(*samples: Tensor) -> Tensor:
        rows = iter(samples)
        parts = [next(rows).unsqueeze(0) if each else leaf for leaf, each in zip(leaves, mapped, strict=True)]
        return mean_loss(loss(*pytree.tree_unflatten(parts, structure)))

    try:
        with torch.no_grad():
            tensors = [leaf.detach() for leaf, each in zip(leaves, mapped, strict=True) if each]
            tensors = [tensor.clone() for tensor in tensors] if trial else tensors
            versions = [tensor._version for tensor in tensors]
            losses = torch.func.vmap(of_one)(*tensors).float()
            return losses if versions == [tensor._version for tensor in tensors] else None
    except Exception:  # whatever a loss raises that was not written for this
        return None
