"""The running averages that equation 1 measures deviations from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Averages"]


@dataclass(frozen=True)
class Averages:
    """The exponential averages of equation 1: ``model``, M̄, of the pools' losses, ``gradient``, Ḡ, of subsets' G."""

    model: float
    gradient: float

    def updated(self, model_metric: float, gradient_metric: float, decay: float) -> Averages:
        """The averages after one more step: ``decay * old + (1 - decay) * new``."""
        return Averages(
            decay * self.model + (1 - decay) * model_metric,
            decay * self.gradient + (1 - decay) * gradient_metric,
        )
