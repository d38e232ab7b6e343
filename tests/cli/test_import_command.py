"""``afterwrite import``: it shows first, acts when told, goes by an edited mapping, and compares both sides."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from test_bad_input import afterwrite

from afterwrite.errors import ExitCode
from afterwrite.postgres import connect

LOGS = """
create table public.users (id int primary key, name text);
create table public.audit_log (
  id bigserial primary key, tbl text, pk text, op text, was jsonb, "is" jsonb, at timestamp not null default now()
);
create function public.audit() returns trigger language plpgsql as $$
begin
  insert into audit_log (tbl, pk, op, was, "is")
  values (tg_table_name, coalesce(new.id, old.id)::text, tg_op, to_jsonb(old), to_jsonb(new));
  return null;
end $$;
create trigger audit after insert or update or delete on public.users for each row execute function public.audit();
create table public.keyless (op text, at timestamptz);
create function public.tell() returns trigger language plpgsql as $$
begin
  insert into keyless (op, at) values (tg_op, now());
  return null;
end $$;
create trigger tell after insert on public.users for each row execute function public.tell();
insert into public.users select n, 'user ' || n from generate_series(1, 20) n;
"""


def lay(dsn: str) -> None:
    async def run() -> None:
        async with connect(dsn) as db:
            await db.script(LOGS)

    asyncio.run(run())


def alter(dsn: str, query: str) -> None:
    async def run() -> None:
        async with connect(dsn) as db:
            await db.run(query.encode())

    asyncio.run(run())


def test_it_shows_acts_and_compares(installed_dsn: str, tmp_path: Path) -> None:
    lay(installed_dsn)
    words = ("import", "legacy")
    looked = afterwrite(*words, AFTERWRITE_DSN=installed_dsn, COLUMNS="80")
    assert looked.returncode == 0, looked.stderr
    assert "public.audit_log of" in looked.stdout
    assert "quote_ident(tbl::text)" in looked.stdout
    assert "trigger audit" in looked.stdout
    assert "has no time zone; it is taken for" in looked.stdout
    assert "public.keyless has neither a primary key nor a unique index" in looked.stdout
    assert "Nothing was imported" in looked.stdout
    file = tmp_path / "mapping.toml"
    saved = afterwrite(
        *words, "audit_log", "--save", str(file), "--time-zone", "Europe/Berlin", AFTERWRITE_DSN=installed_dsn
    )
    assert saved.returncode == 0, saved.stderr
    text = file.read_text()
    assert 'time_zone = "Europe/Berlin"' in text
    file.write_text(text.replace("\n[log.activity]", "\n[log.activity]\ncategory = \"'user_management'\""))
    done = afterwrite(*words, "--mapping", str(file), "--apply", "--json", AFTERWRITE_DSN=installed_dsn)
    assert done.returncode == 0, done.stderr
    (imported,) = json.loads(done.stdout)["imported"]
    assert (imported["rows"], imported["stored"], imported["chunks"]) == (20, 20, 1)
    tail = afterwrite("tail", "-n", "1", "--json", AFTERWRITE_DSN=installed_dsn)
    assert json.loads(tail.stdout)["category"] == "user_management"
    agreed = afterwrite(*words, "audit_log", "--verify", AFTERWRITE_DSN=installed_dsn, COLUMNS="80")
    assert agreed.returncode == 0, agreed.stderr
    assert "both sides agree" in agreed.stdout
    alter(installed_dsn, "update audit_log set op = 'DELETE' where id = 7")
    differing = afterwrite(*words, "audit_log", "--verify", "--json", AFTERWRITE_DSN=installed_dsn)
    assert differing.returncode == ExitCode.DRIFT
    (verified,) = json.loads(differing.stdout)["verified"]
    assert verified["agrees"] is False


def test_what_cannot_be_is_said_with_its_remedy(installed_dsn: str, tmp_path: Path) -> None:
    lay(installed_dsn)
    keyless = afterwrite("import", "legacy", "keyless", AFTERWRITE_DSN=installed_dsn)
    assert keyless.returncode == ExitCode.REFUSED
    assert "ADD COLUMN import_id bigint" in keyless.stderr
    nobody = afterwrite("import", "legacy", "nobody", AFTERWRITE_DSN=installed_dsn)
    assert nobody.returncode == ExitCode.USAGE
    assert "there is no table nobody" in nobody.stderr
    file = tmp_path / "lines.jsonl"
    file.write_text('{"id": 1}\n')
    lines = afterwrite("import", "jsonl", str(file), AFTERWRITE_DSN=installed_dsn)
    assert lines.returncode == ExitCode.USAGE
    assert "line 1 of" in lines.stderr
