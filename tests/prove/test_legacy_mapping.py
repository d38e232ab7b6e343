"""What a trigger's body says it writes: inferred, specialised by operation, and shown."""

from __future__ import annotations

import pytest

from afterwrite.prove.body import Written
from afterwrite.prove.expression import TRUE, show
from afterwrite.prove.legacy import LegacyMapping, Override, TableShape, infer
from afterwrite.prove.syntax import Routine
from afterwrite.record import Operation
from afterwrite.scan.catalog import Event, Timing, Trigger, TriggerLevel

LOG = ("public", "audit_log")
TABLES = {
    ("public", "orders"): TableShape(schema="public", table="orders", columns=("id", "status", "amount"), key=("id",)),
    LOG: TableShape(schema="public", table="audit_log", columns=("id", "at", "table_name", "op", "row")),
}


def trigger(source: str, **changes: object) -> Trigger:
    settings: dict[str, object] = {
        "oid": 1,
        "schema": "public",
        "table": "orders",
        "table_oid": 2,
        "name": "orders_audit",
        "timing": Timing.AFTER,
        "level": TriggerLevel.ROW,
        "events": (Event.INSERT, Event.UPDATE, Event.DELETE),
        "create": "",
        "function_oid": 3,
        "function_schema": "public",
        "function": "audit",
        "language": "plpgsql",
        "source": source,
        "definition": "",
        "function_owner": "owner",
    }
    return Trigger(**{**settings, **changes})  # type: ignore[arg-type]


def mapping(source: str, routines: list[Routine] | None = None, **changes: object) -> LegacyMapping:
    return infer(
        trigger(source, **changes),
        legacy={LOG},
        tables=TABLES,
        routines={(each.schema, each.name): each for each in routines or []},
    )


def columns(found: LegacyMapping, operation: Operation, number: int = 0) -> dict[str, str]:
    return {name: show(value) for name, value in found.written[operation][number].values}


def only(found: LegacyMapping, operation: Operation) -> Written:
    (written,) = found.written[operation]
    return written


def test_branches_that_the_operation_decides_leave_one_row_each() -> None:
    found = mapping(
        """
        begin
          if tg_op = 'INSERT' then
            insert into audit_log (table_name, op, row) values (tg_table_name, tg_op, to_jsonb(new));
          elsif tg_op = 'UPDATE' then
            insert into audit_log (table_name, op, old, row) values (tg_relname, tg_op, to_jsonb(old), to_jsonb(new));
          else
            insert into public.audit_log (table_name, op, old) values (tg_table_name, tg_op, to_jsonb(old));
          end if;
          return null;
        end"""
    )
    assert columns(found, Operation.INSERT) == {"table_name": "'orders'", "op": "'INSERT'", "row": "to_jsonb(new)"}
    assert columns(found, Operation.UPDATE)["old"] == "to_jsonb(old)"
    assert columns(found, Operation.DELETE) == {"table_name": "'orders'", "op": "'DELETE'", "old": "to_jsonb(old)"}
    assert all(only(found, operation).condition == TRUE for operation in found.operations)
    assert found.identifies == {"public.audit_log": ("table_name", "op")}


def test_variables_are_followed_through_assignments_and_merge_where_branches_meet() -> None:
    found = mapping(
        """
        declare
          v_text text := 'none';
          v_row orders%rowtype;
        begin
          v_row := coalesce(new, old);
          if v_row.amount > 100 then
            v_text := 'big';
          elsif v_row.amount > 10 then
            v_text := 'mid';
          end if;
          insert into audit_log (row, op) values (v_text, v_row.id);
          return v_row;
        end"""
    )
    assert columns(found, Operation.INSERT) == {
        "row": "case when new.amount > 100 then 'big' else case when new.amount > 10 then 'mid' else 'none' end end",
        "op": "new.id",
    }
    assert columns(found, Operation.DELETE)["op"] == "old.id"
    assert "op" in found.identifies["public.audit_log"]


