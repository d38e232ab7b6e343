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


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What must be there for a trigger to move.

    ``replica_identity_full``: its body looks at OLD columns outside the primary key (``old_columns``). ``context``: it
    asks who is writing, through ``settings`` or through ``session`` (what only the writer's session knows).
    ``lookups`` are other tables that it reads, as they are at that moment.
    """

    replica_identity_full: bool = False
    old_columns: tuple[str, ...] = ()
    context: bool = False
    settings: tuple[str, ...] = ()
    session: tuple[str, ...] = ()
    lookups: tuple[str, ...] = ()


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger's verdict. ``reasons`` come deciding ones first; ``notes`` are worth knowing and decide nothing.

    ``log_tables`` are the logs that it appends to, ``effects`` the other tables that it writes, ``channels`` the SQL of
    the channels that it notifies.
    """

    trigger: Trigger
    verdict: Verdict
    reasons: tuple[Reason, ...]
    notes: tuple[Reason, ...] = ()
    log_tables: tuple[str, ...] = ()
    effects: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    needs: Needs = Needs()
