"""The arms that suites compare: what each changes in the same base run.

An arm is data: overrides of the run's configuration, and algorithms that the configuration cannot name. What depends
on the data set or the schedule, such as a tuned learning rate, stands with the suite's cell.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ARMS", "Arm", "ExtraAlgorithm"]


@dataclass(frozen=True)
class ExtraAlgorithm:
    """A Composer algorithm that the benchmark brings: ``module:Class`` and its keyword arguments."""

    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        """Import and construct it.

        Raises:
            ImportError: if the module, or what it needs, is not there.
        """
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)(**self.arguments)


@dataclass(frozen=True)
class Arm:
    """What one arm of a comparison changes.

    Attributes:
        title: what a reader calls it.
        overrides: keys of the configuration and their values; an algorithm's value is its arguments, or False.
        extra: further algorithms, built anew for each run.
    """

    title: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    extra: tuple[ExtraAlgorithm, ...] = ()


_ALGORITHMS = "composer_edba.benchmark.algorithms"
_RECIPE = {
    "algorithms.blurpool": {},
    "algorithms.label_smoothing": {"smoothing": 0.1},
    "algorithms.mixup": {"alpha": 0.2},
}

ARMS: dict[str, Arm] = {
    "plain": Arm("plain"),
    # Learning rate and schedule stand in the suite.
    "plain_decay": Arm("plain, decayed learning rate"),
    **{
        f"plain_b{size}": Arm(f"plain, batch {size}", {"data.batch_size": size})
        for size in (10, 25, 50, 100, 200, 400, 800)
    },
    # The batch size stands in the suite, found on seeds that no report uses.
    "plain_best_batch": Arm("plain, best fixed batch"),
    "edba": Arm("EDBA", {"algorithms.edba": {}}),
    "edba_paper": Arm("EDBA, paper's settings", {"algorithms.edba": {"preset": "paper"}}),
    "edba_cached": Arm("EDBA, cached scores", {"algorithms.edba": {"scoring": "cached"}}),
    "edba_noise_scale": Arm("EDBA, noise scale", {"algorithms.edba": {"batch_size_policy": "noise_scale"}}),
    "edba_random": Arm("random subsets (control)", {"algorithms.edba": {"criterion": "random"}}),
    "edba_fixed": Arm("EDBA, fixed batch size", {"algorithms.edba": {"batch_size_policy": "fixed"}}),
    "growth": Arm("batch growth, no selection", extra=(ExtraAlgorithm(f"{_ALGORITHMS}.batch_growth:BatchGrowth"),)),
    "selective_backprop": Arm("SelectiveBackprop", {"algorithms.selective_backprop": {}}),
    "infobatch": Arm("InfoBatch's rule", extra=(ExtraAlgorithm(f"{_ALGORITHMS}.infobatch:InfoBatch"),)),
    "recipe": Arm("Composer's recipe", _RECIPE),
    "recipe_edba": Arm("Composer's recipe and EDBA", {**_RECIPE, "algorithms.edba": {}}),
}
"""By name. Overrides of nested mappings replace, they do not merge."""
