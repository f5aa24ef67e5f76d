"""The loader inside of one that Accelerate prepared, which batches can be resized of."""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard, DataLoaderDispatcher
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from composer_edba.loading.rank_share import RankShare
from composer_edba.loading.ranks import world_size

__all__ = ["own_loader"]


def own_loader(loader: Any, accelerator: Accelerator) -> DataLoader:
    """The DataLoader in ``loader``, prepared by ``accelerator`` or not, that gives this process's samples.

    Raises:
        ValueError: if it dispatches batches from one process; on several, with ``even_batches=False``, or if
            ``split_batches`` does not divide the batch.
    """
    if isinstance(getattr(loader, "gradient_state", None), type(accelerator.gradient_state)):
        if type(loader) is DataLoaderDispatcher:
            raise ValueError(
                "this loader dispatches batches from the main process: give DataLoaderConfiguration("
                "dispatch_batches=False) to the Accelerator, or the loader as it was before it was prepared"
            )
        loader = loader.base_dataloader
    sampler, ranks = loader.batch_sampler, world_size()
    if isinstance(sampler, BatchSamplerShard):
        sampler = sampler.batch_sampler
    if ranks == 1 or type(sampler) is not BatchSampler or isinstance(loader.dataset, IterableDataset):
        return loader
    if not accelerator.even_batches:
        raise ValueError(
            "even_batches is False, and on several processes EDBA needs passes of one length: give "
            "DataLoaderConfiguration(even_batches=True) to the Accelerator"
        )
    size, left = divmod(sampler.batch_size, ranks) if accelerator.split_batches else (sampler.batch_size, 0)
    if left or not size:
        raise ValueError(f"the loader's batch_size is {sampler.batch_size}: {ranks} processes cannot split it evenly")
    twin, share = copy.copy(loader), RankShare(sampler.sampler, torch.device(accelerator.device))
    # DataLoader.__setattr__ forbids new samplers.
    twin.__dict__.update(batch_sampler=BatchSampler(share, size, sampler.drop_last), sampler=share, _iterator=None)
    return twin
