"""Rules that turn what the selection saw into the size of the next pools. Plain Python, no torch.

The paper gives no rule; docs/method.md explains these, docs/tuning.md their constants. Each sees one
:class:`Observation` a scored step. None flaps: a change needs a full window, and a wide tolerance or a cooldown.
``size`` is the first size, in samples a rank; ``minimum`` and ``maximum`` bound it.
"""

from __future__ import annotations

import functools
import math
import operator
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Protocol, get_args, get_origin, get_type_hints, runtime_checkable

__all__ = [
    "BatchSizePolicy",
    "FixedPolicy",
    "LossPolicy",
    "MarginPolicy",
    "NoiseScalePolicy",
    "Observation",
    "PolicyName",
    "check_policy_options",
    "check_size",
    "is_policy",
    "make_policy",
    "policy_word",
]

PolicyName = Literal["loss", "margin", "noise_scale", "fixed"]


def _range(kind: Any, holds: Callable[[Any], bool], wanted: str) -> tuple[Callable[[Any], bool], str]:
    return lambda v: isinstance(v, kind) and not isinstance(v, bool) and holds(v), wanted


# Ranges of the policies' constants.
_Window = Annotated[int, _range(int, lambda v: v >= 1, "an integer >= 1")]
_Count = Annotated[int, _range(int, lambda v: v >= 0, "an integer >= 0")]
_Share = Annotated[float, _range((int, float), lambda v: 0 < v < 1, "a number between 0 and 1")]
_Positive = Annotated[float, _range((int, float), lambda v: 0 < v < math.inf, "a number above 0")]
_NonNegative = Annotated[float, _range((int, float), lambda v: 0 <= v < math.inf, "a number of at least 0")]
_AtLeastOne = Annotated[float, _range((int, float), lambda v: 1 <= v < math.inf, "a number of at least 1")]
_AboveOne = Annotated[float, _range((int, float), lambda v: 1 < v < math.inf, "a number above 1")]


@dataclass(frozen=True)
class Observation:
    """What one step's selection tells about the batch size.

    Attributes:
        pool_size: B, the pool's samples on all ranks.
        margin: equation 1 for the chosen subset, >= 0, may be infinite.
        wanted: gradient metric of margin zero.
        reach: smallest and largest gradient metric among the candidates.
        mean_square_norm: (1/B) Σ ‖g_i‖².
        pool_square_norm: ‖(1/B) Σ g_i‖².
        model_metric: M, the mean loss of the pool. Default NaN, not known.
        learning_rate: the largest of all parameter groups. Default None, not known.
        first: whether the averages are this step's own metrics. Default False.
    """

    pool_size: int
    margin: float
    wanted: float
    reach: tuple[float, float]
    mean_square_norm: float
    pool_square_norm: float
    model_metric: float = float("nan")
    learning_rate: float | None = None
    first: bool = False


@runtime_checkable
class BatchSizePolicy(Protocol):
    """A rule for the batch size; ``size`` is the one aimed at now, in samples a rank, which alone counts."""

    size: int

    def update(self, observation: Observation) -> int:
        """Take in one step and return the size for the next pools."""

    def state_dict(self) -> dict[str, Any]:
        """The rule's memory, as plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the memory that :meth:`state_dict` gave."""


