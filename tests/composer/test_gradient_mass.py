"""criterion="gradient_mass" in a Trainer: its step is the pool's, a run of ten passes makes ten, or all is whole."""

import copy
import itertools
import warnings

import pytest
import torch
from composer import Callback
from composer.algorithms import CutMix, MixUp
from composer.optim import LinearScheduler
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, default_collate

from composer_edba import EDBA
from composer_edba.composer.refusals import why_mixed
from tests.support.small_runs import CLASSES, FEATURES, Points, Watch, classifier, logged, points_loader, trainer

MASS = {"criterion": "gradient_mass", "interval": 1, "left_out": 0.3, "min_subset_size": 4}


class Steps(Callback):
    """Weights before each step, the subset and the size of the pool behind it, and the gradients of the step."""

    def __init__(self, edba):
        self.edba, self.steps = edba, []

    def batch_start(self, state, logger):
        self.before = copy.deepcopy(state.model.state_dict())
        self.chosen, self.pool = self.edba.last_selection, self.edba._engine.figures["batch_size"]
        self.batch = [part.clone() for part in state.batch]

    def after_train_batch(self, state, logger):
        gradients = [parameter.grad.clone() for parameter in state.model.parameters()]
        self.steps.append((self.before, self.batch, self.pool, self.chosen is not None, gradients))


@pytest.mark.parametrize("scoring", ["forward", "cached"])
@pytest.mark.parametrize("microbatch", [None, 5, 8])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_on_a_part_of_a_pool_has_the_size_of_the_pools(scoring, microbatch, optimizer):
    """Against a step written by hand: the sum of the subset's losses over the size of the pool."""
    model = classifier(dropout=0.0, batch_norm=False)
    edba = EDBA(**MASS, scoring=scoring, refill=False)
    steps = Steps(edba)
    run = trainer(
        [edba],
        loader=points_loader(256, 64),
        model=model,
        optimizers=optimizer(model.parameters(), lr=0.01),
        callbacks=[steps],
        max_duration="4ep",
        device_train_microbatch_size=microbatch,
    )
    run.fit()
    by_hand = copy.deepcopy(model)
    assert sum(chosen and len(batch[0]) < pool for _, batch, pool, chosen, _ in steps.steps) > 6
    for before, batch, pool, _, gradients in steps.steps:
        by_hand.load_state_dict(before)
        by_hand.zero_grad()
        (F.cross_entropy(by_hand(batch), batch[1], reduction="sum") / pool).backward()
        for parameter, gradient in zip(by_hand.parameters(), gradients, strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_norms_are_those_of_the_samples_own_gradients():
    """Nothing moves, so what was remembered is what the samples' gradients are; against torch.func."""
    model = classifier(dropout=0.0, batch_norm=False)
    edba = EDBA(**MASS, scoring="cached", refill=False, recheck=1)
    run = trainer(
        [edba],
        loader=points_loader(100, 20),
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.0),
        max_duration="3ep",
        device_train_microbatch_size=7,
    )
    run.fit()
    body, head = model.module[:-1], model.module[-1]
    data = Points(100)
    h = body(data.x).detach()

    def loss(weights, h, y):
        return F.cross_entropy(torch.func.functional_call(head, weights, (h.unsqueeze(0),)), y.unsqueeze(0))

    weights = {name: parameter.detach() for name, parameter in head.named_parameters()}
    grads = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, h, data.y)
    norms = torch.cat([grad.flatten(1) for grad in grads.values()], 1).norm(dim=1)
    torch.testing.assert_close(torch.from_numpy(edba.score_cache.norms), norms, rtol=1e-4, atol=1e-6)


class Tokens(nn.Module):
    """A head at several positions of a sample, called once or once a position."""

    def __init__(self, calls):
        super().__init__()
        self.body, self.fc, self.calls = nn.Linear(3, 8), nn.Linear(8, CLASSES), calls

    def forward(self, x):
        h = torch.tanh(self.body(x.unflatten(1, (4, 3))))
        if self.calls == 1:
            return self.fc(h).movedim(-1, 1)
        return torch.stack([self.fc(h[:, position]) for position in range(4)], dim=2)


