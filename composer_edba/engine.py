"""EDBA around a training step, for loops that are not Composer's: pool in, chosen subset out. Knows no framework.

:class:`PoolSelection` is what the Ignite handler and :class:`~composer_edba.plain.SubsetLoader` have in common.
"""

from __future__ import annotations

import base64
import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.data import DataLoader
from typing_extensions import TypedDict, Unpack

from composer_edba.loading.batch import batch_size, index_batch
from composer_edba.loading.distinct import DistinctSamples
from composer_edba.loading.ranks import from_rank_zero, gather_rows, gather_scores, rank, rank_sizes, world_size
from composer_edba.loading.sampler import ResizableBatchSampler, resizable_copy
from composer_edba.method.candidates import SubsetSizeLaw
from composer_edba.method.choice import Criterion, Selection
from composer_edba.method.selector import SubsetSelector, highest_learning_rate
from composer_edba.method.sizing import PolicyName, make_policy
from composer_edba.presets import DEFAULTS, PAPER
from composer_edba.scoring.forward import Scorer
from composer_edba.scoring.images import scaled_images
from composer_edba.scoring.last_layer import named_last_layer
from composer_edba.scoring.side_effects import BatchNormStatistics
from composer_edba.settings import check_arguments

__all__ = ["PoolSelection", "Settings", "checked_settings", "step_generator"]

# Distinguishes this package's random stream from others that are seeded from the same run.
_STREAM = 0xEDBA


class Settings(TypedDict, total=False):
    """What can be set about the selection, the same in every loop and with the meaning it has in Composer's EDBA.

    Attributes:
        preset: ``"default"``, or ``"paper"``: the paper's literal settings in place of the defaults named here. Default
            ``"default"``.
        num_candidates: least number of candidate subsets a step, >= 1. Default 1024.
        ema_decay: decay of both running averages in one batch, in [0, 1); from one scored batch to the next it is
            ``ema_decay**interval``. Default 0.9.
        min_subset_size: smallest subset, in samples a rank, >= 1. Default 10.
        min_batch_size: smallest batch, in samples a rank, >= 1. Default 10.
        max_batch_size: largest batch, in samples a rank. Default 1000. Training starts at the loader's own size.
        batch_size_policy: ``"loss"``, ``"margin"``, ``"noise_scale"`` or ``"fixed"``. Default ``"loss"``.
        criterion: ``"margin"``, ``"difference"``, or ``"random"``, the control. Default ``"margin"``.
        scale_factor: side length of the images in the scoring forward relative to the real ones, in (0, 1]. The
            model's input is then one tensor with 1 to 3 spatial dimensions. Default 1.0.
        interval: one batch in ``interval`` is scored and a subset of it chosen, the others are trained on whole;
            1: every batch, the paper's. Default 10.
        interrupt: every ``interrupt``-th batch of a pass is trained on whole and not scored; 0: none. Default 0.
        last_layer: the layer whose gradient is measured, a module or its name in the model; a Linear or a 1x1
            convolution. None, the default: the one that is called last.
        subset_size_law: law of the candidates' sizes, see :mod:`composer_edba.method.candidates`. Default
            ``"upper_half"``.
        policy_options: constants of ``batch_size_policy`` in place of its own, see :mod:`composer_edba.method.sizing`.
            None, the default: none.
        scoring_batch_norm: what batch normalisation works with in the scoring forward: ``"pool"``, the pool's own
            statistics, or ``"running"``, its running ones. Default ``"pool"``.
        seed: of the random candidates; None, the default: torch's own seed, that of rank 0.
    """

    preset: Literal["default", "paper"]
    num_candidates: int
    ema_decay: float
    min_subset_size: int
    min_batch_size: int
    max_batch_size: int
    batch_size_policy: PolicyName
    criterion: Criterion
    scale_factor: float
    interval: int
    interrupt: int
    last_layer: nn.Module | str | None
    subset_size_law: SubsetSizeLaw
    policy_options: Mapping[str, Any] | None
    scoring_batch_norm: BatchNormStatistics
    seed: int | None


_PRESETS = {"default": DEFAULTS, "paper": PAPER}
_OWN = {"last_layer": None, "seed": None}
_SELECTOR_SETTINGS = ("num_candidates", "ema_decay", "min_subset_size", "criterion", "subset_size_law", "interval")


