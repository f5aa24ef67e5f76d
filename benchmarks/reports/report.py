"""``report SUITE``: tables, pictures and a page, from a suite's lines alone."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reports import figures
from benchmarks.reports.comparison import (
    Difference,
    Run,
    at_equal,
    by_cell,
    mean_text,
    paired_difference,
)
from benchmarks.reports.document import (
    Block,
    Cell,
    Details,
    Heading,
    Paragraph,
    Picture,
    Table,
    to_html,
    to_markdown,
)
from benchmarks.reports.frontier import frontier_blocks
from benchmarks.suites import suites
from benchmarks.suites.arms import arm_title
from benchmarks.suites.records import RecordError, read_records
from benchmarks.suites.suites import SUITES, Suite
from benchmarks.suites.time_to_accuracy import results_file

__all__ = ["add_arguments", "run", "write_report"]

Runs = Mapping[str, Sequence[Run]]

# What the question of the suite comes down to; the other arms' differences stand with their cell.
_CONTRASTS = (
    ("edba", "plain"),
    ("edba", "edba_random"),
    ("edba", "edba_whole"),
    ("edba_default", "plain"),
    ("edba_loss", "plain"),
    ("edba_mass", "plain"),
    ("edba_paper", "plain"),
    ("edba_paper", "edba_paper_random"),
    ("dba", "plain"),
    ("dba", "dba_random"),
    ("recipe_edba", "recipe"),
)
_REFERENCES = ("plain", "edba_random", "edba_paper_random")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("name", metavar="SUITE", choices=sorted(SUITES), help=", ".join(SUITES))
    parser.add_argument("--size", choices=("cpu", "gpu"), default="cpu", help="default: cpu")
    parser.add_argument("--lines", type=Path, help="file of the runs (default: docs/results/SUITE_SIZE.jsonl)")
    parser.add_argument("--output", type=Path, help="folder (default: that of the file)")


def run(arguments: argparse.Namespace) -> int:
    """Write the report; returns the exit code."""
    lines = arguments.lines or results_file(arguments.name, arguments.size)
    try:
        records = read_records(lines)
        if not records:
            raise RecordError(f"{lines} holds no run; make some: time-to-accuracy {arguments.name}")
    except RecordError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in write_report(records, arguments.name, arguments.size, arguments.output or lines.parent):
        print(path)
    return 0


def write_report(records: Sequence[Mapping[str, Any]], suite: str, size: str, folder: Path) -> list[Path]:
    """Write ``SUITE_SIZE.md``, its pictures ``SUITE_SIZE*.png`` and ``SUITE_SIZE.html``, which holds all.

    The same lines give the same files.

    Args:
        records: The lines of the suite.
        suite: Its name.
        size: ``cpu`` or ``gpu``.
        folder: Made when it does not exist.

    Returns:
        The Markdown and the HTML file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{suite}_{size}"
    order = SUITES[suite].sizes[size]
    found = by_cell(records)
    cells = {
        cell: _ordered(found[cell], order[cell].arms if cell in order else ())
        for cell in [*(cell for cell in order if cell in found), *(cell for cell in found if cell not in order)]
    }
    blocks: list[Block] = [Heading(1, f"{SUITES[suite].title} ({size} size)"), *_how_made(records, suite, size)]
    if SUITES[suite].budgets:
        return _written([*blocks, *frontier_blocks(cells, folder / f"{stem}.png")], folder / stem)
    blocks += [
        Heading(2, "At a glance"),
        *_glance(cells, SUITES[suite]),
    ]
    noisy = {
        cell: runs for cell, runs in cells.items() if any("mislabelled" in r.record for a in runs.values() for r in a)
    }
    if noisy:
        blocks += _leave_out(noisy, folder / f"{stem}_leave_out.png")
    for cell, runs in cells.items():
        blocks += _cell(cell, runs, order.get(cell), folder / f"{stem}_{cell}.png")
        looked = {arm: [r.record for r in a if "agreement" in r.record] for arm, a in runs.items()}
        if any(looked.values()):
            blocks += _agreement(looked)
        if any(arm.startswith("redraw") for arm in runs):
            picture = folder / f"{stem}_{cell}_distinct.png"
            figures.draw_redraws(runs, picture)
            blocks.append(
                Picture(picture, "Accuracy and the number of distinct samples behind it (mean, and range over seeds).")
            )
    blocks += _reading(any(map(_validated, cells.values())))
    return _written(blocks, folder / stem)


