"""``python -m composer_edba.train RUN key=value ...``, also by the composer launcher."""

import sys

from composer_edba.train.command import cli

if __name__ == "__main__":
    sys.exit(cli(sys.argv[1:]))
