"""The batch-size rules on synthetic metrics: they shrink, grow, stay, do not flap, and keep within bounds."""

import inspect
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_edba.method.sizing import (
    FixedPolicy,
    LossPolicy,
    MarginPolicy,
    NoiseScalePolicy,
    Observation,
    check_policy_options,
    make_policy,
)


def seen(
    wanted=1.0,
    reach=(0.5, 2.0),
    margin=0.5,
    pool_size=100,
    mean_square=10.0,
    pool_square=0.2,
    loss=math.nan,
    rate=None,
):
    return Observation(pool_size, margin, wanted, reach, mean_square, pool_square, loss, rate)


BELOW, INSIDE, ABOVE = seen(wanted=0.1), seen(wanted=1.0), seen(wanted=3.0)


def sizes(policy, observations):
    return [policy.update(observation) for observation in observations]


def test_margin_policy_grows_while_the_wanted_metric_lies_below_reach():
    path = sizes(MarginPolicy(100, 10, 1000), [BELOW] * 400)
    assert path == sorted(path)
    assert path[-1] == 1000


def test_margin_policy_shrinks_while_the_wanted_metric_lies_above_reach():
    path = sizes(MarginPolicy(100, 10, 1000), [ABOVE] * 400)
    assert path == sorted(path, reverse=True)
    assert path[-1] == 10


def test_margin_policy_stays_while_the_wanted_metric_is_within_reach():
    assert set(sizes(MarginPolicy(100, 10, 1000), [INSIDE] * 500)) == {100}


def test_margin_policy_stays_where_the_margin_is_small_although_out_of_reach():
    assert set(sizes(MarginPolicy(100, 10, 1000), [seen(wanted=0.4999, margin=1e-3)] * 500)) == {100}


@pytest.mark.parametrize("margin", [math.inf, 1e30])
def test_an_infinite_margin_counts_as_one_vote(margin):
    policy = MarginPolicy(100, 10, 1000)
    sizes(policy, [seen(wanted=0.1, margin=margin)] + [INSIDE] * 200)
    assert policy.size == 100


def test_margin_policy_does_not_flap_on_noise():
    rng = np.random.default_rng(0)
    policy = MarginPolicy(100, 10, 1000)
    noise = [BELOW if below else ABOVE for below in rng.random(5000) < 0.5]
    path = np.array(sizes(policy, noise))
    changes = np.flatnonzero(np.diff(path))
    assert len(changes) < 5000 / 200
    directions = np.sign(np.diff(path)[changes])
    assert (directions[1:] != directions[:-1]).sum() <= len(changes) / 2


def test_margin_policy_does_not_flap_on_alternating_blocks_shorter_than_its_window():
    policy = MarginPolicy(100, 10, 1000)
    assert set(sizes(policy, ([BELOW] * 5 + [ABOVE] * 5) * 100)) == {100}


def test_turning_round_takes_more_pressure_than_going_on():
    weak_above = [ABOVE, ABOVE, INSIDE, INSIDE] * 5  # a mean vote of -0.25
    strong = seen(wanted=3.0, margin=1.0)
    fresh = MarginPolicy(100, 10, 1000, threshold=0.2)
    sizes(fresh, weak_above)
    assert fresh.size < 100
    grown = MarginPolicy(100, 10, 1000, threshold=0.2)
    sizes(grown, [BELOW] * 20)
    size = grown.size
    assert size > 100
    sizes(grown, weak_above * 20)
    assert grown.size == size
    sizes(grown, [strong] * 100)
    assert grown.size < size


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("loss", {"window": 3, "exponent": 1.5, "rate_exponent": 1, "largest_growth": 4, "tolerance": 1.1}),
        ("margin", {"window": 3, "cooldown": 0, "threshold": 0.2, "hysteresis": 0, "factor": 2}),
        ("noise_scale", {"window": 3, "cooldown": 0, "tolerance": 1.2, "factor": 3}),
    ],
)
def test_every_constant_of_a_policy_can_be_set(policy, options):
    check_policy_options(policy, options)
    parameters = inspect.signature(type(make_policy(policy, 100, 10, 1000))).parameters.values()
    constants = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"ranks"}
    assert constants == set(options)
    rule = make_policy(policy, 100, 10, 1000, options=options)
    kept = {**vars(rule), "window": rule._window.maxlen}
    assert {name: kept[name] for name in options} == options


