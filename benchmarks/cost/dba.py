"""What DBA costs beside EDBA and a plain step, over batch size and network size, and how good its search is.

Two DBAs are measured. ``dba_at_once`` has the per-sample gradients of all layers in memory together, as an optimizer
that reads them from each parameter must; that is how its authors describe it. ``dba`` is composer_edba's, which forms
them layer by layer from what hooks saw and never keeps two layers' at a time. Both choose the same samples.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F

from benchmarks.cost import outcome
from benchmarks.cost.classifier import Classifier, batch_loss
from benchmarks.cost.dba_report import as_markdown, plot
from benchmarks.cost.interleaved import fair_clock, interleave
from benchmarks.cost.peak_memory import peak_bytes
from benchmarks.machine import machine
from composer_edba.dba.layer_subsets import Guide, LayerSubsetSelector, Search, search_subsets
from composer_edba.dba.per_sample_gradients import LayerRecorder
from composer_edba.loading.batch import index_batch
from composer_edba.method.choice import select_subset
from composer_edba.method.equation import margin_loss, subset_gradient_norms
from composer_edba.method.selector import SubsetSelector
from composer_edba.scoring.forward import Scorer
from composer_edba.settings import checked
from composer_edba.train.models import build_model

__all__ = ["ARMS", "NETWORKS", "add_arguments", "measure_cost", "measure_search", "run"]

# Name -> registry name, its arguments, image shape. Group normalisation stands in where the network has batch
# normalisation, which DBA cannot train with.
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "MLP 784-64-10": ("mlp", {}, (1, 28, 28)),
    "MLP 784-1024-10": ("mlp", {"hidden_size": 1024}, (1, 28, 28)),
    "PreResNet20, GroupNorm, 16 px": ("preresnet20_basic", {}, (3, 16, 16)),
    "ResNet-9, GroupNorm, 16 px": ("resnet9", {}, (3, 16, 16)),
}
ARMS = ("plain", "edba", "dba", "dba_at_once")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the suite's command line."""
    sizes = [10, 50, 100, 200, 500]
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=sizes, help="batch sizes (default: 10 50 100 200 500)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="most timed rounds of each arm (default: 9)")
    parser.add_argument("--budget", type=float, default=120, help="seconds for one network's rounds (default: 120)")
    parser.add_argument("--memory", type=float, default=8, help="GiB that a step may take (default: 8)")
    parser.add_argument("--search-steps", type=int, default=300, help="training steps searched in (default: 300)")
    outcome.add_arguments(parser, "runs/cost_dba/cost_dba")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables, write them as JSON and markdown, and the plot."""
    device = outcome.start(arguments)
    limit = int(arguments.memory * 2**30)
    report: dict[str, Any] = {
        "suite": "cost-dba",
        "machine": machine(device),
        "limit_bytes": limit,
        "search": [measure_search(arguments.search_steps, batch) for batch in (10, 100)],
        "cost": [],
    }
    for network in arguments.networks:
        for batch in sorted(arguments.batches):
            print(f"{network}, batch {batch}", file=sys.stderr, flush=True)
            report["cost"].append(measure_cost(network, batch, limit, arguments.rounds, arguments.budget))
            # After each: a stopped run leaves what it has measured.
            arguments.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    outcome.write(report, arguments.output, as_markdown, plot)
    return 0


# ---- steps


class _Steps:
    """The steps to compare, on one network and a few batches of random images."""

    def __init__(self, network: str, size: int):
        name, options, shape = NETWORKS[network]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        net = _with_group_norm(build_model(name, 10, shape[0], **options)).to(self.device)
        self.model = Classifier(net).train()
        # They differ, so that losses and norms do, and there is something to search for.
        self.batches = [
            (torch.randn(size, *shape, device=self.device), torch.randint(10, (size,), device=self.device))
            for _ in range(3)
        ]
        self.number = 0
        self.size = size
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)
        self.generator = torch.Generator().manual_seed(0)
        self.scorer, self.selector = Scorer(), SubsetSelector(checked({"preset": "paper"}))
        self.layer_selectors = {name: LayerSubsetSelector() for name in ("dba", "dba_at_once")}
        # Finds the last layer and checks the loss, which is done once a run.
        self.scorer(self.model, self.batches[0], batch_loss)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        self.number += 1
        return self.batches[self.number % len(self.batches)]

    def train(self, batch: tuple[Tensor, Tensor]) -> None:
        self.optimizer.zero_grad()
        batch_loss(self.model(batch), batch).backward()
        self.optimizer.step()

    def plain(self) -> None:
        self.train(self.next_batch())

    def edba(self) -> None:
        batch = self.next_batch()
        scores = self.scorer(self.model, batch, batch_loss)
        chosen = self.selector.select(scores.inner_products(), scores.model_metric, self.generator).indices
        self.train(index_batch(batch, chosen, self.size))

    def dba(self) -> None:
        """As the Composer algorithm does it."""
        batch, recorder = self.next_batch(), LayerRecorder()
        self.optimizer.zero_grad()
        recorder.attach(self.model, self.size)
        outputs = self.model(batch)
        recorder.detach()
        loss = batch_loss(outputs, batch)
        loss.backward()
        layers = recorder.layers(self.size)
        products = torch.stack([layer.inner_products().cpu() for layer in layers])
        names = [layer.name for layer in layers]
        subsets = self.layer_selectors["dba"].select(names, products, float(loss.detach()), self.generator)
        for layer, weights, size in zip(layers, subsets.weights, subsets.sizes.tolist(), strict=True):
            if size < self.size:
                layer.replace_gradient(weights)
        self.optimizer.step()

    def dba_at_once(self) -> None:
        """Per-sample gradients of the whole network by torch.func, then the same choice."""
        batch, model = self.next_batch(), self.model
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

        def own_loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            one = (x.unsqueeze(0), y.unsqueeze(0))
            return batch_loss(functional_call(model, values, (one,)), one)

        gradients, losses = vmap(grad_and_value(own_loss), in_dims=(None, 0, 0))(parameters, *batch)
        layers: dict[str, list[str]] = {}
        for name in gradients:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
        products = torch.stack(
            [sum(gradients[n].flatten(1) @ gradients[n].flatten(1).T for n in names).cpu() for names in layers.values()]
        )
        subsets = self.layer_selectors["dba_at_once"].select(
            list(layers), products, float(losses.mean()), self.generator
        )
        for names, weights in zip(layers.values(), subsets.weights.to(self.device), strict=True):
            for name in names:
                mean = (weights.to(gradients[name].dtype) @ gradients[name].flatten(1)).view_as(parameters[name])
                model.get_parameter(name).grad = mean
        self.optimizer.step()


def _with_group_norm(net: nn.Module) -> nn.Module:
    """``net`` with its batch normalisations replaced, eight channels a group."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent = net.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.GroupNorm(module.num_features // 8, module.num_features))
    return net


