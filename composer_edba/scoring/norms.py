"""How large every sample's last-layer gradient was when it was last trained on: one number a sample."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from composer_edba.method.gradient_mass import carriers

__all__ = ["NormMemory"]

_MOST_OMISSIONS = np.iinfo(np.uint8).max


class NormMemory:
    """Last-layer gradient norms of the samples of a data set, by index, and how often each was left out since.

    Memory: N float32 and N uint8 numbers in the host's memory, for ImageNet 6 MB, and at most as much in a checkpoint.

    Args:
        size: N, samples in the data set; indices lie below it.

    Attributes:
        norms: float32 (N,); NaN: not known, or not finite.
        omissions: how often in a row each was left out, uint8 (N,).
    """

    def __init__(self, size: int):
        self.size = size
        self.norms: np.ndarray = np.full(size, np.nan, dtype=np.float32)
        self.omissions: np.ndarray = np.zeros(size, dtype=np.uint8)

    @property
    def bytes(self) -> int:
        """Bytes that it takes."""
        return self.norms.nbytes + self.omissions.nbytes

    def reserve(self, rows: Tensor, features: int) -> None:
        """There is room."""

    def record(self, indices: np.ndarray, rows: Tensor, step: int, *, features: int, bias: bool) -> None:
        """Take in the norms of samples, int64 (B,): the first column of ``rows``. Of one that comes twice the later."""
        norms = rows[:, 0].cpu().numpy()
        self.norms[indices] = np.where(np.isfinite(norms), norms, np.nan)

    def known(self, indices: np.ndarray, recheck: int) -> tuple[np.ndarray, np.ndarray]:
        """The norms of samples, float64 (B,), and which of them were left out ``recheck`` times in a row, bool (B,)."""
        return self.norms[indices].astype(np.float64), self.omissions[indices] >= recheck

    def choose(self, indices: np.ndarray, left_out: float, recheck: int, **bounds: Any) -> np.ndarray:
        """Positions in the pool ``indices`` that carry its gradient, int64 (k,), ascending.

        Args:
            indices: the pool, int64 (B,), B >= 1.
            left_out: see :func:`~composer_edba.method.gradient_mass.select_by_gradient_mass`.
            recheck: a sample that was left out so often in a row is chosen.
            bounds: further arguments of that function.
        """
        return carriers(*self.known(indices, recheck), left_out, **bounds)

    def knows_any(self, indices: np.ndarray) -> bool:
        """Whether the norm of one of these samples is known."""
        return bool(np.isfinite(self.norms[indices]).any())

    def left_out_mass(self, indices: np.ndarray, chosen: np.ndarray) -> float:
        """Share of the pool's sum of norms that is left out if ``chosen``, bool (B,), are not."""
        norms = self.norms[indices].astype(np.float64)
        known = ~np.isnan(norms)
        if not known.any():
            return 0.0
        norms = np.where(known, norms, norms[known].mean())
        return float(norms[~chosen].sum() / norms.sum()) if norms.sum() > 0 else 0.0

    def enter(self, indices: np.ndarray, chosen: np.ndarray) -> None:
        """Of the pool ``indices`` the samples at positions where ``chosen``, bool (B,), is False were left out."""
        omitted = indices[~chosen]
        self.omissions[omitted] = np.minimum(self.omissions[omitted], _MOST_OMISSIONS - 1) + 1
        self.omissions[indices[chosen]] = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain values and bytes."""
        tables = {"norms": self.norms, "omissions": self.omissions}
        return {"size": self.size, **{name: zlib.compress(table.tobytes()) for name, table in tables.items()}}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take up what :meth:`state_dict` gave. Another data set's size, or another memory's, is not taken up."""
        if state["size"] == self.size and "norms" in state:
            self.norms = np.frombuffer(zlib.decompress(state["norms"]), dtype=np.float32).copy()
            self.omissions = np.frombuffer(zlib.decompress(state["omissions"]), dtype=np.uint8).copy()
