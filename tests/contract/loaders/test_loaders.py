"""Whatever the loader and the loop: a pass draws what its sampler gives, and a resumed run is the uninterrupted one."""

import itertools
import random
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from unittest import mock

import pytest
import torch

from tests.contract.loaders.cases import FEW, PASSES, STOPS, Case, Variant, all_variants, cases, variants
from tests.contract.loaders.kinds import ORDERS, SETTINGS, SIZES
from tests.support.loops import LOOPS
from tests.support.task import BATCH, SAMPLES, Record

CASES = cases()


def parameters(stopped: bool):
    return [
        pytest.param(case, id=str(case), marks=() if case.quick else pytest.mark.slow)
        for case in CASES
        if (case.stop is not None) == stopped
    ]


@contextmanager
def noted(sampler: type | None):
    """Notes what each pass of samplers of a class gives, in a list of lists."""
    given: list[list[int]] = []
    if sampler is None:
        yield given
        return
    iterate = sampler.__iter__

    def iterate_and_note(self):
        given.append([])
        mine = given[-1]
        for index in iterate(self):
            mine.append(index)
            yield index

    with mock.patch.object(sampler, "__iter__", iterate_and_note):
        yield given


def run(variant: Variant, **arguments) -> Record:
    return LOOPS[variant.loop](SETTINGS[variant.settings], PASSES, variant.task(), **arguments)


@cache
def whole(variant: Variant) -> tuple[Record, list[list[int]]]:
    """The uninterrupted run, and what the sampler gave in each pass."""
    with noted(ORDERS[variant.order].sampler) as given:
        return run(variant), given


def drawn(variant: Variant, step: dict) -> list[int]:
    """Data-set indices that were drawn for a step, whether loaded or not."""
    if SETTINGS[variant.settings].get("scoring") == "cached" and step["last_selection"] is not None:
        return step["last_selection"][0]
    return step["delivered"]


def passes_of(variant: Variant, steps: list[dict]) -> list[list[int]]:
    return [
        [index for step in steps if step["pass"] == number for index in drawn(variant, step)]
        for number in range(PASSES)
    ]


def assert_whole_passes(variant: Variant, passes: list[list[int]]) -> None:
    """Each pass holds each of the loader's indices as often as it should, or less of them only where that is asked."""
    order, largest = ORDERS[variant.order], max(SAMPLES if variant.settings == "noise_scale" else 0, BATCH, *SIZES)
    cut = variant.drop_last or variant.settings == "few_batches"
    for number, indices in enumerate(passes):
        if order.expected is None:
            continue
        expected, found = Counter(order.expected(number)), Counter(indices)
        assert found <= expected, (number, "too often", found - expected)
        assert cut or found == expected, (number, "too seldom", expected - found)
        if variant.drop_last and variant.settings != "few_batches":
            assert len(indices) > sum(expected.values()) - largest * max(1, variant.workers), number


@pytest.mark.parametrize("case", parameters(stopped=False))
def test_a_pass_draws_what_its_sampler_gives(case):
    variant = case.variant
    record, given = whole(variant)
    steps, order = record.steps, ORDERS[variant.order]
    passes = passes_of(variant, steps)
    assert [step["pass"] for step in steps] == sorted(step["pass"] for step in steps)
    assert_whole_passes(variant, passes)
    if order.sampler is not None:
        assert len(given) == PASSES
        for number, (found, indices) in enumerate(zip(passes, given, strict=True)):
            if variant.in_order:
                assert found == indices[: len(found)], number
            assert not Counter(found) - Counter(indices), number
            if not variant.drop_last and variant.settings != "few_batches":
                assert len(found) == len(indices), number
    if variant.settings == "few_batches":  # of a short pass drop_last may leave fewer
        lengths = [sum(step["pass"] == number for step in steps) for number in range(PASSES)]
        assert max(lengths) == FEW
        assert variant.drop_last or min(lengths) == FEW


