"""``python -m composer_edba.benchmark SUITE``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from composer_edba.benchmark import cost, time_to_accuracy


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m composer_edba.benchmark", description=__doc__)
    suites = parser.add_subparsers(dest="suite", required=True, metavar="SUITE")
    command = suites.add_parser("cost", help="time and memory of selection and of a step")
    cost.add_arguments(command)
    command.set_defaults(run=cost.run)
    command = suites.add_parser("time-to-accuracy", help="a suite of training runs, arms against each other")
    time_to_accuracy.add_arguments(command)
    command.set_defaults(run=time_to_accuracy.run)
    command = suites.add_parser("paper", help="time-to-accuracy paper: the paper's table")
    time_to_accuracy.add_arguments(command, "paper")
    command.set_defaults(run=time_to_accuracy.run)
    parsed = parser.parse_args(arguments)
    code: int = parsed.run(parsed)
    return code


if __name__ == "__main__":
    sys.exit(main())
