"""Efficient Dynamic Batch Adaptation (EDBA) for PyTorch training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from composer_edba import functional

if TYPE_CHECKING:
    from composer_edba.algorithm import EDBA

__all__ = ["EDBA", "__version__", "functional"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazily: the mathematics must work where Composer is not installed.
    if name == "EDBA":
        try:
            return importlib.import_module("composer_edba.algorithm").EDBA
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "composer_edba":
                raise
            raise ImportError(
                f"composer_edba.EDBA needs MosaicML Composer ({error.name} is not installed): "
                "pip install 'composer-edba[composer]'"
            ) from error
    raise AttributeError(f"module 'composer_edba' has no attribute {name!r}")
