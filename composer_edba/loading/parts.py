"""How many samples go through the network at once: equal parts under a bound, never a part of one sample."""

from __future__ import annotations

import math

__all__ = ["balanced_parts", "equal_part_size", "equal_parts_may_fail"]


def equal_part_size(samples: int, limit: int | None) -> int | None:
    """Size, at most ``limit``, for ``torch.split`` of ``samples`` that leaves no part of one (batch normalisation).

    None where every such size leaves one: odd numbers under a limit of 2, 7 or 13 under 3. A limit of 1, or one sample,
    gives 1. ``samples`` and ``limit`` are at least 1; None: no limit.
    """
    if limit is None or samples <= limit:
        return samples
    if limit == 1:
        return 1
    parts = -(-samples // limit)
    largest = -(-samples // parts)  # parts of nearly equal size waste least
    return next((size for size in range(largest, 1, -1) if samples % size != 1), None)


def equal_parts_may_fail(most: int, limit: int | None) -> bool:
    """Whether for a number of up to ``most`` samples :func:`equal_part_size` gives None; never for an even one."""
    if limit is None or limit == 1:
        return False
    multiple = 1
    for size in range(2, limit + 1):
        multiple = math.lcm(multiple, size)
        if multiple >= most:  # soon: the product of all sizes up to a large limit takes long to compute
            return False
    return True


def balanced_parts(samples: int, limit: int | None, least: int = 2) -> list[int]:
    """Sizes of parts of ``samples``, differing by at most one: at most ``limit`` where none gets below ``least`` by it.

    A limit of 1 gives ones, None is no limit; all of fewer than ``least`` samples are one part. Default 2.
    """
    least = 1 if limit == 1 else least
    parts = 1 if limit is None else max(1, min(-(-samples // limit), samples // least))
    size, larger = divmod(samples, parts)
    return [size + 1] * larger + [size] * (parts - larger)
