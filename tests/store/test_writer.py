"""The sink against a real server: what it stores, what it refuses, and what it survives."""

from __future__ import annotations

import asyncio
import base64
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afterwrite.errors import AfterwriteError, ConnectionLost, DatabaseError, Refused
from afterwrite.postgres import connect
from afterwrite.record import (
    Activity,
    Batch,
    Checkpoint,
    Kind,
    Lsn,
    Operation,
    TransactionContext,
    change_id,
)
from afterwrite.store import lines
from afterwrite.store.partitions import partition_name, read_partition_days
from afterwrite.store.reader import (
    StoredActivity,
    read_batch_activities,
    read_batches,
    read_position,
    read_settings,
    verify_feed,
)
from afterwrite.store.writer import PostgresSink, open_sink, read_checkpoint, record_gap

NOW = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)


def an_event(number: int, **fields: object) -> Activity:
    plain = {
        "id": f"0195a000-0000-7000-8000-{number:012}",
        "occurred_at": NOW + timedelta(microseconds=number),
        "source": "app",
        "kind": Kind.EVENT,
        "category": "auth",
        "action": "login",
    }
    return Activity(**plain | fields)


def events(*activities: Activity, source: str = "app") -> Batch:
    return Batch(source=source, activities=activities, transactions=0)


def a_transaction(lsn: int, rows: int = 2, **fields: object) -> list[Activity]:
    at = NOW + timedelta(milliseconds=lsn)
    return [
        Activity(
            id=change_id("71", 1, Lsn(lsn), ordinal, at),
            occurred_at=at,
            source="default",
            kind=Kind.CHANGE,
            category="data",
            action="users.update",
            entity_type="users",
            entity_id=str(ordinal),
            relation="public.users",
            operation=Operation.UPDATE,
            changed=("name",),
            before=msgspec.Raw(b'{"id": 1, "name": "a"}'),
            after=msgspec.Raw(b'{"id": 1, "name": "b"}'),
            xid=lsn,
            commit_lsn=Lsn(lsn),
            ordinal=ordinal,
            **fields,
        )
        for ordinal in range(rows)
    ]


def wal(*lsns: int, checkpoint: int | None = None, system_id: str = "71", **fields: object) -> Batch:
    """A batch of one transaction a LSN, with the checkpoint one byte behind the last (or where it is told)."""
    return Batch(
        source="default",
        activities=[activity for lsn in lsns for activity in a_transaction(lsn, **fields)],
        transactions=len(lsns),
        first_lsn=Lsn(lsns[0]) if lsns else None,
        last_lsn=Lsn(lsns[-1]) if lsns else None,
        checkpoint=Checkpoint(
            source="default",
            slot="afterwrite",
            system_id=system_id,
            timeline=1,
            lsn=Lsn(checkpoint if checkpoint is not None else lsns[-1] + 1),
        ),
    )


async def everything(dsn: str) -> list[StoredActivity]:
    async with connect(dsn) as db:
        return await read_batch_activities(db, await read_batches(db, limit=1_000_000))


async def assert_sound(dsn: str, rows: int) -> None:
    """The feed is gapless and sealed, and the table holds these many rows and no other."""
    async with connect(dsn) as db:
        report = await verify_feed(db)
        assert report.first_break is None
        assert report.rows == rows == await db.value(b"select count(*) from afterwrite.activity")
        assert report.position == report.batches == await read_position(db)


