"""scoring="cached" in real Trainers: what is recorded, what is chosen and loaded, what is refused."""

from types import SimpleNamespace

import pytest
import torch
from composer import Algorithm, Event
from composer.algorithms import SAM, CutMix, LabelSmoothing, MixUp
from composer.core import Precision
from composer.devices import DeviceCPU
from composer.models import ComposerModel
from composer.optim import MultiStepScheduler
from ignite.engine import Engine
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler

from composer_edba import EDBA
from composer_edba.ignite import EDBAHandler
from composer_edba.plain import SubsetLoader
from composer_edba.scoring.forward import Scorer
from composer_edba.train.summary import summarize
from tests.support.small_runs import (
    CLASSES,
    FEATURES,
    Points,
    PointsClassifier,
    Watch,
    classifier,
    logged,
    points_loader,
    trainer,
)
from tests.support.torch_runs import following

SIZE = 256
WILD = [64, 100, 30, 17, 128, 10, 55, 90, 23, 41, 12]


def cached(**kwargs):
    return EDBA.paper(scoring="cached", **kwargs)


def still(model):
    """An optimizer that moves nothing, so that scores never age."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def last_layer(model):
    return model.module[-1]


def scored(model, points=None):
    """What the Scorer says of all points."""
    points = points or Points(SIZE)
    return Scorer(last_layer(model))(model, [points.x, points.y], lambda outputs, batch: model.loss(outputs, batch))


def norms(scores, indices):
    return float(scores.inner_products()[indices][:, indices].mean().clamp_min(0).sqrt())


# ---- what is recorded


@pytest.mark.parametrize("limit", [None, 7, 1])
def test_every_sample_is_recorded_as_a_scoring_forward_would_score_it(limit):
    model = classifier(dropout=0.0, batch_norm=False)
    edba = cached()
    run = trainer([edba], model=model, optimizers=still(model), max_duration="2ep", device_train_microbatch_size=limit)
    run.fit()
    got = edba.score_cache.scores(torch.arange(SIZE).numpy(), torch.device("cpu"))
    wanted = scored(model)
    torch.testing.assert_close(got.inputs, wanted.inputs)
    torch.testing.assert_close(got.output_grads, wanted.output_grads, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.model_metric, wanted.model_metric)
    assert logged(run, "edba/cache_bytes") == [SIZE * 4 * (32 + CLASSES + 1)]
    assert set(logged(run, "edba/samples_scored")) == {0}


class Choices(Algorithm):
    """Writes down what was chosen from what."""

    def __init__(self, edba):
        self.edba, self.pools, self.subsets = edba, [], []

    def match(self, event, state):
        return event == Event.BATCH_START

    def apply(self, event, state, logger):
        if self.edba.last_selection is not None:
            self.pools.append(self.edba.last_selection.pool)
            self.subsets.append(self.edba.last_selection.subset)


def test_the_logged_figures_are_those_of_the_pool_and_the_subset():
    model = classifier(dropout=0.0, batch_norm=False)
    edba, watch = cached(), Watch()
    choices = Choices(edba)
    run = trainer(
        [edba, choices],
        model=model,
        optimizers=still(model),
        loader=points_loader(with_index=True),
        callbacks=[watch],
        max_duration="6ep",
    )
    run.fit()
    scores = scored(model)
    assert watch.indices[-len(choices.subsets) :] == [subset.tolist() for subset in choices.subsets]
    assert min(watch.subsets) < 64
    assert len(choices.pools) == 5 * 4  # all but the first pass
    for number, (pool, subset) in enumerate(zip(choices.pools, choices.subsets, strict=True)):
        assert logged(run, "edba/gradient_metric")[number] == pytest.approx(norms(scores, subset), rel=1e-3)
        model.eval()
        points = Points(SIZE)
        with torch.no_grad():
            pool_loss = F.cross_entropy(model([points.x[pool], points.y[pool]]), points.y[pool])
        assert logged(run, "edba/model_metric")[number] == pytest.approx(float(pool_loss), rel=1e-4)


def test_recording_changes_nothing_about_the_training():
    def final(algorithms):
        run = trainer(algorithms, loader=points_loader(batch_size=64))
        run.fit()
        return run.state.model.state_dict()

    plain, recorded = final([]), final([cached(subset_size_law=1.0, batch_size_policy="fixed")])
    assert all(torch.equal(plain[name], recorded[name]) for name in plain)


def test_of_sams_two_forwards_the_one_at_the_steps_own_weights_counts():
    model = classifier(dropout=0.0, batch_norm=False)
    edba = cached()
    with pytest.warns(UserWarning, match="SAM has known issues"):
        algorithms = [SAM(rho=2.0), edba]
    trainer(algorithms, model=model, optimizers=still(model), max_duration="1ep").fit()
    got = edba.score_cache.scores(torch.arange(SIZE).numpy(), torch.device("cpu"))
    wanted = scored(model)
    torch.testing.assert_close(got.output_grads, wanted.output_grads, rtol=1e-3, atol=1e-5)


def test_what_the_training_loss_was_made_by_another_algorithm_counts():
    model = classifier(dropout=0.0, batch_norm=False)
    edba = cached()
    trainer([LabelSmoothing(0.4), edba], model=model, optimizers=still(model), max_duration="1ep").fit()
    points = Points(SIZE)
    model.eval()
    with torch.no_grad():
        probabilities = model([points.x, points.y]).softmax(1)
    smooth = F.one_hot(points.y, CLASSES) * 0.6 + 0.4 / CLASSES
    got = edba.score_cache.scores(torch.arange(SIZE).numpy(), torch.device("cpu"))
    torch.testing.assert_close(got.output_grads, probabilities - smooth, rtol=1e-4, atol=1e-5)


class Peculiar(PointsClassifier):
    """A loss that looks at values, so that it cannot be mapped over samples."""

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, batch[1]) * (1.0 if outputs.max().item() < 1e9 else 2.0)


def test_a_loss_that_cannot_be_mapped_gives_each_sample_its_microbatchs_mean():
    model = Peculiar(classifier(dropout=0.0, batch_norm=False).module, num_classes=CLASSES)
    edba = cached()
    run = trainer(
        [edba],
        model=model,
        optimizers=still(model),
        loader=points_loader(shuffle=False),
        max_duration="1ep",
        device_train_microbatch_size=32,
    )
    run.fit()
    points, cache = Points(SIZE), edba.score_cache
    model.eval()
    for start in range(0, SIZE, 32):
        part = slice(start, start + 32)
        with torch.no_grad():
            mean = F.cross_entropy(model([points.x[part], points.y[part]]), points.y[part])
        rows = cache.scores(torch.arange(start, start + 32).numpy(), torch.device("cpu"))
        assert float(rows.model_metric) == pytest.approx(float(mean), rel=1e-5)
        assert float(cache.scores(torch.tensor([start]).numpy(), torch.device("cpu")).model_metric) == pytest.approx(
            float(mean), rel=1e-5
        )


def test_evaluations_are_not_recorded():
    def final(**kwargs):
        watch, edba = Watch(), cached()
        # Evaluation draws a number from the global stream.
        loader = points_loader(with_index=True, generator=torch.Generator().manual_seed(3))
        trainer([edba], callbacks=[watch], loader=loader, model=classifier(dropout=0.0), **kwargs).fit()
        return watch.indices, edba.state_dict()

    evaluated = {"eval_dataloader": points_loader(shuffle=False), "eval_interval": "1ba"}
    assert final() == final(**evaluated)


class LimitedMemory(PointsClassifier):
    """Training forwards run out of memory above 20 samples, after the last layer was called."""

    def forward(self, batch):
        outputs = super().forward(batch)
        if torch.is_grad_enabled() and len(batch[0]) > 20:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return outputs


@pytest.mark.filterwarnings("ignore:CUDA out of memory or excessive:RuntimeWarning")
def test_a_step_that_ran_out_of_memory_is_recorded_once_it_went_through():
    model = LimitedMemory(classifier(dropout=0.0, batch_norm=False).module, num_classes=CLASSES)
    edba = cached()
    run = trainer([edba], model=model, optimizers=still(model), max_duration="3ep")
    run.state.auto_microbatching = True  # the argument 'auto' is refused on a CPU
    run.fit()
    got = edba.score_cache.scores(torch.arange(SIZE).numpy(), torch.device("cpu"))
    plain = PointsClassifier(model.module, num_classes=CLASSES)
    torch.testing.assert_close(got.output_grads, scored(plain).output_grads, rtol=1e-4, atol=1e-6)


def test_the_gradient_scalers_factor_is_taken_out():
    """Composer takes amp_fp16 on a GPU only, so the event gets a state with nothing but what it reads."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    state = SimpleNamespace(precision=Precision.AMP_FP16, scaler=scaler, device=DeviceCPU())
    edba = cached()
    edba._loop.state = state
    edba._engine.remembered.record(torch.arange(12).reshape(1, 12).numpy(), nn.Linear(2, 2))
    edba._after_train_batch(state, None)
    assert float(edba._gradient_factor()) == 12 / 2**10


