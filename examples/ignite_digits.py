"""EDBA in PyTorch Ignite: scikit-learn's digits, with one line added. Run: python examples/ignite_digits.py

create_supervised_trainer and trainer.run stay as they are.
"""

import sys

import torch
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Accuracy
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from composer_edba.ignite import EDBAHandler


def main(epochs: int = 10) -> float:
    """Train for ``epochs`` passes over the data and return the accuracy on the test images, in [0, 1]."""
    torch.manual_seed(0)
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = images.float().div(16).unflatten(1, (1, 8, 8))
    train_loader = DataLoader(TensorDataset(images[:1437], labels[:1437]), batch_size=64, shuffle=True)
    test_loader = DataLoader(TensorDataset(images[1437:], labels[1437:]), batch_size=360)
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    trainer = create_supervised_trainer(model, optimizer, loss_fn)
    EDBAHandler(model, loss_fn).attach(trainer, train_loader)  # the added line
    evaluator = create_supervised_evaluator(model, metrics={"accuracy": Accuracy()})

    @trainer.on(Events.EPOCH_COMPLETED)
    def evaluate() -> None:
        evaluator.run(test_loader)
        figures = trainer.state.edba
        print(
            f"epoch {trainer.state.epoch}: accuracy {evaluator.state.metrics['accuracy']:.3f}, last subset "
            f"{figures['subset_size']} of {figures['batch_size']}, {figures['samples_trained']} samples trained on"
        )

    trainer.run(train_loader, max_epochs=epochs)
    return evaluator.state.metrics["accuracy"]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
