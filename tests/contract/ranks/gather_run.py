"""Gathers the scores of sequences that are longer on one rank than on the other; run by the composer launcher."""

import sys
from pathlib import Path

import torch
from composer.utils import dist

from composer_edba.loading.ranks import Attempt
from composer_edba.scoring.gathered import SHAPE, gather_scores, shape_of
from composer_edba.scoring.pool_scores import PoolScores


def rank_scores(rank):
    """5 sequences of 3 tokens on rank 0, 4 of 7 on rank 1."""
    generator = torch.Generator().manual_seed(rank)
    samples, positions = ((5, 3), (4, 7))[rank]
    return PoolScores(
        torch.randn(samples, positions, 6, generator=generator),
        torch.randn(samples, positions, 2, generator=generator),
        torch.tensor(1.0 + rank),
        True,
    )


if __name__ == "__main__":
    dist.initialize_dist("cpu", timeout=60.0)
    mine = rank_scores(dist.get_global_rank())
    with Attempt(1 + SHAPE) as attempt:
        attempt.numbers = (len(mine.inputs), *shape_of(mine))
    sizes, *shapes = attempt.exchange(torch.device("cpu"))
    gathered = gather_scores(mine, sizes, shapes)
    torch.save(
        {"products": gathered.inner_products(), "metric": gathered.model_metric},
        Path(sys.argv[1]) / f"gathered{dist.get_global_rank()}.pt",
    )
    # A rank that outlives the other's end may abort in gloo's threads when the interpreter takes them down.
    dist.barrier()
    torch.distributed.destroy_process_group()
