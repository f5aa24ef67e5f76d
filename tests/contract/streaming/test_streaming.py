"""mosaicml-streaming: a StreamingDataset keeps its place by itself, and a resumed run is the uninterrupted one."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from tests.support.lightning_loop import run_lightning
from tests.support.loops import LOOPS as OLDER
from tests.support.task import SAMPLES, Task
from tests.support.torch_runs import following, points

streaming = pytest.importorskip("streaming")

LOOPS = {**OLDER, "lightning": run_lightning}
# More batches in a pass than workers fetch ahead.
PASSES, BATCH = 3, 16
GROWING = {"criterion": "margin", "batch_size_policy": following([16, 16, 24, 20, 28, 12]), "interval": 1}
FIXED = {"criterion": "margin", "batch_size_policy": "fixed", "interval": 1}


class Points(streaming.StreamingDataset):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample["x"], sample["y"]


@dataclass(frozen=True)
class Streamed(Task):
    """The same points from shards in ``folder``."""

    folder: str = ""
    batching: str = "random"
    saves: bool = True  # the loader's own state too

    def loader(self):
        dataset = Points(
            local=self.folder, batch_size=BATCH, shuffle=self.shuffle, shuffle_seed=3, batching_method=self.batching
        )
        return streaming.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=self.workers)

    def states(self, data):
        return {"loader": data} if self.saves else {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("shards") / "points")
    columns = {"x": "ndarray", "y": "int"}
    with streaming.MDSWriter(out=path, columns=columns, size_limit=4096) as writer:
        for x, y in zip(*points(SAMPLES).tensors, strict=True):
            writer.write({"x": np.asarray(x), "y": int(y)})
    return path


@cache
def whole(loop, task, growing):
    return LOOPS[loop](GROWING if growing else FIXED, PASSES, task)


def assert_same(record, expected, first):
    assert record.steps == expected.steps[first:]
    for name, tensor in expected.weights.items():
        assert record.weights[name].equal(tensor), name


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_has_every_sample_once_in_batches_that_grow(folder, loop, workers):
    steps = whole(loop, Streamed(folder=folder, shuffle=True, dropout=0.1, workers=workers), True).steps
    orders = [[i for step in steps if step["pass"] == number for i in step["delivered"]] for number in range(PASSES)]
    assert all(Counter(order) == Counter(range(SAMPLES)) for order in orders)
    assert orders[0] != orders[1]
    assert len({len(step["delivered"]) for step in steps}) > 3


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("growing", [False, True], ids=["fixed", "growing"])
@pytest.mark.parametrize(
    "place", ["before it grew", "in mid-pass", "in mid-pass, EDBA's state alone", "at a pass's end"]
)
def test_resumed_it_is_the_uninterrupted_run(tmp_path, folder, loop, workers, growing, place):
    task = Streamed(folder=folder, shuffle=True, dropout=0.1, workers=workers)
    expected = whole(loop, task, growing)
    passes = [step["pass"] for step in expected.steps]
    ends = place == "at a pass's end"
    task = replace(task, saves=place != "in mid-pass, EDBA's state alone")
    stop = {"before it grew": 1, "at a pass's end": passes.index(2)}.get(place, passes.index(1) + 5)
    stopped = LOOPS[loop](
        GROWING if growing else FIXED, PASSES, task, stop_after=stop, at_pass_end=ends, save_to=tmp_path / "state.pt"
    )
    assert stopped.steps == expected.steps[:stop]
    resumed = LOOPS[loop](GROWING if growing else FIXED, PASSES, task, resume_from=stopped.state)
    assert_same(resumed, expected, stop)


def test_batches_that_the_data_set_makes_up_keep_their_size(folder):
    with pytest.warns(UserWarning, match="its StreamingDataset makes up the batches, batching_method='per_stream'"):
        record = LOOPS["plain"](GROWING, 1, Streamed(folder=folder, batching="per_stream"))
    assert {len(step["delivered"]) for step in record.steps} == {BATCH}
