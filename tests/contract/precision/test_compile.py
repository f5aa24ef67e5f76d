"""torch.compile: changing batch and subset sizes make no new graphs, and scoring makes none at all."""

import pytest
import torch
from composer import Event
from torch._dynamo.utils import counters

from composer_edba import EDBA
from tests.support.small_runs import Watch, classifier, trainer
from tests.support.torch_runs import following

SIZES = [64, 100, 30, 17, 128, 55, 90, 23, 41, 12]


class Counting:
    """A backend that runs each graph as it is and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs_around_scoring(edba, backend):
    """Has EDBA note how many graphs its own steps compile; gives the list of them."""
    compiled, apply = [], edba.apply

    def watched(event, state, logger):
        before = backend.graphs
        apply(event, state, logger)
        if event == Event.AFTER_DATALOADER:
            compiled.append(backend.graphs - before)

    edba.apply = watched
    return compiled


class GraphsEachStep(Watch):
    """Also notes the number of graphs after each step."""

    def __init__(self, backend):
        super().__init__()
        self.backend, self.graphs = backend, []

    def batch_end(self, state, logger):
        super().batch_end(state, logger)
        self.graphs.append(self.backend.graphs)


@pytest.mark.parametrize("limit", [None, 24])
def test_no_graph_is_added_by_scoring_or_by_new_sizes(limit):
    backend, edba = Counting(), EDBA.paper(min_subset_size=8, batch_size_policy=following(SIZES))
    watch, compiled = GraphsEachStep(backend), graphs_around_scoring(edba, backend)
    run = trainer(
        [edba],
        callbacks=[watch],
        max_duration="15ep",
        compile_config={"backend": backend},
        device_train_microbatch_size=limit,
    )
    run.fit()
    assert len(set(watch.pools)) >= len(SIZES)
    assert len(set(watch.subsets)) > 20
    assert set(compiled) == {0}
    # One graph for the first size, one for any size.
    assert watch.graphs[0] >= 1
    assert watch.graphs[-1] <= 2 * watch.graphs[0]
    assert watch.graphs[-1] == watch.graphs[len(watch.graphs) // 4], "graphs grow over the run"
    assert counters["frames"]["ok"] == counters["frames"]["total"]
    assert not counters["graph_break"]


def test_a_network_that_the_user_compiled_is_scored_without_a_graph_too():
    backend, edba = Counting(), EDBA.paper()
    model = classifier()
    model.module = torch.compile(model.module, backend=backend)
    watch, compiled = GraphsEachStep(backend), graphs_around_scoring(edba, backend)
    run = trainer([edba], model=model, callbacks=[watch], max_duration="6ep")
    run.fit()
    assert set(compiled) == {0}
    assert 1 <= watch.graphs[-1] <= 2 * watch.graphs[0]
    assert min(watch.subsets) < 64


def test_compiled_and_uncompiled_runs_choose_and_train_alike():
    """The scoring hooks work under compile, and none is compiled into the training graph."""

    def final(**kwargs):
        watch = Watch()
        run = trainer([EDBA.paper()], callbacks=[watch], max_duration="6ep", **kwargs)
        run.fit()
        return watch.subsets, run.state.model.state_dict()

    plain_subsets, plain = final()
    backend = Counting()
    subsets, compiled = final(compile_config={"backend": backend})
    assert backend.graphs > 0
    assert subsets == plain_subsets
    assert min(subsets) < 64
    assert list(compiled) == list(plain)
    assert all(torch.equal(plain[name], compiled[name]) for name in plain)


@pytest.mark.slow
def test_with_autograd_compiled_too():
    """Composer's way with the graphs of forward and backward, without the C++ compiler."""
    watch = Watch()
    run = trainer([EDBA.paper()], callbacks=[watch], max_duration="4ep", compile_config={"backend": "aot_eager"})
    run.fit()
    assert counters["stats"]["unique_graphs"] <= 2
    assert min(watch.subsets) < 64


@pytest.mark.slow
def test_with_composers_own_default():
    """compile_config={}: the inductor backend, which needs a C++ compiler."""
    watch = Watch()
    run = trainer([EDBA.paper()], callbacks=[watch], max_duration="4ep", compile_config={})
    run.fit()
    assert counters["stats"]["unique_graphs"] <= 2
    assert min(watch.subsets) < 64
