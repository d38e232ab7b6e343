"""What capture may cost the source's disk: judged, told once a second whatever else goes on, given up by policy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from capture_rig import MemorySink, changes_of, drain, install
from test_continuity import accept, examined, laid, run_sql, until, wal

from afterwrite.capture.backlog import Pace
from afterwrite.capture.governor import Health, LagClock, Observed, OverBudget, Policy, judge
from afterwrite.capture.preflight import CaptureSetup
from afterwrite.capture.slot import Gap, StepKind
from afterwrite.capture.worker import Source, Worker, WorkerState, WorkerStatus
from afterwrite.errors import ConnectionLost, Refused
from afterwrite.record import Batch, Lsn, Receipt

MB = 1 << 20
ALARM = Policy(wal_budget=100 * MB)
GIVE_UP = Policy(wal_budget=100 * MB, over_budget=OverBudget.GIVE_UP)


def seen(megabytes: float, **more: object) -> Observed:
    return msgspec.structs.replace(Observed(slot="s", retained_bytes=int(megabytes * MB)), **more)


@pytest.mark.parametrize(
    ("observed", "policy", "health", "give_up"),
    [
        (seen(49), GIVE_UP, Health.WELL, False),
        (seen(50), GIVE_UP, Health.WARN, False),
        (seen(79), GIVE_UP, Health.WARN, False),
        (seen(80), GIVE_UP, Health.ALARM, False),
        (seen(99), GIVE_UP, Health.ALARM, False),
        (seen(100), GIVE_UP, Health.OVER, True),
        (seen(100), ALARM, Health.OVER, False),
        (seen(10_000), ALARM, Health.OVER, False),
        # It stores what waits: a quarter more to get through it, and not more.
        (seen(110, stored_seconds=2.0), GIVE_UP, Health.OVER, False),
        (seen(110, stored_seconds=60.0), GIVE_UP, Health.OVER, True),
        (seen(126, stored_seconds=2.0), GIVE_UP, Health.OVER, True),
        # The server's own limit is nearer than the budget; what it does then is its own deed.
        (seen(45, safe_wal_size=5 * MB), GIVE_UP, Health.ALARM, False),
        (seen(45, safe_wal_size=0), GIVE_UP, Health.OVER, False),
        (seen(45, wal_status="unreserved"), GIVE_UP, Health.ALARM, False),
    ],
)
def test_shares_of_the_budget_decide(observed: Observed, policy: Policy, health: Health, give_up: bool) -> None:
    judgement = judge(observed, policy)
    assert (judgement.health, judgement.give_up) == (health, give_up)
    rules = [finding.rule for finding in judgement.findings]
    assert rules == ([] if health is Health.WELL else [f"slot.wal.{health.value}"])
    assert all(finding.remedy for finding in judgement.findings)


def test_what_is_told_says_how_much_and_what_will_happen() -> None:
    (given_up,) = judge(seen(90, lag_bytes=88 * MB), GIVE_UP).findings
    assert given_up.text == (
        "slot s keeps 90 MiB of WAL, 90 % of the budget of 100 MiB, at which the slot is given up by policy"
        " (over_budget)"
    )
    (alarm,) = judge(seen(90, lag_bytes=88 * MB), ALARM).findings
    assert "grows on until the disk is full" in (alarm.remedy or "")
    (server,) = judge(seen(45, safe_wal_size=5 * MB), ALARM).findings
    assert "90 % of the server's max_slot_wal_keep_size of 50 MiB, at which the server gives it up" in server.text
    (held,) = judge(seen(90, lag_bytes=0), ALARM).findings
    assert "frees the rest within a minute or so, unless an old transaction that is still open holds it" in held.text


@pytest.mark.parametrize(
    ("observed", "rule"),
    [
        (seen(1, lag_seconds=61.0), "capture.lag"),
        (seen(1, heartbeat_seconds=31.0), "capture.heartbeat"),
        (seen(1, catalog_age=150_000_000), "slot.catalog_xmin"),
    ],
)
def test_what_falls_behind_is_told(observed: Observed, rule: str) -> None:
    assert [finding.rule for finding in judge(observed, ALARM).findings] == [rule]


def test_the_lag_in_seconds_is_known_without_a_message() -> None:
    clock = LagClock()
    for second in range(2_000):
        clock.note(float(second), Lsn(1_000 + 10 * second))
    assert clock.behind(2_000.0, Lsn(1_000 + 10 * 1_999)) == 0
    clock = LagClock()
    for second in range(2_000):
        clock.note(float(second), Lsn(1_000 + 10 * second))
    # Hours fit into a few hundred notes: the older the less exact.
    assert clock.behind(2_000.0, Lsn(1_000 + 10 * 999)) == pytest.approx(1_000, abs=16)
    assert clock.behind(2_000.0, Lsn(1 << 40)) == 0


QUICK = Pace(linger_ms=5, pulse_seconds=0.05, heartbeat_seconds=0.2, first_pause_ms=20, longest_pause_ms=200)
SMALL = Policy(wal_budget=MB, over_budget=OverBudget.GIVE_UP)


class DownSink(MemorySink):
    """A store that is there or not; it is looked for again and again."""

    def __init__(self, sink: MemorySink) -> None:
        super().__init__()
        self.checkpoint = sink.checkpoint
        self.down = False

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[MemorySink]:
        self._look()
        yield self

    async def write(self, batch: Batch) -> Receipt:
        self._look()
        return await super().write(batch)

    def _look(self) -> None:
        if self.down:
            raise ConnectionLost("the store is down")


def governed(
    dsn: str,
    setup: CaptureSetup,
    sink: MemorySink,
    policy: Policy,
    body: Callable[[Worker], Awaitable[None]],
    on_status: Callable[[WorkerStatus], None] | None = None,
) -> None:
    async def run() -> None:
        source = Source(dsn=dsn, name="main", slot=setup.slot)
        worker = Worker(source, sink.opened, pace=QUICK, policy=policy, on_status=on_status)
        async with asyncio.timeout(40):
            task = asyncio.create_task(worker.run())
            other = asyncio.create_task(_started(body, worker))
            await asyncio.wait({task, other}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                other.cancel()
            else:
                await other
                worker.stop()
            await task

    asyncio.run(run())


async def _started(body: Callable[[Worker], Awaitable[None]], worker: Worker) -> None:
    await until(lambda: worker.status().state is not WorkerState.STARTING)
    await body(worker)


FILL = "insert into t select g, 0 from generate_series({0}, {0} + 25000) g"


def test_the_slot_is_given_up_by_policy_and_the_gap_has_its_exact_bounds(dsn: str) -> None:
    setup, first = laid(dsn)
    sink = DownSink(first)
    healths: list[str | None] = []

    async def body(worker: Worker) -> None:
        run_sql(dsn, "insert into t values (1, 1)")
        await until(lambda: len(sink.activities) == 1)
        sink.down = True
        run_sql(dsn, FILL.format(1000))
        await asyncio.sleep(20)

    with pytest.raises(Refused, match=rf"slot {setup.slot} was given up: it kept .* MiB of WAL.*missing") as refused:
        governed(dsn, setup, sink, SMALL, body, on_status=lambda status: healths.append(status.health))
    assert "install --apply`, which begins anew" in (refused.value.remedy or "")
    assert "over" in healths
    assert run_sql(dsn, f"select count(*) from pg_replication_slots where slot_name = '{setup.slot}'") == [(0,)]
    sink.down = False
    assert sink.checkpoint is not None
    stored = sink.checkpoint.lsn
    # Workers refuse in the same words until capture is begun anew, which needs no other word than the policy was.
    with pytest.raises(Refused, match=r"was given up at 20.*it kept"):
        governed(dsn, setup, sink, SMALL, lambda _: asyncio.sleep(20))
    assert [finding.rule for finding in examined(dsn, setup, sink)] == ["slot.given_up"]
    run_sql(dsn, "insert into t values (2, 2)")
    told: list[Gap] = []
    prepared = accept(dsn, setup, sink, word=False, told=told)
    assert [step.kind for step in prepared.steps] == [StepKind.SLOT, StepKind.CHECKPOINT]
    (gap,) = told
    assert (gap.after, gap.until) == (stored, sink.checkpoint.lsn)
    assert "wal_budget" in gap.reason
    run_sql(dsn, "insert into t values (3, 3)")
    assert [change.key for change in changes_of(drain(dsn, setup, sink))] == ["3"]
    assert examined(dsn, setup, sink) == []


def test_the_slot_is_given_up_also_while_a_batch_hangs(dsn: str) -> None:
    setup, sink = laid(dsn)
    release = asyncio.Event()

    class HangingSink(MemorySink):
        async def write(self, batch: Batch) -> Receipt:
            await release.wait()
            raise AssertionError

    hanging = HangingSink()
    hanging.checkpoint = sink.checkpoint

    async def body(worker: Worker) -> None:
        await until(lambda: worker.status().state is WorkerState.STREAMING)
        run_sql(dsn, FILL.format(1000))
        await asyncio.sleep(20)

    with pytest.raises(Refused, match="was given up"):
        governed(dsn, setup, hanging, SMALL, body)
    assert run_sql(dsn, "select count(*) from afterwrite.open_gap where kind = 'given up' and to_lsn is null") == [(1,)]


def test_with_the_policy_alarm_everything_is_kept_told_and_caught_up(dsn: str) -> None:
    setup, first = laid(dsn)
    sink = DownSink(first)
    sink.down = True
    policy = msgspec.structs.replace(SMALL, over_budget=OverBudget.ALARM, lag_warn_seconds=0.5)

    async def body(worker: Worker) -> None:
        await until(lambda: worker.status().state is WorkerState.WAITING)
        run_sql(dsn, FILL.format(1000))
        await until(lambda: worker.status().health == "over")
        status = worker.status()
        assert (status.retained_bytes or 0) > (status.budget_bytes or 0) == MB
        assert status.trouble == "the store is down"
        assert "slot.wal.over" in {finding.rule for finding in status.findings}
        sink.down = False
        await until(lambda: len(sink.activities) == 25_001)
        run_sql(dsn, "checkpoint; select pg_log_standby_snapshot()" if _has_snapshots(dsn) else "checkpoint")
        await until(lambda: worker.status().health == "well", 30)
        assert worker.status().findings == ()

    governed(dsn, setup, sink, policy, body)


def _has_snapshots(dsn: str) -> bool:
    return bool(run_sql(dsn, "select 1 from pg_proc where proname = 'pg_log_standby_snapshot'"))


def test_a_give_up_that_was_noted_and_not_done_is_taken_back(dsn: str) -> None:
    # Killed between the two: the slot is there, and nothing was lost.
    setup, sink = laid(dsn)
    run_sql(
        dsn,
        "insert into afterwrite.open_gap (slot, source, kind, from_lsn, reason)"
        f" values ('{setup.slot}', 'main', 'given up', '{wal(dsn)}', 'it kept too much')",
    )
    run_sql(dsn, "insert into t values (1, 1)")
    governed(dsn, setup, sink, Policy(), lambda _: until(lambda: len(sink.activities) == 1))
    assert run_sql(dsn, "select count(*) from afterwrite.open_gap") == [(0,)]
    run_sql(
        dsn,
        "insert into afterwrite.open_gap (slot, source, kind, from_lsn, reason)"
        f" values ('{setup.slot}', 'main', 'given up', '{wal(dsn)}', 'it kept too much')",
    )
    _, prepared = install(dsn, setup, sink)
    assert (prepared.steps, prepared.gaps) == ([], ())
    assert run_sql(dsn, "select count(*) from afterwrite.open_gap") == [(0,)]


def test_a_heartbeat_that_does_not_come_back_is_told(dsn: str) -> None:
    setup, sink = laid(dsn)
    policy = Policy(heartbeat_warn_seconds=0.4)
    slow = asyncio.Event()

    class SlowSink(MemorySink):
        async def write(self, batch: Batch) -> Receipt:
            if batch.activities:
                await slow.wait()
            return await super().write(batch)

    sluggish = SlowSink()
    sluggish.checkpoint = sink.checkpoint

    async def body(worker: Worker) -> None:
        await until(lambda: worker.status().state is WorkerState.STREAMING)
        run_sql(dsn, "insert into t values (1, 1)")
        await until(lambda: "capture.heartbeat" in {finding.rule for finding in worker.status().findings})
        slow.set()
        await until(lambda: worker.status().findings == ())
        await until(lambda: worker.status().heartbeat_ms is not None)

    governed(dsn, setup, sluggish, policy, body)
