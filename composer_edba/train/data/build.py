"""Data sets by name, as Composer data specifications."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from composer_edba.spelling import nearest
from composer_edba.train.data.label_noise import with_label_noise
from composer_edba.train.data.splits import LabelledDataset, Splits
from composer_edba.train.data.subset import stratified_subset
from composer_edba.train.data.tensor_dataset import BatchTensorDataset, identity_collate
from composer_edba.train.names import DATASETS, load

if TYPE_CHECKING:
    from composer.core import DataSpec


@dataclass(frozen=True)
class Data:
    """Loaders of batches ``[x, y]``, float32 ``(B, C, H, W)`` and int64 ``(B,)``, and what a model must know."""

    train: DataSpec  # shuffled and augmented
    eval: DataSpec  # in order
    num_classes: int
    in_channels: int  # C
    train_size: int  # training samples of the subset, all ranks together
    eval_size: int  # all ranks together
    validation: DataSpec | None = None  # held-out training samples, like eval; None if there are none


def build_data(
    name: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    fraction: float | None = None,
    samples: int | None = None,
    validation_samples: int = 0,
    subset_seed: int = 0,
    label_noise: str | None = None,
    shuffle_seed: int | None = None,
    batch_size: int = 100,
    eval_batch_size: int = 1000,
    num_workers: int = 0,
    augment: bool = True,
    drop_last: bool = False,
    image_size: int | None = None,
) -> Data:
    """Build the loaders of the data set called ``name``.

    The training loader is an ordinary ``DataLoader`` over a ``DistributedSampler``, on one rank too. Its order follows
    from ``shuffle_seed`` and the epoch, which Composer sets (a loop of one's own calls
    ``loader.sampler.set_epoch(epoch)``), so a run resumed in mid-epoch goes on with the same samples, and the same
    augmentation, except for what workers draw (``imagefolder`` with ``num_workers`` above 0).

    Args:
        name: ``digits``, ``fashion_mnist``, ``cifar10``, ``cifar100`` or ``imagefolder``.
        root: Folder of the data; ``digits`` needs none, nor ``fashion_mnist`` where Debian's package is installed.
        download: Whether what is missing may be downloaded; only CIFAR can be.
        fraction: Share of the training samples to train on, in (0, 1]; see :func:`~.subset.stratified_subset`.
        samples: Number of training samples to train on, instead of ``fraction``. With neither: all.
        validation_samples: Training samples to hold out, class-balanced, before the choice of those to train on;
            ``fraction`` is then a share of the rest.
        subset_seed: Seed of these choices, apart from the run's own seed.
        label_noise: Wrong labels for the training split, its held-out part included: of CIFAR-N or ``symmetric_RATE``,
            seeded by ``subset_seed``; see :func:`~.label_noise.with_label_noise`. The samples chosen are those without
            noise. The training loader's data set is then :class:`~.label_noise.NoisyLabels`. Default: none.
        shuffle_seed: Seed of the order of training samples, the same on every rank. Default: on one rank the seed last
            given to ``torch.manual_seed``, on several, where those may differ, 0.
        batch_size: Training samples a batch and rank.
        eval_batch_size: Evaluation samples a batch and rank.
        num_workers: Worker processes of each loader and rank; for data sets in memory 0 is fastest.
        augment: Whether training images are augmented: CIFAR by random crop and flip, ``imagefolder`` by random resized
            crop and flip, the others not at all.
        drop_last: Whether to leave out the last training batch of an epoch where it is not full.
        image_size: Height and width in pixels, for ``imagefolder`` (224 by default) and CIFAR (32; less by area means).

    Raises:
        ValueError: The name is unknown, an argument is out of range or not for this data set, or no batch is left.
        FileNotFoundError: The data is not in ``root``, or is corrupt; nothing has been built then.
        ImportError: A package that the data set needs is not installed.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set name {name!r}; {nearest(str(name), DATASETS, list_always=True)}")
    sizes = {"batch_size": (batch_size, 1), "eval_batch_size": (eval_batch_size, 1), "num_workers": (num_workers, 0)}
    for argument, (value, least) in sizes.items():
        if value < least:
            raise ValueError(f"{argument} must be at least {least}, not {value}")
    if root is None and name not in ("digits", "fashion_mnist"):
        raise ValueError(f"root must be the folder that holds {name} or shall hold it, not None")
    if image_size is not None and name in ("digits", "fashion_mnist"):
        raise ValueError(f"image_size is not for {name}, whose images have their own size (given {image_size})")
    if download and name == "imagefolder":
        raise ValueError("download must be False for imagefolder: there is no address to download it from")
    if download and name == "fashion_mnist":
        raise ValueError("download must be False for fashion_mnist: install Debian's dataset-fashion-mnist")

    folder = None if root is None else Path(root)
    splits = _load(name, folder, download, augment, image_size)
    train: LabelledDataset = splits.train
    indices, held_out = _choose(train.targets, fraction, samples, validation_samples, subset_seed)
    if label_noise is not None:
        if not isinstance(train, BatchTensorDataset):
            raise ValueError(f"label_noise={label_noise!r} is for data sets in memory, not for {name}")
        classes = splits.num_classes
        train = with_label_noise(train, label_noise, name=name, root=folder, num_classes=classes, seed=subset_seed)
    validation = train.subset(torch.from_numpy(held_out)) if validation_samples else None
    if len(indices) < len(train):
        train = train.subset(torch.from_numpy(indices))

    from composer.core import DataSpec
    from composer.utils import dist

    if drop_last and len(train) // dist.get_world_size() < batch_size:
        raise ValueError(
            f"drop_last with batch_size {batch_size} leaves no batch of {len(train)} training samples on "
            f"{dist.get_world_size()} rank(s): lower batch_size or set drop_last to False"
        )
    several_ranks = dist.get_world_size() > 1
    if shuffle_seed is None:
        shuffle_seed = 0 if several_ranks else torch.initial_seed() % 2**32
    # No RandomSampler, even on one rank: it takes its seed from the global stream, from which augmentation draws too.
    # A resumed trainer gets to the start of its epoch without the augmentation, hence with another seed.
    order = dist.get_sampler(train, shuffle=True, drop_last=drop_last, seed=shuffle_seed)  # type: ignore[arg-type]
    train_loader = _loader(train, order, batch_size, num_workers, drop_last)

    def in_order(dataset: LabelledDataset) -> DataSpec:
        sampler = dist.get_sampler(dataset) if several_ranks else None  # type: ignore[arg-type]
        return DataSpec(_loader(dataset, sampler, eval_batch_size, num_workers), batch_transforms=splits.eval_transform)

    return Data(
        train=DataSpec(train_loader, batch_transforms=splits.train_transform),
        eval=in_order(splits.eval),
        num_classes=splits.num_classes,
        in_channels=splits.in_channels,
        train_size=len(train),
        eval_size=len(splits.eval),
        validation=None if validation is None else in_order(validation),
    )


