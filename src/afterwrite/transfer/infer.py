"""Which column of a legacy log says what: from its triggers' INSERTs, then from names, types and sample rows. Pure.

::

    Table (catalog), what triggers write (prove.legacy), samples ──infer──▶ Inferred: LogMapping, and where each is from

Styles: ``changes`` (one row a change, with images of the row), ``record_version`` (supa_audit), ``logged_actions``
(hstore of the row and of what changed), ``history`` (copies of rows), ``events`` (who did what to which thing).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from afterwrite.errors import Refused
from afterwrite.postgres import quoted
from afterwrite.prove.body import Written
from afterwrite.prove.expression import (
    Ambient,
    Around,
    Call,
    Case,
    Cast,
    Const,
    Expression,
    Field,
    Opaque,
    Relname,
    Side,
    Whole,
    Why,
    parts_of,
    show,
)
from afterwrite.prove.legacy import LegacyMapping
from afterwrite.record import Operation
from afterwrite.scan.catalog import Column, Inventory, Table, Trigger
from afterwrite.transfer.mapping import LogMapping

OPERATIONS: Mapping[str, Operation] = {
    **dict.fromkeys(("insert", "i", "create", "created", "new", "add", "added", "+"), Operation.INSERT),
    **dict.fromkeys(("update", "u", "updated", "change", "changed", "edit", "modify", "~"), Operation.UPDATE),
    **dict.fromkeys(("delete", "d", "deleted", "destroy", "destroyed", "remove", "removed", "-"), Operation.DELETE),
    **dict.fromkeys(("truncate", "t", "truncated"), Operation.TRUNCATE),
}
"""The words with which logs say what was done to a row, in lower case."""

_NAMES: Mapping[str, tuple[str, ...]] = {
    "time": (
        "occurred_at", "created_at", "logged_at", "changed_at", "performed_at", "happened_at", "executed_at", "ts",
        "at", "timestamp", "event_time", "action_tstamp_clk", "action_tstamp_tx", "action_tstamp", "action_time",
        "pgh_created_at", "inserted_at", "created_on", "date_created", "valid_to", "valid_until", "deleted_at", "stamp",
        "time", "date", "created", "changed_on", "modified_at", "audit_time", "log_time", "recorded_at",
        "make_active_at", "updated_at",
    ),
    "operation": (
        "operation", "op", "tg_op", "dml_type", "change_type", "event_type", "action_type", "audit_action", "action",
        "event", "type", "pgh_label", "pgosc_op", "audit_type", "sql_op", "kind",
    ),
    "schema": ("table_schema", "schema_name", "schema", "tbl_schema", "table_prefix"),
    "table": (
        "table_name", "tablename", "tbl", "tbl_name", "table", "relation", "relname", "entity_type", "entity",
        "item_type", "target_type", "object_type", "resource_type", "auditable_type", "subject_type", "model",
        "model_name", "entity_name", "record_type", "collection", "resource",
    ),
    "entity_id": (
        "record_id", "row_id", "entity_id", "item_id", "target_id", "object_id", "resource_id", "auditable_id",
        "subject_id", "record_pk", "row_pk", "table_pk", "pk", "primary_key", "primary_key_value", "row_key",
        "model_id", "pgh_obj_id", "reference_id",
    ),
    "actor_id": (
        "actor_id", "user_id", "changed_by", "performed_by", "done_by", "modified_by", "updated_by", "actor", "userid",
        "author_id", "whodunnit", "auth_uid", "by_whom", "who", "created_by", "account_id", "user", "username",
        "user_name", "app_user", "user_email", "admin_id", "causer_id", "session_user_name", "db_user", "changed_user",
    ),
    "tenant_id": ("tenant_id", "organization_id", "organisation_id", "org_id", "company_id", "workspace_id"),
    "ip": ("ip", "ip_address", "client_addr", "client_ip", "remote_addr", "remote_ip", "ip_addr"),
    "user_agent": ("user_agent", "browser", "agent"),
    "session_id": ("session_id",),
    "request_id": ("request_id", "correlation_id", "request_uuid"),
    "trace_id": ("trace_id",),
    "before": (
        "old_data", "old_values", "old_value", "old_record", "old_row", "before", "row_before", "before_data", "old",
        "was", "previous", "original", "original_data", "object", "old_state", "data_before", "old_json",
    ),
    "after": (
        "new_data", "new_values", "new_value", "record", "new_record", "new_row", "after", "row_after", "after_data",
        "new", "is", "current", "row_data", "data_after", "new_state", "new_json", "row_to_json",
    ),
    "diff": ("changes", "diff", "object_changes", "changed_fields", "audited_changes", "delta", "changeset"),
    "action": (
        "action", "event", "activity", "activity_type", "event_name", "event_type", "verb", "what", "type", "name",
    ),
    "summary": ("description", "summary", "message", "note", "comment", "details", "text", "remarks", "body"),
    "metadata": ("metadata", "meta", "details", "context", "extra", "properties", "payload", "data", "info", "params"),
    "duration_ms": ("duration_ms", "elapsed_ms"),
}  # fmt: skip
_JSON = ("jsonb", "json")
_LOGGED = ("row_data", "changed_fields")
# Fields that keep what they are given to the letter.
_VERBATIM = (
    "action", "entity_type", "entity_id", "actor_id", "tenant_id", "session_id", "request_id", "trace_id", "user_agent",
    "summary", "before", "after", "metadata",
)  # fmt: skip
_ACTOR_SETTING = re.compile(
    r"auth\.uid\(\)|'sub'|current_setting\('[^']*(user|actor|account|whodunnit|person|uid)", re.I
)
_MOST_ROOTS = 2_000


class Trace(msgspec.Struct, frozen=True):
    """Where a field's expression comes from, for people."""

    field: str
    sql: str
    source: str


