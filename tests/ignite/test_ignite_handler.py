"""What the handler does to a step, what it shows, and what it refuses."""

import copy
import pickle

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers.tensorboard_logger import OutputHandler, TensorboardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from composer_edba.ignite import EDBAHandler
from composer_edba.method import reference
from tests.ignite.ignite_runs import LOSS, Watch, attached
from tests.support.torch_runs import loader, net, points, sgd

FIGURES = {
    "batch_size",
    "subset_size",
    "samples_scored",
    "samples_trained",
    "nonfinite_steps",
    "distinct_samples",
    "margin",
    "model_metric",
    "gradient_metric",
    "model_average",
    "gradient_average",
    "overhead",
    "target_batch_size",
}


def test_figures_are_those_of_the_step():
    trainer, handler, data, watch = attached(model=net(dropout=0.0, batch_norm=False))
    steps = []

    def note(engine):
        # The last layer's gradient that the trainer really took.
        gradients = torch.cat([p.grad.flatten() for p in handler_model.fc.parameters()])
        steps.append((dict(engine.state.edba), dict(engine.state.metrics), float(gradients.norm())))

    handler_model = handler._loop._model
    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.run(data, max_epochs=3)
    for (figures, metrics, norm), pool, subset in zip(steps, watch.pools, watch.subsets, strict=True):
        assert set(figures) == FIGURES
        assert metrics == {f"edba/{name}": value for name, value in figures.items()}
        assert (figures["batch_size"], figures["subset_size"]) == (pool, len(subset))
        assert figures["gradient_metric"] == pytest.approx(norm, rel=1e-4)
        assert 0 < figures["overhead"] < 1
    assert steps[-1][0]["distinct_samples"] == len({index for subset in watch.subsets for index in subset})
    assert steps[-1][0]["samples_trained"] == sum(map(len, watch.subsets))
    assert steps[-1][0]["samples_scored"] == sum(watch.pools)
    first, second = steps[0][0], steps[1][0]
    assert first["margin"] == 0
    expected = reference.margin(
        second["model_metric"], second["gradient_metric"], first["model_metric"], first["gradient_metric"]
    )
    assert second["margin"] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_a_step_that_is_not_scored_shows_no_old_margin():
    trainer, _, data, _ = attached(settings={"interrupt": 4})
    trainer.run(data, max_epochs=1)
    assert trainer.state.edba["subset_size"] == trainer.state.edba["batch_size"] == 64
    assert "edba/margin" not in trainer.state.metrics
    assert trainer.state.edba["overhead"] < 1


def test_tensorboard_gets_the_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer, _, data, watch = attached()
    with TensorboardLogger(log_dir=str(tmp_path)) as logger:
        handler = OutputHandler(tag="training", metric_names="all")
        logger.attach(trainer, log_handler=handler, event_name=Events.ITERATION_COMPLETED)
        trainer.run(data, max_epochs=2)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {f"training/edba/{name}" for name in FIGURES} <= set(events.Tags()["scalars"])
    logged = [int(event.value) for event in events.Scalars("training/edba/subset_size")]
    assert logged == [len(subset) for subset in watch.subsets]


def test_accumulated_gradients_are_those_of_the_subsets():
    model = net(dropout=0.0, batch_norm=False)
    optimizer = sgd(model)
    trainer = create_supervised_trainer(model, optimizer, LOSS, gradient_accumulation_steps=2)
    watch = Watch(trainer)
    data = loader()
    EDBAHandler(model, LOSS, preset="paper").attach(trainer, data)
    before, taken = [], []

    def expect(engine):
        x, y = engine.state.batch
        if (engine.state.iteration - 1) % 2 == 0:
            before.clear()
        loss = LOSS(model(x), y) / 2
        before.append(torch.autograd.grad(loss, list(model.parameters())))

    def compare(engine):
        for number, parameter in enumerate(model.parameters()):
            torch.testing.assert_close(parameter.grad, sum(part[number] for part in before))
        taken.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))

    trainer.add_event_handler(Events.ITERATION_STARTED, expect)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, compare)
    trainer.run(data, max_epochs=3)
    assert min(map(len, watch.subsets)) < 64
    assert torch.equal(taken[1], taken[2])
    assert not torch.equal(taken[0], taken[1])


