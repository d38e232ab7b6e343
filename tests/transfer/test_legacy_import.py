"""Legacy logs become activities: all of their rows, once, with all that they say."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
import pytest
from legacy_scene import LOGS, lay_styles, log_rows, provenance, read_all, scene

from afterwrite.errors import Refused, UsageError
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server
from afterwrite.record import (
    Activity,
    Batch,
    Checkpoint,
    Kind,
    Lsn,
    Operation,
    change_id,
)
from afterwrite.scan.survey import Survey, survey
from afterwrite.store.partitions import Temperature, partition_name, wanted_indexes
from afterwrite.store.reader import StoredActivity, verify_feed
from afterwrite.store.schema import install_store
from afterwrite.transfer import legacy
from afterwrite.transfer.legacy import Policy
from afterwrite.transfer.mapping import LogMapping, read_mappings, write_mappings
from afterwrite.transfer.verify import verify_log

LOG = """
create table public.log (
  id bigint generated always as identity primary key, at timestamptz not null default now(), op text, tbl text, pk text,
  was jsonb, "is" jsonb
);
"""


@pytest.fixture(scope="module")
def styles(server: Server) -> Iterator[tuple[str, Survey]]:
    """A database with a store and a log of every style, and what its triggers do."""
    name = f"transfer_{secrets.token_hex(4)}"

    async def lay() -> Survey:
        async with connect(server.dsn(name)) as db:
            await install_store(db)
            await lay_styles(db)
            return await survey(db)

    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"create database {name}")
    yield server.dsn(name), asyncio.run(lay())
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"drop database {name} with (force)")


def told_again(activity: StoredActivity, mapping: LogMapping) -> dict[str, Any]:
    """The log's row, put together again from the activity alone."""
    told = provenance(activity)
    row: dict[str, Any] = {**told["key"], **told.get("row", {})}  # type: ignore[dict-item]
    metadata = msgspec.json.decode(activity.metadata or "{}")
    del metadata["legacy"]
    before = activity.before and msgspec.json.decode(activity.before)
    after = activity.after and msgspec.json.decode(activity.after)
    for column in mapping.elsewhere:
        if column == mapping.time:
            row[column] = activity.occurred_at
        elif mapping.style == "history":
            row[column] = before[column]
        elif column == "row_data":
            row[column] = before if before is not None else after
        elif column == "changed_fields":
            row[column] = (
                {name: after[name] for name in after if after[name] != before[name]} if before and after else None
            )
        else:
            field = next(
                name for name, sql in mapping.activity.items() if sql.removesuffix("::text") in (column, f'"{column}"')
            )
            values = {"before": before, "after": after, "metadata": metadata.get("value", metadata) or None}
            row[column] = values[field] if field in values else getattr(activity, field)
    return row


def same(told: object, is_: object) -> bool:
    if isinstance(told, datetime):
        return told == datetime.fromisoformat(str(is_))
    return told == is_ or (isinstance(told, str) and not isinstance(is_, dict | list) and told == str(is_))


@pytest.mark.parametrize("name", LOGS)
def test_every_row_of_every_style_can_be_told_again_from_its_activity(styles: tuple[str, Survey], name: str) -> None:
    async def main() -> None:
        async with scene(styles[0], found=styles[1]) as found:
            plan = await found.plan(name)
            assert read_mappings(write_mappings([plan.mapping])) == (plan.mapping,)
            done = await found.bring(name, plan=plan)
            rows = await log_rows(found.source, name)
            untimed = sum(row.get(plan.mapping.time) == "infinity" for row in rows)
            assert (done.rows, done.stored, done.left_out.get(legacy.UNTIMED, 0)) == (
                len(rows),
                len(rows) - untimed,
                untimed,
            )
            key = plan.mapping.key[0]
            activities = {provenance(each)["key"][key]: each for each in await found.stored(name)}  # type: ignore[index]
            assert len(activities) == done.stored
            for row in rows:
                if (activity := activities.get(row[key])) is None:
                    continue
                told = told_again(activity, plan.mapping)
                assert told.keys() == row.keys()
                assert {column: value for column, value in row.items() if not same(told[column], value)} == {}
            again = await found.bring(name)
            assert (again.rows, again.stored) == (0, 0)
            checked = await verify_log(found.log, found.store, await found.plan(name), policy=Policy())
            assert checked.agrees
            assert checked.rows == len(rows)
            assert (await verify_feed(found.store)).first_break is None

    asyncio.run(main())


