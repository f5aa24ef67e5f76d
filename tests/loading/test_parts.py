import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from composer_edba.loading.parts import balanced_parts, equal_part_size, equal_parts_may_fail


@given(samples=st.integers(1, 2000), limit=st.none() | st.integers(1, 2000))
def test_parts_fit_and_none_has_one_sample(samples, limit):
    size = equal_part_size(samples, limit)
    if size is None:
        assert all(samples % part == 1 for part in range(2, limit + 1))
        return
    assert 1 <= size <= samples
    assert limit is None or size <= limit
    parts = [len(part) for part in torch.arange(samples).split(size)]
    if samples > 1 and limit != 1:
        assert min(parts) >= 2


def test_no_more_parts_than_needed_in_the_ordinary_case():
    assert equal_part_size(100, None) == 100
    assert equal_part_size(100, 128) == 100
    assert equal_part_size(33, 32) == 17
    assert equal_part_size(65, 64) == 33
    assert equal_part_size(10, 3) == 2


def test_where_equal_parts_fail_is_known_and_never_at_an_even_number():
    for limit in (None, 1, 2, 3, 4, 5, 6, 16):
        failing = [samples for samples in range(1, 200) if equal_part_size(samples, limit) is None]
        assert all(samples % 2 for samples in failing)
        for most in range(1, 200):
            assert equal_parts_may_fail(most, limit) == any(samples <= most for samples in failing), (most, limit)


@pytest.mark.parametrize("least", [2, 5])
def test_balanced_parts_keep_to_the_limit_and_none_is_too_small(least):
    for samples in range(1, 120):
        assert balanced_parts(samples, None, least) == [samples]
        assert balanced_parts(samples, 1, least) == [1] * samples
        for limit in range(2, 40):
            parts = balanced_parts(samples, limit, least)
            assert sum(parts) == samples
            assert max(parts) - min(parts) <= 1
            assert min(parts) >= min(least, samples)
            # Seven under a limit of three are 3, 2 and 2; only below twice the least size may a part exceed the limit.
            assert max(parts) <= limit or limit < 2 * least
