"""The comparison of scoring at lower resolutions: its figures mean what they say, and the suite runs."""

import json

import pytest
import torch

pytest.importorskip("torchvision")  # CIFAR's images

from benchmarks.__main__ import main
from benchmarks.cost import scale_factor
from benchmarks.cost.scale_factor import agreement
from composer_edba.engine import step_generator
from composer_edba.functional import Averages, select_subset
from composer_edba.scoring.pool_scores import PoolScores
from composer_edba.train.data.augment import BatchAugment
from composer_edba.train.data.splits import Splits
from composer_edba.train.data.tensor_dataset import BatchTensorDataset

AVERAGES = Averages(2.0, 1.2)  # the wanted gradient metric, 1.1, is within reach of the candidates below


def scores_of(inputs, output_grads, loss=1.9):
    return PoolScores(inputs, output_grads, torch.tensor(loss), True)


def choose(scores, seed=0):
    return select_subset(
        scores.inner_products(), scores.model_metric, AVERAGES, generator=step_generator(seed, 3)
    ).indices


def compare(full, low):
    return agreement(
        {1.0: full, 0.5: low},
        {1.0: choose(full), 0.5: choose(low)},
        choose(full, seed=1),
        AVERAGES,
        step_generator(0, 3),
    )


def test_the_same_scores_agree_wholly():
    full = scores_of(torch.randn(40, 6), torch.randn(40, 4))
    figures = compare(full, full)["0.5"]
    assert [figures[name] for name in ("samples", "candidates", "one_size", "overlap")] == pytest.approx([1, 1, 1, 1])
    assert figures["margin"] == figures["best_margin"] < figures["random_margin"]


def test_scores_twice_as_large_agree_in_rank_but_not_in_choice():
    inputs, output_grads = torch.randn(40, 6), torch.randn(40, 4)
    figures = compare(scores_of(inputs, output_grads), scores_of(inputs, 2 * output_grads))["0.5"]
    assert [figures[name] for name in ("samples", "candidates", "one_size")] == pytest.approx([1, 1, 1])
    assert figures["overlap"] < 1
    assert figures["margin"] > figures["best_margin"]


def test_unrelated_scores_agree_by_chance():
    samples, one_size, overlap, chance = [], [], [], []
    for _ in range(20):
        full = scores_of(torch.randn(40, 6), torch.randn(40, 4))
        figures = compare(full, scores_of(torch.randn(40, 6), torch.randn(40, 4)))
        samples.append(figures["0.5"]["samples"])
        one_size.append(figures["0.5"]["one_size"])
        overlap.append(figures["redrawn"]["overlap"])
        chance.append(figures["redrawn"]["chance"])
    assert abs(sum(samples) / 20) < 0.15
    assert abs(sum(one_size) / 20) < 0.25
    assert sum(overlap) / 20 == pytest.approx(sum(chance) / 20, abs=0.08)


def test_the_margin_is_that_of_equation_1():
    full = scores_of(torch.randn(30, 6), torch.randn(30, 4))
    figures = compare(full, full)["0.5"]
    members = choose(full)
    gradients = torch.einsum("bc,bf->bcf", full.output_grads, torch.cat([full.inputs, torch.ones(30, 1)], 1))
    norm = gradients[members].mean(0).norm().item()
    expected = abs((1.9 - AVERAGES.model) / (norm - AVERAGES.gradient) - 1)
    assert figures["margin"] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_the_suite_writes_tables_json_and_plot(tmp_path, monkeypatch, capsys):
    def splits(classes, root):
        def images(count):
            return BatchTensorDataset(
                torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8), torch.arange(count) % classes
            )

        transform = BatchAugment((0.5,) * 3, (0.25,) * 3, crop_padding=2, flip=True)
        return Splits(images(200), images(100), transform, transform, classes, 3)

    monkeypatch.setattr(scale_factor, "cifar_splits", splits)
    monkeypatch.setattr(scale_factor, "_TEST_IMAGES", 100)
    output = tmp_path / "scale"
    command = ["scale-factor", "--steps", "9", "--pool", "24", "--samples", "120", "--rounds", "2", "--seeds", "0", "1"]
    assert main([*command, "--scales", "0.5", "--output", str(output)]) == 0
    report = json.loads(output.with_suffix(".json").read_text())
    first, second = report["runs"]
    assert first["step"] == list(range(1, 9))  # step 0 trains on the whole pool
    assert [len(values) for values in first["scales"]["0.5"].values()] == [8] * 8
    assert first["loss"] != second["loss"]
    assert set(report["timing"]["seconds"]) == {"1.0", "0.5", "train"}
    text = output.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out
    assert "| 7 to 8 | redrawn |" in text
    assert output.with_suffix(".png").stat().st_size > 5000
