"""What recording an event costs: the call, the disk, and the way to the store, beside what people use otherwise.

::

    call       bursts of calls, with pauses in which the threads behind them do their work
    durable    as fast as one thread goes, until all of it is in the spool, written to the file, and so on
    store      until all of it is in the store, beside one INSERT an event, committed each by itself
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from afterwrite.bench.claims import Claim, Promise, compare, held_to, in_turn, note, percentile
from afterwrite.bench.grounds import Grounds, Tell, told_round
from afterwrite.context import bind
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import connect, script, statement
from afterwrite.postgres.embedded import Server
from afterwrite.recorder import OpenSink, Overflow, Recorder
from afterwrite.recorder import Options as RecorderOptions
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink

Call = Callable[[int], object]

_BURST = 500
_BURSTS = 30
_PAUSE_SECONDS = 0.012
_DELIVER_SECONDS = 300.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How much, how often: events of the durable run, events into the store, INSERTs."""

    rounds: int = 5
    events: int = 40_000
    stored: int = 20_000
    inserts: int = 2_000


class _Calls(msgspec.Struct, frozen=True):
    """Nanoseconds a call: the median of bursts, and the slowest one in a hundred of single calls."""

    median: float
    p99: float


async def measure_recorder(grounds: Grounds, options: Options) -> list[Claim]:
    """What recording costs, by turns with what people use otherwise."""
    return await asyncio.to_thread(_measure, grounds.server(), options, grounds.tell)


def _measure(server: Server, options: Options, tell: Tell) -> list[Claim]:
    with tempfile.TemporaryDirectory(prefix="bench") as place:
        asyncio.run(_prepare(server.dsn()))
        folder = Path(place)
        variants = [_recorder, _logging, *([_structlog] if find_spec("structlog") else [])]
        calls: dict[str, list[_Calls]] = {}
        speeds: dict[str, list[float]] = {}
        ends: list[float] = []
        inserts: list[float] = []
        for number in range(options.rounds):
            told = f"recording, {told_round(number, options.rounds)}"
            for variant in in_turn(variants, number):
                name = variant.__name__.strip("_")
                tell(f"{told}: {name}")
                with variant(folder) as (call, _):
                    calls.setdefault(name, []).append(_measure_calls(call))
                with variant(folder) as (call, finish):
                    speeds.setdefault(name, []).append(_measure_speed(call, finish, options.events))
            tell(f"{told}: into the store")
            ends.append(_measure_store(server, folder, options.stored))
            tell(f"{told}: one INSERT an event")
            inserts.append(asyncio.run(_measure_inserts(server.dsn(), options.inserts)))
    return _claims(calls, speeds, ends, inserts)


def _claims(
    calls: dict[str, list[_Calls]], speeds: dict[str, list[float]], ends: list[float], inserts: list[float]
) -> list[Claim]:
    medians = {name: [call.median for call in found] for name, found in calls.items()}
    ours, durable = medians.pop("recorder"), speeds["recorder"]
    others = {name: found for name, found in speeds.items() if name != "recorder"}
    return [
        held_to("a call of record()", "ns", 5_000, ours, at_most=True, promise=Promise.CALL),
        note("the slowest call of record() in a hundred", "ns", [call.p99 for call in calls["recorder"]]),
        *(
            compare(f"a call of record(), beside {name} to a file", "ns", found, ours)
            for name, found in medians.items()
        ),
        held_to(
            "events into the spool, by one thread",
            "events/s",
            150_000,
            durable,
            at_most=False,
            promise=Promise.DURABLE,
        ),
        *(
            compare(f"events into the spool, beside {name} to a file", "events/s", found, durable)
            for name, found in others.items()
        ),
        compare("events into the store, beside one INSERT each", "events/s", inserts, ends),
    ]


def _metadata(number: int) -> dict[str, Any]:
    return {"order": number, "path": "/orders", "total": 12.5}


@contextmanager
def _recorder(folder: Path) -> Generator[tuple[Call, Callable[[], None]]]:
    with _recording(folder, None) as recorder:

        def call(number: int) -> object:
            return recorder.record(
                "order.create", category="financial", entity=("order", number), metadata=_metadata(number)
            )

        def finish() -> None:
            if not recorder.flush(_DELIVER_SECONDS):
                raise AfterwriteError("events were not spooled in time", remedy="this is a defect: report it")

        yield call, finish


