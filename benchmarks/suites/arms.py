"""The arms that suites compare: what each changes in the same base run.

An arm is data: overrides of the run's configuration, and algorithms that the configuration cannot name. What depends
on the data set or the schedule, such as a tuned learning rate, stands with the suite's cell.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

__all__ = ["ARMS", "Arm", "ExtraAlgorithm", "arm_title", "parse_arm"]


@dataclass(frozen=True)
class ExtraAlgorithm:
    """A Composer algorithm that the benchmark brings.

    Attributes:
        name: ``module:Class``, below ``benchmarks.comparators``. It goes into recorded lines and their hashes: a module
            that moves keeps it.
        arguments: its keyword arguments.
        seeded: whether it takes the run's seed too, as ``seed``.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seeded: bool = False

    def build(self, seed: int) -> Any:
        """Import and construct it.

        Raises:
            ImportError: if the module, or what it needs, is not there.
        """
        module, _, name = self.name.partition(":")
        arguments = {**self.arguments, "seed": seed} if self.seeded else self.arguments
        return getattr(importlib.import_module(f"benchmarks.comparators.{module}"), name)(**arguments)


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


_RECIPE = {
    "algorithms.blurpool": {},
    "algorithms.label_smoothing": {"smoothing": 0.1},
    "algorithms.mixup": {"alpha": 0.2},
}

# 0.2's defaults, spelt out: an arm means the same whatever the defaults become.
_OF_0_2 = {
    "criterion": "margin",
    "scoring": "forward",
    "interval": 10,
    "subset_size_law": "upper_half",
    "batch_size_policy": "fixed",
}
# Where EDBA sizes the batch by the loss, which was its default until 0.2: `edba` and its like on the pages.
_BY_LOSS = {**_OF_0_2, "batch_size_policy": "loss"}
_BY_MASS = {
    "criterion": "gradient_mass",
    "scoring": "cached",
    "interval": 1,
    "left_out": 0.1,
    "recheck": 3,
    "refill": True,
    "batch_size_policy": "fixed",
}

