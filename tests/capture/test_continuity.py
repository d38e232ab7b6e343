"""What is published stays as it was installed, or somebody is told: holes, other stores, gaps and their bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import psycopg
import pytest
from capture_rig import MemorySink, changes_of, drain, install, lay_memory, setup_of

from afterwrite.capture.backlog import Pace
from afterwrite.capture.continuity import read_memory
from afterwrite.capture.preflight import CaptureSetup
from afterwrite.capture.slot import Gap, Prepared, StepKind, examine, prepare, remove
from afterwrite.capture.worker import Source, Worker, WorkerState
from afterwrite.errors import Finding, Refused
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server
from afterwrite.record import Batch, Lsn, Receipt

QUICK = Pace(linger_ms=5, pulse_seconds=0.05, heartbeat_seconds=0.3, first_pause_ms=20, takeover_seconds=1.5)


def run_sql(dsn: str, script: str) -> list[tuple]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(script.encode())
        while cursor.nextset():
            pass
        return cursor.fetchall() if cursor.description else []


def wal(dsn: str) -> Lsn:
    return Lsn.parse(run_sql(dsn, "select pg_current_wal_insert_lsn()::text")[0][0])


def accept(
    dsn: str, setup: CaptureSetup, sink: MemorySink, *, word: bool = True, told: list[Gap] | None = None
) -> Prepared:
    async def tell(gap: Gap) -> None:
        if told is not None:
            told.append(gap)

    async def run() -> Prepared:
        async with connect(dsn) as database:
            await lay_memory(database)
            return await prepare(database, sink, setup, accept_gap=word, on_gap=tell)

    return asyncio.run(run())


def examined(dsn: str, setup: CaptureSetup, sink: MemorySink) -> list[Finding]:
    async def look() -> list[Finding]:
        async with connect(dsn) as database:
            return await examine(database, setup, sink.checkpoint, await sink.read_identity())

    return asyncio.run(look())


def capturing(
    dsn: str, setup: CaptureSetup, sink: MemorySink, body: Callable[[Worker], Awaitable[None]] | None = None
) -> Worker:
    """A worker beside ``body``, stopped after it; what the worker refuses is raised."""

    async def run() -> Worker:
        worker = Worker(Source(dsn=dsn, name="main", slot=setup.slot), sink.opened, pace=QUICK)
        async with asyncio.timeout(30):
            task = asyncio.create_task(worker.run())
            other = asyncio.create_task(body(worker) if body else asyncio.sleep(20))
            await asyncio.wait({task, other}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                other.cancel()
            else:
                await other
                worker.stop()
            await task
        return worker

    return asyncio.run(run())


async def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - a test looks from outside
            await asyncio.sleep(0.01)


def laid(dsn: str) -> tuple[CaptureSetup, MemorySink]:
    run_sql(dsn, "create table t (id int primary key, a int); create table u (id int primary key)")
    setup = setup_of("t", "u")
    sink, _ = install(dsn, setup)
    return setup, sink


DEPARTURES = [
    ("alter publication afterwrite drop table t", "table public.t was taken out of publication afterwrite"),
    (
        "alter publication afterwrite drop table t; alter publication afterwrite add table t",
        "table public.t was taken out of publication afterwrite and put back",
    ),
    ("alter publication afterwrite set (publish = 'insert')", "publication afterwrite now publishes insert, via root"),
    ("alter publication afterwrite set (publish_via_partition_root = false)", "publication afterwrite now publishes"),
    (
        "alter publication afterwrite set (publish = 'insert');"
        " alter publication afterwrite set (publish = 'insert, update, delete, truncate')",
        "publication afterwrite was altered, and set back to insert, update",
    ),
    ("drop publication afterwrite", "publication afterwrite was dropped"),
    (
        "drop publication afterwrite;"
        " create publication afterwrite for table t, u with (publish_via_partition_root = true)",
        "publication afterwrite was dropped and created again",
    ),
    ("alter publication afterwrite set table t where (a > 1), u", "table public.t has a row filter"),
    ("alter publication afterwrite set table t (id), u", "table public.t has a column list"),
]


@pytest.mark.parametrize(("script", "said"), DEPARTURES, ids=[said for _, said in DEPARTURES])
def test_what_leaves_a_publication_is_refused_and_the_gap_has_its_bounds(
    dsn: str, server: Server, script: str, said: str
) -> None:
    if server.version < 15 and ("(id)" in script or "where" in script):
        pytest.skip("row filters and column lists came with PostgreSQL 15")
    setup, sink = laid(dsn)
    before = wal(dsn)
    run_sql(dsn, script)
    run_sql(dsn, "insert into t values (1, 1)")
    with pytest.raises(Refused, match=said) as refused:
        capturing(dsn, setup, sink)
    assert "--accept-gap" in (refused.value.remedy or "")
    with pytest.raises(Refused, match=said):
        install(dsn, setup, sink)
    assert any(said in finding.text for finding in examined(dsn, setup, sink) if finding.severity == "error")
    gaps: list[Gap] = []
    prepared = accept(dsn, setup, sink, told=gaps)
    assert tuple(gaps) == prepared.gaps
    (gap,) = gaps
    assert gap.after <= before < gap.until <= wal(dsn)
    assert said in gap.reason
    replaced = "drop publication" in script
    assert (StepKind.SLOT in [step.kind for step in prepared.steps]) is replaced
    assert [finding.rule for finding in examined(dsn, setup, sink) if finding.severity == "error"] == []
    run_sql(dsn, "insert into t values (2, 2); insert into u values (3)")
    assert [change.key for change in changes_of(drain(dsn, setup, sink))][-2:] == ["2", "3"]
    assert accept(dsn, setup, sink, word=False).steps == []


@pytest.mark.parametrize("script", [DEPARTURES[0][0], DEPARTURES[1][0], DEPARTURES[4][0], DEPARTURES[5][0]])
def test_a_worker_notices_within_a_pulse_and_bounds_the_gap_by_it(dsn: str, script: str) -> None:
    setup, sink = laid(dsn)
    seen: list[Lsn] = []

    async def body(worker: Worker) -> None:
        await until(lambda: worker.status().state is WorkerState.STREAMING)
        run_sql(dsn, "insert into u select generate_series(1, 500)")
        await until(lambda: len(sink.activities) == 500)
        await asyncio.sleep(0.3)
        seen.append(wal(dsn))
        run_sql(dsn, script)
        await asyncio.sleep(10)

    with pytest.raises(Refused, match="may be missing from the stream"):
        capturing(dsn, setup, sink, body)
    start = sink.batches[0].checkpoint
    assert start is not None
    (gap,) = accept(dsn, setup, sink).gaps
    # Not since the installation, but since the last pulse that saw all in order (or what is stored, if that is less).
    assert start.lsn < gap.after <= seen[0] < gap.until


def test_a_table_that_is_dropped_or_renamed_is_no_loss(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterwrite.capture.watch._FORGET_SECONDS", 0.0)
    setup, sink = laid(dsn)

    async def body(worker: Worker) -> None:
        await until(lambda: worker.status().state is WorkerState.STREAMING)
        run_sql(dsn, "drop table u; create schema other; alter table t rename to v; alter table v set schema other")
        run_sql(dsn, "insert into other.v values (1, 1)")
        await until(lambda: len(sink.activities) == 1)
        await until(lambda: run_sql(dsn, "select count(*) from afterwrite.published") == [(1,)])
        assert worker.status().findings == ()

    capturing(dsn, setup, sink, body)
    assert sink.activities[0].relation == "other.v"
    capturing(dsn, setup, sink, body=lambda worker: until(lambda: worker.status().state is WorkerState.STREAMING))
    assert run_sql(dsn, "select schema, name, key from afterwrite.published") == [("other", "v", ["id"])]


def test_a_table_that_is_dropped_and_created_again_is_told_of_until_it_is_published(dsn: str) -> None:
    setup, sink = laid(dsn)

    async def body(worker: Worker) -> None:
        await until(lambda: worker.status().state is WorkerState.STREAMING)
        run_sql(dsn, "drop table u")
        await asyncio.sleep(0.5)  # a migration takes its time between the two
        run_sql(dsn, "create table u (id int primary key)")
        await until(lambda: [finding.rule for finding in worker.status().findings] == ["table.replaced"])
        (finding,) = worker.status().findings
        assert "public.u was dropped and created again" in finding.text
        assert "install --apply" in (finding.remedy or "")
        run_sql(dsn, "insert into t values (1, 1)")
        await until(lambda: len(sink.activities) == 1)

    capturing(dsn, setup, sink, body)
    assert {"table.replaced", "publication.lacks"} <= {finding.rule for finding in examined(dsn, setup, sink)}
    assert accept(dsn, setup, sink, word=False).gaps == ()
    assert examined(dsn, setup, sink) == []
    run_sql(dsn, "insert into u values (5)")
    assert [change.key for change in changes_of(drain(dsn, setup, sink))][-1:] == ["5"]


def test_a_table_added_by_hand_is_kept_in_mind_and_one_of_the_store_refused(dsn: str) -> None:
    setup, sink = laid(dsn)
    run_sql(dsn, "create table w (id int primary key); alter publication afterwrite add table w")
    capturing(dsn, setup, sink, body=lambda worker: until(lambda: worker.status().state is WorkerState.STREAMING))
    run_sql(dsn, "alter publication afterwrite drop table w")
    with pytest.raises(Refused, match=r"table public\.w was taken out"):
        capturing(dsn, setup, sink)
    # Nobody plans to capture it, so with the word given it stays out.
    assert len(accept(dsn, setup, sink).gaps) == 1
    run_sql(dsn, "alter publication afterwrite add table afterwrite.open_gap")
    with pytest.raises(Refused, match=r"lists afterwrite\.open_gap.*without end") as refused:
        capturing(dsn, setup, sink)
    assert "DROP TABLE afterwrite.open_gap" in (refused.value.remedy or "")


def test_a_publication_that_lists_the_schema_of_the_store_is_refused(dsn: str, server: Server) -> None:
    if server.version < 15:
        pytest.skip("schemas in publications came with PostgreSQL 15")
    setup, sink = laid(dsn)
    run_sql(dsn, "alter publication afterwrite add tables in schema afterwrite")
    with pytest.raises(Refused, match=r"lists schema afterwrite.*without end") as refused:
        capturing(dsn, setup, sink)
    assert "DROP TABLES IN SCHEMA afterwrite" in (refused.value.remedy or "")


def test_a_partition_that_is_not_in_the_wal_is_told_of(dsn: str) -> None:
    run_sql(dsn, "create table p (id int primary key) partition by range (id)")
    run_sql(dsn, "create table p1 partition of p for values from (0) to (10) partition by range (id)")
    setup = setup_of("p")
    sink, _ = install(dsn, setup)

    async def body(worker: Worker) -> None:
        await until(lambda: worker.status().state is WorkerState.STREAMING)
        run_sql(dsn, "create unlogged table p11 partition of p1 for values from (0) to (10)")
        await until(lambda: [finding.rule for finding in worker.status().findings] == ["table.unlogged"])
        assert "partition public.p11" in worker.status().findings[0].text

    capturing(dsn, setup, sink, body)
    assert [finding.where for finding in examined(dsn, setup, sink) if finding.severity == "error"] == ["public.p11"]


def test_a_partition_that_is_born_without_its_roots_identity_is_told_of(dsn: str) -> None:
    run_sql(dsn, "create table p (id int primary key) partition by range (id)")
    run_sql(dsn, "create table p1 partition of p for values from (0) to (10)")
    setup = setup_of("p", full=["p"])
    sink, _ = install(dsn, setup)

    async def body(worker: Worker) -> None:
        await until(lambda: worker.status().state is WorkerState.STREAMING)
        assert worker.status().findings == ()
        run_sql(dsn, "create table p2 partition of p for values from (10) to (20)")
        await until(lambda: [finding.rule for finding in worker.status().findings] == ["table.not_full"])
        (finding,) = worker.status().findings
        assert "partition public.p2" in finding.text
        run_sql(dsn, finding.remedy.removeprefix("run ").partition(",")[0])
        await until(lambda: worker.status().findings == ())

    capturing(dsn, setup, sink, body)


def test_a_writer_that_was_at_work_when_its_table_was_added_is_captured_whole_or_not_at_all(dsn: str) -> None:
    setup, sink = laid(dsn)
    run_sql(dsn, "create table w (id int primary key)")
    more = msgspec.structs.replace(setup, tables=(*setup.tables, ("public", "w")))

    async def run() -> None:
        async with connect(dsn) as writer, connect(dsn) as database:
            async with writer.transaction():
                await writer.run(b"insert into w values (1)")
                adding = asyncio.create_task(prepare(database, sink, more))
                await asyncio.sleep(0.2)
                await writer.run(b"insert into w values (2)")
                assert not adding.done()
            await adding

    asyncio.run(run())
    run_sql(dsn, "insert into w values (3)")
    assert [change.key for change in changes_of(drain(dsn, more, sink))] == ["3"]
    ((since, confirmed),) = run_sql(
        dsn,
        "select since_lsn::text, confirmed_flush_lsn::text from afterwrite.published, pg_replication_slots"
        f" where name = 'w' and slot_name = '{setup.slot}'",
    )
    assert Lsn.parse(confirmed) < Lsn.parse(since)


class OtherSink(MemorySink):
    async def read_identity(self) -> str:
        return "another store"


def test_another_store_does_not_take_the_slot_over_unasked(dsn: str) -> None:
    setup, sink = laid(dsn)
    run_sql(dsn, "insert into t values (1, 1)")
    other = OtherSink()
    with pytest.raises(Refused, match=r"belongs to another store \(memory\); this one is another store") as refused:
        install(dsn, setup, other)
    assert "--accept-gap" in (refused.value.remedy or "")
    assert "slot.owner" in {finding.rule for finding in examined(dsn, setup, other)}
    other.checkpoint = sink.checkpoint
    with pytest.raises(Refused, match="belongs to another store"):
        capturing(dsn, setup, other)
    # What the first store acknowledged is not in the second: that is the gap.
    capturing(dsn, setup, sink, body=lambda _: until(lambda: len(sink.activities) == 1))
    other = OtherSink()
    (gap,) = accept(dsn, setup, other).gaps
    assert sink.batches[0].checkpoint is not None
    assert other.checkpoint is not None
    assert (gap.after <= sink.batches[0].checkpoint.lsn, gap.until) == (True, other.checkpoint.lsn)
    assert "taken over from store memory" in gap.reason
    run_sql(dsn, "insert into t values (2, 2)")
    assert [change.key for change in changes_of(drain(dsn, setup, other))] == ["2"]
    with pytest.raises(Refused, match="belongs to another store"):
        capturing(dsn, setup, sink)


def test_a_worker_whose_slot_is_taken_over_stops_writing_to_its_store(dsn: str) -> None:
    setup, sink = laid(dsn)

    async def body(worker: Worker) -> None:
        await until(lambda: worker.status().state is WorkerState.STREAMING)
        with pytest.raises(Refused, match="a worker is active on slot"):
            async with connect(dsn) as database:
                await prepare(database, OtherSink(), setup, accept_gap=True)
        run_sql(dsn, "update afterwrite.capture set store = 'third'")
        await asyncio.sleep(10)

    with pytest.raises(Refused, match=r"taken over by another store \(third\)"):
        capturing(dsn, setup, sink, body)


class BreakingSink(MemorySink):
    """Breaks at the write of the first checkpoint, before or after it is kept."""

    def __init__(self, sink: MemorySink, *, kept: bool) -> None:
        super().__init__()
        self.checkpoint = sink.checkpoint
        self.kept = kept

    async def write(self, batch: Batch) -> Receipt:
        if self.kept:
            await super().write(batch)
        raise KeyboardInterrupt


@pytest.mark.parametrize("kept", [False, True])
def test_an_interrupted_new_beginning_is_finished_without_another_word_and_with_one_gap(dsn: str, kept: bool) -> None:
    setup, sink = laid(dsn)
    assert sink.checkpoint is not None
    before = sink.checkpoint.lsn
    run_sql(dsn, f"select pg_drop_replication_slot('{setup.slot}')")
    breaking, gaps = BreakingSink(sink, kept=kept), list[Gap]()
    with pytest.raises(KeyboardInterrupt):
        accept(dsn, setup, breaking, told=gaps)
    sink.checkpoint = breaking.checkpoint
    run_sql(dsn, "insert into t values (1, 1)")
    if not kept:
        with pytest.raises(Refused, match=r"an installation of slot .* was interrupted") as refused:
            capturing(dsn, setup, sink)
        assert refused.value.remedy == ("run `afterwrite install --apply` again, which finishes it and records the gap")
    accept(dsn, setup, sink, word=False, told=gaps)
    assert len(set(gaps)) == 1
    assert gaps[0].after == before
    assert sink.checkpoint is not None
    assert gaps[0].until == sink.checkpoint.lsn
    assert [change.key for change in changes_of(drain(dsn, setup, sink))] == ["1"]

    async def remembered() -> int:
        async with connect(dsn) as database:
            return len((await read_memory(database, setup.slot)).gaps)

    assert asyncio.run(remembered()) == 0


def test_a_slot_ahead_of_the_store_is_adopted_where_it_is(dsn: str) -> None:
    # A store restored from a backup: what the slot still holds is captured, not thrown away for a new slot.
    setup, sink = laid(dsn)
    first = sink.checkpoint
    run_sql(dsn, "insert into t values (1, 1)")
    capturing(dsn, setup, sink, body=lambda _: until(lambda: len(sink.activities) == 1))
    run_sql(dsn, "insert into t values (2, 2)")
    restored = MemorySink()
    restored.checkpoint = first
    with pytest.raises(Refused, match="is ahead of the store"):
        accept(dsn, setup, restored, word=False)
    prepared = accept(dsn, setup, restored)
    assert [step.kind for step in prepared.steps] == [StepKind.CHECKPOINT]
    assert len(prepared.gaps) == 1
    assert [change.key for change in changes_of(drain(dsn, setup, restored))] == ["2"]


def test_a_source_whose_disk_was_set_back_is_not_stepped_over_and_goes_on_without_its_checkpoint(dsn: str) -> None:
    setup, sink = laid(dsn)
    first = sink.checkpoint
    assert first is not None
    # As a snapshot of the disk comes back: same cluster, same timeline, and the store is further than its WAL.
    sink.checkpoint = msgspec.structs.replace(first, lsn=Lsn(first.lsn + (1 << 24)))
    run_sql(dsn, "insert into t values (1, 1)")
    with pytest.raises(Refused, match="it was set back to an earlier state"):
        capturing(dsn, setup, sink)
    for word in (False, True):
        with pytest.raises(Refused, match="it was set back") as refused:
            accept(dsn, setup, sink, word=word)
    assert "delete the row of this source from afterwrite.checkpoint" in (refused.value.remedy or "")
    assert "slot.continuity" in {finding.rule for finding in examined(dsn, setup, sink)}
    sink.checkpoint = None
    accept(dsn, setup, sink, word=False)
    capturing(dsn, setup, sink, body=lambda _: until(lambda: len(sink.activities) == 1))


def test_a_source_name_that_another_slot_stores_is_refused_and_with_a_word_the_other_worker_is(dsn: str) -> None:
    setup, sink = laid(dsn)
    capturing(dsn, setup, sink, body=lambda _: asyncio.sleep(0.1))
    other = msgspec.structs.replace(setup, slot=f"{setup.slot}_b")
    with pytest.raises(Refused, match=f"stored from slot {setup.slot}, .* this is slot {other.slot}") as refused:
        accept(dsn, other, sink, word=False)
    assert "AFTERWRITE_SOURCE" in (refused.value.remedy or "")
    assert len(accept(dsn, other, sink).gaps) == 1
    # Where it went on from the other's checkpoint, what it had not stored by then would be lost unseen.
    with pytest.raises(Refused, match=f"is stored from slot {other.slot}"):
        capturing(dsn, setup, sink)
    run_sql(dsn, "insert into t values (1, 1)")
    capturing(dsn, other, sink, body=lambda _: until(lambda: len(sink.activities) == 1))


def test_a_source_gets_another_name_only_with_a_word(dsn: str) -> None:
    setup, sink = laid(dsn)
    run_sql(dsn, "insert into t values (1, 1)")
    renamed, sink.checkpoint = msgspec.structs.replace(setup, source="other"), None
    with pytest.raises(Refused, match="is captured as source 'main', and this is 'other'"):
        accept(dsn, renamed, sink, word=False)
    assert [step.kind for step in accept(dsn, renamed, sink).steps] == [StepKind.CHECKPOINT]
    assert [change.key for change in changes_of(drain(dsn, renamed, sink))] == ["1"]


def test_taking_capture_back_forgets_whose_the_slot_was(dsn: str) -> None:
    setup, _ = laid(dsn)

    async def take_back() -> None:
        async with connect(dsn) as database:
            await remove(database, setup)

    asyncio.run(take_back())
    assert run_sql(dsn, "select count(*) from afterwrite.capture") == [(0,)]
    install(dsn, setup, OtherSink())
