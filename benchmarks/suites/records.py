"""The file of a suite: one JSON line a run, appended whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.suites.suites import RunSpec

__all__ = ["RecordError", "append_record", "check_unchanged", "read_records", "record_key"]


class RecordError(ValueError):
    """A suite's file holds something else than what it should; the message says what and what to do."""


def record_key(record: dict[str, Any]) -> tuple[str, str, int]:
    """Cell, arm and seed: what tells the runs of a suite apart."""
    return record["cell"], record["arm"], record["seed"]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The runs in a suite's file, in the order in which they ended; none where there is no file.

    A last line without its end, which a killed process leaves, is passed over.

    Raises:
        RecordError: if another line cannot be read, or a run is there twice.
    """
    if not path.exists():
        return []
    records: dict[tuple[str, str, int], dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            key = record_key(record)
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{path}, line {number}: not the record of a run ({error}); remove that line") from error
        if key in records:
            raise RecordError(f"{path}, line {number}: {', '.join(map(str, key))} is there twice; remove one line")
        records[key] = record
    return list(records.values())


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add a run as one line, under a lock that processes of the same machine heed.

    A run that is there already, which another process did at the same time, is left as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if record_key(record) in map(record_key, read_records(path)):
            return
        _drop_torn_line(file)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _drop_torn_line(file: Any) -> None:
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        file.truncate(whole)
    file.seek(0, os.SEEK_END)


def check_unchanged(path: Path, specs: Iterable[RunSpec], hashes: Iterable[str]) -> set[tuple[str, str, int]]:
    """The keys of the runs that ``path`` holds already.

    Raises:
        RecordError: if it holds one of ``specs`` made with another configuration.
    """
    done = {record_key(record): record["configuration"] for record in read_records(path)}
    for spec, configuration in zip(specs, hashes, strict=True):
        if done.get(spec.key, configuration) != configuration:
            cell, arm, seed = spec.key
            raise RecordError(
                f"{path} holds {cell}, {arm}, seed {seed} with configuration {done[spec.key]}, and the suite now says "
                f"{configuration}: remove the lines of that arm, or give another --output"
            )
    return set(done)
