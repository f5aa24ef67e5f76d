"""Where a run is evaluated, on what, and what its costs are counted as: real Trainers on the digits."""

import dataclasses

import pytest
import torch
from torch import nn

from benchmarks.suites.arms import ARMS
from benchmarks.suites.evaluation import EvaluationPoints, forward_flops
from benchmarks.suites.run import configuration_hash, execute
from benchmarks.suites.suites import YAMLS, planned_runs
from composer_edba.settings import SETTINGS
from composer_edba.train.config import load_config
from composer_edba.train.run import build_trainer


def spec(arm="plain", **overrides):
    (found,) = planned_runs("smoke", "cpu", arms=[arm], seeds=[0])
    return dataclasses.replace(found, overrides={**found.overrides, **overrides})


class Classifier(nn.Module):
    """3 x 3 convolution from 2 to 5 channels on 6 x 6, then a linear layer to 7."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Dropout(), nn.Flatten())
        self.fc = nn.Linear(5 * 36, 7)

    def forward(self, batch):
        return self.fc(self.body(batch[0]))


def test_flops_against_a_count_by_hand_and_without_side_effects():
    model = Classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = [torch.randn(4, 2, 6, 6), torch.zeros(4)]
    random = torch.get_rng_state()
    convolution, linear = 2 * 36 * 5 * (2 * 9), 2 * 180 * 7  # a multiply-add counts as two
    assert forward_flops(model, batch) == convolution + linear
    assert model.training
    assert model.body.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_a_duration_in_samples_is_refused():
    with pytest.raises(ValueError, match=r"must be in epochs \(ep\) or batches \(ba\)"):
        EvaluationPoints("500sp", 3)


def test_costs_of_a_plain_run_are_what_was_done():
    record = execute(spec(), jobs=3)
    assert record["hardware"]["jobs"] == 3
    assert record["configuration"] == configuration_hash(spec())
    assert [e["epochs"] for e in record["evaluations"]] == [1, 2, 3, 4, 5, 6]
    for number, evaluation in enumerate(record["evaluations"], start=1):
        assert evaluation["updates"] == 8 * number  # 500 samples in batches of 64
        assert evaluation["samples_drawn"] == evaluation["samples_trained"] == 500 * number
        assert evaluation["samples_scored"] == 0
        assert evaluation["distinct_samples"] == 500
        assert evaluation["flops"] == pytest.approx(3 * 500 * number * record["flops_per_sample"])
        assert 0 <= evaluation["validation_accuracy"] <= 1
    seconds = [e["seconds"] for e in record["evaluations"]]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] < seconds[-1] < record["total_seconds"]
    # Part of the test set on the way, all of it at the end.
    assert all(("test_part_accuracy" in e, "test_accuracy" in e) == (True, False) for e in record["evaluations"][:-1])
    last = record["evaluations"][-1]
    assert last["test_accuracy"] * 360 == pytest.approx(round(last["test_accuracy"] * 360), abs=1e-3)
    assert record["evaluations"][0]["test_part_accuracy"] * 100 % 1 == pytest.approx(0, abs=1e-6)
    assert record["batch_size_path"] == [(0, 64)]


def test_costs_of_edba_hold_scoring_and_the_subsets():
    record = execute(spec("edba_paper"))
    last = record["evaluations"][-1]
    assert last["samples_drawn"] == last["samples_scored"] == 3000
    assert 0 < last["samples_trained"] < 3000
    assert last["distinct_samples"] <= 500
    assert last["flops"] == pytest.approx((3 * last["samples_trained"] + 3000) * record["flops_per_sample"])
    assert record["batch_size_path"][-1][1] == last["batch_size"]
    assert any(text.startswith("EDBA(") for text in record["algorithms"])


def test_costs_of_selective_backprop_hold_its_scoring():
    # From half to nine tenths of training every second batch is scored, and half of it kept: epochs 3, 4 and 5 of 6.
    record = execute(spec("selective_backprop"))
    scored = [e["samples_scored"] for e in record["evaluations"]]
    per_epoch = 4 * 64  # batches 0, 2, 4 and 6 of 8
    assert scored == [0, 0, 0, per_epoch, 2 * per_epoch, 3 * per_epoch]
    last = record["evaluations"][-1]
    assert last["samples_trained"] == 3000 - scored[-1] // 2
    assert last["flops"] == pytest.approx((3 * last["samples_trained"] + scored[-1]) * record["flops_per_sample"])


def test_duration_in_batches():
    record = execute(dataclasses.replace(spec(**{"trainer.max_duration": "10ba"}), evaluations=4, test_samples=None))
    assert [e["updates"] for e in record["evaluations"]] == [3, 5, 8, 10]
    assert "test_accuracy" in record["evaluations"][-1]


def test_validation_samples_are_never_trained_on():
    config = load_config(YAMLS / spec().base, spec().override_strings())
    points = EvaluationPoints(config.trainer.max_duration, 6)
    trainer, _ = build_trainer(config, evaluators=lambda data: points.evaluators(data, 100))
    trainer.close()
    held_out = {evaluator.label: evaluator for evaluator in trainer.state.evaluators}["validation"]
    validation = held_out.dataloader.dataloader.dataset.inputs.flatten(1)
    trained = trainer.state.train_dataloader.dataset.inputs.flatten(1)
    assert (len(validation), len(trained)) == (200, 500)
    assert torch.cdist(validation, trained).min() > 0


def test_without_held_out_samples_there_is_no_run():
    with pytest.raises(ValueError, match=r"data.validation_samples is 0"):
        execute(spec(**{"data.validation_samples": 0}))


def test_the_hash_sees_what_matters_only():
    base = configuration_hash(spec())
    assert configuration_hash(spec(**{"optimizer.lr": 0.051})) != base
    assert configuration_hash(dataclasses.replace(spec(), test_samples=50)) != base
    assert configuration_hash(dataclasses.replace(spec(), evaluations=3)) != base
    assert configuration_hash(spec("edba")) != base
    assert configuration_hash(spec("growth")) != base
    assert configuration_hash(spec(**{"trainer.progress_bar": True, "torch_num_threads": 2})) == base


def test_a_run_is_the_same_when_done_again():
    names = ("validation_accuracy", "train_loss", "samples_trained", "updates")
    once, again = ([[e[name] for name in names] for e in execute(spec("edba"))["evaluations"]] for _ in range(2))
    assert once == again


def test_an_arm_keeps_its_hash_whatever_the_defaults_become(monkeypatch):
    arms = [arm for arm in ARMS if "algorithms.edba" in ARMS[arm].overrides]
    before = {arm: configuration_hash(spec(arm)) for arm in arms}
    assert before["edba_default"] == before["edba_fixed"] != before["edba"]
    assert len(set(before.values())) > len(arms) / 2
    for name, other in {
        "batch_size_policy": "loss",
        "interval": 7,
        "criterion": "difference",
        "scoring": "cached",
    }.items():
        monkeypatch.setitem(SETTINGS, name, dataclasses.replace(SETTINGS[name], default=other))
    assert {arm: configuration_hash(spec(arm)) for arm in arms} == before


def test_an_arm_spells_out_what_the_defaults_may_change():
    for arm, entry in ARMS.items():
        given = entry.overrides.get("algorithms.edba")
        if given and given.get("preset") != "paper":
            assert given.keys() >= {"criterion", "scoring", "interval", "batch_size_policy"}, arm
