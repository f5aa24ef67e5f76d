"""EDBA as an algorithm of MosaicML Composer: the Trainer's events, mapped to the torch modules of this package."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from composer.core import Algorithm, Event, Precision, State, get_precision_context
from composer.loggers import Logger
from composer.models import ComposerModel
from composer.utils import dist
from torch import Tensor, nn

from composer_edba.composer.cached_scoring import CachedScoring
from composer_edba.composer.epochs import TrainerLoader
from composer_edba.composer.rank_gather import rank_sizes
from composer_edba.composer.refusals import check_algorithms, check_cached_loader, check_ghost_batches, ghost_batch_size
from composer_edba.composer.running_trainer import running_trainer
from composer_edba.engine import step_generator
from composer_edba.loading.batch import batch_size, default_input_key, default_target_key, index_batch
from composer_edba.loading.distinct import DistinctSamples
from composer_edba.loading.parts import equal_part_size, equal_parts_may_fail
from composer_edba.loading.ranks import gather_rows, gather_scores
from composer_edba.method.candidates import SubsetSizeLaw
from composer_edba.method.choice import Criterion, Selection
from composer_edba.method.selector import SubsetSelector, highest_learning_rate
from composer_edba.method.sizing import PolicyName, make_policy
from composer_edba.presets import PAPER
from composer_edba.scoring.cache import ScoreCache
from composer_edba.scoring.forward import Scorer
from composer_edba.scoring.images import scaled_images
from composer_edba.scoring.side_effects import BatchNormStatistics
from composer_edba.settings import check_arguments

__all__ = ["EDBA", "LastSelection"]

_Result = TypeVar("_Result")


class LastSelection(NamedTuple):
    """Data-set indices of a step's samples on this rank, (B,) and (k,) int64."""

    pool: Tensor
    subset: Tensor


