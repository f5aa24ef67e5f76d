"""Something changed between checkpoint and resumption: the run goes on right, or is refused with the reason.

What a pass over the data depends on (its number of samples, the ranks) must be the same in the middle of an epoch and
may change at its end; everything else may change at any time.
"""

import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset

from composer_edba import EDBA
from tests.support.paths import ROOT
from tests.support.small_runs import Points, Watch, classifier, logged, points_loader, trainer
from tests.support.torch_runs import following

RESUME = 4  # epochs of every resumed run
SIZE = 256


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints of every batch and epoch of a run with EDBA, by what was saved: ``ba{batch}`` or ``ep{epoch}``."""
    folder = tmp_path_factory.mktemp("with_edba")
    return save(folder, [EDBA.paper(min_subset_size=5)])


@pytest.fixture(scope="module")
def plain_checkpoints(tmp_path_factory):
    return save(tmp_path_factory.mktemp("plain"), [])


def save(folder, algorithms):
    for name, interval in (("ba{batch}", "1ba"), ("ep{epoch}", "1ep")):
        run = trainer(
            algorithms,
            loader=points_loader(with_index=True),
            max_duration="2ep",
            save_folder=str(folder),
            save_filename=name + ".pt",
            save_interval=interval,
            save_overwrite=True,
        )
        run.fit()
        algorithms = [type(a)(**a.settings) for a in algorithms]
    return folder


def resume(folder, name, edba="default", loader=None, size=SIZE, **kwargs):
    watch = Watch()
    edba = EDBA.paper(min_subset_size=5) if edba == "default" else edba
    run = trainer(
        [] if edba is None else [edba],
        loader=points_loader(size, with_index=True) if loader is None else loader,
        callbacks=[watch],
        max_duration=f"{RESUME}ep",
        load_path=str(folder / f"{name}.pt"),
        **kwargs,
    )
    run.fit()
    return run, watch, edba


def whole_passes(watch, ends):
    """Samples of each epoch that began after the resumption."""
    totals = [samples for _, _, samples in watch.epoch_ends]
    assert len(totals) == ends
    return [b - a for a, b in pairwise(totals)]


# ---- the data set


@pytest.mark.parametrize("size", [100, 300])
def test_a_data_set_of_another_size_is_refused_in_mid_epoch(checkpoints, size):
    told = rf"inside of a pass over 256 samples on 1 rank, .*{size} samples on 1 rank.*at an epoch's end"
    with pytest.raises(ValueError, match=told):
        resume(checkpoints, "ba6", size=size)


@pytest.mark.parametrize("size", [100, 300])
def test_a_data_set_of_another_size_is_right_from_an_epochs_end_on(checkpoints, size):
    run, watch, edba = resume(checkpoints, "ep2", size=size)
    assert whole_passes(watch, 2) == [size]
    assert watch.epoch_ends[0][2] == 2 * SIZE + size
    # Other data, so what was trained on before does not count.
    assert logged(run, "edba/distinct_samples")[-1] == len({i for batch in watch.indices for i in batch})
    assert edba._engine._selector.averages is not None
    assert edba.batch_size <= size


def test_another_number_of_samples_from_the_same_data_set_counts_too(checkpoints):
    part = DataLoader(Subset(Points(with_index=True), range(200)), batch_size=64, shuffle=True)
    with pytest.raises(ValueError, match=r"256 samples on 1 rank, .* 200 samples on 1 rank"):
        resume(checkpoints, "ba6", loader=part)
    data = Points(with_index=True)
    drawn = DataLoader(data, batch_size=64, sampler=RandomSampler(data, replacement=True, num_samples=90))
    with pytest.raises(ValueError, match=r"256 samples on 1 rank, .* 90 samples on 1 rank"):
        resume(checkpoints, "ba6", loader=drawn)
    _, watch, _ = resume(checkpoints, "ep1", loader=drawn)
    assert whole_passes(watch, 3) == [90, 90]


def test_other_content_of_the_same_size_goes_on_with_the_rest_of_the_pass(checkpoints):
    """Nobody can tell it from the outside; each index still comes once an epoch."""
    loader = points_loader(with_index=True)
    loader.dataset.x.mul_(-0.5)
    run, watch, _ = resume(checkpoints, "ba6", loader=loader)
    assert [samples for _, _, samples in watch.epoch_ends] == [512, 768, 1024]
    same, same_watch, _ = resume(checkpoints, "ba6")
    assert watch.pools[0] == same_watch.pools[0]
    assert int(run.state.timestamp.sample) == int(same.state.timestamp.sample)


def test_a_loader_that_cannot_be_resized_is_refused_in_mid_epoch(checkpoints):
    class Own(BatchSampler):
        pass

    data = Points(with_index=True)
    loader = DataLoader(data, batch_sampler=Own(RandomSampler(data), 64, False))
    with (
        pytest.warns(UserWarning, match="cannot resize"),
        pytest.raises(ValueError, match=r"256 samples on 1 rank, .* an unknown number of samples"),
    ):
        resume(checkpoints, "ba6", loader=loader)


# ---- the batch size and EDBA's arguments


@pytest.mark.parametrize("name", ["ba6", "ep1"])
@pytest.mark.parametrize("batch_size", [16, 200])
def test_a_loader_of_another_batch_size_goes_on_at_the_size_that_was_reached(checkpoints, name, batch_size):
    loader = points_loader(batch_size=batch_size, with_index=True)
    run, watch, _ = resume(checkpoints, name, loader=loader)
    same, same_watch, _ = resume(checkpoints, name)
    assert watch.pools == same_watch.pools
    assert watch.indices == same_watch.indices
    assert int(run.state.timestamp.sample) == int(same.state.timestamp.sample) == RESUME * SIZE


@pytest.mark.parametrize("name", ["ba6", "ep1"])
@pytest.mark.parametrize("policy", ["noise_scale", "fixed"])
def test_another_policy_begins_anew_at_the_loaders_size_with_the_same_averages(checkpoints, name, policy):
    _, watch, edba = resume(checkpoints, name, EDBA.paper(min_subset_size=5, batch_size_policy=policy))
    first, *_ = logged_averages(checkpoints, name)
    assert first is not None
    assert [samples for _, _, samples in watch.epoch_ends][-1] == RESUME * SIZE
    assert (
        type(edba._engine._selector.policy).__name__
        == {"noise_scale": "NoiseScalePolicy", "fixed": "FixedPolicy"}[policy]
    )
    assert watch.pools[1] == 64
    if policy == "fixed":
        assert set(watch.pools[1:]) == {64}
    else:
        assert all(len(evidence) == 2 for evidence in edba._engine._selector.policy.state_dict()["window"])


@pytest.mark.parametrize("old", ["noise_scale", "fixed"])
def test_the_margin_policy_takes_over_from_another(tmp_path, old):
    """Long enough for its window of votes to fill."""
    folder = save(tmp_path, [EDBA.paper(min_subset_size=5, batch_size_policy=old)])
    loader = points_loader(batch_size=16, with_index=True)
    _, watch, edba = resume(folder, "ba6", EDBA.paper(min_subset_size=5), loader=loader)
    assert len(watch.subsets) > 25
    assert edba._engine._selector.policy.state_dict().keys() >= {"window", "direction"}


def logged_averages(folder, name):
    state = torch.load(folder / f"{name}.pt", weights_only=False)["state"]
    ((_, saved),) = [item for item in state["algorithms"] if item[0] == "EDBA"]
    return saved["selector"]["averages"], saved


def test_narrower_bounds_move_the_size_inside(checkpoints):
    with pytest.warns(UserWarning, match="batch size 64 lies outside of min_batch_size=10 and max_batch_size=20"):
        run, watch, _ = resume(checkpoints, "ba6", EDBA.paper(min_subset_size=5, max_batch_size=20))
    # What was drawn before the checkpoint is not drawn again in other sizes: the pass stays one.
    assert [samples for _, _, samples in watch.epoch_ends] == [512, 768, 1024]
    assert max(watch.pools[1:]) <= 21
    assert int(run.state.timestamp.sample) == 1024


@pytest.mark.parametrize(
    "arguments",
    [
        {"criterion": "random"},
        {"subset_size_law": "power_set"},
        {"num_candidates": 16, "ema_decay": 0.5},
        {"min_subset_size": 40},
        {"start": 0.5},
        {"interrupt": 3},
    ],
)
def test_other_arguments_take_effect_from_the_resumption_on(checkpoints, arguments):
    run, watch, edba = resume(checkpoints, "ba6", EDBA.paper(**{"min_subset_size": 5, **arguments}))
    averages, saved = logged_averages(checkpoints, "ba6")
    assert int(run.state.timestamp.sample) == RESUME * SIZE
    assert edba._engine.samples_trained == saved["samples_trained"] + sum(watch.subsets)
    assert min(watch.subsets) >= arguments.get("min_subset_size", 5)
    assert edba._engine._selector.averages is not None
    assert averages is not None


# ---- with and without EDBA


@pytest.mark.parametrize("name", ["ba6", "ep1"])
@pytest.mark.parametrize("bounds", [{}, {"min_batch_size": 10, "max_batch_size": 32}])
@pytest.mark.filterwarnings("ignore:.*lies outside of min_batch_size")
def test_a_checkpoint_without_edba_goes_on_with_it_in_the_same_pass(plain_checkpoints, name, bounds):
    """Also when EDBA's bounds do not hold the size of the batches that were drawn without it."""
    with pytest.warns(UserWarning, match="EDBA is not in the state_dict"):
        run, watch, _ = resume(plain_checkpoints, name, EDBA.paper(min_subset_size=10, **bounds))
    assert [samples for _, _, samples in watch.epoch_ends] == [512, 768, 1024]
    assert int(run.state.timestamp.sample) == RESUME * SIZE
    if bounds:
        assert max(watch.pools[1:]) <= 33
    if name == "ba6":  # two batches of 64 were drawn; what is left is trained on once
        plain = torch.load(plain_checkpoints / "ba6.pt", weights_only=False)["state"]["timestamp"]["Timestamp"]
        assert plain["sample_in_epoch"] == 128
        rest = watch.epoch_ends[0][1] - 6
        assert watch.pools[0] + sum(watch.pools[1:rest]) == 512


