import pytest

from composer_edba import EDBA
from tests.train.tiny_runs import trained


@pytest.fixture(scope="session")
def plain():
    return trained()


@pytest.fixture(scope="session")
def edba():
    return trained([EDBA.paper(min_subset_size=4)])
