"""EDBA for loops written with Hugging Face Accelerate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from typing_extensions import Unpack, override

from composer_edba.plain import SubsetLoader
from composer_edba.settings import Settings, documented

try:
    from accelerate import Accelerator
    from accelerate.data_loader import DataLoaderStateMixin
    from accelerate.utils import send_to_device

    from composer_edba.loops.prepared import own_loader
except ModuleNotFoundError as error:
    raise ImportError(
        f"composer_edba.accelerate needs Accelerate ({error.name} is not installed): "
        "pip install 'composer-edba[accelerate]'"
    ) from error

__all__ = ["AcceleratedSubsetLoader"]


@documented("accelerate")
class AcceleratedSubsetLoader(DataLoaderStateMixin, SubsetLoader):
    """A :class:`~composer_edba.plain.SubsetLoader` that stands in for the loader that an Accelerator prepares.

    It shards the samples over the processes, moves batches to the Accelerator's device, and tells it where a pass ends,
    so that ``accelerator.accumulate`` steps there. Batches resize, which those of a prepared loader cannot.

    Args:
        accelerator: the Accelerator.
        loader: the DataLoader, prepared or not.
        model: the network, prepared or not.
        loss_fn: ``loss_fn(outputs, target)``, a scalar: the mean over the samples.
        split, forward: see SubsetLoader.
        optimizer: whose learning rate ``batch_size_policy="loss"`` goes by, if a schedule changes it. None: constant.
        scheduler: a schedule, prepared or not, that the loop steps with every update: it keeps up with the data, as in
            SubsetLoader. None: none.
        settings: see :mod:`composer_edba.settings`.

    Raises:
        ValueError: as SubsetLoader; if the Accelerator dispatches batches from one process, or has
            ``even_batches=False`` on several processes; if ``split_batches`` does not divide the batch.
        TypeError: as SubsetLoader.

    Example:
        >>> model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
        >>> loader = AcceleratedSubsetLoader(accelerator, loader, model, loss_fn, scheduler=scheduler)
        >>> accelerator.register_for_checkpointing(loader)
    """

    def __init__(
        self,
        accelerator: Accelerator,
        loader: DataLoader,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        *,
        split: Callable[[Any], tuple[Any, Any]] | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        optimizer: Optimizer | None = None,
        scheduler: Any = None,
        **settings: Unpack[Settings],
    ):
        self._accelerator, self.gradient_state = accelerator, accelerator.gradient_state
        self.end_of_dataloader, self.remainder = False, -1
        super().__init__(
            own_loader(loader, accelerator),
            model,
            loss_fn,
            split=split,
            forward=forward,
            precision=accelerator.autocast,
            optimizer=getattr(optimizer, "optimizer", optimizer),
            scheduler=getattr(scheduler, "scheduler", scheduler),
            **settings,
        )

    _face = "accelerate"

    @override
    def _pass_begins(self) -> None:
        self._loop.engine.pools.set_epoch(int(self._passes))
        self.begin()

    @override
    def _arrived(self, batch: Any) -> Any:
        return send_to_device(batch, self._accelerator.device)

    @override
    def _chosen(self) -> None:
        self.end_of_dataloader = self._loop.engine.pools.is_over

    @override
    def _pass_ended(self) -> None:
        self.end()

    @override
    def _planned_steps(self) -> int:
        """An Accelerator steps a schedule once an update for each of its processes, if it does not split batches."""
        updates = -(-len(self._given) // self._accelerator.gradient_accumulation_steps)
        return updates * (1 if self._accelerator.split_batches else self._accelerator.num_processes)

    @override
    def _keep_up(self) -> None:
        if self._accelerator.sync_gradients:  # else the step is still to come
            super()._keep_up()
