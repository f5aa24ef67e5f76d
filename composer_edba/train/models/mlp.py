"""A network with one hidden layer."""

from __future__ import annotations

from torch import Tensor, nn


class MLP(nn.Module):
    """A linear layer, ReLU and the linear layer ``fc`` on flattened images.

    Samples do not mix in it, so it has per-sample gradients. With its default sizes it is the network of the DBA
    authors' public training template (Tensor-Reloaded/Pytorch-Template): 784, 64 and 10 units.

    Args:
        num_classes: Outputs of ``fc``.
        in_channels: Channels of the images, ``(B, in_channels, image_size, image_size)``.
        image_size: Height and width of the images, in pixels, at least 1 (or ValueError).
        hidden_size: Units of the hidden layer, at least 1 (or ValueError).
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, image_size: int = 28, hidden_size: int = 64
    ) -> None:
        super().__init__()
        for argument, value in (("image_size", image_size), ("hidden_size", hidden_size)):
            if value < 1:
                raise ValueError(f"{argument} must be at least 1, not {value}")
        self.hidden = nn.Linear(in_channels * image_size**2, hidden_size)
        self.fc = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits ``(B, num_classes)``."""
        return self.fc(self.hidden(x.flatten(1)).relu())


mlp = MLP
