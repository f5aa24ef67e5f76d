"""EDBA in a training loop of one's own: scikit-learn's digits, with two lines added. Run: python examples/plain_loop.py

The added lines are marked; everything else is as it would be without EDBA.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from composer_edba.plain import SubsetLoader  # added


def main(epochs: int = 10) -> float:
    """Train for ``epochs`` passes over the data and return the accuracy on the test images, in [0, 1]."""
    torch.manual_seed(0)
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = images.float().div(16).unflatten(1, (1, 8, 8))
    train, test = TensorDataset(images[:1437], labels[:1437]), (images[1437:], labels[1437:])
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(train, batch_size=64, shuffle=True)
    loader = SubsetLoader(loader, model, loss_fn)  # added

    for epoch in range(epochs):
        model.train()
        for inputs, target in loader:
            optimizer.zero_grad()
            loss_fn(model(inputs), target).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            accuracy = (model(test[0]).argmax(1) == test[1]).float().mean().item()
        figures = loader.figures
        print(
            f"epoch {epoch + 1}: accuracy {accuracy:.3f}, last subset {figures['subset_size']} of "
            f"{figures['batch_size']}, {figures['samples_trained']} samples trained on"
        )
    return accuracy


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
