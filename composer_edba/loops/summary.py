"""What a run came to so far, as a table in plain text."""

from __future__ import annotations

from composer_edba.engine import Engine

__all__ = ["summary_of"]


def summary_of(engine: Engine) -> str:
    """Counts over all ranks, a line each, with a remark where one helps."""
    drawn, trained, distinct = engine.samples_drawn, engine.samples_trained, engine.pools.distinct
    rows = [
        ("batches trained on", f"{engine.steps:,}", ""),
        ("samples drawn", f"{drawn:,}", ""),
        ("samples trained on", f"{trained:,}", f"{engine.left_out:.1%} left out"),
        ("samples scored", f"{engine.samples_scored:,}", "by a forward of their own" if engine.samples_scored else ""),
        ("distinct samples", "not known" if distinct is None else f"{len(distinct):,}", ""),
        ("batch size", "the loader's" if engine.batch_size is None else f"{engine.batch_size:,}", "samples a rank"),
        ("overhead", f"{engine.overhead:.1%}", "of the time since a batch arrived"),
    ]
    words, numbers = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{word:<{words}}  {number:>{numbers}}  {remark}".rstrip() for word, number, remark in rows)
