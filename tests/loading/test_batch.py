from collections import UserDict, namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from composer_edba.loading.batch import batch_size, default_input_key, default_target_key, index_batch

Pair = namedtuple("Pair", ["x", "y"])


def leaf(size, kind):
    """A per-sample value whose entry for sample i is i."""
    return {
        "tensor": torch.arange(size),
        "array": np.arange(size),
        "matrix": torch.arange(size).unsqueeze(1).expand(size, 3).clone(),
        "strings": [str(i) for i in range(size)],
        "scalar": torch.tensor(5.0),
        "none": None,
        "flag": True,
    }[kind]


def expected(size, kind, indices):
    whole = leaf(size, kind)
    if kind in ("scalar", "none", "flag"):
        return whole
    return [whole[i] for i in indices] if kind == "strings" else whole[indices]


KINDS = ["tensor", "array", "matrix", "strings", "scalar", "none", "flag"]


def build(tree, size, make):
    if isinstance(tree, str):
        return make(size, tree)
    kind, children = tree
    parts = [build(child, size, make) for child in children]
    if kind == "dict":
        return {f"k{i}": part for i, part in enumerate(parts)}
    return parts if kind == "list" else tuple(parts)


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return a == b


trees = st.recursive(
    st.sampled_from(KINDS),
    lambda children: st.tuples(st.sampled_from(["dict", "list", "tuple"]), st.lists(children, min_size=1, max_size=4)),
    max_leaves=8,
)


# More samples than a list has parts: a list of flags as long as the batch would be one flag a sample.
@given(tree=trees, size=st.integers(5, 9), data=st.data())
def test_every_part_of_a_nested_batch_is_indexed_alike(tree, size, data):
    batch = ("tensor first", build(tree, size, leaf))
    batch = (leaf(size, "tensor"), batch[1])
    assert batch_size(batch) == size
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True))
    got = index_batch(batch, torch.tensor(indices), size)
    want = (
        expected(size, "tensor", indices),
        build(tree, size, lambda size, kind: expected(size, kind, indices)),
    )
    assert same(got, want)
    part = index_batch(batch, slice(0, 1), size)
    assert torch.equal(part[0], torch.arange(1))


def test_types_are_kept():
    chosen = index_batch(Pair(torch.arange(4), torch.arange(4)), torch.tensor([1, 3]), 4)
    assert isinstance(chosen, Pair)
    assert chosen.y.tolist() == [1, 3]
    encoded = index_batch(UserDict(labels=torch.arange(4)), torch.tensor([2]), 4)
    assert isinstance(encoded, UserDict)
    assert encoded["labels"].tolist() == [2]


def test_chosen_samples_have_storage_of_their_own_and_keep_their_memory_format():
    pool = torch.randn(100, 3, 8, 8).to(memory_format=torch.channels_last)
    chosen = index_batch(pool, torch.arange(10), 100)
    assert chosen.untyped_storage().nbytes() == 10 * 3 * 8 * 8 * 4
    assert chosen.is_contiguous(memory_format=torch.channels_last)


def test_parts_that_disagree_on_the_batch_size_are_named():
    with pytest.raises(ValueError, match=r"batch\['x'\]: 4, batch\['mask'\]: 7"):
        batch_size({"x": torch.zeros(4, 2), "mask": torch.zeros(7, 7)})


def test_a_batch_without_tensors_is_refused():
    with pytest.raises(ValueError, match="list holds no tensor"):
        batch_size(["a", "b"])


def test_default_keys():
    assert default_input_key([1, 2]) == 0
    assert default_target_key([1, 2]) == 1
    batch = {"input_ids": torch.zeros(2, 3).long(), "pixels": torch.zeros(2, 3), "labels": torch.zeros(2)}
    assert default_input_key(batch) == "pixels"
    assert default_target_key(batch) == "labels"
    assert default_target_key({"x": torch.zeros(2)}) is None
