"""Scanning a dump: a file that nobody vouches for, loaded where it can do nothing, and judged like a live database."""

from __future__ import annotations

import msgspec

from afterwrite.scan.dump.account import DumpReport
from afterwrite.scan.dump.load import LoadedDump, let_execute, loaded_dump
from afterwrite.scan.survey import Survey

__all__ = ["DumpReport", "LoadedDump", "let_execute", "loaded_dump", "told_of"]


def told_of(found: Survey, report: DumpReport) -> Survey:
    """The survey of a loaded dump, with what is to be known of the load, and without what only a live database has."""
    findings = (finding for finding in found.findings if finding.rule != "no-statistics")
    inventory = msgspec.structs.replace(found.inventory, sight=None, statistics_since=None)
    return msgspec.structs.replace(found, inventory=inventory, findings=(*report.findings(), *findings))
