import pytest
from composer import Time
from hypothesis import example, given
from hypothesis import strategies as st

from composer_edba.train.checks import _is_time

TIMES = st.one_of(
    st.builds(
        "{}{}".format, st.floats() | st.integers(), st.sampled_from(["iter", "ep", "ba", "sp", "tok", "dur", "sec"])
    ),
    st.from_regex(r"(\d{1,3}h)?(\d{1,3}m)?(\d{1,3}s)?", fullmatch=True),
    st.text(alphabet="0123456789.e-+_ hmsepbadur", max_size=8),
)


@given(TIMES)
@example("1.5ep")
@example("nanep")
@example("1e400ba")
@example("24h")
@example("1h60m")
@example("")
def test_what_passes_for_a_time_is_one_to_composer(text):
    if _is_time(text):
        assert Time.from_timestring(text).value >= 0


@pytest.mark.parametrize("value", ["10ep", "500ba", "5e3sp", "0.1dur", "3tok", "2iter", "90sec", "1h30m", "45m", 3, 0])
def test_every_way_of_writing_a_time_passes(value):
    assert _is_time(value)


@pytest.mark.parametrize("value", ["1epoch", "ten", "1.5ep", "-1ep", "ep", "", "10 EP", "nandur", "1d", -1])
def test_what_is_no_time_does_not(value):
    assert not _is_time(value)
