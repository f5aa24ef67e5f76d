"""``python -m composer_edba.benchmark SUITE``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from composer_edba.benchmark import cost


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m composer_edba.benchmark", description=__doc__)
    suites = parser.add_subparsers(dest="suite", required=True, metavar="SUITE")
    cost.add_arguments(suites.add_parser("cost", help="time and memory of selection and of a step"))
    parsed = parser.parse_args(arguments)
    return cost.run(parsed)


if __name__ == "__main__":
    sys.exit(main())
