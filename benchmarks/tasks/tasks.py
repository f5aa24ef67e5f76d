"""Other tasks than photographs: digits, tables, regression and text, each with EDBA, its random control and plain.

Every run is a real Composer Trainer with a constant learning rate. Test accuracy or R2 is that of the last epoch, the
only time a test sample is looked at. All arms of a seed share the split into training and test samples, the initial
weights and the order of the samples, so that they are compared pair by pair.

Each task's learning rate was the best for plain of 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1 and 0.3 (mean over seeds 1000
to 1002, which no report uses; of equal ones the smaller)::

    python -m benchmarks tasks --arms plain --seeds 1000 1001 1002 --lr 0.03 --output runs/tasks_0.03.jsonl
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from composer import Trainer
from composer.core import Evaluator
from composer.loggers import InMemoryLogger
from composer.utils import dist, reproducibility
from omegaconf import OmegaConf
from scipy.stats import t as student_t
from torch.utils.data import DataLoader

from benchmarks.suites.arms import ARMS, arm_title, parse_arm
from benchmarks.suites.records import RecordError, append_record, read_records
from benchmarks.suites.run import versions
from benchmarks.tasks.small_tasks import TASKS, TEST_SHARE, Task
from composer_edba.train.data import BatchTensorDataset, identity_collate
from composer_edba.train.run import build_algorithms
from composer_edba.train.summary import _cpu_name, summarize

__all__ = ["add_arguments", "execute", "report", "run"]

DEFAULT_ARMS = ("plain", "edba", "edba_random", "edba_paper", "edba_paper_random")
_CONTROLS = {"edba": "edba_random", "edba_paper": "edba_paper_random"}
METRICS = {"accuracy": "MulticlassAccuracy", "r2": "R2Score"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the suite's command line."""
    listed = " ".join(DEFAULT_ARMS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    parser.add_argument(
        "--arms", nargs="+", default=list(DEFAULT_ARMS), help=f"arms, also ARM@key=value,... (default: {listed})"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="default: 0 to 4")
    parser.add_argument("--lr", type=float, help="learning rate of all tasks, in place of their own")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("docs/results/tasks_cpu.jsonl"),
        help="JSON lines, one a run; runs that are there are not done again. The table stands beside it as .md "
        "(default: docs/results/tasks_cpu.jsonl)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do the runs that are missing, seed by seed, and write the table."""
    torch.set_num_threads(1)
    output: Path = arguments.output
    tasks = {
        name: TASKS[name] if arguments.lr is None else replace(TASKS[name], lr=arguments.lr) for name in arguments.tasks
    }
    try:
        done = {(r["cell"], r["arm"], r["seed"]): r["configuration"] for r in read_records(output)}
        for seed in arguments.seeds:
            for name, task in tasks.items():
                for arm in arguments.arms:
                    before = done.get((name, arm, seed))
                    if before is None:
                        record = execute(name, task, arm, seed)
                        append_record(output, record)
                        print(f"{name}, {arm}, seed {seed}: {task.metric} {_result(record):.4f}", flush=True)
                    elif before != _configuration(task, arm):
                        raise RecordError(f"{output} holds {name}, {arm}, seed {seed} of other settings: remove it")
        table = output.with_suffix(".md")
        table.write_text(report(read_records(output)), encoding="utf-8")
    except ValueError as error:  # RecordError is one
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table)
    return 0


