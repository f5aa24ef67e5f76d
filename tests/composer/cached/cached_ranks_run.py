"""Trains with scoring="cached" on several ranks and saves what happened; run by the composer launcher.

Argument: the folder to write to. All modes run in one process, since starting Composer takes longer than training.
"""

import sys
from pathlib import Path

import torch
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config
from torch.utils.data import DataLoader

from composer_edba import EDBA
from tests.contract.ranks.union_run import Gradients, Uneven
from tests.support.small_runs import Points, Watch, classifier, logged, trainer

# The batch whose checkpoint is resumed from, inside of the third epoch of 4 steps.
CUT = 10
MODES = ("plain", "resumed", "workers", "workers-resumed", "microbatches", "still", "fsdp2")
MASS = ("mass", "mass-resumed", "mass_kept", "mass_kept-resumed")
METRICS = ("margin", "model_metric", "gradient_metric", "distinct_samples", "samples_trained", "samples_drawn")
BY_MASS = {"criterion": "gradient_mass", "interval": 1, "left_out": 0.3}


class Pools(Watch):
    """Also notes the pool and the subset of each step on this rank, and what it was chosen by."""

    def __init__(self, edba):
        super().__init__()
        self.edba, self.selections = edba, []

    def batch_start(self, state, logger):
        super().batch_start(state, logger)
        self.selections.append(self.edba.last_selection)


def train(mode, folder):
    data = Points(size=250, with_index=True)
    mode, _, resumed = mode.partition("-") if mode != "resumed" else ("plain", "", "resumed")
    loader = DataLoader(
        data,
        batch_size=32,
        sampler=dist.get_sampler(data, shuffle=True),
        num_workers=2 if mode == "workers" else 0,
    )
    edba = EDBA.paper(scoring="cached", min_subset_size=4)
    if mode.startswith("mass"):
        edba = EDBA(**BY_MASS, scoring="cached", min_subset_size=4, refill=mode == "mass")
    watch, gradients = Pools(edba), Gradients()
    model = classifier(dropout=0.0, batch_norm=False)
    run = trainer(
        [edba, gradients],
        loader=loader,
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.0 if mode == "still" else 0.05),
        callbacks=[watch],
        max_duration="5ep",
        dist_timeout=60.0,
        device_train_microbatch_size=7 if mode == "microbatches" else None,
        parallelism_config={"fsdp": FSDP2Config()} if mode == "fsdp2" else None,
        save_folder=str(folder / mode) if mode in ("plain", "workers", *MASS) and not resumed else None,
        save_interval=f"{CUT}ba",
        save_filename="ba{batch}.pt",
        load_path=str(folder / mode / f"ba{CUT}.pt") if resumed else None,
    )
    run.fit()
    state = edba.state_dict()
    for name in ("rank", "checksum"):  # each rank's own
        del state["pools"]["pass"][name]
    return {
        "steps": gradients.steps,
        "subsets": watch.subsets,
        "selections": [None if s is None else tuple(s) for s in watch.selections],
        "epoch_ends": watch.epoch_ends,
        "logged": {name: logged(run, f"edba/{name}") for name in METRICS},
        "state": state,
    }


def refusal():
    data = Points(size=250)
    loader = DataLoader(data, batch_size=32, sampler=Uneven(data))
    try:
        trainer([EDBA.paper(scoring="cached")], loader=loader, max_duration="1ep", dist_timeout=60.0).fit()
    except ValueError as error:
        return str(error)
    return "not refused"


if __name__ == "__main__":
    dist.initialize_dist("cpu", timeout=60.0)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    result = {mode: train(mode, folder) for mode in (*MODES, *MASS)}
    result["refusal"] = refusal()
    torch.save(result, folder / f"rank{dist.get_global_rank()}.pt")
