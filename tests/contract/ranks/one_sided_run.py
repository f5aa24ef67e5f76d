"""Runs in which something happens on one rank of two: plain torch processes, all scenarios one after the other.

Arguments: the folder to write to, the rank, and names of scenarios, none for all. They share a process group, as after
an error that all ranks raise they can: one in which the ranks wait for each other ends by the group's time limit, and
so do those after it.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, default_collate

from composer_edba import SubsetLoader
from composer_edba.scoring import cache, memory
from tests.support.torch_runs import Net, Sizes, points, sgd

LOSS, STEPS, SIZE = nn.CrossEntropyLoss(), 24, 256
BOTH, ONE = 2, 1  # ranks, and the one on which it happens
CACHED = {"scoring": "cached", "batch_size_policy": "fixed"}
SCENARIOS = {}


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


def data_loader(rank, sampler=None, **kwargs):
    data = points(SIZE)
    sampler = DistributedSampler(data, BOTH, rank) if sampler is None else sampler
    return DataLoader(data, batch_size=16, sampler=sampler, **kwargs)


def model_of(**kwargs):
    torch.manual_seed(0)
    return Net(dropout=0.0, batch_norm=False, **kwargs)


def train(rank, *, loader=None, model=None, loss=LOSS, ddp=True, skip=(), prepare=lambda subsets: None, **settings):
    """Train for some steps; what happened, as plain values that are to be alike on all ranks, and sizes."""
    model = model_of() if model is None else model
    trained = DistributedDataParallel(model) if ddp else model
    settings = {"preset": "paper", "seed": 3, "min_subset_size": 4, **settings}
    subsets = SubsetLoader(data_loader(rank) if loader is None else loader, trained, loss, **settings)
    prepare(subsets)
    optimizer, sizes, figures = sgd(model), [], []
    while len(sizes) < STEPS:
        before = len(sizes)
        for x, y in subsets:
            figures.append(dict(subsets.figures))
            sizes.append(len(y))
            if len(sizes) in skip:
                continue
            optimizer.zero_grad()
            LOSS(trained(x), y).backward()
            optimizer.step()
            if len(sizes) == STEPS:
                break
        assert len(sizes) > before
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    same = [{n: v for n, v in each.items() if n not in ("batch_size", "subset_size")} for each in figures]
    engine = subsets._loop.engine
    known = None if engine.remembered is None else engine.remembered.cache.steps.tolist()
    limit = engine.scorer.chunk_limit
    return {"sizes": sizes, "same": same, "weights": weights, "known": known, "limit": limit}


def on(rank, value, other=None):
    return value if rank == ONE else other


# ---- whether indices are known, and sizes


def dropping(samples):
    """A collate_fn that leaves broken samples out: the first of every eighth index."""
    return default_collate([each for each in samples if int(each[0][0]) % 8 != 0] or samples[:1])


@scenario
def dropped_samples(rank):
    return train(rank, loader=data_loader(rank, collate_fn=dropping))


@scenario
def dropped_samples_on_one(rank):
    return train(rank, loader=data_loader(rank, collate_fn=on(rank, dropping)))


@scenario
def dropped_samples_cached(rank):
    return train(rank, loader=data_loader(rank, collate_fn=on(rank, dropping)), **CACHED)


@scenario
def empty_loader(rank):
    return train(rank, loader=data_loader(rank, sampler=on(rank, range(0), range(128))))


# ---- memory


class RunsOut(Net):
    """Out of memory for more than ``most`` samples in a scoring forward."""

    most = SIZE

    def forward(self, x):
        if not torch.is_grad_enabled() and len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(x)


def running_out(rank, most):
    torch.manual_seed(0)
    model = RunsOut(dropout=0.0, batch_norm=False)
    model.most = on(rank, most, SIZE)
    return model


@scenario
def out_of_memory_for_a_while(rank):
    return train(rank, model=running_out(rank, 8))


@scenario
def out_of_memory(rank):
    return train(rank, model=running_out(rank, 0))


def with_memory(place, rank, size, **settings):
    before = place.device_memory
    place.device_memory = lambda device: on(rank, size, before(device))
    try:
        return train(rank, **settings)
    finally:
        place.device_memory = before


@scenario
def little_memory(rank):
    return with_memory(memory, rank, 5 * 4 * 36 * 8)


@scenario
def memory_for_one_ranks_pool_only(rank):
    return with_memory(memory, rank, 5 * 4 * 36 * 24)


@scenario
def no_memory_for_the_cache(rank):
    return with_memory(cache, rank, 1000, **CACHED)


# ---- batch, loss, last layer


def ragged(samples):
    x, y = default_collate(samples)
    return (x, y[:-1]) if any(int(each[0][0]) % 40 == 0 for each in samples) else (x, y)


@scenario
def bad_batch(rank):
    return train(rank, loader=data_loader(rank, collate_fn=on(rank, ragged)))


@scenario
def bad_batch_cached(rank):
    return train(rank, loader=data_loader(rank, collate_fn=on(rank, ragged)), **CACHED)


@scenario
def loss_no_mean(rank):
    return train(rank, loss=on(rank, nn.CrossEntropyLoss(reduction="sum"), LOSS))


class Flat(Net):
    """Its last layer sees the batch as one row on the rank where ``flat``."""

    flat = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        out = super().forward(x)
        return self.head(out.unsqueeze(0)).squeeze(0) if self.flat else self.head(out)


@scenario
def last_layers_shape(rank):
    torch.manual_seed(0)
    model = Flat(dropout=0.0, batch_norm=False)
    model.flat = rank == ONE
    return train(rank, model=model)


@scenario
def other_last_layer(rank):
    return train(rank, last_layer=on(rank, "body.0", "fc"))


@scenario
def nonfinite_loss(rank):
    calls = []

    def sometimes(outputs, target):
        calls.append(rank)
        return LOSS(outputs, target) * (float("nan") if rank == ONE and len(calls) == 12 else 1.0)

    return train(rank, loss=sometimes)


# ---- the user's objects, and when to choose


class Raises:
    """A criterion that fails at its fifth call on one rank."""

    def __init__(self, rank):
        self.rank, self.calls = rank, 0

    def __call__(self, gradient_metrics, model_metric, averages):
        self.calls += 1
        if self.rank == ONE and self.calls == 5:
            raise KeyError("the criterion's own")
        return -gradient_metrics


@scenario
def criterion_raises(rank):
    return train(rank, criterion=Raises(rank))


@scenario
def criterion_raises_cached(rank):
    return train(rank, criterion=Raises(rank), **CACHED)


class Broken(Sizes):
    def update(self, observation):
        if self.step == 4:
            raise RuntimeError("the policy's own")
        return super().update(observation)


@scenario
def policy_raises(rank):
    return train(rank, batch_size_policy=on(rank, Broken([16, 20]), Sizes([16, 20])))


@scenario
def other_sizes(rank):
    return train(rank, batch_size_policy=Sizes([16, 16, 20 + rank]))


@scenario
def other_sizes_cached(rank):
    return train(rank, scoring="cached", batch_size_policy=Sizes([16, 16, 20 + rank]))


@scenario
def other_elapsed_time(rank):
    """As of uneven shards: the rank is through with choosing one step before the other."""

    def prepare(subsets):
        engine = subsets._loop.engine
        subsets._loop.elapsed = lambda: 1.0 if engine.steps >= 12 - rank else 0.5

    return train(rank, prepare=prepare)


@scenario
def other_elapsed_time_cached(rank):
    def prepare(subsets):
        engine = subsets._loop.engine
        subsets._loop.elapsed = lambda: 1.0 if engine.steps >= 12 - rank else 0.5

    return train(rank, prepare=prepare, **CACHED, interval=1000)


# ---- scoring="cached": the sampler, and what training records


class Order:
    """A rank's half of the indices, of which fewer come than it says, or an error."""

    def __init__(self, rank, end=128, error=None):
        self.rank, self.end, self.error = rank, end, error

    def __len__(self):
        return 128

    def __iter__(self):
        for index in range(128):
            if self.rank == ONE and index == self.end:
                if self.error is not None:
                    raise self.error
                return
            yield 128 * self.rank + index


