"""The lines that docs/results holds: readable, under the configuration that they were made with, and reported."""

from pathlib import Path

import pytest

from benchmarks.reports.report import write_report
from benchmarks.suites.records import read_records
from benchmarks.suites.run import configuration_hash
from benchmarks.suites.suites import SUITES, planned_runs

RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"
RECORDED = sorted(path for path in RESULTS.glob("*_cpu.jsonl") if path.stem.removesuffix("_cpu") in SUITES)
# Without lines so far; a suite whose lines come is taken out of here.
NOT_RECORDED = {"smoke", "cifar100", "cifar10_fifth"}
TUNING = sorted((RESULTS / "tuning").glob("*.jsonl"))


def test_none_is_lost():
    assert [path.stem.removesuffix("_cpu") for path in RECORDED] == sorted(set(SUITES) - NOT_RECORDED)
    assert sum(len(read_records(path)) for path in RECORDED) >= 555
    assert sum(len(read_records(path)) for path in TUNING) >= 200


@pytest.mark.parametrize("path", [*RECORDED, *TUNING], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_report_is_made_of_them(path, tmp_path):
    records = read_records(path)
    markdown, page = write_report(records, records[0]["suite"], records[0]["size"], tmp_path)
    text = markdown.read_text(encoding="utf-8")
    for cell in {record["cell"] for record in records}:
        told = f"\n| {cell.replace('_', ' ')} planned, " if SUITES[records[0]["suite"]].budgets else f"\n## {cell}\n"
        assert told in text
    assert page.stat().st_size > 0


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_hashes_hold(path):
    name = path.stem.removesuffix("_cpu")
    recorded = {(r["cell"], r["arm"], r["seed"]): r["configuration"] for r in read_records(path)}
    planned = {spec.key: spec for spec in planned_runs(name, "cpu")}
    assert set(recorded) <= set(planned)
    assert {key: configuration_hash(planned[key]) for key in recorded} == recorded
