"""EDBA as a handler of PyTorch Ignite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from typing_extensions import Unpack, override

from composer_edba.loops.summary import summary_of
from composer_edba.loops.supervised import SupervisedLoop
from composer_edba.settings import Settings, checked, documented

try:
    from ignite.engine import DeterministicEngine, Engine, Events
    from ignite.utils import convert_tensor
except ModuleNotFoundError as error:
    raise ImportError(
        f"composer_edba.ignite needs PyTorch Ignite ({error.name} is not installed): "
        "pip install 'composer-edba[ignite]'"
    ) from error

__all__ = ["EDBAHandler"]


@documented("ignite")
class EDBAHandler:
    """Trains an Ignite trainer on the subset of each batch that EDBA chooses, and sizes its batches.

    At ``GET_BATCH_COMPLETED`` the batch (the pool) is scored by a forward pass without side effects and
    ``engine.state.batch`` becomes the chosen subset, before the process function sees it. The figures of the step are
    in ``engine.state.edba`` and, with the prefix ``edba/``, in ``engine.state.metrics``, where Ignite's loggers find
    them (``metric_names="all"``).

    **Epochs.** Every epoch is one pass over the data, drawn from a resizable copy of the loader. The number of batches
    in it changes with their size, so ``engine.state.epoch_length`` is unset while a batch is being fetched: Ignite then
    ends the epoch where the loader ends. Between fetches it holds the mean number of batches in an epoch so far, which
    progress bars and checkpoints may read, and never the number that would end the epoch. An ``epoch_length`` of your
    own in ``trainer.run`` is left alone.

    **Runs.** A further ``trainer.run`` goes on with averages, size and counts, whatever Ignite's own counts begin with:
    it is the same model. Another model needs another trainer and another handler.

    Args:
        model: the network that the trainer trains, also inside of DistributedDataParallel (``idist.auto_model``).
        loss_fn: ``loss_fn(y_pred, y)``, a scalar: the mean over the samples.
        optimizer: whose learning rate ``batch_size_policy="loss"`` goes by, if a schedule changes it; checked to train
            this model, and never touched. None: constant.
        prepare_batch: ``prepare_batch(batch, device=..., non_blocking=...)`` gives ``(x, y)``, as this and the next
            four do for ``create_supervised_trainer``; it sees the pool for scoring. None: the batch is such a pair.
        device: where the pool is moved for scoring. None: where the model is.
        non_blocking: whether it is moved asynchronously. Default False.
        model_fn: ``model_fn(model, x)``. None: ``model(x)``.
        model_transform: turns what the model gives into what the loss takes. None: nothing to do.
        precision: gives the context of the trainer's forward; for ``amp_mode="amp"``
            ``lambda: torch.autocast("cuda")``. None: none.
        settings: see :mod:`composer_edba.settings`; ``start`` and ``end`` are fractions of ``max_epochs`` or
            ``max_iters``.

    Raises:
        ValueError: if an argument is out of its range, the named last layer is none of the model's, or ``optimizer``
            holds none of the model's parameters.
        TypeError: if an argument has a wrong type, or there is no such setting.

    Example:
        >>> trainer = create_supervised_trainer(model, optimizer, loss_fn)
        >>> EDBAHandler(model, loss_fn).attach(trainer, loader)
        >>> trainer.run(loader, max_epochs=10)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        optimizer: Optimizer | None = None,
        *,
        prepare_batch: Callable[..., tuple[Any, Any]] | None = None,
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        model_fn: Callable[[nn.Module, Any], Any] | None = None,
        model_transform: Callable[[Any], Any] | None = None,
        precision: Callable[[], contextlib.AbstractContextManager] | None = None,
        **settings: Unpack[Settings],
    ):
        chosen = checked(settings, "ignite")
        if optimizer is not None:
            parameters = {id(parameter) for parameter in model.parameters()}
            if not any(id(p) in parameters for group in optimizer.param_groups for p in group["params"]):
                raise ValueError(
                    "optimizer holds none of the model's parameters: give EDBAHandler the model that this optimizer "
                    "trains"
                )
        self._prepare_batch, self._non_blocking = prepare_batch, non_blocking
        self._model_fn, self._model_transform = model_fn, model_transform
        split, forward = self._split, self._forward
        self._loop = _HandlerLoop(
            chosen, model, loss_fn, split=split, forward=forward, precision=precision, optimizer=optimizer
        )
        self._pools = self._loop.engine.pools
        self._resizes = chosen["batch_size_policy"] != "fixed" or chosen["scoring"] == "cached"
        self._device = self._loop.device() if device is None else torch.device(device)
        self._engine: Engine | None = None
        self._given: Any = None  # the user's loader
        self._loader: Any = None  # what the engine draws from
        self._whole_passes = False  # whether epochs end here with the loader's passes
        self._written: int | None = None  # the epoch_length that was last set here
        self._completed, self._resumed = 0, False  # epochs; whether a state is to be taken up
        self._fresh = self._first_batch = True  # no epoch of this run, and no batch of this epoch, has begun
        self._counter = 0  # Ignite's own, of batches in this epoch

    def attach(self, trainer: Engine, loader: DataLoader) -> None:
        """Have ``trainer`` train on chosen subsets of ``loader``'s batches; then call ``trainer.run(loader, ...)``.

        Handlers that change the batch at ``GET_BATCH_COMPLETED`` must be attached before, those that log figures at
        ``ITERATION_COMPLETED`` after this one.

        Args:
            trainer: an Engine, for example from ``create_supervised_trainer``.
            loader: the DataLoader that ``trainer.run`` will be given. One that cannot be resized (``batch_size=None``,
                a batch sampler of its own, no DataLoader) gets selection only, and a warning when the run starts.

        Raises:
            TypeError: if ``trainer`` is no Engine.
            ValueError: if this handler is attached already, or if ``trainer`` is a DeterministicEngine and the batches
                are to be resized: it draws all batches of a pass in advance. When the run starts: if the loader is
                empty, or ``trainer.run`` was given another one.
        """
        if not isinstance(trainer, Engine):
            raise TypeError(f"trainer is a {type(trainer).__name__}: it must be an ignite.engine.Engine")
        if self._engine is not None:
            raise ValueError("this EDBAHandler is attached already: make one for each trainer")
        if isinstance(trainer, DeterministicEngine) and self._resizes:
            raise ValueError(
                "trainer is a DeterministicEngine, which draws all batches of a pass in advance, so their size cannot "
                "follow the training: use an Engine, or EDBAHandler(..., batch_size_policy='fixed')"
            )
        self._engine, self._given = trainer, loader
        self._show(trainer, {})
        trainer.add_event_handler(Events.STARTED, self._started)
        trainer.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        trainer.add_event_handler(Events.GET_BATCH_STARTED, self._get_batch_started)
        trainer.add_event_handler(Events.GET_BATCH_COMPLETED, self._get_batch_completed)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        if self._loop.engine.may_remember or self._loop.weighs:
            over = Events.COMPLETED | Events.TERMINATE | Events.INTERRUPT
            trainer.add_event_handler(over, self._loop.unwatch)
            trainer.add_event_handler(Events.EXCEPTION_RAISED, self._exception_raised)

    def summary(self) -> str:
        """What the run came to so far, as a table in plain text: samples drawn, trained on, left out; the overhead."""
        return summary_of(self._loop.engine)

    @property
    def batch_size(self) -> int | None:
        """Size of the batches drawn from now on, in samples a rank; None before the run or if it cannot change."""
        return self._loop.engine.batch_size

    def state_dict(self) -> dict[str, Any]:
        """For Ignite's Checkpoint, next to the trainer, the model and the optimizer: plain values, equal on all ranks.

        It also holds where in the data the run is: a run resumed inside of an epoch goes on with the batches that were
        left. Random streams are not in it, nor in any other of Ignite's states but DeterministicEngine's.
        """
        own = {"whole_passes": self._whole_passes, "epoch_length": self._written, "completed": self._completed}
        return {**self._loop.state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave, when the trainer runs next. Its own state must be loaded too."""
        self._loop.engine.load_state_dict(state)
        self._written, self._completed = state["epoch_length"], state["completed"]
        self._resumed = bool(state["whole_passes"])

    # ---- events

    def _started(self, engine: Engine) -> None:
        if engine.state.dataloader is not self._given:
            raise ValueError(
                f"trainer.run was given {_name(engine.state.dataloader)}, but EDBAHandler.attach another loader, "
                f"{_name(self._given)}: give both the same object"
            )
        self._fresh = True
        if isinstance(engine, DeterministicEngine):
            self._loader = self._given
            return
        self._loader = self._loop.engine.draw_from(self._given)
        # Ignite makes the iterator from this, after EPOCH_STARTED.
        engine.state.dataloader = self._pools.rest_of_pass(self._loader)
        length = engine.state.epoch_length
        own = length is not None and length != self._written and length != _length(self._given)
        self._whole_passes = self._pools.sampler is not None and not own
        if self._resumed and self._whole_passes:
            # Ignite divides iterations by epoch_length, and epochs of changing length are not told by that.
            engine.state.epoch = self._completed
        self._resumed, self._completed = False, engine.state.epoch

    def _epoch_started(self, engine: Engine) -> None:
        self._counter = 0
        if self._fresh:  # Ignite begins to count where it believes the epoch was left
            length = engine.state.epoch_length
            self._counter = engine.state.iteration % length if length else engine.state.iteration
        self._loop.done = self._elapsed(engine)  # workers have their first batches chosen when the pass begins
        self._fresh, self._first_batch = False, True

    def _get_batch_started(self, engine: Engine) -> None:
        self._loop.done = self._elapsed(engine)
        if engine.state.dataloader is not self._loader and not isinstance(engine, DeterministicEngine):
            engine.state.dataloader = self._loader
        # The first batch of an epoch finds the last pass's iterator at its end, and Ignite must make a new one.
        if self._whole_passes and not self._first_batch:
            engine.state.epoch_length = None
        self._first_batch = False

    def _get_batch_completed(self, engine: Engine) -> None:
        self._loop.done = self._elapsed(engine)
        batch: Any = engine.state.batch
        if self._prepare_batch is None:  # the trainer need not move it again
            batch = convert_tensor(batch, device=self._device, non_blocking=self._non_blocking)
        engine.state.batch = self._loop.choose(batch)
        self._counter += 1
        if self._whole_passes:
            self._set_length(engine, engine.state.iteration + 1, engine.state.epoch - 1)
        self._show(engine, self._loop.engine.figures)

    def _iteration_completed(self, engine: Engine) -> None:
        overhead = self._loop.end_step()
        self._show(engine, {**self._loop.engine.figures, "overhead": overhead})
        if self._whole_passes and self._pools.is_over:
            self._completed = engine.state.epoch

    def _epoch_completed(self, engine: Engine) -> None:
        self._completed = engine.state.epoch
        if not self._whole_passes:
            return
        if engine.state.max_iters is not None:
            engine.state.max_epochs = None  # which Ignite concludes from the length of the first epoch
        self._counter = 0
        self._loop.engine.begin_pass()
        self._set_length(engine, engine.state.iteration, engine.state.epoch)

    def _exception_raised(self, engine: Engine, error: BaseException) -> None:
        self._loop.unwatch()
        if len(engine._event_handlers[Events.EXCEPTION_RAISED]) == 1:  # without a handler Ignite would have raised it
            raise error

    # ---- their parts

    @staticmethod
    def _show(engine: Engine, figures: dict[str, float]) -> None:
        state: Any = engine.state
        state.edba = dict(figures)
        for name in [name for name in state.metrics if name.startswith("edba/")]:
            del state.metrics[name]  # this step may not have all that the last one had
        state.metrics.update({f"edba/{name}": value for name, value in figures.items()})

    def _set_length(self, engine: Engine, iterations: int, epochs: int) -> None:
        """Set ``epoch_length`` to about the mean so far, such that nobody concludes more epochs than are over."""
        size = self._pools.shortest
        part = min(1.0, self._pools.seen / size if size else 1.0) if self._counter else 0.0
        mean = round(iterations / max(epochs + part, 1e-9)) if iterations else 0
        # A length that the counter reached would end the epoch.
        self._written = max(mean, iterations // (epochs + 1) + 1, self._counter + 1)
        engine.state.epoch_length = self._written

    def _elapsed(self, engine: Engine) -> float:
        """Fraction of training done before this batch."""
        state, length = engine.state, engine.state.epoch_length
        if state.max_iters is not None:
            return state.iteration / state.max_iters
        if state.max_epochs is None:
            return 0.0
        if self._whole_passes:
            part = self._loop.engine.part_of_pass
        else:
            part = min(1.0, self._counter / length) if length else 0.0
        return (state.epoch - 1 + part) / state.max_epochs

    def _split(self, batch: Any) -> tuple[Any, Any]:
        if self._prepare_batch is not None:
            return self._prepare_batch(batch, device=self._device, non_blocking=self._non_blocking)
        if not isinstance(batch, (list, tuple)) or len(batch) != 2:
            raise ValueError(
                f"the batch is a {type(batch).__name__}, not a pair (x, y): give EDBAHandler the prepare_batch that "
                "the trainer has"
            )
        return batch[0], batch[1]

    def _forward(self, model: nn.Module, inputs: Any) -> Any:
        outputs = model(inputs) if self._model_fn is None else self._model_fn(model, inputs)
        return outputs if self._model_transform is None else self._model_transform(outputs)


class _HandlerLoop(SupervisedLoop):
    done = 0.0  # fraction of training that is over

    @override
    def elapsed(self) -> float | None:
        return self.done


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None


def _name(loader: Any) -> str:
    return "no data" if loader is None else f"a {type(loader).__name__}"
