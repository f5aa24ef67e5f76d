"""Data and a model for runs without Composer: points whose first feature is their index."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES = 12, 4


def points(size=256):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(size, FEATURES, generator=generator)
    rule = torch.randn(FEATURES, CLASSES, generator=generator)
    y = (x @ rule + torch.randn(size, CLASSES, generator=generator)).argmax(1)
    return TensorDataset(torch.cat([torch.arange(size).unsqueeze(1).float(), x], 1), y)


def loader(size=256, batch_size=64, **kwargs):
    return DataLoader(points(size), batch_size=batch_size, **{"shuffle": True, **kwargs})


class Net(nn.Module):
    """Leaves the index out; has what a scoring forward could disturb: batch statistics and dropout."""

    def __init__(self, dropout=0.1, batch_norm=True):
        super().__init__()
        norm = nn.BatchNorm1d(32) if batch_norm else nn.Identity()
        self.body = nn.Sequential(nn.Linear(FEATURES, 32), norm, nn.ReLU(), nn.Dropout(dropout))
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.fc(self.body(x[:, 1:]))


def net(**kwargs):
    torch.manual_seed(0)
    return Net(**kwargs)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


class Sizes:
    """A batch-size policy that follows a list."""

    def __init__(self, sizes):
        self.sizes, self.step, self.size = list(sizes), 0, int(sizes[0])

    def update(self, observation):
        if observation.first:  # as the windowed policies do
            return self.size
        self.step += 1
        self.size = int(self.sizes[self.step % len(self.sizes)])
        return self.size

    def state_dict(self):
        return {"step": self.step, "size": self.size}

    def load_state_dict(self, state):
        self.step, self.size = state["step"], state["size"]


def following(sizes):
    """A ``batch_size_policy`` of the given sizes, one a step: real ones change too rarely for a short run."""

    def make(size, minimum, maximum):  # bounds are not kept to
        return Sizes(sizes)

    return make
