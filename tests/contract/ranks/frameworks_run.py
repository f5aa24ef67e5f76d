"""Trains points on two ranks through a framework and saves what happened. Arguments: the framework and the folder."""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

PASSES, SIZE = 6, 250
MASS = {"left_out": 0.3, "min_subset_size": 4, "seed": 3}


def lightning(folder):
    from lightning.pytorch import Callback, Trainer

    from composer_edba.lightning import EDBACallback
    from tests.support.lightning_loop import QUIET, Module
    from tests.support.torch_runs import loader, net, sgd

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            batches.append((trainer.current_epoch, batch[0][:, 0].long().tolist()))

    batches, model, edba = [], net(dropout=0.0, batch_norm=False), EDBACallback(**MASS)
    trainer = Trainer(callbacks=[edba, Watch()], max_epochs=PASSES, strategy="ddp", devices=2, **QUIET)
    trainer.fit(Module(model, sgd(model)), loader(SIZE, 32))
    return model, edba._engine, batches


def accelerate(folder):
    from accelerate import Accelerator

    from composer_edba.accelerate import AcceleratedSubsetLoader
    from tests.support.torch_runs import loader, net, sgd

    accelerator, loss = Accelerator(cpu=True), torch.nn.CrossEntropyLoss()
    batches, model = [], net(dropout=0.0, batch_norm=False)
    optimizer, data = sgd(model), loader(SIZE, 32)
    planned = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=PASSES * len(data))
    model, optimizer, data, planned = accelerator.prepare(model, optimizer, data, planned)
    subsets = AcceleratedSubsetLoader(accelerator, data, model, loss, scheduler=planned, **MASS)
    for number in range(PASSES):
        for inputs, target in subsets:
            accelerator.backward(loss(model(inputs), target))
            optimizer.step()
            planned.step()
            optimizer.zero_grad()
            batches.append((number, inputs[:, 0].long().tolist()))
    # An Accelerator steps a schedule, planned for one process, once for each of them.
    assert planned.scheduler.last_epoch == PASSES * len(data) * 2, planned.scheduler.last_epoch
    return model, subsets._loop.engine, batches


def transformers(folder):
    from composer_edba.transformers import EDBATrainer
    from tests.support.torch_runs import net, points, sgd
    from tests.support.transformers_loop import Named, Net, arguments

    model = Net(net(dropout=0.0, batch_norm=False))
    args = arguments(
        folder, num_train_epochs=PASSES, per_device_train_batch_size=32, accelerator_config={}, ddp_backend="gloo"
    )
    trainer = EDBATrainer(model, args, train_dataset=Named(points(SIZE)), optimizers=(sgd(model), None), edba=MASS)
    batches, choose = [], trainer._edba.choose

    def see(pool, *more):
        batch = choose(pool, *more)
        batches.append((trainer._pass_number, batch["points"][:, 0].long().tolist()))
        return batch

    trainer._edba.choose = see
    trainer.train()
    assert trainer.state.epoch == PASSES
    assert trainer.lr_scheduler.last_epoch == PASSES * 4
    return model, trainer._edba.engine, batches


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    framework, folder = sys.argv[1], Path(sys.argv[2])
    model, engine, batches = {"lightning": lightning, "accelerate": accelerate, "transformers": transformers}[
        framework
    ](folder)
    saved = {
        "batches": batches,
        "weights": torch.cat([p.detach().flatten() for p in model.parameters()]),
        "trained": engine.samples_trained,
        "drawn": engine.samples_drawn,
        "norms": torch.from_numpy(engine.remembered.cache.norms),
    }
    torch.save(saved, folder / f"rank{dist.get_rank()}.pt")
