"""The norms of the last layer's gradients, as a training step itself makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from composer_edba.method.gradient_mass import row_norms
from composer_edba.scoring.last_layer import positions_last
from composer_edba.scoring.training_scores import Microbatch, TrainingScores

__all__ = ["TrainingNorms"]


class TrainingNorms(TrainingScores):
    """Keeps, of a sample, the norm of its last-layer gradient in place of h and d, and the microbatch's mean loss.

    The norm is that of :func:`~composer_edba.functional.gradient_norms`: with several positions a sample, or several
    calls of the layer, the sum of theirs, which the norm of the sum does not exceed. Nothing is copied.
    """

    several_calls = True

    @override
    def begin_loss(self, loss: Callable[[Any, Any], Any], outputs: Any, batch: Any) -> None:
        pass  # the samples' own losses are not needed

    @override
    def _input_rows(self, module: nn.Module, inputs: Tensor) -> Tensor:
        norms = row_norms(positions_last(module, inputs)).float()
        return norms if module.bias is None else torch.hypot(norms, torch.ones_like(norms))

    @override
    def _grad_rows(self, module: nn.Module, grad: Tensor) -> Tensor:
        return row_norms(positions_last(module, grad)).float()

    @override
    def _part_rows(self, part: Microbatch, factor: Tensor | float | None) -> Tensor:
        grads = {call: norms if factor is None else norms * factor for call, norms in part.output_grads.items()}
        terms = [part.inputs[call] * norms for call, norms in grads.items()]
        return torch.stack([term.flatten(1).sum(1) if term.ndim > 1 else term for term in terms]).sum(0).unsqueeze(1)
