"""The search never ends worse than it began, equals a naive one step by step, and the selector keeps its averages."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from composer_edba.dba.layer_subsets import LayerSubsetSelector, search_subsets
from composer_edba.functional import margin_loss, subset_gradient_norms
from composer_edba.method import reference


def layer_gradients(samples, layers, seed, size=7):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(layers, 1, size, generator=generator, dtype=torch.float64)
    return mean + 1.5 * torch.randn(layers, samples, size, generator=generator, dtype=torch.float64)


def margin(gradients, subset, settings):
    norm = reference.gradient_metric(gradients, subset).item() if subset else 0.0
    if norm == 0:
        return float("inf")
    return reference.margin(settings["model_metric"], norm, settings["model_average"], settings["gradient_average"])


def distance(gradients, subset, settings):
    """How far the norm is from the one of margin zero."""
    norm = reference.gradient_metric(gradients, subset).item() if subset else 0.0
    wanted = settings["gradient_average"] + settings["model_metric"] - settings["model_average"]
    return abs(norm - wanted) if norm > 0 else float("inf")


def naive_search(gradients, search, guide, least, settings):
    """One flip after the other, each judged from the gradients themselves; gives all subsets on the way."""
    samples = len(gradients)
    everyone = set(range(samples))
    goal = {"margin": margin, "norm": distance}[guide]
    if search == "addition":
        members = {min(everyone, key=lambda i: goal(gradients, [i], settings))}
    else:
        members = set(everyone)
    path = [frozenset(members)]
    while True:
        flips = [members - {i} for i in members if len(members) > least] if search != "addition" else []
        flips += [members | {i} for i in everyone - members] if search != "removal" else []
        if not flips:
            return path
        best = min(flips, key=lambda flip: goal(gradients, sorted(flip), settings))
        better = goal(gradients, sorted(best), settings) < goal(gradients, sorted(members), settings)
        if not better and len(members) >= least:
            return path
        members = set(best)
        path.append(frozenset(members))


situations = st.fixed_dictionaries(
    {
        "model_metric": st.floats(0.2, 2.0),
        "model_average": st.floats(0.2, 2.0),
        "gradient_average": st.floats(0.1, 4.0),
    }
)


def found(gradients, search, guide, least, settings):
    products = gradients @ gradients.transpose(1, 2)
    averages = torch.full((len(gradients),), settings["gradient_average"], dtype=torch.float64)
    return search_subsets(
        products,
        settings["model_metric"],
        settings["model_average"],
        averages,
        search=search,
        guide=guide,
        min_subset_size=least,
    )


@pytest.mark.parametrize("guide", ["norm", "margin"])
@pytest.mark.parametrize("search", ["removal", "addition", "both"])
@settings(max_examples=40)
@given(
    samples=st.integers(1, 12),
    layers=st.integers(1, 3),
    least=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    situation=situations,
)
def test_the_search_equals_a_naive_one(search, guide, samples, layers, least, seed, situation):
    gradients = layer_gradients(samples, layers, seed)
    members = found(gradients, search, guide, least, situation)
    assert members.shape == (layers, samples)
    for layer, row in zip(gradients, members, strict=True):
        path = naive_search(layer, search, guide, min(least, samples), situation)
        passed = [subset for subset in path if len(subset) >= min(least, samples)]
        expected = min(margin(layer, sorted(subset), situation) for subset in passed)
        chosen = sorted(row.nonzero()[:, 0].tolist())
        assert margin(layer, chosen, situation) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert frozenset(chosen) in passed
        if search != "addition":  # which begins elsewhere
            assert margin(layer, chosen, situation) <= margin(layer, list(range(samples)), situation)


@pytest.mark.parametrize("guide", ["norm", "margin"])
@pytest.mark.parametrize("search", ["removal", "addition", "both"])
@settings(max_examples=30)
@given(samples=st.integers(2, 10), least=st.integers(1, 4), seed=st.integers(0, 10**6), situation=situations)
def test_against_brute_force_over_all_subsets(search, guide, samples, least, seed, situation):
    gradients = layer_gradients(samples, 1, seed)[0]
    least = min(least, samples)
    everything = [s for n in range(least, samples + 1) for s in itertools.combinations(range(samples), n)]
    masks = torch.zeros(len(everything), samples, dtype=torch.bool)
    for mask, subset in zip(masks, everything, strict=True):
        mask[list(subset)] = True
    norms = subset_gradient_norms(gradients @ gradients.T, masks)
    margins = margin_loss(situation["model_metric"], norms, situation["model_average"], situation["gradient_average"])
    members = found(gradients.unsqueeze(0), search, guide, least, situation)[0]
    reached = margin(gradients, members.nonzero()[:, 0].tolist(), situation)
    assert members.sum() >= least
    assert reached >= margins.min() - 1e-9
    if guide == "margin":  # then no single further flip lowers it
        for i in range(samples):
            flipped = members.clone()
            flipped[i] = ~flipped[i]
            permitted = {"removal": members[i], "addition": ~members[i], "both": True}[search]
            if permitted and flipped.sum() >= least:
                assert margin(gradients, flipped.nonzero()[:, 0].tolist(), situation) >= reached - 1e-9


def test_the_wanted_norm_is_reached_from_either_side_of_the_pole():
    """Equation 1 has its pole between the batch's norm and the wanted one; looking at the margin alone runs away."""
    gradients = layer_gradients(100, 4, 3, size=30)
    pool = gradients.mean(1).norm(dim=1)
    products = gradients @ gradients.transpose(1, 2)
    averages, rise = pool * 1.05, 0.1
    norms = {}
    for guide in ("norm", "margin"):
        members = search_subsets(products, 1 + rise, 1.0, averages, guide=guide)
        norms[guide] = torch.stack([g[m].mean(0).norm() for g, m in zip(gradients, members, strict=True)])
    assert ((norms["norm"] - averages - rise).abs() < 0.01).all()
    assert (norms["margin"] < pool).all()


