"""Loaders of every kind that users make, each new and always the same, and settings of EDBA for them."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from tests.support.task import BATCH, SAMPLES, Task
from tests.support.torch_runs import FEATURES, following, points

DRAWN = 150  # samples in a pass of those samplers that may give fewer or more than there are
GENERATOR_SEED = 3


# ---- data


class Samples(Dataset):
    """Points, their index first.

    Args:
        augmented: whether a sample is another one each time, by torch's global stream of the process that loads it.
        late: whether the first of several workers is slower than the others.
    """

    def __init__(self, augmented: bool, late: bool = False):
        self.x, self.y = points(SAMPLES).tensors
        self.augmented, self.late = augmented, late

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        x = self.x[index]
        if self.augmented:
            x = torch.cat([x[:1], x[1:] + 0.3 * torch.randn(FEATURES)])
        if self.late and (worker := get_worker_info()) is not None and worker.id == 0:
            time.sleep(0.001)
        return x, self.y[index]


class Stream(IterableDataset):
    """The same samples without indices; each worker gives its share."""

    def __init__(self, augmented: bool, late: bool = False):
        self.samples = Samples(augmented, late)

    def __iter__(self):
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return (self.samples[index] for index in range(first, SAMPLES, step))


class SizedStream(Stream):
    def __len__(self):
        return SAMPLES


# ---- samplers of the user's


class TorchOrder(Sampler):
    """A permutation from torch's global stream."""

    def __iter__(self):
        return iter(torch.randperm(SAMPLES).tolist())

    def __len__(self):
        return SAMPLES


class NumpyOrder(TorchOrder):
    """One from numpy's."""

    def __iter__(self):
        return iter(np.random.permutation(SAMPLES).tolist())


class PythonOrder(TorchOrder):
    """One from Python's."""

    def __iter__(self):
        return iter(random.sample(range(SAMPLES), SAMPLES))


class OwnOrder(TorchOrder):
    """One from a stream that the sampler keeps, and that its user can save; a Trainer begins all passes once more."""

    def __init__(self):
        self.stream = random.Random(7)

    def __iter__(self):
        return iter(self.stream.sample(range(SAMPLES), SAMPLES))

    def state_dict(self):
        return {"stream": self.stream.getstate()}

    def load_state_dict(self, state):
        self.stream.setstate(state["stream"])


