"""Running a network without leaving a trace: modes, buffers, attributes and random streams are afterwards as before."""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import re
import sys
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction
from typing_extensions import override

from composer_edba.loading.streams import preserved_random_streams

__all__ = ["BatchNormStatistics", "without_side_effects"]

BatchNormStatistics = Literal["pool", "running"]

# Modules that draw random numbers in training, besides those that are named so.
_RANDOM = (nn.RReLU, nn.MultiheadAttention, nn.RNNBase)
_RANDOM_NAMES = re.compile("drop(out|path|block)|stochastic|noise$|^noisy", re.IGNORECASE)
_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout}
_OF_EACH_MODULE = frozenset(vars(nn.Module()))


@contextlib.contextmanager
def without_side_effects(model: nn.Module, batch_norm: BatchNormStatistics = "pool") -> Iterator[None]:
    """Run ``model`` for scoring: inside, modules behave as below; afterwards everything is bitwise as before.

    Modules keep their mode, but for those that draw random numbers in training: torch's own, and those with Dropout,
    DropPath, DropBlock, Stochastic or Noise in their class's name. Dropout called as a function is off, too; what else
    a forward draws it draws as in training.

    Batch normalisation that would train uses the batch's own statistics and leaves its running ones alone; with
    ``batch_norm="running"`` it uses those, as SyncBatchNorm always does, whose batch statistics need the other ranks.
    A module the user has frozen (put in eval mode) stays frozen. Reentrant checkpoints, which would hide what they
    compute from autograd, are plain calls.

    Put back: module modes, buffers, the other attributes of modules that are not torch's (set anew, or tensors, lists,
    dicts and sets changed in place, but not what is inside these), and the random streams of Python, NumPy and torch.
    """
    flags: list[tuple[nn.Module, str]] = []
    places: list[tuple[nn.Module, str, Tensor]] = []
    attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
    functional = sharded = False
    for module in model.modules():
        own, draws, reads_mode = _traits(type(module))  # type: ignore[arg-type]
        sharded |= type(module).__name__ == "FullyShardedDataParallel"
        if own:
            attributes.append((module.__dict__, module.__dict__.copy()))
        if own or not isinstance(module, _BatchNorm):
            places += [(module, name, tensor) for name, tensor in module._buffers.items() if tensor is not None]
        if module.training:
            functional |= reads_mode
            if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm) and batch_norm == "pool":
                # Without tracking, a layer in training mode neither reads nor writes its running statistics: of all
                # buffers the most numerous need no copy.
                if module.track_running_stats:
                    flags.append((module, "track_running_stats"))
            # Composer's StochasticDepth replaces the forward of single modules.
            elif draws or isinstance(module, _BatchNorm) or _named_random(module.__dict__.get("forward")):
                flags.append((module, "training"))
    attributes = [] if sharded else attributes  # where it keeps the parameters that it has gathered
    values = [value for _, before in attributes for name, value in before.items() if name not in _OF_EACH_MODULE]
    containers = [(value, value.copy()) for value in values if type(value) in (list, dict, set)]
    buffers = [tensor for _, _, tensor in places]
    buffers += [value for value in values if type(value) is Tensor and not value.requires_grad]
    buffers = [tensor for tensor in buffers if tensor.layout == torch.strided]
    copies = [torch.empty_like(tensor) for tensor in buffers]
    _copy_all(copies, buffers)
    versions = [tensor._version for tensor in buffers]
    checkpoint = CheckpointFunction.apply
    try:
        CheckpointFunction.apply = _plain_checkpoint  # type: ignore[method-assign]
        dropout = _DropoutOff() if functional else contextlib.nullcontext()
        with preserved_random_streams(), _eager(), _flags_off(flags), dropout:
            yield
    finally:
        CheckpointFunction.apply = checkpoint  # type: ignore[method-assign]
        # Autocast keeps half-precision copies of weights, made here without gradients, and training in the same
        # autocast context would use them.
        torch.clear_autocast_cache()
        changed = [i for i, version in enumerate(versions) if buffers[i]._version != version]
        _copy_all([buffers[i] for i in changed], [copies[i] for i in changed])
        for module, name, tensor in places:
            if module._buffers.get(name) is not tensor:
                module._buffers[name] = tensor
        for now, before in attributes + containers:
            _put_back(now, before)


def _put_back(now: Any, before: Any) -> None:
    """Give a dict, list or set the members that ``before`` has, unless it has these very ones."""
    same = len(now) == len(before) and all(map(operator.is_, now, before))
    if not same or (isinstance(now, dict) and not all(map(operator.is_, now.values(), before.values()))):
        now.clear()
        (now.extend if isinstance(now, list) else now.update)(before)


@functools.cache
def _traits(kind: type[nn.Module]) -> tuple[bool, bool, bool]:
    """Whether a class of modules is not torch's; draws random numbers in training; has methods that read its mode."""
    own = [base for base in kind.__mro__[:-1] if not base.__module__.startswith("torch.")]
    code = (getattr(inspect.unwrap(value), "__code__", None) for base in own for value in vars(base).values())
    reads_mode = any("training" in each.co_names for each in code if each is not None)
    return bool(own), issubclass(kind, _RANDOM) or any(map(_named_random, kind.__mro__)), reads_mode


def _named_random(what: Any) -> bool:
    return _RANDOM_NAMES.search(getattr(what, "__name__", "")) is not None


class _DropoutOff(TorchFunctionMode):
    """Dropout that is called as a function, or done inside attention, is off."""

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention and len(args) > 4:
            args = (*args[:4], 0.0, *args[5:])
        elif func is F.scaled_dot_product_attention:
            kwargs = {**(kwargs or {}), "dropout_p": 0.0}
        return func(*args, **(kwargs or {}))


def _plain_checkpoint(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
    return function(*args)


@contextlib.contextmanager
def _flags_off(flags: list[tuple[nn.Module, str]]) -> Iterator[None]:
    """Inside, these flags are False, afterwards True: themselves, as train() and eval() recurse, if not overridden."""

    def put(value: bool) -> None:
        for module, name in flags:
            # Module's own __setattr__ first looks for parameters and submodules, which takes as long as a small kernel.
            plain = type(module).__setattr__ is nn.Module.__setattr__
            (object.__setattr__ if plain else setattr)(module, name, value)

    try:
        put(False)
        yield
    finally:
        put(True)


def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        with torch.no_grad():
            torch._foreach_copy_(targets, sources)  # few launches on a GPU, however many buffers


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    """Keep a compiled model from compiling a second graph for scoring; costs nothing where nothing is compiled."""
    compiled = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
        yield
