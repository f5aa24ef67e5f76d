"""A data set in memory that is read a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

T = TypeVar("T")


def identity_collate(batch: T) -> T:
    """Return ``batch`` as it is: the collate function for data sets whose ``__getitems__`` makes whole batches."""
    return batch


class BatchTensorDataset(Dataset[tuple[Tensor, Tensor]]):
    """Inputs and labels held as two tensors.

    A ``DataLoader`` with :func:`identity_collate` gets a whole batch by two indexing operations:

    >>> dataset = BatchTensorDataset(torch.zeros(10, 3, 8, 8), torch.zeros(10, dtype=torch.int64))
    >>> loader = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True, collate_fn=identity_collate)
    >>> x, y = next(iter(loader))
    >>> x.shape, y.shape
    (torch.Size([4, 3, 8, 8]), torch.Size([4]))

    Args:
        inputs: ``(N, ...)``, any dtype, on any device, where the batches are then too.
        targets: ``(N,)`` int64 labels, on the same device; a ValueError says when the lengths differ.
    """

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        if len(inputs) != len(targets):
            raise ValueError(f"inputs and targets must have the same length, not {len(inputs)} and {len(targets)}")
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        # A list, not a tuple: Composer's algorithms set its items in place.
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.inputs.device)
        return [self.inputs.index_select(0, index), self.targets.index_select(0, index)]

    def subset(self, indices: Tensor) -> BatchTensorDataset:
        """Copy the samples at ``indices``, ``(n,)`` int64, into a data set of their own."""
        return BatchTensorDataset(self.inputs[indices], self.targets[indices])
