"""scoring="cached" on two ranks: real processes, gloo, through the composer launcher."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.composer.cached import cached_ranks_run
from tests.composer.cached.cached_ranks_run import CUT, MASS, MODES
from tests.support.paths import ROOT
from tests.support.small_runs import Points, classifier

RANKS = 2
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, "-m", "composer.cli.launcher", "-n", str(RANKS), "-m", cached_ranks_run.__name__, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.mark.parametrize("mode", [*MODES, *MASS])
def test_the_ranks_know_and_choose_the_same(runs, mode):
    first, second = (run[mode] for run in runs)
    for name in ("logged", "epoch_ends", "subsets", "state"):
        assert first[name] == second[name], name
    for a, b in zip(first["steps"], second["steps"], strict=True):
        assert torch.equal(a["gradient"], b["gradient"])
        assert torch.equal(a["weights"], b["weights"])
    assert min(first["subsets"]) < 32


@pytest.mark.parametrize("mode", [mode for mode in MODES if "resumed" not in mode])
def test_they_train_on_one_subset_of_every_pass(runs, mode):
    points, model = Points(size=250, with_index=True), classifier(dropout=0.0, batch_norm=False)
    parameters = list(model.parameters())
    ranks = [run[mode] for run in runs]
    seen = set()
    for number in range(len(ranks[0]["steps"])):
        union = torch.cat([rank["steps"][number]["samples"] for rank in ranks])
        seen.update(union.tolist())
        assert ranks[0]["logged"]["distinct_samples"][number] == len(seen)
        for rank in ranks:
            if rank["selections"][number] is not None:
                pool, subset = rank["selections"][number]
                assert set(subset.tolist()) <= set(pool.tolist())
                assert torch.equal(subset, rank["steps"][number]["samples"])
        if mode != "fsdp2":  # torch 2.7 scales its gradients by the number of ranks on gloo
            step = ranks[0]["steps"][number]
            nn.utils.vector_to_parameters(step["weights"], parameters)
            batch = [torch.stack([points[i][0] for i in union]), points.y[union]]
            model.zero_grad()
            model.loss(model(batch), batch).backward()
            gradient = torch.cat([p.grad.flatten() for p in parameters])
            torch.testing.assert_close(gradient, step["gradient"], rtol=1e-4, atol=1e-6)
    # A pass draws each of 250 samples once.
    assert ranks[0]["logged"]["samples_drawn"][-1] == 5 * 250
    assert [batch for _, batch, _ in ranks[0]["epoch_ends"]][:2] == [4, 8]
    assert sum(sum(rank["subsets"]) for rank in ranks) == ranks[0]["logged"]["samples_trained"][-1] < 5 * 250


def test_the_metric_is_that_of_the_union_of_all_ranks_whoever_had_recorded_its_samples(runs):
    """Nothing moves, so no score is out of date."""
    run = runs[0]["still"]
    chosen = [number for number, selection in enumerate(run["selections"]) if selection is not None]
    assert len(chosen) == 4 * 4  # all but the first pass
    for metric, number in zip(run["logged"]["gradient_metric"], chosen, strict=True):
        last_layer = run["steps"][number]["gradient"][-(32 * 4 + 4) :]
        assert metric == pytest.approx(float(last_layer.norm()), rel=1e-3)


@pytest.mark.parametrize(
    ("whole", "resumed"),
    [
        ("plain", "resumed"),
        ("workers", "workers-resumed"),
        ("mass", "mass-resumed"),
        ("mass_kept", "mass_kept-resumed"),
    ],
)
def test_resumed_in_mid_epoch_they_end_bitwise_as_if_uninterrupted(runs, whole, resumed):
    for run in runs:
        a, b = run[whole], run[resumed]
        assert b["subsets"] == a["subsets"][CUT:]
        for before, after in zip(a["steps"][CUT:], b["steps"], strict=True):
            assert all(torch.equal(before[name], after[name]) for name in ("samples", "gradient", "weights"))
        for name, values in a["logged"].items():
            assert b["logged"][name] == values[len(values) - len(b["logged"][name]) :]
        assert a["state"] == b["state"]


@pytest.mark.parametrize("mode", ["mass", "mass_kept"])
def test_by_mass_the_step_of_all_ranks_is_that_of_one_process(runs, mode):
    """The gradient is the sum over what all ranks trained on, by what was drawn, or refilled by what was loaded."""
    points, model = Points(size=250, with_index=True), classifier(dropout=0.0, batch_norm=False)
    parameters, ranks = list(model.parameters()), [run[mode] for run in runs]
    fewer = 0
    for number in range(len(ranks[0]["steps"])):
        samples = [rank["steps"][number]["samples"] for rank in ranks]
        assert len(samples[0]) == len(samples[1])
        union, step = torch.cat(samples), ranks[0]["steps"][number]
        assert len(set(union.tolist())) == len(union)
        divisor = len(union)
        if ranks[0]["selections"][number] is not None:
            drawn = torch.cat([rank["selections"][number][0] for rank in ranks])
            fewer += len(union) < len(drawn)
            assert set(union.tolist()) <= set(drawn.tolist())
            divisor = len(union) if mode == "mass" else len(drawn)
        nn.utils.vector_to_parameters(step["weights"], parameters)
        batch = [torch.stack([points[i][0] for i in union]), points.y[union]]
        model.zero_grad()
        (model.loss(model(batch), batch) * len(union) / divisor).backward()
        gradient = torch.cat([p.grad.flatten() for p in parameters])
        torch.testing.assert_close(gradient, step["gradient"], rtol=1e-4, atol=1e-6)
    assert fewer > 4
    assert ranks[0]["logged"]["samples_drawn"][-1] == 5 * 250


def test_uneven_ranks_are_refused(runs):
    for run in runs:
        assert "the ranks' shards differ in length: scoring='cached'" in run["refusal"]
