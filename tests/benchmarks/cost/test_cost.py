"""The cost suite runs, and what it measures is what it says."""

import importlib.util
import json
import os
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks.__main__ import main
from benchmarks.cost import cost
from benchmarks.cost import selection as cost_selection
from benchmarks.cost import step as cost_step
from benchmarks.cost.interleaved import Timing, fair_clock, interleave
from benchmarks.cost.peak_memory import peak_bytes
from benchmarks.cost.report import as_markdown, growth_exponent
from benchmarks.cost.selection import measure_selection
from benchmarks.cost.step import KEEP, StepSettings, measure_steps, room_for
from composer_edba.functional import gradient_inner_products, subset_gradient_norms

CPU = torch.device("cpu")


def test_arms_take_turns_and_ratios_are_formed_round_by_round():
    calls = []

    def arm(name, seconds):
        def run(number):
            calls.append((name, number))
            time.sleep(seconds)

        return run

    timings = interleave({"short": arm("short", 0.005), "long": arm("long", 0.02)}, rounds=4, warm_up=1)
    assert calls == [(name, number) for number in (-1, 0, 1, 2, 3) for name in ("short", "long")]
    assert len(timings["long"].rounds) == 4
    assert timings["long"].median >= 0.02
    ratios = sorted(a / b for a, b in zip(timings["long"].rounds, timings["short"].rounds, strict=True))
    median, low, high = timings["long"].ratio(timings["short"])
    assert ratios[0] <= low <= median <= high <= ratios[-1]


def test_a_budget_leaves_out_rounds_but_not_more_than_all_but_three():
    def sleep(number):
        time.sleep(0.02)

    def rounds(budget):
        return len(interleave({"arm": sleep}, 12, warm_up=1, budget=budget)["arm"].rounds)

    assert rounds(budget=0.0) == 3
    assert 3 <= rounds(budget=0.16) <= 8
    assert rounds(budget=None) == 12


def test_the_clock_of_one_thread_leaves_out_what_others_do():
    clock = fair_clock(CPU)
    start = clock()
    time.sleep(0.1)
    assert clock() - start < 0.05
    timing = interleave({"asleep": lambda number: time.sleep(0.02)}, rounds=2, clock=clock)["asleep"]
    assert timing.median < 0.02
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert fair_clock(CPU) is time.perf_counter
    torch.set_num_threads(threads)


def prepare_tensor(mebibytes):
    big = torch.ones(64 * 2**18)  # 64 MiB that are freed again do not count
    del big
    return lambda: torch.ones(mebibytes * 2**18).sum()


def prepare_several(mebibytes):
    def run():
        for _ in range(4):  # freed each time: the peak is that of one
            torch.ones(mebibytes * 2**18).sum()

    return run


def prepare_end():
    return lambda: os._exit(9)


def test_peak_memory_is_that_of_the_work_alone():
    assert peak_bytes(prepare_tensor, 200) == pytest.approx(200 * 2**20, rel=0.1)
    assert peak_bytes(prepare_several, 100) == pytest.approx(100 * 2**20, rel=0.1)


def test_a_process_that_ends_before_it_is_measured_is_an_error():
    with pytest.raises(RuntimeError, match="exit code 9"):
        peak_bytes(prepare_end)


def test_the_rivals_of_selection_find_the_same_norms():
    inputs, output_grads = torch.randn(30, 7), torch.randn(30, 4)
    masks = cost_selection._random_masks(20, 30, CPU)
    gradients = cost_selection._materialised(inputs, output_grads)
    expected = subset_gradient_norms(gradient_inner_products(inputs, output_grads), masks)
    for norm in (cost_selection._matrix_vector, cost_selection._mean_of_rows):
        torch.testing.assert_close(torch.stack([norm(gradients, mask) for mask in masks]), expected)