def test_an_early_return_becomes_the_condition_of_what_follows() -> None:
    found = mapping(
        """
        begin
          if tg_op = 'UPDATE' and new.status = old.status then
            return new;
          end if;
          insert into audit_log (op) values (tg_op);
          return new;
        end"""
    )
    assert only(found, Operation.INSERT).condition == TRUE
    assert show(only(found, Operation.UPDATE).condition) == "(new.status = old.status) is not true"


def test_arguments_of_the_trigger_are_constants() -> None:
    found = mapping(
        """
        declare v_label text := to_jsonb(new) ->> tg_argv[1];
        begin
          insert into audit_log (op, row, at) values (tg_argv[0] || '.' || lower(tg_op), v_label, tg_argv[7]);
          return null;
        end""",
        arguments=("order", "status"),
        events=(Event.INSERT,),
    )
    assert columns(found, Operation.INSERT) == {
        "op": "'order.insert'",
        "row": "to_jsonb(new) ->> 'status'",
        "at": "null",
    }


def test_case_statements_choose_by_operation() -> None:
    found = mapping(
        """
        begin
          case tg_op
            when 'INSERT' then insert into audit_log (op) values ('new');
            when 'UPDATE', 'DELETE' then insert into audit_log (op) values ('changed');
          end case;
          return null;
        end"""
    )
    assert columns(found, Operation.INSERT) == {"op": "'new'"}
    assert columns(found, Operation.DELETE) == {"op": "'changed'"}


def test_what_is_read_elsewhere_or_made_up_is_opaque_and_says_why() -> None:
    found = mapping(
        """
        declare v_name text;
        begin
          select name into v_name from customers where id = new.customer_id;
          insert into audit_log (a, b, c, d, e, f)
          values (v_name, now(), gen_random_uuid(), inet_client_addr(), format('%s did %s', v_name, new.status),
                  to_char(new.amount, '999'));
          return null;
        end""",
        events=(Event.INSERT,),
    )
    assert found.compared()[Operation.INSERT] == {
        "audit_log.a": "lookup",
        "audit_log.b": "time",
        "audit_log.c": "generated",
        "audit_log.d": "session",
        "audit_log.e": "partly",
        "audit_log.f": "opaque",
    }


def test_a_loop_over_the_rows_columns_is_folded() -> None:
    found = mapping(
        """
        declare v_diff jsonb := '{}'; v_key text; v_value jsonb;
        begin
          for v_key, v_value in select * from jsonb_each(to_jsonb(new)) loop
            continue when v_key = 'updated_at';
            if v_value is distinct from to_jsonb(old) -> v_key then
              v_diff := v_diff || jsonb_build_object(v_key, v_value);
            end if;
          end loop;
          insert into audit_log (row) values (v_diff);
          return null;
        end""",
        events=(Event.UPDATE,),
    )
    assert columns(found, Operation.UPDATE)["row"].startswith("<fold '{}'::jsonb over jsonb_each(to_jsonb(new))")
    assert found.compared()[Operation.UPDATE] == {"audit_log.row": "exact"}


def test_one_row_for_each_changed_column_is_a_loop_of_rows() -> None:
    found = mapping(
        """
        declare r record;
        begin
          for r in select n.key, o.value as was, n.value as is
                     from jsonb_each_text(to_jsonb(new)) n join jsonb_each_text(to_jsonb(old)) o on o.key = n.key
                    where n.value is distinct from o.value
          loop
            insert into audit_log (op, was, is_now) values (r.key, r.was, r.is);
          end loop;
          return null;
        end""",
        events=(Event.UPDATE,),
    )
    row = only(found, Operation.UPDATE)
    assert row.rows is not None
    assert not row.many
    assert set(found.compared()[Operation.UPDATE].values()) == {"exact"}


def test_a_loop_over_a_table_may_write_any_number_of_rows() -> None:
    found = mapping(
        """
        declare r record;
        begin
          for r in select * from subscribers loop
            insert into audit_log (op, row) values (tg_op, r.name);
          end loop;
          return null;
        end""",
        events=(Event.INSERT,),
    )
    row = only(found, Operation.INSERT)
    assert row.many
    assert "lookup" in show(row.condition)


