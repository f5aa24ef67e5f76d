import torch
from sklearn.datasets import load_digits

from composer_edba.train.data import digits


def test_every_image_is_in_one_split_with_its_label() -> None:
    splits = digits.digits_splits()
    assert splits.train.inputs.shape == (1437, 1, 8, 8)
    assert splits.eval.inputs.shape == (360, 1, 8, 8)
    pairs = [
        (tuple(image.mul(16).int().flatten().tolist()), int(label))
        for split in (splits.train, splits.eval)
        for image, label in zip(split.inputs, split.targets, strict=True)
    ]
    bunch = load_digits()
    original = [(tuple(map(int, row)), int(label)) for row, label in zip(bunch.data, bunch.target, strict=True)]
    assert sorted(pairs) == sorted(original)


def test_splits_are_stratified_and_fixed() -> None:
    first, again = digits.digits_splits(), digits.digits_splits()
    assert torch.equal(first.train.inputs, again.train.inputs)
    totals = torch.bincount(torch.from_numpy(load_digits().target))
    assert torch.all((torch.bincount(first.train.targets) - totals * 1437 / 1797).abs() < 1)


def test_normalisation_constants_are_the_datas() -> None:
    pixels = torch.from_numpy(load_digits().data) / 16
    torch.testing.assert_close(pixels.mean(), torch.tensor(digits.MEAN[0]).double(), atol=5e-5, rtol=0)
    torch.testing.assert_close(pixels.std(correction=0), torch.tensor(digits.STD[0]).double(), atol=5e-5, rtol=0)


def test_training_images_are_normalised_and_not_augmented() -> None:
    splits = digits.digits_splits()
    batch = splits.train.__getitems__(range(200))
    first, _ = splits.train_transform(batch)
    second, _ = splits.train_transform(batch)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, (batch[0] - 0.3053) / 0.3760)
