"""docs/composition.md and its extract in docs/composer.md: `python -m tests.composer.composition.table`."""

import re

import composer
import torch

from tests.composer.composition.pairs import OWN_WARNINGS, PAIRS
from tests.composer.composition.run_pair import EPOCHS, MICROBATCH, run_pair
from tests.support.made_blocks import with_block
from tests.support.paths import ROOT

PAGE = "docs/composition.md"
EXTRACT_PAGE = "docs/composer.md"

_HEAD = f"""# EDBA beside Composer's algorithms

Every class in `composer.algorithms` ({composer.__version__}) beside EDBA, in a real Trainer for {EPOCHS} epochs, with
EDBA first and last in the user's list. Made by `python -m tests.composer.composition.table` from the runs of
`tests/composer/composition`; a test fails if the two differ.

**yes**: in both orders EDBA ran first on AFTER_DATALOADER at every step, chose proper subsets, the batch trained on was
the chosen one (or what the algorithm itself made of it, *changed after*), the losses were finite, and no warning was
raised but what is listed below. After the run a scoring forward left weights, buffers, gradients, module modes and
random streams bitwise unchanged, and the pool's gradient metric was the norm of autograd's last-layer gradient.
Where *microbatches* is ticked the same held with `device_train_microbatch_size={MICROBATCH}`.

**refused**: in both orders EDBA raised a ValueError that names the algorithm, the reason and what to do, before
training.

| algorithm | runs with EDBA | model | batch trained on | microbatches | note |
|---|---|---|---|---|---|
"""


def table() -> str:
    """The page, after running what has not been run yet in this process."""
    lines, counts = [], {"yes": 0, "refused": 0}
    for key, pair in PAIRS.items():
        outcomes = {run_pair(key, first) for first in (True, False)}
        (outcome,) = outcomes  # both orders go alike
        counts[outcome] += 1
        ran = outcome == "yes"
        micro = ran and pair.microbatches and run_pair(key, True, MICROBATCH) == "yes"
        batch = ("changed after" if pair.changes_batch else "as chosen") if ran else ""
        model = pair.setup.__name__.replace("_", " ") if ran else ""
        lines.append(f"| {key} | {outcome} | {model} | {batch} | {'✓' if micro else ''} | {pair.note} |")
    warnings = [f'* "{_plain(message)}": {reason}.' for message, reason in OWN_WARNINGS.items()]
    return (
        _HEAD
        + "\n".join(lines)
        + f"\n\n{len(PAIRS)} settings of {len({pair.name for pair in PAIRS.values()})} algorithms: "
        f"{counts['yes']} run, {counts['refused']} are refused. EDBA beside a second EDBA is refused too.\n\n"
        "Warnings that come with an algorithm or its data whether EDBA is there or not:\n\n"
        + "\n".join(warnings)
        + "\n\nNot run: LowPrecisionGroupNorm and LowPrecisionLayerNorm in a Trainer with `precision='amp_fp16'` or "
        "`'amp_bf16'`, which\nComposer refuses on a CPU (\"not supported for CPU training\", shown by "
        "`tests/precision`); no GPU was at hand.\n"
    )


def extract(page: str) -> str:
    """The matrix in short, from the page."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")
    ]
    notes = {name: note for name, outcome, *_, note in rows if outcome == "refused"}
    runs = [name for name, outcome, *_ in rows if outcome == "yes"]
    return (
        "| with EDBA | algorithms |\n|---|---|\n"
        f"| runs, in both orders | {', '.join(runs)} |\n"
        f"| refused, with the reason | {'; '.join(f'{name} ({note})' for name, note in notes.items())} |\n"
    )


def _plain(pattern: str) -> str:
    return re.sub(r"\.\*", "…", pattern)


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests: more make networks this small many times slower
    path = ROOT / PAGE
    path.parent.mkdir(exist_ok=True)
    path.write_text(table())
    short = ROOT / EXTRACT_PAGE
    short.write_text(with_block(short.read_text(), "composition", extract(path.read_text())))
    print(path, short)
