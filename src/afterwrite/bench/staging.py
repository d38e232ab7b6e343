"""Writes on a staging copy of somebody's own database: with its triggers, without those that may go, and with us.

::

    read_mix     which tables are written how often, one row at a time or many: pg_stat_statements, and the tables
    scratch      databases of their own on that server, of its schema and of some rows of each table; dropped at the end
    updates      of rows by their key, other values in free columns; each explained and undone, by turns

Nothing of the database itself is written, and nothing is made in it. A server that somebody else writes to is refused.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
from psycopg import sql
from psycopg.conninfo import make_conninfo

from afterwrite.bench.claims import Claim, compare, in_turn, share_left, together
from afterwrite.bench.grounds import Tell, told_round
from afterwrite.errors import AfterwriteError, Refused
from afterwrite.postgres import Database, connect, describe_dsn, identifier, parse_dsn, statement, translated
from afterwrite.record import CONTEXT_PREFIX
from afterwrite.scan.catalog import Column, Inventory, Table, read_inventory
from afterwrite.scan.classify import Verdict
from afterwrite.scan.cost.copy import dump_schema, find_pg_dump
from afterwrite.scan.cost.deeds import alterable, another_value
from afterwrite.scan.cost.measure import REFUSALS, undone
from afterwrite.scan.survey import survey

_MOST_BULK = 1_000
_KEYS = 1_000
_WATCH_SECONDS = 2.0
_TRIGGERS, _NOBODY, _OURS = "triggers", "nobody", "afterwrite"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Of how many tables, how many rows of each are copied, and how often each update is done in a turn."""

    rounds: int = 5
    tables: int = 8
    rows: int = 5_000
    updates: int = 40


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """A table that is written: how often (by statements; by rows where those are not counted), and how many at once."""

    relation: str
    writes: int
    bulk: int = 1


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """What is written most, and where that was read."""

    tables: tuple[Written, ...]
    source: str


async def read_mix(db: Database, inventory: Inventory, most: int) -> Mix:
    """Which tables are written how often, the most written first."""
    schema = await db.value(statement("bench.find_statements"))
    told: list[Written] = []
    if schema is not None:
        told = await db.rows(
            Written, statement("bench.read_mix").replace(b"{schema}", str(schema).replace('"', '""').encode())
        )
    known = {table.full_name for table in inventory.tables}
    found = [each for each in told if each.relation in known]
    if found:
        return Mix(tables=most_written(found, most), source="pg_stat_statements")
    counted = [
        Written(relation=table.full_name, writes=table.inserted + table.updated + table.deleted)
        for table in inventory.tables
    ]
    return Mix(tables=most_written(counted, most), source="the tables' own counters")


def most_written(found: Sequence[Written], most: int) -> tuple[Written, ...]:
    """So many of those that are written at all, the most written first."""
    ranked = sorted((each for each in found if each.writes), key=lambda each: -each.writes)
    return tuple(msgspec.structs.replace(each, bulk=min(each.bulk, _MOST_BULK)) for each in ranked[:most])


async def refuse_unless_quiet(db: Database) -> None:
    """Raise Refused when anybody else writes to this database, or when this role may not do what is needed."""
    able = await db.one(_Able, statement("bench.read_able"))
    if not able.creates or not able.replicates:
        raise Refused(
            f"this role may not create databases, or not pass triggers over while rows are copied ({db.where})",
            remedy="use a superuser of the staging server",
        )
    before = await db.one(_Busy, statement("bench.read_busy"))
    await asyncio.sleep(_WATCH_SECONDS)
    after = await db.one(_Busy, statement("bench.read_busy"))
    if after.writing or after.written != before.written:
        raise Refused(
            f"somebody else is writing to {db.where}: it does not look like a staging copy at rest",
            remedy="stop what writes to it, or restore a copy elsewhere",
        )


class _Able(msgspec.Struct, frozen=True):
    creates: bool
    replicates: bool


class _Busy(msgspec.Struct, frozen=True):
    writing: int
    written: int


def said(dsn: str | None, mix: Mix, options: Options) -> list[str]:
    """What would be done, for people who are to agree to it."""
    listed = ", ".join(
        f"{each.relation} ({each.writes:,}{f', {each.bulk} rows at once' if each.bulk > 1 else ''})"
        for each in mix.tables
    )
    return [
        f"the write mix of {describe_dsn(dsn)}, as {mix.source} have it: {listed or 'nothing was written'}",
        f"three scratch databases named afterwrite_bench_… are made on that server, of its schema and of up to"
        f" {options.rows:,} rows of each of these tables and of what they refer to; updates are done there",
        "the database itself is read, and neither written nor changed; the scratch databases are dropped at the end",
    ]


