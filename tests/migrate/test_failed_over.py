"""A real standby: nothing is moved there, and when it takes over, what is off and no longer captured is turned on."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from migrating import QUICK, application, holding, plan_of, until

from afterwrite.errors import GateNotMet, Refused
from afterwrite.migrate import backfill
from afterwrite.migrate.engine import remove_phases, run_phase
from afterwrite.migrate.gates import Place, Readings
from afterwrite.migrate.ledger import read_silenced
from afterwrite.migrate.rollback import rollback_phase
from afterwrite.migrate.status import status
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server, embedded_server
from afterwrite.store.schema import install_store

SETTINGS = {"fsync": "off", "wal_level": "logical"}
PLACE = Place(source="app")


@contextmanager
def standby_of(primary: Server) -> Iterator[Server]:
    with embedded_server(settings=SETTINGS) as standby:
        standby.stop()
        shutil.rmtree(standby.data_dir)
        standby.data_dir.mkdir(mode=0o700)
        standby._give(standby.data_dir)
        copy = [standby.bin_dir / "pg_basebackup", "-D", standby.data_dir, "-d", primary.dsn(), "-c", "fast"]
        done = standby._run(copy, standby.home)
        assert done.returncode == 0, done.stderr
        with (standby.data_dir / "postgresql.conf").open("a") as conf:
            conf.write(f"unix_socket_directories = '{standby.socket_dir}'\nprimary_conninfo = '{primary.dsn()}'\n")
        signal = standby.data_dir / "standby.signal"
        signal.touch()
        standby._give(signal)
        standby.start()
        yield standby


def test_a_standby_is_refused_and_when_it_takes_over_what_nobody_captures_is_turned_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def holds(*_: object, **__: object) -> Readings:
        return holding()

    async def main() -> None:
        with embedded_server(settings=SETTINGS) as primary, standby_of(primary) as standby:
            async with application(primary.dsn()) as db, connect(standby.dsn()) as other:
                await install_store(db)
                plan = await plan_of(db)
                with monkeypatch.context() as gates:
                    gates.setattr("afterwrite.migrate.engine.measure", holds)
                    await run_phase(db, plan, 5, place=PLACE, apply=True, policy=QUICK)

                    async def arrived() -> bool:
                        there = await other.value("select to_regclass('afterwrite.ledger') is not null")
                        return bool(there) and bool(await read_silenced(other))

                    await until(arrived)
                    with pytest.raises(Refused, match="is a standby"):
                        await run_phase(other, plan, 2, place=PLACE, apply=True)
                    with pytest.raises(Refused, match="is a standby"):
                        await remove_phases(other, plan, 5, place=PLACE, apply=True)
                    with pytest.raises(Refused, match="is a standby"):
                        await rollback_phase(other, None, place=PLACE, apply=True)
            primary.stop("immediate")
            async with connect(standby.dsn()) as db:
                await db.run("select pg_promote()")
                said = await status(db, place=PLACE)
                assert "is off and its changes are not captured" in said.next
                with pytest.raises(GateNotMet, match="turned on again"):
                    await run_phase(db, plan, 5, place=PLACE, apply=True, policy=QUICK)
                assert await read_silenced(db) == {}
                monkeypatch.setattr(backfill, "_PATIENCE_SECONDS", 0.1)
                done = await rollback_phase(db, 5, place=PLACE, apply=True, backfill=True, policy=QUICK)
                assert {finding.rule for finding in done.findings} == {"rollback.hole"}

    asyncio.run(main())
