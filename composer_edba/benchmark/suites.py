"""The suites of the evidence: cells x arms x seeds, as data.

A suite is defined by adding an entry to :data:`SUITES`; nothing else has to know it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from composer_edba.benchmark.arms import ARMS, Arm, ExtraAlgorithm

__all__ = ["SUITES", "Cell", "RunSpec", "Suite", "planned_runs"]

YAMLS = Path(__file__).parents[2] / "yamls"


@dataclass(frozen=True)
class Cell:
    """One setting of a suite, in which its arms compete.

    Attributes:
        base: YAML file of the run, below ``yamls/``.
        overrides: keys of the configuration that differ from it, for all arms.
        arms: names of the arms, in the order in which they run.
        seeds: number of seeds, 0 and up, that belong in a report.
        arm_overrides: by arm, keys that it changes in this cell, over its own.
        arm_extra: by arm, algorithms in place of its own extra ones.
        evaluations: points of evaluation, spread evenly over the duration, which is in epochs or batches.
        test_samples: images of the test set at all points but the last, which takes all of it; None: all, always.
        target: validation accuracy of the time to target, in (0, 1]; None: the report takes the highest that plain's
            mean reaches.
    """

    base: str
    overrides: Mapping[str, Any]
    arms: tuple[str, ...]
    seeds: int
    arm_overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    arm_extra: Mapping[str, tuple[ExtraAlgorithm, ...]] = field(default_factory=dict)
    evaluations: int = 6
    test_samples: int | None = None
    target: float | None = None


@dataclass(frozen=True)
class Suite:
    """Cells by name, for each size, ``cpu`` or ``gpu``."""

    title: str
    sizes: Mapping[str, Mapping[str, Cell]]


@dataclass(frozen=True)
class RunSpec:
    """One run of a suite: everything that a worker process needs."""

    suite: str
    size: str
    cell: str
    arm: str
    seed: int
    base: str
    overrides: Mapping[str, Any]
    extra: tuple[ExtraAlgorithm, ...]
    evaluations: int
    test_samples: int | None

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells runs of a suite apart."""
        return self.cell, self.arm, self.seed

    def override_strings(self) -> list[str]:
        """The overrides as the ``key=value`` strings of the command line; JSON is YAML."""
        return [f"{key}={json.dumps(value)}" for key, value in self.overrides.items()]


# Every run of a suite has these. The data is in memory and the folder of the run stays unused.
_COMMON = {
    "data.validation_samples": 1000,
    "trainer.progress_bar": False,
    "output.plot": False,
}
# On a CPU the layout alone saves a large part of a step; it changes no result beyond rounding.
_ON_CPU = {"algorithms.channels_last": {}, "torch_num_threads": 1, "trainer.device": "cpu"}
_ON_GPU = {"algorithms.channels_last": {}, "trainer.device": "gpu"}

_PAPER_ARMS = ("plain", "edba", "edba_random")
_PAPER_EDBA = {
    "edba": {"algorithms.edba": {"preset": "paper"}},
    "edba_random": {"algorithms.edba": {"preset": "paper", "criterion": "random"}},
}


def _paper_cpu(classes: int, samples: int, epochs: int, seeds: int) -> Cell:
    return Cell(
        base=f"cifar{classes}/preresnet56_baseline.yaml",
        overrides={
            **_COMMON,
            **_ON_CPU,
            "data.samples": samples,
            "data.image_size": 16,
            "trainer.max_duration": f"{epochs}ep",
        },
        arms=_PAPER_ARMS,
        seeds=seeds,
        arm_overrides=_PAPER_EDBA,
        test_samples=1000,
    )


def _paper_gpu(classes: int, samples: int | None) -> Cell:
    return Cell(
        base=f"cifar{classes}/preresnet56_baseline.yaml",
        overrides={**_COMMON, **_ON_GPU, "data.samples": samples, "trainer.max_duration": "300ep"},
        arms=_PAPER_ARMS,
        seeds=5,
        arm_overrides=_PAPER_EDBA,
        evaluations=30,
    )


PAPER = Suite(
    "The paper's Table 1: PreResNet56, SGD with a constant learning rate of 0.001, batch 100",
    {
        "cpu": {
            "cifar10_100samples": _paper_cpu(10, 100, 300, seeds=5),
            "cifar10_1pct": _paper_cpu(10, 500, 60, seeds=5),
            "cifar100_1pct": _paper_cpu(100, 500, 60, seeds=3),
            "cifar10_10pct": _paper_cpu(10, 5000, 6, seeds=2),
        },
        "gpu": {
            "cifar10_100samples": _paper_gpu(10, 100),
            "cifar10_1pct": _paper_gpu(10, 500),
            "cifar10_10pct": _paper_gpu(10, 5000),
            "cifar10_full": _paper_gpu(10, None),
            "cifar100_1pct": _paper_gpu(100, 500),
            "cifar100_10pct": _paper_gpu(100, 5000),
            "cifar100_full": _paper_gpu(100, None),
        },
    },
)

SMOKE = Suite(
    "A minute of the digits, to see that the harness works",
    {
        "cpu": {
            "digits": Cell(
                base="digits/baseline.yaml",
                overrides={
                    **_COMMON,
                    **_ON_CPU,
                    "data.validation_samples": 200,
                    "data.samples": 500,
                    "trainer.max_duration": "6ep",
                },
                arms=("plain", "edba", "edba_random", "selective_backprop"),
                seeds=2,
                test_samples=100,
            )
        }
    },
)

SUITES: dict[str, Suite] = {"paper": PAPER, "smoke": SMOKE}
"""By name."""


def planned_runs(
    name: str,
    size: str,
    *,
    cells: list[str] | None = None,
    arms: list[str] | None = None,
    seeds: list[int] | None = None,
) -> Iterator[RunSpec]:
    """The runs of a suite: by seed, then by cell, arms side by side, so that a stopped suite is balanced.

    Args:
        name: a key of :data:`SUITES`.
        size: ``cpu`` or ``gpu``.
        cells: names of cells. Default: all.
        arms: names of arms, of :data:`~composer_edba.benchmark.arms.ARMS`. Default: each cell's own.
        seeds: Default: each cell's own.

    Raises:
        ValueError: if a name is unknown.
    """
    _check("suite", [name], SUITES)
    suite = SUITES[name]
    _check("size", [size], suite.sizes)
    known = suite.sizes[size]
    _check("cell", cells or [], known)
    _check("arm", arms or [], ARMS)
    chosen = {cell: known[cell] for cell in cells or known}
    for seed in seeds if seeds is not None else range(max(cell.seeds for cell in chosen.values())):
        for cell_name, cell in chosen.items():
            if seeds is None and seed >= cell.seeds:
                continue
            for arm_name in arms or cell.arms:
                yield _run_spec(name, size, cell_name, cell, arm_name, ARMS[arm_name], seed)


def _run_spec(suite: str, size: str, cell_name: str, cell: Cell, arm_name: str, arm: Arm, seed: int) -> RunSpec:
    return RunSpec(
        suite=suite,
        size=size,
        cell=cell_name,
        arm=arm_name,
        seed=seed,
        base=cell.base,
        overrides={
            **cell.overrides,
            **arm.overrides,
            **cell.arm_overrides.get(arm_name, {}),
            "seed": seed,
            "data.subset_seed": seed,
        },
        extra=cell.arm_extra.get(arm_name, arm.extra),
        evaluations=cell.evaluations,
        test_samples=cell.test_samples,
    )


def _check(what: str, given: list[str], known: Mapping[str, Any]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{what} {name!r} is unknown; there are {', '.join(known)}")
