"""What scoring at a lower resolution does to the choice of a subset, and what it saves.

A small network is trained with EDBA, which scores at full resolution. At every step the same pool is scored at lower
ones too, each with its own running averages, as ``scale_factor`` would, and with the same candidates. What they would
have chosen is compared with what was.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.cost import outcome
from benchmarks.cost.classifier import Classifier, batch_loss
from benchmarks.cost.interleaved import fair_clock, interleave
from benchmarks.cost.scale_factor_report import as_markdown, plot
from benchmarks.machine import machine
from composer_edba.engine import step_generator
from composer_edba.method.averages import Averages
from composer_edba.method.candidates import Candidates, draw_candidates
from composer_edba.method.choice import select_subset
from composer_edba.method.equation import margin_loss, prefix_gradient_norms, subset_gradient_norms
from composer_edba.method.selector import SubsetSelector
from composer_edba.scoring.forward import Scorer
from composer_edba.scoring.images import scaled_images
from composer_edba.scoring.pool_scores import PoolScores
from composer_edba.settings import checked
from composer_edba.train.data.cifar import cifar_splits
from composer_edba.train.data.subset import stratified_subset
from composer_edba.train.models import build_model

__all__ = ["add_arguments", "agreement", "run"]

_CANDIDATES, _LEAST = 1024, 10
_TEST_IMAGES = 2000
_OTHER_CANDIDATES = 1000  # added to the seed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the suite's command line."""
    parser.add_argument("--data", type=Path, default=Path("datasets"), help="folder of CIFAR-10 (default: datasets)")
    parser.add_argument("--model", default="preresnet20_basic", help="network (default: preresnet20_basic)")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.75, 0.5, 0.25], help="(default: 0.75 0.5 0.25)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one training each (default: 0 1 2)")
    parser.add_argument("--steps", type=int, default=400, help="training steps (default: 400)")
    parser.add_argument("--samples", type=int, default=5000, help="training images (default: 5000)")
    parser.add_argument("--pool", type=int, default=100, help="pool size B (default: 100)")
    parser.add_argument("--lr", type=float, default=0.1, help="peak of the one-cycle learning rate (default: 0.1)")
    parser.add_argument("--rounds", type=int, default=25, help="timed rounds (default: 25)")
    outcome.add_arguments(parser, "runs/cost/scale_factor")


def run(arguments: argparse.Namespace) -> int:
    """Train, compare, time, print the tables, write them as JSON and markdown, and the plot."""
    device = outcome.start(arguments)
    splits = cifar_splits(10, arguments.data)
    runs = []
    for seed in arguments.seeds:
        training = _Training(arguments, seed, splits, device)
        began = time.perf_counter()
        while training.step < arguments.steps:
            training.take_step()
            if training.step % 20 == 0:
                passed = time.perf_counter() - began
                print(f"seed {seed}: step {training.step}, {passed:.0f} s", file=sys.stderr, flush=True)
        runs.append({"seed": seed, "test_accuracy": training.test_accuracy(), **_columns(training.records)})
    report = {
        "suite": "scale_factor",
        "machine": machine(device),
        "model": arguments.model,
        "samples": arguments.samples,
        "pool": arguments.pool,
        "lr": arguments.lr,
        "scales": arguments.scales,
        "runs": runs,
        "timing": training.timing(arguments.rounds),
    }
    outcome.write(report, arguments.output, as_markdown, plot, indent=None)
    return 0