def _written(blocks: Sequence[Block], stem: Path) -> list[Path]:
    markdown, page = (stem.with_name(f"{stem.name}.{kind}") for kind in ("md", "html"))
    markdown.write_text(to_markdown(blocks), encoding="utf-8")
    page.write_text(to_html(blocks), encoding="utf-8")
    return [markdown, page]


def _ordered(runs: Runs, arms: Sequence[str]) -> dict[str, Sequence[Run]]:
    known = [arm for arm in arms if arm in runs]
    return {arm: runs[arm] for arm in [*known, *(arm for arm in runs if arm not in known)]}


def _validated(runs: Runs) -> bool:
    return all(run.validated for found in runs.values() for run in found)


def _target(runs: Runs, cell: suites.Cell | None) -> float:
    """The stated target, or 98 % of what plain has at its end, in whole percent."""
    if cell is not None and cell.target is not None:
        return cell.target
    reference = runs["plain"] if "plain" in runs else next(iter(runs.values()))
    end = statistics.fmean(run.last("validation_accuracy") for run in reference)
    return max(1, math.floor(98 * end)) / 100


# ---- the parts


def _how_made(records: Sequence[Mapping[str, Any]], suite: str, size: str) -> list[Block]:
    hardware = _distinct(_machine(record["hardware"]) for record in records)
    versions = _distinct(
        f"composer-edba {v['composer_edba']} at {str(v['commit'])[:10]}{' with changes' if v['dirty'] else ''}, "
        f"torch {v['torch']}, Composer {v['composer']}{', Python ' + v['python'] if 'python' in v else ''}"
        for v in (record["versions"] for record in records)
    )
    hours = sum(record["total_seconds"] for record in records) / 3600
    return [
        Paragraph(
            f"{len(records)} runs, {hours:.1f} hours altogether. Made by "
            f"`python -m benchmarks time-to-accuracy {suite} --size {size}`, and this page by "
            f"`python -m benchmarks report {suite} --size {size}` from the lines that it left."
        ),
        Details("Machine and versions", [Paragraph("; ".join(hardware) + "."), Paragraph("; ".join(versions) + ".")]),
    ]


def _machine(hardware: Mapping[str, Any]) -> str:
    device = hardware["gpu"] or hardware["cpu"]
    runs = "one run at a time" if hardware["jobs"] == 1 else f"{hardware['jobs']} runs side by side"
    return f"{device}, {hardware['threads']} of {hardware['cores']} threads a run, {runs}"


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _glance(cells: Mapping[str, Runs], suite: Suite) -> list[Block]:
    arms = list(dict.fromkeys(arm for runs in cells.values() for arm in runs))
    metrics = {_metric(runs) for runs in cells.values()}
    score = "loss" if metrics == {"loss"} else "accuracy %"
    accuracy = Table(
        [
            f"test {score}, last epoch",
            *(f"{cell} (R2)" if _metric(runs) == "r2" else cell for cell, runs in cells.items()),
        ],
        [[arm_title(arm), *(_score_text(runs.get(arm, ())) for runs in cells.values())] for arm in arms],
    )
    rows: list[list[str | Cell]] = []
    for cell, runs in cells.items():
        clock = figures.time_axis(runs)
        for arm, other in _CONTRASTS:
            if arm in runs and other in runs:
                measures = [_last_test, at_equal("updates"), at_equal("flops"), at_equal(clock)]
                compared = _compared(runs[arm], runs[other], measures)
                rows.append([cell, f"{arm_title(arm)} - {arm_title(other)}", *compared])
    blocks: list[Block] = [accuracy]
    published = {arm: [suite.published.get(cell, {}).get(arm, "-") for cell in cells] for arm in arms}
    stated = {arm: values for arm, values in published.items() if set(values) != {"-"}}
    if stated:
        blocks += [
            Paragraph(f"Published: {suite.published_where}."),
            Table(["published", *cells], [[arm_title(arm), *values] for arm, values in stated.items()]),
        ]
    if rows:
        unit = "in points (of R2 as it is)" if "r2" in metrics else "in points"
        unit = "of the loss, of which less is better" if score == "loss" else unit
        blocks += [
            Paragraph(f"Differences {unit}, means over paired seeds with 95 % confidence intervals:"),
            _table(
                ["", "", "verdict", "test, last epoch", "at equal updates", "at equal FLOPs", "at equal time"], rows
            ),
        ]
    return blocks


