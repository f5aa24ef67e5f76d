"""EDBACallback in Lightning's Trainer: lengths, validation, schedules, accumulation, precision, logs, errors."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from composer_edba.lightning import EDBACallback
from tests.support.lightning_loop import QUIET, Module
from tests.support.torch_runs import Sizes, loader, net, sgd

MASS = {"left_out": 0.3, "min_subset_size": 4, "seed": 3}


class Watch(Callback):
    """Which samples were trained on, and where validation came."""

    def __init__(self):
        self.batches, self.validated, self.rates, self.lengths = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch[0][:, 0].long().tolist()))

    def on_train_batch_end(self, trainer, *args):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validated.append(len(self.batches))

    def on_train_epoch_end(self, trainer, pl_module):
        self.lengths.append(trainer.num_training_batches)

    def epochs(self):
        return [[b for _, b in group] for _, group in itertools.groupby(self.batches, key=lambda each: each[0])]


class Validated(Module):
    def validation_step(self, batch, batch_idx):
        self.log("validated", 1.0)


def fit(*callbacks, module=None, data=None, val=False, **kwargs):
    torch.manual_seed(4)
    network = net(dropout=0.0)
    module = (Validated if val else Module)(network, sgd(network)) if module is None else module
    watch = Watch()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer = Trainer(callbacks=[*callbacks, watch], **{**QUIET, "max_epochs": 5, **kwargs})
        trainer.fit(module, loader(256, 32) if data is None else data, *([loader(64, 32)] if val else []))
    return trainer, watch, module


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_the_default_leaves_out_and_every_epoch_is_a_pass():
    edba = EDBACallback(**MASS)
    trainer, watch, _ = fit(edba, max_epochs=6)
    engine = edba._engine
    assert engine.samples_drawn == 6 * 256
    assert engine.samples_trained == sum(len(batch) for _, batch in watch.batches) < 0.95 * 6 * 256
    assert trainer.current_epoch == 6
    assert [len(epoch) for epoch in watch.epochs()] == watch.lengths
    assert len(watch.epochs()[0]) == 8 > len(watch.epochs()[-1])
    assert all(len(set(itertools.chain(*epoch))) == sum(map(len, epoch)) for epoch in watch.epochs())


def test_leaving_out_nothing_is_training_without_it():
    with_it, ours, module = fit(EDBACallback(left_out=0.0))
    _, plain, other = fit()
    assert ours.batches == plain.batches
    assert torch.equal(weights(module), weights(other))
    assert with_it.global_step == 40


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_validation_comes_at_its_shares_of_the_data(share):
    _, watch, _ = fit(EDBACallback(), val=True, val_check_interval=share, max_epochs=6)
    ends = list(itertools.accumulate(map(len, watch.epochs())))
    assert len(watch.validated) == 6 / share
    assert watch.validated[round(1 / share) - 1 :: round(1 / share)] == ends


@pytest.mark.parametrize("sizes", [[32, 8, 8, 16], [32, 64, 128]])
def test_passes_are_whole_whatever_the_sizes(sizes):
    edba = EDBACallback(
        criterion="margin", interval=1, batch_size_policy=Sizes(sizes), min_batch_size=4, min_subset_size=4, seed=3
    )
    trainer, watch, _ = fit(edba, val=True)
    assert edba._engine.samples_drawn == 5 * 256
    assert watch.validated == list(itertools.accumulate(map(len, watch.epochs())))
    assert (len(watch.batches) > 40) is (min(sizes) < 32)
    assert trainer.current_epoch == 5


@pytest.mark.parametrize(("given", "batches"), [({"limit_train_batches": 3}, 3), ({"limit_train_batches": 0.5}, 4)])
def test_what_the_user_limits_an_epoch_to_stands(given, batches):
    _, watch, _ = fit(EDBACallback(**MASS), **given)
    assert [len(epoch) for epoch in watch.epochs()] == [batches] * 5


class OneCycle(Module):
    def configure_optimizers(self):
        self.planned = self.trainer.estimated_stepping_batches
        one_cycle = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=0.1, total_steps=self.planned)
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": one_cycle, "interval": "step"}}


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_schedule_ends_where_it_was_planned_to(accumulated):
    network = net(dropout=0.0)
    module = OneCycle(network, sgd(network))
    trainer, watch, _ = fit(EDBACallback(**MASS), module=module, max_epochs=8, accumulate_grad_batches=accumulated)
    assert module.planned == 64 / accumulated > trainer.global_step
    (config,) = trainer.lr_scheduler_configs
    assert config.scheduler.last_epoch == module.planned
    assert watch.rates[-1] < 1e-3 < max(watch.rates)


def test_with_max_steps_the_schedule_steps_with_the_updates():
    network = net(dropout=0.0)
    module = OneCycle(network, sgd(network))
    trainer, *_ = fit(EDBACallback(**MASS), module=module, max_epochs=-1, max_steps=50)
    assert trainer.global_step == module.planned == 50
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 50


class Standing(Module):
    """Does not learn, so that norms are those of one network."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize(
    ("given", "tolerance"),
    [({"accumulate_grad_batches": 4}, 1e-5), ({"precision": "bf16-mixed"}, 0.1), ({"precision": "64-true"}, 1e-5)],
)
def test_norms_are_those_of_each_samples_own_loss(given, tolerance):
    network = net(dropout=0.0, batch_norm=False)
    edba, data = EDBACallback(), loader(256, 32)
    fit(edba, module=Standing(network, None), data=data, max_epochs=1, **given)
    remembered = edba._engine.remembered
    network = network.float()
    inputs, target = data.dataset[:]
    hidden = network.body(inputs[:, 1:])
    slope = torch.softmax(network.fc(hidden), 1) - torch.nn.functional.one_hot(target, 4)
    expected = slope.norm(dim=1) * (hidden.norm(dim=1) ** 2 + 1).sqrt()
    np.testing.assert_allclose(remembered.cache.norms, expected.detach().numpy(), rtol=tolerance, atol=tolerance)