def execute(name: str, task: Task, arm: str, seed: int) -> dict[str, Any]:
    """Train and evaluate one run.

    Returns:
        What goes into the suite's file, with the keys of the other suites' lines where they have a meaning here.
    """
    began, started = time.perf_counter(), datetime.datetime.now(datetime.timezone.utc)
    train, test = task.split(seed)
    reproducibility.seed_all(seed)
    classes = int(train.targets.max()) + 1 if task.metric == "accuracy" else 1
    model = task.build(train.inputs, classes)
    momentum: dict[str, Any] = {"momentum": 0.9, "nesterov": True} if task.optimizer is torch.optim.SGD else {}
    trainer = Trainer(
        model=model,
        train_dataloader=_loader(train, task.batch_size, dist.get_sampler(train, shuffle=True, seed=seed)),
        eval_dataloader=Evaluator(
            label="test",
            dataloader=_loader(test, len(test)),
            metric_names=[METRICS[task.metric]],
        ),
        eval_interval="1dur",
        max_duration=f"{task.epochs}ep",
        optimizers=task.optimizer(model.parameters(), lr=task.lr, **momentum),  # type: ignore[call-arg]
        algorithms=_algorithms(arm, seed),
        loggers=[InMemoryLogger()],
        device="cpu",
        seed=seed,
        progress_bar=False,
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Cannot split")  # of last batches that are smaller
            trainer.fit()
    finally:
        trainer.close()
    summary = summarize(trainer, len(train))
    value = float(trainer.state.eval_metrics["test"][METRICS[task.metric]].compute())
    return {
        "suite": "tasks",
        "size": "cpu",
        "cell": name,
        "arm": arm,
        "seed": seed,
        "configuration": _configuration(task, arm),
        "task": {
            "title": task.title,
            "optimizer": task.optimizer.__name__,
            "lr": task.lr,
            "epochs": task.epochs,
            "batch_size": task.batch_size,
        },
        "algorithms": [repr(algorithm) for algorithm in trainer.state.algorithms],
        "started": started.isoformat(timespec="seconds"),
        "total_seconds": round(time.perf_counter() - began, 3),
        "versions": {**versions(), "python": sys.version.split()[0]},
        "hardware": {"cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "train_size": len(train),
        "test_samples": len(test),
        "evaluations": [
            {
                "updates": summary.updates,
                "epochs": summary.epochs,
                "seconds": round(summary.train_seconds, 3),
                "samples_drawn": summary.samples_drawn,
                "samples_scored": summary.samples_scored,
                "samples_trained": summary.samples_trained,
                "distinct_samples": summary.distinct_samples,
                "batch_size": summary.final_batch_size,
                f"test_{task.metric}": round(value, 6) if math.isfinite(value) else None,
            }
        ],
    }


def _loader(dataset: BatchTensorDataset, batch_size: int, sampler: Any = None) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=identity_collate)


def _algorithms(arm: str, seed: int) -> list[Any]:
    base, changes = parse_arm(arm)
    for key in changes:
        if not key.startswith("algorithms."):
            raise ValueError(f"arm {arm!r}: {key} is no argument of an algorithm, and only these can be changed here")
    config = OmegaConf.create({"algorithms": {}})
    for key, value in {**ARMS[base].overrides, **changes}.items():
        OmegaConf.update(config, key, value)
    named = cast(dict[str, Any], OmegaConf.to_container(config.algorithms))  # a mapping, as made above
    return [*build_algorithms(named), *(extra.build(seed) for extra in ARMS[base].extra)]


def _configuration(task: Task, arm: str) -> str:
    # The representations hold every argument, so that a changed default counts as well.
    algorithms = [repr(algorithm) for algorithm in _algorithms(arm, 0)]
    settings = (task.optimizer.__name__, task.lr, task.epochs, task.batch_size, algorithms)
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]


# ---- the table


