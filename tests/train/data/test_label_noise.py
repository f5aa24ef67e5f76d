import os
from pathlib import Path

import numpy as np
import pytest
import torch

from composer_edba.train.config import ConfigError, load_config
from composer_edba.train.data import BatchTensorDataset, NoisyLabels, build_data
from composer_edba.train.data.label_noise import symmetric_noise, with_label_noise
from composer_edba.train.run import build_trainer
from tests.support.paths import YAMLS

CLEAN = np.repeat(np.arange(10), 500)


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.777])
def test_symmetric_noise(rate):
    noisy = symmetric_noise(CLEAN, rate, num_classes=10, seed=3)
    wrong = noisy != CLEAN
    assert wrong.sum() == round(rate * 5000)
    assert noisy.min() >= 0
    assert noisy.max() <= 9
    # Uniform over the other classes: each of the 90 cells within five standard deviations.
    counts = np.zeros((10, 10))
    np.add.at(counts, (CLEAN[wrong], noisy[wrong]), 1)
    expected = wrong.sum() / 90
    off_diagonal = counts[~np.eye(10, dtype=bool)]
    assert np.abs(off_diagonal - expected).max() < 5 * np.sqrt(expected)


def test_symmetric_noise_follows_from_its_seed_alone():
    np.random.seed(0)
    first = symmetric_noise(CLEAN, 0.4, num_classes=10, seed=1)
    np.random.seed(1)
    assert np.array_equal(first, symmetric_noise(CLEAN, 0.4, num_classes=10, seed=1))
    assert not np.array_equal(first, symmetric_noise(CLEAN, 0.4, num_classes=10, seed=2))


@pytest.mark.parametrize("rate", [0, 1, -0.5, 1.5])
def test_rates_are_checked(rate):
    with pytest.raises(ValueError, match=r"must be in \(0, 1\)"):
        symmetric_noise(CLEAN, rate, num_classes=10)


def test_one_class_cannot_be_wrong():
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        symmetric_noise(np.zeros(5, dtype=int), 0.4, num_classes=1)


def test_digits():
    clean, noisy = (build_data("digits", label_noise=noise, subset_seed=4) for noise in (None, "symmetric_0.3"))
    data, right = noisy.train.dataloader.dataset, clean.train.dataloader.dataset.targets
    assert isinstance(data, NoisyLabels)
    assert int(data.mislabelled.sum()) == round(0.3 * 1437)
    assert torch.equal(data.mislabelled, data.targets != right)
    assert torch.equal(data.clean_targets, right)
    assert torch.equal(noisy.eval.dataloader.dataset.targets, clean.eval.dataloader.dataset.targets)
    x, y = next(iter(noisy.train.dataloader))
    assert (x.shape, y.shape) == ((100, 1, 8, 8), (100,))


def test_noise_does_not_change_which_samples_are_chosen():
    arguments = {"samples": 200, "validation_samples": 100, "subset_seed": 7}
    clean, noisy = (build_data("digits", label_noise=noise, **arguments) for noise in (None, "symmetric_0.5"))
    for split in ("train", "validation"):
        one, two = (getattr(data, split).dataloader.dataset for data in (clean, noisy))
        assert torch.equal(one.inputs, two.inputs)
        assert torch.equal(one.targets, two.clean_targets)
        assert 0.3 < float(two.mislabelled.float().mean()) < 0.7


def test_subset_knows_its_faults():
    data = NoisyLabels(torch.arange(6), torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1, 1, 0, 2, 2]))
    assert data.mislabelled.tolist() == [False, False, True, False, True, False]
    part = data.subset(torch.tensor([4, 0, 2]))
    assert part.mislabelled.tolist() == [True, False, True]
    assert part.targets.tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match="same length, not 6 and 5"):
        NoisyLabels(torch.arange(6), torch.zeros(6), torch.zeros(5))