def _columns(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One list a figure, of all steps, in four digits: a tenth of the bytes."""
    first = records[0]
    return {
        "step": [record["step"] for record in records],
        "loss": [_four_digits(record["loss"]) for record in records],
        "scales": {
            scale: {name: [_four_digits(record["scales"][scale][name]) for record in records] for name in figures}
            for scale, figures in first["scales"].items()
        },
    }


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")


class _Training:
    """A training with EDBA at full resolution, shadowed by selections at lower ones."""

    def __init__(self, arguments: argparse.Namespace, seed: int, splits: Any, device: torch.device):
        self.seed, self.pool, self.device, self.splits = seed, arguments.pool, device, splits
        torch.manual_seed(seed)
        self.data = splits.train
        self.indices = torch.from_numpy(stratified_subset(self.data.targets, samples=arguments.samples, seed=seed))
        net = build_model(arguments.model, 10).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = Classifier(net).train()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, arguments.lr, total_steps=arguments.steps, pct_start=0.2, cycle_momentum=False
        )
        self.scorer = Scorer()
        self.selectors = {scale: SubsetSelector(checked({"preset": "paper"})) for scale in (1.0, *arguments.scales)}
        self.order = torch.empty(0, dtype=torch.int64)
        self.step = 0
        self.records: list[dict[str, Any]] = []

    def draw_pool(self) -> list[Tensor]:
        if len(self.order) < self.pool:
            self.order = self.indices[torch.randperm(len(self.indices))]
        taken, self.order = self.order[: self.pool], self.order[self.pool :]
        batch = self.splits.train_transform(self.data.__getitems__(taken))
        return [batch[0].to(self.device, memory_format=torch.channels_last), batch[1].to(self.device)]

    def score(self, batch: list[Tensor], scale: float) -> PoolScores:
        def smaller(part: list[Tensor]) -> list[Tensor]:
            return part if scale == 1 else [scaled_images(part[0], scale, what="the pool"), part[1]]

        return self.scorer(self.model, batch, batch_loss, prepare=smaller)

    def take_step(self) -> None:
        batch = self.draw_pool()
        scores = {scale: self.score(batch, scale) for scale in self.selectors}
        averages = self.selectors[1.0].averages
        chosen = {
            scale: selector.select(
                scores[scale].inner_products(), scores[scale].model_metric, step_generator(self.seed, self.step)
            )
            for scale, selector in self.selectors.items()
        }
        if averages is not None:  # the first step takes the whole pool
            redrawn = select_subset(
                scores[1.0].inner_products(),
                scores[1.0].model_metric,
                averages,
                generator=step_generator(self.seed + _OTHER_CANDIDATES, self.step),
            )
            figures = agreement(
                scores,
                {scale: selection.indices for scale, selection in chosen.items()},
                redrawn.indices,
                averages,
                step_generator(self.seed, self.step),
            )
            loss = chosen[1.0].model_metric
            self.records.append({"step": self.step, "loss": loss, "scales": figures})
        self.train([part[chosen[1.0].indices] for part in batch])
        self.schedule.step()
        self.step += 1

    def train(self, subset: list[Tensor]) -> None:
        self.optimizer.zero_grad()
        batch_loss(self.model(subset), subset).backward()
        self.optimizer.step()

    def test_accuracy(self) -> float:
        """On the first images of the test set, in evaluation mode."""
        self.model.eval()
        right = 0
        with torch.no_grad():
            for part in torch.arange(_TEST_IMAGES).split(500):
                images, labels = self.splits.eval_transform(self.splits.eval.__getitems__(part))
                right += int((self.model([images.to(self.device)]).argmax(1).cpu() == labels).sum())
        self.model.train()
        return right / _TEST_IMAGES

    def timing(self, rounds: int) -> dict[str, Any]:
        """Seconds of scoring and selecting at each scale, and of a training step on 55 % of the pool."""
        batch = self.draw_pool()
        subset = [part[: round(0.55 * self.pool)] for part in batch]

        def select_at(scale: float) -> Callable[[int], None]:
            def select(number: int) -> None:
                scores = self.score(batch, scale)
                select_subset(scores.inner_products(), scores.model_metric, Averages(1.0, 1.0))

            return select

        arms: dict[str, Callable[[int], None]] = {str(scale): select_at(scale) for scale in self.selectors}
        arms["train"] = lambda number: self.train(subset)
        timings = interleave(arms, rounds, clock=fair_clock(self.device))
        return {
            "seconds": {name: {"median": t.median, "low": t.low, "high": t.high} for name, t in timings.items()},
            "over_full": {name: timings[name].ratio(timings["1.0"]) for name in timings if name != "train"},
            "step_over_full": {str(scale): _step_ratio(timings, str(scale)) for scale in self.selectors},
        }


def _step_ratio(timings: Mapping[str, Any], scale: str) -> float:
    """A step (scoring, selection, training) at ``scale`` over one at full resolution, median over the rounds."""
    rounds = zip(timings[scale].rounds, timings["1.0"].rounds, timings["train"].rounds, strict=True)
    return statistics.median((mine + train) / (full + train) for mine, full, train in rounds)


def _gradient_metrics(inner_products: Tensor, candidates: Candidates) -> Tensor:
    if candidates.as_prefixes:
        return prefix_gradient_norms(inner_products, candidates.orders)[:, candidates.prefix_columns].flatten()
    return subset_gradient_norms(inner_products, candidates.masks())


def agreement(
    scores: Mapping[float, PoolScores],
    chosen: Mapping[float, Tensor],
    redrawn: Tensor,
    averages: Averages,
    generator: torch.Generator,
) -> dict[str, dict[str, float]]:
    """How far scores at each scale below 1 agree with those at scale 1.

    Args:
        scores: by scale, of one pool.
        chosen: by scale, the subset chosen from the pool by those scores.
        redrawn: the subset chosen at scale 1 from other candidates.
        averages: M̄ and Ḡ at scale 1, before the step.
        generator: what the candidates are drawn from, as they were for the choice.

    Returns:
        By scale: Spearman's rank correlation, with scale 1, of the samples' gradient norms (``samples``), of the
        candidates' gradient metrics (``candidates``; sizes differ, and larger subsets have smaller ones) and of those
        of candidates of half the pool (``one_size``); the Jaccard overlap of the chosen subset with the one chosen at
        scale 1 (``overlap``) and what a random subset of its size would be expected to have (``chance``); the margin
        at scale 1 of the chosen subset (``margin``), of the one chosen at scale 1 (``best_margin``), and of a random
        one of the same size as the first (``random_margin``). Under ``"redrawn"`` the overlap and margin of that.
    """
    pool = len(scores[1.0].inputs)
    candidates = draw_candidates([pool], _CANDIDATES, _LEAST, "uniform", generator=generator)
    assert candidates is not None
    halves = draw_candidates([pool], _CANDIDATES, _LEAST, 0.5, generator=generator)
    assert halves is not None
    products = {scale: found.inner_products().cpu() for scale, found in scores.items()}
    norms = {
        scale: (
            matrix.diagonal().sqrt(),
            _gradient_metrics(matrix, candidates),
            _gradient_metrics(matrix, halves),
        )
        for scale, matrix in products.items()
    }
    model_metric = float(scores[1.0].model_metric)

    def margin(members: Tensor) -> float:
        mask = torch.zeros(1, pool, dtype=torch.bool).index_fill_(1, members, True)
        norm = subset_gradient_norms(products[1.0], mask).double()
        return float(margin_loss(model_metric, norm, averages.model, averages.gradient))

    full = set(chosen[1.0].tolist())

    def choice(members: Tensor) -> dict[str, float]:
        mine = set(members.tolist())
        expected = len(mine) * len(full) / pool
        return {
            "overlap": len(mine & full) / len(mine | full),
            "chance": expected / (len(mine) + len(full) - expected),
            "margin": margin(members),
            "best_margin": margin(chosen[1.0]),
            "random_margin": margin(torch.randperm(pool, generator=generator)[: len(mine)]),
        }

    figures = {"redrawn": choice(redrawn)}
    for scale in scores:
        if scale == 1:
            continue
        samples, mixed, one_size = (
            float(spearmanr(low, high).statistic) for low, high in zip(norms[scale], norms[1.0], strict=True)
        )
        correlations = {"samples": samples, "candidates": mixed, "one_size": one_size}
        figures[str(scale)] = correlations | choice(chosen[scale])
    return figures