def _prepare(network: str, batch: int, arm: str) -> Callable[[], None]:
    steps = _Steps(network, batch)
    step = getattr(steps, arm)

    def three() -> None:
        # The first one takes the whole batch and begins the averages.
        for _ in range(3):
            step()

    return three


def gradient_bytes(network: str, batch: int, arm: str) -> int:
    """Per-sample gradients that ``arm`` keeps together, in bytes of float32: all, or those of the largest layer."""
    if arm not in ("dba", "dba_at_once"):
        return 0
    name, options, shape = NETWORKS[network]
    with torch.device("meta"):
        net = _with_group_norm(build_model(name, 10, shape[0], **options))
    if arm == "dba_at_once":
        return 4 * batch * sum(parameter.numel() for parameter in net.parameters())
    # A Linear's inner products follow from its inputs and output gradients: no gradient is formed.
    kept = (m for m in net.modules() if not isinstance(m, nn.Linear))
    return 4 * batch * max(sum(p.numel() for p in m.parameters(recurse=False)) for m in kept)


def measure_cost(network: str, batch: int, limit: int, rounds: int, budget: float | None) -> dict[str, Any]:
    """Peak memory and time of a step of each arm that fits, in turns.

    Args:
        network: a key of ``NETWORKS``.
        batch: B.
        limit: bytes that a step may take. An arm whose per-sample gradients alone exceed it is not run, and one whose
            measured peak does is not timed.
        rounds: most timed rounds.
        budget: seconds they may take.
    """
    name, options, shape = NETWORKS[network]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(name, 10, shape[0], **options).parameters())
    predicted = {arm: gradient_bytes(network, batch, arm) for arm in ARMS}
    peaks = {arm: peak_bytes(_prepare, network, batch, arm) for arm in ARMS if predicted[arm] <= limit}
    fitting = [arm for arm, peak in peaks.items() if peak <= limit]
    steps = {arm: _Steps(network, batch) for arm in fitting}
    timings = interleave(
        {arm: partial(_call, getattr(steps[arm], arm)) for arm in fitting},
        rounds,
        warm_up=2,
        clock=fair_clock(next(iter(steps.values())).device),
        budget=budget,
    )
    return {
        "network": network,
        "parameters": parameters,
        "batch": batch,
        "gradient_bytes": predicted,
        "peak_bytes": peaks,
        "rounds": len(timings["plain"].rounds),
        "seconds": {arm: {"median": t.median, "low": t.low, "high": t.high} for arm, t in timings.items()},
        "over_plain": {arm: t.ratio(timings["plain"]) for arm, t in timings.items() if arm != "plain"},
    }


