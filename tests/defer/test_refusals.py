"""What cannot be deferred is refused with a reason, and what will differ is said."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from triggers import a_trigger

from afterwrite.defer.clock import on_original_clock
from afterwrite.defer.deferral import plan_deferral
from afterwrite.defer.refusals import refusals
from afterwrite.defer.transplant import ShapeColumn, TableShape, transplant
from afterwrite.errors import Refused, Severity
from afterwrite.postgres import connect
from afterwrite.scan.catalog import Enabled, Event, Timing, Trigger, TriggerLevel, read_inventory
from afterwrite.store.schema import install_store

TABLE = TableShape(
    oid=2,
    schema="public",
    name="t",
    kind="r",
    persistence="p",
    replica_identity="f",
    is_partition=False,
    shape="x",
    columns=(ShapeColumn(name="id", type="integer"),),
)


def shape(**more: Any) -> TableShape:
    return TableShape(**{**{name: getattr(TABLE, name) for name in TABLE.__struct_fields__}, **more})


def rules(trigger: Trigger, table: TableShape | None = TABLE, severity: Severity = Severity.ERROR) -> list[str]:
    return [finding.rule for finding in refusals(trigger, table) if finding.severity is severity]


def test_an_ordinary_row_trigger_has_nothing_against_it() -> None:
    assert refusals(a_trigger("begin insert into x values (new.id, now(), current_date); return new; end"), TABLE) == []


@pytest.mark.parametrize(
    ("rule", "trigger", "table"),
    [
        ("timing", a_trigger(timing=Timing.BEFORE), TABLE),
        ("language", a_trigger(language="c"), TABLE),
        ("extension", a_trigger(extension="hstore"), TABLE),
        ("clone", a_trigger(parent_oid=9), TABLE),
        ("replica-only", a_trigger(enabled=Enabled.REPLICA), TABLE),
        ("depth", a_trigger("begin if PG_TRIGGER_DEPTH() > 1 then return null; end if; end"), TABLE),
        ("depth", a_trigger(when="(pg_trigger_depth() = 0)"), TABLE),
        ("depth", a_trigger("begin execute 'select pg_trigger_depth()'; end"), TABLE),
        ("self-name", a_trigger("begin x := do_it.new; end"), TABLE),
        ("self-name", a_trigger("begin x := do_it.tg_op; end"), TABLE),
        ("system-column", a_trigger("begin x := NEW . ctid; end"), TABLE),
        ("system-column", a_trigger(when="(old.xmin = new.xmin)"), TABLE),
        ("no-wal", a_trigger(), shape(persistence="u")),
        ("no-wal", a_trigger(), shape(kind="f")),
        ("leaf", a_trigger(), shape(is_partition=True)),
        ("replica-identity", a_trigger(events=(Event.INSERT, Event.DELETE)), shape(replica_identity="d")),
        (
            "when-virtual",
            a_trigger(when="(new.v > 1)"),
            shape(columns=(ShapeColumn(name="v", type="int", generated="v"),)),
        ),
    ],
)
def test_what_cannot_be_done_after_commit_is_refused_with_a_remedy(
    rule: str, trigger: Trigger, table: TableShape
) -> None:
    assert set(rules(trigger, table)) == {f"defer.{rule}"}
    assert all(finding.remedy for finding in refusals(trigger, table) if finding.severity is Severity.ERROR)


@pytest.mark.parametrize(
    ("rule", "trigger", "table"),
    [
        ("disabled", a_trigger(enabled=Enabled.DISABLED), TABLE),
        ("statement", a_trigger(level=TriggerLevel.STATEMENT), TABLE),
        ("session", a_trigger("begin x := inet_client_addr(); end"), TABLE),
        ("session", a_trigger("begin x := session_user; end"), TABLE),
        ("role", a_trigger("begin x := current_user; end"), TABLE),
    ],
)
def test_what_will_differ_is_said(rule: str, trigger: Trigger, table: TableShape) -> None:
    assert rules(trigger, table, Severity.WARNING) == [f"defer.{rule}"]
    assert rules(trigger, table) == []


def test_words_in_strings_comments_and_longer_names_mean_nothing() -> None:
    body = """begin
        -- pg_trigger_depth() new.ctid
        /* do_it.new /* current_user */ session_user */
        x := 'new.ctid' || $q$do_it.new$q$ || my.current_user_id || "Current_User";
    end"""
    assert refusals(a_trigger(body), TABLE) == []


def test_an_owner_function_may_ask_who_it_is() -> None:
    assert refusals(a_trigger("begin x := current_user; end", security_definer=True), TABLE) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x := CURRENT_TIMESTAMP;", "x := (afterwrite_clock.now()::timestamptz);"),
        ("x := current_timestamp(3);", "x := (afterwrite_clock.now()::timestamptz(3));"),
        (
            "x := localtimestamp - localtime",
            "x := (afterwrite_clock.now()::timestamp) - (afterwrite_clock.now()::time)",
        ),
        (
            "pg_catalog.now() + pg_catalog . clock_timestamp()",
            "afterwrite_clock.now() + afterwrite_clock . clock_timestamp()",
        ),
        ("select 1 as current_date, t.current_date, 'current_date', \"current_date\"", None),
        ("pg_catalog.lower(x) -- current_date", None),
        ("pg_catalog.", None),
    ],
)
def test_the_clock_is_asked_wherever_the_grammar_would_answer(source: str, expected: str | None) -> None:
    assert on_original_clock(source) == (expected or source)


def test_a_body_keeps_its_search_path_behind_the_clock() -> None:
    def path(search_path: str, **more: Any) -> str:
        create = "\n".join(transplant(a_trigger(**more), TABLE, search_path=search_path).create)
        return create.split("set search_path to ")[1].split("\n")[0].split(" set ")[0]

    assert path('"$user", public') == "afterwrite_clock, pg_catalog, public"
    assert path("", config=('search_path=""',)) == "afterwrite_clock, pg_catalog"
    assert path("x", config=("search_path=a, pg_catalog, pg_temp",)) == "afterwrite_clock, a, pg_catalog, pg_temp"
    assert path("x", config=('search_path="Odd, one", "$user"',), security_definer=True) == (
        'afterwrite_clock, pg_catalog, "Odd, one", "$user"'
    )


def test_names_are_readable_and_short_enough_and_tell_versions_apart() -> None:
    long = transplant(a_trigger(name="ünïcode " * 9, table="T" * 60), TABLE, search_path="public")
    assert len(long.run.encode()) <= 63
    one = transplant(a_trigger("begin end"), TABLE, search_path="public")
    two = transplant(a_trigger("begin return null; end"), TABLE, search_path="public")
    assert one.body.startswith("t_t_")
    assert one.body != two.body


def test_a_trigger_that_is_off_in_some_partitions_is_not_deferred(dsn: str) -> None:
    async def main() -> None:
        async with connect(dsn) as db:
            await install_store(db)
            await db.script(
                """
                create table p (id int) partition by list (id);
                create table p1 partition of p for values in (1);
                create table p2 partition of p for values in (2);
                create function f() returns trigger language plpgsql as $$ begin return null; end $$;
                create trigger t after insert on p for each row execute function f();
                alter table p2 disable trigger t;
                """
            )
            trigger = next(each for each in (await read_inventory(db)).triggers if each.table == "p")
            with pytest.raises(Refused, match=r"off in public\.p2 and on in other partitions"):
                await plan_deferral(db, trigger, source="app")
            await db.run("alter table p disable trigger t")
            await plan_deferral(db, trigger, source="app")

    asyncio.run(main())
