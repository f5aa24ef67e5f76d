"""The engine: pool in, subset out. A training loop of any framework tells it about itself as a :class:`Loop`, gives it
its loader by :meth:`Engine.draw_from` and each of the loader's batches by :meth:`Engine.choose`.
"""

from __future__ import annotations

import abc
import contextlib
import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from composer_edba.loading.batch import batch_size, index_batch
from composer_edba.loading.pools import Pools
from composer_edba.loading.ranks import Attempt, check_alike, gather_rows, rank, world_size
from composer_edba.loading.sampler import check_indexed, why_unindexed
from composer_edba.method.choice import Selection
from composer_edba.method.gradient_mass import gradient_norms, select_by_gradient_mass
from composer_edba.method.selector import SubsetSelector
from composer_edba.method.sizing import FixedPolicy, LossPolicy, make_policy, policy_word
from composer_edba.scoring.forward import Scorer
from composer_edba.scoring.gathered import SHAPE, gather_scores, shape_of
from composer_edba.scoring.pool_scores import PoolScores
from composer_edba.scoring.remembered import RememberedScores
from composer_edba.scoring.remembered_gradients import RememberedGradients
from composer_edba.scoring.remembered_norms import RememberedNorms
from composer_edba.scoring.training_norms import TrainingNorms
from composer_edba.scoring.training_scores import TrainingScores
from composer_edba.settings import as_saved, is_by_mass

__all__ = ["Engine", "LastSelection", "Loop", "Network", "step_generator"]

# Distinguishes this package's random stream from others that are seeded from the same run.
_STREAM = 0xEDBA
_COUNTS = ("steps", "samples_scored", "samples_trained", "samples_drawn")


def step_generator(seed: int, step: int) -> torch.Generator:
    """A stream for step ``step`` of a run with ``seed``, both >= 0: nothing to save, equal on all ranks."""
    entropy = np.random.SeedSequence([_STREAM, seed, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy >> np.uint64(1)))


class LastSelection(NamedTuple):
    """Data-set indices of a step's samples on this rank, (B,) and (k,) int64."""

    pool: Tensor
    subset: Tensor


@dataclass(frozen=True)
class Network:
    """How a loop's network is run: the arguments of a call of :class:`~composer_edba.scoring.forward.Scorer`."""

    model: nn.Module
    loss: Callable[[Any, Any], Any]
    prepare: Callable[[Any], Any] | None = None
    precision: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


class Loop(abc.ABC):
    """What the engine asks of the training loop that it is in."""

    derives = False  # see TrainingScores

    @abc.abstractmethod
    def device(self) -> torch.device:
        """Where the model is, and where the process group's backend wants its tensors."""

    @abc.abstractmethod
    def network(self) -> Network:
        """The network as it is now."""

    @abc.abstractmethod
    def seed(self) -> int:
        """Of the random candidates, equal on all ranks."""

    @abc.abstractmethod
    def learning_rate(self) -> float | None:
        """That of the present step, the largest of all parameter groups; None: not known."""

    def elapsed(self) -> float | None:
        """Fraction of training that is over; None, the default: not known, and subsets are chosen all the time."""
        return None

    def most_at_once(self) -> int | None:
        """Most samples that may go through the network at once; None, the default: no bound is known."""
        return None

    def ready(self, batch: Any) -> Any:
        """The batch as it is scored and then trained on, the model being as it trains. Default: as it is."""
        return batch

    def trainable(self, samples: int) -> int:
        """How many of ``samples`` samples can go through the network in parts: all, the default, or one less."""
        return samples

    def size_multiple(self, pool_size: int) -> int:
        """What the sizes of subsets of ``pool_size`` samples are to be multiples of. Default 1."""
        return 1

    def why_not_remembered(self) -> str | None:
        """What keeps training from telling of single samples, and what to do, in words; None, the default: nothing."""
        return None


