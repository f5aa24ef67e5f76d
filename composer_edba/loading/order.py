"""What decides the order of a pass over the data, noted so that an interrupted pass can be drawn once more."""

from __future__ import annotations

import collections
import contextlib
import copy
import itertools
import sys
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from composer_edba.loading.streams import preserved_random_streams

__all__ = ["PassOrder", "is_streaming", "length_of"]


def length_of(sized: Any) -> int | None:
    """``len(sized)``; None if it has no length."""
    try:
        return len(sized)
    except TypeError:
        return None


def is_streaming(dataset: Any) -> bool:
    """Whether it is a mosaicml-streaming StreamingDataset, which keeps an epoch and a position in it by itself."""
    return isinstance(dataset, getattr(sys.modules.get("streaming"), "StreamingDataset", ()))


class PassOrder:
    """The order in which one loader's passes draw their samples, on this rank.

    Passes draw from the same random streams as the loader by itself, with one difference: a sampler is never asked for
    more indices than its length, where torch's would draw from a generator once more. To draw a pass again these are
    put back as it found them, and no global stream is: the generators that the user gave to the DataLoader and its
    sampler, the seed of a RandomSampler without one, the epoch of a DistributedSampler, the indices of any other
    sampler that has a length (unless its ``drawn_lazily`` is true: it may change in mid-pass), the epoch of a
    StreamingDataset, and the stream that the workers' seed comes from.

    Args:
        sampler: yields a pass's indices.
        loader: the DataLoader that draws through it; None: there is none.
    """

    def __init__(self, sampler: Any, loader: Any = None):
        self.sampler = sampler
        # Weakly: a circle would keep workers alive until it is found.
        self._loader_reference = (lambda: None) if loader is None else weakref.ref(loader)
        self._loader_generator = None if loader is None else loader.generator
        self._workers_stream = torch.Generator()  # of the seed of an interrupted pass's workers
        self._interrupted: Mapping[str, Any] | None = None
        self._over: tuple[Mapping[str, Any], int] | None = None
        self._noted: dict[str, Any] = {}
        self._length: int | None = None
        self._begun = False  # no index was drawn since
        # Whether global streams and samplers of the user's are drawn from for nothing when a pass is drawn again: in a
        # Trainer, which goes through all passes again and puts the streams back itself. Elsewhere their state is the
        # user's to save.
        self.draws_again = True

    # ---- a pass

    @property
    def _loader(self) -> Any:
        return self._loader_reference()

    @property
    def length(self) -> int | None:
        """Indices in the present pass, between passes in the next one; None if the sampler has no length."""
        return length_of(self.sampler) if self._length is None else self._length

    @property
    def keeps_indices(self) -> bool:
        """Whether the indices themselves are noted."""
        sampler = self.sampler
        if length_of(sampler) is None or isinstance(sampler, Sequence) or getattr(sampler, "drawn_lazily", False):
            return False
        own = type(sampler).__iter__
        if own in (SequentialSampler.__iter__, DistributedSampler.__iter__, RandomSampler.__iter__):
            return False
        return own not in (SubsetRandomSampler.__iter__, WeightedRandomSampler.__iter__) or sampler.generator is None

    def begin(self) -> None:
        """An iterator of the loader is being made; next it draws its workers' seed, then indices."""
        if self._begun and self._loader is not None and self._loader.num_workers > 0:
            return  # with workers a DataLoader makes two iterators, and draws from the second
        self._begun, self._length = True, None
        if (saved := self._interrupted) is not None:
            self._put_back(saved)
            if self._loader is not None:
                self._seed_workers(saved)
        elif self._over is not None:  # that pass once more, without its data
            self._put_back(self._over[0])
            if self._loader is not None and self._loader.num_workers > 0 and self._loader.persistent_workers:
                self._seed_workers(self._over[0])  # there were workers already
            if self._sampler_generator is not None:
                with preserved_random_streams():
                    collections.deque(itertools.islice(self.sampler, self._over[1]), maxlen=0)
        self._noted = {"generators": [_packed(generator.get_state()) for generator in self._generators]}
        if saved is not None:
            self._noted = dict(saved)
        elif self._loader is not None:
            # With persistent workers only the first pass draws a seed.
            self._noted["seeds"] = not self._loader.persistent_workers or self._loader._iterator is None
            if self._loader.num_workers > 0 or self.is_iterable:
                stream = self._loader_generator or torch.default_generator
                self._noted["stream"] = _packed(stream.get_state())
        if isinstance(self.sampler, DistributedSampler):
            if saved is not None:
                self.sampler.set_epoch(saved["epoch"])
            self._noted["epoch"] = self.sampler.epoch

    def indices(self) -> Iterator[Any]:
        """The pass's indices, as many as the sampler's length; they are drawn from the streams now."""
        sampler, saved, self._begun = self.sampler, self._interrupted, False
        if self.keeps_indices:
            if saved is None or self.draws_again or self._sampler_generator is not None:
                with contextlib.nullcontext() if saved is None or self.draws_again else preserved_random_streams():
                    drawn = list(itertools.islice(sampler, len(sampler)))
            self._noted["indices"] = saved["indices"] if saved else _packed_indices(drawn)
            drawn = _unpacked_indices(self._noted["indices"])
            self._length = len(drawn)
            return iter(drawn)
        if _is_random(sampler) and sampler.generator is None:
            # As the sampler itself does it.
            if saved is None or self.draws_again:
                seed = _drawn_seed()
            self._noted["seed"] = saved["seed"] if saved else seed
            sampler = copy.copy(sampler)
            sampler.generator = torch.Generator().manual_seed(self._noted["seed"])
        return itertools.islice(sampler, self.length)

    # ---- an interrupted pass

    def state_dict(self) -> dict[str, Any]:
        """What decides the present pass, as plain values and bytes; its first batch is there."""
        streaming = self._loader is not None and is_streaming(self._loader.dataset)
        return {**self._noted, "dataset": self._loader.dataset.state_dict(0, True)} if streaming else dict(self._noted)

    def resume(self, state: Mapping[str, Any], over: int | None = None, *, sought: bool = False) -> None:
        """Draw the pass of which :meth:`state_dict` told, at every :meth:`begin` until :meth:`forget_resumption`.

        Args:
            state: as given.
            over: None: the pass was interrupted. A number: it is over, this many of its indices were drawn, and the
                next pass follows it.
            sought: whether the data set itself goes on in mid-pass: it stays where it is.
        """
        if sought:
            state = {name: value for name, value in state.items() if name != "dataset"}
        if over is None:
            self._interrupted, self._over = state, None
        else:
            self._interrupted, self._over = None, (state, over)

    def forget_resumption(self, *, begun: bool = True) -> None:
        """The next pass is a new one; ``begun=False``: what it follows is to be remembered still."""
        self._interrupted = None
        if begun:
            self._over = None
        if self._loader is not None:
            self._loader.generator = self._loader_generator

    @property
    def is_iterable(self) -> bool:
        """Whether the order is the data set's own."""
        return self._loader is not None and isinstance(self._loader.dataset, IterableDataset)

    def stream(self) -> Tensor | None:
        """State of torch's global stream at the beginning of the pass to be resumed; None if it was not noted."""
        saved = self._interrupted
        known = saved is not None and "stream" in saved and self._loader_generator is None
        return _unpacked(saved["stream"]) if saved is not None and known else None

    # ---- the user's generators

    @property
    def _sampler_generator(self) -> torch.Generator | None:
        generator = getattr(self.sampler, "generator", None)
        return generator if isinstance(generator, torch.Generator) else None

    @property
    def _generators(self) -> list[torch.Generator]:
        given = (self._loader_generator, self._sampler_generator)
        return list({id(each): each for each in given if each is not None}.values())

    def _seed_workers(self, saved: Mapping[str, Any]) -> None:
        """Have the workers' seed come from where a noted pass had it from."""
        if "stream" in saved:
            self._workers_stream.set_state(_unpacked(saved["stream"]))
        if self.draws_again and self._loader_generator is None and self._loader._iterator is None:
            _drawn_seed()
        self._loader.generator = self._workers_stream

    def _put_back(self, saved: Mapping[str, Any]) -> None:
        for generator, state in zip(self._generators, saved["generators"], strict=False):
            generator.set_state(_unpacked(state))
        if self._loader_generator is not None and saved.get("seeds"):
            _drawn_seed(self._loader_generator)
        if (streamed := saved.get("dataset")) is not None and is_streaming(dataset := self._loader.dataset):
            # It takes a state of an earlier epoch than its next one for an old one.
            dataset.next_epoch = streamed["epoch"] + (saved is not self._interrupted)
            dataset.load_state_dict({**streamed, "epoch": dataset.next_epoch})


def _is_random(sampler: Any) -> bool:
    return isinstance(sampler, RandomSampler) and type(sampler).__iter__ is RandomSampler.__iter__


def _drawn_seed(generator: torch.Generator | None = None) -> int:
    """As DataLoader and RandomSampler draw it; None: from torch's global stream."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())


def _packed(state: Tensor) -> bytes:
    return state.numpy().tobytes()


def _unpacked(state: bytes) -> Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


def _packed_indices(indices: list[Any]) -> Any:
    array = np.asarray(indices) if indices and not isinstance(indices[0], (str, bytes)) else None
    if array is None or array.ndim != 1 or array.dtype.kind not in "iu":
        return indices
    return zlib.compress(array.astype(np.int64).tobytes())


def _unpacked_indices(indices: Any) -> list[Any]:
    if not isinstance(indices, bytes):
        return list(indices)
    return np.frombuffer(zlib.decompress(indices), dtype=np.int64).tolist()
