"""What a trigger was before it was touched, and proof that everything is again as it was.

::

    pg_trigger, pg_proc ──afterwrite.trigger_backup()──▶ TriggerBackup ──▶ a row of the ledger, with the deed
                                                             └─render_sql──▶ a script that makes it again by hand
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from psycopg import sql

from afterwrite.errors import AfterwriteError
from afterwrite.postgres import Database, quoted, statement
from afterwrite.scan.catalog import Enabled


class Grant(msgspec.Struct, frozen=True):
    """EXECUTE on the function, as pg_proc.proacl has it; ``grantee`` None is PUBLIC."""

    grantee: str | None
    grantable: bool


class FunctionBackup(msgspec.Struct, frozen=True):
    """The trigger's function. ``grants`` is None where proacl is null: the owner's and PUBLIC's by default.

    ``definition`` is empty for a function of the server's own, which nobody needs to make again.
    """

    signature: str
    oid: int
    definition: str
    owner: str
    language: str
    acl: list[str] | None
    grants: list[Grant] | None
    config: list[str] | None
    comment: str | None

    @property
    def granted(self) -> frozenset[tuple[str | None, bool]]:
        """Who may run it, in no order; no grants at all are the default ones."""
        if self.grants is None:
            return frozenset({(None, False), (self.owner, False)})
        return frozenset((grant.grantee, grant.grantable) for grant in self.grants)


class CloneBackup(msgspec.Struct, frozen=True):
    """The trigger's clone on a partition (at any depth), which has an enabled state of its own."""

    relation: str
    oid: int
    table_oid: int
    enabled: Enabled
    comment: str | None


class TriggerBackup(msgspec.Struct, frozen=True):
    """Everything that makes a trigger what it is. All names are quoted and qualified; ``parent`` is a clone's root."""

    schema: str
    table: str
    trigger: str
    oid: int
    table_oid: int
    relation: str
    table_kind: str
    table_owner: str
    create: str
    enabled: Enabled
    comment: str | None
    constraint: bool
    deferrable: bool
    initially_deferred: bool
    parent: str | None
    clones: list[CloneBackup]
    function: FunctionBackup

    @property
    def identity(self) -> str:
        """``schema.table.trigger``, as in the plan and the ledger."""
        return f"{self.schema}.{self.table}.{self.trigger}"

    @property
    def states(self) -> dict[str, Enabled]:
        """The enabled state by table, the trigger's own table first."""
        return {self.relation: self.enabled} | {clone.relation: clone.enabled for clone in self.clones}


_decoder = msgspec.json.Decoder(TriggerBackup)


def decode_backup(text: str | bytes) -> TriggerBackup:
    """A backup as the ledger keeps it; raises AfterwriteError when it is not one."""
    try:
        return _decoder.decode(text)
    except msgspec.DecodeError as error:
        raise AfterwriteError(f"a backup in afterwrite.ledger cannot be read: {error}") from error


async def read_backup(db: Database, relation: str, trigger: str) -> TriggerBackup | None:
    """The trigger as it is now (``relation`` quoted and qualified), or None when there is no such trigger."""
    text = await db.value(statement("migrate.read_backup"), relation=relation, trigger=trigger)
    return None if text is None else decode_backup(text)


async def read_function(db: Database, signature: str) -> FunctionBackup | None:
    """The function of this signature as it is now, or None when there is none."""
    text = await db.value(statement("migrate.read_function_backup"), signature=signature)
    return None if text is None else msgspec.json.decode(text, type=FunctionBackup)


class _Relation(msgspec.Struct, frozen=True):
    oid: int
    relation: str


async def read_relations(db: Database, tables: Iterable[int]) -> dict[int, str]:
    """What these tables and all partitions below them are called now (quoted), by oid, without those that are gone."""
    rows = await db.rows(_Relation, statement("migrate.read_relations"), oids=list(dict.fromkeys(tables)))
    return {row.oid: row.relation for row in rows}


def set_state(relation: str, trigger: str, state: Enabled, *, only: bool) -> str:
    """The statement that gives a trigger this enabled state, by its name; without ``only`` its clones follow."""
    match state:
        case Enabled.ORIGIN:
            verb = "enable trigger"
        case Enabled.DISABLED:
            verb = "disable trigger"
        case Enabled.REPLICA:
            verb = "enable replica trigger"
        case Enabled.ALWAYS:
            verb = "enable always trigger"
    return f"alter table {'only ' if only else ''}{relation} {verb} {quoted(trigger)}"


def wanted_states(backup: TriggerBackup, now: TriggerBackup) -> dict[str, Enabled]:
    """The state that each table's trigger of ``now`` must have to be as in the backup, root first.

    Clones are known again by the oid of their table, else by its name (in a database that was restored from a dump). A
    partition made since gets the root's state, as it would have had.
    """
    by_oid = {clone.table_oid: clone.enabled for clone in backup.clones}
    by_name = {clone.relation: clone.enabled for clone in backup.clones}
    return {now.relation: backup.enabled} | {
        clone.relation: by_oid.get(clone.table_oid, by_name.get(clone.relation, backup.enabled)) for clone in now.clones
    }