def _cell(cell: str, runs: Runs, planned: suites.Cell | None, picture: Path) -> list[Block]:
    clock = figures.time_axis(runs)
    clock_name = "wall-clock" if clock == "seconds" else "processor time"
    unit, scale = figures.flops_unit(runs)
    test, points = {"r2": ("test R2", "R2"), "loss": ("test loss", "loss")}.get(_metric(runs), ("test %", "points"))
    blocks: list[Block] = [Heading(2, cell), _settings(runs)]
    if planned is not None and planned.title:
        blocks.insert(1, Paragraph(f"{planned.title[0].upper()}{planned.title[1:]}."))
    if _validated(runs):
        target = _target(runs, planned)
        blocks.append(Picture(picture, figures.draw_cell(runs, target, picture)))
    blocks.append(
        _table(
            [
                "",
                "seeds",
                f"{test}, last epoch",
                f"{test}, epoch chosen on validation",
                "updates",
                "samples trained on",
                "distinct samples",
                unit,
                "seconds",
                "processor seconds",
                "last batch size",
            ],
            [_main_row(arm, found, scale) for arm, found in runs.items()],
        )
    )
    if _validated(runs):
        blocks += [
            Heading(3, f"Cost of {100 * target:.0f} % validation accuracy"),
            Table(
                ["", "reached by", "seconds", "processor seconds", "updates", unit, f"{clock_name}, plain / this"],
                [_cost_row(arm, found, runs, target, clock, scale) for arm, found in runs.items()],
            ),
        ]
    for reference in _REFERENCES:
        if reference in runs and len(runs) > 1:
            measures = [_last_test, _chosen_test, at_equal("updates"), at_equal("flops"), at_equal(clock)]
            blocks += [
                Heading(3, f"Differences to {arm_title(reference)}, in {points}"),
                _table(
                    ["", "verdict", "test, last epoch", "test, chosen epoch", "at equal updates", "at equal FLOPs",
                     f"at equal {clock_name}"],
                    [
                        [arm_title(arm), *_compared(found, runs[reference], measures)]
                        for arm, found in runs.items()
                        if arm != reference
                    ],
                ),
            ]  # fmt: skip
    return blocks


