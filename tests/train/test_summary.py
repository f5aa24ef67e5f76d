import dataclasses
import json

import pytest
import torch
from composer.algorithms import SelectiveBackprop

from composer_edba.train.series import ACCURACY, read_log
from composer_edba.train.summary import print_table, summarize, table_rows, write_summary
from tests.train.tiny_runs import SAMPLES, data, trained

pytestmark = pytest.mark.filterwarnings("ignore:Cannot split tensor of length")


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
