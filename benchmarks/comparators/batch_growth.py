"""Batch growth without selection: AdaBatch's doubling, by the package bs-scheduler."""

from __future__ import annotations

import math

from bs_scheduler import StepBS
from composer.core import State

from benchmarks.comparators.loader_algorithm import LoaderAlgorithm

__all__ = ["BatchGrowth"]


class BatchGrowth(LoaderAlgorithm):
    """Multiply the batch size by a factor at equal intervals of training.

    AdaBatch (Devarakonda, Naumov and Garland, 2017, arXiv 1712.02029) doubles it every 20 of 100 epochs. Sizes come
    from bs-scheduler's ``StepBS``, which is given the resizable copy of the train loader; the copy changes size in the
    middle of an epoch too, and leaves no sample out by it. The learning rate is the run's business.

    Args:
        interval: time between two multiplications, as a share of training in (0, 1). Default 0.2, AdaBatch's. Passes
            are counted in samples, so that an interval may end inside an epoch.
        factor: what the size is multiplied by, > 1. Default 2, AdaBatch's.
        max_batch_size: the size stays there when it is reached. Default 1000, as EDBA's.

    Raises:
        ValueError: if an argument is out of its range; at FIT_START if ``max_batch_size`` lies below the loader's.

    Example:
        >>> Trainer(model=model, train_dataloader=loader, max_duration="10ep", algorithms=[BatchGrowth()])
    """

    label = "growth"

    def __init__(self, interval: float = 0.2, factor: float = 2.0, max_batch_size: int = 1000):
        if not 0 < interval < 1:
            raise ValueError(f"interval must be a share of training in (0, 1), not {interval}")
        if not factor > 1:
            raise ValueError(f"factor must be greater than 1, not {factor}")
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1, not {max_batch_size}")
        super().__init__()
        self.interval = interval
        self.factor = factor
        self.max_batch_size = max_batch_size
        self._scheduler: StepBS | None = None
        self._steps = 0

    def __repr__(self) -> str:
        return f"BatchGrowth(interval={self.interval}, factor={self.factor}, max_batch_size={self.max_batch_size})"

    @property
    def batch_size(self) -> int:
        """Size of the batches drawn from now on."""
        return self.sampler.batch_size

    def begin_fit(self, state: State) -> None:
        """Hand the loader to StepBS and, in a resumed run, take its steps so far again."""
        largest = self._pools.shortest
        assert largest is not None
        if self._scheduler is None:
            if self.max_batch_size < self.sampler.batch_size:
                raise ValueError(
                    f"max_batch_size={self.max_batch_size} must be at least train_dataloader's batch_size, "
                    f"{self.sampler.batch_size}"
                )
            bound = min(self.max_batch_size, largest)
            # One of its steps is one of our intervals.
            self._scheduler = StepBS(state.dataloader, step_size=1, gamma=self.factor, max_batch_size=bound)
        self._grow(state)

    def begin_batch(self, state: State, indices: list[int]) -> None:
        """Grow in time for the next batch."""
        self._grow(state, ahead=len(indices))

    def _grow(self, state: State, ahead: int = 0) -> None:
        assert self._scheduler is not None
        # A hair on top, for 0.2 + 0.2 + 0.2 and the like.
        due = math.floor(self._elapsed(state, ahead) / self.interval + 1e-9)
        while self._steps < due:
            self._scheduler.step()
            self._steps += 1

    def _elapsed(self, state: State, ahead: int) -> float:
        """Share of training that is over once ``ahead`` more samples, of one batch, are through."""
        duration, time = state.max_duration, state.timestamp
        assert duration is not None
        unit = duration.unit.value
        if unit == "sp":
            return (int(time.sample) + ahead) / int(duration)
        if unit == "ba":
            return (int(time.batch) + (ahead > 0)) / int(duration)
        if unit == "ep":
            total = self.sampler.total
            assert total is not None
            return (int(time.epoch) + min(1.0, (int(time.sample_in_epoch) + ahead) / total)) / int(duration)
        raise ValueError(f"max_duration must be in epochs, batches or samples for BatchGrowth, not {duration}")
