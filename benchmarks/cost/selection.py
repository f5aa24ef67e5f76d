"""Selection alone, from last-layer inputs and output gradients to the best candidate, against what it replaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.cost.interleaved import Timing, fair_clock, interleave
from benchmarks.machine import available_bytes
from composer_edba.method.averages import Averages
from composer_edba.method.candidates import draw_candidates
from composer_edba.method.choice import select_subset
from composer_edba.method.equation import gradient_inner_products, margin_loss, subset_gradient_norms

__all__ = ["LAST_LAYERS", "measure_selection"]

LAST_LAYERS = ((10, 64), (100, 256), (1000, 2048))  # classes, features

_MODEL_METRIC, _AVERAGES = 1.1, Averages(1.0, 1.0)
_MIN_SUBSET_SIZE = 10
# Of what memory is left, the share that materialised gradients and a copy of most of them may take.
_SHARE = 0.6
# One by one takes long: this many floats are looked at in a timing, at least one candidate and at most 64.
_FLOATS = 2**28


def measure_selection(
    pool: int,
    classes: int,
    features: int,
    num_candidates: int,
    rounds: int,
    device: torch.device,
    budget: float | None = None,
) -> dict[str, Any]:
    """Candidates a second of each way to judge random subsets of a pool. Every way draws its candidates itself.

    * ``edba``: inner products, prefixes of random orders, as in a step of EDBA;
    * ``masks_times_matrix``: the same inner products, and a matrix of random masks times them;
    * ``matrix_vector``: materialised gradients of the last layer, (B, C (F + 1)), as Opacus' ``grad_sample`` has them,
      at hand for nothing; a loop over masks, each a product of the mask with them;
    * ``mean_of_rows``: the same, each the mean of the rows that the mask picks.

    Gradients that would not fit are cut down to their first classes, and the two last ways' times multiplied
    accordingly: both do nothing but read them.

    Args:
        pool: B.
        classes: C.
        features: F.
        num_candidates: what EDBA and the matrix of masks are asked for.
        rounds: most timed rounds of each.
        device: where.
        budget: seconds they may take, see :func:`~benchmarks.cost.interleaved.interleave`.
    """
    inputs = torch.randn(pool, features, device=device).relu()
    output_grads = (torch.randn(pool, classes, device=device).softmax(1) - 1 / classes).contiguous()
    generator = torch.Generator().manual_seed(0)

    def edba(number: int) -> None:
        products = gradient_inner_products(inputs, output_grads)
        select_subset(
            products,
            _MODEL_METRIC,
            _AVERAGES,
            num_candidates=num_candidates,
            min_subset_size=_MIN_SUBSET_SIZE,
            generator=generator,
        )

    def masks_times_matrix(number: int) -> None:
        products = gradient_inner_products(inputs, output_grads)
        _best(subset_gradient_norms(products, _random_masks(num_candidates, pool, device)))

    held = min(classes, int(_SHARE * available_bytes(device) / (8 * pool * (features + 1))))
    gradients = _materialised(inputs, output_grads[:, :held])
    few = max(1, min(64, _FLOATS // gradients.numel()))

    def one_by_one(norm: Callable[[Tensor, Tensor], Tensor]) -> Callable[[int], None]:
        return lambda number: _best(torch.stack([norm(gradients, mask) for mask in _random_masks(few, pool, device)]))

    timings = interleave(
        {
            "edba": edba,
            "masks_times_matrix": masks_times_matrix,
            "matrix_vector": one_by_one(_matrix_vector),
            "mean_of_rows": one_by_one(_mean_of_rows),
            "edba_inner_products": lambda number: gradient_inner_products(inputs, output_grads),
        },
        rounds,
        clock=fair_clock(device),
        budget=budget,
    )
    counts = {
        "edba": _candidates_of_edba(pool, num_candidates),
        "masks_times_matrix": num_candidates,
        "matrix_vector": few,
        "mean_of_rows": few,
    }
    rate = {}
    for name, count in counts.items():
        whole = classes / held if name in ("matrix_vector", "mean_of_rows") else 1.0
        # Candidates a second, a round each, quartiles and all.
        rate[name] = Timing.of([count / (seconds * whole) for seconds in timings[name].rounds])
    return {
        "pool": pool,
        "classes": classes,
        "features": features,
        "asked_for": num_candidates,
        "judged": counts["edba"],
        "materialised_bytes": 4 * pool * classes * (features + 1),
        "classes_held": held,
        "seconds": {name: _quartiles(timings[name]) for name in ("edba", "edba_inner_products")},
        "candidates_per_second": {name: _quartiles(timing) for name, timing in rate.items()},
        "edba_over": {name: rate["edba"].ratio(rate[name]) for name in rate if name != "edba"},
    }


def _quartiles(timing: Timing) -> dict[str, float]:
    figures = asdict(timing)
    del figures["rounds"]
    return figures


def _candidates_of_edba(pool: int, asked_for: int) -> int:
    drawn = draw_candidates([pool], asked_for, _MIN_SUBSET_SIZE, "uniform")
    if drawn is None:
        return 1
    return len(drawn.orders) * (len(drawn.sizes) if drawn.as_prefixes else 1)


def _random_masks(count: int, pool: int, device: torch.device) -> Tensor:
    """Uniformly random subsets, whose sizes have close to a uniform law: cheaper to draw than exact sizes."""
    return torch.rand(count, pool, device=device) < 0.05 + 0.95 * torch.rand(count, 1, device=device)


def _best(norms: Tensor) -> None:
    margin_loss(_MODEL_METRIC, norms, _AVERAGES.model, _AVERAGES.gradient).argmin().item()


def _matrix_vector(gradients: Tensor, mask: Tensor) -> Tensor:
    members = mask.to(gradients.dtype)
    return (members @ gradients).norm() / members.sum()


def _mean_of_rows(gradients: Tensor, mask: Tensor) -> Tensor:
    return gradients[mask].mean(0).norm()


def _materialised(inputs: Tensor, output_grads: Tensor) -> Tensor:
    """Per-sample gradients of the last layer, (B, C (F + 1))."""
    extended = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)
    return (output_grads.unsqueeze(2) * extended.unsqueeze(1)).flatten(1)
