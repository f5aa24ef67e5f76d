"""What EDBA costs: selection alone against its rivals, a step against its floor, peak memory, and growth with B.

Everything is measured in one run on the machine at hand, in turns, and reported as medians with quartiles; ratios are
formed round by round. The subset is the same in all arms of a round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composer_edba import __version__
from composer_edba.batch import index_batch
from composer_edba.benchmark.interleaved import Timing, interleave
from composer_edba.benchmark.peak_memory import peak_bytes
from composer_edba.functional import Averages, gradient_inner_products, select_subset, subset_gradient_norms
from composer_edba.models import build_model
from composer_edba.scoring import Scorer

__all__ = ["add_arguments", "run"]

LAST_LAYERS = ((10, 64), (100, 256), (1000, 2048))  # classes, features
CANDIDATES = 1024
KEEP = 0.55  # mean share of a pool that subsets of sizes 10 to 100 have


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the suite's command line."""
    parser.add_argument("--model", default="preresnet56", help="network of the step (default: preresnet56)")
    parser.add_argument("--pools", type=int, nargs="+", default=[100, 1000], help="pool sizes B (default: 100 1000)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each arm (default: 15)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("runs/cost"), help="folder (default: runs/cost)")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory, which takes as long again")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print tables, write ``cost.json`` and ``cost.png``."""
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report: dict[str, Any] = {"machine": _machine(device), "rounds": arguments.rounds, "selection": [], "steps": []}
    for pool in arguments.pools:
        for classes, features in LAST_LAYERS:
            report["selection"].append(_selection(pool, classes, features, arguments.rounds, device))
    for pool in arguments.pools:
        report["steps"].append(_steps(arguments.model, pool, arguments.rounds, device))
        if not arguments.no_memory:
            report["steps"][-1]["peak_bytes"] = _memory(arguments.model, pool)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "cost.json").write_text(json.dumps(report, indent=2) + "\n")
    print(_as_text(report))
    _plot(report, arguments.output / "cost.png")
    print(arguments.output / "cost.png")
    return 0


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "composer_edba": __version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


# ---- (a) selection alone


def _selection(pool: int, classes: int, features: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Candidates a second, from last-layer inputs and output gradients to the candidates' norms."""
    inputs = torch.randn(pool, features, device=device).relu()
    output_grads = (torch.randn(pool, classes, device=device).softmax(1) - 1 / classes).contiguous()
    averages = Averages(1.0, 1.0)
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(CANDIDATES, pool, device=device) < KEEP
    # One by one takes long: a few of them tell the time of each.
    few = 8

    def edba(number: int) -> None:
        products = gradient_inner_products(inputs, output_grads)
        select_subset(products, 1.1, averages, num_candidates=CANDIDATES, generator=generator)

    def dense_masks(number: int) -> None:
        subset_gradient_norms(gradient_inner_products(inputs, output_grads), masks).argmin().item()

    gradients = _materialised(inputs, output_grads)

    def one_by_one(number: int) -> None:
        # As with Opacus' grad_sample of the last layer, already at hand.
        torch.stack([gradients[mask].mean(0).norm() for mask in masks[:few]]).argmin().item()

    timings = interleave({"edba": edba, "masks_times_matrix": dense_masks, "one_by_one": one_by_one}, rounds)
    counts = {"edba": CANDIDATES, "masks_times_matrix": CANDIDATES, "one_by_one": few}
    return {
        "pool": pool,
        "classes": classes,
        "features": features,
        "candidates_per_second": {name: counts[name] / timing.median for name, timing in timings.items()},
        "seconds": {name: _figures(timing) for name, timing in timings.items()},
    }


def _materialised(inputs: Tensor, output_grads: Tensor) -> Tensor:
    """Per-sample gradients of the last layer, (B, C (F + 1))."""
    ones = inputs.new_ones(len(inputs), 1)
    return torch.einsum("bc,bf->bcf", output_grads, torch.cat([inputs, ones], 1)).flatten(1)


# ---- (b), (c) a step


