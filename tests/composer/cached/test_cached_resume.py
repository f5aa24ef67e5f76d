"""scoring="cached": a resumed run ends bitwise as the uninterrupted one."""

import pytest
import torch

from composer_edba import EDBA
from tests.support.small_runs import Watch, logged, points_loader, trainer
from tests.support.torch_runs import following

WILD = [64, 100, 30, 17, 128, 10, 55, 90, 23, 41, 12]
METRICS = (
    "margin",
    "gradient_average",
    "distinct_samples",
    "samples_trained",
    "samples_drawn",
    "batch_size",
    "score_age",
)


def run(
    folder,
    *,
    workers=0,
    duration="4ep",
    load=None,
    save=None,
    algorithms=None,
    scoring="cached",
    policy="margin",
    **kwargs,
):
    watch = Watch()
    edba = EDBA.paper(scoring=scoring, batch_size_policy=policy, min_subset_size=5)
    result = trainer(
        [edba] if algorithms is None else algorithms,
        loader=points_loader(with_index=True, num_workers=workers),
        callbacks=[watch],
        max_duration=duration,
        save_folder=str(folder),
        save_interval=save or "1000ba",
        save_filename="ba{batch}.pt",
        save_overwrite=True,
        load_path=load,
        **kwargs,
    )
    result.fit()
    return result, watch, edba


def equal_weights(a, b):
    a, b = a.state.model.state_dict(), b.state.model.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sizes", ["wild", "margin"])
def test_resumed_anywhere_it_ends_bitwise_equal(tmp_path, workers, sizes):
    policy = following(WILD) if sizes == "wild" else sizes
    whole, watch, edba = run(tmp_path / "whole", workers=workers, policy=policy, save="1ba")
    ends = [batch for _, batch, _ in watch.epoch_ends]
    assert min(watch.subsets) < 64
    # In the pass in which everything is new, in mid-epoch, one batch before an epoch's end, and exactly at its end.
    for cut in (2, ends[1] + 2, ends[1] - 1, ends[1]):
        again, seen, resumed = run(
            tmp_path / f"again{cut}", workers=workers, policy=policy, load=str(tmp_path / "whole" / f"ba{cut}.pt")
        )
        assert int(again.state.timestamp.batch) == int(whole.state.timestamp.batch)
        assert seen.indices == watch.indices[cut:]
        assert seen.epoch_ends == [end for end in watch.epoch_ends if end[1] > cut or (cut in ends and end[1] == cut)]
        assert equal_weights(whole, again)
        assert resumed.state_dict() == edba.state_dict()
        assert len(logged(again, "edba/batch_size")) == len(watch.subsets) - cut
        for metric in METRICS:
            entire, rest = logged(whole, f"edba/{metric}"), logged(again, f"edba/{metric}")
            assert rest == entire[len(entire) - len(rest) :], metric
        # Steps of the first pass choose nothing, and log no margin.
        assert len(logged(again, "edba/score_age")) == len(
            [step for step in range(cut, len(watch.subsets)) if step >= ends[0]]
        )


def test_a_run_resumed_twice_ends_bitwise_equal(tmp_path):
    """The first resumption's checkpoint holds the choices of the whole pass, also those it only drew again."""
    whole, watch, edba = run(tmp_path / "whole", workers=2, save="5ba")
    run(tmp_path / "first", workers=2, save="6ba", duration="6ba", load=str(tmp_path / "whole" / "ba5.pt"))
    again, seen, resumed = run(tmp_path / "second", workers=2, load=str(tmp_path / "first" / "ba6.pt"))
    assert seen.indices == watch.indices[6:]
    assert equal_weights(whole, again)
    assert resumed.state_dict() == edba.state_dict()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("before", "after"), [("forward", "cached"), ("cached", "forward"), (None, "cached")])
def test_checkpoints_of_another_scoring_or_of_none_can_be_taken_up_in_mid_epoch(tmp_path, before, after, workers):
    kwargs = {"algorithms": []} if before is None else {"scoring": before}
    _, watch, _ = run(tmp_path / "first", duration="6ba", save="6ba", workers=workers, **kwargs)
    load = str(tmp_path / "first" / "ba6.pt")
    if before is None:
        with pytest.warns(UserWarning, match="EDBA is not in the state_dict"):
            again, seen, resumed = run(tmp_path / "again", load=load, scoring=after, workers=workers)
    else:
        again, seen, resumed = run(tmp_path / "again", load=load, scoring=after, workers=workers)
    epochs = [epoch for epoch, _, _ in watch.epoch_ends + seen.epoch_ends]
    assert epochs == [1, 2, 3, 4]
    if after == "cached":
        assert logged(again, "edba/samples_drawn")[-1] == 4 * 256
        assert int(resumed.score_cache.steps.min()) >= 6
    assert min(seen.subsets) < 64
    assert logged(again, "edba/batch_size")[0] > 0


def test_without_spinning_a_resumed_pass_begins_anew_with_the_samples_it_says(tmp_path):
    run(tmp_path / "first", duration="6ba", save="6ba")
    _, watch, edba = run(
        tmp_path / "again", load=str(tmp_path / "first" / "ba6.pt"), duration="16ba", spin_dataloaders=False
    )
    assert len(watch.subsets) == 10
    # Composer's own algorithms see the batch after EDBA: its indices are those that were recorded last.
    for step, indices in enumerate(watch.indices, 6):
        newer = {index for later in watch.indices[step - 5 :] for index in later}
        assert all(edba.score_cache.steps[index] == step for index in indices if index not in newer)


def test_another_data_sets_scores_are_dropped_at_an_epochs_end(tmp_path):
    run(tmp_path, duration="1ep", save="1ep")
    watch, edba = Watch(), EDBA.paper(scoring="cached", min_subset_size=5)
    again = trainer(
        [edba],
        loader=points_loader(size=192, with_index=True),
        callbacks=[watch],
        max_duration="3ep",
        load_path=str(tmp_path / "ba4.pt"),
    )
    again.fit()
    assert edba.score_cache.size == 192
    assert watch.subsets[:3] == [64] * 3
    assert min(watch.subsets) < 64


def test_a_checkpoint_holds_the_scores_as_bytes(tmp_path):
    run(tmp_path, duration="2ep", save="2ep")
    saved = torch.load(tmp_path / "ba8.pt", weights_only=False)["state"]["algorithms"]
    cache = dict(saved)["EDBA"]["remembered"]["cache"]
    assert len(cache["rows"]) == 256 * 4 * (32 + 4 + 1)
    assert isinstance(cache["rows"], bytes)
