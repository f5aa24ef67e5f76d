"""What an accuracy costs: on made-up lines whose answers are known."""

import math

import pytest

from benchmarks.reports.comparison import Run, by_cell
from benchmarks.reports.document import Picture, Table
from benchmarks.reports.frontier import COSTS, cost_of_accuracy, cost_ratio, frontier_blocks, machine
from benchmarks.reports.report import write_report


def line(cell, arm, seed, accuracy, samples, updates, scored=0):
    """A suite's line of a run that took 2 ms an update and 10 µs a sample."""
    seconds = 0.002 * updates + 1e-5 * (samples + scored / 3)
    spent = {"samples_trained": samples, "samples_scored": scored, "updates": updates, "processor_seconds": seconds}
    return {
        "suite": "cifar10",
        "size": "cpu",
        "cell": cell,
        "arm": arm,
        "seed": seed,
        "evaluations": [{**spent, "seconds": seconds, "test_accuracy": accuracy}],
        "total_seconds": seconds,
        "versions": {"composer_edba": "0", "commit": "0" * 40, "dirty": False, "torch": "0", "composer": "0"},
        "hardware": {"cpu": "x", "gpu": None, "cores": 2, "threads": 1, "jobs": 1},
    }


def lines(seeds=3):
    found = []
    for seed in range(seeds):
        noise = 0.001 * (seed - (seeds - 1) / 2)
        for epochs, accuracy in ((5, 0.80), (10, 0.90)):
            found.append(line(f"{epochs}_epochs", "plain", seed, accuracy + noise, 1000 * epochs, 10 * epochs))
        found.append(line("10_epochs", "plain_500", seed, 0.86 + noise, 10_000, 50))
        found.append(line("10_epochs", "edba_mass", seed, 0.85 + noise, 6_000, 60))
        found.append(line("5_epochs", "edba_mass", seed, 0.70 + noise, 4_000, 40))
    return found


def test_between_budgets_accuracy_is_linear_in_the_logarithm_of_the_cost():
    points = [(100.0, 0.8), (400.0, 0.9)]
    assert cost_of_accuracy(points, 0.85) == pytest.approx(200)
    assert cost_of_accuracy(points, 0.8) == pytest.approx(100)
    assert cost_of_accuracy(points, 0.9) == pytest.approx(400)
    assert math.isnan(cost_of_accuracy(points, 0.91))
    assert math.isnan(cost_of_accuracy(points, 0.79))
    assert math.isnan(cost_of_accuracy([], 0.8))


def test_a_budget_that_a_cheaper_one_equals_is_no_part_of_the_frontier():
    points = [(400.0, 0.9), (100.0, 0.8), (200.0, 0.79), (300.0, 0.8)]
    assert cost_of_accuracy(points, 0.85) == pytest.approx(200)


def test_the_ratio_is_to_the_best_plain_training_there_is():
    cells = by_cell(lines())
    plain = {arm: {cell: runs[arm] for cell, runs in cells.items() if arm in runs} for arm in ("plain", "plain_500")}
    own = cells["10_epochs"]["edba_mass"]
    samples = cost_ratio(own, plain, COSTS["samples"][1])
    assert samples.value == pytest.approx(6000 / (5000 * 10_000) ** 0.5)
    assert samples.low < samples.value < samples.high
    # In updates batch 500 is the better plain training: 50 updates for 0.86, where batch 250 had 0.80 for as many.
    updates = cost_ratio(own, plain, COSTS["updates"][1])
    assert math.isnan(updates.value), "its frontier begins at 0.86, above 0.85"
    assert str(updates) == "no overlap"
    assert cost_ratio(own, plain, COSTS["samples"][1]) == samples, "the bootstrap has a seed"


def test_a_sample_that_is_only_scored_costs_a_third():
    run = Run(line("5_epochs", "edba_paper", 0, 0.8, 900, 10, scored=300))
    assert COSTS["samples"][1](run) == 1000


def test_one_seed_has_no_interval():
    cells = by_cell(lines(seeds=1))
    plain = {"plain": {cell: runs["plain"] for cell, runs in cells.items()}}
    ratio = cost_ratio(cells["10_epochs"]["edba_mass"], plain, COSTS["samples"][1])
    assert str(ratio) == "0.85 (one seed)"


def test_the_machines_time_is_told_by_updates_and_samples():
    a, b = machine([Run(record) for record in lines()])
    assert a == pytest.approx(0.002, rel=1e-6)
    assert b == pytest.approx(1e-5, rel=1e-6)
    assert machine([Run(record) for record in lines()[:2]]) is None


def test_the_report_holds_picture_ratios_and_every_budget(tmp_path):
    cells = by_cell(lines())
    blocks = frontier_blocks(cells, tmp_path / "x.png")
    assert isinstance(blocks[0], Picture)
    assert (tmp_path / "x.png").stat().st_size > 10_000
    ratios, budgets = (block for block in blocks if isinstance(block, Table))
    assert [row[0] for row in ratios.rows] == [
        "EDBA, gradient mass, 5 epochs planned",
        "EDBA, gradient mass, 10 epochs planned",
    ]
    assert [cell.text for cell in ratios.rows[0][3:]] == ["no overlap"] * 3
    assert len(budgets.rows) == 5
    markdown, page = write_report(lines(), "cifar10", "cpu", tmp_path / "a")
    assert "Cost at equal accuracy" in markdown.read_text()
    again, _ = write_report(lines(), "cifar10", "cpu", tmp_path / "b")
    assert again.read_text() == markdown.read_text()
    assert "2 ms an update" in page.read_text()
