"""Per-sample gradients of every layer, from what hooks see of an ordinary forward and backward pass.

A layer is a module with trainable parameters of its own. Sample i's gradient by them is Σ_t d_it ⊗ [h_it, 1] for a
Linear or over the patches of a Conv2d, else the vector-Jacobian product of the module run on the one sample, by
torch.func under vmap. Dropout masks, mixed precision and microbatches are those of training; there is no second pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from composer_edba.method.equation import gradient_inner_products
from composer_edba.scoring.pool_scores import at_least_float32

__all__ = ["LayerGradients", "LayerRecorder", "check_gradients"]

# Largest difference between the per-sample gradients' mean and backward's gradient, as a share of their RMS norm.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 5e-2


class _Call(NamedTuple):
    """One call of a layer that the loss depends on: its arguments, and the gradient by its output."""

    given: dict[int | str, Any]  # by position or by name
    grad: Tensor


@dataclass
class _Part:
    """What the layer ``name`` did with one microbatch, filled in by its hooks; no calls: it was not used."""

    name: str
    samples: int
    calls: list[_Call] = field(default_factory=list)

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != self.samples:
            found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"type {type(output).__name__}"
            raise ValueError(
                f"layer {self.name!r} ({type(module).__name__}) gives an output of {found} for {self.samples} samples: "
                "DBA needs one tensor whose first dimension is the batch"
            )
        if output.requires_grad:
            both: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            given = {key: value.detach() if isinstance(value, Tensor) else value for key, value in both}
            output.register_hook(lambda grad: self.calls.append(_Call(given, grad.detach())))


class LayerRecorder:
    """Notes inputs and output gradients of a network's layers while it trains on a batch, in one microbatch or more.

    Call :meth:`attach` before and :meth:`detach` after each forward pass; after the last backward, :meth:`layers`.
    ``samples`` is the number B of samples that went through the network since :meth:`clear`.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._handles: list[RemovableHandle] = []
        self._parts: dict[tuple[str, nn.Module], list[_Part]] = {}

    def attach(self, model: nn.Module, samples: int) -> None:
        """Note what the next forward pass through ``model``, of ``samples`` samples, shows."""
        self.samples += samples
        for name, module in model.named_modules():
            if _own_parameters(module):
                self._parts.setdefault((name, module), []).append(part := _Part(name, samples))
                self._handles.append(module.register_forward_hook(part.note, with_kwargs=True))

    def detach(self) -> None:
        """Note nothing more of forward passes; what was noted stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.detach()
        self._parts, self.samples = {}, 0

    def layers(self, scale: float) -> list[LayerGradients]:
        """The layers that the loss depends on, in the order of ``named_modules``.

        ``scale`` times an output gradient belongs to the sample's own loss: B if backward ran on the mean loss.
        """
        used = {key: parts for key, parts in self._parts.items() if any(part.calls for part in parts)}
        return [LayerGradients(*key, parts, scale) for key, parts in used.items()]


class LayerGradients:
    """The per-sample gradients g_1 .. g_B of the layer ``module``, formed only when asked for; a ValueError if none.

    ``name`` is its name in the network, ``half`` whether some output gradient came in half precision.
    """

    def __init__(self, name: str, module: nn.Module, parts: Sequence[_Part], scale: float):
        self.name, self.module, self._parts, self._scale = name, module, parts, scale
        self._parameters = {name: parameter.detach() for name, parameter in _own_parameters(module).items()}
        self._device = next(iter(self._parameters.values())).device
        self.half = any(call.grad.dtype in (torch.float16, torch.bfloat16) for part in parts for call in part.calls)

    def inner_products(self) -> Tensor:
        """⟨g_i, g_j⟩, (B, B), float32 or float64."""
        if self._is_linear():
            inputs, output_grads = self._linear_rows()
            return gradient_inner_products(inputs, output_grads, self.module.bias is not None)
        first, *others = self._by_parameter().values()
        products = first @ first.T
        for gradients in others:
            products.addmm_(gradients, gradients.T)
        return products

    def materialised(self) -> Tensor:
        """All g_i, (B, P) with the layer's trainable parameters flattened one after the other."""
        return torch.cat(list(self._by_parameter().values()), 1)

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        """Σ_i w_i g_i, by the names of the layer's trainable parameters, for w (B,) on any device."""
        weights = weights.to(self._device, torch.float32)
        if self._is_linear():
            inputs, output_grads = self._linear_rows()
            d = (output_grads * weights.view(-1, *[1] * (output_grads.ndim - 1))).flatten(0, -2)
            total = {"weight": d.T @ inputs.flatten(0, -2)}
            return total if self.module.bias is None else {**total, "bias": d.sum(0)}
        total = {name: torch.zeros_like(parameter) for name, parameter in self._parameters.items()}
        with torch.autocast(self._device.type, enabled=False):
            for part, part_weights in zip(self._parts, weights.split([p.samples for p in self._parts]), strict=True):
                for call in part.calls:
                    given, grad = self._cast(call)
                    weighted = grad * part_weights.to(grad.dtype).view(-1, *[1] * (grad.ndim - 1))
                    for name, value in self._pulled_back(given, weighted).items():
                        total[name] += value
        return total

    def means(self) -> tuple[dict[str, Tensor], Tensor]:
        """(1/B) Σ_i g_i by parameter, and the root mean square of the norms ‖g_i‖, from the very g_i themselves."""
        if self._is_linear():
            squares = self.inner_products().diagonal().double()
            equal = torch.full((len(squares),), 1 / len(squares))
            return self.weighted_sum(equal), squares.mean().clamp_min(0).sqrt()
        found = self._by_parameter()
        squares = torch.stack([g.norm(dim=1).double().square().mean() for g in found.values()])
        return {name: g.mean(0).view_as(self._parameters[name]) for name, g in found.items()}, squares.sum().sqrt()

    def replace_gradient(self, weights: Tensor) -> None:
        """Make Σ_i w_i g_i the gradient that the optimizer will read."""
        for name, value in self.weighted_sum(weights).items():
            grad = self.module.get_parameter(name).grad
            assert grad is not None
            grad.copy_(value)

    def _is_linear(self) -> bool:
        # The exact class: parametrisations and subclasses may compute something else.
        whole = len(self._parameters) == len(list(self.module.parameters(recurse=False)))
        return type(self.module) is nn.Linear and whole and all(part.calls for part in self._parts)

    def _linear_rows(self) -> tuple[Tensor, Tensor]:
        """Inputs (B, F) and output gradients (B, C), or (B, T, F) and (B, T, C): repeated calls are positions too."""
        rows = []
        for part in self._parts:
            calls = [(next(iter(call.given.values())), call.grad) for call in part.calls]
            h, d = (
                torch.cat([at_least_float32(rows).reshape(part.samples, -1, rows.shape[-1]) for rows in tensors], 1)
                for tensors in zip(*calls, strict=True)
            )
            rows.append((h, d * self._scale))
        most = max(h.shape[1] for h, _ in rows)
        # Positions without output gradient add nothing.
        h, d = (torch.cat([F.pad(pair[k], (0, 0, 0, most - pair[k].shape[1])) for pair in rows]) for k in (0, 1))
        return (h[:, 0], d[:, 0]) if most == 1 else (h, d)

    def _by_parameter(self) -> dict[str, Tensor]:
        """g_i by parameter, (B, size) each; nothing is copied where there is one microbatch and one call."""
        parts = []
        for part in self._parts:
            total: dict[str, Tensor] = {}
            for call in part.calls:
                with torch.autocast(self._device.type, enabled=False):
                    gradients = self._gradients_of_call(call, part.samples)
                total = {name: total[name].add_(gradients[name]) for name in total} or gradients
            parts.append(total or {name: p.new_zeros(part.samples, p.numel()) for name, p in self._parameters.items()})
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part.pop(name) for part in parts]) for name in self._parameters}

    def _gradients_of_call(self, call: _Call, samples: int) -> dict[str, Tensor]:
        (given, grad), layer = self._cast(call), self.module
        plain = type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"
        if plain and not isinstance(layer.padding, str) and 0 in given and grad.ndim == 4:
            return self._convolution_gradients(given[0], grad)
        batched = {key for key, a in given.items() if isinstance(a, Tensor) and a.ndim > 0 and len(a) == samples}

        def one(given_i: dict[int | str, Any], grad_i: Tensor) -> dict[str, Tensor]:
            alone = {key: a.unsqueeze(0) if key in batched else a for key, a in given_i.items()}
            return self._pulled_back(alone, grad_i.unsqueeze(0))

        try:
            gradients = vmap(one, in_dims=({key: 0 if key in batched else None for key in given}, 0))(given, grad)
        except Exception as error:  # torch.func's own errors have many types
            raise ValueError(
                f"layer {self.name!r} ({type(layer).__name__}) has no per-sample gradients: torch.func cannot "
                f"run it on single samples ({' '.join(str(error).split())[:300]}). Freeze it, replace it, or use EDBA, "
                "which needs them of the last layer alone"
            ) from error
        return {name: gradients[name].flatten(1) for name in self._parameters}

    def _convolution_gradients(self, inputs: Tensor, output_grads: Tensor) -> dict[str, Tensor]:
        """Σ_t d_it ⊗ h_it over the patches h_it: a third of the memory and half of the time of vmap's way."""
        layer, found = self.module, {}
        assert isinstance(layer, nn.Conv2d)
        if "weight" in self._parameters:
            options = {name: getattr(layer, name) for name in ("kernel_size", "dilation", "padding", "stride")}
            patches = F.unfold(inputs, **options)
            found["weight"] = (output_grads.flatten(2) @ patches.transpose(1, 2)).flatten(1)
        if "bias" in self._parameters:
            found["bias"] = output_grads.sum((2, 3))
        return found

    def _pulled_back(self, given: dict[int | str, Any], grad: Tensor) -> dict[str, Tensor]:
        """The vector-Jacobian product of the module, called with ``given``, by its parameters."""
        args = tuple(value for key, value in given.items() if isinstance(key, int))
        kwargs = {key: value for key, value in given.items() if isinstance(key, str)}
        return vjp(lambda p: functional_call(self.module, p, args, kwargs), self._parameters)[1](grad)[0]

    def _cast(self, call: _Call) -> tuple[dict[int | str, Any], Tensor]:
        """Arguments and scaled output gradient in the parameters' precision, where autocast had them in another."""
        dtype = next(iter(self._parameters.values())).dtype
        floats = {key for key, a in call.given.items() if isinstance(a, Tensor) and a.is_floating_point()}
        cast = {key: a.to(dtype) if key in floats else a for key, a in call.given.items()}
        return cast, call.grad.to(dtype) * self._scale


