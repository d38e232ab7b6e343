"""A silent time is filled afterwards: every row once, as the trigger would have written it, and marked."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from deferring import SOURCE, Stage, change, mark, stage

from afterwrite.defer import feed
from afterwrite.defer.calls import ReplayPolicy
from afterwrite.defer.letters import read_dead_letters, retry_dead_letters
from afterwrite.defer.window import Filled, replay_window
from afterwrite.errors import Refused
from afterwrite.postgres import connect
from afterwrite.record import Lsn
from afterwrite.scan.catalog import Trigger
from afterwrite.store import reader

DDL = """
create table items (id int primary key, name text, amount int);
create table log (n bigint generated always as identity, what text, at timestamptz, by text);
create function note() returns trigger language plpgsql as $$
begin
    if new.name = 'bad' then raise exception 'no % here', new.name; end if;
    insert into log (what, at, by)
    values (tg_name || ' ' || tg_op || ' ' || coalesce(new.name, old.name), now(), current_setting('app.user', true));
    return null;
end $$;
create trigger t after insert or update or delete on items for each row execute function note();
create trigger u after update on items for each row when (new.amount > 1) execute function note();
"""


async def silent(on: Stage) -> tuple[list[Trigger], Lsn, Lsn]:
    """Triggers that wrote, were silenced, and were restored; what was written meanwhile is in the store."""
    await on.lay(DDL, spied=["public.items"])
    triggers = [await on.trigger("t"), await on.trigger("u")]
    await on.do("insert into items values (1, 'by the trigger', 1)")
    await on.tell_all()
    await on.teller.tell([mark(trigger, mode="retire") for trigger in triggers])
    after = Lsn(on.teller.lsn)
    await on.do("alter table items disable trigger t, disable trigger u")
    await on.do("insert into items values (2, 'two', 1), (3, 'three', 1)")
    await on.do("update items set amount = amount + 1 where id > 1", "delete from items where id = 2")
    await on.do("update items set name = 'bad' where id = 3")
    await on.do("insert into items values (4, 'four', 1)")
    await on.tell_all(in_batches_of=2)
    await on.do("alter table items enable trigger t, enable trigger u")
    await on.teller.tell([mark(trigger, "restore", mode="retire") for trigger in triggers])
    until = Lsn(on.teller.lsn)
    await on.do("insert into items values (5, 'by the trigger again', 1)")
    await on.tell_all()
    return triggers, after, until


WRITTEN = [
    "t INSERT by the trigger",
    "t INSERT by the trigger again",
    "t INSERT two",
    "t INSERT three",
    "t UPDATE two",
    "u UPDATE two",
    "t UPDATE three",
    "u UPDATE three",
    "t DELETE two",
    "t INSERT four",
]


async def written(on: Stage) -> list[str]:
    return await on.db.values(b"select what from log order by n")


def test_a_silent_window_is_filled_once_in_order_with_the_original_time_and_marked(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            triggers, after, until = await silent(on)
            told: list[Filled] = []
            window = {"source": SOURCE, "triggers": triggers, "after": after, "until": until}
            filled = await replay_window(on.db, on.store, **window, on_progress=told.append)
            assert filled == Filled(transactions=3, calls=8, rows=8, parked=2, already=0)
            assert told[-1] == filled
            assert await written(on) == WRITTEN

            # At the time of the writes, not of the filling.
            wrong = await on.db.values(
                b"select l.what from log l where not exists (select from stage.spy s where s.at = l.at)"
            )
            assert wrong == []
            marks = await on.db.rows(
                _MarkRow,
                b"select commit_lsn::text as commit_lsn, xid, identities, calls, rows from afterwrite.backfilled"
                b" order by commit_lsn",
            )
            assert [(row.calls, row.rows) for row in marks] == [(2, 2), (5, 5), (1, 1)]
            assert all(after < Lsn.parse(row.commit_lsn) < until for row in marks)
            by_xid = await on.db.value(
                b"select count(*) from log where xmin::text::bigint = any (%(xids)s)", xids=[row.xid for row in marks]
            )
            assert by_xid == 8

            # Again: nothing happens, and it says so.
            again = await replay_window(on.db, on.store, **window)
            assert again == Filled(already=3, parked=2)
            assert await written(on) == WRITTEN

            # What failed waits, with its function, until it can run.
            letters = await read_dead_letters(on.db, SOURCE)
            assert [letter.identity for letter in letters] == ["public.items.t", "public.items.u"]
            said = await retry_dead_letters(on.db, [letter.id for letter in letters])
            assert all(error is not None and "no bad here" in str(error) for error in said.values())

    asyncio.run(run())


class _MarkRow(msgspec.Struct):
    commit_lsn: str
    xid: int
    identities: list[str]
    calls: int
    rows: int


def test_a_window_of_long_transactions_is_filled_in_pages(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_READ_ROWS", 3)
    monkeypatch.setattr(reader, "_PAGE_ROWS", 2)

    async def run() -> None:
        async with stage(dsn) as on:
            triggers, after, until = await silent(on)
            filled = await replay_window(
                on.db, on.store, source=SOURCE, triggers=triggers, after=after, until=until,
                policy=ReplayPolicy(round_transactions=1),
            )  # fmt: skip
            assert filled == Filled(transactions=3, calls=8, rows=8, parked=2, already=0)
            assert await written(on) == WRITTEN

    asyncio.run(run())


def test_a_window_that_the_store_does_not_reach_or_a_body_that_cannot_run_is_refused_before_anything(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            triggers, after, until = await silent(on)
            with pytest.raises(Refused, match="not up to"):
                await replay_window(
                    on.db, on.store, source=SOURCE, triggers=triggers, after=after, until=Lsn(until + (1 << 40))
                )
            unfit = msgspec.structs.replace(triggers[1], language="plperl")
            with pytest.raises(Refused, match="plperl"):
                await replay_window(
                    on.db, on.store, source=SOURCE, triggers=[triggers[0], unfit], after=after, until=until
                )
            assert not await on.db.value(b"select count(*) from afterwrite.backfill")
            assert len(await written(on)) == 2

    asyncio.run(run())


def test_a_log_that_was_kept_after_commit_is_not_filled_again(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL, spied=["public.items"])
            trigger = await on.trigger("t")
            await on.defer("t")
            after = Lsn(on.teller.lsn)
            await on.do("insert into items values (1, 'one', 1)")
            await on.tell_all()
            await on.teller.tell([mark(trigger, "restore")])
            await on.replay()
            assert await written(on) == ["t INSERT one"]
            filled = await replay_window(
                on.db, on.store, source=SOURCE, triggers=[trigger], after=after, until=Lsn(on.teller.lsn)
            )
            assert filled == Filled()
            assert await written(on) == ["t INSERT one"]

    asyncio.run(run())


@pytest.mark.parametrize("point", ["defer.before_run", "defer.after_run"])
def test_a_filling_killed_at_any_step_goes_on_where_it_was(dsn: str, point: str) -> None:
    async def prepare() -> dict[str, object]:
        async with stage(dsn) as on:
            triggers, after, until = await silent(on)
            return {"triggers": triggers, "after": int(after), "until": int(until)}

    given = msgspec.json.encode(asyncio.run(prepare())).decode()
    folder = Path(__file__).parent
    for strike in range(1, 6):
        armed = {**os.environ, "AFTERWRITE_FAILPOINTS": f"{point}=kill@{strike}"}
        ended = subprocess.run(
            [sys.executable, str(folder / "fill_process.py"), dsn, given], env=armed, capture_output=True, check=False
        )
        if ended.returncode == 0:
            break
        assert ended.returncode == -9, ended.stderr
    assert ended.returncode == 0

    async def look() -> None:
        async with connect(dsn) as db:
            assert await db.values(b"select what from log order by n") == WRITTEN
            assert await db.value(b"select count(*) from afterwrite.dead_letter") == 2

    asyncio.run(look())


def test_a_body_changed_since_is_filled_with_the_one_that_was_silenced(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            triggers, after, until = await silent(on)
            await on.db.run(
                b"create or replace function note() returns trigger language plpgsql as $$ begin return null; end $$"
            )
            await on.teller.tell([change("public.items", "insert", None, {"id": 9, "name": "later", "amount": 1})])
            await replay_window(on.db, on.store, source=SOURCE, triggers=triggers, after=after, until=until)
            assert await written(on) == WRITTEN

    asyncio.run(run())