def _table(header: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> Table:
    """Without the columns in which nothing was counted."""
    empty = ("-", Cell("-"))
    kept = [column for column in range(len(header)) if any(row[column] not in empty for row in rows)]
    return Table([header[column] for column in kept], [[row[column] for column in kept] for row in rows])


def _settings(runs: Runs) -> Block:
    every = [run.record for found in runs.values() for run in found]
    first = every[0]["overrides"]
    common = {
        key: value
        for key, value in first.items()
        if all(record["overrides"].get(key, _MISSING) == value for record in every) and key not in ("seed",)
    }
    part, base = every[0]["test_samples"], every[0]["base"]
    partly = "all of the test set" if part is None else f"the first {part:,} test images, and all of them at the end"
    if "test_size" in every[0]:
        partly += f" ({every[0]['train_size']:,} training and {every[0]['test_size']:,} test samples)"
    listed = " ".join(f"{key}={value}" for key, value in common.items())
    arms = "; ".join(
        f"{arm}: {', '.join(_distinct(text for run in found for text in _own(run.record, common)))}"
        for arm, found in runs.items()
    )
    where = base if base.startswith("task:") else f"yamls/{base}"
    return Details(
        "Settings",
        [Paragraph(f"`{where}` with `{listed}`, evaluated on {partly}."), Paragraph(f"Arms: {arms}.")],
    )


_MISSING = object()


def _own(record: Mapping[str, Any], common: Mapping[str, Any]) -> list[str]:
    changed = [
        f"`{key}={value}`"
        for key, value in record["overrides"].items()
        if key not in common and key not in ("seed", "data.subset_seed")
    ]
    return [*changed, *(f"`{text}`" for text in record["algorithms"] if "(" in text)] or ["nothing else"]


def _main_row(arm: str, runs: Sequence[Run], scale: float) -> list[str | Cell]:
    return [
        arm_title(arm),
        str(len(runs)),
        _score_text(runs),
        mean_text((run.test_score(chosen=True) for run in runs), 100),
        *(mean_text((run.last(name) for run in runs), digits=0) for name in ("updates", "samples_trained")),
        mean_text((run.last("distinct_samples") for run in runs), digits=0),
        mean_text((run.last("flops") for run in runs), scale, _digits(runs[0].last("flops") * scale)),
        *(
            mean_text((run.last(clock) for run in runs), digits=_digits(runs[0].last(clock)))
            for clock in ("seconds", "processor_seconds")
        ),
        mean_text((run.last("batch_size") for run in runs), digits=0),
    ]


def _digits(value: float) -> int:
    """Decimals that show three figures of a value below 100."""
    return max(0, 2 - math.floor(math.log10(value))) if 0 < value < 100 else 0


def _cost_row(arm: str, found: Sequence[Run], runs: Runs, target: float, clock: str, scale: float) -> list[str | Cell]:
    reached = [run for run in found if run.cost_of(target, clock) is not None]

    def costs(axis: str, factor: float = 1.0, digits: int = 0) -> str:
        return mean_text((run.cost_of(target, axis) or math.nan for run in reached), factor, digits)

    return [
        arm_title(arm),
        f"{len(reached)} of {len(found)}",
        *(costs(clock, digits=_digits(found[0].last(clock))) for clock in ("seconds", "processor_seconds")),
        costs("updates"),
        costs("flops", scale, _digits(found[0].last("flops") * scale)),
        _speed_up(arm, found, runs, target, clock),
    ]


def _speed_up(arm: str, found: Sequence[Run], runs: Runs, target: float, clock: str) -> str:
    """How many times as fast as plain, the geometric mean over seeds with its interval; only if every run got there."""
    if arm == "plain" or "plain" not in runs:
        return "-"

    def logs(run: Run, other: Run) -> tuple[float, float]:
        mine, theirs = run.cost_of(target, clock), other.cost_of(target, clock)
        if mine is None or theirs is None:
            return math.nan, math.nan
        return math.log(theirs), math.log(mine)

    ratio = paired_difference(found, runs["plain"], logs)
    if ratio is None or ratio.pairs < min(len(found), len(runs["plain"])):
        return "-"
    text = f"{math.exp(ratio.mean):.2f}"
    return text if ratio.pairs < 2 else f"{text} [{math.exp(ratio.low):.2f}, {math.exp(ratio.high):.2f}]"


_Measure = Callable[[Run, Run], tuple[float, float]]


def _metric(runs: Runs) -> str:
    return next(iter(runs.values()))[0].metric


def _scale(metric: str) -> tuple[float, int]:
    """What a score is multiplied by to be shown, and its decimals: only accuracies are shown as percentages."""
    return (100, 2) if metric == "accuracy" else (1, 3)


def _score_text(runs: Sequence[Run]) -> str:
    """The test score at the end, over seeds; a run that diverged is no run to leave out of a mean."""
    lost = sum(math.isnan(run.test_score()) for run in runs)
    if lost:
        return f"diverged in {lost} of {len(runs)}"
    return mean_text((run.test_score() for run in runs), *_scale(runs[0].metric)) if runs else "-"


def _compared(found: Sequence[Run], reference: Sequence[Run], measures: Sequence[_Measure]) -> list[str | Cell]:
    """The verdict of the first of ``measures``, and the differences by all of them; none if a run has diverged."""
    if any(math.isnan(run.test_score()) for run in (*found, *reference)):
        return ["-"] * (1 + len(measures))
    differences = [paired_difference(found, reference, measure) for measure in measures]
    first = differences[0]
    texts = [_difference(difference, *_scale(found[0].metric)) for difference in differences]
    return [first.verdict if first else "-", *texts]


def _difference(difference: Difference | None, scale: float, digits: int) -> Cell:
    if difference is None:
        return Cell("-")
    tones = {"better": "good", "worse": "bad"}
    return Cell(difference.text(scale, digits), tones.get(difference.verdict, ""))  # type: ignore[arg-type]


def _last_test(run: Run, other: Run) -> tuple[float, float]:
    return run.test_score(), other.test_score()


def _chosen_test(run: Run, other: Run) -> tuple[float, float]:
    return run.test_score(chosen=True), other.test_score(chosen=True)


def _leave_out(cells: Mapping[str, Runs], picture: Path) -> list[Block]:
    from benchmarks.comparators.mislabelled import leave_out_ratio  # brings Composer, which takes long

    ratios: dict[str, dict[str, tuple[float, float, float]]] = {}
    over_training: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    rows: list[list[str | Cell]] = []
    for cell, runs in cells.items():
        for arm, found in runs.items():
            counted = [run.record["mislabelled"] for run in found if "mislabelled" in run.record]
            if not counted:
                continue
            ratio = leave_out_ratio(part for parts in counted for part in parts)
            ratios.setdefault(cell, {})[arm] = ratio
            over_training.setdefault(cell, {})[arm] = [leave_out_ratio(parts) for parts in zip(*counted, strict=True)]
            seeds = [leave_out_ratio(parts)[0] for parts in counted]
            rows.append(
                [cell, arm_title(arm), f"{ratio[0]:.3f} [{ratio[1]:.3f}, {ratio[2]:.3f}]", mean_text(seeds, digits=3)]
            )
    figures.draw_leave_out(ratios, over_training, picture)
    return [
        Heading(2, "Does the selection leave out mislabelled samples?"),
        Paragraph(
            "How many times as often a mislabelled sample is left out of the subset as another of the same batch: 1 "
            "means no difference. Ratio over all steps of all seeds (Mantel-Haenszel) with its 95 % interval, and its "
            "spread over seeds."
        ),
        Picture(picture, "Ratio of leave-out rates over the whole training and over its parts."),
        Table(["", "", "ratio [95 % interval]", "mean ± s.d. over seeds"], rows),
    ]


def _agreement(looked: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Block]:
    """Cached scores against fresh ones, over four parts of training."""
    parts = 4
    rows: list[list[str | Cell]] = []
    for arm, records in looked.items():
        for part in range(parts):
            looks = [
                look
                for record in records
                for look in record["agreement"]
                if look["update"] * parts // record["evaluations"][-1]["updates"] == part
            ]
            if looks:
                ratios = [look["gradient_metric_cached"] / look["gradient_metric_fresh"] for look in looks]
                rows.append(
                    [
                        f"{arm_title(arm)}, part {part + 1} of {parts}",
                        str(len(looks)),
                        _median_text([look["rank_correlation"] for look in looks]),
                        _median_text(ratios),
                        f"{statistics.median(look['score_age'] for look in looks):.0f}",
                    ]
                )
    return [
        Heading(3, "Cached scores against fresh ones"),
        Paragraph(
            "Pools scored once more by a forward pass at the moment of choosing, with newly augmented views: rank "
            "correlation of the samples' gradient norms, the chosen subset's gradient metric as it was believed over "
            "what it was, and the age of the scores in updates. Medians over all looks of all seeds, with quartiles."
        ),
        Table(["", "looks", "rank correlation", "G(S*) cached / fresh", "age"], rows),
    ]


def _median_text(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}"
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def _reading(validated: bool) -> list[Block]:
    blocks: list[Block] = [
        Heading(2, "How to read this"),
        Paragraph(
            "Arms differ only in what **Settings** lists, share the data, weights and order of a seed, and run for the "
            "same number of epochs of samples drawn (or of updates, where Settings has them). Values are means ± "
            "standard deviations over seeds. Differences are means over paired seeds with 95 % confidence intervals "
            "(Student's t, not corrected for the number of comparisons); green and red mark intervals without zero, "
            "gains and losses alike."
        ),
    ]
    if not validated:
        return [
            *blocks,
            Paragraph(
                "**Last epoch** is the only time that a test sample is looked at; nothing was picked by it. A seed "
                "gives the split (four fifths to train on) too. Seconds are wall-clock of training on one thread, "
                "rough where the machine did other work too; evaluation is left out. **Distinct samples** are how many "
                "different training samples were ever trained on."
            ),
        ]
    return [
        *blocks,
        Paragraph(
            "**Last epoch** is the accuracy on the whole test set at the end; nothing was picked by it. **Epoch chosen "
            "on validation** is the accuracy on the test images of that evaluation which has the best validation "
            "accuracy. Equal updates, FLOPs and time compare validation accuracy at what the cheaper run of a pair had "
            "spent when it ended; costs of a target are linear between evaluations. Validation samples are held out of "
            "the training set and never trained on."
        ),
        Paragraph(
            "FLOPs are those of convolutions and matrix products: a forward counts 1, a backward 2, scoring forwards "
            "are counted. Seconds include data loading and scoring, not evaluation. On a CPU that others use at the "
            "same time, processor time is the measure, and wall-clock stands beside it. **Distinct samples** are how "
            "many different training samples were ever trained on; an upper bound for SelectiveBackprop, which counts "
            "nothing."
        ),
    ]
