"""The method's memory from step to step: running averages and the batch-size policy around the choice of a subset."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from composer_edba.method.averages import Averages
from composer_edba.method.choice import Selection, select_subset
from composer_edba.method.sizing import BatchSizePolicy, LossPolicy, Observation, check_size

__all__ = ["SubsetSelector", "highest_learning_rate"]


def highest_learning_rate(optimizers: Iterable[torch.optim.Optimizer]) -> float | None:
    """The largest learning rate of all parameter groups; None without any."""
    rates = [float(group["lr"]) for optimizer in optimizers for group in optimizer.param_groups if "lr" in group]
    return max(rates, default=None)


class SubsetSelector:
    """Chooses a subset of each pool and sizes the next, by settings from :func:`composer_edba.settings.checked`."""

    averages: Averages | None = None  # M̄ and Ḡ; None before the first finite step
    policy: BatchSizePolicy | None = None  # None: the size is not this object's business
    nonfinite_steps = 0  # pools so far whose loss or gradients were NaN or infinite

    def __init__(self, settings: Mapping[str, Any]):
        names = ("num_candidates", "min_subset_size", "criterion", "subset_size_law")
        self._choice = {name: settings[name] for name in names}
        # The averages decay in batches that are not scored, too. Beyond 2**53 it is no float and the power long 0.
        self._decay = settings["ema_decay"] ** min(settings["interval"], 2**53)

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
        """:func:`~composer_edba.functional.select_subset`, then its metrics go into the averages and the policy.

        ``learning_rate`` is the optimizer's, for the policy; None: not known.
        """
        how: dict[str, Any] = {"generator": generator, "size_multiple": size_multiple, "group_sizes": group_sizes}
        selection = select_subset(inner_products, model_metric, self.averages, **how, **self._choice)
        if not selection.finite:  # must not poison the averages
            self.nonfinite_steps += 1
            return selection
        first = self.averages is None
        metrics = selection.model_metric, selection.gradient_metric
        self.averages = Averages(*metrics) if self.averages is None else self.averages.updated(*metrics, self._decay)
        if self.policy is not None:
            names = ("margin", "wanted", "reach", "mean_square_norm", "model_metric")
            seen: dict[str, Any] = {name: getattr(selection, name) for name in names}
            seen |= {"pool_square_norm": selection.pool_gradient_metric**2, "learning_rate": learning_rate}
            self.policy.update(Observation(pool_size=len(inner_products), first=first, **seen))
            check_size(self.policy)
        return selection

    def refer(self, learning_rate: float | None) -> bool:
        """Whether the policy still wants to see a loss of training's beginning, while nothing is chosen yet."""
        return isinstance(self.policy, LossPolicy) and self.policy.refer(learning_rate)

    def measure(self, loss: float) -> None:
        """Show the policy the mean loss of a pool that nothing is chosen from."""
        nan = float("nan")
        if self.policy is not None and math.isfinite(loss):
            self.policy.update(Observation(1, nan, nan, (nan, nan), nan, nan, model_metric=loss))

    def observe(self, loss: float, finite: bool, pool_size: int, learning_rate: float | None) -> bool:
        """Show the policy the mean loss of a pool from which a subset was chosen otherwise than by :meth:`select`.

        Returns whether it is finite, and all that was chosen by (``finite``); else it is counted and not shown.
        """
        if not (finite and math.isfinite(loss)):
            self.nonfinite_steps += 1
            return False
        if self.policy is not None:
            nan = float("nan")
            seen: dict[str, Any] = {"model_metric": loss, "learning_rate": learning_rate}
            self.policy.update(Observation(pool_size, nan, nan, (nan, nan), nan, nan, **seen))
            check_size(self.policy)
        return True

    def figures(self, selection: Selection) -> dict[str, float]:
        """What a step is to be logged with: ``selection``'s metrics and the averages that came out."""
        figures = {name: getattr(selection, name) for name in ("margin", "model_metric", "gradient_metric")}
        if self.averages is not None:
            figures |= {"model_average": self.averages.model, "gradient_average": self.averages.gradient}
        return figures

    def warn_once_of_nonfinite(self, loss: float, where: str) -> None:
        """Warn of the first pool whose loss, the one given, or gradients were NaN or infinite."""
        if self.nonfinite_steps == 1:
            warnings.warn(
                f"the scoring loss ({loss}) or a last-layer gradient is NaN or infinite {where}: "
                "such steps train on the whole pool, do not enter EDBA's averages and are counted as "
                "edba/nonfinite_steps. Is the learning rate too high, or a sample broken?",
                stacklevel=3,
            )

    def state_dict(self) -> dict[str, Any]:
        """Averages, policy and counts, as plain values."""
        return {
            "averages": None if self.averages is None else [self.averages.model, self.averages.gradient],
            "policy": None if self.policy is None else self.policy.state_dict(),
            "nonfinite_steps": self.nonfinite_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave. The policy must exist already if its memory is to be taken up."""
        self.averages = None if state["averages"] is None else Averages(*state["averages"])
        self.nonfinite_steps = state["nonfinite_steps"]
        if self.policy is not None and state["policy"] is not None:
            self.policy.load_state_dict(state["policy"])
