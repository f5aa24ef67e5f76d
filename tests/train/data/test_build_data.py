import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from composer import Trainer
from composer.algorithms import CutMix, MixUp
from composer.core import DataSpec
from composer.models import ComposerClassifier
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from composer_edba.train.data import BatchAugment, build_data
from composer_edba.train.models import build_model


def labels(spec: DataSpec) -> torch.Tensor:
    return torch.cat([y for _, y in spec.dataloader])


def test_digits() -> None:
    data = build_data("digits")
    assert (data.num_classes, data.in_channels, data.train_size, data.eval_size) == (10, 1, 1437, 360)
    x, y = data.train.batch_transforms(next(iter(data.train.dataloader)))
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((100, 1, 8, 8), torch.float32, (100,), torch.int64)


def test_training_loader_is_an_ordinary_one() -> None:
    loader = build_data("digits", batch_size=30, samples=100).train.dataloader
    assert type(loader) is DataLoader
    assert type(loader.batch_sampler) is BatchSampler


def order(seed: int | None, epoch: int) -> list[int]:
    sampler = build_data("digits", samples=100, shuffle_seed=seed).train.dataloader.sampler
    sampler.set_epoch(epoch)
    return list(sampler)


def test_order_follows_from_seed_and_epoch() -> None:
    torch.manual_seed(1)
    first = order(5, 0)
    assert sorted(first) == list(range(100))
    torch.manual_seed(2)
    assert order(5, 0) == first
    assert first not in (order(5, 1), order(6, 0), sorted(first))


def test_order_follows_the_global_seed_by_default() -> None:
    torch.manual_seed(7)
    torch.rand(3)
    first = order(None, 2)
    assert first == order(7, 2)
    torch.manual_seed(8)
    assert order(None, 2) != first


def test_evaluation_is_in_order() -> None:
    data = build_data("digits", eval_batch_size=100)
    assert torch.equal(labels(data.eval), data.eval.dataloader.dataset.targets)
    assert [len(y) for _, y in data.eval.dataloader] == [100, 100, 100, 60]


