"""Trains on points with EDBA and saves what happened; run by the composer launcher on one or more ranks.

Argument: the folder to write to. All modes run in one process, since starting Composer takes longer than training.
"""

import sys
from pathlib import Path

import torch
from composer.core import Algorithm, Event
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config
from torch.utils.data import DataLoader, DistributedSampler

from composer_edba import EDBA
from tests.support.small_runs import Points, Watch, classifier, logged, trainer


class Gradients(Algorithm):
    """Writes down the gradient of each step, after the ranks have averaged it, and the samples behind it."""

    def __init__(self):
        self.steps = []

    def match(self, event, state):
        return event in (Event.BATCH_START, Event.AFTER_TRAIN_BATCH)

    def apply(self, event, state, logger):
        if event == Event.BATCH_START:
            self.samples = state.batch[0][:, 0].long()
        else:
            weights = {n.removeprefix("module."): p for n, p in state.model.named_parameters()}
            self.steps.append(
                {
                    "samples": self.samples.clone(),
                    "gradient": torch.cat([full(p.grad).flatten() for p in weights.values()]),
                    "weights": torch.cat([full(p.detach()).flatten() for p in weights.values()]),
                }
            )


MODES = ("plain", "microbatches", "multi_auto_sync", "noise_scale", "uneven", "fsdp2", "resumed")
CUT = 5  # the batch whose checkpoint is resumed from, inside of an epoch with 2 ranks as with 4


class Uneven(DistributedSampler):
    """Rank 0 has 21 samples more than the others."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.epoch)
        order = torch.randperm(250, generator=generator).tolist()
        cut = [0] + [250 // self.num_replicas + 21 + i * 50 for i in range(self.num_replicas)]
        return iter(order[cut[self.rank] : cut[self.rank + 1]][: len(self)])

    def __len__(self):
        return 50 if self.rank else 71


def full(tensor):
    """All of a sharded tensor."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def train(mode, folder):
    data = Points(size=250, with_index=True)
    sampler = Uneven(data) if mode == "uneven" else dist.get_sampler(data, shuffle=True)
    loader = DataLoader(data, batch_size=32, sampler=sampler)
    watch, gradients = Watch(), Gradients()
    edba = EDBA.paper(min_subset_size=4, batch_size_policy="noise_scale" if mode == "noise_scale" else "margin")
    run = trainer(
        [edba, gradients],
        loader=loader,
        model=classifier(dropout=0.0, batch_norm=False),
        callbacks=[watch],
        # In samples the trainer ends an epoch only if the length says so on every rank.
        max_duration="800sp" if mode == "uneven" else "6ep",
        dist_timeout=60.0,
        device_train_microbatch_size=7 if mode == "microbatches" else None,
        parallelism_config={"fsdp": FSDP2Config()} if mode == "fsdp2" else None,
        ddp_sync_strategy="multi_auto_sync" if mode == "multi_auto_sync" else None,
        save_folder=str(folder / "checkpoints") if mode == "plain" else None,
        save_interval=f"{CUT}ba",
        save_filename="ba{batch}.pt",
        load_path=str(folder / "checkpoints" / f"ba{CUT}.pt") if mode == "resumed" else None,
    )
    if mode == "fsdp2":
        assert run.state.fsdp_enabled
    run.fit()
    names = ("margin", "model_metric", "gradient_metric", "distinct_samples", "samples_trained")
    torch.save(
        {
            "steps": gradients.steps,
            "pools": watch.pools,
            "subsets": watch.subsets,
            "batch_size": edba.batch_size,
            "epoch_ends": watch.epoch_ends,
            "logged": {name: logged(run, f"edba/{name}") for name in names},
        },
        folder / f"{mode}-rank{dist.get_global_rank()}.pt",
    )


if __name__ == "__main__":
    dist.initialize_dist("cpu", timeout=60.0)
    torch.set_num_threads(1)
    for mode in MODES:
        train(mode, Path(sys.argv[1]))
    dist.barrier()
    torch.distributed.destroy_process_group()
