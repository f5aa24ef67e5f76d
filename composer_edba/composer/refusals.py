"""Which of Composer's algorithms cannot run beside EDBA, and why; docs/composition.md shows how all were tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from composer.algorithms import CutMix, GyroDropout, MixUp, NoOpModel, SelectiveBackprop
from composer.core import Algorithm
from torch import nn

from composer_edba.loading.parts import equal_part_size

__all__ = ["check_algorithms", "check_ghost_batches", "ghost_batch_size", "why_mixed"]


def check_algorithms(edba: Any, algorithms: Sequence[Algorithm]) -> None:
    """Refuse algorithms that undo EDBA's choice or that its choice breaks.

    Args:
        edba: the EDBA that asks.
        algorithms: all of its Trainer's algorithms, itself among them.

    Raises:
        ValueError: names the algorithm, the reason and what to do.
    """
    if sum(isinstance(other, type(edba)) or isinstance(edba, type(other)) for other in algorithms) > 1:
        raise ValueError("algorithms holds EDBA more than once: one pool cannot be chosen from twice")
    for algorithm in algorithms:
        if isinstance(algorithm, SelectiveBackprop) and algorithm.keep < 1:
            raise ValueError(
                f"SelectiveBackprop(keep={algorithm.keep}) beside EDBA would prune the chosen subset a second time, to "
                "samples whose mean gradient EDBA did not choose: use one of the two"
            )
        if isinstance(algorithm, GyroDropout):
            raise ValueError(
                f"GyroDropout(tau={algorithm.tau}) beside EDBA: it needs every microbatch to be a multiple of tau and "
                "every epoch to have equally many batches, and EDBA changes both. Use torch.nn.Dropout as it is"
            )
        if isinstance(algorithm, (MixUp, CutMix)) and edba.settings["scoring"] == "cached":
            raise ValueError(
                f"{type(algorithm).__name__} beside EDBA(scoring='cached'): a mixed image and its mixed target belong "
                "to no sample, so there is nothing to keep of it. Use scoring='forward', which scores before mixing"
            )
        if isinstance(algorithm, NoOpModel):
            raise ValueError(
                "NoOpModel replaces the network by a single weight, so there is no last layer whose gradient EDBA "
                "could measure: leave EDBA out while measuring the loader"
            )


def why_mixed(algorithms: Sequence[Algorithm]) -> str | None:
    """Why training tells nothing of single samples beside these algorithms, and what to do; None: it does."""
    names = [type(algorithm).__name__ for algorithm in algorithms if isinstance(algorithm, (MixUp, CutMix))]
    return f"{names[0]} mixes samples, and a mixed one is none of the data set's" if names else None


def ghost_batch_size(model: nn.Module) -> int | None:
    """The fewest samples that may go through ``model`` at once because of GhostBatchNorm; None: it has none."""
    sizes = (getattr(module, "ghost_batch_size", None) for module in model.modules())
    return max((size for size in sizes if isinstance(size, int)), default=None)


def check_ghost_batches(
    ghost: int, *, min_subset_size: int, sizes: tuple[int, int] | None, smallest_rest: int | None, limit: int | None
) -> None:
    """Refuse settings under which GhostBatchNorm, given too few samples at once, would fail in the middle of training.

    Args:
        ghost, min_subset_size: the arguments ghost_batch_size of GhostBatchNorm and min_subset_size of EDBA.
        sizes: smallest and largest batch that EDBA may ask for; None: the loader's batches cannot be resized.
        smallest_rest: fewest samples that the last batch of a pass may have; None: as many as asked for.
        limit: most samples in a microbatch; None: no bound.

    Raises:
        ValueError: names the argument to change.
    """
    needs = f"GhostBatchNorm(ghost_batch_size={ghost}) needs at least {ghost} samples in every forward, but"
    if min_subset_size < ghost:
        raise ValueError(
            f"{needs} EDBA's min_subset_size is {min_subset_size}: use EDBA(min_subset_size={ghost}, min_batch_size="
            f"{ghost}), or a ghost_batch_size of at most {min_subset_size}"
        )
    if sizes is None:
        return
    smallest, largest = sizes
    if smallest < ghost:
        raise ValueError(
            f"{needs} EDBA's min_batch_size is {smallest}: use {ghost} or more, or a ghost_batch_size of at most "
            f"{smallest}"
        )
    if smallest_rest is not None and smallest_rest < ghost:
        raise ValueError(
            f"{needs} the last batch of a pass may hold {smallest_rest}: build the train_dataloader with drop_last=True"
        )
    for samples in range(min_subset_size, largest + 1) if limit is not None else ():
        part = equal_part_size(samples, limit) or 2
        if (samples % part or part) < ghost:
            raise ValueError(
                f"{needs} a subset of {samples} is cut into microbatches of {part} or fewer, because "
                f"device_train_microbatch_size is {limit}: use a larger number, or None"
            )
