"""What the catalog says of a database's triggers: read only, as it is, nothing judged yet."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Timing(StrEnum):
    BEFORE = "before"
    AFTER = "after"
    INSTEAD = "instead of"


class TriggerLevel(StrEnum):
    ROW = "row"
    STATEMENT = "statement"


class Event(StrEnum):
    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"


class Enabled(StrEnum):
    """pg_trigger.tgenabled in words: origin is the default, replica and always depend on session_replication_role."""

    ORIGIN = "O"
    DISABLED = "D"
    REPLICA = "R"
    ALWAYS = "A"


class Trigger(msgspec.Struct, frozen=True, kw_only=True):
    """A user trigger and the function it calls.

    ``source`` is the function's body (pg_proc.prosrc), ``definition`` its whole CREATE FUNCTION, ``create`` the whole
    CREATE TRIGGER. ``config`` is the function's SET clauses (``search_path=…``). ``when`` is SQL over rows ``old`` and
    ``new``. ``columns`` is the list of UPDATE OF.
    """

    oid: int
    schema: str
    table: str
    table_oid: int
    name: str
    timing: Timing
    level: TriggerLevel
    events: tuple[Event, ...]
    columns: tuple[str, ...] = ()
    when: str | None = None
    arguments: tuple[str, ...] = ()
    enabled: Enabled = Enabled.ORIGIN
    constraint: bool = False
    deferrable: bool = False
    initially_deferred: bool = False
    old_table: str | None = None
    new_table: str | None = None
    parent_oid: int | None = None
    extension: str | None = None
    comment: str | None = None
    create: str
    function_oid: int
    function_schema: str
    function: str
    language: str
    source: str
    definition: str
    security_definer: bool = False
    config: tuple[str, ...] = ()
    function_owner: str

    @property
    def identity(self) -> str:
        """``schema.table.trigger`` for people and as a key in the plan and the ledger."""
        return f"{self.schema}.{self.table}.{self.name}"