class EDBA(Algorithm):
    """Efficient Dynamic Batch Adaptation: train on the subset of each batch whose gradient suits the fit.

    From every batch (the pool) a subset is chosen whose mean last-layer gradient brings
    |(M - M̄) / (G - Ḡ) - 1| (equation 1) closest to zero, M being the pool's mean loss and G the norm of that mean
    gradient, bars their running averages. The batch size follows ``batch_size_policy``. Source: Simionescu and Stoica,
    "Efficient Dynamic Batch Adaptation", AAAI-23 student abstract.

    Runs on ``Event.AFTER_DATALOADER``, before all other algorithms, and sets ``device_train_microbatch_size``; on
    ``Event.BEFORE_FORWARD`` it only notices when the trainer had to halve that.

    A run resumed from a checkpoint goes on bitwise as an uninterrupted one. What may have changed in between: at an
    epoch's end everything, the data set and the number of ranks too. In the middle of an epoch the loader must make a
    pass over as many samples on as many ranks, or FIT_START raises a ValueError: what is left of the pass could not be
    told. Other content in as many samples cannot be noticed. The loader's batch size gives way to the one that was
    reached (in samples a rank), new bounds move it inside, and another ``batch_size_policy`` begins anew at the
    loader's; the averages stay. Checkpoints of runs without EDBA can be taken up at any batch. A run that leaves EDBA
    out is right from an epoch's end on: in its middle Composer skips as many batches, of the loader's size.

    Args:
        num_candidates: least number of candidate subsets a step, >= 1. Default 1024.
        ema_decay: decay of both running averages in one batch, in [0, 1); from one scored batch to the next it is
            ``ema_decay**interval``. Default 0.9.
        min_subset_size: smallest subset, in samples a rank, >= 1; a pool no larger is trained on whole. Default 10.
        min_batch_size: smallest batch, in samples a rank, >= 1. Default 10, the paper's.
        max_batch_size: largest batch, in samples a rank. Default 1000, the paper's. Training starts at the loader's
            own batch size.
        batch_size_policy: ``"loss"``, ``"margin"``, ``"noise_scale"`` or ``"fixed"``, see
            :mod:`composer_edba.method.sizing`. Default ``"loss"``.
        criterion: ``"margin"``, equation 1; ``"difference"``, the same without its pole, see
            :func:`~composer_edba.functional.select_subset`; or ``"random"``, the control: subsets of the sizes the
            margin would choose, with random members. Default ``"margin"``.
        scoring: ``"forward"``: an extra forward pass without gradients over the pool. ``"cached"``: no such pass; what
            a sample was scored at is kept from when it was last trained on, in N x (F + C + 1) float32 numbers for N
            samples, F features and C classes, and only what is chosen is loaded. See
            :mod:`composer_edba.composer.cached_scoring` and docs/method.md. Default ``"forward"``.
        scale_factor: side length of the images in the scoring forward relative to the real ones, in (0, 1].
            Default 1.0.
        start: fraction of training, in [0, 1], from which on subsets are chosen. Default 0.0.
        end: fraction of training until which subsets are chosen, > ``start``. Default 1.0. Outside of start and end
            the whole batch is trained on and its size stays. With a ``max_duration`` in epochs Composer counts whole
            epochs.
        interval: one batch in ``interval`` is scored and a subset of it chosen, the others are trained on whole;
            1: every batch, the paper's. Default 10: choosing costs more than it has been shown to give (README).
        interrupt: every ``interrupt``-th batch is trained on whole and not scored; 0: none. Default 0.
        last_layer: the layer whose gradient is measured, a module or its name in the ComposerModel (of a
            ComposerClassifier: ``"module.fc"``); a Linear or a 1x1 convolution. None: the one that is called last.
        input_key: where the batch keeps the model's input, needed only for ``scale_factor``; as in Composer's
            algorithms. None: 0, or the first floating-point tensor of a mapping.
        target_key: where the batch keeps the targets; their number is the number of samples. None: 1, or ``labels``,
            ``label``, ``targets``, ``target`` in a mapping; without it all tensors must have the same first dimension.
        subset_size_law: law of the candidates' sizes, see :mod:`composer_edba.method.candidates`: ``"uniform"``,
            ``"upper_half"``, ``"power_set"`` or a share of the pool. Default ``"upper_half"``.
        policy_options: constants of ``batch_size_policy`` in place of its own, such as ``{"largest_growth": 4}``; they
            are the keyword arguments of the policy's class in :mod:`composer_edba.method.sizing`. None: none.
        scoring_batch_norm: what batch normalisation works with in the scoring forward: ``"pool"``, the pool's own
            statistics, as in training; or ``"running"``, its running ones, as in evaluation. Default ``"pool"``.

    Raises:
        ValueError: if an argument is out of its range, or bounds contradict each other; later, if it stands beside an
            algorithm that cannot run with it, see :mod:`composer_edba.composer.refusals`.
        TypeError: if the model is no ComposerModel.

    Example:
        >>> from composer import Trainer
        >>> from composer_edba import EDBA
        >>> trainer = Trainer(model=model, train_dataloader=loader, max_duration="10ep", algorithms=[EDBA()])
    """

    def __init__(
        self,
        num_candidates: int = 1024,
        ema_decay: float = 0.9,
        min_subset_size: int = 10,
        min_batch_size: int = 10,
        max_batch_size: int = 1000,
        batch_size_policy: PolicyName = "loss",
        criterion: Criterion = "margin",
        scoring: str = "forward",
        scale_factor: float = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        interval: int = 10,
        interrupt: int = 0,
        last_layer: nn.Module | str | None = None,
        input_key: Any = None,
        target_key: Any = None,
        subset_size_law: SubsetSizeLaw = "upper_half",
        policy_options: Mapping[str, Any] | None = None,
        scoring_batch_norm: BatchNormStatistics = "pool",
    ):
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check_arguments(**self._arguments)
        shown = {
            name: type(value).__name__ if isinstance(value, nn.Module) else value
            for name, value in self._arguments.items()
        }
        # Composer asks for it at every event, and writes it into checkpoints: nothing in it changes during a run.
        self._repr = f"EDBA({', '.join(f'{name}={value!r}' for name, value in shown.items())})"
        self.min_batch_size = min_batch_size
        self.max_batch_size = max_batch_size
        self.batch_size_policy: PolicyName = batch_size_policy
        self.policy_options = policy_options
        self.scoring = scoring
        self.scale_factor = scale_factor
        self.start = start
        self.end = end
        self.interval = interval
        self.interrupt = interrupt
        self.input_key = input_key
        self.target_key = target_key
        self._selector = SubsetSelector(
            num_candidates=num_candidates,
            ema_decay=ema_decay,
            interval=interval,
            min_subset_size=min_subset_size,
            criterion=criterion,
            subset_size_law=subset_size_law,
        )
        self._scorer = Scorer(last_layer, scoring_batch_norm)
        self._loader = TrainerLoader()
        self._distinct: DistinctSamples | None = None
        self._last_selection: LastSelection | None = None
        self._cached = (
            CachedScoring(self._selector, self._selects, self._size_multiple) if scoring == "cached" else None
        )
        self._cache_logged = False
        self._samples_not_loaded = 0  # drawn, and left out before anything was loaded
        self._samples_scored = 0
        self._samples_trained = 0
        self._user_limit: int | None = None  # microbatch size that the user set
        self._learned_limit: int | None = None  # microbatch size that the trainer was driven down to
        self._microbatch_set: int | None = None
        self._microbatch_transforms: Callable[[Any], Any] | None = None
        self._step_began = 0.0
        self._overhead_seconds = 0.0
        self._resume_from: dict[str, Any] | None = None
        self._handlers: dict[Event, Callable[[State, Logger], None]] = {
            Event.INIT: self._init,
            Event.FIT_START: self._fit_start,
            Event.EPOCH_START: self._epoch_start,
            Event.BEFORE_DATALOADER: self._before_dataloader,
            Event.AFTER_DATALOADER: self._after_dataloader,
            Event.BEFORE_FORWARD: self._before_forward,
            Event.AFTER_TRAIN_BATCH: self._after_train_batch,
            Event.BATCH_END: self._batch_end,
        }

    @classmethod
    def paper(cls, **overrides: Any) -> EDBA:
        """EDBA with the paper's literal settings, whatever the defaults become.

        Where the paper is silent (averages, candidates, size law, policy) these are our first readings of it.

        Args:
            overrides: arguments that differ.
        """
        return cls(**{**PAPER, "scoring": "forward", "start": 0.0, "end": 1.0, **overrides})

    def __repr__(self) -> str:
        return self._repr

    @property
    def batch_size(self) -> int | None:
        """Size of the batches drawn from now on, in samples a rank; None before training or if it cannot change."""
        policy = self._selector.policy
        return None if policy is None else policy.size

    @property
    def distinct_samples(self) -> int | None:
        """Number of distinct samples ever trained on, over all ranks; None if the loader has no indices."""
        return None if self._distinct is None else len(self._distinct)

    @property
    def last_selection(self) -> LastSelection | None:
        """What this step chose from, and what, after AFTER_DATALOADER; None if it did not choose, or has no indices."""
        return self._last_selection

    @property
    def score_cache(self) -> ScoreCache | None:
        """What ``scoring="cached"`` knows of each sample; None before the first fit, and with ``"forward"``."""
        return None if self._cached is None else self._cached.cache

    # ---- Composer's interface

    def match(self, event: Event, state: State) -> bool:
        """Whether this algorithm has something to do at ``event``."""
        return event in self._handlers or (self._cached is not None and event in self._cached.handlers)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Do it."""
        if self._cached is not None and event in self._cached.handlers:
            self._cached.handlers[event](state)
        if event in self._handlers:
            self._handlers[event](state, logger)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on bitwise as an uninterrupted one: plain values, equal on all ranks."""
        return {
            **super().state_dict(),
            "batch_size_policy": self.batch_size_policy,
            "selector": self._selector.state_dict(),
            "loader": self._loader.state_dict(),
            "distinct": None if self._distinct is None else self._distinct.state_dict(),
            "cached": None if self._cached is None else self._cached.state_dict(),
            "samples_not_loaded": self._samples_not_loaded,
            "samples_scored": self._samples_scored,
            "samples_trained": self._samples_trained,
            "learned_limit": self._learned_limit,
            "chunk_limit": self._scorer.chunk_limit,
        }

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Take up what :meth:`state_dict` gave, at the next FIT_START: loader and policy do not exist before."""
        self._resume_from = copy.deepcopy(state)

    # ---- events

    def _init(self, state: State, logger: Logger) -> None:
        if not isinstance(state.model, ComposerModel):
            raise TypeError(
                f"the model is a {type(state.model).__name__}: EDBA needs a ComposerModel, whose loss it calls; "
                "composer.models.ComposerClassifier makes one of a classifier"
            )
        check_algorithms(self, state.algorithms)
        # None unless the user asked for a number. From the first fit on it no longer tells.
        limit = state.device_train_microbatch_size
        self._user_limit = None if limit is None else int(limit)
        self._run_first(state)

    def _fit_start(self, state: State, logger: Logger) -> None:
        check_algorithms(self, state.algorithms)  # a checkpoint may have brought some
        self._run_first(state)
        trainer = running_trainer()
        spec = None if trainer is None else trainer._train_data_spec
        self._microbatch_transforms = None if spec is None else spec.microbatch_transforms
        if self._cached is not None:
            check_cached_loader(state.dataloader)
        first_size = self._loader.install(state)
        self._set_policy(first_size)
        self._set_distinct(state)
        if self._cached is not None:
            if self._loader.uneven:
                raise ValueError(
                    "the ranks' shards differ in length: scoring='cached' has all ranks choose together from pools of "
                    "one size. Use a sampler that shards evenly, such as DistributedSampler, or scoring='forward'"
                )
            assert self._loader.sampler is not None
            spins = trainer is None or (trainer.spin_dataloaders and "train" not in state.dataset_resumption)
            self._cached.install(self._loader.sampler, state, spins=spins)
        if self._resume_from is None:
            self._loader.replay_without_state(first_size, state)
        else:
            self._take_up(self._resume_from, state)
            self._resume_from = None
        if self.batch_size is not None:
            self._loader.resize(self.batch_size)
        self._check_ghost_batches(state)

    def _epoch_start(self, state: State, logger: Logger) -> None:
        self._loader.forget_replay()
        self._loader.open_epoch(state)

    def _before_dataloader(self, state: State, logger: Logger) -> None:
        self._loader.estimate_length(state)

    def _after_dataloader(self, state: State, logger: Logger) -> None:
        self._step_began = time.perf_counter()
        self._overhead_seconds = 0.0
        self._loader.forget_replay()
        self._notice_halving(state)
        if self._cached is not None:
            self._take_chosen(self._cached, state, logger)
            return
        dataset_indices = self._dataset_indices(state)
        pool_size = self._count_samples(state)
        selection, kept = None, None
        if self._selects(state, int(state.timestamp.batch_in_epoch), int(state.timestamp.batch)):
            _leave_averaged_weights(state)
            state.batch = state.device.batch_to_device(state.batch)
            selection, kept = self._select(state, pool_size)
        kept = self._set_microbatches(state, pool_size if kept is None else len(kept), kept)
        if kept is not None and len(kept) < pool_size:
            state.batch = index_batch(state.batch, kept, pool_size)
        subset_size = pool_size if kept is None else len(kept)
        if selection is not None:
            self._overhead_seconds = time.perf_counter() - self._step_began
            if self.batch_size is not None:
                self._loader.resize(self.batch_size)
        self._count(state, dataset_indices, kept, pool_size, subset_size, selection is not None)
        self._log(logger, pool_size, subset_size, {} if selection is None else self._selector.figures(selection))

    def _take_chosen(self, cached: CachedScoring, state: State, logger: Logger) -> None:
        """scoring="cached": the batch holds a subset already; have the step record what it finds out about it."""
        choice = cached.take(self._count_samples(state))
        rank, (ranks, pool_size), indices = dist.get_global_rank(), choice.pool.shape, choice.subset
        loaded = indices.shape[1]
        kept = self._set_microbatches(state, loaded, None)
        if kept is not None:
            state.batch = index_batch(state.batch, kept, loaded)
            indices = indices[:, : len(kept)]
        if self._in_span(state):
            layer = self._run_scorer(self._scorer.find_layer, state, state.batch)
            if self._scorer.positions > 1:
                raise ValueError(
                    f"the last layer, a {type(layer).__name__}, is applied at {self._scorer.positions} positions of a "
                    "sample (tokens, pixels): scoring='cached' keeps one row a sample. Use scoring='forward', or name "
                    "another layer as last_layer"
                )
            cached.record(indices, layer)
        else:
            cached.record(None, None)
        self._samples_trained += indices.size
        self._samples_not_loaded += ranks * (pool_size - loaded)
        assert self._distinct is not None
        self._distinct.add(indices.ravel())
        figures = {
            **choice.figures,
            "samples_drawn": int(state.timestamp.sample) + ranks * loaded + self._samples_not_loaded,
        }
        self._last_selection = None
        if choice.figures:
            figures["score_age"] = int(state.timestamp.batch) - choice.recorded
            pool, subset = torch.from_numpy(choice.pool[rank]), torch.from_numpy(indices[rank])
            self._last_selection = LastSelection(pool, subset)
        self._log(logger, pool_size, indices.shape[1], figures)

    def _before_forward(self, state: State, logger: Logger) -> None:
        self._notice_halving(state)

    def _after_train_batch(self, state: State, logger: Logger) -> None:
        self._loader.estimate_length(state)

    def _batch_end(self, state: State, logger: Logger) -> None:
        self._loader.close_epoch(state)
        now = time.perf_counter()
        # Share of this step's time since the data arrived. The trainer has read the loss by now, so a GPU is in step.
        total = now - self._step_began
        if self._cached is not None:
            choosing, recording = self._cached.take_seconds()
            self._overhead_seconds = choosing + recording
            total += choosing  # before the data arrived
            if not self._cache_logged and self.score_cache is not None and self.score_cache.bytes > 0:
                self._cache_logged = True
                logger.log_metrics({"edba/cache_bytes": self.score_cache.bytes})
        overhead = self._overhead_seconds / total
        logger.log_metrics({"edba/overhead": overhead}, step=int(state.timestamp.batch) - 1)

    # ---- FIT_START's parts

    def _run_first(self, state: State) -> None:
        """Move to the end of the algorithms, which Composer runs backwards on AFTER_DATALOADER."""
        if state.algorithms[-1] is not self:
            state.algorithms.remove(self)
            state.algorithms.append(self)

    def _set_policy(self, first_size: int | None) -> None:
        before = self._selector.policy
        if first_size is None:
            self._selector.policy = None
            return
        largest = self._loader.largest_batch
        maximum = self.max_batch_size if largest is None else min(self.max_batch_size, largest)
        minimum = min(self.min_batch_size, maximum)
        adaptive = self.batch_size_policy != "fixed"
        if adaptive and before is None and not self.min_batch_size <= first_size <= self.max_batch_size:
            warnings.warn(
                f"the train_dataloader's batch size {first_size} lies outside of min_batch_size={self.min_batch_size} "
                f"and max_batch_size={self.max_batch_size}: training starts at "
                f"{min(max(first_size, minimum), maximum)}. Give EDBA bounds that hold {first_size} to start there",
                stacklevel=2,
            )
        policy = make_policy(
            self.batch_size_policy,
            first_size,
            minimum,
            maximum,
            ranks=dist.get_world_size(),
            options=self.policy_options,
        )
        if before is not None:  # a second fit goes on at the size of the first
            policy.load_state_dict(before.state_dict())
        self._selector.policy = policy

    def _set_distinct(self, state: State) -> None:
        if self._loader.largest_batch is None:  # no indices
            self._distinct = None
            return
        size = len(state.dataloader.dataset)
        if self._distinct is None or self._distinct.size != size:
            self._distinct = DistinctSamples(size)

    def _check_ghost_batches(self, state: State) -> None:
        ghost = ghost_batch_size(state.model)
        if ghost is None:
            return
        self._scorer.least_samples = ghost
        sizes, rest, sampler = None, None, self._loader.sampler
        if sampler is not None and self.batch_size is not None:
            total = self._loader.largest_batch
            fixed = self.batch_size_policy == "fixed"
            largest = self.max_batch_size if total is None else min(self.max_batch_size, total)
            sizes = (self.batch_size, self.batch_size) if fixed else (self.min_batch_size, largest)
            if not sampler.drop_last:
                rest = (total % self.batch_size or None) if fixed and total is not None else 1
        check_ghost_batches(
            ghost,
            min_subset_size=self._selector.min_subset_size,
            sizes=sizes,
            smallest_rest=rest,
            limit=self._limit,
        )

    def _take_up(self, saved: dict[str, Any], state: State) -> None:
        # One policy's memory says nothing to another, which begins anew at the loader's batch size.
        same_policy = saved["batch_size_policy"] == self.batch_size_policy
        self._selector.load_state_dict(saved["selector"] if same_policy else {**saved["selector"], "policy": None})
        self._loader.load_state_dict(saved["loader"], state)
        if self._distinct is not None and saved["distinct"] is not None:
            self._distinct.load_state_dict(saved["distinct"])
        self._samples_scored = saved["samples_scored"]
        self._samples_trained = saved["samples_trained"]
        self._samples_not_loaded = saved["samples_not_loaded"]
        if self._cached is not None and saved["cached"] is not None:
            self._cached.load_state_dict(saved["cached"], state)
        self._learned_limit = saved["learned_limit"]
        self._scorer.chunk_limit = saved["chunk_limit"]

    # ---- AFTER_DATALOADER's parts

    def _in_span(self, state: State) -> bool:
        elapsed = state.get_elapsed_duration()
        return elapsed is not None and self.start <= float(elapsed) < self.end

    def _selects(self, state: State, number: int, step: int) -> bool:
        """Whether a subset is chosen for batch ``number`` of the epoch, ``step`` of the run."""
        scheduled = step % self.interval == 0 and (self.interrupt == 0 or (number + 1) % self.interrupt != 0)
        return scheduled and self._in_span(state)

    def _size_multiple(self, state: State, pool_size: int) -> int:
        """What the sizes of subsets are to be multiples of.

        An even number can always be cut into microbatches none of which has one sample, also once the trainer, out of
        memory, has halved it.
        """
        return 2 if state.auto_microbatching or equal_parts_may_fail(pool_size, self._limit) else 1

    def _count_samples(self, state: State) -> int:
        key = default_target_key(state.batch) if self.target_key is None else self.target_key
        if self.target_key is None and (key is None or (key == 1 and not _has_target(state.batch))):
            return batch_size(state.batch)
        return batch_size(state.batch_get_item(key))

    def _select(self, state: State, pool_size: int) -> tuple[Selection, Tensor]:
        """Score the pool of all ranks and choose; returns this rank's part as positions in its own pool."""
        sizes = rank_sizes(pool_size, state.device)
        inner_products, model_metric = self._score(state, sizes)
        selection = self._selector.select(
            inner_products,
            model_metric,
            step_generator(int(state.rank_zero_seed), int(state.timestamp.batch)),
            size_multiple=self._size_multiple(state, max(sizes)),
            group_sizes=sizes,
            learning_rate=highest_learning_rate(state.optimizers),
        )
        self._samples_scored += sum(sizes)
        self._selector.warn_once_of_nonfinite(selection, f"at batch {int(state.timestamp.batch)}")
        first = sum(sizes[: dist.get_global_rank()])
        mine = (selection.indices >= first) & (selection.indices < first + pool_size)
        return selection, selection.indices[mine] - first

    def _score(self, state: State, sizes: list[int]) -> tuple[Tensor, Tensor]:
        gathered = gather_scores(self._run_scorer(self._scorer, state, state.batch), sizes)
        return gathered.inner_products(), gathered.model_metric

    def _run_scorer(self, scorer: Callable[..., _Result], state: State, batch: Any) -> _Result:
        """Call ``scorer``, the Scorer or its find_layer, with the Trainer's model, loss, transforms and precision."""
        wrapper = state.model
        model = wrapper.module if state.is_model_ddp else wrapper
        assert isinstance(model, nn.Module)
        transforms = self._microbatch_transforms
        if self._limit is not None:
            limit = self._scorer.chunk_limit
            self._scorer.chunk_limit = self._limit if limit is None else min(limit, self._limit)

        def prepared(batch: Any) -> Any:
            batch = state.device.batch_to_device(batch)
            batch = batch if transforms is None else transforms(batch)
            return batch if self.scale_factor == 1 else self._scaled(batch)

        def precision() -> Any:
            if state.precision == Precision.AMP_FP8:  # its products need sizes that are multiples of 16
                return get_precision_context(state.precision, state.precision_config, fp8_autocast_enabled=False)
            return get_precision_context(state.precision, state.precision_config)

        return scorer(
            model,
            batch,
            lambda outputs, batch: model.loss(outputs, batch),  # type: ignore[operator]
            prepare=prepared,
            precision=precision,
        )

    def _scaled(self, batch: Any) -> Any:
        from composer.utils import batch_get, batch_set

        key = default_input_key(batch) if self.input_key is None else self.input_key
        images = batch_get(batch, key)
        smaller = scaled_images(
            images, self.scale_factor, what=f"the input at key {key!r}", advice=", or name the images by input_key"
        )
        return batch_set(copy.copy(batch), key, smaller)

    @property
    def _limit(self) -> int | None:
        """Most samples that may go through the network at once; None: no bound is known."""
        limits = [limit for limit in (self._user_limit, self._learned_limit) if limit is not None]
        return min(limits, default=None)

    def _set_microbatches(self, state: State, samples: int, kept: Tensor | None) -> Tensor | None:
        """Cut ``samples`` into equal microbatches under the limit, none of one sample."""
        size = equal_part_size(samples, self._limit)
        if size is None:  # a whole pool, say an odd one in pairs: there is no way but to leave one out
            kept = (torch.arange(samples) if kept is None else kept)[:-1]
            size = 2
        state.device_train_microbatch_size = size
        self._microbatch_set = size
        return kept

    def _notice_halving(self, state: State) -> None:
        """Remember a microbatch size that the trainer had to reduce after running out of memory."""
        size = state.device_train_microbatch_size
        if self._microbatch_set is not None and size is not None and size < self._microbatch_set:
            self._learned_limit = self._microbatch_set = int(size)

    def _dataset_indices(self, state: State) -> list[int] | None:
        sampler = self._loader.sampler
        return None if sampler is None else sampler.indices_of(int(state.timestamp.batch_in_epoch))

    def _count(
        self,
        state: State,
        dataset_indices: list[int] | None,
        kept: Tensor | None,
        pool_size: int,
        subset_size: int,
        scored: bool,
    ) -> None:
        sizes = rank_sizes(subset_size, state.device)
        self._samples_trained += sum(sizes)
        self._last_selection = None
        if self._distinct is None or dataset_indices is None or len(dataset_indices) != pool_size:
            return
        chosen = torch.tensor(dataset_indices)
        pool = chosen
        if kept is not None:
            chosen = chosen[kept]
        if scored:
            self._last_selection = LastSelection(pool, chosen)
        if len(sizes) > 1:
            chosen = gather_rows(state.device.tensor_to_device(chosen), sizes).cpu()
        self._distinct.add(chosen.numpy())

    def _log(self, logger: Logger, pool_size: int, subset_size: int, figures: dict[str, float]) -> None:
        figures = {
            "batch_size": pool_size,
            "subset_size": subset_size,
            "samples_scored": self._samples_scored,
            "samples_trained": self._samples_trained,
            "nonfinite_steps": self._selector.nonfinite_steps,
            **figures,
        }
        if self._distinct is not None:
            figures["distinct_samples"] = len(self._distinct)
        logger.log_metrics({f"edba/{name}": value for name, value in figures.items()})


def _has_target(batch: Any) -> bool:
    return isinstance(batch, (list, tuple)) and len(batch) > 1 and isinstance(batch[1], (Tensor, np.ndarray))


def _leave_averaged_weights(state: State) -> None:
    """After a checkpoint Composer's EMA leaves its averaged weights in the model until BATCH_START."""
    for algorithm in state.algorithms:
        if getattr(algorithm, "ema_weights_active", False):
            algorithm._ensure_training_weights_active(state)
