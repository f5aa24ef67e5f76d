"""Models by name: the package's own, or any factory's."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from composer_edba.spelling import nearest
from composer_edba.train.models.factory import build_from_factory
from composer_edba.train.names import MODELS, load


def build_model(name: str, num_classes: int, in_channels: int | None = None, **kwargs: Any) -> nn.Module:
    """Build the model called ``name``, of images ``(B, in_channels, H, W)`` to logits ``(B, num_classes)``.

    The last layer of the package's own is ``fc``.

    Args:
        name: A key of :data:`MODELS`, or a factory as ``module:name``, see :func:`~.factory.build_from_factory`.
        num_classes: Outputs of the last layer.
        in_channels: Channels of the input images. Default: the model's own (3, and 1 for ``digits_cnn`` and ``mlp``).
        **kwargs: What else the builder takes, such as ``width`` for ``resnet9`` or ``depth`` for ``preresnet``.

    Raises:
        ValueError: ``name`` is unknown, a size is not positive, or a factory cannot take as many channels.
        TypeError: The builder does not take one of ``kwargs``, or needs one that is not there.
        ImportError: A factory's package is not installed.
    """
    for argument, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value is not None and value < 1:
            raise ValueError(f"{argument} must be at least 1, not {value}")
    if ":" in str(name):
        return build_from_factory(name, num_classes, in_channels, kwargs)
    if name not in MODELS:
        raise ValueError(f"unknown model name {name!r}; {nearest(str(name), MODELS, list_always=True)}")
    builder = load(MODELS[name].target)
    parameters = inspect.signature(builder).parameters
    options = {key: p for key, p in parameters.items() if key not in ("num_classes", "in_channels")}
    accepted = f"model {name!r} takes {', '.join(sorted(options)) or 'no further arguments'}"
    if unknown := sorted(set(kwargs) - set(options)):
        raise TypeError(f"unknown model argument {', '.join(unknown)}: {accepted}")
    if missing := sorted(key for key, p in options.items() if p.default is p.empty and key not in kwargs):
        raise TypeError(f"missing model argument {', '.join(missing)}: {accepted}")
    if in_channels is not None:
        kwargs["in_channels"] = in_channels
    return builder(num_classes=num_classes, **kwargs)
