"""A weight for the gradient that goes back through the last layer, for loops whose loss is their own business."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GradientWeight"]


class GradientWeight:
    """Multiplies what comes back from the loss at a layer's output, and so the step of all that lies before it.

    Attributes:
        value: the factor; 1, the default, leaves everything as it is.
    """

    def __init__(self) -> None:
        self.value = 1.0
        self._calls = 0
        self._layer: nn.Module | None = None
        self._handle: Any = None
        self._hook = torch.compiler.disable(self._weigh)

    def watch(self, layer: nn.Module) -> None:
        """Put the hook on ``layer``, unless it has it."""
        if self._layer is not layer:
            self.unwatch()
            self._layer, self._handle = layer, layer.register_forward_hook(self._hook)

    def unwatch(self) -> None:
        """Take the hook off."""
        if self._handle is not None:
            self._handle.remove()
        self._layer = self._handle = None

    def begin_forward(self) -> None:
        """The next forward comes now."""
        self._calls = 0

    def _weigh(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self.value == 1 or not output.requires_grad:
            return
        self._calls += 1
        if self._calls > 1:  # an output may depend on another, and would be multiplied twice
            raise ValueError(
                f"last_layer ({type(module).__name__}) is called more than once in a forward, so the gradient of a "
                "part of the pool cannot be given the pool's size there: use refill=True, or name another layer"
            )
        weight = self.value
        output.register_hook(lambda grad: grad * weight)
