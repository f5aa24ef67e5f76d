from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from composer_edba.train.data import build_data

CLASSES = ("cat", "dog", "owl")


def write_images(root: Path, split: str, each: int = 8, classes: tuple[str, ...] = CLASSES) -> None:
    rng = np.random.default_rng(len(split))
    for name in classes:
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path, "train")
    write_images(tmp_path, "val", each=2)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(root: Path, workers: int, stop_workers) -> None:
    data = build_data("imagefolder", root=root, batch_size=10, num_workers=workers, image_size=32)
    assert (data.num_classes, data.in_channels, data.train_size, data.eval_size) == (3, 3, 24, 6)
    batches = [data.train.batch_transforms(batch) for batch in stop_workers(data.train.dataloader)]
    assert [tuple(x.shape) for x, _ in batches] == [(10, 3, 32, 32), (10, 3, 32, 32), (4, 3, 32, 32)]
    assert torch.bincount(torch.cat([y for _, y in batches])).tolist() == [8, 8, 8]
    x, y = data.eval.batch_transforms(next(iter(stop_workers(data.eval.dataloader))))
    assert (x.shape, x.dtype, y.tolist()) == ((6, 3, 32, 32), torch.float32, [0, 0, 1, 1, 2, 2])


def test_evaluation_image_is_the_centre_normalised(root: Path) -> None:
    # 56 pixels high resized to 64 x 64 / 56: a size at which nothing is resampled, so the pixels are known.
    for folder in (root / "val").iterdir():
        for path in folder.iterdir():
            pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    data = build_data("imagefolder", root=root, image_size=56)
    x, _ = data.eval.batch_transforms(next(iter(data.eval.dataloader)))
    centre = torch.from_numpy(pixels[4:60, 4:60]).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(x[0], (centre - mean) / std)


@pytest.mark.parametrize("augment", [True, False])
def test_augment(root: Path, augment: bool) -> None:
    data = build_data("imagefolder", root=root, image_size=32, augment=augment)
    dataset = data.train.dataloader.dataset
    assert torch.equal(dataset[0][0], dataset[0][0]) is not augment
    batch = [torch.rand(32, 3, 4, 4), torch.zeros(32)]
    first, second = (data.train.batch_transforms(batch)[0] for _ in range(2))
    assert torch.equal(first, second) is not augment


def test_subset_is_balanced_and_keeps_the_classes(root: Path) -> None:
    data = build_data("imagefolder", root=root, samples=6, image_size=32)
    assert (data.train_size, data.num_classes) == (6, 3)
    dataset = data.train.dataloader.dataset
    assert dataset.targets == [0, 0, 1, 1, 2, 2]
    assert all(CLASSES[dataset[i][1]] in dataset.samples[i][0] for i in range(6))


def test_test_folder_serves_where_there_is_no_val(tmp_path: Path) -> None:
    write_images(tmp_path, "train", each=1)
    write_images(tmp_path, "test", each=3)
    assert build_data("imagefolder", root=tmp_path).eval_size == 9
    write_images(tmp_path, "val", each=2)
    assert build_data("imagefolder", root=tmp_path).eval_size == 6


def test_default_size(root: Path) -> None:
    assert build_data("imagefolder", root=root).train.dataloader.dataset[0][0].shape == (3, 224, 224)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_named(root: Path, workers: int, stop_workers) -> None:
    broken = root / "train" / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:500])
    data = build_data("imagefolder", root=root, image_size=32, num_workers=workers)
    with pytest.raises(OSError, match=r"cannot read the image .*train/dog/3\.png"):
        list(stop_workers(data.train.dataloader))


def test_missing_folders(tmp_path: Path) -> None:
    expected = r"expected in .*train/CLASS/IMAGE and val/CLASS/IMAGE .*[Uu]npack"
    with pytest.raises(FileNotFoundError, match=rf"no image folder .*/train; {expected}"):
        build_data("imagefolder", root=tmp_path)
    write_images(tmp_path, "train", each=1)
    with pytest.raises(FileNotFoundError, match=rf"no image folder .*/val; {expected}"):
        build_data("imagefolder", root=tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"no class folders in .*/val; {expected}"):
        build_data("imagefolder", root=tmp_path)
    for name in CLASSES:
        (tmp_path / "val" / name).mkdir()
    with pytest.raises(FileNotFoundError, match=rf"no images in .*/val/cat; {expected}"):
        build_data("imagefolder", root=tmp_path)


def test_splits_with_different_classes(tmp_path: Path) -> None:
    write_images(tmp_path, "train", each=1)
    write_images(tmp_path, "val", each=1, classes=("cat", "dog", "emu"))
    with pytest.raises(ValueError, match="same class folders; they differ in emu, owl"):
        build_data("imagefolder", root=tmp_path)


def test_image_size_below_one(root: Path) -> None:
    with pytest.raises(ValueError, match="image_size must be at least 1, not 0"):
        build_data("imagefolder", root=root, image_size=0)
