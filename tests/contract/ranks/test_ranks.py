"""Several ranks choose one subset together: real processes, gloo, through the composer launcher."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from composer_edba.method import reference
from composer_edba.method.reference import last_layer_gradients
from tests.contract.ranks.gather_run import rank_scores
from tests.contract.ranks.union_run import CUT, MODES
from tests.support.paths import ROOT
from tests.support.small_runs import Points, classifier


def launch(script, ranks, folder):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "composer.cli.launcher",
            "-n",
            str(ranks),
            "-m",
            f"tests.contract.ranks.{script}",
            str(folder),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)], ids=["2 ranks", "4 ranks"])
def runs(request, tmp_path_factory):
    ranks = request.param
    folder = tmp_path_factory.mktemp("ranks")
    launch("union_run", ranks, folder)
    return {mode: [torch.load(folder / f"{mode}-rank{rank}.pt") for rank in range(ranks)] for mode in MODES}


@pytest.mark.slow
def test_sequences_may_be_longer_on_one_rank_than_on_another(tmp_path):
    launch("gather_run", 2, tmp_path)
    gradients = torch.cat([last_layer_gradients(s.inputs, s.output_grads) for s in map(rank_scores, (0, 1))])
    for rank in (0, 1):
        gathered = torch.load(tmp_path / f"gathered{rank}.pt")
        torch.testing.assert_close(gathered["products"], gradients @ gradients.T, rtol=1e-4, atol=1e-4)
        assert float(gathered["metric"]) == pytest.approx((5 * 1 + 4 * 2) / 9)


@pytest.mark.slow
def test_resumed_at_any_batch_each_rank_goes_on_as_it_was(tmp_path):
    launch("resume_run", 2, tmp_path)
    for rank in (0, 1):
        for name, told in json.loads((tmp_path / f"resumed{rank}.json").read_text()).items():
            assert told["steps"] >= 4, name
            assert told["differ"] == [], (name, rank)


def test_all_ranks_agree(runs):
    for mode, ranks in runs.items():
        for other in ranks[1:]:
            for name in ("pools", "batch_size", "logged", "epoch_ends"):
                assert other[name] == ranks[0][name], (mode, name)
        for steps in zip(*(rank["steps"] for rank in ranks), strict=True):
            # DDP averages exactly alike on all ranks.
            assert all(torch.equal(step["gradient"], steps[0]["gradient"]) for step in steps), mode
            assert all(torch.equal(step["weights"], steps[0]["weights"]) for step in steps), mode


def test_uneven_ranks_end_their_epochs_together(runs):
    ends = runs["uneven"][0]["epoch_ends"]
    assert len(ends) >= 2
    # The other ranks have 50 samples: an epoch ends after their second batch, of 18.
    assert [batch for _, batch, _ in ends] == [2 * (i + 1) for i in range(len(ends))]


def test_fsdp2_chooses_as_ddp_does(runs):
    plain, sharded = runs["plain"][0], runs["fsdp2"][0]
    # Up to the first update: torch 2.7 scales FSDP2's gradients by the number of ranks on gloo, with or without EDBA.
    for name in ("model_metric", "gradient_metric"):
        assert sharded["logged"][name][0] == pytest.approx(plain["logged"][name][0], rel=1e-5)
    assert min(sharded["subsets"]) < 32


def test_resumed_in_mid_epoch_the_ranks_go_on_as_if_uninterrupted(runs):
    for whole, resumed in zip(runs["plain"], runs["resumed"], strict=True):
        assert resumed["pools"][1:] == whole["pools"][CUT + 1 :]
        a, b = whole["steps"][CUT], resumed["steps"][0]
        assert torch.equal(a["samples"], b["samples"])
        assert torch.equal(a["weights"], b["weights"])
        torch.testing.assert_close(a["gradient"], b["gradient"], rtol=1e-4, atol=1e-6)
        for name, values in whole["logged"].items():
            assert resumed["logged"][name][0] == values[CUT], name


def test_two_ranks_end_bitwise_as_if_uninterrupted(runs):
    if len(runs["plain"]) > 2:
        # DistributedDataParallel lays its buckets out anew after its first step, and gloo then adds more than two
        # gradients in another order: with the same weights and samples the first sum after resuming rounds otherwise.
        pytest.skip("sums of more than two ranks depend on DistributedDataParallel's buckets")
    for whole, resumed in zip(runs["plain"], runs["resumed"], strict=True):
        assert resumed["subsets"] == whole["subsets"][CUT:]
        assert resumed["epoch_ends"] == [end for end in whole["epoch_ends"] if end[1] > CUT]
        for a, b in zip(whole["steps"][CUT:], resumed["steps"], strict=True):
            assert all(torch.equal(a[name], b[name]) for name in ("samples", "gradient", "weights"))
        for name, values in whole["logged"].items():
            assert resumed["logged"][name] == values[CUT:], name


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("fsdp2", "resumed")])
def test_ranks_train_on_one_subset_chosen_together(runs, mode):
    ranks = runs[mode]
    first = ranks[0]
    assert min(first["subsets"]) < 32
    seen = set()
    points = Points(size=250, with_index=True)
    model = classifier(dropout=0.0, batch_norm=False)
    parameters = list(model.parameters())
    for number, steps in enumerate(zip(*(rank["steps"] for rank in ranks), strict=True)):
        a = steps[0]
        # A single process with the union of the chosen subsets has the same gradient.
        union = torch.cat([step["samples"] for step in steps])
        nn.utils.vector_to_parameters(a["weights"], parameters)
        batch = [torch.stack([points[i][0] for i in union]), points.y[union]]
        model.zero_grad()
        model.loss(model(batch), batch).backward()
        gradient = torch.cat([p.grad.flatten() for p in parameters])
        torch.testing.assert_close(gradient, a["gradient"], rtol=1e-4, atol=1e-6)
        # And the metric is that of the union.
        last = torch.cat([p.grad.flatten() for p in parameters[-2:]]).norm()
        assert first["logged"]["gradient_metric"][number] == pytest.approx(float(last), rel=1e-3)
        seen.update(union.tolist())
        assert first["logged"]["distinct_samples"][number] == len(seen)
    assert first["logged"]["samples_trained"][-1] == sum(sum(rank["subsets"]) for rank in ranks)
    model_average, gradient_average = first["logged"]["model_metric"][0], first["logged"]["gradient_metric"][0]
    step_1 = (first["logged"]["model_metric"][1], first["logged"]["gradient_metric"][1])
    expected = reference.margin(*step_1, model_average, gradient_average)
    assert first["logged"]["margin"][1] == pytest.approx(expected, rel=1e-3, abs=1e-5)
