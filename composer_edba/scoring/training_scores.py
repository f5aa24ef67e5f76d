"""The last layer's inputs and output gradients as a training step itself makes them: no forward of their own."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from composer_edba.scoring.last_layer import single_position
from composer_edba.scoring.sample_losses import mean_loss, sample_losses

__all__ = ["Microbatch", "TrainingScores"]


@dataclass
class Microbatch:
    """What one forward and its backward gave."""

    inputs: list[Tensor] = field(default_factory=list)  # of the layer, at each of its calls
    outputs: list[Tensor] = field(default_factory=list)  # until the loss is derived by them
    output_grads: dict[int, Tensor] = field(default_factory=dict)  # by the number of the call
    losses: Tensor | None = None

    @property
    def size(self) -> int:
        """Its samples; 0: none went through the layer."""
        return len(self.inputs[0]) if self.inputs else 0


class TrainingScores:
    """Watches a layer while the network trains: its inputs h, and the training loss derived by its outputs.

    A step is any number of microbatches, each a forward and a backward. Nothing about the training changes. What is
    kept is what the step saw: augmented, with dropout on, with the loss as other algorithms changed it.

    Args:
        derives: whether :meth:`end_loss` derives the loss by the layer's output, for loops whose own gradients may be
            scaled; False, the default: the gradients are those of the training's own backward.

    Attributes:
        mean_of_samples: whether each sample's own loss can be had; None: not yet tried.
    """

    def __init__(self, derives: bool = False) -> None:
        self.mean_of_samples: bool | None = None
        self._derives = derives
        self._layer: nn.Module | None = None
        self._handle: Any = None
        # In a compiled network the graph breaks here, so that the hook sees real tensors. Always the same: another one
        # would be compiled anew.
        self._hook = torch.compiler.disable(self._keep)
        self._parts: list[Microbatch] = []
        self._open = self._was_called = self._recompiled = False

    def watch(self, layer: nn.Module) -> None:
        """Put a hook on ``layer``, unless there is one; on another layer it is taken off."""
        if self._layer is not layer:
            self.unwatch()
            self._layer = layer
        if self._handle is None:
            self._handle = layer.register_forward_hook(self._hook)

    def unhook(self) -> None:
        """Take the hook off; what the step has seen stays."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def unwatch(self) -> None:
        """Leave no hook and no tensor behind."""
        self.unhook()
        self._layer, self._parts = None, []
        self._open = self._was_called = self._recompiled = False

    def begin_step(self) -> None:
        """Forget the last step, or the part of this one that ran out of memory."""
        self._parts, self._open = [], False

    def begin_forward(self) -> None:
        """The next microbatch's forward comes now."""
        self._parts.append(Microbatch())
        self._open = True

    def end_forward(self) -> None:
        """It is over: what calls the layer from now on (checkpointed activations, evaluation) is none of the step's."""
        self._open = False

    @property
    def sizes(self) -> list[int]:
        """Samples of each microbatch so far that went through the layer."""
        return [part.size for part in self._parts]

    def begin_loss(self, loss: Callable[[Any, Any], Any], outputs: Any, batch: Any) -> None:
        """The microbatch's loss is computed next: have each sample's own, if ``loss(outputs, batch)`` allows for it."""
        part = self._parts[-1]
        if part.inputs and self.mean_of_samples is not False:
            part.losses = sample_losses(loss, outputs, batch, part.size, trial=self.mean_of_samples is None)
            if part.losses is None:
                self.mean_of_samples = False

    def end_loss(self, value: Any) -> None:
        """The microbatch's loss is ``value``, the mean over its samples, for all of which it stands if need be."""
        part, mean = self._parts[-1], mean_loss(value)
        if self._derives and part.outputs:
            assert self._layer is not None
            grads = torch.autograd.grad(mean, part.outputs, retain_graph=True, allow_unused=True)
            found = {call: grad for call, grad in enumerate(grads) if grad is not None}
            part.output_grads = {call: self._grad_rows(self._layer, grad) * part.size for call, grad in found.items()}
            part.outputs = []
        wanted = mean.detach().float()
        if part.losses is not None and self.mean_of_samples is None and math.isfinite(loss := float(wanted)):
            self.mean_of_samples = abs(float(part.losses.mean()) - loss) <= 1e-3 * abs(loss) + 1e-6
        if part.losses is None or not self.mean_of_samples:
            part.losses = wanted

    def rows(self, factor: Tensor | float | None) -> Tensor | None:
        """h, d and the loss of the step's samples side by side, in their order, float32 (B, F + C + 1).

        None for one step of a network that was compiled without the hook, which is compiled anew.

        Args:
            factor: d is the gradient of the scaled training loss times this; None: it was derived.

        Raises:
            ValueError: if the layer was not called, or the loss does not depend on it.
        """
        assert self._layer is not None
        parts, self._parts = self._parts, []
        if not self._was_called and not self._recompiled and "torch._dynamo" in sys.modules:
            torch.compiler.reset()
            self._recompiled = True
            return None
        rows = []
        for part in parts:
            if not part.inputs or not part.output_grads:
                what = "got no gradient" if part.inputs else "was not called in the training forward"
                raise ValueError(f"last_layer ({type(self._layer).__name__}) {what}: name another layer")
            assert part.losses is not None
            rows.append(torch.cat([self._part_rows(part, factor), part.losses.expand(part.size).unsqueeze(1)], 1))
        return torch.cat(rows)

    # What is kept of a sample, which other classes may make less.

    several_calls = False
    """Whether the layer may be called more than once in a forward, and at several positions."""

    def _input_rows(self, module: nn.Module, inputs: Tensor) -> Tensor:
        # Copies: a view would keep all of the activations that it is a part of.
        return single_position(module, inputs).detach().to(torch.float32, copy=True)

    def _grad_rows(self, module: nn.Module, grad: Tensor) -> Tensor:
        return single_position(module, grad).detach().to(torch.float32, copy=True)

    def _part_rows(self, part: Microbatch, factor: Tensor | float | None) -> Tensor:
        grads = part.output_grads[0] if factor is None else part.output_grads[0] * factor
        return torch.cat([part.inputs[0], grads], 1)

    @property
    def features(self) -> int:
        """F, the layer's inputs a sample."""
        assert self._layer is not None
        return int(getattr(self._layer, "in_features" if isinstance(self._layer, nn.Linear) else "in_channels"))

    @property
    def bias(self) -> bool:
        """Whether the layer has a bias."""
        return self._layer is not None and self._layer.bias is not None

    def _keep(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if not self._open or not output.requires_grad:
            return
        self._was_called = True
        part = self._parts[-1]
        if part.inputs and not self.several_calls:
            raise ValueError(
                f"last_layer ({type(module).__name__}) is called more than once in a forward: scoring='cached' keeps "
                "one position a sample. Use scoring='forward', or name another layer"
            )
        call = len(part.inputs)
        part.inputs.append(self._input_rows(module, args[0]))
        if self._derives:
            part.outputs.append(output)
            return

        def keep_grad(grad: Tensor) -> None:
            part.output_grads[call] = self._grad_rows(module, grad)

        output.register_hook(keep_grad)
