from itertools import chain, pairwise

import pytest
import torch

from benchmarks.comparators.rs2 import RS2
from tests.support.small_runs import Watch, classifier, points_loader, trainer


def fit(share, *, size=256, batch_size=32, duration="6ep", **kwargs):
    """A run's samples by epoch, the run and what watched it."""
    watch, algorithm = Watch(), RS2(share)
    loader = points_loader(size, batch_size, with_index=True)
    run = trainer([algorithm], loader=loader, callbacks=[watch], max_duration=duration, **kwargs)
    run.fit()
    starts = [0, *(batches for _, batches, _ in watch.epoch_ends)]
    epochs = [list(chain(*watch.indices[first:last])) for first, last in pairwise(starts)]
    return epochs, run, algorithm, watch


def test_all_have_their_turn_before_any_has_another():
    epochs, _, algorithm, _ = fit(0.25, duration="12ep")
    assert [len(epoch) for epoch in epochs] == [64] * 12
    turns = [list(chain(*epochs[first : first + 4])) for first in (0, 4, 8)]
    assert all(sorted(turn) == list(range(256)) for turn in turns)
    assert len({frozenset(epoch) for epoch in epochs}) == 12, "each turn is shuffled anew"
    assert algorithm.samples_trained == 12 * 64
    assert algorithm.distinct_samples == 256


@pytest.mark.parametrize("share", [0.65, 0.4, 0.9])
def test_an_epoch_across_two_turns_repeats_no_sample(share):
    epochs, *_ = fit(share, duration="9ep")
    seen = torch.zeros(256, dtype=torch.int64)
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == round(share * 256)
        seen[torch.tensor(epoch)] += 1
        assert int(seen.max() - seen.min()) <= 1, "nobody has a turn that others have not begun"


def test_the_whole_share_is_plain_training():
    epochs, run, *_ = fit(1.0, duration="2ep")
    watch = Watch()
    plain = trainer([], loader=points_loader(256, 32, with_index=True), callbacks=[watch], max_duration="2ep")
    plain.fit()
    assert list(chain(*epochs)) == list(chain(*watch.indices))
    for one, two in zip(run.state.model.parameters(), plain.state.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_schedule_is_complete_at_the_end_of_the_shorter_run():
    from composer.optim import LinearWithWarmupScheduler

    _, run, _, watch = fit(0.5, duration="6ep", schedulers=LinearWithWarmupScheduler("0.2dur", alpha_f=0.0))
    updates = int(run.state.timestamp.batch)
    assert updates == 6 * 4
    assert max(watch.learning_rates) == pytest.approx(0.05, rel=0.1)
    # One step before the end of a decay over the last four fifths.
    assert watch.learning_rates[-1] == pytest.approx(0.05 / (0.8 * updates), rel=0.01)


def test_resumes_with_the_same_batches(tmp_path):
    def run(**kwargs):
        *_, algorithm, watch = fit(0.65, duration="4ep", model=classifier(dropout=0.0), **kwargs)
        return watch.indices, algorithm.samples_trained

    whole, trained = run(save_folder=str(tmp_path), save_interval="1ba")
    resumed, again = run(load_path=str(tmp_path / "ep1-ba9-rank0.pt"))
    assert resumed == whole[9:]
    assert again == trained


def test_the_seed_decides():
    (one, *_), (same, *_), (other, *_) = fit(0.5), fit(0.5), fit(0.5, seed=6)
    assert one == same
    assert set(one[0]) != set(other[0])


@pytest.mark.parametrize("share", [0, -0.1, 1.01])
def test_shares_are_checked(share):
    with pytest.raises(ValueError, match=rf"share must be in \(0, 1\], not {share}"):
        RS2(share)
