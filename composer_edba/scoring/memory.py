"""A bound on what scoring keeps of a pool: large vocabularies times long sequences are refused before memory ends."""

from __future__ import annotations

import math
import os

import torch

__all__ = ["check_score_memory", "device_memory", "score_memory"]

# Share of the device's memory that the last layer's inputs and output gradients of a pool may fill. While they are
# made they exist about four times over (outputs, their log-softmax, autograd's gradients, and these times B); measured
# for 16 sequences of 64 tokens and 30,522 words: 120 MiB of scores, a peak of 490 MiB, 370 MiB in a training step.
_SHARE = 0.2
_GIB = 2**30


def check_score_memory(
    samples: int, positions: int, features: int, classes: int, device: torch.device, limit: float | None = None
) -> None:
    """Refuse a pool whose scores would not fit beside the training.

    They are B T (F + C) float32 numbers; the inner products need no more than a fixed block on top.

    Args:
        samples, positions: B and T, the tokens or pixels at which the last layer is applied; 1 for a plain classifier.
        features, classes: F and C, inputs and outputs of the last layer.
        device: where the scores are.
        limit: most bytes; None: :func:`score_memory`.

    Raises:
        ValueError: names the sizes, and what would fit.
    """
    per_sample = 4 * positions * (features + classes)
    limit = score_memory(device) if limit is None else limit
    if samples * per_sample <= limit:
        return
    raise ValueError(
        f"scoring {samples} samples at {positions} positions each, with {features} inputs and {classes} outputs of the "
        f"last layer, would keep {samples * per_sample / _GIB:.3g} GiB, and EDBA stays below {limit / _GIB:.3g} GiB: "
        f"use batches of at most {int(limit // per_sample)} samples (max_batch_size), or name a narrower layer as "
        "last_layer, for example the one before the projection to the vocabulary"
    )


def score_memory(device: torch.device) -> float:
    """Most bytes of scores of a pool: a fifth of the device's memory, infinite if that is unknown."""
    return _SHARE * (device_memory(device) or math.inf)


def device_memory(device: torch.device) -> int | None:
    """Bytes of memory that ``device`` has in all; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
