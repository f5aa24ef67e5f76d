"""The resizable batch sampler: every index once a pass, whatever the sizes."""

import copy

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from composer_edba.loading.sampler import ResizableBatchSampler, resizable_copy


@given(
    total=st.integers(0, 120),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    drop_last=st.booleans(),
)
def test_a_pass_draws_each_index_once_whatever_the_sizes(total, sizes, drop_last):
    sampler = ResizableBatchSampler(SequentialSampler(range(total)), sizes[0], drop_last)
    for _ in range(2):
        batches = []
        for number, batch in enumerate(sampler):
            batches.append(batch)
            assert sampler.indices_of(number) == batch
            assert sampler.drawn[-1] >= len(batch) - 1  # a last sample that would be alone joins
            sampler.batch_size = sizes[(number + 1) % len(sizes)]
            assert sampler.is_last(number) is False
        flat = [i for batch in batches for i in batch]
        assert flat == list(range(len(flat)))
        assert sampler.is_last(len(batches))
        if drop_last:
            assert total - len(flat) < max(sizes)
        else:
            assert len(flat) == total
            if total > 1 and min(sizes) > 1:
                assert min(map(len, batches)) > 1


@given(
    total=st.integers(1, 400),
    first=st.integers(2, 60),
    sizes=st.lists(st.integers(2, 60), min_size=1, max_size=30),
)
def test_a_resized_pass_leaves_no_small_rest(total, first, sizes):
    sampler = ResizableBatchSampler(SequentialSampler(range(total)), first)
    drawn = []
    for number, batch in enumerate(sampler):
        drawn.append((sampler.batch_size, len(batch)))
        sampler.batch_size = sizes[number % len(sizes)]
    asked = [size for size, _ in drawn]
    assert all(length <= size + 1 for size, length in drawn)
    if set(asked) == {first}:
        plain = BatchSampler(SequentialSampler(range(total)), first, drop_last=False)
        if total % first != 1 or total == 1:
            assert [length for _, length in drawn] == list(map(len, plain))
    for number in range(1, len(drawn)):
        if set(asked[:number]) != {first}:
            assert drawn[number][1] >= min(asked[number - 1 : number + 1]) // 2


@pytest.mark.parametrize(
    ("size", "lengths"), [(20, [50, 17, 17, 16]), (40, [50, 25, 25]), (60, [50, 50]), (48, [50, 25, 25])]
)
def test_what_is_left_after_a_resize_is_cut_evenly(size, lengths):
    sampler = ResizableBatchSampler(SequentialSampler(range(100)), 50)
    drawn = []
    for batch in sampler:
        drawn.append(len(batch))
        sampler.batch_size = size
    assert drawn == lengths
    assert len(sampler) == len(lengths)


@given(total=st.integers(2, 2000), first=st.integers(1, 100), size=st.integers(2, 700))
@example(1437, 64, 640)
def test_a_pass_in_another_size_than_the_first_is_even(total, first, size):
    sampler = ResizableBatchSampler(SequentialSampler(range(total)), first)
    sampler.batch_size = size
    lengths = list(map(len, sampler))
    assert sum(lengths) == total
    if size != first and size > 2:
        assert max(lengths) - min(lengths) <= 1
        assert len(lengths) == -(-total // size)
    if (total, size) == (1437, 640):
        assert lengths == [479, 479, 479]


@given(total=st.integers(1, 200), size=st.integers(1, 60), drop_last=st.booleans(), used=st.integers(0, 5))
def test_the_length_is_that_of_a_pass_at_the_present_size(total, size, drop_last, used):
    sampler = ResizableBatchSampler(SequentialSampler(range(total)), size, drop_last)
    count = sum(1 for _ in ResizableBatchSampler(SequentialSampler(range(total)), size, drop_last))
    assert len(sampler) == count
    batches = iter(sampler)
    for taken, _ in zip(range(used), batches, strict=False):
        assert len(sampler) == count
        assert sampler.is_last(taken + 1) == (taken + 1 == count)


def test_replay_draws_the_sizes_of_the_interrupted_pass_and_then_the_present_one():
    sampler = ResizableBatchSampler(SequentialSampler(range(100)), 40)
    sampler.resume([10, 20])
    assert [len(batch) for batch in sampler] == [10, 18, 36, 36]  # asked for 10, 20, 40; the rest is cut evenly
    sampler.forget_resumption()
    assert [len(batch) for batch in sampler] == [40, 40, 20]


class Subclassed(DataLoader):
    """What a subclass adds must survive."""

    flavour = "mine"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_copy_keeps_everything_but_the_sizes_and_leaves_the_given_loader_alone(workers):
    data = TensorDataset(torch.arange(64))
    loader = Subclassed(
        data, batch_size=16, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    twin = resizable_copy(loader)
    assert type(twin) is Subclassed
    assert twin.sampler is loader.sampler
    assert twin.dataset is data
    assert twin.batch_size == 16
    assert twin.drop_last
    assert len(twin) == 4
    assert resizable_copy(twin) is twin
    twin.batch_sampler.batch_size = 20
    assert [len(x) for (x,) in twin] == [20, 20, 20]
    assert [len(x) for (x,) in loader] == [16, 16, 16, 16]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_new_size_shows_after_the_prefetch_queue(workers):
    lag = 1 + workers * 2  # prefetch_factor 2
    total = 10 * (3 + lag) + 10 * 25
    loader = DataLoader(TensorDataset(torch.arange(total)), batch_size=10, num_workers=workers)
    twin = resizable_copy(loader)
    seen = []
    for number, (x,) in enumerate(twin):
        seen.append(len(x))
        if number == 3:
            twin.batch_sampler.batch_size = 25
    assert seen == [10] * (3 + lag) + [25] * 10


@pytest.mark.parametrize(
    "loader",
    [
        [torch.zeros(2)],
        DataLoader(TensorDataset(torch.zeros(4)), batch_size=None),
        DataLoader(
            TensorDataset(torch.zeros(4)),
            batch_sampler=type("Own", (BatchSampler,), {})(RandomSampler(range(4)), 2, False),
        ),
    ],
)
def test_loaders_that_cannot_be_resized(loader):
    assert resizable_copy(loader) is None


def test_a_shallow_copy_shares_no_state_with_its_original():
    loader = DataLoader(TensorDataset(torch.arange(9)), batch_size=3)
    twin = resizable_copy(loader, 5)
    assert twin.batch_sampler.batch_size == 5
    assert copy.copy(loader).batch_sampler.batch_size == 3


@given(total=st.integers(1, 100), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=10), keep=st.integers(1, 5))
def test_a_chooser_decides_what_is_loaded_and_not_what_is_drawn(total, sizes, keep):
    def batches(choose):
        sampler = ResizableBatchSampler(SequentialSampler(range(total)), sizes[0])
        sampler.choose = choose
        for number, batch in enumerate(sampler):
            yield batch, sampler.seen(number), sampler.seen(number + 1)
            assert sampler.indices_of(number) == batch
            sampler.batch_size = sizes[(number + 1) % len(sizes)]

    asked = []

    def choose(number, size, least, rest, own):
        indices = list(own(size))
        asked.append(number)
        return indices, indices[:keep]

    whole, chosen = list(batches(None)), list(batches(choose))
    assert [batch[:keep] for batch, _, _ in whole] == [batch for batch, _, _ in chosen]
    assert [seen for _, *seen in whole] == [seen for _, *seen in chosen]
    assert all(after - before == len(batch) for batch, before, after in whole)
    assert asked == list(range(len(whole)))
