"""DBA, EDBA's predecessor, as an algorithm of MosaicML Composer: per-sample gradients of every layer, a subset each."""

from __future__ import annotations

import copy
import time
import warnings
from typing import Any, cast

import torch
from composer.algorithms import SAM
from composer.core import Precision, State, get_precision_context
from composer.loggers import Logger
from composer.utils import dist, ensure_tuple
from torch import Tensor
from typing_extensions import Unpack

from composer_edba.composer.algorithm import EDBA
from composer_edba.composer.base import EventAlgorithm
from composer_edba.composer.epochs import EpochLength
from composer_edba.composer.microbatches import Microbatches
from composer_edba.dba.chosen_count import ChosenCountPolicy
from composer_edba.dba.layer_subsets import LayerSubsets, LayerSubsetSelector
from composer_edba.dba.per_sample_gradients import LayerRecorder, check_gradients
from composer_edba.dba.sample_mixing import check_samples_stay_apart
from composer_edba.dba.settings import DBA_SETTINGS, DBASettings
from composer_edba.engine import step_generator
from composer_edba.loading.batch import batch_size, index_batch
from composer_edba.loading.pools import Pools
from composer_edba.scoring.forward import check_mean
from composer_edba.settings import check_batch_bounds, checked, documented, shown

__all__ = ["DBA"]


