"""The cost suite runs, and what it measures is what it says."""

import json
import time

import pytest
import torch

from composer_edba.benchmark.__main__ import main
from composer_edba.benchmark.interleaved import interleave
from composer_edba.benchmark.peak_memory import peak_bytes


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


def prepare_tensor(mebibytes):
    big = torch.ones(64 * 2**18)  # 64 MiB that are freed again do not count
    del big
    return lambda: torch.ones(mebibytes * 2**18).sum()


def test_peak_memory_is_that_of_the_work_alone():
    assert peak_bytes(prepare_tensor, 200) == pytest.approx(200 * 2**20, rel=0.1)


def test_the_cost_suite_writes_table_json_and_plot(tmp_path, capsys):
    command = ["cost", "--model", "resnet9", "--pools", "16", "--rounds", "2", "--no-memory", "--output", str(tmp_path)]
    assert main(command) == 0
    report = json.loads((tmp_path / "cost.json").read_text())
    assert report["machine"]["torch"] == torch.__version__
    assert len(report["selection"]) == 3
    (step,) = report["steps"]
    assert set(step["seconds"]) == {"edba", "floor", "plain_on_subset", "plain_on_pool", "selective_backprop"}
    assert set(step["edba_over"]) == set(step["seconds"]) - {"edba"}
    printed = capsys.readouterr().out
    assert "candidates a second" in printed
    assert str(tmp_path / "cost.png") in printed
    assert (tmp_path / "cost.png").stat().st_size > 5000
