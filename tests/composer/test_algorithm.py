"""EDBA in real Trainers: what it trains on, what it logs, and what it refuses."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from composer import Algorithm, Callback, DataSpec, Event
from composer.algorithms import EMA, CutOut, LabelSmoothing, MixUp
from composer.models import ComposerClassifier, ComposerModel
from composer.optim import LinearScheduler
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from composer_edba import EDBA
from composer_edba.composer.algorithm import EDBA as AlgorithmClass
from composer_edba.scoring.forward import Scorer
from composer_edba.settings import SETTINGS
from tests.support.small_runs import CLASSES, FEATURES, Points, Watch, classifier, logged, points_loader, trainer

NAMES = [
    "batch_size",
    "subset_size",
    "margin",
    "model_metric",
    "gradient_metric",
    "model_average",
    "gradient_average",
    "overhead",
    "distinct_samples",
]


def accuracy(model):
    points = Points()
    model.eval()
    with torch.no_grad():
        return float((model((points.x, points.y)).argmax(1) == points.y).float().mean())


def test_one_line_trains_on_subsets_and_logs_every_step():
    watch = Watch()
    run = trainer([EDBA.paper()], callbacks=[watch], max_duration="15ep")
    run.fit()
    steps = int(run.state.timestamp.batch)
    for name in NAMES:
        assert len(logged(run, f"edba/{name}")) == steps, name
    assert logged(run, "edba/subset_size") == watch.subsets
    assert logged(run, "edba/batch_size") == watch.pools
    assert watch.subsets[0] == 64  # the first pool is taken whole
    assert min(watch.subsets) >= 10
    assert sum(watch.subsets) < 0.9 * sum(watch.pools)
    assert logged(run, "edba/samples_trained")[-1] == sum(watch.subsets)
    assert logged(run, "edba/samples_scored")[-1] == sum(watch.pools)
    assert all(0 < share < 1 for share in logged(run, "edba/overhead"))
    assert accuracy(run.state.model) > 0.75


def test_the_averages_are_those_of_equation_1():
    run = trainer([EDBA.paper(ema_decay=0.75)])
    run.fit()
    model, gradient = logged(run, "edba/model_metric"), logged(run, "edba/gradient_metric")
    m, g = model[0], gradient[0]
    assert logged(run, "edba/margin")[0] == 0
    for step in range(1, len(model)):
        expected = abs((model[step] - m) / (gradient[step] - g) - 1)
        assert logged(run, "edba/margin")[step] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        m, g = 0.75 * m + 0.25 * model[step], 0.75 * g + 0.25 * gradient[step]
        assert logged(run, "edba/model_average")[step] == pytest.approx(m)
        assert logged(run, "edba/gradient_average")[step] == pytest.approx(g)


class SeesFirst(Algorithm):
    """Notes the size of the batch when it runs on AFTER_DATALOADER."""

    def __init__(self):
        self.sizes = []

    def match(self, event, state):
        return event == Event.AFTER_DATALOADER

    def apply(self, event, state, logger):
        self.sizes.append(len(state.batch[0]))


@pytest.mark.parametrize("front", [True, False])
def test_it_runs_before_all_other_algorithms(front):
    other, watch = SeesFirst(), Watch()
    run = trainer([EDBA.paper(), other] if front else [other, EDBA.paper()], callbacks=[watch])
    run.fit()
    assert other.sizes == watch.subsets
    assert min(other.sizes) < 64


def test_the_subset_holds_the_samples_that_the_margin_chose():
    """What is trained on has the gradient metric that is logged."""
    model = classifier(dropout=0.0, batch_norm=False)
    metrics = []

    class Check(Algorithm):
        def match(self, event, state):
            return event == Event.BATCH_START

        def apply(self, event, state, logger):
            layer = state.model.module[-1]
            state.model.zero_grad()
            state.model.loss(state.model(state.batch), state.batch).backward()
            metrics.append(float(torch.cat([layer.weight.grad.flatten(), layer.bias.grad]).norm()))
            state.model.zero_grad()

    run = trainer([EDBA.paper(), Check()], model=model)
    run.fit()
    assert metrics == pytest.approx(logged(run, "edba/gradient_metric"), rel=1e-4)


def test_training_without_selection_is_bitwise_what_it_is_without_edba():
    """No random stream, buffer or weight is touched by a scoring that chooses everything."""

    def final(algorithms):
        run = trainer(algorithms, loader=points_loader(batch_size=64))
        run.fit()
        return run.state.model.state_dict()

    plain = final([])
    scored = final([EDBA.paper(subset_size_law=1.0, batch_size_policy="fixed")])
    assert all(torch.equal(plain[name], scored[name]) for name in plain)


def test_a_run_is_reproducible_and_depends_on_the_seed():
    def subsets(seed):
        watch = Watch()
        trainer([EDBA.paper()], callbacks=[watch], seed=seed).fit()
        return watch.subsets

    assert subsets(1) == subsets(1)
    assert subsets(1) != subsets(2)


def test_the_random_control_trains_on_subsets_of_edbas_sizes():
    watch = Watch()
    run = trainer([EDBA.paper(criterion="random")], callbacks=[watch], max_duration="10ep")
    run.fit()
    assert 10 <= min(watch.subsets) < 64
    margins = logged(run, "edba/margin")
    assert sorted(margins)[len(margins) // 2] > 0.01  # the margin's own choice is closer to zero than that


def test_start_end_and_interrupt_leave_plain_steps_alone():
    watch = Watch()
    run = trainer([EDBA.paper(start=0.25, end=0.75)], callbacks=[watch], max_duration="2048sp")
    run.fit()
    scored = logged(run, "edba/samples_scored")
    steps = [b - a for a, b in zip([0, *scored], scored, strict=False)]
    assert steps[:8] == [0] * 8
    assert all(step == 64 for step in steps[8:24])
    assert steps[24:] == [0] * 8
    assert watch.subsets[:8] == [64] * 8

    watch = Watch()
    run = trainer([EDBA.paper(interrupt=2)], callbacks=[watch], max_duration="2ep")
    run.fit()
    scored = logged(run, "edba/samples_scored")
    assert [b - a for a, b in zip([0, *scored], scored, strict=False)] == [64, 0] * 4
    assert watch.subsets[1::2] == [64] * 4


def test_by_default_one_batch_in_ten_is_scored():
    watch = Watch()
    run = trainer([EDBA(criterion="margin", interval=10)], callbacks=[watch], max_duration="8ep")
    run.fit()
    scored = logged(run, "edba/samples_scored")
    assert len(scored) == 32
    assert [step for step, (a, b) in enumerate(zip([0, *scored], scored, strict=False)) if b > a] == [0, 10, 20, 30]
    assert [step for step, size in enumerate(watch.subsets) if size < 64] == [10, 20, 30]
    assert min(watch.subsets) >= 32
    assert len(logged(run, "edba/margin")) == 4


def test_the_loss_policy_goes_by_the_trainers_learning_rate():
    def largest_batch(alpha_f):
        asked, algorithm = [], EDBA(criterion="margin", interval=1, batch_size_policy="loss")

        class Sizes(Callback):
            def batch_end(self, state, logger):
                asked.append(algorithm.batch_size)

        schedule = LinearScheduler(alpha_i=1.0, alpha_f=alpha_f)
        trainer([algorithm], callbacks=[Sizes()], max_duration="25ep", schedulers=schedule).fit()
        return max(asked), asked[-1]

    grown, _ = largest_batch(1.0)
    assert grown > 1.5 * 64
    decayed, decayed_last = largest_batch(0.0)
    assert decayed < grown
    assert decayed_last == 64


def test_policy_options_are_the_policys_constants():
    def sizes(**options):
        algorithm = EDBA(criterion="margin", interval=1, batch_size_policy="loss", policy_options=options)
        trainer([algorithm], max_duration="12ep").fit()
        return algorithm.batch_size

    assert sizes(largest_growth=1) == 64
    assert 64 < sizes(largest_growth=1.5, exponent=4) <= 96
    assert sizes(exponent=4) > 96
    assert sizes(largest_growth=1.5, exponent=4, window=1000) == 64


@pytest.mark.parametrize(("interval", "decay"), [(1, 0.9), (2, 0.81), (10, 0.9**10)])
def test_the_averages_decay_by_batches_and_not_by_scored_batches(interval, decay):
    run = trainer([EDBA(criterion="margin", interval=interval, batch_size_policy="fixed")], max_duration="10ep")
    run.fit()
    metrics, averages = logged(run, "edba/model_metric"), logged(run, "edba/model_average")
    assert len(metrics) == 40 // interval
    expected = metrics[0]
    for metric, average in zip(metrics[1:], averages[1:], strict=True):
        expected = decay * expected + (1 - decay) * metric
        assert average == pytest.approx(expected)


def test_the_papers_settings_stay_whatever_the_defaults_become():
    paper = {
        "criterion": "margin",
        "num_candidates": 1024,
        "subset_size_law": "uniform",
        "min_subset_size": 10,
        "ema_decay": 0.9,
        "batch_size_policy": "margin",
        "policy_options": None,
        "min_batch_size": 10,
        "max_batch_size": 1000,
        "scoring": "forward",
        "scale_factor": 1.0,
        "scoring_batch_norm": "pool",
        "interval": 1,
        "interrupt": 0,
        "start": 0.0,
        "end": 1.0,
    }
    no_method = {"last_layer", "input_key", "target_key", "left_out", "recheck", "refill", "size_multiple"}
    settings = EDBA.paper().settings
    assert {name: value for name, value in settings.items() if name not in no_method} == paper
    assert EDBA(preset="paper").settings == settings
    assert EDBA.paper(interval=3).settings == {**settings, "interval": 3}
    assert EDBA().settings == {name: SETTINGS[name].default for name in settings}


def test_scale_factor_scores_smaller_images_and_trains_on_whole_ones():
    sides = {"scored": set(), "trained": set()}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(1, 8, 3)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x):
            sides["trained" if torch.is_grad_enabled() else "scored"].add(x.shape[-1])
            return self.head(self.body(x).relu().mean((2, 3)))

    data = torch.utils.data.TensorDataset(torch.randn(128, 1, 16, 16), torch.randint(CLASSES, (128,)))
    run = trainer(
        [EDBA.paper(scale_factor=0.5)],
        model=ComposerClassifier(Net(), num_classes=CLASSES),
        loader=DataLoader(data, batch_size=32),
        max_duration="1ep",
    )
    run.fit()
    assert sides == {"scored": {8}, "trained": {16}}


def test_scale_factor_names_an_input_that_is_no_image():
    with pytest.raises(ValueError, match=r"scale_factor is 0.5, but the input at key 0 is a 2-D tensor"):
        trainer([EDBA.paper(scale_factor=0.5)]).fit()


def test_microbatch_transforms_are_applied_before_scoring():
    """They run after AFTER_DATALOADER, so EDBA has to find them."""

    def shrink(batch):
        return [batch[0] * 1e-3, batch[1]]

    spec = DataSpec(points_loader(), microbatch_transforms=shrink)
    run = trainer([EDBA.paper()], loader=spec, model=classifier(batch_norm=False), max_duration="1ep")
    run.fit()
    # The network sees inputs near zero, so its loss is that of its biases.
    bias_loss = logged(run, "loss/train/total")[0]
    assert logged(run, "edba/model_metric")[0] == pytest.approx(bias_loss, rel=1e-3)


class Averaged(ComposerClassifier):
    """Notes the weight that each scoring pass (no gradients, training) sees."""

    scored_with: list

    def forward(self, batch):
        if not torch.is_grad_enabled() and self._scoring:
            self.scored_with.append(self.module[-1].weight.detach().clone())
        return super().forward(batch)

    _scoring = True

    def eval_forward(self, batch, outputs=None):
        self._scoring = False
        try:
            return super().eval_forward(batch, outputs)
        finally:
            self._scoring = True


def test_weights_that_ema_left_in_the_model_are_taken_out_before_scoring(tmp_path):
    model = classifier()
    model = Averaged(model.module, num_classes=CLASSES)
    Averaged.scored_with = []  # of the model's own attributes scoring would leave nothing
    trained_with = []

    class Note(Algorithm):
        def match(self, event, state):
            return event == Event.BEFORE_FORWARD

        def apply(self, event, state, logger):
            trained_with.append(state.model.module[-1].weight.detach().clone())

    run = trainer(
        [EMA(half_life="3ba", update_interval="1ba"), EDBA.paper(), Note()],
        model=model,
        max_duration="8ba",
        save_folder=str(tmp_path),
        save_interval="1ba",
    )
    run.fit()
    scored = model.scored_with[-8:]
    assert len(scored) == len(trained_with) == 8
    assert all(torch.equal(a, b) for a, b in zip(scored, trained_with, strict=True))


@pytest.mark.parametrize("order", [1, -1])
def test_it_composes_with_algorithms_that_change_the_batch(order):
    data = torch.utils.data.TensorDataset(torch.randn(128, 3, 8, 8), torch.randint(CLASSES, (128,)))
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, CLASSES))
    watch = Watch()
    run = trainer(
        [EDBA.paper(), MixUp(), CutOut(), LabelSmoothing()][::order],
        model=ComposerClassifier(net, num_classes=CLASSES),
        loader=DataLoader(data, batch_size=32, shuffle=True),
        max_duration="3ep",
        callbacks=[watch],
    )
    run.fit()
    assert min(watch.subsets) < 32


# ---- microbatches


def test_without_a_limit_the_subset_goes_through_at_once():
    watch = Watch()
    trainer([EDBA.paper()], callbacks=[watch]).fit()
    assert watch.microbatches == watch.subsets


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 16])
def test_microbatches_keep_to_the_users_limit_and_none_has_one_sample(limit):
    watch = Watch()
    sizes = []

    class Note(Algorithm):
        def match(self, event, state):
            return event == Event.BEFORE_FORWARD

        def apply(self, event, state, logger):
            sizes.append(len(state.batch[0]))

    run = trainer(
        [EDBA.paper(min_subset_size=3), Note()],
        model=classifier(batch_norm=limit > 1),
        loader=points_loader(size=131, batch_size=33),
        device_train_microbatch_size=limit,
        callbacks=[watch],
        max_duration="3ep",
    )
    run.fit()
    assert sum(sizes) == sum(watch.subsets)
    assert max(sizes) <= limit
    assert limit == 1 or min(sizes) >= 2
    assert run.state.algorithms[-1]._engine.scorer.chunk_limit == limit


class LimitedMemory(ComposerClassifier):
    """Training forwards run out of memory above 20 samples."""

    fits = 20
    seen = SimpleNamespace(failures=0, largest_scored=0)  # of attributes scoring would leave nothing

    def forward(self, batch):
        samples = len(batch[0])
        if torch.is_grad_enabled():
            if samples > self.fits:
                self.seen.failures += 1
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        else:
            self.seen.largest_scored = max(self.seen.largest_scored, samples)
        return super().forward(batch)


def test_a_microbatch_halved_by_the_trainer_is_remembered():
    model = LimitedMemory(classifier().module, num_classes=CLASSES)
    watch = Watch()
    run = trainer([EDBA.paper()], model=model, callbacks=[watch], max_duration="3ep")
    run.state.auto_microbatching = True  # the argument 'auto' is refused on a CPU
    run.fit()
    # 64 -> 32 -> 16 on the first batch, then never again.
    assert model.seen.failures == 2
    assert max(watch.microbatches[1:]) <= 16
    edba = run.state.algorithms[-1]
    assert edba._microbatches.learned_limit == 16
    model.seen.largest_scored = 0
    run.fit(duration="1ep")
    assert model.seen.failures == 2
    assert 2 <= model.seen.largest_scored <= 16


# ---- loaders that cannot be resized


class Stream(IterableDataset):
    def __init__(self, size, sized):
        self.points, self.sized = Points(size), sized

    def __iter__(self):
        return iter(self.points[i] for i in range(len(self.points)))

    def __len__(self):
        if not self.sized:
            raise TypeError("no length")
        return len(self.points)


def test_own_batch_samplers_get_selection_only_and_one_warning():
    class Own(BatchSampler):
        pass

    data = Points()
    loader = DataLoader(data, batch_sampler=Own(RandomSampler(data), 64, False))
    watch = Watch()
    run = trainer([EDBA.paper()], loader=loader, callbacks=[watch], max_duration="3ep")
    with pytest.warns(UserWarning, match=r"cannot resize .*batch sampler of its own, Own") as caught:
        run.fit()
    assert sum("cannot resize" in str(w.message) for w in caught) == 1
    assert set(watch.pools) == {64}
    assert min(watch.subsets) < 64


@pytest.mark.parametrize("kind", ["list", "batched"])
def test_other_loaders_get_selection_only(kind):
    points = Points()
    batches = [[points.x[i : i + 64], points.y[i : i + 64]] for i in range(0, 256, 64)]
    loader = batches if kind == "list" else DataLoader(batches, batch_size=None)
    watch = Watch()
    # Composer itself asks for the microbatch size where the loader has no batch_size.
    run = trainer([EDBA.paper()], loader=loader, callbacks=[watch], max_duration="2ep", device_train_microbatch_size=64)
    with pytest.warns(UserWarning, match="no torch DataLoader" if kind == "list" else "batch_size=None"):
        run.fit()
    assert watch.pools == [64] * 8
    assert min(watch.subsets) < 64


@pytest.mark.parametrize("sized", [True, False])
def test_iterable_data_sets_are_resized_in_place(sized):
    watch = Watch()
    edba = EDBA.paper()
    run = trainer(
        [edba],
        loader=DataLoader(Stream(256, sized), batch_size=32),
        callbacks=[watch],
        max_duration="3ep" if sized else "40ba",
    )
    run.fit()
    assert min(watch.subsets) < 32
    assert logged(run, "edba/distinct_samples") == []
    if sized:
        assert [samples for _, _, samples in watch.epoch_ends] == [256, 512, 768]


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_batch_size": 200, "max_batch_size": 100}, r"min_batch_size is 200 and max_batch_size is 100"),
        ({"min_subset_size": 2000}, r"min_subset_size is 2000 and max_batch_size is 1000"),
        ({"num_candidates": 0}, r"num_candidates is 0: it must be at least 1"),
        ({"num_candidates": 1.5}, r"num_candidates is 1.5: it must be an integer"),
        ({"min_subset_size": True}, r"min_subset_size is True: it must be an integer"),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0: it must be at least 0 and below 1"),
        ({"ema_decay": "0.9"}, r"ema_decay is '0.9': it must be a number"),
        ({"scale_factor": 0}, r"scale_factor is 0: it must be above 0"),
        ({"start": 0.5, "end": 0.5}, r"start is 0.5 and end is 0.5"),
        ({"interrupt": 1}, r"interrupt is 1: every batch would be a plain step"),
        ({"interrupt": -1}, r"interrupt is -1"),
        ({"interval": 0}, r"interval is 0: it must be at least 1"),
        (
            {"batch_size_policy": "margins"},
            r"batch_size_policy is 'margins': it must be one of 'loss', 'margin', 'noise_scale'",
        ),
        ({"criterion": "loss"}, r"criterion is 'loss'"),
        ({"scoring": "magic"}, r"scoring is 'magic': it must be one of 'auto', 'forward'"),
        ({"last_layer": 3}, r"last_layer is 3: it must be a module of the model, its name, or None"),
        ({"subset_size_law": "even"}, r"subset_size_law is 'even'"),
        ({"policy_options": [1]}, r"policy_options is \[1\]: it must be a mapping"),
        (
            {"policy_options": {"exponent": 1}},
            r"policy_options is .*'margin' has no 'exponent'; its constants are window, cooldown",
        ),
        (
            {"batch_size_policy": "loss", "policy_options": {"largest_growth": 0.5}},
            r"largest_growth must be a number of at least 1",
        ),
        (
            {"batch_size_policy": "noise_scale", "policy_options": {"tolerance": 3}},
            r"factor \(2.0\) must be at least tolerance \(3\)",
        ),
        ({"batch_size_policy": "fixed", "policy_options": {"window": 3}}, r"'fixed' has no 'window'; it has none"),
        ({"scoring_batch_norm": "batch"}, r"scoring_batch_norm is 'batch': it must be one of 'pool', 'running'"),
        (
            {"scoring": "cached", "scoring_batch_norm": "running"},
            r"scoring_batch_norm is 'running' and scoring is 'cac",
        ),
    ],
)
def test_bad_arguments_are_named_with_value_and_remedy(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        EDBA.paper(**arguments)


def test_a_model_that_is_no_composer_model_is_refused_before_training():
    with pytest.raises((ValueError, TypeError), match="ComposerModel"):
        trainer([EDBA.paper()], model=nn.Linear(FEATURES, CLASSES))


def test_edba_twice_is_refused():
    with pytest.raises(ValueError, match="EDBA more than once"):
        trainer([EDBA.paper(), EDBA.paper()])


@pytest.mark.parametrize("drop_last", [True, False])
def test_an_empty_loader_is_refused(drop_last):
    loader = points_loader(size=3 if drop_last else 0, batch_size=8, drop_last=drop_last, shuffle=False)
    with pytest.raises(ValueError, match="train_dataloader is empty" + (".*batch_size=8" if drop_last else "")):
        trainer([EDBA.paper()], loader=loader).fit()


def test_a_loader_outside_the_bounds_is_warned_of_and_moved_inside():
    run = trainer([EDBA.paper(max_batch_size=32)], loader=points_loader(batch_size=64), max_duration="1ep")
    with pytest.warns(UserWarning, match=r"batch size 64 lies outside of min_batch_size=10 and max_batch_size=32"):
        run.fit()
    assert set(logged(run, "edba/batch_size")) == {32}


class Custom(ComposerModel):
    def __init__(self, loss, net=None):
        super().__init__()
        self.net = net or nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))
        self.given_loss = loss

    def forward(self, batch):
        return self.net(batch[0])

    def loss(self, outputs, batch):
        return self.given_loss(outputs, batch[1])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Custom(nn.CrossEntropyLoss(reduction="sum")), r"not a mean over the samples.*reduction='mean'"),
        (Custom(nn.CrossEntropyLoss(reduction="none")), r"the loss has shape \(\d+,\)"),
        (
            Custom(lambda o, y: o.square().mean(), nn.Sequential(nn.Conv1d(1, 1, 3), nn.Sigmoid())),
            r"no last layer found.*modules seen: Conv1d, Sigmoid",
        ),
        (
            Custom(
                lambda o, y: o.mean(), nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (FEATURES, -1)), nn.LazyLinear(2))
            ),
            r"output has shape \(12, 2\) for a batch of \d+ samples: its first dimension must be the batch",
        ),
    ],
)
def test_models_that_cannot_be_scored_are_refused_on_the_first_step(model, message):
    loader = points_loader()
    if "no last layer" in message:
        data = torch.utils.data.TensorDataset(torch.randn(64, 1, 9), torch.zeros(64))
        loader = DataLoader(data, batch_size=16)
    if "LazyLinear" in str(model.net):
        model.net[-1] = nn.Linear(8, 2)  # for the probe's 8 samples
    run = trainer([EDBA.paper()], model=model, loader=loader)
    with pytest.raises(ValueError, match=message):
        run.fit()
    assert int(run.state.timestamp.batch) == 0


def test_nan_losses_train_on_the_whole_pool_are_counted_and_warned_of_once():
    loader = points_loader(shuffle=False)
    loader.dataset.x[70] = float("nan")  # in the second batch of every pass
    loader.dataset.x[200, 0] = float("inf")  # in the fourth

    class Forgiving(ComposerClassifier):
        """Drops broken samples from the training loss, so that the weights stay finite."""

        def loss(self, outputs, batch):
            good = outputs.isfinite().all(1)
            if not good.all() and not self.scoring:
                outputs = torch.where(good.unsqueeze(1), outputs, outputs.detach() * 0)
            return nn.functional.cross_entropy(outputs, batch[1])

        def forward(self, batch):
            self.scoring = not torch.is_grad_enabled()
            x = batch[0] if self.scoring else batch[0].nan_to_num(0, 0, 0)
            return super().forward((x, batch[1]))

    model = Forgiving(classifier(dropout=0.0, batch_norm=False).module, num_classes=CLASSES)
    watch = Watch()
    run = trainer(
        [EDBA.paper(batch_size_policy="fixed")], model=model, loader=loader, callbacks=[watch], max_duration="3ep"
    )
    with pytest.warns(UserWarning, match="is NaN or infinite at batch 1") as caught:
        run.fit()
    assert sum("NaN or infinite" in str(w.message) for w in caught) == 1
    assert watch.subsets[1::2] == [64] * 6
    assert logged(run, "edba/nonfinite_steps")[-1] == 6
    averages = logged(run, "edba/model_average") + logged(run, "edba/gradient_average")
    assert all(abs(value) < 100 for value in averages)
    assert min(watch.subsets) < 64


# ---- names


def test_paper_holds_the_literal_settings():
    paper = EDBA.paper(num_candidates=64)
    assert isinstance(paper, AlgorithmClass)
    assert "num_candidates=64" in repr(paper)
    assert "batch_size_policy='margin', policy_options=None, min_batch_size=10, max_batch_size=1000" in repr(paper)


def test_the_repr_stays_the_same_over_a_run_and_makes_an_equal_object():
    edba = EDBA.paper(ema_decay=0.8, last_layer="module.4")
    before = repr(edba)
    trainer([edba], max_duration="1ep").fit()
    assert repr(edba) == before
    assert repr(eval(before, {"EDBA": EDBA})) == before


def test_scoring_goes_through_the_models_own_loss_whatever_label_smoothing_does():
    run = trainer([LabelSmoothing(0.3), EDBA.paper()], max_duration="1ep", model=classifier(0.0, False))
    run.fit()
    hard = nn.functional.cross_entropy
    first = classifier(0.0, False)
    scorer = Scorer()
    points = Points()
    scores = scorer(first, (points.x, points.y), lambda out, batch: hard(out, batch[1]))
    assert logged(run, "edba/model_metric")[0] == pytest.approx(float(scores.model_metric), rel=0.1)


def test_no_unexpected_warning_in_an_ordinary_run():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"composer_edba")
        trainer([EDBA.paper()], max_duration="2ep").fit()
