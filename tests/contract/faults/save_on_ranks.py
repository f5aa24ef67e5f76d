"""Saves checkpoints of every batch and epoch of a run with EDBA; run by the composer launcher on several ranks.

Argument: the folder to write to.
"""

import sys

from composer.utils import dist
from torch.utils.data import DataLoader

from composer_edba import EDBA
from tests.support.small_runs import Points, trainer

if __name__ == "__main__":
    dist.initialize_dist("cpu", timeout=120)
    data = Points(with_index=True)
    for name, interval in (("ba{batch}", "1ba"), ("ep{epoch}", "1ep")):
        loader = DataLoader(data, batch_size=64, sampler=dist.get_sampler(data, shuffle=True))
        trainer(
            [EDBA.paper(min_subset_size=5)],
            loader=loader,
            max_duration="2ep",
            save_folder=sys.argv[1],
            save_filename=name + ".pt",
            save_interval=interval,
            save_overwrite=True,
        ).fit()
