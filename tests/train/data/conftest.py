from collections.abc import Callable, Iterator

import pytest
from torch.utils.data import DataLoader


@pytest.fixture
def stop_workers() -> Iterator[Callable[[DataLoader], DataLoader]]:
    """Stop persistent workers with their test: left to the garbage collector they take five seconds each."""
    loaders: list[DataLoader] = []

    def later(loader: DataLoader) -> DataLoader:
        loaders.append(loader)
        return loader

    yield later
    for loader in loaders:
        if loader.num_workers and loader._iterator is not None:
            loader._iterator._shutdown_workers()
