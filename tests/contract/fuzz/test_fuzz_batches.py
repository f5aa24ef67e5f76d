"""Any structure of batch: every part is cut down to the same samples, or it is refused by the path of the part."""

from collections import ChainMap, OrderedDict, UserDict, defaultdict, namedtuple
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from composer_edba.loading.batch import batch_size, index_batch
from tests.contract.fuzz.counter import ran

Fields = namedtuple("Fields", ["a", "b"])

# Every per-sample leaf says in all its numbers or words which sample it belongs to.
PER_SAMPLE = {
    "tensor": lambda n: torch.arange(n),
    "matrix": lambda n: torch.arange(n)[:, None].repeat(1, 3),
    "images": lambda n: torch.arange(n)[:, None, None, None].repeat(1, 2, 4, 4).to(memory_format=torch.channels_last),
    "empty rows": lambda n: torch.zeros(n, 0),
    "half": lambda n: torch.arange(n).half(),
    "flags": lambda n: torch.arange(n) % 2 == 0,
    "strided": lambda n: torch.arange(2 * n)[::2] // 2,
    "array": lambda n: np.arange(n),
    "words in an array": lambda n: np.array([f"word {i}" for i in range(n)]),
    "objects": lambda n: np.array([{"sample": i} for i in range(n)], dtype=object),
    "words": lambda n: [f"word {i}" for i in range(n)],
    "tuple of words": lambda n: tuple(f"word {i}" for i in range(n)),
    "bytes": lambda n: [bytes([i]) for i in range(n)],
    "numbers": lambda n: list(range(n)),
    "None among words": lambda n: [None if i % 2 else str(i) for i in range(n)],
    "dicts": lambda n: [{"sample": i, "name": f"word {i}"} for i in range(n)],
    "lists of other lengths": lambda n: [["x"] * (n + 1 + i) for i in range(n)],
    "empty lists": lambda n: [[] for _ in range(n)],
    "scalars": lambda n: [np.float32(i) for i in range(n)],
    "0-d tensors": lambda n: [torch.tensor(i) for i in range(n)],
}
SHARED = {
    "scalar tensor": lambda: torch.tensor(5.0),
    "scalar array": lambda: np.array(5),
    "NumPy scalar": lambda: np.float32(1.5),
    "none": lambda: None,
    "flag": lambda: True,
    "number": lambda: 7,
    "word": lambda: "en",
    "empty list": lambda: [],
    "empty tuple": lambda: (),
    "empty dict": lambda: {},
    "set": lambda: frozenset({1, 2}),
    "namedtuple of words": lambda: Fields("a", "b"),
}
CONTAINERS = {
    "dict": lambda parts: {f"k{i}": part for i, part in enumerate(parts)},
    "other keys": lambda parts: {(i, None): part for i, part in enumerate(parts)},
    "list": list,
    "tuple": tuple,
    "namedtuple": lambda parts: namedtuple("Made", [f"f{i}" for i in range(len(parts))])(*parts),
    "OrderedDict": lambda parts: OrderedDict((f"k{i}", part) for i, part in enumerate(parts)),
    "defaultdict": lambda parts: defaultdict(list, {f"k{i}": part for i, part in enumerate(parts)}),
    "UserDict": lambda parts: UserDict({f"k{i}": part for i, part in enumerate(parts)}),
    "ChainMap": lambda parts: ChainMap({f"k{i}": part for i, part in enumerate(parts)}),
    "MappingProxyType": lambda parts: MappingProxyType({f"k{i}": part for i, part in enumerate(parts)}),
}

leaves = st.one_of(
    st.sampled_from(sorted(PER_SAMPLE)).map(lambda kind: ("sample", kind)),
    st.sampled_from(sorted(SHARED)).map(lambda kind: ("shared", kind)),
)
trees = st.recursive(
    leaves,
    lambda children: st.tuples(st.sampled_from(sorted(CONTAINERS)), st.lists(children, max_size=4)),
    max_leaves=12,
)


def build(tree, size):
    kind, what = tree
    if kind == "sample":
        return PER_SAMPLE[what](size)
    if kind == "shared":
        return SHARED[what]()
    return CONTAINERS[kind]([build(child, size) for child in what])


def kinds(tree):
    kind, what = tree
    return {what} if kind in ("sample", "shared") else set().union(*map(kinds, what))


def ambiguous(tree, size):
    """A list of as many shared values as there are samples looks like one value a sample, and is taken for that."""
    kind, what = tree
    if kind in ("sample", "shared"):
        return False
    return (kind in ("list", "tuple") and len(what) == size) or any(ambiguous(child, size) for child in what)


