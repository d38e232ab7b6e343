"""A whole migration as files, for teams that run SQL through their own pipeline or a hosted editor.

::

    0-optimise.sql  phase-1.sql … phase-N.sql  remove.sql        forward, in this order, each behind the gates it names
    rollback.sql  rollback-removed.sql  backup.sql               back: from silenced, from removed, and by hand

Every file is what ``--apply`` would run, in the same transactions, with the same ledger rows and marks: what was begun
by hand can be looked at, gone on with and rolled back by the commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from afterwrite.migrate.backup import TriggerBackup, render_sql
from afterwrite.migrate.deeds import Deed, render
from afterwrite.migrate.engine import Migrator, PhaseRun
from afterwrite.migrate.ledger import next_id, read_active, read_silenced
from afterwrite.migrate.phase import Gate, Mode
from afterwrite.migrate.plan import Phase, PlannedTrigger
from afterwrite.migrate.rehearse import read_backups
from afterwrite.migrate.steps import remake_statements, remove_statements, restore_statements
from afterwrite.postgres import LockPolicy
from afterwrite.scan.catalog import Enabled

_BY_HAND = """\
-- Run it as the tables' owner, statement by statement or as a whole (psql -v ON_ERROR_STOP=1 -f, or an SQL editor). A
-- transaction that is not granted its locks in time ends with an error and has done nothing: run it again.
"""


class Scripts(msgspec.Struct, frozen=True, kw_only=True):
    """The files by name, and how the gates of each phase stood when they were written."""

    files: Mapping[str, str]
    gates: Mapping[int, tuple[Gate, ...]]


async def write_scripts(migrator: Migrator, optimise: str) -> Scripts:
    """All files of the plan, from what the database is now. Reads only; raises Drift and Refused as a dry run does."""
    phases = [phase for phase in migrator.plan.phases if phase.triggers]
    runs = [await migrator.show(phase) for phase in phases]
    backups = {backup.identity: backup for backup in await read_backups(migrator.db, migrator.plan)}
    active = await read_active(migrator.db)
    migration = active.id if active else await next_id(migrator.db)
    gone = {identity for identity, each in (await read_silenced(migrator.db)).items() if each.removed_at is not None}
    files = {"0-optimise.sql": optimise}
    for run in runs:
        files[f"phase-{run.number}.sql"] = phase_script(run)
    back = list(_moving(phases, backups, left={identity for run in runs for identity in run.left}))
    files["remove.sql"] = _script(
        "Drop what is silenced, after each phase's soak. Leave out the phases that have not soaked.",
        [
            _deed(part, [remove_statements(migration, part.phase, t.moves_as, _off(b)) for t, b in part.triggers])
            for part in back
            if not any(planned.trigger in gone for planned, _ in part.triggers)
        ],
        migrator.policy,
    )
    files["rollback.sql"] = _script(
        "Turn on again what is silenced (for what was removed: rollback-removed.sql). Newest phase first; leave out\n"
        "-- the phases that are to stay. Afterwards `afterwrite migrate rollback --all --apply` fills the legacy log\n"
        "-- for the time in between, sets the replica identities back and ends the migration.",
        [
            _deed(part, [_restore(migration, part.phase, t.moves_as, b) for t, b in part.triggers])
            for part in back[::-1]
        ],
        migrator.policy,
    )
    files["rollback-removed.sql"] = _script(
        "Make again what was removed, as it was. Functions that were dropped, too, are in backup.sql. Afterwards\n"
        "-- `afterwrite migrate rollback --all --apply` fills the legacy log for the time in between.",
        [_deed(part, [_remake(migration, part.phase, t.moves_as, b) for t, b in part.triggers]) for part in back[::-1]],
        migrator.policy,
    )
    files["backup.sql"] = (
        "-- Every trigger of the plan and its function, as they were. It needs nothing of afterwrite's, and tells the\n"
        "-- ledger nothing: it is for the day when afterwrite itself is gone.\n\n" + render_sql(*backups.values())
    )
    return Scripts(files=files, gates={run.number: run.gates for run in runs})


def phase_script(run: PhaseRun) -> str:
    """The script of one phase, with the gates as they stood when it was written."""
    gates = "".join(f"--   [{'x' if gate.met else ' '}] {_comment(str(gate))}\n" for gate in run.gates)
    what = f"Silence phase {run.number}: {_comment(run.title)}. Watch it for its soak: `afterwrite migrate status`."
    head = "-- Gates as they stood when this was written (no gate is asked when you run it):\n"
    return f"-- {what}\n{_BY_HAND}--\n{head}{gates}\n{run.sql}"


def _comment(text: str) -> str:
    return " ".join(text.split())


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """The triggers of one table in one phase."""

    phase: int
    relation: str
    triggers: Sequence[tuple[PlannedTrigger, TriggerBackup]]


def _moving(phases: Iterable[Phase], backups: Mapping[str, TriggerBackup], left: set[str]) -> Iterable[_Part]:
    for phase in phases:
        tables: dict[str, list[tuple[PlannedTrigger, TriggerBackup]]] = {}
        for planned in phase.triggers:
            if planned.trigger not in left:
                backup = backups[planned.trigger]
                tables.setdefault(backup.relation, []).append((planned, backup))
        for relation, triggers in tables.items():
            yield _Part(phase=phase.number, relation=relation, triggers=triggers)


def _deed(part: _Part, statements: Iterable[Sequence[str]]) -> Deed:
    names = ", ".join(backup.trigger for _, backup in part.triggers)
    return Deed(
        title=f"phase {part.phase}, {part.relation}: {names}",
        relations=(part.relation,),
        statements=tuple(text for each in statements for text in each),
    )


def _off(backup: TriggerBackup) -> TriggerBackup:
    clones = [msgspec.structs.replace(clone, enabled=Enabled.DISABLED) for clone in backup.clones]
    return msgspec.structs.replace(backup, enabled=Enabled.DISABLED, clones=clones)


def _restore(migration: int, phase: int, mode: Mode, backup: TriggerBackup) -> list[str]:
    return restore_statements(migration, phase, mode, backup, _off(backup))


def _remake(migration: int, phase: int, mode: Mode, backup: TriggerBackup) -> list[str]:
    tables = {backup.table_oid: backup.relation} | {clone.table_oid: clone.relation for clone in backup.clones}
    return remake_statements(migration, phase, mode, backup, tables)


def _script(what: str, deeds: Sequence[Deed], policy: LockPolicy) -> str:
    return f"-- {what}\n{_BY_HAND}\n{render(deeds, policy)}"
