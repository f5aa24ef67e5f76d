"""What a loss gives as one scalar, the mean over a batch, and each sample's own loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["loss_parts", "mean_loss", "sample_losses"]


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


def mean_loss(value: Any) -> Tensor:
    """The loss as one scalar: a tuple's sum, a dict's ``total``, as in Composer's trainer."""
    parts = loss_parts(value)
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def loss_parts(value: Any) -> list[Tensor]:
    """The scalars of which the loss is the sum.

    Raises:
        ValueError: if one is none.
    """
    if isinstance(value, dict):
        value = value["total"] if "total" in value else tuple(value.values())
    parts = value if isinstance(value, (tuple, list)) else (value,)
    for part in parts:
        if not isinstance(part, Tensor) or part.ndim != 0:
            found = f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else f"type {type(part).__name__}"
            raise ValueError(
                f"the loss has {found}: EDBA needs a scalar tensor, the mean over the samples (reduction='mean')"
            )
    return list(parts)
