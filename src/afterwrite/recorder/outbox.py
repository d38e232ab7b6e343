"""Events in a transaction whose WAL nobody reads: by which way they go, and what is sent. Pure, but for what it knows.

::

    emit(conn, event) ──▶ known? ── no ──▶ ask the server, once in a while
                            ├ message ──▶ logical message: capture reads it with the transaction's rows
                            ├ outbox  ──▶ afterwrite_outbox.post(…): a row of the same transaction
                            └ nowhere ──▶ the spool, and a warning: nobody would ever see it, or it may not be sent

Only the server knows: whether its WAL is logical, whether a slot of ours reads this database, whether there is an
outbox that this role may post to. That holds for all connections to it, so that one of them asks, and not each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable
from enum import Enum

import msgspec

from afterwrite.context import Context, encode_context
from afterwrite.record import OUTBOX_KNOWN_SECONDS, OUTBOX_PREFIX, Emitted, Posted
from afterwrite.recorder.options import EventsBy
from afterwrite.recorder.stamp import MAY, WRITABLE, literal, private, to_ascii
from afterwrite.seal import seal

log = logging.getLogger(__name__)

_MOST_KNOWN = 1_000


class Way(Enum):
    """How an event in a transaction gets to the store."""

    MESSAGE = "message"
    OUTBOX = "outbox"
    NOWHERE = "nowhere"
    DENIED = "denied"


class Known:
    """Which way events go, by server; a server is whatever its driver can tell it by.

    An answer holds for a while: an outbox that was just installed is not used until then.
    """

    def __init__(self) -> None:
        self._ways: dict[Hashable, tuple[Way, float]] = {}
        self._told: set[Hashable] = set()

    def find(self, place: Hashable) -> Way | None:
        """The way, None where the server has to be asked."""
        found = self._ways.get(place)
        return None if found is None or found[1] < time.monotonic() else found[0]

    def note(self, place: Hashable, answer: str) -> Way:
        """Take the server's answer."""
        way = Way(answer)
        if len(self._ways) >= _MOST_KNOWN:
            self._ways.clear()
        self._ways[place] = way, time.monotonic() + OUTBOX_KNOWN_SECONDS
        if way in _WITHOUT and place not in self._told:
            self._told = {*self._told, place} if len(self._told) < _MOST_KNOWN else {place}
            found, remedy = _WITHOUT[way]
            log.warning(
                "%s: events in transactions go to the spool, whatever becomes of their transaction; %s", found, remedy
            )
        return way

    def forget(self) -> None:
        """Ask again."""
        self._ways.clear()


_WITHOUT = {
    Way.NOWHERE: (
        "nobody reads this database's WAL, and it has no outbox that its role may post to",
        "run `afterwrite install` to capture it, or `afterwrite outbox install`",
    ),
    Way.DENIED: (
        "this role may not write logical messages, and has no outbox that it may post to",
        "grant it EXECUTE ON FUNCTION pg_logical_emit_message, or run `afterwrite outbox install`",
    ),
}
known = Known()


_HERE = (
    "exists (select from pg_catalog.pg_replication_slots s where s.plugin = 'pgoutput' and not s.temporary"
    " and s.database = pg_catalog.current_database() and s.wal_status is distinct from 'lost'{named})"
)
_LOGICAL = "pg_catalog.current_setting('wal_level') = 'logical'"
# A name in a schema that may not be used is an error, and not just unknown. An outbox that is about to go says so in
# its comment; whoever knows of it goes on posting for a while.
_OPEN = (
    "case when pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace('afterwrite_outbox'), 'usage')"
    " and pg_catalog.obj_description(pg_catalog.to_regnamespace('afterwrite_outbox')::oid, 'pg_namespace')"
    " is distinct from 'closing' then"
    " pg_catalog.has_function_privilege(pg_catalog.to_regprocedure('afterwrite_outbox.post(text)'), 'execute') end"
)


def ask_sql(by: EventsBy, slot: str) -> str:
    """What to ask the server: one row with the value of a ``Way``.

    Our slot first, known by its name: then events come with the rows that they explain. Then the outbox, which somebody
    installed here for them. A slot of any other name last: it may be ours, or another program's.
    """
    if by is EventsBy.MESSAGE:
        return f"select case when {MAY} then 'message' else 'denied' end"
    whens = [f"when {_OPEN} then 'outbox'"]
    if by is EventsBy.AUTO:
        ours = _HERE.format(named=f" and s.slot_name = {literal(slot)}")
        whens.insert(0, f"when {_LOGICAL} and {MAY} and {ours} then 'message'")
        whens.append(
            f"when {_LOGICAL} and {_HERE.format(named='')} then case when {MAY} then 'message' else 'denied' end"
        )
    return f"select case {' '.join(whens)} else 'nowhere' end"


def outbox_payload(emitted: Emitted, context: Context, key: str | None = None) -> str:
    """What a row of the outbox says: the event and who it was, sealed where there is a key; in ASCII."""
    said = Posted(
        event=msgspec.Raw(msgspec.json.encode(emitted)), context=msgspec.Raw(encode_context(private(context)).encode())
    )
    return seal(OUTBOX_PREFIX, to_ascii(msgspec.json.encode(said).decode()), key)


def post_sql(payload: str) -> str:
    """The statement that posts it, for any driver and protocol.

    No row comes back, and nothing was written, where the transaction is read-only.
    """
    return f"select afterwrite_outbox.post({literal(payload)}::text) where {WRITABLE}"


# The same for drivers that keep statements by their text and bind values.
BOUND_POST_SQL = f"select afterwrite_outbox.post(cast(:payload as text)) where {WRITABLE}"
