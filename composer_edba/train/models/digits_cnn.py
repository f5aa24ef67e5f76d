"""A small convolutional network for 8 x 8 digits."""

from __future__ import annotations

from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Three convolution-BatchNorm-ReLU layers, a max pool after the first two, a mean over pixels and ``fc``.

    Trains on scikit-learn's digits in seconds on one CPU core.

    Args:
        num_classes: Outputs of ``fc``.
        in_channels: Channels of the images.
        width: Channels of the first layer; the others have twice as many.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, num_classes)``, H and W at least 4.

    Raises:
        ValueError: ``width`` is below 1.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width}")
        layers: list[nn.Module] = []
        channels = in_channels
        for out_channels, pool in ((width, True), (2 * width, True), (2 * width, False)):
            layers += [
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ]
            if pool:
                layers.append(nn.MaxPool2d(2))
            channels = out_channels
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_channels, H, W)`` to logits ``(B, num_classes)``."""
        return self.fc(self.features(x).mean((2, 3)))


def digits_cnn(num_classes: int = 10, in_channels: int = 1, width: int = 16) -> DigitsCNN:
    """Build :class:`DigitsCNN`."""
    return DigitsCNN(num_classes, in_channels, width)