def _choose(
    labels: Any, fraction: float | None, samples: int | None, validation_samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the samples to train on and of those held out, no index in both."""
    classes = np.asarray(labels)
    if validation_samples == 0:
        return stratified_subset(classes, fraction=fraction, samples=samples, seed=seed), np.empty(0, dtype=np.int64)
    if not 0 < validation_samples < len(classes):
        raise ValueError(
            f"validation_samples must be at least 0 and leave some of the {len(classes)} training samples, "
            f"not {validation_samples}"
        )
    held_out = stratified_subset(classes, samples=validation_samples, seed=seed)
    rest = np.setdiff1d(np.arange(len(classes)), held_out)
    return rest[stratified_subset(classes[rest], fraction=fraction, samples=samples, seed=seed)], held_out


def _load(name: str, root: Path | None, download: bool, augment: bool, image_size: int | None) -> Splits:
    module = name.rstrip("0123456789")
    try:
        # Imported here, so that each data set asks only for the packages it needs.
        splits = load(f"composer_edba.train.data.{module}:{module}_splits")
        if name == "digits":
            return splits()
        if name == "fashion_mnist":
            return splits(root)
        if name == "imagefolder":
            return splits(root, 224 if image_size is None else image_size, augment)
        classes = int(name.removeprefix(module))
        return splits(classes, root, download, augment, 32 if image_size is None else image_size)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"data set {name} needs the package {error.name}: pip install 'composer-edba[train]'", name=error.name
        ) from error


def _loader(
    dataset: LabelledDataset, sampler: Sampler[int] | None, batch_size: int, num_workers: int, drop_last: bool = False
) -> DataLoader[Any]:
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=identity_collate if isinstance(dataset, BatchTensorDataset) else None,
    )
