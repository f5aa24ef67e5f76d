"""Efficient Dynamic Batch Adaptation (EDBA) for PyTorch training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from composer_edba import functional
    from composer_edba.composer.algorithm import EDBA
    from composer_edba.dba.algorithm import DBA
    from composer_edba.plain import SubsetLoader
    from composer_edba.train.picture import plot

__all__ = ["DBA", "EDBA", "SubsetLoader", "__version__", "functional", "plot"]

__version__ = "0.3.0.dev0"

_MODULES = {
    "DBA": "composer_edba.dba.algorithm",
    "EDBA": "composer_edba.composer.algorithm",
    "SubsetLoader": "composer_edba.plain",
    "plot": "composer_edba.train.picture",
}


def __getattr__(name: str) -> Any:
    # Lazily: a wrong YAML file is refused before torch is imported, and loops without Composer need none.
    if name == "functional":
        return importlib.import_module("composer_edba.functional")
    if name in _MODULES:
        try:
            return getattr(importlib.import_module(_MODULES[name]), name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in ("composer_edba", "torch"):
                raise
            raise ImportError(
                f"composer_edba.{name} needs MosaicML Composer ({error.name} is not installed): "
                "pip install 'composer-edba[composer]'"
            ) from error
    raise AttributeError(f"module 'composer_edba' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