@pytest.mark.parametrize("policy", ["margin", "noise_scale"])
def test_a_change_needs_a_full_window_and_is_followed_by_a_cooldown(policy):
    rule = make_policy(policy, 100, 10, 1000)
    window, cooldown = rule._window.maxlen, rule.cooldown
    grow = seen(wanted=0.1, margin=1.0, mean_square=1e6, pool_square=1e4)
    path = sizes(rule, [grow] * (3 * (window + cooldown)))
    changes = np.flatnonzero(np.diff([100, *path]))
    assert changes[0] == window - 1
    assert (np.diff(changes) >= window + cooldown).all()


@given(
    st.lists(
        st.builds(
            seen,
            wanted=st.floats(-5, 5),
            margin=st.floats(0, allow_nan=False),
            mean_square=st.floats(0, 1e6),
            pool_square=st.floats(0, 1e6),
            pool_size=st.integers(1, 1000),
            loss=st.floats(allow_nan=True),
            rate=st.none() | st.floats(0, 1e300),
        ),
        max_size=30,
    ),
    st.sampled_from(["loss", "margin", "noise_scale"]),
    st.integers(1, 500),
    st.integers(1, 40),
    st.integers(0, 400),
)
def test_sizes_stay_within_bounds_whatever_is_seen(observations, policy, size, minimum, span):
    rule = make_policy(policy, size, minimum, minimum + span)
    rule._window = type(rule._window)(maxlen=2)
    rule.cooldown = 0
    for observation in observations * 3:
        assert minimum <= rule.update(observation) <= minimum + span
        assert isinstance(rule.size, int)


def gradients_seen(rng, pool_size, signal, variance, dimensions=50):
    mean = np.zeros(dimensions)
    mean[0] = signal**0.5
    g = mean + rng.normal(size=(pool_size, dimensions)) * (variance / dimensions) ** 0.5
    return seen(pool_size=pool_size, mean_square=(g**2).sum(1).mean(), pool_square=(g.mean(0) ** 2).sum())


@pytest.mark.parametrize(("scale", "start"), [(400, 50), (40, 300), (120, 120)])
def test_noise_scale_policy_settles_near_the_true_noise_scale(scale, start):
    rng = np.random.default_rng(0)
    policy = NoiseScalePolicy(start, 10, 1000)
    for _ in range(1500):
        policy.update(gradients_seen(rng, policy.size, signal=0.01, variance=0.01 * scale))
    assert scale / 1.6 < policy.size < scale * 1.6


def test_noise_scale_is_shared_among_ranks():
    rng = np.random.default_rng(0)
    policy = NoiseScalePolicy(50, 10, 1000, ranks=4)
    for _ in range(1500):
        policy.update(gradients_seen(rng, 4 * policy.size, signal=0.01, variance=4.0))
    assert 100 / 1.6 < policy.size < 100 * 1.6


def test_noise_scale_policy_grows_to_its_bound_where_there_is_no_signal():
    policy = NoiseScalePolicy(50, 10, 200)
    sizes(policy, [seen(mean_square=10.0, pool_square=0.05)] * 1000)
    assert policy.size == 200


def test_noise_scale_policy_stays_where_all_gradients_vanish():
    policy = NoiseScalePolicy(50, 10, 200)
    assert set(sizes(policy, [seen(mean_square=0.0, pool_square=0.0)] * 300)) == {50}


def losses_seen(losses, rates=None):
    rates = [None] * len(losses) if rates is None else rates
    return [replace(INSIDE, model_metric=m, learning_rate=r) for m, r in zip(losses, rates, strict=True)]


def test_loss_policy_grows_with_the_inverse_cube_of_the_loss():
    policy = LossPolicy(50, 10, 1000)
    sizes(policy, losses_seen([2.0] * 10))
    assert policy.size == 50
    sizes(policy, losses_seen([1.0] * 10))
    assert 400 / 1.4 <= policy.size <= 400  # it stays within the tolerance
    sizes(policy, losses_seen([0.1] * 100))
    assert 500 / 1.4 <= policy.size <= 500  # ten times the first size


def test_loss_policy_shrinks_when_the_loss_rises_and_never_below_its_first_size():
    policy = LossPolicy(50, 10, 1000)
    path = sizes(policy, losses_seen([2.0] * 10 + [0.5] * 20 + [1.25] * 20 + [9.0] * 20))
    assert max(path) > 500 / 1.4
    assert path[49] == pytest.approx(50 * 1.6**3, rel=0.4)
    assert path[-1] == 50


