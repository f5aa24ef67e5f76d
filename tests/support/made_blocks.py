"""Blocks of the documentation that are made, between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``."""


def with_block(text: str, name: str, block: str) -> str:
    """``text`` with ``block`` between the markers of that name, whatever stood there."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    before, found, rest = text.partition(begin)
    assert found, f"there is no {begin.strip()}"
    return before + begin + block + end + rest.partition(end)[2]
