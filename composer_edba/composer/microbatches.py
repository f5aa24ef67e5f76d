"""How many samples of a batch go through the network at once, where the batch changes its size every step."""

from __future__ import annotations

from composer.core import State

from composer_edba.loading.parts import equal_part_size, equal_parts_may_fail

__all__ = ["Microbatches"]


class Microbatches:
    """Keeps ``device_train_microbatch_size`` at equal parts under what the user, or memory, allows for.

    Attributes:
        learned_limit: microbatch size that the trainer was driven down to by running out of memory; None: it was not.
    """

    def __init__(self) -> None:
        self.learned_limit: int | None = None
        self._user_limit: int | None = None
        self._set: int | None = None

    def ask_user(self, state: State) -> None:
        """INIT: take in what the user gave, which from the first fit on cannot be told any more."""
        limit = state.device_train_microbatch_size
        self._user_limit = None if limit is None else int(limit)

    @property
    def limit(self) -> int | None:
        """Most samples that may go through the network at once; None: no bound is known."""
        return min((limit for limit in (self._user_limit, self.learned_limit) if limit is not None), default=None)

    def size_multiple(self, state: State, pool_size: int) -> int:
        """What the sizes of subsets are to be multiples of."""
        # An even number can be cut into microbatches of two or more, also once the trainer, out of memory, halved it.
        return 2 if state.auto_microbatching or equal_parts_may_fail(pool_size, self.limit) else 1

    def cut(self, state: State, samples: int, *, alone: bool = False) -> int:
        """AFTER_DATALOADER: cut ``samples`` into equal microbatches under the limit, none of one sample.

        Returns how many of them are trained on: where there is no such cut (an odd number in pairs), one is left out,
        or with ``alone`` comes alone, which does no harm without batch normalisation.
        """
        size = equal_part_size(samples, self.limit)
        if size is None:
            size, samples = (self.limit or 1, samples) if alone else (2, samples - 1)
        state.device_train_microbatch_size = self._set = size
        return samples

    def notice_halving(self, state: State) -> None:
        """BEFORE_FORWARD, AFTER_DATALOADER: remember a size that the trainer had to reduce, out of memory."""
        size = state.device_train_microbatch_size
        if self._set is not None and size is not None and size < self._set:
            self.learned_limit = self._set = int(size)
