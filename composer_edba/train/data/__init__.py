"""Data sets for the YAML runs and benchmarks: digits, CIFAR-10, CIFAR-100 and image folders.

>>> data = build_data("digits", samples=100, batch_size=50)
>>> data.num_classes, data.train_size, data.eval_size
(10, 100, 360)
"""

from composer_edba.train.data.augment import BatchAugment, random_crop, random_flip
from composer_edba.train.data.build import Data, build_data
from composer_edba.train.data.label_noise import NoisyLabels
from composer_edba.train.data.subset import stratified_subset
from composer_edba.train.data.tensor_dataset import BatchTensorDataset, identity_collate

__all__ = [
    "BatchAugment",
    "BatchTensorDataset",
    "Data",
    "NoisyLabels",
    "build_data",
    "identity_collate",
    "random_crop",
    "random_flip",
    "stratified_subset",
]
