"""Running a network without leaving a trace: modes, buffers and random streams are afterwards bitwise as before."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = ["BatchNormStatistics", "without_side_effects"]

BatchNormStatistics = Literal["pool", "running"]


@contextlib.contextmanager
def without_side_effects(model: nn.Module, batch_norm: BatchNormStatistics = "pool") -> Iterator[None]:
    """Run ``model`` for scoring: inside, modules behave as below; afterwards everything is bitwise as before.

    Dropout and the like are off. Batch normalisation that would train uses the batch's own statistics and leaves its
    running ones alone; with ``batch_norm="running"`` it uses those, as SyncBatchNorm always does, whose batch
    statistics need the other ranks. Instance normalisation goes on as in training. A module the user has frozen
    (put in eval mode) stays frozen. Put back: module modes, other buffers, and the random streams of Python, NumPy
    and torch.
    """
    flags: list[tuple[nn.Module, str]] = []
    places: list[tuple[nn.Module, str, Tensor]] = []
    for module in model.modules():
        if not isinstance(module, _BatchNorm):
            places += [(module, name, tensor) for name, tensor in module._buffers.items() if tensor is not None]
        if module.training:
            own = isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
            if own and batch_norm == "pool":
                # Without tracking, a layer in training mode neither reads nor writes its running statistics: of all
                # buffers the most numerous need no copy.
                if module.track_running_stats:
                    flags.append((module, "track_running_stats"))
            elif not isinstance(module, _InstanceNorm):
                flags.append((module, "training"))
    buffers = [tensor for _, _, tensor in places]
    copies = [torch.empty_like(tensor) for tensor in buffers]
    _copy_all(copies, buffers)
    versions = [tensor._version for tensor in buffers]
    try:
        with _preserved_random_streams(), _eager():
            _set_flags(flags, False)
            yield
    finally:
        _set_flags(flags, True)
        # Autocast keeps half-precision copies of weights, made here without gradients, and training in the same
        # autocast context would use them.
        torch.clear_autocast_cache()
        changed = [i for i, version in enumerate(versions) if buffers[i]._version != version]
        _copy_all([buffers[i] for i in changed], [copies[i] for i in changed])
        for module, name, tensor in places:
            if module._buffers.get(name) is not tensor:
                module._buffers[name] = tensor


def _set_flags(flags: list[tuple[nn.Module, str]], value: bool) -> None:
    """Set the flags themselves: train() and eval() recurse and may be overridden."""
    for module, name in flags:
        # Module's own __setattr__ first looks for parameters and submodules, which takes as long as a small kernel.
        plain = type(module).__setattr__ is nn.Module.__setattr__
        (object.__setattr__ if plain else setattr)(module, name, value)


def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        with torch.no_grad():
            torch._foreach_copy_(targets, sources)  # few launches on a GPU, however many buffers


@contextlib.contextmanager
def _preserved_random_streams() -> Iterator[None]:
    python, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    """Keep a compiled model from compiling a second graph for scoring; costs nothing where nothing is compiled."""
    compiled = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
        yield