def test_autocast():
    def bf16():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    model = net(dropout=0.0)
    optimizer = sgd(model)
    dtypes, losses = [], []

    def step(engine, batch):
        model.train()
        optimizer.zero_grad()
        with bf16():
            output = model(batch[0])
            loss = LOSS(output, batch[1])
        dtypes.append(output.dtype)
        loss.backward()
        optimizer.step()
        losses.append((loss.item(), engine.state.edba["model_metric"]))

    trainer = Engine(step)
    watch = Watch(trainer)
    data = loader()
    EDBAHandler(model, LOSS, preset="paper", precision=bf16).attach(trainer, data)
    trainer.run(data, max_epochs=3)
    assert set(dtypes) == {torch.bfloat16}
    assert min(map(len, watch.subsets)) < 64
    # The first step trains on the whole pool: the scored loss is the trained one's, bf16's rounding included.
    assert losses[0][0] == pytest.approx(losses[0][1], rel=1e-5)


def test_scoring_leaves_the_model_as_it_is():
    def run(handler):
        model = net()
        trainer = create_supervised_trainer(model, sgd(model), LOSS)
        data = loader()
        if handler:
            EDBAHandler(model, LOSS, preset="paper", min_subset_size=64, batch_size_policy="fixed").attach(
                trainer, data
            )
        torch.manual_seed(3)
        trainer.run(data, max_epochs=2)
        return model.state_dict()

    plain, scored = run(False), run(True)
    assert all(torch.equal(plain[name], scored[name]) for name in plain)


def test_arguments_of_create_supervised_trainer():
    class Renamed(TensorDataset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return {"points": x, "labels": y}

    model = net()
    same = {
        "prepare_batch": lambda batch, device, non_blocking: (batch["points"].to(device), batch["labels"].to(device)),
        "model_fn": lambda model, x: {"logits": model(x)},
        "model_transform": lambda output: output["logits"],
    }
    trainer = create_supervised_trainer(model, sgd(model), LOSS, **same)
    data = DataLoader(Renamed(*points().tensors), batch_size=64)
    EDBAHandler(model, LOSS, preset="paper", last_layer="fc", **same).attach(trainer, data)
    trainer.run(data, max_epochs=2)
    assert trainer.state.edba["subset_size"] <= 64
    assert trainer.state.edba["samples_trained"] < trainer.state.edba["samples_scored"]


def test_images_can_be_scored_smaller():
    shapes = []

    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            shapes.append(x.shape[-1])
            return self.fc(self.conv(x).relu().mean((2, 3)))

    model = Pixels()
    data = DataLoader(TensorDataset(torch.randn(64, 1, 12, 12), torch.arange(64) % 3), batch_size=32)
    trainer = create_supervised_trainer(model, sgd(model), LOSS)
    EDBAHandler(model, LOSS, preset="paper", scale_factor=0.5).attach(trainer, data)
    trainer.run(data)
    assert set(shapes) == {6, 12}


def test_a_batch_with_a_broken_sample_is_trained_on_whole_and_counted():
    data = points()
    data.tensors[0][5, 3] = float("nan")
    trainer, handler, data, watch = attached(model=net(batch_norm=False), data=DataLoader(data, batch_size=64))
    with pytest.warns(UserWarning, match="NaN or infinite at batch 0"):
        trainer.run(data, max_epochs=1)
    assert trainer.state.edba["nonfinite_steps"] >= 1
    assert len(watch.subsets[0]) == 64
    assert handler.state_dict()["steps"] == 4


def test_a_loader_that_cannot_be_resized_gets_selection_only():
    batches = [[part[i : i + 64] for part in points().tensors] for i in range(0, 256, 64)]
    trainer, handler, data, watch = attached(data=batches)
    with pytest.warns(UserWarning, match=r"cannot resize the batches of the loader \(a list"):
        trainer.run(data, max_epochs=3)
    assert trainer.state.iteration == 12
    assert min(map(len, watch.subsets)) < 64
    assert handler.batch_size is None


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"num_candidates": 0}, ValueError, "num_candidates is 0: it must be at least 1"),
        ({"start": 0.5, "end": 0.4}, ValueError, r"start is 0.5 and end is 0.4"),
        ({"candidates": 3}, TypeError, "unknown argument 'candidates': did you mean num_candidates"),
        ({"seed": -1}, ValueError, "seed is -1: it must be an integer from 0"),
        ({"last_layer": "head"}, ValueError, r"last_layer is 'head'.*Linear maps in the model: body.0, fc"),
        ({"optimizer": sgd(nn.Linear(2, 2))}, ValueError, "optimizer holds none of the model's parameters"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, match):
    with pytest.raises(error, match=match):
        EDBAHandler(net(), LOSS, preset="paper", **arguments)