class GrowingOrder(Sampler):
    """A curriculum: a longer pass in every epoch, the same whenever an epoch is gone over again."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self):
        return min(SAMPLES, 100 + 40 * self.epoch)

    def __iter__(self):
        return iter(torch.randperm(len(self), generator=torch.Generator().manual_seed(self.epoch)).tolist())


# ---- loaders


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(GENERATOR_SEED)


def weights() -> list[float]:
    """Some samples never come, others often."""
    return [float(index % 4) for index in range(SAMPLES)]


def once(size: int) -> list[int]:
    return list(range(size))


@dataclass(frozen=True)
class Order:
    """What decides the order of a loader's samples.

    Attributes:
        arguments: ``arguments(data)`` gives the DataLoader's, newly made.
        sampler: class of the sampler that comes out; None: an IterableDataset has none.
        expected: ``expected(number)`` gives what pass ``number``, from 0, holds, sorted; None: chance decides.
        sized: whether the length of a pass is known.
    """

    arguments: Callable[[Any], dict[str, Any]]
    sampler: type | None
    expected: Callable[[int], list[int]] | None = lambda number: once(SAMPLES)
    sized: bool = True


def distributed(data, rank, **kwargs):
    return {"sampler": DistributedSampler(data, num_replicas=2, rank=rank, seed=7, **kwargs)}


EVERY_THIRD = list(range(0, SAMPLES, 3)) + list(range(1, SAMPLES, 3))

ORDERS = {
    "sequential": Order(lambda data: {}, SequentialSampler),
    "shuffle": Order(lambda data: {"shuffle": True}, RandomSampler),
    "shuffle_generator": Order(lambda data: {"shuffle": True, "generator": generator()}, RandomSampler),
    "replacement": Order(
        lambda data: {"sampler": RandomSampler(data, replacement=True, num_samples=DRAWN)}, RandomSampler, None
    ),
    "replacement_generator": Order(
        lambda data: {"sampler": RandomSampler(data, replacement=True, num_samples=DRAWN, generator=generator())},
        RandomSampler,
        None,
    ),
    "weighted": Order(lambda data: {"sampler": WeightedRandomSampler(weights(), DRAWN)}, WeightedRandomSampler, None),
    "weighted_generator": Order(
        lambda data: {"sampler": WeightedRandomSampler(weights(), DRAWN, generator=generator())},
        WeightedRandomSampler,
        None,
    ),
    "subset": Order(
        lambda data: {"sampler": SubsetRandomSampler(EVERY_THIRD)},
        SubsetRandomSampler,
        lambda number: sorted(EVERY_THIRD),
    ),
    "distributed": Order(lambda data: distributed(data, rank=1), DistributedSampler, None),
    "distributed_in_order": Order(
        lambda data: distributed(data, rank=0, shuffle=False),
        DistributedSampler,
        lambda number: list(range(0, SAMPLES, 2)),
    ),
    "from_torch": Order(lambda data: {"sampler": TorchOrder()}, TorchOrder),
    "from_numpy": Order(lambda data: {"sampler": NumpyOrder()}, NumpyOrder),
    "from_python": Order(lambda data: {"sampler": PythonOrder()}, PythonOrder),
    "from_own": Order(lambda data: {"sampler": OwnOrder()}, OwnOrder),
    "growing": Order(lambda data: {"sampler": GrowingOrder()}, GrowingOrder, lambda number: once(100 + 40 * number)),
    "iterable": Order(lambda data: {}, None, sized=False),
    "iterable_sized": Order(lambda data: {}, None),
}


@dataclass(frozen=True)
class LoaderTask(Task):
    """Training on batches of one of these loaders; see :class:`torch.utils.data.DataLoader`."""

    dropout: float = 0.1
    order: str = "sequential"
    persistent: bool = False
    prefetch: int | None = None
    in_order: bool = True
    augmented: bool = False

    def loader(self) -> DataLoader:
        kind = {"iterable": Stream, "iterable_sized": SizedStream}.get(self.order, Samples)
        data = kind(self.augmented, late=not self.in_order)
        return DataLoader(
            data,
            batch_size=BATCH,
            num_workers=self.workers,
            persistent_workers=self.persistent,
            prefetch_factor=self.prefetch,
            drop_last=self.drop_last,
            in_order=self.in_order,
            **ORDERS[self.order].arguments(data),
        )

    def duration(self, passes: int) -> str:
        # A Trainer refuses epochs of a loader without a length.
        return super().duration(passes) if ORDERS[self.order].sized else f"{passes * SAMPLES}sp"

    def begin_pass(self, sampler: Any, number: int) -> None:
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(number)


SIZES = [32, 20, 45, 11, 60, 27]
RESIZED = {"criterion": "margin", "interval": 1, "batch_size_policy": following(SIZES)}
SETTINGS: dict[str, dict[str, Any]] = {
    "unchosen": {"criterion": "margin", "interval": 10**6, "batch_size_policy": "fixed"},
    "fixed": {"criterion": "margin", "interval": 1, "batch_size_policy": "fixed"},
    "resized": RESIZED,
    "seldom": {**RESIZED, "interval": 3},
    "noise_scale": {
        "criterion": "margin",
        "interval": 1,
        "batch_size_policy": "noise_scale",
        "policy_options": {"window": 3, "cooldown": 1},
    },
    "cached": {**RESIZED, "scoring": "cached"},
    "cached_mass": {"scoring": "cached", "left_out": 0.3, "min_subset_size": 4, "batch_size_policy": "fixed"},
    "few_batches": RESIZED,  # and a Trainer's epoch that is cut off
}
