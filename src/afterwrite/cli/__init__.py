"""The ``afterwrite`` command: one verb a module, tables for people, ``--json`` for machines."""

from afterwrite.cli.app import main

__all__ = ["main"]
