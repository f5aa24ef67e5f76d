"""Finished runs that several files look at. What needs Composer is imported when it is asked for."""

import pytest


@pytest.fixture(scope="session")
def plain():
    from tests.train.tiny_runs import trained

    return trained()


@pytest.fixture(scope="session")
def edba():
    from composer_edba import EDBA
    from tests.train.tiny_runs import trained

    return trained([EDBA.paper(min_subset_size=4)])