class ScalarReads(TorchDispatchMode):
    """Counts the values of tensors that the host reads, for which it waits on a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_recording_reads_no_value_back_after_the_first_step():
    edba, reads = cached(), []

    def counted(handler):
        def run(state, logger):
            with ScalarReads() as mode:
                handler(state, logger)
            reads.append((int(state.timestamp.batch), mode.count))

        return run

    handlers = edba._handlers
    handlers.update({event: counted(handler) for event, handler in handlers.items()})
    trainer([edba], max_duration="3ep").fit()
    assert sum(count for step, count in reads if step == 0) == 2  # whether the samples' losses have the loss as mean
    assert {count for step, count in reads if step > 0} == {0}


# ---- what is chosen and loaded


class Counting(Points):
    """Counts how often each sample is loaded, in all processes."""

    def __init__(self):
        super().__init__(SIZE, with_index=True)
        self.loads = torch.zeros(SIZE, dtype=torch.int64).share_memory_()

    def __getitem__(self, index):
        self.loads[index] += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_only_what_is_chosen_is_loaded(workers):
    data, watch = Counting(), Watch()
    run = trainer(
        [cached()],
        loader=DataLoader(data, batch_size=32, shuffle=True, num_workers=workers),
        callbacks=[watch],
        max_duration="6ep",
    )
    run.fit()
    trained = torch.bincount(torch.tensor([i for batch in watch.indices for i in batch]), minlength=SIZE)
    assert torch.equal(data.loads, trained)
    assert int(trained.sum()) < 6 * SIZE
    assert int(trained.sum()) == logged(run, "edba/samples_trained")[-1]
    assert logged(run, "edba/samples_drawn")[-1] == 6 * SIZE


def test_the_first_visit_trains_on_everything_and_logs_no_margin():
    watch = Watch()
    run = trainer([cached()], callbacks=[watch], max_duration="5ep")
    run.fit()
    # Every sample is new in the first pass, and the first pool of the second starts the averages.
    assert watch.subsets[:5] == [64] * 5
    assert min(watch.subsets[5:]) < 64
    assert logged(run, "edba/batch_size") == [64] * 20
    assert logged(run, "edba/subset_size") == watch.subsets
    assert len(logged(run, "edba/margin")) == 16
    assert logged(run, "edba/margin")[0] == 0


def test_the_number_of_workers_does_not_change_the_choice():
    """A pass draws each sample once, so what the queue has not trained on yet is not what is chosen from."""

    def indices(workers):
        watch = Watch()
        loader = points_loader(with_index=True, num_workers=workers)
        run = trainer([cached()], loader=loader, callbacks=[watch], max_duration="4ep")
        run.fit()
        return watch.indices, logged(run, "edba/score_age")

    assert indices(0) == indices(2)


def test_ages_are_steps_between_recording_and_training():
    run = trainer([cached(subset_size_law=1.0, batch_size_policy="fixed")], loader=points_loader(shuffle=False))
    run.fit()
    # Everything is trained on once a pass of 4 steps, always in the same batch.
    assert logged(run, "edba/score_age") == [4.0] * 12


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_is_one_pass_over_the_data_whatever_the_sizes(workers):
    watch = Watch()
    model = classifier()
    run = trainer(
        [cached(min_subset_size=5, batch_size_policy=following(WILD))],
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.05),
        loader=points_loader(with_index=True, num_workers=workers),
        callbacks=[watch],
        max_duration="8ep",
        schedulers=MultiStepScheduler(["3ep", "6ep"], gamma=0.1),
        eval_dataloader=points_loader(shuffle=False),
        eval_interval="1ep",
    )
    run.fit()
    drawn, sizes = logged(run, "edba/samples_drawn"), logged(run, "edba/batch_size")
    ends = [batch for _, batch, _ in watch.epoch_ends]
    assert [drawn[batch - 1] for batch in ends] == [SIZE * (n + 1) for n in range(8)]
    assert sum(sizes) == 8 * SIZE
    assert len(set(sizes)) > 4
    assert sum(watch.subsets) < 8 * SIZE
    assert [batch for _, batch in watch.evaluations] == ends
    # Milestones fall where as many passes are over, to a step or so of rounding.
    for milestone, rate in ((3, 0.005), (6, 0.0005)):
        first = next(step for step, lr in enumerate(watch.learning_rates) if lr < rate * 1.5)
        assert drawn[first] / SIZE == pytest.approx(milestone, abs=0.5)
    assert int(run.state.timestamp.sample) == 8 * SIZE
    summary = summarize(run, SIZE)
    assert (summary.samples_drawn, summary.samples_trained, summary.samples_scored) == (8 * SIZE, sum(watch.subsets), 0)


def test_the_random_control_trains_on_subsets_of_edbas_sizes():
    watch = Watch()
    run = trainer([cached(criterion="random")], callbacks=[watch], max_duration="10ep")
    run.fit()
    assert 10 <= min(watch.subsets) < 64
    margins = logged(run, "edba/margin")
    assert sorted(margins)[len(margins) // 2] > 0.01


class Hooks(Algorithm):
    """Counts the hooks on the last layer in each step's forward."""

    def __init__(self):
        self.counts = []

    def match(self, event, state):
        return event == Event.BEFORE_FORWARD

    def apply(self, event, state, logger):
        self.counts.append(len(last_layer(state.model)._forward_hooks))


