"""``python -m benchmarks COMMAND``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# The module of each command has add_arguments(parser) and run(arguments). It is imported when it is asked for: some
# take Composer with them, which takes long. What stands behind the text goes to add_arguments too.
COMMANDS: dict[str, tuple[str, ...]] = {
    "cost": ("cost.cost", "time and memory of selection and of a step"),
    "scale-factor": ("cost.scale_factor", "what scoring at a lower resolution does to the choice, and what it saves"),
    "cost-dba": ("cost.dba", "time and memory of DBA beside EDBA and a plain step, and how good its search is"),
    "time-to-accuracy": ("suites.time_to_accuracy", "a suite of training runs, arms against each other"),
    "paper": ("suites.time_to_accuracy", "time-to-accuracy paper: the paper's table", "paper"),
    "tasks": ("suites.time_to_accuracy", "time-to-accuracy tasks: tables, regression and text", "tasks"),
    "report": ("reports.report", "tables, pictures and a page from the runs of a suite"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line names."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text, *preset) in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if given[:1] == [name]:
            chosen = importlib.import_module(f"benchmarks.{module}")
            chosen.add_arguments(command, *preset)
            command.set_defaults(run=chosen.run)
    parsed = parser.parse_args(given)
    code: int = parsed.run(parsed)
    return code


if __name__ == "__main__":
    sys.exit(main())
