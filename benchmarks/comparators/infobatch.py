"""InfoBatch's rule: leave out part of the samples that are learnt already, and make up for them in the gradient."""

from __future__ import annotations

import torch
from composer.core import State
from torch import Tensor

from benchmarks.comparators.remembered_losses import RememberedLosses

__all__ = ["InfoBatch"]


class InfoBatch(RememberedLosses):
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
    stream = 0x1F0BA7C4

    def __init__(self, ratio: float = 0.5, delta: float = 0.875):
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio must be in [0, 1), not {ratio}")
        if not 0 <= delta <= 1:
            raise ValueError(f"delta must be in [0, 1], not {delta}")
        super().__init__()
        self.ratio = ratio
        self.delta = delta

    def __repr__(self) -> str:
        return f"InfoBatch(ratio={self.ratio}, delta={self.delta})"

    def prune(self, state: State) -> Tensor:
        """Leave out well-learnt samples at random."""
        losses = self.losses
        weights = torch.ones(len(losses))
        elapsed = state.get_elapsed_duration()
        if elapsed is not None and float(elapsed) < self.delta:
            # A comparison with NaN is false: what was never trained on stays. Without any loss all stay.
            learnt = losses < losses.nanmean()
            generator = self.generator(state, int(state.timestamp.epoch))
            left_out = torch.rand(len(weights), generator=generator) < self.ratio
            weights[learnt] = 1 / (1 - self.ratio)
            weights[learnt & left_out] = 0
        return weights
