"""The memory format of images stays channels_last from the loader to the network, in scoring and in training."""

import pytest
import torch
from composer import DataSpec
from composer.algorithms import ChannelsLast
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from composer_edba import EDBA
from tests.support.small_runs import CLASSES, trainer


class Formats(ComposerClassifier):
    """Notes the memory format of what each forward pass is given."""

    def forward(self, batch):
        kept = batch[0].is_contiguous(memory_format=torch.channels_last) and not batch[0].is_contiguous()
        self.seen.append(("training" if torch.is_grad_enabled() else "scoring", len(batch[0]), kept))
        return super().forward(batch)


def to_channels_last(batch):
    return [batch[0].to(memory_format=torch.channels_last), batch[1]]


@pytest.mark.parametrize("limit", [None, 12])
def test_channels_last_is_kept(limit):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    )
    model = Formats(net, num_classes=CLASSES)
    Formats.seen = []  # of the class: attributes of a module are put back after scoring
    data = TensorDataset(torch.randn(128, 3, 8, 8), torch.randint(CLASSES, (128,)))
    # EDBA takes the batch as the loader's device transforms leave it.
    spec = DataSpec(DataLoader(data, batch_size=32, shuffle=True), batch_transforms=to_channels_last)
    run = trainer(
        [EDBA.paper(), ChannelsLast()],
        model=model,
        loader=spec,
        max_duration="3ep",
        device_train_microbatch_size=limit,
    )
    run.fit()
    assert {kind for kind, _, _ in model.seen} == {"training", "scoring"}
    assert all(kept for _, _, kept in model.seen), model.seen
    assert min(samples for kind, samples, _ in model.seen if kind == "training") < 32
    weight = model.module[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
