"""The 8 x 8 digits that come with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from composer_edba.train.data.augment import BatchAugment
from composer_edba.train.data.splits import Splits
from composer_edba.train.data.subset import stratified_subset
from composer_edba.train.data.tensor_dataset import BatchTensorDataset

TRAIN_SIZE = 1437
"""80 % of the 1797 images; the other 360 are the test split."""

MEAN = (0.3053,)
STD = (0.3760,)
"""Of all images, with pixels in [0, 1]."""


def digits_splits() -> Splits:
    """Load scikit-learn's digits (Alpaydin and Kaynak, 1998): 1797 images ``(1, 8, 8)`` of ten classes.

    The split into 1437 training and 360 test images is stratified and always the same. Images are float32 in [0, 1]
    (the data's 17 grey levels divided by 16); they are normalised and never augmented, for eight pixels leave nothing
    to crop and a mirrored digit is not that digit.
    """
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.float32).div_(16).unsqueeze(1)
    data = BatchTensorDataset(images, torch.from_numpy(bunch.target.astype(np.int64)))
    indices = stratified_subset(bunch.target, samples=TRAIN_SIZE, seed=0)
    others = np.setdiff1d(np.arange(len(data)), indices)
    train, test = (data.subset(torch.from_numpy(part)) for part in (indices, others))
    normalise = BatchAugment(MEAN, STD)
    return Splits(train, test, normalise, normalise, num_classes=10, in_channels=1)
