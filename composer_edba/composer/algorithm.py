"""EDBA as an algorithm of MosaicML Composer: the Trainer's events, mapped to the engine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from composer.core import Event, Precision, State, TimeUnit, get_precision_context
from composer.loggers import Logger
from composer.utils import batch_get, batch_set
from torch import Tensor
from typing_extensions import Unpack, override

from composer_edba.composer.base import EventAlgorithm
from composer_edba.composer.epochs import EpochLength
from composer_edba.composer.microbatches import Microbatches
from composer_edba.composer.refusals import (
    check_algorithms,
    check_ghost_batches,
    ghost_batch_size,
    why_mixed,
)
from composer_edba.composer.running_trainer import running_trainer
from composer_edba.engine import Engine, LastSelection, Loop, Network
from composer_edba.loading.batch import batch_size, default_input_key, default_target_key
from composer_edba.loops.summary import summary_of
from composer_edba.method.selector import highest_learning_rate
from composer_edba.method.sizing import is_policy
from composer_edba.scoring.cache import ScoreCache
from composer_edba.scoring.images import scaled_images
from composer_edba.scoring.norms import NormMemory
from composer_edba.scoring.sample_losses import loss_parts
from composer_edba.scoring.training_scores import TrainingScores
from composer_edba.settings import SETTINGS, Settings, checked, documented, is_by_mass, shown

__all__ = ["EDBA"]

# Handled only where scores can be remembered.
_ONLY_REMEMBERED = (Event.BEFORE_TRAIN_BATCH, Event.AFTER_FORWARD, Event.BEFORE_LOSS, Event.FIT_END)


@documented("composer")
class EDBA(EventAlgorithm):
    """Efficient Dynamic Batch Adaptation: train on the samples of each batch that suit how well the model fits.

    By default samples that together carry at most ``left_out`` of a pool's last-layer gradient norms are left out
    before they are loaded, and the batch is refilled; the norms are those of when each was last trained on.

    With ``criterion="margin"`` a subset is chosen whose mean last-layer gradient brings |(M - M̄) / (G - Ḡ) - 1|
    (equation 1) closest to zero, M being the pool's mean loss and G the norm of that mean gradient, bars their running
    averages. The batch size follows ``batch_size_policy``. Source: Simionescu and Stoica, "Efficient Dynamic Batch
    Adaptation", AAAI-23 student abstract.

    Runs on ``Event.AFTER_DATALOADER``, before all other algorithms, and sets ``device_train_microbatch_size``.

    A run resumed from a checkpoint goes on bitwise as an uninterrupted one. At an epoch's end everything may have
    changed, the data set and the number of ranks too. In its middle the loader must make a pass over as many samples
    (other content cannot be noticed) on as many ranks, or FIT_START raises a ValueError. The loader's batch size gives
    way to the one that was reached (in samples a rank), new bounds move it inside, and another ``batch_size_policy``
    begins anew at the loader's; the averages stay. Checkpoints of runs without EDBA can be taken up at any batch. A run
    that leaves EDBA out is right from an epoch's end on: in its middle Composer skips as many batches, of the loader's
    size.

    An EDBA that is given to another Trainer begins anew there, a ``batch_size_policy`` that is an object at the memory
    that it had when EDBA got it. Further fits of one Trainer go on.

    Args:
        settings: see :mod:`composer_edba.settings`.

    Raises:
        ValueError: an argument is out of its range, or bounds contradict each other; later, an algorithm beside it
            cannot run with it, see :mod:`composer_edba.composer.refusals`.
        TypeError: the model is no ComposerModel.

    Example:
        >>> from composer import Trainer
        >>> from composer_edba import EDBA
        >>> trainer = Trainer(model=model, train_dataloader=loader, max_duration="10ep", algorithms=[EDBA()])
    """

    _policy_memory: dict[str, Any] | None = None  # of a policy that is the user's own object, before any run

    def __init__(self, **settings: Unpack[Settings]):
        full = checked(settings, "composer")
        self.settings = {name: value for name, value in full.items() if "composer" in SETTINGS[name].loops}
        # Composer asks for it at every event, and writes it into checkpoints: nothing in it changes during a run.
        self._repr = f"EDBA({shown(self.settings)})"
        self._microbatches = Microbatches()
        self._loop = _TrainerLoop(full, self._microbatches)
        self._engine = Engine(full, self._loop, "train_dataloader")
        self._length = EpochLength(self._engine.pools)
        self._cache_logged = False
        if not self._engine.may_remember:
            for event in _ONLY_REMEMBERED:
                self._handlers.pop(event, None)
            if not is_by_mass(full["criterion"]):
                self._handlers.pop(Event.AFTER_LOSS, None)
        if is_policy(policy := full["batch_size_policy"]):  # the user's own object, which has this run's memory next
            if self._policy_memory is None:
                self._policy_memory = copy.deepcopy(policy.state_dict())
            else:
                policy.load_state_dict(copy.deepcopy(self._policy_memory))

    @classmethod
    def paper(cls, **overrides: Unpack[Settings]) -> EDBA:
        """EDBA with the paper's literal settings, whatever the defaults become, but for ``overrides``.

        Where the paper is silent (averages, candidates, size law, policy) these are our first readings of it.
        """
        settings: Settings = {"preset": "paper", **overrides}
        return cls(**settings)

    def __repr__(self) -> str:
        return self._repr

    @property
    def batch_size(self) -> int | None:
        """Size aimed at for the batches from now on, in samples a rank; None before training or if it cannot change."""
        return self._engine.batch_size

    @property
    def distinct_samples(self) -> int | None:
        """Number of distinct samples ever trained on, over all ranks; None if the loader has no indices."""
        return None if (distinct := self._engine.pools.distinct) is None else len(distinct)

    @property
    def last_selection(self) -> LastSelection | None:
        """What this step chose from, and what, after AFTER_DATALOADER; None if it did not choose, or has no indices."""
        return self._engine.last_selection

    def summary(self) -> str:
        """What the run came to so far, as a table in plain text: samples drawn, trained on, left out; the overhead."""
        return summary_of(self._engine)

    @property
    def score_cache(self) -> ScoreCache | NormMemory | None:
        """What is remembered of each sample; None before the first fit, and where nothing is."""
        return None if (remembered := self._engine.remembered) is None else remembered.cache

    # ---- Composer's interface

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Do it."""
        self._loop.state = state
        super().apply(event, state, logger)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on bitwise as an uninterrupted one: plain values, equal on all ranks."""
        limit = {"learned_limit": self._microbatches.learned_limit}
        return {**super().state_dict(), **self._engine.state_dict(), **limit}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Take up what :meth:`state_dict` gave, at the next FIT_START: loader and policy do not exist before."""
        self._engine.load_state_dict(state)
        self._microbatches.learned_limit = state["learned_limit"]

    # ---- events

    def _leave(self) -> None:
        if self._engine.remembered is not None:
            self._engine.remembered.uninstall()

    def _init(self, state: State, logger: Logger) -> None:
        self._check_model(state)
        check_algorithms(self, state.algorithms)
        self._microbatches.ask_user(state)
        self._run_first(state)

    def _before_load(self, state: State, logger: Logger) -> None:
        self._length.note_full(state)

    def _fit_start(self, state: State, logger: Logger) -> None:
        check_algorithms(self, state.algorithms)  # a checkpoint may have brought some
        self._run_first(state)
        spec = None if (trainer := running_trainer()) is None else trainer._train_data_spec
        self._loop.microbatch_transforms = None if spec is None else spec.microbatch_transforms
        self._length.ask_user(state)
        if self._engine.is_new:  # but training may be not: a checkpoint of a run without EDBA
            self._engine.steps = int(state.timestamp.batch)
            self._engine.samples_drawn = int(state.timestamp.sample)
        redrawn = trainer is None or (trainer.spin_dataloaders and "train" not in state.dataset_resumption)
        taken, spun = int(state.timestamp.batch_in_epoch), int(state.timestamp.epoch)
        loader = self._engine.draw_from(state.dataloader, taken, redrawn=redrawn, spun=spun)
        self._length.install(state, loader)
        # Where epochs are passes, their length in batches is open now; else it is the user's.
        self._loop.epoch_length = None if state.dataloader_len is None else int(state.dataloader_len)
        self._loop.note_elapsed(self._engine.part_of_pass)
        self._check_ghost_batches(state)

    def _epoch_start(self, state: State, logger: Logger) -> None:
        self._engine.begin_pass()
        self._loop.note_elapsed(0.0)  # workers have their first batches chosen when the pass begins
        self._length.open(state, logger)

    def _before_dataloader(self, state: State, logger: Logger) -> None:
        self._length.resume(state)
        self._loop.note_elapsed(self._engine.part_of_pass)
        self._length.estimate(state, logger)

    def _after_dataloader(self, state: State, logger: Logger) -> None:
        self._microbatches.notice_halving(state)
        self._loop.note_elapsed(self._engine.part_of_pass)
        state.batch = self._engine.choose(state.batch, lambda batch: self._count_samples(state))
        logger.log_metrics({f"edba/{name}": value for name, value in self._engine.figures.items()})

    def _before_forward(self, state: State, logger: Logger) -> None:
        self._microbatches.notice_halving(state)
        if (recorder := self._recorder) is not None:
            recorder.begin_forward()

    def _after_train_batch(self, state: State, logger: Logger) -> None:
        if self._recorder is not None:
            assert self._engine.remembered is not None
            self._engine.remembered.end_microbatches()
            self._loop.loss_scale = 1.0
            if state.precision == Precision.AMP_FP16 and state.scaler is not None:
                self._loop.loss_scale = state.scaler.scale(torch.ones((), device=self._loop.device()))

    def _batch_end(self, state: State, logger: Logger) -> None:
        if left_out := self._engine.samples_not_loaded:  # durations and intervals in samples go by those drawn
            now = state.timestamp
            state.timestamp = now.copy(
                sample=int(now.sample) + left_out, sample_in_epoch=int(now.sample_in_epoch) + left_out
            )
        self._length.close(state, logger)
        # Share of this step's time since the data arrived. The trainer has read the loss by now, so a GPU is in step.
        overhead = self._engine.end_step(self._gradient_factor())
        if not self._cache_logged and self.score_cache is not None and self.score_cache.bytes > 0:
            self._cache_logged = True
            logger.log_metrics({"edba/cache_bytes": self.score_cache.bytes})
        logger.log_metrics({"edba/overhead": overhead}, step=int(state.timestamp.batch) - 1)

    # ---- what training tells of its samples

    def _gradient_factor(self) -> Tensor | float | None:
        """What makes the gradients of the step's backward those of its samples' own losses; None: nothing records."""
        samples = None if self._engine.remembered is None else self._engine.remembered.samples
        # Composer weighs the mean of each microbatch by its share of the batch.
        return None if samples is None else samples / (self._loop.loss_scale * self._engine.gradient_weight)

    @property
    def _recorder(self) -> TrainingScores | None:
        return None if self._engine.remembered is None else self._engine.remembered.recorder

    def _before_train_batch(self, state: State, logger: Logger) -> None:
        if (recorder := self._recorder) is not None:
            recorder.begin_step()

    def _after_forward(self, state: State, logger: Logger) -> None:
        if (recorder := self._recorder) is not None:
            recorder.end_forward()

    def _before_loss(self, state: State, logger: Logger) -> None:
        if (recorder := self._recorder) is not None:
            model: Any = self._loop.network().model
            with get_precision_context(state.precision, state.precision_config):
                recorder.begin_loss(model.loss, state.outputs, state.batch)

    def _after_loss(self, state: State, logger: Logger) -> None:
        if (recorder := self._recorder) is not None:
            recorder.end_loss(state.loss)
        if (weight := self._engine.gradient_weight) != 1:
            for loss in loss_parts(state.loss):  # the gradient alone: what is logged stays the mean over the subset
                loss.register_hook(lambda grad: grad * weight)

    def _fit_end(self, state: State, logger: Logger) -> None:
        if self._engine.remembered is not None:
            self._engine.remembered.uninstall()

    # ---- their parts

    def _check_ghost_batches(self, state: State) -> None:
        if (ghost := ghost_batch_size(state.model)) is None:
            return
        self._engine.scorer.least_samples = ghost
        sizes, rest, sampler = None, None, self._engine.pools.sampler
        least, smallest, largest = (self.settings[f"{name}_size"] for name in ("min_subset", "min_batch", "max_batch"))
        if sampler is not None and self.batch_size is not None:
            total = self._engine.pools.shortest
            fixed = self.settings["batch_size_policy"] == "fixed"
            largest = largest if total is None else min(largest, total)
            sizes = (self.batch_size, self.batch_size) if fixed else (smallest, largest)
            if not sampler.drop_last:
                rest = (total % self.batch_size or None) if fixed and total is not None else 1
        limit = self._microbatches.limit
        check_ghost_batches(ghost, min_subset_size=least, sizes=sizes, smallest_rest=rest, limit=limit)

    def _count_samples(self, state: State) -> int:
        key, batch = self.settings["target_key"], state.batch
        if key is None and ((key := default_target_key(batch)) is None or (key == 1 and not _has_target(batch))):
            return batch_size(batch)
        return batch_size(state.batch_get_item(key))


