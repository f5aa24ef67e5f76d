"""A supervised training loop that is not Composer's, as the engine sees it: what Ignite's and the plain one share."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from typing_extensions import override

from composer_edba.engine import Engine, Loop, Network
from composer_edba.loading.batch import batch_size, index_batch
from composer_edba.loading.ranks import seed_of
from composer_edba.method.selector import highest_learning_rate
from composer_edba.scoring.gradient_weight import GradientWeight
from composer_edba.scoring.images import scaled_images
from composer_edba.scoring.last_layer import named_last_layer
from composer_edba.scoring.training_scores import TrainingScores
from composer_edba.settings import is_by_mass

__all__ = ["SupervisedLoop"]


class SupervisedLoop(Loop):
    """A network, a loss of its outputs and a target, and batches that hold inputs and target; with its engine.

    With ``scoring="cached"`` what the training's own forward gives goes through the loss once more, by which the last
    layer's gradients are found whatever the loop does with its own loss (gradient scaling, accumulation).

    Args:
        settings: all of them.
        model, loss_fn, forward, precision, optimizer: see :class:`~composer_edba.plain.SubsetLoader`.
        split: turns a pool, or a part of it, into ``(inputs, target)`` on the model's device.

    Raises:
        ValueError: if the named last layer is none of the model's.
    """

    derives = True

    def __init__(
        self,
        settings: Mapping[str, Any],
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        *,
        split: Callable[[Any], tuple[Any, Any]],
        forward: Callable[[nn.Module, Any], Any] | None = None,
        precision: Callable[[], contextlib.AbstractContextManager] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ):
        # DistributedDataParallel's own forward would broadcast buffers between ranks.
        self._model: nn.Module = model.module if isinstance(model, (DistributedDataParallel, DataParallel)) else model
        self._settings, self._loss_fn, self._split, self._forward = settings, loss_fn, split, forward
        self._whole = _Whole(self._model, forward)  # one for all steps: the scorer checks a model once
        self._precision = contextlib.nullcontext if precision is None else precision
        self._optimizers = [] if optimizer is None else [optimizer]
        self._batch: Any = None  # what is trained on now
        # In a compiled network the graph breaks at them, so that they see real tensors.
        self._hooks = torch.compiler.disable(self._begin_forward), torch.compiler.disable(self._end_forward)
        self._handles: list[Any] = []
        self._warned = False
        self._weight = GradientWeight()
        self.engine = Engine(settings, self)
        if isinstance(layer := settings["last_layer"], str):  # its name in the model, and not in what is scored
            self.engine.scorer.last_layer = named_last_layer(self._model, layer)

    # ---- a step

    def choose(self, batch: Any) -> Any:
        """The subset of ``batch`` to train on, see :meth:`~composer_edba.engine.Engine.choose`."""
        self._batch = self.engine.choose(batch)
        self._weight.value = self.engine.gradient_weight
        if (recorder := self._recorder) is not None:
            recorder.begin_step()
        if recorder is not None or self._weight.value != 1:
            self._watch()
        return self._batch

    def end_step(self) -> float:
        """The batch was trained on; see :meth:`~composer_edba.engine.Engine.end_step`. Twice, it does nothing more."""
        remembered, recorder = self.engine.remembered, self._recorder
        self._batch, weight, self._weight.value = None, self._weight.value, 1.0
        if remembered is not None and recorder is not None and sum(recorder.sizes) == 0:
            remembered.leave_out()
            if not self._warned:
                warnings.warn(
                    "a batch did not go through the model in training, so nothing is known of its samples: "
                    "scoring='cached' needs model(inputs) to be called with gradients enabled",
                    stacklevel=3,
                )
            self._warned = True
        return self.engine.end_step(None if weight == 1 else 1 / weight)

    @property
    def weighs(self) -> bool:
        """Whether the gradient may have to be multiplied by a weight."""
        return is_by_mass(self._settings["criterion"])

    def state_dict(self) -> dict[str, Any]:
        """The engine's state; a batch that has been trained on counts."""
        remembered = self.engine.remembered
        if remembered is not None and remembered.samples is not None and remembered.recorder is None:
            self.end_step()
        return self.engine.state_dict()

    # ---- what the engine asks

    @override
    def device(self) -> torch.device:
        return next(self._model.parameters()).device

    @override
    def network(self) -> Network:
        return Network(self._whole, lambda out, parts: self._loss_fn(out, parts[1]), self._prepare, self._precision)

    def _prepare(self, batch: Any) -> tuple[Any, Any]:
        (inputs, target), factor = self._split(batch), self._settings["scale_factor"]
        return (inputs if factor == 1 else scaled_images(inputs, factor, what="the model's input")), target

    @override
    def seed(self) -> int:
        return seed_of(self._settings["seed"], self.device())

    @override
    def learning_rate(self) -> float | None:
        return highest_learning_rate(self._optimizers)

    # ---- the training's own forward

    def _watch(self) -> None:
        if not self._handles:
            before, after = self._hooks
            self._handles = [self._model.register_forward_pre_hook(before), self._model.register_forward_hook(after)]
        if self._weight.value != 1:
            layer = self.engine.scorer.layer
            assert layer is not None
            self._weight.watch(layer)

    def unwatch(self) -> None:
        """Leave no hook on the model until the next step; what the last one found out can still be entered."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._weight.unwatch()
        if self.engine.remembered is not None:
            self.engine.remembered.unhook()

    @property
    def _recorder(self) -> TrainingScores | None:
        return None if self.engine.remembered is None else self.engine.remembered.recorder

    def _begin_forward(self, module: nn.Module, args: Any) -> None:
        recorder = self._recorder
        self._weight.begin_forward()
        if recorder is not None and self._batch is not None and torch.is_grad_enabled():
            recorder.begin_forward()

    def _end_forward(self, module: nn.Module, args: Any, outputs: Any) -> None:
        recorder, remembered = self._recorder, self.engine.remembered
        if recorder is None or remembered is None or self._batch is None or not torch.is_grad_enabled():
            return
        recorder.end_forward()
        if recorder.sizes[-1] == 0:  # its end tells that the last layer was not called
            return
        size, done = batch_size(self._batch), sum(recorder.sizes)
        inputs, target = self._split(index_batch(self._batch, slice(done - recorder.sizes[-1], done), size))
        if self._forward is not None:  # what the loss takes, made of the outputs that are there
            outputs = self._forward(_Recorded(self._model, outputs), inputs)
        with self._precision():
            recorder.begin_loss(self._loss_fn, outputs, target)
            recorder.end_loss(self._loss_fn(outputs, target))
        if done >= size:
            remembered.end_microbatches()


class _Whole(nn.Module):
    """The model as the scorer calls it, with ``(inputs, target)``."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Any], Any] | None):
        super().__init__()
        self.model, self._forward = model, forward

    def forward(self, parts: tuple[Any, Any]) -> Any:
        return self.model(parts[0]) if self._forward is None else self._forward(self.model, parts[0])


class _Recorded(nn.Module):
    """Stands in for a model that has been called: gives what it gave, and has what it has."""

    def __init__(self, model: nn.Module, outputs: Any):
        super().__init__()
        self.__dict__.update(_model=model, _outputs=outputs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)
