import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from composer import Trainer
from composer.algorithms import SelectiveBackprop
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from matplotlib.image import imread
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from composer_edba import EDBA
from composer_edba.train.picture import plot_run
from composer_edba.train.series import ACCURACY, Series, read_log
from composer_edba.train.summary import print_table, summarize, table_rows, write_summary

pytestmark = pytest.mark.filterwarnings("ignore:Cannot split tensor of length")

SAMPLES = 100


def data():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(SAMPLES, 4, generator=generator), torch.randint(3, (SAMPLES,), generator=generator)
    )


def trained(algorithms=(), drop_last=False, max_duration="2ep", batch_size=32, loggers=None, **kwargs):
    model = ComposerClassifier(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), num_classes=3)
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        train_dataloader=DataLoader(data(), batch_size=batch_size, shuffle=True, drop_last=drop_last),
        eval_dataloader=DataLoader(data(), batch_size=SAMPLES),
        max_duration=max_duration,
        algorithms=list(algorithms),
        loggers=[InMemoryLogger()] if loggers is None else loggers,
        progress_bar=False,
        device="cpu",
        seed=0,
        **kwargs,
    )
    trainer.fit()
    trainer.close()
    return trainer


@pytest.fixture(scope="module")
def plain():
    return trained()


@pytest.fixture(scope="module")
def edba():
    return trained([EDBA.paper(min_subset_size=4)])


def test_a_plain_run_is_counted(plain):
    summary = summarize(plain, SAMPLES)
    assert (summary.updates, summary.epochs) == (8, 2)
    assert (summary.samples_drawn, summary.samples_trained, summary.samples_scored) == (200, 200, 0)
    assert (summary.distinct_samples, summary.distinct_is_bound) == (SAMPLES, False)
    assert (summary.overhead, summary.final_batch_size, summary.nonfinite_steps) == (0.0, 32, 0)
    assert summary.train_seconds == plain.state.timestamp.total_wct.total_seconds() > 0


def test_the_accuracy_is_that_of_the_last_evaluation(plain):
    summary = summarize(plain, SAMPLES)
    images, targets = data().tensors
    with torch.no_grad():
        predicted = plain.state.model.eval().module(images).argmax(1)
    assert summary.test_accuracy == pytest.approx((predicted == targets).float().mean().item())
    assert [int(update) for update in read_log(plain)[ACCURACY].updates][:2] == [4, 8]


def test_a_run_without_evaluation_has_no_accuracy():
    summary = summarize(trained(eval_interval=0), SAMPLES)
    assert summary.test_accuracy is None
    assert table_rows(summary)[0][:2] == ("test accuracy", "not measured")


@pytest.mark.parametrize(
    ("duration", "distinct", "is_bound"),
    [("1ba", 32, False), ("3ba", 96, False), ("1ep", 96, False), ("4ba", 100, True)],
)
def test_distinct_samples_are_a_bound_once_epochs_leave_out_different_ones(duration, distinct, is_bound):
    summary = summarize(trained(drop_last=True, max_duration=duration), SAMPLES, partial_epochs=True)
    assert (summary.distinct_samples, summary.distinct_is_bound) == (distinct, is_bound)
    assert dict(row[:2] for row in table_rows(summary))["distinct samples"] == ("<= " * is_bound) + str(distinct)


def test_what_selective_backprop_drops_is_not_claimed():
    summary = summarize(trained([SelectiveBackprop(start=0.0, end=1.0, interrupt=0)]), SAMPLES)
    assert (summary.samples_scored, summary.samples_trained, summary.overhead) == (None, None, None)
    assert summary.distinct_is_bound
    rows = dict(row[:2] for row in table_rows(summary))
    assert rows["samples trained on"] == "not counted"


def test_an_edba_run_has_edbas_own_counts(edba):
    summary, log = summarize(edba, SAMPLES), read_log(edba)
    algorithm = edba.state.algorithms[0]
    assert summary.samples_trained == log["edba/subset_size"].values.sum()
    assert summary.samples_trained < summary.samples_drawn == 200
    assert summary.samples_scored == 200
    assert summary.distinct_samples == algorithm.distinct_samples
    assert summary.overhead == pytest.approx(log["edba/overhead"].values.mean())
    assert summary.final_batch_size == algorithm.batch_size


