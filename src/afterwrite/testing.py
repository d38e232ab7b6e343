"""For tests of applications: what they record goes into memory, and can be asked for.

::

    def test_export(recorded):                       # a pytest fixture; installed with afterwrite
        export(report)
        recorded.assert_recorded("report.exported", entity=("report", 7), metadata={"rows": 12})

    with recording() as recorded: ...                # the same without pytest

Each test, task and thread has its own (a ContextVar), so that tests may run beside each other. What is recorded went
the whole way but the last step: checked, encoded, redacted, in strict mode unless said otherwise. What an application
records on a connection is kept in memory too, and its transaction is not touched.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast, overload

import msgspec

from afterwrite import activity
from afterwrite.context import Context
from afterwrite.errors import UsageError
from afterwrite.record import Activity, Batch, Checkpoint, Level, Outcome, Receipt
from afterwrite.recorder import Durability, Options, Recorded, Recorder
from afterwrite.recorder.commit import Committer, DropReason
from afterwrite.recorder.redact import Redactor
from afterwrite.recorder.spool import Chunk, Event, Made, decode_chunk

__all__ = ["Memory", "MemorySink", "RecordedActivity", "assert_not_recorded", "assert_recorded", "recording"]

_MOST_NEAR = 3


class RecordedActivity(msgspec.Struct, frozen=True, kw_only=True):
    """What was recorded, in the words in which an application records it."""

    id: str
    action: str
    category: str
    outcome: Outcome
    severity: Level
    entity: tuple[str, str | None] | None
    actor: str | None
    actor_type: str | None
    tenant: str | None
    session: str | None
    request: str | None
    trace: str | None
    ip: str | None
    user_agent: str | None
    summary: str | None
    duration_ms: float | None
    caused_by: str | None
    occurred_at: datetime
    metadata: dict[str, Any]
    # Whether it was recorded on a connection: it would exist if and only if that transaction commits.
    in_transaction: bool
    # As a sink would get it.
    activity: Activity

    def __str__(self) -> str:
        words = [self.action]
        if self.entity is not None:
            words.append(f"{self.entity[0]}/{self.entity[1]}" if self.entity[1] is not None else f"{self.entity[0]}")
        words.append(self.outcome if self.actor is None else f"{self.outcome} by {self.actor}")
        return f"{'  '.join(words)}  {msgspec.json.encode(self.metadata).decode() if self.metadata else ''}".rstrip()


class Memory(Sequence[RecordedActivity]):
    """What was recorded, in order."""

    def __init__(self) -> None:
        self._found: list[RecordedActivity] = []
        self._turn = threading.Lock()

    @overload
    def __getitem__(self, place: int) -> RecordedActivity: ...

    @overload
    def __getitem__(self, place: slice) -> list[RecordedActivity]: ...

    def __getitem__(self, place: int | slice) -> RecordedActivity | list[RecordedActivity]:
        return self._found[place]

    def __len__(self) -> int:
        return len(self._found)

    def clear(self) -> None:
        """Forget what was recorded so far."""
        with self._turn:
            self._found.clear()

    def find(self, action: str | None = None, **wanted: Any) -> list[RecordedActivity]:
        """Those that are as wanted, by the words of ``assert_recorded``."""
        wanted = _wanted(action, wanted)
        return [each for each in tuple(self._found) if not _differences(each, wanted)]

    def assert_recorded(
        self, action: str | None = None, *, times: int | None = None, **wanted: Any
    ) -> RecordedActivity:
        """At least one of this kind was recorded, or exactly so many ``times``; gives the last of them.

        ``entity`` is ("report", 7), or the type alone; ids are compared as texts. ``metadata`` is a part of what there
        is, also within what it holds. A function in place of a value says whether it is as wanted. Other words:
        actor, actor_type, category, outcome, severity, summary, tenant, session, request, trace, ip, user_agent,
        caused_by, duration_ms, in_transaction.
        """
        __tracebackhide__ = True
        wanted = _wanted(action, wanted)
        found = [each for each in tuple(self._found) if not _differences(each, wanted)]
        if (times is None and found) or (times is not None and len(found) == times and times > 0):
            return found[-1]
        how_often = "" if times is None else f" {times} times, but {len(found)}"
        raise AssertionError(f"not recorded{how_often}: {_say(wanted)}\n{self._say_near(wanted)}")

    def assert_not_recorded(self, action: str | None = None, **wanted: Any) -> None:
        """Nothing of this kind was recorded; without words, nothing at all."""
        __tracebackhide__ = True
        found = self.find(action, **wanted)
        if found:
            told = "\n".join(f"  {each}" for each in found[:_MOST_NEAR])
            raise AssertionError(f"recorded {len(found)} times: {_say(_wanted(action, wanted)) or 'anything'}\n{told}")

    def _say_near(self, wanted: Mapping[str, Any]) -> str:
        """The activities that miss the least of what was wanted, with what they miss."""
        if not self._found:
            return "nothing was recorded"
        near = sorted(
            ((_differences(each, wanted), -place, each) for place, each in enumerate(tuple(self._found))),
            key=lambda one: (len(one[0]), "action" in one[0], one[1]),
        )
        lines = [f"the nearest of {len(self._found)}:"]
        for differences, _, each in near[:_MOST_NEAR]:
            lines.append(f"  {each}")
            lines += [f"      {name}: {said}" for name, said in differences.items()]
        return "\n".join(lines)

    def keep(self, event: Event, *, in_transaction: bool) -> None:
        """Take in what was recorded."""
        raw = bytes(event.metadata)
        kept = RecordedActivity(
            id=event.id,
            action=event.action,
            category=event.category,
            outcome=event.outcome,
            severity=event.severity,
            entity=None if event.entity_type is None else (event.entity_type, event.entity_id),
            actor=event.actor_id,
            actor_type=event.actor_type,
            tenant=event.tenant_id,
            session=event.session_id,
            request=event.request_id,
            trace=event.trace_id,
            ip=event.ip,
            user_agent=event.user_agent,
            summary=event.summary,
            duration_ms=event.duration_ms,
            caused_by=event.caused_by,
            occurred_at=event.occurred_at,
            metadata=msgspec.json.decode(raw) if raw else {},
            in_transaction=in_transaction,
            activity=event,
        )
        with self._turn:
            self._found.append(kept)


@contextmanager
def recording(*, everywhere: bool = True, **options: Any) -> Generator[Memory]:
    """Have what is recorded in here go into memory; ``options`` are those of the recorder (``strict=False``).

    That holds for this task and what begins in it, and ``everywhere`` for all that knows of no other test, threads for
    instance: of several such tests at once, the last one takes it.
    """
    memory = Memory()
    recorder = _MemoryRecorder(memory, msgspec.convert({"strict": True, **options}, Options))
    with activity.use(recorder):
        if not everywhere:
            yield memory
            return
        with activity.instead_of_default(recorder):
            yield memory


def assert_recorded(action: str | None = None, *, times: int | None = None, **wanted: Any) -> RecordedActivity:
    """``Memory.assert_recorded`` of the ``recording()`` around here."""
    __tracebackhide__ = True
    return _here().assert_recorded(action, times=times, **wanted)


def assert_not_recorded(action: str | None = None, **wanted: Any) -> None:
    """``Memory.assert_not_recorded`` of the ``recording()`` around here."""
    __tracebackhide__ = True
    _here().assert_not_recorded(action, **wanted)


class MemorySink:
    """A sink for tests of delivery: takes every batch and forgets nothing. ``opened`` opens it for a Recorder."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    @property
    def activities(self) -> list[Activity]:
        return [each for batch in tuple(self.batches) for each in batch.activities]

    async def read_identity(self) -> str:
        return "memory"

    async def read_checkpoint(self, source: str) -> Checkpoint | None:
        return None

    async def write(self, batch: Batch) -> Receipt:
        self.batches.append(batch)
        return Receipt(batch_id=len(self.batches), position=len(self.batches), stored=len(batch.activities))

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[MemorySink]:
        yield self


