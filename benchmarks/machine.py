"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from composer_edba import __version__
from composer_edba.train.machine import cpu_name

__all__ = ["available_bytes", "described", "hardware", "machine", "versions"]


def machine(device: torch.device) -> dict[str, Any]:
    """:func:`hardware` and :func:`versions` in one, for a report of costs."""
    found = hardware(device)
    return {"device": found.pop("gpu") or found["cpu"], "kind": device.type, **found, **versions()}


def hardware(device: torch.device) -> dict[str, Any]:
    """Processor, memory and threads.

    Args:
        device: Where the work is done: ``gpu`` is None and ``memory_bytes`` the computer's own, unless it is a GPU.
    """
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "cpu": cpu_name(),
        "gpu": gpu and gpu.name,
        "cores": os.cpu_count(),
        "memory_bytes": gpu.total_memory if gpu else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "threads": torch.get_num_threads(),
    }


@cache
def versions() -> dict[str, Any]:
    """Of what this process runs; asked for once, before the tree may change."""
    try:
        composer = metadata.version("mosaicml")
    except metadata.PackageNotFoundError:
        composer = None
    state = _git("status", "--porcelain", "--", "composer_edba", "benchmarks")
    return {
        "composer_edba": __version__,
        "torch": torch.__version__,
        "composer": composer,
        "python": platform.python_version(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if state is None else bool(state),
    }


def described(machine: dict[str, Any]) -> str:
    """:func:`machine` in a line."""
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return (
        f"{machine['device']}, {threads} of {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, "
        f"Python {machine['python']}, torch {machine['torch']}, Composer {machine['composer'] or 'not installed'}, "
        f"composer-edba {machine['composer_edba']}"
    )


def available_bytes(device: torch.device) -> int:
    """Memory of ``device`` that nobody uses now."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # torch keeps what it freed
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _git(*command: str) -> str | None:
    """What git says about the package's and the laboratory's source; None where it is no clone."""
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
