"""Image files in one folder a class."""

from __future__ import annotations

import copy
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from composer_edba.train.data.augment import BatchAugment
from composer_edba.train.data.splits import Splits

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's training pixels in [0, 1], as torchvision's models use them."""


class ClassFolder(ImageFolder):
    """torchvision's ``ImageFolder`` (images in PIL, RGB), which can be cut down and names a file it cannot read."""

    def __init__(self, root: Path, transform: transforms.Compose) -> None:
        super().__init__(root, transform=transform, loader=read_rgb)

    def subset(self, indices: Tensor) -> ClassFolder:
        """Return a folder with only the samples at ``indices``, ``(n,)`` int64, and all the classes."""
        # Still a torchvision data set: Composer's AugMix and RandAugment refuse a torch.utils.data.Subset.
        kept = copy.copy(self)
        kept.samples = kept.imgs = [self.samples[i] for i in indices.tolist()]
        kept.targets = [target for _, target in kept.samples]
        return kept


def read_rgb(path: str) -> Image.Image:
    """Read an image file as RGB; an OSError names the file that is no image or is cut off."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise OSError(f"cannot read the image {path}: {error}. Replace or remove the file.") from error


def imagefolder_splits(root: str | Path, image_size: int = 224, augment: bool = True) -> Splits:
    """Read RGB images from ``root/train/CLASS/*`` and ``root/val/CLASS/*`` (or ``root/test/CLASS/*``).

    Labels number the class folders in alphabetical order.

    Args:
        root: Folder with ``train`` and ``val`` or ``test``; ``val`` is taken where both exist.
        image_size: Height and width after the transforms, in pixels.
        augment: Whether training images are random resized crops (Szegedy et al., 2015), mirrored at random. Otherwise,
            and for evaluation, the shorter side becomes 8/7 of ``image_size`` and the centre is cut out.

    Raises:
        FileNotFoundError: A split is not there, or has no class folders or a class folder without images.
        ValueError: The splits have different classes, or ``image_size`` is below 1.
    """
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, not {image_size}")
    root = Path(root)
    eval_folder = next((root / name for name in ("val", "test") if (root / name).is_dir()), root / "val")
    train_classes, eval_classes = (_classes(root, folder) for folder in (root / "train", eval_folder))
    if train_classes != eval_classes:
        differing = ", ".join(sorted(set(train_classes) ^ set(eval_classes)))
        what = f"{root / 'train'} and {eval_folder} must have the same class folders"
        raise ValueError(f"{what}; they differ in {differing}")

    # ToTensor by name: Composer's RandAugment and AugMix look for it to go in front of it.
    centre = transforms.Compose(
        [transforms.Resize(round(image_size * 8 / 7)), transforms.CenterCrop(image_size), transforms.ToTensor()]
    )
    random = transforms.Compose([transforms.RandomResizedCrop(image_size), transforms.ToTensor()])
    train, test = ClassFolder(root / "train", random if augment else centre), ClassFolder(eval_folder, centre)
    augmented = BatchAugment(MEAN, STD, flip=augment)
    return Splits(train, test, augmented, BatchAugment(MEAN, STD), len(train_classes), in_channels=3)


def _classes(root: Path, folder: Path) -> list[str]:
    """Sorted class folders of a split, each with at least one image."""
    expected = (
        f"expected in {root.absolute()}: train/CLASS/IMAGE and val/CLASS/IMAGE (or test/CLASS/IMAGE), with images that "
        f"end in {', '.join(IMG_EXTENSIONS)}. Unpack the data set's archive there; it cannot be downloaded."
    )
    if not folder.is_dir():
        raise FileNotFoundError(f"no image folder {folder.absolute()}; {expected}")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        raise FileNotFoundError(f"no class folders in {folder.absolute()}; {expected}")
    for name in classes:
        if not any(path.suffix.lower() in IMG_EXTENSIONS for path in (folder / name).rglob("*")):
            raise FileNotFoundError(f"no images in {(folder / name).absolute()}; {expected}")
    return classes
