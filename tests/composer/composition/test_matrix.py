"""EDBA beside every algorithm of Composer, in both orders; docs/composition.md is made from these runs."""

import pytest

from tests.composer.composition.pairs import PAIRS, composer_algorithms
from tests.composer.composition.run_pair import MICROBATCH, run_pair
from tests.composer.composition.table import EXTRACT_PAGE, PAGE, extract, table
from tests.support.made_blocks import with_block
from tests.support.paths import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:GyroDropout is not implemented", "ignore:S.. has known issues")


def expected(key):
    return "yes" if PAIRS[key].refused is None else "refused"


def test_every_algorithm_of_composer_is_in_the_matrix():
    assert {pair.name for pair in PAIRS.values()} == composer_algorithms()


@pytest.mark.parametrize("edba_first", [True, False], ids=["edba-first", "edba-last"])
@pytest.mark.parametrize("key", PAIRS)
def test_pair(key, edba_first):
    assert run_pair(key, edba_first) == expected(key)


@pytest.mark.parametrize("key", [key for key in PAIRS if expected(key) == "yes" and PAIRS[key].microbatches])
def test_pair_in_microbatches(key):
    assert run_pair(key, True, MICROBATCH) == "yes"


def test_the_committed_table_is_what_the_runs_say():
    page, short = (ROOT / PAGE).read_text(), (ROOT / EXTRACT_PAGE).read_text()
    stale = "stale: run `python -m tests.composer.composition.table`"
    assert page == table(), stale
    assert with_block(short, "composition", extract(page)) == short, stale
