"""Images at a lower resolution, for a cheaper scoring forward."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

__all__ = ["scaled_images"]

_MODES = {3: "linear", 4: "bilinear", 5: "trilinear"}


def scaled_images(images: Any, factor: float, *, what: str, advice: str = "") -> Tensor:
    """``images``, (B, C, L), (B, C, H, W) or (B, C, D, H, W), with their side lengths times ``factor``, in (0, 1].

    Raises:
        ValueError: if they have no spatial dimension to scale; calls them ``what``, and says what else would help.
    """
    if not isinstance(images, Tensor) or images.ndim not in _MODES:
        found = f"a {images.ndim}-D tensor" if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise ValueError(
            f"scale_factor is {factor}, but {what} is {found}: only inputs with 1 to 3 spatial dimensions (3-D to 5-D) "
            f"can be scaled. Use scale_factor=1{advice}"
        )
    return F.interpolate(images, scale_factor=factor, mode=_MODES[images.ndim], align_corners=False)
