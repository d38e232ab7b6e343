"""Gates that compare the database with itself: before a phase was silenced, and since. And gates of the user's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count

import msgspec
import pytest
from migrating import HOLDING, application, holding, plan_of, until

from afterwrite import runtime
from afterwrite.errors import UsageError
from afterwrite.migrate.checks import read_checks
from afterwrite.migrate.gates import Readings, evaluate
from afterwrite.migrate.phase import Gate
from afterwrite.migrate.plan import Check, Thresholds, read_plan, write_plan
from afterwrite.migrate.pulse import Load, LoadReading, Pulse, between, note_pulse, read_load, take_pulse
from afterwrite.settings import Settings

_AT = datetime(2026, 1, 1, tzinfo=UTC)


def pulse(seconds: float, **changes: object) -> Pulse:
    found = Pulse(
        at=_AT + timedelta(seconds=seconds),
        commits=int(100 * seconds),
        rollbacks=int(seconds),
        deadlocks=0,
        failed_sessions=0,
        active_ms=50.0 * seconds,
        statements=int(200 * seconds),
        statement_ms=40.0 * seconds,
        cpu_seconds=0.1 * seconds,
    )
    return msgspec.structs.replace(found, **changes)


def gates(load: LoadReading | None, **thresholds: float) -> dict[str, Gate]:
    found = evaluate(holding(load=load), Thresholds(**thresholds), soaking=True)  # type: ignore[arg-type]
    return {gate.name: gate for gate in found}


def compared(**since: object) -> dict[str, Gate]:
    assert HOLDING.load is not None
    assert HOLDING.load.since is not None
    changed = msgspec.structs.replace(HOLDING.load.since, **since)
    return gates(msgspec.structs.replace(HOLDING.load, since=changed))


def test_what_happened_between_two_pulses_is_reckoned_by_statement_and_transaction() -> None:
    load = between([pulse(0), pulse(30), pulse(60)])
    assert load == Load(
        seconds=60.0,
        transactions=6_060,
        told_apart=6_060,
        rollbacks=60,
        deadlocks=0,
        failed_sessions=0,
        active_us=pytest.approx(3_000_000 / 6_060),
        writes=12_000,
        write_us=pytest.approx(200.0),
        cpu_us=pytest.approx(6e6 / 6_060),
    )


def test_a_reset_of_the_statistics_begins_anew() -> None:
    load = between([pulse(0), pulse(30), pulse(40, statements=5), pulse(60, statements=105)])
    assert load is not None
    assert load.seconds == 20.0
    assert load.writes == 100
    assert between([pulse(0)]) is None
    assert between([pulse(0), pulse(10, commits=-1)]) is None


def test_what_decoding_adds_to_the_rollbacks_when_its_reader_ends_is_left_out() -> None:
    read = ("afterwrite read by 7",)
    pulses = [
        pulse(0, decoders=("afterwrite read up to 5",)),
        pulse(20, decoders=read),  # whoever begins may have followed somebody
        pulse(40, decoders=read),
        pulse(60, decoders=("afterwrite read by 9",), rollbacks=50_000),  # the reader was another one: it has ended
        pulse(80, decoders=("afterwrite read by 9", "other read by 10"), rollbacks=50_020),
        pulse(100, decoders=("afterwrite read by 9", "other read by 10"), rollbacks=50_040),
    ]
    load = between(pulses)
    assert load is not None
    assert (load.rollbacks, load.told_apart) == (60, 6_060)
    assert load.transactions == 10_060
    assert load.cpu_us == pytest.approx(10e6 / 10_060)
    assert gates(LoadReading(before=load, since=load, silenced=True))["rollbacks"].value == "9.90 of 1,000, 9.90 before"
    unknown = between(pulses[2:4])
    assert unknown is not None
    assert gates(LoadReading(before=unknown, since=None, silenced=False))["rollbacks"].met is False
    assert gates(LoadReading(before=load, since=unknown, silenced=True))["rollbacks"].value == "0 transactions so far"


def test_a_worker_that_ends_is_not_taken_for_rollbacks_of_the_application(installed_dsn: str) -> None:
    async def main() -> None:
        settings = Settings(dsn=installed_dsn)
        async with application(installed_dsn) as db:
            await runtime.install(settings, await runtime.look_at_installation(settings, db, db), db, db)
            pulses: list[Pulse] = []
            ids = count(1)
            for _ in range(2):
                stop = asyncio.Event()
                capture = asyncio.create_task(runtime.run_capture(settings, stop=stop))
                await until(lambda: db.value("select bool_or(active) from pg_replication_slots"))
                pulses.append(await take_pulse(db))
                for _ in range(150):
                    await db.run("insert into app.users values (%(id)s)", id=next(ids))
                await asyncio.sleep(0.5)
                pulses.append(await take_pulse(db))
                stop.set()
                await capture
            counted = "select xact_rollback > %(least)s from pg_stat_database where datname = current_database()"
            await until(lambda: db.value(counted, least=pulses[0].rollbacks + 150))
            load = between([*pulses, await take_pulse(db)])
            assert load is not None
            assert load.rollbacks < 100
            assert load.transactions >= 300

    asyncio.run(main())


def test_rollbacks_that_are_taken_out_before_the_server_counted_them_are_no_reset() -> None:
    load = between([pulse(0), pulse(20), pulse(40, rollbacks=5), pulse(60)])
    assert load is not None
    assert (load.seconds, load.rollbacks) == (60.0, 60)
    later = between([pulse(0), pulse(20, rollbacks=-5)])
    assert later is not None
    assert (later.seconds, later.rollbacks) == (20.0, 0)


def test_where_cpu_or_statements_are_not_to_be_had_sessions_time_stands_in() -> None:
    blind = [pulse(at, cpu_seconds=None, statements=None, statement_ms=None) for at in (0, 60)]
    load = between(blind)
    assert load is not None
    assert (load.cpu_us, load.writes, load.write_us) == (None, None, None)
    found = gates(LoadReading(before=load, since=load, silenced=True))
    for name in ("write latency", "database CPU"):
        assert found[name].met
        assert found[name].source == "active_time of pg_stat_database"


def test_slower_writes_more_cpu_and_more_failures_close_the_gate() -> None:
    assert all(gate.met for gate in compared().values())
    slow = compared(write_us=700.0)["write latency"]
    assert (slow.met, slow.value) == (False, "700 µs a writing statement, 400 µs before")
    assert slow.threshold == "at most 1.5 times what it was before"
    assert compared(write_us=500.0)["write latency"].met
    assert not compared(cpu_us=1_200.0)["database CPU"].met
    assert not compared(rollbacks=5_000)["rollbacks"].met
    assert not compared(deadlocks=200)["deadlocks"].met
    assert not compared(failed_sessions=600)["failed sessions"].met
    assert compared(failed_sessions=100)["failed sessions"].met


def test_where_nothing_is_written_nothing_is_slow() -> None:
    found = compared(writes=3, write_us=10_000.0)["write latency"]
    assert (found.met, found.value) == (True, "3 writing statements so far")


def test_without_a_time_before_there_is_nothing_to_compare_with() -> None:
    names = {"write latency", "database CPU", "rollbacks", "deadlocks", "failed sessions"}
    found = gates(None)
    assert {name for name in names if found[name].value is None and not found[name].met} == names
    assert HOLDING.load is not None
    short = msgspec.structs.replace(HOLDING.load.before, seconds=20.0)  # type: ignore[type-var]
    before = gates(LoadReading(before=short, since=None, silenced=False))
    assert {name for name in names if not before[name].met} == names
    assert before["write latency"].value == "400 µs a writing statement"
    enough = gates(LoadReading(before=short, since=None, silenced=False), baseline_seconds=20.0)
    assert all(enough[name].met for name in names)
    lost = gates(LoadReading(before=None, since=HOLDING.load.since, silenced=True))
    assert {name for name in names if lost[name].value is None and not lost[name].met} == names


def test_a_gate_that_cannot_be_measured_is_met_only_by_the_plans_word() -> None:
    waive = {"write latency": "a test system", "capture worker": "never mind"}
    readings = msgspec.structs.replace(HOLDING, load=None)
    found = {gate.name: gate for gate in evaluate(readings, Thresholds(), waive=waive)}
    assert (found["write latency"].met, found["write latency"].waived) == (True, "a test system")
    assert not found["database CPU"].met
    # What was measured and does not hold is not waved through.
    assert HOLDING.load is not None
    slow = msgspec.structs.replace(HOLDING.load.since, write_us=9_999.0)  # type: ignore[type-var]
    readings = holding(load=LoadReading(before=HOLDING.load.before, since=slow, silenced=True))
    assert not next(g for g in evaluate(readings, Thresholds(), waive=waive) if g.name == "write latency").met


def test_the_plan_keeps_waivers_and_checks_and_refuses_foolish_ones(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            text = write_plan(await plan_of(db))
            more = '[waive]\n"slot headroom" = "no limit"\n[[check]]\nname = "a"\nsql = "select true"\n[[check]]\n'
            more += 'name = "b"\nurl = "http://127.0.0.1:1/"\nexpect = "fine"\n'
            plan = read_plan(
                text.replace("\n[[phase]]\n", f"\n{more}\n[[phase]]\n", 1).replace(
                    "number = 2\n", 'number = 2\nwaive = { "deadlocks" = "known" }\n'
                )
            )
            assert plan.phase(1).waive == {"slot headroom": "no limit"}
            assert plan.phase(2).waive == {"slot headroom": "no limit", "deadlocks": "known"}
            assert [check.name for check in plan.phase(3).checks] == ["a", "b"]
            assert read_plan(write_plan(plan)) == plan
            for wrong, said in (
                ('[waive]\n"capture worker" = "x"', "no gate that one can do without"),
                ('[waive]\n"deadlocks" = " "', "does not say why"),
                ('[[check]]\nname = "x"', "needs either sql or url"),
                ('[[check]]\nname = "x"\nurl = "file:///etc/passwd"', "no http address"),
                ('[[check]]\nname = "x"\nsql = "select 1"\n[[check]]\nname = "x"\nsql = "select 1"', "same name"),
            ):
                with pytest.raises(UsageError, match=said):
                    read_plan(text.replace("\n[[phase]]\n", f"\n{wrong}\n[[phase]]\n", 1))

    asyncio.run(main())


def test_counters_are_noted_and_read_back(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            await note_pulse(db)
            await note_pulse(db)  # somebody just did
            assert await db.value("select count(*) from afterwrite.pulse") == 1
            taken = await take_pulse(db)
            assert taken.cpu_seconds is not None  # the test's server is on this machine
            assert taken.commits > 0
            load = await read_load(db, silenced_at=None, steady_since=None)
            assert load.before is not None
            assert load.before.seconds > 0
            assert not load.silenced
            await db.run("update afterwrite.pulse set at = at - interval '2 days'")
            await note_pulse(db)
            assert await db.value("select count(*) from afterwrite.pulse") == 1

    asyncio.run(main())


@contextmanager
def page(status: int, text: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_checks_of_the_users_own_are_asked_and_cannot_do_harm(installed_dsn: str) -> None:
    async def main() -> None:
        async with application(installed_dsn) as db:
            with page(200, "all is well") as well, page(503, "all is well") as ill:
                checks = (
                    Check(name="yes", sql="select count(*) = 0 from app.users"),
                    Check(name="no", sql="select false"),
                    Check(name="unqualified", sql="select count(*) > 0 from walls"),
                    Check(name="value", sql="select 'a', 2", expect="a"),
                    Check(name="none", sql="select 1 where false"),
                    Check(name="writes", sql="insert into app.users values (1) returning true"),
                    Check(name="slow", sql="select pg_sleep(5)", timeout_seconds=0.05),
                    Check(name="well", url=well, expect="well"),
                    Check(name="other", url=well, expect="ill"),
                    Check(name="ill", url=ill),
                    Check(name="nobody", url="http://127.0.0.1:1/"),
                )
                await db.run("create table public.walls as select 1")
                await db.run("set search_path to pg_catalog")  # as the engine's connection has it
                readings = await read_checks(db, checks)
            found = {reading.check.name: (reading.met, reading.value) for reading in readings}
            assert found == {
                "yes": (True, "true"),
                "no": (False, "false"),
                "unqualified": (True, "true"),
                "value": (True, "a"),
                "none": (False, "no row"),
                "writes": (False, None),
                "slow": (False, None),
                "well": (True, "200"),
                "other": (False, "200, without the text that is expected"),
                "ill": (False, "503"),
                "nobody": (False, None),
            }
            assert await db.value("select count(*) from app.users") == 0
            unmet = {g.name for g in evaluate(Readings(checks=readings), Thresholds()) if g.name.startswith("check")}
            assert len(unmet) == len(checks)

    asyncio.run(main())
