"""What a body does, as facts with lines, guards and the text of values."""

from __future__ import annotations

import pytest
from reading import function, read_all, read_one

from afterwrite.scan.facts import Language, OnConflict, Source, TermKind
from afterwrite.scan.tokens import uncommented


def test_an_insert_keeps_its_columns_values_and_line() -> None:
    body = read_one("\n\ninsert into public.log (a, b, c)\n values (new.id, coalesce(old.x, 'a, b'), $q$)$q$);")
    (insert,) = body.inserts
    assert (insert.schema, insert.table, insert.line) == ("public", "log", 3)
    assert insert.columns == ("a", "b", "c")
    assert insert.values == ("new.id", "coalesce(old.x, 'a, b')", "$q$)$q$")
    assert not insert.from_select
    assert body.old_columns == {"x"}
    assert body.new_columns == {"id"}


def test_values_are_cut_by_characters_though_the_parser_counts_bytes() -> None:
    body = read_one("insert into log (größe, b) values ('äöü', new.id), ('x', 1); insert into log values ('ä', new.b);")
    assert body.inserts[0].columns == ("größe", "b")
    assert body.inserts[0].rows == 2
    assert body.inserts[0].values == ()
    assert body.inserts[1].values == ("'ä'", "new.b")


def test_an_insert_from_select_keeps_its_list_and_its_query() -> None:
    body = read_one(
        "insert into log (a, b) select n.id, n.v is distinct from 'x' as changed from new_rows n where n.v > 1 "
        "on conflict (a) do update set b = excluded.b returning a into v;",
        declare="v int;",
    )
    (insert,) = body.inserts
    assert insert.values == ("n.id", "n.v is distinct from 'x'")
    assert insert.source == "select n.id, n.v is distinct from 'x' as changed from new_rows n where n.v > 1"
    assert insert.from_select
    assert insert.on_conflict is OnConflict.UPDATE
    assert insert.updates == ("b",)
    assert "v" in insert.returning_into
    assert [(read.table, read.columns) for read in body.reads] == [("new_rows", ("id", "v"))]


def test_a_union_cannot_be_laid_against_columns() -> None:
    body = read_one("insert into log (a) select 1 union all select 2;")
    assert body.inserts[0].values == ()
    assert body.inserts[0].from_select


def test_conditions_on_the_way_are_kept_with_their_negations() -> None:
    body = read_one(
        """
        if tg_op = 'DELETE' then
          delete from a where id = old.id;
          return old;
        elsif new.x > 1 then
          update a set x = 1;
        else
          insert into a values (1);
        end if;
        insert into b values (1);
        """
    )
    assert [(guard.text, guard.negated) for guard in body.deletes[0].guards] == [("tg_op = 'DELETE'", False)]
    assert body.updates[0].condition == "(tg_op = 'DELETE') is not true and (new.x > 1)"
    inner, after = body.inserts
    assert [guard.negated for guard in inner.guards] == [True, True]
    assert after.condition == "(tg_op = 'DELETE') is not true"


def test_a_branch_that_does_not_return_leaves_no_condition_behind() -> None:
    body = read_one("if new.x then perform 1; end if; insert into b values (1);")
    assert body.inserts[0].guards == ()


def test_the_only_way_through_is_known_afterwards() -> None:
    body = read_one("if new.x = 1 then perform 1; else return null; end if; insert into b values (1);")
    assert body.inserts[0].condition == "(new.x = 1)"


def test_case_without_else_raises_for_what_is_left() -> None:
    body = read_one(
        "case tg_op when 'INSERT' then insert into a values (1); when 'UPDATE' then null; end case; return null;"
    )
    (raised,) = body.raises
    assert (raised.level, raised.form) == ("exception", "case")
    assert [guard.negated for guard in raised.guards] == [True, True]
    assert body.inserts[0].condition == "(tg_op IN ('INSERT'))"


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("insert into a values (1);", True),
        ("if new.x = 1 then return new; end if;", True),
        ("if new.x = 1 then return new; else return old; end if;", False),
        ("loop return new; end loop;", False),
        ("loop exit; end loop;", True),
        ("case when new.x = 1 then return new; end case;", False),
        ("begin return new; exception when others then null; end;", True),
        ("raise exception 'x';", False),
    ],
)
def test_a_trigger_function_that_may_end_without_return_fails_there(text: str, fails: bool) -> None:
    assert any(fact.form == "no return" for fact in read_one(text).raises) is fails


