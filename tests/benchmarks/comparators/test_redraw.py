from itertools import chain

import pytest
from composer import Callback
from torch.utils.data import DistributedSampler

from benchmarks.comparators.redraw import RedrawOnResize
from composer_edba import EDBA
from tests.support.small_runs import Watch, logged, points_loader, trainer
from tests.support.torch_runs import following


class Pools(Callback):
    """The indices of every pool, and the number of draws after each."""

    def __init__(self, edba, redraw):
        self.edba, self.redraw, self.indices, self.draws = edba, redraw, [], []

    def batch_end(self, state, logger):
        self.indices.append(self.edba.last_selection.pool.tolist())
        self.draws.append(self.redraw.draws)


def fit(sizes, redraw, *, edba_first=True, max_duration="6ep", **kwargs):
    edba = EDBA.paper(num_candidates=8, min_subset_size=4, min_batch_size=4, batch_size_policy=following(sizes))
    pools, watch = Pools(edba, redraw), Watch()
    run = trainer(
        [edba, redraw] if edba_first else [redraw, edba],
        loader=kwargs.pop("loader", None) or points_loader(256, 10),
        callbacks=[pools, watch],
        max_duration=max_duration,
        **kwargs,
    )
    run.fit()
    return edba, pools, watch, run


@pytest.mark.parametrize("edba_first", [True, False])
def test_constant_size_keeps_one_subset(edba_first):
    edba, pools, watch, _ = fit([10], RedrawOnResize(40), edba_first=edba_first)
    assert set(pools.draws) == {1}
    for epoch in range(6):
        seen = list(chain(*pools.indices[4 * epoch : 4 * epoch + 4]))
        assert sorted(seen) == sorted(chain(*pools.indices[:4]))
        assert len(set(seen)) == 40
    assert edba.distinct_samples <= 40
    assert watch.epoch_ends == [(epoch, 4 * epoch, 40 * epoch) for epoch in range(1, 7)]


def test_each_change_of_size_draws_anew():
    """At once: the rest of the pass comes from the new subset, and a pass has as many samples as ever."""
    sizes = [10, 10, 20, 20, 20, 8, 8]
    edba, pools, watch, run = fit(sizes, RedrawOnResize(40))
    changes = sum(1 for step in range(1, len(pools.draws)) if pools.draws[step] != pools.draws[step - 1])
    assert changes == pools.draws[-1] - 1 > 3
    by_draw = {}
    for indices, draws in zip(pools.indices, [1, *pools.draws], strict=False):
        by_draw.setdefault(draws, set()).update(indices)
    assert all(len(members) <= 40 for members in by_draw.values())
    assert len(set().union(*by_draw.values())) > 80
    assert 40 < edba.distinct_samples <= len(set().union(*by_draw.values()))
    assert logged(run, "edba/distinct_samples")[-1] == edba.distinct_samples
    assert [end[2] for end in watch.epoch_ends] == [40, 80, 120, 160, 200, 240]


def test_every_epoch():
    _, pools, _, _ = fit([10, 20], RedrawOnResize(40, every="epoch"))
    assert pools.draws[-1] == 6
    ends = [step for step in range(1, len(pools.draws)) if pools.draws[step] != pools.draws[step - 1]]
    for first, last in zip([0, *ends], [*ends, None], strict=True):
        assert len(set(chain(*pools.indices[first:last]))) == 40


def test_seed_alone_says_which():
    first, second, other = (
        fit([10, 20], RedrawOnResize(40, seed=seed), max_duration="2ep")[1].indices for seed in (1, 1, 2)
    )
    assert first == second != other


def test_loader_of_the_yaml_runs():
    """Its order comes from a DistributedSampler over the full set, which must not decide any more."""
    data = points_loader(256, 10).dataset
    loader = points_loader(256, 10, shuffle=None, sampler=DistributedSampler(data, num_replicas=1, rank=0))
    _, pools, _, _ = fit([10], RedrawOnResize(40), loader=loader)
    assert len(set(chain(*pools.indices))) == 40


def test_resumes_at_an_epochs_end_only(tmp_path):
    def run(**kwargs):
        return fit([10], RedrawOnResize(40), max_duration="2ep", **kwargs)[1].indices

    for interval in ("1ba", "1ep"):
        whole = run(save_folder=str(tmp_path), save_interval=interval, save_filename=f"{interval}-{{batch}}")
    resumed = run(load_path=str(tmp_path / "1ep-4"))
    assert len(resumed) == 4
    assert set(chain(*resumed)) == set(chain(*whole))
    with pytest.raises(ValueError, match="cannot be taken up inside an epoch"):
        run(load_path=str(tmp_path / "1ba-3"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, not 0"),
        ({"samples": 5, "every": "step"}, "every must be 'resize' or 'epoch', not 'step'"),
        ({"samples": 5, "seed": -1}, "seed must be at least 0, not -1"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        RedrawOnResize(**arguments)


def test_more_samples_than_there_are():
    with pytest.raises(ValueError, match="samples=257 exceeds the 256 samples"):
        fit([10], RedrawOnResize(257))


def test_edba_is_needed():
    with pytest.raises(ValueError, match="needs EDBA beside it"):
        trainer([RedrawOnResize(40)]).fit()