class _TrainerLoop(Loop):
    """The Trainer as the engine sees it, at the event that is being handled."""

    state: State

    def __init__(self, settings: dict[str, Any], microbatches: Microbatches):
        self._settings, self._microbatches = settings, microbatches
        self.microbatch_transforms: Callable[[Any], Any] | None = None
        self.loss_scale: Tensor | float = 1.0  # of the losses that the last step derived
        self.epoch_length: int | None = None  # in batches, where epochs are no passes
        self.done = -1.0  # fraction of training that is over

    @override
    def device(self) -> torch.device:
        return self.state.device.tensor_to_device(torch.empty(0)).device

    @override
    def network(self) -> Network:
        state, transforms = self.state, self.microbatch_transforms
        model: Any = state.model.module if state.is_model_ddp else state.model

        def prepared(batch: Any) -> Any:
            batch = state.device.batch_to_device(batch)
            batch = batch if transforms is None else transforms(batch)
            return batch if self._settings["scale_factor"] == 1 else self._scaled(batch)

        def precision() -> Any:
            # Not in fp8, whose products need sizes that are multiples of 16.
            return get_precision_context(state.precision, state.precision_config, fp8_autocast_enabled=False)

        return Network(model, lambda outputs, batch: model.loss(outputs, batch), prepared, precision)

    @override
    def most_at_once(self) -> int | None:
        return self._microbatches.limit

    @override
    def seed(self) -> int:
        return int(self.state.rank_zero_seed)

    @override
    def elapsed(self) -> float | None:
        return self.done

    def note_elapsed(self, part_of_pass: float) -> None:
        """Take in how much of training is over before the batch that comes next."""
        state, duration = self.state, self.state.max_duration
        if duration is None or duration.unit != TimeUnit.EPOCH:
            elapsed = state.get_elapsed_duration()
            self.done = -1.0 if elapsed is None else float(elapsed)
            return
        if self.epoch_length is not None:
            part_of_pass = min(1.0, int(state.timestamp.batch_in_epoch) / self.epoch_length)
        self.done = (int(state.timestamp.epoch) + part_of_pass) / int(duration)

    @override
    def learning_rate(self) -> float | None:
        return highest_learning_rate(self.state.optimizers)

    @override
    def ready(self, batch: Any) -> Any:
        # After a checkpoint Composer's EMA leaves its averaged weights in the model until BATCH_START.
        for algorithm in self.state.algorithms:
            if getattr(algorithm, "ema_weights_active", False):
                algorithm._ensure_training_weights_active(self.state)
        return self.state.device.batch_to_device(batch)

    @override
    def trainable(self, samples: int) -> int:
        return self._microbatches.cut(self.state, samples)

    @override
    def why_not_remembered(self) -> str | None:
        return why_mixed(self.state.algorithms)

    @override
    def size_multiple(self, pool_size: int) -> int:
        return self._microbatches.size_multiple(self.state, pool_size)

    def _scaled(self, batch: Any) -> Any:
        key = default_input_key(batch) if self._settings["input_key"] is None else self._settings["input_key"]
        texts = {"what": f"the input at key {key!r}", "advice": ", or name the images by input_key"}
        smaller = scaled_images(batch_get(batch, key), self._settings["scale_factor"], **texts)
        return batch_set(copy.copy(batch), key, smaller)


def _has_target(batch: Any) -> bool:
    return isinstance(batch, (list, tuple)) and len(batch) > 1 and isinstance(batch[1], (Tensor, np.ndarray))
