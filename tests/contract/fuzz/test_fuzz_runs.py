"""Short real Trainer runs of random settings: what must hold of any run holds of each."""

import warnings
from itertools import pairwise

import pytest
import torch
from composer import Callback, DataSpec
from composer.models import ComposerClassifier
from composer.optim import MultiStepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, default_collate

from composer_edba import EDBA
from tests.contract.fuzz.counter import ran
from tests.support.small_runs import CLASSES, FEATURES, Points, epochs_before_steps, logged, trainer
from tests.support.torch_runs import Sizes


class Samples(Points):
    """Points whose every part says which sample it belongs to."""

    def __init__(self, size, structure):
        super().__init__(size, with_index=True)
        self.structure = structure

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        if self.structure == "pair":
            return x, y
        if self.structure == "words":
            return {"x": x, "labels": y, "name": f"sample {index}"}
        return {"x": x, "labels": y, "meta": {"name": f"sample {index}", "index": index}}


def collate_metas(samples):
    """The metas as a list of dicts, one a sample."""
    metas = [sample["meta"] for sample in samples]
    return {**default_collate([{"x": s["x"], "labels": s["labels"]} for s in samples]), "meta": metas}


def parts(batch):
    """Inputs, targets and every sample's number by each part that says one."""
    if not isinstance(batch, dict):
        return batch[0], batch[1], []
    numbers = []
    if "name" in batch:
        numbers.append([int(name.split()[1]) for name in batch["name"]])
    meta = batch.get("meta")
    if isinstance(meta, list):
        numbers += [[m["index"] for m in meta], [int(m["name"].split()[1]) for m in meta]]
    elif meta is not None:
        numbers += [meta["index"].tolist(), [int(name.split()[1]) for name in meta["name"]]]
    return batch["x"], batch["labels"], numbers


class Model(ComposerClassifier):
    def __init__(self):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, CLASSES))
        super().__init__(net, num_classes=CLASSES)

    def forward(self, batch):
        return self.module(parts(batch)[0][:, -FEATURES:])

    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, parts(batch)[1])

    def get_metrics(self, is_train=False):
        return {}


class Inspector(Callback):
    """Checks that each batch and microbatch holds whole samples, and writes down which."""

    def __init__(self, data):
        self.data = data
        self.subsets, self.pools, self.microbatches, self.epoch_ends, self.learning_rates = [], [], [], [], []

    def samples_of(self, batch):
        x, y, numbers = parts(batch)
        indices = x[:, 0].long().tolist()
        assert torch.equal(x[:, 1:], self.data.x[indices])
        assert torch.equal(y, self.data.y[indices])
        assert all(n == indices for n in numbers)
        assert len(set(indices)) == len(indices)
        return indices

    def batch_start(self, state, logger):
        self.subsets.append(self.samples_of(state.batch))
        self.microbatches.append([])

    def before_forward(self, state, logger):
        self.microbatches[-1].append(self.samples_of(state.batch))

    def batch_end(self, state, logger):
        self.pools.append(int(state.timestamp.sample) - sum(self.pools))
        self.learning_rates.append(state.optimizers[0].param_groups[0]["lr"])

    def epoch_end(self, state, logger):
        self.epoch_ends.append((int(state.timestamp.epoch), int(state.timestamp.batch), int(state.timestamp.sample)))


def within_bounds(sizes):
    """A policy that follows a list of batch sizes: EDBA's own take longer to move than these runs last."""

    def make(size, minimum, maximum):
        return Sizes([min(max(s, minimum), maximum) for s in sizes])

    return make


@st.composite
def runs(draw):
    size = draw(st.integers(1, 150))
    drop_last = draw(st.booleans())
    least = draw(st.integers(1, 40))
    most = draw(st.integers(least, 200))
    start = draw(st.sampled_from([0.0, 0.0, 0.3]))
    return {
        "size": size,
        "batch_size": draw(st.integers(1, size if drop_last else 170)),
        "drop_last": drop_last,
        "structure": draw(st.sampled_from(["pair", "words", "nested", "metas"])),
        "shuffle": draw(st.booleans()),
        "sizes": draw(st.lists(st.integers(1, 200), max_size=6)),
        "limit": draw(st.sampled_from([None, 1, 2, 3, 5, 16, 1000])),
        "duration": draw(
            st.sampled_from([(1, "ep"), (2, "ep"), (3, "ep"), (1, "ba"), (7, "ba"), (20, "ba"), (1, "sp"), (260, "sp")])
        ),
        "pieces": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
        "edba": {
            "min_batch_size": least,
            "max_batch_size": most,
            "min_subset_size": draw(st.integers(1, min(most, 50))),
            "num_candidates": draw(st.sampled_from([1, 3, 64])),
            "batch_size_policy": draw(st.sampled_from(["loss", "margin", "noise_scale", "fixed"])),
            "criterion": draw(st.sampled_from(["margin", "difference", "random"])),
            "subset_size_law": draw(st.sampled_from(["uniform", "upper_half", "power_set", 0.01, 0.5, 1.0])),
            "interval": draw(st.sampled_from([1, 1, 2, 10])),
            "interrupt": draw(st.sampled_from([0, 0, 2, 3])),
            "start": start,
            "end": draw(st.sampled_from([1.0, 1.0, 0.7])),
            "ema_decay": draw(st.sampled_from([0.0, 0.9])),
        },
    }