def _here() -> Memory:
    recorder = activity.recorder()
    if isinstance(recorder, _MemoryRecorder):
        return recorder.memory
    raise UsageError("nothing is kept for assertions here", remedy="write `with recording():` around the test")


class _MemoryRecorder(Recorder):
    """A recorder without queue, threads, spool and store."""

    reaches_connections = False

    def __init__(self, memory: Memory, options: Options) -> None:
        super().__init__(source="test", open_sink=None, options=options)
        self.memory = memory

    def _start(self) -> Committer:
        with self._lock:
            if self._committer is None:
                self._committer = _MemoryCommitter(self.options, self._redactor, self.memory)
            return self._committer

    def _emit(self, conn: object, event: Made, context: Context, occurred_at: datetime | None) -> Recorded:
        committer = cast("_MemoryCommitter", self._committer or self._start())
        committer.keep(event, in_transaction=True)
        self._emitted += 1
        return Recorded(event.id, _done=True)


class _MemoryCommitter(Committer):
    """Takes events as its model does, and commits them at once, into memory."""

    def __init__(self, options: Options, redactor: Redactor, memory: Memory) -> None:
        super().__init__(options, Path(), "", redactor)
        self._memory = memory

    def put(self, event: Made, size: int, durability: Durability) -> int:
        if self._shut is not None:
            self.drop(self._shut)
            return 0
        self.keep(event, in_transaction=False)
        self.accepted += 1
        self.committed_place = self.accepted
        return self.accepted

    def keep(self, event: Made, *, in_transaction: bool) -> None:
        with self._lock:
            chunks = self._encode([event])
        if not chunks:
            self.drop(DropReason.UNUSABLE)
        for events, body in chunks:
            for each in decode_chunk(Chunk(0, events, 0.0, body)):
                self._memory.keep(each, in_transaction=in_transaction)


