"""A run resumed from Ignite's Checkpoint ends bitwise as the uninterrupted one."""

import warnings

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver

from composer_edba.ignite import EDBAHandler
from tests.ignite.ignite_runs import LOSS, Watch, attached
from tests.support.torch_runs import following, loader, net, sgd


class RandomState:
    """torch's stream in a checkpoint: Ignite's Engine keeps none."""

    def state_dict(self):
        return {"torch": torch.get_rng_state()}

    def load_state_dict(self, state):
        torch.set_rng_state(state["torch"])


class Run:
    """A trainer with all that a checkpoint needs."""

    def __init__(self, folder, seed, event=None, workers=0, size=256, batch_size=64, **settings):
        self.model = net()
        self.optimizer = sgd(self.model)
        self.trainer = create_supervised_trainer(self.model, self.optimizer, LOSS)
        self.data = loader(size, batch_size, num_workers=workers)
        self.watch = Watch(self.trainer)
        self.edba = EDBAHandler(self.model, LOSS, self.optimizer, preset="paper", **settings)
        self.edba.attach(self.trainer, self.data)
        self.parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "edba": self.edba,
            "trainer": self.trainer,
            "random": RandomState(),
        }
        if event is not None:
            self.saver = Checkpoint(self.parts, DiskSaver(str(folder), require_empty=False), n_saved=None)
            self.trainer.add_event_handler(event, self.saver)
        torch.manual_seed(seed)

    def resume(self, path, epochs):
        Checkpoint.load_objects(self.parts, torch.load(path, weights_only=True))
        self.trainer.run(self.data, max_epochs=epochs)
        return self

    def run(self, epochs):
        self.trainer.run(self.data, max_epochs=epochs)
        return self


def assert_same_end(resumed, whole):
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    # A run that was saved after its last batch has nothing left to do, so no epoch ends and sets this.
    end = {} if resumed.watch.pools else {"epoch_length": None}
    assert {**resumed.edba.state_dict(), **end} == {**whole.edba.state_dict(), **end}
    if resumed.watch.pools:
        a, b = resumed.trainer.state.edba, whole.trainer.state.edba
        assert {**a, "overhead": 0} == {**b, "overhead": 0}
    assert (resumed.trainer.state.epoch, resumed.trainer.state.iteration) == (
        whole.trainer.state.epoch,
        whole.trainer.state.iteration,
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sizes", [[64, 20, 11, 128, 37, 10], [10, 10, 10, 200, 200, 30]])
def test_at_any_batch(tmp_path, sizes, workers):
    policy = following(sizes)
    whole = Run(tmp_path, 3, Events.ITERATION_COMPLETED, workers, batch_size_policy=policy).run(4)
    paths = sorted(tmp_path.glob("*.pt"), key=lambda path: int(path.stem.split("_")[-1]))
    assert len(paths) == len(whole.watch.pools)
    for path in paths if workers == 0 else paths[::6]:
        done = int(path.stem.split("_")[-1])
        resumed = Run(tmp_path, 99, workers=workers, batch_size_policy=policy).resume(path, 4)
        assert resumed.watch.subsets == whole.watch.subsets[done:], path
        assert_same_end(resumed, whole)


def test_at_the_end_of_an_epoch(tmp_path):
    policy = following([64, 20, 11, 128, 37, 10])
    whole = Run(tmp_path, 3, Events.EPOCH_COMPLETED, batch_size_policy=policy).run(4)
    paths = sorted(tmp_path.glob("*.pt"))
    assert len(paths) == 4
    for path in paths:
        resumed = Run(tmp_path, 99, batch_size_policy=policy).resume(path, 4)
        assert [sorted(epoch) for epoch in resumed.watch.epochs] == [list(range(256))] * len(resumed.watch.epochs)
        assert_same_end(resumed, whole)


def test_with_the_margins_policy(tmp_path):
    whole = Run(tmp_path, 3, Events.ITERATION_COMPLETED(once=55), batch_size=32).run(20)
    assert len(set(whole.watch.pools[55:])) > 1
    (path,) = tmp_path.glob("*.pt")
    assert_same_end(Run(tmp_path, 99, batch_size=32).resume(path, 20), whole)


def test_a_longer_run(tmp_path):
    policy = following([64, 20, 11, 128])
    Run(tmp_path, 3, Events.COMPLETED, batch_size_policy=policy).run(2)
    (path,) = tmp_path.glob("*.pt")
    resumed = Run(tmp_path, 99, batch_size_policy=policy).resume(path, 5)
    assert resumed.trainer.state.epoch == 5
    assert [sorted(epoch) for epoch in resumed.watch.epochs] == [list(range(256))] * 3


def test_another_policy_begins_anew_and_averages_go_on(tmp_path):
    whole = Run(tmp_path, 3, Events.COMPLETED, batch_size=32).run(20)
    assert whole.edba.batch_size != 32
    (path,) = tmp_path.glob("*.pt")
    resumed = Run(tmp_path, 99, batch_size=32, batch_size_policy="fixed").resume(path, 21)
    assert set(resumed.watch.pools) == {32}
    assert resumed.edba.state_dict()["steps"] == whole.edba.state_dict()["steps"] + 8
    assert len(resumed.watch.subsets[0]) < 32  # no first step, which takes the whole pool


def test_other_data_cannot_go_on_inside_of_a_pass(tmp_path):
    policy = following([64, 20])
    Run(tmp_path, 3, Events.ITERATION_COMPLETED(once=2), batch_size_policy=policy).run(1)
    (path,) = tmp_path.glob("*.pt")
    with pytest.raises(ValueError, match=r"inside of a pass over 256 samples on 1 rank.*over 100 samples on 1 rank"):
        Run(tmp_path, 99, size=100, batch_size_policy=policy).resume(path, 2)


def test_state_is_plain():
    trainer, handler, data, _ = attached()
    trainer.run(data, max_epochs=1)

    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(part) for key, part in value.items())
        if isinstance(value, list):
            return all(plain(part) for part in value)
        return value is None or isinstance(value, (bool, int, float, str))

    assert plain(handler.state_dict())


def test_other_settings_are_told_and_the_same_are_not(tmp_path):
    Run(tmp_path, 3, Events.ITERATION_COMPLETED(once=6), last_layer="fc").run(2)
    (path,) = tmp_path.glob("*.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Run(tmp_path, 3, last_layer="fc").resume(path, 2)
    with pytest.warns(UserWarning, match=r"saved -> now\): ema_decay: 0.9 -> 0.5, interval: 1 -> 2\. The") as caught:
        Run(tmp_path, 3, last_layer="fc", interval=2, ema_decay=0.5).resume(path, 2)
    assert len(caught) == 1
