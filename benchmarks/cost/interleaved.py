"""Timing several things against each other on a machine that others use too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Timing", "affordable_rounds", "fair_clock", "interleave"]

# Rounds below which there is no spread to speak of.
_LEAST_ROUNDS = 3


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

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Timing:
        """The timing of at least two rounds."""
        low, median, high = statistics.quantiles(rounds, n=4, method="inclusive")
        return cls(median, low, high, tuple(rounds))

    def ratio(self, other: Timing) -> tuple[float, float, float]:
        """This arm's time over ``other``'s, round by round: median, lower and upper quartile."""
        ratios = [mine / theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return median, low, high


def fair_clock(device: torch.device) -> Callable[[], float]:
    """The clock that other users of the machine disturb least.

    One thread on a CPU: the CPU time of this process, which on an idle machine is the time on the wall, and elsewhere
    leaves out when somebody else had the core. Otherwise the wall's.
    """
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def interleave(
    arms: Mapping[str, Callable[[int], object]],
    rounds: int,
    warm_up: int = 2,
    *,
    clock: Callable[[], float] = time.perf_counter,
    budget: float | None = None,
) -> dict[str, Timing]:
    """Time ``arms`` in turns, so that drift of the machine hits all alike.

    Args:
        arms: functions of the round's number, which run what is to be timed.
        rounds: number of timed rounds, at least 2.
        warm_up: rounds before that which do not count.
        clock: gives the time in seconds. Default: the wall's.
        budget: seconds by that clock that the timed rounds may take, judged by the last warm-up round: there are fewer
            of them then, but never fewer than three. None: no limit.

    Returns:
        The timing of each arm. On a GPU the clock is read after the device has finished.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    number = -warm_up
    while number < rounds:
        began = clock()
        for name, arm in arms.items():
            _finish()
            start = clock()
            arm(number)
            _finish()
            if number >= 0:
                times[name].append(clock() - start)
        if number == -1:
            rounds = affordable_rounds(rounds, clock() - began, budget)
        number += 1
    return {name: Timing.of(values) for name, values in times.items()}


def affordable_rounds(most: int, seconds: float, budget: float | None) -> int:
    """Rounds of ``seconds`` each within ``budget``: at most ``most``, and not fewer than three of them."""
    return most if budget is None else min(most, max(_LEAST_ROUNDS, int(budget / seconds)))


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
