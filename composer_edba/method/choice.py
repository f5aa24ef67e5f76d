"""The choice of a subset from a pool: candidates drawn, judged by a criterion, the best one taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from composer_edba.method.averages import Averages
from composer_edba.method.candidates import SubsetSizeLaw, draw_candidates
from composer_edba.method.equation import as_scalar, prefix_gradient_norms, signed_margin, subset_gradient_norms

__all__ = ["Criterion", "CriterionFunction", "Selection", "select_subset"]

Criterion = Literal["margin", "difference", "random"]
CriterionFunction = Callable[[Tensor, float, Averages], Tensor]


@dataclass(frozen=True)
class Selection:
    """The chosen subset of a pool and the figures behind the choice.

    Attributes:
        indices: the chosen samples' positions in the pool, int64, ascending, on the CPU.
        model_metric: M, the mean loss of the pool.
        gradient_metric: G(S*), the norm of the chosen subset's mean last-layer gradient.
        margin: equation 1 for the chosen subset; 0 on the first step, whose metrics begin the averages.
        signed_margin: the same without the absolute value.
        wanted: the gradient metric of margin zero, Ḡ + (M - M̄).
        reach: smallest and largest gradient metric among the candidates.
        mean_square_norm: mean of the samples' squared gradient norms, (1/B) Σ ‖g_i‖².
        pool_gradient_metric: G of the whole pool.
        finite: False if the loss or a gradient was NaN or infinite; then the whole pool is chosen.
    """

    indices: Tensor
    model_metric: float
    gradient_metric: float
    margin: float
    signed_margin: float
    wanted: float
    reach: tuple[float, float]
    mean_square_norm: float
    pool_gradient_metric: float
    finite: bool


def select_subset(
    inner_products: Tensor,
    model_metric: Tensor | float,
    averages: Averages | None,
    *,
    num_candidates: int = 1024,
    min_subset_size: int = 10,
    generator: torch.Generator | None = None,
    criterion: Criterion | CriterionFunction = "margin",
    subset_size_law: SubsetSizeLaw = "uniform",
    size_multiple: int = 1,
    group_sizes: Sequence[int] | None = None,
) -> Selection:
    """Choose the candidate subset of least margin, or by another criterion, from a pool.

    On a GPU this waits for the device once, or twice if ``criterion`` is ``"random"`` or a function.

    Args:
        inner_products: ⟨g_i, g_j⟩ of the pool, (B, B).
        model_metric: M, the mean loss of the pool.
        averages: M̄ and Ḡ; None on the first step, which takes the whole pool.
        num_candidates: least number of candidate subsets. Default 1024.
        min_subset_size: smallest size of a candidate; a pool of at most this size is taken whole. Default 10.
        generator: CPU generator that the candidates are drawn from; None: torch's global stream.
        criterion: ``"margin"``, the default, equation 1; ``"difference"``, |(G - Ḡ) - (M - M̄)|, which has no pole at
            Ḡ; ``"random"``, the control: the margin's size, members drawn anew; or a function
            ``criterion(gradient_metrics, model_metric, averages)`` that gives each of the K candidates a cost, (K,)
            for float64 (K,), of which the least wins; NaN is the largest.
        subset_size_law: how the candidates' sizes are drawn, see :mod:`composer_edba.method.candidates`.
        size_multiple: sizes are multiples of this where the pool allows it. Default 1.
        group_sizes: the pool's samples on each rank; candidates take as many of each, sizes are per rank. None: one.
    """
    pool_size = inner_products.shape[0]
    groups = [pool_size] if group_sizes is None else list(group_sizes)
    everything = torch.arange(pool_size)
    # A sum is finite only if every term is.
    total = inner_products.sum(dtype=torch.float64)
    pool_norm = total.clamp_min(0).sqrt() / pool_size
    square_norm = inner_products.diagonal().mean(dtype=torch.float64)
    common = torch.stack([as_scalar(model_metric, total), square_norm, pool_norm, total])

    if averages is None:
        model, square, pool, sum_of_products = common.tolist()
        finite = math.isfinite(model) and math.isfinite(sum_of_products)
        return Selection(everything, model, pool, 0.0, 0.0, pool, (pool, pool), square, pool, finite)

    candidates = draw_candidates(
        groups, num_candidates, min_subset_size, subset_size_law, size_multiple, generator=generator
    )
    if candidates is None:  # too small a pool: it is the only candidate
        norms = pool_norm.reshape(1)
    elif candidates.as_prefixes:
        norms = prefix_gradient_norms(inner_products, _to_device(candidates.orders, inner_products))
        norms = norms[:, candidates.prefix_columns].flatten()
    else:
        norms = subset_gradient_norms(inner_products, _to_device(candidates.masks(), inner_products))
    signed = signed_margin(model_metric, norms.double(), averages.model, averages.gradient)
    distance = signed.abs()
    if criterion == "difference":
        distance = ((norms.double() - averages.gradient) - (as_scalar(model_metric, norms) - averages.model)).abs()
    elif not isinstance(criterion, str):
        costs = criterion(norms.to(torch.float64, copy=True), float(model_metric), averages)
        if not isinstance(costs, Tensor) or costs.shape != norms.shape:
            found = tuple(costs.shape) if isinstance(costs, Tensor) else type(costs).__name__
            raise ValueError(
                f"criterion gave {found} for {len(norms)} candidates: it must give a tensor with one cost for each"
            )
        distance = costs.double().nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    # A zero gradient trains nothing, and where only some positions count it may belong to a loss of 0 / 0.
    best = distance.where(norms > 0, float("inf")).argmin(0, keepdim=True)
    # Indexing by a tensor without dimensions would read its value, and so wait for the device.
    chosen = torch.stack([best.double(), signed[best], norms[best].double()]).flatten()
    reach = torch.stack([norms.min(), norms.max()]).double()
    figures = torch.cat([common, chosen, reach]).tolist()
    model, square, pool, sum_of_products, best_at, margin, norm, low, high = figures
    wanted = averages.gradient + model - averages.model
    if not (math.isfinite(model) and math.isfinite(sum_of_products)):
        return Selection(everything, model, pool, margin, margin, wanted, (low, high), square, pool, False)
    indices = everything if candidates is None else candidates.members(int(best_at))
    if criterion == "random" and candidates is not None:
        indices = candidates.redraw(int(best_at), generator)
        members = _to_device(indices, inner_products)
        drawn = inner_products[members][:, members].mean(dtype=torch.float64).clamp_min(0).sqrt()
        norm, margin = torch.stack([drawn, signed_margin(model, drawn, averages.model, averages.gradient)]).tolist()
    return Selection(indices, model, norm, abs(margin), margin, wanted, (low, high), square, pool, True)


def _to_device(drawn: Tensor, like: Tensor) -> Tensor:
    """``drawn``, which is on the CPU, on the device of ``like``; from pinned memory the host need not wait for it."""
    return (drawn.pin_memory() if like.is_cuda else drawn).to(like.device, non_blocking=True)
