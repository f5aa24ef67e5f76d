"""A run resumed in the middle of an epoch ends bitwise as the uninterrupted one."""

import warnings

import pytest
import torch
from composer import Trainer

from composer_edba import EDBA
from tests.support.small_runs import Watch, logged, points_loader, trainer
from tests.support.torch_runs import Sizes, following

WILD = [64, 100, 30, 17, 128, 10, 55, 90, 23, 41, 12]


def run(folder, *, workers, duration, policy, load=None, save=None, algorithms=None):
    watch = Watch()
    loader = points_loader(with_index=True, num_workers=workers)
    edba = EDBA.paper(batch_size_policy=policy, min_subset_size=5)
    result = trainer(
        [edba] if algorithms is None else algorithms,
        loader=loader,
        callbacks=[watch],
        max_duration=duration,
        save_folder=str(folder),
        save_interval=save or "1000ba",
        save_filename="ba{batch}.pt",
        save_overwrite=True,
        load_path=load,
    )
    result.fit()
    return result, watch, edba


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("policy", ["scheduled", "loss", "margin", "noise_scale", "fixed"])
def test_resumed_in_mid_epoch_it_ends_bitwise_equal(tmp_path, workers, policy):
    policy = following(WILD) if policy == "scheduled" else policy
    whole, watch, edba = run(tmp_path / "whole", workers=workers, duration="4ep", policy=policy, save="1ba")
    ends = [batch for _, batch, _ in watch.epoch_ends]
    steps = int(whole.state.timestamp.batch)
    # In mid-epoch, one batch before an epoch's end, and exactly at its end (before EPOCH_END has run).
    for cut in (ends[1] + 2, ends[1] - 1, ends[1]):
        again, seen, resumed = run(
            tmp_path / f"again{cut}",
            workers=workers,
            duration="4ep",
            policy=policy,
            load=str(tmp_path / "whole" / f"ba{cut}.pt"),
        )
        assert int(again.state.timestamp.batch) == steps
        assert len(seen.pools) == steps - cut
        # Watch.pools are differences, and the first one holds all samples before the cut.
        assert seen.pools[0] == sum(watch.pools[: cut + 1])
        assert seen.pools[1:] == watch.pools[cut + 1 :]
        assert seen.subsets == watch.subsets[cut:]
        assert seen.indices == watch.indices[cut:]
        for (key, a), (_, b) in zip(
            whole.state.model.state_dict().items(), again.state.model.state_dict().items(), strict=True
        ):
            assert torch.equal(a, b), (cut, key)
        assert resumed.state_dict() == edba.state_dict()
        for metric in ("margin", "gradient_average", "distinct_samples", "samples_trained", "batch_size"):
            assert logged(again, f"edba/{metric}") == logged(whole, f"edba/{metric}")[cut:], metric


def test_a_checkpoint_of_a_run_without_edba_can_be_resumed_with_it(tmp_path):
    run(tmp_path, workers=0, duration="6ba", policy="margin", save="6ba", algorithms=[])
    with pytest.warns(UserWarning, match="EDBA is not in the state_dict"):
        again, watch, _ = run(tmp_path / "again", workers=0, duration="4ep", policy="margin", load=f"{tmp_path}/ba6.pt")
    assert int(again.state.timestamp.sample) == 1024
    assert watch.subsets[0] == 64
    assert min(watch.subsets) < 64


def test_the_state_is_plain_and_the_same_whoever_reads_it(tmp_path):
    result, _, edba = run(tmp_path, workers=0, duration="1ep", policy="margin")
    plain = (dict, list, str, int, float, bool, type(None))

    def check(value):
        assert isinstance(value, plain), value
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(part)

    check(edba.state_dict())
    assert isinstance(result, Trainer)
    again = EDBA.paper()
    again.load_state_dict(edba.state_dict())
    assert again._engine._resume_from == edba.state_dict()


# ---- other settings


class Steps(Sizes):
    pass


def make(size, minimum, maximum):
    return Steps(WILD)


def warnings_of(load, edba):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        edba.load_state_dict(load)
    return [str(warning.message) for warning in caught]


def test_other_settings_than_the_checkpoints_are_told_once(tmp_path):
    run(tmp_path, workers=0, duration="4ep", policy="margin", save="6ba")
    edba, loader = EDBA(interval=3, criterion=steadiest), points_loader(with_index=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer([edba], loader=loader, load_path=f"{tmp_path}/ba6.pt").fit()
    (told,) = [str(warning.message) for warning in caught if "other settings" in str(warning.message)]
    assert "criterion: 'margin' -> 'steadiest'" in told
    assert "interval: 1 -> 3" in told
    assert "batch_size_policy: 'margin' -> 'fixed'" in told
    assert "min_subset_size: 5 -> 10" in told
    assert "scoring: 'forward' -> 'auto'" in told
    assert "ema_decay" not in told


def steadiest(gradient_metrics, model_metric, averages):
    return (gradient_metrics.double() - averages.gradient).abs()


def test_the_same_settings_and_a_state_without_any_are_no_matter(tmp_path):
    options = {"policy_options": {"window": 5}, "last_layer": "module.4"}
    for arguments in (options, {"batch_size_policy": make}, {"batch_size_policy": Steps(WILD), "criterion": steadiest}):
        edba = EDBA.paper(**arguments)
        trainer([edba], max_duration="1ep").fit()
        assert warnings_of(edba.state_dict(), EDBA.paper(**arguments)) == []
        old = edba.state_dict()
        del old["settings"]  # 0.2.0
        assert warnings_of(old, EDBA(interval=7)) == []
    (told,) = warnings_of(edba.state_dict(), EDBA.paper(batch_size_policy=make, criterion=steadiest))
    assert "batch_size_policy: 'Steps' -> 'make'" in told


def test_another_last_layer_begins_with_averages_of_its_own(tmp_path):
    run(tmp_path, workers=0, duration="6ba", policy="margin", save="6ba")
    again = EDBA.paper(min_subset_size=5, last_layer="module.0")
    with pytest.warns(UserWarning, match=r"last_layer: None -> 'module.0'"):
        result = trainer([again], loader=points_loader(with_index=True), load_path=f"{tmp_path}/ba6.pt")
    result.fit()
    assert logged(result, "edba/margin")[0] == 0  # of an average's first step
    assert again._engine.steps == int(result.state.timestamp.batch)
