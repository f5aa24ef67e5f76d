"""Any value for any of EDBA's arguments: it is taken, or refused by a ValueError or TypeError that names it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from composer_edba import EDBA
from tests.contract.fuzz.counter import ran

DEFAULTS = EDBA().settings
CHECKED = [name for name in DEFAULTS if name not in ("input_key", "target_key")]  # keys may be anything
RIGHT = {
    "num_candidates": st.integers(1, 10**6),
    "ema_decay": st.floats(0, 1, exclude_max=True),
    "min_subset_size": st.integers(1, 2000),
    "min_batch_size": st.integers(1, 2000),
    "max_batch_size": st.integers(1, 10**9),
    "batch_size_policy": st.sampled_from(["loss", "margin", "noise_scale", "fixed"]),
    "criterion": st.sampled_from(["margin", "difference", "random", "gradient_mass", "random_mass"]),
    "left_out": st.floats(0, 1, exclude_max=True),
    "recheck": st.integers(1, 10**6),
    "refill": st.sampled_from([None, True, False]),
    "size_multiple": st.integers(1, 10**6),
    "scoring": st.sampled_from(["auto", "forward", "cached"]),
    "scale_factor": st.floats(0, 1, exclude_min=True),
    "start": st.floats(0, 1),
    "end": st.floats(0, 1),
    "interval": st.integers(1, 10**6),
    "interrupt": st.integers(0, 10**6),
    "last_layer": st.one_of(st.none(), st.text(max_size=8), st.builds(lambda: nn.Linear(1, 1))),
    "input_key": st.one_of(st.none(), st.integers(), st.text(max_size=8), st.builds(lambda: len)),
    "target_key": st.one_of(st.none(), st.integers(), st.text(max_size=8), st.builds(lambda: len)),
    "subset_size_law": st.one_of(
        st.sampled_from(["uniform", "upper_half", "power_set"]), st.floats(0, 1, exclude_min=True)
    ),
    "policy_options": st.one_of(
        st.none(),
        st.dictionaries(
            st.sampled_from(
                [
                    "window",
                    "exponent",
                    "rate_exponent",
                    "largest_growth",
                    "tolerance",
                    "cooldown",
                    "threshold",
                    "factor",
                ]
            ),
            st.one_of(st.integers(-1, 3), st.floats()),
            max_size=2,
        ),
    ),
    "scoring_batch_norm": st.sampled_from(["pool", "running"]),
}
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 2**63, 10**400, 1e-320]),
    st.complex_numbers(),
    st.text(max_size=20),
    st.binary(max_size=8),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([np.int64(5), np.float32(0.5), np.array(["margin", "x"]), np.array([1.0, 2.0]), np.array(0.5)]),
    st.sampled_from([torch.tensor(5), torch.tensor([1.0, 2.0]), torch.tensor(0.5), nn.ReLU(), object(), int, len]),
)


def expected_right(arguments):
    """What the documentation allows, said once more in other words."""

    def whole(name, least):
        value = arguments[name]
        return type(value) is int and value >= least

    def number(value):
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    def one_of(name, *names):
        return any(type(arguments[name]) is str and arguments[name] == choice for choice in names)

    def of_users(name):
        return callable(arguments[name])

    if not all(number(arguments[name]) for name in ("ema_decay", "scale_factor", "start", "end", "left_out")):
        return False
    counts = {
        "recheck": 1,
        "size_multiple": 1,
        "num_candidates": 1,
        "min_subset_size": 1,
        "min_batch_size": 1,
        "max_batch_size": 1,
        "interrupt": 0,
        "interval": 1,
    }
    if not all(whole(name, least) for name, least in counts.items()):
        return False

    def right_option(name, value):
        if name in ("window", "cooldown"):
            return type(value) is int and value >= (name == "window")
        least = {"exponent": 0, "rate_exponent": 0, "largest_growth": 1, "tolerance": 1, "threshold": 0, "factor": 1}[
            name
        ]
        above = (
            number(value)
            and math.isfinite(value)
            and (value > least or (name in ("largest_growth", "rate_exponent") and value == least))
        )
        return above and (name != "threshold" or value < 1)

    def right_options():
        options = arguments["policy_options"]
        if options is None:
            return True
        if not isinstance(options, dict):
            return False
        if not isinstance(arguments["batch_size_policy"], str):
            return False
        allowed = {
            "loss": {"window", "exponent", "rate_exponent", "largest_growth", "tolerance"},
            "margin": {"window", "cooldown", "threshold", "factor"},
            "noise_scale": {"window", "cooldown", "tolerance", "factor"},
            "fixed": set(),
        }[arguments["batch_size_policy"]]
        right = set(options) <= allowed and all(right_option(*option) for option in options.items())
        if right and arguments["batch_size_policy"] == "noise_scale":
            right = options.get("factor", 2) >= options.get("tolerance", 1.5)
        return right

    law, by_mass = arguments["subset_size_law"], one_of("criterion", "gradient_mass", "random_mass")
    forward = one_of("scoring", "forward") or (one_of("scoring", "auto") and not by_mass)
    refill = arguments["refill"]
    return (
        0 <= arguments["left_out"] < 1
        and (refill is None or refill is False or (refill is True and by_mass and not one_of("scoring", "forward")))
        and not (by_mass and one_of("batch_size_policy", "margin", "noise_scale"))
        and 0 <= arguments["ema_decay"] < 1
        and 0 < arguments["scale_factor"] <= 1
        and 0 <= arguments["start"] < arguments["end"] <= 1
        and max(arguments["min_batch_size"], arguments["min_subset_size"]) <= arguments["max_batch_size"]
        and arguments["interrupt"] != 1
        and (one_of("batch_size_policy", "loss", "margin", "noise_scale", "fixed") or of_users("batch_size_policy"))
        and (by_mass or one_of("criterion", "margin", "difference", "random") or of_users("criterion"))
        and one_of("scoring_batch_norm", "pool", "running")
        and (
            forward
            or (
                one_of("scoring", "auto", "cached")
                and arguments["scale_factor"] == 1
                and one_of("scoring_batch_norm", "pool")
            )
        )
        and right_options()
        and (arguments["last_layer"] is None or isinstance(arguments["last_layer"], (str, nn.Module)))
        and (one_of("subset_size_law", "uniform", "upper_half", "power_set") or (number(law) and 0 < law <= 1))
    )


def build(arguments):
    """An EDBA, or the message it was refused with, which must name one of the arguments."""
    try:
        return EDBA(**arguments)
    except (ValueError, TypeError) as error:
        message = str(error)
        named = [name for name in arguments if message.startswith(f"{name} is ")]
        assert named, message
        assert repr(arguments[named[0]]) in message or str(arguments[named[0]]) in message
        return message


@settings(max_examples=1000)
@given(wrong=st.dictionaries(st.sampled_from(sorted(CHECKED)), ANYTHING, min_size=1, max_size=4))
def test_wrong_values_are_refused_by_name_and_right_ones_taken(wrong):
    ran["arguments"] += 1
    arguments = {**DEFAULTS, **wrong}
    assert isinstance(build(arguments), EDBA) == expected_right(arguments), wrong


@settings(max_examples=1000)
@given(arguments=st.fixed_dictionaries({}, optional=RIGHT))
def test_values_in_range_are_taken_unless_bounds_contradict(arguments):
    ran["arguments"] += 1
    arguments = {**DEFAULTS, **arguments}
    built = build(arguments)
    assert isinstance(built, EDBA) == expected_right(arguments)
    if isinstance(built, EDBA):
        plain = not isinstance(arguments["last_layer"], nn.Module) and not any(
            callable(arguments[name]) for name in ("input_key", "target_key")
        )
        if plain:
            assert repr(eval(repr(built), {"EDBA": EDBA, "nan": math.nan, "inf": math.inf})) == repr(built)


@given(name=st.text(min_size=1, max_size=20).filter(lambda name: name not in DEFAULTS))
def test_an_argument_that_does_not_exist_is_named(name):
    ran["arguments"] += 1
    with pytest.raises(TypeError) as caught:
        EDBA(**{name: 1})
    assert repr(name) in str(caught.value)