def test_wrong_attachments_are_named():
    handler = EDBAHandler(net(), LOSS, preset="paper")
    with pytest.raises(TypeError, match=r"trainer is a Linear: it must be an ignite\.engine\.Engine"):
        handler.attach(nn.Linear(2, 2), loader())
    trainer, handler, _, _ = attached()
    with pytest.raises(ValueError, match="attached already"):
        handler.attach(trainer, loader())
    with pytest.raises(ValueError, match="give both the same object"):
        trainer.run(loader(), max_epochs=1)
    empty = loader(size=10, drop_last=True)
    trainer, _, _, _ = attached(data=empty)
    with pytest.raises(ValueError, match="Input data has zero size"):  # Ignite's own
        trainer.run(empty)


def test_a_loss_that_is_a_sum_is_refused():
    model, loss = net(), nn.CrossEntropyLoss(reduction="sum")
    trainer = create_supervised_trainer(model, sgd(model), loss)
    data = loader()
    EDBAHandler(model, loss, preset="paper").attach(trainer, data)
    with pytest.raises(ValueError, match="the loss is not a mean over the samples"):
        trainer.run(data)


def test_a_batch_size_outside_of_the_bounds_is_warned_of():
    trainer, _, data, watch = attached(settings={"max_batch_size": 50})
    with pytest.warns(UserWarning, match=r"64 lies outside of min_batch_size=10 and max_batch_size=50.*starts at 50"):
        trainer.run(data)
    assert watch.pools[0] == 43  # a pass of 256 is six even batches of at most 50


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("end", ["completed", "terminated", "interrupted", "skipped", "failed", "failure handled"])
def test_no_hook_stays_on_the_model_after_a_run(end):
    model, inside, handled = net(), [], []
    trainer, _, data, watch = attached(model=model, settings={"scoring": "cached"})

    def stop(engine):
        inside.append(hooks(model))
        if engine.state.iteration != 6:
            return
        if end == "terminated":
            engine.terminate()
        elif end == "skipped":
            engine.terminate(skip_completed=True)
        elif end == "interrupted":
            engine.interrupt()
        elif end.startswith("fail"):
            raise ArithmeticError("stop")

    trainer.add_event_handler(Events.ITERATION_COMPLETED, stop)
    if end == "failure handled":
        trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: handled.append(error))
        trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda error: trainer.terminate())
    if end == "failed":
        with pytest.raises(ArithmeticError, match="stop"):
            trainer.run(data, max_epochs=3)
    else:
        trainer.run(data, max_epochs=3)
    assert len(handled) == (end == "failure handled")
    assert hooks(model) == 0
    pickle.dumps(model)
    copy.deepcopy(model)
    if end == "interrupted":
        trainer.run(data, max_epochs=3)
        assert len(watch.pools) >= 12
        assert hooks(model) == 0
    assert set(inside) == {3}