def test_outside_of_start_and_end_nothing_is_hooked_recorded_or_chosen():
    watch, hooks, edba = Watch(), Hooks(), cached(start=0.25, end=0.75)
    run = trainer([edba, hooks], callbacks=[watch], max_duration="24ba", model=classifier(0.0, False))
    run.fit()
    assert hooks.counts == [0] * 6 + [1] * 12 + [0] * 6
    assert watch.subsets[:6] == [64] * 6
    assert watch.subsets[18:] == [64] * 6
    assert min(watch.subsets[6:18]) < 64
    assert edba.score_cache.steps.min() >= 6
    assert edba.score_cache.steps.max() < 18


def test_every_interrupted_batch_is_trained_on_whole_and_recorded():
    watch, edba = Watch(), cached(interrupt=2)
    run = trainer([edba], callbacks=[watch], loader=points_loader(with_index=True), max_duration="5ep")
    run.fit()
    assert watch.subsets[1::2] == [64] * 10
    assert min(watch.subsets[::2]) < 64
    assert set(edba.score_cache.steps[watch.indices[-1]]) == {19}


def test_forward_scoring_hooks_nothing_into_the_training_forward():
    hooks = Hooks()
    trainer([EDBA.paper(interrupt=2), hooks], max_duration="2ep").fit()
    assert set(hooks.counts) == {0}


