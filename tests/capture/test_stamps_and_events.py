"""What capture makes of stamps and events: ids, causes, signatures, and what is hostile."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest
from capture_rig import capture, setup_of

from afterwrite.capture.tell import Told
from afterwrite.capture.transaction import Message, Stamp, Transaction
from afterwrite.context import Context, encode_context
from afterwrite.record import CONTEXT_PREFIX, EVENT_PREFIX, Activity, Emitted, Kind, Lsn, from_pg_microseconds
from afterwrite.seal import Unsealed, seal, split_keys, unseal

OUTER, INNER = "01890a5d-ac96-774b-bcce-b302099a8057", "01890a5d-ac96-774b-bcce-b302099a8058"
INSERT = "insert into t values (%s)"


def emit(connection: psycopg.Connection, prefix: str, payload: str) -> None:
    connection.execute("select pg_logical_emit_message(true, %s, %s::text)", [prefix, payload])


def told(dsn: str, work: Any, keys: tuple[str, ...] = ()) -> list[Activity]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table t (id int primary key)")
    transactions = capture(dsn, setup_of("t"), work, keys=keys)
    again = Told(transactions, source="main", system_id="7", timeline=1, keys=keys)
    assert list(again) == list(again)
    return list(again)


def only_events(*contents: bytes, keys: tuple[str, ...] = (), stamps: tuple[Stamp, ...] = ()) -> list[Activity]:
    events = [Message(EVENT_PREFIX, content, ordinal) for ordinal, content in enumerate(contents)]
    transaction = Transaction(
        xid=7,
        commit_lsn=Lsn(800),
        end_lsn=Lsn(900),
        committed_at=from_pg_microseconds(10**15),
        context=None,
        changes=(),
        events=events,
        stamps=stamps,
    )
    return list(Told([transaction], source="main", system_id="7", timeline=1, keys=keys))


def metadata(activity: Activity) -> Any:
    return None if activity.metadata is None else json.loads(bytes(activity.metadata))


def test_an_event_keeps_its_id_and_its_changes_point_to_it(dsn: str) -> None:
    """As ``track`` does it: its block is bound as caused by the event, which is emitted at the end."""

    def work(connection: psycopg.Connection) -> None:
        with connection.transaction():
            emit(connection, CONTEXT_PREFIX, encode_context(Context(actor_id="a", caused_by=OUTER)))
            connection.execute(INSERT, [1])
            emit(connection, CONTEXT_PREFIX, encode_context(Context(actor_id="a", caused_by=INNER)))
            connection.execute(INSERT, [2])
            emit(connection, EVENT_PREFIX, f'{{"id":"{INNER}","caused_by":"{OUTER}","category":"a","action":"in.ner"}}')
            emit(connection, CONTEXT_PREFIX, encode_context(Context(actor_id="a", caused_by=OUTER)))
            connection.execute(INSERT, [3])
            emit(connection, EVENT_PREFIX, f'{{"id":"{OUTER}","category":"a","action":"out.er","duration_ms":1.5}}')

    found = {each.entity_id or each.action: each for each in told(dsn, work)}
    assert {name: each.caused_by for name, each in found.items()} == {
        "1": OUTER,
        "2": INNER,
        "in.ner": OUTER,
        "3": OUTER,
        "out.er": None,
    }
    assert (found["in.ner"].id, found["out.er"].id, found["out.er"].duration_ms) == (INNER, OUTER, 1.5)
    assert {each.actor_id for each in found.values()} == {"a"}


def test_without_a_cause_in_the_context_an_event_explains_what_follows_it_by_its_own_id(dsn: str) -> None:
    def work(connection: psycopg.Connection) -> None:
        with connection.transaction():
            connection.execute(INSERT, [1])
            emit(connection, EVENT_PREFIX, f'{{"id":"{OUTER}","category":"a","action":"b.c"}}')
            emit(connection, CONTEXT_PREFIX, '{"actor_id":"late"}')
            connection.execute(INSERT, [2])

    before, event, after = told(dsn, work)
    assert (before.caused_by, event.id, event.caused_by, after.caused_by) == (OUTER, OUTER, None, OUTER)
    assert {before.actor_id, event.actor_id, after.actor_id} == {"late"}


@pytest.mark.parametrize("id", ["no uuid", OUTER.upper(), "01890a5d-ac96-874b-bcce-b302099a8057", "", "a\\u0000b"])
def test_an_id_that_cannot_be_taken_is_told_beside_ours(id: str) -> None:
    (event,) = only_events(f'{{"id":"{id}","category":"a","action":"b.c"}}'.encode())
    assert UUID(event.id).version == 8
    assert metadata(event) == {"told_id": json.loads(f'"{id}"')}


def test_an_event_that_is_no_event_is_kept_as_one_that_says_so() -> None:
    contents = [
        b'{"category":"a"}',
        b'{"v":1,"p":7,"h":""}',
        b'{"v":1,"p":"{}","h":"x"}',
        b'{"v":9,"p":"{}","h":"x"}',
        b'{"category":"a","action":"b","duration_ms":"long"}',
        b'{"category":"a","action":"b","occurred_at":"yesterday"}',
        b"\xff\xfe",
        b"",
    ]
    assert {each.action for each in only_events(*contents)} == {"event.unreadable"}
    assert len(only_events(*contents)) == len(contents)


def test_the_time_that_the_application_told_is_kept_beside_that_of_the_commit() -> None:
    content = b'{"category":"a","action":"b","occurred_at":"2026-01-01T00:00:00Z","metadata":{"n":1}}'
    (event,) = only_events(content)
    assert event.occurred_at == from_pg_microseconds(10**15)
    assert metadata(event) == {"occurred_at": "2026-01-01T00:00:00Z", "n": 1}


def test_only_what_the_key_signed_is_taken_for_the_applications() -> None:
    stamp = encode_context(Context(actor_id="a"))
    sealed = seal(CONTEXT_PREFIX, stamp, "new-key, old-key")
    assert json.loads(sealed)["v"] == 1
    assert unseal(CONTEXT_PREFIX, sealed.encode(), ("other", "new-key")) == Unsealed(stamp.encode(), True)
    assert unseal(CONTEXT_PREFIX, sealed.encode(), ("old-key",)) == Unsealed(stamp.encode(), False)
    assert unseal(EVENT_PREFIX, sealed.encode(), ("new-key",)) == Unsealed(stamp.encode(), False)
    forged = json.dumps({**json.loads(sealed), "p": stamp.replace("a", "b")}, separators=(",", ":"))
    assert unseal(CONTEXT_PREFIX, forged.encode(), ("new-key",)).signed is False
    assert unseal(CONTEXT_PREFIX, stamp.encode(), ("new-key",)) == Unsealed(stamp.encode(), False)
    assert seal(CONTEXT_PREFIX, stamp, None) == seal(CONTEXT_PREFIX, stamp, " , ") == stamp
    assert split_keys(" new , old,") == ("new", "old")


def test_unsigned_stamps_and_events_are_marked_where_a_key_is_wanted(dsn: str) -> None:
    keys = ("a-key-of-ours",)
    event = '{"category":"a","action":"b.c","metadata":{"unsigned":false,"n":1}}'

    def work(connection: psycopg.Connection) -> None:
        with connection.transaction():
            emit(connection, CONTEXT_PREFIX, seal(CONTEXT_PREFIX, '{"actor_id":"signed"}', keys[0]))
            connection.execute(INSERT, [1])
            emit(connection, CONTEXT_PREFIX, '{"actor_id":"unsigned","reason":"why"}')
            connection.execute(INSERT, [2])
            emit(connection, EVENT_PREFIX, event)
            emit(connection, CONTEXT_PREFIX, seal(CONTEXT_PREFIX, '{"actor_id":"signed"}', "a-key-of-theirs"))
            connection.execute(INSERT, [3])
        connection.execute(INSERT, [4])

    found = told(dsn, work, keys)
    assert [each.actor_id for each in found] == ["signed", "unsigned", "unsigned", "signed", None]
    assert [metadata(each) for each in found] == [
        None,
        {"reason": "why", "unsigned": True},
        {"reason": "why", "unsigned": True, "n": 1},
        {"unsigned": True},
        None,
    ]
    (signed,) = only_events(seal(EVENT_PREFIX, event, keys[0]).encode(), keys=keys)
    (unsigned,) = only_events(event.encode(), keys=keys)
    (by_unsigned,) = only_events(
        seal(EVENT_PREFIX, event, keys[0]).encode(), keys=keys, stamps=(Stamp(0, Context(), unsigned=True),)
    )
    assert metadata(signed) == {"unsigned": False, "n": 1}
    assert metadata(unsigned) == metadata(by_unsigned) == {"unsigned": True, "n": 1}
    (listed,) = only_events(b'{"category":"a","action":"b","metadata":[1]}', keys=keys)
    assert metadata(listed) == {"unsigned": True, "metadata": [1]}


def test_a_message_may_be_an_event_of_every_field() -> None:
    emitted = Emitted(category="a", action="b", id=OUTER, duration_ms=2.0, caused_by=INNER, entity_type="x")
    (event,) = only_events(msgspec.json.encode(emitted))
    assert (event.kind, event.id, event.duration_ms, event.caused_by) == (Kind.EVENT, OUTER, 2.0, INNER)
