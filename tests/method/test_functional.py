"""The mathematics, against torch.func's per-sample gradients and against the reference that reads like equation 1."""

import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap

from composer_edba import functional
from composer_edba.functional import Averages, gradient_inner_products, margin_loss, select_subset
from composer_edba.method import equation, reference

LOSSES = ["cross_entropy", "label_smoothed", "mse", "bce"]


def loss_and_target(name, samples, positions, classes):
    """A mean loss over samples (and positions), and targets for it."""
    if name == "cross_entropy" or name == "label_smoothed":
        smoothing = 0.1 if name == "label_smoothed" else 0.0
        target = torch.randint(classes, (samples, *positions))

        def loss(output, target):
            return nn.functional.cross_entropy(
                output.reshape(-1, classes), target.reshape(-1), label_smoothing=smoothing
            )

        return loss, target
    if name == "mse":
        return nn.functional.mse_loss, torch.randn(samples, *positions, classes)
    return nn.functional.binary_cross_entropy_with_logits, torch.rand(samples, *positions, classes).round()


def torch_func_gradients(layer, inputs, target, loss):
    """Per-sample gradients of the layer's parameters, (B, D), by torch.func."""
    parameters = dict(layer.named_parameters())

    def sample_loss(parameters, h, t):
        return loss(functional_call(layer, parameters, h.unsqueeze(0)), t.unsqueeze(0))

    gradients = vmap(grad(sample_loss), in_dims=(None, 0, 0))(parameters, inputs, target)
    return torch.cat([g.flatten(1) for g in gradients.values()], 1)


def output_gradients(layer, inputs, target, loss):
    output = layer(inputs).detach().requires_grad_()
    (d,) = torch.autograd.grad(loss(output, target), output)
    return d * len(inputs)


@given(
    samples=st.integers(1, 12),
    positions=st.lists(st.integers(1, 4), max_size=2),
    features=st.integers(1, 17),
    classes=st.integers(1, 9),
    bias=st.booleans(),
    loss_name=st.sampled_from(LOSSES),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10_000),
)
@example(samples=12, positions=[4, 4], features=1, classes=1, bias=True, loss_name="mse", dtype=torch.float32, seed=0)
@example(
    samples=11,
    positions=[2],
    features=1,
    classes=2,
    bias=False,
    loss_name="cross_entropy",
    dtype=torch.float32,
    seed=0,
)
@example(samples=2, positions=[4, 4], features=17, classes=9, bias=True, loss_name="bce", dtype=torch.float32, seed=0)
@example(samples=1, positions=[], features=3, classes=1, bias=False, loss_name="mse", dtype=torch.float32, seed=1)
@settings(max_examples=150)
def test_inner_products_and_norms_equal_those_of_torch_func(
    samples, positions, features, classes, bias, loss_name, dtype, seed
):
    torch.manual_seed(seed)
    layer = nn.Linear(features, classes, bias=bias, dtype=dtype)
    inputs = torch.randn(samples, *positions, features, dtype=dtype)
    loss, target = loss_and_target(loss_name, samples, positions, classes)
    target = target.to(dtype) if target.is_floating_point() else target
    expected = torch_func_gradients(layer.double(), inputs.double(), _double(target), loss)
    exact = output_gradients(layer, inputs.double(), _double(target), loss)
    layer.to(dtype)
    d = output_gradients(layer, inputs, target, loss)
    # An output that nearly hits its target leaves d few digits in float32: that is the forward's loss, not ours.
    assume(((d.double() - exact).norm(dim=-1) <= 2e-6 * exact.norm(dim=-1)).all())
    products = gradient_inner_products(inputs, d, bias)
    assert products.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    # Relative to the norms of what is summed: an inner product of nearly orthogonal gradients cancels, and so does a
    # gradient that is a sum over positions. With one position these are the norms of the gradients themselves.
    norms = (d.norm(dim=-1) * (inputs.square().sum(-1) + bias).sqrt()).reshape(samples, -1).sum(1).double()
    scale = norms.outer(norms) + 1e-12
    assert ((products.double() - expected @ expected.T).abs() / scale).max() < tolerance

    masks = torch.rand(20, samples) < 0.5
    masks[:, 0] = True
    got = functional.subset_gradient_norms(products, masks)
    want = torch.stack([reference.gradient_metric(expected, mask.nonzero()[:, 0].tolist()) for mask in masks])
    rms = torch.stack([norms[mask].square().mean().sqrt() for mask in masks]) + 1e-12
    # A squared norm is known to the precision of the largest term in it.
    assert ((got.double() ** 2 - want**2).abs() / rms**2).max() < tolerance


