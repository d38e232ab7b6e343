"""A scan's answer as one document of plain values: what ``--json`` prints, and what the other faces are drawn from.

The types are the schema: ``python -m afterwrite.scan.report.document > docs/scan.schema.json`` writes it down, and a
test checks that the file is current. Fields may be added within a version; one that goes, or comes to mean something
else, raises it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from afterwrite import __version__
from afterwrite.errors import Finding
from afterwrite.scan.atlas import Atlas
from afterwrite.scan.catalog import Enabled, Event, Timing, TriggerLevel
from afterwrite.scan.cost.figures import Costs
from afterwrite.scan.dump.account import DumpReport
from afterwrite.scan.report.explain import code_at
from afterwrite.scan.rules import RULES
from afterwrite.scan.sight import Sight, missing_figures
from afterwrite.scan.survey import Survey
from afterwrite.scan.verdicts import Eventual, Judgement, Needs, Reason, Verdict

SCHEMA_VERSION = 1


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What was scanned. ``server_version`` is server_version_num, ``statistics_since`` the counters' last reset.

    ``dump`` is null for a live database; else it says what of the dump was loaded, and what was not.
    """

    name: str
    server_version: int
    search_path: tuple[str, ...] = ()
    statistics_since: datetime | None = None
    dump: DumpReport | None = None


class ReasonShown(msgspec.Struct, frozen=True, kw_only=True):
    """Why: a rule, a sentence, and the ``line`` of the trigger's function (null where no line decides).

    ``via`` leads from there: ``WHEN``, or ``schema.function:line`` for each function called. ``code`` is the line at
    the end of that way as it stands.
    """

    rule: str
    line: int | None
    text: str
    via: tuple[str, ...] = ()
    code: str | None = None


