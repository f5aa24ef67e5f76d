"""DBA in the real Trainer."""

import functools
import json
import re

import pytest
import torch
from composer import Callback
from composer.algorithms import EMA, SAM, GradientClipping, MixUp
from composer.models import ComposerClassifier
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from composer_edba import DBA, EDBA
from composer_edba.dba.chosen_count import ChosenCountPolicy
from composer_edba.train.config import load_config
from composer_edba.train.run import main
from tests.support.paths import YAMLS
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


def network(dropout=0.0):
    return classifier(dropout=dropout, batch_norm=False)


class Gradients(Callback):
    """The weights before and the gradients after each batch, and the batch."""

    def __init__(self):
        self.steps = []

    def batch_start(self, state, logger):
        weights = {name: p.detach().clone() for name, p in state.model.named_parameters()}
        self.steps.append([weights, [part.clone() for part in state.batch], None])

    def after_train_batch(self, state, logger):
        self.steps[-1][2] = {name: p.grad.clone() for name, p in state.model.named_parameters()}


def own_gradient(model, weights, batch, name, members):
    """Mean gradient of one layer over the samples ``members``, each from a backward pass of its own."""
    model = type(model)(model.module, num_classes=CLASSES)
    model.load_state_dict(weights, strict=False)
    parameter = dict(model.named_parameters())[name]
    rows = []
    for i in members:
        loss = F.cross_entropy(model([batch[0][i : i + 1], None]), batch[1][i : i + 1])
        rows.append(torch.autograd.grad(loss, parameter)[0])
    return torch.stack(rows).mean(0)


@pytest.mark.parametrize("microbatch", [None, 20, 7])
@pytest.mark.parametrize("search", ["removal", "addition", "both"])
def test_each_layer_is_updated_with_the_mean_over_its_own_subset(microbatch, search):
    watch = Gradients()
    dba = DBA(min_subset_size=3, search=search)
    chosen = []

    class Note(Callback):
        def batch_end(self, state, logger):
            chosen.append(dict(dba.chosen))

    run = trainer(
        [dba],
        model=network(),
        callbacks=[watch, Note()],
        max_duration="4ba",
        device_train_microbatch_size=microbatch,
    )
    run.fit()
    assert set(chosen[-1]) == {"module.0", "module.4"}
    assert all(len(members) == 64 for members in chosen[0].values())
    assert any(len(members) < 64 for step in chosen for members in step.values())
    for (weights, batch, grads), subsets in zip(watch.steps, chosen, strict=True):
        for layer, members in subsets.items():
            for kind in ("weight", "bias"):
                name = f"{layer}.{kind}"
                expected = own_gradient(run.state.model, weights, batch, name, members.tolist())
                torch.testing.assert_close(grads[name], expected, rtol=1e-3, atol=1e-6)


def test_the_model_metric_is_the_mean_loss_of_the_batch_also_in_microbatches():
    metrics = []
    for microbatch in (None, 20):
        run = trainer([DBA()], model=network(), max_duration="6ba", device_train_microbatch_size=microbatch)
        run.fit()
        metrics.append(torch.tensor(logged(run, "dba/model_metric")))
    torch.testing.assert_close(*metrics, rtol=1e-4, atol=1e-5)
    expected = F.cross_entropy(network().module(Points().x), Points().y)
    assert metrics[0][0] == pytest.approx(float(expected), rel=0.2)


def test_the_first_step_is_a_plain_one():
    weights = []
    for algorithms in ([DBA()], []):
        run = trainer(algorithms, model=network(), max_duration="1ba")
        run.fit()
        weights.append(run.state.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))


def test_batches_follow_the_number_chosen_and_each_epoch_is_one_pass():
    watch = Watch()
    dba = DBA(min_subset_size=2)
    run = trainer([dba], model=network(), loader=points_loader(with_index=True), callbacks=[watch], max_duration="30ep")
    run.fit()
    assert sum(watch.pools) == 30 * 256
    assert len(watch.epoch_ends) == 30
    assert len(set(watch.pools)) > 3
    assert logged(run, "dba/batch_size") == watch.pools
    assert max(watch.microbatches) <= max(watch.pools)
    assert all(size <= pool for size, pool in zip(logged(run, "dba/chosen"), watch.pools, strict=True))
    assert 10 <= dba.batch_size <= 256


