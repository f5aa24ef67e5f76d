"""What the commands on costs have in common at their ends: the last arguments, and the three files that they leave."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["add_arguments", "clock_text", "start", "write"]


def add_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """``--threads`` and ``--output``, whose default is ``output``."""
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    text = f"files to write, less .json, .md and .png (default: {output})"
    parser.add_argument("--output", type=Path, default=Path(output), help=text)


def start(arguments: argparse.Namespace) -> torch.device:
    """Set the threads and make the folder; returns the device to measure on."""
    torch.set_num_threads(arguments.threads)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def write(
    report: Mapping[str, Any],
    output: Path,
    as_markdown: Callable[[Mapping[str, Any], Path], str],
    plot: Callable[[Mapping[str, Any], Path], None],
    indent: int | None = 1,
) -> None:
    """Write the figures as JSON, their tables as Markdown, and their picture; print tables and the picture's path."""
    picture = output.with_suffix(".png")
    output.with_suffix(".json").write_text(json.dumps(report, indent=indent) + "\n")
    text = as_markdown(report, picture)
    output.with_suffix(".md").write_text(text)
    plot(report, picture)
    print(text)
    print(picture)


def clock_text(machine: Mapping[str, Any]) -> str:
    """Which time was taken by :func:`~benchmarks.cost.interleaved.fair_clock`."""
    if machine["kind"] == "cpu" and machine["threads"] == 1:
        return "Times are CPU times of the one thread, since other processes used the machine too."
    return "Times are wall-clock times."
