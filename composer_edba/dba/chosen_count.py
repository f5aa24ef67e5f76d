"""DBA's batch size, from how many samples its layers chose lately. Plain Python, no torch.

EDBA's paper says that DBA's batch size came from the historical number of chosen gradients, and gives no rule. Ours:
the batch is sized such that the number chosen lately would be ``target`` of it. Where the layers keep more than that,
the batch grows, where they drop more, it shrinks.
"""

from __future__ import annotations

from collections import deque
from typing import Any

__all__ = ["ChosenCountPolicy"]


class ChosenCountPolicy:
    """Sizes the batch by the mean number of samples that a layer chose in the last ``window`` batches.

    Only batches count that were drawn for the present size: not those from before the last change. Their shares count,
    since a pass's batches may be smaller, to be even. The window begins anew after each change, so that the size does
    not flap.

    Args:
        size: first size; moved into the bounds.
        minimum: smallest size.
        maximum: largest size.
        window: batches that a decision needs. Default 20.
        target: share of the batch that should be chosen, in (0, 1). Default 0.8.
        tolerance: ratio of the wanted size to the present one within which it stays, > 1. Default 1.1.
        factor: largest change at once, >= tolerance. Default 1.5.

    Attributes:
        size: size of the batches drawn from now on.
    """

    def __init__(
        self,
        size: int,
        minimum: int,
        maximum: int,
        *,
        window: int = 20,
        target: float = 0.8,
        tolerance: float = 1.1,
        factor: float = 1.5,
    ):
        self.size = min(max(size, minimum), maximum)
        self.minimum, self.maximum = minimum, maximum
        self.target, self.tolerance, self.factor = target, tolerance, factor
        self._window: deque[float] = deque(maxlen=window)

    def update(self, chosen: float, batch_size: int, asked: int) -> int:
        """Take in one batch and return the size for the next ones.

        Args:
            chosen: samples chosen, averaged over the layers.
            batch_size: samples in the batch.
            asked: size that the batch was drawn for.
        """
        if asked != self.size:
            return self.size
        self._window.append(chosen / batch_size)
        if len(self._window) == self._window.maxlen:
            ratio = sum(self._window) / len(self._window) / self.target
            if not 1 / self.tolerance <= ratio <= self.tolerance:
                proposed = round(self.size * min(max(ratio, 1 / self.factor), self.factor))
                proposed = min(max(proposed, self.minimum), self.maximum)
                if proposed != self.size:
                    self.size = proposed
                    self._window.clear()
        return self.size

    def state_dict(self) -> dict[str, Any]:
        """Size and window, as plain values."""
        return {"size": self.size, "window": list(self._window)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; a size outside of the present bounds is moved into them."""
        self.size = min(max(state["size"], self.minimum), self.maximum)
        self._window = deque(state["window"], maxlen=self._window.maxlen)
