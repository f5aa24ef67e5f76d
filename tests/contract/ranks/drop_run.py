"""A Trainer on two ranks, one of whose collate_fn leaves samples out; run by the composer launcher.

Argument: the folder to write to.
"""

import sys
from pathlib import Path

import torch
from composer.utils import dist
from torch.utils.data import DataLoader, default_collate

from composer_edba import EDBA
from tests.support.small_runs import Points, Watch, classifier, logged, trainer


def dropping(samples):
    """Leaves broken samples out: those of every eighth index."""
    return default_collate([each for each in samples if int(each[0][0]) % 8 != 0] or samples[:1])


def failing(gradient_metrics, model_metric, averages):
    if dist.get_global_rank() == 1:
        gradient_metrics = gradient_metrics / (1 // 0)
    return gradient_metrics


MODES = {
    "plain": None,
    "forward": {},
    "criterion": {"criterion": failing},
    "cached": {"scoring": "cached", "batch_size_policy": "fixed"},
}


def train(settings):
    data, watch = Points(size=250, with_index=True), Watch()
    collate = dropping if dist.get_global_rank() == 1 else None
    loader = DataLoader(data, batch_size=32, sampler=dist.get_sampler(data, shuffle=True), collate_fn=collate)
    edba = [] if settings is None else [EDBA.paper(min_subset_size=4, **settings)]
    model = classifier(dropout=0.0, batch_norm=False)
    run = trainer(edba, loader=loader, model=model, callbacks=[watch], dist_timeout=30.0)
    try:
        run.fit()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    trained = logged(run, "edba/samples_trained")
    return {"steps": len(watch.subsets), "sizes": watch.subsets, "weights": weights, "trained": trained}


if __name__ == "__main__":
    dist.initialize_dist("cpu", timeout=30.0)
    torch.set_num_threads(1)
    results = {mode: train(settings) for mode, settings in MODES.items()}
    torch.save(results, Path(sys.argv[1]) / f"rank{dist.get_global_rank()}.pt")
    dist.barrier()
    torch.distributed.destroy_process_group()
