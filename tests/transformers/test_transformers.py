"""EDBAMixin in the Trainer of Transformers: passes, schedules, steps, accumulation, logs, checkpoints, errors."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from composer_edba.transformers import STATE_NAME, EDBAMixin, EDBATrainer
from tests.support.torch_runs import Sizes, net, points, sgd
from tests.support.transformers_loop import Named, Net, arguments

MASS = {"left_out": 0.3, "min_subset_size": 4, "seed": 3}


class Watch(TrainerCallback):
    """Learning rates and epochs, a step each."""

    def __init__(self):
        self.rates, self.epochs, self.evaluated = [], [], []

    def on_step_end(self, args, state, control, **kwargs):
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])
        self.epochs.append(state.epoch)

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated.append(state.global_step)


def run(folder, edba=MASS, *, kind=EDBATrainer, model=None, size=256, resume=None, schedule=True, **given):
    torch.manual_seed(4)
    args = arguments(folder, **{"num_train_epochs": 5, "per_device_train_batch_size": 32, "seed": 1, **given})
    model = Net(net(dropout=0.0)) if model is None else model
    chosen = {} if edba is None else {"edba": edba}
    trainer = kind(
        model, args, train_dataset=Named(points(size)), eval_dataset=Named(points(32)),
        optimizers=(sgd(model), None), **chosen,
    )  # fmt: skip
    watch, batches = Watch(), []
    trainer.add_callback(watch)
    if edba is not None:
        choose = trainer._edba.choose

        def see(pool, *more):
            batches.append(choose(pool, *more))
            return batches[-1]

        trainer._edba.choose = see
    trainer.train(resume_from_checkpoint=resume)
    return trainer, watch, [batch["points"][:, 0].long().tolist() for batch in batches]


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_epochs_are_passes_and_the_schedule_ends_with_them(tmp_path):
    trainer, watch, batches = run(tmp_path, num_train_epochs=6, learning_rate=0.1)
    engine = trainer._edba.engine
    assert engine.samples_drawn == 6 * 256
    assert engine.samples_trained == sum(map(len, batches)) < 0.95 * 6 * 256
    assert trainer.state.global_step == len(batches) < 48
    assert trainer.state.epoch == watch.epochs[-1] == 6
    assert watch.epochs == sorted(watch.epochs)
    assert watch.rates[-1] == 0, "linear decay to the end of the passes"
    assert trainer.lr_scheduler.last_epoch == 48


def test_a_part_of_an_epoch_is_a_part_of_a_pass(tmp_path):
    trainer, watch, _ = run(tmp_path, num_train_epochs=2.5)
    assert 2.5 <= watch.epochs[-1] < 2.5 + 0.25
    assert watch.epochs[-2] < 2.5
    assert trainer.lr_scheduler.last_epoch >= 20


def test_leaving_out_nothing_is_training_without_it(tmp_path):
    with_it, ours, _ = run(tmp_path, {"left_out": 0.0}, max_grad_norm=1.0)
    without, plain, _ = run(tmp_path, None, kind=Trainer, max_grad_norm=1.0)
    assert torch.equal(weights(with_it), weights(without))
    assert ours.rates == plain.rates
    assert ours.epochs == pytest.approx(plain.epochs)


def test_as_the_trainer_shuffles_by_its_own_seed(tmp_path):
    seeded = {"accelerator_config": {"use_seedable_sampler": True}, "data_seed": 9}
    with_it, *_ = run(tmp_path, {"left_out": 0.0}, **seeded)
    without, *_ = run(tmp_path, None, kind=Trainer, **seeded)
    assert torch.equal(weights(with_it), weights(without))


def test_max_steps_are_updates(tmp_path):
    trainer, watch, _ = run(tmp_path, max_steps=60, learning_rate=0.1)
    assert trainer.state.global_step == trainer.lr_scheduler.last_epoch == 60
    assert trainer.state.epoch > 60 / 8
    assert watch.rates[-1] == 0


@pytest.mark.parametrize("sizes", [[32, 8, 8, 16], [32, 64, 128]])
def test_passes_are_whole_whatever_the_sizes(tmp_path, sizes):
    edba = {"criterion": "margin", "batch_size_policy": Sizes(sizes), "min_batch_size": 4, "min_subset_size": 4}
    trainer, watch, batches = run(tmp_path, edba, eval_strategy="epoch")
    assert trainer._edba.engine.samples_drawn == 5 * 256
    assert len(watch.evaluated) == 5
    assert watch.epochs[-1] == 5
    assert (len(batches) > 40) is (min(sizes) < 32)


class Standing(EDBATrainer):
    """Does not learn, so that norms are those of one network."""

    def create_optimizer(self):
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
        return self.optimizer


class Counted(Net):
    """Takes the number of items that its loss is to be divided by, as language models do."""

    def forward(self, points, labels, num_items_in_batch=None, **kwargs):
        logits = self.network(points)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum" if num_items_in_batch else "mean")
        return {"loss": loss / num_items_in_batch if num_items_in_batch else loss, "logits": logits}


@pytest.mark.parametrize("kind", [Net, Counted])
@pytest.mark.parametrize("accumulated", [1, 4])
def test_norms_are_those_of_each_samples_own_loss(tmp_path, kind, accumulated):
    network = net(dropout=0.0, batch_norm=False)
    trainer, *_ = run(
        tmp_path, {}, kind=Standing, model=kind(network), num_train_epochs=1, gradient_accumulation_steps=accumulated
    )
    inputs, target = points(256)[:]
    hidden = network.body(inputs[:, 1:])
    slope = torch.softmax(network.fc(hidden), 1) - nn.functional.one_hot(target, 4)
    expected = slope.norm(dim=1) * (hidden.norm(dim=1) ** 2 + 1).sqrt()
    norms = trainer._edba.engine.remembered.cache.norms
    np.testing.assert_allclose(norms, expected.detach().numpy(), rtol=1e-4)


def test_a_counted_loss_is_the_mean_over_the_subset(tmp_path):
    edba = {"criterion": "margin", "scoring": "forward", "seed": 3, "min_subset_size": 4}
    counted, *_ = run(tmp_path, edba, model=Counted(net(dropout=0.0)))
    plain, *_ = run(tmp_path, edba)
    torch.testing.assert_close(weights(counted), weights(plain))


def test_figures_are_logged(tmp_path):
    trainer, *_ = run(tmp_path, logging_steps=1)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == trainer.state.global_step
    assert {"edba/batch_size", "edba/subset_size", "edba/samples_trained", "edba/left_out"} <= set(lines[-1])
    assert lines[-1]["edba/left_out"] == pytest.approx(trainer._edba.engine.left_out)
    assert trainer.edba_figures["samples_trained"] == lines[-1]["edba/samples_trained"]


@pytest.mark.parametrize("given", [{"save_strategy": "steps", "save_steps": 7}, {"save_strategy": "epoch"}])
def test_a_run_resumed_from_the_trainers_own_checkpoints_is_the_uninterrupted_one(tmp_path, given):
    trainer, _, batches = run(tmp_path, num_train_epochs=6, **given)
    saved = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[2]
    assert (saved / STATE_NAME).is_file()
    done = int(saved.name.split("-")[1])
    again, watch, rest = run(tmp_path / "again", num_train_epochs=6, resume=str(saved), **given)
    assert rest == batches[done:]
    assert torch.equal(weights(again), weights(trainer))
    assert again.state.global_step == trainer.state.global_step
    assert watch.epochs[-1] == 6
    assert again.args.ignore_data_skip is False


def test_a_trainer_of_the_users_own(tmp_path):
    class Own(EDBAMixin, Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            return (2 * outputs["loss"], outputs) if return_outputs else 2 * outputs["loss"]

    trainer, _, batches = run(tmp_path, kind=Own, eval_strategy="epoch")
    assert trainer._edba.engine.left_out > 0.05
    assert len(batches) == trainer.state.global_step
    assert not any(each._forward_hooks for each in trainer.model.modules())


def test_a_second_training_goes_on(tmp_path):
    trainer, *_ = run(tmp_path, num_train_epochs=2)
    engine = trainer._edba.engine
    trained, updates = engine.samples_trained, trainer.state.global_step
    trainer.train()
    assert engine.samples_drawn == 4 * 256
    assert trainer.state.epoch == 2
    assert trainer.state.global_step < updates, "what was remembered is of use from the beginning"
    assert engine.samples_trained < 2 * trained


def test_what_cannot_be_is_said(tmp_path):
    with pytest.raises(TypeError, match="unknown argument 'lest_out': did you mean left_out"):
        run(tmp_path, {"lest_out": 0.1})
    with pytest.raises(ValueError, match=r"last_layer is 'fc', which the model does not have.*network\.fc"):
        run(tmp_path, {"last_layer": "fc"})


def test_an_error_in_the_backward_is_the_users_and_what_they_put_on_the_accelerator_stays(tmp_path):
    class Failing(EDBATrainer):
        def create_optimizer(self):
            def fails(loss, **kwargs):
                raise RuntimeError("out of memory, says the device")

            self.accelerator.backward = self.fails = fails
            return super().create_optimizer()

    failing = []

    class Keeping(Failing):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            failing.append(self)

    with pytest.raises(RuntimeError, match="says the device"):
        run(tmp_path, kind=Keeping)
    (trainer,) = failing
    assert trainer.accelerator.backward is trainer.fails
    assert not any(each._forward_hooks for each in trainer.model.modules())
