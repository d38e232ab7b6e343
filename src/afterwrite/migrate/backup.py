"""What a trigger was before it was touched, and proof that everything is again as it was.

::

    pg_trigger, pg_proc ──afterwrite.trigger_backup()──▶ TriggerBackup ──▶ a row of the ledger, with the deed
                                                             └─render_sql──▶ a script that makes it again by hand
"""

from __future__ import annotations

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


class CloneBackup(msgspec.Struct, frozen=True):
    """The trigger's clone on a partition (at any depth), which has an enabled state of its own."""

    relation: str
    oid: int
    enabled: Enabled
    comment: str | None


class TriggerBackup(msgspec.Struct, frozen=True):
    """Everything that makes a trigger what it is. All names are quoted and qualified; ``parent`` is a clone's root."""

    schema: str
    table: str
    trigger: str
    oid: int
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

    Clones are known again by oid, else by the name of their table (a trigger that was made again has other oids). A
    partition made since gets the root's state, as it would have had.
    """
    by_oid = {clone.oid: clone.enabled for clone in backup.clones}
    by_name = {clone.relation: clone.enabled for clone in backup.clones}
    return {now.relation: backup.enabled} | {
        clone.relation: by_oid.get(clone.oid, by_name.get(clone.relation, backup.enabled)) for clone in now.clones
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


def render_sql(backup: TriggerBackup) -> str:
    """A script that makes the function and the trigger again as they were, for psql or an SQL editor."""
    lines = [f"-- {backup.identity} and its function {backup.function.signature}, as they were"]
    if backup.function.definition:
        lines += _render_function(backup.function)
    name = quoted(backup.trigger)
    lines.append(f"drop trigger if exists {name} on {backup.relation};")
    lines.append(f"{backup.create};")
    lines += [f"{text};" for text in restore_states(backup, backup)]
    lines.append(f"comment on trigger {name} on {backup.relation} is {literal(backup.comment)};")
    lines += [
        f"comment on trigger {name} on {clone.relation} is {literal(clone.comment)};"
        for clone in backup.clones
        if clone.comment is not None
    ]
    return "\n".join(lines) + "\n"


def _render_function(function: FunctionBackup) -> list[str]:
    lines = [
        f"{function.definition.rstrip()};",
        f"alter function {function.signature} owner to {quoted(function.owner)};",
    ]
    if function.grants is not None:
        lines.append(f"revoke all on function {function.signature} from public;")
        for grant in function.grants:
            to = "public" if grant.grantee is None else quoted(grant.grantee)
            option = " with grant option" if grant.grantable and grant.grantee != function.owner else ""
            lines.append(f"grant execute on function {function.signature} to {to}{option};")
    lines.append(f"comment on function {function.signature} is {literal(function.comment)};")
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
