"""Maintenance: what is due, doing it beside readers and writers, and what is remembered of what went."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID

import psycopg
import pytest
from psycopg import conninfo

from afterwrite.errors import Refused
from afterwrite.postgres import Database, LockPolicy, connect
from afterwrite.record import Activity, Batch, Checkpoint, Kind, Lsn, Operation, TransactionContext
from afterwrite.store import maintain as maintenance
from afterwrite.store import partitions, recast
from afterwrite.store.maintain import (
    SESSION,
    Decision,
    MaintainPolicy,
    Observed,
    Reader,
    Report,
    StepKind,
    Table,
    Unread,
    decide,
    look,
    maintain,
)
from afterwrite.store.partitions import (
    Temperature,
    make_partition,
    make_partitions,
    partition_name,
    read_partition_days,
    wanted_indexes,
)
from afterwrite.store.reader import read_batch_activities, read_batches, verify_feed
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink

TODAY = datetime.now(UTC).date()
NOW = datetime.now(UTC)
KEEP = MaintainPolicy()
SHORT = LockPolicy(lock_timeout_ms=50, attempts=2, first_pause_ms=5)


def ago(days: int) -> date:
    return TODAY - timedelta(days=days)


def a_change(number: int, at: datetime, lsn: int, source: str = "main") -> Activity:
    return Activity(
        id=str(UUID(int=(8 << 76) | (2 << 62) | number)),
        occurred_at=at,
        source=source,
        kind=Kind.CHANGE,
        category="data",
        action="users.update",
        entity_type="users",
        entity_id=str(number % 7),
        actor_id=str(number % 5),
        summary=f"updated users {number}: name",
        relation="public.users",
        operation=Operation.UPDATE,
        xid=lsn,
        commit_lsn=Lsn(lsn),
        ordinal=number,
    )


def a_batch(day: date, number: int, rows: int = 10, *, source: str = "main", end: datetime | None = None) -> Batch:
    """One transaction of that day (its rows a second apart up to ``end``), whose LSN is its number."""
    start = datetime.combine(day, time(12), UTC)
    moments = [end or start] * rows if end else [start + timedelta(seconds=n) for n in range(rows)]
    activities = [a_change(number * 1_000_000 + n, at, number, source) for n, at in enumerate(moments)]
    return Batch(
        source=source,
        activities=activities,
        transactions=1,
        first_lsn=Lsn(number),
        last_lsn=Lsn(number),
        checkpoint=Checkpoint(source=source, slot="s", system_id="1", timeline=1, lsn=Lsn(number)),
        contexts=[TransactionContext(commit_lsn=Lsn(number), xid=number, settings={"role": "web"})],
    )


async def store(dsn: str, *batches: Batch) -> None:
    async with open_sink(dsn) as sink:
        for batch in batches:
            await sink.write(batch)


async def run(dsn: str, policy: MaintainPolicy = KEEP, *, reader: Reader | None = None) -> Report:
    async with connect(dsn, options=SESSION) as db:
        return await maintain(db, policy, reader=reader, locks=SHORT)


async def indexes_of(db: Database, table: str) -> set[str]:
    """The table's indexes, each as the server defines it, without names."""
    found = await db.values(
        b"""select regexp_replace(pg_get_indexdef(indexrelid), '^CREATE (UNIQUE )?INDEX \\S+ ON \\S+ ', '')
              from pg_index where indrelid = %(table)s::regclass and indisvalid""",
        table=f"afterwrite.{table}",
    )
    return set(found)


async def count(db: Database, table: str) -> int:
    number: int = await db.value(f"select count(*) from afterwrite.{table}".encode())
    return number


# What is due


def a_table(day: date | None, temperature: Temperature = Temperature.HOT, **fields: object) -> Table:
    name = partition_name(day) if day else "activity_default"
    plain = {
        "name": name,
        "day": day,
        "rows": 5,
        "bytes": 8192,
        "vacuumed_at": NOW,
        "indexes": dict.fromkeys(wanted_indexes(temperature), True),
    }
    return Table(**plain | fields)


AHEAD = tuple(a_table(TODAY + timedelta(days=n)) for n in range(8))


