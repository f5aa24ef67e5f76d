"""What happens on one rank of two ends right on both, or in an error on both that names it: never in a rank that waits.

Each scenario is a real run of two processes (one_sided_run.py, and drop_run.py in a Trainer).
"""

import os
import subprocess
import sys

import pytest
import torch

from tests.contract.ranks.one_sided_run import SCENARIOS
from tests.support.paths import ROOT

# The scenario's name: what the rank where it happens raises, and the other, by a part of either's words.
ON_ONE = {
    "dropped_samples_cached": "ValueError: the batch holds",
    "empty_loader": "ValueError: the loader is empty",
    "out_of_memory": "OutOfMemoryError: CUDA out of memory",
    "little_memory": "ValueError: scoring 16 samples",
    "no_memory_for_the_cache": "ValueError: scoring='cached' would keep",
    "bad_batch": "ValueError: the tensors of the batch differ",
    "bad_batch_cached": "ValueError: the tensors of the batch differ",
    "loss_no_mean": "ValueError: the loss is not a mean",
    "last_layers_shape": "ValueError: the last layer's output has shape",
    "criterion_raises": 'KeyError: "the criterion\'s own"',
    "criterion_raises_cached": 'KeyError: "the criterion\'s own"',
    "policy_raises": "RuntimeError: the policy's own",
    "sampler_raises_cached": "OSError: the sampler's own",
    "sampler_gives_no_index_cached": "ValueError: the loader's sampler gives -1",
}
ON_BOTH = {
    "memory_for_one_ranks_pool_only": "ValueError: scoring 32 samples",
    "other_last_layer": "ValueError: the last layer's numbers of inputs and outputs must be the same on all ranks",
    "other_sizes": "ValueError: the size that batch_size_policy gives must be the same on all ranks",
    "other_sizes_cached": "ValueError: the size that batch_size_policy gives must be the same on all ranks",
}
END = sorted(SCENARIOS.keys() - ON_ONE.keys() - ON_BOTH.keys())
ALONE = ("batch_left_out_cached", "last_layer_not_called_cached")  # each rank trains a model of its own
QUICK = ("dropped_samples_on_one", "out_of_memory_for_a_while", "criterion_raises", "dropped_samples_cached")


def run_both(folder, names, seconds):
    """Run scenarios on two ranks; what each rank has to say of each."""
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "tests.contract.ranks.one_sided_run",
                str(folder),
                str(rank),
                *names,
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    try:
        said = [rank.communicate(timeout=seconds)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][-2000:] + said[1][-2000:]
    return {name: [torch.load(folder / f"{name}{rank}.pt") for rank in (0, 1)] for name in names}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return run_both(tmp_path_factory.mktemp("quick"), QUICK, 240)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    pytest.importorskip("ignite", reason="PyTorch Ignite is not installed")
    return run_both(tmp_path_factory.mktemp("all"), sorted(SCENARIOS), 500)


def assert_ended(name, results):
    a, b = results
    assert "error" not in a, a
    assert "error" not in b, b
    assert len(a["sizes"]) == len(b["sizes"]) > 10
    for key in ("same", "known", "limit"):
        assert repr(a[key]) == repr(b[key]), key  # NaN, too
    assert torch.equal(a["weights"], b["weights"]) or name in ALONE
    assert a["same"][-1]["samples_trained"] == sum(a["sizes"]) + sum(b["sizes"])


def assert_one_failed(name, results):
    cause = ON_ONE[name]
    assert results[1]["error"].startswith(cause)
    assert results[0]["error"].startswith(f"RuntimeError: all ranks stop, because EDBA failed on rank 1: {cause}")


def test_the_ranks_end_together(quick):
    for name in ("dropped_samples_on_one", "out_of_memory_for_a_while"):
        assert_ended(name, quick[name])
    for name in ("criterion_raises", "dropped_samples_cached"):
        assert_one_failed(name, quick[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", END)
def test_the_ranks_go_on(runs, name):
    assert_ended(name, runs[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_ONE)
def test_the_other_rank_stops_too_and_says_why(runs, name):
    assert_one_failed(name, runs[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_BOTH)
def test_what_differs_is_refused_on_both(runs, name):
    for result in runs[name]:
        assert result["error"].startswith(ON_BOTH[name])


@pytest.mark.slow
def test_what_is_known_is_counted_and_what_is_not_is_left_out(runs):
    dropped, one = runs["dropped_samples"][0]["same"][-1], runs["dropped_samples_on_one"][0]["same"][-1]
    assert dropped["distinct_samples"] < one["distinct_samples"] <= 256
    assert runs["out_of_memory_for_a_while"][0]["limit"] == 8
    assert runs["nonfinite_loss"][0]["same"][-1]["nonfinite_steps"] == 1
    assert len(runs["sampler_ends_early_cached"][0]["sizes"]) == 24


@pytest.mark.slow
def test_in_a_trainer(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "composer.cli.launcher",
            "-n",
            "2",
            "-m",
            "tests.contract.ranks.drop_run",
            str(tmp_path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    for mode in ("plain", "forward"):
        assert first[mode]["steps"] == second[mode]["steps"] > 8
        assert torch.equal(first[mode]["weights"], second[mode]["weights"])
    assert first["forward"]["trained"] == second["forward"]["trained"]
    assert first["forward"]["trained"][-1] == sum(first["forward"]["sizes"]) + sum(second["forward"]["sizes"])
    assert "failed on rank 1: ValueError: the batch holds" in first["cached"]["error"]
    assert "the batch holds" in second["cached"]["error"]
    assert "failed on rank 1: ZeroDivisionError" in first["criterion"]["error"]
    assert "ZeroDivisionError" in second["criterion"]["error"]