def test_what_cannot_be_parsed_is_named_with_its_line_where_that_is_certain() -> None:
    (unknown,) = read_one("\n insert into a valus (1);\n return null;").unknowns
    assert (unknown.line, unknown.text) == (2, 'syntax error at or near "valus"')
    (unknown,) = read_one("\n x := 1;\n return null;").unknowns
    assert unknown.line == 2
    (unknown,) = read_one("\n ) \n ); return null;").unknowns
    assert unknown.line == 0


def test_every_way_of_changing_new_is_seen() -> None:
    ways = {
        "new.a := 1;": "a",
        "NEW.a = 1;": "a",
        "new.a[2] := 1;": "a",
        "new.a.b := 1;": "a",
        "select 1 into new.a;": "a",
        "select x, y into strict new.a, v from t;": "a",
        "insert into t values (1) returning id into new.a;": "a",
        "execute 'select 1' into new.a;": "a",
        "new := new #= 'x';": "*",
        "select * into new from t;": "*",
        "execute 'select 1' into new;": "*",
        "get diagnostics new.a = row_count;": "a",
        "for new.a in select 1 loop null; end loop;": "a",
        "open c; fetch c into new.a;": "a",
        "n.a := 1;": "a",
        "begin n.a := 1; exception when others then null; end;": "a",
    }
    declare = "v int; c cursor for select 1; n alias for new;"
    sources = [
        Source(
            language=Language.PLPGSQL,
            text=f"create function f() returns trigger language plpgsql as $x$declare {declare} begin {way} end$x$",
            trigger=True,
        )
        for way in ways
    ]
    for (way, field), body in zip(ways.items(), read_all(sources), strict=True):
        assert [fact.field for fact in body.new_assignments] == [field], (way, body.unknowns)


def test_variables_of_table_types_do_not_stop_the_parser() -> None:
    body = read_one(
        "r.x := 1; q.y := 2; select * into r from t; insert into log values (r.x);",
        declare='r public.t; q t%rowtype; s "Weird Type"[];',
    )
    assert body.parsed
    assert {fact.variable for fact in body.assignments} == {"r.x", "q.y", "r"}


def test_raises_know_their_level_form_and_handler() -> None:
    body = read_one(
        """
        raise notice 'a';
        begin
          raise exception 'no %', new.id using errcode = '23514';
        exception when others then
          raise warning 'b';
          raise;
        end;
        """
    )
    assert [(fact.level, fact.form, fact.handler) for fact in body.raises] == [
        ("notice", "raise", False),
        ("exception", "raise", False),
        ("warning", "raise", True),
        ("exception", "reraise", True),
    ]
    assert body.exception_blocks == (3,)


def test_a_variable_used_in_dynamic_sql_is_followed_through_assignments_and_branches() -> None:
    body = read_one(
        """
        target := 'a';
        if new.x then target := tg_argv[0]; end if;
        sql := 'insert into ' || target;
        sql := sql || ' values ($1)';
        execute sql using new.id;
        """,
        declare="target text; sql text;",
    )
    (dynamic,) = body.dynamics
    assert dynamic.using == ("new.id",)
    assert dynamic.term.kind is TermKind.CALL
    assert [part.kind for part in dynamic.term.parts] == [TermKind.LITERAL, TermKind.CHOICE, TermKind.LITERAL]


def test_a_variable_that_changes_in_a_loop_is_not_known() -> None:
    body = read_one("for i in 1..3 loop execute sql; sql := sql || 'x'; end loop;", declare="sql text := 'a';")
    assert body.dynamics[0].term.kind is TermKind.UNKNOWN
    assert body.dynamics[0].loop


def test_assignments_keep_their_text_and_where_they_come_from() -> None:
    body = read_one(
        "select name into v from users u where u.id = new.owner; w := v || '!';",
        declare="old_row jsonb := to_jsonb(old); v text; w text;",
    )
    assert [(fact.variable, fact.text, fact.selected) for fact in body.assignments] == [
        ("old_row", "to_jsonb(old)", False),
        ("v", "select name        from users u where u.id = new.owner", True),
        ("w", "v || '!'", False),
    ]
    (read,) = body.reads
    assert (read.table, read.columns, "v" in read.into) == ("users", ("name", "id"), True)
    assert body.old_columns == {"*"}


def test_a_key_taken_from_the_row_as_json_is_one_column() -> None:
    assert read_one("perform to_jsonb(old) ->> 'id', row_to_json(new) -> 'v';").old_columns == {"id"}


def test_columns_of_an_alias_called_like_the_row_are_not_the_rows() -> None:
    body = read_one("perform new.id from t new where new.x = 1;")
    assert body.row_reads == ()