def due(*tables: Table, policy: MaintainPolicy = KEEP, **observed: object) -> Decision:
    return decide(Observed(tables=(a_table(None), *AHEAD, *tables), **observed), NOW, policy)


def words(decision: Decision) -> list[tuple[str, str, str | None]]:
    return [(step.kind.value, step.table.removeprefix("activity_"), step.index) for step in decision.steps]


def test_nothing_is_due_in_a_store_that_is_in_shape() -> None:
    closed = a_table(ago(2))
    cold = a_table(ago(31), Temperature.COLD)
    assert due(closed, cold) == Decision(())


def test_days_are_made_ahead_as_far_as_the_operator_wants() -> None:
    steps = due(policy=MaintainPolicy(ahead_days=9)).steps
    assert [step.days for step in steps] == [(ago(-8),), (ago(-9),)]


def test_a_partition_past_its_hot_days_gets_its_new_index_before_it_loses_the_others() -> None:
    assert words(due(a_table(ago(30)))) == []
    name = f"{ago(31):%Y_%m_%d}"
    assert words(due(a_table(ago(31)))) == [
        ("build index", name, "time"),
        ("drop index", name, "actor"),
        ("drop index", name, "facts"),
        ("drop index", name, "tenant"),
        ("drop index", name, "text"),
    ]


def test_a_cold_partition_is_made_hot_again_when_the_operator_wants_longer_hot_days() -> None:
    kinds = words(due(a_table(ago(31), Temperature.COLD), policy=MaintainPolicy(hot_days=60)))
    assert [(kind, index) for kind, _, index in kinds] == [
        ("build index", "actor"),
        ("build index", "facts"),
        ("build index", "tenant"),
        ("build index", "text"),
        ("drop index", "time"),
    ]


def test_an_index_whose_building_was_interrupted_is_dropped_and_built_again() -> None:
    broken = a_table(ago(2), indexes=dict.fromkeys(wanted_indexes(Temperature.HOT), True) | {"actor": False})
    assert [(kind, index) for kind, _, index in words(due(broken))] == [
        ("drop index", "actor"),
        ("build index", "actor"),
    ]


def test_somebody_elses_index_is_left_alone() -> None:
    other = dict.fromkeys(wanted_indexes(Temperature.COLD), True) | {"reports_by_action": True}
    assert due(a_table(ago(40), indexes=other)).steps == ()


def test_a_day_is_frozen_once_when_it_is_over_for_an_hour() -> None:
    day = ago(1)
    closed = datetime.combine(TODAY, time(1), UTC)
    table = a_table(day, vacuumed_at=closed - timedelta(minutes=5))
    observed = Observed(tables=(a_table(None), *AHEAD, table))
    kinds = [[step.kind for step in decide(observed, at, KEEP).steps] for at in (closed - timedelta(seconds=1), closed)]
    assert kinds == [[], [StepKind.FREEZE]]


def test_retention_takes_whole_days_before_the_cutoff_and_nothing_without_a_word() -> None:
    old = [a_table(ago(n), Temperature.COLD) for n in (41, 40, 39)]
    assert due(*old).steps == ()
    keep_40 = MaintainPolicy(retention_days=40)
    assert [(step.kind, step.days) for step in due(*old, policy=keep_40).steps] == [(StepKind.EXPIRE, (ago(41),))]


def test_retention_leaves_what_deferred_triggers_have_not_read_and_says_so() -> None:
    old = [a_table(ago(n), Temperature.COLD) for n in (43, 42, 41)]
    keep = MaintainPolicy(retention_days=40)
    decision = due(*old, policy=keep, unread=(Unread("main", True, ago(42)), Unread("old", False, ago(43))))
    assert decision.steps == ()
    assert [finding.text for finding in decision.findings] == [
        f"deferred triggers of source 'main' have not read {ago(42)} yet, "
        f"so retention keeps {ago(42)} and what follows",
        "nobody has said how far deferred triggers of source 'old' have read, "
        f"so retention keeps {ago(43)} and what follows",
    ]
    decision = due(*old, policy=keep, unread=(Unread("main", True, ago(42)),))
    assert [step.days for step in decision.steps] == [(ago(43),)]
    assert due(*old, policy=keep, unread=(Unread("main", True, ago(3)),)).findings == ()