@pytest.mark.parametrize("case", parameters(stopped=False))
def test_the_last_selection_is_right_or_unknown(case):
    variant = case.variant
    steps, order = whole(variant)[0].steps, ORDERS[variant.order]
    for number, step in enumerate(steps):
        figures, last = step["figures"], step["last_selection"]
        assert figures["batch_size"] == len(drawn(variant, step)), number
        assert figures["subset_size"] == len(step["indices"]), number
        assert not Counter(step["indices"]) - Counter(drawn(variant, step)), number
        if last is not None:
            assert sorted(last[0]) == sorted(drawn(variant, step)), number
            assert sorted(last[1]) == sorted(step["indices"]), number
        elif variant.in_order and order.sampler is not None:
            assert "margin" not in figures, number
    chosen = [step["figures"]["subset_size"] < step["figures"]["batch_size"] for step in steps]
    # Kept scores are of use when all of a pool's samples have come before.
    complete = order.expected is not None and not variant.drop_last and variant.order != "growing"
    if SETTINGS[variant.settings].get("scoring") != "cached" or complete:
        assert any(chosen) == (variant.settings != "unchosen")
    if SETTINGS[variant.settings]["batch_size_policy"] not in ("fixed", "noise_scale"):
        sizes = [
            [step["figures"]["batch_size"] for step in steps if step["pass"] == number] for number in range(PASSES)
        ]
        # Sizes follow choices, from the third on at the latest. Workers have batches ahead, not those of the next pass.
        ahead, begins = variant.workers * (variant.prefetch or 2), 0
        known = 0  # choices that were made when the last batch that had the most of them before it was drawn
        for each in sizes:
            known = max(known, sum(chosen[: begins + max(0, len(each) - 1 - ahead)]))
            begins += len(each)
        as_given = all(size == BATCH for each in sizes for size in each[:-1])
        assert not as_given or known <= 2 or any(each[-1] > BATCH + 1 for each in sizes if each)


def steps_done(case: Case, passes: list[int]) -> list[int]:
    """After which steps the run is stopped, one after another; ``passes`` is each step's."""
    chance = random.Random(str(case))
    last = [number for number in range(1, len(passes)) if passes[number - 1] != passes[number]]
    if case.stop == "first":
        return [1]
    if case.stop in ("last", "between"):
        return [chance.choice(last)]
    inside = [number for number in range(2, len(passes)) if number not in last]
    if case.stop == "inside":
        return [chance.choice(inside)]
    neighbours = [(number, number + 1) for number in inside if number + 1 in inside]
    # Passes of few batches have none inside; two of them are stopped in then.
    return list(chance.choice(neighbours or list(itertools.combinations(inside, 2))))


def assert_same_steps(steps: list[dict], expected: list[dict], first: int) -> None:
    """``steps`` are those of ``expected``, which begins with step number ``first``; else say what differs first."""
    for number, (step, other) in enumerate(zip(steps, expected, strict=False), first):
        for name in other:
            assert step[name] == other[name], f"step {number}, pass {other['pass']}: {name}"
    assert len(steps) == len(expected)


@pytest.mark.parametrize("case", parameters(stopped=True))
def test_a_resumed_run_is_the_uninterrupted_one(case, tmp_path):
    variant = case.variant
    expected = whole(variant)[0]
    steps, state, done = [], None, 0
    for number in steps_done(case, [step["pass"] for step in expected.steps]):
        end, file = case.stop == "between", tmp_path / f"{number}.pt"
        part = run(variant, stop_after=number, at_pass_end=end, save_to=file, resume_from=state)
        assert_same_steps(part.steps, expected.steps[done:number], done)
        steps, state, done = steps + part.steps, file, number
    rest = run(variant, resume_from=state)
    steps += rest.steps
    assert_whole_passes(variant, passes_of(variant, steps))
    assert_same_steps(rest.steps, expected.steps[done:], done)
    assert rest.weights.keys() == expected.weights.keys()
    for name, tensor in expected.weights.items():
        assert torch.equal(rest.weights[name], tensor), name


# ---- the cases


def test_there_are_enough_cases_and_each_has_a_name_of_its_own():
    assert len(CASES) >= 300
    assert len({str(case) for case in CASES}) == len(CASES)
    assert sum(case.quick for case in CASES) <= len(CASES) / 3 + 1


def test_every_kind_of_loader_is_in_every_loop_whole_and_stopped_and_quickly():
    kinds = {(order, loop) for order in ORDERS for loop in LOOPS}
    for stop in (None, *STOPS):
        untold = {("iterable", "ignite")} if stop == "last" else set()
        had = {(case.variant.order, case.variant.loop) for case in CASES if case.stop == stop}
        assert kinds - untold - {("iterable_sized", "ignite")} <= had <= kinds
    quick = {(case.variant.order, case.variant.loop, case.stop is None) for case in CASES if case.quick}
    assert quick == {(*kind, is_whole) for kind in kinds for is_whole in (True, False)}


def test_every_pair_of_values_that_can_be_is_in_some_case():
    possible = set().union(*(variant.pairs for variant in all_variants()))
    had = set().union(*(variant.pairs for chosen in variants().values() for variant in chosen))
    assert possible == had


def test_what_is_left_out_is_left_out_on_purpose():
    variant = next(variant for variant in all_variants() if variant.persistent)
    assert not replace(variant, augmented=True).is_valid
