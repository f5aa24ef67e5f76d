import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from composer_edba.method.candidates import draw_candidates
from composer_edba.settings import checked


def all_members(candidates):
    count = len(candidates.orders) * len(candidates.sizes) if candidates.as_prefixes else len(candidates.orders)
    return [candidates.members(i).tolist() for i in range(count)]


@given(
    groups=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    count=st.integers(1, 60),
    minimum=st.integers(1, 30),
    law=st.sampled_from(["uniform", "upper_half", "power_set"]) | st.floats(0.01, 1.0),
    multiple=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_candidates_are_valid_subsets(groups, count, minimum, law, multiple, seed):
    generator = torch.Generator().manual_seed(seed)
    candidates = draw_candidates(groups, count, minimum, law, multiple, generator=generator)
    if candidates is None:
        assert max(groups) <= minimum or law == 1
        return
    members = all_members(candidates)
    assert len(members) >= count
    bounds, start = [], 0
    for size in groups:
        bounds.append(range(start, start + size))
        start += size
    pool = min(groups)
    for subset in members:
        assert len(set(subset)) == len(subset)
        per_group = {sum(i in bound for i in subset) for bound in bounds}
        assert len(per_group) == 1
        size = per_group.pop()
        assert min(minimum, pool) <= size <= pool
        if -(-max(min(minimum, pool), pool // 2 + 1) // multiple) * multiple <= pool:
            assert size % multiple == 0
    if not candidates.as_prefixes:
        assert [mask.nonzero()[:, 0].tolist() for mask in candidates.masks()] == members


def test_every_subset_of_a_size_is_equally_likely():
    generator = torch.Generator().manual_seed(0)
    counts: dict[tuple[int, ...], int] = {}
    candidates = draw_candidates([4], 24_000, 2, "uniform", generator=generator)
    pairs = [tuple(m) for m in all_members(candidates) if len(m) == 2]
    for pair in pairs:
        counts[pair] = counts.get(pair, 0) + 1
    assert len(counts) == 6
    expected = len(pairs) / 6
    # Five standard deviations of a binomial count.
    assert all(abs(c - expected) < 5 * (expected * 5 / 6) ** 0.5 for c in counts.values())


@pytest.mark.parametrize(
    ("law", "low", "high", "mean"),
    [("uniform", 10, 100, 55), ("upper_half", 50, 100, 75), ("power_set", 10, 100, 50), (0.3, 30, 30, 30)],
)
def test_sizes_follow_the_law(law, low, high, mean):
    candidates = draw_candidates([100], 2000, 10, law, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([len(m) for m in all_members(candidates)])
    assert low <= sizes.min()
    assert sizes.max() <= high
    assert sizes.float().mean() == pytest.approx(mean, abs=0.5)
    if law in ("uniform", "upper_half"):
        assert len(sizes.unique()) == high - low + 1


def test_redrawn_members_are_fresh_and_of_the_same_size():
    candidates = draw_candidates([50], 100, 10, "uniform", generator=torch.Generator().manual_seed(0))
    redrawn = candidates.redraw(7, torch.Generator().manual_seed(1))
    assert len(redrawn) == len(candidates.members(7))
    assert len(set(redrawn.tolist())) == len(redrawn)


@pytest.mark.parametrize("law", ["unifrom", 0, 1.5, True, None, float("nan")])
def test_an_unknown_law_is_refused_by_name_and_value(law):
    with pytest.raises(ValueError, match=r"subset_size_law is .*'uniform', 'upper_half', 'power_set', or a share"):
        checked({"subset_size_law": law})