class TriggerShown(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger, its verdict, and why. ``function`` is ``schema.name``; ``partitions`` counts its copies on partitions.

    ``reasons`` come deciding ones first; ``notes`` decide nothing. ``enabled`` is pg_trigger.tgenabled.
    """

    schema: str
    table: str
    name: str
    function: str
    events: tuple[Event, ...]
    level: TriggerLevel
    timing: Timing
    enabled: Enabled
    verdict: Verdict
    reasons: tuple[ReasonShown, ...]
    notes: tuple[ReasonShown, ...]
    when: str | None
    columns: tuple[str, ...]
    arguments: tuple[str, ...]
    language: str
    constraint: bool
    deferrable: bool
    initially_deferred: bool
    extension: str | None
    comment: str | None
    partitions: int
    log_tables: tuple[str, ...]
    effects: tuple[str, ...]
    channels: tuple[str, ...]
    eventual: tuple[Eventual, ...]
    needs: Needs

    @property
    def identity(self) -> str:
        return f"{self.schema}.{self.table}.{self.name}"

    @property
    def relation(self) -> str:
        return f"{self.schema}.{self.table}"


class PhaseShown(msgspec.Struct, frozen=True, kw_only=True):
    """A phase of the plan that ``afterwrite plan`` would write: identities that move together."""

    number: int
    title: str
    retire: tuple[str, ...] = ()
    defer: tuple[str, ...] = ()


class ScanDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer. ``rules`` explains each rule that spoke; ``missing`` are figures that are not to be had, why,
    and what would help; ``costs`` and ``phases`` are null where they were not asked for."""

    schema_version: int = SCHEMA_VERSION
    afterwrite: str = __version__
    subject: Subject
    counts: Mapping[str, int]
    triggers: tuple[TriggerShown, ...]
    findings: tuple[Finding, ...]
    missing: tuple[Finding, ...] = ()
    rules: Mapping[str, str] = {}
    costs: Costs | None = None
    phases: tuple[PhaseShown, ...] | None = None

    def of(self, verdict: Verdict) -> tuple[TriggerShown, ...]:
        """The triggers with this verdict."""
        return tuple(trigger for trigger in self.triggers if trigger.verdict is verdict)


def document(
    found: Survey,
    *,
    costs: Costs | None = None,
    phases: Sequence[PhaseShown] | None = None,
    dump: DumpReport | None = None,
) -> ScanDocument:
    """The document of a survey, with what was measured and planned beside it."""
    inventory = found.inventory
    atlas = Atlas(inventory)
    copies = Counter(clone.parent_oid for clone in inventory.clones)
    triggers = tuple(_trigger(atlas, each, copies[each.trigger.oid]) for each in found.judgements)
    missing = tuple(_missing(costs.missing if costs else (), inventory.sight))
    missing = (*missing, dump.missing) if dump is not None else missing
    spoke = {reason.rule for trigger in triggers for reason in (*trigger.reasons, *trigger.notes)}
    return ScanDocument(
        subject=Subject(
            name=inventory.database,
            server_version=inventory.server_version,
            search_path=inventory.search_path,
            statistics_since=inventory.statistics_since,
            dump=dump,
        ),
        counts={verdict.value: len(found.of(verdict)) for verdict in Verdict},
        triggers=triggers,
        findings=found.findings,
        missing=tuple({finding.remedy or finding.text: finding for finding in missing}.values()),
        rules={name: RULES[name].sentence for name in sorted(spoke) if name in RULES},
        costs=costs,
        phases=tuple(phases) if phases is not None else None,
    )


# What measuring misses, and what of the role's sight is the reason: told once.
_SAME = {
    "no-row-counts": "rows-uncounted",
    "functions-not-counted": "functions-untimed",
    "no-statement-statistics": "no-statement-statistics",
    "statements-hidden": "statistics-hidden",
}


def _missing(measured: Sequence[Finding], sight: Sight | None) -> Iterator[Finding]:
    """The figures that are missing: those that measuring missed, with the reason where it is known, and the others."""
    known = {finding.rule: finding for finding in missing_figures(sight)} if sight is not None else {}
    for finding in measured:
        why = known.pop(_SAME.get(finding.rule, ""), None)
        if why is None:
            yield finding
            continue
        follows = f"; {finding.text.rpartition(': ')[2]}" if "shares are" in finding.text else ""
        yield msgspec.structs.replace(why, severity=finding.severity, text=f"{why.text}{follows}")
    yield from known.values()


def _trigger(atlas: Atlas, each: Judgement, copies: int) -> TriggerShown:
    trigger = each.trigger
    return TriggerShown(
        schema=trigger.schema,
        table=trigger.table,
        name=trigger.name,
        function=f"{trigger.function_schema}.{trigger.function}",
        events=trigger.events,
        level=trigger.level,
        timing=trigger.timing,
        enabled=trigger.enabled,
        verdict=each.verdict,
        reasons=_reasons(atlas, each, each.reasons),
        notes=_reasons(atlas, each, each.notes),
        when=trigger.when,
        columns=trigger.columns,
        arguments=trigger.arguments,
        language=trigger.language,
        constraint=trigger.constraint,
        deferrable=trigger.deferrable,
        initially_deferred=trigger.initially_deferred,
        extension=trigger.extension,
        comment=trigger.comment,
        partitions=copies,
        log_tables=each.log_tables,
        effects=each.effects,
        channels=each.channels,
        eventual=each.eventual,
        needs=each.needs,
    )


def _reasons(atlas: Atlas, each: Judgement, reasons: Iterable[Reason]) -> tuple[ReasonShown, ...]:
    return tuple(
        ReasonShown(
            rule=reason.rule,
            line=reason.line,
            text=reason.text,
            via=reason.via,
            code=code_at(atlas, each.trigger, reason),
        )
        for reason in reasons
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of what ``--json`` prints."""
    made = msgspec.json.schema(ScanDocument)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"afterwrite scan --json, version {SCHEMA_VERSION}",
        **made,
    }


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(json_schema()), indent=2).decode() + "\n")
