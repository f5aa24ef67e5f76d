"""ResNet-9, a shallow residual network that trains CIFAR-10 in minutes."""

from __future__ import annotations

from torch import Tensor, nn


def conv_norm_relu(in_channels: int, out_channels: int, pool: bool = False) -> nn.Sequential:
    """A 3 x 3 convolution, BatchNorm, ReLU and, with ``pool``, a max pool that halves the height and width."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    pools = [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True), *pools)


class _Residual(nn.Module):
    """``x + f(x)`` with f two convolutions of the same width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_norm_relu(channels, channels), conv_norm_relu(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResNet9(nn.Module):
    """ResNet-9 (D. Page, How to Train Your ResNet, 2018; the DAWNBench CIFAR-10 entry).

    Convolution-BatchNorm-ReLU layers of 1, 2, 4 and 8 times ``width`` channels, the last three followed by a max pool,
    the second and fourth by a residual pair; a global max pool and the linear layer ``fc`` without bias.

    ``output_scale`` multiplies the features before ``fc``, not its outputs: without a bias the logits are the same, and
    what ``fc`` returns are the logits, which last-layer gradients build on.

    Args:
        num_classes: Outputs of ``fc``.
        in_channels: Channels of the images, ``(B, in_channels, H, W)`` with H and W at least 8.
        width: Channels of the first layer, at least 1 (or ValueError); 64 in the published network.
        output_scale: Factor on the logits.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 64, output_scale: float = 0.125) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width}")
        self.output_scale = output_scale
        self.features = nn.Sequential(
            conv_norm_relu(in_channels, width),
            conv_norm_relu(width, 2 * width, pool=True),
            _Residual(2 * width),
            conv_norm_relu(2 * width, 4 * width, pool=True),
            conv_norm_relu(4 * width, 8 * width, pool=True),
            _Residual(8 * width),
        )
        self.fc = nn.Linear(8 * width, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_channels, H, W)`` to logits ``(B, num_classes)``."""
        return self.fc(self.features(x).amax((2, 3)) * self.output_scale)


resnet9 = ResNet9