@pytest.mark.parametrize("name", ["ba6", "ep1"])
def test_a_checkpoint_with_edba_goes_on_without_it(checkpoints, name):
    """EDBA is not there to say how the interrupted pass was drawn; the passes that follow are whole."""
    run, watch, _ = resume(checkpoints, name, None)
    assert int(run.state.timestamp.epoch) == RESUME
    assert whole_passes(watch, RESUME - 1) == [SIZE] * (RESUME - 2)
    assert watch.subsets == [64] * len(watch.subsets)
    assert all(torch.isfinite(p).all() for p in run.state.model.parameters())
    again, *_ = resume(checkpoints, name, None)
    for (key, a), b in zip(run.state.model.state_dict().items(), again.state.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


# ---- the number of ranks


@pytest.mark.slow
def test_another_number_of_ranks_is_refused_in_mid_epoch_and_right_from_its_end_on(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "composer.cli.launcher",
            "-n",
            "2",
            "-m",
            "tests.contract.faults.save_on_ranks",
            str(tmp_path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    with pytest.raises(ValueError, match=r"256 samples on 2 ranks, .* 256 samples on 1 rank:"):
        resume(tmp_path, "ba3")
    run, watch, edba = resume(tmp_path, "ep2")
    assert [samples for _, _, samples in watch.epoch_ends] == [768, 1024]
    assert int(run.state.timestamp.sample) == RESUME * SIZE
    _, saved = logged_averages(tmp_path, "ep2")
    assert watch.pools[1] == saved["selector"]["policy"]["size"]  # sizes count per rank
    assert edba._engine.samples_trained == saved["samples_trained"] + sum(watch.subsets)


@pytest.mark.parametrize("batches", [1, 2, 5])
def test_a_second_fit_in_mid_epoch_goes_on_with_the_same_pass(batches):
    """The trainer skips the batches of the pass so far, which must have the sizes they had."""
    sizes = [64, 100, 30, 17, 12, 70, 10]
    watch = Watch()
    edba = EDBA.paper(batch_size_policy=following(sizes))
    run = trainer([edba], loader=points_loader(with_index=True), callbacks=[watch], max_duration=f"{batches}ba")
    run.fit()
    while int(run.state.timestamp.epoch) < 3:
        run.fit(duration=f"{batches}ba")
    assert [samples for _, _, samples in watch.epoch_ends[:3]] == [SIZE, 2 * SIZE, 3 * SIZE]


def test_the_model_is_the_checkpoints(checkpoints):
    """That the tests above resume at all."""
    run = trainer([EDBA.paper()], model=classifier(), max_duration="4ep", load_path=str(checkpoints / "ep2.pt"))
    fresh = classifier().state_dict()
    assert int(run.state.timestamp.epoch) == 2
    assert any(
        not torch.equal(a, b) for a, b in zip(run.state.model.state_dict().values(), fresh.values(), strict=True)
    )
