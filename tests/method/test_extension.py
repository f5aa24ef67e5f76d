"""Criteria and batch-size rules of the user's own: what they are given, what may come back, and that runs resume."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from composer_edba.method.averages import Averages
from composer_edba.method.choice import select_subset
from composer_edba.method.sizing import FixedPolicy, LossPolicy, MarginPolicy, make_policy, policy_word
from composer_edba.plain import SubsetLoader
from composer_edba.settings import checked
from tests.support.torch_runs import loader, net, sgd

LOSS = nn.CrossEntropyLoss()
AVERAGES = Averages(1.0, 0.5)


def pool(size, seed=0, dtype=torch.float32):
    """Inner products of ``size`` random gradients that share a direction."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(size, 8, generator=generator, dtype=dtype) + 0.5
    return gradients @ gradients.T


def choose(criterion, products, seed=0, model=1.25, averages=AVERAGES, **arguments):
    generator = torch.Generator().manual_seed(seed)
    return select_subset(products, model, averages, criterion=criterion, generator=generator, **arguments)


def difference(norms, model, averages):
    return (norms - averages.gradient - (model - averages.model)).abs()


# ---- criteria


@given(
    size=st.integers(1, 150),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    # In 64ths, which no dtype rounds.
    metrics=st.tuples(*[st.integers(-200, 200)] * 3),
    arguments=st.fixed_dictionaries(
        {
            "num_candidates": st.sampled_from([1, 7, 256]),
            "min_subset_size": st.integers(1, 20),
            "subset_size_law": st.sampled_from(["uniform", "upper_half", "power_set", 0.3, 1.0]),
            "size_multiple": st.sampled_from([1, 4]),
        }
    ),
)
def test_difference_written_as_a_function_chooses_what_the_name_does(size, seed, dtype, metrics, arguments):
    model, model_average, gradient_average = (value / 64 for value in metrics)
    averages = Averages(model_average, gradient_average)
    named, own = (
        vars(choose(criterion, pool(size, seed, dtype), seed, model, averages, **arguments))
        for criterion in ("difference", difference)
    )
    assert named.pop("indices").equal(own.pop("indices"))
    assert named == own


def test_a_criterion_is_given_the_candidates_metrics_the_loss_and_the_averages():
    seen = []

    def watched(*given):
        seen.append(given)
        return difference(*given)

    products = pool(64)
    for loss in (1.25, torch.tensor(1.25)):
        selection = choose(watched, products, model=loss, num_candidates=100)
        norms, model, averages = seen.pop()
        assert norms.dtype == torch.float64
        assert norms.ndim == 1
        assert len(norms) >= 100
        assert (type(model), model) == (float, 1.25)
        assert averages is AVERAGES
        assert (float(norms.min()), float(norms.max())) == selection.reach
    choose(watched, products, averages=None)
    assert not seen, "the first pool begins the averages and is not judged"


@pytest.mark.parametrize("size", [5, 64])
def test_the_least_cost_wins(size):
    least, most = (
        choose(criterion, pool(size), size, min_subset_size=5)
        for criterion in (lambda norms, *_: norms, lambda norms, *_: -norms)
    )
    assert least.gradient_metric == least.reach[0]
    assert most.gradient_metric == most.reach[1]
    assert least.reach == most.reach
    infinite = choose(lambda norms, *_: norms.where(norms < norms.max(), -math.inf), pool(size), size)
    assert infinite.gradient_metric == infinite.reach[1]


def test_a_subset_without_a_gradient_never_wins():
    products = pool(40)
    products[:30] = products[:, :30] = 0
    selection = choose(lambda norms, *_: norms, products, min_subset_size=1)
    assert selection.reach[0] == 0 < selection.gradient_metric


