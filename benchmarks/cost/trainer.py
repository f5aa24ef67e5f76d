"""What EDBA costs inside of a Composer Trainer: steps without selection, cached scoring, and a forward beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from composer import Callback, Trainer
from composer.core import Algorithm, State
from composer.loggers import Logger
from composer.models import ComposerClassifier
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.cost.interleaved import Timing, affordable_rounds, fair_clock
from composer_edba import EDBA
from composer_edba.train.models import build_model

__all__ = ["measure_trainer"]

_BATCHES = 7  # an epoch; the first step of each is not timed


def measure_trainer(
    model: str,
    pool: int,
    rounds: int,
    device: torch.device,
    *,
    budget: float | None = None,
    precision: str = "fp32",
    channels_last: bool = False,
    image: tuple[int, int, int] = (3, 32, 32),
) -> dict[str, Any]:
    """Seconds a step, loading included, of several Trainers that train an epoch each in turns.

    Whole pools: ``plain``; ``edba_before_start``, an EDBA that has not begun; ``edba_interrupted``, the steps that
    ``interrupt=2`` leaves out; ``edba_mass``, gradient mass refilled, whose batches have the loader's size. Subsets,
    of the paper's sizes: ``edba_forward``; ``edba_cached``; and
    ``plain_on_subset``, plain batches of the very sizes that ``edba_cached`` chose in that round. Pools keep their
    size. The first two epochs, in which the cache sees every sample for the first time, are not timed.

    Args:
        model: name of the network.
        pool: samples in a batch of the loader.
        rounds: most timed epochs of each Trainer.
        device: where.
        budget: seconds that they may take, as long as three epochs are left; None: no limit.
        precision: Composer's name of it.
        channels_last: memory format of images and weights.
        image: channels, height and width of the random images.
    """
    clock = fair_clock(device)
    sizes: list[int] = []

    def arm(algorithm: Algorithm | None = None, batches: Any = None) -> _Arm:
        torch.manual_seed(0)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        images = torch.randn(_BATCHES * pool, *image).contiguous(memory_format=layout)
        data = TensorDataset(images, torch.randint(10, (_BATCHES * pool,)))
        loader: DataLoader[Any]
        if batches is None:
            loader = DataLoader(data, batch_size=pool, shuffle=True)
        else:
            loader = DataLoader(data, batch_sampler=batches)
        network = build_model(model, 10).to(memory_format=layout)  # type: ignore[call-overload]
        return _Arm(network, loader, algorithm, clock, device, precision)

    arms = {
        "edba_cached": arm(EDBA.paper(scoring="cached", batch_size_policy="fixed")),
        "plain_on_subset": arm(batches=_GivenSizes(sizes)),
        "plain": arm(),
        "edba_before_start": arm(EDBA.paper(start=0.999)),
        "edba_interrupted": arm(EDBA.paper(interrupt=2, batch_size_policy="fixed")),
        "edba_mass": arm(EDBA(criterion="gradient_mass", scoring="cached", interval=1, refill=True)),
        "edba_forward": arm(EDBA.paper(batch_size_policy="fixed")),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    trained_on: list[int] = []
    number, interrupted = -2, 0
    while number < rounds:
        began = clock()
        for name, one in arms.items():
            steps = one.epoch()
            if name == "edba_cached":
                sizes[:] = [size for size, _ in steps]
            first = interrupted  # of the run's steps, by which interrupt goes
            interrupted += len(steps) if name == "edba_interrupted" else 0
            if number < 0:
                continue
            timed = steps[1:]
            if name == "edba_interrupted":
                timed = [step for i, step in enumerate(steps) if i > 0 and (first + i + 1) % 2 == 0]
                if any(size != pool for size, _ in timed):
                    raise RuntimeError("a step that interrupt=2 leaves out did not train on its whole pool")
            if name == "edba_mass":  # but for what a pass ends with
                timed = [step for step in timed if step[0] == pool]
            seconds[name].append(sum(taken for _, taken in timed) / len(timed))
            if name == "edba_cached":
                trained_on += [size for size, _ in timed]
        if number == -1:
            rounds = affordable_rounds(rounds, clock() - began, budget)
        number += 1
    for one in arms.values():
        one.close()
    timings = {name: Timing.of(values) for name, values in seconds.items()}
    against = {
        "edba_before_start": "plain",
        "edba_interrupted": "plain",
        "edba_mass": "plain",
        "edba_cached": "plain_on_subset",
        "edba_forward": "plain",
    }
    return {
        "model": model,
        "precision": precision,
        "channels_last": channels_last,
        "pool": pool,
        "mean_subset": sum(trained_on) / len(trained_on),
        "rounds": rounds,
        "steps_a_round": _BATCHES - 1,
        "seconds": {name: {"median": t.median, "low": t.low, "high": t.high} for name, t in timings.items()},
        "ratio": {
            name: {"to": other, "quartiles": timings[name].ratio(timings[other])} for name, other in against.items()
        },
    }


class _GivenSizes:
    """A batch sampler whose batches have the sizes that a list holds when a pass begins."""

    def __init__(self, sizes: list[int]):
        self.sizes = sizes

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        for size in list(self.sizes):
            yield list(range(start, start + size))
            start += size

    def __len__(self) -> int:
        return _BATCHES


class _Arm:
    """A Trainer that goes on by an epoch at a time."""

    def __init__(
        self,
        network: torch.nn.Module,
        loader: DataLoader[Any],
        algorithm: Algorithm | None,
        clock: Callable[[], float],
        device: torch.device,
        precision: str,
    ):
        model = ComposerClassifier(network, num_classes=10)
        self.watch = _Watch(clock)
        self.trainer = Trainer(
            model=model,
            optimizers=torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9),
            train_dataloader=loader,
            max_duration="1ep",
            algorithms=[] if algorithm is None else [algorithm],
            callbacks=[self.watch],
            device="gpu" if device.type == "cuda" else "cpu",
            precision=precision,
            seed=0,
            progress_bar=False,
            python_log_level="error",
        )

    def epoch(self) -> list[tuple[int, float]]:
        """Train for an epoch; returns each step's samples trained on and seconds."""
        self.watch.steps.clear()
        self.trainer.fit(duration="1ep")
        return list(self.watch.steps)

    def close(self) -> None:
        self.trainer.close()


class _Watch(Callback):
    """Time from the end of one step to the end of the next: loading, selection, training, and what else there is."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.steps: list[tuple[int, float]] = []
        self._ended = 0.0
        self._samples = 0

    def epoch_start(self, state: State, logger: Logger) -> None:
        self._ended = self.clock()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self._samples = len(state.batch[1])
        # A loader with a batch sampler of its own does not tell Composer how large its batches are.
        if not state.algorithms:
            state.device_train_microbatch_size = self._samples

    def batch_end(self, state: State, logger: Logger) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = self.clock()
        self.steps.append((self._samples, now - self._ended))
        self._ended = now