def test_distinct_samples_are_those_some_layer_used():
    watch, used = Watch(), set()
    dba = DBA(min_subset_size=2, search="addition")

    class Note(Callback):
        def batch_end(self, state, logger):
            used.update(watch.indices[-1][i] for members in dba.chosen.values() for i in members.tolist())
            counts.append(len(used))

    counts = []
    loader = points_loader(with_index=True, batch_size=32)
    run = trainer([dba], model=network(), loader=loader, callbacks=[watch, Note()], max_duration="3ep")
    run.fit()
    assert logged(run, "dba/distinct_samples") == counts
    assert counts[0] == 32
    assert counts[-1] < 256
    assert dba.distinct_samples == counts[-1]


def test_the_control_chooses_as_many_but_others():
    chosen = {}
    for criterion in ("margin", "random"):
        dba = DBA(min_subset_size=2, criterion=criterion, batch_size_policy="fixed")
        run = trainer([dba], model=network(), max_duration="2ba")
        run.fit()
        chosen[criterion] = dba.chosen
        assert set(logged(run, "dba/batch_size")) == {64.0}
    sizes = [[len(members) for members in subsets.values()] for subsets in chosen.values()]
    assert sizes[0] == sizes[1]
    assert min(sizes[0]) < 64
    assert any(not torch.equal(chosen["margin"][name], chosen["random"][name]) for name in chosen["margin"])


@pytest.mark.parametrize(("workers", "criterion"), [(0, "margin"), (2, "random")])
def test_resumed_in_mid_epoch_it_ends_bitwise_equal(tmp_path, monkeypatch, workers, criterion):
    hasty = functools.partial(ChosenCountPolicy, window=2, tolerance=1.01)
    monkeypatch.setattr("composer_edba.dba.algorithm.ChosenCountPolicy", hasty)

    def run(folder, load=None):
        watch, dba = Watch(), DBA(min_subset_size=2, criterion=criterion, search="both")
        result = trainer(
            [dba],
            model=network(0.1),
            loader=points_loader(with_index=True, num_workers=workers),
            callbacks=[watch],
            max_duration="6ep",
            save_folder=str(folder),
            save_interval="1ba",
            save_filename="ba{batch}.pt",
            load_path=load,
        )
        result.fit()
        return result, watch, dba

    whole, watch, dba = run(tmp_path / "whole")
    assert len(set(watch.pools)) > 2
    ends = [batch for _, batch, _ in watch.epoch_ends]
    for cut in (ends[2] + 2, ends[2]):
        again, seen, resumed = run(tmp_path / f"again{cut}", str(tmp_path / "whole" / f"ba{cut}.pt"))
        assert seen.indices == watch.indices[cut:]
        for (key, a), (_, b) in zip(
            whole.state.model.state_dict().items(), again.state.model.state_dict().items(), strict=True
        ):
            assert torch.equal(a, b), (cut, key)
        assert resumed.state_dict() == dba.state_dict()
        for metric in ("margin", "chosen", "distinct_samples", "model_average"):
            assert logged(again, f"dba/{metric}") == logged(whole, f"dba/{metric}")[cut:], metric


def test_a_second_fit_goes_on():
    dba = DBA(min_subset_size=2)
    run = trainer([dba], model=network(), max_duration="10ep")
    run.fit()
    size, average = dba.batch_size, dba._selector.model_average
    run.fit(duration="1ba")
    assert logged(run, "dba/batch_size")[-1] == size
    assert dba._selector.model_average != average


def test_beside_clipping_mixup_and_ema():
    """Clipping sees the chosen gradients; mixed samples are samples too."""
    watch = Gradients()
    algorithms = [DBA(min_subset_size=3), GradientClipping("norm", 0.01), EMA(half_life="4ba"), MixUp(alpha=0.2)]
    run = trainer(algorithms, model=network(), callbacks=[watch], max_duration="1ep")
    run.fit()
    assert algorithms[0].chosen
    for _, _, grads in watch.steps:
        total = torch.cat([g.flatten() for g in grads.values()]).norm()
        assert total == pytest.approx(0.01, rel=1e-3)


