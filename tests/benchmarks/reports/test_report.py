"""The report is made from the lines alone, is the same each time, and says what the lines say."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest

from benchmarks.__main__ import main
from benchmarks.comparators.mislabelled import leave_out_ratio
from benchmarks.reports.document import Cell, Details, Heading, Paragraph, Picture, Table, to_html, to_markdown
from benchmarks.reports.report import write_report
from benchmarks.suites.arms import ExtraAlgorithm
from benchmarks.suites.run import execute
from benchmarks.suites.suites import planned_runs


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """A real suite's file: three arms, two seeds."""
    path = tmp_path_factory.mktemp("suite") / "smoke_cpu.jsonl"
    specs = planned_runs("smoke", "cpu", arms=["plain", "edba", "edba_random"], seeds=[0, 1])
    path.write_text("".join(json.dumps(execute(spec)) + "\n" for spec in specs))
    return path


def report(lines, folder):
    assert main(["report", "smoke", "--lines", str(lines), "--output", str(folder)]) == 0
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_lines_give_the_same_files(lines, tmp_path):
    once, again = report(lines, tmp_path / "a"), report(lines, tmp_path / "b")
    assert set(once) == {"smoke_cpu.md", "smoke_cpu.html", "smoke_cpu_digits.png"}
    assert once == again
    assert once["smoke_cpu_digits.png"][:4] == b"\x89PNG"


def test_the_table_holds_what_the_lines_hold(lines, tmp_path):
    text = report(lines, tmp_path)["smoke_cpu.md"].decode()
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    plain, edba = (
        [100 * r["evaluations"][-1]["test_accuracy"] for r in records if r["arm"] == arm] for arm in ("plain", "edba")
    )
    mean = sum(plain) / 2
    assert f"| plain | {mean:.2f} ± {abs(plain[0] - plain[1]) / 2**0.5:.2f} |" in text
    difference = (edba[0] - plain[0] + edba[1] - plain[1]) / 2
    (row,) = re.findall(r"\| digits \| EDBA - plain \|.*", text)
    assert f"| {difference:+.2f} [" in row


def test_losses_are_shown_as_gains_are(lines, tmp_path):
    # The same lines with the names of two arms exchanged: every difference changes its sign, and red becomes green.
    swapped = {"plain": "edba", "edba": "plain", "edba_random": "edba_random"}
    other = tmp_path / "swapped.jsonl"
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    other.write_text("".join(json.dumps({**r, "arm": swapped[r["arm"]]}) + "\n" for r in records))
    row = r"\| digits \| EDBA - plain \| [\w ]+ \| ([+-][\d.]+) \[([+-][\d.]+), ([+-][\d.]+)\]"
    (one,) = re.findall(row, report(lines, tmp_path / "a")["smoke_cpu.md"].decode())
    (two,) = re.findall(row, report(other, tmp_path / "b")["smoke_cpu.md"].decode())
    assert [float(value) for value in one] == [-float(two[0]), -float(two[2]), -float(two[1])]


class Outside(HTMLParser):
    """What a page would fetch, and its tags that are still open at the end."""

    def __init__(self):
        super().__init__()
        self.sources, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(lines, tmp_path):
    page = report(lines, tmp_path)["smoke_cpu.html"].decode()
    outside = Outside()
    outside.feed(page)
    assert outside.open == []
    assert len(outside.sources) == 1
    assert outside.sources[0].startswith("data:image/png;base64,")
    assert "@import" not in page
    assert "url(" not in page


def test_no_lines_is_said(tmp_path, capsys):
    assert main(["report", "smoke", "--lines", str(tmp_path / "none.jsonl")]) == 2
    assert "holds no run; make some: time-to-accuracy smoke" in capsys.readouterr().err


def test_blocks_in_both_forms(tmp_path):
    picture = tmp_path / "dot.png"
    picture.write_bytes(b"png")
    blocks = [
        Heading(1, "A < B"),
        Paragraph("**bold** and `a<b`"),
        Table(["", "x"], [["a|b", Cell("-1", "bad")]]),
        Details("more", [Picture(picture, "dots")]),
    ]
    markdown, page = to_markdown(blocks), to_html(blocks)
    assert markdown.startswith("# A < B\n\n**bold** and `a<b`\n\n|  | x |\n| --- | ---: |\n| a\\|b | -1 |\n\n<details>")
    assert "![dots](dot.png)" in markdown
    assert "<h1>A &lt; B</h1>" in page
    assert "<strong>bold</strong> and <code>a&lt;b</code>" in page
    assert '<td class="bad">-1</td>' in page
    assert 'src="data:image/png;base64,cG5n"' in page


def smoke_records(arms, extra=(), **overrides):
    specs = planned_runs("smoke", "cpu", arms=arms, seeds=[0])
    changed = [dataclasses.replace(s, overrides={**s.overrides, **overrides}, extra=extra or s.extra) for s in specs]
    return [json.loads(json.dumps(execute(spec))) for spec in changed]


def test_left_out_mislabelled_samples_are_reported_where_they_were_counted(tmp_path):
    count = ExtraAlgorithm("mislabelled:MislabelledShare", {"parts": 2})
    records = smoke_records(["edba"], (count,), **{"data.label_noise": "symmetric_0.4"})
    markdown, _ = write_report(records, "smoke", "cpu", tmp_path)
    ratio, low, high = leave_out_ratio(records[0]["mislabelled"])
    assert f"| digits | EDBA | {ratio:.3f} [{low:.3f}, {high:.3f}] | {ratio:.3f} |" in markdown.read_text()
    assert (tmp_path / "smoke_cpu_leave_out.png").is_file()


def test_redrawn_subsets_are_shown_with_their_distinct_samples(tmp_path):
    records = smoke_records(["plain", "redraw_every_epoch"], **{"data.samples": None})
    assert records[1]["draws"] == 6
    markdown, _ = write_report(records, "smoke", "cpu", tmp_path)
    distinct = records[1]["evaluations"][-1]["distinct_samples"]
    assert 100 < distinct < 1237
    assert re.search(rf"\| EDBA, subset redrawn every epoch \| 1 \|.*\| {distinct:,} \|", markdown.read_text())
    assert (tmp_path / "smoke_cpu_digits_distinct.png").is_file()
