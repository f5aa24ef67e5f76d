"""What algorithms of Composer share that choose what the Trainer trains on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.models import ComposerModel

__all__ = ["EventAlgorithm"]


class EventAlgorithm(Algorithm):
    """An algorithm whose methods are named by the events that they handle: ``_fit_start`` runs on FIT_START.

    Given to another Trainer it begins anew, as if newly made of the same arguments; to go on is what checkpoints are
    for. Further fits of one Trainer go on.
    """

    _state: State | None = None  # of the Trainer that it runs in
    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Keep the arguments."""
        self = super().__new__(cls)
        self._arguments = args, kwargs
        return self

    @cached_property
    def _handlers(self) -> dict[Event, Callable[[State, Logger], None]]:
        return {event: getattr(self, name) for event in Event if hasattr(self, name := f"_{event.value}")}

    def match(self, event: Event, state: State) -> bool:
        """Whether this algorithm has something to do at ``event``."""
        return event in self._handlers

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Do it.

        Raises:
            ValueError: if a fit begins of a Trainer after which another one was made with this algorithm.
        """
        another = self._state is not None and self._state is not state
        if event == Event.INIT:
            if another:
                self._leave()
                type(self).__init__(self, *self._arguments[0], **self._arguments[1])
            self._state = state
        elif event == Event.FIT_START and another:
            name = type(self).__name__
            raise ValueError(f"this {name} was given to another Trainer since: make one {name} for each")
        self._handlers[event](state, logger)

    def _leave(self) -> None:
        """Take off what is left of it on the last Trainer's model and loader."""

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