def test_a_batch_its_rows_and_its_checkpoint_are_stored_together(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            assert await sink.read_checkpoint("default") is None
            first = await sink.write(wal(100, 200))
            second = await sink.write(wal(300))
            assert (first.position, first.stored, second.position, second.stored) == (1, 4, 2, 2)
            checkpoint = await sink.read_checkpoint("default")
            assert checkpoint == wal(300).checkpoint
        async with connect(installed_dsn) as db:
            batch, _ = await read_batches(db)
            assert (batch.id, batch.first_lsn, batch.last_lsn) == (first.batch_id, Lsn(100), Lsn(200))
            assert (batch.transactions, batch.rows, batch.rows_per_table) == (2, 4, {"public.users": 4})
        stored = await everything(installed_dsn)
        assert [(a.position, a.commit_lsn, a.ordinal) for a in stored] == [
            (1, 100, 0),
            (1, 100, 1),
            (1, 200, 0),
            (1, 200, 1),
            (2, 300, 0),
            (2, 300, 1),
        ]
        await assert_sound(installed_dsn, 6)

    asyncio.run(scenario())


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30) | st.sampled_from(
    ["", "\\N", "\\.", "\\", "\t\r\n", "NULL", "null", '"', "{}", "é😀\U0010ffff", "'; --", "\x7f\x1f", " "]
)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
json_object = st.none() | st.dictionaries(text, json_value, max_size=4).map(
    lambda value: msgspec.Raw(msgspec.json.format(msgspec.json.encode(value), indent=1))
)
maybe_text = st.none() | text
interface = st.builds(
    "{}/{}".format, st.ip_addresses(v=6) | st.sampled_from(["::ffff:1.2.3.4", "::1.2.3.4", "::"]), st.integers(0, 128)
) | st.builds("{}/{}".format, st.ip_addresses(v=4), st.integers(0, 32))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "category": text,
                "action": text,
                "entity_type": maybe_text,
                "entity_id": maybe_text,
                "actor_id": maybe_text,
                "tenant_id": maybe_text,
                "session_id": maybe_text,
                "user_agent": maybe_text,
                "summary": maybe_text,
                "duration_ms": st.none() | st.floats(allow_nan=False) | st.sampled_from([1e15, 1e16, 1e23, -0.0, 2e-5]),
                "trace_id": maybe_text,
                "relation": maybe_text,
                "changed": st.none() | st.lists(text, max_size=3).map(tuple),
                "ip": st.none() | st.ip_addresses().map(str) | interface,
                "xid": st.none() | st.integers(0, 2**63 - 1),
                "commit_lsn": st.none() | st.integers(0, 2**64 - 1).map(Lsn),
                "ordinal": st.none() | st.integers(0, 2**31 - 1),
                "caused_by": st.none() | st.uuids().map(str),
                "after": json_object,
                "metadata": json_object,
                "occurred_at": st.datetimes(NOW.replace(tzinfo=None), timezones=st.just(UTC))
                | st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
            }
        ),
        min_size=1,
        max_size=8,
    )
)
def test_whatever_an_activity_says_comes_back_as_the_server_itself_would_keep_it(
    installed_dsn: str, said: list[dict[str, object]]
) -> None:
    activities = [an_event(number, **fields) for number, fields in enumerate(said)]

    async def scenario() -> None:
        async with connect(installed_dsn) as db:
            await db.script(
                "truncate afterwrite.activity, afterwrite.batch cascade; update afterwrite.feed set position = 0"
            )
            async with open_sink(installed_dsn) as sink:
                receipt = await sink.write(events(*activities))
            assert receipt.stored == len(activities)
            found = {activity.id: activity for activity in await everything(installed_dsn)}
            for wanted in activities:
                stored = found[wanted.id]
                for name in ("occurred_at", "category", "action", "entity_type", "entity_id", "actor_id", "tenant_id"):
                    assert getattr(stored, name) == getattr(wanted, name), name
                for name in ("session_id", "user_agent", "summary", "duration_ms", "changed", "caused_by", "xid"):
                    assert getattr(stored, name) == getattr(wanted, name), name
                for name in ("after", "metadata"):
                    value = getattr(wanted, name)
                    assert getattr(stored, name) == (None if value is None else bytes(value).decode()), name
                assert stored.ip == await db.value(b"select abbrev(%(value)s::inet)", value=wanted.ip)
            await db.run(b"select before::jsonb, after::jsonb, metadata::jsonb from afterwrite.activity")
            assert (await verify_feed(db)).first_break is None

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("fields", "column"),
    [
        ({"after": msgspec.Raw(b'{"n": 1e200000}')}, "after"),
        ({"after": msgspec.Raw(b'{"not": json}')}, "after"),
        ({"metadata": msgspec.Raw(b"{")}, "metadata"),
        # What json takes, and jsonb does not.
        ({"metadata": msgspec.Raw(b'{"n": [1e-16384]}')}, "metadata"),
        ({"after": msgspec.Raw(b'{"a":' + b"[" * 5_001 + b"]" * 5_001 + b"}")}, "after"),
        ({"before": msgspec.Raw(b'{"a": "\\udead"}')}, "before"),
        ({"after": msgspec.Raw(b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}")}, "after"),
        ({"after": msgspec.Raw(b'{"a": "\xff"}')}, "after"),
        ({"after": msgspec.Raw(b'{"a": "x\\u0000"}')}, "after"),
        ({"entity_id": "".join(chr(0x4E00 + n * 7 % 9_000) for n in range(4_000))}, "entity_id"),
        ({"tenant_id": "".join(chr(0x4E00 + n * 7 % 9_000) for n in range(4_000))}, "tenant_id"),
    ],
)
def test_a_value_that_the_server_refuses_does_not_poison_its_batch(
    installed_dsn: str, fields: dict[str, object], column: str
) -> None:
    async def scenario() -> None:
        before = [an_event(number, summary="before") for number in range(20)]
        after = [an_event(number, summary="after") for number in range(21, 50)]
        odd = an_event(20, **fields)
        async with open_sink(installed_dsn) as sink:
            receipt = await sink.write(events(*before, odd, *after))
            assert receipt.stored == 50
            assert (await sink.write(events(*before, odd, *after))).stored == 0
        stored = {activity.id: activity for activity in await everything(installed_dsn)}
        assert stored[before[0].id].summary == "before"
        kept = stored[odd.id].metadata
        assert kept is not None
        original = base64.b64decode(msgspec.json.decode(kept)["exact"][column])
        value = fields[column]
        assert original == (bytes(value) if isinstance(value, msgspec.Raw) else str(value).encode())
        await assert_sound(installed_dsn, 50)

    asyncio.run(scenario())


def test_a_batch_without_activities_only_moves_the_checkpoint(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            receipt = await sink.write(wal(checkpoint=500))
            assert (receipt.batch_id, receipt.position, receipt.stored) == (None, None, 0)
            checkpoint = await sink.read_checkpoint("default")
            assert checkpoint
            assert checkpoint.lsn == 500
            await sink.write(Batch(source="default", activities=(), transactions=0))
        await assert_sound(installed_dsn, 0)

    asyncio.run(scenario())


def test_a_replay_stores_nothing_twice_whichever_part_is_stored_already(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            await sink.write(wal(100, 200))
            assert (await sink.write(wal(100, 200))).stored == 0
            assert (await sink.write(wal(200, 300))).stored == 2
            assert (await sink.write(wal(400))).stored == 2
        await assert_sound(installed_dsn, 8 - 0)

    asyncio.run(scenario())


def test_rows_of_a_checkpoint_that_was_deleted_are_still_not_stored_twice(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink, connect(installed_dsn) as db:
            await sink.write(wal(100, 200))
            await db.run(b"delete from afterwrite.checkpoint")
            assert (await sink.write(wal(100, 200, 300))).stored == 2
        await assert_sound(installed_dsn, 6)

    asyncio.run(scenario())


def test_an_event_that_is_sent_twice_is_stored_once_even_within_a_batch(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            assert (await sink.write(events(an_event(1), an_event(2), an_event(2)))).stored == 2
            again = await sink.write(events(an_event(2), an_event(3)))
            assert (again.stored, again.position) == (1, 2)
            assert (await sink.write(events(an_event(1), an_event(3)))).position is None
        await assert_sound(installed_dsn, 3)

    asyncio.run(scenario())


def test_a_checkpoint_never_moves_back(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            await sink.write(wal(100, 200))
            for older in (wal(50), wal(checkpoint=150), wal(100)):
                with pytest.raises(Refused, match="another worker") as refusal:
                    await sink.write(older)
                assert refusal.value.remedy
            assert (await sink.read_checkpoint("default") or wal(1).checkpoint) == wal(200).checkpoint
        async with connect(installed_dsn) as db:
            with pytest.raises(DatabaseError, match="may not move back"):
                await db.run(b"update afterwrite.checkpoint set lsn = '0/1'")
        await assert_sound(installed_dsn, 4)

    asyncio.run(scenario())


def test_another_cluster_may_not_go_on_under_the_same_source(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            await sink.write(wal(100))
            with pytest.raises(Refused, match="cluster 71; this is 72"):
                await sink.write(wal(200, system_id="72"))
        await assert_sound(installed_dsn, 2)

    asyncio.run(scenario())


def test_of_two_workers_of_one_source_the_slower_is_refused_and_nothing_is_doubled(installed_dsn: str) -> None:
    async def work(lsns: Sequence[int]) -> int:
        async with open_sink(installed_dsn) as sink:
            for number, lsn in enumerate(lsns):
                try:
                    await sink.write(wal(lsn))
                except Refused:
                    return number
            return len(lsns)

    async def scenario() -> None:
        lsns = range(100, 200)
        done = await asyncio.gather(*(work(lsns) for _ in range(3)))
        assert max(done) == len(lsns)
        await assert_sound(installed_dsn, 200)

    asyncio.run(scenario())


def test_eight_writers_at_once_leave_a_gapless_feed_that_is_seen_in_order(installed_dsn: str) -> None:
    async def write(writer: int) -> None:
        async with open_sink(installed_dsn) as sink:
            for number in range(12):
                first = writer * 10_000 + number * 100
                await sink.write(
                    events(*(an_event(first + row) for row in range(1 + number % 5)), source=f"app{writer % 3}")
                )

    async def follow(seen: list[int], done: asyncio.Event) -> None:
        async with connect(installed_dsn) as db:
            while not done.is_set():
                seen += [batch.position for batch in await read_batches(db, seen[-1] if seen else 0)]
                await asyncio.sleep(0.002)

    async def scenario() -> None:
        seen: list[int] = []
        done = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            follower = group.create_task(follow(seen, done))
            await asyncio.gather(*(write(writer) for writer in range(8)))
            done.set()
            await follower
        async with connect(installed_dsn) as db:
            seen += [batch.position for batch in await read_batches(db, seen[-1] if seen else 0)]
        assert seen == list(range(1, 97))
        await assert_sound(installed_dsn, 8 * (12 * 3 - 3))

    asyncio.run(scenario())


def test_writers_of_the_same_events_in_other_orders_store_each_once(installed_dsn: str) -> None:
    async def write(turn: int) -> None:
        numbers = list(range(40))
        numbers = numbers[turn * 7 :] + numbers[: turn * 7]
        async with open_sink(installed_dsn) as sink:
            for start in range(0, 40, 8):
                await sink.write(events(*(an_event(number) for number in numbers[start : start + 8])))

    async def scenario() -> None:
        await asyncio.gather(*(write(turn) for turn in range(5)))
        await assert_sound(installed_dsn, 40)

    asyncio.run(scenario())


def test_a_backend_killed_in_the_middle_loses_nothing_and_doubles_nothing(installed_dsn: str) -> None:
    async def assassin(victim: str, opened: asyncio.Event, done: asyncio.Event) -> None:
        await opened.wait()
        async with connect(installed_dsn) as db:
            while not done.is_set():
                await db.run(
                    b"select pg_terminate_backend(pid) from pg_stat_activity where application_name = %(name)s",
                    name=victim,
                )
                await asyncio.sleep(0.03)

    async def work(opened: asyncio.Event) -> int:
        lost = 0
        async with open_sink(installed_dsn, application_name="victim") as sink:
            opened.set()
            lsn = 100
            while lsn < 180:
                try:
                    await sink.write(wal(lsn, rows=200))
                except ConnectionLost:
                    lost += 1
                    while True:
                        try:
                            stored = await sink.read_checkpoint("default")
                        except ConnectionLost:
                            continue
                        break
                    lsn = stored.lsn if stored else 100
                    continue
                lsn += 1
        return lost

    async def scenario() -> None:
        opened, done = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(assassin("victim", opened, done))
            lost = await work(opened)
            done.set()
        assert lost > 3
        await assert_sound(installed_dsn, 80 * 200)

    asyncio.run(scenario())


def test_a_cancelled_write_is_whole_or_absent_and_the_sink_goes_on(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            await sink.write(wal(1))
            lsn = 100
            for delay in range(12):
                task = asyncio.create_task(sink.write(wal(lsn, rows=300)))
                await asyncio.sleep(delay / 1000)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                stored = await sink.read_checkpoint("default")
                assert stored
                if stored.lsn <= lsn:
                    await sink.write(wal(lsn, rows=300))
                lsn += 1
        await assert_sound(installed_dsn, 2 + 12 * 300)

    asyncio.run(scenario())


def test_the_settings_that_transactions_stamped_are_kept_once_each(installed_dsn: str) -> None:
    claims = {"request.jwt.claims": '{"sub": "7"}', "app.odd": "a\\b'c\"d"}
    contexts = [TransactionContext(commit_lsn=Lsn(200), xid=200, settings=claims)]

    async def scenario() -> None:
        batch = msgspec.structs.replace(wal(100, 200), contexts=contexts)
        async with open_sink(installed_dsn) as sink:
            receipt = await sink.write(batch)
            await sink.write(batch)
        async with connect(installed_dsn) as db:
            batches = await read_batches(db)
            assert receipt.batch_id
            assert await read_settings(db, batches) == {(receipt.batch_id, Lsn(200)): claims}

    asyncio.run(scenario())


def test_settings_that_look_like_escapes_or_hold_nul_do_not_keep_their_batch_out(installed_dsn: str) -> None:
    # What one writer stamps, and anybody may, must not stop capture for all.
    stamped = {"request.a": r"\u0000", "request.b": "x\0y", "request.c": "\\" * 3 + r"\u0000", "request.\0": "z"}
    contexts = [TransactionContext(commit_lsn=Lsn(200), xid=200, settings=stamped)]

    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            receipt = await sink.write(msgspec.structs.replace(wal(100, 200), contexts=contexts))
        async with connect(installed_dsn) as db:
            assert receipt.batch_id
            assert await read_settings(db, await read_batches(db)) == {
                (receipt.batch_id, Lsn(200)): {
                    name.replace("\0", "␀"): value.replace("\0", "␀") for name, value in stamped.items()
                }
            }

    asyncio.run(scenario())


def test_functions_that_somebody_put_on_the_search_path_are_not_called(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn) as db:
            # Better matches than pg_catalog's own, were public searched: (text, name) and (text, text, boolean).
            await db.script(
                "create function public.convert_to(text, text) returns bytea language plpgsql immutable"
                " as $$ begin raise 'called by %', current_user; end $$;"
                "create function public.set_config(text, text, bool) returns text language plpgsql"
                " as $$ begin raise 'called by %', current_user; end $$;"
            )
            database = db.connection.info.dbname
            await db.script(f'alter database "{database}" set search_path = public, pg_catalog')
        async with open_sink(installed_dsn) as sink:
            await sink.write(wal(100, 200))
        async with connect(installed_dsn) as db:
            assert (await verify_feed(db)).first_break is None

    asyncio.run(scenario())


def test_what_was_set_for_people_does_not_decide_over_the_sink(installed_dsn: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(installed_dsn)["dbname"]

    async def scenario() -> None:
        async with connect(installed_dsn) as db:
            for setting in (
                "synchronous_commit = off",
                "default_transaction_isolation = serializable",
                "default_transaction_read_only = on",
                "statement_timeout = 1",
                "timezone = 'Asia/Tokyo'",
                "datestyle = 'German'",
                "client_encoding = 'latin1'",
            ):
                await db.run(f"alter database {name} set {setting}".encode())
        async with open_sink(installed_dsn) as sink, open_sink(installed_dsn) as other:
            await asyncio.gather(
                *(
                    s.write(events(*(an_event(n + o, summary="日本") for n in range(50))))
                    for o, s in ((0, sink), (100, other))
                )
            )
        async with connect(
            installed_dsn, options={"default_transaction_read_only": "off", "statement_timeout": "0"}
        ) as db:
            assert await db.value(b"select min(occurred_at) from afterwrite.activity") == NOW
            assert await db.value(b"select min(summary) from afterwrite.activity") == "日本"

    asyncio.run(scenario())


def test_commits_are_flushed_even_where_synchronous_commit_is_off(installed_dsn: str) -> None:
    class Spy(PostgresSink):
        async def _make_days(self, db, stretch) -> None:
            await db.run(b"set synchronous_commit to off")
            await db.script(
                """create or replace function afterwrite.spy() returns trigger language plpgsql as $$
                   begin
                       insert into afterwrite.gap (source, from_lsn, reason)
                       values ('spy', '0/1', current_setting('synchronous_commit'));
                       return null;
                   end $$;
                   create trigger spy after insert on afterwrite.batch for each row execute function afterwrite.spy()"""
            )

    async def scenario() -> None:
        sink = Spy(installed_dsn)
        await sink.write(events(an_event(1)))
        await sink.close()
        async with connect(installed_dsn) as db:
            assert await db.value(b"select reason from afterwrite.gap") == "on"

    asyncio.run(scenario())


def test_a_commit_that_would_not_be_flushed_is_refused(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn) as db:
            await db.script(
                """create function afterwrite.hasten() returns trigger language plpgsql as $$
                   begin
                       perform set_config('synchronous_commit', 'off', true);
                       return new;
                   end $$;
                   create trigger hasten before update on afterwrite.checkpoint
                       for each row execute function afterwrite.hasten()"""
            )
        async with open_sink(installed_dsn) as sink:
            await sink.write(wal(100))
            for batch in (wal(200), wal(checkpoint=300)):
                with pytest.raises(DatabaseError, match="synchronous_commit is off") as refusal:
                    await sink.write(batch)
                assert "find what sets it" in (refusal.value.remedy or "")
            assert await sink.read_checkpoint("default") == wal(100).checkpoint
        await assert_sound(installed_dsn, 2)

    asyncio.run(scenario())


class Read:
    """Activities made anew each time they are asked for, as those that are read from disk."""

    def __init__(self, make: Callable[[], Iterator[Activity]], rows: int) -> None:
        self._make = make
        self._rows = rows

    def __iter__(self) -> Iterator[Activity]:
        return self._make()

    def __len__(self) -> int:
        return self._rows


def long_transaction(lsn: int, rows: int, odd: Mapping[int, Mapping[str, object]] | None = None) -> Batch:
    odd = odd or {}
    (pattern,) = a_transaction(lsn, 1)

    def make() -> Iterator[Activity]:
        for ordinal in range(rows):
            yield msgspec.structs.replace(
                pattern,
                id=change_id("71", 1, Lsn(lsn), ordinal, pattern.occurred_at),
                ordinal=ordinal,
                **{"entity_id": str(ordinal)} | odd.get(ordinal, {}),
            )

    moments = frozenset({pattern.occurred_at})
    return msgspec.structs.replace(wal(lsn), activities=Read(make, rows), moments=moments)


def test_a_batch_that_is_read_as_it_is_stored_is_never_held(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            await sink.write(wal(100))
            tracemalloc.start()
            receipt = await sink.write(long_transaction(200, 20_000))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert receipt.stored == 20_000
        assert peak < 8 * 1024 * 1024
        await assert_sound(installed_dsn, 20_002)

    asyncio.run(scenario())


def test_poison_in_a_batch_that_is_read_as_it_is_stored_is_found_and_mended(
    installed_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_DOUBTED_BYTES", 5_000)
    long = "".join(chr(0x4E00 + n * 7 % 9_000) for n in range(4_000))
    odd = {
        1_500: {"entity_id": long},
        2_400: {"after": msgspec.Raw(b"{")},
        2_401: {"after": msgspec.Raw(b'{"long": "' + b"x" * 5_000 + b'"}')},
    }

    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            await sink.write(wal(100))
            batch = long_transaction(200, 3_000, odd)
            assert (await sink.write(batch)).stored == 3_000
        async with connect(installed_dsn) as db:
            exact = await db.values(
                b"select ordinal || ' ' || json_object_keys(metadata -> 'exact') from afterwrite.activity"
                b" where metadata is not null order by 1"
            )
            assert exact == ["1500 entity_id", "2400 after"]
            # What only the server could judge, and took, is there as it was.
            doubted: str = await db.value(
                b"select after::jsonb ->> 'long' from afterwrite.activity where ordinal = 2401"
            )
            assert doubted == "x" * 5_000
        await assert_sound(installed_dsn, 3_002)

    asyncio.run(scenario())


def test_rows_that_come_in_another_order_than_the_seals_are_sealed_all_the_same(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            await sink.write(wal(100))
            listed = list(wal(200, 300, 400).activities)
            backwards = msgspec.structs.replace(wal(200, 300, 400), activities=listed[::-1])
            assert (await sink.write(backwards)).stored == 6
            listed = list(wal(500, 600).activities)
            read = msgspec.structs.replace(wal(500, 600), activities=Read(lambda: iter(listed[::-1]), 4))
            assert (await sink.write(read)).stored == 4
            shouted = an_event(7, id="0195A000-0000-7000-8000-00000000000B")
            assert (await sink.write(events(an_event(9), shouted, an_event(8)))).stored == 3
        await assert_sound(installed_dsn, 15)

    asyncio.run(scenario())


@pytest.mark.parametrize("dropped", [True, False])
def test_a_partition_that_was_detached_meanwhile_does_not_swallow_rows(installed_dsn: str, dropped: bool) -> None:
    partition = f"afterwrite.{partition_name(NOW.date())}"

    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink, connect(installed_dsn) as db:
            await sink.write(wal(100))
            await db.run(f"delete from {partition}".encode())
            await db.run(b"delete from afterwrite.batch")
            await db.run(b"update afterwrite.feed set position = 0")
            await db.run(f"alter table afterwrite.activity detach partition {partition}".encode())
            if dropped:
                await db.run(f"drop table {partition}".encode())
            assert (await sink.write(wal(200))).stored == 2
            assert (await sink.write(wal(300))).stored == 2
            assert dropped or await db.value(f"select count(*) from {partition}".encode()) == 0
        await assert_sound(installed_dsn, 4)

    asyncio.run(scenario())


def test_rows_that_something_swallows_are_noticed(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink, connect(installed_dsn) as db:
            await sink.write(wal(100))
            await db.script(
                """create function afterwrite.swallow() returns trigger language plpgsql as $$
                   begin return case when new.ordinal = 0 then new end; end $$;
                   create trigger swallow before insert on afterwrite.activity
                       for each row execute function afterwrite.swallow()"""
            )
            with pytest.raises(AfterwriteError, match=r"2 rows were sent .* and it kept 1"):
                await sink.write(wal(200))
            assert await sink.read_checkpoint("default") == wal(100).checkpoint
        await assert_sound(installed_dsn, 2)

    asyncio.run(scenario())


def test_a_gap_is_remembered_with_its_bounds(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn) as db:
            await record_gap(db, "app", after=Lsn(0x10), until=Lsn(0x20), reason="the slot was dropped")
            await record_gap(db, "app", after=Lsn(0x30), until=Lsn(0x20), reason="the clock went back")
            assert await db.values(
                b"select concat_ws(' ', source, from_lsn, to_lsn, reason) from afterwrite.gap order by id"
            ) == ["app 0/10 0/20 the slot was dropped", "app 0/30 0/30 the clock went back"]
            with pytest.raises(DatabaseError, match="gap_says_why"):
                await record_gap(db, "app", after=Lsn(1), until=Lsn(2), reason="")

    asyncio.run(scenario())


def test_a_day_without_partition_gets_one_and_a_mad_clock_does_not(installed_dsn: str) -> None:
    late = NOW - timedelta(days=20)
    mad = datetime(1970, 1, 1, tzinfo=UTC)

    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            await sink.write(events(an_event(1, occurred_at=late), an_event(2, occurred_at=mad)))
        async with connect(installed_dsn) as db:
            days = await read_partition_days(db)
            assert late.date() in days
            assert mad.date() not in days
            assert await db.value(b"select count(*) from afterwrite.activity_default") == 1
        await assert_sound(installed_dsn, 2)

    asyncio.run(scenario())


def test_a_partition_that_cannot_be_made_does_not_stop_the_write(
    installed_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    late = NOW - timedelta(days=20)

    async def scenario() -> None:
        async with connect(installed_dsn) as reader, reader.transaction():
            await reader.value(b"select count(*) from afterwrite.activity")
            async with open_sink(installed_dsn) as sink:
                assert (await sink.write(events(an_event(1, occurred_at=late)))).stored == 1
                assert (await sink.write(events(an_event(2, occurred_at=late)))).stored == 1
            assert await reader.value(b"select count(*) from afterwrite.activity_default") == 2

    asyncio.run(scenario())
    assert len([record for record in caplog.records if "no partition could be made" in record.message]) == 1


def test_a_store_that_is_not_installed_is_refused_at_once(dsn: str) -> None:
    async def scenario() -> None:
        with pytest.raises(AfterwriteError, match="afterwrite is not installed"):
            async with open_sink(dsn):
                pass

    asyncio.run(scenario())


def test_a_tampered_feed_names_the_first_break(installed_dsn: str) -> None:
    harm = {
        "rows of batch 2": "update afterwrite.activity set actor_id = 'nobody' where entity_id = '0' and batch_id = 2",
        "has 1": "delete from afterwrite.activity where ordinal = 1 and batch_id = 2",
        "has 3": """insert into afterwrite.activity
                    (id, occurred_at, batch_id, source, kind, category, action, outcome, severity)
                    select gen_random_uuid(), occurred_at, batch_id, source, 'event', 'x', 'x', outcome, severity
                      from afterwrite.activity where batch_id = 2 limit 1""",
        "from position 2 to 2 are gone": "delete from afterwrite.batch where position = 2",
        "from position 4 to 4 are gone": "update afterwrite.feed set position = 4",
        "does not follow": "update afterwrite.batch set transactions = 7 where position = 2",
        "no batch brought it": """insert into afterwrite.activity
                    (id, occurred_at, batch_id, source, kind, category, action, outcome, severity)
                    values (gen_random_uuid(), now(), 77, 's', 'event', 'x', 'x', 'success', 'info')""",
    }

    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            for lsn in (100, 200, 300):
                await sink.write(wal(lsn))
        for text, statement in harm.items():
            async with connect(installed_dsn) as db, db.connection.transaction(force_rollback=True):
                await db.script(statement)
                found = (await verify_feed(db)).first_break
                assert found, text
                assert text in found.text
        await assert_sound(installed_dsn, 6)
        async with connect(installed_dsn) as db:
            assert await read_checkpoint(db, "default")

    asyncio.run(scenario())


def test_the_seal_does_not_depend_on_the_session_that_reads_it(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with open_sink(installed_dsn) as sink:
            await sink.write(events(an_event(1, duration_ms=0.1 + 0.2, changed=("a",), ip="::1")))
        odd = {"timezone": "Asia/Tokyo", "datestyle": "German", "extra_float_digits": "0", "bytea_output": "escape"}
        async with connect(installed_dsn, options=odd) as db:
            assert (await verify_feed(db)).first_break is None

    asyncio.run(scenario())


@pytest.mark.parametrize(("ours", "theirs"), [("s" * 60 + "1", "s" * 60 + "2"), ("läden", "lüden")])
def test_a_sole_sink_ends_no_session_of_a_source_whose_name_only_begins_alike(
    installed_dsn: str, ours: str, theirs: str
) -> None:
    async def run() -> None:
        async with (
            open_sink(installed_dsn, application_name=f"afterwrite sink {theirs}", sole=True) as other,
            open_sink(installed_dsn, application_name=f"afterwrite sink {ours}", sole=True) as frozen,
            open_sink(installed_dsn, application_name=f"afterwrite sink {ours}", sole=True),
        ):
            await other.read_checkpoint("main")
            with pytest.raises(ConnectionLost):
                await frozen.read_checkpoint("main")

    asyncio.run(run())