async def measure_staging(dsn: str | None, mix: Mix, options: Options, tell: Tell) -> list[Claim]:
    """The mix's updates on scratch copies, by turns."""
    names = (_TRIGGERS, _NOBODY, _OURS)
    async with _scratch(dsn, names, mix, options, tell) as copies:
        updates = await _updates(copies[_TRIGGERS], mix, tell)
        taken: dict[str, dict[str, list[float]]] = {
            name: {each.table.full_name: [] for each in updates} for name in names
        }
        for number in range(-1, options.rounds):
            for name in in_turn(names, number):
                tell(f"staging, {told_round(number, options.rounds)}: {name}")
                await copies[name].run(statement("bench.checkpoint"))
                for update in updates:
                    first, count = (number + 1) * options.updates, options.updates
                    ms = await _mean_ms(copies[name], update, first, count, stamped=name == _OURS)
                    if number >= 0:
                        taken[name][update.table.full_name].append(ms * 1_000)
    return _claims(taken, mix)


def _claims(taken: Mapping[str, Mapping[str, list[float]]], mix: Mix) -> list[Claim]:
    theirs, none, ours = taken[_TRIGGERS], taken[_NOBODY], taken[_OURS]
    claims = [
        compare(f"an update of {relation}, triggers to afterwrite", "µs", theirs[relation], ours[relation])
        for relation in theirs
    ]
    writes = {each.relation: each.writes for each in mix.tables}
    whole = {name: _weighed(found, writes) for name, found in taken.items()}
    return [
        *claims,
        compare("all updates, alike, triggers to afterwrite", "µs", together(theirs), together(ours)),
        compare("the mix, triggers to afterwrite", "µs", whole[_TRIGGERS], whole[_OURS], target=0.2),
        share_left("what logging adds to the mix", "µs", whole[_NOBODY], whole[_TRIGGERS], whole[_OURS], target=0.1),
        *(
            compare(f"an update of {relation}, no log to afterwrite", "µs", none[relation], ours[relation])
            for relation in none
        ),
    ]


def _weighed(found: Mapping[str, Sequence[float]], writes: Mapping[str, int]) -> list[float]:
    """The mean statement of the mix in each round."""
    every = sum(writes[relation] for relation in found)
    return [
        sum(value * writes[relation] for relation, value in zip(found, values, strict=True)) / every
        for values in zip(*found.values(), strict=True)
    ]


@asynccontextmanager
async def _scratch(
    dsn: str | None, names: Sequence[str], mix: Mix, options: Options, tell: Tell
) -> AsyncGenerator[dict[str, Database]]:
    """Copies on the same server by their names, each in its state; gone afterwards, however it ends."""
    made: list[str] = []
    async with connect(dsn, application_name="afterwrite bench") as source, AsyncExitStack() as opened:
        try:
            for name in names:
                database = f"afterwrite_bench_{name}_{os.getpid()}"
                tell(f"laying a copy: {name}")
                template = sql.SQL(" template {}").format(sql.Identifier(made[0])) if made else sql.SQL("")
                await source.run(sql.SQL("create database {}").format(sql.Identifier(database)) + template)
                made.append(database)
                if len(made) == 1:
                    await _fill(dsn, database, source, mix, options)
            copies: dict[str, Database] = {}
            for name, database in zip(names, made, strict=True):
                words = _of(dsn, database)
                copies[name] = await opened.enter_async_context(connect(words, application_name="afterwrite bench"))
                await _prepare(copies[name], name, mix)
            yield copies
        finally:
            await opened.aclose()
            for database in made:
                await source.run(sql.SQL("drop database {} with (force)").format(sql.Identifier(database)))


def _of(dsn: str | None, database: str) -> str:
    return make_conninfo("", **{**parse_dsn(dsn), "dbname": database})


async def _fill(dsn: str | None, database: str, source: Database, mix: Mix, options: Options) -> None:
    """The schema, and some rows of the tables that are written; foreign keys are passed over, as in a replica."""
    inventory = await read_inventory(source)
    version = inventory.server_version // 10_000
    with tempfile.TemporaryDirectory(prefix="afterwrite-") as folder:
        file = Path(folder, "schema.sql")
        await dump_schema(dsn, version, file)
        words = parse_dsn(_of(dsn, database))
        password = words.pop("password", None)
        child = await asyncio.create_subprocess_exec(
            Path(find_pg_dump(version)).with_name("psql"),
            *("-q", "-X", "-o", os.devnull, "-f", file, "-d", make_conninfo("", **words)),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, **({"PGPASSWORD": str(password)} if password else {})},
        )
        try:
            await child.wait()
        except BaseException:
            child.kill()
            await child.wait()
            raise
    tables_by_oid = {table.oid: table for table in inventory.tables}
    wanted = {
        table.oid: table for table in inventory.tables if table.full_name in {each.relation for each in mix.tables}
    }
    for table in list(wanted.values()):
        for key in table.foreign_keys:
            if key.referenced_oid in tables_by_oid:
                wanted.setdefault(key.referenced_oid, tables_by_oid[key.referenced_oid])
    async with connect(_of(dsn, database), options={"session_replication_role": "replica"}) as copy:
        for table in wanted.values():
            await _copy_rows(source, copy, table, options.rows)
        await copy.run(b"analyze")


