"""The ``afterwrite`` command: one verb a module, tables for people, ``--json`` for machines."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command. The rest is imported here, so that a Ctrl-C as early as that is no traceback either."""
    try:
        from afterwrite.cli.app import main as command

        command()
    except KeyboardInterrupt:
        sys.stderr.write("afterwrite: interrupted before it began\n")
        raise SystemExit(130) from None


__all__ = ["main"]
