"""The samples that carry the gradient, against torch.func's per-sample gradients and a search of all subsets."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap

from composer_edba.functional import gradient_inner_products, gradient_norms, select_by_gradient_mass
from composer_edba.method.gradient_mass import GrowingPool, carriers

shares = st.floats(0, 0.99)
# Whole numbers: their sums are exact, so that a sum that is just the share is one.
masses = st.lists(st.integers(0, 20), min_size=1, max_size=9)


def per_sample_gradients(layer, inputs, target):
    """Gradients of each sample's squared error, summed over positions, by the layer's parameters: (B, D)."""
    parameters = dict(layer.named_parameters())

    def loss(parameters, h, t):
        return (functional_call(layer, parameters, (h,)) - t).square().sum()

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, target)
    return torch.cat([each.flatten(1) for each in gradients.values()], 1)


@given(
    samples=st.integers(1, 12),
    positions=st.lists(st.integers(1, 4), max_size=2),
    features=st.integers(1, 9),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
    left_out=shares,
)
def test_what_is_left_out_changes_the_pools_gradient_by_at_most_its_share(
    samples, positions, features, bias, seed, left_out
):
    torch.manual_seed(seed)
    layer = nn.Linear(features, 3, bias=bias).double()
    inputs = torch.randn(samples, *positions, features, dtype=torch.float64)
    target = torch.randn(samples, *positions, 3, dtype=torch.float64)
    norms = gradient_norms(inputs, 2 * (layer(inputs) - target), bias)
    gradients = per_sample_gradients(layer, inputs, target)
    exact = gradients.norm(dim=1)
    assert norms.dtype == torch.float64
    assert (norms >= exact * (1 - 1e-9)).all()
    if math.prod(positions) == 1:
        torch.testing.assert_close(norms, exact)
    chosen = select_by_gradient_mass(norms, left_out)
    missing = (gradients.sum(0) - gradients[chosen].sum(0)).norm()
    assert missing <= left_out * norms.sum() * (1 + 1e-9)


@given(bias=st.booleans(), seed=st.integers(0, 2**16))
def test_norms_of_one_position_are_the_roots_of_the_inner_products_diagonal(bias, seed):
    torch.manual_seed(seed)
    inputs, grads = torch.randn(7, 5), torch.randn(7, 3)
    squares = gradient_inner_products(inputs, grads, bias).diagonal()
    torch.testing.assert_close(gradient_norms(inputs, grads, bias), squares.sqrt())
    half = gradient_norms(inputs.bfloat16(), grads.bfloat16(), bias)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, squares.sqrt(), rtol=0.05, atol=0.05)


@given(masses=masses, left_out=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75]))
def test_no_smaller_subset_leaves_out_as_little(masses, left_out):
    total = sum(masses)
    chosen = set(select_by_gradient_mass(torch.tensor(masses, dtype=torch.float32), left_out).tolist())
    allowed = left_out * total
    assert left_out == 0 or sum(mass for place, mass in enumerate(masses) if place not in chosen) <= allowed
    fewest = next(
        size
        for size in range(len(masses) + 1)
        if any(total - sum(kept) <= allowed for kept in itertools.combinations(masses, size))
    )
    assert len(chosen) == (len(masses) if left_out == 0 else max(1, fewest))


@given(masses=masses, left_out=shares, seed=st.integers(0, 2**16))
def test_the_chosen_do_not_depend_on_their_places(masses, left_out, seed):
    norms = torch.tensor(masses, dtype=torch.float64)
    norms += torch.arange(len(norms)) * 1e-3  # no two are equal
    order = torch.randperm(len(norms), generator=torch.Generator().manual_seed(seed))
    chosen, elsewhere = select_by_gradient_mass(norms, left_out), select_by_gradient_mass(norms[order], left_out)
    assert set(order[elsewhere].tolist()) == set(chosen.tolist())
    assert chosen.tolist() == sorted(chosen.tolist())


@given(
    masses=masses,
    unknown=st.lists(st.sampled_from([math.nan, math.inf, -math.inf]), max_size=3),
    returning=st.sets(st.integers(0, 8)),
    left_out=st.floats(0.01, 0.99),
    least=st.integers(1, 6),
    multiple=st.integers(1, 5),
)
def test_who_is_not_known_or_is_to_return_is_chosen(masses, unknown, returning, left_out, least, multiple):
    norms = torch.tensor([*map(float, masses), *unknown])
    always = torch.tensor([place in returning for place in range(len(norms))])
    chosen = select_by_gradient_mass(
        norms, left_out, always=always, min_subset_size=least, size_multiple=multiple
    ).tolist()
    assert set(range(len(masses), len(norms))) | set(always.nonzero().flatten().tolist()) <= set(chosen)
    assert len(chosen) >= min(least, len(norms))
    assert len(chosen) == len(norms) or len(chosen) % multiple == 0
    mean = sum(masses) / len(masses)
    total = sum(masses) + len(unknown) * mean
    missing = sum(mass for place, mass in enumerate(masses) if place not in chosen)
    assert missing <= left_out * total + 1e-9


def test_a_pool_of_which_nothing_is_known_is_chosen_whole():
    assert select_by_gradient_mass(torch.full((5,), math.nan), 0.5).tolist() == [0, 1, 2, 3, 4]
    assert select_by_gradient_mass(torch.zeros(5), 0.0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"left_out": 1.0}, "left_out is 1.0: it must be at least 0 and below 1"),
        ({"left_out": math.nan}, "left_out is nan"),
        ({"min_subset_size": 0}, "min_subset_size is 0: it must be at least 1"),
        ({"size_multiple": 0}, "size_multiple is 0: it must be at least 1"),
        ({"norms": torch.ones(2, 2)}, r"norms has shape \(2, 2\): it must be \(B,\)"),
        ({"norms": torch.ones(0)}, r"norms has shape \(0,\)"),
    ],
)
def test_what_is_out_of_range_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        select_by_gradient_mass(**{"norms": torch.ones(3), **arguments})


def test_shapes_of_other_samples_are_refused():
    with pytest.raises(ValueError, match="both need the same leading dimensions"):
        gradient_norms(torch.ones(3, 4), torch.ones(2, 4))


@given(data=st.data(), left_out=st.floats(0, 0.9), seed=st.integers(0, 999))
def test_a_growing_pool_counts_what_the_whole_one_would(data, left_out, seed):
    generator = np.random.default_rng(seed)
    parts = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=6))
    growing, norms, stays, before = GrowingPool(left_out), np.empty(0), np.empty(0, dtype=bool), 0
    for size in parts:
        more = generator.integers(1, 1000, size).astype(float)  # whole numbers, whose sums are exact in any order
        more[generator.random(size) < 0.1] = np.nan
        back = generator.random(size) < 0.1
        kept = growing.add(more, back)
        assert np.isnan(np.concatenate([norms, more])).any() or kept <= before + size
        norms, stays, before = np.concatenate([norms, more]), np.concatenate([stays, back]), kept
        exact = len(carriers(norms, stays, left_out))
        assert abs(kept - exact) <= int(np.isnan(norms).any()), "a mean of norms may round"


@pytest.mark.parametrize("inputs", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grads", [torch.float64, torch.float32, torch.bfloat16])
def test_inputs_and_gradients_may_differ_in_precision(inputs, grads):
    h, d = torch.randn(8, 5, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    norms = gradient_norms(h.to(inputs), d.to(grads))
    assert norms.dtype == (torch.float64 if inputs == grads == torch.float64 else torch.float32)
    torch.testing.assert_close(norms.double(), gradient_norms(h, d), rtol=0.02, atol=0)