@given(size=st.integers(20, 80), seed=st.integers(0, 1000), share=st.floats(0, 1), sign=st.sampled_from([1.0, -1.0]))
def test_a_cost_of_nan_never_wins(size, seed, share, sign):
    given_metrics = []

    def holed(norms, model, averages):
        holes = torch.rand(len(norms), generator=torch.Generator().manual_seed(seed)) < share
        holes[seed % len(norms)] = False
        costs = (sign * norms).masked_fill(holes, math.nan)
        given_metrics.append(norms[~holes])
        return costs

    selection = choose(holed, pool(size, seed), seed, min_subset_size=2)
    best = given_metrics[0].min() if sign > 0 else given_metrics[0].max()
    assert selection.gradient_metric == float(best)


@pytest.mark.parametrize(
    ("criterion", "gave"),
    [
        (lambda norms, *_: norms[1:], r"\({fewer},\)"),
        (lambda norms, *_: norms.unsqueeze(1), r"\({all}, 1\)"),
        (lambda norms, *_: norms.min(), r"\(\)"),
        (lambda norms, *_: norms.tolist(), "list"),
        (lambda norms, *_: norms.numpy(), "ndarray"),
        (lambda norms, model, _: model, "float"),
        (lambda *_: None, "NoneType"),
    ],
    ids=["one too few", "a column", "a scalar", "a list", "an array", "a number", "nothing"],
)
def test_costs_of_another_shape_are_refused(criterion, gave):
    counts = []
    choose(lambda norms, *_: counts.append(len(norms)) or norms, pool(64))
    gave = gave.format(fewer=counts[0] - 1, all=counts[0])
    with pytest.raises(ValueError, match=rf"^criterion gave {gave} for {counts[0]} candidates: .*one cost for each$"):
        choose(criterion, pool(64))


# ---- batch-size rules


class Wandering:
    """Depends on all it has seen: the loss, the margins' reach and the number of steps."""

    def __init__(self, size, minimum=10, maximum=150):
        self.size, self.minimum, self.maximum = size, minimum, maximum
        self.total = 0.0

    def update(self, observation):
        self.total += observation.model_metric + observation.reach[1]
        self.size = self.minimum + int(1000 * self.total) % (self.maximum - self.minimum)
        return self.size

    def state_dict(self):
        return {"size": self.size, "total": self.total}

    def load_state_dict(self, state):
        self.size, self.total = state["size"], state["total"]


def test_an_object_is_the_rule_itself():
    rule = Wandering(37)
    assert make_policy(rule, 100, 10, 1000) is rule
    assert rule.size == 37
    named = LossPolicy(50, 10, 1000)
    assert make_policy(named, 100, 10, 1000) is named


@pytest.mark.parametrize("ranks", [1, 4])
def test_a_function_makes_a_new_rule_each_time(ranks):
    given_bounds = []

    def make(*bounds):
        given_bounds.append(bounds)
        return Wandering(*bounds)

    first, second = (make_policy(make, 100, 10, 1000, ranks=ranks) for _ in range(2))
    assert first is not second
    assert given_bounds == [(100, 10, 1000)] * 2
    assert (first.size, first.minimum, first.maximum) == (100, 10, 1000)


@pytest.mark.parametrize(
    ("policy", "kind", "word"),
    [
        (Wandering, Wandering, "Wandering"),
        (Wandering(64), Wandering, "Wandering"),
        (MarginPolicy, MarginPolicy, "MarginPolicy"),
        (partial(LossPolicy, window=3), LossPolicy, None),
        ("fixed", FixedPolicy, "fixed"),
    ],
    ids=["class", "object", "own class", "constants", "name"],
)
def test_what_settings_take_for_a_rule(policy, kind, word):
    settings = checked({"batch_size_policy": policy})
    assert settings["batch_size_policy"] is policy
    assert type(make_policy(policy, 64, 10, 1000)) is kind
    if word is not None:
        assert policy_word(policy) == word


def test_an_objects_constants_are_its_own():
    assert make_policy(partial(LossPolicy, window=3), 64, 10, 1000)._window.maxlen == 3
    with pytest.raises(ValueError, match=r"policy_options is \{'window': 3\}: batch_size_policy is an object"):
        checked({"batch_size_policy": LossPolicy, "policy_options": {"window": 3}})


