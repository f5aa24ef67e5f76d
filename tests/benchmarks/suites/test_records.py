"""The file of a suite: whole lines only, each run once, and no mixing of configurations."""

import json
import multiprocessing

import pytest

from benchmarks.suites.records import RecordError, append_record, check_unchanged, read_records
from benchmarks.suites.suites import planned_runs


def record(seed, arm="plain", configuration="aa"):
    return {"cell": "digits", "arm": arm, "seed": seed, "configuration": configuration}


def test_lines_come_back_as_they_were(tmp_path):
    path = tmp_path / "new" / "suite.jsonl"
    assert read_records(path) == []
    append_record(path, record(0))
    append_record(path, record(1))
    assert read_records(path) == [record(0), record(1)]


def test_a_torn_last_line_is_passed_over_and_replaced(tmp_path):
    path = tmp_path / "suite.jsonl"
    append_record(path, record(0))
    with path.open("a") as file:
        file.write(json.dumps(record(1))[:20])
    assert read_records(path) == [record(0)]
    append_record(path, record(2))
    assert read_records(path) == [record(0), record(2)]


def test_a_run_that_is_there_stays(tmp_path):
    path = tmp_path / "suite.jsonl"
    append_record(path, record(0))
    append_record(path, record(0, configuration="bb"))
    assert read_records(path) == [record(0)]


@pytest.mark.parametrize("line", ["{", "[]", '{"cell": "digits"}'])
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / "suite.jsonl"
    path.write_text(f"{json.dumps(record(0))}\n{line}\n")
    with pytest.raises(RecordError, match="line 2: not the record of a run"):
        read_records(path)


def test_a_run_twice_is_named(tmp_path):
    path = tmp_path / "suite.jsonl"
    path.write_text(2 * f"{json.dumps(record(3))}\n")
    with pytest.raises(RecordError, match="line 2: digits, plain, 3 is there twice"):
        read_records(path)


def append_many(path, arm):
    for seed in range(40):
        append_record(path, {**record(seed, arm), "filler": "x" * 5000})


def test_processes_do_not_tear_each_others_lines(tmp_path):
    path = tmp_path / "suite.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=append_many, args=(path, arm)) for arm in ("a", "b")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted((r["arm"], r["seed"]) for r in read_records(path)) == [(a, s) for a in "ab" for s in range(40)]


def test_another_configuration_under_the_same_name_is_refused(tmp_path):
    path = tmp_path / "suite.jsonl"
    specs = list(planned_runs("smoke", "cpu", arms=["plain"], seeds=[0, 1]))
    append_record(path, record(0))
    assert check_unchanged(path, specs, ["aa", "bb"]) == {("digits", "plain", 0)}
    with pytest.raises(RecordError, match="digits, plain, seed 0 with configuration aa, and the suite now says bb"):
        check_unchanged(path, specs, ["bb", "bb"])