def same(got, want):
    if type(got) is not type(want):
        return False
    if isinstance(want, torch.Tensor):
        return got.dtype == want.dtype and torch.equal(got, want)
    if isinstance(want, np.ndarray):
        return got.dtype.kind == want.dtype.kind and np.array_equal(got, want)
    if hasattr(want, "keys"):
        return list(got) == list(want) and all(same(got[key], want[key]) for key in want)
    if isinstance(want, (list, tuple)):
        return len(got) == len(want) and all(same(a, b) for a, b in zip(got, want, strict=True))
    return got == want


def take(leaf, indices):
    """Sample by sample, the other way than the implementation goes."""
    picked = [leaf[i] for i in indices]
    if isinstance(leaf, torch.Tensor):
        return torch.stack(picked)
    if isinstance(leaf, np.ndarray):
        return np.array(picked, dtype=leaf.dtype)
    return type(leaf)(picked)


def expected(tree, size, indices):
    kind, what = tree
    if kind == "sample":
        return take(PER_SAMPLE[what](size), indices)
    if kind == "shared":
        return SHARED[what]()
    return CONTAINERS[kind]([expected(child, size, indices) for child in what])


def test_named_tuples_are_made_anew_in_each_call():
    """So ``same`` has to compare them by fields."""
    assert CONTAINERS["namedtuple"]([1])._fields == ("f0",)


def without_named(tree):
    kind, what = tree
    if kind in ("sample", "shared"):
        return tree
    return ("list" if kind == "namedtuple" else kind, [without_named(child) for child in what])


@settings(max_examples=1500)
@given(tree=trees, size=st.integers(1, 9), data=st.data())
def test_every_part_holds_exactly_the_chosen_samples(tree, size, data):
    tree = ("tuple", [("sample", "tensor"), without_named(tree)])
    assume(not ambiguous(tree, size))
    ran["batches"] += 1
    batch = build(tree, size)
    assert batch_size(batch) == size
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True))
    assert same(index_batch(batch, torch.tensor(indices), size), expected(tree, size, indices))
    cut = data.draw(st.integers(1, size))
    assert same(index_batch(batch, slice(0, cut), size), expected(tree, size, range(cut)))
    assert same(batch, build(tree, size))  # the given one stays as it is


@settings(max_examples=300)
@given(parts=st.lists(leaves, min_size=1, max_size=4), size=st.integers(1, 9), data=st.data())
def test_named_tuples_keep_their_type_and_cut_their_fields(parts, size, data):
    ran["batches"] += 1
    batch = (torch.arange(size), CONTAINERS["namedtuple"]([build(part, size) for part in parts]))
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True))
    got = index_batch(batch, torch.tensor(indices), size)[1]
    assert type(got) is type(batch[1])
    for value, part in zip(got, parts, strict=True):
        assert same(value, expected(part, size, indices))


@settings(max_examples=500)
@given(tree=trees, size=st.integers(1, 9), other=st.integers(0, 9), at=st.integers(0, 1), data=st.data())
def test_a_part_of_another_length_is_refused_by_its_path(tree, size, other, at, data):
    """Never cut at random: a mask, a vocabulary, an empty tensor beside samples."""
    assume(other != size)
    ran["batches"] += 1
    wrong = data.draw(st.sampled_from([torch.zeros(other), np.zeros((other, 2)), torch.zeros(other, 3, 3)]))
    good = {"x": torch.arange(size), "rest": build(tree, size)}
    batch = {"deep": [{"mask": wrong}], **good} if at else {**good, "deep": [{"mask": wrong}]}
    with pytest.raises(ValueError, match="first dimension") as caught:
        batch_size(batch)
    assert "batch['deep'][0]['mask']: " in str(caught.value)
    with pytest.raises(ValueError, match=r"batch\['deep'\]\[0\]\['mask'\] has a first dimension of"):
        index_batch(batch, torch.arange(1), size)


@settings(max_examples=300)
@given(tree=trees)
def test_a_batch_without_samples_is_refused(tree):
    ran["batches"] += 1
    batch = build(tree, 0)
    with pytest.raises(ValueError, match=r"holds no tensor with a batch dimension|has a first dimension of 0"):
        batch_size(batch)


@pytest.mark.parametrize("batch", [None, 3, "words", b"", object(), {1, 2}, [], {}, (), torch.tensor(1.0), np.array(2)])
def test_what_is_no_batch_is_refused(batch):
    with pytest.raises(ValueError, match="holds no tensor with a batch dimension"):
        batch_size(batch)


def test_mappings_keep_what_else_they_have():
    batch = defaultdict(list, x=torch.arange(4))
    chosen = index_batch(batch, torch.tensor([3, 1]), 4)
    assert chosen["x"].tolist() == [3, 1]
    assert chosen["missing"] == []
    assert batch.keys() == {"x"}
