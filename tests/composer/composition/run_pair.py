"""One pair of the composition matrix in a real Trainer, with everything that must hold of it."""

import functools
import math
import re
import tempfile
import warnings

import torch
from composer import Callback, Event, Trainer
from composer.loggers import InMemoryLogger

from composer_edba import EDBA
from composer_edba.loading.batch import batch_size
from composer_edba.scoring.forward import Scorer
from composer_edba.scoring.side_effects import without_side_effects
from tests.composer.composition.pairs import OWN_WARNINGS, PAIRS
from tests.scoring.test_forward import assert_same, snapshot

EPOCHS = 3
MICROBATCH = 16


class Witness(Callback):
    """Writes down which algorithm ran when on AFTER_DATALOADER, what EDBA chose, and what was trained on."""

    def __init__(self, algorithms):
        self.order, self.chosen, self.trained, self.losses = [], [], [], []
        for algorithm in algorithms:
            self._watch(algorithm)

    def _watch(self, algorithm):
        apply = algorithm.apply

        def watched(event, state, logger):
            result = apply(event, state, logger)
            if event == Event.AFTER_DATALOADER:
                self.order.append(type(algorithm).__name__)
                if isinstance(algorithm, EDBA):
                    self.chosen.append(_clone(state.batch))
            return result

        algorithm.apply = watched

    def batch_start(self, state, logger):
        self.trained.append(_clone(state.batch))

    def batch_end(self, state, logger):
        self.losses.append(float(state.total_loss_dict["loss/train/total"]))


def _clone(batch):
    if isinstance(batch, dict):
        return {name: tensor.clone() for name, tensor in batch.items()}
    return [tensor.clone() for tensor in batch]


def _tensors(batch):
    return list(batch.values()) if isinstance(batch, dict) else list(batch)


@functools.cache
def run_pair(key: str, edba_first: bool, microbatch: int | None = None) -> str:
    """Run a pair, check it, and say how it went.

    Args:
        key: a key of ``PAIRS``.
        edba_first: whether EDBA stands first in the user's list.
        microbatch: the Trainer's device_train_microbatch_size.

    Returns:
        ``"yes"`` or ``"refused"``.

    Raises:
        AssertionError: if something does not hold.
    """
    pair = PAIRS[key]
    torch.manual_seed(2)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("error")
        for message in OWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        other, edba = pair.make(), EDBA.paper(**pair.edba)
        witness = Witness([edba, other])
        model, loader = pair.setup()
        arguments = dict(pair.trainer)
        if "save_interval" in arguments:
            arguments["save_folder"] = folder
        logger = InMemoryLogger()
        try:
            trainer = Trainer(
                model=model,
                train_dataloader=loader,
                max_duration=f"{EPOCHS}ep",
                optimizers=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
                algorithms=[edba, other] if edba_first else [other, edba],
                callbacks=[witness],
                loggers=[logger],
                device_train_microbatch_size=microbatch,
                progress_bar=False,
                seed=5,
                **arguments,
            )
            trainer.fit()
        except ValueError as error:
            if pair.refused is None or not re.search(pair.refused, str(error)):
                raise
            assert not witness.trained, "a refused pair must not begin to train"
            return "refused"
        assert pair.refused is None, f"{key} was not refused"
        _check_training(pair, trainer, witness, logger, other)
        _check_scoring(trainer.state.model, loader)
        trainer.close()
    return "yes"


def _check_training(pair, trainer, witness, logger, other):
    steps = int(trainer.state.timestamp.batch)
    assert steps >= 2 * EPOCHS
    assert int(trainer.state.timestamp.epoch) == EPOCHS
    assert len(witness.losses) == len(witness.trained) == steps
    assert all(math.isfinite(loss) for loss in witness.losses)

    if pair.leaves is not None:
        modules = trainer.state.model.modules()
        assert any(type(module).__name__ == pair.leaves or hasattr(module, pair.leaves) for module in modules)

    others = [name for name in witness.order if name != "EDBA"]
    each_step = ["EDBA", type(other).__name__] if others else ["EDBA"]
    assert witness.order == each_step * steps, "EDBA must run first on AFTER_DATALOADER"

    sizes = [int(size) for _, size in logger.data["edba/subset_size"]]
    pools = [int(size) for _, size in logger.data["edba/batch_size"]]
    assert [batch_size(batch) for batch in witness.chosen] == sizes
    assert any(size < pool for size, pool in zip(sizes, pools, strict=True)), "nothing was left out"
    assert all(size <= pool for size, pool in zip(sizes, pools, strict=True))
    for chosen, trained in zip(witness.chosen, witness.trained, strict=True):
        if pair.changes_batch:
            assert batch_size(trained) in (batch_size(chosen), pair.samples_factor * batch_size(chosen))
        else:
            assert all(torch.equal(a, b) for a, b in zip(_tensors(chosen), _tensors(trained), strict=True))
    if pair.changes_batch:
        changed = [
            any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(_tensors(c), _tensors(t), strict=True))
            for c, t in zip(witness.chosen, witness.trained, strict=True)
        ]
        assert any(changed), "the algorithm did nothing"


def _check_scoring(model, loader):
    """After the surgery: no trace of a scoring, and the pool's gradient metric is autograd's."""
    batch = next(iter(loader))
    model.train()
    model.zero_grad()
    loss = model.loss(model(batch), batch)
    if loss.requires_grad:  # not after LayerFreezing
        loss.backward()
    before = snapshot(model)
    scorer = Scorer()
    scorer.least_samples = 16  # for ghost batches
    scores = scorer(model, batch, lambda outputs, batch: model.loss(outputs, batch))
    assert_same(before, snapshot(model))

    layer = scorer._layer
    parameters = list(layer.parameters())
    asked = [parameter.requires_grad for parameter in parameters]
    layer.requires_grad_(True)
    with without_side_effects(model):
        gradients = torch.autograd.grad(model.loss(model(batch), batch), parameters)
    for parameter, wish in zip(parameters, asked, strict=True):
        parameter.requires_grad_(wish)
    expected = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    metric = float(scores.inner_products().mean().clamp_min(0).sqrt())
    # Under autocast the weight's gradient is summed in bfloat16.
    tolerance = 2e-2 if any("LP" in type(module).__name__ for module in model.modules()) else 1e-4
    assert math.isclose(metric, expected, rel_tol=tolerance), (metric, expected)