class _Classifier(nn.Module):
    """A network that takes (x, y) batches."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.net(batch[0])


def _loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(outputs, batch[1])


@dataclass
class _StepArms:
    """The steps to compare, on one network and one pool."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    pool: tuple[Tensor, Tensor]
    scorer: Scorer
    generator: torch.Generator

    @classmethod
    def build(cls, model_name: str, size: int) -> _StepArms:
        """A network, a pool of random images, and a scorer that has found the last layer already (done once a run)."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        model = _Classifier(build_model(model_name, 10)).to(device).train()
        pool = (torch.randn(size, 3, 32, 32, device=device), torch.randint(10, (size,), device=device))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        arms = cls(model, optimizer, pool, Scorer(), torch.Generator().manual_seed(0))
        arms.scorer(model, index_batch(pool, torch.arange(min(16, size)), size), _loss)
        return arms

    def train(self, batch: tuple[Tensor, Tensor]) -> None:
        self.optimizer.zero_grad()
        _loss(self.model(batch), batch).backward()
        self.optimizer.step()

    def subset(self) -> tuple[Tensor, Tensor]:
        """A subset of the size that all arms train on."""
        indices = torch.randperm(len(self.pool[1]), generator=self.generator)[: round(KEEP * len(self.pool[1]))]
        return index_batch(self.pool, indices, len(self.pool[1]))

    def edba(self) -> None:
        scores = self.scorer(self.model, self.pool, _loss)
        select_subset(
            scores.inner_products(),
            scores.model_metric,
            Averages(2.3, 1.0),
            num_candidates=CANDIDATES,
            generator=self.generator,
        )
        self.train(self.subset())

    def floor(self) -> None:
        with torch.no_grad():
            self.model(self.pool)
        self.train(self.subset())

    def plain_on_subset(self) -> None:
        self.train(self.subset())

    def plain_on_pool(self) -> None:
        self.train(self.pool)

    def selective_backprop(self) -> None:
        from composer.algorithms.selective_backprop import select_using_loss

        chosen = select_using_loss(*self.pool, self.model.net, F.cross_entropy, KEEP, 1)  # type: ignore[arg-type]
        self.train(chosen)


_ARMS: dict[str, Callable[[_StepArms], None]] = {
    "edba": _StepArms.edba,
    "floor": _StepArms.floor,
    "plain_on_subset": _StepArms.plain_on_subset,
    "plain_on_pool": _StepArms.plain_on_pool,
    "selective_backprop": _StepArms.selective_backprop,
}


def _arms_here() -> dict[str, Callable[[_StepArms], None]]:
    try:
        import composer  # noqa: F401
    except ModuleNotFoundError:
        return {name: arm for name, arm in _ARMS.items() if name != "selective_backprop"}
    return _ARMS


def _steps(model_name: str, pool: int, rounds: int, device: torch.device) -> dict[str, Any]:
    arms = _StepArms.build(model_name, pool)
    timings = interleave(
        {name: lambda number, arm=arm: arm(arms) for name, arm in _arms_here().items()},  # type: ignore[misc]
        rounds,
    )
    return {
        "model": model_name,
        "pool": pool,
        "subset": round(KEEP * pool),
        "seconds": {name: _figures(timing) for name, timing in timings.items()},
        "edba_over": {name: timings["edba"].ratio(timings[name]) for name in timings if name != "edba"},
    }


# ---- (d) peak memory


def _prepare_step(model_name: str, pool: int, arm: str) -> Callable[[], None]:
    arms = _StepArms.build(model_name, pool)
    return lambda: _ARMS[arm](arms)


def _memory(model_name: str, pool: int) -> dict[str, int]:
    return {name: peak_bytes(_prepare_step, model_name, pool, name) for name in _arms_here()}


# ---- the report


def _figures(timing: Timing) -> dict[str, float]:
    return {"median": timing.median, "low": timing.low, "high": timing.high}


def _as_text(report: dict[str, Any]) -> str:
    machine = report["machine"]
    lines = [
        f"{machine['device']}, {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}, "
        f"{report['rounds']} rounds in turns, medians",
        "",
        "candidates a second          pool  classes x features        edba  masks x matrix   one by one    edba / one",
    ]
    for row in report["selection"]:
        rate = row["candidates_per_second"]
        layer = f"{row['classes']} x {row['features']}"
        lines.append(
            f"{'':27s}{row['pool']:6d}  {layer:>18s}  {rate['edba']:10,.0f}  {rate['masks_times_matrix']:14,.0f}  "
            f"{rate['one_by_one']:11,.0f}  {rate['edba'] / rate['one_by_one']:10,.0f} x"
        )
    for row in report["steps"]:
        lines += ["", f"step of {row['model']}, pool {row['pool']}, subset {row['subset']}"]
        lines.append(f"{'':24s}{'ms':>10s}{'quartiles':>22s}   edba / this (quartiles)      peak MiB")
        for name, figures in row["seconds"].items():
            quartiles = f"{1e3 * figures['low']:.1f} to {1e3 * figures['high']:.1f}"
            ratio = row["edba_over"].get(name)
            against = "" if ratio is None else f"{ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f})"
            peak = row.get("peak_bytes", {}).get(name)
            lines.append(
                f"{name:24s}{1e3 * figures['median']:10.1f}{quartiles:>22s}   {against:24s}"
                + ("" if peak is None else f"{peak / 2**20:10.0f}")
            )
    return "\n".join(lines)


def _plot(report: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = {"edba": "EDBA", "masks_times_matrix": "masks times matrix", "one_by_one": "one by one"}
    for name, label in names.items():
        by_pool: dict[int, list[float]] = {}
        for row in report["selection"]:
            by_pool.setdefault(row["pool"], []).append(row["candidates_per_second"][name])
        pools = sorted(by_pool)
        left.plot(pools, [statistics.median(by_pool[pool]) for pool in pools], marker="o", label=label)
    left.set(xscale="log", yscale="log", xlabel="pool size B", ylabel="candidates a second")
    left.legend(frameon=False)
    for name in report["steps"][0]["seconds"]:
        right.plot(
            [row["pool"] for row in report["steps"]],
            [row["seconds"][name]["median"] for row in report["steps"]],
            marker="o",
            label=name.replace("_", " "),
        )
    right.set(xscale="log", yscale="log", xlabel="pool size B", ylabel=f"seconds a step, {report['steps'][0]['model']}")
    right.legend(frameon=False)
    figure.savefig(path, dpi=130)