class Images(Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(96, 2, 8, 8, generator=generator)
        self.y = (self.x.mean((1, 2, 3)) > 0).long()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


def test_a_convolutional_network_learns():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.GroupNorm(2, 8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    model = ComposerClassifier(net, num_classes=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(Images(), batch_size=32, shuffle=True)
    run = trainer([DBA()], model=model, loader=loader, optimizers=optimizer, max_duration="15ep")
    run.fit()
    losses = logged(run, "dba/model_metric")
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert logged(run, "dba/nonfinite_steps")[-1] == 0


def broken_loader():
    data = Points()
    data.x[3] = float("nan")
    return DataLoader(data, batch_size=64)


def test_broken_samples_stay_out_of_the_averages():
    dba = DBA()
    run = trainer([dba], model=network(), loader=broken_loader(), max_duration="2ba")
    with pytest.warns(UserWarning, match="NaN or infinite at batch 0"):
        run.fit()
    assert dba._selector.model_average is None
    assert logged(run, "dba/nonfinite_steps")[-1] == 2


class Tied(PointsClassifier):
    """Uses the last layer's weights once more, outside of the layer."""

    def forward(self, batch):
        return super().forward(batch) + F.linear(F.linear(batch[0][:, -FEATURES:], self.module[0].weight), self.last)

    @property
    def last(self):
        return self.module[4].weight


class Summed(PointsClassifier):
    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, batch[1], reduction="sum")


def tied():
    return Tied(network().module, num_classes=CLASSES)


def summed():
    return Summed(network().module, num_classes=CLASSES)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (classifier, r"module 'module\.1' \(BatchNorm1d\) normalises over the samples .* Use GroupNorm"),
        (tied, r"gradient of module\.0\.weight \(Linear\) is not the mean of per-sample gradients"),
        (summed, r"loss is not a mean over the samples"),
    ],
)
def test_what_has_no_per_sample_gradients_is_refused_before_the_first_update(build, message):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = trainer([DBA()], model=model)
    with pytest.raises(ValueError, match=message):
        run.fit()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([EDBA.paper()], "DBA beside EDBA"),
        ([DBA()], "DBA beside DBA"),
        ([SAM()], "DBA beside SAM"),
    ],
)
def test_algorithms_that_choose_twice_are_refused(others, message):
    run = trainer([DBA(), *others], model=network())
    with pytest.raises(ValueError, match=message):
        run.fit()


def test_several_ranks_are_refused(monkeypatch):
    monkeypatch.setattr("composer_edba.dba.algorithm.dist.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"DBA on 2 ranks.*EDBA, which runs on any number"):
        trainer([DBA()], model=network())


def test_a_compiled_model_is_refused():
    run = trainer([DBA()], model=network(), compile_config={"backend": "eager"})
    with pytest.raises(ValueError, match="DBA on a compiled model"):
        run.fit()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"search": "random"}, ValueError, "search is 'random'"),
        ({"guide": "loss"}, ValueError, "guide is 'loss'"),
        ({"criterion": "loss"}, ValueError, "criterion is 'loss'"),
        (
            {"batch_size_policy": "margin"},
            ValueError,
            "batch_size_policy is 'margin': it must be one of 'chosen', 'fixed'",
        ),
        ({"ema_decay": 1.0}, ValueError, "ema_decay is 1.0: it must be at least 0 and below 1"),
        ({"ema_decay": "0.9"}, TypeError, "ema_decay is '0.9'"),
        ({"min_subset_size": 0}, ValueError, "min_subset_size is 0: it must be at least 1"),
        ({"min_batch_size": 2.5}, TypeError, "min_batch_size is 2.5"),
        ({"min_batch_size": 200, "max_batch_size": 100}, ValueError, "the first must not exceed it"),
        ({"min_subset_size": 200, "max_batch_size": 100}, ValueError, "min_subset_size must not exceed max_batch_size"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        DBA(**arguments)


def test_a_yaml_run_sums_it_up(tmp_path):
    run = main(
        load_config(
            YAMLS / "digits" / "baseline.yaml",
            [
                "model.name=mlp",
                "model.kwargs={image_size: 8}",
                "algorithms.dba={search: both}",
                "trainer.max_duration=3ep",
                "trainer.progress_bar=false",
                f"output.folder={tmp_path}",
            ],
        )
    )
    (dba,) = run.state.algorithms
    assert dba._selector.search == "both"
    results = json.loads((tmp_path / "summary.json").read_text())["results"]
    assert 0 < results["overhead"] < 1
    assert results["samples_trained"] == results["samples_drawn"] == dba.samples_drawn == 3 * 1437
    assert results["distinct_samples"] == dba.distinct_samples <= 1437
    assert results["final_batch_size"] == dba.batch_size
    assert 0.3 < dba.samples_chosen / dba.samples_drawn < 1


def test_a_loader_of_another_size_is_warned_of():
    run = trainer([DBA(min_batch_size=100)], model=network(), max_duration="1ba")
    with pytest.warns(UserWarning, match=r"batch size 64 lies outside.*training starts at 100"):
        run.fit()


def test_the_state_is_plain():
    dba = DBA()
    trainer([dba], model=network(), max_duration="1ep").fit()
    plain = (dict, list, str, int, float, bool, type(None))

    def check(value):
        assert isinstance(value, plain), value
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(part)

    check(dba.state_dict())
    assert repr(dba).startswith("DBA(ema_decay=0.9, min_subset_size=10")
