"""Named sets of arguments, the same in every loop: the defaults, and the paper's literal settings."""

from __future__ import annotations

from typing import Any

__all__ = ["DEFAULTS", "PAPER"]

DEFAULTS: dict[str, Any] = {
    "num_candidates": 1024,
    "ema_decay": 0.9,
    "min_subset_size": 10,
    "min_batch_size": 10,
    "max_batch_size": 1000,
    "batch_size_policy": "loss",
    "policy_options": None,
    "criterion": "margin",
    "scale_factor": 1.0,
    "scoring_batch_norm": "pool",
    "interval": 10,
    "interrupt": 0,
    "subset_size_law": "upper_half",
}
"""What evidence chose (README, docs/results). :class:`~composer_edba.EDBA` repeats it in its signature."""

PAPER: dict[str, Any] = {
    "num_candidates": 1024,
    "ema_decay": 0.9,
    "min_subset_size": 10,
    "min_batch_size": 10,
    "max_batch_size": 1000,
    "batch_size_policy": "margin",
    "policy_options": None,
    "criterion": "margin",
    "scale_factor": 1.0,
    "scoring_batch_norm": "pool",
    "interval": 1,
    "interrupt": 0,
    "subset_size_law": "uniform",
}
"""The paper's, whatever the defaults become; where it is silent (averages, candidates, size law, policy) our first
reading of it. :meth:`EDBA.paper` in a Trainer, ``preset: paper`` in YAML, ``preset="paper"`` in Ignite and in plain
loops."""