def test_a_class_whose_size_is_a_property_is_no_object_but_makes_one():
    class Measured(Wandering):
        @property
        def size(self):
            return self._size

        @size.setter
        def size(self, value):
            self._size = value

    assert type(make_policy(Measured, 64, 10, 1000)) is Measured


@pytest.mark.parametrize("made", [None, 64, difference])
def test_a_function_that_makes_no_rule_is_refused(made):
    with pytest.raises((TypeError, ValueError), match="batch_size_policy"):
        SubsetLoader(loader(), net(), LOSS, criterion="margin", batch_size_policy=lambda size, minimum, maximum: made)


@pytest.mark.parametrize("size", [0, -3, 12.7, None])
def test_a_rule_with_a_size_that_no_batch_can_have_is_refused(size):
    class Wrong(Wandering):
        def update(self, observation):
            self.size = size

    with pytest.raises((TypeError, ValueError), match="batch_size_policy"):
        list(SubsetLoader(loader(), net(), LOSS, criterion="margin", batch_size_policy=Wrong, interval=1))


def test_a_batch_size_rule_is_no_criterion():
    with pytest.raises((TypeError, ValueError), match="criterion is "):
        checked({"criterion": Wandering(64)})


@pytest.mark.parametrize("name", ["criterion", "batch_size_policy"])
@pytest.mark.parametrize("value", [3, None, "lambda", [64]])
def test_what_is_neither_a_name_nor_an_object_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} is .*: it must be one of .*, or an object \(docs/extending.md\)"):
        checked({name: value})


# ---- runs


class Run:
    """A plain loop with a criterion and a rule of its own; what it trained on, and how it can be taken up."""

    def __init__(self, scoring, policy=None):
        self.model = net(dropout=0.0)
        self.optimizer = sgd(self.model)
        self.subsets = SubsetLoader(
            loader(),
            self.model,
            LOSS,
            criterion=difference,
            batch_size_policy=Wandering(50) if policy is None else policy,
            subset_size_law="uniform",
            interval=1,
            scoring=scoring,
        )
        self.steps, self.saved = [], []

    def one_pass(self, save=False):
        for x, y in self.subsets:
            self.optimizer.zero_grad()
            LOSS(self.model(x), y).backward()
            self.optimizer.step()
            self.steps.append(x[:, 0].long().tolist())
            if save:
                parts = (self.model, self.optimizer, self.subsets)
                self.saved.append(copy.deepcopy([*(part.state_dict() for part in parts), torch.get_rng_state()]))
        return self

    def resume(self, saved):
        *states, random_state = saved
        for part, state in zip((self.model, self.optimizer, self.subsets), states, strict=True):
            part.load_state_dict(state)
        torch.set_rng_state(random_state)
        return self


@pytest.mark.parametrize("scoring", ["forward", "cached"])
def test_a_run_with_objects_resumes_bitwise_in_mid_pass(scoring):
    whole = Run(scoring)
    assert whole.subsets.batch_size == 50
    torch.manual_seed(3)
    ends = [len(whole.one_pass(save=True).steps) for _ in range(3)]
    assert len(set(map(len, whole.steps))) > 4
    state = whole.subsets.state_dict()
    assert state["batch_size_policy"] == "Wandering"
    assert state["selector"]["policy"]["size"] == whole.subsets.batch_size
    for cut in range(ends[0] + 1, ends[2]):
        if cut == ends[1]:
            continue
        again = Run(scoring).resume(whole.saved[cut - 1])
        for _ in range(sum(cut < end for end in ends[1:])):
            again.one_pass()
        assert again.steps == whole.steps[cut:], cut
        assert again.subsets.state_dict() == state
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], tensor), (cut, name)


def test_another_rule_is_not_given_the_memory_of_the_first():
    class Other(Wandering):
        def load_state_dict(self, state):
            raise AssertionError

    first = Run("forward").one_pass(save=True)
    again = Run("forward", Other(20)).resume(first.saved[-1])
    assert again.subsets.batch_size == 20
    averages = again.subsets.state_dict()["selector"]["averages"]
    assert averages == first.subsets.state_dict()["selector"]["averages"]
