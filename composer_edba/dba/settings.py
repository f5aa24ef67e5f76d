"""Every argument of DBA, once; see :mod:`composer_edba.settings`. Imports no torch."""

from typing import Annotated, Literal

from typing_extensions import TypedDict

from composer_edba.settings import SETTINGS, Setting, table_of

__all__ = ["DBA_SETTINGS", "DBASettings", "Guide", "Search"]

Search = Literal["removal", "addition", "both"]
Guide = Literal["norm", "margin"]


class DBASettings(TypedDict, total=False):
    """The arguments of DBA; the text under an entry goes into the documentation."""

    ema_decay: Annotated[float, Setting(0.9, SETTINGS["ema_decay"].check)]
    """Decay of the running averages, in [0, 1)."""
    min_subset_size: Annotated[int, Setting(10, SETTINGS["min_subset_size"].check)]
    """Smallest subset of a layer, >= 1."""
    min_batch_size: Annotated[int, Setting(10, SETTINGS["min_batch_size"].check)]
    """Smallest batch, >= 1."""
    max_batch_size: Annotated[int, Setting(1000, SETTINGS["max_batch_size"].check)]
    """Largest batch. Training starts at the loader's own batch size."""
    batch_size_policy: Annotated[Literal["chosen", "fixed"], Setting("chosen")]
    """The rule that sizes the batch: by how many samples the layers chose lately, or not at all."""
    search: Annotated[Search, Setting("removal")]
    """`removal` takes samples out of the whole batch; `addition` starts with one and puts others in; `both` starts with
    the whole batch and does either."""
    guide: Annotated[Guide, Setting("norm")]
    """What each removal or addition brings closest: the gradient norm to that of margin zero, or the margin to zero."""
    criterion: Annotated[Literal["margin", "random"], Setting("margin")]
    """`random`, the control: each layer gets as many samples as the margin would choose, but random ones."""


DBA_SETTINGS = table_of(DBASettings)
"""The arguments by name."""
