"""A trainer that runs forward, loss and backward of its batches itself, as the engine sees it: what Lightning's and
Transformers' share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from composer_edba.engine import Engine, Loop, Network
from composer_edba.loading.ranks import seed_of
from composer_edba.method.selector import highest_learning_rate
from composer_edba.scoring.last_layer import named_last_layer
from composer_edba.scoring.sample_losses import loss_parts
from composer_edba.scoring.training_scores import TrainingScores

__all__ = ["Passes", "SteppingLoop", "replaced"]


class SteppingLoop(Loop):
    """A model and a function that gives a batch's loss; the gradients are those of the trainer's own backward.

    Args:
        settings: all of them.

    Attributes:
        optimizers: of the run.
        done: fraction of training that is over; None: not known.
    """

    def __init__(self, settings: Mapping[str, Any]):
        self._settings = settings
        self._network: Network | None = None
        self._device = torch.device("cpu")
        self.optimizers: Iterable[torch.optim.Optimizer] = ()
        self.done: float | None = None
        self._size, self._factor, self._was_derived = 0, 1.0, False
        self.engine = Engine(settings, self)

    def begin_run(
        self,
        model: nn.Module,
        loss: Callable[[Any], Any],
        device: torch.device,
        precision: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        """Train ``model``, which is or comes to be on ``device``; ``loss(batch)`` is a batch's, as in training.

        Raises:
            ValueError: if the named last layer is none of the model's.
        """
        self._device = device
        if self._network is not None and self._network.model.model is model:
            return
        if isinstance(layer := self._settings["last_layer"], str):  # its name in the model, and not in what is scored
            self.engine.scorer.last_layer = named_last_layer(model, layer)
        # One for all steps: the scorer checks a model once.
        self._network = Network(_Step(model, loss), lambda value, batch: value, precision=precision)

    # ---- a step, which may be one of several before an update

    def choose(self, batch: Any, count: Callable[[Any], int] | None = None) -> Any:
        """The subset of ``batch`` to train on, see :meth:`~composer_edba.engine.Engine.choose`."""
        batch, self._was_derived = self.engine.choose(batch, count), False
        if (recorder := self._recorder) is not None:
            recorder.begin_step()
            recorder.begin_forward()
        return batch

    def before_backward(self, loss: Any, shown: Tensor | float = 1.0, scale: Tensor | float | None = None) -> None:
        """The forward is over: next comes the gradient of ``loss``, the mean over the subset times ``shown``.

        ``scale`` is what the gradient of the mean is multiplied by; None: ``shown``, as nothing else multiplies it.
        """
        if (recorder := self._recorder) is not None:
            recorder.end_forward()
            with torch.no_grad():
                recorder.end_loss(sum(part.detach() for part in loss_parts(loss)) / shown)
            self._factor = recorder.sizes[-1] / (shown if scale is None else scale)
            assert self.engine.remembered is not None
            self.engine.remembered.end_microbatches()
        self._was_derived = True
        if (weight := self.engine.gradient_weight) != 1:
            for part in loss_parts(loss):  # the gradient alone: what is logged stays the mean over the subset
                part.register_hook(lambda grad: grad * weight)

    def end_step(self) -> float:
        """The batch was trained on, or was left; see :meth:`~composer_edba.engine.Engine.end_step`."""
        remembered = self.engine.remembered
        if remembered is not None and remembered.samples is not None and not self._was_derived:
            remembered.leave_out()
        return self.engine.end_step(self._factor / self.engine.gradient_weight)

    def end_run(self) -> None:
        """Leave no hook on the model."""
        if self.engine.remembered is not None:
            self.engine.remembered.uninstall()

    @property
    def _recorder(self) -> TrainingScores | None:
        return None if self.engine.remembered is None else self.engine.remembered.recorder

    # ---- what the engine asks

    @override
    def device(self) -> torch.device:
        return self._device

    @override
    def network(self) -> Network:
        assert self._network is not None
        return self._network

    @override
    def seed(self) -> int:
        return seed_of(self._settings["seed"], self._device)

    @override
    def learning_rate(self) -> float | None:
        return highest_learning_rate(self.optimizers)

    @override
    def elapsed(self) -> float | None:
        return self.done


class _Step(nn.Module):
    """The model as the scorer calls it: a batch gives its loss."""

    def __init__(self, model: nn.Module, loss: Callable[[Any], Any]):
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Any) -> Any:
        return self._loss(batch)


@contextlib.contextmanager
def replaced(target: Any, **methods: Callable[..., Any]) -> Iterator[None]:
    """Have the object ``target`` other methods for a while; what was set on it before is there again afterwards."""
    own, before = vars(target), {name: vars(target)[name] for name in methods if name in vars(target)}
    own.update(methods)
    try:
        yield
    finally:
        for name in methods:
            own.pop(name, None)  # the class's shows again
        own.update(before)


class Passes:
    """A loader as trainers iterate over it that count on its length: each iterator is a pass, or an interrupted one's
    rest; its length is that of the loader they gave.

    Args:
        loop: whose engine draws.
        given: the loader.
        before_batch: called before each batch is drawn.
    """

    def __init__(self, loop: SteppingLoop, given: Any, before_batch: Callable[[], None]):
        self._engine, self._given, self._before_batch = loop.engine, given, before_batch
        self._twin = loop.engine.draw_from(given)
        self._steps = loop.engine.steps  # when the present pass began

    @property
    def resizes(self) -> bool:
        """Whether it is known where a pass ends, whatever the sizes of its batches."""
        return self._engine.pools.sampler is not None and self._engine.pools.shortest is not None

    @property
    def given_batches(self) -> int:
        """Batches in a pass of the loader by itself."""
        return len(self._given)

    def __len__(self) -> int:
        return self.given_batches

    def __iter__(self) -> Iterator[Any]:
        if self._steps != self._engine.steps:
            self._engine.begin_pass()
            self._steps = self._engine.steps
        self._before_batch()  # workers have their first batches chosen when the iterator is made
        return _Noticed(iter(self._engine.pools.rest_of_pass(self._twin)), self._before_batch)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the engine's state tells what is left of a pass, whatever loader it is."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""

    def __getattr__(self, name: str) -> Any:  # its sampler, its data set
        return getattr(self.__dict__["_twin"], name)


class _Noticed(Iterator[Any]):
    def __init__(self, batches: Iterator[Any], before_batch: Callable[[], None]):
        self._batches, self._before_batch = batches, before_batch

    def __next__(self) -> Any:
        self._before_batch()
        return next(self._batches)
