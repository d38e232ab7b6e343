"""Dumps as people have them: judged like the live database, with what is missing stood in for and told."""

from __future__ import annotations

import asyncio
import csv
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from reading import surveyed

from afterwrite.demo.schema import create_legacy_application
from afterwrite.errors import Finding, UsageError
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server
from afterwrite.scan.dump import DumpReport, let_execute, load, loaded_dump, told_of
from afterwrite.scan.dump.sorting import Deed
from afterwrite.scan.survey import Survey, survey

DUMPS = Path(__file__).parent / "dumps"


def scanned(path: Path) -> tuple[Survey, DumpReport]:
    async def scan() -> tuple[Survey, DumpReport]:
        async with loaded_dump(str(path)) as loaded, connect(loaded.dsn, guarded=True) as db:
            return told_of(await survey(db), loaded.report), loaded.report

    return asyncio.run(scan())


def of_text(tmp_path: Path, text: str | bytes) -> tuple[Survey, DumpReport]:
    path = tmp_path / "structure.sql"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return scanned(path)


def verdicts(found: Survey) -> dict[str, str]:
    return {each.trigger.name: each.verdict.value for each in found.judgements}


def rules(findings: Sequence[Finding]) -> set[str]:
    return {finding.rule for finding in findings}


# Round trips ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def legacy_dump(server: Server, dsn: str, tmp_path: Path) -> Path:
    async def lay() -> None:
        async with connect(dsn) as db:
            await create_legacy_application(db, seed=1)

    asyncio.run(lay())
    path = tmp_path / "legacy.sql"
    subprocess.run([server.bin_dir / "pg_dump", "--schema-only", "-f", path, dsn], check=True)
    return path


def test_the_legacy_application_gets_the_same_verdicts_from_its_dump(legacy_dump: Path, dsn: str) -> None:
    found, report = scanned(legacy_dump)
    with (DUMPS.parents[1] / "demo" / "verdicts.csv").open() as file:
        intended = {(row["table"], row["trigger"]): row["verdict"] for row in csv.DictReader(file)}
    judged = {(each.trigger.table, each.trigger.name): each.verdict.value for each in found.judgements}
    assert judged == intended
    assert len(judged) == 86
    assert report.not_loaded == ()
    assert report.stand_ins == ()
    assert {each.deed for each in report.left_out} == {Deed.NEEDLESS}
    live = {each.trigger.identity: each for each in surveyed(dsn).judgements}
    for each in found.judgements:
        other = live[each.trigger.identity]
        assert each.reasons == other.reasons, each.trigger.identity
        assert each.needs == other.needs
        assert (each.log_tables, each.effects, each.channels) == (other.log_tables, other.effects, other.channels)
        assert each.trigger.source == other.trigger.source
        assert each.trigger.enabled == other.trigger.enabled


def test_a_dump_in_any_order_is_loaded(legacy_dump: Path, tmp_path: Path) -> None:
    from afterwrite.scan.dump.pieces import cut

    with legacy_dump.open("rb") as file:
        pieces = [piece.text for piece in cut(file) if not piece.passed]
    backwards = tmp_path / "backwards.sql"
    backwards.write_text(";\n".join(reversed(pieces)) + ";\n")
    found, report = scanned(backwards)
    assert len(found.judgements) == 86
    assert report.not_loaded == ()


@pytest.mark.parametrize("scene", ["rails", "history"])
def test_a_scene_of_the_corpus_is_judged_from_its_dump_as_it_is_live(
    server: Server, dsn: str, tmp_path: Path, scene: str
) -> None:
    text = (DUMPS.parent / "corpus" / f"{scene}.sql").read_text()

    async def lay() -> None:
        async with connect(dsn) as db:
            await db.script(text)

    asyncio.run(lay())
    path = tmp_path / f"{scene}.sql"
    subprocess.run([server.bin_dir / "pg_dump", "--schema-only", "-f", path, dsn], check=True)
    found, report = scanned(path)
    live = {each.trigger.identity: each.verdict.value for each in surveyed(dsn).judgements}
    judged = {each.trigger.identity: each.verdict.value for each in found.judgements}
    assert judged == live
    assert report.not_loaded == ()


# Dumps of others -----------------------------------------------------------------------------------------------------