def step_generator(seed: int, step: int) -> torch.Generator:
    """A stream that depends on seed and step alone: nothing to save, no global stream touched, equal on all ranks.

    Args:
        seed: of the run, >= 0.
        step: number of the batch, >= 0.
    """
    entropy = np.random.SeedSequence([_STREAM, seed, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy >> np.uint64(1)))


def checked_settings(settings: Mapping[str, Any], start: float = 0.0, end: float = 1.0) -> dict[str, Any]:
    """``settings`` with the defaults for what is missing.

    Args:
        settings: see :class:`Settings`.
        start: fraction of training from which on subsets are chosen, where the loop knows how long it trains.
        end: fraction of training until which they are.

    Raises:
        ValueError: if a setting is out of its range.
        TypeError: if it has a wrong type, or there is no such setting.
    """
    if settings.get("scoring") == "cached":
        raise ValueError(
            "scoring is 'cached': only composer_edba.EDBA, for Composer, keeps scores; here every pool is scored by a "
            "forward. Leave scoring out"
        )
    settings = dict(settings)
    preset = settings.pop("preset", "default")
    if preset not in _PRESETS:
        raise ValueError(f"preset is {preset!r}: it must be one of {', '.join(map(repr, _PRESETS))}")
    chosen = {**_PRESETS[preset], **_OWN, **settings}
    unknown = sorted(set(settings) - set(DEFAULTS) - set(_OWN))
    if unknown:
        names = ("preset", *DEFAULTS, *_OWN)
        raise TypeError(f"unknown setting {unknown[0]!r}: the settings are {', '.join(names)}")
    seed = chosen["seed"]
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise ValueError(f"seed is {seed!r}: it must be an integer from 0 to 2**63 - 1, or None for torch's own")
    check_arguments(**chosen, scoring="forward", start=start, end=end)
    return chosen


