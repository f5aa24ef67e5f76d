"""``python -m composer_edba``: the version, and what is installed."""

from __future__ import annotations

import argparse
from importlib import metadata

import composer_edba

# Distribution names of what the package works with.
_PARTNERS = ("torch", "mosaicml", "pytorch-ignite")


def main(arguments: list[str] | None = None) -> None:
    """Print the version with ``--version``, else the versions of what EDBA can run in.

    Args:
        arguments: command line; None: the process's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m composer_edba",
        description="Efficient Dynamic Batch Adaptation. Without arguments: what is installed.",
        epilog="Runs from YAML files: python -m composer_edba.train --help",
    )
    parser.add_argument("--version", action="version", version=f"composer-edba {composer_edba.__version__}")
    parser.parse_args(arguments)
    print(f"composer-edba {composer_edba.__version__}")
    for name in _PARTNERS:
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name} is not installed")


if __name__ == "__main__":
    main()