def test_layers_without_gradient_keep_the_whole_batch():
    gradients = torch.zeros(2, 8, 3, dtype=torch.float64)
    gradients[1] = torch.randn(8, 3)
    situation = {"model_metric": 1.0, "model_average": 0.9, "gradient_average": 0.5}
    assert found(gradients, "removal", "norm", 1, situation)[0].all()
    assert found(gradients, "addition", "norm", 3, situation)[0].sum() == 3


def select(selector, gradients, model_metric, names=("a", "b"), seed=0):
    products = gradients @ gradients.transpose(1, 2)
    return selector.select(names, products, model_metric, torch.Generator().manual_seed(seed))


def test_the_first_step_takes_everything_and_starts_the_averages():
    selector, gradients = LayerSubsetSelector(min_subset_size=2), layer_gradients(6, 2, 0)
    first = select(selector, gradients, 2.0)
    assert first.members.all()
    assert first.margins.tolist() == [0, 0]
    norms = gradients.mean(1).norm(dim=1).tolist()
    assert selector.model_average == 2.0
    assert list(selector.gradient_averages.values()) == pytest.approx(norms)
    second = select(selector, gradients, 1.0)
    assert selector.model_average == pytest.approx(0.9 * 2 + 0.1 * 1)
    for layer, (name, average) in enumerate(selector.gradient_averages.items()):
        chosen = second.members[layer].nonzero()[:, 0].tolist()
        metric = reference.gradient_metric(gradients[layer], chosen).item()
        assert second.gradient_metrics[layer] == pytest.approx(metric)
        assert average == pytest.approx(0.9 * norms[layer] + 0.1 * metric), name
        assert second.margins[layer] == pytest.approx(reference.margin(1.0, metric, 2.0, norms[layer]))
    assert torch.allclose(second.weights.sum(1), torch.ones(2))


def test_a_layer_that_comes_later_starts_its_own_average():
    selector, gradients = LayerSubsetSelector(min_subset_size=2), layer_gradients(6, 2, 0)
    select(selector, gradients[:1], 2.0, names=("a",))
    late = select(selector, gradients, 1.0)
    assert late.members[1].all()
    assert late.margins[1] == 0
    assert selector.gradient_averages["b"] == pytest.approx(gradients[1].mean(0).norm().item())


@given(seed=st.integers(0, 1000))
def test_the_control_has_the_same_sizes_and_other_members(seed):
    gradients = layer_gradients(30, 2, seed)
    chosen = []
    for criterion in ("margin", "random"):
        selector = LayerSubsetSelector(min_subset_size=2, criterion=criterion)
        select(selector, gradients, 2.0)
        chosen.append(select(selector, gradients, 1.9, seed=seed))
    assert torch.equal(chosen[0].sizes, chosen[1].sizes)
    if (chosen[0].sizes < 25).any():
        assert not torch.equal(chosen[0].members, chosen[1].members)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_broken_batches_do_not_poison_the_averages(broken):
    selector, gradients = LayerSubsetSelector(min_subset_size=2), layer_gradients(6, 2, 0)
    select(selector, gradients, 2.0)
    before = selector.state_dict()
    bad = gradients.clone()
    if broken == "gradient":
        bad[0, 0, 0] = float("nan")
    subsets = select(selector, bad, float("inf") if broken == "loss" else 1.0)
    assert not subsets.finite
    assert subsets.members.all()
    assert selector.state_dict() == {**before, "nonfinite_steps": 1}


def test_state_goes_on_where_it_was():
    selector, gradients = LayerSubsetSelector(min_subset_size=2), layer_gradients(9, 2, 0)
    select(selector, gradients, 2.0)
    again = LayerSubsetSelector(min_subset_size=2)
    again.load_state_dict(selector.state_dict())
    a, b = (select(s, gradients, 1.5) for s in (selector, again))
    assert torch.equal(a.members, b.members)
    assert selector.state_dict() == again.state_dict()