def test_figures_are_logged_and_shown(tmp_path):
    edba = EDBACallback(**MASS)
    trainer, *_ = fit(edba, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    logged = trainer.logged_metrics
    assert {"edba/batch_size", "edba/subset_size", "edba/samples_trained", "edba/overhead", "loss"} <= set(logged)
    assert float(trainer.progress_bar_metrics["edba/left_out"]) == pytest.approx(edba._engine.left_out)
    assert edba.figures["samples_trained"] == logged["edba/samples_trained"]
    assert edba.batch_size == 32
    lines = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    assert len(lines) == 1 + trainer.global_step


def test_it_leaves_the_trainer_as_it_was():
    edba = EDBACallback(**MASS)
    trainer, _, module = fit(edba)
    assert not {"process_dataloader", "batch_to_device"} & set(vars(trainer.strategy))
    assert not any(each._forward_hooks for each in module.modules())
    assert not {"log", "log_dict"} & set(vars(module))


def test_an_error_in_training_is_the_users_and_leaves_nothing_behind():
    class Broken(Module):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 2:
                raise ArithmeticError("mine")
            return super().training_step(batch, batch_idx)

    network = net()
    module = Broken(network, sgd(network))
    with pytest.raises(ArithmeticError, match="mine"):
        fit(EDBACallback(**MASS), module=module)
    assert not any(each._forward_hooks for each in module.modules())


def test_steps_that_the_module_leaves_out_are_no_error():
    class Picky(Module):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    network = net(dropout=0.0)
    edba = EDBACallback(**MASS)
    fit(edba, module=Picky(network, sgd(network)), data=loader(256, 32, shuffle=False), max_epochs=1)
    known = np.isfinite(edba._engine.remembered.cache.norms)
    assert known.sum() == 128


@pytest.mark.parametrize("every", [5, None])
def test_checkpoints_of_lightnings_own_callback_are_gone_on_with(tmp_path, every):
    def run(**kwargs):
        saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=every, save_top_k=-1)
        return fit(EDBACallback(**MASS), saver, enable_checkpointing=True, max_epochs=6, data=data, **kwargs)

    data = loader(256, 32, sampler=torch.randperm(256).tolist(), shuffle=False)
    trainer, watch, module = run()
    saved = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))[2]
    done = int(saved.stem.split("=")[1])
    network = net(dropout=0.0)
    resumed = Module(network, sgd(network))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        again = Watch()
        fresh = Trainer(callbacks=[EDBACallback(**MASS), again], **{**QUIET, "max_epochs": 6})
        fresh.fit(resumed, data, ckpt_path=saved)
    assert again.batches == watch.batches[done:]
    assert torch.equal(weights(resumed), weights(module))
    assert fresh.global_step == trainer.global_step


def test_what_cannot_be_is_said():
    class Manual(Module):
        def __init__(self, *args):
            super().__init__(*args)
            self.automatic_optimization = False

    class Iterating(Module):
        def training_step(self, dataloader_iter):
            """Takes batches by itself."""

    network = net()
    with pytest.raises(ValueError, match=r"Manual optimizes manually .*SubsetLoader"):
        fit(EDBACallback(), module=Manual(network, sgd(network)))
    with pytest.raises(ValueError, match="takes the dataloader_iter"):
        fit(EDBACallback(), module=Iterating(network, sgd(network)))
    with pytest.raises(ValueError, match="several train dataloaders"):
        fit(EDBACallback(), data={"a": loader(), "b": loader()})
    with pytest.raises(ValueError, match=r"last_layer is 'fc', which the model does not have.*network\.fc"):
        fit(EDBACallback(last_layer="fc"))
    with pytest.raises(TypeError, match="unknown argument 'lest_out': did you mean left_out"):
        EDBACallback(lest_out=0.1)
    with pytest.raises(TypeError, match="unknown argument 'scale_factor'"):
        EDBACallback(scale_factor=0.5)


def test_a_stream_of_unknown_length_is_trained_on_whole():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from loader().dataset

    edba = EDBACallback(**MASS)
    with pytest.warns(UserWarning, match="EDBA leaves all batches whole"):
        trainer, watch, _ = fit(edba, data=torch.utils.data.DataLoader(Stream(), batch_size=32), val=True)
    assert edba._engine.samples_trained == 5 * 256
    assert watch.validated == [8, 16, 24, 32, 40]
    assert isinstance(trainer.lightning_module, LightningModule)
