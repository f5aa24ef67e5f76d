"""EDBA as the paper writes it, to read and to test by: :mod:`composer_edba.functional` gives the same, fast."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["gradient_metric", "last_layer_gradients", "margin", "select"]


def last_layer_gradients(inputs: Tensor, output_grads: Tensor, bias: bool = True) -> Tensor:
    """Each sample's last-layer gradient g_i = Σ_t d_it ⊗ [h_it, 1], (B, C * (F + 1)), or (B, C * F) without a bias.

    ``inputs``, h, are (B, F) or (B, T..., F), ``output_grads``, d, (B, C) or (B, T..., C).
    """
    gradients = []
    for h, d in zip(inputs, output_grads, strict=True):
        h, d = h.reshape(-1, h.shape[-1]), d.reshape(-1, d.shape[-1])
        if bias:
            h = torch.cat([h, h.new_ones(len(h), 1)], 1)
        gradients.append((d.T @ h).flatten())
    return torch.stack(gradients)


def gradient_metric(gradients: Tensor, subset: Iterable[int]) -> Tensor:
    """G(S) = ‖(1/|S|) Σ_{i∈S} g_i‖₂ for ``gradients`` (B, D)."""
    return torch.stack([gradients[i] for i in subset]).mean(0).norm()


def margin(model_metric: float, gradient_metric: float, model_average: float, gradient_average: float) -> float:
    """Equation 1, |(M - M̄) / (G - Ḡ) - 1|; a zero denominator is infinitely far, but for 0 / 0."""
    rise, run = model_metric - model_average, gradient_metric - gradient_average
    if run == 0:
        return 0.0 if rise == 0 else float("inf")
    return abs(rise / run - 1)


def select(
    gradients: Tensor,
    model_metric: float,
    model_average: float,
    gradient_average: float,
    candidates: Iterable[list[int]],
) -> list[int]:
    """The first candidate of least margin."""

    def cost(subset: list[int]) -> float:
        return margin(model_metric, gradient_metric(gradients, subset).item(), model_average, gradient_average)

    return min(candidates, key=cost)
