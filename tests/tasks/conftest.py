"""Makes the modules of tests/ importable, and those of the composition matrix, whose setups are used here too."""

import sys
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parent),
    str(Path(__file__).parents[1] / "composition"),
    str(Path(__file__).parents[1]),
]