def test_edba_is_credited_with_the_candidates_that_it_judges(monkeypatch):
    judged = []
    norms = cost_selection.select_subset.__globals__["prefix_gradient_norms"]

    def counting(*arguments):
        result = norms(*arguments)
        judged.append(result[:, 9:].numel())  # sizes from 10 on
        return result

    monkeypatch.setitem(cost_selection.select_subset.__globals__, "prefix_gradient_norms", counting)
    row = measure_selection(60, 10, 8, 200, 2, CPU)
    assert row["judged"] == 4 * 51
    assert set(judged) == {row["judged"]}
    rate, seconds = row["candidates_per_second"]["edba"], row["seconds"]["edba"]
    assert rate["low"] * 0.99 <= row["judged"] / seconds["median"] <= rate["high"] * 1.01


def test_gradients_without_room_are_timed_in_part(monkeypatch):
    # Every way takes a second, so that rates are counts.
    monkeypatch.setattr(cost_selection, "interleave", lambda arms, *_, **__: dict.fromkeys(arms, Timing.of([1.0, 1.0])))
    whole = measure_selection(50, 100, 2000, 64, 2, CPU)
    assert whole["classes_held"] == 100
    few = cost_selection._FLOATS // (50 * 100 * 2001)
    assert whole["candidates_per_second"]["matrix_vector"]["median"] == few
    assert "\\*" not in as_markdown(report_of(selection=[whole]), Path("cost.png"))

    monkeypatch.setattr(cost_selection, "available_bytes", lambda device: whole["materialised_bytes"])
    part = measure_selection(50, 100, 2000, 64, 2, CPU)
    assert part["classes_held"] == 30
    few = min(64, cost_selection._FLOATS // (50 * 30 * 2001))
    for name in ("matrix_vector", "mean_of_rows"):
        assert part["candidates_per_second"][name]["median"] == pytest.approx(few * 30 / 100)
    assert part["candidates_per_second"]["masks_times_matrix"]["median"] == 64
    assert "\\*" in as_markdown(report_of(selection=[part]), Path("cost.png"))


@pytest.mark.parametrize("precision", ["fp32", "amp_bf16"])
def test_every_step_forwards_and_trains_what_it_should(precision):
    steps = cost_step._Steps(StepSettings("preresnet20_basic", precision), 20)
    seen = []
    steps.model.net.fc.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    subset = round(KEEP * 20)
    expected = {
        "edba": [20, subset],
        "floor": [20, subset],
        "plain_on_subset": [subset],
        "plain_on_pool": [20],
        "selective_backprop": [20, subset],
    }
    if importlib.util.find_spec("composer") is None:
        del expected["selective_backprop"]
    assert cost_step.step_arms() == list(expected)
    for name in expected:
        before = steps.model.net.fc.weight.clone()
        seen.clear()
        cost_step._ARMS[name](steps)
        assert seen == expected[name]
        assert not torch.equal(steps.model.net.fc.weight, before)


def test_steps_are_compared_with_edba():
    arms = ["edba", "floor", "plain_on_subset"]
    row = measure_steps(StepSettings("preresnet20_basic", channels_last=True), 12, arms, rounds=6, budget=0.0)
    assert row["rounds"] == 3
    assert list(row["seconds"]) == arms
    assert list(row["edba_over"]) == arms[1:]
    assert row["edba_over"]["plain_on_subset"][0] > 1


def test_steps_that_would_not_fit_are_left_out(monkeypatch, tmp_path):
    fits, needed, left = room_for(200, 100, 2**30, CPU)
    assert needed == 2**31
    assert fits == (needed < left)
    peaks = {"edba": 10, "plain_on_pool": 2**50}
    monkeypatch.setattr(cost, "step_arms", lambda: list(peaks))
    monkeypatch.setattr(cost, "measure_memory", lambda settings, pool, arms: {name: peaks[name] for name in arms})
    command = ["cost", "--parts", "memory", "--pools", "2", "4", "--output", str(tmp_path / "cost")]
    assert main(command) == 0
    first, second = json.loads((tmp_path / "cost.json").read_text())["steps"]
    assert first["peak_bytes"] == peaks
    assert second["peak_bytes"] == {"edba": 10}
    assert second["left_out"]["plain_on_pool"].startswith("needs about 2097152.0 GiB")
    assert "plain step on the pool: not run, needs about" in (tmp_path / "cost.md").read_text()


def test_growth_is_the_exponent_of_a_power_law():
    assert growth_exponent([100, 200, 1000], [3e4, 12e4, 300e4]) == pytest.approx(2)


def report_of(**parts):
    machine = {
        "device": "CPU",
        "kind": "cpu",
        "cores": 2,
        "memory_bytes": 2**30,
        "threads": 1,
        "python": "3",
        "torch": "2",
        "composer": None,
        "composer_edba": "0",
    }
    return {"machine": machine, "rounds": 2, "selection": [], "steps": [], "trainer": [], **parts}


def test_bars_are_judged_by_medians():
    def row(floor, peak):
        return {
            "model": "net",
            "precision": "fp32",
            "channels_last": False,
            "pool": 100,
            "subset": 55,
            "rounds": 5,
            "seconds": {"edba": {"median": 1.0, "low": 0.9, "high": 1.1}},
            "edba_over": {"floor": [floor, 0.9, 1.3]},
            "peak_bytes": {"edba": peak, "plain_on_pool": 100},
        }

    for floor, peak, verdicts in ((1.04, 106, ["met", "missed"]), (1.06, 104, ["missed", "met"])):
        text = as_markdown(report_of(steps=[row(floor, peak)]), Path("cost.png"))
        lines = [line for line in text.splitlines() if "<= 1.05" in line]
        assert [verdict for line, verdict in zip(lines, verdicts, strict=True) if verdict in line] == verdicts


def test_the_cost_suite_writes_tables_json_and_plot(tmp_path, capsys):
    command = ["cost", "--model", "preresnet20_basic", "--pools", "16", "24", "--rounds", "2", "--candidates", "64"]
    command += ["--parts", "selection", "steps", "--output", str(tmp_path / "deep" / "cost")]
    assert main(command) == 0
    report = json.loads((tmp_path / "deep" / "cost.json").read_text())
    assert report["machine"]["torch"] == torch.__version__
    assert len(report["selection"]) == 6
    assert [row["pool"] for row in report["steps"]] == [16, 24]
    text = (tmp_path / "deep" / "cost.md").read_text()
    printed = capsys.readouterr().out
    assert text in printed
    for heading in ("The bars", "Selection alone", "A step", "Growth with B"):
        assert f"## {heading}" in text
    assert str(tmp_path / "deep" / "cost.png") in printed
    assert (tmp_path / "deep" / "cost.png").stat().st_size > 5000


def test_trainers_train_on_what_they_say():
    pytest.importorskip("composer")
    from benchmarks.cost.trainer import measure_trainer

    row = measure_trainer("digits_cnn", 24, 2, CPU, image=(1, 8, 8))
    assert set(row["ratio"]) == {
        "edba_cached",
        "edba_before_start",
        "edba_interrupted",
        "edba_mass",
        "edba_forward",
    }
    assert 10 <= row["mean_subset"] < 24
    assert all(figures["median"] > 0 for figures in row["seconds"].values())
    assert row["ratio"]["edba_forward"]["quartiles"][0] > 1
    assert "## In the Trainer" in as_markdown(report_of(trainer=[row]), Path("cost.png"))


def test_timings_have_quartiles():
    timing = Timing.of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (timing.low, timing.median, timing.high) == (2.0, 3.0, 4.0)
    assert timing.rounds == (4.0, 1.0, 3.0, 2.0, 5.0)


def test_precisions_are_torchs():
    steps = cost_step._Steps(StepSettings("preresnet20_basic", "amp_bf16"), 4)
    with steps.precision():
        assert F.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16
