"""The cache of scores: what was recorded last comes back, whatever the order, the repetitions and the restarts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from composer_edba.functional import gradient_inner_products
from composer_edba.scoring.cache import ScoreCache

SIZE, FEATURES, CLASSES = 12, 3, 2
CPU = torch.device("cpu")


def rows(generator, count):
    return torch.randn(count, FEATURES + CLASSES + 1, generator=generator)


def filled(steps):
    """A cache after ``steps``, lists of indices, and what it should hold: index -> (step, row)."""
    cache, known, generator = ScoreCache(SIZE), {}, torch.Generator().manual_seed(3)
    for step, indices in enumerate(steps):
        new = rows(generator, len(indices))
        cache.record(np.array(indices), new, step, features=FEATURES, bias=True)
        for index, row in zip(indices, new, strict=True):
            known[index] = (step, row)
    return cache, known


batches = st.lists(st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=8), min_size=1, max_size=6)


@given(batches)
def test_the_last_recording_of_each_sample_comes_back(steps):
    cache, known = filled(steps)
    for copy in (cache, restored(cache)):
        assert {i for i in range(SIZE) if copy.knows(np.array([i]))} == set(known)
        assert copy.steps.tolist() == [known[i][0] if i in known else -1 for i in range(SIZE)]
        wanted = np.array([*known, *known])  # a pool may hold a sample twice
        scores = copy.scores(wanted, CPU)
        expected = torch.stack([known[i][1] for i in wanted.tolist()])
        assert torch.equal(scores.inputs, expected[:, :FEATURES])
        assert torch.equal(scores.output_grads, expected[:, FEATURES:-1])
        assert torch.equal(scores.model_metric, expected[:, -1].mean())
        assert torch.equal(
            scores.inner_products(), gradient_inner_products(expected[:, :FEATURES], expected[:, FEATURES:-1])
        )


def restored(cache):
    twin = ScoreCache(SIZE)
    twin.load_state_dict(cache.state_dict(), CPU)
    assert twin.state_dict() == cache.state_dict()
    return twin


def test_a_pool_with_one_unknown_sample_is_not_known():
    cache, _ = filled([[0, 1, 2]])
    assert cache.knows(np.array([2, 0, 2]))
    assert not cache.knows(np.array([0, 1, 2, 3]))


def test_nothing_is_allocated_before_the_first_recording():
    cache = ScoreCache(10**6)
    assert cache.bytes == 0
    assert cache.device is None
    assert cache.state_dict() is None


def test_its_size_is_what_the_docstring_says_and_a_checkpoint_holds_what_was_recorded():
    cache, _ = filled([[0, 1, 2, 3]])
    assert cache.bytes == 4 * SIZE * (FEATURES + CLASSES + 1)
    assert len(cache.state_dict()["rows"]) == 4 * 4 * (FEATURES + CLASSES + 1)
    assert cache.device == CPU


def test_another_last_layer_begins_anew():
    cache, _ = filled([[0, 1, 2]])
    cache.record(np.array([5]), torch.zeros(1, 9), 7, features=6, bias=False)
    assert np.flatnonzero(cache.steps >= 0).tolist() == [5]
    scores = cache.scores(np.array([5]), CPU)
    assert scores.inputs.shape == (1, 6)
    assert scores.output_grads.shape == (1, 2)
    assert scores.bias is False


def test_another_data_sets_scores_are_not_taken_up():
    cache, _ = filled([[0, 1]])
    other = ScoreCache(SIZE + 1)
    other.load_state_dict(cache.state_dict(), CPU)
    assert other.bytes == 0
    assert not other.knows(np.array([0]))


def test_what_does_not_fit_on_the_device_goes_to_the_host(monkeypatch):
    table = 4 * SIZE * (FEATURES + CLASSES + 1)
    memory = {"meta": 5 * table, "cpu": 2 * table}
    monkeypatch.setattr("composer_edba.scoring.cache.device_memory", lambda device: memory[device.type])
    meta = torch.device("meta")

    def record():
        cache = ScoreCache(SIZE)
        cache.record(np.array([1]), torch.zeros(1, FEATURES + CLASSES + 1, device=meta), 0, features=3, bias=True)
        return cache.device

    assert record() == meta
    memory["meta"] -= 1
    cache = ScoreCache(SIZE)
    cache._allocate(FEATURES + CLASSES + 1, meta)  # a real row cannot be copied from this device
    assert cache.device == CPU
    memory["cpu"] -= 1
    with pytest.raises(ValueError, match=r"6 numbers for each of 12 samples.*scoring='forward'"):
        record()