def _call(step: Callable[[], None], number: int) -> None:
    step()


# ---- the search

_SEARCHES: list[tuple[Search, Guide]] = list(itertools.product(("removal", "addition", "both"), ("norm", "margin")))


def measure_search(steps: int, batch: int) -> dict[str, Any]:
    """How close the searches come to the best of all subsets, on the layers of a network while it trains.

    The digits, a network with one hidden layer of 64 units, SGD, subsets of any size. All ways choose in the same
    situations, those of a training that follows the default search.

    Args:
        steps: of training; each has two layers and so two situations.
        batch: B; up to 12 all subsets are judged too.
    """
    from composer_edba.train.data.digits import digits_splits

    splits = digits_splits()
    x_all, y_all = splits.train_transform(splits.train[:])  # type: ignore[index]
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = build_model("mlp", 10, 1, image_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    selector = LayerSubsetSelector(min_subset_size=1)
    every = torch.tensor(list(itertools.product([False, True], repeat=batch)))[1:] if batch <= 12 else None
    ways = ["whole batch", *(f"{search}, by {guide}" for search, guide in _SEARCHES), "1,024 random candidates"]
    margins: dict[str, list[Tensor]] = {way: [] for way in ["best", *ways]}
    sizes: dict[str, list[Tensor]] = {way: [] for way in ways}
    for _ in range(steps):
        chosen = torch.randint(len(x_all), (batch,), generator=generator)
        x, y = x_all[chosen], y_all[chosen]
        recorder = LayerRecorder()
        optimizer.zero_grad()
        recorder.attach(model, batch)
        loss = F.cross_entropy(model(x), y)
        recorder.detach()
        loss.backward()
        layers = recorder.layers(batch)
        products = torch.stack([layer.inner_products() for layer in layers]).double()
        if selector.model_average is not None:
            averages = torch.tensor([selector.gradient_averages[layer.name] for layer in layers]).double()
            judge = partial(_margins, products, float(loss.detach()), selector.model_average, averages)
            if every is not None:
                margins["best"].append(judge(every.expand(len(layers), -1, -1)).amin(1))
            tried: dict[str, Tensor] = {"whole batch": torch.ones(len(layers), batch, dtype=torch.bool)}
            for search, guide in _SEARCHES:
                tried[f"{search}, by {guide}"] = search_subsets(
                    products,
                    float(loss.detach()),
                    selector.model_average,
                    averages,
                    search=search,
                    guide=guide,
                    min_subset_size=1,
                )
            tried["1,024 random candidates"] = _random_candidates(
                products, float(loss.detach()), selector, averages, generator
            )
            for way, members in tried.items():
                margins[way].append(judge(members.unsqueeze(1))[:, 0])
                sizes[way].append(members.sum(1).double())
        subsets = selector.select([layer.name for layer in layers], products, float(loss.detach()), generator)
        for layer, weights in zip(layers, subsets.weights, strict=True):
            layer.replace_gradient(weights)
        optimizer.step()
    best = torch.cat(margins["best"]) if every is not None else None
    rows = []
    for way in ways:
        found = torch.cat(margins[way])
        rows.append(
            {
                "way": way,
                "best_reached": None if best is None else float((found <= best + 1e-9).double().mean()),
                "below_one": float((found < 1).double().mean()),
                "median_margin": float(found.median()),
                "mean_size": float(torch.cat(sizes[way]).mean()),
            }
        )
    return {
        "batch": batch,
        "situations": len(found),
        "median_best": None if best is None else float(best.median()),
        "ways": rows,
    }


def _margins(products: Tensor, model_metric: float, model_average: float, averages: Tensor, masks: Tensor) -> Tensor:
    """Equation 1 of subsets (L, K, B) of each layer; infinite for a zero gradient."""
    norms = torch.stack([subset_gradient_norms(k, m) for k, m in zip(products, masks, strict=True)])
    found = margin_loss(model_metric, norms, model_average, averages.unsqueeze(1))  # type: ignore[arg-type]
    return torch.where(norms > 0, found, torch.inf)


def _random_candidates(
    products: Tensor, model_metric: float, selector: LayerSubsetSelector, averages: Tensor, generator: torch.Generator
) -> Tensor:
    """What EDBA's choice among random subsets would be, on each layer."""
    from composer_edba.functional import Averages

    members = torch.zeros(products.shape[:2], dtype=torch.bool)
    assert selector.model_average is not None
    for layer, (inner_products, average) in enumerate(zip(products, averages.tolist(), strict=True)):
        known = Averages(selector.model_average, average)
        chosen = select_subset(inner_products, model_metric, known, min_subset_size=1, generator=generator)
        members[layer, chosen.indices] = True
    return members
