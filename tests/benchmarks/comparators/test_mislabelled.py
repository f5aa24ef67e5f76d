import math

import numpy as np
import pytest
from composer import Callback
from torch.utils.data import DataLoader

from benchmarks.comparators.mislabelled import LeaveOutCounts, MislabelledShare, leave_out_ratio
from composer_edba import EDBA
from composer_edba.train.data import NoisyLabels, identity_collate
from tests.support.small_runs import classifier, logged, points_loader, trainer


def noisy_loader(batch_size=32):
    points = points_loader(256).dataset
    targets = points.y.clone()
    targets[:64] = (targets[:64] + 1) % 4
    data = NoisyLabels(points.x, targets, points.y)
    return DataLoader(data, batch_size, shuffle=True, collate_fn=identity_collate)


class Recount(Callback):
    """Counts by comparing the samples themselves with the data set."""

    def __init__(self, edba, data):
        self.edba, self.data, self.pools, self.wrong_kept, self.kept = edba, data, [], [], []

    def batch_start(self, state, logger):
        rows = (state.batch[0][:, None] == self.data.inputs[None]).all(2).float().argmax(1)
        selection = self.edba.last_selection
        if selection is not None:
            assert rows.tolist() == selection.subset.tolist()
            assert set(selection.subset.tolist()) <= set(selection.pool.tolist())
            self.pools.append(selection.pool.tolist())
            self.kept.append(len(rows))
            self.wrong_kept.append(int((rows < 64).sum()))


@pytest.mark.parametrize("mislabelled_first", [True, False])
def test_counts_what_is_kept(mislabelled_first):
    edba, share = EDBA.paper(num_candidates=16, min_subset_size=4, interrupt=3), MislabelledShare(parts=4)
    loader = noisy_loader()
    recount = Recount(edba, loader.dataset)
    algorithms = [share, edba] if mislabelled_first else [edba, share]
    run = trainer(algorithms, loader=loader, callbacks=[recount], max_duration="4ep")
    run.fit()
    # Every third batch of the run is trained on whole; an epoch has eight.
    assert [part.steps for part in share.counts] == [6, 5, 5, 6]
    for number, part in enumerate(share.counts):
        before = sum(other.steps for other in share.counts[:number])
        steps = slice(before, before + part.steps)
        wrong = sum(index < 64 for pool in recount.pools[steps] for index in pool)
        pooled = sum(map(len, recount.pools[steps]))
        assert part.mislabelled_kept == sum(recount.wrong_kept[steps])
        assert part.mislabelled_kept + part.mislabelled_left_out == wrong
        assert part.clean_kept == sum(recount.kept[steps]) - sum(recount.wrong_kept[steps])
        assert part.clean_kept + part.clean_left_out == pooled - wrong
    shares = logged(run, "mislabelled/subset_share")
    assert shares == pytest.approx([w / k for w, k in zip(recount.wrong_kept, recount.kept, strict=True)])


def test_random_control_does_not_prefer_either():
    share = MislabelledShare(parts=1)
    edba = EDBA.paper(criterion="random", num_candidates=16, min_subset_size=4, batch_size_policy="fixed")
    trainer([edba, share], loader=noisy_loader(), max_duration="60ep").fit()
    _, low, high = leave_out_ratio(share.counts, confidence=0.9999)
    assert low < 1 < high
    assert high / low < 1.5


def test_resumes(tmp_path):
    def run(**kwargs):
        share = MislabelledShare(parts=2)
        algorithms = [EDBA.paper(num_candidates=16, min_subset_size=4), share]
        model = classifier(dropout=0.0)
        trainer(algorithms, model=model, loader=noisy_loader(), max_duration="4ep", **kwargs).fit()
        return share.counts

    whole = run(save_folder=str(tmp_path), save_interval="1ba", save_filename="ba{batch}")
    assert run(load_path=str(tmp_path / "ba11")) == whole


def test_ratio_of_one_pool_is_the_plain_one():
    counts = LeaveOutCounts()
    counts.add_pool(mislabelled=20, mislabelled_left_out=12, clean=80, clean_left_out=24)
    ratio, low, high = leave_out_ratio([counts])
    assert ratio == pytest.approx(2.0)
    # Of one stratum the variance is the textbook one: 1/a - 1/n1 + 1/c - 1/n0.
    deviation = math.sqrt(1 / 12 - 1 / 20 + 1 / 24 - 1 / 80)
    assert (low, high) == pytest.approx((2 * math.exp(-1.959964 * deviation), 2 * math.exp(1.959964 * deviation)))


def test_ratio_compares_within_pools():
    """Taken together, these two pools would show a difference: more wrong labels in the one that leaves more out."""
    counts = LeaveOutCounts()
    counts.add_pool(mislabelled=80, mislabelled_left_out=72, clean=20, clean_left_out=18)
    counts.add_pool(mislabelled=20, mislabelled_left_out=2, clean=80, clean_left_out=8)
    assert leave_out_ratio([counts])[0] == pytest.approx(1.0)
    pooled = (counts.mislabelled_left_out / 100) / (counts.clean_left_out / 100)
    assert pooled > 2


@pytest.mark.parametrize("truth", [1.0, 1.3])
def test_interval_covers_the_truth_as_often_as_it_says(truth):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        counts = LeaveOutCounts()
        for _ in range(60):
            clean, share = 70, rng.uniform(0.1, 0.7)
            counts.add_pool(30, rng.binomial(30, truth * share), clean, rng.binomial(clean, share))
        _, low, high = leave_out_ratio([counts])
        covered += low < truth < high
    assert 0.92 < covered / 400 < 0.98


def test_parts_and_runs_add_up():
    one, two, both = LeaveOutCounts(), LeaveOutCounts(), LeaveOutCounts()
    for counts in (one, both):
        counts.add_pool(20, 12, 80, 24)
    for counts in (two, both):
        counts.add_pool(30, 12, 70, 50)
    assert leave_out_ratio([one, vars(two)]) == pytest.approx(leave_out_ratio([both]))


def test_nothing_left_out():
    counts = LeaveOutCounts()
    counts.add_pool(20, 0, 80, 0)
    assert all(map(math.isnan, leave_out_ratio([counts])))


def test_refusals():
    with pytest.raises(ValueError, match="parts must be at least 1, not 0"):
        MislabelledShare(parts=0)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), not 95"):
        leave_out_ratio([], confidence=95)
    with pytest.raises(ValueError, match="needs EDBA beside it"):
        trainer([MislabelledShare()], loader=noisy_loader()).fit()
    with pytest.raises(ValueError, match="has no attribute mislabelled"):
        trainer([EDBA.paper(), MislabelledShare()]).fit()
