"""Efficient Dynamic Batch Adaptation (EDBA) for PyTorch training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from composer_edba import functional

if TYPE_CHECKING:
    from composer_edba.composer.algorithm import EDBA
    from composer_edba.dba.algorithm import DBA

__all__ = ["DBA", "EDBA", "__version__", "functional"]

__version__ = "0.2.0"

_ALGORITHMS = {"DBA": "composer_edba.dba.algorithm", "EDBA": "composer_edba.composer.algorithm"}


def __getattr__(name: str) -> Any:
    # Lazily: the mathematics must work where Composer is not installed.
    if name in _ALGORITHMS:
        try:
            return getattr(importlib.import_module(_ALGORITHMS[name]), name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "composer_edba":
                raise
            raise ImportError(
                f"composer_edba.{name} needs MosaicML Composer ({error.name} is not installed): "
                "pip install 'composer-edba[composer]'"
            ) from error
    raise AttributeError(f"module 'composer_edba' has no attribute {name!r}")
