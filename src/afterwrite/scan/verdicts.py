"""What scan says of a trigger: a verdict, the rules that led to it, and what moving it would need."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from afterwrite.scan.catalog import Trigger


class Verdict(StrEnum):
    """``keep`` is certain to stay; ``review`` cannot be known; the stricter of two wins, and ``keep`` over all."""

    RETIRE = "retire"
    DEFER = "defer"
    REVIEW = "review"
    KEEP = "keep"


class Reason(msgspec.Struct, frozen=True):
    """A rule that applied: its name, the line of the trigger's own body (None where none decides), and a sentence.

    ``via`` is the way there from that line: ``WHEN``, or ``schema.function:line`` for each function that is called.
    """

    rule: str
    line: int | None
    text: str
    via: tuple[str, ...] = ()


class MappedLog(msgspec.Struct, frozen=True, kw_only=True):
    """Where the columns of a log that it appends to get their values from.

    ``change`` holds those that the WAL gives, ``context`` those that ask who is writing, ``looked_up`` those that are
    read from other tables, ``itself`` what the log fills in (serials, times), ``unknown`` what cannot be laid out.
    """

    table: str
    change: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    looked_up: tuple[str, ...] = ()
    itself: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class Eventual(msgspec.Struct, frozen=True, kw_only=True):
    """A table that would become eventually consistent: ``columns`` where only some do, and who might notice."""

    table: str
    columns: tuple[str, ...] = ()
    noticed_by: tuple[str, ...] = ()


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What must be there for a trigger to move.

    ``replica_identity_full``: its body looks at OLD columns outside the primary key (``old_columns``). ``context``: it
    asks who is writing, through ``settings`` or through ``session`` (what only the writer's session knows).
    ``lookups`` are other tables that it reads, as they are at that moment; ``mapping`` is how its logs' rows are made.
    """

    replica_identity_full: bool = False
    old_columns: tuple[str, ...] = ()
    context: bool = False
    settings: tuple[str, ...] = ()
    session: tuple[str, ...] = ()
    lookups: tuple[str, ...] = ()
    mapping: tuple[MappedLog, ...] = ()


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger's verdict. ``reasons`` come deciding ones first; ``notes`` are worth knowing and decide nothing.

    ``log_tables`` are the logs that it appends to, ``effects`` the other tables that it writes, ``channels`` the SQL of
    the channels that it notifies. ``eventual`` says of each of the effects who might notice that it comes later.
    """

    trigger: Trigger
    verdict: Verdict
    reasons: tuple[Reason, ...]
    notes: tuple[Reason, ...] = ()
    log_tables: tuple[str, ...] = ()
    effects: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    eventual: tuple[Eventual, ...] = ()
    needs: Needs = Needs()
