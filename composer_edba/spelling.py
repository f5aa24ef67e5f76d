"""The hint of every error about a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = ["nearest"]


def nearest(name: str, known: Iterable[str], listed: Sequence[str] | None = None, *, list_always: bool = False) -> str:
    """The nearest known name as a question, or what there is when none is near.

    Dotted names are compared as a whole first, then by their last part, so that ``lr`` finds ``optimizer.lr``.

    Args:
        name: the unknown name.
        known: the names that may be suggested; of equally near ones the first wins.
        listed: the names to list when none is near; None, the default: all that are known.
        list_always: list them after a near one too. Default False.

    Returns:
        ``"did you mean NAME?"``, ``"known: NAME, NAME, ..."`` or both.
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    if not near:
        leaves: dict[str, str] = {}
        for candidate in names:
            leaves.setdefault(_leaf(candidate), candidate)
        near = [leaves[leaf] for leaf in difflib.get_close_matches(_leaf(name), list(leaves), n=1, cutoff=0.6)]
    hint = f"did you mean {near[0]}?" if near else ""
    if near and not list_always:
        return hint
    return f"{hint} known: {', '.join(names if listed is None else listed) or 'none'}".strip()


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
