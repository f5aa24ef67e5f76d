"""Every Python block of README and docs runs, each page's in order and in one namespace."""

import re

import pytest

from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page):
    text = page.read_text()
    return [(text[: found.start(1)].count("\n"), found.group(1)) for found in BLOCK.finditer(text)]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_blocks_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {}
    for line, code in blocks(page):
        # Blank lines before it: an error then names the page's own line.
        exec(compile("\n" * line + code, str(page), "exec"), names)


def test_the_readme_shows_each_way_in():
    code = "".join(code for _, code in blocks(ROOT / "README.md"))
    for name in ("EDBA()", "EDBAHandler(", "SubsetLoader(", "select_subset("):
        assert name in code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http|#)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), target
