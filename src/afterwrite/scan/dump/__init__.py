"""Scanning a dump: a file that nobody vouches for, loaded where it can do nothing, and judged like a live database."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from afterwrite.scan.dump.account import DumpReport
from afterwrite.scan.dump.load import LoadedDump, let_execute, loaded_dump
from afterwrite.scan.survey import Survey
from afterwrite.scan.tokens import split_names
from afterwrite.scan.verdicts import Judgement, Reason, Verdict

__all__ = ["DumpReport", "LoadedDump", "let_execute", "loaded_dump", "told_of"]


def told_of(found: Survey, report: DumpReport, dark: Mapping[str, str] | None = None) -> Survey:
    """The survey of a loaded dump, with what is to be known of the load, and without what only a live database has."""
    findings = (finding for finding in found.findings if finding.rule != "no-statistics")
    inventory = msgspec.structs.replace(found.inventory, sight=None, statistics_since=None)
    unread = {where: _words(text) for where, text in (dark or {}).items()}
    return msgspec.structs.replace(
        found,
        inventory=inventory,
        findings=(*report.findings(), *findings),
        judgements=tuple(_doubted(each, unread) for each in found.judgements),
    )


def _doubted(judgement: Judgement, dark: Mapping[str, frozenset[str]]) -> Judgement:
    """The judgement, or ``review`` where a part of the dump that is not here names what the trigger writes."""
    if judgement.verdict in (Verdict.KEEP, Verdict.REVIEW):
        return judgement
    doubts = [
        Reason(rule="feeds-the-unread", line=None, text=f"writes {name}, which {where} names, and that is not loaded")
        for name in (*judgement.log_tables, *judgement.effects)
        for where, words in dark.items()
        if words.issuperset(_words(split_names(name)[-1]))
    ]
    if not doubts:
        return judgement
    return msgspec.structs.replace(judgement, verdict=Verdict.REVIEW, reasons=(*doubts, *judgement.reasons))


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[\w$]+", text.lower()))
