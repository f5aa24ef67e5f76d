"""The hint of every error about a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = ["nearest"]


def nearest(name: str, known: Iterable[str], listed: Sequence[str] | None = None) -> str:
    """The nearest known name as a question, or what there is when none is near.

    Dotted names are compared as a whole first, then by their last part, so that ``lr`` finds ``optimizer.lr``.

    Args:
        name: the unknown name.
        known: the names that may be suggested; of equally near ones the first wins.
        listed: the names to list when none is near; None, the default: all that are known.

    Returns:
        ``"did you mean NAME?"`` or ``"known: NAME, NAME, ..."``.
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    if not near:
        leaves: dict[str, str] = {}
        for candidate in names:
            leaves.setdefault(_leaf(candidate), candidate)
        near = [leaves[leaf] for leaf in difflib.get_close_matches(_leaf(name), list(leaves), n=1, cutoff=0.6)]
    if near:
        return f"did you mean {near[0]}?"
    return f"known: {', '.join(names if listed is None else listed) or 'none'}"


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
