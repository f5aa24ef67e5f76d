"""InfoBatch's rule: leave out part of the samples that are learnt already, and make up for them in the gradient."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from composer.core import Event, State
from composer.loggers import Logger
from composer.loss import soft_cross_entropy
from composer.models import ComposerModel
from torch import Tensor
from torch.utils.data import Sampler

from benchmarks.comparators.loader_algorithm import LoaderAlgorithm
from composer_edba.loading.batch import default_target_key

__all__ = ["InfoBatch"]

_STREAM = 0x1F0BA7C4  # keeps this stream apart from others of the same seed


class InfoBatch(LoaderAlgorithm):
    """Unbiased dynamic data pruning (Qin et al., "InfoBatch", ICLR 2024), written from the paper.

    At the start of an epoch every sample whose loss was below the mean when it was last trained on is left out of the
    epoch with probability ``ratio``, independently; those of them that stay are weighted by 1 / (1 - ratio), so that
    the expected gradient is that of the whole data set. A batch's loss is the mean of weight times loss. The first
    epoch, before which no loss is known, and all that begin after the share ``delta`` of training are whole.

    The losses are those of the training forward itself, under the augmentation of the time: no forward is added. The
    model's loss must be cross entropy (hard or soft targets) averaged over samples, as a ComposerClassifier's is; it is
    replaced during a fit. An epoch is a pass over what was kept, so a ``max_duration`` in epochs has fewer steps than
    without InfoBatch, which is where it saves.

    Args:
        ratio: probability r of leaving a below-mean sample out, in [0, 1). Default 0.5, the paper's.
        delta: share of training after which epochs are whole, in [0, 1]. Default 0.875, the paper's.

    Raises:
        ValueError: if an argument is out of its range; during training if the model's loss is not cross entropy.

    Example:
        >>> Trainer(model=model, train_dataloader=loader, max_duration="10ep", algorithms=[InfoBatch()])
    """

    label = "infobatch"

    def __init__(self, ratio: float = 0.5, delta: float = 0.875):
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio must be in [0, 1), not {ratio}")
        if not 0 <= delta <= 1:
            raise ValueError(f"delta must be in [0, 1], not {delta}")
        super().__init__()
        self.ratio = ratio
        self.delta = delta
        self._losses: Tensor | None = None  # last known, by data-set index; NaN: never trained on
        self._fresh: list[tuple[Tensor, Tensor]] = []  # indices and losses since they were last taken up
        self._weights: Tensor | None = None  # in this epoch, by data-set index; 0: left out
        self._batch: Tensor | None = None  # indices of the batch in hand
        self._taken = 0  # samples of it whose loss has been formed
        self._restore_loss: Callable[[], None] | None = None
        self._checked = False
        self._handlers[Event.BEFORE_TRAIN_BATCH] = self._before_train_batch
        self._handlers[Event.FIT_END] = self._fit_end

    def __repr__(self) -> str:
        return f"InfoBatch(ratio={self.ratio}, delta={self.delta})"

    @property
    def kept(self) -> int:
        """Samples in this epoch."""
        return 0 if self._weights is None else int(torch.count_nonzero(self._weights))

    def state_dict(self) -> dict[str, Any]:
        """The base class's, the last known losses, and the weights of this epoch."""
        self._take_losses()
        return {**super().state_dict(), "losses": _packed(self._losses), "weights": _packed(self._weights)}

    def take_up(self, saved: dict[str, Any], state: State) -> None:
        """Go on with the losses, and inside an epoch with its samples."""
        losses = _unpacked(saved["losses"])
        assert self._losses is not None
        if losses is not None and len(losses) == len(self._losses):  # another data set's say nothing
            self._losses = losses
            if int(state.timestamp.batch_in_epoch) > 0:
                weights = _unpacked(saved["weights"])
                assert weights is not None
                self._set_weights(weights, state)
        super().take_up(saved, state)

    # ---- what is drawn

    def begin_fit(self, state: State) -> None:
        """Put the pruning in front of the loader's sampler, and the weights into the loss."""
        inner = self.sampler.sampler
        size = len(state.dataloader.dataset)
        if not isinstance(inner, _KeptSampler):
            if self.sampler.total != size:
                raise ValueError(
                    f"train_dataloader's sampler must give each of the {size} samples of its data set once for "
                    f"InfoBatch, not {self.sampler.total}; cut the data set down instead"
                )
            self.sampler.sampler = inner = _KeptSampler(inner, size)
        self._kept_sampler = inner
        if self._losses is None or len(self._losses) != size:
            self._losses = torch.full((size,), torch.nan)
            self._set_weights(torch.ones(size), state)
        self._weight_loss(state)

    def begin_epoch(self, state: State) -> None:
        """Leave out well-learnt samples at random."""
        self._take_losses()
        assert self._losses is not None
        weights = torch.ones(len(self._losses))
        elapsed = state.get_elapsed_duration()
        if elapsed is not None and float(elapsed) < self.delta:
            # A comparison with NaN is false: what was never trained on stays. Without any loss all stay.
            learnt = self._losses < self._losses.nanmean()
            left_out = torch.rand(len(weights), generator=_generator(state)) < self.ratio
            weights[learnt] = 1 / (1 - self.ratio)
            weights[learnt & left_out] = 0
        self._set_weights(weights, state)

    def _set_weights(self, weights: Tensor, state: State) -> None:
        self._weights = weights
        self._kept_sampler.kept = weights > 0
        self._pools.measure(torch.device("cpu"))

    # ---- what is trained on

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
                "the model's loss must be cross entropy, one value a sample and averaged over them, for InfoBatch to "
                f"weigh: it gives {float(mean):.6g} where that is {float(losses.mean()):.6g}"
            )
        self._checked = True

    def _weighted_mean(self, losses: Tensor) -> Tensor:
        assert self._batch is not None
        assert self._weights is not None
        indices = self._batch[self._taken : self._taken + len(losses)]
        if len(indices) < len(losses):
            raise ValueError(
                f"the model's loss was formed of more than the batch's {len(self._batch)} samples: InfoBatch cannot "
                "run beside an algorithm that forms it twice, as MixUp and CutMix with interpolate_loss"
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


class _KeptSampler(Sampler[int]):
    """Those of another sampler's indices that are kept, in its order."""

    def __init__(self, sampler: Any, size: int):
        self.sampler = sampler
        self.kept = torch.ones(size, dtype=torch.bool)

    def __iter__(self) -> Iterator[int]:
        kept = self.kept.tolist()
        return (int(index) for index in self.sampler if kept[index])

    def __len__(self) -> int:
        return int(self.kept.sum())


def _generator(state: State) -> torch.Generator:
    """The stream of an epoch's pruning: nothing to save, and no other stream is moved."""
    seeds = np.random.SeedSequence([_STREAM, int(state.rank_zero_seed), int(state.timestamp.epoch)])
    return torch.Generator().manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1)))


def _packed(values: Tensor | None) -> str | None:
    return None if values is None else base64.b64encode(values.numpy().tobytes()).decode()


def _unpacked(text: str | None) -> Tensor | None:
    return None if text is None else torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32)
