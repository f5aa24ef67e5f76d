"""What a run was made on and with. Imports no Composer: the laboratory measures memory beside it."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from composer_edba.loading.ranks import world_size


def versions() -> dict[str, str]:
    """Of Python and of the packages that a run computes with."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("composer-edba", "mosaicml", "torchvision", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def hardware() -> dict[str, Any]:
    """Processor, threads, GPU and ranks of this process."""
    return {
        "cpu": cpu_name(),
        "torch_num_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "ranks": world_size(),
    }


def cpu_name() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    named = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