def test_a_supabase_dump_is_judged_without_its_platform() -> None:
    found, report = scanned(DUMPS / "supabase.sql")
    assert verdicts(found) == {
        "audit_visits": "retire",
        "audit_place": "retire",
        "count_visits": "defer",
        "handle_updated_at": "keep",
        "hash_secret": "keep",
        "hook_clinics": "defer",
        "tell_webhook": "defer",
        "on_auth_user_created": "defer",
    }
    audit = next(each for each in found.judgements if each.trigger.name == "audit_visits")
    assert audit.needs.settings == ("request.jwt.claims",)
    assert set(report.missing_roles) == {"anon", "authenticated"}
    assert {"pg_net", "postgis"} <= set(report.missing_extensions)
    assert {"function auth.uid()", "table auth.users", "type extensions.geography"} <= set(report.stand_ins)
    assert report.bare_tables == ()
    assert {each.kind for each in report.not_loaded} == {"CREATE INDEX"}
    assert report.of(Deed.REFUSED) == []
    assert rules(found.findings) >= {"dump-missing-extension", "dump-missing-role", "dump-stand-in"}


def test_a_rails_structure_is_judged_without_its_extensions_and_languages() -> None:
    found, report = scanned(DUMPS / "structure.sql")
    assert verdicts(found) == {
        "depots_audit": "retire",
        "depots_versioning": "review",
        "depots_guard": "review",
        "orders_audit": "retire",
        "orders_label": "review",
        "orders_mirror": "review",
        "orders_tsv": "keep",
        "orders_unknown": "review",
    }
    languages = {each.trigger.name: each.trigger.language for each in found.judgements}
    assert languages["orders_label"] == "plv8"
    assert languages["orders_mirror"] == "plpython3u"
    assert languages["depots_guard"] == "c"
    assert languages["depots_versioning"] == "c"
    assert "not hold it" in languages["orders_unknown"]
    sources = {each.trigger.name: each.trigger.source for each in found.judgements}
    assert "isn't run" in sources["orders_label"]
    assert sources["depots_guard"] == "legacy_guard_row"
    assert report.stubbed_languages == {"plv8": 1, "plpython3u": 1, "c": 1}
    assert {"citext", "hstore", "pg_trgm"} <= set(report.extensions)
    assert not Path("/tmp/afterwrite-hostile-plpython").exists()


def test_a_schema_that_was_written_by_hand_is_loaded_piece_by_piece(tmp_path: Path) -> None:
    found, report = of_text(
        tmp_path,
        """
        begin;
        drop table if exists notes cascade;
        create trigger notes_log after insert or update on notes for each row execute function log_note();
        create function log_note() returns trigger as $$
        begin insert into note_log (note, body) values (new.id, new.body); return null; end $$ language plpgsql;
        create table notes (
          id uuid primary key default uuid_generate_v4(),
          owner uuid not null references auth.users on delete cascade,
          org bigint references organisations (id),
          body text check (valid_body(body)),
          rank numeric default pick_rank(),
          place geometry(Point, 4326)
        ) tablespace fast;
        create table note_log (id bigserial primary key, note uuid, body text);
        create index concurrently on notes (body);
        alter table notes add constraint short check (length(body) < short_length());
        create function short_length() returns int language sql immutable as 'select 100';
        alter table notes add column seen int default short_length();
        create trigger notes_stamp before update on notes for each row execute procedure moddatetime(seen);
        alter table notes disable trigger notes_log;
        insert into notes values ('x');
        commit;
        """,
    )
    assert verdicts(found) == {"notes_log": "retire", "notes_stamp": "review"}
    columns = next(table for table in found.inventory.tables if table.name == "notes").columns
    assert [column.name for column in columns] == ["id", "owner", "org", "body", "rank", "place", "seen"]
    assert found.inventory.triggers[0].enabled.value == "D"
    assert len(report.bare_tables) == 1
    assert "organisations" in report.bare_tables[0]
    assert report.not_loaded == ()


def test_what_the_parser_does_not_know_yet_is_said_in_older_words(tmp_path: Path) -> None:
    found, report = of_text(
        tmp_path,
        """
        create table a (id int primary key, twice int generated always as (id * 2),
                        thrice int generated always as (id * 3) virtual,
                        constraint positive check (id > 0) not enforced);
        create table log (id int);
        create function f() returns trigger language plpgsql as
            $$ begin insert into log values (new.id); return null; end $$;
        create trigger t after insert on a for each row execute function f();
        """,
    )
    assert verdicts(found) == {"t": "retire"}
    assert report.not_loaded == ()
    assert report.bare_tables == ()


