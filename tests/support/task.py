"""What the runs of :mod:`tests.support.loops` train, what they tell, and the random streams that they begin with."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.support.torch_runs import loader, net, sgd

LOSS = nn.CrossEntropyLoss()
SEED = 5
SAMPLES, BATCH = 200, 32
# Wall-clock time differs from run to run, and the size of the cache is logged once in a Trainer.
_OUTSIDE = {"overhead", "cache_bytes"}


@dataclass(frozen=True)
class Task:
    """What is trained, and on batches in which order.

    Attributes:
        shuffle: a new order in every pass, from torch's global stream; False: one permutation in all of them.
        dropout: share of the features that are left out, drawn from torch's global stream.
        decay: what a schedule multiplies the learning rate by after every step.
        workers: of the loader.
        drop_last: whether the loader leaves out a smaller last batch.
        few_batches: batches that an epoch is cut off after, in a Trainer alone; None: none.
    """

    shuffle: bool = False
    dropout: float = 0.0
    decay: float = 1.0
    workers: int = 0
    drop_last: bool = False
    few_batches: int | None = None

    def parts(self) -> tuple[nn.Module, torch.optim.Optimizer, Any, Any]:
        """Model, optimizer, learning-rate schedule and loader, new and always the same."""
        model = net(dropout=self.dropout)
        optimizer = sgd(model)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.decay**step)
        return model, optimizer, schedule, self.loader()

    def loader(self) -> DataLoader:
        """What the batches come from."""
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(11)).tolist()
        drawn = {"shuffle": True} if self.shuffle else {"shuffle": False, "sampler": order}
        return loader(SAMPLES, BATCH, num_workers=self.workers, drop_last=self.drop_last, **drawn)

    def duration(self, passes: int) -> str:
        """That many passes, for a Trainer."""
        return f"{passes}ep"

    def begin_pass(self, sampler: Any, number: int) -> None:
        """What the user tells the loader's sampler before pass ``number``, from 0: nothing."""

    def states(self, data: Any) -> dict[str, Any]:
        """What has a state of its own in the loader ``data``, by name, which a careful user saves: a sampler."""
        return {"sampler": data.sampler} if hasattr(data.sampler, "state_dict") else {}


@dataclass
class Record:
    """What a run did.

    Attributes:
        steps: for each step ``pass`` (its number from 0), ``delivered`` (data-set indices of the loader's batch),
            ``indices`` (of those trained on, in their order), ``last_selection`` (EDBA's: pool and subset, or None) and
            ``figures`` (EDBA's, by name).
        weights: the network's parameters and buffers at the end.
        state: file to resume from; None if the run was not stopped.
    """

    steps: list[dict[str, Any]]
    weights: dict[str, Tensor]
    state: Path | None


def indices_of(inputs: Tensor) -> list[int]:
    return inputs[:, 0].long().tolist()


def step_of(number: int, delivered: list[int], inputs: Tensor, last: Any, figures: dict[str, float]) -> dict[str, Any]:
    told = {name: value for name, value in figures.items() if name not in _OUTSIDE}
    chosen = None if last is None else [part.tolist() for part in last]
    step = {"pass": number, "delivered": delivered, "indices": indices_of(inputs)}
    return {**step, "last_selection": chosen, "figures": told}


def begin_streams(seed: int, resume_from: Path | None) -> None:
    """Have the global streams begin at ``seed``; in a process that resumes they are elsewhere until restored."""
    begin = seed if resume_from is None else seed + 1
    torch.manual_seed(begin)
    np.random.seed(begin)
    random.seed(begin)


class RandomState:
    """The global streams of torch, numpy and Python as a part of a checkpoint of plain values."""

    def state_dict(self):
        return {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": _plain(np.random.get_state())}

    def load_state_dict(self, state):
        torch.set_rng_state(state["torch"])
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])


def _plain(state: Any) -> tuple[Any, ...]:
    return tuple(part.tolist() if isinstance(part, np.ndarray) else part for part in state)
