"""What the commands on costs train: a network that takes whole batches, and its loss."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Classifier", "batch_loss"]


class Classifier(nn.Module):
    """A network that takes (x, y) batches."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        """Logits, (B, C)."""
        return self.net(batch[0])


def batch_loss(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
    """Mean cross-entropy."""
    return F.cross_entropy(outputs, batch[1])
