"""Finding the module, if there is one, in which a sample's output depends on the other samples of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from composer_edba.loading.batch import batch_size, index_batch
from composer_edba.scoring.side_effects import without_side_effects

__all__ = ["check_samples_stay_apart"]

_PROBE_SIZE = 8  # samples that the check runs on
_INSTEAD = (
    "Use GroupNorm, LayerNorm or InstanceNorm instead, or EDBA, which needs the last layer's per-sample gradients alone"
)


def check_samples_stay_apart(model: nn.Module, batch: Any) -> None:
    """Refuse a network that mixes samples while training, for then a sample has no gradient of its own.

    Batch normalisation is known. Anything else is found by trying, if there are two samples: the first goes through
    with its neighbours and with copies of itself, under the same dropout masks, and what comes out must be the same.
    Nothing that the network remembers changes. ``batch`` is on the model's device; ``model(batch)`` gives the outputs.

    Raises:
        ValueError: names the module and what to use instead.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise ValueError(
                f"module {name!r} ({type(module).__name__}) normalises over the samples of the batch, so none of them "
                f"has a gradient of its own. {_INSTEAD}"
            )
    if (size := batch_size(batch)) < 2:
        return
    probe = torch.arange(min(size, _PROBE_SIZE))
    training = [module for module in model.modules() if module.training]
    with without_side_effects(model), torch.no_grad():
        for module in training:  # not model.train(), which would wake frozen modules
            module.training = True
        traces = [_trace(model, index_batch(batch, indices, size)) for indices in (probe, torch.zeros_like(probe))]
    for (name, module, inputs, output), (_, _, twin_inputs, twin_output) in zip(*traces, strict=False):
        if _same(inputs, twin_inputs) and not _same(output, twin_output):
            raise ValueError(
                f"module {name or 'the model'!r} ({type(module).__name__}) mixes samples: the output for one of them "
                f"depends on the others in the batch, so none has a gradient of its own. {_INSTEAD}"
            )


def _trace(model: nn.Module, batch: Any) -> list[tuple[str, nn.Module, list[Tensor], list[Tensor]]]:
    """The first sample's rows of what goes in and out of every module, in the order in which the modules finish."""
    size, calls = batch_size(batch), []

    def note(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((name, module, _first_rows((args, kwargs), size), _first_rows(output, size)))

    handles = [m.register_forward_hook(partial(note, name), with_kwargs=True) for name, m in model.named_modules()]
    torch.manual_seed(0)  # the caller preserves the random streams
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _first_rows(value: Any, size: int) -> list[Tensor]:
    if isinstance(value, Tensor):
        its_rows = value.ndim > 0 and len(value) == size and value.numel() > 0
        return [value[0].detach().to(torch.float64, copy=True)] if its_rows else []
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [row for part in parts for row in _first_rows(part, size)]


def _same(rows: list[Tensor], others: list[Tensor]) -> bool:
    def close(row: Tensor, other: Tensor) -> bool:
        tolerance = 1e-4 * float(row.abs().max() + 1e-12)
        return row.shape == other.shape and torch.allclose(row, other, rtol=1e-3, atol=tolerance, equal_nan=True)

    return len(rows) == len(others) and all(map(close, rows, others))
