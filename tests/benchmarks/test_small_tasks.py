import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.__main__ import main
from benchmarks.suites.records import read_records
from benchmarks.tasks.small_tasks import PACKAGES, TASKS
from benchmarks.tasks.tasks import report


def tasks(output, *arguments):
    return main(["tasks", "--output", str(output), *arguments])


@pytest.fixture(scope="module")
def wine_and_diabetes(tmp_path_factory):
    """A line each of two tasks and all arms."""
    output = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    assert tasks(output, "--tasks", "wine", "diabetes", "--seeds", "0") == 0
    return output


def test_lines(wine_and_diabetes):
    records = read_records(wine_and_diabetes)
    assert len(records) == 10
    for record in records:
        (last,) = record["evaluations"]
        assert record["train_size"] + record["test_samples"] == {"wine": 178, "diabetes": 442}[record["cell"]]
        assert last["samples_drawn"] == 30 * record["train_size"]
        assert last["distinct_samples"] <= record["train_size"]
        plain = record["arm"] == "plain"
        assert (last["samples_scored"] == 0) is plain
        assert (last["samples_trained"] == last["samples_drawn"]) is plain
        assert 0.2 < last["test_accuracy" if record["cell"] == "wine" else "test_r2"] <= 1
        assert record["versions"]["python"]
    assert "criterion='random'" in next(r for r in records if r["arm"] == "edba_paper_random")["algorithms"][0]


def test_finished_runs_are_not_done_again(wine_and_diabetes, capsys):
    before = wine_and_diabetes.read_text()
    assert tasks(wine_and_diabetes, "--tasks", "wine", "--seeds", "0") == 0
    assert wine_and_diabetes.read_text() == before
    assert "wine" not in capsys.readouterr().out


def test_runs_of_other_settings_are_refused(wine_and_diabetes, capsys):
    assert tasks(wine_and_diabetes, "--tasks", "wine", "--seeds", "0", "--lr", "0.5") == 2
    assert "holds wine, plain, seed 0 of other settings" in capsys.readouterr().err


def test_same_seed_same_result(wine_and_diabetes, tmp_path):
    output = tmp_path / "again.jsonl"
    tasks(output, "--tasks", "diabetes", "--seeds", "0", "--arms", "edba")
    (again,) = read_records(output)
    (first,) = [
        r for r in read_records(wine_and_diabetes) if (r["cell"], r["arm"], r["seed"]) == ("diabetes", "edba", 0)
    ]
    for record in (first, again):
        record["evaluations"][0].pop("seconds")
    assert first["evaluations"] == again["evaluations"]


def line(arm, seed, accuracy, **figures):
    figures = {
        "updates": 10,
        "samples_trained": 100,
        "distinct_samples": 50,
        "batch_size": 20,
        "seconds": 1.0,
        **figures,
    }
    return {
        "cell": "wine",
        "arm": arm,
        "seed": seed,
        "task": {"title": "rows", "optimizer": "SGD", "lr": 0.1, "epochs": 3, "batch_size": 32},
        "versions": {"torch": "2", "composer": "0", "python": "3", "composer_edba": "0"},
        "hardware": {"cpu": "CPU", "cores": 2},
        "train_size": 50,
        "test_samples": 10,
        "evaluations": [{**figures, "test_accuracy": accuracy}],
    }


def test_table_compares_pairs():
    """Differences 1, 2 and 3 points: mean 2, half width 4.303 / sqrt(3)."""
    records = [line("plain", seed, 0.5 + 0.1 * seed) for seed in range(3)]
    records += [line("edba", seed, 0.51 + 0.11 * seed) for seed in range(3)]
    records += [line("edba_random", seed, 0.5) for seed in range(2)]
    table = report(json.loads(json.dumps(records)))
    (row,) = [row for row in table.splitlines() if row.startswith("| wine | EDBA |")]
    assert "| 3 | 62.0 ± 11.0 | +2.0 (-0.5 to +4.5) |" in row
    (control,) = [row for row in table.splitlines() if "control" in row and row.startswith("| wine")]
    assert "| 2 | 50.0 | -5.0 (-68.5 to +58.5) |  | 10 | 100 | 50 | 20 | 1.0 |" in control
    assert report(reversed(records)) == table


def test_table_tells_of_diverged_runs():
    table = report([line("plain", 0, 0.5), line("plain", 1, None), line("edba", 0, 0.5), line("edba", 1, 0.6)])
    assert "| wine | plain | 2 | diverged in 1 of 2 |" in table
    assert "| wine | EDBA | 2 | 55.0 ± 7.1 | - | - |" in table


def test_no_lines():
    assert report([]) == "No runs yet.\n"


@pytest.mark.parametrize("name", TASKS)
def test_splits(name):
    task = TASKS[name]
    (train, test), (again, _), (other, _) = task.split(3), task.split(3), task.split(4)
    assert torch.equal(train.inputs, again.inputs)
    assert not torch.equal(train.inputs, other.inputs)
    assert len(test) == pytest.approx(len(train) / 4, abs=1)
    if task.metric == "accuracy":
        shares = [np.bincount(part.targets) / len(part) for part in (train, test)]
        assert np.abs(shares[0] - shares[1]).max() < 0.02
    else:
        assert float(train.targets.mean()) == pytest.approx(0, abs=1e-6)
    if name in ("wine", "breast_cancer", "diabetes"):
        torch.testing.assert_close(train.inputs.std(0, correction=0), torch.ones(train.inputs.shape[1]))
    outputs = task.build(train.inputs, 10)([train.inputs[:5], train.targets[:5]])
    assert outputs.shape == (5, 10 if task.metric == "accuracy" else 1)


def test_words_are_those_of_the_training_part():
    from benchmarks.tasks.small_tasks import VOCABULARY, _functions, _numbered

    texts, labels = _functions()
    assert len(texts) == len(labels) > 1000
    assert set(labels) == set(range(len(PACKAGES)))
    train, test = _numbered([["a", "b", "a"], ["a", "c"]], [["d", "c", "a"], []])
    assert train[:, :4].tolist() == [[1, 2, 1, 0], [1, 3, 0, 0]]
    assert test[:, :3].tolist() == [[3, 1, 0], [0, 0, 0]]
    assert _numbered(texts, texts)[0].max() == VOCABULARY


def test_mean_of_words_leaves_padding_out():
    from benchmarks.tasks.small_tasks import MeanOfWords

    net = MeanOfWords(3, words=10)
    words = torch.tensor([[1, 2, 2, 0, 0], [0, 0, 0, 0, 0]])
    mean = (net.embedding.weight[1] + 2 * net.embedding.weight[2]) / 3
    torch.testing.assert_close(net(words)[0], F.linear(mean, net.fc.weight, net.fc.bias))
    torch.testing.assert_close(net(words)[1], net.fc.bias)
