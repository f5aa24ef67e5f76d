import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from composer_edba.train.data import stratified_subset


@st.composite
def labels_and_size(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    names = draw(st.lists(st.integers(-5, 300), min_size=len(sizes), max_size=len(sizes), unique=True))
    labels = np.repeat(names, sizes)
    np.random.default_rng(draw(st.integers(0, 99))).shuffle(labels)
    return labels, draw(st.integers(1, len(labels)))


@given(case=labels_and_size(), seed=st.integers(0, 2**40))
def test_exact_size_sorted_distinct_and_within_one_of_the_share(case: tuple[np.ndarray, int], seed: int) -> None:
    labels, samples = case
    chosen = stratified_subset(labels, samples=samples, seed=seed)
    assert chosen.dtype == np.int64
    assert chosen.shape == (samples,)
    assert np.all(np.diff(chosen) > 0)
    assert 0 <= chosen[0] <= chosen[-1] < len(labels)
    for name, size in zip(*np.unique(labels, return_counts=True), strict=True):
        # |count - samples * size / N| < 1, in whole numbers
        assert abs(int((labels[chosen] == name).sum()) * len(labels) - samples * int(size)) < len(labels)


@given(classes=st.integers(1, 20), each=st.integers(1, 10), data=st.data())
def test_fewer_samples_than_balanced_classes_are_of_distinct_classes(classes: int, each: int, data) -> None:
    samples = data.draw(st.integers(1, classes))
    labels = np.tile(np.arange(classes), each)
    chosen = stratified_subset(labels, samples=samples, seed=data.draw(st.integers(0, 999)))
    assert len(set(labels[chosen])) == samples


def test_every_class_and_every_sample_can_be_drawn() -> None:
    labels = np.repeat(np.arange(6), 4)
    draws = [stratified_subset(labels, samples=3, seed=seed) for seed in range(200)]
    counts = np.bincount(np.concatenate(draws), minlength=24)
    # 25 expected each, binomial standard deviation 4.7
    assert counts.min() >= 6
    assert counts.max() <= 47


@given(case=labels_and_size(), seed=st.integers(0, 999))
def test_same_arguments_same_subset_whatever_the_global_streams(case: tuple[np.ndarray, int], seed: int) -> None:
    labels, samples = case
    first = stratified_subset(labels, samples=samples, seed=seed)
    random.seed(seed + 1)
    np.random.seed(seed + 1)
    torch.manual_seed(seed + 1)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    again = stratified_subset(labels.tolist(), samples=samples, seed=seed)
    assert np.array_equal(first, again)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_seeds_differ() -> None:
    labels = np.repeat(np.arange(10), 100)
    assert not np.array_equal(
        stratified_subset(labels, samples=100, seed=0), stratified_subset(labels, samples=100, seed=1)
    )


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ({"fraction": 1.0}, 5000),
        ({"fraction": 0.1}, 500),
        ({"fraction": 0.01}, 50),
        ({"samples": 100}, 100),
        ({}, 5000),
        ({"fraction": 1e-9}, 1),
        ({"fraction": 0.00051}, 3),
    ],
)
def test_sizes(size: dict[str, float], count: int) -> None:
    labels = np.tile(np.arange(10), 500)
    chosen = stratified_subset(labels, seed=3, **size)
    assert len(chosen) == count
    if count % 10 == 0:
        assert np.bincount(labels[chosen]).tolist() == [count // 10] * 10


def test_published_choice_never_changes() -> None:
    """Runs with the same seed must train on the same samples in every version of this package and of numpy."""
    chosen = stratified_subset(np.tile(np.arange(10), 500), samples=10, seed=0)
    assert chosen.tolist() == PUBLISHED


PUBLISHED = [630, 723, 2042, 2174, 2395, 2567, 2778, 4076, 4591, 4929]


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"fraction": 0.5, "samples": 2}, ValueError, "not both"),
        ({"fraction": 0.0}, ValueError, r"fraction must be in \(0, 1\], not 0.0"),
        ({"fraction": 1.01}, ValueError, "fraction .* not 1.01"),
        ({"fraction": float("nan")}, ValueError, "fraction .* not nan"),
        ({"samples": 0}, ValueError, "samples must be between 1 and the 4 there are, not 0"),
        ({"samples": 5}, ValueError, "samples .* not 5"),
        ({"samples": 2.5}, TypeError, "float"),
        ({"seed": -1}, ValueError, "seed must not be negative, not -1"),
    ],
)
def test_errors(kwargs: dict[str, float], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        stratified_subset([0, 1, 0, 1], **kwargs)


@pytest.mark.parametrize(
    ("labels", "error"), [([], ValueError), ([[0, 1]], ValueError), (3, ValueError), ([0.5, 1.0], TypeError)]
)
def test_labels_of_the_wrong_shape_or_type(labels, error: type[Exception]) -> None:
    with pytest.raises(error, match="labels must be"):
        stratified_subset(labels)
