import os
import shutil
from pathlib import Path

import pytest
import torch

from composer_edba.train.data import build_data
from composer_edba.train.data.cifar import VARIANTS, cifar_splits
from composer_edba.train.data.splits import Splits

CIFAR_ROOT = os.environ.get("CIFAR_ROOT")
real_data = pytest.mark.skipif(CIFAR_ROOT is None, reason="CIFAR_ROOT does not name a folder with the CIFAR data")
FOLDERS = {10: "cifar-10-batches-py", 100: "cifar-100-python"}


@pytest.fixture(scope="module")
def splits() -> dict[int, Splits]:
    return {classes: cifar_splits(classes, CIFAR_ROOT) for classes in (10, 100)}


@pytest.mark.cifar
@real_data
@pytest.mark.parametrize(("classes", "labels"), [(10, [6, 9, 9, 4, 1]), (100, [19, 29, 0, 11, 1])])
def test_sizes_and_first_labels(splits: dict[int, Splits], classes: int, labels: list[int]) -> None:
    found = splits[classes]
    for split, size in ((found.train, 50_000), (found.eval, 10_000)):
        assert split.inputs.shape == (size, 3, 32, 32)
        assert split.inputs.dtype == torch.uint8
        assert split.inputs.is_contiguous()
        assert torch.bincount(split.targets).tolist() == [size // classes] * classes
    assert found.train.targets[:5].tolist() == labels
    assert (found.num_classes, found.in_channels) == (classes, 3)


@pytest.mark.cifar
@real_data
def test_pixels_are_the_files_planes(splits: dict[int, Splits]) -> None:
    import pickle

    raw = pickle.loads((Path(CIFAR_ROOT) / FOLDERS[10] / "data_batch_1").read_bytes(), encoding="latin1")["data"]
    assert torch.equal(splits[10].train.inputs[:10_000].flatten(1), torch.from_numpy(raw))


@pytest.mark.cifar
@real_data
@pytest.mark.parametrize("classes", [10, 100])
def test_normalisation_constants_are_the_training_pixels(splits: dict[int, Splits], classes: int) -> None:
    pixels = splits[classes].train.inputs.transpose(0, 1).flatten(1).double() / 255
    mean, std = pixels.mean(1), pixels.std(1, correction=0)
    torch.testing.assert_close(mean, torch.tensor(VARIANTS[classes].mean).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.tensor(VARIANTS[classes].std).double(), atol=1e-4, rtol=0)


@pytest.mark.cifar
@real_data
@pytest.mark.parametrize(
    ("classes", "size"), [(10, {"samples": 100}), (10, {"fraction": 0.01}), (100, {"fraction": 0.1})]
)
def test_subset_is_balanced_fixed_and_of_the_training_split(
    splits: dict[int, Splits], classes: int, size: dict[str, float]
) -> None:
    torch.manual_seed(1)
    data = build_data(f"cifar{classes}", root=CIFAR_ROOT, batch_size=37, **size)
    torch.manual_seed(2)
    again = build_data(f"cifar{classes}", root=CIFAR_ROOT, batch_size=37, **size)
    count = int(size.get("samples", 50_000 * size.get("fraction", 0)))
    assert data.train_size == count
    assert data.eval_size == 10_000
    targets = data.train.dataloader.dataset.targets
    assert torch.bincount(targets).tolist() == [count // classes] * classes
    images = data.train.dataloader.dataset.inputs
    assert torch.equal(images, again.train.dataloader.dataset.inputs)
    full = {image.numpy().tobytes() for image in splits[classes].train.inputs}
    assert all(image.numpy().tobytes() in full for image in images)


@pytest.mark.cifar
@real_data
def test_only_training_batches_are_augmented() -> None:
    for augment in (True, False):
        data = build_data("cifar10", root=CIFAR_ROOT, samples=100, augment=augment)
        for spec, random in ((data.train, augment), (data.eval, False)):
            batch = spec.dataloader.dataset.__getitems__(range(100))
            first, second = (spec.batch_transforms(batch)[0] for _ in range(2))
            assert torch.equal(first, second) is not random


@pytest.mark.cifar
@real_data
@pytest.mark.parametrize("download", [False, True])
def test_corrupt_file_is_named(tmp_path: Path, download: bool) -> None:
    for source in (Path(CIFAR_ROOT) / FOLDERS[100]).iterdir():
        (tmp_path / FOLDERS[100]).mkdir(exist_ok=True)
        shutil.copy(source, tmp_path / FOLDERS[100])
    # Nothing is missing, so download=True has nothing to fetch.
    assert build_data("cifar100", root=tmp_path, download=download).train_size == 50_000
    with (tmp_path / FOLDERS[100] / "test").open("r+b") as file:
        file.write(b"\0")
    with pytest.raises(FileNotFoundError, match=r"CIFAR-100 in .* is corrupt: cifar-100-python/test .*download=true"):
        build_data("cifar100", root=tmp_path)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("exists", [True, False])
def test_missing_data_names_folder_contents_and_remedy(tmp_path: Path, classes: int, exists: bool) -> None:
    root = tmp_path if exists else tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError) as error:
        build_data(f"cifar{classes}", root=root)
    message = str(error.value)
    for part in (f"no complete CIFAR-{classes} in", str(root), f"{FOLDERS[classes]}/", "data.download=true", ".tar.gz"):
        assert part in message
    assert root.exists() is exists


def test_one_missing_file_is_the_one_named(tmp_path: Path) -> None:
    (tmp_path / FOLDERS[100]).mkdir()
    for name in ("train", "meta"):
        (tmp_path / FOLDERS[100] / name).touch()
    with pytest.raises(FileNotFoundError, match=r"it lacks cifar-100-python/test\. "):
        build_data("cifar100", root=tmp_path)


def test_files_of_other_contents_are_corrupt(tmp_path: Path) -> None:
    (tmp_path / FOLDERS[100]).mkdir()
    for name in ("train", "test", "meta"):
        (tmp_path / FOLDERS[100] / name).touch()
    with pytest.raises(FileNotFoundError, match=r"is corrupt: cifar-100-python/train, .*Remove the folder"):
        build_data("cifar100", root=tmp_path)


def test_failed_download_names_address_and_folder(tmp_path: Path) -> None:
    # A file where the folder should be makes the download fail without a network.
    root = tmp_path / "file"
    root.touch()
    with pytest.raises(FileNotFoundError, match=r"could not download CIFAR-10 from https://.* into .*file"):
        build_data("cifar10", root=root, download=True)


@pytest.mark.cifar
@real_data
def test_smaller_images_are_means_over_areas(splits: dict[int, Splits]) -> None:
    small = cifar_splits(10, CIFAR_ROOT, image_size=16)
    for split in ("train", "eval"):
        full, less = getattr(splits[10], split), getattr(small, split)
        means = full.inputs[:100].double().unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
        assert less.inputs.dtype == torch.uint8
        assert torch.equal(less.inputs[:100].double(), means.round())
        assert torch.equal(less.targets, full.targets)
    assert small.train_transform.crop_padding == 2
    assert small.eval_transform.crop_padding == 0


@pytest.mark.parametrize("size", [0, 33])
def test_image_size_out_of_range(tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match=f"image_size must be between 1 and 32 for CIFAR, not {size}"):
        build_data("cifar10", root=tmp_path, image_size=size)
