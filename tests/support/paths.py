"""Where things are in the checkout."""

from pathlib import Path

import composer_edba

ROOT = Path(__file__).parents[2]
YAMLS = Path(composer_edba.__file__).parent / "train" / "yamls"
