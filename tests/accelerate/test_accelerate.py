"""AcceleratedSubsetLoader in a loop with an Accelerator: prepared or not, accumulation, schedules, states, errors."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader, IterableDataset

from composer_edba.accelerate import AcceleratedSubsetLoader
from composer_edba.loading.rank_share import RankShare
from composer_edba.plain import SubsetLoader
from tests.support.torch_runs import loader, net, sgd

LOSS = torch.nn.CrossEntropyLoss()
MASS = {"left_out": 0.3, "min_subset_size": 4, "seed": 3}


@pytest.fixture(autouse=True)
def _fresh():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)  # which is the process's


def train(passes=5, *, prepare=True, accumulated=1, precision="no", schedule=False, rate=0.05, edba=MASS, config=None):
    torch.manual_seed(4)
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=accumulated, mixed_precision=precision, dataloader_config=config
    )
    model, data = net(dropout=0.0, batch_norm=False), loader(256, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    per_pass = -(-8 // accumulated)
    planned = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=passes * per_pass)
    model, optimizer, planned = accelerator.prepare(model, optimizer, planned)
    data = accelerator.prepare(data) if prepare else data
    subsets = AcceleratedSubsetLoader(
        accelerator, data, model, LOSS, optimizer=optimizer, scheduler=planned if schedule else None, **edba
    )
    batches, updates = [], []
    for _ in range(passes):
        for inputs, target in subsets:
            with accelerator.accumulate(model):
                accelerator.backward(LOSS(model(inputs), target))
                optimizer.step()
                if schedule:
                    planned.step()
                optimizer.zero_grad()
            batches.append(inputs[:, 0].long().tolist())
            updates.append(accelerator.sync_gradients)
    return subsets, batches, updates, planned, model


@pytest.mark.parametrize("prepare", [True, False])
def test_a_prepared_loader_is_as_good_as_its_own(prepare):
    subsets, batches, updates, *_ = train(prepare=prepare)
    engine = subsets._loop.engine
    assert engine.samples_drawn == 5 * 256
    assert engine.samples_trained == sum(map(len, batches)) < 0.95 * 5 * 256
    assert all(updates)
    assert batches == train(prepare=True)[1]


def test_a_plain_subset_loader_of_a_prepared_one_says_what_to_do():
    accelerator = Accelerator(cpu=True)
    model = net()
    with pytest.warns(UserWarning, match=r"prepared by Accelerate, .* composer_edba\.accelerate"):
        subsets = SubsetLoader(accelerator.prepare(loader(256, 32)), model, LOSS)
    assert subsets.batch_size is None
    assert sum(len(inputs) for inputs, _ in subsets) == 256


def test_updates_come_with_the_end_of_a_pass():
    _, batches, updates, *_ = train(accumulated=3)
    passes, end = [], 0
    for number in range(1, len(batches)):
        if set(batches[number]) & {index for batch in batches[end:number] for index in batch}:
            passes.append(number)
            end = number
    assert len(passes) == 4
    assert all(updates[number - 1] for number in (*passes, len(batches)))
    assert not all(updates)


@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_schedule_ends_where_it_was_planned_to(accumulated):
    *_, updates, planned, _ = train(8, schedule=True, accumulated=accumulated)
    assert sum(updates) < 8 * -(-8 // accumulated)
    # What is missing is made when the loop asks for the next batch, which it does after the last one too.
    assert planned.scheduler.last_epoch == 8 * -(-8 // accumulated)
    assert planned.scheduler.get_last_lr() == [0.0]


@pytest.mark.parametrize(("given", "tolerance"), [({"accumulated": 4}, 1e-4), ({"precision": "bf16"}, 0.1)])
def test_norms_are_those_of_each_samples_own_loss(given, tolerance):
    subsets, *_, model = train(1, rate=0.0, edba={}, **given)
    network = getattr(model, "module", model)  # where another test has begun a process group
    inputs, target = subsets.dataset[:]
    hidden = network.body(inputs[:, 1:])
    slope = torch.softmax(network.fc(hidden), 1) - torch.nn.functional.one_hot(target, 4)
    expected = slope.norm(dim=1) * (hidden.norm(dim=1) ** 2 + 1).sqrt()
    norms = subsets._loop.engine.remembered.cache.norms
    np.testing.assert_allclose(norms, expected.detach().numpy(), rtol=tolerance, atol=tolerance)


def test_a_seedable_sampler_shuffles_every_pass_anew():
    config = DataLoaderConfiguration(use_seedable_sampler=True)
    _, batches, *_ = train(3, edba={"left_out": 0.0}, config=config)
    passes = [[*itertools.chain(*batches[first : first + 8])] for first in (0, 8, 16)]
    assert all(sorted(each) == list(range(256)) for each in passes)
    assert passes[0] != passes[1] != passes[2]


def test_what_dispatches_batches_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from loader().dataset

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=True))
    data = accelerator.prepare(DataLoader(Stream(), batch_size=32))
    with pytest.raises(ValueError, match="dispatches batches from the main process"):
        AcceleratedSubsetLoader(accelerator, data, net(), LOSS)


def test_a_broken_off_pass_is_over():
    accelerator = Accelerator(cpu=True)
    model = net()
    subsets = AcceleratedSubsetLoader(accelerator, loader(256, 32), model, LOSS, **MASS)
    for _ in subsets:
        assert accelerator.gradient_state.in_dataloader
        break
    assert not accelerator.gradient_state.in_dataloader
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sum(len(inputs) for inputs, _ in subsets) == 256


def test_a_rank_share_is_a_whole_order_on_one_rank():
    share = RankShare([3, 1, 2], torch.device("cpu"))
    assert list(share) == [3, 1, 2]
    assert len(share) == 3


def test_a_plain_loop_has_its_schedule_kept_up_too():
    model, data = net(dropout=0.0), loader(256, 32)
    optimizer = sgd(model)
    planned = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=6 * len(data))
    subsets = SubsetLoader(data, model, LOSS, scheduler=planned, **MASS)
    updates = 0
    for _ in range(6):
        for inputs, target in subsets:
            optimizer.zero_grad()
            LOSS(model(inputs), target).backward()
            optimizer.step()
            planned.step()
            updates += 1
    assert updates < 48
    assert planned.last_epoch == 48
