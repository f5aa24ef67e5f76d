"""What every data set hands to the loaders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from composer_edba.train.data.augment import BatchAugment


class LabelledDataset(Protocol):
    """A map-style data set that knows its labels and can be cut down."""

    targets: Any  # class of every sample, (N,)

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def subset(self, indices: Tensor) -> LabelledDataset:
        """Return a data set of the samples at ``indices``, ``(n,)`` int64."""


@dataclass(frozen=True)
class Splits:
    """A training and an evaluation split with their batch transforms."""

    train: LabelledDataset
    eval: LabelledDataset
    train_transform: BatchAugment
    eval_transform: BatchAugment
    num_classes: int
    in_channels: int
