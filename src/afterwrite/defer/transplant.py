"""A trigger's body as an ordinary function: the SQL that makes it and the function that runs it for one change.

::

    trigger body (pg_proc.prosrc)  ──▶  afterwrite_deferred.<stem>       same body; new, old, tg_op, … are parameters
    WHEN, TG_ARGV, the row's type  ──▶  afterwrite_deferred.<stem>_run   (tg_op, before, after) → did the body run?
    transition tables              ──▶  afterwrite_deferred_<hash>.<name> views of the session's own rows

PL/pgSQL gives a trigger's body its variables in the same scope as it gives a function its parameters, so that names
resolve alike (tried on 15 and 18: columns of the same names, ``#variable_conflict``, ``FOUND``, exception blocks, any
RETURN). What the server's grammar answers by itself, as CURRENT_TIMESTAMP, no search path reaches: such words become
calls of the original clock. Nothing else of the body is touched.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence

import msgspec
from psycopg import sql

from afterwrite.defer.clock import CLOCK, on_original_clock
from afterwrite.scan.catalog import Trigger, TriggerLevel
from afterwrite.scan.tokens import tokens, unquote

BODIES = "afterwrite_deferred"
STALE = "AW002"
TABLE_WORDS = frozenset({"tg_relid", "tg_relname", "tg_table_name", "tg_table_schema"})


class ShapeColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column: ``type`` as format_type prints it with every name qualified, ``generated`` as pg_attribute has it
    (``s`` stored, ``v`` virtual, empty otherwise), with its expression."""

    name: str
    type: str
    generated: str = ""
    expression: str | None = None


class TableShape(msgspec.Struct, frozen=True, kw_only=True):
    """What the catalog says of a trigger's table now. ``kind``, ``persistence`` and ``replica_identity`` are
    pg_class's letters; ``shape`` is a digest of its columns."""

    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    replica_identity: str
    is_partition: bool
    shape: str
    columns: tuple[ShapeColumn, ...]


class Transplant(msgspec.Struct, frozen=True, kw_only=True):
    """The functions for one trigger: their names in schema afterwrite_deferred, and the statements for and against."""

    body: str
    run: str
    create: tuple[str, ...]
    drop: tuple[str, ...]


def transplant(
    trigger: Trigger, table: TableShape, *, search_path: str, stem: str | None = None, salt: str = ""
) -> Transplant:
    """The SQL that makes (again) the body of this trigger and the function that runs it for one change.

    ``search_path`` is the path that its writers have, for a function that sets none. ``trigger.when`` must name
    everything with its schema. ``stem`` is the body's name where it has one already; ``salt`` makes another name. Ask
    ``refusals`` first: this takes the trigger as deferrable.
    """
    stem = stem or _stem(trigger, search_path, salt)
    body, run = _name(BODIES, stem), _name(BODIES, f"{stem}_run")
    rows_schema = _rows_schema(stem) if _transition_tables(trigger) else None
    created = [
        _body(trigger, body, _name(table.schema, table.name), body_path(trigger, search_path, rows_schema)),
        f"comment on function {body} is {_text(f'Body of trigger {trigger.identity}, run after commit.')}",
        *(_ownership(body, _name(trigger.function_owner)) if trigger.security_definer else ()),
        *(_transition_views(trigger, table, rows_schema) if rows_schema else ()),
        _run(trigger, table, run, body),
        f"revoke all on function {run} from public",
    ]
    dropped = drop_statements(stem)
    return Transplant(body=stem, run=f"{stem}_run", create=(*dropped, *created), drop=dropped)


def drop_statements(stem: str) -> tuple[str, ...]:
    """What undoes a transplant, by its body's name."""
    return (
        f"drop function if exists {_name(BODIES, f'{stem}_run')}",
        f"drop function if exists {_name(BODIES, stem)}",
        f"drop schema if exists {_name(_rows_schema(stem))} cascade",
    )


