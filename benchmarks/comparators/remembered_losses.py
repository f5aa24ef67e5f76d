"""What the comparators share that prune epochs by the loss that a sample had when it was last trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from composer.core import Event, State
from composer.loggers import Logger
from composer.loss import soft_cross_entropy
from composer.models import ComposerModel
from torch import Tensor

from benchmarks.comparators.pruned_epochs import PrunedEpochs, packed, unpacked
from composer_edba.loading.batch import default_target_key

__all__ = ["RememberedLosses"]


class RememberedLosses(PrunedEpochs):
    """Remembers each sample's loss, and trains on the mean of weight times loss over a batch.

    The losses are those of the training forward itself, under the augmentation of the time: no forward is added. The
    model's loss must be cross entropy (hard or soft targets) averaged over samples, as a ComposerClassifier's is; it is
    replaced during a fit, and a ValueError says so if it is another.
    """

    def __init__(self) -> None:
        super().__init__()
        self._losses: Tensor | None = None  # last known, by data-set index; NaN: never trained on
        self._fresh: list[tuple[Tensor, Tensor]] = []  # indices and losses since they were last taken up
        self._batch: Tensor | None = None  # indices of the batch in hand
        self._taken = 0  # samples of it whose loss has been formed
        self._restore_loss: Callable[[], None] | None = None
        self._checked = False
        self._handlers[Event.BEFORE_TRAIN_BATCH] = self._before_train_batch
        self._handlers[Event.FIT_END] = self._fit_end

    @property
    def losses(self) -> Tensor:
        """The last known, ``(N,)``, by data-set index; NaN of a sample that was never trained on."""
        self._take_losses()
        assert self._losses is not None
        return self._losses

    def state_dict(self) -> dict[str, Any]:
        """The base class's, and the last known losses."""
        self._take_losses()
        return {**super().state_dict(), "losses": packed(self._losses)}

    def take_up(self, saved: dict[str, Any], state: State) -> None:
        """Go on with the losses."""
        losses = unpacked(saved["losses"])
        assert self._losses is not None
        if losses is not None and len(losses) == len(self._losses):  # another data set's say nothing
            self._losses = losses
        super().take_up(saved, state)

    def begin_fit(self, state: State) -> None:
        """Put the weights into the loss."""
        super().begin_fit(state)
        size = len(state.dataloader.dataset)
        if self._losses is None or len(self._losses) != size:
            self._losses = torch.full((size,), torch.nan)
        self._weight_loss(state)

    def begin_batch(self, state: State, indices: list[int]) -> None:
        """Remember whose losses are to come."""
        self._batch = torch.tensor(indices)

    def _before_train_batch(self, state: State, logger: Logger) -> None:
        self._taken = 0  # also when the batch is run again, say after running out of memory

    def _weight_loss(self, state: State) -> None:
        if self._restore_loss is not None:  # an earlier fit ended in an error
            self._restore_loss()
        model = state.model
        assert isinstance(model, ComposerModel)
        plain, own = model.loss, vars(model).get("loss")

        def restore() -> None:
            del model.loss  # the class's shows again
            if own is not None:
                model.loss = own  # type: ignore[method-assign]

        def weighted(outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
            if self._batch is None or not torch.is_grad_enabled():
                return plain(outputs, batch, *args, **kwargs)
            losses = soft_cross_entropy(outputs, batch[default_target_key(batch)], reduction="none")
            if not self._checked:
                self._check(losses, plain(outputs, batch, *args, **kwargs))
            return self._weighted_mean(losses)

        model.loss = weighted  # type: ignore[method-assign]
        self._restore_loss = restore

    def _check(self, losses: Tensor, mean: Any) -> None:
        if losses.ndim != 1 or not torch.allclose(losses.mean(), mean, rtol=0.01, equal_nan=True):
            raise ValueError(
                "the model's loss must be cross entropy, one value a sample and averaged over them, for "
                f"{type(self).__name__} to weigh: it gives {float(mean):.6g} where that is {float(losses.mean()):.6g}"
            )
        self._checked = True

    def _weighted_mean(self, losses: Tensor) -> Tensor:
        assert self._batch is not None
        assert self._weights is not None
        indices = self._batch[self._taken : self._taken + len(losses)]
        if len(indices) < len(losses):
            raise ValueError(
                f"the model's loss was formed of more than the batch's {len(self._batch)} samples: "
                f"{type(self).__name__} cannot run beside an algorithm that forms it twice, as MixUp and CutMix with "
                "interpolate_loss"
            )
        self._taken += len(losses)
        self._fresh.append((indices, losses.detach()))
        return (self._weights[indices].to(losses) * losses).mean()

    def _take_losses(self) -> None:
        """Enter the losses since the last time; reading them at once would make a GPU wait in every step."""
        for indices, losses in self._fresh:
            assert self._losses is not None
            self._losses[indices] = losses.float().cpu()
        self._fresh.clear()

    def _fit_end(self, state: State, logger: Logger) -> None:
        self._batch = None
        if self._restore_loss is not None:
            self._restore_loss()
            self._restore_loss = None