@contextmanager
def _recording(folder: Path, sink: OpenSink | None) -> Generator[Recorder]:
    """A recorder that waits for room rather than drop anything, and its context."""
    with tempfile.TemporaryDirectory(prefix="spool", dir=folder) as place:
        options = RecorderOptions(
            spool_dir=place, overflow=Overflow.BLOCK, block_seconds=_DELIVER_SECONDS, close_seconds=1.0
        )
        recorder = Recorder(source="bench", open_sink=sink, options=options)
        try:
            with bind(actor="user:42", tenant="acme", request="r-1"):
                yield recorder
        finally:
            recorder.close()


@contextmanager
def _logging(folder: Path) -> Generator[tuple[Call, Callable[[], None]]]:
    """The standard library: a line of JSON for each event, into a file that is flushed at each."""
    handler = logging.FileHandler(folder / "logging.log", mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.Logger("bench", logging.INFO)
    logger.addHandler(handler)

    def call(number: int) -> object:
        said = {"action": "order.create", "category": "financial", "entity_type": "order", "entity_id": number}
        who = {"actor": "user:42", "tenant": "acme", "request": "r-1"}
        logger.info("%s", json.dumps({**said, **who, **_metadata(number)}))
        return None

    try:
        yield call, handler.flush
    finally:
        handler.close()


@contextmanager
def _structlog(folder: Path) -> Generator[tuple[Call, Callable[[], None]]]:
    """structlog as its manual has it for production: bound context, a time stamp, JSON, a logger that writes lines."""
    structlog: Any = import_module("structlog")
    file: io.TextIOWrapper
    with (folder / "structlog.log").open("w", encoding="utf-8") as file:
        logger = structlog.wrap_logger(
            structlog.WriteLogger(file),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(),
            ],
            cache_logger_on_first_use=True,
        ).bind(actor="user:42", tenant="acme", request="r-1")

        def call(number: int) -> object:
            return logger.info(
                "order.create", category="financial", entity_type="order", entity_id=number, **_metadata(number)
            )

        yield call, file.flush


def _measure_calls(call: Call) -> _Calls:
    """Each burst is shorter than the time in which a group is gathered: what is timed is the caller's part."""
    bursts: list[float] = []
    singles: list[float] = []
    call(0)
    for _ in range(_BURSTS):
        time.sleep(_PAUSE_SECONDS)
        began = time.perf_counter_ns()
        for number in range(_BURST):
            call(number)
        bursts.append((time.perf_counter_ns() - began) / _BURST)
        time.sleep(_PAUSE_SECONDS)
        for number in range(_BURST // 5):
            began = time.perf_counter_ns()
            call(number)
            singles.append(time.perf_counter_ns() - began)
    return _Calls(statistics.median(bursts), percentile(singles, 0.99))


def _measure_speed(call: Call, finish: Callable[[], None], events: int) -> float:
    call(0)
    finish()
    began = time.perf_counter()
    for number in range(events):
        call(number)
    finish()
    return events / (time.perf_counter() - began)


def _measure_store(server: Server, folder: Path, events: int) -> float:
    with _recording(folder, lambda: open_sink(server.dsn())) as recorder:
        recorder.record("bench.warm")
        if not recorder.flush(_DELIVER_SECONDS):
            raise AfterwriteError(f"nothing is stored: {recorder.stats().delivery_trouble}")
        began = time.perf_counter()
        for number in range(events):
            recorder.record("order.create", category="financial", entity=("order", number), metadata=_metadata(number))
        if not recorder.flush(_DELIVER_SECONDS):
            raise AfterwriteError("events were not stored in time", remedy="this is a defect: report it")
        return events / (time.perf_counter() - began)


async def _prepare(dsn: str) -> None:
    async with connect(dsn) as db:
        await install_store(db)
        await db.script(script("bench/audit"))


async def _measure_inserts(dsn: str, events: int) -> float:
    async with connect(dsn) as db:
        began = time.perf_counter()
        for number in range(events):
            await db.run(
                statement("bench.insert_audit"),
                id=uuid.uuid4(),
                actor="user:42",
                tenant="acme",
                action="order.create",
                entity_type="order",
                entity_id=str(number),
                details=json.dumps(_metadata(number)),
            )
        return events / (time.perf_counter() - began)
