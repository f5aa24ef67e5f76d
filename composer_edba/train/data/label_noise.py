"""Wrong labels in a training set, by people or by chance, and which they are."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from composer_edba.train.data.tensor_dataset import BatchTensorDataset

_RANDOM = {f"random{i}": f"random_label{i}" for i in (1, 2, 3)}
HUMAN_LABELS = {
    "cifar10": {"aggre": "aggre_label", **_RANDOM, "worse": "worse_label"},
    "cifar100": {"noisy": "noisy_label"},
}
"""Data set -> name of a noise -> its key in the file of CIFAR-N."""

_SYMMETRIC = re.compile(r"symmetric_(\d*\.?\d+)")


class NoisyLabels(BatchTensorDataset):
    """A data set in memory some of whose labels are wrong, ``mislabelled``: ``(N,)`` bool.

    It takes inputs ``(N, ...)``, ``(N,)`` int64 labels to train on, and the right ones.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, clean_targets: Tensor) -> None:
        super().__init__(inputs, targets)
        if len(clean_targets) != len(targets):
            lengths = f"{len(targets)} and {len(clean_targets)}"
            raise ValueError(f"targets and clean_targets must have the same length, not {lengths}")
        self.clean_targets, self.mislabelled = clean_targets, targets != clean_targets

    def subset(self, indices: Tensor) -> NoisyLabels:
        """Copy the samples at ``indices``, ``(n,)`` int64, into a data set of their own."""
        return NoisyLabels(self.inputs[indices], self.targets[indices], self.clean_targets[indices])


def with_label_noise(
    dataset: BatchTensorDataset, noise: str, *, name: str, root: Path | None, num_classes: int, seed: int = 0
) -> NoisyLabels:
    """Exchange the labels of a training set for noisy ones; the inputs are shared.

    Args:
        dataset: The whole training set, with the right labels and in the data set's own order.
        noise: Human labels: ``aggre``, ``random1``, ``random2``, ``random3`` or ``worse`` for ``cifar10``, ``noisy``
            for ``cifar100`` (CIFAR-10N and CIFAR-100N: Wei et al., "Learning with Noisy Labels Revisited", ICLR 2022).
            Or ``symmetric_RATE``, as ``symmetric_0.4``, for any data set, see :func:`symmetric_noise`.
        name: The data set's name.
        root: Folder that holds ``cifar-n/cifar10n.npz`` or ``cifar-n/cifar100n.npz``; only for human labels.
        num_classes: Classes.
        seed: Seed of the symmetric noise, not negative.

    Raises:
        ValueError: ``noise`` is unknown or not for this data set, or the file belongs to another order of samples.
        FileNotFoundError: The file of human labels is not there.
    """
    clean = np.asarray(dataset.targets)
    if match := _SYMMETRIC.fullmatch(noise):
        labels = symmetric_noise(clean, float(match[1]), num_classes=num_classes, seed=seed)
    elif noise in HUMAN_LABELS.get(name, {}):
        assert root is not None
        labels = _human_labels(clean, root / "cifar-n" / f"{name}n.npz", HUMAN_LABELS[name][noise])
    else:
        known = ", ".join([*HUMAN_LABELS.get(name, {}), "symmetric_RATE (as symmetric_0.4)"])
        raise ValueError(f"unknown label_noise {noise!r} for {name}; it may be {known}")
    return NoisyLabels(dataset.inputs, torch.from_numpy(labels.astype(np.int64)), dataset.targets)


def symmetric_noise(labels: npt.ArrayLike, rate: float, *, num_classes: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Give a random share of ``(N,)`` labels another value, uniformly one of the other classes.

    Args:
        labels: Right labels, ``(N,)`` integers in [0, ``num_classes``).
        rate: Share that becomes wrong, in (0, 1), rounded to whole samples. (Where papers let the right class be drawn
            as well, their rate r makes a share r (C - 1) / C of C classes wrong.)
        num_classes: C, at least 2; a ValueError refuses fewer, or a rate out of range.
        seed: Seed of the choice, not negative; no global random stream is read or moved.
    """
    if not 0 < rate < 1:
        raise ValueError(f"the rate of symmetric label noise must be in (0, 1), not {rate}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2 for label noise, not {num_classes}")
    noisy = np.array(labels, dtype=np.int64)
    rng = np.random.default_rng(seed)
    wrong = rng.choice(noisy.size, round(rate * noisy.size), replace=False)
    noisy[wrong] = (noisy[wrong] + rng.integers(1, num_classes, wrong.size)) % num_classes
    return noisy


def _human_labels(clean: np.ndarray, path: Path, key: str) -> np.ndarray:
    official = "CIFAR-10_human.pt" if path.stem == "cifar10n" else "CIFAR-100_human.pt"
    if not path.is_file():
        raise FileNotFoundError(
            f"no human labels {path.absolute()}: download {official} of CIFAR-N (its authors' site or repository) and "
            f"convert it by numpy.savez_compressed({path.name!r}, **torch.load({official!r}, weights_only=False))"
        )
    with np.load(path) as arrays:
        if not np.array_equal(arrays["clean_label"], clean):
            raise ValueError(f"clean_label in {path.absolute()} does not agree with the data set's own labels")
        return np.asarray(arrays[key])