@scenario
def sampler_raises_cached(rank):
    return train(rank, loader=data_loader(rank, Order(rank, 40, OSError("the sampler's own"))), **CACHED)


@scenario
def sampler_ends_early_cached(rank):
    return train(rank, loader=data_loader(rank, Order(rank, 100)), **CACHED)


@scenario
def sampler_gives_no_index_cached(rank):
    return train(rank, loader=data_loader(rank, on(rank, [-1] * 128, range(128))), **CACHED)


@scenario
def batch_left_out_cached(rank):
    return train(rank, ddp=False, skip=(3, 5) if rank == ONE else (), **CACHED)


class Bypasses(Net):
    """Leaves its last layer out in the third training forward on one rank."""

    rank, calls = 0, 0

    def forward(self, x):
        self.calls += self.training and torch.is_grad_enabled()
        out = super().forward(x) if self.rank != ONE or self.calls != 3 else self.body(x[:, 1:])[:, :4]
        return out


@scenario
def last_layer_not_called_cached(rank):
    torch.manual_seed(0)
    model = Bypasses(dropout=0.0, batch_norm=False)
    model.rank = rank
    return train(rank, model=model, ddp=False, last_layer="fc", **CACHED)


# ---- Ignite


@scenario
def dropped_samples_ignite(rank):
    from ignite.engine import Events, create_supervised_trainer

    from composer_edba.ignite import EDBAHandler

    model = model_of()
    trained = DistributedDataParallel(model)
    trainer = create_supervised_trainer(trained, sgd(model), LOSS)
    loader = data_loader(rank, collate_fn=on(rank, dropping))
    EDBAHandler(trained, LOSS, preset="paper", seed=3, min_subset_size=4).attach(trainer, loader)
    sizes, same = [], []

    @trainer.on(Events.ITERATION_COMPLETED)
    def keep(engine):
        sizes.append(len(engine.state.batch[1]))
        same.append({n: v for n, v in engine.state.edba.items() if n not in ("batch_size", "subset_size", "overhead")})

    trainer.run(loader, max_epochs=2)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return {"sizes": sizes, "same": same, "weights": weights, "known": None, "limit": None}


# ---- all of them


def run(name, rank):
    try:
        return SCENARIOS[name](rank)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    store = dist.FileStore(str(folder / "store"), BOTH)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=BOTH, timeout=timedelta(seconds=20))
    for name in sys.argv[3:] or SCENARIOS:
        torch.save(run(name, rank), folder / f"{name}{rank}.pt")
    # A rank that outlives the other's end may abort in gloo's threads when the interpreter takes them down.
    dist.barrier()
    dist.destroy_process_group()
