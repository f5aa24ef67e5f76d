"""How many samples go through the network at once: equal parts under a bound, never a part of one sample."""

from __future__ import annotations

__all__ = ["equal_part_size"]


def equal_part_size(samples: int, limit: int | None) -> int | None:
    """Size of the parts that ``torch.split`` cuts ``samples`` into, at most ``limit``, with no part of one sample.

    Batch normalisation cannot train on one sample, and parts of nearly equal size waste least.

    Args:
        samples: number of samples, at least 1.
        limit: largest part that fits, at least 1; None for no limit.

    Returns:
        The size: the last part may be smaller but has two samples or more. None if that is impossible, which is so
        only for an odd number of samples above ``limit`` 2. A limit of 1, or one sample, gives 1.
    """
    if limit is None or samples <= limit:
        return samples
    if limit == 1:
        return 1
    parts = -(-samples // limit)
    size = -(-samples // parts)
    while size >= 2:
        if samples % size != 1:
            return size
        size -= 1
    return None
