"""Pools by remembered norms, drawn through a real sampler: what is loaded, what is left out, what comes back."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import SequentialSampler

from composer_edba.loading.sampler import ResizableBatchSampler
from composer_edba.scoring.norms import NormMemory
from composer_edba.scoring.remembered_norms import RememberedNorms
from composer_edba.scoring.training_norms import TrainingNorms

SETTINGS = {
    "criterion": "gradient_mass",
    "left_out": 0.1,
    "recheck": 3,
    "min_subset_size": 2,
    "size_multiple": 4,
}


def remembered(samples, batch, drop_last=False, refill=True, **settings):
    """A sampler that RememberedNorms chooses in, and that."""
    sampler = ResizableBatchSampler(SequentialSampler(range(samples)), batch, drop_last)
    memory = RememberedNorms(
        {**SETTINGS, **settings},
        lambda pool: True,
        TrainingNorms(),
        lambda pool: torch.Generator().manual_seed(pool),
        lambda size: 1,
        refill,
    )
    memory.install(sampler, range(samples), torch.device("cpu"))
    return sampler, memory


def one_pass(sampler, memory):
    """Each batch of a pass as (pool, loaded), from the choices behind them."""
    found = []
    for number, batch in enumerate(sampler):
        choice = memory.take(number)
        assert choice.subset[0].tolist() == batch
        found.append((choice.pool[0], np.array(batch), choice.chosen[0]))
    return found


@given(
    samples=st.integers(1, 300),
    batch=st.integers(1, 40),
    drop_last=st.booleans(),
    left_out=st.sampled_from([0.02, 0.1, 0.3, 0.8]),
    seed=st.integers(0, 99),
)
def test_a_pass_draws_every_sample_once_and_all_its_batches_are_full_but_those_at_its_end(
    samples, batch, drop_last, left_out, seed
):
    sampler, memory = remembered(samples, batch, drop_last, left_out=left_out)
    memory.cache.norms[:] = np.random.default_rng(seed).exponential(size=samples) ** 3
    for _ in range(4):
        found = one_pass(sampler, memory)
        drawn = [int(n) for pool, _, _ in found for n in pool]
        assert drawn == list(range(len(drawn)))
        assert sampler.indices_drawn == samples
        assert samples - len(drawn) < (batch if drop_last else 1)
        sizes = [len(loaded) for _, loaded, _ in found]
        # What is expected to be left for the last two is shared between them, and may turn out to be a little more.
        assert set(sizes if drop_last else sizes[:-3]) <= {batch}
        assert max(sizes, default=0) <= batch + (samples % batch == 1)


@given(samples=st.integers(50, 300), batch=st.integers(16, 40), seed=st.integers(0, 99), refill=st.booleans())
def test_what_is_left_out_carries_at_most_its_share(samples, batch, seed, refill):
    sampler, memory = remembered(samples, batch, refill=refill, left_out=0.2, recheck=255)
    norms = memory.cache.norms[:] = np.random.default_rng(seed).exponential(size=samples)
    for _ in range(3):
        found = one_pass(sampler, memory)
        assert any(len(loaded) < len(pool) for pool, loaded, _ in found)
        for pool, _, chosen in found[: -1 if refill else None]:
            # The last pool of a pass may take in a rest too small for a batch of its own.
            assert norms[pool[~chosen]].sum() <= 0.2 * norms[pool].sum() * (1 + 1e-5)


@given(samples=st.integers(20, 200), batch=st.integers(4, 40), recheck=st.integers(1, 4), refill=st.booleans())
def test_a_sample_comes_back_after_so_many_omissions(samples, batch, recheck, refill):
    sampler, memory = remembered(samples, batch, refill=refill, recheck=recheck, left_out=0.3)
    memory.cache.norms[:] = np.linspace(0.1, 1, samples)
    omitted = np.zeros(samples, dtype=int)
    for _ in range(8):
        for pool, loaded, _ in one_pass(sampler, memory):
            omitted[pool] += 1
            omitted[loaded] = 0
        # In a pool whose batch has no room for all that come back some wait for the next pass.
        assert omitted.max() <= recheck + refill * 2
    assert np.array_equal(np.minimum(omitted, 255), memory.cache.omissions)


def test_samples_of_unknown_norm_are_trained_on():
    sampler, memory = remembered(100, 10)
    first = one_pass(sampler, memory)
    assert [len(loaded) for _, loaded, _ in first] == [len(pool) for pool, _, _ in first] == [10] * 10
    memory.cache.norms[:50] = 0.001
    memory.cache.norms[50:60] = 1.0
    loaded = np.concatenate([loaded for _, loaded, _ in one_pass(sampler, memory)])
    assert set(range(60, 100)) <= set(loaded.tolist())
    assert len(loaded) < 100


def test_random_members_are_as_many_and_others():
    def loaded(criterion):
        sampler, memory = remembered(200, 20, refill=False, criterion=criterion)
        memory.cache.norms[:] = np.random.default_rng(0).exponential(size=200)
        return [loaded for _, loaded, _ in one_pass(sampler, memory)]

    by_mass, at_random = loaded("gradient_mass"), loaded("random_mass")
    assert [len(batch) for batch in by_mass] == [len(batch) for batch in at_random]
    assert any(set(a) != set(b) for a, b in zip(by_mass, at_random, strict=True))


@given(data=st.data(), drop_last=st.booleans())
def test_resumed_anywhere_a_pass_goes_on_as_if_it_had_not_stopped(data, drop_last):
    samples, batch = data.draw(st.integers(10, 150)), data.draw(st.integers(2, 20))
    ahead = data.draw(st.integers(0, 3))

    def fresh():
        sampler, memory = remembered(samples, batch, drop_last)
        memory.cache.norms[:] = np.random.default_rng(1).exponential(size=samples)
        return sampler, memory

    def record(memory, loaded, step):
        rows = torch.tensor(loaded, dtype=torch.float32).remainder(7).add(step).unsqueeze(1)
        memory.cache.record(np.array(loaded), rows, step, features=1, bias=True)

    sampler, memory = fresh()
    list(sampler)
    steps = iter(sampler)
    queue, done, states, whole = [], 0, [], []
    while True:  # a loader with workers is `ahead` batches in front of the step
        while len(queue) <= ahead and (drawn := next(steps, None)) is not None:
            queue.append(drawn)
        if not queue:
            break
        states.append((copy.deepcopy(memory.state_dict()), list(sampler.drawn), sampler.has_dropped))
        whole.append(queue.pop(0))
        memory.take(done)
        record(memory, whole[-1], done)
        done += 1
    stop = data.draw(st.integers(1, len(whole))) if whole else 0
    if stop in (0, len(whole)):
        return
    state, drawn, dropped = states[stop]
    sampler, memory = fresh()
    memory.install(sampler, range(samples), torch.device("cpu"), skipped=stop)
    sampler.resume(drawn, dropped=dropped)
    memory.load_state_dict(state)
    steps, queue, again = iter(sampler), [], []
    while True:
        while (
            len(queue) <= ahead + (stop if not again and not queue else 0) and (next_ := next(steps, None)) is not None
        ):
            queue.append(next_)
            if len(again) < stop and queue:
                again.append(queue.pop(0))
        if not queue:
            break
        again.append(queue.pop(0))
        memory.take(len(again) - 1)
        record(memory, again[-1], len(again) - 1)
    assert again == whole


def test_memory_is_five_bytes_a_sample_and_so_is_its_checkpoint():
    memory = NormMemory(10_000)
    assert memory.bytes == 50_000
    memory.record(np.arange(10_000), torch.rand(10_000, 2), 0, features=3, bias=True)
    memory.enter(np.arange(10_000), np.arange(10_000) % 3 > 0)
    state = memory.state_dict()
    assert sum(len(part) for part in state.values() if isinstance(part, bytes)) < 51_000
    again = NormMemory(10_000)
    again.load_state_dict(state, torch.device("cpu"))
    assert np.array_equal(again.norms, memory.norms)
    assert np.array_equal(again.omissions, memory.omissions)
    other = NormMemory(9)
    other.load_state_dict(state, torch.device("cpu"))
    assert np.isnan(other.norms).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_is_not_known(value):
    memory = NormMemory(3)
    memory.record(np.array([0, 1]), torch.tensor([[value], [2.0]]), 0, features=1, bias=True)
    assert np.isnan(memory.norms[[0, 2]]).all()
    assert memory.norms[1] == 2
