"""Generated workloads, captured into the store: from empty tables, what is stored rebuilds every table exactly.

And what is read again from an earlier place, cut into other batches, changes nothing. AFTERWRITE_TEST_WORKLOADS is how
many workloads are tried, from AFTERWRITE_TEST_SEED on; the default is for every day.

::

    workload ─▶ tables in schema work ─▶ slot ─▶ store, in batches of any size
                                                   └─ before and after, in order ─▶ tables in schema rebuilt
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import psycopg
from capture_rig import MemorySink, drain, setup_of
from psycopg import sql

from afterwrite.capture.preflight import CaptureSetup
from afterwrite.capture.slot import prepare
from afterwrite.capture.tell import Told
from afterwrite.capture.transaction import Transaction
from afterwrite.postgres import connect
from afterwrite.record import Batch, Checkpoint, Lsn, TransactionContext
from afterwrite.store.reader import verify_feed
from afterwrite.store.writer import open_sink

WORKLOADS = int(os.environ.get("AFTERWRITE_TEST_WORKLOADS", "20"))
FIRST_SEED = int(os.environ.get("AFTERWRITE_TEST_SEED", "0"))
STEPS_EACH = 80

# What JSON itself cannot say is left out: an array's lower bounds, JSON's null beside SQL's, a lone string's spelling.
# Every way in which a table can be identified, and tables that hang on each other.
TABLES = """
create table parent (id int primary key, name text, long text, n numeric, at timestamptz, doc json);
alter table parent alter long set storage external;
create table child (a int, b text, parent int{references}, tags text[], primary key (b, a));
create table keyed (id int primary key, mail text not null, note text);
create unique index keyed_mail on keyed (mail);
alter table keyed replica identity using index keyed_mail;
create table loose (x int, y text, z float8, w jsonb);
alter table loose replica identity full;
create table whole (gone int, a int primary key, b int not null, c text, long text);
alter table whole drop column gone;
alter table whole alter long set storage external;
alter table whole replica identity full;
"""
PARTED = """
create table parted (id int, region text, v int[], long text, primary key (id, region)) partition by list (region);
create table parted_eu (long text, v int[], gone int, region text not null, id int not null);
alter table parted_eu drop column gone;
alter table parted attach partition parted_eu for values in ('eu');
create table parted_rest partition of parted default partition by range (id);
create table parted_low partition of parted_rest for values from (minvalue) to (5);
create table parted_high partition of parted_rest for values from (5) to (maxvalue);
"""
NAMES = ["parent", "child", "keyed", "loose", "whole", "parted"]
REGIONS = ["eu", "us", "a,b"]


def literal(kind: str, column: str, dice: random.Random) -> str | None:
    """A value for a column of this type, as text; few keys, so that they meet."""
    column = column.split("_", maxsplit=1)[0]
    if column == "region":
        return dice.choice(REGIONS)
    if kind in ("integer", "bigint", "smallint"):
        return str(dice.randrange(12))
    if column == "long":
        return dice.choice([None, "short", "x" * 9000, dice.randbytes(3000).hex()])
    if dice.random() < 0.15 and column not in ("mail", "b"):
        return None
    match kind:
        case "numeric":
            return dice.choice(["NaN", "-0.00", "1.10", "1e40", str(dice.random())])
        case "double precision":
            return dice.choice(["NaN", "-0", "1e300", "Infinity", str(dice.random())])
        case "timestamp with time zone":
            return dice.choice(["infinity", "2026-01-02 03:04:05.678+05:30", "0044-03-15 01:02:03 BC", "20000-01-01"])
        case "json" | "jsonb":
            return dice.choice(['{"b": 1,  "a": [1.0, "x"], "a": null}', "[ ]", '{"\\u00e9": "\\n"}', "1e5"])
        case "text[]":
            return dice.choice(["{}", '{a,NULL,"NULL","q\\"\\\\,{}"}', "{{a,b},{c,d}}"])
        case "integer[]":
            return dice.choice(["{}", "{1,NULL}", "{{1},{2}}"])
        case _:
            return dice.choice(["a", "b", "a,b", "c\\,d", "q\"u'o", "é\n", str(dice.randrange(9))])


class Workload:
    """Two sessions that write to the tables; each step is drawn by its seed and may fail, which is part of it."""

    def __init__(self, dsn: str) -> None:
        self.sessions = [psycopg.connect(dsn, autocommit=True) for _ in range(2)]
        for session in self.sessions:
            session.execute("set search_path to work; set lock_timeout to '20ms'")
        self.prefix = f"{self.sessions[0].info.dbname}_"
        self.prepared: list[str] = []
        self.counter = 0
        self.steps: dict[str, Callable[[psycopg.Connection, random.Random], object]] = {
            "insert": self.insert,
            "update": self.update,
            "delete": self.delete,
            "upsert": self.upsert,
            "copy": self.copy,
            "truncate": self.truncate,
            "alter": self.alter,
            "recreate": self.recreate,
        }

    def run(self, kind: str, dice: random.Random) -> None:
        """One step in one of the sessions, in a transaction of its own or in the one that is open there."""
        session = dice.choice(self.sessions)
        if kind in ("begin", "commit", "rollback"):
            open_already = session.info.transaction_status != psycopg.pq.TransactionStatus.IDLE
            if open_already is (kind != "begin"):
                session.execute(kind)
            return
        if kind == "prepare":
            self.prepare_or_end(session, dice)
            return
        with contextlib.suppress(psycopg.Error), session.transaction(force_rollback=dice.random() < 0.1):
            self.steps[kind](session, dice)

    def __enter__(self) -> Workload:
        return self

    def __exit__(self, *_: object) -> None:
        """Commit what is open."""
        with self.sessions[0] as one, self.sessions[1] as other:
            for session in (one, other):
                if session.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                    session.execute("commit")
            for name in self.prepared:
                one.execute(sql.SQL("commit prepared {}").format(name))

    def columns(self, session: psycopg.Connection, table: str) -> dict[str, str]:
        rows = session.execute(
            "select attname, format_type(atttypid, null) from pg_attribute"
            " where attrelid = %s::regclass and attnum > 0 and not attisdropped order by attnum",
            [table],
        )
        return dict(rows.fetchall())

    def row(self, session: psycopg.Connection, dice: random.Random, table: str) -> dict[str, str | None]:
        return {name: literal(kind, name, dice) for name, kind in self.columns(session, table).items()}

    def insert(self, session: psycopg.Connection, dice: random.Random) -> None:
        table = dice.choice(NAMES)
        for _ in range(dice.choice([1, 1, 3])):
            with contextlib.suppress(psycopg.Error), session.transaction():
                self._insert(session, table, self.row(session, dice, table))

    def _insert(self, session: psycopg.Connection, table: str, row: dict[str, str | None], more: str = "") -> None:
        session.execute(
            sql.SQL("insert into {} ({}) values ({}) " + more).format(
                sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, row)), sql.SQL(", ").join(row.values())
            )
        )

    def upsert(self, session: psycopg.Connection, dice: random.Random) -> None:
        row = self.row(session, dice, "keyed")
        self._insert(session, "keyed", row, "on conflict (mail) do update set note = excluded.note || '!'")

    def copy(self, session: psycopg.Connection, dice: random.Random) -> None:
        table = dice.choice(["loose", "parted"])
        rows = [self.row(session, dice, table) for _ in range(5)]
        columns = sql.SQL(", ").join(map(sql.Identifier, rows[0]))
        with session.cursor().copy(sql.SQL("copy {} ({}) from stdin").format(sql.Identifier(table), columns)) as copy:
            for row in rows:
                copy.write_row(tuple(row.values()))

    def update(self, session: psycopg.Connection, dice: random.Random) -> None:
        table = dice.choice(NAMES)
        row = self.row(session, dice, table)
        # The first column mostly is of the key, which must not become the same for all.
        chosen = [name for place, name in enumerate(row) if dice.random() < (0.4 if place else 0.1)] or [list(row)[-1]]
        sets = sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(name), row[name]) for name in chosen)
        session.execute(sql.SQL("update {} set {} where {}").format(sql.Identifier(table), sets, self._some(dice, row)))

    def delete(self, session: psycopg.Connection, dice: random.Random) -> None:
        table = dice.choice(NAMES)
        where = self._some(dice, self.row(session, dice, table))
        session.execute(sql.SQL("delete from {} where {}").format(sql.Identifier(table), where))

    def _some(self, dice: random.Random, row: dict[str, str | None]) -> sql.Composable:
        if dice.random() < 0.3:
            return sql.SQL("true")
        name = next(iter(row))
        return sql.SQL("{}::text = {}").format(sql.Identifier(name), row[name])

    def truncate(self, session: psycopg.Connection, dice: random.Random) -> None:
        session.execute(dice.choice(["truncate parent cascade", "truncate loose, keyed", "truncate parted"]))

    def alter(self, session: psycopg.Connection, dice: random.Random) -> None:
        self.counter += 1
        table = dice.choice(NAMES)
        columns = list(self.columns(session, table))
        one = dice.choice(columns)
        extra = [name for name in columns if name.startswith("extra")]
        if table == "whole" and dice.random() < 0.5:
            first, second = (name for name in columns if name.startswith(("a", "b")))
            key = dice.choice([f"{first}", f"{second}, {first}"])
            self._ddl(session, f"alter table whole drop constraint whole_pkey, add primary key ({key})")
            return
        # A renamed column keeps its first letters: what goes into it is drawn by them.
        self._ddl(
            session,
            dice.choice(
                [
                    f"alter table {table} add column extra{self.counter} int default {self.counter}",
                    f"alter table {table} add column extra{self.counter} text",
                    f"alter table {table} drop column {dice.choice(extra)}" if extra else "",
                    f"alter table {table} rename column {one} to {one.split('_')[0]}_{self.counter}",
                    f"alter table {table} alter column {dice.choice(extra)} type text" if extra else "",
                    f"alter table {table} alter column {columns[0]} type bigint",
                ]
            ),
        )

    def recreate(self, session: psycopg.Connection, dice: random.Random) -> None:
        self._ddl(
            session,
            "drop table loose; create table loose (w jsonb, y text, x bigint, extra0 int);"
            " alter table loose replica identity full",
        )
        session.execute("alter publication afterwrite add table only loose")

    def _ddl(self, session: psycopg.Connection, statement: str) -> None:
        """Do it, and tell it in the same transaction: it is done to the rebuilt tables at the same place."""
        if statement:
            session.execute(statement)
            event = json.dumps({"category": "ddl", "action": "ddl", "metadata": {"sql": statement}})
            session.execute("select pg_logical_emit_message(true, 'afterwrite.event', %s::text)", [event])

    def prepare_or_end(self, session: psycopg.Connection, dice: random.Random) -> None:
        status = session.info.transaction_status
        if status == psycopg.pq.TransactionStatus.INTRANS:
            self.counter += 1
            name = f"{self.prefix}{self.counter}"
            session.execute(sql.SQL("prepare transaction {}").format(name))
            self.prepared.append(name)
        elif status == psycopg.pq.TransactionStatus.IDLE and self.prepared:
            name = self.prepared.pop(dice.randrange(len(self.prepared)))
            session.execute(sql.SQL(dice.choice(["commit", "rollback"]) + " prepared {}").format(name))


STEPS = {
    "insert": 10, "update": 12, "delete": 2, "upsert": 2, "copy": 1, "truncate": 0.4, "alter": 2.5, "recreate": 0.3,
    "begin": 3, "commit": 2.5, "rollback": 0.7, "prepare": 2, "read": 0.7,
}  # fmt: skip


class Scene:
    """The captured tables, the store, and the slot between them; every example begins where the one before ended."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.setup: CaptureSetup = setup_of("public.nothing")
        self.admin = psycopg.connect(dsn, autocommit=True)
        self.admin.execute("create table public.nothing (id int primary key)")
        self.begin: Checkpoint = asyncio.run(self._prepare())

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.admin.close()

    async def _prepare(self) -> Checkpoint:
        async with connect(self.dsn) as db, open_sink(self.dsn) as sink:
            await prepare(db, sink, self.setup)
            found = await sink.read_checkpoint(self.setup.source)
        assert found is not None
        return found

    def lay(self) -> None:
        """Empty tables, and a beginning after all that was before."""
        for schema, references in (("work", " references parent on update cascade on delete cascade"), ("rebuilt", "")):
            self.admin.execute(f"drop schema if exists {schema} cascade; create schema {schema}")
            self.admin.execute(f"set search_path to {schema}")
            self.admin.execute((TABLES.replace("{references}", references) + PARTED).encode())
        self.admin.execute("set search_path to pg_catalog")
        for name in NAMES:
            self.admin.execute(f"alter publication afterwrite add table only work.{name}")
        (lsn,) = self.admin.execute("select pg_current_wal_insert_lsn()::text").fetchone() or ("0/0",)
        self.begin = msgspec.structs.replace(self.begin, lsn=Lsn.parse(lsn))

    def read(self, begin: Checkpoint | None = None) -> list[Transaction]:
        sink = MemorySink()
        sink.checkpoint = begin or self.begin
        return [each for each in drain(self.dsn, self.setup, sink) if each.changes or each.events]

    def store(self, transactions: list[Transaction], cuts: list[int], begin: Checkpoint | None = None) -> None:
        """Store them in batches of these sizes, over and over, from a checkpoint that is taken away first."""

        async def write() -> None:
            checkpoint, left, sizes = begin or self.begin, transactions, list(cuts)
            async with open_sink(self.dsn) as sink:
                while left:
                    sizes.append(sizes.pop(0))
                    batch, left = left[: sizes[-1]], left[sizes[-1] :]
                    checkpoint = msgspec.structs.replace(checkpoint, lsn=batch[-1].end_lsn)
                    told = Told(
                        batch, source=self.setup.source, system_id=checkpoint.system_id, timeline=checkpoint.timeline
                    )
                    await sink.write(
                        Batch(
                            source=self.setup.source,
                            activities=told,
                            transactions=len(batch),
                            first_lsn=batch[0].commit_lsn,
                            last_lsn=batch[-1].commit_lsn,
                            checkpoint=checkpoint,
                            moments=frozenset(each.committed_at for each in batch),
                            contexts=[
                                TransactionContext(commit_lsn=each.commit_lsn, xid=each.xid, settings={"a": "b"})
                                for each in batch
                            ],
                        )
                    )

        self.admin.execute("delete from afterwrite.checkpoint")
        asyncio.run(write())

    def stored(self) -> list[tuple]:
        """All that the store holds of this example: activities, batches, contexts."""
        return [
            row
            for query in (
                "select a::text from afterwrite.activity a where commit_lsn >= %s::pg_lsn order by commit_lsn, ordinal",
                "select b::text from afterwrite.batch b where last_lsn >= %s::pg_lsn order by id",
                "select c::text from afterwrite.transaction_context c where commit_lsn >= %s::pg_lsn order by c::text",
            )
            for row in self.admin.execute(query, [str(self.begin.lsn)])
        ]

    def rebuild(self) -> Counter[str]:
        """Do to the empty tables what the store tells; how much it told of what."""
        rows = self.admin.execute(
            "select kind, relation, operation, entity_id, before::text, after::text, metadata::text"
            " from afterwrite.activity where commit_lsn >= %s::pg_lsn order by commit_lsn, ordinal",
            [str(self.begin.lsn)],
        ).fetchall()
        self.admin.execute("set search_path to rebuilt")
        builder, counted = Builder(self.admin), Counter[str]()
        with self.admin.transaction():
            for kind, relation, operation, entity_id, before, after, metadata in rows:
                told = json.loads(metadata or "{}")
                counted.update([operation or "ddl", *told])
                if kind == "event":
                    builder.alter(told["sql"])
                else:
                    builder.change(relation.removeprefix("work."), operation, before, after, entity_id, told)
        self.admin.execute("set search_path to pg_catalog")
        return counted

    def differences(self) -> Iterator[tuple[str, str, str]]:
        for name in NAMES:
            for one, other in (("work", "rebuilt"), ("rebuilt", "work")):
                query = f"select t::text from {one}.{name} t except all select t::text from {other}.{name} t"
                for (row,) in self.admin.execute(query.encode()):
                    yield name, one, row[:300]


