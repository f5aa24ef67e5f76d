"""The cases, generated: for each kind of loader in each loop such options that every pair of values is in some case."""

import itertools
import random
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any

from tests.contract.loaders.kinds import ORDERS, SETTINGS, LoaderTask
from tests.support.loops import LOOPS

PASSES = 3
FEW = 2  # batches that a Trainer's epoch is cut off after, in some cases
VARIANTS = 3  # of options for each kind of loader in each loop; the first is the quick one
# Number of workers, prefetch factor and whether they persist.
LOADING = (
    (0, None, False),
    (1, 1, False),
    (2, 1, True),
    (1, 2, True),
    (2, 2, False),
    (1, 3, False),
    (2, 3, True),
    (1, 4, True),
    (2, 4, False),
)
# When a run is stopped: after its first batch, inside of a pass, after a pass's last batch, when the loop has taken
# notice that the pass is over, or twice inside of one pass.
STOPS = ("first", "inside", "last", "between", "twice")


@dataclass(frozen=True)
class Variant:
    """A loader, a loop and settings."""

    order: str
    loop: str
    workers: int
    prefetch: int | None
    persistent: bool
    drop_last: bool
    augmented: bool
    settings: str
    in_order: bool = True

    def __str__(self):
        words = [self.order, self.loop, f"w{self.workers}"]
        words += [f"ahead{self.prefetch}"] * (self.prefetch is not None)
        words += [name for name in ("persistent", "drop_last", "augmented") if getattr(self, name)]
        return "-".join([*words, *["any_order"] * (not self.in_order), self.settings])

    @property
    def is_valid(self) -> bool:
        """Whether there is such a thing."""
        # The streams of persistent workers run on from pass to pass, and nobody can save them: a run that is resumed
        # has new workers. Without EDBA it cannot be resumed bitwise either.
        if self.persistent and self.augmented:
            return False
        if self.settings.startswith("cached") and (ORDERS[self.order].sampler is None or not self.in_order):
            return False  # refused: there are no indices, or not in their order
        return self.settings != "few_batches" or (self.loop == "composer" and ORDERS[self.order].sampler is not None)

    @property
    def tells_its_end(self) -> bool:
        """Whether a pass is known to be over when its last batch comes, where a loop has to know that."""
        # Ignite counts epochs, and of a data set's own order of unknown length, or of which workers may drop what is
        # left, one knows the end only by asking for more.
        known = ORDERS[self.order].sampler is not None or (ORDERS[self.order].sized and not self.drop_last)
        return known or self.loop != "ignite"

    @cached_property
    def pairs(self) -> frozenset[tuple[tuple[str, Any], ...]]:
        """All pairs of values in it."""
        values = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return frozenset(itertools.combinations(values, 2))

    def task(self) -> LoaderTask:
        names = ("order", "workers", "persistent", "prefetch", "drop_last", "augmented", "in_order")
        few = FEW if self.settings == "few_batches" else None
        return LoaderTask(few_batches=few, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Case:
    variant: Variant
    stop: str | None  # None: the whole run
    quick: bool

    def __str__(self):
        return f"{self.variant}-{self.stop or 'whole'}"


def all_variants(**fixed: Any) -> list[Variant]:
    found = (
        Variant(order, loop, *loading, drop_last, augmented, settings, **fixed)
        for order, loop, loading, drop_last, augmented, settings in itertools.product(
            ORDERS, LOOPS, LOADING, (False, True), (False, True), SETTINGS
        )
    )
    return [variant for variant in found if variant.is_valid]


@cache
def variants() -> dict[tuple[str, str], list[Variant]]:
    """Of each kind of loader and loop, those that bring in most pairs that no earlier one has; chance decides ties."""
    chance = random.Random(13)
    missing: set[Any] = set()
    by_kind: dict[tuple[str, str], list[Variant]] = {}
    chosen: dict[tuple[str, str], list[Variant]] = {}
    for variant in all_variants():
        by_kind.setdefault((variant.order, variant.loop), []).append(variant)
        missing |= variant.pairs

    def take(found: list[Variant]) -> None:
        best = max(found, key=lambda variant: (len(variant.pairs & missing), chance.random()))
        chosen.setdefault((best.order, best.loop), []).append(best)
        missing.difference_update(best.pairs)

    for number in range(VARIANTS):
        for turn, found in enumerate(by_kind.values()):
            # The start of workers takes most of the time: four in five of the quick ones have none.
            few = number == 0 and turn % 5 != 0
            take([variant for variant in found if not (few and variant.workers > 0)])
    while missing:
        take([variant for found in by_kind.values() for variant in found if variant.pairs & missing])
    return chosen


def out_of_order() -> list[Variant]:
    """Loaders whose batches come in any order, one of each kind in each loop."""
    chance, chosen = random.Random(13), {}
    for variant in all_variants(in_order=False):
        if variant.workers == 2:
            chosen.setdefault((variant.order, variant.loop), []).append(variant)
    return [chance.choice(found) for found in chosen.values()]


def cases() -> list[Case]:
    """Two thirds of them slow; every kind of loader and loop is in the quick third, whole and stopped."""
    made = []
    for turn, chosen in enumerate(variants().values()):
        others = [stop for stop in STOPS if stop != "inside"]
        others = others[turn % 4 :] + others[: turn % 4]
        stops = [("inside", others[0]), ("inside", others[1]), others[2:]]
        for number, (variant, when) in enumerate(itertools.zip_longest(chosen, stops, fillvalue=("inside",))):
            stops_told = [stop for stop in when if stop != "last" or variant.tells_its_end]
            made += [Case(variant, stop, quick=number == 0) for stop in (None, *stops_told)]
    # What order they came in cannot be told after an interruption.
    return made + [Case(variant, None, quick=turn % 5 == 0) for turn, variant in enumerate(out_of_order())]
