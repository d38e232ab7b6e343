"""``afterwrite doctor``: what stands in the way, and the command that mends it. Reads only."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from afterwrite import runtime
from afterwrite.capture.outbox import examine as examine_outbox
from afterwrite.capture.outbox import is_laid
from afterwrite.capture.preflight import read_slot
from afterwrite.cli.face import Dsn, Json, StoreDsn, emit, out, run, settings, show_findings
from afterwrite.errors import ExitCode, Finding, Refused, Severity
from afterwrite.postgres import Database
from afterwrite.settings import Settings
from afterwrite.store.reader import verify_feed


def doctor(dsn: Dsn = None, store_dsn: StoreDsn = None, json: Json = False) -> int:
    """Check server, rights, tables, publications, slot, WAL budget, checkpoint and the store's seal.

    Exit 5 if something forbids going on.
    """
    given = settings(dsn, store_dsn)
    try:
        findings = run(_examine(given))
    except Refused as error:
        if "afterwrite doctor" not in (error.remedy or ""):
            raise
        # A role that may not even look was sent here by every other verb: do not send it round in circles.
        raise Refused(
            str(error), remedy="connect as the role that ran `afterwrite install`, or a member of it"
        ) from error
    wrong = any(finding.severity is Severity.ERROR for finding in findings)
    if json:
        emit({"schema_version": 1, "healthy": not wrong, "findings": findings})
    elif findings:
        show_findings(findings)
    else:
        out.print("[green]All is well:[/] nothing stands in the way of capture.")
    return ExitCode.REFUSED if wrong else ExitCode.OK


async def _examine(given: Settings) -> list[Finding]:
    async with runtime.source_and_store(given) as (source, store):
        seen = await runtime.look_at_installation(given, source, store)
        lacks = [*seen.findings, *seen.survey.findings]
        if seen.checkpoint is None and await is_laid(source) and not await runtime.missing_upgrades(store):
            # Events go by the outbox alone: what capture would need is not missing, it is off.
            return [*_off(lacks, source.where), *await examine_outbox(source), *await _examine_store(store)]
        if seen.checkpoint is None and not seen.setup.tables and given.one_database and not seen.schema:
            return [*_store_only(lacks, store.where), *await _examine_store(store)]
        findings = [*lacks, *await examine_outbox(source)]
        if seen.schema:
            findings.append(
                _note("not-installed", store.where, "afterwrite is not installed yet", "afterwrite install")
            )
            return findings
        if seen.checkpoint is None:
            findings.append(_note("no-checkpoint", store.where, "capture was never set up", "afterwrite install"))
            return findings
        findings += await runtime.examine_governance(given, source, seen.checkpoint)
        slot = await read_slot(source, given.slot)
        if slot is not None and slot.active_pid is None:
            findings.append(
                Finding(
                    rule="no-worker",
                    severity=Severity.WARNING,
                    where=given.slot,
                    text=f"no worker reads slot {given.slot}: the server keeps WAL from {slot.restart_lsn} on for it",
                    remedy=f"run `afterwrite capture`, or give it up: select pg_drop_replication_slot('{given.slot}')",
                )
            )
        return [*findings, *await _examine_store(store)]


async def _examine_store(store: Database) -> list[Finding]:
    """What is to be said of the store's server, and whether its seal holds."""
    findings = [*await runtime.examine_store_server(store), *await runtime.examine_rollup(store)]
    check = await verify_feed(store)
    if check.first_break is not None:
        findings.append(
            Finding(
                rule="seal-broken",
                severity=Severity.ERROR,
                where=store.where,
                text=f"at position {check.first_break.position}: {check.first_break.text}",
                remedy="the store was changed by other hands than ours: compare it with a backup",
            )
        )
    return findings


def _off(lacks: Sequence[Finding], where: str) -> list[Finding]:
    """What is off where capture was never set up and an outbox is there, and what it would take to turn it on."""
    wanted = _wanted(lacks)
    text = "row changes are not captured, for capture was never set up; events in transactions go by the outbox"
    if not wanted:
        text += ", though nothing stands in the way of capture"
    remedy = "run `afterwrite install` if they are to be, else `afterwrite capture --outbox-only` is all it takes"
    return [Finding(rule="capture-off", severity=Severity.INFO, where=where, text=text, remedy=remedy), *wanted]


def _store_only(lacks: Sequence[Finding], where: str) -> list[Finding]:
    """What is to be said where the store alone is laid, and no trigger asks for capture."""
    text = "what applications record is stored here; no trigger of this database asks for row changes to be captured"
    remedy = "run `afterwrite install --table TABLE` if they are to be; else nothing is missing"
    note = Finding(rule="store-only", severity=Severity.INFO, where=where, text=text, remedy=remedy)
    return [note, *_wanted(lacks)]


def _wanted(lacks: Sequence[Finding]) -> list[Finding]:
    """What capture would need and has not, where it is off."""
    return [
        msgspec.structs.replace(finding, severity=Severity.INFO, text=f"row changes would need this: {finding.text}")
        for finding in lacks
        if finding.severity is Severity.ERROR and finding.rule != "nothing-to-capture"
    ]


def _note(rule: str, where: str, text: str, command: str) -> Finding:
    return Finding(rule=rule, severity=Severity.INFO, where=where, text=text, remedy=f"run `{command}`")
