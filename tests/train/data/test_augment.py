import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from composer_edba.train.data import BatchAugment, random_crop, random_flip

DTYPES = [torch.uint8, torch.float32, torch.float64]


def distinct_images(batch: int, channels: int, height: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Pixels that are never 0, and neighbours that differ, so that every shift of an image looks different."""
    pixels = torch.randint(1, 256, (batch, channels, height, width))
    return pixels.to(dtype)


def shifts(image: torch.Tensor, padding: int) -> dict[tuple[int, int], torch.Tensor]:
    """Every crop of one padded image ``(C, H, W)``, by its offset."""
    _, height, width = image.shape
    padded = F.pad(image, (padding,) * 4)
    steps = range(2 * padding + 1)
    return {(i, j): padded[:, i : i + height, j : j + width] for i in steps for j in steps}


@settings(deadline=None)
@given(
    batch=st.integers(1, 6),
    channels=st.integers(1, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
    strided=st.booleans(),
)
def test_every_crop_is_a_shift_of_its_own_image(
    batch: int, channels: int, height: int, width: int, padding: int, dtype: torch.dtype, seed: int, strided: bool
) -> None:
    torch.manual_seed(seed)
    x = distinct_images(batch, channels, height, width, dtype)
    if strided:
        x = x.contiguous(memory_format=torch.channels_last)
    before = x.clone()
    out = random_crop(x, padding)
    assert (out.dtype, out.shape) == (dtype, x.shape)
    assert torch.equal(x, before)
    for image, crop in zip(x, out, strict=True):
        assert any(torch.equal(crop, shift) for shift in shifts(image, padding).values())


@settings(deadline=None)
@given(
    batch=st.integers(1, 6),
    channels=st.integers(1, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_every_flip_is_the_image_or_its_mirror(
    batch: int, channels: int, height: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    x = distinct_images(batch, channels, height, width, dtype)
    out = random_flip(x)
    assert (out.dtype, out.shape) == (dtype, x.shape)
    for image, result in zip(x, out, strict=True):
        assert torch.equal(result, image) or torch.equal(result, image.flip(2))


def test_offsets_are_uniform_and_independent_of_each_other() -> None:
    torch.manual_seed(0)
    image = distinct_images(1, 1, 6, 6, torch.uint8)
    out = random_crop(image.expand(5000, -1, -1, -1), 2)
    counts = {offset: int(out.eq(shift).all((1, 2, 3)).sum()) for offset, shift in shifts(image[0], 2).items()}
    # 200 expected each, binomial standard deviation 13.9
    assert sum(counts.values()) == 5000
    assert min(counts.values()) > 130
    assert max(counts.values()) < 270


def test_half_the_images_are_flipped() -> None:
    torch.manual_seed(0)
    image = distinct_images(1, 1, 6, 6, torch.uint8)
    out = random_flip(image.expand(4000, -1, -1, -1))
    # 2000 expected, binomial standard deviation 31.6
    assert 1840 < int(out.eq(image.flip(3)).all(3).all(2).all(1).sum()) < 2160


@pytest.mark.parametrize("apply", [lambda x: random_crop(x, 2), random_flip])
def test_draws_from_the_global_stream(apply) -> None:
    x = distinct_images(64, 3, 8, 8, torch.uint8)
    state = torch.get_rng_state()
    first, second = apply(x), apply(x)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(apply(x), first)


def test_no_padding_draws_nothing() -> None:
    x = distinct_images(4, 3, 8, 8, torch.uint8)
    state = torch.get_rng_state()
    assert torch.equal(random_crop(x, 0), x)
    assert torch.equal(torch.get_rng_state(), state)


MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 2.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_normalisation(dtype: torch.dtype) -> None:
    x = distinct_images(5, 3, 4, 4, torch.uint8)
    pixels = x.double() / 255
    batch = [x if dtype is torch.uint8 else pixels.to(dtype), torch.arange(5)]
    before = batch[0].clone()
    out, y = BatchAugment(MEAN, STD)(batch)
    expected = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-6)
    assert torch.equal(y, torch.arange(5))
    assert torch.equal(batch[0], before)


def test_crop_and_flip_come_before_normalisation_so_that_the_border_is_black() -> None:
    torch.manual_seed(0)
    white = torch.full((200, 3, 8, 8), 255, dtype=torch.uint8)
    augment = BatchAugment(MEAN, STD, crop_padding=2, flip=True)
    out, _ = augment([white, torch.zeros(200)])
    black, light = ((level - augment.mean) / augment.std for level in (0, 1))
    border = out.isclose(black)
    assert torch.all(border | out.isclose(light))
    assert 0 < border.float().mean() < 0.5


def test_augmented_batch_is_a_crop_or_mirrored_crop() -> None:
    torch.manual_seed(0)
    x = distinct_images(50, 3, 6, 6, torch.uint8)
    out, _ = BatchAugment((0.0,) * 3, (1.0,) * 3, crop_padding=2, flip=True)([x, torch.zeros(50)])
    seen = set()
    for image, result in zip(x, out, strict=True):
        pixels = (result * 255).round().to(torch.uint8)
        states = {(f, o): s.flip(2) if f else s for f in (0, 1) for o, s in shifts(image, 2).items()}
        matches = [state for state, expected in states.items() if torch.equal(pixels, expected)]
        assert len(matches) == 1
        seen.update(matches)
    assert len({offset for _, offset in seen}) > 10
    assert {flip for flip, _ in seen} == {0, 1}


def test_keeps_what_follows_the_labels_and_pickles() -> None:
    augment = pickle.loads(pickle.dumps(BatchAugment(MEAN, STD, 1, True)))
    out = augment((distinct_images(2, 3, 4, 4, torch.uint8), torch.ones(2), "more"))
    assert isinstance(out, list)
    assert out[2] == "more"


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: random_crop(torch.zeros(2, 3, 4, 4), -1), "padding must not be negative, not -1"),
        (lambda: random_crop(torch.zeros(3, 4, 4), 1), r"shape \(B, C, H, W\), not \(3, 4, 4\)"),
        (lambda: random_flip(torch.zeros(3, 4, 4)), r"shape \(B, C, H, W\), not \(3, 4, 4\)"),
        (lambda: BatchAugment((0.5,), (1.0, 1.0)), "one number a channel each, not 1 and 2"),
        (lambda: BatchAugment((0.5,), (0.0,)), r"std must be positive, not \(0.0,\)"),
        (lambda: BatchAugment((0.5,), (1.0,), crop_padding=-2), "crop_padding must not be negative, not -2"),
        (lambda: BatchAugment((0.5,), (1.0,))([torch.zeros(2, 3, 4, 4)]), "images have 3 channels, mean and std 1"),
    ],
)
def test_errors(call, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
