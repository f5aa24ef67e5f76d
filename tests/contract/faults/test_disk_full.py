"""A checkpoint that cannot be written whole: the trainer's error, and the one before resumes bitwise."""

import os
import resource
import signal

import pytest
import torch

from composer_edba import EDBA
from tests.support.small_runs import classifier, points_loader, trainer


def build(folder, overwrite=True, **kwargs):
    return trainer(
        [EDBA.paper(min_subset_size=5)],
        loader=points_loader(size=300, batch_size=32),
        model=classifier(),
        max_duration="4ep",
        run_name="disk",
        save_folder=str(folder),
        save_filename="ba{batch}.pt",
        save_interval="1ba",
        save_overwrite=overwrite,
        autoresume=True,
        **kwargs,
    )


def outcome(run):
    return run.state.model.state_dict(), run.state.algorithms[-1].state_dict()


def assert_same(a, b):
    assert a[1] == b[1]
    for name, weight in a[0].items():
        assert torch.equal(weight, b[0][name]), name


@pytest.fixture
def file_limit():
    """Sets the size above which this process can write no file, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an OSError instead

    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("fails_at", [3, 17])  # in the first epoch and in mid-epoch of a later one
def test_a_full_disk_is_the_trainers_error_and_the_checkpoint_before_resumes_bitwise(
    tmp_path, monkeypatch, file_limit, fails_at
):
    whole = build(tmp_path / "whole")
    whole.fit()
    folder = tmp_path / "full"
    run = build(folder)
    step = run.state.algorithms[-1]._handlers

    def fill(event):
        def handle(state, logger):
            known(state, logger)
            if int(state.timestamp.batch) == fails_at:
                file_limit(4096)

        known = step[event]
        step[event] = handle

    fill(next(event for event in step if event.value == "batch_end"))
    with pytest.raises((OSError, RuntimeError)) as caught:
        run.fit()
    file_limit(None)
    assert "EDBA" not in str(caught.value)
    assert (folder / f"ba{fails_at}.pt").stat().st_size <= 4096
    assert os.readlink(folder / "latest-rank0.pt") == f"ba{fails_at - 1}.pt"
    again = build(folder)
    again.fit()
    assert_same(outcome(whole), outcome(again))


def test_half_a_file_is_refused_by_composer_unless_it_may_be_overwritten(tmp_path):
    """What a kill in the middle of writing leaves: a file that the latest link does not point to yet."""
    whole = build(tmp_path / "whole")
    whole.fit()
    run = build(tmp_path / "half")
    run.fit(duration="7ba")
    folder = tmp_path / "half"
    (folder / "ba8.pt").write_bytes((folder / "ba7.pt").read_bytes()[:1000])
    with pytest.raises(FileExistsError, match=r"ba8.pt may conflict .* overwrite=True"):
        build(folder, overwrite=False).fit()
    again = build(folder)
    again.fit()
    assert_same(outcome(whole), outcome(again))


def test_without_a_latest_link_training_begins_anew(tmp_path):
    """Composer removes the link before it makes the new one; a kill in between leaves none."""
    whole = build(tmp_path / "whole")
    whole.fit()
    run = build(tmp_path / "lost")
    run.fit(duration="7ba")
    (tmp_path / "lost" / "latest-rank0.pt").unlink()
    again = build(tmp_path / "lost")
    assert int(again.state.timestamp.batch) == 0
    again.fit()
    assert_same(outcome(whole), outcome(again))