def test_retention_takes_nothing_from_a_store_whose_days_leave_for_a_lake() -> None:
    decision = due(a_table(ago(41), Temperature.COLD), policy=MaintainPolicy(retention_days=40), has_lake=True)
    assert decision.steps == ()
    assert [finding.rule for finding in decision.findings] == ["retention-lake"]


def test_few_waiting_rows_are_moved_at_once_and_many_by_an_exchange() -> None:
    few = due(default_days={ago(2): 10_000, ago(400): 9_999})
    assert [(step.kind, step.days) for step in few.steps] == [(StepKind.MAKE, (ago(2),))]
    many = due(default_days={ago(2): 10_001, ago(3): 1, ago(4000): 10_000, ago(400): 1})
    assert [(step.kind, step.days) for step in many.steps] == [(StepKind.RECAST, (ago(4000), ago(3), ago(2)))]


def test_what_an_interrupted_step_left_comes_first() -> None:
    leftovers = ("activity_expired_2020_01_02", "activity_making_2020_01_01", "activity_replaced_default")
    kinds = [step.kind for step in due(a_table(ago(31)), leftovers=leftovers).steps]
    assert kinds[:3] == [StepKind.FINISH, StepKind.DROP, StepKind.DISCARD]


# Doing it


def test_every_partition_has_exactly_the_indexes_that_its_temperature_wants(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn) as db:
            await make_partitions(db, days=[ago(31), ago(30)])
            hot = await indexes_of(db, "activity_default")
            assert len(hot) == 1 + len(wanted_indexes(Temperature.HOT))
            assert await indexes_of(db, partition_name(ago(31))) == hot
            report = await run(installed_dsn)
            assert {step.kind for step in report.done} >= {StepKind.BUILD_INDEX, StepKind.DROP_INDEX, StepKind.FREEZE}
            assert (report.left, report.findings) == ((), ())
            for table in report.observed.tables:
                cold = table.day == ago(31)
                wanted = wanted_indexes(Temperature.COLD if cold else Temperature.HOT)
                assert set(table.indexes) == wanted
                assert table.temperature is (Temperature.COLD if cold else Temperature.HOT)
                assert all(table.indexes.values())
                assert cold or await indexes_of(db, table.name) == hot
            lasting = {text for text in hot if text.startswith(("USING btree (entity_type", "USING btree (caused_by"))}
            assert len(lasting) == 3
            assert await indexes_of(db, partition_name(ago(31))) == {
                "USING btree (occurred_at, id)",
                "USING brin (occurred_at)",
                *lasting,
            }
            assert await db.values(
                b"select indexrelid::regclass::text from pg_index where indrelid = 'afterwrite.activity'::regclass"
            ) == ["afterwrite.activity_pkey"]

    asyncio.run(scenario())


def test_what_was_done_is_not_due_again(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn) as db:
            await make_partitions(db, days=[ago(31), ago(2)])
        first = await run(installed_dsn)
        assert [step.table for step in first.done if step.kind is StepKind.FREEZE] == [
            partition_name(ago(31)),
            partition_name(ago(2)),
        ]
        assert (await run(installed_dsn)).done == ()
        async with connect(installed_dsn) as db:
            assert (await look(db, KEEP)).left == ()
            assert await db.value(
                b"select max(age(relfrozenxid)) < 100 from pg_class where relname = %(name)s",
                name=partition_name(ago(2)),
            )

    asyncio.run(scenario())


def test_an_index_build_that_was_cut_off_is_made_good(installed_dsn: str) -> None:
    day = ago(31)

    async def scenario() -> None:
        async with connect(installed_dsn) as db, connect(installed_dsn) as writer:
            await make_partitions(db, days=[day])
            async with writer.transaction():
                await store_one(writer, day)
                building = asyncio.create_task(run(installed_dsn))
                while not await db.value(b"select exists (select from pg_index where not indisvalid)"):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                await db.run(
                    b"""select pg_terminate_backend(pid) from pg_stat_activity
                         where query like 'create index concurrently%'"""
                )
                with pytest.raises(Exception, match="ended the connection"):
                    await building
                assert await db.value(b"select count(*) from pg_index where not indisvalid") == 1
            report = await run(installed_dsn)
            assert [step.kind for step in report.done][:2] == [StepKind.DROP_INDEX, StepKind.BUILD_INDEX]
            assert report.left == ()
            assert await db.value(b"select count(*) from pg_index where not indisvalid") == 0

    asyncio.run(scenario())