def test_the_mapping_says_what_each_style_means(styles: tuple[str, Survey]) -> None:
    async def main() -> dict[str, list[StoredActivity]]:
        async with scene(styles[0], found=styles[1]) as found:
            for name in LOGS:
                await found.bring(name)
            return {name: await found.stored(name) for name in LOGS}

    told = asyncio.run(main())

    def of(name: str, **fields: object) -> list[StoredActivity]:
        return [each for each in told[name] if all(getattr(each, field) == value for field, value in fields.items())]

    (change,) = of("public.audit_logs", entity_id="3", operation=Operation.UPDATE)
    assert (change.relation, change.entity_type, change.action) == ("public.users", "users", "users.update")
    assert change.changed == ("note", "status")
    assert change.actor_id == "11111111-1111-1111-1111-111111111111"
    assert change.summary == "update users 3: note, status"
    assert change.kind is Kind.EVENT
    assert change.source == "main.legacy"
    (came,) = of("public.activity_log", entity_id="7")
    assert (came.action, came.entity_type, came.summary, came.relation) == ("user.insert", "user", "user 7 came", None)
    assert msgspec.json.decode(came.metadata or "")["name"] == "user 7"
    prices = of("public.price_history", entity_id="1")
    assert [each.action for each in prices] == ["price.version"] * 2
    assert {each.before for each in prices} != {None}
    (version,) = of("public.versions", entity_id="1", operation=Operation.UPDATE)
    assert (version.relation, version.entity_type, version.actor_id) == ("public.posts", "Post", "Ada")
    assert (version.before, version.after, version.changed) == ('{"title":"a"}', '{"title":"b"}', ("title",))
    odd = told['"Odd Log"."AuditLog"']
    assert [each.action for each in odd] == ["users.update", "users.insert", "AuditLog.login"]
    assert odd[0].occurred_at == datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)
    (document,) = of("audit.record_version", entity_id="1", operation=Operation.UPDATE)
    assert (document.entity_type, document.changed) == ("documents", ("title",))
    (account,) = of("audit.logged_actions", entity_id="1", operation=Operation.UPDATE)
    assert msgspec.json.decode(account.after or "") == {"id": "1", "name": "c", "secret": None}
    assert account.changed == ("name", "secret")


def test_two_importers_of_one_log_store_it_once(installed_dsn: str) -> None:
    async def one(dsn: str) -> int | str:
        async with scene(dsn) as found:
            try:
                return (await found.bring("audit_logs", policy=Policy(chunk_rows=7, rate=2_000))).stored
            except Refused as error:
                return str(error)

    async def main() -> None:
        async with connect(installed_dsn) as db:
            await lay_styles(db)
        told = await asyncio.gather(one(installed_dsn), one(installed_dsn))
        (refusal,) = [each for each in told if isinstance(each, str)]
        assert "is being imported by another process" in refusal
        async with connect(installed_dsn) as db:
            assert await db.value(b"select count(*) from afterwrite.activity") == await db.value(
                b"select count(*) from audit_logs"
            )
            # Whoever lost his place in between (his lock went with his session) has moved nothing either.
            assert await db.value(b"select count(*) = max(number) from afterwrite.legacy_chunk")

    asyncio.run(main())


def test_rows_that_say_anything_at_all_are_kept(installed_dsn: str) -> None:
    dice = random.Random(7)
    letters = "aß漢\t\n\\'\"%{}[]:,;=+@ \u2028\x01\x7f😀"

    def text() -> str:
        return "".join(dice.choice(letters) for _ in range(dice.randrange(12)))

    def value(depth: int = 0) -> Any:
        kinds = [None, True, dice.randrange(10**18), -1.5, text()]
        if depth < 3:
            kinds += [
                [value(depth + 1) for _ in range(dice.randrange(3))],
                {text(): value(depth + 1) for _ in range(3)},
            ]
        return dice.choice(kinds)

    async def main() -> None:
        async with scene(installed_dsn, LOG) as found:
            rows = [(text(), text(), text(), msgspec.json.encode(value()).decode()) for _ in range(400)]
            deep = '{"a": ' * 2_000 + "[1]" + "}" * 2_000
            rows.append(("update", "deep", "1", deep))
            for op, tbl, pk, image in rows:
                await found.source.run(
                    b"insert into public.log (op, tbl, pk, was, \"is\", at)"
                    b" values (%(op)s, %(tbl)s, %(pk)s, %(i)s, %(i)s, now() - random() * interval '50 years')",
                    op=op, tbl=tbl, pk=pk, i=image,
                )  # fmt: skip
            mapping = LogMapping(
                table="public.log",
                key=("id",),
                time="at",
                activity={"action": "op", "entity_type": "tbl", "entity_id": "pk", "before": "was", "metadata": '"is"'},
                elsewhere=("at", "op", "tbl", "pk", "was", "is"),
            )
            plan = await found.plan("log", mapping=mapping)
            assert (await found.bring("log", plan=plan)).stored == len(rows)
            stored = {provenance(each)["key"]["id"]: each for each in await found.stored()}  # type: ignore[index]
            for number, (op, tbl, pk, image) in enumerate(rows, start=1):
                each = stored[number]
                assert (each.action, each.entity_type, each.entity_id) == (op, tbl, pk)
                if image == deep:
                    assert each.before == deep
                else:
                    assert msgspec.json.decode(each.before or "null") == msgspec.json.decode(image)
            assert (await verify_log(found.log, found.store, await found.plan("log"), policy=Policy())).agrees

    asyncio.run(main())