@documented("composer", DBA_SETTINGS)
class DBA(EventAlgorithm):
    """Dynamic Batch Adaptation, EDBA's predecessor: update each layer with the samples whose gradients suit it.

    For each layer (a module with trainable parameters of its own) samples are taken out of the batch, or put in, one by
    one, to bring |(M - M̄) / (G_l - Ḡ_l) - 1| closer to zero, M being the batch's mean loss and G_l the norm of the
    layer's mean gradient over its subset, bars their running averages. The optimizer sees the mean over the subset. The
    batch size follows how many samples the layers chose lately. Source: Simionescu, Stoica and Herscovici, "Dynamic
    Batch Adaptation", arXiv 2208.00815, of which we could read the abstract alone; docs/dba.md says what is ours.

    Runs on ``Event.AFTER_TRAIN_BATCH``, before all other algorithms: gradient clipping sees the chosen gradients.
    Microbatches and mixed precision are those of training. One rank only. Samples must not mix (no batch
    normalisation), and each layer must be a module that is called, with the batch first; the first batch shows what is
    not, and it is refused by name. Resumed runs go on bitwise, under :class:`~composer_edba.EDBA`'s conditions.

    Args:
        settings: see :mod:`composer_edba.dba.settings`.

    Attributes:
        chosen: the last batch's subsets, by the name of the layer: positions in the batch, ascending.
        samples_drawn, samples_chosen: samples so far, and how many of them a layer chose, averaged over the layers.

    Raises:
        ValueError: an argument is out of its range; later, network, ranks or algorithms rule out per-sample gradients.
        TypeError: an argument has a wrong type, or the model is no ComposerModel.
    """

    def __init__(self, **settings: Unpack[DBASettings]):
        self.settings = checked(settings, "composer", DBA_SETTINGS, check_batch_bounds)
        choosing = ("ema_decay", "min_subset_size", "search", "guide", "criterion")
        self._selector = LayerSubsetSelector(**{name: self.settings[name] for name in choosing})
        self._policy: ChosenCountPolicy | None = None
        self._pools = Pools("DBA", "train_dataloader")
        self._length, self._microbatches, self._recorder = EpochLength(self._pools), Microbatches(), LayerRecorder()
        self._checked = False
        self._dataset_indices: Tensor | None = None
        self._asked = 0  # size that the present batch was drawn for
        self._loss = 0.0  # summed over the samples
        self._step_began = self._overhead_seconds = 0.0
        self.samples_drawn, self.samples_chosen = 0, 0.0
        self._resume_from: dict[str, Any] | None = None
        self.chosen: dict[str, Tensor] = {}

    def __repr__(self) -> str:
        # Composer writes this into checkpoints, so it holds nothing that changes during a run.
        return f"DBA({shown(self.settings)})"

    @property
    def batch_size(self) -> int | None:
        """Size of the batches drawn from now on; None before training or if it cannot change."""
        return None if self._policy is None else self._policy.size

    @property
    def distinct_samples(self) -> int | None:
        """Number of distinct samples that some layer was ever updated with; None if the loader has no indices."""
        return None if self._pools.distinct is None else len(self._pools.distinct)

    # ---- Composer's interface

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on bitwise as an uninterrupted one: plain values."""
        policy = None if self._policy is None else self._policy.state_dict()
        parts = {"selector": self._selector.state_dict(), "policy": policy, "pools": self._pools.state_dict()}
        counts = {"samples_drawn": self.samples_drawn, "samples_chosen": self.samples_chosen}
        return {**super().state_dict(), **parts, **counts, "learned_limit": self._microbatches.learned_limit}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Take up what :meth:`state_dict` gave, at the next FIT_START: loader and policy do not exist before."""
        self._resume_from = copy.deepcopy(state)

    # ---- events

    def _init(self, state: State, logger: Logger) -> None:
        self._check_model(state)
        if (ranks := dist.get_world_size()) > 1:
            raise ValueError(
                f"DBA on {ranks} ranks: it needs the gradients of all samples in one process. Use one "
                "rank, or EDBA, which runs on any number"
            )
        self._microbatches.ask_user(state)
        self._run_first(state)

    def _before_load(self, state: State, logger: Logger) -> None:
        self._length.note_full(state)

    def _fit_start(self, state: State, logger: Logger) -> None:
        self._check_setting(state)
        self._run_first(state)
        self._checked = False
        self._length.ask_user(state)
        loader: Any = state.dataloader
        if (twin := self._pools.draw_from(loader, torch.device("cpu"))) is None:
            self._pools.warn_of_fixed_batches(loader)
        first_size = None if self._pools.sampler is None else self._pools.sampler.batch_size
        self._set_policy(first_size)
        saved, self._resume_from, taken = self._resume_from, None, int(state.timestamp.batch_in_epoch)
        if saved is None:
            self._pools.repeat(taken, first_size)
        else:
            self._selector.load_state_dict(saved["selector"])
            if self._policy is not None and saved["policy"] is not None:
                self._policy.load_state_dict(saved["policy"])
            self._pools.load_state_dict(saved["pools"], taken)
            self.samples_drawn, self.samples_chosen = saved["samples_drawn"], saved["samples_chosen"]
            self._microbatches.learned_limit = saved["learned_limit"]
        self._pools.resize(self.batch_size)
        self._length.install(state, loader if twin is None else twin)

    def _epoch_start(self, state: State, logger: Logger) -> None:
        self._pools.end_pass()
        self._length.open(state, logger)

    def _before_dataloader(self, state: State, logger: Logger) -> None:
        self._length.resume(state)
        self._length.estimate(state, logger)

    def _after_dataloader(self, state: State, logger: Logger) -> None:
        self._step_began = time.perf_counter()
        self._microbatches.notice_halving(state)
        size = batch_size(state.batch)
        number = self._pools.next_batch(size)
        self._dataset_indices = self._pools.indices(number, size)
        self._asked = size if self._pools.sampler is None else self._pools.sampler.drawn[number]
        self._microbatches.cut(state, size, alone=True)

    def _before_train_batch(self, state: State, logger: Logger) -> None:
        # Once more for every attempt, where the trainer ran out of memory and tries smaller microbatches.
        self._recorder.clear()
        self._loss = 0.0

    def _before_forward(self, state: State, logger: Logger) -> None:
        self._microbatches.notice_halving(state)
        if not self._checked:
            check_samples_stay_apart(state.model, state.batch)
        self._recorder.attach(state.model, batch_size(state.batch))

    def _after_forward(self, state: State, logger: Logger) -> None:
        self._recorder.detach()

    def _before_backward(self, state: State, logger: Logger) -> None:
        size = batch_size(state.batch)
        self._loss += _loss_value(state.loss) * size
        if not self._checked:
            model, whole = cast(Any, state.model), (state.outputs, state.batch)
            twice = [index_batch(part, torch.arange(size).repeat(2), size) for part in whole]
            with torch.no_grad(), get_precision_context(state.precision, state.precision_config):
                once, again = (_loss_value(model.loss(*given)) for given in (whole, twice))
            check_mean(once, again, size)

    def _after_train_batch(self, state: State, logger: Logger) -> None:
        began = time.perf_counter()
        samples = self._recorder.samples
        layers = self._recorder.layers(samples / (1.0 if state.scaler is None else state.scaler.get_scale()))
        self._recorder.clear()  # the layers hold what is left of it
        if not self._checked:
            check_gradients(layers, state.model)
            self._checked = True
        names, batch = [layer.name for layer in layers], int(state.timestamp.batch)
        products = torch.stack([layer.inner_products().cpu() for layer in layers])
        generator = step_generator(int(state.rank_zero_seed), batch)
        subsets = self._selector.select(names, products, self._loss / samples, generator)
        del products
        for layer, weights, size in zip(layers, subsets.weights, subsets.sizes.tolist(), strict=True):
            if size < samples:  # the gradient that is there is the mean over the whole batch
                layer.replace_gradient(weights)
        self.chosen = {name: row.nonzero()[:, 0] for name, row in zip(names, subsets.members, strict=True)}
        if self._policy is not None and subsets.finite:
            self._pools.resize(self._policy.update(float(subsets.sizes.double().mean()), samples, self._asked))
        if not subsets.finite and self._selector.nonfinite_steps == 1:
            warnings.warn(
                f"the loss or a gradient is NaN or infinite at batch {batch}: such steps train on the whole batch, do "
                "not enter DBA's averages and are counted as dba/nonfinite_steps",
                stacklevel=2,
            )
        logger.log_metrics({f"dba/{name}": value for name, value in self._count(subsets, samples).items()})
        self._overhead_seconds = time.perf_counter() - began

    def _batch_end(self, state: State, logger: Logger) -> None:
        self._length.close(state, logger)
        overhead = self._overhead_seconds / (time.perf_counter() - self._step_began)
        logger.log_metrics({"dba/overhead": overhead}, step=int(state.timestamp.batch) - 1)

    # ---- their parts

    def _check_setting(self, state: State) -> None:
        for other in state.algorithms:
            if other is not self and isinstance(other, (EDBA, DBA)):
                raise ValueError(f"DBA beside {type(other).__name__}: both choose samples and size the batch; use one")
        reason = None
        if any(isinstance(other, SAM) for other in state.algorithms):
            reason = "beside SAM, which makes two gradients a step: it would choose twice. Leave one out"
        elif state.precision == Precision.AMP_FP8:
            reason = "at precision amp_fp8: its per-sample products would be meaningless. Use amp_bf16 or fp32"
        elif hasattr(state.model.forward, "_torchdynamo_orig_callable"):
            reason = "on a compiled model: hooks on its layers see nothing of a compiled pass. Leave out compile_config"
        if reason is not None:
            raise ValueError(f"DBA {reason}")

    def _set_policy(self, first_size: int | None) -> None:
        if first_size is None:
            self._policy = None
            return
        least, most = self.settings["min_batch_size"], self.settings["max_batch_size"]
        minimum, maximum = self._pools.bounds(least, most)
        if self.settings["batch_size_policy"] == "fixed":
            minimum = maximum = first_size
        elif self._policy is None:
            self._pools.warn_of_first_size(first_size, least, most)
        before, self._policy = self._policy, ChosenCountPolicy(first_size, minimum, maximum)
        if before is not None:  # a second fit goes on at the size of the first
            self._policy.load_state_dict(before.state_dict())

    def _count(self, subsets: LayerSubsets, samples: int) -> dict[str, float]:
        """Enter a step into the counts; what is logged of it."""
        sizes, used = subsets.sizes.double(), subsets.members.any(0)
        self.samples_drawn += samples
        self.samples_chosen += float(sizes.mean())
        if self._dataset_indices is not None:
            self._pools.mark(self._dataset_indices[used], [int(used.sum())], used.device)
        chosen = {"chosen": sizes.mean(), "chosen_least": sizes.min(), "chosen_most": sizes.max()}
        figures = {
            "batch_size": samples,
            **{name: float(value) for name, value in chosen.items()},
            "used": int(used.sum()),
            "margin": float(subsets.margins.median()),
            "model_metric": self._loss / samples,
            **{name: getattr(self._selector, name) for name in ("model_average", "nonfinite_steps")},
            **{name: getattr(self, name) for name in ("samples_drawn", "samples_chosen", "distinct_samples")},
        }
        return {name: value for name, value in figures.items() if value is not None}


def _loss_value(loss: Any) -> float:
    """The loss that Composer's trainer makes of what ``model.loss`` gave."""
    parts = (loss["total"],) if isinstance(loss, dict) and "total" in loss else ensure_tuple(loss)
    return sum(float(part.detach().mean()) for part in parts)
