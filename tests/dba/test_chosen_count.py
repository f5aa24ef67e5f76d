"""The batch size that follows how many samples were chosen lately."""

from hypothesis import given
from hypothesis import strategies as st

from composer_edba.dba.chosen_count import ChosenCountPolicy


def run(policy, share, steps):
    return [policy.update(share * policy.size, policy.size, policy.size) for _ in range(steps)]


def test_the_size_waits_for_a_full_window():
    policy = ChosenCountPolicy(100, 10, 1000, window=5)
    assert run(policy, 1.0, 5) == [100] * 4 + [125]
    assert run(policy, 1.0, 5) == [125] * 4 + [156]


def test_it_settles_where_the_target_share_is_chosen():
    policy = ChosenCountPolicy(100, 10, 1000, window=5, target=0.8)
    for _ in range(200):
        policy.update(min(policy.size, 60.0), policy.size, policy.size)  # whatever the size, 60 are wanted
    assert abs(policy.size - 75) <= 7  # 60 / 0.8, within the tolerance


def test_shares_near_the_target_change_nothing():
    assert set(run(ChosenCountPolicy(100, 10, 1000), 0.8, 100)) == {100}
    assert set(run(ChosenCountPolicy(100, 10, 1000), 0.84, 100)) == {100}


def test_bounds_hold():
    assert run(ChosenCountPolicy(100, 30, 130), 0.1, 200)[-1] == 30
    assert run(ChosenCountPolicy(100, 30, 130), 1.0, 200)[-1] == 130
    assert ChosenCountPolicy(5, 10, 20).size == 10


def test_only_batches_drawn_for_the_present_size_count():
    policy = ChosenCountPolicy(100, 10, 1000, window=2)
    for _ in range(10):
        assert policy.update(40.0, 40, 40) == 100
    policy.update(100.0, 100, 100)
    assert policy.update(100.0, 100, 100) == 125
    assert policy.update(20.0, 100, 100) == 125  # drawn before the change


def test_of_a_batch_that_is_smaller_to_be_even_the_share_counts():
    policy = ChosenCountPolicy(100, 10, 1000, window=2)
    policy.update(80.0, 80, 100)
    assert policy.update(90.0, 90, 100) == 125


@given(st.lists(st.floats(0, 1), max_size=120), st.integers(0, 120))
def test_state_goes_on_where_it_was(shares, cut):
    policy = ChosenCountPolicy(50, 10, 300, window=4)
    again = ChosenCountPolicy(50, 10, 300, window=4)
    for share in shares[:cut]:
        policy.update(share * policy.size, policy.size, policy.size)
    again.load_state_dict(policy.state_dict())
    for share in shares[cut:]:
        assert policy.update(share * policy.size, policy.size, policy.size) == again.update(
            share * again.size, again.size, again.size
        )
        assert 10 <= policy.size <= 300
    assert policy.state_dict() == again.state_dict()
