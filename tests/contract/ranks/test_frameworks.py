"""Lightning, Transformers and Accelerate on two ranks: one choice, passes over all of the data, equal weights."""

import itertools
import os
import subprocess
import sys

import pytest
import torch

from tests.contract.ranks.frameworks_run import PASSES, SIZE
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("framework", ["lightning", "transformers", "accelerate"])
def test_two_ranks_train_together(framework, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.contract.ranks.frameworks_run", framework, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    a, b = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert torch.equal(a["weights"], b["weights"])
    torch.testing.assert_close(a["norms"], b["norms"], rtol=0, atol=0, equal_nan=True)
    assert a["drawn"] == b["drawn"] == PASSES * SIZE
    assert a["trained"] == b["trained"] < 0.95 * a["drawn"]
    assert [(number, len(batch)) for number, batch in a["batches"]] == [(n, len(batch)) for n, batch in b["batches"]]
    assert a["trained"] == sum(len(batch) for _, batch in (*a["batches"], *b["batches"]))
    first = [set(itertools.chain(*(batch for n, batch in each["batches"] if n == 0))) for each in (a, b)]
    assert not first[0] & first[1]
    assert first[0] | first[1] == set(range(SIZE)), "nothing is known before the first pass"
    orders = [[batch for n, batch in a["batches"] if n == number] for number in range(2)]
    assert orders[0] != orders[1]
