"""Timing several things against each other on a machine that others use too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Timing", "interleave"]


@dataclass(frozen=True)
class Timing:
    """Times of one arm, in seconds.

    Attributes:
        median: median over the rounds.
        low: lower quartile.
        high: upper quartile.
        rounds: the times in order; the same position in another arm's ``rounds`` was taken right beside it.
    """

    median: float
    low: float
    high: float
    rounds: tuple[float, ...]

    def ratio(self, other: Timing) -> tuple[float, float, float]:
        """This arm's time over ``other``'s, round by round: median, lower and upper quartile."""
        ratios = [mine / theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return median, low, high


def interleave(arms: Mapping[str, Callable[[int], object]], rounds: int, warm_up: int = 2) -> dict[str, Timing]:
    """Time ``arms`` in turns, so that drift of the machine hits all alike.

    Args:
        arms: functions of the round's number, which run what is to be timed.
        rounds: number of timed rounds, at least 2.
        warm_up: rounds before that which do not count.

    Returns:
        The timing of each arm. On a GPU the clock is read after the device has finished.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(-warm_up, rounds):
        for name, arm in arms.items():
            _finish()
            start = time.perf_counter()
            arm(number)
            _finish()
            if number >= 0:
                times[name].append(time.perf_counter() - start)
    timings = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        timings[name] = Timing(median, low, high, tuple(values))
    return timings


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
