"""Several ranks choose one subset together: real processes, gloo, through the composer launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import Points, classifier
from torch import nn
from union_run import MODES

from composer_edba import reference


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("union_run.py")
    done = subprocess.run(
        [sys.executable, "-m", "composer.cli.launcher", "-n", "2", str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {mode: [torch.load(folder / f"{mode}-rank{rank}.pt") for rank in range(2)] for mode in MODES}


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_choose_one_subset_together(two_ranks, mode):
    ranks = two_ranks[mode]
    first, second = ranks
    for name in ("pools", "subsets", "batch_size", "logged"):
        assert first[name] == second[name], name
    assert min(first["subsets"]) < 32
    seen = set()
    points = Points(size=250, with_index=True)
    model = classifier(dropout=0.0, batch_norm=False)
    parameters = list(model.parameters())
    for number, (a, b) in enumerate(zip(first["steps"], second["steps"], strict=True)):
        assert torch.equal(a["gradient"], b["gradient"])
        assert torch.equal(a["weights"], b["weights"])
        # A single process with the union of the chosen subsets has the same gradient.
        union = torch.cat([a["samples"], b["samples"]])
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
    assert first["logged"]["samples_trained"][-1] == 2 * sum(first["subsets"])
    model_average, gradient_average = first["logged"]["model_metric"][0], first["logged"]["gradient_metric"][0]
    step_1 = (first["logged"]["model_metric"][1], first["logged"]["gradient_metric"][1])
    expected = reference.margin(*step_1, model_average, gradient_average)
    assert first["logged"]["margin"][1] == pytest.approx(expected, rel=1e-3, abs=1e-5)