ARMS: dict[str, Arm] = {
    "plain": Arm("plain"),
    # Learning rate and schedule stand in the suite.
    "plain_decay": Arm("plain, decayed learning rate"),
    # The batch size stands in the suite, found on seeds that no report uses.
    "plain_best_batch": Arm("plain, best fixed batch"),
    # The learning rate stands in the suite: twice that of half the batch.
    "plain_500": Arm("plain, batch 500", {"data.batch_size": 500}),
    "edba": Arm("EDBA", {"algorithms.edba": _BY_LOSS}),
    "edba_random": Arm("EDBA, random subsets (control)", {"algorithms.edba": {**_BY_LOSS, "criterion": "random"}}),
    "edba_whole": Arm(
        "EDBA's sizes, whole batches (control)", {"algorithms.edba": {**_BY_LOSS, "subset_size_law": 1.0}}
    ),
    "edba_default": Arm("EDBA's defaults of 0.2", {"algorithms.edba": _OF_0_2}),
    "edba_loss": Arm("EDBA, batch by the loss", {"algorithms.edba": _BY_LOSS}),
    "edba_fixed": Arm("EDBA, fixed batch size", {"algorithms.edba": _OF_0_2}),
    # With a rule of the batch size that sees every batch, and a subset of each.
    "edba_every": Arm("EDBA, every batch", {"algorithms.edba": {**_BY_LOSS, "interval": 1}}),
    "edba_cached": Arm(
        "EDBA, every batch, cached scores", {"algorithms.edba": {**_BY_LOSS, "interval": 1, "scoring": "cached"}}
    ),
    "edba_noise_scale": Arm(
        "EDBA, every batch, noise scale",
        {"algorithms.edba": {**_OF_0_2, "interval": 1, "batch_size_policy": "noise_scale"}},
    ),
    "edba_mass": Arm("EDBA, gradient mass", {"algorithms.edba": _BY_MASS}),
    "edba_mass_kept": Arm("EDBA, gradient mass, not refilled", {"algorithms.edba": {**_BY_MASS, "refill": False}}),
    "edba_mass_random": Arm(
        "as many samples, random members (control)", {"algorithms.edba": {**_BY_MASS, "criterion": "random_mass"}}
    ),
    "edba_paper": Arm("EDBA, the paper's settings", {"algorithms.edba": {"preset": "paper"}}),
    "edba_paper_random": Arm(
        "paper's settings, random subsets (control)",
        {"algorithms.edba": {"preset": "paper", "criterion": "random"}},
    ),
    "adam": Arm("Adam", {"optimizer.name": "adam", "optimizer.momentum": None, "optimizer.nesterov": None}),
    "dba": Arm("DBA", {"algorithms.dba": {}}),
    "dba_random": Arm("DBA, random samples (control)", {"algorithms.dba": {"criterion": "random"}}),
    "growth": Arm("batch growth, no selection", extra=(ExtraAlgorithm("batch_growth:BatchGrowth"),)),
    "selective_backprop": Arm("SelectiveBackprop", {"algorithms.selective_backprop": {}}),
    "infobatch": Arm("InfoBatch's rule", extra=(ExtraAlgorithm("infobatch:InfoBatch"),)),
    # About as many samples as gradient mass trains on.
    "rs2": Arm("RS2", extra=(ExtraAlgorithm("rs2:RS2", {"share": 0.65}),)),
    "orderdp": Arm("OrderDP's rule", extra=(ExtraAlgorithm("orderdp:OrderDP"),)),
    # EDBA on fixed subsets of the full set that are drawn anew: no method, but a control.
    "redraw_on_resize": Arm(
        "EDBA, subset redrawn at each resize",
        {"algorithms.edba": _BY_LOSS},
        (ExtraAlgorithm("redraw:RedrawOnResize", {"samples": 100, "every": "resize"}, seeded=True),),
    ),
    "redraw_every_epoch": Arm(
        "EDBA, subset redrawn every epoch",
        {"algorithms.edba": _BY_LOSS},
        (ExtraAlgorithm("redraw:RedrawOnResize", {"samples": 100, "every": "epoch"}, seeded=True),),
    ),
    "plain_full_data": Arm("plain, on the full data"),
    "recipe": Arm("Composer's recipe", _RECIPE),
    "recipe_edba": Arm("Composer's recipe and EDBA", {**_RECIPE, "algorithms.edba": _BY_LOSS}),
}
"""By name."""


def parse_arm(name: str) -> tuple[str, dict[str, Any]]:
    """Split ``ARM@key=value,key=value``, an arm of its own with keys that differ, into the arm and those keys.

    >>> parse_arm("plain@optimizer.lr=0.2")
    ('plain', {'optimizer.lr': 0.2})

    Raises:
        ValueError: if the arm is unknown, or a change is not ``key=value``.
    """
    base, _, listed = name.partition("@")
    if base not in ARMS:
        raise ValueError(f"arm {base!r} is unknown; there are {', '.join(ARMS)}")
    changes = {}
    for change in listed.split(",") if listed else []:
        key, equals, value = change.partition("=")
        if not key or not equals:
            raise ValueError(f"arm {name!r}: {change!r} must be key=value")
        try:
            # As in the YAML files: plain YAML 1.1 takes 1e-3 for text.
            parsed = OmegaConf.create(f"value: {value}")
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ValueError(f"arm {name!r}: the value {value!r} of {key} is not valid YAML") from error
        changes[key] = OmegaConf.to_container(parsed)["value"]  # type: ignore[call-overload, index]
    return base, changes


def arm_title(name: str) -> str:
    """What a reader calls the arm ``name``; the name itself where it is not known (any more)."""
    base, _, changes = name.partition("@")
    title = ARMS[base].title if base in ARMS else base
    return f"{title}, {changes}" if changes else title
