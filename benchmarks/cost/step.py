"""A step of EDBA against its floor, plain steps and SelectiveBackprop: time and peak memory."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cost.classifier import Classifier, batch_loss
from benchmarks.cost.interleaved import fair_clock, interleave
from benchmarks.cost.peak_memory import peak_bytes
from benchmarks.machine import available_bytes
from composer_edba.loading.batch import index_batch
from composer_edba.method.averages import Averages
from composer_edba.method.choice import select_subset
from composer_edba.scoring.forward import Scorer
from composer_edba.train.models import build_model

__all__ = ["KEEP", "PRECISIONS", "StepSettings", "measure_memory", "measure_steps", "room_for", "step_arms"]

KEEP = 0.55  # mean share of a pool that subsets of sizes 10 to 100 have
PRECISIONS = {"fp32": None, "amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}


@dataclass(frozen=True)
class StepSettings:
    """What is trained and how.

    Attributes:
        model: its name, of one that takes 32 x 32 colour images.
        precision: a key of ``PRECISIONS``.
        channels_last: memory format of images and weights.
    """

    model: str
    precision: str = "fp32"
    channels_last: bool = False


class _Steps:
    """The steps to compare, on one network and one pool of random images, all with subsets of one size."""

    def __init__(self, settings: StepSettings, size: int):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        torch.manual_seed(0)
        net = build_model(settings.model, 10).to(self.device, memory_format=layout)  # type: ignore[call-overload]
        images = torch.randn(size, 3, 32, 32, device=self.device).contiguous(memory_format=layout)
        self.model = Classifier(net).train()
        self.pool = (images, torch.randint(10, (size,), device=self.device))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)
        self.half = PRECISIONS[settings.precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half == torch.float16)
        self.generator = torch.Generator().manual_seed(0)
        self.scorer = Scorer()
        # Finds the last layer and checks the loss, which is done once a run.
        self.scorer(self.model, index_batch(self.pool, torch.arange(min(16, size)), size), batch_loss)

    def precision(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, self.half, enabled=self.half is not None)

    def train(self, batch: tuple[Tensor, Tensor]) -> None:
        self.optimizer.zero_grad()
        with self.precision():
            loss = batch_loss(self.model(batch), batch)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def subset(self) -> tuple[Tensor, Tensor]:
        size = len(self.pool[1])
        return index_batch(self.pool, torch.randperm(size, generator=self.generator)[: round(KEEP * size)], size)

    def edba(self) -> None:
        scores = self.scorer(self.model, self.pool, batch_loss, precision=self.precision)
        select_subset(scores.inner_products(), scores.model_metric, Averages(2.3, 1.0), generator=self.generator)
        self.train(self.subset())

    def floor(self) -> None:
        with torch.no_grad(), self.precision():
            self.model(self.pool)
        self.train(self.subset())

    def plain_on_subset(self) -> None:
        self.train(self.subset())

    def plain_on_pool(self) -> None:
        self.train(self.pool)

    def selective_backprop(self) -> None:
        from composer.algorithms.selective_backprop import select_using_loss

        with self.precision():
            chosen = select_using_loss(*self.pool, self.model.net, F.cross_entropy, KEEP, 1)
        self.train(chosen)


_ARMS: dict[str, Callable[[_Steps], None]] = {
    "edba": _Steps.edba,
    "floor": _Steps.floor,
    "plain_on_subset": _Steps.plain_on_subset,
    "plain_on_pool": _Steps.plain_on_pool,
    "selective_backprop": _Steps.selective_backprop,
}


def step_arms() -> list[str]:
    """Names of the steps that can be compared here: SelectiveBackprop needs Composer."""
    without = importlib.util.find_spec("composer") is None
    return [name for name in _ARMS if not (without and name == "selective_backprop")]


def measure_steps(
    settings: StepSettings, pool: int, arms: Sequence[str], rounds: int, budget: float | None
) -> dict[str, Any]:
    """Seconds of each kind of step on pools of one size, in turns; subsets have ``KEEP`` of it.

    Args:
        settings: what is trained.
        pool: B.
        arms: names of steps, ``"edba"`` among them.
        rounds: most timed rounds.
        budget: seconds they may take, see :func:`~benchmarks.cost.interleaved.interleave`.
    """
    steps = _Steps(settings, pool)

    def arm(step: Callable[[_Steps], None]) -> Callable[[int], None]:
        return lambda number: step(steps)

    timings = interleave(
        {name: arm(_ARMS[name]) for name in arms},
        rounds,
        warm_up=1,
        clock=fair_clock(steps.device),
        budget=budget,
    )
    return {
        **asdict(settings),
        "pool": pool,
        "subset": round(KEEP * pool),
        "rounds": len(timings["edba"].rounds),
        "seconds": {name: {"median": t.median, "low": t.low, "high": t.high} for name, t in timings.items()},
        "edba_over": {name: timings["edba"].ratio(timings[name]) for name in timings if name != "edba"},
    }


def _prepare(settings: StepSettings, pool: int, arm: str) -> Callable[[], None]:
    return partial(_ARMS[arm], _Steps(settings, pool))


def measure_memory(settings: StepSettings, pool: int, arms: Sequence[str]) -> dict[str, int]:
    """Peak bytes of each kind of step that ``arms`` names, beyond the network, the pool and Python.

    What the first step of a run needs: gradients and the optimizer's momentum are made in it. Measured once: repeats
    differ by less than 1 %.
    """
    return {name: peak_bytes(_prepare, settings, pool, name) for name in arms}


def room_for(pool: int, known_pool: int, known_bytes: int, device: torch.device) -> tuple[bool, int, int]:
    """Whether a step on ``pool`` samples fits, given what one on ``known_pool`` needs.

    Activations grow in proportion to the samples. On a CPU 2 GiB are left to whoever else uses the machine.

    Returns:
        Whether it does, the bytes it needs and the bytes that are left.
    """
    needed = round(known_bytes * pool / known_pool)
    left = available_bytes(device) - (2**31 if device.type == "cpu" else 0)
    return needed < left, needed, left