def report(records: Iterable[dict[str, Any]]) -> str:
    """A table in Markdown, made from the lines alone."""
    records = sorted(records, key=_place)
    if not records:
        return "No runs yet.\n"
    cells = list(dict.fromkeys(record["cell"] for record in records))
    lines = [
        "# Other tasks: digits, tables, regression, text",
        "",
        "Made by `python -m benchmarks tasks` from the JSON lines beside it. Means ± standard deviations",
        "over seeds; test metric of the last epoch. A seed gives the split (four fifths to train on), the weights and",
        "the order of the samples, the same in all arms, which run for as many epochs. Learning rates are constant",
        "and were tuned for plain, on other seeds. Differences are means over paired seeds with 95 % confidence",
        "intervals (Student's t): in points of accuracy, or in R2. Seconds are wall-clock of training on one thread,",
        "rough where the machine did other work too.",
        "",
        _machine(records),
        "",
        "| task | arm | seeds | test accuracy (%) or R2 | against plain | against its random control | updates |"
        " samples trained on | of them distinct | last batch size | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        runs = [record for record in records if record["cell"] == cell]
        for arm in dict.fromkeys(record["arm"] for record in runs):
            lines.append(_row(cell, arm, runs))
    lines += ["", "The tasks:", ""]
    for cell in cells:
        record = next(record for record in records if record["cell"] == cell)
        task, sizes = record["task"], (record["train_size"], record["test_samples"])
        lines.append(
            f"* {cell}: {task['title']}. {sizes[0]:,} training and {sizes[1]:,} test samples; {task['optimizer']}, "
            f"learning rate {task['lr']:g}, {task['epochs']} epochs, batch {task['batch_size']} at the start."
        )
    return "\n".join(lines) + "\n"


def _place(record: dict[str, Any]) -> tuple[Any, ...]:
    arm = record["arm"]
    return list(TASKS).index(record["cell"]), list(ARMS).index(parse_arm(arm)[0]), arm, record["seed"]


def _row(cell: str, arm: str, runs: list[dict[str, Any]]) -> str:
    own = [record for record in runs if record["arm"] == arm]
    last = [record["evaluations"][-1] for record in own]
    scale, digits = (100, 1) if "test_accuracy" in last[0] else (1, 3)
    values = [scale * _result(record) for record in own]
    columns = [
        cell,
        arm_title(arm),
        str(len(own)),
        _spread(values, digits),
        "" if arm == "plain" else _difference(own, [r for r in runs if r["arm"] == "plain"], scale, digits),
        ""
        if arm not in _CONTROLS
        else _difference(own, [r for r in runs if r["arm"] == _CONTROLS[arm]], scale, digits),
        *(_spread([line[name] for line in last], 0) for name in ("updates", "samples_trained", "distinct_samples")),
        _spread([line["batch_size"] for line in last], 0),
        _spread([line["seconds"] for line in last], 1),
    ]
    return f"| {' | '.join(columns)} |"


def _result(record: dict[str, Any]) -> float:
    """The test metric; NaN if the run diverged."""
    value = next(value for key, value in record["evaluations"][-1].items() if key.startswith("test_"))
    return math.nan if value is None else value


def _spread(values: list[Any], digits: int) -> str:
    if None in values:
        return "-"
    if not all(map(math.isfinite, values)):
        return f"diverged in {sum(not math.isfinite(value) for value in values)} of {len(values)}"
    mean = f"{statistics.fmean(values):,.{digits}f}"
    return mean if len(set(values)) == 1 else f"{mean} ± {statistics.stdev(values):,.{digits}f}"


def _difference(own: list[dict[str, Any]], other: list[dict[str, Any]], scale: float, digits: int) -> str:
    base = {record["seed"]: _result(record) for record in other}
    pairs = [scale * (_result(record) - base[record["seed"]]) for record in own if record["seed"] in base]
    if len(pairs) < 2 or not all(map(math.isfinite, pairs)):
        return "-"
    half = student_t.ppf(0.975, len(pairs) - 1) * statistics.stdev(pairs) / len(pairs) ** 0.5
    mean = statistics.fmean(pairs)
    return f"{mean:+.{digits}f} ({mean - half:+.{digits}f} to {mean + half:+.{digits}f})"


def _machine(records: list[dict[str, Any]]) -> str:
    first = records[0]
    machines = sorted({f"{r['hardware']['cpu']}, {r['hardware']['cores']} cores" for r in records})
    version = first["versions"]
    return (
        f"{'; '.join(machines)}. torch {version['torch']}, composer {version['composer']}, Python {version['python']}, "
        f"composer-edba {version['composer_edba']}, {100 * TEST_SHARE:.0f} % of the samples held out as the test set."
    )
