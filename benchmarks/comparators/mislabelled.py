"""Whether the selection leaves out mislabelled samples more often than others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import Tensor

from composer_edba.composer.algorithm import EDBA

__all__ = ["LeaveOutCounts", "MislabelledShare", "leave_out_ratio"]


@dataclass
class LeaveOutCounts:
    """What became of the samples of some pools. Two parts of training are taken together by adding their fields.

    Attributes:
        steps: pools counted.
        mislabelled_kept: mislabelled samples that were in the chosen subset.
        mislabelled_left_out: those that were in the pool only.
        clean_kept: correctly labelled samples that were in the chosen subset.
        clean_left_out: those that were in the pool only.
        ratio_numerator: R of the Mantel-Haenszel ratio, see :func:`leave_out_ratio`.
        ratio_denominator: S of it.
        ratio_variance: the sum in the variance of its logarithm.
    """

    steps: int = 0
    mislabelled_kept: int = 0
    mislabelled_left_out: int = 0
    clean_kept: int = 0
    clean_left_out: int = 0
    ratio_numerator: float = 0.0
    ratio_denominator: float = 0.0
    ratio_variance: float = 0.0

    def add_pool(self, mislabelled: int, mislabelled_left_out: int, clean: int, clean_left_out: int) -> None:
        """Count one pool: its mislabelled and its correctly labelled samples, and how many of each were left out."""
        self.steps += 1
        self.mislabelled_kept += mislabelled - mislabelled_left_out
        self.mislabelled_left_out += mislabelled_left_out
        self.clean_kept += clean - clean_left_out
        self.clean_left_out += clean_left_out
        pool, left_out = mislabelled + clean, mislabelled_left_out + clean_left_out
        self.ratio_numerator += mislabelled_left_out * clean / pool
        self.ratio_denominator += clean_left_out * mislabelled / pool
        self.ratio_variance += (mislabelled * clean * left_out - mislabelled_left_out * clean_left_out * pool) / pool**2


def leave_out_ratio(
    counts: Iterable[LeaveOutCounts | dict[str, Any]], confidence: float = 0.95
) -> tuple[float, float, float]:
    """How many times as often mislabelled samples are left out as others, with a confidence interval.

    The Mantel-Haenszel risk ratio R / S over pools, which compares within each pool and so does not mistake a subset
    size that changes over training for a difference; the interval is that of Greenland and Robins ("Estimation of a
    common effect parameter from sparse follow-up data", Biometrics 41, 1985), by the normal approximation of its
    logarithm. It takes pools for independent, which pools of one run, drawn from the same samples over and over, are
    only nearly: where there are several seeds, report the spread over them beside it.

    Args:
        counts: parts of training, or whole runs, as :class:`LeaveOutCounts` or as mappings of its fields.
        confidence: of the interval, in (0, 1). Default 0.95.

    Returns:
        The ratio and the interval's ends: 1 means no difference, above 1 that mislabelled samples are left out more
        often. NaN where nothing was left out of either kind.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), not {confidence}")
    parts = [part if isinstance(part, LeaveOutCounts) else LeaveOutCounts(**part) for part in counts]
    numerator = sum(part.ratio_numerator for part in parts)
    denominator = sum(part.ratio_denominator for part in parts)
    if numerator == 0 or denominator == 0:
        return math.nan, math.nan, math.nan
    ratio = numerator / denominator
    deviation = math.sqrt(sum(part.ratio_variance for part in parts) / (numerator * denominator))
    spread = math.exp(NormalDist().inv_cdf((1 + confidence) / 2) * deviation)
    return ratio, ratio / spread, ratio * spread


class MislabelledShare(Algorithm):
    """Count how many mislabelled and other samples EDBA keeps and leaves out, by parts of training.

    Which samples are mislabelled the train loader's data set says, in its attribute ``mislabelled``, (N,) bool; see
    :mod:`composer_edba.train.data.label_noise`. Steps without a selection do not count. On several ranks each counts
    its own samples. Logs ``mislabelled/pool_share`` and ``mislabelled/subset_share`` in every step that counts.

    Args:
        parts: parts of equal length into which training is divided, at least 1. Default 10. With a ``max_duration`` in
            epochs a step belongs to the part in which its epoch begins.

    Attributes:
        counts: one :class:`LeaveOutCounts` a part.

    Raises:
        ValueError: if ``parts`` is out of its range; at FIT_START if EDBA is missing or the data set does not say which
            samples are mislabelled.
    """

    def __init__(self, parts: int = 10):
        if parts < 1:
            raise ValueError(f"parts must be at least 1, not {parts}")
        self.counts = [LeaveOutCounts() for _ in range(parts)]
        self._edba: EDBA | None = None
        self._mislabelled: Tensor | None = None

    def __repr__(self) -> str:
        return f"MislabelledShare(parts={len(self.counts)})"

    def match(self, event: Event, state: State) -> bool:
        """At FIT_START, and at BATCH_START, when EDBA has chosen."""
        return event in (Event.FIT_START, Event.BATCH_START)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Find EDBA and the labels' faults, or count."""
        if event == Event.FIT_START:
            self._fit_start(state)
        else:
            self._count(state, logger)

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {**super().state_dict(), "counts": [asdict(part) for part in self.counts]}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.counts = [LeaveOutCounts(**part) for part in state["counts"]]

    def _fit_start(self, state: State) -> None:
        self._edba = next((a for a in state.algorithms if isinstance(a, EDBA)), None)
        if self._edba is None:
            raise ValueError("MislabelledShare needs EDBA beside it: algorithms=[EDBA(), MislabelledShare()]")
        self._mislabelled = getattr(getattr(state.dataloader, "dataset", None), "mislabelled", None)
        if self._mislabelled is None:
            raise ValueError(
                "train_dataloader's data set has no attribute mislabelled: use data.label_noise, or "
                "composer_edba.train.data.NoisyLabels, for MislabelledShare"
            )

    def _count(self, state: State, logger: Logger) -> None:
        assert self._edba is not None
        assert self._mislabelled is not None
        selection = self._edba.last_selection
        if selection is None:
            return
        pool, subset = self._mislabelled[selection.pool], self._mislabelled[selection.subset]
        mislabelled, kept = int(pool.sum()), int(subset.sum())
        clean, clean_kept = len(pool) - mislabelled, len(subset) - kept
        elapsed = state.get_elapsed_duration()
        assert elapsed is not None
        part = min(int(float(elapsed) * len(self.counts)), len(self.counts) - 1)
        self.counts[part].add_pool(mislabelled, mislabelled - kept, clean, clean - clean_kept)
        logger.log_metrics(
            {"mislabelled/pool_share": mislabelled / len(pool), "mislabelled/subset_share": kept / max(1, len(subset))}
        )
