"""A report as a list of blocks, written as Markdown beside its pictures and as one HTML file that holds them."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Block", "Cell", "Details", "Heading", "Paragraph", "Picture", "Table", "to_html", "to_markdown"]

Tone = Literal["", "good", "bad"]


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Running text; **bold** and `code` are understood."""

    text: str


@dataclass(frozen=True)
class Cell:
    """A table's cell that is good or bad news."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column is text and whose others are aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]


@dataclass(frozen=True)
class Picture:
    """A PNG file and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Details:
    """Blocks that a reader may open."""

    summary: str
    blocks: Sequence[Block]


Block = Heading | Paragraph | Table | Picture | Details


def to_markdown(blocks: Sequence[Block]) -> str:
    """As Markdown; pictures are named relative to the file's folder."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Paragraph):
        return block.text
    if isinstance(block, Picture):
        return f"![{block.caption}]({block.path.name})"
    if isinstance(block, Details):
        return f"<details><summary>{block.summary}</summary>\n\n{to_markdown(block.blocks)}\n</details>"
    rows = [block.header, ["---"] + ["---:"] * (len(block.header) - 1), *block.rows]
    return "\n".join("| " + " | ".join(_text(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)


def _text(cell: str | Cell) -> str:
    return cell.text if isinstance(cell, Cell) else cell


def to_html(blocks: Sequence[Block]) -> str:
    """As one self-contained page."""
    title = next(block.text for block in blocks if isinstance(block, Heading))
    body = "\n".join(map(_html, blocks))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_inline(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{_inline(block.text)}</p>"
    if isinstance(block, Picture):
        encoded = base64.b64encode(block.path.read_bytes()).decode()
        caption = _inline(block.caption)
        image = f'<img alt="{html.escape(block.caption)}" src="data:image/png;base64,{encoded}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    if isinstance(block, Details):
        inside = "\n".join(map(_html, block.blocks))
        return f"<details><summary>{_inline(block.summary)}</summary>\n{inside}\n</details>"
    head = "".join(f"<th>{_inline(text)}</th>" for text in block.header)
    rows = "\n".join("<tr>" + "".join(map(_html_cell, row)) + "</tr>" for row in block.rows)
    return f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'


def _html_cell(cell: str | Cell) -> str:
    tone = f' class="{cell.tone}"' if isinstance(cell, Cell) and cell.tone else ""
    return f"<td{tone}>{_inline(_text(cell))}</td>"


def _inline(text: str) -> str:
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", escaped)


_STYLE = """\
:root { --ink: #1d2733; --soft: #5b6775; --line: #dfe4ea; --good: #e2f3e8; --bad: #fae4e1; --paper: #ffffff; }
body { margin: 0; background: #f4f6f8; color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 32px 60px; background: var(--paper); }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 8px; }
h2 { font-size: 20px; margin: 40px 0 8px; padding-top: 18px; border-top: 2px solid var(--line); }
h3 { font-size: 16px; margin: 24px 0 6px; }
p { max-width: 88ch; }
code { font: 13px ui-monospace, monospace; background: #f0f2f5; padding: 1px 4px; border-radius: 3px; }
.table { overflow-x: auto; }
table { border-collapse: collapse; margin: 8px 0 14px; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.good { background: var(--good); }
td.bad { background: var(--bad); }
figure { margin: 12px 0; }
img { max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: 13px; max-width: 100ch; }
details { margin: 10px 0; }
summary { cursor: pointer; color: var(--soft); }
"""
