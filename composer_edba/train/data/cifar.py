"""CIFAR-10 and CIFAR-100 in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from composer_edba.train.data.augment import BatchAugment
from composer_edba.train.data.splits import Splits
from composer_edba.train.data.tensor_dataset import BatchTensorDataset


@dataclass(frozen=True)
class _Variant:
    """What differs between the two data sets; mean and std are those of the training pixels in [0, 1]."""

    title: str
    dataset: type[CIFAR10]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def files(self) -> dict[str, str]:
        """Path below the root to MD5 checksum of every file that is read."""
        meta = [self.dataset.meta["filename"], self.dataset.meta["md5"]]
        listed = [*self.dataset.train_list, *self.dataset.test_list, meta]
        return {f"{self.dataset.base_folder}/{name}": md5 for name, md5 in listed}


VARIANTS = {
    10: _Variant("CIFAR-10", CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: _Variant("CIFAR-100", CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""By number of classes."""


def cifar_splits(
    num_classes: int, root: str | Path, download: bool = False, augment: bool = True, image_size: int = 32
) -> Splits:
    """Load CIFAR-10 or CIFAR-100 (Krizhevsky, 2009): 50,000 training and 10,000 test images, uint8 RGB.

    Args:
        num_classes: 10 or 100.
        root: Folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``.
        download: Whether torchvision may download what is missing into ``root``. The first rank of a node does, and the
            others wait; ``torch.distributed`` must then be initialised.
        augment: Whether training images are shifted by up to an eighth of the side and mirrored (He et al., 2016).
        image_size: Height and width, 1 to 32; fewer than 32 pixels are means over the areas they cover.

    Raises:
        ValueError: ``image_size`` is out of range.
        FileNotFoundError: The data is not in ``root``, incomplete or corrupt, or could not be downloaded.
    """
    if not 1 <= image_size <= 32:
        raise ValueError(f"image_size must be between 1 and 32 for CIFAR, not {image_size}")
    variant, root = VARIANTS[num_classes], Path(root)
    padding = round(image_size / 8) if augment else 0
    if download:
        _download(variant, root)
    _check_files(variant, root)
    train, test = (_tensors(variant.dataset(root, train=part), image_size) for part in (True, False))
    augmented = BatchAugment(variant.mean, variant.std, crop_padding=padding, flip=augment)
    return Splits(train, test, augmented, BatchAugment(variant.mean, variant.std), num_classes, in_channels=3)


def _download(variant: _Variant, root: Path) -> None:
    from composer.utils import dist

    with dist.run_local_rank_zero_first():
        try:
            variant.dataset(root, download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"could not download {variant.title} from {variant.dataset.url} into {root.absolute()}: {error}. "
                f"{_how_to_get(variant)}"
            ) from error


def _check_files(variant: _Variant, root: Path) -> None:
    missing = [name for name in variant.files if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"no complete {variant.title} in {root.absolute()}: it lacks {', '.join(missing)}. {_how_to_get(variant)}"
        )
    corrupt = [name for name, md5 in variant.files.items() if not check_integrity(str(root / name), md5)]
    if corrupt:
        raise FileNotFoundError(
            f"the {variant.title} in {root.absolute()} is corrupt: {', '.join(corrupt)} does not have the MD5 checksum "
            f"of the published file. Remove the folder {variant.dataset.base_folder}. {_how_to_get(variant)}"
        )


def _how_to_get(variant: _Variant) -> str:
    return (
        f"Let it be downloaded (download=True, in a YAML run data.download=true), or unpack {variant.dataset.filename} "
        f"(https://www.cs.toronto.edu/~kriz/cifar.html) there, so that it holds {variant.dataset.base_folder}."
    )


def _tensors(dataset: CIFAR10, image_size: int) -> BatchTensorDataset:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    if image_size < images.shape[-1]:
        shrunk = (F.interpolate(part.float(), size=(image_size,) * 2, mode="area") for part in images.split(1000))
        images = torch.cat([part.round_().to(torch.uint8) for part in shrunk])
    return BatchTensorDataset(images, torch.tensor(dataset.targets, dtype=torch.int64))
