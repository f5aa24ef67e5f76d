"""Batches of any nesting: how many samples they hold, and the same batch with some of its samples.

A batch is a tensor, a NumPy array, or a mapping, list or tuple of batches. A list of plain values (strings, numbers)
as long as the batch counts as one value a sample; other values (None, a scalar tensor, a flag) belong to the whole
batch and are kept as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["batch_size", "default_input_key", "default_target_key", "index_batch"]

_PLAIN = (str, bytes, int, float, complex, bool, np.generic)


def batch_size(batch: Any) -> int:
    """Number of samples in ``batch``: the first dimension that all its tensors and arrays share.

    Raises:
        ValueError: if it holds no tensor or array with a dimension, or if their first dimensions differ.
    """
    sizes: dict[str, int] = {}
    _collect_sizes(batch, "batch", sizes)
    if not sizes:
        raise ValueError(f"a batch of type {type(batch).__name__} holds no tensor with a batch dimension")
    if len(set(sizes.values())) > 1:
        listing = ", ".join(f"{path}: {size}" for path, size in sizes.items())
        raise ValueError(
            f"the tensors of the batch differ in their first dimension ({listing}), so it is not known what one sample "
            "is: put the batch dimension first in each"
        )
    return next(iter(sizes.values()))


def _collect_sizes(batch: Any, path: str, sizes: dict[str, int]) -> None:
    if isinstance(batch, (Tensor, np.ndarray)):
        if batch.ndim:
            sizes[path] = len(batch)
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            _collect_sizes(value, f"{path}[{key!r}]", sizes)
    elif isinstance(batch, (list, tuple)):
        for position, value in enumerate(batch):
            _collect_sizes(value, f"{path}[{position}]", sizes)


def index_batch(batch: Any, indices: Tensor | slice, size: int) -> Any:
    """The samples ``indices`` of a batch, in the batch's own structure and types.

    Args:
        batch: the batch.
        indices: positions, int64 (K,), which copies (own storage: Composer deep-copies every microbatch, and the copy
            of a view takes the whole pool along), or a slice, which gives views.
        size: number of samples in ``batch``, from :func:`batch_size`.

    Returns:
        A batch of the same type. What does not belong to single samples is shared with the given one.
    """
    if isinstance(batch, Tensor):
        if batch.ndim == 0:
            return batch
        if isinstance(indices, slice):
            return batch[indices]
        # Not index_select: it would lose the channels_last memory format.
        return batch[indices.to(batch.device, non_blocking=True)]
    if isinstance(batch, np.ndarray):
        if batch.ndim == 0:
            return batch
        return batch[indices if isinstance(indices, slice) else indices.cpu().numpy()]
    if isinstance(batch, Mapping):
        chosen = {key: index_batch(value, indices, size) for key, value in batch.items()}
        return chosen if type(batch) is dict else type(batch)(chosen)  # type: ignore[call-arg]
    if isinstance(batch, (list, tuple)):
        if len(batch) == size and all(isinstance(value, _PLAIN) for value in batch):
            picked = batch[indices] if isinstance(indices, slice) else [batch[i] for i in indices.tolist()]
            return type(batch)(picked)
        parts = [index_batch(value, indices, size) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def default_input_key(batch: Any) -> Any:
    """Where a batch keeps the model's input: position 0, or in a mapping the first key with a floating-point tensor."""
    if not isinstance(batch, Mapping):
        return 0
    for key, value in batch.items():
        if torch.is_tensor(value) and value.is_floating_point():
            return key
    return next(iter(batch))


def default_target_key(batch: Any) -> Any:
    """Where a batch keeps the targets: position 1, or in a mapping ``labels``, ``label``, ``targets`` or ``target``."""
    if not isinstance(batch, Mapping):
        return 1
    for key in ("labels", "label", "targets", "target"):
        if key in batch:
            return key
    return None
