"""Fashion-MNIST, from the files that Debian packages or torchvision unpacks."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from composer_edba.train.data.augment import BatchAugment
from composer_edba.train.data.splits import Splits
from composer_edba.train.data.tensor_dataset import BatchTensorDataset

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""

MEAN = (0.2860,)
STD = (0.3530,)
"""Of the training pixels in [0, 1]."""


def fashion_mnist_splits(root: str | Path | None = None) -> Splits:
    """Load Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): 60,000 training and 10,000 test images, uint8 (1, 28, 28).

    Images are normalised and not augmented.

    Args:
        root: Folder that holds the four ``.gz`` files, itself or in torchvision's ``FashionMNIST/raw``. They are also
            looked for where Debian's package puts them. Default: there alone.

    Raises:
        FileNotFoundError: A file is in none of the folders, or damaged.
    """
    folders = ([] if root is None else [Path(root), Path(root) / "FashionMNIST" / "raw"]) + [DEBIAN]
    train, test = _read("train", 60_000, folders), _read("t10k", 10_000, folders)
    normalise = BatchAugment(MEAN, STD)
    return Splits(train, test, normalise, normalise, num_classes=10, in_channels=1)


def _read(part: str, samples: int, folders: list[Path]) -> BatchTensorDataset:
    images = _idx(_find(f"{part}-images-idx3-ubyte.gz", folders), (samples, 28, 28))
    labels = _idx(_find(f"{part}-labels-idx1-ubyte.gz", folders), (samples,))
    return BatchTensorDataset(images.unsqueeze(1), labels.to(torch.int64))


def _find(name: str, folders: list[Path]) -> Path:
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        places = ", ".join(str(folder.absolute()) for folder in folders)
        raise FileNotFoundError(
            f"no {name} of Fashion-MNIST in {places}. On Debian and Ubuntu: apt-get install dataset-fashion-mnist; "
            "elsewhere torchvision.datasets.FashionMNIST(root, download=True) fetches it"
        )
    return path


def _idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The bytes of an IDX file; its header is a magic number and the sizes, of 32 bits each."""
    # No MD5: Debian packs the same files anew. gzip checks its own sum.
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise FileNotFoundError(f"{path} is damaged: {error}") from error
    header = np.array([0x800 + len(shape), *shape], dtype=">i4").tobytes()
    if not content.startswith(header) or len(content) != len(header) + math.prod(shape):
        raise FileNotFoundError(f"{path} is damaged: it does not hold {' x '.join(map(str, shape))} bytes of IDX data")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape).copy())
