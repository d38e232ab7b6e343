"""Scanning a dump: a file that nobody vouches for, loaded where it can do nothing, and judged like a live database."""

from afterwrite.scan.dump.account import DumpReport
from afterwrite.scan.dump.load import LoadedDump, let_execute, loaded_dump

__all__ = ["DumpReport", "LoadedDump", "let_execute", "loaded_dump"]
