"""What EDBA costs: selection alone against its rivals, a step against its floor, peak memory, and growth with B.

Everything is measured in one run on the machine at hand, in turns, and reported as medians with quartiles; ratios are
formed round by round.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import Any

import torch

from benchmarks.cost import outcome
from benchmarks.cost.report import as_markdown, plot
from benchmarks.cost.selection import LAST_LAYERS, measure_selection
from benchmarks.cost.step import (
    PRECISIONS,
    StepSettings,
    measure_memory,
    measure_steps,
    room_for,
    step_arms,
)
from benchmarks.machine import machine

__all__ = ["add_arguments", "run"]

_PARTS = ("selection", "memory", "steps", "trainer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the suite's command line."""
    pools = [100, 200, 500, 1000]
    parser.add_argument("--model", default="preresnet56", help="network of the step (default: preresnet56)")
    parser.add_argument("--pools", type=int, nargs="+", default=pools, help="pool sizes B (default: 100 200 500 1000)")
    parser.add_argument(
        "--candidates",
        type=int,
        nargs="+",
        default=[1024, 16384],
        help="numbers of candidates asked for in the selection alone (default: 1024, EDBA's, and 16384)",
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the steps (default: fp32)")
    parser.add_argument("--channels-last", action="store_true", help="memory format of images and weights")
    parser.add_argument("--rounds", type=int, default=15, help="most timed rounds of each arm (default: 15)")
    parser.add_argument(
        "--budget",
        type=float,
        default=100,
        help="seconds that the timed rounds of one pool size or network may take, a tenth of it for a last layer in "
        "the selection alone, as long as three rounds are left (default: 100)",
    )
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS, help="what to measure (default: all)")
    outcome.add_arguments(parser, "runs/cost/cost")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables, write them as JSON and markdown, and the plot."""
    device = outcome.start(arguments)
    settings = StepSettings(arguments.model, arguments.precision, arguments.channels_last)
    report: dict[str, Any] = {
        "suite": "cost",
        "machine": machine(device),
        "rounds": arguments.rounds,
        "selection": [],
        "steps": [],
        "trainer": [],
    }
    if "selection" in arguments.parts:
        for pool in arguments.pools:
            for classes, features in LAST_LAYERS:
                for candidates in arguments.candidates:
                    _say(f"selection: pool {pool}, last layer {classes} x {features}, {candidates} candidates")
                    row = measure_selection(
                        pool, classes, features, candidates, arguments.rounds, device, arguments.budget / 10
                    )
                    report["selection"].append(row)
    if {"memory", "steps"} & set(arguments.parts):
        report["steps"] = _steps(arguments, settings, device)
    if "trainer" in arguments.parts:
        report["trainer"] = _trainer(arguments, device)
    outcome.write(report, arguments.output, as_markdown, plot)
    return 0


def _steps(arguments: argparse.Namespace, settings: StepSettings, device: torch.device) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    known: dict[str, tuple[int, int]] = {}  # of each kind of step, a pool size and the peak it had there
    for pool in sorted(arguments.pools):
        row: dict[str, Any] = {"pool": pool, "left_out": {}}
        rows.append(row)
        arms = []
        for name in step_arms():
            fits, needed, left = room_for(pool, *known[name], device) if name in known else (True, 0, 0)
            if fits:
                arms.append(name)
            else:
                row["left_out"][name] = f"needs about {needed / 2**30:.1f} GiB, {left / 2**30:.1f} GiB are free"
        if "edba" not in arms:
            continue
        if "memory" in arguments.parts:
            _say(f"memory: {settings.model}, pool {pool}")
            row["peak_bytes"] = measure_memory(settings, pool, arms)
            known |= {name: (pool, peak) for name, peak in row["peak_bytes"].items()}
        if "steps" in arguments.parts:
            _say(f"steps: {settings.model}, pool {pool}")
            row |= measure_steps(settings, pool, arms, arguments.rounds, arguments.budget)
    return rows


def _trainer(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    if importlib.util.find_spec("composer") is None:
        _say("trainer: left out, Composer is not installed")
        return []
    from benchmarks.cost.trainer import measure_trainer

    rows = []
    # Steps of a few milliseconds, where what EDBA adds shows most, and real ones.
    for model, pool, image, channels_last in (
        ("digits_cnn", 64, (1, 8, 8), False),
        (arguments.model, min(arguments.pools), (3, 32, 32), arguments.channels_last),
    ):
        _say(f"trainer: {model}, pool {pool}")
        rows.append(
            measure_trainer(
                model,
                pool,
                arguments.rounds,
                device,
                budget=arguments.budget,
                precision=arguments.precision,
                channels_last=channels_last,
                image=image,
            )
        )
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
