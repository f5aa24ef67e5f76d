"""A suite that is killed goes on where it was: real processes on the digits."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.suites.records import read_records

COMMAND = [
    *(sys.executable, "-m", "benchmarks", "time-to-accuracy", "smoke"),
    *("--arms", "plain", "edba", "--seeds", "0", "1", "--jobs", "2", "--output"),
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(path):
    return subprocess.run([*COMMAND, str(path)], env=ENVIRONMENT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_killed_suite_goes_on_and_refuses_other_settings(tmp_path):
    path = tmp_path / "suite.jsonl"
    suite = subprocess.Popen([*COMMAND, str(path)], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while not read_records(path):
        assert suite.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(suite.pid).children(recursive=True)
    suite.kill()
    suite.wait()
    psutil.wait_procs(workers)  # none outlives it
    before = read_records(path)
    assert before

    done = run(path)
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} of 4 runs are in {path} already" in done.stdout
    assert f"[{4 - len(before)}/{4 - len(before)}]" in done.stdout or len(before) == 4
    after = read_records(path)
    assert after[: len(before)] == before
    assert {(r["arm"], r["seed"]) for r in after} == {(arm, seed) for arm in ("plain", "edba") for seed in (0, 1)}

    path.write_text("".join(json.dumps({**r, "configuration": "other"}) + "\n" for r in after))
    refused = run(path)
    assert refused.returncode == 2
    assert "digits, plain, seed 0 with configuration other" in refused.stderr
    assert len(read_records(path)) == 4
