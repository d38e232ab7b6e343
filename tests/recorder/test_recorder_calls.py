"""What record() takes, and what becomes of it: nothing that an application hands over may raise, or be lost unseen."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import gc
import math
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import FrameType, MappingProxyType

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorder_rig import KeptSink, assert_closed_account, recording, until

from afterwrite import context
from afterwrite.errors import UsageError
from afterwrite.record import Category, Kind, Level, Outcome
from afterwrite.recorder import Durability, Recorder, commit
from afterwrite.recorder import ids as making_ids
from afterwrite.recorder.encode import cut, encode_metadata
from afterwrite.recorder.ids import Ids

LIMIT = 65_536
NAIVE = datetime(2026, 3, 1, 12)  # noqa: DTZ001 - that is what it is about


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[tuple[Recorder, KeptSink]]:
    with recording(tmp_path) as both:
        yield both


def test_an_event_carries_what_was_said_and_who_the_context_says(kept: tuple[Recorder, KeptSink]) -> None:
    recorder, sink = kept
    cause = str(uuid.uuid4())
    with context.bind(
        actor="user:42",
        tenant="acme",
        session="s",
        request="r",
        trace="t",
        ip="10.0.0.1",
        user_agent="ua",
        reason="why",
    ):
        recorded = recorder.record(
            "user.create",
            category=Category.USER_MANAGEMENT,
            outcome="failure",
            severity=Level.WARNING,
            entity=("user", 7),
            summary="made",
            metadata={"a": [1, {"b": None}]},
            duration_ms=1.5,
            caused_by=cause,
        )
    assert recorded.wait(5)
    assert recorder.flush()
    event = sink.activities[recorded.id]
    assert (event.source, event.kind, event.category, event.action) == (
        "shop",
        Kind.EVENT,
        "user_management",
        "user.create",
    )
    assert (event.outcome, event.severity, event.summary, event.duration_ms) == (
        Outcome.FAILURE,
        Level.WARNING,
        "made",
        1.5,
    )
    assert (event.entity_type, event.entity_id, event.caused_by) == ("user", "7", cause)
    assert (event.actor_id, event.actor_type, event.tenant_id, event.session_id) == ("user:42", "user", "acme", "s")
    assert (event.request_id, event.trace_id, event.ip, event.user_agent) == ("r", "t", "10.0.0.1", "ua")
    assert sink.metadata(recorded.id) == {"reason": "why", "a": [1, {"b": None}]}
    assert abs(datetime.now(UTC) - event.occurred_at) < timedelta(minutes=1)
    assert_closed_account(recorder)


def test_what_is_not_said_is_not_there(kept: tuple[Recorder, KeptSink]) -> None:
    recorder, sink = kept
    recorded = recorder.record("job.run")
    assert recorder.flush()
    event = sink.activities[recorded.id]
    assert (event.category, event.outcome, event.severity) == ("system", Outcome.SUCCESS, Level.INFO)
    assert event.metadata is event.entity_type is event.actor_id is event.summary is event.duration_ms is None


def test_metadata_is_taken_as_it_is_at_the_call(kept: tuple[Recorder, KeptSink]) -> None:
    recorder, sink = kept
    changing = {"items": [1]}
    recorded = recorder.record("a.b", metadata=changing)
    changing["items"].append(2)
    assert recorder.flush()
    assert sink.metadata(recorded.id) == {"items": [1]}


def test_a_moment_without_a_zone_is_utc_and_the_metadatas_own_reason_stands(kept: tuple[Recorder, KeptSink]) -> None:
    recorder, sink = kept
    with context.bind(reason="outer"):
        naive = recorder.record("a.b", occurred_at=NAIVE, metadata={"reason": "own"})
        aware = recorder.record("a.b", occurred_at=datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=2))))
    assert recorder.flush()
    assert sink.activities[naive.id].occurred_at == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert sink.activities[aware.id].occurred_at == datetime(2026, 3, 1, 10, tzinfo=UTC)
    assert sink.metadata(naive.id) == {"reason": "own"}
    assert sink.metadata(aware.id) == {"reason": "outer"}


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


@dataclasses.dataclass
class Point:
    x: int
    rest: object = None


class Shape(msgspec.Struct):
    sides: int


class Model(pydantic.BaseModel):
    at: int


class Bare:
    pass


class Money:
    def __str__(self) -> str:
        return "3 EUR"


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no")


def cyclic() -> dict[str, object]:
    found: dict[str, object] = {"n": 1}
    found["self"] = found
    return found


def deep(levels: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for _ in range(levels):
        found = {"d": found}
    return found


ODD: list[tuple[object, object]] = [
    ({"d": Decimal("1.50"), "u": uuid.UUID(int=5)}, {"d": "1.50", "u": "00000000-0000-0000-0000-000000000005"}),
    ({"b": b"\xff\0", "ba": bytearray(b"a")}, {"b": "/wA=", "ba": "YQ=="}),
    ({"e": Colour.RED, "f": Colour.PAIR}, {"e": "red", "f": [1, 2]}),
    ({"p": Point(1, [Shape(3)])}, {"p": {"x": 1, "rest": [{"sides": 3}]}}),
    ({"t": NAIVE, "z": NAIVE.replace(tzinfo=UTC)}, {"t": "2026-03-01T12:00:00", "z": "2026-03-01T12:00:00Z"}),
    ({"n": math.nan, "i": math.inf}, {"n": None, "i": None}),
    ({"error": ValueError("off")}, {"error": {"type": "ValueError", "message": "off"}}),
    ({"m": MappingProxyType({"a": 1}), "p": Path("/x"), "s": {1}}, {"m": {"a": 1}, "p": "/x", "s": [1]}),
    ({"model": Model(at=5)}, {"model": {"at": 5}}),
    ({"money": Money()}, {"money": "3 EUR"}),
    ({"nul": "a\0b"}, {"nul": "a\0b"}),
    ({"n": 2**70}, {"n": 2**70}),
    (Shape(4), {"sides": 4}),
    ({"h": Hostile()}, {"h": f"<{__name__}.Hostile>"}),
]  # fmt: skip
MENDED: list[tuple[object, object]] = [
    ({"o": Bare(), "t": Bare}, {"o": f"<{__name__}.Bare>", "t": f"<{__name__}.Bare>"}),
    (cyclic(), {"n": 1, "self": "<cycle>"}),
    ({"s": "\ud800x", "k\udc00": 1}, {"s": "�x", "k�": 1}),
    ({(1, 2): 3, None: 4}, {"(1, 2)": 3, "None": 4}),
    ({"n": 10**5000}, {"n": f"<int of {(10**5000).bit_length()} bits>"}),
    ([1, 2], {"value": [1, 2]}),
    ("words", {"value": "words"}),
    ({"p": Point(1, "\ud800")}, {"p": {"x": 1, "rest": "�"}}),
]


@pytest.mark.parametrize(("given_metadata", "stored"), ODD + MENDED, ids=lambda value: type(value).__name__)
def test_everything_has_a_defined_form(given_metadata: object, stored: object) -> None:
    raw, _ = encode_metadata(given_metadata, LIMIT)
    assert msgspec.json.decode(raw) == stored


@pytest.mark.parametrize("metadata", [metadata for metadata, _ in MENDED])
def test_what_is_mended_in_production_is_refused_at_the_call_in_strict_mode(tmp_path: Path, metadata: object) -> None:
    with recording(tmp_path, strict=True) as (recorder, _):
        with pytest.raises(UsageError, match="metadata"):
            recorder.record("a.b", metadata=metadata)
        assert recorder.stats().recorded == 0


def test_deeply_nested_metadata_is_cut_where_json_cannot_follow() -> None:
    raw, mended = encode_metadata(deep(100_000), LIMIT)
    assert mended
    assert b"<deeper>" in raw
    assert encode_metadata(deep(60), LIMIT)[1] is False


def test_metadata_beyond_the_limit_keeps_what_fits_and_says_what_it_was(kept: tuple[Recorder, KeptSink]) -> None:
    recorder, sink = kept
    big = {"id": 7, "text": "x" * 10_000_000, "list": [["y" * 100] * 1000] * 10, "small": {"k": "v"}}
    recorded = recorder.record("a.b", metadata=big)
    assert recorder.flush()
    stored = sink.metadata(recorded.id)
    assert isinstance(stored, dict)
    assert (stored["id"], stored["small"]) == (7, {"k": "v"})
    assert stored["text"] == "x" * 1000 + "…"
    assert stored["cut"]["left_out"] == ["list"]
    assert stored["cut"]["bytes"] > 10_000_000
    assert recorder.stats().mended == 1


@given(
    st.dictionaries(st.text(max_size=300), st.text(max_size=3000) | st.lists(st.integers(), max_size=500), max_size=30),
    st.integers(256, 5000),
)
def test_cut_metadata_is_json_within_the_limit(metadata: dict[str, object], limit: int) -> None:
    raw = msgspec.json.encode(metadata)
    if len(raw) > limit:
        shorter = cut(raw, limit)
        assert len(shorter) <= limit
        assert msgspec.json.decode(shorter)["cut"]["bytes"] == len(raw)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes() | st.decimals(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.sets(st.integers()),
    max_leaves=20,
)


@given(json_like)
def test_whatever_it_is_it_becomes_an_object(value: object) -> None:
    raw, _ = encode_metadata(value, LIMIT)
    assert isinstance(msgspec.json.decode(raw), dict)


def test_nothing_that_is_handed_over_raises_in_production(kept: tuple[Recorder, KeptSink]) -> None:
    recorder, sink = kept
    odd: list[dict[str, object]] = [
        {"action": None},
        {"action": 5},
        {"action": "\ud800.x"},
        {"action": "a" * 100_000},
        {"action": "a.b", "category": 7},
        {"action": "a.b", "entity": ("user", Hostile())},
        {"action": "a.b", "entity": (None, None)},
        {"action": "a.b", "summary": "x\0\ud800" * 20_000},
        {"action": "a.b", "duration_ms": math.nan},
        {"action": "a.b", "duration_ms": "soon"},
        {"action": "a.b", "id": "not one"},
        {"action": "a.b", "caused_by": object()},
        {"action": "a.b", "context": context.Context(actor_id=5, ip=Bare())},  # type: ignore[arg-type]
        {"action": "a.b", "metadata": Hostile()},
    ]
    refused: list[dict[str, object]] = [
        {"action": "a.b", "outcome": "maybe"},
        {"action": "a.b", "entity": 5},
        {"action": "a.b", "entity": ()},
        {"action": "a.b", "occurred_at": "yesterday"},
        {"action": "a.b", "durability": "for ever"},
        {"action": "a.b", "context": 5},
    ]
    for arguments in odd + refused:
        recorder.record(**arguments)  # type: ignore[arg-type]
    good = recorder.record("good.one")
    assert recorder.flush()
    assert good.id in sink.activities
    assert recorder.stats().dropped == {"unusable": len(refused)}
    assert len(sink.activities) == len(odd) + 1
    assert_closed_account(recorder)


def test_strict_mode_names_what_is_off(tmp_path: Path) -> None:
    with recording(tmp_path, strict=True) as (recorder, _):
        for words, arguments in (
            ("no action", {"action": "Did Things"}),
            ("no category", {"action": "a.b", "category": "User Things"}),
            ("no UUID", {"action": "a.b", "id": "5"}),
            ("secret's name", {"action": "a.b", "metadata": {"deep": {"apiKey": "k"}}}),
            ("beyond", {"action": "a.b", "metadata": {"x": "y" * 100_000}}),
            ("maybe", {"action": "a.b", "outcome": "maybe"}),
        ):
            with pytest.raises(UsageError, match=words):
                recorder.record(**arguments)  # type: ignore[arg-type]
        assert (
            recorder.record("a.b", id="0195A000-0000-7000-8000-000000000001").id
            == "0195a000-0000-7000-8000-000000000001"
        )


def test_ids_are_uuid7_in_the_order_of_their_making_also_when_the_clock_jumps_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = Ids()
    first = [ids.make() for _ in range(5_000)]
    hour = 3_600_000_000_000
    real = making_ids.time_ns
    monkeypatch.setattr(making_ids, "time_ns", lambda: real() - hour)
    made = [*first, *[ids.make() for _ in range(5_000)]]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert all(
        uuid.UUID(id).version == 7 and uuid.UUID(id).variant == uuid.RFC_4122 and str(uuid.UUID(id)) == id
        for id in made
    )
    milliseconds = int(first[0].replace("-", "")[:12], 16)
    assert abs(milliseconds - real() // 1_000_000) < 60_000


def test_an_id_of_the_callers_says_when_it_was_and_never_raises(kept: tuple[Recorder, KeptSink]) -> None:
    recorder, sink = kept
    before = datetime.now(UTC)
    wanted = {
        "0195a000-0000-7000-8000-000000000001": datetime(2025, 3, 16, 17, 28, 29, 440_000, tzinfo=UTC),
        "ffffffff-ffff-7fff-bfff-ffffffffffff": None,  # in the year 10889
        "0195a000-0000-4000-8000-000000000001": None,
    }
    for id in wanted:
        recorder.record("a.b", id=id)
    assert recorder.flush()
    for event in sink.activities.values():
        told = wanted[event.id]
        assert event.occurred_at == told if told else before <= event.occurred_at <= datetime.now(UTC)
    assert len(sink.activities) == 3


def test_ids_of_threads_are_all_different() -> None:
    ids, found = Ids(), []

    def make() -> None:
        found.extend([ids.make() for _ in range(5_000)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 20_000


def test_awaiting_and_sync_wait_for_the_disk_and_memory_does_not_reach_it(kept: tuple[Recorder, KeptSink]) -> None:
    recorder, sink = kept
    sink.down = True

    async def scenario() -> tuple[bool, bool, bool]:
        plain, sync = recorder.record("a.b"), recorder.record("a.b", durability="sync")
        many = await asyncio.gather(plain, sync, recorder.record("a.b", durability=Durability.MEMORY))
        return many[0], many[1], many[2]

    assert asyncio.run(scenario()) == (True, True, False)
    assert recorder.record("a.b", durability="sync").wait(0)
    until(lambda: recorder.stats().queued == 0)
    stats = recorder.stats()
    assert (stats.recorded, stats.spooled) == (4, 4)
    sink.down = False
    assert recorder.flush()
    assert len(sink.activities) == 4


def test_recording_while_recording_does_not_stand_still(kept: tuple[Recorder, KeptSink]) -> None:
    recorder, sink = kept

    class Inner:
        def __str__(self) -> str:
            recorder.record("inner.one")
            return "inner"

    recorder.record("outer.one", metadata={"x": Inner()})
    with recorder._committer._lock:  # type: ignore[union-attr]  # as a signal's handler would find it
        recorder.record("handler.one")
    assert recorder.flush()
    assert sorted(event.action for event in sink.activities.values()) == ["handler.one", "inner.one", "outer.one"]


def test_signals_and_finalizers_may_record_at_any_moment(kept: tuple[Recorder, KeptSink]) -> None:
    recorder, sink = kept
    expected = 0

    class Cyclic:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            nonlocal expected
            expected += 1
            recorder.record("finalizer.one")

    def handle(*_: object) -> None:
        nonlocal expected
        expected += 1
        recorder.record("signal.one")

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.004, 0.004)
    try:
        deadline = time.monotonic() + 0.6
        while time.monotonic() < deadline:
            expected += 1
            recorder.record("main.one", metadata={"some": ["lists"]})
            Cyclic()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    gc.collect()
    assert recorder.flush(20)
    stats = recorder.stats()
    assert stats.recorded == expected
    assert len(sink.activities) == stats.stored
    assert_closed_account(recorder)


def test_what_a_signals_handler_raises_in_the_middle_leaves_the_account_closed(kept: tuple[Recorder, KeptSink]) -> None:
    """As Celery's soft time limit does, and Ctrl-C."""
    recorder, sink = kept
    raised = 0

    def handle(_: int, frame: FrameType | None) -> None:
        nonlocal raised
        while frame is not None:
            if frame.f_code is Recorder.record.__code__:
                raised += 1
                raise KeyboardInterrupt
            frame = frame.f_back

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        deadline = time.monotonic() + 0.6
        while time.monotonic() < deadline:
            with contextlib.suppress(KeyboardInterrupt):
                recorder.record("a.b")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert raised
    assert recorder.flush(20)
    assert len(sink.activities) == recorder.stats().stored
    assert_closed_account(recorder)