class PoolSelection:
    """Chooses a subset of every pool it is shown and resizes the loader that the pools come from.

    Args:
        model: the network, also inside of DistributedDataParallel.
        loss_fn: ``loss_fn(outputs, target)``, a scalar: the mean over the samples.
        split: turns a pool, or a part of it, into ``(inputs, target)`` on the model's device.
        forward: ``forward(model, inputs)`` gives what the loss takes; None: ``model(inputs)``.
        precision: gives the autocast context that the training forward runs in; None: none.
        optimizer: whose learning rate ``batch_size_policy="loss"`` goes by; None: taken as constant.
        settings: see :class:`Settings`.

    Attributes:
        figures: what is known of the last step, by name: ``batch_size``, ``subset_size``, ``margin`` and so on; the
            margin, metrics and averages are missing if it was not scored.
        sampler: the batch sampler of the loader in use; None if the loader cannot be resized.
        taken: batches of the present pass that were shown so far.
        seen: samples in them.

    Raises:
        ValueError: if a setting is out of its range, or the named last layer is none of the model's.
        TypeError: if a setting has a wrong type, or there is no such setting.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        *,
        split: Callable[[Any], tuple[Any, Any]],
        forward: Callable[[nn.Module, Any], Any] | None = None,
        precision: Callable[[], contextlib.AbstractContextManager] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **settings: Unpack[Settings],
    ):
        chosen = checked_settings(settings)
        # DistributedDataParallel's own forward would broadcast buffers between ranks.
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        self._network = _Network(model, forward)
        layer = chosen["last_layer"]
        if isinstance(layer, str):
            layer = named_last_layer(self._network.model, layer)
        self._scorer = Scorer(layer, chosen["scoring_batch_norm"])
        self._selector = SubsetSelector(**{name: chosen[name] for name in _SELECTOR_SETTINGS})
        self._settings = chosen
        self._seed: int | None = None
        self._optimizers = [] if optimizer is None else [optimizer]
        self._loss_fn = loss_fn
        self._split = split
        self._precision = contextlib.nullcontext if precision is None else precision
        self._distinct: DistinctSamples | None = None
        self._steps = 0
        self._samples_scored = 0
        self._samples_trained = 0
        self._samples: int | None = None  # in a pass of this rank
        self._pass: list[int] | None = None  # the sampler's list of the pass that `taken` counts in
        self._resumed: dict[str, Any] | None = None
        self._interrupted: dict[str, Any] | None = None  # the pass that the next one goes on with
        self.figures: dict[str, float] = {}
        self.sampler: ResizableBatchSampler | None = None
        self.taken = 0
        self.seen = 0

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self._network.parameters()).device

    @property
    def batch_size(self) -> int | None:
        """Size of the batches drawn from now on, in samples a rank; None before a loader is there or if it is fixed."""
        return None if self._selector.policy is None else self._selector.policy.size

    @property
    def pass_is_over(self) -> bool:
        """Whether all batches of the present pass were shown; False where that cannot be known."""
        sampler = self.sampler
        return sampler is not None and sampler.drawn is self._pass and sampler.is_last(self.taken)

    @property
    def pass_size(self) -> int | None:
        """Samples in a pass of this rank's loader; None if unknown."""
        return self._samples

    # ---- the loader

    def resizable(self, loader: Any) -> Any:
        """The loader to draw pools from: a resizable copy of ``loader``, which stays as it is.

        Called again, it gives a new copy; averages, sizes and counts go on.

        Args:
            loader: a DataLoader; others come back as they are, with a warning that their batches keep their size.

        Raises:
            ValueError: if the loader is empty.
        """
        if isinstance(loader, DataLoader) and _length(loader) == 0:
            raise ValueError(
                f"the loader is empty: it gives no batch (batch_size={loader.batch_size}, "
                f"drop_last={loader.drop_last}). EDBA needs at least one sample"
            )
        twin = resizable_copy(loader)
        self.end_pass()
        self._interrupted = None
        if twin is None:
            self.sampler, self._samples = None, None
            if self._settings["batch_size_policy"] != "fixed":
                warnings.warn(
                    f"EDBA cannot resize the batches of this loader, a {type(loader).__name__} without a batch sampler "
                    "of torch's: it selects within the batches it is given",
                    stacklevel=3,
                )
            return loader
        sampler = twin.batch_sampler
        assert isinstance(sampler, ResizableBatchSampler)
        self.sampler = sampler
        self._samples = sampler.total
        self._set_policy(sampler.batch_size)
        self._set_distinct(loader)
        if self._resumed is not None:
            self._take_up(self._resumed)
        if self.batch_size is not None:
            sampler.batch_size = self.batch_size
        return twin

    def rest_of_pass(self, loader: Any) -> Any:
        """What to iterate over to go on inside of a pass: ``loader``, less what was taken before a resumption.

        The interrupted pass is drawn once more, from the random state it began with; the random state of now is put
        back before its next batch. Batches that were taken are loaded again and thrown away.
        """
        return loader if self._interrupted is None else _RestOfPass(self, loader)

    def _set_policy(self, first_size: int) -> None:
        before = self._selector.policy
        settings = self._settings
        ends = [n for n in rank_sizes(-1 if self._samples is None else self._samples, self.device) if n >= 0]
        maximum = min([settings["max_batch_size"], *ends])
        minimum = min(settings["min_batch_size"], maximum)
        if (
            before is None
            and settings["batch_size_policy"] != "fixed"
            and not settings["min_batch_size"] <= first_size <= settings["max_batch_size"]
        ):
            warnings.warn(
                f"the loader's batch size {first_size} lies outside of min_batch_size={settings['min_batch_size']} and "
                f"max_batch_size={settings['max_batch_size']}: training starts at "
                f"{min(max(first_size, minimum), maximum)}. Give EDBA bounds that hold {first_size} to start there",
                stacklevel=4,
            )
        policy = make_policy(
            settings["batch_size_policy"],
            first_size,
            minimum,
            maximum,
            ranks=world_size(),
            options=settings["policy_options"],
        )
        if before is not None:
            policy.load_state_dict(before.state_dict())
        self._selector.policy = policy

    def _set_distinct(self, loader: Any) -> None:
        size = _length(loader.dataset)
        if self._samples is None or size is None:
            self._distinct = None
        elif self._distinct is None or self._distinct.size != size:
            self._distinct = DistinctSamples(size)

    # ---- a step

    def choose(self, batch: Any, *, scored: bool = True) -> Any:
        """The subset of ``batch`` to train on; the whole batch on steps that are not scored.

        Args:
            batch: what the loader gave, with one first dimension throughout.
            scored: False: train on the whole batch and leave averages and batch size alone.

        Raises:
            ValueError: if it is unclear what one sample of the batch is, or the loss is no mean over the samples.
        """
        size = batch_size(batch)
        number = self._count_batch(size)
        kept, selection = None, None
        interval, interrupt = self._settings["interval"], self._settings["interrupt"]
        scheduled = self._steps % interval == 0 and (interrupt == 0 or (number + 1) % interrupt != 0)
        if scored and scheduled:
            selection, kept = self._select(batch, size)
            if len(kept) < size:
                batch = index_batch(batch, kept, size)
            if self.sampler is not None and self.batch_size is not None:
                self.sampler.batch_size = self.batch_size
        subset_size = size if kept is None else len(kept)
        self._count_samples(number, kept, size, subset_size)
        self._describe(selection, size, subset_size)
        self._steps += 1
        return batch

    def end_pass(self) -> None:
        """Forget the present pass: the loader's next iterator begins another one."""
        self._pass, self.taken, self.seen = None, 0, 0

    def _count_batch(self, size: int) -> int:
        """Number of this batch in its pass; a sampler that began anew has a new list of what it drew."""
        if self.sampler is not None and self.sampler.drawn is not self._pass:
            self._pass, self.taken, self.seen = self.sampler.drawn, 0, 0
        self.taken += 1
        self.seen += size
        return self.taken - 1

    def _select(self, batch: Any, size: int) -> tuple[Selection, Tensor]:
        """Score the pool of all ranks and choose; returns this rank's part as positions in its own pool."""
        if self._seed is None:
            given = self._settings["seed"]
            self._seed = from_rank_zero(torch.initial_seed() & (2**63 - 1) if given is None else given, self.device)
        sizes = rank_sizes(size, self.device)
        scores = self._scorer(
            self._network,
            batch,
            lambda outputs, parts: self._loss_fn(outputs, parts[1]),
            prepare=self._prepare,
            precision=self._precision,
        )
        gathered = gather_scores(scores, sizes)
        selection = self._selector.select(
            gathered.inner_products(),
            gathered.model_metric,
            step_generator(self._seed, self._steps),
            group_sizes=sizes,
            learning_rate=highest_learning_rate(self._optimizers),
        )
        self._samples_scored += sum(sizes)
        if self._selector.nonfinite_steps == 1 and not selection.finite:
            warnings.warn(
                f"the scoring loss ({selection.model_metric}) or a last-layer gradient is NaN or infinite at step "
                f"{self._steps}: such steps train on the whole pool, do not enter EDBA's averages and are counted as "
                "nonfinite_steps. Is the learning rate too high, or a sample broken?",
                stacklevel=3,
            )
        first = sum(sizes[: rank()])
        mine = (selection.indices >= first) & (selection.indices < first + size)
        return selection, selection.indices[mine] - first

    def _prepare(self, batch: Any) -> tuple[Any, Any]:
        inputs, target = self._split(batch)
        factor = self._settings["scale_factor"]
        return (inputs if factor == 1 else scaled_images(inputs, factor, what="the model's input")), target

    def _count_samples(self, number: int, kept: Tensor | None, size: int, subset_size: int) -> None:
        sizes = rank_sizes(subset_size, self.device)
        self._samples_trained += sum(sizes)
        indices = None if self.sampler is None else self.sampler.indices_of(number)
        if self._distinct is None or indices is None or len(indices) != size:
            return
        chosen = torch.tensor(indices)
        if kept is not None:
            chosen = chosen[kept]
        self._distinct.add(gather_rows(chosen.to(self.device), sizes).cpu().numpy())

    def _describe(self, selection: Selection | None, size: int, subset_size: int) -> None:
        self.figures = {
            "batch_size": size,
            "subset_size": subset_size,
            "samples_scored": self._samples_scored,
            "samples_trained": self._samples_trained,
            "nonfinite_steps": self._selector.nonfinite_steps,
        }
        if self._distinct is not None:
            self.figures["distinct_samples"] = len(self._distinct)
        if selection is not None:
            self.figures |= self._selector.figures(selection)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on bitwise as an uninterrupted one: plain values, equal on all ranks.

        The random streams of torch, NumPy and Python are the caller's: save and restore them where shuffling, dropout
        or augmentation draw from them.
        """
        state: dict[str, Any] = {
            "batch_size_policy": self._settings["batch_size_policy"],
            "selector": self._selector.state_dict(),
            "distinct": None if self._distinct is None else self._distinct.state_dict(),
            "steps": self._steps,
            "seed": self._seed,
            "samples_scored": self._samples_scored,
            "samples_trained": self._samples_trained,
            "chunk_limit": self._scorer.chunk_limit,
            "pass": self._interrupted,
        }
        sampler = self.sampler
        if sampler is not None and sampler.drawn is self._pass and not self.pass_is_over:
            assert sampler.pass_rng_state is not None
            state["pass"] = {
                "taken": self.taken,
                "seen": self.seen,
                "drawn": list(sampler.drawn),
                "rng_state": base64.b64encode(sampler.pass_rng_state.numpy().tobytes()).decode(),
                "samples": self._samples,
                "ranks": world_size(),
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; what concerns the loader, when one is given to :meth:`resizable`."""
        same_policy = state["batch_size_policy"] == self._settings["batch_size_policy"]
        # One policy's memory says nothing to another, which begins anew at the loader's batch size.
        selector = state["selector"] if same_policy else {**state["selector"], "policy": None}
        self._selector.load_state_dict(selector)
        self._steps = state["steps"]
        self._seed = state["seed"]
        self._samples_scored = state["samples_scored"]
        self._samples_trained = state["samples_trained"]
        self._scorer.chunk_limit = state["chunk_limit"]
        self._resumed = {"selector": selector, "distinct": state["distinct"], "pass": state["pass"]}

    def _take_up(self, saved: dict[str, Any]) -> None:
        self._resumed = None
        assert self._selector.policy is not None
        if saved["selector"]["policy"] is not None:
            self._selector.policy.load_state_dict(saved["selector"]["policy"])
        if self._distinct is not None and saved["distinct"] is not None:
            self._distinct.load_state_dict(saved["distinct"])
        interrupted = saved["pass"]
        if interrupted is None:
            return
        now = {"samples": self._samples, "ranks": world_size()}
        if now != {name: interrupted[name] for name in now}:
            raise ValueError(
                f"the checkpoint lies inside of a pass over {interrupted['samples']} samples on "
                f"{interrupted['ranks']} rank(s), and this loader makes one over {now['samples']} on {now['ranks']}: "
                "what is left of the pass cannot be told. Resume with the same data set, sampler and number of ranks, "
                "or from a checkpoint that was saved at an epoch's end"
            )
        assert self.sampler is not None
        self.sampler.replay = interrupted["drawn"]
        rng_state = bytearray(base64.b64decode(interrupted["rng_state"]))
        self.sampler.replay_rng_state = torch.frombuffer(rng_state, dtype=torch.uint8)
        self._interrupted, self.taken, self.seen = interrupted, interrupted["taken"], interrupted["seen"]


class _RestOfPass:
    """A pass of ``loader`` without the batches that ``selection`` says were taken."""

    def __init__(self, selection: PoolSelection, loader: Any):
        self.selection = selection
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        selection, sampler = self.selection, self.selection.sampler
        assert sampler is not None
        if selection._interrupted is None:
            return iter(self.loader)
        taken, now = selection.taken, torch.get_rng_state()
        batches = iter(self.loader)
        for _ in range(taken):
            next(batches)
        selection._interrupted = None
        sampler.replay, sampler.replay_rng_state = (), None
        for number in range(taken):
            sampler.indices_of(number)
        torch.set_rng_state(now)
        selection._pass = sampler.drawn
        return batches


class _Network(nn.Module):
    """The model as the scorer calls it, with ``(inputs, target)``."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Any], Any] | None):
        super().__init__()
        self.model = model
        self._forward = forward

    def forward(self, parts: tuple[Any, Any]) -> Any:
        return self.model(parts[0]) if self._forward is None else self._forward(self.model, parts[0])


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except TypeError:
        return None