@pytest.fixture
def human(tmp_path):
    """CIFAR-10N's file for ten samples."""
    (tmp_path / "cifar-n").mkdir()
    clean = np.arange(10, dtype=np.uint8)
    worse = clean.copy()
    worse[[2, 5]] = [3, 0]
    np.savez(tmp_path / "cifar-n" / "cifar10n.npz", clean_label=clean, worse_label=worse, aggre_label=clean)
    return tmp_path


def dataset(labels):
    return BatchTensorDataset(torch.zeros(len(labels), 3, 8, 8), torch.tensor(labels))


def test_human_labels(human):
    data = with_label_noise(dataset(range(10)), "worse", name="cifar10", root=human, num_classes=10)
    assert data.targets.tolist() == [0, 1, 3, 3, 4, 0, 6, 7, 8, 9]
    assert data.targets.dtype == torch.int64
    assert torch.nonzero(data.mislabelled).flatten().tolist() == [2, 5]


def test_human_labels_of_another_order_are_refused(human):
    with pytest.raises(ValueError, match=r"clean_label in .*cifar10n.npz does not agree"):
        with_label_noise(dataset(range(9, -1, -1)), "worse", name="cifar10", root=human, num_classes=10)


def test_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no human labels .*cifar10n.npz: download CIFAR-10_human.pt"):
        with_label_noise(dataset(range(10)), "aggre", name="cifar10", root=tmp_path, num_classes=10)


@pytest.mark.parametrize(
    ("name", "noise", "message"),
    [
        ("digits", "aggre", r"unknown label_noise 'aggre' for digits; it may be symmetric_RATE"),
        ("cifar100", "worse", r"unknown label_noise 'worse' for cifar100; it may be noisy, symmetric_RATE"),
        ("cifar10", "symmetric", r"unknown label_noise 'symmetric' for cifar10; it may be aggre, random1"),
        ("digits", "symmetric_1.5", r"must be in \(0, 1\), not 1.5"),
    ],
)
def test_unknown_noise(name, noise, message):
    with pytest.raises(ValueError, match=message):
        with_label_noise(dataset(range(10)), noise, name=name, root=None, num_classes=10)


def test_image_folders_are_refused(tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / label / "0.png")
    with pytest.raises(ValueError, match=r"is for data sets in memory, not for imagefolder"):
        build_data("imagefolder", root=tmp_path, label_noise="symmetric_0.4")


def test_from_yaml():
    overrides = ["data.label_noise=symmetric_0.25", "data.samples=100", "trainer.progress_bar=false"]
    trainer, data = build_trainer(load_config(YAMLS / "digits/baseline.yaml", overrides))
    trainer.close()
    share = data.train.dataloader.dataset.mislabelled.float().mean()
    assert 0.1 < float(share) < 0.4
    with pytest.raises(ConfigError, match="data: unknown label_noise 'worst' for digits"):
        build_trainer(load_config(YAMLS / "digits/baseline.yaml", ["data.label_noise=worst"]))


@pytest.mark.cifar
@pytest.mark.skipif("CIFAR_ROOT" not in os.environ, reason="CIFAR_ROOT names no folder with the CIFAR data")
@pytest.mark.parametrize(
    ("name", "noise", "share"),
    [
        ("cifar10", "aggre", 0.0901),
        ("cifar10", "random1", 0.1723),
        ("cifar10", "worse", 0.4021),
        ("cifar100", "noisy", 0.4020),
    ],
)
def test_real_human_labels(name, noise, share):
    """The shares of the released files."""
    root = Path(os.environ["CIFAR_ROOT"])
    if not (root / "cifar-n" / f"{name}n.npz").is_file():
        pytest.skip("CIFAR_ROOT holds no cifar-n")
    data = build_data(name, root=root, label_noise=noise)
    assert float(data.train.dataloader.dataset.mislabelled.float().mean()) == pytest.approx(share, abs=5e-5)