def test_the_log_counts_updates_from_one(edba):
    log = read_log(edba)
    updates = list(range(1, int(edba.state.timestamp.batch) + 1))
    for name in ("batch_size", "subset_size", "edba/margin", "edba/overhead", "loss/train/total"):
        assert list(log[name].updates) == updates
    assert list(log["batch_size"].values) == list(log["edba/batch_size"].values)
    assert list(log["subset_size"].values) == list(log["edba/subset_size"].values)


def test_a_trainer_without_a_log_is_refused():
    with pytest.raises(ValueError, match="InMemoryLogger"):
        summarize(trained(loggers=[], max_duration="1ba"), SAMPLES)


def test_the_files_hold_the_figures_and_where_they_come_from(edba, tmp_path, capsys):
    summary, log = summarize(edba, SAMPLES), read_log(edba)
    folder = tmp_path / "deep" / "down"
    write_summary(summary, log, folder, config={"seed": 5, "data": {"name": "made up"}, "lr": float("inf")})
    written = json.loads((folder / "summary.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert written["results"] == dataclasses.asdict(summary)
    assert written["config"] == {"seed": 5, "data": {"name": "made up"}, "lr": None}
    assert written["seed"] == 5
    assert written["versions"]["torch"] == torch.__version__
    assert written["hardware"]["torch_num_threads"] == torch.get_num_threads()
    assert written["hardware"]["cpu"]
    assert [e["update"] for e in written["evaluations"]] == [int(u) for u in log[ACCURACY].updates]
    printed = capsys.readouterr().out
    assert f"{summary.samples_trained:,}" in printed
    assert printed.strip().splitlines()[-1] == str(folder / "run.png")


def test_without_a_plot_the_last_line_is_the_summarys_path(plain, tmp_path, capsys):
    write_summary(summarize(plain, SAMPLES), read_log(plain), tmp_path, config={}, plot=False)
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(tmp_path / "summary.json")
    assert not (tmp_path / "run.png").exists()


def test_the_table_fits_eighty_columns(edba, capsys):
    print_table(summarize(edba, SAMPLES))
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 80


def inked_rows(path):
    image = imread(path)[..., :3]
    return (image < 0.9).any(axis=(1, 2)).mean()


def test_a_plot_has_as_many_panels_as_the_run_has_things_to_show(plain, edba, tmp_path):
    heights = {}
    for name, trainer in (("plain", plain), ("edba", edba)):
        path = plot_run(summarize(trainer, SAMPLES), read_log(trainer), tmp_path / f"{name}.png")
        heights[name] = imread(path).shape[0]
        assert inked_rows(path) > 0.5
    assert heights["edba"] - heights["plain"] == pytest.approx(2 * 2.0 * 130, abs=2)


@pytest.mark.parametrize(
    "margins",
    [[math.inf] * 4, [math.nan] * 4, [0.0] * 4, [0.0, math.inf, math.nan, 1e-12], [1.0, 2.0, math.inf, 3.0]],
    ids=["infinite", "undefined", "zero", "all-kinds", "mostly-finite"],
)
@pytest.mark.filterwarnings("error")
def test_a_plot_stands_any_margin(edba, tmp_path, margins):
    log = dict(read_log(edba))
    updates = np.arange(1, 5)
    log["edba/margin"] = Series(updates, np.array(margins))
    log["edba/model_metric"] = Series(updates, np.array([1.0, math.nan, math.inf, 2.0]))
    log["edba/gradient_average"] = Series(updates, np.full(4, math.nan))
    assert inked_rows(plot_run(summarize(edba, SAMPLES), log, tmp_path / "run.png")) > 0.5


def test_a_plot_stands_a_run_of_one_step(tmp_path):
    trainer = trained([EDBA.paper()], max_duration="1ba", eval_interval=0)
    assert plot_run(summarize(trainer, SAMPLES), read_log(trainer), tmp_path / "run.png").exists()
