import json

from hypothesis import given
from hypothesis import strategies as st

from composer_edba.loading.distinct import DistinctSamples


@given(st.integers(1, 50).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.lists(st.integers(0, n - 1))))))
def test_it_counts_like_a_set_and_survives_a_checkpoint(case):
    size, additions = case
    counted, expected = DistinctSamples(size), set()
    for indices in additions:
        counted.add(indices)
        expected |= set(indices)
        assert len(counted) == len(expected)
    again = DistinctSamples(size)
    again.load_state_dict(json.loads(json.dumps(counted.state_dict())))
    again.add(range(size))
    assert len(again) == size
    other = DistinctSamples(size)
    other.load_state_dict(counted.state_dict())
    assert len(other) == len(expected)


def test_the_members_of_another_data_set_do_not_carry_over():
    first = DistinctSamples(10)
    first.add([1, 2])
    second = DistinctSamples(11)
    second.load_state_dict(first.state_dict())
    assert len(second) == 0
