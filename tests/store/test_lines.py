"""The lines that COPY reads, without a server: what is ordinary goes as it is, what is not is kept beside it."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterwrite.record import Activity, Kind, Lsn, Operation
from afterwrite.store import lines
from afterwrite.store.lines import COLUMNS, LONGEST_INDEXED, CopyLines, span, storable

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ID = "0195a000-0000-7000-8000-000000000001"


def an_event(**fields: object) -> Activity:
    return Activity(
        **{"id": ID, "occurred_at": NOON, "source": "s", "kind": Kind.EVENT, "category": "c", "action": "a"} | fields
    )


def only_line(activity: Activity) -> dict[str, str]:
    (chunk,) = CopyLines([activity], 7)
    assert chunk.endswith(b"\n")
    fields = chunk.decode().removesuffix("\n").split("\t")
    return dict(zip(COLUMNS, fields, strict=True))


def exact(activity: Activity) -> dict[str, object]:
    assert activity.metadata is not None
    return msgspec.json.decode(activity.metadata)["exact"]


def test_what_is_ordinary_goes_as_it_is_and_what_is_absent_is_null() -> None:
    line = only_line(an_event(entity_type="users", commit_lsn=Lsn.parse("1A/2B"), duration_ms=1.5, ip="::1"))
    assert line["occurred_at"] == "2026-03-01 12:00:00+00"
    assert line["batch_id"] == "7"
    assert (line["entity_type"], line["commit_lsn"], line["duration_ms"], line["ip"]) == (
        "users",
        "1A/2B",
        "1.5",
        "::1",
    )
    assert line["actor_id"] == line["before"] == line["changed"] == r"\N"


def test_separators_in_values_are_escaped() -> None:
    line = only_line(an_event(summary="a\tb\nc\rd\\e", after=msgspec.Raw(b'{"a":\n"\\n\\\\"}')))
    assert line["summary"] == r"a\tb\nc\rd\\e"
    assert line["after"] == r'{"a":\n"\\n\\\\"}'


def test_an_array_is_quoted_whatever_its_names_hold() -> None:
    assert only_line(an_event(changed=()))["changed"] == "{}"
    assert only_line(an_event(changed=("a b", 'c"d', "e\\f", "NULL", "g,h")))["changed"] == (
        r'{"a b","c\\"d","e\\\\f","NULL","g,h"}'
    )


def test_an_ordinary_activity_is_storable_as_it_is() -> None:
    activity = an_event(
        kind=Kind.CHANGE,
        operation=Operation.UPDATE,
        after=msgspec.Raw(b'{"a": "\\\\u0000 \\ud83d\\ude00 \\u00e9"}'),
        ip="10.0.0.0/8",
        caused_by=ID.upper(),
        changed=("é",),
    )
    assert storable(activity) is activity


@pytest.mark.parametrize("column", ["summary", "actor_id", "user_agent", "category"])
def test_a_text_with_nul_or_a_lone_surrogate_is_kept_beside_the_nearest_text(column: str) -> None:
    text = "a\0b\ud800c"
    kept = storable(an_event(**{column: text}))
    assert getattr(kept, column) == "a␀b�c"
    assert base64.b64decode(str(exact(kept)[column])).decode(errors="surrogatepass") == text
    assert only_line(an_event(**{column: text}))[column] == "a␀b�c"


def test_json_that_jsonb_refuses_is_kept_beside_json_that_it_takes() -> None:
    raw = rb'{"a\u0000": "x\ud800y\\u0000\uDE00", "pair": "\ud83d\ude00"}'
    kept = storable(an_event(after=msgspec.Raw(raw), metadata=msgspec.Raw(b'{"reason": "r"}')))
    assert bytes(kept.after or b"") == rb'{"a\u2400": "x\ufffdy\\u0000\ufffd", "pair": "\ud83d\ude00"}'
    assert base64.b64decode(str(exact(kept)["after"])) == raw
    assert msgspec.json.decode(kept.metadata or b"")["reason"] == "r"


@pytest.mark.parametrize("raw", [b'{"a": "\xff"}', b"\xff\xfe{\x00", b'{"\x00": 1}'])
def test_bytes_that_are_no_json_never_reach_the_separators(raw: bytes) -> None:
    line = only_line(an_event(after=msgspec.Raw(raw), before=msgspec.Raw(b"{}")))
    assert line["after"] == r"\N"
    assert line["before"] == "{}"
    assert base64.b64decode(msgspec.json.decode(line["metadata"])["exact"]["after"]) == raw


def test_metadata_that_is_no_object_is_kept_in_exact() -> None:
    kept = storable(an_event(metadata=msgspec.Raw(b"[1]"), summary="\0"))
    assert base64.b64decode(str(exact(kept)["metadata"])) == b"[1]"
    assert set(exact(kept)) == {"metadata", "summary"}


@pytest.mark.parametrize("ip", ["unknown", "1.2.3.4:80", "fe80::1%eth0", "1.2.3.4, 5.6.7.8", "", "\0"])
def test_an_address_that_is_none_does_not_stop_the_rest(ip: str) -> None:
    line = only_line(an_event(ip=ip, actor_id="7"))
    assert (line["ip"], line["actor_id"]) == (r"\N", "7")
    assert base64.b64decode(msgspec.json.decode(line["metadata"])["exact"]["ip"]).decode() == ip


def test_a_cause_that_is_no_uuid_does_not_stop_the_rest() -> None:
    line = only_line(an_event(caused_by="job 17"))
    assert line["caused_by"] == r"\N"
    assert base64.b64decode(msgspec.json.decode(line["metadata"])["exact"]["caused_by"]) == b"job 17"


def test_texts_beyond_an_index_are_cut_only_when_asked_and_stay_distinct() -> None:
    first, second = (storable(an_event(entity_id="x" * 5_000 + end), shorten=True) for end in "ab")
    assert first.entity_id != second.entity_id
    assert len(first.entity_id or "") <= LONGEST_INDEXED
    assert base64.b64decode(str(exact(first)["entity_id"])).decode() == "x" * 5_000 + "a"


def test_a_value_too_large_for_base64_leaves_its_size_and_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST_EXACT", 10)
    kept = storable(an_event(after=msgspec.Raw(b'{"a":"\\u0000"}')))
    left = exact(kept)["after"]
    assert isinstance(left, dict)
    assert left["bytes"] == 14


def test_one_odd_value_changes_nothing_for_its_neighbours() -> None:
    many = [an_event(entity_id=str(n), summary="\0" if n == 1500 else "fine") for n in range(2500)]
    found = b"".join(CopyLines(many, 1)).decode().splitlines()
    summaries = [line.split("\t")[COLUMNS.index("summary")] for line in found]
    assert summaries == ["fine"] * 1500 + ["␀"] + ["fine"] * 999


def test_a_span_counts_days_in_utc() -> None:
    east = timezone(timedelta(hours=5))
    found = span([an_event(occurred_at=datetime(2026, 3, 2, 1, tzinfo=east)), an_event()])
    assert [day.isoformat() for day in found.days] == ["2026-03-01"]
    assert (found.first_at, found.last_at) == (NOON, datetime(2026, 3, 1, 20, tzinfo=UTC))


def test_a_time_without_zone_is_a_defect_and_not_a_guess() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        only_line(an_event(occurred_at=datetime(2026, 3, 1)))  # noqa: DTZ001


any_text = st.text(st.characters(), max_size=20) | st.sampled_from(["\\N", "\\.", "\t", "\0", "\ud800", "\x7f", "ÿþý"])


@given(st.lists(st.builds(an_event, summary=any_text, entity_id=st.none() | any_text, user_agent=any_text), min_size=1))
def test_every_activity_is_one_line_of_as_many_fields(activities: list[Activity]) -> None:
    found = b"".join(CopyLines(activities, 1)).decode().split("\n")
    assert found.pop() == ""
    assert [line.count("\t") for line in found] == [len(COLUMNS) - 1] * len(activities)
