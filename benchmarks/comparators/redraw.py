"""EDBA on a subset that is drawn anew when the batch size changes, as the authors' public template does it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist
from torch.utils.data import BatchSampler, DataLoader, Sampler

from composer_edba.composer.algorithm import EDBA

__all__ = ["RedrawOnResize"]

_STREAM = 0x2ED2A45E  # keeps this stream apart from others of the same seed


class RedrawOnResize(Algorithm):
    """Train on ``samples`` samples of the train loader's data set, and on others once EDBA's batch size has changed.

    This is a control and no method: an epoch is a pass over ``samples`` samples, and yet, redraw by redraw, more and
    more of the full data set is trained on. ``edba/distinct_samples`` counts how many. A subset is drawn uniformly,
    without replacement. One that is drawn in the middle of a pass is used at once: the pass still draws ``samples``
    samples altogether, the rest of them from the new subset.

    Stands beside EDBA, in any order, with the full training set in the loader. A run can be resumed at an epoch's end.

    Args:
        samples: size of the subsets, at least 1.
        every: ``"resize"``: a new subset whenever EDBA's batch size changes; ``"epoch"``: at every epoch's start.
            Default ``"resize"``.
        seed: of the subsets, at least 0. Default 0.

    Raises:
        ValueError: if an argument is out of its range; at FIT_START if EDBA is missing, if there are several ranks, if
            ``samples`` exceeds the data set, if the loader has no batch sampler of torch's own, or in a run resumed
            inside an epoch.

    Example:
        >>> Trainer(model=model, train_dataloader=full, max_duration="9ep", algorithms=[EDBA(), RedrawOnResize(100)])
    """

    def __init__(self, samples: int, every: Literal["resize", "epoch"] = "resize", seed: int = 0):
        if samples < 1:
            raise ValueError(f"samples must be at least 1, not {samples}")
        if every not in ("resize", "epoch"):
            raise ValueError(f"every must be 'resize' or 'epoch', not {every!r}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, not {seed}")
        self.samples = samples
        self.every = every
        self.seed = seed
        self._draws = 0
        self._sampler: _RedrawnSampler | None = None
        self._edba: EDBA | None = None
        self._size: int | None = None  # EDBA's batch size when last looked at
        self._handlers: dict[Event, Callable[[State], None]] = {
            Event.FIT_START: self._fit_start,
            Event.EPOCH_START: self._epoch_start,
            Event.BATCH_START: self._batch_start,
        }

    def __repr__(self) -> str:
        return f"RedrawOnResize(samples={self.samples}, every={self.every!r}, seed={self.seed})"

    @property
    def draws(self) -> int:
        """Subsets drawn so far."""
        return self._draws

    def match(self, event: Event, state: State) -> bool:
        """Whether this algorithm has something to do at ``event``."""
        return event in self._handlers

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Do it."""
        self._handlers[event](state)
        logger.log_metrics({"redraw/draws": self._draws})

    def state_dict(self) -> dict[str, Any]:
        """The number of subsets drawn, from which the present one follows."""
        return {**super().state_dict(), "draws": self._draws}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Take up what :meth:`state_dict` gave."""
        self._draws = state["draws"]

    def _fit_start(self, state: State) -> None:
        # EDBA comes later on this event, having moved itself to the end, and makes the new loader resizable.
        self._edba = next((a for a in state.algorithms if isinstance(a, EDBA)), None)
        if self._edba is None:
            raise ValueError("RedrawOnResize needs EDBA beside it: algorithms=[EDBA(), RedrawOnResize(...)]")
        if dist.get_world_size() > 1:
            raise ValueError(f"RedrawOnResize runs on 1 rank, not on {dist.get_world_size()}")
        if int(state.timestamp.batch_in_epoch) > 0:
            raise ValueError(
                "a run with RedrawOnResize cannot be taken up inside an epoch: resume from a checkpoint that was saved "
                "at an epoch's end"
            )
        if self._sampler is None:
            self._install(state)

    def _install(self, state: State) -> None:
        loader = state.dataloader
        if not isinstance(loader, DataLoader) or type(loader.batch_sampler) is not BatchSampler:
            raise ValueError(
                "train_dataloader must be a torch DataLoader with a batch_size and torch's own batch sampler for "
                f"RedrawOnResize, not {type(loader).__name__}"
            )
        total = len(loader.dataset)  # type: ignore[arg-type]
        if self.samples > total:
            raise ValueError(f"samples={self.samples} exceeds the {total} samples of train_dataloader's data set")
        self._sampler = _RedrawnSampler(total, self.samples)
        self._sampler.draw(self._rng(max(1, self._draws)))
        self._draws = max(1, self._draws)
        twin = copy.copy(loader)
        # DataLoader.__setattr__ forbids both. The old sampler must go too: it would only be shuffled in vain.
        twin.__dict__["sampler"] = self._sampler
        twin.__dict__["batch_sampler"] = BatchSampler(self._sampler, loader.batch_sampler.batch_size, loader.drop_last)
        twin.__dict__["_iterator"] = None
        state.set_dataloader(twin, state.dataloader_label)
        state.train_dataloader = twin  # pyright: ignore[reportAttributeAccessIssue]

    def _epoch_start(self, state: State) -> None:
        if self.every == "epoch" and int(state.timestamp.epoch) > 0:
            self._redraw()

    def _batch_start(self, state: State) -> None:
        # After EDBA's choice, which is when its batch size changes.
        assert self._edba is not None
        before, self._size = self._size, self._edba.batch_size
        if self.every == "resize" and before is not None and self._size != before:
            self._redraw()

    def _redraw(self) -> None:
        assert self._sampler is not None
        self._draws += 1
        self._sampler.draw(self._rng(self._draws))

    def _rng(self, draw: int) -> np.random.Generator:
        return np.random.default_rng([_STREAM, self.seed, draw])


class _RedrawnSampler(Sampler[int]):
    """Passes over a subset that may be exchanged at any time, ``samples`` indices in each."""

    drawn_lazily = True

    def __init__(self, total: int, samples: int):
        self.total = total
        self.samples = samples
        self._subset: npt.NDArray[np.int64] = np.arange(samples)
        self._rng = np.random.default_rng(0)
        self._order: Iterator[int] = iter(())

    def draw(self, rng: np.random.Generator) -> None:
        """Exchange the subset, at once; ``rng`` then also orders its passes."""
        self._rng = rng
        self._subset = rng.choice(self.total, self.samples, replace=False)
        self._order = self._shuffled()

    def _shuffled(self) -> Iterator[int]:
        return iter(self._rng.permutation(self._subset).tolist())

    def __iter__(self) -> Iterator[int]:
        self._order = self._shuffled()
        for _ in range(self.samples):
            yield next(self._order)

    def __len__(self) -> int:
        return self.samples