def test_a_broken_sample_is_counted_and_its_pool_trained_on_whole():
    loader = points_loader(shuffle=False)
    loader.dataset.x[70] = float("nan")

    class Forgiving(PointsClassifier):
        """An infinite loss for a broken sample, with gradients like those of others."""

        def forward(self, batch):
            return super().forward([batch[0].nan_to_num(0)])

        def loss(self, outputs, batch):
            return F.cross_entropy(outputs, batch[1]) + torch.where(batch[0].isnan().any(), float("inf"), 0.0)

    model = Forgiving(classifier(dropout=0.0, batch_norm=False).module, num_classes=CLASSES)
    watch = Watch()
    edba = cached(batch_size_policy="fixed")
    run = trainer([edba], model=model, loader=loader, callbacks=[watch], max_duration="4ep")
    with pytest.warns(UserWarning, match="is NaN or infinite at pool") as caught:
        run.fit()
    assert sum("NaN or infinite" in str(w.message) for w in caught) == 1
    assert logged(run, "edba/nonfinite_steps")[-1] == 3
    assert watch.subsets[1::4] == [64] * 4
    assert all(abs(value) < 100 for value in logged(run, "edba/model_average"))


# ---- fits


def test_repeated_fits_go_on_with_what_is_known_and_another_data_set_begins_anew():
    watch, edba = Watch(), cached()
    loader = points_loader()
    run = trainer([edba], loader=loader, callbacks=[watch], max_duration="2ep")
    run.fit()
    assert not last_layer(run.state.model)._forward_hooks
    # Outside of a fit the loader gives whole batches.
    assert [len(batch[0]) for batch in run.state.train_dataloader] == [64] * 4
    first = len(watch.subsets)
    run.fit(duration="1ep")
    assert min(watch.subsets[first:]) < 64
    second = len(watch.subsets)
    run.fit(train_dataloader=points_loader(), duration="2ep")
    assert watch.subsets[second : second + 4] == [64] * 4
    assert len(watch.epoch_ends) == 5
    assert not last_layer(run.state.model)._forward_hooks


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fit_that_goes_on_inside_of_an_epoch(workers):
    data, watch = Counting(), Watch()
    loader = DataLoader(data, batch_size=32, num_workers=workers)
    run = trainer([cached()], loader=loader, callbacks=[watch], max_duration="19ba")
    run.fit()
    run.fit(duration="13ba")
    assert len(watch.subsets) == 32
    drawn = logged(run, "edba/samples_drawn")
    assert [drawn[batch - 1] for _, batch, _ in watch.epoch_ends] == [SIZE, 2 * SIZE, 3 * SIZE, 4 * SIZE]


