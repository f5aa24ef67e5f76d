"""Models by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from composer_edba.train.models.digits_cnn import digits_cnn
from composer_edba.train.models.mlp import mlp
from composer_edba.train.models.preresnet import PreResNet, preresnet20_basic, preresnet56, preresnet56_basic
from composer_edba.train.models.resnet9 import resnet9

MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits_cnn": digits_cnn,
    "mlp": mlp,
    "preresnet": PreResNet,
    "preresnet20_basic": preresnet20_basic,
    "preresnet56": preresnet56,
    "preresnet56_basic": preresnet56_basic,
    "resnet9": resnet9,
}
"""Builders by name. Each takes ``num_classes``, ``in_channels`` and the keyword arguments in its own signature."""


def build_model(name: str, num_classes: int, in_channels: int | None = None, **kwargs: Any) -> nn.Module:
    """Build the model called ``name``.

    Args:
        name: A key of :data:`MODELS`.
        num_classes: Outputs of the last layer.
        in_channels: Channels of the input images. Default: the model's own (3, and 1 for ``digits_cnn`` and ``mlp``).
        **kwargs: What else the builder takes, such as ``width`` for ``resnet9`` or ``depth`` for ``preresnet``.

    Returns:
        A module that maps images ``(B, in_channels, H, W)`` to logits ``(B, num_classes)``. Its last layer is ``fc``.

    Raises:
        ValueError: ``name`` is unknown, or a size is not positive.
        TypeError: The builder does not take one of ``kwargs``, or needs one that is not there.
    """
    if name not in MODELS:
        nearest = difflib.get_close_matches(str(name), MODELS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"unknown model name {name!r}; the models are {', '.join(sorted(MODELS))}.{hint}")
    for argument, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value is not None and value < 1:
            raise ValueError(f"{argument} must be at least 1, not {value}")

    builder = MODELS[name]
    parameters = inspect.signature(builder).parameters
    options = {key: p for key, p in parameters.items() if key not in ("num_classes", "in_channels")}
    accepted = f"model {name!r} takes {', '.join(sorted(options)) or 'no further arguments'}"
    unknown = sorted(set(kwargs) - set(options))
    if unknown:
        raise TypeError(f"unknown model argument {', '.join(unknown)}: {accepted}")
    missing = sorted(key for key, p in options.items() if p.default is p.empty and key not in kwargs)
    if missing:
        raise TypeError(f"missing model argument {', '.join(missing)}: {accepted}")
    if in_channels is not None:
        kwargs["in_channels"] = in_channels
    return builder(num_classes=num_classes, **kwargs)
