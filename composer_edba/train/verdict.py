"""What EDBA did in a run, in a sentence, with the reason where it did nothing."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING

from composer_edba.method.sizing import POLICIES
from composer_edba.settings import SETTINGS, is_by_mass
from composer_edba.train.series import TARGET, Series

if TYPE_CHECKING:
    from composer_edba import EDBA


def what_edba_did(edba: EDBA, log: Mapping[str, Series], drawn: int, trained: int | None) -> str:
    """How many batches subsets were chosen of, what share was left out and how the batch size moved.

    Args:
        edba: The run's EDBA, after ``fit()``.
        log: What the run logged, from :func:`~composer_edba.train.series.read_log`.
        drawn: Samples that the loader gave.
        trained: Samples that were trained on; None: not counted.
    """
    batches = len(log.get("edba/subset_size", ()))
    scored = len(log.get("edba/left_out_mass" if is_by_mass(edba.settings["criterion"]) else "edba/margin", ()))
    if scored == 0:
        names = ("interval", "interrupt", "start", "end")
        given = {name: edba.settings[name] for name in names}
        told = [name for name in names if name == "interval" or given[name] != SETTINGS[name].default]
        words = ", ".join(f"{name}={given[name]}" for name in told)
        return f"EDBA did nothing: {words} let none of the {batches:,} batches be scored"
    share = 0.0 if trained is None else 100 * (1 - trained / drawn)
    left_out = f"leaving out {share:.{0 if share >= 9.5 else 1}f} % of the samples drawn"
    if share == 0:
        left_out = f"leaving out nothing, because {_why_whole(edba, log, scored)}"
    return f"EDBA chose subsets in {scored:,} of {batches:,} batches, {left_out}; {_size(edba, log, scored)}"


def _why_whole(edba: EDBA, log: Mapping[str, Series], scored: int) -> str:
    least = edba.settings["min_subset_size"]
    if log["edba/batch_size"].values.max() <= least:
        return f"no batch held more than min_subset_size={least} samples a rank"
    if log["edba/nonfinite_steps"].values[-1] >= scored:
        return "no scored batch had a finite loss and finite gradients"
    return "the criterion took whole batches"


def _size(edba: EDBA, log: Mapping[str, Series], scored: int) -> str:
    if TARGET not in log:
        return "the batch size stayed, because this loader cannot be resized"
    sizes = [int(size) for size in log[TARGET].values]
    if len(set(sizes)) == 1:
        return f"batch {sizes[0]} throughout, because {_why_it_stayed(edba, scored)}"
    least, most = min(sizes), max(sizes)
    inside = {least, most} <= {sizes[0], sizes[-1]}
    return f"batch {sizes[0]} -> {sizes[-1]}" + ("" if inside else f", between {least} and {most}")


def _why_it_stayed(edba: EDBA, scored: int) -> str:
    policy, size = edba.settings["batch_size_policy"], edba.batch_size
    if policy == "fixed":
        return "batch_size_policy is fixed"
    if isinstance(policy, str):
        own = inspect.signature(POLICIES[policy]).parameters["window"].default
        window = (edba.settings["policy_options"] or {}).get("window", own)
        if scored <= window:
            return f"{policy!r} needs more than {window} scored batches to change it"
    bound = next((name for name in ("min_batch_size", "max_batch_size") if edba.settings[name] == size), None)
    return f"{bound} is {size}" if bound else "the size that its rule wanted stayed within the tolerance"
