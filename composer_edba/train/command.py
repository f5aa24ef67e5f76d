"""The command line: answers ``--help`` and a wrong configuration before torch and Composer are imported."""

from __future__ import annotations

import os
import sys
import textwrap
import time
import warnings
from collections.abc import Sequence

from composer_edba.train.config import load_config
from composer_edba.train.names import DATASETS, MODELS, shipped_runs
from composer_edba.train.schema import ConfigError, schema_keys

USAGE = """\
usage: composer -n RANKS -m composer_edba.train RUN [key=value ...]
       python -m composer_edba.train RUN [key=value ...]

Trains the run that RUN describes, a YAML file or the name of one that comes with the package, and leaves summary.json
and a plot in output.folder. A key=value wins over the file, as in optimizer.lr=0.1 or
algorithms.edba.num_candidates=256.
"""

_RANK_0_SPEAKS = 20.0
"""Seconds that another rank waits after an error; the launcher ends it as soon as rank 0 has."""


def help_text() -> str:
    """The usage, every run, model and data set, and every key with its default and comment."""
    models = {name: model.text for name, model in MODELS.items()}
    models["MODULE:FACTORY"] = (
        "any function that builds a classifier, as torchvision:resnet18 (short for torchvision.models:resnet18) or "
        "timm:resnet18 (timm.create_model); takes what model.kwargs holds"
    )
    runs = textwrap.wrap(", ".join(shipped_runs()), 116, initial_indent="  ", subsequent_indent="  ")
    lines = [USAGE, "Runs that come with the package:", *runs]
    for title, entries in (("Models (model.name):", models), ("Data sets (data.name):", DATASETS)):
        lines += ["", title, *(line for name, text in entries.items() for line in _entry(name, text))]
    lines += ["", "Keys (default in brackets):"]
    section, words = "", {"None": "null", "True": "true", "False": "false"}
    for key in schema_keys():
        head = key.name.rpartition(".")[0]
        if head != section:
            lines.append("")
        section = head
        default = "required" if key.required else words.get(str(key.default), str(key.default))
        lines += _entry(key.name, f"[{default}] {key.help}")
    return "\n".join(lines)


def _entry(name: str, text: str) -> list[str]:
    first, *others = textwrap.wrap(text, width=80)
    return [f"  {name:<38}{first}", *(" " * 40 + line for line in others)]


def cli(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code: 0, or 2 when the configuration is wrong."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(help_text())
        return 0
    if not arguments:
        print(f"{USAGE}\nerror: RUN is missing; --help lists the runs and all keys", file=sys.stderr)
        return 2
    try:
        config = load_config(arguments[0], arguments[1:])
        from composer_edba.train.run import main  # ten seconds: torch and Composer

        # Composer warns at every batch that is smaller than the microbatch, the last one of any epoch and evaluation.
        warnings.filterwarnings("ignore", message="Cannot split tensor of length")
        main(config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        if os.environ.get("RANK", "0") != "0":
            # The launcher shows rank 0's output alone and stops it once another rank has ended: let it speak first.
            time.sleep(_RANK_0_SPEAKS)
        return 2
    return 0
