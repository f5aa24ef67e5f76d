"""The small tasks as cells of a suite: real Trainers, planned, recorded and reported as the others are."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.__main__ import main
from benchmarks.reports.report import write_report
from benchmarks.suites.records import append_record, read_records
from benchmarks.suites.run import configuration_hash, execute
from benchmarks.suites.small_tasks import PACKAGES, TASKS, VOCABULARY, MeanOfWords, _functions, _numbered
from benchmarks.suites.suites import SUITES, planned_runs
from composer_edba.train.config import ConfigError


def spec(cell, arm="plain", seed=0):
    (found,) = planned_runs("tasks", "cpu", cells=[cell], arms=[arm], seeds=[seed])
    return found


def spec_of(suite, cell, changes):
    (found,) = planned_runs(suite, "cpu", cells=[cell], arms=["plain"], seeds=[0])
    return dataclasses.replace(found, overrides={**found.overrides, **changes})


@pytest.fixture(scope="module")
def wine_and_diabetes(tmp_path_factory):
    """A line each of two tasks and all arms."""
    output = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    for one in planned_runs("tasks", "cpu", cells=["wine", "diabetes"], seeds=[0]):
        append_record(output, execute(one))
    return output


def test_lines(wine_and_diabetes):
    records = read_records(wine_and_diabetes)
    assert len(records) == 10
    for record in records:
        (last,) = record["evaluations"]
        assert record["train_size"] + record["test_size"] == {"wine": 178, "diabetes": 442}[record["cell"]]
        assert record["configuration"] == configuration_hash(spec(record["cell"], record["arm"]))
        assert last["samples_drawn"] == 30 * record["train_size"]
        assert last["distinct_samples"] <= record["train_size"]
        plain = record["arm"] == "plain"
        assert (last["samples_scored"] == 0) is plain
        assert (last["samples_trained"] == last["samples_drawn"]) is plain
        assert 0.2 < last["test_accuracy" if record["cell"] == "wine" else "test_r2"] <= 1
        forwards = 3 * last["samples_trained"] + last["samples_scored"]
        assert last["flops"] == pytest.approx(forwards * record["flops_per_sample"])
        assert record["versions"]["python"]
    assert "criterion='random'" in next(r for r in records if r["arm"] == "edba_paper_random")["algorithms"][0]


def command(output, *arguments):
    return main(["tasks", "--output", str(output), "--cells", "wine", "--seeds", "0", *arguments])


def test_finished_runs_are_not_done_again(wine_and_diabetes, capsys):
    before = wine_and_diabetes.read_text()
    assert command(wine_and_diabetes) == 0
    assert wine_and_diabetes.read_text() == before
    printed = capsys.readouterr().out
    assert "5 of 5 runs are in" in printed
    assert "seed 0" not in printed


@pytest.mark.slow
def test_runs_of_other_settings_are_refused(wine_and_diabetes, tmp_path, capsys):
    output = tmp_path / "tasks.jsonl"
    arm = "plain@optimizer.lr=0.5"
    lines = [json.loads(line) for line in wine_and_diabetes.read_text().splitlines()]
    (plain,) = [line for line in lines if (line["cell"], line["arm"]) == ("wine", "plain")]
    append_record(output, {**plain, "arm": arm})
    assert command(output, "--arms", arm) == 2
    assert f"holds wine, {arm}, seed 0 with configuration {plain['configuration']}" in capsys.readouterr().err


def test_same_seed_same_result(wine_and_diabetes):
    (first,) = [
        r for r in read_records(wine_and_diabetes) if (r["cell"], r["arm"], r["seed"]) == ("diabetes", "edba", 0)
    ]
    again = execute(spec("diabetes", "edba"))
    for record in (first, again):
        for clock in ("seconds", "processor_seconds"):
            record["evaluations"][0].pop(clock)
    assert first["evaluations"] == again["evaluations"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.samples": 50}, "data.samples: 50 means nothing to a small task; leave it at None"),
        ({"scheduler.name": "linear"}, "scheduler.name: 'linear' means nothing to a small task"),
        ({"data.name": "wines"}, "data.name: 'wines' is no task; did you mean wine?"),
    ],
)
def test_what_a_task_cannot_heed_is_refused(change, message):
    wrong = spec("wine")
    wrong = dataclasses.replace(wrong, overrides={**wrong.overrides, **change})
    with pytest.raises(ConfigError, match=message):
        execute(wrong)


def line(arm, seed, score, cell="wine", metric="accuracy"):
    figures = {"updates": 10, "samples_trained": 100, "distinct_samples": 50, "batch_size": 20, "seconds": 1.0}
    return {
        "cell": cell,
        "arm": arm,
        "seed": seed,
        "base": f"task:{cell}",
        "overrides": {"optimizer.lr": 0.1, "seed": seed},
        "algorithms": [],
        "total_seconds": 2.0,
        "versions": {"torch": "2", "composer": "0", "composer_edba": "0", "commit": "c", "dirty": False},
        "hardware": {"cpu": "CPU", "gpu": None, "cores": 2, "threads": 1, "jobs": 1},
        "train_size": 50,
        "test_samples": None,
        "test_size": 10,
        "evaluations": [{**figures, f"test_{metric}": score}],
    }


def table(records, folder):
    markdown, _ = write_report(json.loads(json.dumps(list(records))), "tasks", "cpu", folder)
    return markdown.read_text()


def test_table_compares_pairs(tmp_path):
    """Differences 1, 2 and 3 points: mean 2, half width 4.303 / sqrt(3)."""
    records = [line("plain", seed, 0.5 + 0.1 * seed) for seed in range(3)]
    records += [line("edba", seed, 0.51 + 0.11 * seed) for seed in range(3)]
    records += [line("edba_random", seed, 0.5) for seed in range(2)]
    text = table(records, tmp_path)
    assert "| EDBA | 3 | 62.00 ± 11.00 | 10 | 100 | 50 | 1.00 | 20 |" in text
    assert "| EDBA, random subsets (control) | 2 | 50.00 | 10 | 100 | 50 | 1.00 | 20 |" in text
    assert "| wine | EDBA - plain | no difference shown | +2.00 [-0.48, +4.48] |" in text
    assert "| EDBA, random subsets (control) | no difference shown | -5.00 [-68.53, +58.53] |" in text
    assert "50 training and 10 test samples" in text
    assert table(reversed(records), tmp_path) == text


def test_r2_is_shown_as_it_is(tmp_path):
    records = [line("plain", seed, 0.4 + 0.1 * seed, "diabetes", "r2") for seed in range(2)]
    records += [line("edba", seed, 0.5 + 0.1 * seed, "diabetes", "r2") for seed in range(2)]
    text = table(records, tmp_path)
    assert "| test accuracy %, last epoch | diabetes (R2) |" in text
    assert "| EDBA | 0.550 ± 0.071 |" in text
    assert "| EDBA | better | +0.100 [+0.100, +0.100] |" in text


def test_less_of_a_loss_is_better(tmp_path):
    records = [line("plain", seed, 0.4 + 0.1 * seed, "mse_adam", "loss") for seed in range(2)]
    records += [line("edba_default", seed, 0.3 + 0.1 * seed, "mse_adam", "loss") for seed in range(2)]
    records += [line("edba_loss", seed, 0.6 + 0.1 * seed, "mse_adam", "loss") for seed in range(2)]
    text = table(records, tmp_path)
    assert "| test loss, last epoch | mse_adam |" in text
    assert "| EDBA's defaults of 0.2 | 0.350 ± 0.071 |" in text
    assert "| mse_adam | EDBA's defaults of 0.2 - plain | better | -0.100 [-0.100, -0.100] |" in text
    assert "| EDBA, batch by the loss | worse | +0.200 [+0.200, +0.200] |" in text


def test_a_task_by_its_loss_is_scored_by_what_it_trains_on():
    """The network's own loss of the held-out samples, whatever batches they came in."""
    fast = spec_of("defaults", "nll_adam", {"trainer.max_duration": "1ep", "data.eval_batch_size": 100})
    record = execute(fast)
    assert (record["train_size"], record["test_size"]) == (4096, 1024)
    (last,) = record["evaluations"]
    assert last["updates"] == 128
    whole = execute(dataclasses.replace(fast, overrides={**fast.overrides, "data.eval_batch_size": 1024}))
    assert last["test_loss"] == pytest.approx(whole["evaluations"][0]["test_loss"], abs=1e-5)
    assert last["test_loss"] < 0.4  # 0.5 for the mean and the variance of all


