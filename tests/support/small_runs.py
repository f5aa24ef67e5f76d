"""Small real Composer runs, shared by the tests of the plugin."""

import numpy as np
import torch
from composer import Callback, Trainer
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader, Dataset

FEATURES, CLASSES = 12, 4


class Points(Dataset):
    """Points with a noisy linear rule, each with its index as the first feature if asked for."""

    def __init__(self, size=256, with_index=False):
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(size, FEATURES, generator=generator)
        rule = torch.randn(FEATURES, CLASSES, generator=generator)
        self.y = (self.x @ rule + torch.randn(size, CLASSES, generator=generator)).argmax(1)
        self.with_index = with_index

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.x[index]
        return torch.cat([torch.tensor([float(index)]), x]) if self.with_index else x, self.y[index]


def points_loader(size=256, batch_size=64, with_index=False, **kwargs):
    return DataLoader(Points(size, with_index), batch_size=batch_size, **{"shuffle": True, **kwargs})


class PointsClassifier(ComposerClassifier):
    """Takes what :class:`Points` gives, with or without the index."""

    def forward(self, batch):
        return self.module(batch[0][:, -FEATURES:])


def classifier(dropout=0.1, batch_norm=True):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(32) if batch_norm else nn.Identity()
    net = nn.Sequential(nn.Linear(FEATURES, 32), norm, nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, CLASSES))
    return PointsClassifier(net, num_classes=CLASSES)


class Watch(Callback):
    """Writes down what the trainer really trains on."""

    def __init__(self):
        self.pools, self.subsets, self.microbatches, self.lengths, self.indices = [], [], [], [], []
        self.epoch_ends, self.evaluations, self.learning_rates = [], [], []

    def batch_start(self, state, logger):
        self.subsets.append(len(state.batch[0]))
        self.microbatches.append(state.device_train_microbatch_size)
        if state.batch[0].shape[1] > FEATURES:
            self.indices.append(state.batch[0][:, 0].long().tolist())

    def batch_end(self, state, logger):
        self.pools.append(int(state.timestamp.sample) - sum(self.pools))
        self.lengths.append(None if state.dataloader_len is None else int(state.dataloader_len))
        self.learning_rates.append(state.optimizers[0].param_groups[0]["lr"])

    def epoch_end(self, state, logger):
        self.epoch_ends.append((int(state.timestamp.epoch), int(state.timestamp.batch), int(state.timestamp.sample)))

    def eval_end(self, state, logger):
        self.evaluations.append((int(state.timestamp.epoch), int(state.timestamp.batch)))


def epochs_before_steps(watch, size):
    """Epochs done, as a fraction, before each step."""
    return [sum(watch.pools[:step]) / size for step in range(len(watch.pools))]


def trainer(algorithms, *, loader=None, model=None, max_duration="4ep", callbacks=(), **kwargs):
    """A Trainer on points, with an InMemoryLogger; the learning rate makes the loss fall visibly."""
    model = classifier() if model is None else model
    optimizer = kwargs.pop("optimizers", None) or torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Trainer(
        model=model,
        train_dataloader=points_loader() if loader is None else loader,
        max_duration=max_duration,
        algorithms=algorithms,
        callbacks=list(callbacks),
        optimizers=optimizer,
        loggers=[InMemoryLogger(), *kwargs.pop("loggers", [])],
        progress_bar=False,
        seed=kwargs.pop("seed", 5),
        **kwargs,
    )


def logged(trainer, name):
    """The values of metric ``name`` in the order they were logged."""
    (logger,) = [d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger)]
    return [float(np.asarray(value)) for _, value in logger.data.get(name, [])]
