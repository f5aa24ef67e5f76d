"""``paper``: the suite of that name without having to say time-to-accuracy."""

from __future__ import annotations

import argparse

from benchmarks.suites import time_to_accuracy
from benchmarks.suites.time_to_accuracy import run

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    time_to_accuracy.add_arguments(parser, "paper")