@dataclass(eq=False)
class FixedPolicy:
    """The batch keeps the size it has; bounds do not move it."""

    size: int
    minimum: int = 1
    maximum: int | None = None

    def update(self, observation: Observation) -> int:
        """Return the size unchanged."""
        return self.size

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the size is the loader's own."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the loader's size."""


@dataclass(eq=False)
class _Policy:
    """What the rules share: a size within bounds, a window of what was seen, a memory that can be saved."""

    size: int
    minimum: int
    maximum: int
    window: _Window = field(kw_only=True)
    _memory: ClassVar[tuple[str, ...]]  # what is saved beside size and window: attributes, less their underscore

    def __post_init__(self) -> None:
        self.size = self._within_bounds(self.size)
        self._window: deque[Any] = deque(maxlen=self.window)

    def _within_bounds(self, size: int) -> int:
        return min(max(size, self.minimum), self.maximum)

    def state_dict(self) -> dict[str, Any]:
        rest = {name: getattr(self, f"_{name}") for name in self._memory}
        return {"size": self.size, "window": list(self._window), **rest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.size = self._within_bounds(state["size"])
        self._window = deque(state["window"], maxlen=self.window)
        for name in self._memory:
            setattr(self, f"_{name}", state[name])


@dataclass(eq=False, kw_only=True)
class LossPolicy(_Policy):
    """Grow with the inverse cube of the loss, as far as the learning rate does not decay by itself.

    The wanted size is B = B_0 · (M_0 / M̄)³ · (η / η_max)², from B_0 to ``largest_growth`` · B_0: B_0 is the first size,
    M_0 the mean loss of the first window, M̄ of the last one, η_max the largest learning rate of this fit so far
    (docs/method.md, after arXiv:1711.00489 and arXiv:1910.08222). Losses that are not positive leave the size as it is.

    Args:
        window: observations over which the loss is averaged. Default 10.
        exponent: of the loss, > 0. Default 3.
        rate_exponent: of the learning rate's share of its maximum, >= 0. Default 2.
        largest_growth: largest multiple of the first size. Default 10, the paper's 1000 over its 100.
        tolerance: ratio of wanted to present size within which the size stays, > 1. Default 1.4.
    """

    window: _Window = 10
    exponent: _Positive = 3.0
    rate_exponent: _NonNegative = 2.0
    largest_growth: _AtLeastOne = 10.0
    tolerance: _AboveOne = 1.4
    _memory = ("first_size", "first_loss", "highest_rate")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._first_size, self._highest_rate = self.size, 0.0
        self._first_loss: float | None = None

    def begin_fit(self) -> None:
        """Another fit has another schedule: its own highest learning rate counts."""
        self._highest_rate = 0.0

    def refer(self, rate: float | None) -> bool:
        """Take in a learning rate before sizes may change; whether the first window still wants losses."""
        self._highest_rate = max(self._highest_rate, rate or 0.0)
        return self._first_loss is None and len(self._window) < self.window

    def update(self, observation: Observation) -> int:
        """Take in one step and return the size for the next pools."""
        self._window.append(observation.model_metric)
        rate = observation.learning_rate
        self._highest_rate = max(self._highest_rate, rate or 0.0)
        loss = sum(self._window) / len(self._window)
        if len(self._window) != self._window.maxlen or not 0 < loss < math.inf:
            return self.size
        if self._first_loss is None:
            self._first_loss = loss
        # By logarithms, which do not overflow.
        growth = self.exponent * (math.log(self._first_loss) - math.log(loss))
        damping = math.exp(min(growth, math.log(self.largest_growth)))
        if rate is not None and self._highest_rate > 0:
            damping *= (rate / self._highest_rate) ** self.rate_exponent
        # The floor comes after the comparison: noise around the first size would otherwise lead back to it each time.
        if not 1 / self.tolerance <= self._first_size * damping / self.size <= self.tolerance:
            self.size = self._within_bounds(round(self._first_size * max(damping, 1.0)))
        return self.size

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` gave; sizes outside of the present bounds are moved into them."""
        super().load_state_dict(state)
        self._first_size = self._within_bounds(self._first_size)


@dataclass(eq=False, kw_only=True)
class _CoolingPolicy(_Policy):
    """What the margin and noise-scale rules share: a window that begins anew after each change, and a cooldown."""

    cooldown: _Count
    _memory = ("rest", "direction")
    _rest = 0
    _direction = 0  # of the last change: 1 grew, -1 shrank

    def update(self, observation: Observation) -> int:
        if observation.first:
            return self.size
        if self._rest > 0:  # pools that were drawn before the change, and averages that have not settled
            self._rest -= 1
            return self.size
        self._window.append(self._evidence(observation))
        full = len(self._window) == self._window.maxlen
        if full and (proposed := self._within_bounds(self._proposed())) != self.size:
            self._direction = 1 if proposed > self.size else -1
            self.size, self._rest = proposed, self.cooldown
            self._window.clear()
        return self.size

    def _evidence(self, observation: Observation) -> Any:
        raise NotImplementedError  # what of a step goes into the window

    def _proposed(self) -> int:
        raise NotImplementedError  # the size that a full window speaks for; bounds are the caller's


@dataclass(eq=False, kw_only=True)
class MarginPolicy(_CoolingPolicy):
    """Grow when the wanted gradient metric stays below what the candidates reach, shrink when it stays above.

    A step votes 0 if the wanted metric is in reach, else the margin, capped at 1: positive if it lies below (more
    samples have a mean of smaller norm), negative if above. The pressure is the window's mean vote.

    Args:
        window: votes that a decision needs. Default 20.
        cooldown: steps after a change in which no votes are taken. Default 10.
        threshold: pressure beyond which the size changes, in (0, 1). Default 0.3.
        hysteresis: pressure needed on top to reverse the last change. Default 0.3.
        factor: by how much a change multiplies or divides, > 1. Default 1.5.
    """

    window: _Window = 20
    cooldown: _Count = 10
    threshold: _Share = 0.3
    hysteresis: _NonNegative = 0.3
    factor: _AboveOne = 1.5

    def _evidence(self, observation: Observation) -> float:
        (low, high), vote = observation.reach, min(observation.margin, 1.0)
        return vote if observation.wanted < low else -vote if observation.wanted > high else 0.0

    def _proposed(self) -> int:
        pressure = sum(self._window) / len(self._window)
        direction = 1 if pressure > 0 else -1
        needed = self.threshold + (self.hysteresis if direction == -self._direction else 0.0)
        if abs(pressure) <= needed:
            return self.size
        # At least one sample: small sizes would stay put by rounding.
        if direction > 0:
            return max(self.size + 1, round(self.size * self.factor))
        return min(self.size - 1, round(self.size / self.factor))


