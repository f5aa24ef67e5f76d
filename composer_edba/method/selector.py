"""The method's memory from step to step: running averages and the batch-size policy around the choice of a subset."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from composer_edba.method.averages import Averages
from composer_edba.method.candidates import SubsetSizeLaw
from composer_edba.method.choice import Criterion, CriterionFunction, Selection, select_subset
from composer_edba.method.sizing import BatchSizePolicy, Observation

__all__ = ["SubsetSelector", "highest_learning_rate"]


def highest_learning_rate(optimizers: Iterable[torch.optim.Optimizer]) -> float | None:
    """The largest learning rate of all parameter groups; None without any."""
    rates = [float(group["lr"]) for optimizer in optimizers for group in optimizer.param_groups if "lr" in group]
    return max(rates, default=None)


class SubsetSelector:
    """Chooses a subset of each pool and says how large the next pools should be. Knows no framework.

    Args:
        num_candidates: least number of candidate subsets a step.
        ema_decay: decay of both running averages in one batch, in [0, 1).
        min_subset_size: smallest subset.
        criterion: what they are judged by, see :func:`~composer_edba.method.choice.select_subset`.
        subset_size_law: law of the candidates' sizes.
        interval: batches from one that is scored to the next, in which the averages decay too.

    Attributes:
        averages: M̄ and Ḡ; None before the first finite step.
        policy: the batch-size policy; None: the size is not this object's business.
        nonfinite_steps: pools so far whose loss or gradients were NaN or infinite.
    """

    def __init__(
        self,
        *,
        num_candidates: int,
        ema_decay: float,
        min_subset_size: int,
        criterion: Criterion | CriterionFunction,
        subset_size_law: SubsetSizeLaw,
        interval: int,
    ):
        self.num_candidates = num_candidates
        self.ema_decay = ema_decay ** min(interval, 2**53)  # beyond, it is no float and the power long 0
        self.min_subset_size = min_subset_size
        self.criterion = criterion
        self.subset_size_law = subset_size_law
        self.averages: Averages | None = None
        self.policy: BatchSizePolicy | None = None
        self.nonfinite_steps = 0

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> SubsetSelector:
        """That of a run with these settings, from :func:`composer_edba.settings.checked`."""
        names = ("num_candidates", "ema_decay", "min_subset_size", "criterion", "subset_size_law", "interval")
        return cls(**{name: settings[name] for name in names})

    def select(
        self,
        inner_products: Tensor,
        model_metric: Tensor,
        generator: torch.Generator,
        *,
        size_multiple: int = 1,
        group_sizes: Sequence[int] | None = None,
        learning_rate: float | None = None,
    ) -> Selection:
        """Choose a subset, then take its metrics into the averages and the policy.

        Args:
            inner_products: ⟨g_i, g_j⟩ of the pool, (B, B).
            model_metric: mean loss of the pool.
            generator: CPU generator for the candidates.
            size_multiple: subset sizes are multiples of this where possible.
            group_sizes: parts of the pool on each rank, see :func:`~composer_edba.functional.select_subset`.
            learning_rate: the optimizer's, for the policy; None: not known.
        """
        selection = select_subset(
            inner_products,
            model_metric,
            self.averages,
            num_candidates=self.num_candidates,
            min_subset_size=self.min_subset_size,
            generator=generator,
            criterion=self.criterion,
            subset_size_law=self.subset_size_law,
            size_multiple=size_multiple,
            group_sizes=group_sizes,
        )
        if not selection.finite:  # must not poison the averages
            self.nonfinite_steps += 1
            return selection
        first = self.averages is None
        if self.averages is None:
            self.averages = Averages(selection.model_metric, selection.gradient_metric)
        else:
            self.averages = self.averages.updated(selection.model_metric, selection.gradient_metric, self.ema_decay)
        if self.policy is not None:
            self.policy.update(
                Observation(
                    pool_size=len(inner_products),
                    margin=selection.margin,
                    wanted=selection.wanted,
                    reach=selection.reach,
                    mean_square_norm=selection.mean_square_norm,
                    pool_square_norm=selection.pool_gradient_metric**2,
                    model_metric=selection.model_metric,
                    learning_rate=learning_rate,
                    first=first,
                )
            )
        return selection

    def figures(self, selection: Selection) -> dict[str, float]:
        """What a step is to be logged with: ``selection``'s metrics and the averages that came out."""
        figures = {
            "margin": selection.margin,
            "model_metric": selection.model_metric,
            "gradient_metric": selection.gradient_metric,
        }
        if self.averages is not None:
            figures |= {"model_average": self.averages.model, "gradient_average": self.averages.gradient}
        return figures

    def warn_once_of_nonfinite(self, selection: Selection, where: str) -> None:
        """Warn of the first pool whose loss or gradients were NaN or infinite."""
        if self.nonfinite_steps == 1 and not selection.finite:
            warnings.warn(
                f"the scoring loss ({selection.model_metric}) or a last-layer gradient is NaN or infinite {where}: "
                "such steps train on the whole pool, do not enter EDBA's averages and are counted as "
                "edba/nonfinite_steps. Is the learning rate too high, or a sample broken?",
                stacklevel=3,
            )

    def state_dict(self) -> dict[str, Any]:
        """Averages, policy and counts, as plain values."""
        averages = self.averages
        return {
            "averages": None if averages is None else [averages.model, averages.gradient],
            "policy": None if self.policy is None else self.policy.state_dict(),
            "nonfinite_steps": self.nonfinite_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave. The policy must exist already if its memory is to be taken up."""
        self.averages = None if state["averages"] is None else Averages(*state["averages"])
        self.nonfinite_steps = state["nonfinite_steps"]
        if self.policy is not None and state["policy"] is not None:
            self.policy.load_state_dict(state["policy"])