class Builder:
    """Applies changes to tables by nothing but their JSON."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        self.known: dict[str, tuple[list[str], list[str], list[str]]] = {}

    def alter(self, statement: str) -> None:
        self.known.clear()
        self.connection.execute(statement.encode())

    def identity(self, table: str) -> tuple[list[str], list[str], list[str]]:
        """The table's columns, those of its replica identity (none under FULL), and those of its primary key."""
        if table not in self.known:
            (found,) = self.connection.execute(
                """
                select array(select attname::text from pg_attribute
                              where attrelid = c.oid and attnum > 0 and not attisdropped order by attnum),
                       array(select a.attname::text
                               from pg_index i, unnest(i.indkey::int2[]) with ordinality k (n, place)
                               join pg_attribute a on a.attnum = k.n
                              where a.attrelid = c.oid and i.indrelid = c.oid
                                and case c.relreplident when 'd' then indisprimary else indisreplident end
                              order by place),
                       array(select a.attname::text
                               from pg_index i, unnest(i.indkey::int2[]) with ordinality k (n, place)
                               join pg_attribute a on a.attnum = k.n
                              where a.attrelid = c.oid and i.indrelid = c.oid and indisprimary
                              order by place)
                  from pg_class c where c.oid = %s::regclass
                """,
                [table],
            ).fetchall()
            self.known[table] = found
        return self.known[table]

    def change(
        self, name: str, operation: str, before: str | None, after: str | None, entity_id: str | None, told: dict
    ) -> None:
        columns, identity, key = self.identity(name)
        table, listed = sql.Identifier(name), sql.SQL(", ").join(map(sql.Identifier, columns))
        row = sql.SQL("json_populate_record(null::{}, {}::json)")
        if operation == "truncate":
            self.connection.execute(sql.SQL("truncate {}").format(table))
            return
        self.check_key(json.loads(after or before or "{}"), key, entity_id, told)
        if operation == "insert":
            query = sql.SQL("insert into {} select * from {}").format(table, row.format(table, after))
            assert self.connection.execute(query).rowcount == 1
            return
        if identity:
            those = sql.SQL(", ").join(map(sql.Identifier, identity))
            image = row.format(table, before or after)
            where = sql.SQL("({0}) = (select {0} from {1})").format(those, image)
        else:  # one of the rows that look so, byte for byte
            where = sql.SQL("ctid = (select ctid from {0} as o where o *= {1} limit 1)").format(
                table, row.format(table, before)
            )
        if operation == "delete":
            query = sql.SQL("delete from {} where {}").format(table, where)
        else:
            # What is not in the JSON did not change.
            query = sql.SQL(
                "update {0} as o set ({1}) = (select {1} from json_populate_record(o, {2}::json)) where {3}"
            )
            query = query.format(table, listed, after, where)
        assert self.connection.execute(query).rowcount == 1, (name, operation, before, after)

    def check_key(self, row: dict[str, object], key: list[str], entity_id: str | None, told: dict) -> None:
        if "unsure" in told:
            return
        values = [str(row[name]) for name in key if name in row]
        if len(values) < len(key) or not key:
            values = []
        if len(values) > 1:
            values = [value.replace("\\", "\\\\").replace(",", "\\,") for value in values]
        assert entity_id == (",".join(values) or None), (entity_id, row, key)