def test_inserts_from_transition_tables_are_rows_of_the_changes() -> None:
    found = mapping(
        """
        begin
          insert into audit_log (op, was, row)
          select tg_op, to_jsonb(o), to_jsonb(n) from old_rows o join new_rows n on n.id = o.id where n.amount > 5;
          return null;
        end""",
        level=TriggerLevel.STATEMENT,
        events=(Event.UPDATE,),
        old_table="old_rows",
        new_table="new_rows",
    )
    row = only(found, Operation.UPDATE)
    assert not row.statement
    assert show(row.condition) == "(new.amount > 5) and (new.id = old.id)"
    assert columns(found, Operation.UPDATE) == {"op": "'UPDATE'", "was": "to_jsonb(old)", "row": "to_jsonb(new)"}


def test_a_statement_trigger_without_transition_tables_writes_once() -> None:
    found = mapping(
        "begin insert into audit_log (op) values (tg_level || ' ' || tg_op); return null; end",
        level=TriggerLevel.STATEMENT,
        events=(Event.TRUNCATE, Event.DELETE),
    )
    assert only(found, Operation.TRUNCATE).statement
    assert columns(found, Operation.DELETE) == {"op": "'STATEMENT DELETE'"}


def test_dynamic_sql_is_followed_where_its_text_is_constant() -> None:
    found = mapping(
        """
        begin
          execute format('insert into %I (op, row) values ($1, $2)', tg_argv[0]) using tg_op, to_jsonb(new);
          return null;
        end""",
        arguments=("audit_log",),
        events=(Event.INSERT,),
    )
    assert columns(found, Operation.INSERT) == {"op": "'INSERT'", "row": "to_jsonb(new)"}


def test_functions_that_write_are_followed_with_their_arguments() -> None:
    helper = Routine(
        schema="public",
        name="write_log",
        language="plpgsql",
        source="begin insert into audit_log (op, row) values (p_op, p_row); end",
        parameters=("p_op", "p_row"),
    )
    masked = Routine(schema="public", name="mask", language="sql", source="select $1 - 'secret'", parameters=("p_row",))
    found = mapping(
        "begin perform write_log(p_row => mask(to_jsonb(new)), p_op => lower(tg_op)); return null; end",
        routines=[helper, masked],
        events=(Event.INSERT,),
    )
    assert columns(found, Operation.INSERT) == {"op": "'insert'", "row": "to_jsonb(new) - 'secret'"}


def test_an_insert_without_column_names_takes_them_from_the_table() -> None:
    found = mapping(
        "begin insert into audit_log values (1, now(), tg_table_name, tg_op, to_jsonb(new)); return null; end",
        events=(Event.INSERT,),
    )
    assert columns(found, Operation.INSERT)["table_name"] == "'orders'"


def test_rows_that_an_exception_handler_may_undo_are_marked_and_noted() -> None:
    found = mapping(
        """
        begin
          begin
            insert into audit_log (op) values (tg_op);
          exception when others then
            raise warning 'lost';
          end;
          return null;
        end""",
        events=(Event.INSERT,),
    )
    assert only(found, Operation.INSERT).swallowed
    assert found.notes == ("an exception handler of the body may undo its rows in silence",)


def test_other_tables_are_no_business_of_proof() -> None:
    found = mapping(
        "begin insert into notifications (t) values ('x'); update counters set n = n + 1; return null; end",
        events=(Event.INSERT,),
    )
    assert found.operations == ()


def test_a_body_that_blanks_a_column_of_its_own_copy_logs_the_blank() -> None:
    found = mapping(
        "begin new.status := null; insert into audit_log (row) values (to_jsonb(new)); return null; end",
        events=(Event.INSERT,),
    )
    assert columns(found, Operation.INSERT) == {
        "row": "jsonb_build_object('id', new.id, 'status', null, 'amount', new.amount)"
    }


def test_an_aggregate_over_a_transition_table_is_one_row_a_statement() -> None:
    found = mapping(
        "begin insert into audit_log (op, row) select 'bulk', count(*) from n where n.amount > 5; return null; end",
        level=TriggerLevel.STATEMENT,
        events=(Event.INSERT,),
        new_table="n",
    )
    row = only(found, Operation.INSERT)
    assert row.statement
    assert row.condition == TRUE
    assert found.compared()[Operation.INSERT] == {"audit_log.op": "exact", "audit_log.row": "statement"}