def _rows_schema(stem: str) -> str:
    return f"{BODIES}_{stem[-8:]}"


def _name(*parts: str) -> str:
    return sql.Identifier(*parts).as_string()


def _text(value: str) -> str:
    return sql.Literal(value).as_string().strip()


def _stem(trigger: Trigger, search_path: str, salt: str) -> str:
    content = msgspec.json.encode([trigger, search_path, *([salt] if salt else [])], order="deterministic")
    readable = re.sub(r"\W+", "_", f"{trigger.table}_{trigger.name}".lower(), flags=re.ASCII).strip("_")
    return f"{readable[:50]}_{hashlib.blake2b(content, digest_size=4).hexdigest()}"


def body_path(trigger: Trigger, search_path: str, rows_schema: str | None = None) -> str:
    """The search path of the transplanted body: the clock's schema, then what it was."""
    own = [value for name, _, value in (item.partition("=") for item in trigger.config) if name == "search_path"]
    entries = re.findall(r'"(?:[^"]|"")*"|[^\s,"]+', own[0] if own else search_path)
    # "$user" was the writer's schema and would be the replayer's, which may well be ours; an owner's stays the owner's.
    dropped = {'""'} if trigger.security_definer else {'""', '"$user"', "$user"}
    entries = [entry for entry in entries if entry not in dropped]
    if "pg_catalog" not in entries:
        entries.insert(0, "pg_catalog")  # the server searches it first where it is not named
    return ", ".join([*([rows_schema] if rows_schema else []), CLOCK, *entries])


def _body(trigger: Trigger, body: str, row: str, path: str) -> str:
    settings = [f"set search_path to {path}"]
    for name, _, value in (item.partition("=") for item in trigger.config):
        if name != "search_path":
            settings.append(f"set {'.'.join(map(_name, name.split('.')))} to {_text(value)}")
    return (
        f"create function {body} (\n"
        f"    new {row}, old {row}, tg_op text, tg_name name, tg_when text, tg_level text, tg_relid oid,\n"
        "    tg_relname name, tg_table_name name, tg_table_schema name, tg_nargs integer, tg_argv text[]\n"
        f") returns {row} language plpgsql security {'definer' if trigger.security_definer else 'invoker'}\n"
        f"{' '.join(settings)}\nas {_dollar_quoted(on_original_clock(trigger.source))}"
    )


def _ownership(body: str, owner: str) -> Iterator[str]:
    # Whoever may call it with rows of his own making has its owner's rights. Any other body runs with its caller's,
    # and the caller may be the role that the original transaction had.
    yield f"revoke all on function {body} from public"
    # A grant to ourselves outlives the change of owner, which asks that the new owner may create in the schema.
    yield f"grant execute on function {body} to current_user"
    yield f"grant create on schema {BODIES} to {owner}"
    yield f"alter function {body} owner to {owner}"
    yield f"revoke create on schema {BODIES} from {owner}"