@dataclass(eq=False, kw_only=True)
class NoiseScalePolicy(_CoolingPolicy):
    """Follow the gradient noise scale tr Σ / |G|², the batch size beyond which more samples add little.

    With s = (1/B) Σ ‖g_i‖² and p = ‖(1/B) Σ g_i‖² of the last layer, |G|² ≈ (B p - s) / (B - 1) and
    tr Σ ≈ (s - p) B / (B - 1) without bias (McCandlish et al. 2018, appendix A). Each is averaged, then divided.

    Args:
        ranks: number of ranks that share a pool, and so the noise scale. Default 1.
        window: steps that a decision needs. Default 50.
        cooldown: steps after a change that are left out. Default 10.
        tolerance: ratio of noise scale to size within which the size stays, > 1. Default 1.5.
        factor: largest change at once, >= tolerance. Default 2.
    """

    ranks: int = 1
    window: _Window = 50
    cooldown: _Count = 10
    tolerance: _AboveOne = 1.5
    factor: _AboveOne = 2.0

    def _evidence(self, observation: Observation) -> list[float]:
        size, square, pool_square = observation.pool_size, observation.mean_square_norm, observation.pool_square_norm
        if size < 2:
            return [0.0, 0.0]
        return [(square - pool_square) * size / (size - 1), (size * pool_square - square) / (size - 1)]

    def _proposed(self) -> int:
        variance, signal = (sum(estimates) for estimates in zip(*self._window, strict=True))
        # Without signal noise drowns the gradient, and no size is large enough; or there is no gradient at all.
        drowned = math.inf if variance > 0 else 1.0
        ratio = variance / signal / self.ranks / self.size if signal > 0 else drowned
        if 1 / self.tolerance <= ratio <= self.tolerance:
            return self.size
        return round(self.size * min(max(ratio, 1 / self.factor), self.factor))


POLICIES: Mapping[str, type[Any]] = {
    "loss": LossPolicy,
    "margin": MarginPolicy,
    "noise_scale": NoiseScalePolicy,
    "fixed": FixedPolicy,
}


def make_policy(
    policy: PolicyName | BatchSizePolicy | Callable[[int, int, int], BatchSizePolicy],
    size: int,
    minimum: int,
    maximum: int,
    ranks: int = 1,
    options: Mapping[str, Any] | None = None,
) -> BatchSizePolicy:
    """The rule that a run follows.

    Args:
        policy: a name; a function ``policy(size, minimum, maximum)`` that makes one; or one, of its own first size.
        ranks: number of ranks that share a pool.
        options: constants of a named policy other than the defaults, see :func:`check_policy_options`.
    """
    if not isinstance(policy, str):
        given: Any = policy if is_policy(policy) else policy(size, minimum, maximum)  # type: ignore[operator]
        if not isinstance(given, BatchSizePolicy):
            raise TypeError(
                f"batch_size_policy is {policy!r}, which made {given!r}: it must make an object with size, update, "
                "state_dict and load_state_dict (docs/extending.md)"
            )
        check_size(given)
        return given
    constants = {**(options or {}), **({"ranks": ranks} if policy == "noise_scale" else {})}
    return POLICIES[policy](size, minimum, maximum, **constants)


def is_policy(value: Any) -> bool:
    """Whether ``value`` is a policy itself, and not the name or the maker of one."""
    return isinstance(value, BatchSizePolicy) and not isinstance(value, type)


def check_size(policy: BatchSizePolicy) -> None:
    """Raise a ValueError unless a batch can have the size that ``policy`` aims at."""
    size: Any = policy.size
    try:
        least = operator.index(size) >= 1
    except TypeError:
        least = False
    if not least:
        raise ValueError(
            f"batch_size_policy, a {type(policy).__name__}, aims at size {size!r}: it must be an integer >= 1"
        )


def policy_word(policy: Any) -> str:
    """What a checkpoint calls a policy: its name, or that of its type or of the function that makes it."""
    policy = policy.func if isinstance(policy, functools.partial) else policy
    return policy if isinstance(policy, str) else getattr(policy, "__qualname__", type(policy).__qualname__)


def check_policy_options(policy: Any, options: Mapping[str, Any] | None) -> None:
    """Raise an error unless ``options`` are constants of the named policy: fields of its class that state a range."""
    if options is None:
        return
    given = f"policy_options is {options!r}"
    if not isinstance(options, Mapping):
        raise TypeError(f"{given}: it must be a mapping of the policy's constants, or None")
    if not isinstance(policy, str):
        raise ValueError(f"{given}: batch_size_policy is an object, which has its own constants")
    hints = get_type_hints(POLICIES[policy], include_extras=True)
    known = {name: get_args(hint)[1] for name, hint in hints.items() if get_origin(hint) is Annotated}
    for option, value in options.items():
        if option not in known:
            has = f"its constants are {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{given}: batch_size_policy {policy!r} has no {option!r}; {has}")
        is_right, wanted = known[option]
        if not is_right(value):
            raise ValueError(f"{given}: {option} must be {wanted}")
    if policy == "noise_scale":
        factor, tolerance = (options.get(name, getattr(NoiseScalePolicy, name)) for name in ("factor", "tolerance"))
        if factor < tolerance:  # it would stop short of the band for good
            raise ValueError(f"{given}: factor ({factor}) must be at least tolerance ({tolerance})")
