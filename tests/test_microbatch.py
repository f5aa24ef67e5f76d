import torch
from hypothesis import given
from hypothesis import strategies as st

from composer_edba.microbatch import equal_part_size


@given(samples=st.integers(1, 2000), limit=st.none() | st.integers(1, 2000))
def test_parts_fit_and_none_has_one_sample(samples, limit):
    size = equal_part_size(samples, limit)
    if size is None:
        assert limit == 2
        assert samples % 2 == 1
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