def test_an_import_stops_where_capture_began_and_knows_what_lies_on_the_border(installed_dsn: str) -> None:
    began = datetime(2026, 11, 1, 12, tzinfo=UTC)

    async def capture(xid: int, key: str, at: datetime, ordinal: int) -> Activity:
        return Activity(
            id=change_id("1", 1, Lsn(1000), ordinal, at),
            occurred_at=at,
            source="main",
            kind=Kind.CHANGE,
            category="data",
            action="users.update",
            entity_type="users",
            entity_id=key,
            relation="public.users",
            operation=Operation.UPDATE,
            xid=xid,
            commit_lsn=Lsn(1000),
            ordinal=ordinal,
        )

    async def main() -> None:
        async with scene(installed_dsn, LOG) as found:
            insert = (
                "insert into public.log (op, tbl, pk, was, at) select %(op)s, %(tbl)s, %(pk)s, '{}', %(at)s"
                " returning xmin::text::bigint"
            )

            async def log(op: str, tbl: str | None, pk: str, at: datetime) -> int:
                return await found.source.value(insert.encode(), op=op, tbl=tbl, pk=pk, at=at)

            await log("UPDATE", "users", "before", began - timedelta(days=3))
            # These began before capture did: the first was committed after, and captured; the other was not.
            across = await log("UPDATE", "users", "across", began - timedelta(minutes=5))
            await log("UPDATE", "users", "just before", began - timedelta(minutes=4))
            await log("UPDATE", "users", "captured", began + timedelta(seconds=1))
            await log("UPDATE", "other", "never captured", began + timedelta(seconds=2))
            await log("LOGIN", "users", "no change", began + timedelta(seconds=3))
            await log("LOGIN", None, "of nothing", began + timedelta(seconds=4))
            batch = Batch(
                source="main",
                activities=[await capture(across, "across", began, 0), await capture(999, "captured", began, 1)],
                transactions=1,
                first_lsn=Lsn(1000),
                last_lsn=Lsn(1000),
                checkpoint=Checkpoint(source="main", slot="afterwrite", system_id="1", timeline=1, lsn=Lsn(1001)),
            )
            await found.sink.write(batch)
            plan = await found.plan("log")
            assert plan.mapping.style == "changes"
            assert plan.stops == {} or plan.stops["public.users"] == began
            done = await found.bring("log", plan=plan)
            assert done.left_out == {legacy.COVERED: 2}
            kept = {each.entity_id for each in await found.stored()}
            assert kept == {"before", "just before", "never captured", "no change", "of nothing"}
            assert (await verify_log(found.log, found.store, await found.plan("log"), policy=Policy())).agrees

    asyncio.run(main())


@pytest.mark.parametrize(("stop", "kept"), [("never", 3), ("2026-03-02T00:00:00+00:00", 1), ("capture", 3)])
def test_somebody_may_say_where_an_import_stops(installed_dsn: str, stop: str, kept: int) -> None:
    async def main() -> None:
        async with scene(installed_dsn, LOG) as found:
            await found.source.run(
                b"insert into public.log (op, tbl, pk, at)"
                b" select 'UPDATE', 't', n::text, timestamptz '2026-03-01' + n * interval '1 day'"
                b" from generate_series(0, 2) n"
            )
            done = await found.bring("log", plan=await found.plan("log", stop=stop))
            assert (done.rows, done.stored) == (3, kept)

    asyncio.run(main())


