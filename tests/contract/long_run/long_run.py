"""What the tests of long runs run, by its name, in a process of its own."""

import gc
import math
import os
import sys
import time

import psutil
import torch
from composer import Callback, Trainer
from composer.loggers import LoggerDestination
from torch import nn
from torch.utils.data import DataLoader

from composer_edba import EDBA
from tests.support.small_runs import CLASSES, FEATURES, Points, PointsClassifier

STEPS = 20_000
WARM = 2_000  # allocator, caches and the window of the policy have settled by then
EVERY = 1_000


class Figures(LoggerDestination):
    """What EDBA logged last, and whether it was ever infinite; InMemoryLogger would itself grow."""

    def __init__(self):
        self.last, self.steps, self.infinite = {}, 0, []

    def log_metrics(self, metrics, step=None):
        ours = {name: value for name, value in metrics.items() if name.startswith("edba/")}
        self.last.update(ours)
        self.steps += "edba/subset_size" in ours
        self.infinite += [
            (step, name) for name, value in ours.items() if name.endswith("_average") and not math.isfinite(value)
        ]


class Census(Callback):
    """Counts what could pile up, every thousand steps."""

    def __init__(self):
        self.rows = []

    def batch_end(self, state, logger):
        if int(state.timestamp.batch) % EVERY == 0:
            self.rows.append({"step": int(state.timestamp.batch), **count(state.model)})


def count(model):
    gc.collect()
    process = psutil.Process()
    objects = gc.get_objects()
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return {
        "rss": process.memory_info().rss,
        "tensors": sum(type(thing) in (torch.Tensor, nn.Parameter) for thing in objects),
        "generators": sum(type(thing) is torch.Generator for thing in objects),
        "objects": len(objects),
        "hooks": sum(len(getattr(module, name)) for module in model.modules() for name in hooks),
        "files": process.num_fds(),
        "workers": len([child for child in process.children() if child.name() == "pt_data_worker"]),
        "threads": process.num_threads(),
    }


class Tiny(PointsClassifier):
    """Without metrics, which cost more than the training of so small a network."""

    def get_metrics(self, is_train=False):
        return {}


def build(callbacks, loggers, workers, duration):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))
    model = Tiny(net, num_classes=CLASSES)
    loader = DataLoader(Points(512), batch_size=16, shuffle=True, num_workers=workers)
    return Trainer(
        model=model,
        train_dataloader=loader,
        max_duration=duration,
        algorithms=[EDBA.paper(num_candidates=16, max_batch_size=64, min_subset_size=8)],
        optimizers=torch.optim.SGD(model.parameters(), lr=0.01),
        callbacks=callbacks,
        loggers=loggers,
        progress_bar=False,
        seed=3,
    )


def twenty_thousand_steps_leave_nothing_behind():
    census, figures = Census(), Figures()
    run = build([census], [figures], workers=0, duration=f"{STEPS}ba")
    before = count(run.state.model)
    began = time.monotonic()
    run.fit()
    seconds = time.monotonic() - began
    assert int(run.state.timestamp.batch) == figures.steps == STEPS
    assert figures.infinite == []
    assert figures.last["edba/nonfinite_steps"] == 0
    assert figures.last["edba/distinct_samples"] == 512
    settled = [row for row in census.rows if row["step"] >= WARM]
    assert len(settled) == (STEPS - WARM) // EVERY + 1
    grown = max(row["rss"] for row in settled) - settled[0]["rss"]
    print(f"{STEPS} steps in {seconds:.0f} s; memory grew by {grown / 2**20:.1f} MiB after {WARM} steps")
    assert grown < 16 * 2**20
    for name in ("tensors", "generators", "hooks", "files", "workers", "threads"):
        counts = {row[name] for row in settled}
        # A batch more or less is alive where a pass ends; one thing kept per thousand steps would make 18.
        assert max(counts) - min(counts) <= 4, (name, sorted(counts))
    objects = [row["objects"] for row in settled]
    assert objects[-1] < objects[0] + 1000
    assert {row["hooks"] for row in census.rows} == {before["hooks"]}
    # What the algorithm itself keeps, in bytes of its checkpoint, does not grow either.
    state = run.state.algorithms[-1].state_dict()
    assert len(repr(state)) < 20_000


def epochs_with_workers_leave_no_process_and_no_file_open():
    """Every epoch starts new workers."""
    run = build([], [], workers=2, duration="3ep")
    run.fit()
    before = count(run.state.model)
    run.fit(duration="12ep")
    after = count(run.state.model)
    assert after["workers"] == before["workers"]
    assert abs(after["files"] - before["files"]) <= 2
    assert abs(after["tensors"] - before["tensors"]) <= 2
    assert after["hooks"] == before["hooks"]
    state = run.state
    run.close()
    assert state.algorithms[-1]._engine.scorer._layer is not None
    del run, state
    gc.collect()
    deadline = time.monotonic() + 20
    while count(nn.Module())["workers"] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert count(nn.Module())["workers"] == 0
    assert os.path.exists(f"/proc/{os.getpid()}")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
