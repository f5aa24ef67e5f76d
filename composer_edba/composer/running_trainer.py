"""The Trainer behind an event, for what neither State nor Logger leads to."""

from __future__ import annotations

import sys

from composer.trainer import Trainer

__all__ = ["running_trainer"]


def running_trainer() -> Trainer | None:
    """The Trainer whose event is being handled: every event is run from one of its methods. None outside of one."""
    frame = sys._getframe()
    while frame is not None:
        if isinstance(trainer := frame.f_locals.get("self"), Trainer):
            return trainer
        frame = frame.f_back  # type: ignore[assignment]
    return None
