"""What a trigger needs to move: old values, the writer's context, and where the values of its log come from.

::

    columns of OLD outside the key ─▶ replica identity        settings, roles, session functions ─▶ context
    its INSERT, column by column   ─▶ mapping: from the change, the context, a look-up, or the log itself

Pure. The mapping that proof compares with is inferred by proof itself; this one says beforehand what to expect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from afterwrite.scan.catalog import Event, Table
from afterwrite.scan.facts import Insert
from afterwrite.scan.rules import Case
from afterwrite.scan.tokens import tokens
from afterwrite.scan.verdicts import MappedLog, Needs

_CONTEXT_SESSIONS = frozenset({"current_user", "session_user", "user", "current_role"})
_SESSION_ONLY = frozenset(
    {
        *("inet_client_addr", "inet_client_port", "inet_server_addr", "pg_backend_pid", "current_query"),
        *("txid_current", "pg_current_xact_id", "txid_current_if_assigned", "pg_current_xact_id_if_assigned"),
        *("getpgusername", "statement_timestamp", "currval", "lastval"),
    }
)
_ASKS = re.compile(r"\bcurrent_setting\s*\(|\b(auth\.(uid|jwt|role|email)|txid_current|pg_current_xact_id)\s*\(", re.I)
_LOOKS_UP = re.compile(r"\bselect\b", re.IGNORECASE)
_DEPTH = 4


def needs(case: Case) -> Needs:
    """What must be there for the trigger to move."""
    body, home = case.body, case.home
    key = frozenset(home.primary_key) if home is not None else frozenset[str]()
    old = body.old_columns if {Event.UPDATE, Event.DELETE}.intersection(case.trigger.events) else frozenset[str]()
    settings = _names(fact.name or "?" for fact in body.settings if not fact.written)
    asked = {fact.name for fact in body.sessions}
    lookups = {table.full_name for read in body.reads if (table := case.world.table(read)) is not None}
    return Needs(
        replica_identity_full=bool(old - key),
        old_columns=_names(old - key),
        context=bool(settings) or bool(asked & (_CONTEXT_SESSIONS | _SESSION_ONLY)),
        settings=settings,
        session=_names(asked & (_SESSION_ONLY | _CONTEXT_SESSIONS)),
        lookups=_names(lookups),
        mapping=tuple(dict.fromkeys(_mapped(case, table, write) for table, write in case.appends)),
    )


def _mapped(case: Case, table: Table, write: Insert) -> MappedLog:
    """Where each column of a log gets its value from."""
    given = dict(zip(write.columns, write.values, strict=False))
    change: list[str] = []
    context: list[str] = []
    looked_up: list[str] = []
    itself: list[str] = []
    unknown: list[str] = []
    for column in table.columns:
        value = given.get(column.name)
        if value is None and column.name in write.columns:
            unknown.append(column.name)
        elif value is None or value.strip().lower() == "default":
            default = column.default or ""
            (context if _ASKS.search(default) or _roles(default) else itself).append(column.name)
        else:
            kinds = _origins(case, value)
            place = (
                looked_up
                if "look-up" in kinds
                else context
                if "context" in kinds
                else unknown
                if "unknown" in kinds
                else change
            )
            place.append(column.name)
    return MappedLog(
        table=table.full_name,
        change=tuple(change),
        context=tuple(context),
        looked_up=tuple(looked_up),
        itself=tuple(itself),
        unknown=tuple(unknown),
    )


def _origins(case: Case, value: str, depth: int = 0) -> frozenset[str]:
    """``look-up``, ``context``, ``unknown``; nothing where the change itself gives the value."""
    found: set[str] = set()
    if _LOOKS_UP.search(value):
        found.add("look-up")
    if _ASKS.search(value) or _roles(value):
        found.add("context")
    words = [token.text.lower() for token in tokens(value) if token.kind in ("word", "quoted")]
    for assignment in case.body.assignments:
        variable = assignment.variable
        if variable not in words or depth == _DEPTH or variable in ("new", "old"):
            continue
        if assignment.selected:  # the key of a row that was just inserted is the log's own
            found |= set[str]() if assignment.text.lower().startswith("insert") else {"look-up"}
        else:
            found |= _origins(case, assignment.text, depth + 1)
    called = {call.name for call in case.body.calls if not case.world.atlas.is_builtin(call.schema, call.name)}
    for name in called.intersection(words):
        reads = any(any(f".{name}:" in step for step in read.via) for read in case.body.reads)
        asks = any(any(f".{name}:" in step for step in each.via) for each in (*case.body.settings, *case.body.sessions))
        found |= ({"look-up"} if reads else set[str]()) | ({"context"} if asks else set[str]())
    return frozenset(found)


def _roles(value: str) -> bool:
    words = {token.text.lower() for token in tokens(value) if token.kind == "word"}
    return bool(words & (_CONTEXT_SESSIONS | _SESSION_ONLY))


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))