def test_loss_policy_leaves_to_a_decaying_learning_rate_what_it_does_itself():
    losses = [2.0] * 10 + [1.0] * 100
    constant, halved, to_zero = (LossPolicy(100, 10, 1000) for _ in range(3))
    sizes(constant, losses_seen(losses, [0.1] * 110))
    sizes(halved, losses_seen(losses, [0.1] * 10 + [0.05] * 100))
    sizes(to_zero, losses_seen(losses, np.linspace(0.1, 0.0, 110).tolist()))
    assert 800 / 1.4 <= constant.size <= 800
    assert 200 / 1.4 <= halved.size <= 200  # a quarter
    assert to_zero.size == 100


def test_a_warmup_is_no_decay():
    policy = LossPolicy(100, 10, 1000)
    sizes(policy, losses_seen([2.0] * 10 + [1.0] * 40, np.linspace(0.001, 0.1, 50).tolist()))
    assert 800 / 1.4 <= policy.size <= 800


def test_a_fit_at_a_lower_rate_is_held_by_its_own_highest_one():
    policy = LossPolicy(100, 10, 1000)
    sizes(policy, losses_seen([2.0] * 10, [0.1] * 10))
    policy.begin_fit()
    sizes(policy, losses_seen([1.0] * 40, [0.01] * 40))
    assert 800 / 1.4 <= policy.size <= 800


def test_rates_of_before_count_and_its_first_window_is_full_once():
    policy = LossPolicy(100, 10, 1000, window=3)
    wants = []
    for _ in range(5):
        wants.append(policy.refer(0.1))
        if wants[-1]:
            policy.update(replace(INSIDE, model_metric=2.0))
    assert wants == [True] * 3 + [False] * 2
    sizes(policy, losses_seen([1.0] * 20, [0.05] * 20))
    assert 200 / 1.4 <= policy.size <= 200  # of eight times the size a quarter


@pytest.mark.parametrize("loss", [0.0, -3.0, math.nan, math.inf])
def test_loss_policy_stays_where_the_loss_says_nothing(loss):
    assert set(sizes(LossPolicy(100, 10, 1000), losses_seen([loss] * 50))) == {100}


def test_loss_policy_does_not_flap_on_noise():
    rng = np.random.default_rng(0)
    path = sizes(LossPolicy(100, 10, 1000), losses_seen((1.0 + 0.1 * rng.standard_normal(5000)).tolist()))
    assert (np.diff(path) != 0).sum() < 5000 / 100


def test_the_first_observation_counts_for_the_loss_alone():
    first = replace(BELOW, first=True, model_metric=2.0, mean_square_norm=1e6, pool_square_norm=1e4)
    assert LossPolicy(100, 10, 1000, window=1).update(first) == 100
    for rule in (MarginPolicy(100, 10, 1000, window=1), NoiseScalePolicy(100, 10, 1000, window=1)):
        assert rule.update(first) == 100
        assert rule.update(replace(first, first=False)) != 100


def test_fixed_policy_keeps_its_size():
    assert set(sizes(FixedPolicy(77), [BELOW, ABOVE] * 100)) == {77}


@pytest.mark.parametrize("name", ["loss", "margin", "noise_scale", "fixed"])
@pytest.mark.parametrize("cut", [3, 20, 25, 61])
def test_a_policy_goes_on_from_its_state_as_if_nothing_had_happened(name, cut):
    rng = np.random.default_rng(1)
    observations = [
        seen(wanted=w, mean_square=1 + 100 * w, pool_square=w, loss=w, rate=0.1 / w)
        for w in rng.choice([0.1, 0.1, 1.0, 3.0], size=300)
    ]
    whole = sizes(make_policy(name, 100, 10, 1000), observations)
    first = make_policy(name, 100, 10, 1000)
    before = sizes(first, observations[:cut])
    second = make_policy(name, 100, 10, 1000)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + sizes(second, observations[cut:]) == whole


def test_the_first_size_is_moved_into_the_bounds():
    assert make_policy("margin", 5, 10, 1000).size == 10
    assert make_policy("noise_scale", 5000, 10, 1000).size == 1000