class Failing(PointsClassifier):
    """Fails in the forward of one step."""

    fails = False

    def forward(self, batch):
        outputs = super().forward(batch)
        if self.fails and torch.is_grad_enabled():
            raise OSError("no more")
        return outputs


def test_a_fit_that_fails_leaves_nothing_that_the_next_one_does_not_clear_away():
    model = Failing(classifier().module, num_classes=CLASSES)
    watch, hooks, edba = Watch(), Hooks(), cached()
    run = trainer([edba, hooks], model=model, callbacks=[watch], max_duration="8ep")
    model.fails = True
    with pytest.raises(OSError, match="no more"):
        run.fit()
    model.fails = False
    for _ in range(3):
        model([torch.zeros(4, FEATURES)])
    assert len(edba._engine.remembered._training._parts) <= 1
    run.fit()
    assert set(hooks.counts) == {1}
    assert not last_layer(model)._forward_hooks
    assert min(watch.subsets) < 64


@pytest.mark.parametrize("fits", [1, 2])
def test_compiled_networks_are_recorded_too(fits):
    torch._dynamo.reset()

    def final(**kwargs):
        watch, edba = Watch(), cached()
        run = trainer([edba], loader=points_loader(with_index=True), callbacks=[watch], max_duration="3ep", **kwargs)
        for fit in range(fits):
            run.fit(duration="3ep" if fit else None)
        return watch.indices, run.state.model.state_dict(), edba.score_cache.steps

    plain_indices, plain, steps = final()
    indices, weights, compiled_steps = final(compile_config={"backend": "eager"})
    torch._dynamo.reset()
    if fits == 1:
        assert indices == plain_indices
        assert all(torch.equal(plain[name], weights[name]) for name in plain)
        assert (steps == compiled_steps).all()
    assert compiled_steps.min() >= 12 * fits - 20
    assert min(map(len, indices[12 * (fits - 1) :])) < 64


# ---- what is refused


class Own(BatchSampler):
    pass


class Stream(IterableDataset):
    def __iter__(self):
        points = Points(SIZE)
        return iter(points[i] for i in range(SIZE))

    def __len__(self):
        return SIZE


class Endless(Sampler):
    def __iter__(self):
        return iter(range(SIZE))


class Words(Sampler):
    def __iter__(self):
        return iter(str(i) for i in range(SIZE))

    def __len__(self):
        return SIZE


