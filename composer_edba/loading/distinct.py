"""Counting the distinct samples that were ever trained on."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["DistinctSamples"]


class DistinctSamples:
    """A set of the indices of a data set of ``size`` samples."""

    def __init__(self, size: int):
        self.size = size
        self._seen: np.ndarray = np.zeros(size, dtype=bool)
        self._count = 0

    def add(self, indices: Iterable[int] | np.ndarray) -> None:
        """Mark samples as trained on."""
        index = np.asarray(indices, dtype=np.int64)
        self._count += int(np.count_nonzero(~self._seen[np.unique(index)]))
        self._seen[index] = True

    def __len__(self) -> int:
        return self._count

    def state_dict(self) -> dict[str, Any]:
        """Size and members, compressed into one string (a checkpoint may hold only plain values)."""
        packed = zlib.compress(np.packbits(self._seen).tobytes())
        return {"size": self.size, "members": base64.b64encode(packed).decode()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave. Another data set's members do not carry over: the count starts anew."""
        if state["size"] == self.size:
            packed = np.frombuffer(zlib.decompress(base64.b64decode(state["members"])), dtype=np.uint8)
            self._seen = np.unpackbits(packed, count=self.size).astype(bool)
            self._count = int(self._seen.sum())
