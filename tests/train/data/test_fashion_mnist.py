import gzip
from pathlib import Path

import pytest
import torch

from composer_edba.train.data import build_data, fashion_mnist

installed = pytest.mark.skipif(
    not fashion_mnist.DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)


@pytest.fixture
def splits():
    return fashion_mnist.fashion_mnist_splits()


@installed
def test_all_of_it_is_there(splits):
    assert splits.train.inputs.shape == (60_000, 1, 28, 28)
    assert splits.eval.inputs.shape == (10_000, 1, 28, 28)
    assert splits.train.inputs.dtype == torch.uint8
    assert torch.bincount(splits.train.targets).tolist() == [6000] * 10
    assert torch.bincount(splits.eval.targets).tolist() == [1000] * 10


@installed
def test_normalisation_constants_are_the_datas(splits):
    pixels = splits.train.inputs.double() / 255
    torch.testing.assert_close(pixels.mean(), torch.tensor(fashion_mnist.MEAN[0]).double(), atol=5e-5, rtol=0)
    torch.testing.assert_close(pixels.std(correction=0), torch.tensor(fashion_mnist.STD[0]).double(), atol=5e-5, rtol=0)


@installed
def test_ten_of_each_class():
    data = build_data("fashion_mnist", samples=100, validation_samples=1000)
    batch = next(iter(data.train.dataloader))
    assert torch.bincount(batch[1]).tolist() == [10] * 10
    assert (data.num_classes, data.in_channels, data.train_size, data.eval_size) == (10, 1, 100, 10_000)


@installed
def test_files_are_found_where_the_user_or_torchvision_puts_them(tmp_path, monkeypatch):
    names = [path.name for path in fashion_mnist.DEBIAN.iterdir()]
    for folder in (tmp_path / "own", tmp_path / "vision" / "FashionMNIST" / "raw"):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).symlink_to(fashion_mnist.DEBIAN / name)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", Path("/nowhere"))
    for root in ("own", "vision"):
        assert len(fashion_mnist.fashion_mnist_splits(tmp_path / root).eval) == 10_000


def test_missing_and_corrupt_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    with pytest.raises(FileNotFoundError, match=r"no train-images-idx3-ubyte\.gz .* apt-get install"):
        fashion_mnist.fashion_mnist_splits(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = gzip.compress(b"not it" * 1000)
    for content, why in ((whole, "does not hold 60000 x 28 x 28 bytes"), (whole[:-9], "Compressed file ended")):
        path.write_bytes(content)
        with pytest.raises(FileNotFoundError, match=rf"train-images-idx3-ubyte\.gz is damaged: .*{why}"):
            fashion_mnist.fashion_mnist_splits(tmp_path)


def test_what_does_not_apply_is_refused():
    with pytest.raises(ValueError, match="image_size is not for fashion_mnist"):
        build_data("fashion_mnist", image_size=14)
    with pytest.raises(ValueError, match="download must be False for fashion_mnist"):
        build_data("fashion_mnist", download=True)