def _run(trigger: Trigger, table: TableShape, run: str, body: str) -> str:
    row = _name(table.schema, table.name)
    lines = ["#variable_conflict use_column", "declare", f"    old {row};", f"    new {row};"]
    lines += ["    leaf regclass;", "    acting text;", "    stamped text;", "begin"]
    if trigger.level is TriggerLevel.ROW:
        lines += [
            f"    if $2 is not null then old := {_row(table, row, '$2')}; end if;",
            f"    if $3 is not null then new := {_row(table, row, '$3')}; end if;",
        ]
        lines += _the_old_row_is_whole(table, row)
        if sees_whole_rows(trigger):
            lines += [
                *_every_value_has_a_place(table, row, "old", "$2"),
                *_every_value_has_a_place(table, row, "new", "$3"),
            ]
    elif _transition_tables(trigger):
        lines += [
            f"    if afterwrite.table_shape({_text(row)}::regclass) is distinct from {_text(table.shape)} then",
            f"        raise exception 'the columns of % changed', {_text(row)} using errcode = '{STALE}';",
            "    end if;",
            f"    perform afterwrite.miss_columns({_text(row)}::regclass, {_text(table.shape)}, r.lost)",
            "      from (select e.value - array["
            + ", ".join(_text(column.name) for column in table.columns)
            + "] as lost",
            "              from jsonb_array_elements(coalesce($2, '[]') || coalesce($3, '[]')) as e) r",
            "     where r.lost <> '{}' limit 1;",
            "    perform set_config('afterwrite.old_rows', coalesce($2::text, ''), true);",
            "    perform set_config('afterwrite.new_rows', coalesce($3::text, ''), true);",
        ]
    if trigger.when:
        lines.append(f"    if not coalesce(({on_original_clock(trigger.when)}), false) then return false; end if;")
    lines += _call(trigger, table, row, body)
    return (
        f"create function {run} (text, jsonb, jsonb) returns boolean language plpgsql\n"
        f"set search_path to {CLOCK}, pg_catalog\nas {_dollar_quoted(chr(10).join(['', *lines, '']))}"
    )


def _every_value_has_a_place(table: TableShape, row: str, name: str, place: str) -> list[str]:
    """Refuse a row with a value whose column is another one now, where the body would go on without it unawares."""
    lost = f"{place} - array(select jsonb_object_keys(to_jsonb({name})))"
    return [
        f"    if {lost} <> '{{}}' then",
        f"        perform afterwrite.miss_columns({_text(row)}::regclass, {_text(table.shape)}, {lost});",
        "    end if;",
    ]


def _the_old_row_is_whole(table: TableShape, row: str) -> list[str]:
    """Refuse an old row of which the WAL had the key only: REPLICA IDENTITY may have been changed since."""
    generated = "".join(f" - {_text(column.name)}" for column in table.columns if column.generated)
    there = "array(select jsonb_object_keys($2))"
    return [
        f"    if $2 is not null and $3 - {there} <> '{{}}' then",
        f"        perform afterwrite.miss_old_row({_text(row)}::regclass);",
        f"    elsif $3 is null and to_jsonb(old){generated} - {there} <> '{{}}' then",
        "        -- Or the column was added later, which is nothing to miss.",
        f"        perform afterwrite.miss_old_row({_text(row)}::regclass)",
        f"         where not afterwrite.logs_old_rows({_text(row)}::regclass);",
        "    end if;",
    ]


def sees_whole_rows(trigger: Trigger) -> bool:
    """Whether the body or its WHEN takes OLD or NEW as a whole; what it names column by column it would miss itself."""
    for text in (trigger.source, trigger.when or ""):
        listed = list(tokens(text))
        for place, token in enumerate(listed):
            if unquote(token.text) not in ("new", "old") or token.kind not in ("word", "quoted"):
                continue
            before = listed[place - 1].text.lower() if place else ""
            after = [each.text for each in listed[place + 1 : place + 3]]
            of_a_column = after[:1] == ["."] and after[1:2] != ["*"]
            if not of_a_column and before not in ("return", "."):
                return True
    return False


