"""Which subsets of a pool are candidates: uniformly random ones, of sizes drawn by a named law.

The paper does not say which: ``"uniform"`` (our reading), every size from the minimum to the pool's equally likely;
``"upper_half"``, the same from half the pool's size up; ``"power_set"``, every subset of at least the minimum size
equally likely, so sizes near half the pool's; a number in (0, 1], always that share of the pool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Candidates", "SubsetSizeLaw", "draw_candidates"]

SubsetSizeLaw = Literal["uniform", "upper_half", "power_set"] | float
# Prefixes that an order must give to be cheaper than as many masks, each with an order of its own.
_FEWEST_PREFIXES = 16


@dataclass(frozen=True)
class Candidates:
    """Random orders of a pool's samples; a candidate of size k takes the first k of each of its G groups (ranks).

    Attributes:
        orders: (P, N), P random orders in which the groups take turns; N = G times the smallest group's size.
        groups: G; the groups' sizes are ``group_sizes``.
        sizes: with ``as_prefixes`` the sizes (S,) that every order contributes, else one size an order, (P,).
        as_prefixes: whether each order gives a candidate for every size, or just one.
    """

    orders: Tensor
    groups: int
    sizes: Tensor
    as_prefixes: bool
    group_sizes: tuple[int, ...]

    @property
    def prefix_columns(self) -> slice:
        """Columns of ``prefix_gradient_norms`` that belong to ``sizes``."""
        first, second = (self.sizes[:2] * self.groups).tolist()
        return slice(first - 1, None, second - first)

    def masks(self) -> Tensor:
        """The candidates of a law with one size an order, as bool (P, B)."""
        taken = torch.arange(self.orders.shape[1]) < (self.sizes * self.groups).unsqueeze(1)
        return torch.zeros(len(self.orders), sum(self.group_sizes), dtype=torch.bool).scatter_(1, self.orders, taken)

    def _order_and_count(self, candidate: int) -> tuple[Tensor, int]:
        order, size = divmod(candidate, len(self.sizes)) if self.as_prefixes else (candidate, candidate)
        return self.orders[order], int(self.sizes[size]) * self.groups

    def members(self, candidate: int) -> Tensor:
        """Samples of candidate number ``candidate``, int64, ascending."""
        order, count = self._order_and_count(candidate)
        return order[:count].sort().values

    def redraw(self, candidate: int, generator: torch.Generator | None) -> Tensor:
        """A fresh random subset of the size of candidate number ``candidate``, int64, ascending."""
        _, count = self._order_and_count(candidate)
        return _random_orders(self.group_sizes, 1, generator)[0, :count].sort().values


def draw_candidates(
    group_sizes: Sequence[int],
    num_candidates: int,
    minimum: int,
    law: SubsetSizeLaw,
    multiple: int = 1,
    *,
    generator: torch.Generator | None = None,
) -> Candidates | None:
    """Draw at least ``num_candidates`` random subsets; None if the whole pool is the only one.

    Args:
        group_sizes: sizes of the pool's groups; sizes of subsets count per group.
        num_candidates: least number of candidates.
        minimum: smallest size of a candidate.
        law: the law of sizes.
        multiple: sizes are multiples of this, if the pool holds one that is not below ``minimum``.
        generator: CPU generator; None: torch's global stream.
    """
    pool = min(group_sizes)
    if max(group_sizes) <= minimum or law == 1:
        return None
    low, high = min(minimum, pool), pool
    step = multiple if -(-low // multiple) * multiple <= high else 1
    if law in ("uniform", "upper_half"):
        low = max(low, -(-pool // 2)) if law == "upper_half" else low
        first = -(-low // step) * step
        sizes = torch.arange(first if first <= high else high, high + 1, step)
        if as_prefixes := len(sizes) >= _FEWEST_PREFIXES:
            num_candidates = math.ceil(num_candidates / len(sizes))
        else:
            sizes = sizes[torch.randint(len(sizes), (num_candidates,), generator=generator)]
        orders = _random_orders(group_sizes, num_candidates, generator)
        return Candidates(orders, len(group_sizes), sizes, as_prefixes, tuple(group_sizes))
    orders = _random_orders(group_sizes, num_candidates, generator)
    if law == "power_set":
        drawn = torch.bernoulli(torch.full((num_candidates, pool), 0.5), generator=generator).sum(1)
    else:
        drawn = torch.full((num_candidates,), float(law) * pool)
    sizes = ((drawn / step).round() * step).clamp(-(-low // step) * step, high // step * step).long()
    return Candidates(orders, len(group_sizes), sizes, False, tuple(group_sizes))


def _random_orders(group_sizes: Sequence[int], count: int, generator: torch.Generator | None) -> Tensor:
    """``count`` random orders, (count, G * smallest group), in which the groups take turns."""
    shortest, start, parts = min(group_sizes), 0, []
    for size in group_sizes:
        noise = torch.rand(count, size, generator=generator, dtype=torch.float64)
        parts.append(noise.argsort(1)[:, :shortest] + start)
        start += size
    return torch.stack(parts, 2).flatten(1)