def check_gradients(layers: Sequence[LayerGradients], model: nn.Module) -> None:
    """Compare the mean of the per-sample gradients with the gradient that backward left in each parameter.

    Raises:
        ValueError: they differ: hooks did not see all that a parameter, which it names, does, or a layer mixes samples.
    """
    found: dict[Tensor, tuple[Tensor, Tensor]] = {}
    for layer in layers:
        means, scale = layer.means()
        tolerance = scale * (_HALF_TOLERANCE if layer.half else _TOLERANCE)
        found |= {layer.module.get_parameter(name): (mean, tolerance) for name, mean in means.items()}
    for path, parameter in model.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        fits = parameter.grad is None
        if parameter in found:
            mean, tolerance = found[parameter]
            close = (mean.double() - grad.double()).norm() <= tolerance
            fits = bool(close | ~torch.isfinite(tolerance + grad.sum()))
        if not fits:
            kind = type(model.get_submodule(path.rpartition(".")[0])).__name__
            raise ValueError(
                f"the gradient of {path} ({kind}) is not the mean of per-sample gradients: the "
                "parameter is used outside of its module's forward, or in several modules (tied weights), or the "
                "module mixes samples. DBA cannot choose samples for it: change that, freeze the parameter, or use "
                "EDBA, which needs the last layer's gradients alone"
            )


def _own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters(recurse=False) if p.requires_grad}