class Engine:
    """Chooses a subset of every pool it is shown, sizes the pools, and keeps count.

    Args:
        settings: all of them, from :func:`composer_edba.settings.checked`.
        loop: the training loop.
        loader_name: what messages call the loop's loader.

    Attributes:
        settings: as given.
        pools: what draws them.
        scorer: runs scoring forwards.
        remembered: the other source of scores, with ``scoring="cached"``, or ``"auto"`` where it can be; else None.
        samples_not_loaded: of those drawn for the last step, over all ranks.
        gradient_weight: what to multiply the gradient of the mean over this rank's subset by, so that the step is the
            pool's.
        steps: batches trained on so far.
        figures: what is known of the last step, by name; no margin, metrics and averages if nothing was chosen.
        last_selection: the data-set indices behind the last step; None if it did not choose, or there are no indices.
        samples_scored, samples_trained: totals over all ranks.
        samples_drawn: the same of all pools; of interest where not all that is drawn is loaded.
    """

    def __init__(self, settings: Mapping[str, Any], loop: Loop, loader_name: str = "the loader"):
        self.settings, self.loop, self.pools = settings, loop, Pools("EDBA", loader_name)
        self.scorer = Scorer(settings["last_layer"], settings["scoring_batch_norm"])
        self._selector = SubsetSelector(settings)
        self._by_mass = is_by_mass(settings["criterion"])
        leaves_out = not self._by_mass or settings["left_out"] > 0
        # Without remembered norms a default that must pay has nothing to go by.
        self._remembers = leaves_out and (settings["scoring"] == "cached" or self._is_auto)
        self._whole, self._told_why = self._is_auto or not leaves_out, False  # whether all batches stay whole
        self.remembered = self._memory() if settings["scoring"] == "cached" and leaves_out else None
        self.gradient_weight, self.samples_not_loaded = 1.0, 0
        self.steps = self.samples_scored = self.samples_trained = self.samples_drawn = 0
        self.figures: dict[str, float] = {}
        self.last_selection: LastSelection | None = None
        self._seed: int | None = None
        self._resume_from: dict[str, Any] | None = None
        self._began = self._seconds = 0.0
        self._shares = 0.0, 0  # of the steps' times that EDBA took: their sum, and how many
        # Of this step: whether it tells what the loss began with, or is of the span, and the share that is trained on.
        self._observes = (False, False, 1.0)

    @property
    def _is_auto(self) -> bool:
        return self._by_mass and self.settings["scoring"] == "auto"

    @property
    def may_remember(self) -> bool:
        """Whether ``remembered`` is or may come to be."""
        return self._remembers

    def _memory(self) -> RememberedScores:
        settings, loop = self.settings, self.loop
        if not self._by_mass:
            training = TrainingScores(loop.derives)
            return RememberedGradients(self._decide, self._selector.figures, self._scheduled, training)
        training, refill = TrainingNorms(loop.derives), settings["refill"] is not False
        memory = RememberedNorms(settings, self._scheduled, training, self._generator, loop.size_multiple, refill)
        memory.tells_loss, memory.gives_up = settings["batch_size_policy"] != "fixed", self._is_auto
        return memory

    # ---- the loader

    @property
    def batch_size(self) -> int | None:
        """Size aimed at for the batches drawn from now on, in samples a rank; None without a loader to resize."""
        return None if self._selector.policy is None else self._selector.policy.size

    @property
    def is_new(self) -> bool:
        """Whether it has neither trained on a batch nor a saved state to go on with."""
        return self.steps == 0 and self._resume_from is None

    def draw_from(self, loader: Any, taken: int | None = None, *, redrawn: bool = True, spun: int = 0) -> Any:
        """The loader to draw pools from: a resizable copy of ``loader``, which stays as it is, at every call a new one.

        Averages, sizes and counts go on; after :meth:`load_state_dict` it takes up the saved state.

        Args:
            loader: a DataLoader; others come back as they are, with a warning that their batches keep their size.
            taken: batches of the present pass that are over, for a loop that knows; None: as the saved state says.
            redrawn: whether the loop draws these once more, to skip them.
            spun: passes before it that the loop begins only to restore the samplers.

        Raises:
            ValueError: if the loader is empty, or its samples (cached) or an interrupted pass's rest cannot be told.
        """
        saved, self._resume_from = self._resume_from, None
        if taken is None:
            taken = 0 if saved is None else saved["pools"]["taken"]
        if self.settings["scoring"] == "cached":
            check_indexed(loader)
        twin = self.pools.draw_from(loader, self.loop.device())
        if twin is None and self.settings["batch_size_policy"] != "fixed":
            self.pools.warn_of_fixed_batches(loader)
        first_size = None if self.pools.sampler is None else self.pools.sampler.batch_size
        self._set_policy(first_size)
        if self._is_auto and self._remembers:
            self._see_whether_remembered(loader)
        if self.remembered is not None:
            if self.pools.uneven:
                raise ValueError(
                    "the ranks' shards differ in length: scoring='cached' has all ranks choose together from pools of "
                    "one size. Use a sampler that shards evenly, such as DistributedSampler, or scoring='forward'"
                )
            assert twin is not None
            assert self.pools.sampler is not None
            skipped, spun = (taken, spun) if redrawn else (0, 0)
            self.remembered.install(self.pools.sampler, twin.dataset, self.loop.device(), skipped=skipped, spun=spun)
        if saved is None:
            self.pools.repeat(taken, first_size)
        else:
            self._take_up(saved, taken, redrawn)
        self.pools.resize(self.batch_size)
        if isinstance(self._selector.policy, FixedPolicy):
            self.pools.follow_given()
        return loader if twin is None else twin

    def _see_whether_remembered(self, loader: Any) -> None:
        """With ``scoring="auto"``: remember where that can be, else leave all batches whole, and say so once."""
        why = why_unindexed(loader) or self.loop.why_not_remembered()
        if why is None and self.pools.uneven:
            why = "the ranks' shards differ in length: use a sampler that shards evenly, such as DistributedSampler"
        if why is not None:
            self._stay_whole(why)
        else:
            self._whole, self.remembered = False, self.remembered or self._memory()

    def _stay_whole(self, why: str) -> None:
        if self.remembered is not None:
            self.remembered.uninstall()
        self._whole, self.remembered = True, None
        if not self._told_why:
            self._told_why = True
            warnings.warn(
                f"EDBA leaves all batches whole: which samples carry the gradient cannot be remembered here, because "
                f"{why}. scoring='forward' would choose all the same, by a forward pass that costs what it spares",
                stacklevel=4,
            )

    def _set_policy(self, first_size: int | None) -> None:
        before, settings = self._selector.policy, self.settings
        if first_size is None:
            self._selector.policy = None
            return
        least, most = settings["min_batch_size"], settings["max_batch_size"]
        if before is None and settings["batch_size_policy"] != "fixed":
            self.pools.warn_of_first_size(first_size, least, most)
        word, options = settings["batch_size_policy"], settings["policy_options"]
        policy = make_policy(word, first_size, *self.pools.bounds(least, most), ranks=world_size(), options=options)
        if before is not None and before is not policy:  # another loader goes on at the size of the first
            policy.load_state_dict(before.state_dict())
        if isinstance(policy, LossPolicy):
            policy.begin_fit()
        self._selector.policy = policy

    def begin_pass(self) -> None:
        """The loop makes a new iterator of the loader next; what was to be resumed is over."""
        self.pools.end_pass()
        if self.remembered is not None:
            self.remembered.forget_resumption()

    def _notice_other_rules(self) -> None:
        policy, sampler = self._selector.policy, self.pools.sampler
        if isinstance(policy, FixedPolicy) and sampler is not None:
            policy.size = sampler.batch_size
        elif policy is not None:
            self.pools.warn_of_another_rule()

    # ---- a step

    def choose(self, batch: Any, count: Callable[[Any], int] | None = None) -> Any:
        """The subset of ``batch`` to train on; the whole batch on steps that are not scored.

        All ranks choose together or none does. What fails on one ends the step on all of them.

        Args:
            batch: what the loader gave: the pool, or with ``scoring="cached"`` what was chosen of it.
            count: gives the samples in it; None: the first dimension that its tensors share.

        Raises:
            ValueError: if it is unclear what one sample of the batch is, or the loss is no mean over the samples.
            RuntimeError: if another rank failed; names it.
        """
        self._began, self._seconds = time.perf_counter(), 0.0
        self.last_selection, self.gradient_weight = None, 1.0
        self.pools.notice_pass()
        self._notice_other_rules()
        batch = (self._take if self.remembered else self._score)(batch, count or batch_size)
        self.steps += 1
        return batch

    def end_step(self, factor: Tensor | float | None = None) -> float:
        """Enter what training on the batch found out; the share of the time since it arrived that EDBA took.

        For ``factor`` see :meth:`~composer_edba.scoring.training_scores.TrainingScores.rows`.
        """
        before = 0.0  # the batch arrived
        if self.remembered is not None:
            if (loss := self.remembered.end_step(self.steps - 1, factor)) is not None:
                self._enter_loss(loss)
            before, recording = self.remembered.take_seconds()
            self._seconds = before + recording
            if not self.remembered.fits:
                self._stay_whole(
                    "more or fewer rows than a batch's samples go through the last layer, so none is known"
                )
        share = self._seconds / (time.perf_counter() - self._began + before)
        self._shares = self._shares[0] + share, self._shares[1] + 1
        return share

    def _enter_loss(self, loss: float) -> None:
        """Show the policy the mean ``loss`` of the batch that was trained on."""
        before, chooses, share = self._observes
        if before or not self._by_mass:
            self._selector.measure(loss)
        elif chooses:  # what was left out has next to none
            self._selector.observe(loss * share, True, 1, self.loop.learning_rate())
            self.pools.resize(self.batch_size)

    def _score(self, batch: Any, count: Callable[[Any], int], number: int | None = None) -> Any:
        """Choose from a pool by a forward pass over it; ``number`` of its pass is known, or None."""
        device, scores, before = self.loop.device(), None, False
        figures: dict[str, float] = {}
        with Attempt(5 + SHAPE) as mine:
            size = count(batch)
            number = self.pools.next_batch(size) if number is None else number
            drawn = self.pools.indices(number, size)
            before = self._before_start()
            if before or self._scheduled(self.steps):
                batch = self.loop.ready(batch)
                scores = self.run_scorer(self.scorer, batch)
            subset, chosen, known = self._part(batch, size, drawn, None)
            shape = (0,) * SHAPE if scores is None else shape_of(scores)
            mine.numbers = (size, known[0], known[1], scores is not None, self.scorer.chunk_limit or 0, *shape)
        sizes, trained, marked, scored, limits, *shapes = mine.exchange(device)
        self.scorer.chunk_limit = min(filter(None, limits), default=None)
        if scores is not None and all(scored):  # where a pass's end is near, a rank may see it later than another
            with Attempt(3) as mine:
                if before:
                    self._selector.measure(float(gather_scores(scores, sizes, shapes).model_metric))
                else:
                    if self._by_mass:
                        kept, figures = self._choose_by_mass(scores, sizes)
                    else:
                        kept, figures = self._choose_by_gradients(gather_scores(scores, sizes, shapes), sizes)
                    subset, chosen, known = self._part(batch, size, drawn, kept)
                mine.numbers = (*known, self.batch_size or 0)
            trained, marked, next_sizes = mine.exchange(device)
            check_alike(next_sizes, "the size that batch_size_policy gives")
            self.samples_scored += sum(sizes)
            self._seconds = time.perf_counter() - self._began
        self.samples_trained += sum(trained)
        self.samples_drawn += sum(sizes)
        self.pools.mark(chosen, marked, device)
        if figures and drawn is not None and chosen is not None:
            self.last_selection = LastSelection(drawn, chosen)
        if figures and self._by_mass:
            self.gradient_weight = trained[rank()] * len(sizes) / sum(sizes)
        self._describe(size, trained[rank()], figures)
        return subset

    def _choose_by_gradients(self, scores: PoolScores, sizes: list[int]) -> tuple[Tensor, dict[str, float]]:
        """This rank's positions of what is chosen, by the scores of all ranks' pools; what is logged of it."""
        selection = self._decide(scores, sizes, self.steps, f"at batch {self.steps}")
        kept = selection.indices - sum(sizes[: rank()])
        return kept[(kept >= 0) & (kept < sizes[rank()])], self._selector.figures(selection)

    def _choose_by_mass(self, scores: PoolScores, sizes: list[int]) -> tuple[Tensor, dict[str, float]]:
        """The same by this rank's scores, of all of whose norms the ranks tell each other."""
        settings, size, before = self.settings, sizes[rank()], sum(sizes[: rank()])
        own = gradient_norms(scores.inputs, scores.output_grads, scores.bias)
        loss = scores.model_metric.to(own).reshape(1).expand(len(own))
        norms, losses = gather_rows(torch.stack([own, loss], 1), sizes).double().cpu().unbind(1)
        metric = float(losses.mean())
        if not self._selector.observe(metric, bool(norms.isfinite().all()), len(norms), self.loop.learning_rate()):
            self._selector.warn_once_of_nonfinite(metric, f"at batch {self.steps}")
            return torch.arange(size), {"model_metric": metric}
        self.pools.resize(self.batch_size)
        chosen = select_by_gradient_mass(norms, settings["left_out"])
        multiple = math.lcm(settings["size_multiple"], self.loop.size_multiple(max(sizes)))
        own = norms[before : before + size]
        wanted = max(int(((chosen >= before) & (chosen < before + size)).sum()), settings["min_subset_size"])
        wanted = min(size, -(-wanted // multiple) * multiple)
        kept = select_by_gradient_mass(own, settings["left_out"], min_subset_size=wanted, max_subset_size=wanted)
        if settings["criterion"] == "random_mass":
            kept = torch.randperm(size, generator=self._generator(self.steps))[:wanted].sort().values
        total = float(own.sum())
        left_out = 1 - float(own[kept].sum()) / total if total > 0 else 0.0
        return kept, {"model_metric": metric, "left_out_mass": left_out}

    def _part(
        self, batch: Any, size: int, drawn: Tensor | None, kept: Tensor | None
    ) -> tuple[Any, Tensor | None, tuple[int, int]]:
        """What is trained on if ``kept`` (None: all) of a batch is chosen; its indices; how many it and they are."""
        trainable = self.loop.trainable(size if kept is None else len(kept))
        if trainable == size:
            kept = None
        else:
            kept = (torch.arange(size) if kept is None else kept)[:trainable]
            batch = index_batch(batch, kept, size)
        chosen = drawn if kept is None or drawn is None else drawn[kept]
        return batch, chosen, (trainable, 0 if chosen is None else trainable)

    def _take(self, batch: Any, count: Callable[[Any], int]) -> Any:
        """The batch holds what was chosen already; have the step record what it finds out about it."""
        assert self.remembered is not None
        layer, before, number, known = None, False, 0, True
        why = "batches do not hold the samples that were drawn for them: collate_fn, or a transform, drops or adds some"
        with Attempt(3) as mine:
            size = count(batch)
            number, trainable = self.pools.next_batch(size), self.loop.trainable(size)
            choice = self.remembered.take(number)
            if not (known := size == choice.subset.shape[1]) and not self._is_auto:
                raise ValueError(
                    f"the batch holds {size} samples, and {choice.subset.shape[1]} were drawn for it: scoring='cached' "
                    "needs to know which sample is which, so collate_fn and batch transforms must keep every sample, "
                    "in its place. Use scoring='forward'"
                )
            if known and trainable < size:
                batch = index_batch(batch, torch.arange(trainable), size)
            before = known and self._before_start()
            if known and (before or self._records()):
                try:
                    layer = self.run_scorer(self.scorer.find_layer, batch)
                except ValueError as error:
                    if not self._is_auto or self.settings["last_layer"] is not None:
                        raise
                    known, why = False, f"the last layer's gradients are not to be had ({error})"
                if self.scorer.positions > 1 and not self._by_mass:
                    raise ValueError(
                        f"the last layer, a {type(layer).__name__}, is applied at {self.scorer.positions} positions of "
                        "a sample (tokens, pixels): scoring='cached' keeps one row a sample. Use scoring='forward', or "
                        "name another layer as last_layer"
                    )
            mine.numbers = (trainable, layer is not None, known)
        trained, found, alike = mine.exchange(self.loop.device())
        if not all(alike):
            self._stay_whole(why)
            return self._score(batch, count, number)
        check_alike(trained, "the number of samples that go through the network")
        indices = choice.subset[:, :trainable]
        keep = self._by_mass or not before
        self.remembered.record(indices if all(found) else None, layer if all(found) else None, keep=keep)
        self._observes = (before, self._by_mass and self._in_span(), indices.size / max(1, choice.pool.size))
        self.samples_trained += indices.size
        self.samples_drawn += choice.pool.size
        self.samples_not_loaded = choice.pool.size - choice.subset.size
        assert self.pools.distinct is not None
        self.pools.distinct.add(indices.ravel())
        figures = {**choice.figures, "samples_drawn": self.samples_drawn}
        if choice.figures:
            if self._by_mass and self.settings["refill"] is False:
                self.gradient_weight = indices.size / choice.pool.size
            if not self._by_mass:
                figures["score_age"] = self.steps - choice.recorded
            self.last_selection = LastSelection(*(torch.from_numpy(rows[rank()]) for rows in (choice.pool, indices)))
        self._describe(choice.pool.shape[1], trainable, figures)
        return batch

    def _scheduled(self, step: int) -> bool:
        """Whether a subset is chosen for batch ``step`` of the run."""
        return not self._whole and self._is_due(step) and self._in_span()

    def _is_due(self, step: int) -> bool:
        """Whether ``interval`` and ``interrupt`` let batch ``step`` of the run be scored."""
        interval, interrupt = self.settings["interval"], self.settings["interrupt"]
        return step % interval == 0 and (interrupt == 0 or (step + 1) % interrupt != 0)

    def _in_span(self) -> bool:
        return (done := self.loop.elapsed()) is None or self.settings["start"] <= done < self.settings["end"]

    def _records(self) -> bool:
        """Whether this step records: norms from the beginning on, so that they are known when ``start`` comes."""
        done = self.loop.elapsed()
        return self._in_span() or (self._by_mass and done is not None and done < self.settings["end"])

    @property
    def part_of_pass(self) -> float:
        """Share of the present pass that the batches taken were drawn of, equal on all ranks; 0: unknown."""
        shortest = None if self.pools.uneven else self.pools.shortest
        return min(1.0, self.pools.seen / shortest) if shortest else 0.0

    @property
    def left_out(self) -> float:
        """Share of all samples drawn so far that were not trained on."""
        return 1 - self.samples_trained / self.samples_drawn if self.samples_drawn else 0.0

    @property
    def overhead(self) -> float:
        """Mean share of a step's time, from when its batch arrived, that EDBA took in this process."""
        total, steps = self._shares
        return total / steps if steps else 0.0

    def _before_start(self) -> bool:
        """Whether this step comes before ``start`` and is to tell of the loss that training began with."""
        if (done := self.loop.elapsed()) is None or done >= self.settings["start"] or not self._is_due(self.steps):
            return False
        return self._selector.refer(self.loop.learning_rate())

    def _generator(self, step: int) -> torch.Generator:
        if self._seed is None:
            self._seed = self.loop.seed()
        return step_generator(self._seed, step)

    def _decide(self, scores: PoolScores, sizes: list[int], step: int, where: str) -> Selection:
        """Choose from the pool of all ranks by its scores, whatever their source, and size the next pools."""
        selection = self._selector.select(
            scores.inner_products(),
            scores.model_metric,
            self._generator(step),
            size_multiple=self.loop.size_multiple(max(sizes)),
            group_sizes=sizes,
            learning_rate=self.loop.learning_rate(),
        )
        if not selection.finite:
            self._selector.warn_once_of_nonfinite(selection.model_metric, where)
        self.pools.resize(self.batch_size)
        return selection

    def run_scorer(self, scorer: Callable[..., Any], batch: Any) -> Any:
        """Call ``scorer``, a Scorer or its ``find_layer``, with the loop's network."""
        network, most, limit = self.loop.network(), self.loop.most_at_once(), self.scorer.chunk_limit
        if most is not None:
            self.scorer.chunk_limit = most if limit is None else min(limit, most)
        return scorer(network.model, batch, network.loss, prepare=network.prepare, precision=network.precision)

    def _describe(self, pool_size: int, subset_size: int, figures: dict[str, float]) -> None:
        self.figures = {"batch_size": pool_size, "subset_size": subset_size, "samples_scored": self.samples_scored}
        self.figures |= {"samples_trained": self.samples_trained, "nonfinite_steps": self._selector.nonfinite_steps}
        self.figures |= figures
        if self.batch_size is not None:
            self.figures["target_batch_size"] = self.batch_size
        if self.pools.distinct is not None:
            self.figures["distinct_samples"] = len(self.pools.distinct)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on bitwise as an uninterrupted one: plain values, equal on all ranks."""
        if self._resume_from is not None:  # saved again before it began to train
            return copy.deepcopy(self._resume_from)
        return {
            "settings": as_saved(self.settings),
            "batch_size_policy": policy_word(self.settings["batch_size_policy"]),
            "selector": self._selector.state_dict(),
            "pools": self.pools.state_dict(),
            "remembered": None if self.remembered is None else self.remembered.state_dict(),
            "seed": self._seed,
            "chunk_limit": self.scorer.chunk_limit,
            **{name: getattr(self, name) for name in _COUNTS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave, at the next :meth:`draw_from`: no loader and policy before.

        Warns of settings that are others than the state's: the present ones count from here on.
        """
        if "pools" not in state:
            raise ValueError(
                "this state of EDBA was saved by a version before 0.2, which kept it otherwise: finish that run with "
                "the version that began it, or load the weights alone"
            )
        if others := self._other_settings(state):
            words = ", ".join(f"{name}: {before!r} -> {now!r}" for name, (before, now) in others.items())
            warnings.warn(
                f"the state of EDBA was saved with other settings than it is loaded with (saved -> now): {words}. The "
                "present ones count from here on",
                stacklevel=3,
            )
        self._resume_from = copy.deepcopy(dict(state))

    def _other_settings(self, state: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Settings that ``state`` was saved with and that differ: then and now. 0.2.0 saved none."""
        then, now = state.get("settings", {}), as_saved(self.settings)
        return {name: (then[name], value) for name, value in now.items() if then.get(name, value) != value}

    def _take_up(self, saved: dict[str, Any], taken: int, redrawn: bool) -> None:
        others, selector, remembered = self._other_settings(saved), dict(saved["selector"]), saved["remembered"]
        # One policy's memory says nothing to another, which begins anew at the loader's batch size.
        if saved["batch_size_policy"] != policy_word(self.settings["batch_size_policy"]):
            selector["policy"] = None
        if "last_layer" in others:  # nor do one layer's gradients to another's
            selector["averages"] = None
            remembered = None if remembered is None else {**remembered, "cache": None}
        self._selector.load_state_dict(selector)
        self.pools.load_state_dict(saved["pools"], taken, redrawn)
        if self.remembered is not None and remembered is not None:
            self.remembered.load_state_dict(remembered)
        for name in _COUNTS:
            setattr(self, name, saved[name])
        self._seed = None if "seed" in others else saved["seed"]
        self.scorer.chunk_limit = saved["chunk_limit"]
