"""RS2: each epoch is a pass over another random share of the data."""

from __future__ import annotations

import torch
from composer.core import State
from torch import Tensor

from benchmarks.comparators.pruned_epochs import PrunedEpochs

__all__ = ["RS2"]


class RS2(PrunedEpochs):
    """Repeated sampling of random subsets (Okanovic et al., "Repeated Random Sampling for Minimizing the
    Time-to-Accuracy of Learning", ICLR 2024), written from the paper: the variant without replacement.

    Each epoch is a pass over ``share`` of the data set, and no sample has its next turn before all had theirs. A
    learning rate that decays over ``max_duration`` does so over the shorter run. So this is plain training that was
    planned as ``share`` times as many epochs, but for the moments at which the data is shuffled: an arm that should end
    where plain training's frontier is, and a check of it.

    An epoch in which a turn ends takes what is left of it and the rest from the next turn, without repeating a sample;
    the paper does not say what happens there.

    Args:
        share: r, of the data set in each epoch, in (0, 1].

    Raises:
        ValueError: if ``share`` is out of its range.

    Example:
        >>> Trainer(model=model, train_dataloader=loader, max_duration="10ep", algorithms=[RS2(0.65)])
    """

    label = "rs2"
    stream = 0x2527E0A1

    def __init__(self, share: float):
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], not {share}")
        super().__init__()
        self.share = share

    def __repr__(self) -> str:
        return f"RS2(share={self.share})"

    def prune(self, state: State) -> Tensor:
        """Keep the next share of the present turn."""
        size, epoch = len(state.dataloader.dataset), int(state.timestamp.epoch)
        count = max(1, round(self.share * size))
        order, turn = torch.empty(0, dtype=torch.int64), 0
        # From the first turn on: so there is nothing to save.
        while len(order) < (epoch + 1) * count:
            shuffled = torch.randperm(size, generator=self.generator(state, turn))
            begun = torch.isin(shuffled, order[len(order) // count * count :])  # those of the epoch that goes on
            order, turn = torch.cat([order, shuffled[~begun], shuffled[begun]]), turn + 1
        weights = torch.zeros(size)
        weights[order[epoch * count : (epoch + 1) * count]] = 1
        return weights
