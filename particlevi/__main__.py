"""``python -m particlevi``: versions for an issue; ``report FILE``: a page about saved draws."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from particlevi.loading import load
from particlevi.report.page import environment

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: those of the command line if absent.

    Returns:
        0, or 2 where the file is not there or cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m particlevi",
        description="Without a command: versions of all that a result depends on, for an issue.",
    )
    commands = parser.add_subparsers(dest="command")
    report = commands.add_parser("report", help="a page about draws that Draws.save wrote")
    report.add_argument("draws", type=Path, help="the file")
    report.add_argument("page", type=Path, nargs="?", help="of HTML; beside the draws if absent")
    given = parser.parse_args(arguments)
    if given.command is None:
        found = environment()
        width = max(map(len, found))
        print("\n".join(f"{name:<{width}}  {value}" for name, value in found.items()))
        return 0
    try:
        draws = load(given.draws)
        print(draws.report(given.page or given.draws.with_suffix(".html")))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