def test_what_retention_would_drop_at_once_is_left_out_and_old_days_are_born_cold(installed_dsn: str) -> None:
    today = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)

    async def main() -> None:
        async with scene(installed_dsn, LOG) as found:
            for days in (500, 100, 60, 2):
                await found.source.run(
                    b"insert into public.log (op, tbl, pk, at) values ('INSERT', 't', '1', %(at)s)",
                    at=today - timedelta(days=days),
                )
            policy = Policy(retention_days=90, hot_days=30)
            plan = await found.plan("log", policy=policy)
            (finding,) = [each for each in plan.findings if each.rule == "import.retention"]
            assert "retention_days = 90 would drop what is older than" in finding.text
            done = await found.bring("log", policy=policy, plan=plan)
            assert (done.stored, done.left_out) == (2, {legacy.EXPIRED: 2})
            rows = await found.store.rows(
                lambda **row: (row["tablename"], row["indexname"]),
                b"select tablename, indexname from pg_indexes"
                b" where schemaname = 'afterwrite' and indexname !~ '_pkey$'",
            )
            for days, temperature in ((60, Temperature.COLD), (2, Temperature.HOT)):
                name = partition_name((today - timedelta(days=days)).date())
                assert {index.removeprefix(f"{name}_") for table, index in rows if table == name} == wanted_indexes(
                    temperature
                )

    asyncio.run(main())


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("UTC", datetime(2026, 7, 1, 12, tzinfo=UTC)),
        ("Europe/Berlin", datetime(2026, 7, 1, 10, tzinfo=UTC)),
        (None, datetime(2026, 7, 1, 16, tzinfo=UTC)),
    ],
)
def test_a_time_without_a_zone_is_taken_for_the_one_that_is_told(
    installed_dsn: str, zone: str | None, expected: datetime
) -> None:
    sql = """
    create table public.log (id int primary key, at timestamp not null, op text);
    insert into public.log values (1, '2026-07-01 12:00', 'INSERT');
    """

    async def main() -> None:
        async with connect(installed_dsn) as db:
            name = await db.value(b"select current_database()")
            await db.run(f"alter database {name} set timezone to 'America/New_York'".encode())
        async with scene(installed_dsn, sql) as found:
            # The source's session says what is usual there; the one that reads logs prints in UTC.
            plan = await found.plan("log", time_zone=zone)
            assert any("has no time zone; it is taken for" in each.text for each in plan.findings)
            await found.bring("log", plan=plan)
            (only,) = await found.stored()
            assert only.occurred_at == expected
            with pytest.raises(Refused, match="by another mapping: time_zone differ"):
                await found.plan("log", time_zone="Asia/Tokyo")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("create table public.log (at timestamptz, op text)", "neither a primary key nor a unique index"),
        ("create table public.log (n int unique, at timestamptz)", "whose n may be null"),
        ("create table public.log (id int primary key, op text)", "no column of a date or time"),
        ("create view public.log as select 1 as id, now() as at", "is no table"),
    ],
)
def test_a_log_that_cannot_be_read_is_refused_with_the_remedy(installed_dsn: str, sql: str, said: str) -> None:
    async def main() -> None:
        async with scene(installed_dsn, sql) as found:
            with pytest.raises((Refused, UsageError)) as error:
                await found.plan("log")
            assert said in str(error.value)
            assert error.value.remedy

    asyncio.run(main())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"time": "nobody"},
            'the server refuses the mapping\'s time of public.log (nobody): column "nobody" does not exist',
        ),
        ({"time": "id"}, "the mapping's time of public.log gives bigint"),
        ({"activity": {"before": "pk -> 1"}}, "the mapping's before of public.log"),
        ({"activity": {"actor_id": "nextval('public.log_id_seq')::text"}}, "is read-only"),
        ({"key": ("nobody",)}, "names nobody, which is no column of it"),
        ({"time_zone": "Mars/Phobos"}, "knows no time zone Mars/Phobos"),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_refused_and_none_writes(
    installed_dsn: str, changes: dict[str, Any], said: str
) -> None:
    async def main() -> None:
        async with scene(installed_dsn, LOG) as found:
            await found.source.run(b"insert into public.log (op, tbl, pk) values ('UPDATE', 't', '1')")
            mapping = LogMapping(**{"table": "public.log", "key": ("id",), "time": "at", **changes})
            with pytest.raises((Refused, UsageError)) as error:
                await found.plan("log", mapping=mapping)
            assert said in str(error.value)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version = 2", "this afterwrite reads version = 1"),
        ("version = 1\n[[log]]\ntable = 'a'\nkey = ['id']\ntime = 'at'\nwhen = 'x'", "unknown field `when`"),
        ("version = 1\n[[log]]\ntable = 'a'\nkey = ['id']\ntime = 'at; drop table users'", "is not one SQL expression"),
        ("version = 1\n[[log]]\ntable = 'a'\nkey = ['id']\ntime = 'at'\n[log.activity]\nwho = 'x'", "gives who, which"),
        ("version = 1\n[[log]]\ntable = 'a'\nkey = ['id']\ntime = 'at'\nstop = 'tomorrow'", "stop of a is 'tomorrow'"),
        ("version = 1\n[[log]]\ntable = 'a'\nkey = []\ntime = 'at'", "has no key"),
    ],
)
def test_a_mapping_file_is_read_strictly(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        read_mappings(text)
    assert said in str(error.value)


def test_once_an_import_has_begun_its_mapping_is_fixed(installed_dsn: str) -> None:
    async def main() -> None:
        async with scene(installed_dsn, LOG) as found:
            await found.source.run(b"insert into public.log (op, tbl, pk) values ('UPDATE', 't', '1')")
            plan = await found.plan("log")
            await found.bring("log", plan=plan)
            other = msgspec.structs.replace(plan.mapping, time="at + interval '1 hour'")
            with pytest.raises(Refused, match="by another mapping: time differ"):
                await found.plan("log", mapping=other)
            # What is inferred today does not count any more either, and where it stops may change.
            await found.source.run(b"insert into public.log (op, tbl, pk) values ('UPDATE', 't', '2')")
            assert (await found.bring("log", plan=await found.plan("log", stop="never"))).stored == 1

    asyncio.run(main())


def test_verification_finds_what_came_late_what_was_altered_and_what_is_lost(installed_dsn: str) -> None:
    async def main() -> None:
        async with scene(installed_dsn, LOG) as found:
            await found.source.run(
                b"insert into public.log (id, op, tbl, pk) overriding system value"
                b" select n * 2, 'UPDATE', 't', n::text from generate_series(1, 100) n"
            )
            policy = Policy(chunk_rows=20)
            await found.bring("log", policy=policy)

            async def check(*, repair: bool = False) -> list[tuple[int, int, bool, int, bool]]:
                plan = await found.plan("log")
                told = await verify_log(
                    found.log, found.store, plan, policy=policy, sink=found.sink if repair else None
                )
                return [(each.late, each.gone, each.changed, each.missing, each.other) for each in told.differences]

            assert await check() == []
            await found.source.run(
                b"insert into public.log (id, op, tbl, pk) overriding system value"
                b" values (11, 'UPDATE', 't', 'late'), (13, 'DELETE', 't', 'late')"
            )
            assert await check() == [(2, 0, False, 0, False)]
            assert await check(repair=True) == [(2, 0, False, 0, False)]
            assert await check() == []
            assert len(await read_all(found.store)) == 102
            await found.source.run(b"update public.log set pk = 'other' where id = 100")
            assert await check() == [(0, 0, True, 0, True)]
            await found.source.run(b"update public.log set pk = '50' where id = 100")
            assert await check() == []
            await found.source.run(b"delete from public.log where id = 200")
            assert await check() == [(0, 1, False, 0, False)]
            await found.source.run(
                b"insert into public.log (id, op, tbl, pk, at) overriding system value"
                b" select 200, op, tbl, '100', at from public.log where id = 198"
            )
            assert await check() == []
            await found.store.run(b"delete from afterwrite.activity where entity_id = '70'")
            assert await check() == [(0, 0, False, 1, False)]

    asyncio.run(main())


def test_a_store_that_another_cluster_imported_into_asks_whether_it_is_the_same(installed_dsn: str) -> None:
    async def main() -> None:
        async with scene(installed_dsn, LOG) as found:
            await found.source.run(b"insert into public.log (op, tbl, pk) values ('UPDATE', 't', '1')")
            await found.bring("log")
            await found.store.run(b"update afterwrite.legacy_log set system_id = '1'")
            with pytest.raises(Refused, match="was imported from cluster 1"):
                await found.plan("log")
            moved = Policy(moved=True)
            assert (await found.bring("log", policy=moved)).stored == 0
            await found.plan("log")

    asyncio.run(main())


def test_a_rate_is_kept(installed_dsn: str) -> None:
    async def main() -> None:
        async with scene(installed_dsn, LOG) as found:
            await found.source.run(
                b"insert into public.log (op, tbl, pk) select 'UPDATE', 't', n::text from generate_series(1, 100) n"
            )
            done = await found.bring("log", policy=Policy(rate=400, chunk_rows=20))
            assert done.rows / done.seconds < 420

    asyncio.run(main())
