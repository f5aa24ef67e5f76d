"""DBA's choice: for each layer its own subset of the batch, by removing or adding one sample after the other.

What DBA's abstract and EDBA's paper leave open is said where it is decided. Pure torch, no framework.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from composer_edba.dba.settings import DBA_SETTINGS, Guide, Search
from composer_edba.method.averages import Averages
from composer_edba.method.equation import margin_loss

__all__ = ["Guide", "LayerSubsetSelector", "LayerSubsets", "Search", "search_subsets"]

_STATE = ("model_average", "gradient_averages", "nonfinite_steps")  # what a LayerSubsetSelector saves


@dataclass(frozen=True)
class LayerSubsets:
    """The chosen subset of each of L layers.

    Attributes:
        members: which samples, bool (L, B), on the CPU.
        gradient_metrics, margins: G_l(S_l) and equation 1 for it, 0 where a layer has no average yet, float64 (L,).
        finite: False if the loss or a gradient was NaN or infinite; then every layer has the whole batch.
    """

    members: Tensor
    gradient_metrics: Tensor
    margins: Tensor
    finite: bool

    @property
    def sizes(self) -> Tensor:
        """Numbers of chosen samples, int64 (L,)."""
        return self.members.sum(1)

    @property
    def weights(self) -> Tensor:
        """What makes a sum over the batch the mean over a layer's subset: 1 / |S_l| inside, 0 outside; (L, B)."""
        return self.members / self.sizes.unsqueeze(1)