def _double(target):
    return target.double() if target.is_floating_point() else target


def test_relative_error_of_norms_on_a_network_of_real_size():
    layer = nn.Linear(256, 10)
    inputs = torch.randn(100, 256).relu()
    loss, target = loss_and_target("cross_entropy", 100, [], 10)
    products = gradient_inner_products(inputs, output_gradients(layer, inputs, target, loss))
    expected = torch_func_gradients(layer.double(), inputs.double(), target, loss)
    orders = torch.stack([torch.randperm(100) for _ in range(20)])
    norms = functional.prefix_gradient_norms(products, orders)
    sums = expected[orders].cumsum(1).norm(dim=2) / torch.arange(1, 101)
    assert ((norms - sums).abs() / sums).max() < 1e-5


@pytest.mark.parametrize("positions", [(), (3,), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_reference_gradients_equal_those_of_torch_func(positions, bias):
    layer = nn.Linear(5, 4, bias=bias, dtype=torch.float64)
    inputs = torch.randn(6, *positions, 5, dtype=torch.float64)
    loss, target = loss_and_target("cross_entropy", 6, positions, 4)
    gradients = reference.last_layer_gradients(inputs, output_gradients(layer, inputs, target, loss), bias)
    expected = torch_func_gradients(layer, inputs, target, loss)
    torch.testing.assert_close(gradients.norm(dim=1), expected.norm(dim=1))
    torch.testing.assert_close(gradients @ gradients.T, expected @ expected.T)


def test_inner_products_name_the_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"inputs has shape \(4, 3\) and output_grads \(5, 2\)"):
        gradient_inner_products(torch.zeros(4, 3), torch.zeros(5, 2))


def test_inner_products_stay_in_float32_under_autocast():
    h, d = torch.randn(8, 64), torch.randn(8, 10)
    with torch.autocast("cpu", torch.bfloat16):
        products = gradient_inner_products(h, d)
    assert torch.equal(products, gradient_inner_products(h, d))


@given(samples=st.integers(1, 40), orders=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_prefix_norms_equal_the_norms_of_the_prefixes_as_masks(samples, orders, seed):
    torch.manual_seed(seed)
    products = gradient_inner_products(torch.randn(samples, 7), torch.randn(samples, 3))
    permutations = torch.stack([torch.randperm(samples) for _ in range(orders)])
    norms = functional.prefix_gradient_norms(products, permutations)
    for row, permutation in zip(norms, permutations, strict=True):
        masks = torch.zeros(samples, samples, dtype=torch.bool)
        for n in range(samples):
            masks[n, permutation[: n + 1]] = True
        expected = functional.subset_gradient_norms(products, masks)
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5 * float(products.diagonal().max() ** 0.5))


finite = st.floats(-1e3, 1e3, allow_nan=False)


@given(model=finite, gradients=st.lists(finite, min_size=1, max_size=5), averages=st.tuples(finite, finite))
def test_margin_loss_is_equation_1(model, gradients, averages):
    got = margin_loss(model, torch.tensor(gradients, dtype=torch.float64), *averages)
    want = [reference.margin(model, g, *averages) for g in gradients]
    assert got.shape == (len(gradients),)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))


def test_margin_of_a_zero_denominator():
    assert margin_loss(1.0, torch.tensor(2.0), 0.5, 2.0) == math.inf
    assert margin_loss(1.0, torch.tensor(2.0), 1.0, 2.0) == 0
    assert margin_loss(1.0, torch.tensor(3.0), 1.0, 2.0) == 1


