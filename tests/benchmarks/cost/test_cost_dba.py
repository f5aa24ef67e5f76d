"""The DBA of the cost table: both ways do the same, what does not fit is said, and the search is measured."""

import json

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.cost import dba as cost_dba

SMALL = "MLP 784-64-10"


@pytest.mark.parametrize("network", [SMALL, "PreResNet20, GroupNorm, 16 px"])
def test_layer_by_layer_and_all_at_once_train_alike(network):
    steps = {arm: cost_dba._Steps(network, 14) for arm in ("dba", "dba_at_once")}
    for number in range(4):
        for arm, step in steps.items():
            getattr(step, arm)()
        first, second = (step.model.state_dict() for step in steps.values())
        for name, value in first.items():
            torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-6, msg=f"{name}, step {number}")
    averages = [step.layer_selectors[arm].gradient_averages for arm, step in steps.items()]
    assert list(averages[0]) == list(averages[1])
    assert list(averages[0].values()) == pytest.approx(list(averages[1].values()), rel=1e-3)


def test_group_norm_replaces_every_batch_norm():
    for network in cost_dba.NETWORKS:
        model = cost_dba._Steps(network, 2).model
        assert not [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]


def test_the_memory_of_gradients_is_that_of_their_numbers():
    parameters = 784 * 64 + 64 + 64 * 10 + 10
    assert cost_dba.gradient_bytes(SMALL, 100, "dba_at_once") == 100 * parameters * 4
    assert cost_dba.gradient_bytes(SMALL, 100, "dba") == 0  # Linear layers alone
    assert cost_dba.gradient_bytes("ResNet-9, GroupNorm, 16 px", 10, "dba") == 10 * 512 * 512 * 9 * 4
    assert cost_dba.gradient_bytes(SMALL, 100, "edba") == 0


def test_search_never_ends_worse_than_the_whole_batch_nor_better_than_the_best():
    found = cost_dba.measure_search(20, 6)
    ways = {way["way"]: way for way in found["ways"]}
    assert found["situations"] == 38  # no search on the first step
    assert all(way["median_margin"] >= found["median_best"] for way in ways.values())
    assert ways["removal, by norm"]["median_margin"] <= ways["whole batch"]["median_margin"]
    assert ways["removal, by norm"]["best_reached"] >= ways["whole batch"]["best_reached"]
    assert ways["whole batch"]["mean_size"] == 6
    large = cost_dba.measure_search(5, 20)
    assert large["median_best"] is None


@pytest.mark.slow
def test_the_suite_says_what_does_not_fit(tmp_path, capsys):
    output = tmp_path / "c"
    # 20 x 50,890 parameters of 4 bytes are 3.9 MiB.
    options = ["--networks", SMALL, "--batches", "20", "--rounds", "2", "--search-steps", "4", "--memory", "0.0035"]
    assert main(["cost-dba", *options, "--output", str(output)]) == 0
    (row,) = json.loads(output.with_suffix(".json").read_text())["cost"]
    assert "dba_at_once" not in row["peak_bytes"]
    assert row["parameters"] == 50_890
    text = output.with_suffix(".md").read_text()
    assert "DBA, all layers at once | **does not fit**: 0.0 GiB (gradients alone)" in text
    assert text in capsys.readouterr().out
    assert output.with_suffix(".png").stat().st_size > 10_000