def _wanted(action: str | None, wanted: dict[str, Any]) -> dict[str, Any]:
    for name in wanted:
        if name not in RecordedActivity.__struct_fields__:
            raise TypeError(f"an activity has no {name!r}; it has {', '.join(RecordedActivity.__struct_fields__)}")
    return wanted if action is None else {"action": str(action), **wanted}


def _differences(found: RecordedActivity, wanted: Mapping[str, Any]) -> dict[str, str]:
    """What of this is not as wanted, in words by name."""
    differences: dict[str, str] = {}
    for name, value in wanted.items():
        if name == "metadata" and isinstance(value, Mapping):
            differences |= _missing(found.metadata, cast("Mapping[str, Any]", value), "metadata")
        elif not _is_as(getattr(found, name), value, entity=name == "entity"):
            differences[name] = f"wanted {_shown(value)}, found {_shown(getattr(found, name))}"
    return differences


def _missing(found: Mapping[str, Any], wanted: Mapping[str, Any], path: str) -> dict[str, str]:
    differences: dict[str, str] = {}
    for name, value in wanted.items():
        where = f"{path}.{name}"
        there = found.get(name)
        shown = _shown(cast("object", value))
        if name not in found:
            differences[where] = f"wanted {shown}, found nothing"
        elif isinstance(value, Mapping) and isinstance(there, dict):
            differences |= _missing(cast("dict[str, Any]", there), cast("Mapping[str, Any]", value), where)
        elif not _is_as(there, value):
            differences[where] = f"wanted {shown}, found {_shown(there)}"
    return differences


def _is_as(found: Any, wanted: Any, *, entity: bool = False) -> bool:
    if callable(wanted):
        return bool(cast("Any", wanted)(found))
    if entity and found is not None:
        if isinstance(wanted, str):
            return found[0] == wanted
        return tuple(found) == tuple(None if part is None else str(part) for part in wanted or ())
    # What was wanted goes the way of what was recorded: dates, UUIDs and tuples are as JSON has them.
    try:
        return found == wanted or found == msgspec.json.decode(msgspec.json.encode(wanted))
    except TypeError:
        return bool(found == str(wanted))


def _shown(value: object) -> str:
    text = repr(str(value)) if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:199]}…"


def _say(wanted: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_shown(value)}" for name, value in wanted.items())
