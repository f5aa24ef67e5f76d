"""Random crops and flips of whole image batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def random_crop(x: Tensor, padding: int) -> Tensor:
    """Pad images ``(B, C, H, W)`` with ``padding`` zeros on each side, then cut out the original size at random.

    Every image has its own offset, uniform over the ``(2 * padding + 1) ** 2`` possible ones, from torch's global CPU
    stream. Shape, dtype (any) and device stay. Padding 0 returns ``x`` and draws nothing.

    Raises:
        ValueError: ``padding`` is negative or ``x`` does not have four dimensions.
    """
    _check_images(x)
    if padding < 0:
        raise ValueError(f"padding must not be negative, not {padding}")
    if padding == 0:
        return x
    samples, channels, height, width = x.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, samples, 1, 1)).to(x.device)
    padded = F.pad(x.contiguous(), (padding,) * 4)
    # A row of a crop is contiguous in the padded batch. So a crop is B * C * H rows copied from known positions,
    # about three times as fast as a gather of single pixels.
    rows = padded.view(-1).unfold(0, width, 1)
    strides = padded.stride()
    starts = (
        torch.arange(samples, device=x.device).view(-1, 1, 1) * strides[0]
        + torch.arange(channels, device=x.device).view(1, -1, 1) * strides[1]
        + (torch.arange(height, device=x.device) + offsets[0]) * strides[2]
        + offsets[1]
    )
    return rows.index_select(0, starts.view(-1)).view(x.shape)


def random_flip(x: Tensor) -> Tensor:
    """Mirror each of the images ``(B, C, H, W)`` left to right with probability one half, by torch's global CPU stream.

    Raises:
        ValueError: ``x`` does not have four dimensions.
    """
    _check_images(x)
    flipped = torch.randint(0, 2, (len(x),)).to(x.device)
    # Copying whole images from the two versions is faster than choosing pixel by pixel with torch.where.
    return torch.cat([x, x.flip(3)]).index_select(0, torch.arange(len(x), device=x.device) + len(x) * flipped)


class BatchAugment:
    """Crop, flip and normalise a batch ``[x, y, ...]``: the ``batch_transforms`` of a Composer ``DataSpec``.

    Composer calls it in the main process. The random numbers come from torch's global CPU stream, which Composer keeps
    in its checkpoints, so a resumed run sees the same augmented images. Crops are padded with black.

    Args:
        mean: Mean of each channel, of pixels in [0, 1].
        std: Standard deviation, likewise.
        crop_padding: ``padding`` of :func:`random_crop`, in pixels; 0 does not crop.
        flip: Whether to apply :func:`random_flip`.

    Raises:
        ValueError: ``mean`` and ``std`` differ in length, a deviation is not positive, or ``crop_padding`` is negative.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], crop_padding: int = 0, flip: bool = False) -> None:
        if len(mean) != len(std):
            raise ValueError(f"mean and std must have one number a channel each, not {len(mean)} and {len(std)}")
        if min(std) <= 0:
            raise ValueError(f"std must be positive, not {tuple(std)}")
        if crop_padding < 0:
            raise ValueError(f"crop_padding must not be negative, not {crop_padding}")
        self.mean, self.std = (torch.tensor(each, dtype=torch.float32).view(-1, 1, 1) for each in (mean, std))
        self.crop_padding, self.flip = crop_padding, flip

    def __call__(self, batch: Sequence[Any]) -> list[Any]:
        """Transform images ``(B, C, H, W)``, uint8 in 0..255 or floating point in [0, 1], to float32; the rest stays.

        Raises:
            ValueError: The images do not have as many channels as there are means.
        """
        x, *rest = batch
        _check_images(x)
        if x.shape[1] != len(self.mean):
            raise ValueError(f"images have {x.shape[1]} channels, mean and std {len(self.mean)}")
        x = random_crop(x, self.crop_padding)
        x = random_flip(x) if self.flip else x
        levels = 1.0 if x.is_floating_point() else 255.0
        scale, shift = (1 / (levels * self.std)).to(x.device), (-self.mean / self.std).to(x.device)
        return [x.to(torch.float32, copy=True).mul_(scale).add_(shift), *rest]


def _check_images(x: Tensor) -> None:
    if x.ndim != 4:
        raise ValueError(f"images must have the shape (B, C, H, W), not {tuple(x.shape)}")
