"""Gates: what is measured on a real capture, and what is made of it. What cannot be measured is not met."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from migrating import HOLDING, PLACE, application, captured, holding, judge, plan_of, until

from afterwrite.errors import GateNotMet
from afterwrite.migrate.engine import run_all, run_phase
from afterwrite.migrate.gates import (
    DeferralReading,
    Readings,
    SlotReading,
    evaluate,
    measure_lag,
    read_deferral,
    read_lost,
    read_slot,
    read_table_figures,
    read_unpublished,
)
from afterwrite.migrate.observe import look, measure
from afterwrite.migrate.plan import Thresholds, make_plan
from afterwrite.migrate.rollback import rollback_phase
from afterwrite.prove.legacy import MappedRow
from afterwrite.prove.match import Reason
from afterwrite.prove.report import Lack, OperationProof, Proof, Standing, TriggerProof, standing
from afterwrite.prove.watch import Mode
from afterwrite.record import Operation
from afterwrite.scan.survey import survey


def test_a_running_capture_is_measured(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db, captured(installed_dsn, db) as place:
            lag = await measure_lag(db, place, limit_seconds=10.0)
            assert lag.arrived
            assert 0 < lag.seconds < 5
            slot = await read_slot(db, place)
            assert slot is not None
            assert slot.keeps_all
            assert slot.lag_bytes is not None
            assert slot.lag_bytes < 1_000_000
            assert slot.safe_wal_size is None
            relations = ["app.users", 'app."payments 2025 H1"', "app.audit_log", "app.nothing"]
            assert await read_unpublished(db, relations, place) == ("app.audit_log", "app.nothing")
            plan = await plan_of(db)
            readings = await measure(db, db, await look(db, plan.phase(3), place), place)
            assert readings.captured
            gates = {gate.name: gate for gate in evaluate(readings, plan.thresholds)}
            for name in ("capture worker", "published tables", "capture lag in bytes", "capture lag in seconds"):
                assert gates[name].met, str(gates[name])

    asyncio.run(main())


@pytest.mark.parametrize(
    "narrowed",
    [
        "alter publication afterwrite set (publish = 'insert')",
        "alter publication afterwrite set table app.users where (id > 1)",
        "alter publication afterwrite set table app.users (id)",
    ],
)
def test_a_table_that_is_not_sent_whole_is_not_published(installed_dsn: str, narrowed: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            if "set table" in narrowed and db.connection.info.server_version < 150_000:
                pytest.skip("PostgreSQL 14 sends tables whole")
            await db.run("create publication afterwrite for table app.users")
            assert await read_unpublished(db, ["app.users"], PLACE) == ()
            await db.run(narrowed.encode())
            assert await read_unpublished(db, ["app.users"], PLACE) == ("app.users",)

    asyncio.run(main())


def test_updates_without_their_whole_old_rows_keep_a_phase_from_moving(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)

            async def partial() -> tuple[str, ...] | None:
                return (await measure(db, db, await look(db, plan.phase(3), PLACE), PLACE, heartbeat=False)).partial

            leaves = ("app.payments_2024", 'app."payments 2025 H1"')
            assert sorted(await partial() or ()) == sorted(leaves)
            for leaf in leaves:
                await db.run(f"alter table {leaf} replica identity full".encode())
            assert await partial() == ()
            # A partition that is made later has a replica identity of its own.
            await db.run("create table app.payments_2026 partition of app.payments default")
            assert await partial() == ("app.payments_2026",)
            (gate,) = (g for g in evaluate(holding(partial=await partial()), plan.thresholds) if not g.met)
            assert gate.name == "whole old rows"

    asyncio.run(main())


def test_without_a_slot_nothing_is_measured_and_nothing_met(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            plan = await plan_of(db)
            readings = await measure(db, db, await look(db, plan.phase(1), PLACE), PLACE)
            assert not readings.captured
            assert readings.slot is None
            unmet = {gate.name for gate in evaluate(readings, plan.thresholds) if not gate.met}
            assert {"capture worker", "published tables", "capture lag in bytes", "slot headroom"} <= unmet

    asyncio.run(main())


def test_a_stopped_worker_is_seen(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            async with captured(installed_dsn, db) as place:
                pass
            await db.run("insert into app.users values (1, 'x')")
            slot = await read_slot(db, place)
            assert slot is not None
            assert not slot.active
            assert slot.lag_bytes
            lag = await measure_lag(db, place, limit_seconds=0.2)
            assert not lag.arrived
            assert lag.seconds >= 0.2

    asyncio.run(main())


def test_a_deferred_trigger_goes_over_to_the_replayer_and_back_without_a_gap(installed_dsn: str) -> None:
    """The whole way for one trigger: each insert is counted once, by the trigger or by its deferred body."""

    async def main() -> None:
        async with application(installed_dsn) as db, captured(installed_dsn, db) as place:
            await db.run("alter table app.notifications replica identity full")
            plan = await plan_of(db)
            proven = pytest.MonkeyPatch()

            async def proof(*_: object, **__: object) -> Standing | None:
                return HOLDING.proof

            proven.setattr("afterwrite.migrate.observe.read_phase_proof", proof)
            written = 0

            async def write(times: int) -> None:
                nonlocal written
                for _ in range(times):
                    written += 1
                    await db.run("insert into app.notifications values (%(id)s, 'x')", id=written)

            async def counted() -> int:
                return int(await db.value("select value from app.statistics where name = 'notifications'"))

            async def all_counted() -> bool:
                return await counted() >= written

            async def ended() -> bool:
                # The mark of the last restoring has come by: an earlier look at the lag could not know of it yet.
                states = await db.values("select distinct state from afterwrite.deferral")
                return states == ["ended"] and (await read_deferral(db, db, place)).waiting_seconds == 0

            with proven.context():
                for _ in range(2):
                    await write(10)
                    await run_phase(db, plan, 1, place=place, apply=True, wait_seconds=10)
                    await write(10)
                    await until(all_counted)
                    again = await measure(db, db, await look(db, plan.phase(1), place), place)
                    assert again.deferring
                    assert again.deferral is not None
                    assert again.deferral.dead_letters == 0
                    assert again.deferral.waiting_seconds is not None
                    await write(5)
                    await rollback_phase(db, 1, place=place, apply=True)
                    # At once again: the next round must wait until the deferral has run to its end.
                await write(10)
                await until(all_counted)
                await until(ended)
                assert await counted() == written == 60
            proven.undo()
            back = await rollback_phase(db, None, place=place, apply=True)
            assert back.finished
            assert await db.values("select state from afterwrite.deferral") == ["dropped", "dropped"]

    asyncio.run(main())


def test_a_phase_is_proven_by_what_shadow_saw_and_watched_afterwards(installed_dsn: str) -> None:
    """Nothing is made up here: scan, capture, prover, gates, and a stranger who turns the trigger on for a moment."""

    async def main() -> None:
        async with application(installed_dsn) as db:
            await db.run("alter table app.users replica identity full")
            await db.run("drop trigger log_late on app.users")
            found = await survey(db)
            thresholds = Thresholds(
                proof_transactions=4, proof_seconds=0.0, capture_lag_seconds=5.0, baseline_seconds=0.0
            )
            plan = make_plan(found.judgements, thresholds=thresholds, soak_seconds=30.0)
            assert [planned.trigger for planned in plan.phase(5).triggers] == ["app.users.log"]
            async with captured(installed_dsn, db, found) as place:
                await db.run("insert into app.users values (1, 'x'), (2, 'y')")
                await db.run("update app.users set name = 'z' where id = 1")
                with pytest.raises(GateNotMet, match=r"not seen: app\.users\.log on delete") as error:
                    await run_phase(db, plan, 5, place=place, apply=True, wait_seconds=1.0)
                assert "needs at least 4" in str(error.value)
                await db.run("delete from app.users where id = 1")
                await db.run("delete from app.users where id = 2")
                run = await run_phase(db, plan, 5, place=place, apply=True, wait_seconds=10.0)
                assert run.silenced == ("app.users.log",)

                async def proof() -> Standing:
                    readings = await measure(db, db, await look(db, plan.phase(5), place), place, soaking=True)
                    assert readings.proof is not None
                    return readings.proof

                await db.run("insert into app.users values (3, 'silent')")
                assert (await proof()).not_silent == ()
                await db.run("alter table app.users enable trigger log")
                await db.run("insert into app.users values (4, 'loud')")
                await db.run("alter table app.users disable trigger log")

                async def heard() -> bool:
                    return [lack.trigger for lack in (await proof()).not_silent] == ["app.users.log"]

                await until(heard)
                assert (await proof()).unexplained == 0
                only = msgspec.structs.replace(plan, phases=(plan.phase(5),))
                with pytest.raises(GateNotMet, match=r"written by app\.users\.log"):
                    await run_all(db, only, place=place, apply=True, check_seconds=0.05)
                assert (
                    await db.value(
                        "select tgenabled::text from pg_trigger where tgname = 'log' "
                        "and tgrelid = 'app.users'::regclass"
                    )
                    == "O"
                )

    asyncio.run(main())


def test_a_proof_is_summed_up_for_the_triggers_of_a_phase() -> None:
    def operation(kind: Operation, **more: Any) -> OperationProof:
        return OperationProof(operation=kind, expected=True, **more)

    def watched(identity: str, *operations: OperationProof, **more: Any) -> TriggerProof:
        found = TriggerProof(trigger=identity, mode=Mode.RETIRE, silenced=False, present=True, operations=operations)
        return msgspec.structs.replace(found, **more)

    now = datetime(2025, 5, 5, tzinfo=UTC)
    mapping = (MappedRow(operation=Operation.INSERT, table="log", line=1, times="change"),)
    missing = operation(Operation.INSERT, fired=True, seen=9, unexplained={Reason.MISSING: 2})
    proof = Proof(
        started_at=now,
        through_at=now + timedelta(seconds=90),
        through_lsn=None,
        observed=100,
        transactions=50,
        triggers=(
            watched("a", missing, operation(Operation.DELETE), mapping=mapping),
            watched("b", operation(Operation.INSERT, fired=True), operation(Operation.DELETE), mapping=mapping),
            watched("c", notes=("line 3 cannot be followed",)),
            watched("d", present=False),
            watched("of another phase", missing),
        ),
    )
    found = standing(["a", "b", "c", "d", "e"], proof, rare={("b", Operation.DELETE)}, silent_since={})
    assert found == Standing(
        transactions=50,
        seconds=90.0,
        residuals=(Lack("a", Operation.INSERT, 2, "missing"),),
        unwatched=(
            "c cannot be compared: line 3 cannot be followed",
            "d is not watched: restart `afterwrite capture`, which scans the triggers again",
            "e is not watched: restart `afterwrite capture`, which scans the triggers again",
        ),
        unseen=(Lack("a", Operation.DELETE),),
    )
    assert found.unexplained == 2


_UNSEEN = Lack("a.b.c", Operation.DELETE)


def _unmet(readings: Readings, **thresholds: float) -> list[str]:
    return [str(gate) for gate in evaluate(readings, msgspec.convert(thresholds, Thresholds)) if not gate.met]


def test_readings_that_hold_meet_every_gate() -> None:
    assert _unmet(HOLDING) == []


def test_every_reading_that_is_missing_is_an_unmet_gate() -> None:
    unmet = _unmet(Readings(deferring=True))
    assert len(unmet) == len(evaluate(Readings(deferring=True), Thresholds()))
    assert all("could not be measured" in text for text in unmet)


def _slot(**changes: object) -> Readings:
    assert HOLDING.slot is not None
    return holding(slot=msgspec.structs.replace(HOLDING.slot, **changes))


@pytest.mark.parametrize(
    ("readings", "said"),
    [
        (_slot(active=False), "capture worker is not active, reserved"),
        (_slot(wal_status="lost"), "capture worker is active, lost"),
        (_slot(wal_status="unreserved"), "capture worker is active, unreserved"),
        (_slot(lag_bytes=99_000_000), "capture lag in bytes is 99,000,000 B, needs at most 67,108,864 B"),
        (_slot(safe_wal_size=5), "slot headroom is 5 B, needs at least 1,073,741,824 B"),
        (holding(unpublished=("app.users",)), "published tables is missing app.users"),
        (
            holding(proof=Standing(transactions=7, seconds=1e6)),
            "proof: transactions is 7, needs at least 1,000",
        ),
        (
            holding(proof=Standing(transactions=9_999, seconds=60)),
            "proof: time is 60 s, needs at least 3,600 s",
        ),
        (
            holding(
                proof=Standing(
                    transactions=9_999, seconds=1e6, residuals=(Lack("a.b.c", Operation.INSERT, 2, "missing"),)
                )
            ),
            "unexplained residuals is 2 (a.b.c on insert: 2 missing), needs 0",
        ),
        (
            holding(proof=Standing(transactions=9_999, seconds=1e6, unseen=(_UNSEEN,))),
            "not seen: a.b.c on delete",
        ),
        (
            holding(deferring=True, deferral=DeferralReading(waiting_seconds=31.0, dead_letters=0)),
            "deferral lag is 31.00 s, needs at most 30 s",
        ),
        (
            holding(deferring=True, deferral=DeferralReading(waiting_seconds=0.0, dead_letters=3)),
            "dead letters is 3, needs 0",
        ),
        (holding(unfinished=("a.b.c",)), "earlier deferral is still running for a.b.c"),
    ],
)
def test_a_gate_says_value_threshold_window_and_source(readings: Readings, said: str) -> None:
    unmet = _unmet(readings)
    assert any(said in text and "from" in text for text in unmet), unmet


def test_while_a_phase_soaks_only_the_differences_of_its_proof_count() -> None:
    nothing_more = holding(proof=Standing(unseen=(_UNSEEN,), unrehearsed=(_UNSEEN,)))
    assert [
        gate.name for gate in evaluate(nothing_more, Thresholds(baseline_seconds=0.0), soaking=True) if not gate.met
    ] == []


def test_tables_are_weighed_by_what_the_server_counted(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            await db.run("create table app.children (id int primary key, user_id bigint references app.users)")
            await db.run("insert into app.payments select n, '2024-05-05', 1 from generate_series(1, 50) n")
            await db.run("insert into app.users values (1, 'x')")
            await db.run("select pg_stat_force_next_flush()")
            figures = {figure.table: figure for figure in await read_table_figures(db)}
            assert set(figures) == {"notifications", "project_settings", "payments", "tokens", "users"}
            assert figures["payments"].writes == 50
            assert figures["users"].incoming_foreign_keys == 1
            assert figures["payments"].trigger_ms > figures["users"].trigger_ms > 0
            assert make_plan(await judge(db), figures.values()) == make_plan(await judge(db), figures.values())

    asyncio.run(main())


def test_a_slot_reading_knows_whether_the_wal_is_kept() -> None:
    kept = SlotReading(active=False, wal_status="extended", safe_wal_size=None, lag_bytes=1)
    assert kept.keeps_all
    assert not msgspec.structs.replace(kept, wal_status=None).keeps_all


def test_what_capture_lost_since_the_silencing_is_a_gate(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            found = datetime.now(UTC)

            async def lost(since: datetime) -> tuple[str, ...] | None:
                return await read_lost(db, PLACE, {"app.users.log": since})

            assert await read_lost(db, PLACE, {}) is None
            assert await lost(found) == ()
            await db.run(
                "insert into afterwrite.gap (source, from_lsn, to_lsn, reason) values ('app', '0/10', '0/20', 'a test')"
            )
            assert await lost(found) == ("0/10 to 0/20",)
            assert await lost(found + timedelta(hours=1)) == ()  # it was silenced after that
            readings = holding(lost=await lost(found))
            assert [g.name for g in evaluate(readings, Thresholds(), soaking=True) if not g.met] == ["capture gaps"]
            assert all(g.met for g in evaluate(readings, Thresholds(), soaking=True, waive={"capture gaps": "known"}))

    asyncio.run(main())