@pytest.mark.parametrize("calls", [1, 4])
def test_a_head_at_several_positions_has_the_sum_of_their_norms(calls):
    assert FEATURES == 12
    model = classifier()
    model.module = net = Tokens(calls)
    model._loss_fn = lambda outputs, y: F.cross_entropy(outputs, y.unsqueeze(1).expand(-1, 4))
    model.train_metrics = None
    model.get_metrics = lambda is_train=False: {}
    edba = EDBA(**MASS, scoring="cached", last_layer="module.fc")
    run = trainer(
        [edba],
        loader=points_loader(100, 20),
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.0),
        max_duration="3ep",
    )
    run.fit()
    data = Points(100)
    h = torch.tanh(net.body(data.x.unflatten(1, (4, 3)))).detach()
    d = net.fc(h).softmax(-1).detach() - F.one_hot(data.y, CLASSES).unsqueeze(1)
    norms = (d.norm(dim=-1) / 4 * (h.square().sum(-1) + 1).sqrt()).sum(1)
    torch.testing.assert_close(torch.from_numpy(edba.score_cache.norms), norms, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loop", ["cached", "forward", "auto"])
def test_without_anything_left_out_it_is_plain_training_bit_for_bit(loop):
    def weights(algorithms):
        model = classifier()
        run = trainer(algorithms, loader=points_loader(256, 32), model=model, max_duration="3ep")
        run.fit()
        return nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(weights([EDBA(**{**MASS, "left_out": 0.0}, scoring=loop)]), weights([]))


class Rates(Callback):
    """The learning rate of every step."""

    def __init__(self):
        self.rates = []

    def batch_start(self, state, logger):
        self.rates.append(state.schedulers[0].get_last_lr()[0])


@pytest.mark.parametrize("duration", ["6ep", "1536sp"])
@pytest.mark.parametrize(
    "settings", [{"scoring": "cached"}, {"scoring": "cached", "refill": False}, {"scoring": "forward"}]
)
def test_a_run_planned_as_six_passes_makes_six_passes(duration, settings):
    """Samples that were drawn count, left out or not, for the run's end, its schedule and its evaluations."""
    watch, rates = Watch(), Rates()
    edba = EDBA(**MASS, **settings)
    run = trainer(
        [edba],
        loader=points_loader(256, 32),
        callbacks=[watch, rates],
        max_duration=duration,
        schedulers=LinearScheduler(),
    )
    run.fit()
    assert edba._engine.samples_drawn == int(run.state.timestamp.sample) == 6 * 256
    assert int(run.state.timestamp.epoch) == 6
    trained = edba._engine.samples_trained
    assert trained < 0.9 * 6 * 256
    if settings == {"scoring": "cached"}:
        assert len(rates.rates) < 0.9 * 6 * 8
        drawn = logged(run, "edba/samples_drawn")
        # LinearScheduler's line over the samples drawn, however few steps there are; Composer is a batch behind.
        wanted = [1 - done / (6 * 256) for done in [0, 0, *drawn[:-2]]]
        base = rates.rates[0]
        assert rates.rates == pytest.approx([base * part for part in wanted], abs=base * 1e-3)
    assert rates.rates[-1] < 0.2 * rates.rates[0]


def test_batches_keep_the_loaders_size_and_updates_are_fewer():
    watch = Watch()
    run = trainer([EDBA(**MASS)], loader=points_loader(512, 32), callbacks=[watch], max_duration="5ep")
    run.fit()
    ends = [0, *(batch for _, batch, _ in watch.epoch_ends)]
    passes = [watch.subsets[begin:end] for begin, end in itertools.pairwise(ends)]
    assert passes[0] == [32] * 16
    for subsets in passes[2:]:
        assert set(subsets[:-3]) == {32}
        assert len(subsets) < 15


class Stream(IterableDataset):
    def __iter__(self):
        data = Points(128)
        return ((data.x[i], data.y[i]) for i in range(128))


@pytest.mark.parametrize(
    ("others", "loader", "why"),
    [
        ([MixUp()], points_loader(128, 32), "MixUp mixes samples"),
        ([], DataLoader(Stream(), batch_size=32), "is an IterableDataset"),
        ([], DataLoader(Points(128), batch_sampler=[[*range(32)]] * 4), "has a batch sampler of its own"),
    ],
)
def test_where_nothing_can_be_remembered_batches_stay_whole_and_it_says_so_once(others, loader, why):
    watch, edba = Watch(), EDBA(**MASS)
    run = trainer([edba, *others], loader=loader, callbacks=[watch], max_duration="8ba")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit()
        run.fit(duration="4ba")
    told = [str(warning.message) for warning in caught if "leaves all batches whole" in str(warning.message)]
    assert len(told) == 1
    assert why in told[0]
    assert set(watch.subsets) == {32}
    assert edba.score_cache is None


def test_cutmix_mixes_too_and_to_ask_for_remembered_norms_beside_it_is_refused():
    assert "CutMix mixes samples" in why_mixed([CutMix()])
    with pytest.raises(ValueError, match="belong to no sample"):
        trainer([EDBA(**MASS, scoring="cached"), CutMix()])


def test_a_collate_fn_that_leaves_samples_out_has_batches_stay_whole():
    def without_broken(samples):
        return default_collate([sample for sample in samples if sample[0][0] != 17])

    loader = points_loader(128, 32, with_index=True, collate_fn=without_broken)
    watch, edba = Watch(), EDBA(left_out=0.3)
    run = trainer([edba], loader=loader, callbacks=[watch], max_duration="3ep")
    with pytest.warns(UserWarning, match="leaves all batches whole.*collate_fn"):
        run.fit()
    assert sorted(n for subset in watch.indices[:4] for n in subset) == sorted({*range(128)} - {17})
    assert sum(watch.subsets) == 3 * 127
    with pytest.raises(ValueError, match="31 samples, and 32 were drawn for it: scoring='cached'"):
        trainer([EDBA(left_out=0.3, scoring="cached")], loader=loader, max_duration="1ep").fit()


def test_where_the_last_layer_is_not_to_be_had_batches_stay_whole():
    watch, edba, model = Watch(), EDBA(left_out=0.3), classifier()
    model._loss_fn = nn.CrossEntropyLoss(reduction="sum")
    run = trainer([edba], loader=points_loader(128, 32), model=model, callbacks=[watch], max_duration="2ep")
    with pytest.warns(UserWarning, match="leaves all batches whole.*the loss is not a mean over the samples"):
        run.fit()
    assert watch.subsets == [32] * 8
    with pytest.raises(ValueError, match="the loss is not a mean over the samples"):
        trainer([EDBA(scoring="cached")], loader=points_loader(128, 32), model=model, max_duration="1ep").fit()
