"""Whole runs of a Trainer in a fraction of a second, for what is made of their logs."""

import torch
from composer import Trainer
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SAMPLES = 100


def data():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(SAMPLES, 4, generator=generator), torch.randint(3, (SAMPLES,), generator=generator)
    )


def trained(algorithms=(), drop_last=False, max_duration="2ep", batch_size=32, loader=None, loggers=None, **kwargs):
    model = ComposerClassifier(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), num_classes=3)
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        train_dataloader=loader or DataLoader(data(), batch_size=batch_size, shuffle=True, drop_last=drop_last),
        eval_dataloader=DataLoader(data(), batch_size=SAMPLES),
        max_duration=max_duration,
        algorithms=list(algorithms),
        loggers=[InMemoryLogger()] if loggers is None else loggers,
        progress_bar=False,
        device="cpu",
        seed=0,
        **kwargs,
    )
    trainer.fit()
    trainer.close()
    return trainer