def test_on_a_partitioned_table_the_name_is_that_of_a_leaf() -> None:
    tables = {
        **TABLES,
        ("public", "orders"): TableShape(
            schema="public", table="orders", columns=("id",), key=("id",), leaves=("orders_1", "orders_2")
        ),
    }
    found = infer(
        trigger("begin insert into audit_log (table_name) values (tg_table_name); return null; end"),
        legacy={LOG},
        tables=tables,
    )
    assert columns(found, Operation.INSERT) == {"table_name": "<partition of orders>"}


def test_a_body_that_cannot_be_parsed_gives_no_rows_and_a_note() -> None:
    found = mapping("begin this is not sql at all; end", events=(Event.INSERT,))
    assert found.operations == ()
    assert found.notes[0].startswith("the body cannot be followed")


def test_the_mapping_shows_every_legacy_column_with_its_value_and_how_it_is_compared() -> None:
    found = mapping(
        "begin insert into audit_log (op, row, at) values (tg_op, to_jsonb(new) - 'amount', now()); return null; end",
        events=(Event.INSERT,),
        when="(new.amount > (0)::numeric)",
    )
    (row,) = found.rows()
    assert (row.table, row.times, row.when) == ("public.audit_log", "change", "new.amount > 0")
    shown = {each.column: (each.value, each.compared, each.why) for each in row.columns}
    assert shown["op"] == ("'INSERT'", "exact", None)
    assert shown["row"] == ("to_jsonb(new) - 'amount'", "exact", None)
    assert shown["at"] == ("<time: now()>", "no", "time")
    assert shown["id"] == ("", "no", "default")  # not in the INSERT
    assert [each.column for each in row.columns if each.identifies] == ["op"]


def test_the_plan_says_what_a_column_holds_in_the_place_of_the_body() -> None:
    source = (
        "begin insert into audit_log (op, row, table_name)"
        " values (tg_op, (select code from codes where id = new.id), 'x'); return null; end"
    )
    said = [
        Override(column="row", value="coalesce(new.id, old.id)::text"),
        Override(column="audit_log.table_name", ignore="a trigger of the log rewrites it"),
    ]
    found = infer(trigger(source), legacy={LOG}, tables=TABLES, overrides=said)
    assert columns(found, Operation.INSERT)["row"] == "new.id::text"
    assert columns(found, Operation.DELETE)["row"] == "old.id::text"
    assert found.overrides == tuple(said)
    assert not found.problems
    (who,) = [each for each in found.rows()[0].columns if each.column == "table_name"]
    assert (who.value, who.compared, who.why, who.planned) == (
        "a trigger of the log rewrites it",
        "no",
        "ignored",
        True,
    )


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (Override(column="nowhere", value="new.id"), "no legacy column of that name"),
        (Override(column="row", value="my_secret(new.id)"), "cannot be computed"),
        (Override(column="row", value="new.id; drop table x"), "cannot be computed"),
        (Override(column="row", value="customer.id"), "cannot be computed"),
    ],
)
def test_what_the_plan_cannot_mean_is_not_used_and_said(said: Override, why: str) -> None:
    source = "begin insert into audit_log (op, row) values (tg_op, new.id); return null; end"
    found = infer(trigger(source), legacy={LOG}, tables=TABLES, overrides=[said])
    (problem,) = found.problems
    assert why in problem
    assert found.notes == found.problems
    assert not found.overrides
    assert columns(found, Operation.INSERT)["row"] == "new.id"


@pytest.mark.parametrize(
    ("when", "shown"),
    [
        ("(old.* IS DISTINCT FROM new.*)", "old is distinct from new"),
        ("((new.status)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[]))", None),
        ("(pg_trigger_depth() = 0)", "<session: pg_trigger_depth()> = 0"),
    ],
)
def test_when_conditions_are_read_as_the_server_prints_them(when: str, shown: str | None) -> None:
    found = mapping(
        "begin insert into audit_log (op) values (tg_op); return null; end", events=(Event.UPDATE,), when=when
    )
    text = show(found.when[Operation.UPDATE])
    assert text == shown if shown else "opaque" not in text