def test_settings_sessions_locks_and_calls_out_are_facts_of_their_own() -> None:
    body = read_one(
        """
        perform set_config('a.b', 'x', true), current_setting('c.d', true), pg_advisory_xact_lock(1);
        perform current_user, pg_trigger_depth(), net.http_post('u');
        set local e.f = 1;
        notify ch, 'p';
        perform pg_notify('c2', new.id::text);
        lock table t;
        truncate t;
        create temp table x (a int);
        """
    )
    assert [(fact.name, fact.written) for fact in body.settings] == [("a.b", True), ("c.d", False), ("e.f", True)]
    assert {fact.name for fact in body.sessions} == {"current_user", "pg_trigger_depth"}
    assert [fact.what for fact in body.locks] == ["pg_advisory_xact_lock", "lock table"]
    assert [fact.function for fact in body.outside] == ["net.http_post"]
    assert [(fact.channel, fact.payload) for fact in body.notifies] == [("'ch'", "'p'"), ("'c2'", "new.id::text")]
    assert body.deletes[0].truncate
    assert [fact.what for fact in body.commands] == ["create"]


def test_writes_inside_with_and_merge_are_seen() -> None:
    body = read_one(
        """
        with gone as (delete from a where id = new.id returning *), put as (update b set x = 1)
        insert into c select * from gone;
        merge into d using e on d.id = e.id
          when matched then update set n = 1
          when not matched then insert (n) values (1);
        """
    )
    assert [fact.table for fact in body.inserts] == ["c", "d"]
    assert [fact.table for fact in body.updates] == ["b", "d"]
    assert [fact.table for fact in body.deletes] == ["a"]
    assert {read.table for read in body.reads} == {"e"}


def test_an_update_keeps_its_values_and_where() -> None:
    body = read_one("update stats s set n = s.n + 1, at = now() from t where t.id = s.id and s.k = 'set' returning n;")
    (update,) = body.updates
    assert update.columns == ("n", "at")
    assert update.values == ("s.n + 1", "now()")
    assert update.where == "t.id = s.id and s.k = 'set'"


def test_what_cannot_be_read_becomes_an_unknown_fact() -> None:
    broken = read_one("selekt 1;")
    assert [fact.rule for fact in broken.unknowns] == ["unparsable"]
    inner = read_one("perform 1 +;")
    assert not inner.parsed
    statement = read_all([Source(language=Language.STATEMENT, text="insert into")])[0]
    assert not statement.parsed


def test_a_condition_and_a_sql_function_are_read_too() -> None:
    condition, sql = read_all(
        [
            Source(language=Language.CONDITION, text="old.a IS DISTINCT FROM new.a AND f(new.b)", trigger=True),
            Source(language=Language.SQL, text="insert into t values (p, $2); select 1", parameters=("p",)),
        ]
    )
    assert (condition.old_columns, condition.new_columns) == ({"a"}, {"a", "b"})
    assert [call.name for call in condition.calls] == ["f"]
    assert sql.inserts[0].values == ("p", "$2")


def test_a_perform_knows_its_lines() -> None:
    body = read_one("perform\n 1 /\n (case when new.qty < 0 then 0 else 1 end);")
    (thrown,) = body.discards
    assert (thrown.line, thrown.further) == (1, 2)
    assert [division.line for division in body.divisions] == [2]


def test_a_return_without_a_row_is_unread_wherever_it_stands() -> None:
    body = read_one("if tg_op = 'TRUNCATE' then return; end if; return new;")
    assert [(fact.rule, fact.guards) for fact in body.unknowns] == [("unparsable", ())]


def test_a_variable_of_a_row_type_is_known_however_its_type_is_written() -> None:
    kinds = ["s . t", 's. /* the row */ "a b"', '"S".t%rowtype', "record -- whatever it is\n"]
    for body in read_all([function("r.f := 1; return new;", declare=f"r {kind};") for kind in kinds]):
        assert body.parsed
        assert [fact.variable for fact in body.assignments] == ["r.f"]


def test_what_is_known_at_the_end_of_a_block_holds_after_it() -> None:
    body = read_one("begin if tg_op = 'INSERT' then return new; end if; end; insert into b values (1); return null;")
    assert body.inserts[0].condition == "(tg_op = 'INSERT') is not true"
    body = read_one(
        "begin if new.x then return new; end if; exception when others then null; end; insert into b values (1);"
    )
    assert body.inserts[0].guards == ()


def test_comments_are_blanks_for_whoever_looks_at_a_text() -> None:
    assert uncommented("f(a, -- it's b\n  /* 'c' /* d */ */ true)") == "f(a, true)"
    assert uncommented("'--' || \"/*\" || $$ /* -- */ $$") == "'--' || \"/*\" || $$ /* -- */ $$"