def restore_states(backup: TriggerBackup, now: TriggerBackup) -> list[str]:
    """The statements that give the trigger ``now`` and its clones the states of the backup.

    The root's state goes to all clones first, then those that differed get their own.
    """
    return [set_state(now.relation, now.trigger, backup.enabled, only=False)] + [
        set_state(relation, now.trigger, state, only=True)
        for relation, state in wanted_states(backup, now).items()
        if state is not backup.enabled
    ]


def render_sql(*backups: TriggerBackup) -> str:
    """A script that makes these triggers and their functions again as they were, for psql or an SQL editor."""
    functions = {backup.function.signature: backup.function for backup in backups}
    lines: list[str] = []
    for function in functions.values():
        if texts := make_function(function):
            lines += ["", f"-- {function.signature}", *(f"{text};" for text in texts)]
    for backup in backups:
        lines += [
            "",
            f"-- {backup.identity}",
            f"drop trigger if exists {quoted(backup.trigger)} on {backup.relation};",
            *(f"{text};" for text in make_trigger(backup)),
        ]
    return "\n".join(lines).lstrip() + "\n"


def make_trigger(backup: TriggerBackup, tables: Mapping[int, str] | None = None) -> list[str]:
    """The statements that make a trigger that is not there, with its states and comments.

    ``tables`` are the names that its table and the partitions have now, by oid; those of the backup where it is None.
    """
    tables = tables or {backup.table_oid: backup.relation} | {c.table_oid: c.relation for c in backup.clones}
    relation = tables.get(backup.table_oid, backup.relation)
    name = quoted(backup.trigger)
    lines = [backup.create.replace(f" ON {backup.relation} ", f" ON {relation} ", 1)]
    if backup.enabled is not Enabled.ORIGIN:
        lines.append(set_state(relation, backup.trigger, backup.enabled, only=False))
    clones = [clone for clone in backup.clones if clone.table_oid in tables]
    lines += [
        set_state(tables[clone.table_oid], backup.trigger, clone.enabled, only=True)
        for clone in clones
        if clone.enabled is not backup.enabled
    ]
    if backup.comment is not None:
        lines.append(f"comment on trigger {name} on {relation} is {literal(backup.comment)}")
    lines += [
        f"comment on trigger {name} on {tables[clone.table_oid]} is {literal(clone.comment)}"
        for clone in clones
        if clone.comment is not None
    ]
    return lines


# Default privileges, or somebody since, may have given it to others. PUBLIC by its own word: where there are no grants
# at all, it has the right by default. Not a function of ours, since a backup must be good for something without us.
_REVOKE = """\
do $revoke$
declare
    whom text;
begin
    execute pg_catalog.format('revoke all on function %s from public', {function}::regprocedure);
    for whom in
        select distinct pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee))
          from pg_catalog.pg_proc f, pg_catalog.aclexplode(f.proacl) a
         where f.oid = {function}::regprocedure and a.grantee <> all (array[0::oid, f.proowner])
    loop
        execute pg_catalog.format('revoke all on function %s from %s cascade', {function}::regprocedure, whom);
    end loop;
end
$revoke$"""


def make_function(function: FunctionBackup) -> list[str]:
    """What gives a function the backup's definition, owner, grants and comment; nothing for one of the server's own."""
    if not function.definition:
        return []
    signature = function.signature
    lines = [
        function.definition.rstrip(),
        f"alter function {signature} owner to {quoted(function.owner)}",
        _REVOKE.format(function=literal(signature)),
    ]
    if function.grants is None:
        lines.append(f"grant execute on function {signature} to public")
    else:
        kept = [grant for grant in function.grants if grant.grantee != function.owner]
        for grant in kept:
            to = "public" if grant.grantee is None else quoted(grant.grantee)
            option = " with grant option" if grant.grantable else ""
            lines.append(f"grant execute on function {signature} to {to}{option}")
        if len(kept) == len(function.grants):
            lines.append(f"revoke all on function {signature} from {quoted(function.owner)}")
    lines.append(f"comment on function {signature} is {literal(function.comment)}")
    return lines


async def catalog_state(db: Database) -> str:
    """All triggers, functions and table settings outside our own schema, in canonical text.

    Two texts are byte-equal exactly when definitions, enabled states, comments, owners, grants and replica identities
    are. Holds neither oids nor names of objects of ours.
    """
    async with db.transaction():
        await db.run(statement("migrate.qualified_names_only"))
        lines = await db.values(statement("migrate.catalog_state"))
    return "".join(f"{line}\n" for line in lines)


def literal(value: str | int | None) -> str:
    """A value as an SQL literal, for scripts that people read and run by hand."""
    return sql.Literal(value).as_string(None).strip()
