"""The command line of the package: ``python -m fused_contrastive doctor`` and ``build``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .tools.build import build
from .tools.doctor import doctor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status.

    Args:
        arguments: what stands behind the program's name; None: those of this process.
    """
    parser = argparse.ArgumentParser(prog="python -m fused_contrastive", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "doctor",
        help="find out what works on this machine and why the rest does not; "
        "exit with 1 where something fails",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=lambda options: doctor(options.json))
    command = commands.add_parser("build", help="compile the CPU kernels in a folder of sources")
    command.set_defaults(run=lambda options: build())
    options = parser.parse_args(arguments)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