def test_subset_does_not_follow_the_global_seed_but_its_own() -> None:
    def images(seed: int, subset_seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return build_data("digits", samples=50, subset_seed=subset_seed).train.dataloader.dataset.inputs

    assert torch.equal(images(0, 0), images(1, 0))
    assert not torch.equal(images(0, 0), images(0, 1))


@pytest.mark.parametrize("drop_last", [False, True])
def test_drop_last(drop_last: bool) -> None:
    data = build_data("digits", samples=100, batch_size=30, drop_last=drop_last)
    assert [len(y) for _, y in data.train.dataloader] == [30, 30, 30] + [10] * (not drop_last)


def test_workers_stay_and_give_the_same_batches(stop_workers) -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        data = build_data("digits", samples=40, batch_size=16, num_workers=workers)
        loader = stop_workers(data.train.dataloader)
        assert loader.persistent_workers is (workers > 0)
        return [x for x, _ in loader]

    for one, two in zip(batches(0), batches(2), strict=True):
        assert torch.equal(one, two)


def test_two_ranks_share_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by the launcher's variables, which must not contradict the group of one rank that a Trainer has left behind.
    monkeypatch.setattr("composer.utils.dist.get_world_size", lambda: 2)
    seen = []
    for rank in (0, 1):
        monkeypatch.setattr("composer.utils.dist.get_global_rank", lambda rank=rank: rank)
        data = build_data("digits", samples=100, batch_size=20)
        assert isinstance(data.train.dataloader.sampler, DistributedSampler)
        assert type(data.train.dataloader.batch_sampler) is BatchSampler
        assert data.train_size == 100
        seen.append([index for batch in data.train.dataloader.batch_sampler for index in batch])
        assert len(data.eval.dataloader.sampler) == 180
        with pytest.raises(ValueError, match="leaves no batch of 100 training samples on 2"):
            build_data("digits", samples=100, batch_size=51, drop_last=True)
    assert sorted(seen[0] + seen[1]) == list(range(100))
    assert seen[0] != sorted(seen[0])


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        (
            {"name": "cifar1O"},
            r"'cifar1O'; did you mean cifar10\? known: cifar10, cifar100, digits, fashion_mnist, imagefolder",
        ),
        ({"name": "digits", "fraction": 0.5, "samples": 3}, "not both"),
        ({"name": "digits", "samples": 2000}, "samples must be between 1 and the 1437"),
        ({"name": "digits", "batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"name": "digits", "eval_batch_size": 0}, "eval_batch_size must be at least 1, not 0"),
        ({"name": "digits", "num_workers": -1}, "num_workers must be at least 0, not -1"),
        ({"name": "digits", "image_size": 32}, "image_size is not for digits"),
        ({"name": "digits", "samples": 9, "batch_size": 10, "drop_last": True}, "leaves no batch of 9"),
        ({"name": "cifar10"}, "root must be the folder that holds cifar10"),
        ({"name": "imagefolder", "root": ".", "download": True}, "download must be False for imagefolder"),
    ],
)
def test_errors(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build_data(**kwargs)


def test_data_is_frozen() -> None:
    data = build_data("digits", samples=10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.train_size = 5


@pytest.mark.parametrize("module", ["sklearn", "torchvision"])
def test_importing_the_package_needs_no_data_set_library(module: str) -> None:
    name = {"sklearn": "digits", "torchvision": "cifar10"}[module]
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.modules['composer'] = None\n"
        "from composer_edba.train.data import build_data, stratified_subset\n"
        f"try:\n    build_data({name!r}, root='.')\n"
        "except ImportError as error:\n    print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert module in found
    assert "pip install 'composer-edba[train]'" in found


def classifier() -> ComposerClassifier:
    torch.manual_seed(0)
    return ComposerClassifier(build_model("digits_cnn", 10), num_classes=10)


@pytest.mark.parametrize("algorithm", [CutMix, MixUp])
@pytest.mark.filterwarnings("ignore:Cannot split")  # Composer says so of every smaller last batch
def test_trains_digits_beside_composers_mixing_algorithms(algorithm: type) -> None:
    torch.manual_seed(0)
    data = build_data("digits", batch_size=50)
    model = classifier()
    trainer = Trainer(
        model=model,
        train_dataloader=data.train,
        eval_dataloader=data.eval,
        max_duration="3ep",
        optimizers=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        algorithms=[algorithm()],
        progress_bar=False,
        device="cpu",
        seed=0,
    )
    trainer.fit()
    accuracy = trainer.state.eval_metrics["eval"]["MulticlassAccuracy"].compute()
    trainer.close()
    assert accuracy > 0.8


def augmented_digits(workers: int) -> DataSpec:
    loader = build_data("digits", samples=100, batch_size=20, num_workers=workers).train.dataloader
    return DataSpec(loader, batch_transforms=BatchAugment((0.3,), (0.4,), crop_padding=2, flip=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_sees_the_same_augmented_batches(tmp_path: Path, workers: int) -> None:
    def train(**kwargs) -> dict[str, torch.Tensor]:
        model = classifier()
        trainer = Trainer(
            model=model,
            train_dataloader=augmented_digits(workers),
            optimizers=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
            progress_bar=False,
            device="cpu",
            seed=3,
            **kwargs,
        )
        trainer.fit()
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        trainer.close()
        return weights

    # Five batches an epoch: the checkpoint is in the middle of the second.
    whole = train(max_duration="3ep", save_folder=str(tmp_path), save_interval="7ba", save_filename="ba{batch}.pt")
    resumed = train(max_duration="3ep", load_path=str(tmp_path / "ba7.pt"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize(("size", "expected"), [({}, 1237), ({"samples": 300}, 300), ({"fraction": 0.5}, 619)])
def test_held_out_samples_are_no_training_samples(size: dict[str, float], expected: int) -> None:
    data = build_data("digits", validation_samples=200, subset_seed=3, **size)
    train, held_out = data.train.dataloader.dataset, data.validation.dataloader.dataset
    assert torch.bincount(held_out.targets).min() >= 19
    assert torch.cdist(train.inputs.flatten(1), held_out.inputs.flatten(1)).min() > 0
    assert (len(held_out), len(train)) == (200, expected)
    # Those of another seed are others; of the same seed the same, whatever is trained on.
    same = build_data("digits", validation_samples=200, subset_seed=3).validation.dataloader.dataset
    other = build_data("digits", validation_samples=200, subset_seed=4).validation.dataloader.dataset
    assert torch.equal(same.inputs, held_out.inputs)
    assert not torch.equal(other.inputs, held_out.inputs)


def test_validation_batches_are_in_order_and_like_the_evaluations() -> None:
    data = build_data("digits", validation_samples=250, eval_batch_size=100)
    assert [len(y) for _, y in data.validation.dataloader] == [100, 100, 50]
    assert torch.equal(labels(data.validation), data.validation.dataloader.dataset.targets)
    assert data.validation.batch_transforms is data.eval.batch_transforms
    assert build_data("digits").validation is None


@pytest.mark.parametrize("count", [-1, 1437])
def test_held_out_samples_out_of_range(count: int) -> None:
    with pytest.raises(ValueError, match=f"leave some of the 1437 training samples, not {count}"):
        build_data("digits", validation_samples=count)
