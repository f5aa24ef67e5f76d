"""What is known of every sample's last-layer gradient, from the last time it was trained on."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from composer_edba.scoring.memory import device_memory
from composer_edba.scoring.pool_scores import PoolScores

__all__ = ["ScoreCache"]

# Share of the memory of the model's device that the cache may take, and of the host's if it has to go there.
_DEVICE_SHARE = 0.2
_HOST_SHARE = 0.5


class ScoreCache:
    """Last-layer inputs h, output gradients d and losses of the samples of a data set, by index.

    Memory: N x (F + C + 1) float32 numbers, for 50,000 images, 256 features and 10 classes 53 MB, and as much in a
    checkpoint once every sample was recorded. They lie on the model's device if they take at most a fifth of its
    memory, otherwise in the host's; nowhere before the first recording.

    Args:
        size: N, samples in the data set; indices lie below it.

    Attributes:
        steps: step at which each sample was last recorded, int64 (N,), on the host; -1: never.
    """

    def __init__(self, size: int):
        self.size = size
        self.steps: np.ndarray = np.full(size, -1, dtype=np.int64)
        self._rows: Tensor | None = None  # (N, F + C + 1)
        self._features, self._bias = 0, True

    @property
    def bytes(self) -> int:
        """Bytes of the recorded numbers' table; 0 before the first recording."""
        return 0 if self._rows is None else self._rows.nbytes

    @property
    def device(self) -> torch.device | None:
        """Where they lie; None before the first recording."""
        return None if self._rows is None else self._rows.device

    def record(self, indices: np.ndarray, rows: Tensor, step: int, *, features: int, bias: bool) -> None:
        """Take in what a training step found out about samples; it replaces what was known.

        Args:
            indices: the samples, int64 (B,). Of one that comes twice the later row counts.
            rows: h, d and the loss side by side, float32 (B, F + C + 1), on the model's device.
            step, features, bias: number of the training step, F, and whether the last layer has a bias.

        Raises:
            ValueError: if the table fits neither on the device nor in the host's memory.
        """
        self.reserve(rows, features)
        self._bias = bias
        assert self._rows is not None
        distinct, from_end = np.unique(indices[::-1], return_index=True)
        if len(distinct) < len(indices):  # which of two equal indices is written last is not defined
            rows, indices = rows[_index(len(indices) - 1 - from_end, rows.device)], distinct
        self._rows[_index(indices, self._rows.device)] = rows.to(self._rows.device)
        self.steps[indices] = step

    def reserve(self, rows: Tensor, features: int) -> None:
        """Have room for rows like these; arguments and errors as of :meth:`record`."""
        if self._rows is None or self._rows.shape[1] != rows.shape[1] or self._features != features:
            self._allocate(rows.shape[1], rows.device)
        self._features = features

    def knows(self, indices: np.ndarray) -> bool:
        """Whether each of the samples was recorded."""
        return bool((self.steps[indices] >= 0).all())

    def scores(self, indices: np.ndarray, device: torch.device) -> PoolScores:
        """What is known of samples that were all recorded, int64 (B,), which may repeat; on ``device``."""
        assert self._rows is not None
        rows = self._rows[_index(indices, self._rows.device)].to(device)
        return PoolScores(rows[:, : self._features], rows[:, self._features : -1], rows[:, -1].mean(), self._bias)

    def _allocate(self, columns: int, device: torch.device) -> None:
        self.steps[:] = -1
        needed = 4 * self.size * columns
        for place, share in ((device, _DEVICE_SHARE), (torch.device("cpu"), _HOST_SHARE)):
            memory = device_memory(place)
            if memory is None or needed <= share * memory:
                self._rows = torch.empty(self.size, columns, device=place)
                return
        raise ValueError(
            f"scoring='cached' would keep {columns} numbers for each of {self.size} samples, {needed / 2**30:.3g} GiB, "
            f"more than {_DEVICE_SHARE:.0%} of the device's memory and {_HOST_SHARE:.0%} of the host's: use "
            "scoring='forward', or name a narrower layer as last_layer"
        )

    def state_dict(self) -> dict[str, Any] | None:
        """Everything that was recorded, as plain values and bytes; None if nothing was."""
        if self._rows is None:
            return None
        recorded = _index(np.flatnonzero(self.steps >= 0), self._rows.device)
        return {
            "size": self.size,
            "columns": self._rows.shape[1],
            "features": self._features,
            "bias": self._bias,
            "steps": zlib.compress(self.steps.tobytes()),
            "rows": self._rows[recorded].cpu().numpy().tobytes(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take up what :meth:`state_dict` gave, for a model on ``device``. Another data set's size is not taken up."""
        if state["size"] != self.size:
            return
        self._allocate(state["columns"], device)
        assert self._rows is not None
        self._features, self._bias = state["features"], state["bias"]
        self.steps = np.frombuffer(zlib.decompress(state["steps"]), dtype=np.int64).copy()
        recorded = np.flatnonzero(self.steps >= 0)
        rows = np.frombuffer(state["rows"], dtype=np.float32).reshape(len(recorded), state["columns"]).copy()
        self._rows[_index(recorded, self._rows.device)] = torch.from_numpy(rows).to(self._rows.device)


def _index(indices: np.ndarray, device: torch.device) -> Tensor:
    """``indices`` on ``device``; from pinned memory the host need not wait for it."""
    index = torch.from_numpy(indices)
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)
