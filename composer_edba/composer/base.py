"""What algorithms of Composer share that choose what the Trainer trains on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.models import ComposerModel

__all__ = ["EventAlgorithm"]


class EventAlgorithm(Algorithm):
    """An algorithm whose methods are named by the events that they handle: ``_fit_start`` runs on FIT_START."""

    @cached_property
    def _handlers(self) -> dict[Event, Callable[[State, Logger], None]]:
        return {event: getattr(self, name) for event in Event if hasattr(self, name := f"_{event.value}")}

    def match(self, event: Event, state: State) -> bool:
        """Whether this algorithm has something to do at ``event``."""
        return event in self._handlers

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Do it."""
        self._handlers[event](state, logger)

    def _check_model(self, state: State) -> None:
        if not isinstance(state.model, ComposerModel):
            raise TypeError(
                f"the model is a {type(state.model).__name__}: {type(self).__name__} needs a ComposerModel, whose loss "
                "it calls; composer.models.ComposerClassifier makes one of a classifier"
            )

    def _run_first(self, state: State) -> None:
        """Move to the end of the algorithms, which Composer runs backwards on the events named ``AFTER_``."""
        if state.algorithms[-1] is not self:
            state.algorithms.remove(self)
            state.algorithms.append(self)