def search_subsets(
    inner_products: Tensor,
    model_metric: float,
    model_average: float,
    gradient_averages: Tensor,
    *,
    search: Search = "removal",
    guide: Guide = "norm",
    min_subset_size: int = 10,
) -> Tensor:
    """Change the subsets by one sample at a time, always the most helpful one, until none helps.

    The margin of layer l is equation 1, |(M - M̄) / (G_l(S) - Ḡ_l) - 1|, with G_l(S) = ‖(1/|S|) Σ_{i∈S} g_i‖. It is
    zero at G* = Ḡ_l + M - M̄ and has a pole at Ḡ_l. On the other side of the pole it falls, towards 1, on the way off
    from both, so a search that looks at the margin alone stays there. Hence ``guide="norm"``: each flip is the one that
    brings G_l closest to G*, and of the subsets passed on the way, the first included, the one of least margin is
    chosen. Flipping sample i changes ‖Σ_S g‖² by ± 2 ⟨g_i, Σ_S g⟩ + ‖g_i‖², so all B flips of a layer cost O(B), and B
    of them O(B²), as much as reading the inner products once.

    Args:
        inner_products: ⟨g_i, g_j⟩ of each layer, (L, B, B).
        model_metric, model_average, gradient_averages: M, the mean loss of the batch, M̄ and Ḡ_l, (L,).
        search: see :mod:`composer_edba.dba.settings`; ``"addition"`` starts with the most helpful sample.
        guide: ``"norm"``, the default, or ``"margin"``: each flip is the one that lowers the margin most.
        min_subset_size: smallest subset, at least 1; ``"addition"`` reaches it whether that helps or not. Default 10.

    Returns:
        Members, bool (L, B), on the CPU. A subset of zero gradient, which trains nothing, is never preferred.
    """
    # Running sums cancel: float64. On the CPU: a GPU would have to be waited for at every flip.
    products = inner_products.to("cpu", torch.float64)
    layers, samples = products.shape[:2]
    every, least = torch.arange(layers), min(min_subset_size, samples)
    averages = gradient_averages.to("cpu", torch.float64).unsqueeze(1)
    own = products.diagonal(dim1=1, dim2=2)

    def judged(squares: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        # Margins, and what the next flip shall make small.
        norms = squares.clamp_min(0).sqrt() / sizes
        margins = margin_loss(model_metric, norms, model_average, averages)  # type: ignore[arg-type]
        goals = margins if guide == "margin" else (norms - averages - (model_metric - model_average)).abs()
        return torch.where(norms > 0, margins, torch.inf), torch.where(norms > 0, goals, torch.inf)

    members = torch.full((layers, samples), search != "addition")
    if search == "addition":
        members[every, judged(own, torch.ones_like(own))[1].argmin(1)] = True
    with_sum = (products * members.unsqueeze(1)).sum(2)  # ⟨g_i, Σ_S g⟩
    square, size = (with_sum * members).sum(1, keepdim=True), members.sum(1, keepdim=True)
    best, (best_margin, goal) = members.clone(), (figures.clone() for figures in judged(square, size))
    active = torch.ones(layers, dtype=torch.bool)
    while active.any():
        sign, can_go = torch.where(members, -1.0, 1.0), members & (size > least)
        allowed = {"removal": can_go, "addition": ~members, "both": can_go | ~members}[search]
        flipped = square + 2 * sign * with_sum + own
        margins, goals = judged(flipped, (size + sign).clamp_min(1))
        # A subset that is too small takes something in even if every margin is infinite.
        at = torch.where(allowed, goals.clamp_max(torch.finfo(goals.dtype).max), torch.inf).argmin(1)
        grows = size[:, 0] < least
        active &= ((goals[every, at] < goal[:, 0]) | grows) & allowed[every, at]
        rows, chosen = every[active], at[active]
        step, square[rows, 0] = sign[rows, chosen], flipped[rows, chosen]
        with_sum[rows] += step.unsqueeze(1) * products[rows, chosen]
        size[rows, 0] += step.long()
        members[rows, chosen] = ~members[rows, chosen]
        goal[rows, 0] = goals[rows, chosen]
        better = rows[(margins[rows, chosen] < best_margin[rows, 0]) | grows[rows]]
        best[better] = members[better]
        best_margin[better, 0] = margins[better, at[better]]
    return best


@dataclass(kw_only=True)
class LayerSubsetSelector:
    """Chooses the layers' subsets step after step: the search and the running averages around it.

    The first subset of a layer is the whole batch and starts the average. Settings: :mod:`composer_edba.dba.settings`.

    Attributes:
        model_average: M̄; None before the first finite step.
        gradient_averages: Ḡ_l by the name of the layer.
        nonfinite_steps: batches so far whose loss or gradients were NaN or infinite.
    """

    ema_decay: float = DBA_SETTINGS["ema_decay"].default
    min_subset_size: int = DBA_SETTINGS["min_subset_size"].default
    search: Search = DBA_SETTINGS["search"].default
    guide: Guide = DBA_SETTINGS["guide"].default
    criterion: Literal["margin", "random"] = DBA_SETTINGS["criterion"].default
    model_average: float | None = field(default=None, init=False)
    gradient_averages: dict[str, float] = field(default_factory=dict, init=False)
    nonfinite_steps: int = field(default=0, init=False)

    def select(
        self, names: Sequence[str], inner_products: Tensor, model_metric: float, generator: torch.Generator
    ) -> LayerSubsets:
        """Choose a subset for each of the layers ``names``, then take its metrics into the averages.

        ``generator``, on the CPU, is for ``criterion="random"``; the rest is as for :func:`search_subsets`.
        """
        products = inner_products.to("cpu", torch.float64)
        finite = bool(torch.isfinite(products.sum() + model_metric))  # only if every term is
        model_average = model_metric if self.model_average is None else self.model_average
        known = torch.tensor([name in self.gradient_averages for name in names])
        averages = torch.tensor([self.gradient_averages.get(name, 0.0) for name in names], dtype=torch.float64)
        members = torch.ones(products.shape[:2], dtype=torch.bool)
        if finite and known.any():
            how: dict[str, Any] = {name: getattr(self, name) for name in ("search", "guide", "min_subset_size")}
            members[known] = search_subsets(products[known], model_metric, model_average, averages[known], **how)
            if self.criterion == "random":
                ranks = torch.rand(members.shape, generator=generator).argsort(1).argsort(1)
                members = ranks < members.sum(1, keepdim=True)
        inside = members.to(products.dtype)
        metrics = torch.einsum("li,lij,lj->l", inside, products, inside).clamp_min(0).sqrt() / inside.sum(1)
        margins = margin_loss(model_metric, metrics, model_average, averages)  # type: ignore[arg-type]
        self.nonfinite_steps += not finite
        for name, metric in zip(names, metrics.tolist(), strict=True) if finite else ():
            before = Averages(model_average, self.gradient_averages.get(name, metric))
            after = before.updated(model_metric, metric, self.ema_decay)
            self.model_average, self.gradient_averages[name] = after.model, after.gradient
        return LayerSubsets(members, metrics, torch.where(known, margins, 0.0), finite)

    def state_dict(self) -> dict[str, Any]:
        """Averages and counts, as plain values."""
        return {name: copy.copy(getattr(self, name)) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        for name in _STATE:
            setattr(self, name, copy.copy(state[name]))
