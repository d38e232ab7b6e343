"""The ``afterwrite`` command: one verb a module, tables for people, ``--json`` for machines."""

from __future__ import annotations

import sys
from typing import NoReturn

# What the extra of this name brings, beside what an application has anyway.
_TOOLS = frozenset({"typer", "rich", "pydantic_settings", "pydantic", "pgparse"})


def main() -> NoReturn:
    """Run the command. The rest is imported here, so that a Ctrl-C as early as that is no traceback either."""
    try:
        from afterwrite.cli.app import main as command

        command()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _TOOLS:
            raise
        sys.stderr.write(
            f"afterwrite: the commands need {error.name}, which an application that records does not\n"
            "  → pip install 'afterwrite[tools]'\n"
        )
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("afterwrite: interrupted before it began\n")
        raise SystemExit(130) from None


__all__ = ["main"]
