"""Two ranks under ignite.distributed choose one subset together."""

import os
import subprocess
import sys

import pytest
import torch

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.ignite.ignite_ranks", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    names = ("margin", "noise_scale")
    return {name: [torch.load(folder / f"{name}-rank{rank}.pt") for rank in range(2)] for name in names}


@pytest.mark.parametrize("policy", ["margin", "noise_scale"])
def test_the_ranks_choose_one_subset_together(runs, policy):
    a, b = runs[policy]
    assert torch.equal(a["weights"], b["weights"])
    assert a["batch_size"] == b["batch_size"]
    assert a["state"] == b["state"]
    assert min(map(len, a["subsets"])) < 32
    seen = set()
    for one, other, mine, yours in zip(a["steps"], b["steps"], a["subsets"], b["subsets"], strict=True):
        assert len(mine) == len(yours)
        assert not set(mine) & set(yours) or len(set(mine) | set(yours)) < 250
        assert one["figures"] == other["figures"]
        # The mean gradient that DistributedDataParallel took is that of the union.
        assert one["figures"]["gradient_metric"] == pytest.approx(float(one["last"]), rel=1e-3)
        assert torch.equal(one["gradient"], other["gradient"])
        seen |= set(mine) | set(yours)
        assert one["figures"]["distinct_samples"] == len(seen)
    trained = sum(map(len, a["subsets"])) + sum(map(len, b["subsets"]))
    assert a["steps"][-1]["figures"]["samples_trained"] == trained


@pytest.mark.parametrize("policy", ["margin", "noise_scale"])
def test_every_epoch_is_one_pass(runs, policy):
    a, b = runs[policy]
    assert len(a["epochs"]) == len(b["epochs"]) == 8
    for mine, yours in zip(a["epochs"], b["epochs"], strict=True):
        assert len(mine) == len(yours) == 125
        assert sorted(mine + yours) == list(range(250))
