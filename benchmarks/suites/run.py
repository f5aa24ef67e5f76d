"""One run of a suite: a real Trainer, built as the YAML entry point builds it, and the line it leaves."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from operator import attrgetter
from typing import Any

import torch
from composer import Algorithm
from composer.utils import get_device
from omegaconf import OmegaConf

from benchmarks.comparators.mislabelled import MislabelledShare
from benchmarks.comparators.redraw import RedrawOnResize
from benchmarks.comparators.score_agreement import ScoreAgreement
from benchmarks.machine import hardware, versions
from benchmarks.suites import small_tasks
from benchmarks.suites.evaluation import EvaluationPoints, RunRecorder, forward_flops
from benchmarks.suites.suites import YAMLS, RunSpec
from composer_edba.dba.algorithm import DBA
from composer_edba.train.config import Config, load_config, schema_keys
from composer_edba.train.data import BatchTensorDataset, Data
from composer_edba.train.run import build_trainer

__all__ = ["configuration_hash", "execute"]

PATH_POINTS = 300
# Where the comparators were when the first lines were recorded: part of every hash since.
_HASHED_PREFIX = "composer_edba.benchmark.algorithms."
# The defaults of 0.2 that were not the paper's are part of the hash of every line of an EDBA that is not the paper's;
# those that were are part of none.
_DEFAULTS_IN_HASHES = {"subset_size_law": "upper_half", "batch_size_policy": "fixed", "interval": 10}
_DEFAULTS_IN_NONE = {"criterion": "margin", "scoring": "forward"}
# What changes neither the data nor the arithmetic of a run.
_NO_PART = ("data.root", "data.download", "torch_num_threads", "trainer.progress_bar", "trainer.run_name", "output.")


def execute(spec: RunSpec, jobs: int = 1) -> dict[str, Any]:
    """Train and evaluate one run.

    Args:
        spec: The run.
        jobs: Runs side by side on this machine, this one included; only written down. Default: 1.

    Returns:
        What goes into the suite's file: plain values.

    Raises:
        ConfigError: When a name or an argument of the run is wrong; nothing has trained then.
        ImportError: When an algorithm of the benchmark, or a package it needs, is not there.
    """
    config = _configuration(spec)
    points = EvaluationPoints(config.trainer.max_duration, spec.evaluations)
    recorder = RunRecorder()
    started = datetime.datetime.now(datetime.timezone.utc)
    load = os.getloadavg()[0]
    began = time.perf_counter()
    build = small_tasks.build_trainer if spec.base.startswith("task:") else build_trainer
    trainer, data = build(
        config,
        extra_algorithms=[algorithm.build(config.seed) for algorithm in spec.extra],
        callbacks=[recorder],
        evaluators=lambda data: points.evaluators(_on_device(data, config), spec.test_samples),
    )
    try:
        x, y = data.train.dataloader.dataset[0]  # type: ignore[union-attr]
        x = x if x.dtype == torch.int64 else x.float()  # words are numbers to look up, pixels are converted
        one = trainer.state.device.batch_to_device([x[None], torch.as_tensor(y)[None]])
        recorder.flops_per_sample = forward_flops(trainer.state.model, one)
        with warnings.catch_warnings():
            # Smaller last batches are cut into microbatches; it says so each time.
            warnings.filterwarnings("ignore", message="Cannot split")
            trainer.fit()
    finally:
        trainer.close()
    return {
        "suite": spec.suite,
        "size": spec.size,
        "cell": spec.cell,
        "arm": spec.arm,
        "seed": spec.seed,
        "configuration": configuration_hash(spec),
        "base": spec.base,
        "overrides": dict(spec.overrides),
        "extra": [[algorithm.name, dict(algorithm.arguments)] for algorithm in spec.extra],
        "algorithms": [_described(algorithm) for algorithm in trainer.state.algorithms],
        "started": started.isoformat(timespec="seconds"),
        "total_seconds": round(time.perf_counter() - began, 3),
        "versions": versions(),
        "hardware": {
            **hardware(torch.device("cuda" if trainer.state.device.name == "gpu" else "cpu")),
            "jobs": jobs,
            "load_before": round(load, 2),
            "load_after": round(os.getloadavg()[0], 2),
        },
        "train_size": data.train_size,
        "test_samples": spec.test_samples,
        "test_size": data.eval_size,
        "flops_per_sample": recorder.flops_per_sample,
        "evaluations": recorder.evaluations,
        "batch_size_path": _thinned(recorder.batch_size_path),
        **_observed(trainer.state.algorithms),
    }


def _configuration(spec: RunSpec) -> Config:
    if not spec.base.startswith("task:"):
        return load_config(YAMLS / spec.base, spec.override_strings())
    merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.from_dotlist(spec.override_strings()))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    return config


def _on_device(data: Data, config: Config) -> Data:
    """On a GPU the whole data set lies there too: small networks would wait for the batches otherwise."""
    device = get_device(config.trainer.device)
    for spec in (data.train, data.eval, data.validation):
        dataset = getattr(spec and spec.dataloader, "dataset", None)
        if device.name == "gpu" and isinstance(dataset, BatchTensorDataset):
            dataset.inputs, dataset.targets = map(device.tensor_to_device, (dataset.inputs, dataset.targets))
    return data


def _observed(algorithms: Iterable[Algorithm]) -> dict[str, Any]:
    """What the benchmark's own algorithms have seen."""
    observed: dict[str, Any] = {}
    for algorithm in algorithms:
        if isinstance(algorithm, MislabelledShare):
            observed["mislabelled"] = [asdict(part) for part in algorithm.counts]
        elif isinstance(algorithm, RedrawOnResize):
            observed["draws"] = algorithm.draws
        elif isinstance(algorithm, ScoreAgreement):
            observed["agreement"] = algorithm.looks
        elif isinstance(algorithm, DBA):
            observed["chosen_share"] = round(algorithm.samples_chosen / algorithm.samples_drawn, 4)
    return observed


def configuration_hash(spec: RunSpec) -> str:
    """Tells apart configurations of a run, as 16 hexadecimal digits.

    It covers every key of the configuration that differs from its default, the benchmark's own algorithms and the
    points of evaluation. Keys with a default that come later leave it as it is. EDBA's arguments count as an arm spells
    them out, and those of 0.2's defaults that were not the paper's, as when the first lines were recorded.
    """
    content = {
        "config": _changed(_configuration(spec)),
        "extra": [[f"{_HASHED_PREFIX}{algorithm.name}", dict(algorithm.arguments)] for algorithm in spec.extra],
        "evaluations": spec.evaluations,
        "test_samples": spec.test_samples,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _changed(config: Config) -> dict[str, Any]:
    changed = {}
    for key in schema_keys():
        value = attrgetter(key.name)(config)
        if value != key.default and not key.name.startswith(_NO_PART):
            changed[key.name] = value
    given = changed.get("algorithms", {}).get("edba")
    if isinstance(given, dict) and given.get("preset") != "paper":
        given = {name: value for name, value in given.items() if _DEFAULTS_IN_NONE.get(name) != value}
        changed["algorithms"] = {**changed["algorithms"], "edba": {**_DEFAULTS_IN_HASHES, **given}}
    return changed


def _described(algorithm: Any) -> str:
    text = repr(algorithm)
    return type(algorithm).__name__ if " object at 0x" in text else text


def _thinned(path: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """At most :data:`PATH_POINTS` of the changes, the first and the last among them."""
    if len(path) <= PATH_POINTS:
        return path
    step = (len(path) - 1) / (PATH_POINTS - 1)
    return [path[round(number * step)] for number in range(PATH_POINTS)]
