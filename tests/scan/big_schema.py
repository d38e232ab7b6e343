"""A database of a size that hurts, and how long a scan of it takes: ``./run python -m tests.scan.big_schema``.

::

    schemas ▸ tables (some partitioned) ▸ log tables ▸ functions of every style ▸ triggers, spread evenly

The same numbers make the same schema. What is printed is the whole command, from its start to its last line, on an
embedded server; docs/scan.md quotes it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psycopg

from afterwrite.postgres import connect
from afterwrite.postgres.embedded import embedded_server
from afterwrite.scan.survey import Survey, survey

SCHEMAS = ("shop", "billing", "crm", "stock", "hr", "content", "public", "archive")


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much of everything; partitions count as tables."""

    triggers: int = 5_000
    tables: int = 1_500
    functions: int = 400
    partitions: int = 8


def script(size: Size) -> str:
    """The whole schema as SQL."""
    return ";\n".join(_statements(size)) + ";"


def _statements(size: Size) -> Iterator[str]:
    for schema in SCHEMAS:
        yield f"create schema if not exists {schema}"
        yield f"""create table {schema}.audit_log (id bigserial primary key, at timestamptz not null default now(),
            who text, table_name text, op text, row_id text, before jsonb, after jsonb, note text)"""
        yield f"create table {schema}.counters (name text primary key, value bigint not null default 0)"
        yield f"create table {schema}.outbox (id bigserial primary key, topic text, payload jsonb, sent_at timestamptz)"
        yield f"""create function {schema}.who() returns text language sql stable as
            $$ select coalesce(current_setting('app.user', true), session_user::text) $$"""
        yield f"""create function {schema}.note(topic text, payload jsonb) returns void language plpgsql as $$
            begin
              insert into {schema}.outbox (topic, payload) values (topic, payload);
              perform pg_notify('{schema}_' || topic, payload ->> 'id');
            end $$"""
        yield f"""create function {schema}.refuse(what text) returns void language plpgsql as $$
            begin
              raise exception '% is closed', what using errcode = 'check_violation';
            end $$"""
    tables = list(_tables(size))
    for number, (schema, name, partitioned) in enumerate(tables):
        columns = ", ".join(f"c{place} {kind}" for place, kind in enumerate(_TYPES[: 6 + number % 8]))
        key = "id bigint not null, at date not null default current_date"
        more = f"owner_id bigint, state text not null default 'new', total numeric, touched_at timestamptz, {columns}"
        if partitioned:
            yield f"create table {schema}.{name} ({key}, {more}, primary key (id, at)) partition by range (at)"
            for part in range(size.partitions):
                bounds = f"from ('{2020 + part}-01-01') to ('{2021 + part}-01-01')"
                yield f"create table {schema}.{name}_{part} partition of {schema}.{name} for values {bounds}"
        else:
            yield f"create table {schema}.{name} ({key}, {more}, primary key (id), check (total >= 0))"
            if number % 3 == 0:
                yield f"create view {schema}.{name}_open as select id, state from {schema}.{name} where state = 'new'"
    functions: dict[str, list[str]] = {schema: [] for schema in SCHEMAS}
    for number in range(size.functions):
        schema = SCHEMAS[number % len(SCHEMAS)]
        functions[schema].append(f"{schema}.f{number}")
        style = _STYLES[number // len(SCHEMAS) % len(_STYLES)]
        yield (
            f"create function {schema}.f{number}() returns trigger language plpgsql as $body$"
            + style.format(s=schema, n=number, more=_lines(number % 30))
            + "$body$"
        )
    for number in range(size.triggers):
        schema, name, _ = tables[number % len(tables)]
        own = functions[schema]
        place = (number // len(SCHEMAS) * 7 + number // len(tables)) % len(own)
        early = place % len(_STYLES) in _BEFORE
        events = ("insert", "insert or update", "insert or update or delete", "update of state, total")[number % 4]
        when = " when (new.state is not null)" if number % 4 in (0, 1, 3) and number % 5 == 0 else ""
        yield (
            f"create trigger t{number} {'before' if early else 'after'} {events} on {schema}.{name} "
            f"for each row{when} execute function {own[place]}('{name}')"
        )


def _tables(size: Size) -> Iterator[tuple[str, str, bool]]:
    """Schema, name and whether it is partitioned: every twentieth is, with its partitions counted."""
    made = number = 0
    while made < size.tables:
        partitioned = number % 20 == 19
        yield SCHEMAS[number % len(SCHEMAS)], f"table_{number}", partitioned
        made += 1 + size.partitions * partitioned
        number += 1


def _lines(count: int) -> str:
    """So many more lines of a body, that decide nothing."""
    return "\n".join(
        f"  if tg_op = 'UPDATE' and new.total is distinct from {line} then text_{line % 3} := 'line {line}'; end if;"
        for line in range(count)
    )


_TYPES = ("text", "integer", "jsonb", "boolean default false", "date", "numeric(12,2)", "uuid", "text[]", "inet") * 2
_DECLARE = "\ndeclare text_0 text; text_1 text; text_2 text;\nbegin\n{more}\n"
_STYLES = (
    _DECLARE
    + """  insert into {s}.audit_log (who, table_name, op, row_id, before, after)
  values ({s}.who(), tg_table_name, tg_op, new.id::text, to_jsonb(old), to_jsonb(new));
  return null;
end""",
    _DECLARE + "  new.touched_at := now();\n  return new;\nend",
    _DECLARE
    + """  update {s}.counters set value = value + 1 where name = tg_argv[0];
  return null;
end""",
    _DECLARE
    + """  if new.state = 'closed' then
    perform {s}.refuse(tg_table_name);
  end if;
  return new;
end""",
    _DECLARE
    + """  perform {s}.note('changed', jsonb_build_object('id', new.id, 'table', tg_table_name));
  return null;
end""",
    _DECLARE
    + """  execute format('insert into %I.audit_log (table_name, op, after)'
    ' values ($1, $2, $3)', tg_table_schema)
    using tg_table_name, tg_op, to_jsonb(new);
  return null;
end""",
    _DECLARE
    + """  execute 'insert into ' || text_0 || ' values ($1)' using new.id;
  return null;
end""",
    _DECLARE
    + """  if tg_op = 'INSERT' then
    insert into {s}.audit_log (table_name, op, row_id, after) values (tg_table_name, 'I', new.id::text, to_jsonb(new));
  elsif tg_op = 'UPDATE' then
    insert into {s}.audit_log (table_name, op, row_id, before, after)
    values (tg_table_name, 'U', new.id::text, to_jsonb(old), to_jsonb(new));
  else
    insert into {s}.audit_log (table_name, op, row_id, before) values (tg_table_name, 'D', old.id::text, to_jsonb(old));
  end if;
  return coalesce(new, old);
exception when others then
  raise warning 'audit of % failed: %', tg_table_name, sqlerrm;
  return coalesce(new, old);
end""",
)
_BEFORE = frozenset({1, 3})


async def make(dsn: str, size: Size) -> None:
    """Lay the schema into an empty database."""
    async with connect(dsn) as db:
        await db.script(script(size))


def measure(dsn: str) -> tuple[float, float, int]:
    """Seconds that the whole command takes, seconds of CPU (without the server), and the bytes that it prints."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "scan.json"
        begun, used = time.monotonic(), _cpu_of_children()
        with output.open("wb") as file:
            subprocess.run(
                [sys.executable, "-m", "afterwrite", "scan", "--json", "--dsn", dsn],
                stdout=file,
                check=True,
                timeout=600,
                env={**os.environ, "PYTHONWARNINGS": "error"},
            )
        return time.monotonic() - begun, _cpu_of_children() - used, output.stat().st_size


def _cpu_of_children() -> float:
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def main() -> None:
    words = argparse.ArgumentParser(prog="python -m tests.scan.big_schema", description=__doc__.partition("\n")[0])
    for name in Size.__struct_fields__:
        words.add_argument(f"--{name}", type=int, default=getattr(Size(), name))
    words.add_argument("--rounds", type=int, default=3, help="measure so often; the middle one is told")
    words.add_argument("--profile", action="store_true", help="show where the time goes (in-process, with cProfile)")
    words.add_argument("--script", action="store_true", help="print the schema's SQL and do nothing else")
    given = vars(words.parse_args())
    rounds, profile, only_script = given.pop("rounds"), given.pop("profile"), given.pop("script")
    size = Size(**given)
    if only_script:
        sys.stdout.write(script(size))
        return
    with embedded_server(settings={"fsync": "off", "max_locks_per_transaction": "4096"}) as server:
        asyncio.run(make(server.dsn(), size))
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("analyze")
        if profile:
            _profile(server.dsn())
            return
        found = asyncio.run(_survey(server.dsn()))
        verdicts = Counter(each.verdict.value for each in found.judgements)
        tables = sum(table.kind.value in "rp" for table in found.inventory.tables)
        print(f"{len(found.judgements):,} triggers on {tables:,} tables, {len(found.inventory.functions):,} functions")
        print(", ".join(f"{count:,} {verdict}" for verdict, count in verdicts.most_common()))
        taken = sorted(measure(server.dsn()) for _ in range(rounds))
        seconds, cpu, written = taken[len(taken) // 2]
        print(
            f"afterwrite scan --json: {seconds:.1f} s, {cpu:.1f} s of CPU (middle of {rounds}); {written / 1e6:.1f} MB"
        )
        machine = f"{os.cpu_count()} {platform.machine()} cores"
        print(f"PostgreSQL {server.version}, Python {platform.python_version()}, {machine}")


async def _survey(dsn: str) -> Survey:
    async with connect(dsn) as db:
        return await survey(db)


def _profile(dsn: str) -> None:
    import cProfile
    import pstats

    found: list[Survey] = []

    async def look() -> None:  # a task's result is printed in full, if only to be thrown away, when its loop ends
        found.append(await _survey(dsn))

    with cProfile.Profile() as profile:
        asyncio.run(look())
    pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