@pytest.mark.slow
def test_its_suite_tells_of_the_loss(tmp_path, capsys):
    output = tmp_path / "defaults.jsonl"
    arm = ["--cells", "mse_adam", "--seeds", "0", "--arms", "plain@trainer.max_duration=1ep"]
    assert main(["time-to-accuracy", "defaults", "--output", str(output), *arm]) == 0
    (record,) = read_records(output)
    assert f"test loss {record['evaluations'][-1]['test_loss']}, 128 updates" in capsys.readouterr().out


def test_table_tells_of_diverged_runs(tmp_path):
    lines = [line("plain", 0, 0.5), line("plain", 1, None), line("edba", 0, 0.5), line("edba", 1, 0.6)]
    text = table(lines, tmp_path)
    assert "| plain | 2 | diverged in 1 of 2 |" in text
    assert "| EDBA | 2 | 55.00 ± 7.07 |" in text
    assert "[" not in text.partition("## At a glance")[2].partition("## How to read")[0]  # no interval


def test_no_lines(tmp_path, capsys):
    assert main(["report", "tasks", "--lines", str(tmp_path / "none.jsonl")]) == 2
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.parametrize("name", TASKS)
def test_splits(name):
    task = TASKS[name]
    (train, test), (again, _), (other, _) = task.split(3), task.split(3), task.split(4)
    assert torch.equal(train.inputs, again.inputs)
    assert not torch.equal(train.inputs, other.inputs)
    assert len(test) == pytest.approx(len(train) / 4, abs=1)
    classifies = train.targets.ndim == 1
    assert classifies or task.metric != "accuracy"
    if classifies:
        shares = [np.bincount(part.targets) / len(part) for part in (train, test)]
        assert np.abs(shares[0] - shares[1]).max() < 0.02
    else:
        assert float(train.targets.mean()) == pytest.approx(0, abs=1e-6)
    if name in ("wine", "breast_cancer", "diabetes"):
        torch.testing.assert_close(train.inputs.std(0, correction=0), torch.ones(train.inputs.shape[1]))
    outputs = task.build(train.inputs, 10)([train.inputs[:5], train.targets[:5]])
    assert outputs.shape == (5, 10 if classifies else 2 if name == "nll" else 1)


