"""What the catalog says, read only and with hardly a privilege."""

from __future__ import annotations

import asyncio
import time

import msgspec
import psycopg
import pytest
from psycopg import conninfo
from reading import surveyed

from afterwrite.errors import AfterwriteError
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server
from afterwrite.scan.catalog import (
    Enabled,
    Event,
    Inventory,
    Kind,
    Timing,
    TriggerLevel,
    read_inventory,
    when_condition,
)
from afterwrite.scan.classify import Verdict
from afterwrite.scan.report.document import document

SCHEMA = """
create schema app;
create table app.owner (id int primary key, email text unique, age int check (age > 0));
create table app.item (
  id bigint generated always as identity, owner_id int not null references app.owner on delete cascade,
  "Name" text default 'x', price numeric, doubled numeric generated always as (price * 2) stored,
  primary key (id), exclude using gist (int4range(0, 1) with &&)
);
create index on app.item (price);
create table app.event_part (id int, day date, primary key (id, day)) partition by range (day);
create table app.event_1 partition of app.event_part for values from ('2020-01-01') to ('2021-01-01');
create table app.item_log (id bigint, op text);
create view app.items as select * from app.item;
create function app.log_it() returns trigger language plpgsql set search_path = app, pg_temp as $$
begin
  insert into item_log values (new.id, tg_op);
  return null;
end $$;
comment on function app.log_it() is 'logs';
create trigger logs after insert or update of "Name", price on app.item
  for each row when (new.price > 1 and new."Name" <> ') when (') execute function app.log_it('a''b', '', 'ü');
comment on trigger logs on app.item is 'what it is for';
create trigger rows after update on app.item referencing old table as was new table as "is"
  for each statement execute function app.log_it();
create trigger parts after insert on app.event_part for each row execute function app.log_it();
alter table app.event_1 disable trigger parts;
create constraint trigger late after delete on app.item deferrable initially deferred
  for each row execute function app.log_it();
alter table app.item disable trigger rows;
create schema afterwrite;
create table afterwrite.own (id int);
create trigger own after insert on afterwrite.own for each row execute function app.log_it();
"""


def laid(dsn: str, sql: str = SCHEMA) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql)  # type: ignore[call-overload]


def inventory_of(dsn: str, *schemas: str) -> Inventory:
    async def read() -> Inventory:
        async with connect(dsn) as db:
            return await read_inventory(db, schemas=schemas or None)

    return asyncio.run(read())


def test_triggers_are_read_as_they_stand_and_ours_are_left_out(dsn: str) -> None:
    laid(dsn)
    found = {trigger.name: trigger for trigger in inventory_of(dsn).triggers}
    assert set(found) == {"logs", "rows", "parts", "late"}
    logs = found["logs"]
    assert (logs.schema, logs.table, logs.identity) == ("app", "item", "app.item.logs")
    assert (logs.timing, logs.level) == (Timing.AFTER, TriggerLevel.ROW)
    assert logs.events == (Event.INSERT, Event.UPDATE)
    assert logs.columns == ("Name", "price")
    assert logs.arguments == ("a'b", "", "ü")
    assert logs.when is not None
    assert "new.price > " in logs.when
    assert "') when ('" in logs.when
    assert logs.comment == "what it is for"
    assert (logs.function_schema, logs.function, logs.language) == ("app", "log_it", "plpgsql")
    assert logs.config == ("search_path=app, pg_temp",)
    assert logs.source.startswith("\nbegin")
    assert logs.definition.startswith("CREATE OR REPLACE FUNCTION app.log_it()")
    assert logs.create.startswith("CREATE TRIGGER logs")
    rows = found["rows"]
    assert (rows.level, rows.old_table, rows.new_table) == (TriggerLevel.STATEMENT, "was", "is")
    assert rows.enabled is Enabled.DISABLED
    late = found["late"]
    assert (late.constraint, late.deferrable, late.initially_deferred) == (True, True, True)


def test_a_partitioned_tables_trigger_counts_once(dsn: str) -> None:
    laid(dsn)
    found = inventory_of(dsn)
    parts = [trigger for trigger in found.triggers if trigger.name == "parts"]
    assert [(trigger.table, trigger.parent_oid) for trigger in parts] == [("event_part", None)]
    assert [(clone.table, clone.parent_oid, clone.enabled) for clone in found.clones] == [
        ("event_1", parts[0].oid, Enabled.DISABLED)
    ]


