"""The twin: the same work done again leaves the same rows in the old logs, and whatever is unlike is found."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from afterwrite.demo.clients import Workload
from afterwrite.demo.ledger import Ledger
from afterwrite.demo.schema import create_legacy_application
from afterwrite.demo.story import leave_on
from afterwrite.demo.transcript import Transcript, read_transcript
from afterwrite.demo.twin import LOGS, play, read_given
from afterwrite.migrate.plan import make_plan
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server, embedded_server
from afterwrite.prove.twin import TwinComparison, compare_logs, log_query
from afterwrite.scan.survey import survey

_SECONDS = 3.0


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """The application's database after a few seconds of work by many clients at once, and its twin after the same."""
    folder = tmp_path_factory.mktemp("twin")
    with embedded_server(settings={"fsync": "off"}) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("create database legacy")
            asyncio.run(_lay(server.dsn("legacy")))
            admin.execute("create database twin template legacy")
        dsn = server.dsn("legacy")
        with Ledger(folder / "ledger") as ledger, Transcript(folder / "transcript", read_given(dsn)) as transcript:
            workload = Workload(dsn, ledger, clients=8, seed=3, rate=0, transcript=transcript)
            workload.start()
            time.sleep(_SECONDS)
            workload.stop()
            assert workload.fatal is None
        assert play(server.dsn("twin"), folder / "transcript") == sum(w["committed"] for w in workload.report())
        yield server, folder


async def _lay(dsn: str) -> None:
    async with connect(dsn) as database:
        await create_legacy_application(database, seed=3)


def _compare(server: Server, one: str = "legacy") -> TwinComparison:
    async def compare() -> TwinComparison:
        async with connect(server.dsn(one)) as ours, connect(server.dsn("twin")) as twin:
            return await compare_logs(ours, twin, LOGS)

    return asyncio.run(compare())


def test_the_same_work_leaves_the_same_rows_in_both_logs(both: tuple[Server, Path]) -> None:
    server, _ = both
    found = _compare(server)
    assert found.same, [example for log in found.logs for example in log.examples]
    assert all(log.matched > 1_000 for log in found.logs)
    # A name may have been looked up at another moment; that is counted apart, and rare.
    assert found.alike < found.matched / 100


def test_also_the_application_s_own_tables_are_the_same(both: tuple[Server, Path]) -> None:
    server, _ = both
    tables = ("users", "projects", "investors", "subscriptions", "investments", "wallets", "platform_statistics")
    own = {"updated_at", "created_at"}

    async def compare() -> TwinComparison:
        queries = [
            log_query("public", table, key=["scope" if table == "platform_statistics" else "id"], own=own)
            for table in tables
        ]
        async with connect(server.dsn("legacy")) as ours, connect(server.dsn("twin")) as twin:
            return await compare_logs(ours, twin, queries)

    found = asyncio.run(compare())
    assert found.same, [example for log in found.logs for example in log.examples]
    assert found.alike == 0


def test_a_row_lost_doubled_or_changed_is_found_and_named(both: tuple[Server, Path]) -> None:
    server, _ = both
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("create database spoilt template legacy")
    try:
        with psycopg.connect(server.dsn("spoilt")) as db:
            key = (
                "audit_logs where table_name = 'users' and operation = 'UPDATE'",
                "activity_log where action = 'user.sign_in'",
            )
            for log in key:
                name, _, condition = log.partition(" where ")
                db.execute(
                    sql.SQL(  # type: ignore[arg-type]
                        f"delete from {name} where id = (select max(id) from {name} where {condition})"
                    )
                )
            db.execute(
                "insert into audit_logs (table_name, record_id, operation) values ('users', 'nobody', 'DELETE'),"
                " ('users', 'nobody', 'DELETE')"
            )
            db.execute(
                "update audit_logs set user_id = null where id = (select max(id) from audit_logs"
                " where table_name = 'investors' and operation = 'INSERT')"
            )
        found = _compare(server, "spoilt")
    finally:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("drop database spoilt with (force)")
    assert (found.missing, found.extra, found.value) == (2, 2, 1)
    audit, activity = found.logs
    assert (audit.missing, audit.extra, audit.value) == (1, 2, 1)
    assert (activity.missing, activity.extra, activity.value) == (1, 0, 0)
    assert {(example.ours is None, example.twin is None) for example in audit.examples} == {
        (True, False),
        (False, True),
        (False, False),
    }


def test_a_transcript_is_in_an_order_in_which_it_can_be_done_again(both: tuple[Server, Path]) -> None:
    _, folder = both
    numbers = [played.number for played in read_transcript(folder / "transcript")]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == len(numbers)


def test_the_triggers_that_stay_on_beside_a_kept_log_are_named_with_their_reasons(both: tuple[Server, Path]) -> None:
    server, _ = both

    async def plan_it() -> tuple[int, list[tuple[str, str | None]]]:
        async with connect(server.dsn("twin")) as database:
            plan = make_plan((await survey(database)).judgements)
        less = leave_on(plan)
        moved = sum(len(phase.triggers) for phase in plan.phases) - sum(len(phase.triggers) for phase in less.phases)
        return moved, [(each.trigger, each.reason) for each in less.kept[len(plan.kept) :]]

    moved, stay = asyncio.run(plan_it())
    assert 1 <= moved == len(stay)
    assert all(reason for _, reason in stay)