def test_replaying_what_is_stored_rebuilds_every_table_and_storing_again_changes_nothing(installed_dsn: str) -> None:
    told: Counter[str] = Counter()
    with Scene(installed_dsn) as scene:
        for seed in range(FIRST_SEED, FIRST_SEED + WORKLOADS):
            try:
                told += try_workload(scene, random.Random(seed))
            except Exception as error:
                error.add_note(f"in the workload of seed {seed}")
                raise
    assert asyncio.run(_verified(installed_dsn))
    if WORKLOADS >= 20:
        assert {"insert", "update", "delete", "truncate", "unchanged", "ddl"} <= set(told), told


def try_workload(scene: Scene, dice: random.Random) -> Counter[str]:
    """One workload from empty tables; what it had in it."""
    scene.lay()
    cuts = [dice.randrange(1, 9) for _ in range(3)]
    with Workload(scene.dsn) as workload:
        for _ in range(10):
            workload.run("insert", dice)
        for step in dice.choices(list(STEPS), list(STEPS.values()), k=STEPS_EACH):
            if step == "read":
                scene.store(scene.read(), cuts)
            else:
                workload.run(step, dice)
    transactions = scene.read()
    scene.store(transactions, cuts)
    once = scene.stored()
    # From any place, in other batches.
    place = msgspec.structs.replace(
        scene.begin, lsn=dice.choice([scene.begin.lsn, *(transaction.end_lsn for transaction in transactions)])
    )
    again = scene.read(place)
    assert [each.commit_lsn for each in again] == [
        each.commit_lsn for each in transactions if each.commit_lsn >= place.lsn
    ]
    scene.store(again, [dice.randrange(1, 9) for _ in cuts], place)
    assert scene.stored() == once
    told = scene.rebuild()
    assert not list(scene.differences())
    return told


async def _verified(dsn: str) -> bool:
    async with connect(dsn) as db:
        return (await verify_feed(db)).first_break is None
