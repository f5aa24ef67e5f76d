"""Checks of EDBA's arguments, the same whichever framework hands them over."""

from __future__ import annotations

from typing import Any

from torch import nn

from composer_edba.method.candidates import check_size_law
from composer_edba.method.sizing import check_policy_options

__all__ = ["check_arguments"]

_CHOICES = {
    "batch_size_policy": ("loss", "margin", "noise_scale", "fixed"),
    "criterion": ("margin", "difference", "random"),
    "scoring": ("forward", "cached"),
    "scoring_batch_norm": ("pool", "running"),
}
_COUNTS = {
    "num_candidates": 1,
    "min_subset_size": 1,
    "min_batch_size": 1,
    "max_batch_size": 1,
    "interval": 1,
    "interrupt": 0,
}


def check_arguments(**arguments: Any) -> None:
    """Raise a ValueError or TypeError that names the argument, its value and what would be right."""
    for name, choices in _CHOICES.items():
        if not isinstance(arguments[name], str) or arguments[name] not in choices:
            raise ValueError(f"{name} is {arguments[name]!r}: it must be one of {', '.join(map(repr, choices))}")
    for name, least in _COUNTS.items():
        value = arguments[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}: it must be an integer >= {least}")
        if value < least:
            raise ValueError(f"{name} is {value}: it must be at least {least}")
    for name in ("ema_decay", "scale_factor", "start", "end"):
        value = arguments[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} is {value!r}: it must be a number between 0 and 1")
    if not 0 <= arguments["ema_decay"] < 1:
        raise ValueError(f"ema_decay is {arguments['ema_decay']}: it must be at least 0 and below 1")
    if not 0 < arguments["scale_factor"] <= 1:
        raise ValueError(f"scale_factor is {arguments['scale_factor']}: it must be above 0 and at most 1")
    if arguments["scoring"] == "cached" and arguments["scale_factor"] != 1:
        raise ValueError(
            f"scale_factor is {arguments['scale_factor']} and scoring is 'cached', which has no scoring forward to "
            "make smaller: use scale_factor=1, or scoring='forward'"
        )
    if arguments["scoring"] == "cached" and arguments["scoring_batch_norm"] != "pool":
        raise ValueError(
            f"scoring_batch_norm is {arguments['scoring_batch_norm']!r} and scoring is 'cached', which has no scoring "
            "forward: leave scoring_batch_norm out, or use scoring='forward'"
        )
    start, end = arguments["start"], arguments["end"]
    if not 0 <= start < end <= 1:
        raise ValueError(f"start is {start} and end is {end}: they must satisfy 0 <= start < end <= 1")
    smallest, largest = arguments["min_batch_size"], arguments["max_batch_size"]
    if smallest > largest:
        raise ValueError(f"min_batch_size is {smallest} and max_batch_size is {largest}: the first must not exceed it")
    if arguments["min_subset_size"] > largest:
        raise ValueError(
            f"min_subset_size is {arguments['min_subset_size']} and max_batch_size is {largest}: no batch could ever "
            "be chosen from; min_subset_size must not exceed max_batch_size"
        )
    if arguments["interrupt"] == 1:
        raise ValueError("interrupt is 1: every batch would be a plain step. Use 0 for none, or 2 or more")
    layer = arguments["last_layer"]
    if layer is not None and not isinstance(layer, (str, nn.Module)):
        raise TypeError(f"last_layer is {layer!r}: it must be a module of the model, its name, or None")
    check_size_law(arguments["subset_size_law"])
    check_policy_options(arguments["batch_size_policy"], arguments["policy_options"])
