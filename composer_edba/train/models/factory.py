"""Models of other packages, built by a factory that is named as ``module:name``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from composer_edba.spelling import nearest
from composer_edba.train.names import FACTORY_MODULES

_CHANNELS = ("in_channels", "in_chans")


def build_from_factory(name: str, num_classes: int, in_channels: int | None, kwargs: Mapping[str, Any]) -> nn.Module:
    """Call the factory ``name`` with ``num_classes``, the channels where it takes them, and ``kwargs``, which win.

    Args:
        name: ``module:factory``; ``torchvision:X`` means ``torchvision.models:X``, ``timm:X`` ``timm.create_model(X)``.
        num_classes: Outputs of the last layer.
        in_channels: Channels of the images, passed as ``in_channels`` or ``in_chans``; None: the factory's own number.
        kwargs: Further arguments.

    Raises:
        ImportError: There is no such module.
        ValueError: The module has no such factory, or the factory takes images of 3 channels only.
        TypeError: The factory does not take ``num_classes``, or what it gives is no module.
    """
    short, _, attribute = name.partition(":")
    module = _module(FACTORY_MODULES.get(short, short))
    if short == "timm":
        model = _timm(module, attribute, {"num_classes": num_classes, "in_chans": in_channels, **kwargs})
    else:
        model = _call(name, _factory(module, attribute), num_classes, in_channels, kwargs)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} gave a {type(model).__name__}, no torch.nn.Module")
    return model


def _module(name: str) -> ModuleType:
    parent, _, leaf = name.rpartition(".")
    path = _module(parent).__path__ if parent else None
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # one that it imports itself
            raise
        known = [module.name for module in pkgutil.iter_modules(path)]
        hint = nearest(leaf, known, known if parent else list(FACTORY_MODULES))
        raise ImportError(f"there is no module {name}; {hint}", name=name) from error


def _factory(module: ModuleType, name: str) -> Callable[..., Any]:
    factory = getattr(module, name, None)
    if callable(factory):
        return factory
    known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    raise ValueError(f"{module.__name__} has no factory {name!r}; {nearest(name, known)}")


def _call(
    name: str, factory: Callable[..., Any], num_classes: int, in_channels: int | None, kwargs: Mapping[str, Any]
) -> Any:
    parameters = inspect.signature(factory).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if "num_classes" not in named and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise TypeError(f"{name} takes no num_classes; a factory of a classifier must")
    channels = [key for key in _CHANNELS if key in named][:1]
    if not channels and in_channels not in (None, 3) and not any(key in kwargs for key in _CHANNELS):
        raise ValueError(
            f"{name} takes neither in_channels nor in_chans, so it needs images of 3 channels; these have {in_channels}"
        )
    own = {} if in_channels is None else dict.fromkeys(channels, in_channels)
    return factory(**{"num_classes": num_classes, **own, **kwargs})


def _timm(timm: ModuleType, name: str, arguments: Mapping[str, Any]) -> Any:
    known = timm.list_models()
    # A name may go on with the tag of its weights, or be the address of a hub.
    if name.partition(".")[0] not in known and ":" not in name:
        hint = nearest(name, known, [f"{len(known)} names, see timm.list_models()"])
        raise ValueError(f"timm has no model {name!r}; {hint}")
    return timm.create_model(name, **{key: value for key, value in arguments.items() if value is not None})
