"""Batches, of tensors and arrays nested in mappings, lists and tuples: their size, and some of their samples.

A list of other values as long as the batch counts as one a sample; what else there is belongs to the whole batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["batch_size", "default_input_key", "default_target_key", "index_batch"]


def batch_size(batch: Any) -> int:
    """Samples in ``batch``, its tensors' first dimension; a ValueError if none has one, they differ or it is 0."""
    sizes = dict(_sizes(batch, "batch"))
    if not sizes:
        raise ValueError(f"a batch of type {type(batch).__name__} holds no tensor with a batch dimension")
    if len(set(sizes.values())) > 1:
        listing = ", ".join(f"{path}: {size}" for path, size in sizes.items())
        raise ValueError(
            f"the tensors of the batch differ in their first dimension ({listing}), so it is not known what one sample "
            "is: put the batch dimension first in each"
        )
    path, size = next(iter(sizes.items()))
    if size == 0:
        raise ValueError(f"{path} has a first dimension of 0: a batch needs at least one sample")
    return size


def _sizes(batch: Any, path: str) -> Iterator[tuple[str, int]]:
    if isinstance(batch, (Tensor, np.ndarray)):
        if batch.ndim:
            yield path, len(batch)
    elif isinstance(batch, (Mapping, list, tuple)):
        for key, value in batch.items() if isinstance(batch, Mapping) else enumerate(batch):
            yield from _sizes(value, f"{path}[{key!r}]")


def index_batch(batch: Any, indices: Tensor | slice, size: int) -> Any:
    """The samples ``indices`` of a batch, in its own structure and types; what belongs to no sample is shared.

    Args:
        batch: the batch.
        indices: positions, int64 (K,), which copies (Composer deep-copies every microbatch, and the copy of a view
            takes the whole pool along), or a slice, which gives views.
        size: number of samples in ``batch``; a ValueError if a tensor or array has another first dimension.
    """
    return _index(batch, indices, size, "batch")


def _index(batch: Any, indices: Tensor | slice, size: int, path: str) -> Any:
    if isinstance(batch, (Tensor, np.ndarray)):
        if batch.ndim == 0:
            return batch
        if len(batch) != size:
            raise ValueError(
                f"{path} has a first dimension of {len(batch)} in a batch of {size} samples, so it is not known what "
                "of it belongs to which sample: put the batch dimension first"
            )
        if isinstance(indices, slice):
            return batch[indices]
        # Not index_select: it would lose the channels_last memory format.
        return batch[indices.to(batch.device, non_blocking=True) if torch.is_tensor(batch) else indices.cpu().numpy()]
    if isinstance(batch, Mapping):
        chosen = {key: _index(value, indices, size, f"{path}[{key!r}]") for key, value in batch.items()}
        if not isinstance(batch, MutableMapping):
            return type(batch)(chosen)  # type: ignore[call-arg]
        twin = copy.copy(batch)  # keeps what else it has: a default factory, attributes
        for key, value in chosen.items():  # a subclass may forbid or change update
            twin[key] = value
        return twin
    if isinstance(batch, (list, tuple)):
        named = hasattr(batch, "_fields")
        # The samples' own values, and not parts of the batch, each of which has all samples inside.
        if len(batch) == size and not named and not any(_holds_samples(value, size) for value in batch):
            picked = batch[indices] if isinstance(indices, slice) else [batch[i] for i in indices.tolist()]
            return type(batch)(picked)
        parts = [_index(value, indices, size, f"{path}[{position}]") for position, value in enumerate(batch)]
        return type(batch)(*parts) if named else type(batch)(parts)
    return batch


def _holds_samples(value: Any, size: int) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim > 0
    if isinstance(value, Mapping):
        return any(_holds_samples(part, size) for part in value.values())
    is_list = isinstance(value, (list, tuple))
    return is_list and (len(value) == size or any(_holds_samples(part, size) for part in value))


def default_input_key(batch: Any) -> Any:
    """Where a batch keeps the model's input: position 0, or in a mapping the first key with a floating-point tensor."""
    if not isinstance(batch, Mapping):
        return 0
    floats = (key for key, value in batch.items() if torch.is_tensor(value) and value.is_floating_point())
    return next(floats, next(iter(batch)))


def default_target_key(batch: Any) -> Any:
    """Where a batch keeps the targets: position 1, or in a mapping ``labels``, ``label``, ``targets`` or ``target``."""
    if not isinstance(batch, Mapping):
        return 1
    return next((key for key in ("labels", "label", "targets", "target") if key in batch), None)
