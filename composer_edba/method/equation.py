"""Equation 1 and the gradient norms in it, fast; :mod:`composer_edba.method.reference` is the same, to be read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "as_scalar",
    "check_gradient_shapes",
    "gradient_inner_products",
    "margin_loss",
    "prefix_gradient_norms",
    "signed_margin",
    "subset_gradient_norms",
]

# Floats that one block of gradients, or of inner products between positions, may hold (256 MiB in float32).
_BLOCK_FLOATS = 2**26


def gradient_inner_products(inputs: Tensor, output_grads: Tensor, bias: bool = True) -> Tensor:
    """Inner products of the samples' last-layer gradients g_i = Σ_t d_it ⊗ [h_it, 1], without forming those.

    With one position t a sample, ⟨g_i, g_j⟩ = (d_i · d_j)(h_i · h_j + 1); T positions (tokens, pixels) are summed over.

    Args:
        inputs: h, the last layer's inputs, (B, F) or (B, T..., F).
        output_grads: d, each sample's own loss derived by the last layer's output, (B, C) or (B, T..., C).
        bias: whether the layer has a bias; without one the ``+ 1`` falls away.

    Returns:
        (B, B), symmetric, positive semidefinite up to rounding; float64 if both arguments are, else float32.

    Raises:
        ValueError: if the shapes of the two do not belong to the same samples and positions.
    """
    check_gradient_shapes(inputs, output_grads)
    dtype = torch.float64 if inputs.dtype == output_grads.dtype == torch.float64 else torch.float32
    with torch.no_grad(), _full_precision(inputs.device):
        h, d = inputs.detach().to(dtype), output_grads.detach().to(dtype)
        if h.ndim == 2:
            products = h @ h.T
            return products.add_(1).mul_(d @ d.T) if bias else products.mul_(d @ d.T)
        return _inner_products_over_positions(h.flatten(1, -2), d.flatten(1, -2), bias)


def check_gradient_shapes(inputs: Tensor, output_grads: Tensor) -> None:
    """Raise a ValueError unless these are a layer's inputs and output gradients at the same samples and positions."""
    if inputs.ndim < 2 or inputs.shape[:-1] != output_grads.shape[:-1]:
        raise ValueError(
            f"inputs has shape {tuple(inputs.shape)} and output_grads {tuple(output_grads.shape)}: both need the same "
            "leading dimensions, (B, F) with (B, C) or (B, T..., F) with (B, T..., C)"
        )


