"""``afterwrite defer``: what an operator sees and does when bodies run after commit, and when they fail."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess

from deferring import SOURCE, Stage, change, stage
from typed import typed

from afterwrite.defer.calls import OnError
from afterwrite.defer.letters import read_dead_letters
from afterwrite.defer.progress import read_standing
from afterwrite.defer.replay import ReplayState, ReplayStatus, run_replayer
from afterwrite.record import Activity

DDL = """
create table items (id int primary key, name text);
alter table items replica identity full;
create table effects (n bigint generated always as identity, what text, at timestamptz);
create function note() returns trigger language plpgsql as $$
begin
    if new.name like 'bad%' then raise exception 'no % here', new.name using errcode = 'P0007'; end if;
    insert into effects (what, at) values (new.name, now());
    return null;
end $$;
create trigger t after insert on items for each row execute function note();
"""
MENDED = """
create or replace function note() returns trigger language plpgsql as $$
begin
    insert into effects (what, at) values ('mended ' || new.name, now());
    return null;
end $$;
"""


def item(number: int, name: str) -> Activity:
    return change("public.items", "insert", None, {"id": number, "name": name}, actor_id="ann")


async def afterwrite(dsn: str, *words: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "AFTERWRITE_DSN": dsn, "AFTERWRITE_SOURCE": SOURCE, "COLUMNS": "80"}
    return await asyncio.to_thread(typed, "defer", *words, env=given)


async def parked(on: Stage) -> list[int]:
    await on.lay(DDL)
    await on.defer("t")
    await on.teller.tell([item(1, "one"), item(2, "bad one")], [item(3, "bad two")], [item(4, "four")])
    await on.replay()
    return [letter.id for letter in await read_dead_letters(on.db, SOURCE)]


def test_failed_calls_are_seen_shown_mended_run_again_and_given_up(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            first, second = await parked(on)
            status = await afterwrite(dsn, "status")
            assert status.returncode == 3, status.stderr
            assert "2 failed calls waiting" in status.stdout
            listed = await afterwrite(dsn, "list")
            assert listed.returncode == 0
            assert "P0007 no bad one here" in " ".join(listed.stdout.split())
            assert max(map(len, [*status.stdout.splitlines(), *listed.stdout.splitlines()])) <= 80
            shown = json.loads((await afterwrite(dsn, "show", str(first), "--json")).stdout)
            assert shown["after"] == {"id": 2, "name": "bad one"}
            assert shown["context"]["actor_id"] == "ann"
            assert shown["sqlstate"] == "P0007"
            assert "note" in shown["detail"] or "items_t" in shown["detail"]
            for_people = await afterwrite(dsn, "show", str(first))
            assert "run it again" in for_people.stdout

            # As it is, it fails again; its function mended, it runs, at the time of its own transaction.
            again = await afterwrite(dsn, "retry", str(first))
            assert again.returncode == 1
            assert "no bad one here" in again.stdout
            assert (await read_dead_letters(on.db, SOURCE))[0].attempts == 3
            await on.db.script(MENDED)
            mended = await afterwrite(dsn, "retry", str(first), "--renew")
            assert mended.returncode == 0, mended.stderr
            assert await on.db.values(b"select what from effects order by n") == ["one", "four", "mended bad one"]
            assert await on.db.value(
                b"select (select at from effects where what = 'one') = (select at from effects where what ~ 'mended')"
            )

            refused = await afterwrite(dsn, "skip")
            assert refused.returncode == 2
            skipped = await afterwrite(dsn, "skip", str(second), "--yes", "--json")
            assert json.loads(skipped.stdout)["skipped"] == 1
            assert (await afterwrite(dsn, "status")).returncode == 0
            history = json.loads((await afterwrite(dsn, "list", "--all", "--json")).stdout)["dead_letters"]
            assert [letter["resolution"] for letter in history] == ["retried", "skipped"]
            unknown = await afterwrite(dsn, "retry", "99")
            assert unknown.returncode == 2

    asyncio.run(run())


def test_a_stream_that_stands_still_says_where_and_goes_on_when_it_is_told(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL)
            await on.defer("t", on_error=OnError.STOP)
            await on.teller.tell([item(1, "one")], [item(2, "bad"), item(3, "three")], [item(4, "four")])
            stop, halted = asyncio.Event(), asyncio.Event()

            def hear(status: ReplayStatus) -> None:
                if status.state is ReplayState.HALTED:
                    halted.set()

            task = asyncio.create_task(run_replayer(dsn, dsn, SOURCE, stop=stop, on_status=hear))
            await asyncio.wait_for(halted.wait(), 20)
            status = await afterwrite(dsn, "status")
            assert status.returncode == 3
            assert "halted" in status.stdout
            assert "no bad here" in status.stdout
            assert "a replayer runs" in status.stdout
            assert await on.db.values(b"select what from effects order by n") == ["one"]

            told = await afterwrite(dsn, "skip", "--halted")
            assert told.returncode == 0, told.stderr
            async with asyncio.timeout(20):
                while await on.db.value(b"select count(*) from effects") < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            stop.set()
            await task
            assert await on.db.values(b"select what from effects order by n") == ["one", "three", "four"]
            assert [letter.error for letter in await read_dead_letters(on.db, SOURCE)] == ["no bad here"]
            standing = await read_standing(on.db, SOURCE)
            assert standing is not None
            assert standing.halted_lsn is None

    asyncio.run(run())
