"""Fixed, class-balanced subsets of a labelled data set."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def stratified_subset(
    labels: Sequence[int] | npt.ArrayLike, *, fraction: float | None = None, samples: int | None = None, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Choose a subset whose classes keep their proportions to less than one sample.

    Every class gets the whole part of its proportional share; the samples left over go one each to the classes with
    the largest remainders, ties at random (the largest remainder method). The choice depends on the arguments alone: no
    global random stream is read or moved. The EDBA paper has ``fraction=1.0``, ``0.1``, ``0.01`` and ``samples=100``.

    Args:
        labels: Class of every sample, ``(N,)`` integers.
        fraction: Share of the samples to choose, in (0, 1], rounded to the nearest whole sample, at least one.
        samples: Number of samples to choose, 1 to N. With neither it nor ``fraction`` all N are chosen.
        seed: Seed of the choice, not negative.

    Returns:
        Sorted indices into ``labels``, ``(samples,)``, each at most once.

    Raises:
        ValueError: Both sizes are given, a size or the seed is out of range, or ``labels`` is empty or not ``(N,)``.
        TypeError: ``labels`` or ``samples`` are not whole numbers.
    """
    classes = np.asarray(labels)
    if classes.ndim != 1 or classes.size == 0:
        raise ValueError(f"labels must be one class per sample, shape (N,) with N >= 1, not {classes.shape}")
    if not np.issubdtype(classes.dtype, np.integer):
        raise TypeError(f"labels must be integers, not {classes.dtype}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, not {seed}")
    count = _subset_size(classes.size, fraction, samples)

    rng = np.random.default_rng(seed)
    class_sizes = np.unique(classes, return_counts=True)[1]
    # Whole numbers throughout: a share computed in floating point could round across an integer.
    shares, remainders = np.divmod(class_sizes.astype(np.int64) * count, classes.size)
    order = np.lexsort((rng.permutation(class_sizes.size), -remainders))
    shares[order[: count - int(shares.sum())]] += 1

    by_class = np.split(np.argsort(classes, kind="stable"), np.cumsum(class_sizes)[:-1])
    chosen = [rng.permutation(members)[:share] for members, share in zip(by_class, shares, strict=True)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _subset_size(total: int, fraction: float | None, samples: int | None) -> int:
    if fraction is not None and samples is not None:
        raise ValueError(f"give fraction or samples, not both (fraction={fraction}, samples={samples})")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], not {fraction}")
        return max(1, int(fraction * total + 0.5))
    count = total if samples is None else operator.index(samples)
    if not 1 <= count <= total:
        raise ValueError(f"samples must be between 1 and the {total} there are, not {count}")
    return count
