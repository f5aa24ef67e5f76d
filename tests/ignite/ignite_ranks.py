"""Trains points on two ranks through ignite.distributed and saves what happened. Argument: the folder to write to."""

import sys
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Events, create_supervised_trainer
from torch.utils.data import DataLoader, DistributedSampler

from composer_edba.ignite import EDBAHandler
from tests.ignite.ignite_runs import LOSS, Watch
from tests.support.torch_runs import net, points, sgd


def train(local_rank, folder, policy):
    torch.set_num_threads(1)
    # As users seed: ranks differ.
    model = idist.auto_model(net(dropout=0.0, batch_norm=False))
    torch.manual_seed(10 + idist.get_rank())
    optimizer = idist.auto_optim(sgd(model))
    sampler = DistributedSampler(points(250), seed=1)
    data = DataLoader(points(250), batch_size=32, sampler=sampler)
    trainer = create_supervised_trainer(model, optimizer, LOSS)
    watch = Watch(trainer)
    handler = EDBAHandler(model, LOSS, optimizer, preset="paper", min_subset_size=4, batch_size_policy=policy)
    handler.attach(trainer, data)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: sampler.set_epoch(engine.state.epoch))
    steps = []

    def note(engine):
        steps.append(
            {
                "figures": {name: value for name, value in engine.state.edba.items() if name != "overhead"},
                "gradient": torch.cat([p.grad.flatten() for p in model.parameters()]),
                "last": torch.cat([p.grad.flatten() for p in model.module.fc.parameters()]).norm(),
            }
        )

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.run(data, max_epochs=8)
    state = handler.state_dict()
    for name in ("rank", "checksum"):  # each rank's own
        (state["pools"]["pass"] or {}).pop(name, None)
    saved = {
        "steps": steps,
        "subsets": watch.subsets,
        "epochs": watch.epochs,
        "batch_size": handler.batch_size,
        "state": state,
        "weights": torch.cat([p.detach().flatten() for p in model.parameters()]),
    }
    torch.save(saved, Path(folder) / f"{policy}-rank{idist.get_rank()}.pt")


if __name__ == "__main__":
    with idist.Parallel(backend="gloo") as parallel:
        for name in ("margin", "noise_scale"):
            parallel.run(train, sys.argv[1], name)
