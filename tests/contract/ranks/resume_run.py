"""Runs with EDBA, whole and resumed from each of their batches; run by the composer launcher on several ranks.

Argument: the folder to write to: for each loader and batch whether this rank's weights are those of the whole run.
"""

import json
import sys
from pathlib import Path

import torch
from composer import Callback
from composer.utils import dist
from torch.utils.data import DataLoader, DistributedSampler

from composer_edba import EDBA
from tests.support.small_runs import Points, classifier, trainer
from tests.support.torch_runs import following

SIZE, BATCH, PASSES = 96, 8, 2
SIZES = [8, 12, 5, 10, 6]


class DrawnAtFirstUse(Points):
    """Content from torch's global stream, drawn when it is first asked for, as in Composer's own tests."""

    drawn = None

    def __getitem__(self, index):
        if self.drawn is None:
            self.drawn = torch.randn_like(self.x)
        return self.x[index] + 0.1 * self.drawn[index], self.y[index]


class Augmented(Points):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(x.shape), y


class ShuffledShard(DistributedSampler):
    """Gives a rank its share in an order from the rank's own global stream, or from a generator."""

    def __init__(self, data, generator=None):
        super().__init__(data, shuffle=False)
        self.generator = generator

    def __iter__(self):
        shard = list(super().__iter__())
        return iter([shard[i] for i in torch.randperm(len(shard), generator=self.generator)])


def loaders():
    """By name, a function that makes the loader, and the number of batches in an epoch if it is not all of them."""

    def distributed(data, **options):
        return DataLoader(data, BATCH, sampler=dist.get_sampler(data, shuffle=True), **options)

    def with_generator():
        generator = torch.Generator().manual_seed(20 + dist.get_global_rank())
        data = Points(SIZE)
        return DataLoader(data, BATCH, sampler=ShuffledShard(data, generator), generator=generator)

    return {
        "drawn at first use": (lambda: distributed(DrawnAtFirstUse(SIZE)), 2),
        "distributed, augmented by a worker": (lambda: distributed(Augmented(SIZE), num_workers=1), None),
        "an order for each rank": (
            lambda: DataLoader(Augmented(SIZE), BATCH, sampler=ShuffledShard(Points(SIZE))),
            None,
        ),
        "a generator for each rank": (with_generator, None),
    }


class OrderNoted(Callback):
    """Writes down what each step trained on."""

    def __init__(self):
        self.sums = []

    def batch_start(self, state, logger):
        self.sums.append(float(state.batch[0].double().sum()))


def run(make, subset_batches, folder, load_path=None):
    noted, model = OrderNoted(), classifier()
    made = trainer(
        [EDBA(criterion="margin", batch_size_policy=following(SIZES), interval=1)],
        loader=make(),
        max_duration=f"{PASSES}ep",
        callbacks=[noted],
        optimizers=torch.optim.Adam(model.parameters(), lr=0.01),
        model=model,
        train_subset_num_batches=-1 if subset_batches is None else subset_batches,
        load_path=load_path,
        **(
            {}
            if load_path
            else {
                "save_folder": folder,
                "save_filename": "ba{batch}.pt",
                "save_interval": "1ba",
                "save_overwrite": True,
            }
        ),
    )
    made.fit()
    return noted.sums, {name: tensor.clone() for name, tensor in made.state.model.state_dict().items()}


if __name__ == "__main__":
    dist.initialize_dist("cpu", timeout=120)
    told = {}
    for name, (make, subset_batches) in loaders().items():
        folder = Path(sys.argv[1], name)
        steps, weights = run(make, subset_batches, str(folder))
        told[name] = {"steps": len(steps), "differ": []}
        for batch in range(1, len(steps)):
            again, resumed = run(make, subset_batches, None, str(folder / f"ba{batch}.pt"))
            if again != steps[batch:] or any(not torch.equal(resumed[key], weights[key]) for key in weights):
                told[name]["differ"].append(batch)
    Path(sys.argv[1], f"resumed{dist.get_global_rank()}.json").write_text(json.dumps(told))
