"""Twenty thousand steps: memory stays flat, numbers stay finite, nothing is left behind.

In a process of their own: what other tests left in this one, and what of it is freed meanwhile, would be counted too.
"""

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "twenty_thousand_steps_leave_nothing_behind",
        "epochs_with_workers_leave_no_process_and_no_file_open",
    ],
)
def test_a_long_run(name):
    command = [sys.executable, "-m", "tests.contract.long_run.long_run", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
