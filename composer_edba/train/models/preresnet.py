"""Pre-activation residual networks for 32 x 32 images."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Block = Literal["bottleneck", "basic"]


class _PreActivationBlock(nn.Module):
    """BatchNorm-ReLU-convolution, once for every kernel, plus a shortcut; convolution ``strided`` has the stride.

    Where the shape changes, the shortcut is a 1 x 1 convolution of the *activated* input, so that the block's first
    BatchNorm and ReLU serve both paths; everywhere else it is the identity on the raw input.
    """

    def __init__(self, channels: list[int], kernels: list[int], strided: int, stride: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], kernel, stride if i == strided else 1, kernel // 2, bias=False)
            for i, kernel in enumerate(kernels)
        )
        self.projection: nn.Conv2d | None = None
        if stride != 1 or channels[0] != channels[-1]:
            self.projection = nn.Conv2d(channels[0], channels[-1], 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            x = F.relu(norm(x))
            if i == 0 and self.projection is not None:
                shortcut = self.projection(x)
            x = conv(x)
        return x + shortcut


class PreResNet(nn.Module):
    """Pre-activation ResNet for CIFAR (He et al., Identity Mappings in Deep Residual Networks, ECCV 2016).

    A 3 x 3 convolution, three stages of ``n`` blocks with widths 16, 32 and 64 (times 4 for the bottleneck) at
    full, half and quarter resolution, BatchNorm, ReLU, global average pooling and the linear layer ``fc``. Shortcuts
    that change shape are 1 x 1 convolutions. Convolutions start from He's normal distribution (fan-out).

    Args:
        depth: Layers with weights: ``9n + 2`` for the bottleneck block, ``6n + 2`` for the basic one, n >= 1.
        num_classes: Outputs of ``fc``.
        block: ``"bottleneck"`` (1 x 1, 3 x 3, 1 x 1) or ``"basic"`` (3 x 3, 3 x 3).
        in_channels: Channels of the images, ``(B, in_channels, H, W)``.

    Raises:
        ValueError: ``block`` is unknown or ``depth`` does not have the block's form.
    """

    def __init__(self, depth: int, num_classes: int, block: Block = "bottleneck", in_channels: int = 3) -> None:
        super().__init__()
        if block not in ("bottleneck", "basic"):
            raise ValueError(f"block must be 'bottleneck' or 'basic', not {block!r}")
        layers, kernels, strided, growth = (9, [1, 3, 1], 1, 4) if block == "bottleneck" else (6, [3, 3], 0, 1)
        blocks, rest = divmod(depth - 2, layers)
        if rest or blocks < 1:
            forms = ", ".join(str(layers * n + 2) for n in (1, 2, 3, 6))
            raise ValueError(f"depth of a {block} PreResNet must be {layers}n + 2 ({forms}, ...), not {depth}")

        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        channels = 16
        stages: list[nn.Module] = []
        for width in (16, 32, 64):
            stage: list[nn.Module] = []
            for i in range(blocks):
                inner = [channels, *[width] * (len(kernels) - 1)]
                channels = growth * width
                stride = 2 if i == 0 and width != 16 else 1
                stage.append(_PreActivationBlock([*inner, channels], kernels, strided, stride))
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_channels, H, W)`` to logits ``(B, num_classes)``."""
        x = F.relu(self.norm(self.stages(self.conv(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def preresnet56(num_classes: int, in_channels: int = 3) -> PreResNet:
    """PreResNet-56 of bottleneck blocks (n = 6, ``fc`` takes 256 features), the network of the EDBA paper's table."""
    return PreResNet(56, num_classes, "bottleneck", in_channels)


def preresnet56_basic(num_classes: int, in_channels: int = 3) -> PreResNet:
    """PreResNet-56 of basic blocks (n = 9, ``fc`` takes 64 features)."""
    return PreResNet(56, num_classes, "basic", in_channels)


def preresnet20_basic(num_classes: int, in_channels: int = 3) -> PreResNet:
    """PreResNet-20 of basic blocks (n = 3, ``fc`` takes 64 features): small enough to train on a CPU."""
    return PreResNet(20, num_classes, "basic", in_channels)
