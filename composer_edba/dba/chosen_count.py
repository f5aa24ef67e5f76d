"""DBA's batch size, from how many samples its layers chose lately. Plain Python, no torch."""

from __future__ import annotations

from collections import deque
from dataclasses import KW_ONLY, dataclass
from typing import Any

__all__ = ["ChosenCountPolicy"]


@dataclass
class ChosenCountPolicy:
    """Sizes the batch such that the mean number that a layer chose in the last ``window`` batches is ``target`` of it.

    EDBA's paper says that DBA's batch size came from the historical number of chosen gradients, and gives no rule; this
    is ours. Only batches drawn for the present size count, by their shares, since a pass's batches may be smaller, to
    be even. The window begins anew after each change, so that the size does not flap.

    Attributes:
        size: size of the batches drawn from now on, within ``minimum`` and ``maximum``; the first is moved into them.
        window: batches that a decision needs.
        target: share of the batch that should be chosen, in (0, 1).
        tolerance, factor: smallest change, and largest at once, as ratios of the sizes, 1 < tolerance <= factor.
    """

    size: int
    minimum: int
    maximum: int
    _: KW_ONLY
    window: int = 20
    target: float = 0.8
    tolerance: float = 1.1
    factor: float = 1.5

    def __post_init__(self) -> None:
        self.load_state_dict({"size": self.size, "window": []})

    def update(self, chosen: float, batch_size: int, asked: int) -> int:
        """Take in a batch drawn for the size ``asked``, its layers having chosen ``chosen`` on average; next size."""
        if asked == self.size:
            self._shares.append(chosen / batch_size)
            ratio = sum(self._shares) / self.window / self.target
            if len(self._shares) == self.window and not 1 / self.tolerance <= ratio <= self.tolerance:
                before, factor = self.size, min(max(ratio, 1 / self.factor), self.factor)
                self.load_state_dict({"size": round(before * factor), "window": self._shares})
                if self.size != before:
                    self._shares.clear()
        return self.size

    def state_dict(self) -> dict[str, Any]:
        """Size and window, as plain values."""
        return {"size": self.size, "window": list(self._shares)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; a size outside of the present bounds is moved into them."""
        self.size = min(max(state["size"], self.minimum), self.maximum)
        self._shares: deque[float] = deque(state["window"], maxlen=self.window)
