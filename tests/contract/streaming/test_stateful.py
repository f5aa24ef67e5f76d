"""torchdata's StatefulDataLoader: EDBA's state suffices, and with the loader's own nothing is skipped twice."""

import gc
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

from composer_edba.plain import SubsetLoader
from tests.support.loops import LOOPS
from tests.support.task import LOSS, SAMPLES, Task
from tests.support.torch_runs import following, net, points

torchdata = pytest.importorskip("torchdata.stateful_dataloader")

# More batches in a pass than workers fetch ahead.
PASSES, BATCH = 3, 16
SETTINGS = {"criterion": "margin", "batch_size_policy": following([16, 16, 24, 20, 28, 12]), "interval": 1}


@dataclass(frozen=True)
class Stateful(Task):
    """A Task whose loader has a state, which is saved too if ``both``."""

    both: bool = False
    generator: bool = False
    persistent: bool = False
    snapshot_every: int = 1

    def loader(self):
        return torchdata.StatefulDataLoader(
            points(SAMPLES),
            batch_size=BATCH,
            shuffle=self.shuffle,
            num_workers=self.workers,
            persistent_workers=self.persistent,
            generator=torch.Generator().manual_seed(3) if self.generator else None,
            snapshot_every_n_steps=self.snapshot_every,
        )

    def states(self, data):
        return {"loader": data} if self.both else {}


TASKS = {
    "in order": Stateful(),
    "shuffled": Stateful(shuffle=True, dropout=0.1),
    "generator": Stateful(shuffle=True, dropout=0.1, generator=True),
    "workers": Stateful(shuffle=True, dropout=0.1, workers=2),
    "persistent": Stateful(shuffle=True, workers=2, persistent=True, snapshot_every=3),
}


def run(loop, task, **arguments):
    gc.collect()  # workers would inherit the iterators of earlier loaders, whose own they would then wait for
    return LOOPS[loop](SETTINGS, PASSES, task, **arguments)


whole = cache(run)


@pytest.mark.parametrize("loop", ["ignite", "plain"])
@pytest.mark.parametrize("both", [False, True], ids=["ours", "both"])
@pytest.mark.parametrize("at_pass_end", [False, True], ids=["in mid-pass", "at a pass's end"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (task.workers > 0)) for name, task in TASKS.items()]
)
def test_resumed_it_is_the_uninterrupted_run(tmp_path, name, at_pass_end, both, loop):
    expected = whole(loop, TASKS[name])
    passes = [step["pass"] for step in expected.steps]
    for number in range(PASSES):
        drawn = [index for step in expected.steps if step["pass"] == number for index in step["delivered"]]
        assert sorted(drawn) == list(range(SAMPLES))
    assert len({len(step["delivered"]) for step in expected.steps}) > 3
    task, stop = replace(TASKS[name], both=both), passes.index(2) if at_pass_end else passes.index(1) + 4
    stopped = run(loop, task, stop_after=stop, at_pass_end=at_pass_end, save_to=tmp_path / "state.pt")
    resumed = run(loop, task, resume_from=stopped.state)
    assert stopped.steps + resumed.steps == expected.steps
    for key, tensor in expected.weights.items():
        assert resumed.weights[key].equal(tensor), key


def subsets():
    loader = Stateful(shuffle=True).loader()
    return loader, SubsetLoader(loader, net(), LOSS, **SETTINGS)


def after(batches):
    loader, data = subsets()
    for _ in zip(range(batches), data, strict=False):
        states = loader.state_dict(), data.state_dict()
    return states


def test_asking_for_the_loaders_state_leaves_the_next_passes_as_they_are():
    orders = []
    for asks in (False, True):
        torch.manual_seed(1)
        loader, data = subsets()
        orders.append([])
        for _ in range(2):
            for inputs, _ in data:
                orders[-1].append(inputs[:, 0].tolist())
                if asks:
                    loader.state_dict()
    assert orders[0] == orders[1]


def test_states_of_two_moments_are_refused():
    loader, data = subsets()
    loader.load_state_dict(after(2)[0])
    data.load_state_dict(after(3)[1])
    with pytest.raises(ValueError, match="after batch 2 of a pass, and that of EDBA after batch 3"):
        next(iter(data))