def pool(samples=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(samples, 6, generator=generator)
    d = torch.randn(samples, 3, generator=generator)
    return h, d, gradient_inner_products(h, d)


@pytest.mark.parametrize("law", ["uniform", "upper_half", "power_set", 0.4])
def test_the_chosen_subset_is_the_reference_choice_among_the_same_candidates(law):
    from composer_edba.method.candidates import draw_candidates

    h, d, products = pool()
    averages = Averages(model=2.0, gradient=0.9)
    for seed in range(5):
        selection = select_subset(
            products,
            1.9,
            averages,
            num_candidates=64,
            generator=torch.Generator().manual_seed(seed),
            subset_size_law=law,
        )
        drawn = draw_candidates([40], 64, 10, law, generator=torch.Generator().manual_seed(seed))
        count = len(drawn.orders) * len(drawn.sizes) if drawn.as_prefixes else len(drawn.orders)
        candidates = [drawn.members(i).tolist() for i in range(count)]
        gradients = reference.last_layer_gradients(h.double(), d.double())
        chosen = reference.select(gradients, 1.9, averages.model, averages.gradient, candidates)
        metric = float(reference.gradient_metric(gradients, chosen))
        assert selection.indices.tolist() == chosen
        assert selection.gradient_metric == pytest.approx(metric, rel=1e-5)
        want = reference.margin(1.9, metric, averages.model, averages.gradient)
        assert selection.margin == pytest.approx(want, rel=1e-3, abs=1e-4)
        assert abs(selection.signed_margin) == selection.margin
        metrics = [float(reference.gradient_metric(gradients, c)) for c in candidates]
        assert selection.reach == pytest.approx((min(metrics), max(metrics)), rel=1e-5)
        assert selection.wanted == pytest.approx(averages.gradient + 1.9 - averages.model)
        assert selection.mean_square_norm == pytest.approx(float(gradients.square().sum(1).mean()), rel=1e-5)
        assert selection.pool_gradient_metric == pytest.approx(float(gradients.mean(0).norm()), rel=1e-5)


def test_the_first_step_takes_the_whole_pool():
    _, _, products = pool()
    selection = select_subset(products, 2.3, None)
    assert selection.indices.tolist() == list(range(40))
    assert selection.margin == 0
    assert selection.model_metric == pytest.approx(2.3)
    assert selection.gradient_metric == pytest.approx(selection.pool_gradient_metric)


@pytest.mark.parametrize("samples", [1, 2, 9, 10])
def test_a_pool_no_larger_than_the_smallest_subset_is_taken_whole(samples):
    _, _, products = pool(samples)
    selection = select_subset(products, 2.0, Averages(1.0, 1.0), min_subset_size=10)
    assert selection.indices.tolist() == list(range(samples))
    expected = reference.margin(2.0, float(products.mean().clamp_min(0).sqrt()), 1.0, 1.0)
    assert selection.margin == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("law", ["uniform", "upper_half", "power_set", 0.3])
def test_a_subset_is_never_smaller_than_the_least_size(law):
    _, _, products = pool(13)
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        averages = Averages(1.0, 0.1 * seed)
        selection = select_subset(products, 1.0, averages, generator=generator, num_candidates=8, subset_size_law=law)
        assert 10 <= len(selection.indices) <= 13
        assert len(set(selection.indices.tolist())) == len(selection.indices)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("averages", [None, Averages(1.0, 1.0)])
def test_nan_or_infinite_figures_take_the_whole_pool(broken, value, averages):
    _, _, products = pool()
    if broken == "gradient":
        products[3, 3] = value
    selection = select_subset(products, value if broken == "loss" else 1.0, averages)
    assert not selection.finite
    assert selection.indices.tolist() == list(range(40))


def test_the_random_control_keeps_the_sizes_and_draws_the_members():
    _, _, products = pool()
    averages = Averages(2.0, 0.9)
    overlap = 0
    for seed in range(20):
        margin, random = (
            select_subset(products, 1.9, averages, generator=torch.Generator().manual_seed(seed), criterion=criterion)
            for criterion in ("margin", "random")
        )
        assert len(random.indices) == len(margin.indices)
        overlap += margin.indices.tolist() == random.indices.tolist()
        mask = torch.zeros(1, 40, dtype=torch.bool)
        mask[0, random.indices] = True
        metric = float(functional.subset_gradient_norms(products, mask))
        assert random.gradient_metric == pytest.approx(metric, rel=1e-5)
        assert random.margin == pytest.approx(reference.margin(1.9, metric, 2.0, 0.9), rel=1e-3)
    assert overlap < 5


@given(
    model_metric=st.floats(0.1, 4),
    gradient_average=st.floats(0.05, 3),
    seed=st.integers(0, 1000),
    law=st.sampled_from(["uniform", "upper_half", 0.5]),
)
def test_the_difference_is_the_distance_to_the_wanted_metric(model_metric, gradient_average, seed, law):
    _, _, products = pool()
    averages = Averages(2.0, gradient_average)
    margin, difference = (
        select_subset(
            products,
            model_metric,
            averages,
            num_candidates=64,
            generator=torch.Generator().manual_seed(seed),
            criterion=criterion,
            subset_size_law=law,
        )
        for criterion in ("margin", "difference")
    )
    # The same candidates, so no other one lies nearer; and equation 1 is this distance over |G - Ḡ|.
    distance = abs(difference.gradient_metric - difference.wanted)
    assert distance <= abs(margin.gradient_metric - margin.wanted) * (1 + 1e-5) + 1e-6
    low, high = difference.reach
    assert distance <= max(0.0, low - difference.wanted, difference.wanted - high) + (high - low)
    if not low <= difference.wanted <= high:
        nearest = low if difference.wanted < low else high
        assert difference.gradient_metric == pytest.approx(nearest, rel=1e-5)
    run = abs(difference.gradient_metric - gradient_average)
    if run > 1e-3:
        assert difference.margin == pytest.approx(distance / run, rel=1e-2, abs=1e-3)


def test_the_whole_pool_as_share_is_the_only_candidate():
    _, _, products = pool(41)
    selection = select_subset(products, 1.9, Averages(2.0, 0.9), subset_size_law=1.0, group_sizes=[20, 12, 9])
    assert selection.indices.tolist() == list(range(41))


def test_groups_give_equally_many_samples_each_even_if_uneven():
    _, _, products = pool(41)
    sizes = [20, 12, 9]
    for seed in range(10):
        selection = select_subset(
            products,
            1.9,
            Averages(2.0, 0.9),
            min_subset_size=4,
            generator=torch.Generator().manual_seed(seed),
            group_sizes=sizes,
        )
        groups = torch.bucketize(selection.indices, torch.tensor([20, 32]), right=True)
        assert len(set(torch.bincount(groups, minlength=3).tolist())) == 1
        mask = torch.zeros(1, 41, dtype=torch.bool)
        mask[0, selection.indices] = True
        norm = functional.subset_gradient_norms(products, mask)
        assert selection.gradient_metric == pytest.approx(float(norm), rel=1e-5)


def test_the_choice_touches_no_global_random_stream():
    _, _, products = pool()
    before = torch.get_rng_state()
    select_subset(products, 1.9, Averages(2.0, 0.9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())


def test_averages_decay():
    assert Averages(1.0, 2.0).updated(3.0, 4.0, decay=0.75) == Averages(1.5, 2.5)


def test_tf32_is_off_in_the_products_and_as_before_after_them(monkeypatch):
    flags = torch.backends.cuda.matmul
    name = "fp32_precision" if hasattr(flags, "fp32_precision") else "allow_tf32"
    seen = []
    products = equation._inner_products_over_positions

    def watched(*arguments):
        seen.append(getattr(flags, name))
        return products(*arguments)

    monkeypatch.setattr(equation, "_inner_products_over_positions", watched)
    before = flags.allow_tf32
    try:
        flags.allow_tf32 = True  # Composer does
        functional.gradient_inner_products(torch.randn(3, 2, 4), torch.randn(3, 2, 5))
        assert flags.allow_tf32
    finally:
        flags.allow_tf32 = before
    assert seen == ["ieee" if name == "fp32_precision" else False]