def _inner_products_over_positions(h: Tensor, d: Tensor, bias: bool) -> Tensor:
    """⟨g_i, g_j⟩ for h (B, T, F) and d (B, T, C), by the cheaper order of summation, in blocks for the memory."""
    (batch, positions, features), classes = h.shape, d.shape[-1]
    pairwise = (batch * positions) ** 2 * (features + classes)
    # (1 + B / T) times the layer's own forward pass, so the cheaper one never costs more than that.
    materialised = batch * classes * (features + 1) * (positions + batch)
    if materialised <= pairwise:
        # The gradients, (B, C F), a block of classes at a time: in them every pair of positions is already summed.
        bias_gradients = d.sum(1)
        products = bias_gradients @ bias_gradients.T if bias else h.new_zeros(batch, batch)
        columns = max(1, _BLOCK_FLOATS // (batch * max(features, positions)))
        for start in range(0, classes, columns):
            gradients = torch.einsum("btc,btf->bcf", d[:, :, start : start + columns], h).flatten(1)
            products.addmm_(gradients, gradients.T)
            del gradients  # before the next block is made
        return products
    products = h.new_empty(batch, batch)
    rows = max(1, _BLOCK_FLOATS // max(1, positions * batch * positions))
    flat_h, flat_d = h.flatten(0, 1), d.flatten(0, 1)
    for start in range(0, batch, rows):
        block = h[start : start + rows].flatten(0, 1) @ flat_h.T
        if bias:
            block += 1
        block *= d[start : start + rows].flatten(0, 1) @ flat_d.T
        products[start : start + rows] = block.view(-1, positions, batch, positions).sum((1, 3))
    return products


def subset_gradient_norms(inner_products: Tensor, masks: Tensor) -> Tensor:
    """Gradient metrics G(S) = ‖(1/|S|) Σ_{i∈S} g_i‖₂, (K,), of ``masks``, bool (K, B); NaN for an empty subset.

    ``inner_products``, ⟨g_i, g_j⟩, are (B, B); the result has their dtype.
    """
    members = masks.to(inner_products.dtype)
    with _full_precision(inner_products.device):
        squares = ((members @ inner_products) * members).sum(1, dtype=torch.float64)
    return (squares.clamp_min(0).sqrt() / members.sum(1, dtype=torch.float64)).to(inner_products.dtype)


def prefix_gradient_norms(inner_products: Tensor, permutations: Tensor) -> Tensor:
    """Gradient metrics of all prefixes of permutations: column n is that of the first n + 1 samples.

    One random permutation so gives N uniformly random subsets for O(B²) in all: ‖Σ_{i≤n} g_i‖² grows by
    ‖g_n‖² + 2 Σ_{m<n} ⟨g_n, g_m⟩. ``inner_products``, ⟨g_i, g_j⟩, are (B, B), ``permutations`` P orders of distinct
    samples, int64 (P, N) with N <= B. The result is (P, N), in the dtype of ``inner_products``.
    """
    orders, length = permutations.shape
    size, device = len(inner_products), permutations.device
    # An order is cut into blocks. What a sample has in common with all of an earlier block comes from one matrix
    # product, with those before it in its own block entry by entry; 2 √N samples a block balance the two.
    block = round(2 * math.sqrt(length))
    blocks = math.ceil(length / block)
    places = torch.arange(length, device=device)
    block_of = places // block
    members = inner_products.new_zeros(orders, blocks * size).scatter_(1, block_of * size + permutations, 1.0)
    with _full_precision(inner_products.device):
        sums = (members.view(-1, size) @ inner_products).view(orders, blocks, size)
    sums = sums.gather(2, permutations.unsqueeze(1).expand(-1, blocks, -1))
    earlier = torch.arange(blocks, device=device).unsqueeze(1) < block_of
    # Float64 sums: the terms of the squared norm of a small mean gradient cancel.
    before = (sums * earlier).sum(1, dtype=torch.float64)
    inside = F.pad(permutations, (0, blocks * block - length)).view(orders, blocks, block)
    in_block = inner_products[inside.unsqueeze(3), inside.unsqueeze(2)].tril_(-1)
    before += in_block.sum(3, dtype=torch.float64).flatten(1)[:, :length]
    squares = (inner_products.diagonal().double()[permutations] + 2 * before).cumsum(1)
    return (squares.clamp_min(0).sqrt() / (places.double() + 1)).to(inner_products.dtype)


def margin_loss(
    model_metric: Tensor | float, gradient_metric: Tensor, model_average: float, gradient_average: float
) -> Tensor:
    """Equation 1: |(M - M̄) / (G - Ḡ) - 1|, in the shape of ``gradient_metric``.

    A zero denominator gives an infinite margin, unless the numerator is zero too: then 0. (The paper does not say.)
    M, ``model_metric``, is the pool's mean loss, a number or a tensor that broadcasts; G, ``gradient_metric``, the
    candidates' gradient metrics, any shape; M̄ and Ḡ are ``model_average`` and ``gradient_average``.
    """
    return signed_margin(model_metric, gradient_metric, model_average, gradient_average).abs()


def signed_margin(
    model_metric: Tensor | float, gradient_metric: Tensor, model_average: float, gradient_average: float
) -> Tensor:
    """Equation 1 without the absolute value: (M - M̄) / (G - Ḡ) - 1; arguments as for :func:`margin_loss`."""
    rise = as_scalar(model_metric, gradient_metric) - model_average
    run = gradient_metric - gradient_average
    return torch.where((rise == 0) & (run == 0), torch.zeros_like(run), rise / run - 1)


def as_scalar(value: Tensor | float, like: Tensor) -> Tensor:
    """``value`` in the dtype and on the device of ``like``; a number is written there, which waits for nothing."""
    if isinstance(value, Tensor):
        return value.to(like)
    return torch.full((), value, dtype=like.dtype, device=like.device)


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products as their arguments are: autocast, and TF32, which Composer turns on, would round the norms."""
    flags = torch.backends.cuda.matmul
    # Since 2.9 the second name, and reading the first one after it is an error.
    name, exact = ("fp32_precision", "ieee") if hasattr(flags, "fp32_precision") else ("allow_tf32", False)
    before = getattr(flags, name)
    with torch.autocast(device.type, enabled=False):
        setattr(flags, name, exact)
        try:
            yield
        finally:
            setattr(flags, name, before)
