"""Doing the runs of a suite, some side by side, in an order that a stop leaves balanced, and going on afterwards."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import threading
import time
import traceback
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.suites.records import append_record, check_unchanged, read_records, record_key
from benchmarks.suites.suites import RunSpec

__all__ = ["run_all"]


def run_all(specs: list[RunSpec], path: Path, jobs: int, console: Console) -> int:
    """Do the runs that ``path`` does not hold yet, in the given order, each in a worker process.

    Args:
        specs: The runs.
        path: The suite's file, to which each run appends its line when it ends.
        jobs: Worker processes, each of which does one run after the other.
        console: Where progress goes: a line a run, with an estimate of what remains.

    Returns:
        Number of runs that failed.

    Raises:
        RecordError: if ``path`` holds one of the runs with another configuration.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker, initargs=(os.getpid(),)) as pool:
        hashes = pool.submit(_hashes, specs).result()
        done = check_unchanged(path, specs, hashes)
        left = [spec for spec in specs if spec.key not in done]
        console.print(f"{len(specs) - len(left)} of {len(specs)} runs are in {path} already")
        futures = {pool.submit(_run, spec, path, jobs): spec for spec in left}
        try:
            return _follow(futures, path, jobs, console)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _follow(futures: dict[Future[dict[str, Any]], RunSpec], path: Path, jobs: int, console: Console) -> int:
    failed = 0
    waiting = list(futures.values())
    for number, future in enumerate(as_completed(futures), start=1):
        spec = futures[future]
        waiting.remove(spec)
        name = f"[{number}/{len(futures)}] {spec.cell} {spec.arm} seed {spec.seed}"
        try:
            last = future.result()
        except BrokenProcessPool:
            console.print(f"{name}: its process was killed; start the suite again to go on", style="red")
            return failed + 1 + len(waiting)
        except Exception:
            failed += 1
            console.print(f"{name}: failed", style="red")
            console.print(traceback.format_exc(), markup=False, highlight=False)
            continue
        test = next(name for name in ("test_accuracy", "test_r2", "test_loss") if name in last)
        console.print(
            f"{name}: {test.replace('_', ' ')} {last[test]}, {last['updates']} updates, {last['seconds']:.0f} s"
            f"{_remaining(waiting, path, jobs)}",
            highlight=False,
        )
    return failed


def _remaining(waiting: list[RunSpec], path: Path, jobs: int) -> str:
    """How long the runs that have not ended will take, judged by those that have."""
    if not waiting:
        return ""
    by_kind: dict[tuple[str, str], list[float]] = {}
    by_cell: dict[str, list[float]] = {}
    for record in read_records(path):
        cell, arm, _ = record_key(record)
        by_kind.setdefault((cell, arm), []).append(record["total_seconds"])
        by_cell.setdefault(cell, []).append(record["total_seconds"])
    everything = [seconds for times in by_cell.values() for seconds in times]
    total = sum(
        statistics.mean(by_kind.get((spec.cell, spec.arm)) or by_cell.get(spec.cell) or everything) for spec in waiting
    )
    minutes = round(total / jobs / 60)
    return f"; about {minutes // 60} h {minutes % 60:02d} min remain"


# ---- in a worker process


def _begin_worker(parent: int) -> None:
    def watch() -> None:
        # A killed parent cannot tell its workers to stop.
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    from benchmarks.machine import versions

    versions()


def _hashes(specs: list[RunSpec]) -> list[str]:
    from benchmarks.suites.run import configuration_hash

    return [configuration_hash(spec) for spec in specs]


def _run(spec: RunSpec, path: Path, jobs: int) -> dict[str, Any]:
    from benchmarks.suites.run import execute

    record = execute(spec, jobs)
    append_record(path, record)
    last: dict[str, Any] = record["evaluations"][-1]
    return last
