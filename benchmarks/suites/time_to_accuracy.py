"""The command line of the suites of the evidence: ``time-to-accuracy SUITE``; ``paper`` and ``tasks`` for short."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.suites.records import RecordError
from benchmarks.suites.schedule import run_all
from benchmarks.suites.suites import SUITES, planned_runs

__all__ = ["add_arguments", "results_file", "run"]

RESULTS = Path("docs/results")


def add_arguments(parser: argparse.ArgumentParser, suite: str | None = None) -> None:
    """Declare the command line; with ``suite`` given it is not asked for."""
    if suite is None:
        listed = "; ".join(f"{name}: {entry.title}" for name, entry in SUITES.items())
        parser.add_argument("name", metavar="SUITE", choices=sorted(SUITES), help=listed)
    else:
        parser.set_defaults(name=suite)
    parser.add_argument("--size", choices=("cpu", "gpu"), default="cpu", help="default: cpu")
    parser.add_argument("--cells", nargs="+", help="cells of the suite (default: all)")
    parser.add_argument("--arms", nargs="+", help="arms (default: those of each cell)")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds (default: 0 and up, as many as the cell has)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default: 1)")
    parser.add_argument("--output", type=Path, help=f"file of the runs (default: {RESULTS}/SUITE_SIZE.jsonl)")


def results_file(suite: str, size: str) -> Path:
    """Where the lines of a suite are."""
    return RESULTS / f"{suite}_{size}.jsonl"


def run(arguments: argparse.Namespace) -> int:
    """Do the suite's runs that are not done yet; returns the exit code."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    path = arguments.output or results_file(arguments.name, arguments.size)
    try:
        if arguments.jobs < 1:
            raise ValueError(f"--jobs is {arguments.jobs}: it must be at least 1")
        specs = list(
            planned_runs(
                arguments.name, arguments.size, cells=arguments.cells, arms=arguments.arms, seeds=arguments.seeds
            )
        )
        failed = run_all(specs, path, arguments.jobs, console)
    except (ValueError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.print(f"{failed} runs failed" if failed else str(path), highlight=False)
    return 1 if failed else 0
