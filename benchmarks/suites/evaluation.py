"""What a run is measured by: evaluation at stated points, and what training had cost until then."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from composer import Callback, Evaluator
from composer.algorithms import SelectiveBackprop
from composer.algorithms.selective_backprop import should_selective_backprop
from composer.core import DataSpec, Event, State, Time, TimeUnit
from composer.loggers import InMemoryLogger, Logger
from composer.utils import dist
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from composer_edba.loading.batch import batch_size
from composer_edba.train.data import Data

__all__ = ["EvaluationPoints", "RunRecorder", "forward_flops"]

# And what they are called in a record.
_METRICS = {"MulticlassAccuracy": "accuracy", "R2Score": "r2", "MeanLoss": "loss"}


class EvaluationPoints:
    """Points spread evenly over a run's duration, the last at its end.

    Args:
        max_duration: in epochs or batches, as ``"90ep"``.
        count: number of points, at least 1; in epochs never more than there are.

    Raises:
        ValueError: if the duration has another unit.
    """

    def __init__(self, max_duration: str | int, count: int):
        duration = Time.from_input(max_duration, TimeUnit.EPOCH)
        if duration.unit not in (TimeUnit.EPOCH, TimeUnit.BATCH):
            raise ValueError(f"max_duration is {max_duration!r}: it must be in epochs (ep) or batches (ba)")
        self._unit = duration.unit
        self._at = {math.ceil(int(duration.value) * (number + 1) / count) for number in range(count)}
        self._last = int(duration.value)

    def due(self, state: State, event: Event) -> bool:
        """Whether ``event`` ends a stretch at whose end an evaluation is due."""
        return self._now(state, event) in self._at

    def is_last(self, state: State, event: Event) -> bool:
        """Whether the run is over."""
        return self._now(state, event) == self._last

    def _now(self, state: State, event: Event) -> int | None:
        ends = Event.EPOCH_END if self._unit is TimeUnit.EPOCH else Event.BATCH_END
        return int(state.timestamp.get(self._unit).value) if event is ends else None

    def evaluators(self, data: Data, test_samples: int | None) -> list[Evaluator]:
        """Evaluators of the held-out samples, of the first ``test_samples`` of the test set, and of it at the end.

        Raises:
            ValueError: if no samples are held out, and there is more than the end to choose from.
        """
        at_end = Evaluator(label="test", dataloader=data.eval, eval_interval=self.is_last)
        if data.validation is None and len(self._at) == 1:
            return [at_end]
        if data.validation is None:
            raise ValueError("data.validation_samples is 0: a run is chosen on held-out samples, never on the test set")
        part = data.eval if test_samples is None else _first(data.eval, test_samples)

        def but_last(state: State, event: Event) -> bool:
            return self.due(state, event) and not self.is_last(state, event)

        return [
            Evaluator(label="validation", dataloader=data.validation, eval_interval=self.due),
            Evaluator(label="test_part", dataloader=part, eval_interval=but_last),
            at_end,
        ]


def _first(spec: DataSpec, samples: int) -> DataSpec:
    loader = spec.dataloader
    assert isinstance(loader, DataLoader)
    part = loader.dataset.subset(torch.arange(samples))  # type: ignore[attr-defined]
    return DataSpec(
        DataLoader(part, batch_size=loader.batch_size, collate_fn=loader.collate_fn),
        batch_transforms=spec.batch_transforms,
    )


def forward_flops(model: torch.nn.Module, batch: Any) -> float:
    """Floating-point operations of the forward pass, a sample of ``batch``; a multiply-add counts as two.

    Convolutions and matrix products only, as ``torch.utils.flop_counter`` counts them.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(batch)
    finally:
        for module, training in modes.items():
            module.training = training
    return counter.get_total_flops() / batch_size(batch)


