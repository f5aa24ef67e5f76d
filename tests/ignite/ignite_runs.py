"""Real Ignite trainers on points, and what they were fed."""

from ignite.engine import Events, create_supervised_trainer
from torch import nn

from composer_edba.ignite import EDBAHandler
from tests.support.torch_runs import following, loader, net, sgd

LOSS = nn.CrossEntropyLoss()


class Watch:
    """Writes down pools (before EDBA), subsets and epochs of a trainer."""

    def __init__(self, trainer):
        self.pools, self.subsets, self.epochs, self.lengths = [], [], [], []
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: self.epochs.append([]))
        trainer.add_event_handler(Events.GET_BATCH_COMPLETED, self._pool)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._subset)

    def _pool(self, engine):
        indices = engine.state.batch[0][:, 0].long().tolist()
        self.pools.append(len(indices))
        self.epochs[-1] += indices

    def _subset(self, engine):
        self.subsets.append(engine.state.batch[0][:, 0].long().tolist())
        self.lengths.append(engine.state.epoch_length)


def attached(model=None, data=None, settings=None, sizes=None, **trainer_arguments):
    """A supervised trainer with EDBA, whose batches may follow ``sizes``: (trainer, handler, loader, watch)."""
    model = net() if model is None else model
    data = loader() if data is None else data
    trainer = create_supervised_trainer(model, sgd(model), LOSS, **trainer_arguments)
    watch = Watch(trainer)
    policy = {} if sizes is None else {"batch_size_policy": following(sizes)}
    handler = EDBAHandler(model, LOSS, preset="paper", **policy, **(settings or {}))
    handler.attach(trainer, data)
    return trainer, handler, data, watch