async def store_one(db: Database, day: date, number: int = 1) -> None:
    """A row that no batch brings."""
    await db.run(
        b"""insert into afterwrite.activity
                   (id, occurred_at, batch_id, source, kind, category, action, outcome, severity)
            values (%(id)s::uuid, %(at)s, 1, 's', 'event', 'c', 'a', 'success', 'info')""",
        id=str(UUID(int=number)),
        at=datetime.combine(day, time(23, 59), UTC),
    )


def test_an_old_transaction_holds_up_index_work_and_nothing_else(
    installed_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SESSION, "lock_timeout", "300")

    async def scenario() -> None:
        async with connect(installed_dsn) as db, connect(installed_dsn) as writer:
            await make_partitions(db, days=[ago(40), ago(31), ago(2)])
            async with writer.transaction():
                await store_one(writer, ago(31))
                await store_one(writer, ago(40), 2)
                report = await run(installed_dsn)
            assert [finding.rule for finding in report.findings] == ["maintain-hindered"]
            assert [step.table for step in report.done if step.kind is StepKind.FREEZE][-1:] == [partition_name(ago(2))]
            assert {table.temperature for table in report.observed.tables if table.day == ago(31)} == {Temperature.HOT}
            assert (await run(installed_dsn)).left == ()

    asyncio.run(scenario())


def test_one_maintainer_works_at_a_time(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn) as other:
            await other.run(b"select pg_advisory_lock(hashtextextended('afterwrite.maintain', 0))")
            pid = other.connection.info.backend_pid
            with pytest.raises(Refused, match=rf"another maintainer is at work in .* \(pid {pid}\)"):
                await run(installed_dsn)
        assert (await run(installed_dsn)).left == ()

    asyncio.run(scenario())


