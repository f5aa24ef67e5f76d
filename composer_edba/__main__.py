"""``python -m composer_edba``: the version, and what is installed."""

from __future__ import annotations

import argparse
from importlib import metadata

import composer_edba


def main(arguments: list[str] | None = None) -> None:
    """Print the version with ``--version``, else what EDBA can run in; ``arguments`` None: the process's own."""
    parser = argparse.ArgumentParser(
        prog="python -m composer_edba",
        description="Efficient Dynamic Batch Adaptation. Without arguments: what is installed.",
        epilog="Runs from YAML files: python -m composer_edba.train --help",
    )
    parser.add_argument("--version", action="version", version=f"composer-edba {composer_edba.__version__}")
    parser.parse_args(arguments)
    print(f"composer-edba {composer_edba.__version__}")
    for name in ("torch", "mosaicml", "pytorch-ignite"):  # what the package works with
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name} is not installed")


if __name__ == "__main__":
    main()
