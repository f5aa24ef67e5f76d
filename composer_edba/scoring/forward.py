"""The scoring forward: the last layer's inputs and output gradients of a pool, with no side effect on the model."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from composer_edba.loading.batch import batch_size, index_batch
from composer_edba.loading.parts import balanced_parts
from composer_edba.scoring.last_layer import check_last_layer, find_last_layer, named_last_layer, positions_last
from composer_edba.scoring.memory import check_score_memory
from composer_edba.scoring.pool_scores import PoolScores, at_least_float32
from composer_edba.scoring.sample_losses import mean_loss
from composer_edba.scoring.side_effects import BatchNormStatistics, without_side_effects

__all__ = ["Scorer", "check_mean"]

Run = Callable[[Any], Any]  # a batch -> its loss

# Samples that the check of the loss runs on.
_PROBE_SIZE = 8


class Scorer:
    """Runs scoring forwards over pools.

    A sample's gradient is B times its part of the gradient of the pool's mean loss: of a mean over samples, that of the
    sample's own loss. Of a mean over all positions (tokens, pixels) that count, with padding and ``ignore_index`` left
    out, a sample with n of the pool's N counts B n / N times its own mean loss, as in training. The mean over the pool
    is then exactly the pool's gradient, and that over a subset the subset's gradient times its samples' mean n over the
    pool's. In chunks the same holds for each chunk, as for Composer's microbatches.

    Args:
        last_layer: the layer whose gradients count, a module or its name in the model; None: the Linear or 1x1
            convolution that the first scoring forward calls last.
        batch_norm: ``"pool"`` or ``"running"``, see :func:`without_side_effects`. Default ``"pool"``.

    Attributes:
        chunk_limit: most samples in one forward, whose statistics batch normalisation uses, halved whenever memory runs
            out; None: the whole pool.
        least_samples: fewest in one forward: batch normalisation needs two, ghost batch normalisation a ghost batch.
    """

    def __init__(self, last_layer: nn.Module | str | None = None, batch_norm: BatchNormStatistics = "pool"):
        self.last_layer, self.batch_norm = last_layer, batch_norm
        self.chunk_limit: int | None = None
        self.least_samples = 2
        self._layer: nn.Module | None = None
        self._checked: nn.Module | None = None
        self._copies = False  # whether the model writes into its batch
        self._tracks = False  # whether autograd has to be on before the last layer
        self._shapes: tuple[torch.Size, torch.Size, torch.device] | None = None  # of the last inputs and gradients

    def __call__(
        self,
        model: nn.Module,
        batch: Any,
        loss: Callable[[Any, Any], Any],
        *,
        prepare: Callable[[Any], Any] | None = None,
        precision: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> PoolScores:
        """Score the B samples of ``batch``, which is on the model's device.

        Args:
            model, batch: the network that holds the last layer, and what ``model(batch)`` gives the outputs for.
            loss: ``loss(outputs, batch)``, a scalar that is the mean over the samples.
            prepare: turns each chunk into what the model and the loss take; None: nothing to do.
            precision: gives the autocast context to run in, if any.

        Raises:
            ValueError: if no last layer is found, its output has no batch dimension, or the loss is no mean.
        """
        run = _runner(model, loss, prepare, precision)
        size = batch_size(batch)
        with without_side_effects(model, self.batch_norm):
            while True:
                try:
                    if self._checked is not model:
                        self._prepare(model, batch, size, run)
                    return self._score_in_chunks(batch, size, run)
                except RuntimeError as error:
                    chunk = max(balanced_parts(size, self.chunk_limit, self.least_samples))
                    smaller = max(self.least_samples, chunk // 2)
                    fits = not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error).lower()
                    if fits or smaller in (chunk, self.chunk_limit):
                        raise
                    self.chunk_limit = smaller
                # Outside the handler, whose traceback keeps the failed forward's tensors alive.
                torch.cuda.empty_cache()
                warnings.warn(f"scoring ran out of memory and goes on in chunks of {self.chunk_limit}", stacklevel=2)

    def find_layer(self, model: nn.Module, batch: Any, loss: Callable[[Any, Any], Any], **context: Any) -> nn.Module:
        """The layer whose gradients count, found on a part of ``batch`` once a model. Arguments, errors: a call's."""
        if self._checked is not model:
            with without_side_effects(model, self.batch_norm):
                self._prepare(model, batch, batch_size(batch), _runner(model, loss, **context))
        assert self._layer is not None
        return self._layer

    @property
    def layer(self) -> nn.Module | None:
        """The layer whose gradients count; None before it was found."""
        return self._layer

    @property
    def positions(self) -> int:
        """Positions of a sample (tokens, pixels) at which the layer was applied when it was last called."""
        return 1 if self._shapes is None else self._shapes[0][1:-1].numel()

    def _prepare(self, model: nn.Module, batch: Any, size: int, run: Run) -> None:
        """Find the last layer and check it and the loss, once a model: other algorithms may have changed it before."""
        # Twice the probe must fit wherever a chunk does.
        most = min(size, self.chunk_limit or size)
        probe_size = min(size, max(self.least_samples, min(most // 2, _PROBE_SIZE)))

        def probe() -> Any:
            return index_batch(batch, torch.arange(probe_size), size)  # a copy: the model may write into it

        layer = self.last_layer
        if isinstance(layer, str):
            layer = named_last_layer(model, layer)
        elif layer is not None:
            check_last_layer(model, layer)
        self._layer = find_last_layer(model, lambda: run(probe())) if layer is None else layer
        self._tracks = False
        written = probe()
        arrays = list(_arrays(written))
        versions = [getattr(array, "_version", -1) for array in arrays]  # an ndarray has none: to be on the safe side
        try:
            self._score(written, probe_size, run)  # raises if shapes or loss do not fit
        except _NotDependentError:
            # Perhaps the forward puts grad mode back, as at the end of set_grad_enabled(self.training).
            self._tracks = True
            self._score(probe(), probe_size, run)
        self._copies = versions != [getattr(array, "_version", None) for array in arrays]
        self._check_mean(probe(), probe_size, run)
        self._checked = model

    def _check_mean(self, probe: Any, size: int, run: Run) -> None:
        """A mean over samples stays the same when each sample comes twice; a sum doubles."""
        assert self._layer is not None
        outputs: list[Tensor] = []
        values = []
        for copies, hook in (
            (1, lambda module, args, output: outputs.append(output.clone())),  # which may be changed in place
            # The recorded outputs once more: a network that draws random numbers would give others.
            (2, lambda module, args, output: torch.cat([outputs.pop(0)] * 2)),
        ):
            with self._layer.register_forward_hook(hook), torch.no_grad():
                values.append(mean_loss(run(index_batch(probe, torch.arange(size).repeat(copies), size))))
        once, twice = torch.stack(values).tolist()
        check_mean(once, twice, size)

    def _score_in_chunks(self, batch: Any, size: int, run: Run) -> PoolScores:
        self._check_memory(size)
        sizes = balanced_parts(size, self.chunk_limit, self.least_samples)
        parts: list[PoolScores] = []
        for chunk, end in zip(sizes, itertools.accumulate(sizes), strict=True):
            # New containers, which the model may change; of tensors a copy where it writes into them, else views.
            rows = torch.arange(end - chunk, end) if self._copies else slice(end - chunk, end)
            parts.append(self._score(index_batch(batch, rows, size), chunk, run))
            if len(sizes) == 1:
                return parts[0]
            self._check_memory(size)  # longer sequences than the last pool's show in the first part
        inputs, output_grads = torch.cat([part.inputs for part in parts]), torch.cat([p.output_grads for p in parts])
        metrics = [part.model_metric * (chunk / size) for part, chunk in zip(parts, sizes, strict=True)]
        return PoolScores(inputs, output_grads, torch.stack(metrics).sum(), parts[0].bias)

    def _check_memory(self, size: int) -> None:
        """Judge a pool by the shapes of what was scored last."""
        assert self._shapes is not None
        inputs, outputs, device = self._shapes
        check_score_memory(size, outputs[1:-1].numel(), inputs[-1], outputs[-1], device)

    def _score(self, batch: Any, size: int, run: Run) -> PoolScores:
        layer, inputs, edges = self._layer, [], []
        outputs: list[Tensor] = []
        assert layer is not None

        def cut(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            """Start the autograd graph at this layer's output: what comes after it is part of the loss."""
            if output.ndim < 2 or output.shape[0] != size:
                raise ValueError(
                    f"the last layer's output has shape {tuple(output.shape)} for a batch of {size} samples: its first "
                    "dimension must be the batch. Name another layer with last_layer"
                )
            # Under autocast float32 keeps softmax and gradients out of half precision.
            output = output.float() if torch.is_autocast_enabled(output.device.type) else output
            torch.set_grad_enabled(True)
            # Called again, the layer may depend on what it gave before: that graph must stay.
            if not (outputs and output.requires_grad):
                # Not a leaf, which the model could not change in place.
                output = output.detach().add_(output.new_zeros((), requires_grad=True))
            inputs.append(args[0].detach())
            outputs.append(output)
            edges.append(get_gradient_edge(output))
            return output

        # The hook turns grad mode on for the rest of the forward; this context puts it back.
        with layer.register_forward_hook(cut), torch.set_grad_enabled(self._tracks):
            value = mean_loss(run(batch))
            # As many as there are now: a checkpoint computed again would add some.
            calls = len(edges)
            found = torch.autograd.grad(value, edges, allow_unused=True) if calls and value.requires_grad else ()
        if all(grad is None for grad in found):
            why = "does not depend on its output" if calls else "is computed without calling it"
            raise _NotDependentError(
                f"last_layer ({type(layer).__name__}): the loss {why}, or not so that autograd sees it (as with "
                "torch.no_grad or detach). Name another layer"
            )
        grads = [torch.zeros_like(out) if grad is None else grad for out, grad in zip(outputs, found, strict=False)]
        h = [positions_last(layer, tensor) for tensor in inputs[:calls]]
        d = [at_least_float32(positions_last(layer, tensor)) * size for tensor in grads]
        if calls > 1:  # called several times: the calls are further positions
            h = [torch.cat([t.reshape(size, -1, t.shape[-1]) for t in h], 1)]
            d = [torch.cat([t.reshape(size, -1, t.shape[-1]) for t in d], 1)]
        self._shapes = h[0].shape, d[0].shape, d[0].device
        return PoolScores(at_least_float32(h[0]), d[0], at_least_float32(value.detach()), layer.bias is not None)


class _NotDependentError(ValueError):
    """Autograd finds no way from the loss to the last layer."""


def _arrays(batch: Any) -> Iterator[Tensor | np.ndarray]:
    if isinstance(batch, (Tensor, np.ndarray)):
        yield batch
    elif isinstance(batch, (Mapping, list, tuple)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _arrays(value)


def _runner(model: Any, loss: Any, prepare: Any = None, precision: Any = contextlib.nullcontext) -> Run:
    def run(chunk: Any) -> Any:
        chunk = chunk if prepare is None else prepare(chunk)
        with precision():
            return loss(model(chunk), chunk)

    return run


def check_mean(once: float, twice: float, size: int) -> None:
    """Raise a ValueError if the loss, of ``size`` samples and of each of them twice, is no mean over the samples."""
    if abs(once) < float("inf") and abs(twice - once) > 0.01 * abs(once) + 1e-6:
        raise ValueError(
            f"the loss is not a mean over the samples: {once:.6g} for {size} samples, but {twice:.6g} when each of "
            "them counts twice. Use reduction='mean'"
        )
