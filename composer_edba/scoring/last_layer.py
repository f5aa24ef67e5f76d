"""Finding a network's last layer: the linear map whose gradient EDBA measures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["find_last_layer", "is_linear_map", "named_last_layer", "positions_last", "single_position"]


def is_linear_map(module: nn.Module) -> bool:
    """Whether EDBA knows the per-sample gradient of ``module``: a Linear, or an ungrouped 1x1 convolution."""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return isinstance(module, nn.Linear)
    plain = all(each == 1 for each in (*module.kernel_size, *module.stride, module.groups))
    return plain and module.padding in ("valid", "same", (0,) * len(module.kernel_size))


def positions_last(module: nn.Module, tensor: Tensor) -> Tensor:
    """The layer's input or output as (B, T..., channels): a convolution's channels move to the end."""
    return tensor if isinstance(module, nn.Linear) else tensor.movedim(1, -1)


def single_position(module: nn.Module, tensor: Tensor) -> Tensor:
    """The layer's input or output as (B, channels).

    Raises:
        ValueError: if the layer is applied at several positions of a sample.
    """
    rows = positions_last(module, tensor)
    if rows.ndim < 2 or rows[0, ..., 0].numel() != 1:
        raise ValueError(
            f"last_layer ({type(module).__name__}) is applied to {tuple(tensor.shape)}, at several positions of a "
            "sample: scoring='cached' keeps one row a sample. Use scoring='forward', or name another layer"
        )
    return rows.reshape(len(rows), rows.shape[-1])


def named_last_layer(model: nn.Module, name: str) -> nn.Module:
    """The submodule ``name`` of ``model``.

    Raises:
        ValueError: if there is none, or if it is no linear map; names the ones there are.
    """
    modules = dict(model.named_modules())
    if name not in modules:
        raise ValueError(f"last_layer is {name!r}, which the model does not have. {_linear_maps(model)}")
    check_last_layer(model, modules[name])
    return modules[name]


def check_last_layer(model: nn.Module, layer: nn.Module) -> None:
    """Raise a ValueError unless ``layer`` is a linear map inside ``model``."""
    if not is_linear_map(layer):
        raise ValueError(
            f"last_layer is a {type(layer).__name__}: it must be a Linear or a 1x1 convolution. {_linear_maps(model)}"
        )
    if all(layer is not module for module in model.modules()):
        raise ValueError(
            f"last_layer is a {type(layer).__name__} that is not part of the model (model surgery may have replaced "
            f"it): name it by a string instead. {_linear_maps(model)}"
        )


def find_last_layer(model: nn.Module, forward: Callable[[], Any]) -> nn.Module:
    """The linear map of ``model`` that ``forward()``, which runs it on real inputs, calls last, wherever registered.

    One that it does not call in evaluation mode, for an auxiliary output of training, counts only if there is no other.

    Raises:
        ValueError: if no linear map was called; says which modules were seen and how to name one.
    """
    called: list[nn.Module] = []
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for module in (model, *filter(is_linear_map, model.modules())):
            hooks.enter_context(module.register_forward_hook(lambda module, args, output: called.append(module)))
        forward()
        in_training = [module for module in called if is_linear_map(module)]
        called.clear()
        # The loss may not take what the model gives in evaluation, and the model may not work there at all.
        training = [module for module in model.modules() if module.training]
        for module in training:  # not model.eval(), which may be overridden
            hooks.callback(setattr, module, "training", True)
            module.training = False
        with contextlib.suppress(Exception):
            forward()
    common = [module for module in in_training if module in called] if model in called else []
    if not in_training:
        kinds = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
        raise ValueError(
            "no last layer found: the forward pass called no Linear and no 1x1 convolution (modules seen: "
            f"{', '.join(kinds) or 'none'}). Name the layer whose gradient is to be measured: last_layer='name.of.it'. "
            f"{_linear_maps(model)}"
        )
    return (common or in_training)[-1]


def _linear_maps(model: nn.Module) -> str:
    names = [name for name, module in model.named_modules() if is_linear_map(module)]
    return f"Linear maps in the model: {', '.join(names[-10:]) or 'none'}."
