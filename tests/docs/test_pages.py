"""What a reader sees at once: README on one page, tables with headers, nothing wider than its column."""

import re

import pytest

from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# At 1280 px a code block of the built documentation holds 80 characters.
CODE_COLUMNS = 80


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_home_page_begins_as_the_readme():
    name = re.search(r'^--8<-- "README.md:([\w-]+)"$', (ROOT / "docs" / "index.md").read_text(), re.MULTILINE).group(1)
    readme = (ROOT / "README.md").read_text()
    part = readme[readme.index(f"[start:{name}]") : readme.index(f"[end:{name}]")]
    assert "| EDBA |" in part
    assert "**Leave it if**" in part
    assert "algorithms=[EDBA()]" in part
    # Relative links lead elsewhere from docs/.
    assert not re.search(r"\]\((?!http)", part)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_table_has_an_empty_header(page):
    for header in re.findall(r"^(\|.*\|) *\n\|[-:| ]+\|$", page.read_text(), re.MULTILINE):
        assert all(cell.strip() for cell in header.strip("|").split("|")), header


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_fits_its_column(page):
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            assert len(line) <= CODE_COLUMNS, line