def train(case):
    data = Samples(case["size"], "nested" if case["structure"] == "metas" else case["structure"])
    loader = DataLoader(
        data,
        batch_size=case["batch_size"],
        shuffle=case["shuffle"],
        drop_last=case["drop_last"],
        collate_fn=collate_metas if case["structure"] == "metas" else None,
    )
    spec = DataSpec(loader, get_num_samples_in_batch=lambda batch: len(parts(batch)[1]))
    inspector = Inspector(data)
    number, unit = case["duration"]
    policy = {"batch_size_policy": within_bounds(case["sizes"])} if case["sizes"] else {}
    run = trainer(
        [EDBA(**{**case["edba"], **policy})],
        loader=spec,
        model=Model(),
        callbacks=[inspector],
        max_duration=f"{number}{unit}",
        seed=case["seed"],
        device_train_microbatch_size=case["limit"],
        schedulers=MultiStepScheduler(["1ep", "2ep"], gamma=0.1),
    )
    pieces = [1] * number if case["pieces"] and number <= 20 else [number]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lies outside of min_batch_size")
        for piece in pieces:
            run.fit(duration=f"{piece}{unit}") if len(pieces) > 1 else run.fit()
    return run, inspector


def check_passes(case, run, seen):
    """An epoch is a pass over the data, and the duration is what was asked for."""
    size = case["size"]
    number, unit = case["duration"]
    timestamp = run.state.timestamp
    assert int(timestamp.sample) == sum(seen.pools)
    if unit == "ep":
        assert int(timestamp.epoch) == number
        assert len(seen.epoch_ends) == number
    elif unit == "ba":
        assert int(timestamp.batch) == number
    else:
        pieces = number if case["pieces"] and number <= 20 else 1
        assert number <= int(timestamp.sample) < number + pieces * max(seen.pools)
    begun = [(0, 0, 0), *seen.epoch_ends]
    for (_, first, before), (_, last, after) in pairwise(begun):
        if case["drop_last"]:
            assert after - before <= size
        else:
            assert after - before == size
        if not case["pieces"]:  # a second fit draws the rest of an epoch from a new order, with or without EDBA
            trained = [i for subset in seen.subsets[first:last] for i in subset]
            assert len(set(trained)) == len(trained)


def leaves_one(pool, limit):
    """1 if microbatches of any size up to the limit would leave one of one sample, which is then left out."""
    return int(limit is not None and 1 < limit < pool and all(pool % size == 1 for size in range(2, limit + 1)))


def check_sizes(case, run, seen):
    size, limit, arguments = case["size"], case["limit"], case["edba"]
    largest = min(arguments["max_batch_size"], size)
    least = arguments["min_subset_size"]
    assert [len(subset) for subset in seen.subsets] == logged(run, "edba/subset_size")
    assert seen.pools == logged(run, "edba/batch_size")
    for number, (pool, subset, microbatches) in enumerate(
        zip(seen.pools, seen.subsets, seen.microbatches, strict=True)
    ):
        if arguments["batch_size_policy"] != "fixed" or case["sizes"]:
            assert pool <= largest + 1  # one more where a last batch of one was joined
        assert min(least, pool) - leaves_one(pool, limit) <= len(subset) <= pool
        assert [i for part in microbatches for i in part] == subset, number
        assert limit is None or max(map(len, microbatches)) <= limit
        assert limit == 1 or len(subset) == 1 or min(map(len, microbatches)) >= 2


def check_counters(case, run, seen):
    trained, scored = logged(run, "edba/samples_trained"), logged(run, "edba/samples_scored")
    totals = [sum(map(len, seen.subsets[: n + 1])) for n in range(len(seen.subsets))]
    assert trained == totals
    before = 0
    for total, pool, subset in zip(scored, seen.pools, seen.subsets, strict=True):
        assert total - before in (0, pool)
        if total == before:  # a plain step takes the whole pool
            assert len(subset) == pool - leaves_one(pool, case["limit"])
        before = total
    distinct = logged(run, "edba/distinct_samples")
    met = set()
    for number, subset in zip(distinct, seen.subsets, strict=True):
        met.update(subset)
        assert number == len(met) <= case["size"]
    for name in ("model_average", "gradient_average"):
        assert all(abs(value) < float("inf") for value in logged(run, f"edba/{name}"))
    if case["edba"]["interrupt"] == 0 and case["edba"]["start"] == 0 and case["edba"]["end"] == 1:
        assert scored[-1] == sum(seen.pools[:: case["edba"]["interval"]])


def check_milestones(case, seen):
    """Each rate is that of the epochs done: a step too early or late would be a wrong one."""
    if case["drop_last"] or case["pieces"]:
        return  # the dropped rest belongs to no epoch; a fit in pieces has a schedule of its own
    for step, epochs in enumerate(epochs_before_steps(seen, case["size"])):
        whole = int(epochs)
        if whole > 0 and step // (whole + 1) + 1 > step // whole:
            continue  # more epochs than batches in one: Composer's whole number of batches an epoch cannot tell
        rate = 0.05 * 0.1 ** min(int(epochs), 2)
        assert seen.learning_rates[step] == pytest.approx(rate), (step, epochs)


@pytest.mark.slow
@settings(max_examples=400)
@given(case=runs())
def test_what_must_hold_of_any_run_holds(case):
    ran["runs"] += 1
    run, seen = train(case)
    check_passes(case, run, seen)
    check_sizes(case, run, seen)
    check_counters(case, run, seen)
    check_milestones(case, seen)