# The default partition


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of rows counts as many."""
    for room in (partitions, maintenance):
        monkeypatch.setattr(room, "MOVED_AT_ONCE", 50)
    monkeypatch.setattr(recast, "_CHUNK_ROWS", 40)
    monkeypatch.setattr(maintenance, "_CHUNK_ROWS", 40)


@pytest.mark.usefixtures("small")
def test_many_waiting_rows_get_their_days_while_a_writer_goes_on(installed_dsn: str) -> None:
    days = [ago(200), ago(199), ago(120)]

    async def write(first: int, stop: asyncio.Event) -> int:
        number = first
        async with open_sink(installed_dsn) as sink:
            while not stop.is_set():
                await sink.write(a_batch(days[number % 3], number, 5))
                number += 1
                await asyncio.sleep(0.002)
        return number

    async def read(stop: asyncio.Event, expected: int) -> None:
        """No reader ever sees fewer rows than were there."""
        async with connect(installed_dsn) as db:
            while not stop.is_set():
                seen = await count(db, "activity")
                assert seen >= expected
                expected = seen
                await asyncio.sleep(0.005)

    async def scenario() -> None:
        await store(installed_dsn, *(a_batch(days[n % 3], n, 30) for n in range(1, 31)))
        async with connect(installed_dsn) as db:
            assert await count(db, "activity_default") == 900
            stop = asyncio.Event()
            writing = asyncio.create_task(write(31, stop))
            reading = asyncio.create_task(read(stop, 900))
            await asyncio.sleep(0.1)
            report = await run(installed_dsn)
            await asyncio.sleep(0.1)
            stop.set()
            await reading
            end = await writing
            assert next(step.kind for step in report.done) is StepKind.RECAST
            assert report.findings == ()
            assert set(days) <= await read_partition_days(db)
            assert await count(db, "activity") == 900 + 5 * (end - 31)
            assert await count(db, "activity_default") == 0
            assert sum([await count(db, partition_name(day)) for day in days]) == 900 + 5 * (end - 31)
            seal = await verify_feed(db)
            assert (seal.first_break, seal.rows) == (None, 900 + 5 * (end - 31))
            names = await db.values(b"select relname from pg_class where relname ~ 'making|replaced'")
            assert names == []
            assert await db.value(b"select obj_description('afterwrite.activity_default'::regclass) is not null")
            # As if it had been made in time.
            hot = await indexes_of(db, "activity_default")
            await make_partition(db, ago(3))
            assert await indexes_of(db, partition_name(ago(3))) == hot
            assert (await look(db, MaintainPolicy(hot_days=300))).observed.default is not None

    asyncio.run(scenario())


@pytest.mark.usefixtures("small")
def test_rows_of_other_days_stay_in_the_default_partition_and_strays_come_along(installed_dsn: str) -> None:
    async def scenario() -> None:
        await store(installed_dsn, a_batch(ago(100), 1, 60), a_batch(ago(500), 2, 20))
        async with connect(installed_dsn) as db:
            await store_one(db, ago(100), 1)
            await store_one(db, ago(600), 2)
            report = await run(installed_dsn)
            assert report.done[0].days == (ago(100),)
            assert await count(db, partition_name(ago(100))) == 61
            assert await count(db, "activity_default") == 21

    asyncio.run(scenario())


@pytest.mark.usefixtures("small")
def test_a_writer_leaves_many_waiting_rows_to_maintenance_and_goes_on(
    installed_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        await store(installed_dsn, *(a_batch(ago(200), number, 40) for number in (1, 2, 3)))
        async with connect(installed_dsn) as db:
            with pytest.raises(Refused, match="too many rows wait"):
                await make_partitions(db)
            await store(installed_dsn, a_batch(ago(50), 4))
            assert await count(db, "activity") == 130
            assert (await verify_feed(db)).first_break is None

    asyncio.run(scenario())
    assert "afterwrite.activity_default" in caplog.text


@pytest.mark.usefixtures("small")
def test_an_exchange_that_a_reader_prevents_leaves_everything_as_it_was(installed_dsn: str) -> None:
    async def scenario() -> None:
        await store(installed_dsn, a_batch(ago(200), 1, 60))
        async with connect(installed_dsn) as db, connect(installed_dsn, application_name="report") as reader:
            async with reader.transaction():
                await count(reader, "activity")
                report = await run(installed_dsn)
                assert [finding.rule for finding in report.findings] == ["maintain-hindered"]
                assert "report" in report.findings[0].text
                assert await count(db, "activity_default") == 60
            report = await run(installed_dsn)
            assert (report.left, report.findings) == ((), ())
            assert await count(db, "activity_default") == 0

    asyncio.run(scenario())


# Retention


KEEP_40 = MaintainPolicy(retention_days=40)
AT_END = Reader(source="main", position=1_000, commit_lsn=Lsn(1_000))


async def some_days(dsn: str) -> None:
    """Days with and without a partition, before and after the cutoff of ``KEEP_40``, and a batch over midnight."""
    async with connect(dsn) as db:
        await make_partitions(db, days=[ago(42), ago(41), ago(40)])
    midnight = datetime.combine(ago(40), time(), UTC)
    over = a_batch(ago(41), 5)
    over = Batch(
        source="main",
        activities=[*over.activities[:4], a_change(77, midnight + timedelta(seconds=1), 5)],
        transactions=1,
        first_lsn=Lsn(5),
        last_lsn=Lsn(5),
        checkpoint=over.checkpoint,
    )
    await store(
        dsn,
        a_batch(ago(500), 1, 7),
        a_batch(ago(499), 2, 7, source="quiet"),
        a_batch(ago(42), 3),
        a_batch(ago(41), 4),
        over,
        a_batch(ago(40), 6),
        a_batch(ago(1), 7),
    )
    async with connect(dsn) as db:
        # Stored when they happened, and not a moment ago.
        await db.run(b"update afterwrite.batch set written_at = last_at + interval '1 second'")


def test_retention_drops_days_and_remembers_them_and_the_seal_holds(installed_dsn: str) -> None:
    async def scenario() -> None:
        await some_days(installed_dsn)
        async with connect(installed_dsn) as db:
            assert (await verify_feed(db)).first_break is None
            await db.run(b"insert into afterwrite.feed_reader (source) values ('quiet')")
            report = await run(installed_dsn, KEEP_40, reader=AT_END)
            assert (report.left, report.findings) == ((), ())
            assert await count(db, "activity") == 1 + 10 + 10
            assert await read_partition_days(db) & {ago(42), ago(41)} == set()
            assert ago(40) in await read_partition_days(db)
            assert await db.values(b"select day::text || ' ' || rows from afterwrite.expired_day order by day") == [
                f"{ago(500)} 7",
                f"{ago(499)} 7",
                f"{ago(42)} 10",
                f"{ago(41)} 14",
            ]
            assert await db.values(
                b"""select first_position || '-' || last_position
                      from afterwrite.expired_day where bytes > 0 order by day"""
            ) == ["3-3", "4-5"]
            # The newest batch of each source stays, since the next is chained to it; contexts go with their batches.
            assert [batch.position for batch in await read_batches(db)] == [2, 4, 5, 6, 7]
            assert await count(db, "transaction_context") == 4
            seal = await verify_feed(db)
            assert seal.first_break is None
            await store(installed_dsn, a_batch(TODAY, 8), a_batch(TODAY, 9, source="quiet"))
            assert (await verify_feed(db)).first_break is None
            batches = await read_batches(db, 4)
            assert len(await read_batch_activities(db, batches)) == 1 + 10 + 10 + 20
            # What is wrong beside retention is still found.
            await db.run(
                b"delete from afterwrite.activity where occurred_at >= %(day)s and ordinal %% 2 = 0", day=ago(1)
            )
            broken = (await verify_feed(db)).first_break
            assert broken is not None
            assert broken.position == 7

    asyncio.run(scenario())


def test_retention_waits_for_deferred_triggers(installed_dsn: str) -> None:
    async def scenario() -> None:
        await some_days(installed_dsn)
        async with connect(installed_dsn) as db:
            await db.run(b"insert into afterwrite.feed_reader (source) values ('quiet')")
            report = await run(installed_dsn, KEEP_40)
            assert ["nobody has said" in finding.text for finding in report.findings] == [True]
            assert report.done == tuple(step for step in report.done if step.kind is not StepKind.EXPIRE)
            reader = Reader(source="main", position=3, commit_lsn=Lsn(3))
            assert (await look(db, KEEP_40, reader=reader)).findings[0].text.startswith("deferred triggers of source")
            report = await run(installed_dsn, KEEP_40, reader=reader)
            assert [step.days[0] for step in report.done if step.kind is StepKind.EXPIRE] == [ago(42)]
            assert ago(41) in await read_partition_days(db)
            # Inside the batch after its position, by LSN: nothing of the days before is unread.
            report = await run(installed_dsn, KEEP_40, reader=Reader(source="main", position=3, commit_lsn=Lsn(5)))
            assert [step.days[0] for step in report.done if step.kind is StepKind.EXPIRE] == [ago(41)]
            assert report.findings == ()

    asyncio.run(scenario())


def test_rows_that_come_late_for_an_expired_day_go_the_same_way(installed_dsn: str) -> None:
    async def scenario() -> None:
        await some_days(installed_dsn)
        reader = Reader(source="main")
        async with connect(installed_dsn) as db:
            await db.run(b"insert into afterwrite.feed_reader (source) values ('quiet')")
            await run(installed_dsn, KEEP_40, reader=reader)
            await store(installed_dsn, a_batch(ago(42), 8, 3))
            assert await count(db, "activity") == 24
            report = await run(installed_dsn, KEEP_40, reader=reader)
            assert (report.left, report.findings) == ((), ())
            assert await count(db, "activity") == 21
            assert await db.value(b"select rows from afterwrite.expired_day where day = %(day)s", day=ago(42)) == 13
            assert (await verify_feed(db)).first_break is None

    asyncio.run(scenario())


def test_a_day_that_a_reader_holds_is_kept_for_now_and_named(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn) as db, connect(installed_dsn, application_name="report") as reader:
            await make_partitions(db, days=[ago(41)])
            async with reader.transaction():
                await count(reader, partition_name(ago(41)))
                report = await run(installed_dsn, KEEP_40)
                assert "report" in report.findings[0].text
                assert await count(db, "expired_day") == 0
            assert (await run(installed_dsn, KEEP_40)).left == ()
            assert await count(db, "expired_day") == 1

    asyncio.run(scenario())


def test_a_writer_is_not_disturbed_by_days_that_come_and_go(installed_dsn: str) -> None:
    """Attached, detached, dropped and drained all the while: everything is stored once, but what expired."""

    async def write(stop: asyncio.Event) -> list[Batch]:
        written: list[Batch] = []
        async with open_sink(installed_dsn) as sink:
            while not stop.is_set():
                number = len(written) + 1
                written.append(a_batch(ago((0, 1, 41, 95)[number % 4]), number, 6))
                await sink.write(written[-1])
                await asyncio.sleep(0.001)
        return written

    async def scenario() -> None:
        stop = asyncio.Event()
        writing = asyncio.create_task(write(stop))
        reader = Reader(source="main")
        for _ in range(6):
            await asyncio.sleep(0.05)
            await run(installed_dsn, KEEP_40, reader=reader)
        stop.set()
        written = await writing
        report = await run(installed_dsn, KEEP_40, reader=reader)
        assert (report.left, report.findings) == ((), ())
        async with connect(installed_dsn) as db:
            kept = [batch for batch in written if next(iter(batch.activities)).occurred_at.date() >= ago(40)]
            assert await count(db, "activity") == sum(len(batch.activities) for batch in kept)
            assert await db.value(b"select sum(rows) from afterwrite.expired_day") == sum(
                len(batch.activities) for batch in written
            ) - sum(len(batch.activities) for batch in kept)
            assert (await verify_feed(db)).first_break is None

    asyncio.run(scenario())


def test_a_maintainer_that_is_told_to_stop_stops_at_once_and_lets_go(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with connect(installed_dsn) as db, connect(installed_dsn) as writer:
            await make_partitions(db, days=[ago(31)])
            async with writer.transaction():
                await store_one(writer, ago(31))
                building = asyncio.create_task(run(installed_dsn))
                while not await db.value(b"select exists (select from pg_index where not indisvalid)"):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                building.cancel()
                async with asyncio.timeout(2):
                    with pytest.raises(asyncio.CancelledError):
                        await building
                assert await db.value(b"select pg_try_advisory_lock(hashtextextended('afterwrite.maintain', 0))")
                await db.run(b"select pg_advisory_unlock_all()")
            assert (await run(installed_dsn)).left == ()

    asyncio.run(scenario())


@pytest.mark.usefixtures("small")
def test_the_owner_needs_no_superuser_and_goes_on_owning_what_one_makes(dsn: str) -> None:
    role = f"keeper_{secrets.token_hex(4)}"
    own = conninfo.make_conninfo(dsn, options=f"-c role={role}")

    async def scenario() -> None:
        async with connect(dsn) as db:
            await db.run(f"create role {role}".encode())
            name = conninfo.conninfo_to_dict(dsn)["dbname"]
            await db.run(f"grant create on database {name} to {role}".encode())
        async with connect(own) as db:
            await install_store(db)
            await make_partitions(db, days=[ago(31), ago(41)])
        await store(own, a_batch(ago(120), 1, 60))
        report = await run(own, MaintainPolicy(retention_days=200))
        assert (report.left, report.findings) == ((), ())
        await store(own, a_batch(ago(121), 2, 60))
        async with connect(dsn) as db:
            await make_partition(db, ago(5))
            assert (await run(dsn, MaintainPolicy(retention_days=200))).findings == ()
            owners = await db.values(
                b"""select distinct pg_get_userbyid(relowner) from pg_class
                     where relnamespace = 'afterwrite'::regnamespace and relname like 'activity%'"""
            )
            assert owners == [role]
        assert (await run(own, MaintainPolicy(hot_days=1, retention_days=40))).findings[0].rule == "retention-unread"

    try:
        asyncio.run(scenario())
    finally:
        with psycopg.connect(dsn, autocommit=True) as admin:
            admin.execute(f"drop owned by {role} cascade")
            admin.execute(f"drop role {role}")