def test_every_task_is_a_cell():
    generated = [name for name, task in TASKS.items() if task.metric == "loss"]
    assert list(SUITES["tasks"].sizes["cpu"]) == [name for name in TASKS if name not in generated]
    assert list(SUITES["defaults"].sizes["cpu"]) == [f"{name}_{by}" for name in generated for by in ("adam", "sgd")]
    assert f"which of {len(PACKAGES)} packages" in SUITES["tasks"].sizes["cpu"]["text"].title


def test_words_are_those_of_the_training_part():
    texts, labels = _functions()
    assert len(texts) == len(labels) > 1000
    assert set(labels) == set(range(len(PACKAGES)))
    train, test = _numbered([["a", "b", "a"], ["a", "c"]], [["d", "c", "a"], []])
    assert train[:, :4].tolist() == [[1, 2, 1, 0], [1, 3, 0, 0]]
    assert test[:, :3].tolist() == [[3, 1, 0], [0, 0, 0]]
    assert _numbered(texts, texts)[0].max() == VOCABULARY


def test_mean_of_words_leaves_padding_out():
    net = MeanOfWords(3, words=10)
    words = torch.tensor([[1, 2, 2, 0, 0], [0, 0, 0, 0, 0]])
    mean = (net.embedding.weight[1] + 2 * net.embedding.weight[2]) / 3
    torch.testing.assert_close(net(words)[0], F.linear(mean, net.fc.weight, net.fc.bias))
    torch.testing.assert_close(net(words)[1], net.fc.bias)
