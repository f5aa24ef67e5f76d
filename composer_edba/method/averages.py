"""The running averages that equation 1 measures deviations from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Averages"]


@dataclass(frozen=True)
class Averages:
    """The exponential running averages of equation 1.

    Attributes:
        model: M̄, the average of the pools' mean losses.
        gradient: Ḡ, the average of the chosen subsets' gradient metrics.
    """

    model: float
    gradient: float

    def updated(self, model_metric: float, gradient_metric: float, decay: float) -> Averages:
        """The averages after one more step: ``decay * old + (1 - decay) * new``."""
        return Averages(
            decay * self.model + (1 - decay) * model_metric,
            decay * self.gradient + (1 - decay) * gradient_metric,
        )