class Spelled(Points):
    def __getitem__(self, index):
        return super().__getitem__(int(index))


def batches():
    points = Points()
    return [[points.x[i : i + 64], points.y[i : i + 64]] for i in range(0, SIZE, 64)]


LOADERS = {
    r"a list is no torch DataLoader": batches,
    r"it has batch_size=None": lambda: DataLoader(batches(), batch_size=None),
    r"batch sampler of its own, Own": lambda: DataLoader(
        Points(), batch_sampler=Own(RandomSampler(Points()), 64, False)
    ),
    r"a Stream, is an IterableDataset": lambda: DataLoader(Stream(), batch_size=64),
    r"sampler, a Endless, has no length": lambda: DataLoader(Points(), batch_size=64, sampler=Endless()),
    r"it has in_order=False": lambda: DataLoader(Points(), batch_size=64, num_workers=1, in_order=False),
    r"sampler gives '0' and the like": lambda: DataLoader(Spelled(), batch_size=64, sampler=Words()),
}


@pytest.mark.parametrize("message", LOADERS)
def test_loaders_without_indices_are_refused(message):
    run = trainer([cached()], loader=LOADERS[message](), max_duration="8ba", device_train_microbatch_size=64)
    with pytest.raises(ValueError, match=message + r".*[Uu]se scoring='forward'"):
        run.fit()
    assert int(run.state.timestamp.batch) == 0


@pytest.mark.parametrize("mixing", [MixUp, CutMix])
@pytest.mark.parametrize("order", [1, -1])
def test_mixed_samples_are_refused(mixing, order):
    with pytest.raises(ValueError, match=rf"{mixing.__name__} beside EDBA\(scoring='cached'\).*belong to no sample"):
        trainer([cached(), mixing()][::order])


def test_a_smaller_scoring_forward_is_refused():
    with pytest.raises(ValueError, match=r"scale_factor is 0.5 and scoring is 'cached'"):
        cached(scale_factor=0.5)


def test_a_batch_that_does_not_hold_what_was_drawn_is_refused():
    loader = points_loader(collate_fn=lambda samples: torch.utils.data.default_collate(samples[:-1]))
    with pytest.raises(ValueError, match=r"the batch holds 63 samples, and 64 were drawn.*collate_fn"):
        trainer([cached()], loader=loader).fit()


class Pixels(ComposerModel):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(FEATURES, CLASSES)

    def forward(self, batch):
        return self.net(batch[0].unsqueeze(1).expand(-1, 3, -1)).mean(1)

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, batch[1])


def test_layers_applied_at_several_positions_are_refused_before_anything_is_trained():
    run = trainer([cached()], model=Pixels())
    with pytest.raises(ValueError, match=r"a Linear, is applied at 3 positions of a sample.*scoring='forward'"):
        run.fit()
    assert int(run.state.timestamp.batch) == 0
    assert not run.state.model.net._forward_hooks


def test_samples_drawn_twice_in_a_pool_are_fine():
    sampler = RandomSampler(Points(), replacement=True, num_samples=SIZE)
    watch = Watch()
    loader = DataLoader(Points(with_index=True), batch_size=32, sampler=sampler)
    run = trainer([cached()], loader=loader, callbacks=[watch], max_duration="12ep")
    run.fit()
    assert min(watch.subsets) < 32
    assert any(len(set(batch)) < len(batch) for batch in watch.indices)


def test_other_loops_refuse_loaders_whose_samples_they_cannot_tell_apart():
    net = nn.Linear(FEATURES, CLASSES)
    data = [batch for batch in points_loader()]
    with pytest.raises(ValueError, match=r"scoring='cached' keeps scores by data-set index.* a list is no torch DataL"):
        SubsetLoader(data, net, F.cross_entropy, preset="paper", scoring="cached")
    handler = EDBAHandler(net, F.cross_entropy, preset="paper", scoring="cached")
    trainer = Engine(lambda engine, batch: None)
    handler.attach(trainer, data)
    with pytest.raises(ValueError, match=r"scoring='cached' keeps scores by data-set index.* a list is no torch DataL"):
        trainer.run(data)