class RunRecorder(Callback):
    """Writes down, at each evaluation, the accuracies (or R2, or mean losses) and what training had cost by then.

    Seconds are wall-clock (and processor) time since fit began: scoring and data loading in, evaluation out. FLOPs
    count a forward as 1, a backward as 2, and a scoring forward at ``scale_factor`` s as s squared.

    Attributes:
        flops_per_sample: of a forward pass, from :func:`forward_flops`; to be set before training begins.
        evaluations: one mapping an evaluation; counts are sums over all ranks since training began.
        batch_size_path: pairs of an update and the batch size from then on, the loader's, summed over ranks.
    """

    def __init__(self) -> None:
        self.evaluations: list[dict[str, Any]] = []
        self.batch_size_path: list[tuple[int, int]] = []
        self.flops_per_sample = 0.0
        self._drawn = 0
        self._trained = 0
        self._scored = 0
        self._losses: list[torch.Tensor] = []
        self._scores: dict[str, float | None] = {}
        self._began = 0.0
        self._evaluating = 0.0
        self._evaluation_began = 0.0

    # ---- Composer's interface

    def fit_start(self, state: State, logger: Logger) -> None:
        """The processor's clock starts."""
        self._began = time.process_time()

    def batch_start(self, state: State, logger: Logger) -> None:
        """Count what is trained on: every algorithm that chooses has chosen."""
        self._trained += batch_size(state.batch) * dist.get_world_size()
        size = getattr(getattr(state.dataloader, "batch_sampler", None), "batch_size", None)
        if size is not None:
            size = int(size) * dist.get_world_size()
            if not self.batch_size_path or self.batch_size_path[-1][1] != size:
                self.batch_size_path.append((int(state.timestamp.batch), size))

    def batch_end(self, state: State, logger: Logger) -> None:
        """Count what was drawn and scored."""
        assert isinstance(state.loss, torch.Tensor)
        self._losses.append(state.loss.detach())
        assert state.previous_timestamp is not None
        drawn = int(state.timestamp.sample) - int(state.previous_timestamp.sample)
        latest = next(d for d in logger.destinations if isinstance(d, InMemoryLogger)).most_recent_values
        if "edba/samples_scored" in latest:
            drawn = int(latest["edba/batch_size"])  # with cached scores Composer counts what is left of it
            self._scored = int(latest["edba/samples_scored"])
        elif _scored_by_selective_backprop(state):
            self._scored += drawn
        self._drawn += drawn

    def eval_before_all(self, state: State, logger: Logger) -> None:
        """Stop the processor's clock."""
        self._evaluation_began = time.process_time()
        self._scores.clear()

    def eval_end(self, state: State, logger: Logger) -> None:
        """Keep the accuracy, R2 or mean loss on this split."""
        label = state.dataloader_label
        assert label is not None
        for metric, name in _METRICS.items():
            if metric in state.eval_metrics[label]:
                score = _finite(float(state.eval_metrics[label][metric].compute()))
                self._scores[f"{label}_{name}"] = score if score is None else round(score, 6)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Write down."""
        stamp = state.timestamp
        assert stamp.total_wct is not None
        factor = max((getattr(algorithm, "scale_factor", 1.0) for algorithm in state.algorithms), default=1.0)
        distinct = [getattr(algorithm, "distinct_samples", None) for algorithm in state.algorithms]
        counted = next((count for count in distinct if count is not None), None)
        self.evaluations.append(
            {
                "updates": int(stamp.batch),
                "epochs": int(stamp.epoch),
                "seconds": round(stamp.total_wct.total_seconds(), 3),
                "processor_seconds": round(self._evaluation_began - self._began - self._evaluating, 3),
                "samples_drawn": self._drawn,
                "samples_scored": self._scored,
                "samples_trained": self._trained,
                # Without replacement an epoch visits no sample twice; a bound where a batch is thinned out unseen.
                "distinct_samples": min(self._trained, _train_size(state)) if counted is None else counted,
                "flops": self.flops_per_sample * (3 * self._trained + factor**2 * self._scored),
                "batch_size": self.batch_size_path[-1][1] if self.batch_size_path else None,
                "train_loss": _finite(float(torch.stack(self._losses).float().mean())),
                **self._scores,
            }
        )
        self._losses.clear()
        self._evaluating += time.process_time() - self._evaluation_began


def _train_size(state: State) -> int:
    loader = state.train_dataloader
    assert isinstance(loader, DataLoader)
    return len(loader.dataset)  # type: ignore[arg-type]


def _scored_by_selective_backprop(state: State) -> bool:
    """Whether the batch that has just been trained on was chosen by SelectiveBackprop, which counts nothing."""
    found = next((a for a in state.algorithms if isinstance(a, SelectiveBackprop)), None)
    if found is None or state.previous_timestamp is None:
        return False
    assert state.max_duration is not None
    before = state.previous_timestamp.get(state.max_duration.unit) / state.max_duration
    number = int(state.previous_timestamp.batch_in_epoch)
    return should_selective_backprop(float(before), number, found.start, found.end, found.interrupt)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
