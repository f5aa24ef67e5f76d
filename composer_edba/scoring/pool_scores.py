"""What is known of a pool: its samples' last-layer inputs and output gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from composer_edba.method.equation import gradient_inner_products

__all__ = ["PoolScores", "at_least_float32"]


@dataclass(frozen=True)
class PoolScores:
    """What the scoring forward found out about a pool of B samples.

    Attributes:
        inputs: last-layer inputs h, (B, F) or (B, T..., F).
        output_grads: gradients d of each sample's own loss by the last layer's output, (B, C) or (B, T..., C).
        model_metric: M, the mean loss, a scalar on the model's device.
        bias: whether the last layer has a bias.
    """

    inputs: Tensor
    output_grads: Tensor
    model_metric: Tensor
    bias: bool

    def inner_products(self) -> Tensor:
        """⟨g_i, g_j⟩, (B, B); see :func:`composer_edba.functional.gradient_inner_products`."""
        return gradient_inner_products(self.inputs, self.output_grads, self.bias)


def at_least_float32(tensor: Tensor) -> Tensor:
    """``tensor`` in float64 if it is that, else in float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