def test_tables_come_with_keys_constraints_and_columns(dsn: str) -> None:
    laid(dsn)
    found = {table.full_name: table for table in inventory_of(dsn).tables}
    item, owner = found["app.item"], found["app.owner"]
    assert item.primary_key == ("id",)
    assert [(column.name, column.type, column.identity, column.generated) for column in item.columns] == [
        ("id", "bigint", True, False),
        ("owner_id", "integer", False, False),
        ("Name", "text", False, False),
        ("price", "numeric", False, False),
        ("doubled", "numeric", False, True),
    ]
    assert item.columns[2].default == "'x'::text"
    assert [(key.columns, key.referenced_oid, key.on_delete) for key in item.foreign_keys] == [
        (("owner_id",), owner.oid, "c")
    ]
    assert owner.referenced_by == item.foreign_keys
    assert any(unique.exclusion for unique in item.uniques)
    assert [check.columns for check in owner.checks] == [("age",)]
    assert {unique.columns for unique in owner.uniques} == {("id",), ("email",)}
    assert found["app.event_1"].partition_of == found["app.event_part"].oid
    assert found["app.event_part"].kind is Kind.PARTITIONED
    assert found["app.items"].kind is Kind.VIEW


def test_triggers_on_commands_are_told(dsn: str) -> None:
    laid(
        dsn,
        """
        create function watch() returns event_trigger language plpgsql as $$ begin raise notice 'ddl'; end $$;
        create event trigger watch_ddl on ddl_command_end execute function watch();
        """,
    )
    (found,) = [each for each in surveyed(dsn).findings if each.rule == "event-trigger"]
    assert found.where == "watch_ddl"


def test_a_trigger_of_another_schema_counts_though_it_is_not_told(dsn: str) -> None:
    laid(
        dsn,
        """
        create schema app; create schema far;
        create table app.item (id int primary key);
        create table far.audit_log (id int);
        create function far.refuse() returns trigger language plpgsql as $$
        begin
          if new.id < 0 then raise exception 'no'; end if;
          return new;
        end $$;
        create trigger refuse before insert on far.audit_log for each row execute function far.refuse();
        create function app.log_it() returns trigger language plpgsql as $$
        begin
          insert into far.audit_log values (new.id);
          return null;
        end $$;
        create trigger log_it after insert on app.item for each row execute function app.log_it();
        """,
    )
    (judged,) = surveyed(dsn, ["app"]).judgements
    assert (judged.trigger.name, judged.verdict) == ("log_it", Verdict.KEEP)


def test_only_the_schemas_asked_for_are_judged_though_all_are_known(dsn: str) -> None:
    laid(dsn)
    laid(dsn, "create table t (id int); create trigger t after insert on t for each row execute function app.log_it();")
    assert {trigger.schema for trigger in inventory_of(dsn, "public").triggers} == {"public"}
    assert "app.item" in {table.full_name for table in inventory_of(dsn, "public").tables}


def test_write_statistics_are_those_of_the_server(dsn: str) -> None:
    laid(dsn)
    laid(
        dsn,
        "insert into app.owner values (1, 'a', 1), (2, 'b', 2); update app.owner set age = 3; delete from app.owner;",
    )
    laid(dsn, "select pg_stat_force_next_flush()")
    owner = next(table for table in inventory_of(dsn).tables if table.name == "owner")
    assert (owner.inserted, owner.updated, owner.deleted, owner.collected) == (2, 2, 2, True)


def test_a_role_without_any_privilege_gets_the_same_verdicts(dsn: str, server: Server) -> None:
    laid(dsn)
    mine = {each.trigger.identity: each.verdict for each in surveyed(dsn).judgements}
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create role scan_stranger login")
        connection.execute("revoke all on schema public from public")
    try:
        theirs = surveyed(conninfo.make_conninfo(dsn, user="scan_stranger"))
        assert {each.trigger.identity: each.verdict for each in theirs.judgements} == mine
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("drop role scan_stranger")


def test_reading_writes_nothing_and_works_where_nothing_may_be_written(dsn: str) -> None:
    laid(dsn)

    async def read() -> Inventory:
        async with connect(dsn, options={"default_transaction_read_only": "on"}) as db:
            found = await read_inventory(db)
            assert await db.value(b"select pg_current_xact_id_if_assigned()") is None
            return found

    assert len(asyncio.run(read()).triggers) == 4


def test_a_survey_says_what_else_was_noticed(dsn: str) -> None:
    laid(dsn)
    laid(
        dsn,
        """
        create table nokey (id int);
        create trigger nokey after update on nokey for each row execute function app.log_it();
        create unlogged table quick (id int primary key);
        create trigger quick after update on quick for each row execute function app.log_it();
        """,
    )
    found = surveyed(dsn)
    said = {(finding.rule, finding.where) for finding in found.findings}
    assert {
        ("no-replica-identity", "public.nokey"),
        ("unlogged-table", "public.quick"),
        ("disabled-trigger", "app.item.rows"),
        ("partition-differs", "app.event_1.parts"),
        ("no-statistics", found.inventory.database),
    } <= said
    assert {each.trigger.name for each in found.of(Verdict.KEEP)} == {"quick", "late"}


