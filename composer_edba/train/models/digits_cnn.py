"""A small convolutional network for 8 x 8 digits."""

from __future__ import annotations

from torch import Tensor, nn

from composer_edba.train.models.resnet9 import conv_norm_relu


class DigitsCNN(nn.Module):
    """Three convolution-BatchNorm-ReLU layers, a max pool after the first two, a mean over pixels and ``fc``.

    Trains on scikit-learn's digits in seconds on one CPU core.

    Args:
        num_classes: Outputs of ``fc``.
        in_channels: Channels of the images, ``(B, in_channels, H, W)`` with H and W at least 4.
        width: Channels of the first layer, at least 1 (or ValueError); the others have twice as many.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width}")
        self.features = nn.Sequential(
            *conv_norm_relu(in_channels, width, pool=True),
            *conv_norm_relu(width, 2 * width, pool=True),
            *conv_norm_relu(2 * width, 2 * width),
        )
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_channels, H, W)`` to logits ``(B, num_classes)``."""
        return self.fc(self.features(x).mean((2, 3)))


digits_cnn = DigitsCNN
