"""OrderDP's rule: of a random part of the data, an epoch has those of highest loss."""

from __future__ import annotations

import torch
from composer.core import State
from torch import Tensor

from benchmarks.comparators.remembered_losses import RememberedLosses

__all__ = ["OrderDP"]


class OrderDP(RememberedLosses):
    """A random subset each epoch, then the top of it by remembered loss (Jin et al., "OrderDP", ICLR 2026).

    Written from the published description, not from the authors' code. At the start of an epoch the share ``subset`` of
    the data set is drawn uniformly, and of it the share ``top`` is kept: the samples whose loss was highest when they
    were last trained on; those never trained on come before all others. A batch's loss is the plain mean over what is
    kept, so that what is minimised is the expected mean of the highest losses of a random subset.

    The two shares are ours, chosen so that an epoch trains on 0.64 of the data set, as are three decisions: that the
    choice is made once an epoch, that the first epoch, before which no loss is known, is whole, and that no phase at
    the end is. Losses, the model's loss and lengths of epochs are as in
    :class:`~benchmarks.comparators.infobatch.InfoBatch`.

    Args:
        subset: share of the data set that is drawn, in (0, 1]. Default 0.8, ours.
        top: share of that which is kept, in (0, 1]. Default 0.8, ours.

    Raises:
        ValueError: if an argument is out of its range; during training if the model's loss is not cross entropy.

    Example:
        >>> Trainer(model=model, train_dataloader=loader, max_duration="10ep", algorithms=[OrderDP()])
    """

    label = "orderdp"
    stream = 0x0DE2D9A3

    def __init__(self, subset: float = 0.8, top: float = 0.8):
        for name, share in (("subset", subset), ("top", top)):
            if not 0 < share <= 1:
                raise ValueError(f"{name} must be in (0, 1], not {share}")
        super().__init__()
        self.subset = subset
        self.top = top

    def __repr__(self) -> str:
        return f"OrderDP(subset={self.subset}, top={self.top})"

    def prune(self, state: State) -> Tensor:
        """Keep the highest losses of a random part."""
        losses = self.losses
        if losses.isnan().all():
            return torch.ones(len(losses))
        shuffled = torch.randperm(len(losses), generator=self.generator(state, int(state.timestamp.epoch)))
        drawn = shuffled[: max(1, round(self.subset * len(losses)))]
        # Ties stay in the order of the draw.
        ranked = losses[drawn].nan_to_num(torch.inf).sort(descending=True, stable=True).indices
        weights = torch.zeros(len(losses))
        weights[drawn[ranked[: max(1, round(self.top * len(drawn)))]]] = 1
        return weights