def test_the_json_is_what_scripts_may_rely_on(dsn: str) -> None:
    laid(dsn)
    said = msgspec.json.decode(msgspec.json.encode(document(surveyed(dsn, ["app"]))))
    assert {"schema_version", "triggers", "findings"} < set(said)
    logs = next(each for each in said["triggers"] if each["name"] == "logs")
    assert {name: logs[name] for name in ("schema", "table", "function", "events", "level", "timing", "enabled")} == {
        "schema": "app",
        "table": "item",
        "function": "app.log_it",
        "events": ["insert", "update"],
        "level": "row",
        "timing": "after",
        "enabled": "O",
    }
    assert logs["verdict"] == "retire"
    assert logs["log_tables"] == ["app.item_log"]
    assert [(reason["rule"], reason["line"]) for reason in logs["reasons"]] == [("appends-to-log", 3)]
    assert logs["reasons"][0]["text"]


def test_a_database_without_triggers_has_an_empty_survey(dsn: str) -> None:
    found = surveyed(dsn)
    assert found.judgements == ()
    said = document(found)
    assert (said.schema_version, said.triggers, said.findings) == (1, (), ())


def test_needs_name_old_columns_settings_and_lookups(dsn: str) -> None:
    laid(
        dsn,
        """
        create table t (id int primary key, v int, owner int);
        create table owners (id int, name text);
        create table t_audit (id int, was int, who text, ip inet, claims text);
        create function whoami() returns text language sql stable as $$ select current_setting('app.user', true) $$;
        create function log_t() returns trigger language plpgsql as $$
        declare
          owner_name text;
        begin
          select name into owner_name from owners where id = old.id;
          insert into t_audit values (old.id, old.v, whoami() || owner_name, inet_client_addr());
          return null;
        end $$;
        create trigger t after update on t for each row execute function log_t();
        """,
    )
    (judgement,) = surveyed(dsn).judgements
    assert judgement.verdict is Verdict.RETIRE
    assert judgement.needs.replica_identity_full
    assert judgement.needs.old_columns == ("v",)
    assert judgement.needs.settings == ("app.user",)
    assert judgement.needs.session == ("inet_client_addr",)
    assert judgement.needs.lookups == ("public.owners",)


@pytest.mark.parametrize(
    ("create", "when"),
    [
        ("CREATE TRIGGER a AFTER UPDATE ON public.t FOR EACH ROW EXECUTE FUNCTION f()", None),
        (
            "CREATE TRIGGER a AFTER UPDATE ON t FOR EACH ROW WHEN ((old.a > new.a)) EXECUTE FUNCTION f()",
            "(old.a > new.a)",
        ),
        (
            "CREATE TRIGGER \"WHEN (\" AFTER UPDATE ON t FOR EACH ROW WHEN ((new.a = ')'::text)) "
            "EXECUTE FUNCTION f('WHEN (x)')",
            "(new.a = ')'::text)",
        ),
    ],
)
def test_the_when_condition_is_cut_out_of_the_printed_trigger(create: str, when: str | None) -> None:
    assert when_condition(create) == when


def test_a_missing_parser_is_said_with_its_remedy(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AfterwriteError, match="pgparse") as raised:
        surveyed(dsn)
    assert raised.value.remedy


def test_thousands_of_triggers_take_no_longer_each_than_hundreds(dsn: str) -> None:
    laid(dsn, "create table audit_log (id bigserial, t text, was jsonb, now jsonb)")
    seconds: list[float] = []
    for each in range(250):
        laid(
            dsn,
            f"""
            create table t{each} (id int primary key, v int);
            create function log{each}() returns trigger language plpgsql as $$
            declare was jsonb; is_now jsonb;
            begin
              if tg_op <> 'INSERT' then was := to_jsonb(old); end if;
              if tg_op <> 'DELETE' then is_now := to_jsonb(new); end if;
              insert into audit_log (t, was, now) values (tg_table_name || '{each}', was, is_now);
              return coalesce(new, old);
            end $$;
            create function guard{each}() returns trigger language plpgsql as $$
            begin
              if new.v < {each} then raise exception 'too small'; end if;
              return new;
            end $$;
            """
            + "".join(
                f"create trigger a{n} after insert or update or delete on t{each}"
                f" for each row execute function log{each}('{n}');"
                f"create trigger b{n} before update on t{each} for each row execute function guard{each}();"
                for n in range(4)
            ),
        )
        if each in {24, 249}:
            started = time.monotonic()
            found = surveyed(dsn)
            seconds.append(time.monotonic() - started)
    few, many = seconds
    # Ten times as many; what compared each with each would take a hundred times as long.
    assert many < 30 * few
    assert len(found.of(Verdict.RETIRE)) == len(found.of(Verdict.KEEP)) == 1000