def test_several_databases_in_one_file_are_told(tmp_path: Path) -> None:
    table = "create table {0} (id int);\n"
    text = "CREATE ROLE app;\nALTER ROLE app WITH LOGIN;\n\\connect template1\n\\connect shop\n" + table.format("a")
    found, report = of_text(tmp_path, text + "\\connect billing\n" + table.format("b"))
    assert "dump-of-several-databases" in rules(found.findings)
    assert report.databases == ("template1", "shop", "billing")
    assert {table.name for table in found.inventory.tables} == {"a", "b"}


def test_an_empty_dump_and_one_of_nonsense_are_answered(tmp_path: Path) -> None:
    found, report = of_text(tmp_path, "-- nothing\n")
    assert (found.judgements, report.loaded) == ((), {})
    with pytest.raises(UsageError, match="no definition that can be read"):
        of_text(tmp_path, "this is; not sql; create table (; create trigger;")


def test_statements_that_end_the_parser_cost_themselves_alone(tmp_path: Path) -> None:
    deep = "create view deep as select " + "(" * 200_000 + "1" + ")" * 200_000 + ";\n"
    found, report = of_text(tmp_path, "create table a (id int);\n" + deep + "create table b (id int);\n")
    assert {table.name for table in found.inventory.tables} == {"a", "b"}
    [unreadable] = report.of(Deed.UNREADABLE)
    assert unreadable.lines == (2,)


def test_no_session_is_left_and_no_server(tmp_path: Path) -> None:
    path = tmp_path / "a.sql"
    path.write_text("create table a (id int);")

    async def load() -> Path:
        async with loaded_dump(str(path)) as loaded:
            assert loaded.server.pid is not None
            return loaded.server.home

    assert not asyncio.run(load()).exists()


def test_a_dumps_functions_can_be_executed_once_somebody_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.sql"
    path.write_text(
        "create function f() returns int language sql as 'select 1'; create procedure p() language sql as '';"
    )

    async def call() -> tuple[str, int]:
        async with loaded_dump(str(path)) as loaded:
            async with connect(loaded.dsn) as db:
                before = await db.attempt("select f()")
            await let_execute(loaded)
            async with connect(loaded.dsn) as db:
                await db.run(b"call p()")
                return before.message if before else "", await db.value(b"select f()")

    assert asyncio.run(call()) == ("permission denied for function f", 1)


def test_the_search_path_that_the_dump_sets_for_its_database_is_that_of_the_scan(tmp_path: Path) -> None:
    found, _ = of_text(tmp_path, "create schema app; alter database prod set search_path to app, public;")
    assert found.inventory.search_path == ("app", "public")


def test_thousands_of_statements_take_seconds(tmp_path: Path) -> None:
    tables = 250
    text = "".join(
        f"create table t{n} (id int primary key, a text, b numeric default 0);\n"
        f"create function f{n}() returns trigger language plpgsql as $$ begin\n"
        f"insert into history_log (t, id) values (tg_table_name, new.id); return null; end $$;\n"
        for n in range(tables)
    )
    text += "create table history_log (t text, id int);\n"
    text += "".join(
        f"create trigger g{k} after insert on t{n} for each row execute function f{(n + k) % tables}();\n"
        for n in range(tables)
        for k in range(6)
    )
    begun = time.monotonic()
    found, report = of_text(tmp_path, text)
    assert time.monotonic() - begun < 15
    assert sum(report.loaded.values()) == 8 * tables + 1
    assert {each.verdict.value for each in found.judgements} == {"retire"}


def test_a_dump_that_takes_too_long_is_judged_as_far_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "_SECONDS", 0.5)
    text = "".join(f"create table t{n} (id int primary key, a text unique);\n" for n in range(3_000))
    found, report = of_text(tmp_path, text)
    assert 0 < len(found.inventory.tables) < 3_000
    assert report.untried + report.loaded["CREATE TABLE"] == 3_000
    assert "dump-too-slow" in rules(found.findings)


def test_a_statement_that_hangs_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(load._SESSION, "statement_timeout", "200ms")
    text = (
        "create table a (id int);\ncreate index slow on a ((length(repeat('x', 500000000)::text)));\ncreate table b ();"
    )
    found, report = of_text(tmp_path, text)
    assert {table.name for table in found.inventory.tables} == {"a", "b"}
    assert [each.kind for each in report.not_loaded] == ["CREATE INDEX"]
