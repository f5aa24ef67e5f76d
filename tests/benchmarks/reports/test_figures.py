"""Pictures: who has a colour, and what is left out."""

import pytest

from benchmarks.reports import figures
from benchmarks.reports.comparison import Run
from benchmarks.suites.suites import SUITES


def test_five_arms_of_the_largest_cell_have_a_colour():
    arms = SUITES["speed"].sizes["cpu"]["one_cycle"].arms
    coloured = figures._colours(arms)
    assert list(coloured) == ["plain", "edba", "edba_random", "plain_best_batch", "growth"]
    assert len(set(coloured.values())) == 5
    assert figures._colours(tuple(reversed(arms))) == coloured


def test_the_papers_edba_stands_in_where_there_is_no_other():
    coloured = figures._colours(SUITES["dba"].sizes["cpu"]["digits"].arms)
    assert list(coloured) == ["plain", "edba_paper", "edba_paper_random", "dba", "dba_random"]
    assert coloured["plain"] == figures._colours(["plain", "edba"])["plain"]
    assert coloured["edba_paper"] == figures._colours(["edba"])["edba"]


@pytest.mark.parametrize("suite", SUITES)
def test_colours_are_distinct_and_five_at_most(suite):
    for cells in SUITES[suite].sizes.values():
        for cell in cells.values():
            coloured = figures._colours(cell.arms)
            assert len(coloured) == min(5, len(cell.arms)) == len(set(coloured.values()))


def runs(arms, best, path):
    def evaluation(number):
        at = {name: float(number) for name in ("updates", "flops", "seconds", "processor_seconds")}
        return {**at, "validation_accuracy": best * number / 3, "test_accuracy": best}

    record = {"cell": "c", "seed": 0, "hardware": {"gpu": None}, "batch_size_path": path}
    record["evaluations"] = [evaluation(number) for number in (1, 2, 3)]
    return {arm: [Run({**record, "arm": arm})] for arm in arms}


@pytest.mark.parametrize(
    ("best", "path", "there"),
    [
        (0.6, [[0, 100], [5, 150]], {"cost of the target", "batch sizes"}),
        (0.6, [[0, 100]], {"cost of the target"}),
        (0.4, [[0, 100], [5, 150]], {"batch sizes"}),
        (0.4, [[0, 100]], set()),
    ],
)
def test_panels_that_would_say_nothing_are_left_out(tmp_path, best, path, there):
    caption = figures.draw_cell(runs(["plain", "edba"], best, path), 0.5, tmp_path / "cell.png")
    assert {text for text in ("cost of the target", "batch sizes") if text in caption} == there
    assert (tmp_path / "cell.png").read_bytes()[:4] == b"\x89PNG"


def test_one_entry_of_the_legend_stands_for_all_other_arms(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    arms = ["plain", "edba", "edba_random", "edba_whole", "growth", "infobatch", "recipe"]
    figures.draw_cell(runs(arms, 0.6, [[0, 100]]), 0.5, tmp_path / "cell.png")
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "plain",
        "EDBA",
        "EDBA, random subsets (control)",
        "batch growth, no selection",
        "EDBA's sizes, whole batches (control)",
        "other arms",
    ]