def test_where_no_thread_can_be_had_recording_begins_when_there_is_one(
    kept: tuple[Recorder, KeptSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, sink = kept
    monkeypatch.setattr(commit, "_LOOK_SECONDS", 0.0)
    with monkeypatch.context() as crowded:
        crowded.setattr(threading.Thread, "start", _no_thread)
        recorder.record("lost.one")
        recorder.record("lost.one")
        assert recorder.stats().dropped == {"unusable": 2}
    recorder.record("kept.one")
    assert recorder.flush()
    assert [each.action for each in sink.activities.values()] == ["kept.one"]
    assert_closed_account(recorder)


def _no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_where_no_loop_can_be_had_delivery_begins_when_there_is_one(
    kept: tuple[Recorder, KeptSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, sink = kept

    def no_loop() -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as crowded:
        crowded.setattr(asyncio, "new_event_loop", no_loop)
        crowded.setattr(asyncio.events, "new_event_loop", no_loop)
        recorder.record("a.b")
        until(lambda: "Too many open files" in (recorder.stats().delivery_trouble or ""))
        assert not recorder.flush(0.1)
    assert recorder.flush()
    assert len(sink.activities) == 1
    assert recorder.stats().delivery_trouble is None


def test_after_close_events_are_dropped_and_counted(tmp_path: Path) -> None:
    with recording(tmp_path) as (recorder, sink):
        recorder.record("a.b")
        assert recorder.close()
        assert recorder.close()
        assert not recorder.record("a.c").wait(1)
        assert recorder.stats().dropped == {"closed": 1}
        assert len(sink.activities) == 1
        assert_closed_account(recorder)


def test_address_and_browser_may_be_left_out(tmp_path: Path) -> None:
    with (
        recording(tmp_path, keep_ip=False, keep_user_agent=False) as (recorder, sink),
        context.bind(ip="10.0.0.1", user_agent="browser", actor="u"),
    ):
        recorded = recorder.record("a.b")
        assert recorder.flush()
        event = sink.activities[recorded.id]
        assert (event.actor_id, event.ip, event.user_agent) == ("u", None, None)


def test_importing_the_recorder_brings_no_driver_and_no_tools() -> None:
    code = (
        "import sys, afterwrite.recorder, afterwrite.recorder.http\n"
        "heavy = {'psycopg', 'pydantic', 'typer', 'rich', 'pgparse', 'tomllib',"
        " 'afterwrite.scan', 'afterwrite.migrate', 'afterwrite.store', 'afterwrite.settings', 'afterwrite.postgres'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
