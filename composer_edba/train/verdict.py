"""What EDBA did in a run, in a sentence, with the reason where it did nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from composer_edba.train.series import Series, whole_batches

if TYPE_CHECKING:
    from composer_edba import EDBA


def what_edba_did(
    edba: EDBA, log: Mapping[str, Series], drawn: int, trained: int | None, final_size: int | None
) -> str:
    """Says how many batches subsets were chosen of, what share was left out and how the batch size moved.

    Args:
        edba: The run's EDBA, after ``fit()``.
        log: What the run logged, from :func:`~composer_edba.train.series.read_log`.
        drawn: Samples that the loader gave.
        trained: Samples that were trained on; None: not counted.
        final_size: Batch size, summed over ranks, at the end; None: not known.
    """
    batches, scored = len(log.get("edba/subset_size", ())), len(log.get("edba/margin", ()))
    if scored == 0:
        size = "" if final_size is None else f", and the batch stayed at {final_size}"
        return f"EDBA did nothing{size}: {_why_unscored(edba, batches)}"
    left_out = 0.0 if trained is None else 1 - trained / drawn
    if left_out > 0:
        share = f"leaving out {_percent(left_out)} of the samples drawn"
    elif log["edba/nonfinite_steps"].values[-1] >= scored:
        share = "leaving nothing out, because the loss or a gradient was never finite"
    else:
        share = "leaving nothing out, because whole batches suited the criterion best, or held too few samples"
    return f"EDBA chose subsets in {scored:,} of {batches:,} batches, {share}; {_size(edba, log, final_size)}"


def _why_unscored(edba: EDBA, batches: int) -> str:
    given = {name: edba.settings[name] for name in ("interval", "interrupt", "start", "end")}
    usual = {"interrupt": 0, "start": 0.0, "end": 1.0}
    words = ", ".join(f"{name}={value}" for name, value in given.items() if usual.get(name) != value)
    return f"{words} let none of the {batches:,} batches be scored"


def _size(edba: EDBA, log: Mapping[str, Series], final: int | None) -> str:
    sizes = whole_batches(log)
    if not sizes or final is None:
        return "the batch size is not known"
    first, least, most = (int(size) for size in (sizes.values[0], sizes.values.min(), sizes.values.max()))
    if edba.batch_size is None:
        return f"batch {first} throughout, because this loader cannot be resized"
    if edba.settings["batch_size_policy"] == "fixed":
        return f"batch {first} throughout, because batch_size_policy is fixed"
    if first != final or least != most:
        between = f", between {least} and {most}" if least < min(first, final) or most > max(first, final) else ""
        return f"batch {first} -> {final}{between}"
    return f"batch {first} throughout, because {_why_it_stayed(edba, log)}"


def _why_it_stayed(edba: EDBA, log: Mapping[str, Series]) -> str:
    target, size = log.get("edba/target_batch_size"), edba.batch_size
    wanted = target.values[np.isfinite(target.values)] if target else np.empty(0)
    if len(wanted) and size is not None:
        least, most = round(wanted.min()), round(wanted.max())
        if size >= edba.settings["max_batch_size"] and most > size:
            return f"max_batch_size is {edba.settings['max_batch_size']} (its rule aimed at up to {most})"
        if size <= edba.settings["min_batch_size"] and least < size:
            return f"min_batch_size is {edba.settings['min_batch_size']} (its rule aimed at down to {least})"
        return f"what its rule aimed at ({least} to {most}) stayed within its tolerance"
    return f"{len(log['edba/margin']):,} scored batches gave its rule too little evidence for another size"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"
