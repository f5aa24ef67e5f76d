"""The settings in docs/reference.md are the package's own: `python -m tests.docs.test_settings_table` writes them."""

from composer_edba import settings
from tests.support.made_blocks import with_block
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "reference.md"


def page_with_table() -> str:
    return with_block(PAGE.read_text(), "settings", settings.as_markdown().rstrip("\n") + "\n")


def test_the_committed_table_is_the_packages():
    assert PAGE.read_text() == page_with_table(), "stale: run `python -m tests.docs.test_settings_table`"


if __name__ == "__main__":
    PAGE.write_text(page_with_table())
