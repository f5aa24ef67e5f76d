"""EDBA for a training loop written by hand: a loader that yields chosen subsets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from typing_extensions import Unpack

from composer_edba.loading.pools import planned_updates
from composer_edba.loops.summary import summary_of
from composer_edba.loops.supervised import SupervisedLoop
from composer_edba.settings import Settings, checked, documented

__all__ = ["SubsetLoader"]


@documented("plain")
class SubsetLoader:
    """Yields, for every batch of a DataLoader, the subset that EDBA chooses for the model as it is then.

    Each pass draws every sample of the loader once; the batches change their size as training goes on. The loader
    itself stays as it is. Batches come as the loader gives them, with fewer samples. On several ranks
    (DistributedDataParallel) all ranks choose one subset together, equally many samples each.

    Args:
        loader: the DataLoader. One that cannot be resized (``batch_size=None``, a batch sampler of its own, no
            DataLoader) gets selection only, and a warning.
        model: the network that is trained, also inside of DistributedDataParallel.
        loss_fn: ``loss_fn(outputs, target)``, a scalar: the mean over the samples.
        split: turns a batch into ``(inputs, target)`` on the model's device. None: the batch is such a pair.
        forward: ``forward(model, inputs)`` gives what the loss takes. None: ``model(inputs)``.
        precision: gives the autocast context of the training forward: ``lambda: torch.autocast("cuda")``. None: none.
        optimizer: whose learning rate ``batch_size_policy="loss"`` goes by, if a schedule changes it. None: constant.
        scheduler: a learning-rate schedule that the loop steps once a batch and that was planned for
            ``passes * len(loader)`` steps: where batches are refilled or grow it makes the steps that are missing, and
            so ends with the data. None: none.
        settings: see :mod:`composer_edba.settings`.

    Raises:
        ValueError: if a setting is out of its range, the loader is empty, or the named last layer is none of the
            model's; on the first batch, if the loss is no mean over the samples.
        TypeError: if a setting has a wrong type, or there is no such setting.

    Example:
        >>> loader = SubsetLoader(loader, model, loss_fn)
        >>> for inputs, target in loader:
        ...     optimizer.zero_grad()
        ...     loss_fn(model(inputs), target).backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        loader: DataLoader,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        *,
        split: Callable[[Any], tuple[Any, Any]] | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        precision: Callable[[], contextlib.AbstractContextManager] | None = None,
        optimizer: Optimizer | None = None,
        scheduler: Any = None,
        **settings: Unpack[Settings],
    ):
        chosen, split = checked(settings, self._face), self._pair if split is None else split
        self._loop = SupervisedLoop(
            chosen, model, loss_fn, split=split, forward=forward, precision=precision, optimizer=optimizer
        )
        self._given, self._iterating = loader, False
        self._scheduler, self._passes = scheduler, 0.0  # that are over; one that was left counts as far as it came
        self._loader = self._loop.engine.draw_from(loader)

    def __iter__(self) -> Iterator[Any]:
        """One pass over the data; after :meth:`load_state_dict`, what was left of the interrupted one.

        Raises:
            RuntimeError: if another iterator of this is in mid-pass.
        """
        if self._iterating:
            raise RuntimeError(
                "this SubsetLoader is being iterated over already, and two iterators would share one pass: finish or "
                "close() the other, or make a SubsetLoader for each"
            )
        self._iterating = True
        self._pass_begins()
        try:
            for pool in self._loop.engine.pools.rest_of_pass(self._loader):
                batch = self._loop.choose(self._arrived(pool))
                self._chosen()
                yield batch
                self._loop.end_step()
                self._keep_up()
        finally:  # by its end, a break or an error: the next iterator begins another pass
            self._iterating = False
            self._passes += self._part_of_pass
            self._pass_ended()
            self._loop.engine.begin_pass()
            self._loop.unwatch()

    # What loaders of other kinds add.

    _face = "plain"

    def _pass_begins(self) -> None:
        pass

    def _arrived(self, batch: Any) -> Any:
        return batch

    def _chosen(self) -> None:
        pass

    def _pass_ended(self) -> None:
        pass

    def _planned_steps(self) -> int:
        """Steps of the schedule that the loop planned for a pass."""
        return len(self._given)

    @property
    def _part_of_pass(self) -> float:
        return 1.0 if self._loop.engine.pools.is_over else self._loop.engine.part_of_pass

    def _keep_up(self) -> None:
        if self._scheduler is not None:
            planned = planned_updates(self._passes + self._part_of_pass, self._planned_steps())
            for _ in range(planned - self._scheduler.last_epoch):
                self._scheduler.step()

    def __len__(self) -> int:
        """Batches in a pass, with those to come at the present size."""
        return len(self._loader)

    @property
    def figures(self) -> dict[str, float]:
        """What is known of the last step: ``batch_size``, ``subset_size``; ``margin`` and metrics if it was scored."""
        return self._loop.engine.figures

    def summary(self) -> str:
        """What the run came to so far, as a table in plain text: samples drawn, trained on, left out; the overhead."""
        return summary_of(self._loop.engine)

    @property
    def batch_size(self) -> int | None:
        """Size of the batches drawn from now on, in samples a rank; None if it cannot change."""
        return self._loop.engine.batch_size

    @property
    def dataset(self) -> Any:
        """The loader's data set."""
        return self._given.dataset

    @property
    def sampler(self) -> Any:
        """The loader's own sampler, for ``loader.sampler.set_epoch(epoch)``."""
        return self._given.sampler

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on, as plain values. The global random streams are the caller's.

        Saved inside of the loop over a pass, what is left of the pass comes next, after its last batch nothing; saved
        after the loop, however it was left, a new pass. It suffices; torchdata's StatefulDataLoader skips by itself if
        its own state is loaded too.
        """
        state = self._loop.state_dict()
        if self._iterating:
            state["pools"]["taken"] = self._loop.engine.pools.taken
        return {**state, "passes": self._passes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave.

        Raises:
            ValueError: if it is from inside a pass and this loader's passes are others.
        """
        self._loop.engine.load_state_dict(state)
        self._passes = state.get("passes", 0.0)  # 0.2 did not count them
        self._loader = self._loop.engine.draw_from(self._given)

    def _pair(self, batch: Any) -> tuple[Any, Any]:
        if not isinstance(batch, (list, tuple)) or len(batch) != 2:
            found = type(batch).__name__ + (f" of {len(batch)}" if isinstance(batch, (list, tuple)) else "")
            raise ValueError(f"the batch is a {found}, not a pair (inputs, target): say by split= which is which")
        device = self._loop.device()
        inputs, target = (part.to(device) if hasattr(part, "to") else part for part in batch)
        return inputs, target