class Inferred(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping to be looked at, where its parts come from, and what else is to be said of it."""

    mapping: LogMapping
    traces: tuple[Trace, ...]
    notes: tuple[str, ...] = ()


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a log besides its table.

    ``writers`` are mappings of triggers that write it; ``samples`` some of its rows' values as text, by column;
    ``leading`` the columns in whose order an index reads it; ``time_zone`` that of the database.
    """

    inventory: Inventory
    writers: tuple[LegacyMapping, ...] = ()
    samples: Mapping[str, tuple[str | None, ...]] = {}
    leading: frozenset[str] = frozenset()
    hstore: str | None = None
    time_zone: str = "UTC"


class _Value(msgspec.Struct, frozen=True):
    """What one INSERT of a trigger gives a column."""

    trigger: Trigger
    operation: Operation
    value: Expression


def infer_log(table: Table, evidence: Evidence) -> Inferred:
    """The mapping of a log; raises Refused where nothing tells its rows apart, or when they were written."""
    return _Inference(table, evidence).infer()


class _Inference:
    def __init__(self, table: Table, evidence: Evidence) -> None:
        self.table, self.evidence = table, evidence
        self.columns = {column.name: column for column in table.columns}
        self.writes = _writes(table, evidence.writers)
        self.used: set[str] = set()
        self.traces: list[Trace] = []
        self.notes: list[str] = []
        self.fields: dict[str, str] = {}
        self.imaged: set[str] = set()

    def infer(self) -> Inferred:
        key = self.key()
        tables = tuple(sorted({quoted(each.trigger.schema, each.trigger.table) for each in self.evidence.writers}))
        copied = self.copied()
        time = self.time(copied)
        if copied is not None:
            style = self.history(*copied)
        elif {"record", "old_record", "record_id", "old_record_id"} <= set(self.columns):
            style = self.changes("record_version")
        elif self.hstores() >= set(_LOGGED) and "action" in self.columns:
            style = self.logged_actions()
        else:
            style = self.changes("changes") if self.operation() or self.images() else self.events()
        self.people()
        order = self.order(key, time)
        zoned = self.is_zoned(time)
        mapping = LogMapping(
            table=quoted(self.table.schema, self.table.name),
            key=key,
            order=order,
            time=time,
            style=style,
            time_zone=None if zoned else self.evidence.time_zone,
            activity={name: self.fields[name] for name in _ORDERED if name in self.fields},
            tables=tables,
            elsewhere=self.elsewhere(time, zoned=zoned),
            keys=self.keys(copied) if "relation" in self.fields and "entity_id" not in self.fields else {},
            roots=self.roots(tables) if "relation" in self.fields else {},
        )
        return Inferred(mapping=mapping, traces=tuple(self.traces), notes=tuple(self.notes))

    # --- what it needs ------------------------------------------------------------------------------------------------

    def key(self) -> tuple[str, ...]:
        """The primary key, or another unique index that holds every row."""
        name = quoted(self.table.schema, self.table.name)
        whole = [each for each in self.table.uniques if not (each.partial or each.exclusion or each.expressions)]
        whole.sort(key=lambda each: (not each.primary, len(each.columns), each.name))
        for each in whole:
            if all(self.columns[column].not_null for column in each.columns if column in self.columns):
                return each.columns
        if whole:
            loose = [column for column in whole[0].columns if not self.columns[column].not_null]
            raise Refused(
                f"{name} has a unique index {whole[0].name}, whose {', '.join(loose)} may be null: it does not tell"
                " every row from the others",
                remedy=f"run ALTER TABLE {name} ALTER {quoted(loose[0])} SET NOT NULL, or give it a primary key:"
                f" ALTER TABLE {name} ADD COLUMN import_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
            )
        raise Refused(
            f"{name} has neither a primary key nor a unique index: nothing tells its rows apart, so that an import that"
            " is interrupted could not go on without losing or doubling some",
            remedy=f"run ALTER TABLE {name} ADD COLUMN import_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY (it"
            " rewrites the table), or CREATE UNIQUE INDEX CONCURRENTLY over columns that are not null",
        )

    def time(self, copied: tuple[Table, Side] | None) -> str:
        """The column that says when a row was written, as SQL."""
        ranges = [column for column in self.table.columns if column.type == "tstzrange"]
        if ranges and (copied is not None or ranges[0].name in ("sys_period", "valid_period", "system_time")):
            name = quoted(ranges[0].name)
            self.took("time", f"coalesce(upper({name}), lower({name}))", f"the period {ranges[0].name}", ranges[0].name)
            return f"coalesce(upper({name}), lower({name}))"
        own = set(self.columns)
        if copied is not None and (extra := own - {column.name for column in copied[0].columns}):
            own = extra  # a copied created_at is when the row came to be, and not its copy
        moments = [each for each in self.table.columns if _is_moment(each.type)]
        found = [each for each in moments if each.name in own] or moments
        if not found:
            raise Refused(
                f"{quoted(self.table.schema, self.table.name)} has no column of a date or time: nothing says when its"
                " rows were written",
                remedy='where some other column tells, say so in a mapping: time = "to_timestamp(at_ms / 1000.0)"'
                " (`afterwrite import legacy --help` has --mapping)",
            )
        ranks = _NAMES["time"]

        def rank(column: Column) -> tuple[bool, bool, int]:
            clock = any(_is_clock(each.value) for each in self.writes.get(column.name, ()))
            default = bool(column.default and re.search(r"now\(\)|timestamp|clock", column.default, re.IGNORECASE))
            name = _plain(column.name)
            return not (clock or default), not column.not_null, ranks.index(name) if name in ranks else len(ranks)

        best = min(found, key=rank)
        clock = next((each for each in self.writes.get(best.name, ()) if _is_clock(each.value)), None)
        source = f"trigger {clock.trigger.name}" if clock else "its default" if best.default else "its name and type"
        self.took("time", quoted(best.name), source, best.name)
        return quoted(best.name)

    def order(self, key: tuple[str, ...], time: str) -> tuple[str, ...]:
        """Random keys are read in the order of time, where an index gives it."""
        if not any(self.columns[name].type == "uuid" for name in key):
            return ()
        column = next((each for each in self.table.columns if quoted(each.name) == time), None)
        if column is not None and column.not_null and column.name in self.evidence.leading:
            return tuple(dict.fromkeys((column.name, *key)))
        self.notes.append(
            "its key is random, and no index gives the order of time: rows that are written after the import began are"
            " found by `afterwrite import legacy --verify`"
        )
        return ()

    def is_zoned(self, time: str) -> bool:
        column = next((each for each in self.table.columns if quoted(each.name) == time), None)
        return column is None or (column.type.endswith("with time zone") and "without" not in column.type)

    # --- styles -------------------------------------------------------------------------------------------------------

    def copied(self) -> tuple[Table, Side] | None:
        """The table whose rows it has copies of, and which of the two rows of a change they are."""
        for trigger, written in _rows(self.evidence.writers, self.table):
            own = next((each for each in self.evidence.inventory.tables if each.oid == trigger.table_oid), None)
            if own is None:
                continue
            whole = next((value.side for _, value in written.values if isinstance(value, Whole)), None)
            if whole is not None:  # insert into … select old.*
                return own, whole
            fields = {
                column: value.side
                for column, value in written.values
                if isinstance(value, Field) and value.column == column
            }
            if len(fields) >= max(2, len(own.columns) // 2) and set(own.primary_key) <= set(fields):
                return own, Side.OLD if set(fields.values()) == {Side.OLD} else Side.NEW
        if self.evidence.writers:
            return None
        base = re.sub(r"_?(history|hist|log|audit|versions?|event|archive)$", "", self.table.name)
        for own in self.evidence.inventory.tables:
            names = {column.name for column in own.columns}
            if (
                own.name == base != self.table.name
                and own.primary_key
                and set(own.primary_key) <= set(self.columns)
                and len(names & set(self.columns)) > len(names) // 2
            ):
                old = any(_plain(name) in ("valid_to", "valid_until", "sys_period") for name in self.columns)
                return own, Side.OLD if old else Side.NEW
        return None

    def history(self, own: Table, side: Side) -> str:
        extra = [name for name in self.columns if name not in {column.name for column in own.columns}]
        image = "to_jsonb(legacy.*)"
        if extra:
            image += f" - array[{', '.join(_text(name) for name in extra)}]"
        where = f"copies of {quoted(own.schema, own.name)}"
        self.give("relation", _text(quoted(own.schema, own.name)), where)
        if not self.operation(among=extra):
            events = {event.value for each in self.evidence.writers for event in each.trigger.events}
            if len(events) == 1:
                self.give("operation", _text(events.pop()), "the one operation of its triggers")
            else:
                self.give("action", _text(f"{own.name}.version"), where)
        operation = self.fields.get("operation")
        if operation is not None and side is not Side.OLD and not operation.startswith("'"):
            gone = f"lower({operation}) like 'd%'"
            self.give("before", f"case when {gone} then {image} end", where)
            self.give("after", f"case when {gone} then null else {image} end", where)
        else:
            self.give("before" if side is Side.OLD else "after", image, where)
        self.imaged = {column.name for column in own.columns} & set(self.columns)
        self.used |= self.imaged
        return "history"

    def changes(self, style: str) -> str:
        self.operation()
        self.relation()
        self.images()
        if style == "changes":
            self.entity_id()
        if not {"before", "after"} & set(self.fields):
            self.by_name("diff", lambda column: column.type in _JSON)
        return style

    def logged_actions(self) -> str:
        """The row before (for an INSERT: the new one), and what an UPDATE changed in it."""
        if not self.operation():
            self.give("operation", "action::text", "its form", "action")
        self.relation()
        row, changed = self.as_jsonb("row_data"), self.as_jsonb("changed_fields")
        first = f"upper(left({self.fields['operation']}, 1))"
        self.give("before", f"case when {first} in ('U', 'D') then {row} end", "its form", "row_data")
        self.give(
            "after",
            f"case {first} when 'I' then {row} when 'U' then {row} || {changed} end",
            "its form",
            "changed_fields",
        )
        if all(self.is_hstore(self.columns[name]) or self.columns[name].type == "jsonb" for name in _LOGGED):
            self.imaged = set(_LOGGED)
        return "logged_actions"

    def events(self) -> str:
        self.by_name("action", _is_text)
        self.by_name("entity_type", _is_text, names=_NAMES["table"])
        self.entity_id()
        if "entity_type" in self.fields and "action" not in self.fields:
            self.notes.append("no column says what was done: every row gets the log's name as its action")
        return "events"

    # --- columns ------------------------------------------------------------------------------------------------------

    def operation(self, among: Collection[str] | None = None) -> bool:
        if "operation" in self.fields:
            return True
        free = [name for name in self.columns if name not in self.used and (among is None or name in among)]
        for name in free:
            values = self.writes.get(name, ())
            told = [each for each in values if OPERATIONS.get(_word(each.value)) is each.operation]
            if told and len(told) * 2 > len(values):
                return self.give("operation", f"{quoted(name)}::text", f"trigger {told[0].trigger.name}", name)
        ranked = sorted(free, key=lambda name: _rank("operation", name))
        for name in ranked:
            seen = {value.lower() for value in self.evidence.samples.get(name, ()) if value}
            known = seen & set(OPERATIONS)
            named = _plain(name) in _NAMES["operation"]
            if named and (
                (known and len(known) * 2 >= len(seen)) or (not seen and _plain(name) in ("operation", "op", "tg_op"))
            ):
                return self.give("operation", f"{quoted(name)}::text", "its name and values", name)
        return False

    def relation(self) -> None:
        """Which table a row is about, as a quoted name."""
        triggers = {each.trigger.oid: each.trigger for each in self.evidence.writers}
        for name in self.columns:
            values = self.writes.get(name, ())
            if name in self.used or not values:
                continue
            if all(_is_relname(each) for each in values) and _plain(name) not in _NAMES["schema"]:
                self.relation_of(name, f"trigger {values[0].trigger.name}", triggers.values())
                return
            words = {(_word(each.value, lower=False), each.trigger.schema, each.trigger.table) for each in values}
            if (
                _plain(name) in _NAMES["table"]
                and len({word for word, *_ in words}) == len(words)
                and "" not in {word for word, *_ in words}
            ):
                cases = " ".join(
                    f"when {_text(word)} then {_text(quoted(schema, table))}" for word, schema, table in sorted(words)
                )
                sql = f"case {quoted(name)}::text {cases} end"
                self.give("relation", sql, f"trigger {values[0].trigger.name}")
                self.give("entity_type", f"{quoted(name)}::text", "its name", name)
                return
        found = self.named("table", _is_text)
        if found is not None:
            self.relation_of(found, "its name", ())

    def relation_of(self, name: str, source: str, triggers: Collection[Trigger]) -> None:
        column = f"{quoted(name)}::text"
        schema = self.named("schema", _is_text)
        seen = [value for value in self.evidence.samples.get(name, ()) if value]
        if schema is not None:
            self.used.add(schema)
            self.give("relation", f"quote_ident({quoted(schema)}::text) || '.' || quote_ident({column})", source, name)
        elif seen and all("." in value for value in seen):
            self.give("relation", column, source, name)
        else:
            places: dict[str, set[str]] = {}
            for trigger in triggers:
                places.setdefault(trigger.schema, set()).add(trigger.table)
            schemas = sorted(places) or ["public"]
            usual = "public" if "public" in schemas or not places else schemas[0]
            cases = [
                f"when {_text(table)} then {_text(each)}"
                for each in schemas
                if each != usual
                for table in sorted(places[each])
            ]
            where = f"quote_ident(case {column} {' '.join(cases)} else {_text(usual)} end) || '.'" if cases else ""
            prefix = where or _text(f"{quoted(usual)}.")
            self.give("relation", f"{prefix} || quote_ident({column})", source, name)

    def images(self) -> bool:
        """The rows before and after, as JSON."""
        if {"before", "after"} & set(self.fields):
            return True
        for name, column in self.columns.items():
            values = [each for each in self.writes.get(name, ()) if _inner(each.value) != Const(None)]
            if name in self.used or not values or not (column.type in _JSON or self.is_hstore(column)):
                continue
            sides = [_sides(each.value) for each in values]
            source = f"trigger {values[0].trigger.name}"
            if not all(_has_row(each.value) for each in values):
                continue  # an object of a few values is no image of a row, unless it is called so
            if all(side == {Side.OLD} for side in sides) and "before" not in self.fields:
                self.give("before", self.as_jsonb(name), source, name)
            elif all(side == {Side.NEW} for side in sides) and "after" not in self.fields:
                self.give("after", self.as_jsonb(name), source, name)
        for field in ("before", "after"):
            if field not in self.fields:
                self.by_name(field, lambda column: column.type in _JSON or self.is_hstore(column), json=True)
        return bool({"before", "after"} & set(self.fields))

    def entity_id(self) -> None:
        told: dict[str, list[Trigger]] = {}
        for mapping in self.evidence.writers:
            for name in mapping.identifies.get(quoted(self.table.schema, self.table.name), ()):
                values = [each for each in self.writes.get(name, ()) if each.trigger == mapping.trigger]
                if name not in self.used and all(_is_key(each.value) for each in values):
                    told.setdefault(name, []).append(mapping.trigger)
        if told:
            # The column that most triggers give the key to; a name that says so goes first.
            best = min(told, key=lambda name: (_rank("entity_id", name), -len(told[name])))
            self.give("entity_id", f"{quoted(best)}::text", f"trigger {told[best][0].name}", best)
            return
        self.by_name("entity_id", lambda column: not column.type.endswith("[]") and column.type not in _JSON)

    def people(self) -> None:
        """Who, from where, and whatever else says a name."""
        for name in self.columns:
            for each in self.writes.get(name, ()):
                if name in self.used or "actor_id" in self.fields:
                    continue
                if _ACTOR_SETTING.search(show(each.value)):
                    self.give("actor_id", f"{quoted(name)}::text", f"trigger {each.trigger.name}", name)
                elif isinstance(_inner(each.value), Around) and _inner(each.value) == Around(Ambient.CLIENT_ADDRESS):
                    self.give("ip", _address(self.columns[name]), f"trigger {each.trigger.name}", name)
        self.by_name("actor_id", lambda column: column.type not in _JSON)
        for field in ("tenant_id", "session_id", "request_id", "trace_id", "user_agent"):
            self.by_name(field, lambda column: column.type not in _JSON)
        if "ip" not in self.fields and (
            found := self.named("ip", lambda column: _is_text(column) or column.type == "inet")
        ):
            self.give("ip", _address(self.columns[found]), "its name", found)
        self.by_name("duration_ms", lambda column: column.type in ("integer", "bigint", "double precision", "numeric"))
        self.by_name("summary", _is_text)
        self.by_name("metadata", lambda column: column.type in _JSON)

    def elsewhere(self, time: str, *, zoned: bool) -> tuple[str, ...]:
        """Columns that the activity has word for word in some field, and need not be repeated."""
        exact = {sql for field, sql in self.fields.items() if field in _VERBATIM}
        found = {name for name in self.columns if {quoted(name), f"{quoted(name)}::text"} & exact}
        # Where these say nothing, something takes their place.
        derived = {self.fields.get("action"), self.fields.get("entity_type") if "relation" in self.fields else None}
        found -= {name for name in found if f"{quoted(name)}::text" in derived and not self.columns[name].not_null}
        if zoned:
            found |= {name for name in self.columns if quoted(name) == time}
        return tuple(name for name in self.columns if name in found | self.imaged)

    # --- helpers ------------------------------------------------------------------------------------------------------

    def named(self, field: str, fits: Callable[[Column], bool], names: Sequence[str] = ()) -> str | None:
        """The free column whose name suits best."""
        wanted = names or _NAMES[field]
        found = [
            name
            for name, column in self.columns.items()
            if name not in self.used and fits(column) and _plain(name) in wanted
        ]
        return min(found, key=lambda name: wanted.index(_plain(name)), default=None)

    def by_name(
        self, field: str, fits: Callable[[Column], bool], *, names: Sequence[str] = (), json: bool = False
    ) -> None:
        if field in self.fields:
            return
        found = self.named(field, fits, names)
        if found is not None:
            as_json = json or field in ("diff", "metadata")
            bare = field == "duration_ms"
            sql = self.as_jsonb(found) if as_json else quoted(found) if bare else f"{quoted(found)}::text"
            self.give(field, sql, "its name", found)

    def give(self, field: str, sql: str, source: str, column: str | None = None) -> bool:
        self.fields[field] = sql
        self.took(field, sql, source, column)
        return True

    def took(self, field: str, sql: str, source: str, column: str | None = None) -> None:
        self.traces.append(Trace(field, sql, source))
        if column is not None:
            self.used.add(column)

    def is_hstore(self, column: Column) -> bool:
        return column.type.rpartition(".")[2] == "hstore"

    def hstores(self) -> set[str]:
        return {name for name, column in self.columns.items() if self.is_hstore(column) or column.type in _JSON}

    def as_jsonb(self, name: str) -> str:
        """The column as jsonb."""
        column = self.columns[name]
        if self.is_hstore(column):
            return f"{quoted(self.evidence.hstore or 'public', 'hstore_to_jsonb')}({quoted(name)})"
        return quoted(name) if column.type == "jsonb" else f"{quoted(name)}::jsonb"

    def keys(self, copied: tuple[Table, Side] | None) -> dict[str, tuple[str, ...]]:
        """The key columns of the tables whose rows it has, by which a row's image is told from others."""
        written = {each.trigger.table_oid for each in self.evidence.writers}
        tables = (
            [copied[0]]
            if copied
            else [each for each in self.evidence.inventory.tables if each.oid in written or not written]
        )
        return {quoted(each.schema, each.name): each.primary_key for each in tables if each.primary_key}

    def roots(self, written: Sequence[str]) -> dict[str, str]:
        """The tables that partitions belong to, as capture calls their rows."""
        by_oid = {table.oid: table for table in self.evidence.inventory.tables}
        found: dict[str, str] = {}
        for table in self.evidence.inventory.tables:
            root = table
            while root.partition_of is not None and root.partition_of in by_oid:
                root = by_oid[root.partition_of]
            name = quoted(root.schema, root.name)
            if root is not table and (not written or name in written) and len(found) < _MOST_ROOTS:
                found[quoted(table.schema, table.name)] = name
        return found


_ORDERED = (
    "category", "action", "outcome", "severity", "relation", "operation", "entity_type", "entity_id", "actor_id",
    "actor_type", "tenant_id", "session_id", "request_id", "trace_id", "ip", "user_agent", "duration_ms", "summary",
    "before", "after", "diff", "metadata",
)  # fmt: skip


def _rows(writers: Sequence[LegacyMapping], table: Table) -> list[tuple[Trigger, Written]]:
    return [
        (mapping.trigger, row)
        for mapping in writers
        for rows in mapping.written.values()
        for row in rows
        if (row.schema, row.table) == (table.schema, table.name)
    ]


def _writes(table: Table, writers: Sequence[LegacyMapping]) -> dict[str, list[_Value]]:
    """What triggers give each column."""
    found: dict[str, list[_Value]] = {}
    for mapping in writers:
        for operation, rows in mapping.written.items():
            for row in rows:
                if (row.schema, row.table) == (table.schema, table.name):
                    for column, value in row.values:
                        found.setdefault(column, []).append(_Value(mapping.trigger, operation, value))
    return found


def _inner(value: Expression) -> Expression:
    while isinstance(value, Cast):
        value = value.value
    return value


def _word(value: Expression, *, lower: bool = True) -> str:
    inner = _inner(value)
    text = inner.value if isinstance(inner, Const) and isinstance(inner.value, str) else ""
    return text.lower() if lower else text


def _is_key(value: Expression) -> bool:
    """Whether it is a value of the row by itself, and no text around one, and nothing constant."""
    inner = _inner(value)
    if isinstance(inner, Case):
        return all(
            _is_key(then) or then == Const(None) for then in (*(each for _, each in inner.branches), inner.otherwise)
        )
    if isinstance(inner, Call):
        return inner.name in ("coalesce", "->>", "->")
    return isinstance(inner, Field)


def _is_relname(each: _Value) -> bool:
    inner = _inner(each.value)
    return isinstance(inner, Relname) or _word(inner, lower=False) == each.trigger.table


def _is_clock(value: Expression) -> bool:
    inner = _inner(value)
    return isinstance(inner, Opaque) and inner.why is Why.TIME


def _sides(value: Any) -> set[Side]:
    """Which rows of a change an image is made of, where it is made of nothing else."""
    match value:
        case Whole(side) | Field(side, _):
            return {side}
        case Case(branches, otherwise):
            return {side for part in (*(then for _, then in branches), otherwise) for side in _sides(part)}
        case _:
            return {side for part in parts_of(value) for side in _sides(part)}


def _has_row(value: Any) -> bool:
    return isinstance(value, Whole) or any(_has_row(part) for part in parts_of(value))


def _is_moment(kind: str) -> bool:
    return kind.startswith("timestamp") or kind == "date"


def _is_text(column: Column) -> bool:
    plain = ("text", "name", "citext", "uuid", "regclass", '"char"')
    return column.type in plain or column.type.startswith(("character", "varchar")) or _is_enum(column)


def _is_enum(column: Column) -> bool:
    """Whether it is of a type that somebody made: most often an enum, which prints as its word."""
    known = (
        "int", "bigint", "smallint", "numeric", "double", "real", "bool", "time", "date", "json", "inet", "bytea",
        "interval", "uuid", "oid", "xid", "tsvector", "money", "bit", "cidr", "macaddr", "point", "xml",
    )  # fmt: skip
    return not column.type.startswith(known) and not column.type.endswith("]") and "hstore" not in column.type


def _address(column: Column) -> str:
    return f"host({quoted(column.name)})" if column.type == "inet" else f"{quoted(column.name)}::text"


_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def _plain(name: str) -> str:
    """``oldData`` and ``Old Data`` as ``old_data``."""
    return re.sub(r"[\s-]+", "_", _CAMEL.sub("_", name)).lower()


def _rank(field: str, name: str) -> int:
    names = _NAMES[field]
    return names.index(_plain(name)) if _plain(name) in names else len(names)


def _text(word: str) -> str:
    return "'" + word.replace("'", "''") + "'"
