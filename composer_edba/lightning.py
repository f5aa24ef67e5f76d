"""EDBA as a callback of Lightning."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from torch import Tensor
from typing_extensions import Unpack, override

from composer_edba.loading.pools import planned_updates
from composer_edba.loops.stepping import Passes, SteppingLoop, replaced
from composer_edba.loops.summary import summary_of
from composer_edba.settings import Settings, checked, documented

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
except ModuleNotFoundError as error:
    raise ImportError(
        f"composer_edba.lightning needs Lightning ({error.name} is not installed): "
        "pip install 'composer-edba[lightning]'"
    ) from error

__all__ = ["EDBACallback"]


@documented("lightning")
class EDBACallback(Callback):
    """Trains a LightningModule on the subset of each batch that EDBA chooses, and sizes its batches.

    The module's ``training_step`` is what is scored and watched: nothing else has to be said. The figures of a step are
    logged as ``edba/...``, the share of the samples drawn so far that were left out, ``edba/left_out``, in the progress
    bar too.

    **Epochs.** Every epoch is one pass over the data, drawn from a resizable copy of the train dataloader. The number
    of batches in it changes with their size; ``trainer.num_training_batches`` is kept true, and validation comes where
    ``val_check_interval`` has it, as a share of the data. ``limit_train_batches`` and the like are left alone.

    **Schedules.** A schedule with ``interval="step"`` is stepped as often as plain training would have for the same
    data: where batches were refilled or have grown it makes several steps at once, so that ``total_steps=
    trainer.estimated_stepping_batches`` ends with the run. With ``max_steps`` it steps once an update.

    Args:
        settings: see :mod:`composer_edba.settings`; ``start`` and ``end`` are fractions of ``max_epochs``, or of
            ``max_steps`` where that is given.

    Raises:
        ValueError: if a setting is out of its range. When a fit begins: if the module optimizes manually, takes a
            ``dataloader_iter``, or has several train dataloaders; if the named last layer is none of the module's.
        TypeError: if a setting has a wrong type, or there is no such setting.

    Example:
        >>> Trainer(max_epochs=10, callbacks=[EDBACallback()]).fit(module, loader)
    """

    def __init__(self, **settings: Unpack[Settings]):
        self._loop = SteppingLoop(checked(settings, "lightning"))
        self._engine = self._loop.engine
        self._passes: Passes | None = None
        self._places = contextlib.ExitStack()  # of the strategy, that this callback has taken
        self._part = 0.0  # of the present pass that lies behind the batch before this one

    @property
    def figures(self) -> dict[str, float]:
        """What is known of the last step, by name."""
        return self._engine.figures

    def summary(self) -> str:
        """What the run came to so far, as a table in plain text: samples drawn, trained on, left out; the overhead."""
        return summary_of(self._engine)

    @property
    def batch_size(self) -> int | None:
        """Size of the batches drawn from now on, in samples a rank; None before the fit or if it cannot change."""
        return self._engine.batch_size

    @override
    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints: plain values, equal on all ranks. Random streams are not in them."""
        return self._engine.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave, when the loader is there."""
        self._engine.load_state_dict(state_dict)

    # ---- a fit

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Be where the strategy prepares loaders and moves batches: the places that Lightning has for changing them."""
        if stage != "fit":
            return
        _check(pl_module)
        strategy, given = trainer.strategy, (trainer.strategy.process_dataloader, trainer.strategy.batch_to_device)

        def process_dataloader(dataloader: object) -> Any:
            loader = given[0](dataloader)
            return self._draw_from(trainer, loader) if trainer.training else loader

        def batch_to_device(batch: Any, *args: Any, **kwargs: Any) -> Any:
            batch = given[1](batch, *args, **kwargs)
            return self._choose(trainer, batch) if trainer.training else batch

        self._passes = None
        taken = replaced(strategy, process_dataloader=process_dataloader, batch_to_device=batch_to_device)
        self._places.enter_context(taken)
        by_index = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)

        def loss(batch: Any) -> Any:
            with replaced(pl_module, log=_nowhere, log_dict=_nowhere):
                output = pl_module.training_step(batch, 0) if by_index else pl_module.training_step(batch)
            return output["loss"] if isinstance(output, dict) else output

        precision = trainer.precision_plugin.train_step_context
        self._loop.begin_run(pl_module, loss, trainer.strategy.root_device, precision)

    def _draw_from(self, trainer: Trainer, loader: Any) -> Any:
        if trainer.fit_loop._combined_loader is None and self._passes is not None:
            raise ValueError("there are several train dataloaders: EDBACallback chooses from one")
        self._loop.optimizers = trainer.optimizers
        self._passes = Passes(self._loop, loader, lambda: self._note(trainer))
        return self._passes

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The optimizers are there; so is, in a resumed fit, what was the last batch of its pass."""
        self._loop.optimizers = trainer.optimizers
        batches = trainer.fit_loop.epoch_loop.batch_progress
        if batches.is_last_batch and self._counts_passes(trainer):
            trainer.fit_loop.max_batches = batches.current.ready

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave strategy and module as they were."""
        self._places.close()
        self._loop.end_run()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As at the end."""
        self.teardown(trainer, pl_module, "fit")

    # ---- a step

    def _choose(self, trainer: Trainer, batch: Any) -> Any:
        self._note(trainer)
        self._part = self._engine.part_of_pass
        batch = self._loop.choose(batch)
        if self._counts_passes(trainer):
            self._set_length(trainer)
        return batch

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """What comes back from the loss is its samples' now."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        self._loop.before_backward(loss, scale / trainer.accumulate_grad_batches)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in what the step found out, log it, and have the schedules keep up with the data."""
        overhead = self._loop.end_step()
        figures = {f"edba/{name}": float(value) for name, value in self.figures.items()}
        pl_module.log_dict({**figures, "edba/overhead": overhead}, batch_size=1)
        pl_module.log("edba/left_out", self._engine.left_out, prog_bar=True, batch_size=1)
        epochs = trainer.max_steps == -1 and self._counts_passes(trainer)
        if epochs and not trainer.fit_loop._should_accumulate():
            self._step_schedules(trainer, pl_module)

    # ---- their parts

    def _note(self, trainer: Trainer) -> None:
        """Take in how much of training is over before the batch that comes next."""
        epochs, steps = trainer.max_epochs, trainer.max_steps
        if steps != -1:
            self._loop.done = trainer.global_step / steps
        elif epochs is not None and epochs > 0:
            self._loop.done = (trainer.current_epoch + self._engine.part_of_pass) / epochs
        else:
            self._loop.done = 0.0

    def _counts_passes(self, trainer: Trainer) -> bool:
        """Whether an epoch is a pass, and not what the user limits it to."""
        assert self._passes is not None
        limited = trainer.limit_train_batches != 1.0 or getattr(trainer, "overfit_batches", 0.0) != 0.0
        return self._passes.resizes and not limited

    def _set_length(self, trainer: Trainer) -> None:
        """Have the epoch end with this batch if the pass does, and not before."""
        pools, epoch_loop = self._engine.pools, trainer.fit_loop.epoch_loop
        over, taken = pools.is_over, epoch_loop.batch_progress.current.ready + 1
        epoch_loop.batch_progress.is_last_batch = over
        rest = 0 if over else max(1, pools.batches_left)
        fetcher: Any = trainer.fit_loop._data_fetcher
        fetcher.length, fetcher.done = taken + rest, over
        trainer.fit_loop.max_batches = taken + rest
        share = trainer.val_check_interval
        if isinstance(share, float) and trainer.val_check_batch not in (None, math.inf):
            now = 1.0 if over else self._engine.part_of_pass
            due = over if share == 1.0 else math.floor(now / share + 1e-9) > math.floor(self._part / share + 1e-9)
            trainer.val_check_batch = taken if due else taken + 1  # what the number of this batch is divided by

    def _step_schedules(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._passes is not None
        part = 1.0 if self._engine.pools.is_over else self._engine.part_of_pass
        per_pass = math.ceil(self._passes.given_batches / trainer.accumulate_grad_batches)
        planned = planned_updates(trainer.current_epoch + part, per_pass)
        for config in trainer.lr_scheduler_configs:
            if config.interval == "step" and not config.reduce_on_plateau:
                schedule: Any = config.scheduler
                for _ in range(planned // config.frequency - schedule.last_epoch):
                    pl_module.lr_scheduler_step(schedule, None)


def _check(module: LightningModule) -> None:
    name = type(module).__name__
    if not module.automatic_optimization:
        raise ValueError(
            f"{name} optimizes manually (automatic_optimization=False), so its training_step cannot be run to score a "
            "batch: wrap its loader in a composer_edba.SubsetLoader"
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise ValueError(f"{name}.training_step takes the dataloader_iter: EDBACallback needs it to take the batch")


def _nowhere(*args: Any, **kwargs: Any) -> None:
    """Where a ``training_step`` that is scored logs to."""