async def _copy_rows(source: Database, copy: Database, table: Table, rows: int) -> None:
    listed = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns if not column.generated)
    name = identifier(table.schema, table.name)
    read = sql.SQL("copy (select {} from {} limit {}) to stdout").format(listed, name, rows)
    with translated(copy.where):
        async with (
            source.connection.cursor() as theirs,
            copy.connection.cursor() as ours,
            theirs.copy(read) as out,
            ours.copy(sql.SQL("copy {} ({}) from stdin").format(name, listed)) as into,
        ):
            async for block in out:
                await into.write(block)


async def _prepare(copy: Database, name: str, mix: Mix) -> None:
    """Without those that may go or wait; and with the old rows whole, as our capture needs them."""
    if name == _TRIGGERS:
        return
    for judgement in (await survey(copy)).judgements:
        trigger = judgement.trigger
        if judgement.verdict in (Verdict.RETIRE, Verdict.DEFER):
            await copy.run(
                sql.SQL("alter table {} disable trigger {}").format(
                    identifier(trigger.schema, trigger.table), sql.Identifier(trigger.name)
                )
            )
    if name == _OURS:
        for table in (await read_inventory(copy)).tables:
            if table.full_name in {each.relation for each in mix.tables}:
                await copy.run(
                    sql.SQL("alter table {} replica identity full").format(identifier(table.schema, table.name))
                )


class _Update(msgspec.Struct, frozen=True, kw_only=True):
    """Another value in these columns of so many rows, and the keys that it goes through."""

    table: Table
    columns: tuple[Column, ...]
    keys: tuple[str, ...]
    rows: int

    def query(self, number: int) -> sql.Composed:
        """The statement, the n-th time."""
        first = number * self.rows % len(self.keys)
        changes = [(column.name, another_value(column)) for column in self.columns]
        (key,) = self.table.primary_key
        kind = next(column.type for column in self.table.columns if column.name == key)
        return sql.SQL("update {} set {} where {} = any ({}::text[]::{}[])").format(
            identifier(self.table.schema, self.table.name),
            sql.SQL(", ").join(
                sql.SQL("{} = {}").format(sql.Identifier(name), value) for name, value in changes if value is not None
            ),
            sql.Identifier(key),
            sql.Literal(list(self.keys[first : first + self.rows])),
            sql.SQL(kind),  # pyright: ignore[reportArgumentType] - the catalog's own name of a type
        )


async def _updates(db: Database, mix: Mix, tell: Tell) -> list[_Update]:
    """An update for each table that takes one; the others are told."""
    tables = {table.full_name: table for table in (await read_inventory(db)).tables}
    found: list[_Update] = []
    for written in mix.tables:
        made = await _update(db, tables[written.relation], written)
        if made is None:
            tell(f"{written.relation} is left out: no rows, no key of one column, or no column to be changed freely")
        else:
            found.append(made)
    if not found:
        raise AfterwriteError(
            "no table that is written can be updated freely", remedy="measure on the demo: `afterwrite bench`"
        )
    return found


async def _update(db: Database, table: Table, written: Written) -> _Update | None:
    if len(table.primary_key) != 1:
        return None
    name, key = identifier(table.schema, table.name), sql.Identifier(table.primary_key[0])
    keys = await db.values(sql.SQL("select {}::text from {} order by 1 limit {}").format(key, name, _KEYS))
    taken: list[Column] = []
    for column in alterable(table):
        tried = _Update(table=table, columns=(*taken, column), keys=tuple(keys[:1]), rows=1)
        if keys and await _accepts(db, tried.query(0)):
            taken.append(column)
    if not taken:
        return None
    # The application's own rules do not let every row be changed.
    whole = _Update(table=table, columns=tuple(taken), keys=tuple(keys), rows=1)
    fit = [key for number, key in enumerate(keys) if await _accepts(db, whole.query(number))]
    return msgspec.structs.replace(whole, keys=tuple(fit), rows=min(written.bulk, len(fit))) if fit else None


async def _accepts(db: Database, query: sql.Composed) -> bool:
    try:
        async with undone(db):
            await db.run(query)
    except REFUSALS:
        return False
    return True


async def _mean_ms(db: Database, update: _Update, first: int, count: int, *, stamped: bool) -> float:
    """The mean execution time of the update and its stamp, triggers included; each is undone."""
    taken: list[float] = []
    for number in range(first, first + count):
        # Undone, so that the next one finds the same row: what is timed lies before the commit.
        async with undone(db):
            stamp = await _execution_ms(db, _STAMPING) if stamped else 0.0
            taken.append(stamp + await _execution_ms(db, update.query(number)))
    return sum(taken) / len(taken)


async def _execution_ms(db: Database, query: sql.Composed) -> float:
    plan = await db.value(b"explain (analyze, timing off, format json) " + query.as_string().encode())
    return float(plan[0]["Execution Time"])


_STAMPING = sql.SQL("select pg_catalog.pg_logical_emit_message(true, {}, {})").format(
    sql.Literal(CONTEXT_PREFIX),
    sql.Literal('{"actor_id":"user:42","actor_type":"user","tenant_id":"acme","ip":"192.0.2.7"}'),
)
