"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from composer_edba import __version__

__all__ = ["available_bytes", "described", "machine"]


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware, threads and versions, for a report."""
    try:
        composer = metadata.version("mosaicml")
    except metadata.PackageNotFoundError:
        composer = None
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "kind": device.type,
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "composer": composer,
        "composer_edba": __version__,
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


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
