"""The samples that carry a pool's gradient: what the others would add to its step is bounded."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from composer_edba.method.equation import check_gradient_shapes

__all__ = ["GrowingPool", "carriers", "gradient_norms", "row_norms", "select_by_gradient_mass"]


def gradient_norms(inputs: Tensor, output_grads: Tensor, bias: bool = True) -> Tensor:
    """Norms of the samples' last-layer gradients, ‖d_i‖ ‖[h_i, 1]‖, without forming inner products.

    With several positions t a sample (tokens, pixels) the sum Σ_t ‖d_it‖ ‖[h_it, 1]‖, which the norm of
    Σ_t d_it ⊗ [h_it, 1] does not exceed.

    Args:
        inputs: h, the last layer's inputs, (B, F) or (B, T..., F).
        output_grads: d, each sample's own loss derived by the last layer's output, (B, C) or (B, T..., C).
        bias: whether the layer has a bias; without one the ``1`` falls away.

    Returns:
        (B,); float64 if both arguments are, else float32.

    Raises:
        ValueError: if the shapes of the two do not belong to the same samples and positions.
    """
    check_gradient_shapes(inputs, output_grads)
    dtype = torch.float64 if inputs.dtype == output_grads.dtype == torch.float64 else torch.float32
    h, d = (row_norms(rows).to(dtype) for rows in (inputs, output_grads))
    norms = d * (torch.hypot(h, torch.ones_like(h)) if bias else h)
    return norms.flatten(1).sum(1) if norms.ndim > 1 else norms


def row_norms(rows: Tensor) -> Tensor:
    """Norms along the last dimension, formed in float64 for that, else in float32, and of that type."""
    own = torch.float64 if rows.dtype == torch.float64 else torch.float32  # torch does not narrow
    return torch.linalg.vector_norm(rows.detach(), dim=-1, dtype=own)


def select_by_gradient_mass(
    norms: Tensor,
    left_out: float = 0.1,
    *,
    always: Tensor | None = None,
    min_subset_size: int = 1,
    max_subset_size: int | None = None,
    size_multiple: int = 1,
) -> Tensor:
    """Choose the smallest subset of a pool whose left-out samples carry at most a share of its gradient norms.

    The sum of the chosen samples' gradients then differs from the pool's by at most that share of Σ ‖g_i‖. To train
    with the pool's own step, divide the sum of the subset's losses by the pool's size.

    Args:
        norms: ‖g_i‖, (B,), B >= 1, from :func:`gradient_norms` or remembered. A sample whose norm is NaN or infinite is
            not known: it is chosen, and carries as much as the mean of those that are known.
        left_out: the share, in [0, 1); 0: all are chosen. Default 0.1.
        always: samples that are chosen whatever their norm, bool (B,). None: no others.
        min_subset_size: smallest subset, where the pool has as many. Default 1.
        max_subset_size: largest subset, which may leave out more than the share; a multiple of ``size_multiple``, and
            at least ``min_subset_size``. None: the pool.
        size_multiple: sizes are rounded up to a multiple of this, or to the pool. Default 1.

    Returns:
        The chosen samples' positions in the pool, int64 (k,), ascending, on the CPU.

    Raises:
        ValueError: if an argument is out of its range, or ``norms`` is no vector.
    """
    if norms.ndim != 1 or len(norms) == 0:
        raise ValueError(f"norms has shape {tuple(norms.shape)}: it must be (B,), one for each of B >= 1 samples")
    if not 0 <= left_out < 1:
        raise ValueError(f"left_out is {left_out}: it must be at least 0 and below 1")
    for name, value in (("min_subset_size", min_subset_size), ("size_multiple", size_multiple)):
        if value < 1:
            raise ValueError(f"{name} is {value}: it must be at least 1")
    if max_subset_size is not None and (max_subset_size < min_subset_size or max_subset_size % size_multiple):
        raise ValueError(
            f"max_subset_size is {max_subset_size}: it must be a multiple of size_multiple, {size_multiple}, and at "
            f"least min_subset_size, {min_subset_size}"
        )
    known = norms.detach().to("cpu", torch.float64).numpy()
    stays = np.zeros(len(norms), dtype=bool) if always is None else always.cpu().numpy()
    return torch.from_numpy(carriers(known, stays, left_out, min_subset_size, max_subset_size, size_multiple))


def carriers(
    norms: np.ndarray,
    stays: np.ndarray,
    left_out: float,
    min_subset_size: int = 1,
    max_subset_size: int | None = None,
    size_multiple: int = 1,
) -> np.ndarray:
    """:func:`select_by_gradient_mass` of arrays, unchecked: float64 (B,) and bool (B,) give int64 (k,)."""
    size, known = len(norms), np.isfinite(norms)
    stays = stays | ~known
    most = size if max_subset_size is None else min(size, max_subset_size)
    if most == size and (left_out == 0 or stays.all()):
        return np.arange(size)
    if not known.all():  # where none is known all count the same
        norms = np.where(known, norms, norms[known].mean() if known.any() else 0.0)
    order = np.where(stays, np.inf, norms).argsort(kind="stable")
    lightest = norms[order[: size - np.count_nonzero(stays)]].cumsum()
    chosen = max(size - int(np.searchsorted(lightest, left_out * norms.sum(), side="right")), min_subset_size)
    chosen = min(-(-chosen // size_multiple) * size_multiple, most)
    return np.sort(order[size - chosen :])


class GrowingPool:
    """How many samples carry the gradient of a pool that grows, without sorting it anew.

    Args:
        left_out: see :func:`select_by_gradient_mass`.
    """

    def __init__(self, left_out: float):
        self._left_out = left_out
        self._lightest: np.ndarray = np.empty(0)  # ascending, of those that may be left out
        self._size = self._known = 0
        self._mass = 0.0  # of those whose norm is known

    def add(self, norms: np.ndarray, stays: np.ndarray) -> int:
        """Take in samples, arrays as for :func:`carriers`; the smallest subset then has so many.

        Where all norms are known, these are at most as many more as samples came.
        """
        known = np.isfinite(norms)
        found = norms[known]
        self._size, self._known, self._mass = (
            self._size + len(norms),
            self._known + len(found),
            self._mass + found.sum(),
        )
        light = np.sort(found[~stays[known]])
        self._lightest = np.insert(self._lightest, self._lightest.searchsorted(light), light)
        if not self._known:
            return self._size
        most = self._left_out * self._mass * (self._size / self._known)  # the others count as the mean of these
        return self._size - int(self._lightest.cumsum().searchsorted(most, side="right"))