def _call(trigger: Trigger, table: TableShape, row: str, body: str) -> list[str]:
    name, level = _text(trigger.name), _text(trigger.level.value.upper())
    relation, relname, schema = f"{_text(row)}::regclass", _text(table.name), _text(table.schema)
    lines: list[str] = []
    if table.kind == "p" and trigger.level is TriggerLevel.ROW and names_its_table(trigger):
        lines.append(f"    leaf := afterwrite.leaf_of({relation}, coalesce($3, $2));")
        relation = "leaf"
        relname = "(select c.relname from pg_catalog.pg_class c where c.oid = leaf)"
        schema = (
            "(select n.nspname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
            " where c.oid = leaf)"
        )
    call = [
        f"    perform {body}(",
        f"        new, old, $1, {name}, 'AFTER', {level}, {relation}::oid, {relname}, {relname}, {schema},",
        f"        {len(trigger.arguments)}, {_argv(trigger.arguments)});",
    ]
    if trigger.security_definer:
        lines += call
    else:
        lines += [
            "    acting := pg_catalog.current_setting('role');",
            "    stamped := coalesce(pg_catalog.current_setting('afterwrite.role', true), '');",
            "    if stamped <> '' then",
            "        if not pg_catalog.pg_has_role(session_user, stamped, 'usage') then",
            "            raise exception 'the original transaction ran as %, whose rights % has not',",
            "                stamped, session_user using errcode = 'insufficient_privilege',",
            "                hint = pg_catalog.format('grant %I to %I', stamped, session_user);",
            "        end if;",
            "        perform pg_catalog.set_config('role', stamped, true);",
            "    end if;",
            *call,
            "    if stamped <> '' then perform pg_catalog.set_config('role', acting, true); end if;",
        ]
    return [*lines, "    return true;", "end"]


def names_its_table(trigger: Trigger) -> bool:
    """Whether the body asks which table it fired for."""
    return not TABLE_WORDS.isdisjoint(token.text.lower() for token in tokens(trigger.source) if token.kind == "word")


def _row(table: TableShape, row: str, place: str) -> str:
    """SQL for the row in a jsonb parameter. A trigger sees stored generated columns, which the WAL lacks, and sees no
    virtual ones (NULL, PostgreSQL 18)."""
    generated = [column for column in table.columns if column.generated]
    if not generated:
        return f"jsonb_populate_record(null::{row}, {place})"
    overrides = ", ".join(f"{_text(column.name)}, {_generated(column)}" for column in generated)
    populated = f"jsonb_populate_record(null::{row}, {place}) as r"
    return f"(select jsonb_populate_record(r, jsonb_build_object({overrides})) from {populated})"  # noqa: S608


def _generated(column: ShapeColumn) -> str:
    return f"({column.expression})" if column.generated == "s" else f"null::{column.type}"


def _transition_tables(trigger: Trigger) -> list[tuple[str, str]]:
    if trigger.level is not TriggerLevel.STATEMENT:
        return []
    named = [(trigger.old_table, "old_rows"), (trigger.new_table, "new_rows")]
    return [(name, setting) for name, setting in named if name]


def _transition_views(trigger: Trigger, table: TableShape, rows_schema: str) -> Iterator[str]:
    # A view of a setting writes nothing: a temporary table a transaction would fill the catalog with dead rows. Its
    # columns are listed, since a view over the table's row type would forbid people to drop a column of their table.
    schema = _name(rows_schema)
    columns = ", ".join(f"{_name(column.name)} {column.type}" for column in table.columns)
    picked = ", ".join(
        f"{_generated(column)} as {_name(column.name)}" if column.generated else _name(column.name)
        for column in table.columns
    )
    yield f"create schema {schema}"
    yield f"grant usage on schema {schema} to public"
    for name, setting in _transition_tables(trigger):
        view = _name(rows_schema, name)
        rows = f"coalesce(nullif(pg_catalog.current_setting('afterwrite.{setting}', true), ''), '[]')::pg_catalog.jsonb"
        yield f"create view {view} as select {picked} from pg_catalog.jsonb_to_recordset({rows}) as r ({columns})"  # noqa: S608
        yield f"grant select on {view} to public"


def _argv(arguments: Sequence[str]) -> str:
    if not arguments:
        return "null"
    elements = ",".join('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in arguments)
    return f"{_text(f'[0:{len(arguments) - 1}]={{{elements}}}')}::text[]"


def _dollar_quoted(source: str) -> str:
    tag = "afterwrite"
    while f"${tag}" in source:
        tag += "_"
    return f"${tag}${source}${tag}$"
