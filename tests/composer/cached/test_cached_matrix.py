"""scoring="cached" beside Composer's algorithms: the pairs of the composition matrix, or a refusal with the reason."""

from dataclasses import replace

import pytest

from tests.composer.composition.pairs import OWN_WARNINGS, PAIRS
from tests.composer.composition.run_pair import run_pair

REFUSED = {
    "MixUp": r"MixUp beside EDBA\(scoring='cached'\).*belong to no sample",
    "CutMix": r"CutMix beside EDBA\(scoring='cached'\).*belong to no sample",
    # Where these take apart sentences, the network has an output for every token.
    "Alibi": "applied at 16 positions of a sample",
    "SeqLengthWarmup": "applied at 16 positions of a sample",
    "SeqLengthWarmup(truncate=False)": "applied at 16 positions of a sample",
}


@pytest.mark.slow
@pytest.mark.parametrize("edba_first", [True, False])
@pytest.mark.parametrize("key", list(PAIRS))
def test_it_runs_beside_each_algorithm_or_says_why_not(monkeypatch, key, edba_first):
    # Composer's loss says so of smoothed labels whose sum rounds below the number of samples.
    monkeypatch.setitem(OWN_WARNINGS, "Some targets have less than 1 total probability", "rounding")
    pair = PAIRS[key]
    refused = REFUSED.get(key, pair.refused)
    cached = replace(pair, edba={**pair.edba, "scoring": "cached"}, refused=refused)
    monkeypatch.setitem(PAIRS, f"cached {key}", cached)
    ran = run_pair(f"cached {key}", edba_first, 16 if pair.microbatches and not edba_first else None)
    assert ran == ("yes" if refused is None else "refused")
