"""Diffs by field, of every sort of change."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from afterwrite.record import Kind, Lsn, Operation
from afterwrite.search.diff import FieldKind, diff
from afterwrite.search.query import parse
from afterwrite.store.reader import StoredActivity, stored_activity


def a_change(
    operation: str | None,
    before: str | None = None,
    after: str | None = None,
    *,
    changed: list[str] | None = None,
    metadata: str | None = None,
    kind: Kind = Kind.CHANGE,
) -> StoredActivity:
    columns = dict.fromkeys(StoredActivity.__struct_fields__)
    told: dict[str, object] = {
        "position": 1,
        "batch_id": 1,
        "id": "01a207ee-aeab-8028-b08f-ff0200000000",
        "occurred_at": datetime(2026, 11, 23, tzinfo=UTC),
        "source": "main",
        "kind": kind.value,
        "category": "data",
        "action": f"users.{operation}",
        "outcome": "success",
        "severity": "info",
        "operation": operation,
        "changed": changed,
        "before": before,
        "after": after,
        "metadata": metadata,
        "commit_lsn": str(Lsn(8)),
    }
    return stored_activity(**columns | told)  # type: ignore[arg-type]


def told(activity: StoredActivity) -> list[tuple[str, str | None, str | None, str]]:
    def text(value: msgspec.Raw | None) -> str | None:
        return None if value is None else bytes(value).decode()

    return [(each.name, text(each.before), text(each.after), each.kind.value) for each in diff(activity)]


def test_an_insert_sets_and_a_delete_removes_what_is_not_null() -> None:
    row = '{"id":1,"name":"Ada","plan":null}'
    assert told(a_change("insert", after=row)) == [("id", None, "1", "set"), ("name", None, '"Ada"', "set")]
    assert told(a_change("delete", before=row)) == [("id", "1", None, "removed"), ("name", '"Ada"', None, "removed")]


def test_an_update_of_a_known_row_tells_what_became_of_each_changed_field() -> None:
    before = '{"id":1,"name":"Ada","plan":null,"bio":"x","n":1.50}'
    after = '{"id":1,"name":"Ada","plan":"pro","bio":null,"n":1.5}'
    assert told(a_change("update", before, after, changed=["plan", "bio", "n"])) == [
        ("plan", None, '"pro"', "set"),
        ("bio", '"x"', None, "removed"),
        ("n", "1.50", "1.5", "changed"),
    ]
    assert told(a_change("update", before, before, changed=[])) == []


def test_of_an_update_whose_old_row_is_not_known_no_field_is_said_to_have_changed() -> None:
    after = '{"id":2,"n":5,"plan":null}'
    assert told(a_change("update", None, after)) == [
        ("id", None, "2", "unknown"),
        ("n", None, "5", "unknown"),
        ("plan", None, None, "unknown"),
    ]
    moved = told(a_change("update", '{"id":1}', after, metadata='{"entity_was":"1","unchanged":["body"]}'))
    assert moved == [
        ("id", "1", "2", "changed"),
        ("n", None, "5", "unknown"),
        ("plan", None, None, "unknown"),
        ("body", None, None, "unknown"),
    ]


def test_an_event_with_rows_is_compared_and_one_without_has_no_fields() -> None:
    imported = a_change("update", '{"a":1,"b":2}', '{"a":1,"b":3,"c":4}', kind=Kind.EVENT)
    assert told(imported) == [("b", "2", "3", "changed"), ("c", None, "4", "set")]
    assert diff(a_change(None, kind=Kind.EVENT)) == ()
    assert diff(a_change("truncate")) == ()


@pytest.mark.parametrize("text", ["null", "[1]", '"text"', "17", "{"])
def test_what_is_no_object_has_no_fields(text: str) -> None:
    assert diff(a_change(Operation.INSERT.value, after=text)) == ()


def test_a_row_that_is_nested_without_end_has_its_fields_and_breaks_no_query() -> None:
    deep = '{"a":' * 3_000 + "1" + "}" * 3_000
    activity = a_change("insert", after=f'{{"id":1,"deep":{deep}}}')
    assert told(activity) == [("id", None, "1", "set"), ("deep", None, deep, "set")]
    assert not parse("after.deep.a:1").matches(activity)
    assert parse("action:users.insert -after.deep.a:1").matches(activity)


def test_a_kind_is_its_word() -> None:
    assert [kind.value for kind in FieldKind] == ["set", "changed", "removed", "unknown"]
