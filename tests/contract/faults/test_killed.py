"""Killed at random batches and resumed from the latest checkpoint until done: bitwise the undisturbed run."""

import os
import random
import signal
import time

import pytest
import torch

from composer_edba import EDBA
from tests.support.small_runs import classifier, points_loader, trainer

DURATION = "10ep"
KILLS = 20  # for each number of workers


def train(folder, workers):
    """Trains to the end, from the latest checkpoint in ``folder`` if there is one; a checkpoint every batch."""
    loader = points_loader(size=300, batch_size=32, num_workers=workers)
    run = trainer(
        [EDBA.paper(min_subset_size=5)],
        loader=loader,
        model=classifier(),
        max_duration=DURATION,
        run_name="killed",
        save_folder=str(folder),
        save_filename="ba{batch}.pt",
        save_interval="1ba",
        # A file that the kill left half-written lies in the way of the batch that is trained once more.
        save_overwrite=True,
        save_num_checkpoints_to_keep=3,
        autoresume=True,
    )
    run.fit()
    return run


def result(run):
    return {"weights": run.state.model.state_dict(), "algorithm": run.state.algorithms[-1].state_dict()}


def fork(action):
    """Runs ``action`` in a child, which saves the fifteen seconds that importing Composer takes; gives its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()  # loader workers die with the group
        action()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def readable(path):
    try:
        torch.load(path, weights_only=False)
    except (RuntimeError, EOFError, OSError):  # an empty file, a cut one
        return False
    return True


def written(folder):
    return {(path.name, path.stat().st_mtime_ns) for path in folder.glob("ba*.pt")}


def wait_for_writes(child, folder, number):
    """Waits until ``number`` checkpoints were begun; False if the child ended before."""
    before, seen = written(folder), set()
    while len(seen) < number:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        seen |= {name for name, _ in written(folder) - before}
        time.sleep(0.001)
    return True


def spare_workers(group):
    """Ends what is left of a killed child's group: its loader workers."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_batches_it_ends_bitwise_as_undisturbed(tmp_path, workers):
    undisturbed = result(train(tmp_path / "undisturbed", workers))
    folder = tmp_path / "killed"
    folder.mkdir()
    moments = random.Random(workers)
    kills, half_written, without_latest = 0, 0, 0
    while kills < KILLS:
        child = fork(lambda: train(folder, workers))
        assert wait_for_writes(child, folder, moments.randint(1, 4)), "it ended before it could be killed"
        # Anywhere in the step that follows, the writing of its checkpoint included.
        time.sleep(moments.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        spare_workers(child)
        kills += 1
        half_written += not readable(max(folder.glob("ba*.pt"), key=lambda path: path.stat().st_mtime_ns))
        without_latest += not (folder / "latest-rank0.pt").is_file()
    child = fork(lambda: torch.save(result(train(folder, workers)), tmp_path / "result.pt"))
    assert os.waitpid(child, 0)[1] == 0
    resumed = torch.load(tmp_path / "result.pt", weights_only=False)
    print(f"{kills} kills with {workers} workers, {half_written} left half a file, {without_latest} no latest link")
    assert resumed["algorithm"] == undisturbed["algorithm"]
    assert resumed["weights"].keys() == undisturbed["weights"].keys()
    for name, weight in undisturbed["weights"].items():
        assert torch.equal(resumed["weights"][name], weight), name
