"""The replayer: exactly once, in order, between the marks, whatever happens to it."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import pytest
from deferring import SOURCE, Stage, change, mark, stage, stage_again, tell_ledger

from afterwrite.defer import feed
from afterwrite.defer import run as run_room
from afterwrite.defer.calls import OnError, ReplayPolicy
from afterwrite.defer.deferral import drop_deferral, plan_deferral, prepare_deferral, read_deferrals
from afterwrite.defer.letters import read_dead_letters, retry_dead_letters, skip_dead_letters
from afterwrite.defer.progress import caught_up, read_lag, read_progress, settle, wait_until
from afterwrite.defer.replay import Replayer, ReplayState, ReplayStatus, run_replayer
from afterwrite.errors import AfterwriteError, Refused
from afterwrite.postgres import connect
from afterwrite.record import CONTEXT_PREFIX, Activity, Lsn
from afterwrite.store import reader

DDL = """
create table items (id int primary key, name text, amount int);
alter table items replica identity full;
create table effects (n bigint generated always as identity, what text);
create table counter (one boolean primary key default true, total bigint not null default 0);
insert into counter default values;
create function note() returns trigger language plpgsql as $$
begin
    if new.name = 'bad' then raise exception 'no % here', new.name; end if;
    insert into effects (what) values (new.name);
    update counter set total = total + 1;
    return null;
end $$;
create trigger t after insert on items for each row execute function note();
"""


def item(number: int, name: str | None = None) -> Activity:
    return change("public.items", "insert", None, {"id": number, "name": name or str(number), "amount": 1})


async def said(on: Stage) -> list[str]:
    return await on.db.values(b"select what from effects order by n")


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


async def everything(on: Stage, count: int) -> None:
    """All of ``count`` ran once, in order, and the effects of each are whole."""
    assert await said(on) == numbers(count)
    assert await _total(on) == count
    assert not await read_dead_letters(on.db, SOURCE)


# ---- Borders and order ---------------------------------------------------------------------------------------------


def test_only_changes_between_silencing_and_restoring_run(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL)
            (trigger,) = await on.prepare("t")
            # One batch holds both borders, and the transactions next to them.
            await on.teller.tell(
                [item(1, "before")],
                [mark(trigger)],
                [item(2, "first")],
                [item(3, "last")],
                [mark(trigger, "restore")],
                [item(4, "after")],
            )
            await on.teller.tell([item(5, "later")])
            await on.replay()
            assert await said(on) == ["first", "last"]
            state, since, until = await _borders(on)
            assert (state, until - since) == ("ended", 300)

            # Silenced again, it begins again, as a deferral of its own.
            await prepare_deferral(on.db, trigger, source=SOURCE)
            await on.teller.tell([mark(trigger)], [item(6, "again")])
            await on.replay()
            assert await said(on) == ["first", "last", "again"]

    asyncio.run(run())


async def _borders(on: Stage) -> tuple[str, Lsn, Lsn]:
    row = await on.db.value(b"select array[state, since_lsn::text, until_lsn::text] from afterwrite.deferral")
    return row[0], Lsn.parse(row[1]), Lsn.parse(row[2])


def test_marks_that_commit_together_count_together_and_their_own_transaction_is_outside(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL + "create trigger u after insert on items for each row execute function note();")
            t, u = await on.prepare("t", "u")
            await on.teller.tell([mark(t)])
            # t is live already, so the change beside u's mark is t's alone; then both go at once.
            await on.teller.tell(
                [item(1, "inside"), mark(u)], [item(2, "both")], [mark(t, "restore"), mark(u, "restore")], [item(3)]
            )
            await on.replay()
            assert await said(on) == ["inside", "both", "both"]

    asyncio.run(run())


def test_what_is_silenced_without_a_prepared_body_stops_the_replayer(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL)
            trigger = await on.trigger("t")
            await on.replay()
            await on.teller.tell([mark(trigger, mode="retire")])
            await on.replay()  # retired, not deferred: nothing is expected of us
            await on.teller.tell([mark(trigger)], [item(1)])
            with pytest.raises(Refused, match=r"public\.items\.t .* no body was prepared") as refused:
                await on.replay()
            assert "migrate rollback" in (refused.value.remedy or "")

    asyncio.run(run())


def test_marks_that_the_ledger_does_not_tell_of_are_passed_over(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL)
            await on.defer("t")
            trigger = await on.trigger("t")
            unknown = msgspec.structs.replace(mark(trigger), entity_id="public.nothing.t")
            odd = [
                msgspec.structs.replace(mark(trigger, "restore"), metadata=msgspec.Raw(words))
                for words in (b'{"trigger_oid": "x"}', b'{"trigger_oid": 99999999999}', b"[]", b"7")
            ]
            # Any role may emit these: a restoring must not end the deferral, nor anything stop the replayer.
            for forged in (mark(trigger, "restore"), unknown, *odd):
                await on.teller.tell([item(0), forged], forged=True)
                await on.teller.tell([item(1)])
            await on.replay()
            assert await said(on) == ["0", "1"] * 6

    asyncio.run(run())


def test_a_mark_whose_transaction_cannot_be_seen_yet_is_waited_for(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on, connect(dsn) as other:
            await on.lay(DDL)
            (trigger,) = await on.prepare("t")
            async with other.transaction():
                await tell_ledger(other, "trigger.silence", trigger.identity)
                xid = await other.value(b"select pg_current_xact_id()::text::bigint")
                on.teller.lsn += (xid - 1) * 100
                await on.teller.tell([mark(trigger)], forged=True)
                await on.teller.tell([item(1)])
                replaying = asyncio.create_task(on.replay())
                await asyncio.sleep(0.3)
                assert not replaying.done()
            await replaying
            assert await said(on) == ["1"]

    asyncio.run(run())


def test_a_trigger_silenced_twice_goes_on_being_deferred(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL)
            (trigger,) = await on.prepare("t")
            await on.teller.tell([mark(trigger)], [item(0)], [mark(trigger)], [item(1)])
            await on.replay()
            await everything(on, 2)

    asyncio.run(run())


def test_effects_come_in_commit_order_across_batches(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL)
            await on.defer("t")
            for at in range(0, 60, 7):
                await on.teller.tell(*([item(number)] for number in range(at, min(at + 7, 60))))
            await on.replay(ReplayPolicy(round_transactions=4))
            await everything(on, 60)
            await on.replay()
            await everything(on, 60)

    asyncio.run(run())


def test_a_transaction_too_big_for_one_message_runs_in_pieces_and_still_at_once(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL)
            await on.defer("t")
            monkeypatch.setattr(run_room, "_PIECE_ROWS", 7)
            await on.teller.tell([item(0)], [item(number) for number in range(1, 40)], [item(40)])
            await on.replay()
            await everything(on, 41)
            progress = await read_progress(on.db, SOURCE)
            assert progress is not None
            assert (progress.calls, progress.transactions, progress.parked) == (41, 3, 0)

    asyncio.run(run())


def _in_small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_READ_ROWS", 10)
    monkeypatch.setattr(reader, "_PAGE_ROWS", 4)


def test_a_transaction_too_long_to_be_held_runs_in_pages_and_still_at_once(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _in_small_pages(monkeypatch)

    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(
                DDL
                + """
                create function sum_up() returns trigger language plpgsql as $$
                begin
                    insert into effects (what)
                    select count(*) || ' rows, ' || (select count(*) from effects) || ' effects' from fresh;
                    return null;
                end $$;
                create trigger s after insert on items referencing new table as fresh
                    for each statement execute function sum_up();
                create function late() returns trigger language plpgsql as $$
                begin
                    insert into effects (what) values ('late ' || new.id);
                    return null;
                end $$;
                create constraint trigger z after insert on items deferrable initially deferred
                    for each row execute function late();
                """
            )
            await on.defer("t", "s", "z")
            # Small ones around it in the same batch, and a batch of small ones that is long as a whole.
            await on.teller.tell([item(0)], [item(number) for number in range(1, 40)], [item(40)])
            await on.teller.tell(*([item(number), item(number + 1)] for number in range(41, 71, 2)))
            await on.replay()
            of_rows = [what for what in await said(on) if what.isdigit()]
            assert of_rows == numbers(71)
            whole = await said(on)
            begin = whole.index("1")
            assert whole[begin + 39] == "39 rows, 42 effects"
            assert whole[begin + 40 : begin + 79] == [f"late {number}" for number in range(1, 40)]
            progress = await read_progress(on.db, SOURCE)
            assert progress is not None
            assert (progress.transactions, progress.parked, progress.commit_lsn) == (18, 0, on.teller.lsn)
            assert await on.db.value(b"select count(distinct xmin::text) from effects") == 18

    asyncio.run(run())


def test_a_failing_call_in_a_long_transaction_is_parked_and_a_mark_in_a_long_batch_is_seen(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _in_small_pages(monkeypatch)

    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL)
            (trigger,) = await on.prepare("t")
            rows = [item(number, "bad" if number == 29 else None) for number in range(20, 60)]
            await on.teller.tell(
                [item(number) for number in range(100, 140)],
                [mark(trigger)],
                rows,
                [mark(trigger, "restore")],
                [item(99)],
            )
            await on.replay()
            assert await said(on) == [str(number) for number in range(20, 60) if number != 29]
            (letter,) = await read_dead_letters(on.db, SOURCE)
            assert (letter.ordinal, letter.error) == (9, "no bad here")
            assert await _total(on) == 39
            progress = await read_progress(on.db, SOURCE)
            assert progress is not None
            assert (progress.calls, progress.parked) == (39, 1)

    asyncio.run(run())


def test_a_bulk_of_rows_with_two_triggers_takes_no_longer_each_than_a_few(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL + "create trigger u after insert on items for each row execute function note();")
            await on.defer("t", "u")
            await on.replay()
            seconds: list[float] = []
            for first, rows in ((0, 10), (10, 100), (110, 1_000)):
                await on.teller.tell([item(number) for number in range(first, first + rows)])
                began = time.perf_counter()
                await on.replay()
                seconds.append(time.perf_counter() - began)
            _, few, many = seconds
            # Ten times as many; what looked through all for each would take a hundred times as long.
            assert many < 30 * few
            assert await _total(on) == 2_220

    asyncio.run(run())


def test_a_table_that_was_renamed_is_still_covered_under_both_names(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL)
            await on.defer("t")
            replayer = await on.replay()
            await on.teller.tell([item(1, "old name")])
            await on.db.run(b"alter table items rename to things")
            await on.teller.tell([change("public.things", "insert", None, {"id": 2, "name": "new name"})])
            while await replayer.round():
                pass
            assert await said(on) == ["old name", "new name"]

    asyncio.run(run())


def test_transition_tables_follow_a_table_whose_columns_change(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(
                DDL
                + """
                create function rows() returns trigger language plpgsql as $$
                begin
                    insert into effects (what) select (to_jsonb(n) - 'amount')::text from fresh n;
                    return null;
                end $$;
                create trigger s after insert on items referencing new table as fresh
                    for each statement execute function rows();
                """
            )
            await on.defer("s")
            await on.teller.tell([item(1)])
            await on.replay()
            await on.db.script(
                "alter table items drop column amount; alter table items add column extra text default 'x'"
            )
            await on.teller.tell([change("public.items", "insert", None, {"id": 2, "name": "b", "extra": "y"})])
            await on.replay()
            assert [json.loads(text) for text in await said(on)] == [
                {"id": 1, "name": "1"},
                {"id": 2, "name": "b", "extra": "y"},
            ]
            assert not await read_dead_letters(on.db, SOURCE)

    asyncio.run(run())


# ---- Exactly once, whatever happens ----------------------------------------------------------------------------------

SLOW = "create or replace function note() returns trigger language plpgsql as $$ begin " + (
    "insert into effects (what) values (new.name); perform pg_sleep(0.004); update counter set total = total + 1; "
    "return null; end $$;"
)
CHILD = (
    "import asyncio, sys; from afterwrite.defer.replay import run_replayer; "
    "asyncio.run(run_replayer(sys.argv[1], sys.argv[1], 'app'))"
)


def test_a_replayer_killed_again_and_again_runs_every_change_once(dsn: str) -> None:
    async def run() -> None:
        count = 600
        async with stage(dsn) as on:
            await on.lay(DDL + SLOW)
            await on.defer("t")
            for at in range(0, count, 50):
                await on.teller.tell(*([item(number)] for number in range(at, at + 50)))
            kills, before = 0, -1
            while (total := await _total(on)) < count:
                if total > before:  # the one before us has got somewhere: a fresh one, to be killed while it works
                    child, before = _start_replayer(dsn), total
                    await _until(on, before + 1)
                    await asyncio.sleep(random.uniform(0, 0.15) if kills < 10 else 5)
                    child.kill()
                    assert child.wait() == -9
                    kills += 1
            assert kills >= 5
            await everything(on, count)

    asyncio.run(run())


def _start_replayer(dsn: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, dsn])


async def _total(on: Stage) -> int:
    return await on.db.value(b"select total from counter")


async def _until(on: Stage, count: int, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while await _total(on) < count:  # noqa: ASYNC110 - the event is in the database
            await asyncio.sleep(0.02)


def test_connections_that_are_cut_between_statements_change_nothing(dsn: str) -> None:
    async def run() -> None:
        count = 300
        async with stage(dsn) as on:
            await on.lay(DDL + SLOW)
            await on.defer("t")
            await on.teller.tell(*([item(number)] for number in range(count)))
            stop = asyncio.Event()
            states: list[ReplayState] = []
            task = asyncio.create_task(
                run_replayer(dsn, dsn, SOURCE, stop=stop, on_status=lambda status: states.append(status.state))
            )
            cut = 0
            while await _total(on) < count and not task.done():
                cut += await on.db.value(
                    b"select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity "
                    b"where datname = current_database() and application_name like 'afterwrite defer%%' "
                    b"and random() < %(p)s",
                    p=0.5,
                )
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.05)
            stop.set()
            await task
            assert cut >= 3
            assert ReplayState.CONNECTING in states
            assert states[-1] is ReplayState.STOPPED
            await everything(on, count)

    asyncio.run(run())


def test_a_second_replayer_stands_by_and_takes_over(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL)
            await on.defer("t")
            await on.teller.tell(*([item(number)] for number in range(50)))
            stops = [asyncio.Event(), asyncio.Event()]
            seen: list[list[ReplayStatus]] = [[], []]
            tasks = [
                asyncio.create_task(run_replayer(dsn, dsn, SOURCE, stop=stop, on_status=statuses.append))
                for stop, statuses in zip(stops, seen, strict=True)
            ]
            await _until(on, 50)
            waiting = next(n for n, statuses in enumerate(seen) if {s.state for s in statuses} == {ReplayState.STANDBY})
            stops[1 - waiting].set()
            await tasks[1 - waiting]
            await on.teller.tell(*([item(number)] for number in range(50, 80)))
            await _until(on, 80)
            stops[waiting].set()
            await tasks[waiting]
            await everything(on, 80)

    asyncio.run(run())


def test_two_replayers_that_slip_past_the_lock_still_run_nothing_twice(dsn: str) -> None:
    async def run() -> None:
        count = 120
        async with stage(dsn) as on, connect(dsn) as db, connect(dsn) as store:
            await on.lay(DDL)
            await on.defer("t")
            for at in range(0, count, 20):
                await on.teller.tell(*([item(number)] for number in range(at, at + 20)))
            stop = asyncio.Event()
            policy = ReplayPolicy(round_transactions=3, poll_seconds=0.01)
            replayers = [Replayer(on.db, on.store, SOURCE, policy=policy), Replayer(db, store, SOURCE, policy=policy)]

            async def work(replayer: Replayer) -> None:
                await replayer.load()
                await replayer.run(stop)

            async with stage_again(dsn) as watching, asyncio.TaskGroup() as group:
                for replayer in replayers:
                    group.create_task(work(replayer))
                await _until(watching, count)
                stop.set()
            await everything(on, count)

    asyncio.run(run())


# ---- Failing bodies --------------------------------------------------------------------------------------------------


def test_a_failing_call_is_parked_whole_and_the_stream_goes_on(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(
                DDL
                + """
                create trigger a after insert on items for each row execute function note();
                """
            )
            await on.defer("t", "a")
            await on.teller.tell([item(1, "one")], [item(2, "two"), item(3, "bad"), item(4, "four")], [item(5, "five")])
            await on.replay()
            assert await said(on) == ["one", "one", "two", "two", "four", "four", "five", "five"]
            letters = await read_dead_letters(on.db, SOURCE)
            assert [(letter.identity, letter.ordinal, letter.error) for letter in letters] == [
                ("public.items.a", 1, "no bad here"),
                ("public.items.t", 1, "no bad here"),
            ]
            progress = await read_progress(on.db, SOURCE)
            assert progress is not None
            assert (progress.calls, progress.parked) == (8, 2)

            # Not mended yet: it stays parked. Mended: it runs, once.
            first, second = (letter.id for letter in letters)
            assert (await retry_dead_letters(on.db, [first]))[first] is not None
            body = next(row.body for row in await read_deferrals(on.db, SOURCE) if row.identity == "public.items.a")
            await _mend(on, body)
            assert await retry_dead_letters(on.db, [first, first]) == {first: None}
            assert (await said(on))[-1] == "mended bad"
            assert await skip_dead_letters(on.db, [first, second]) == 1
            assert not await read_dead_letters(on.db, SOURCE)

    asyncio.run(run())


async def _mend(on: Stage, body: str) -> None:
    definition = await on.db.value(b"select pg_get_functiondef(oid) from pg_proc where proname = %(body)s", body=body)
    mended = definition.replace("raise exception 'no % here', new.name", "new.name := 'mended bad'")
    await on.db.run(mended.encode())


def test_a_constraint_checked_at_commit_parks_the_call_that_broke_it(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(
                DDL
                + """
                create table known (name text primary key);
                insert into known values ('one'), ('three');
                alter table effects add foreign key (what) references known deferrable initially deferred;
                """
            )
            await on.defer("t")
            await on.teller.tell([item(1, "one"), item(2, "two"), item(3, "three")])
            await on.replay()
            assert await said(on) == ["one", "three"]
            (letter,) = await read_dead_letters(on.db, SOURCE)
            assert (letter.ordinal, letter.sqlstate) == (1, "23503")

    asyncio.run(run())


def test_the_stop_policy_waits_for_people_and_goes_on_when_it_is_mended(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL)
            await on.defer("t", on_error=OnError.STOP)
            await on.teller.tell([item(0)], [item(1, "bad")], [item(2)])
            stop, halted = asyncio.Event(), asyncio.Event()
            troubles: list[str] = []

            def hear(status: ReplayStatus) -> None:
                if status.state is ReplayState.HALTED:
                    troubles.append(status.trouble or "")
                    halted.set()

            task = asyncio.create_task(run_replayer(dsn, dsn, SOURCE, stop=stop, on_status=hear))
            await asyncio.wait_for(halted.wait(), 20)
            assert "no bad here" in troubles[0]
            assert await said(on) == ["0"]
            await _mend(on, (await read_deferrals(on.db, SOURCE))[0].body)
            await _until(on, 3)
            stop.set()
            await task
            assert await said(on) == ["0", "mended bad", "2"]
            assert not await read_dead_letters(on.db, SOURCE)

    asyncio.run(run())


def test_a_lock_that_is_not_had_in_time_is_tried_again_and_only_what_is_broken_is_parked(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on, connect(dsn) as other:
            await on.lay(DDL)
            await on.defer("t")
            await on.teller.tell([item(0)], [item(7, "bad"), item(1)], [item(2)])
            stop = asyncio.Event()
            policy = ReplayPolicy(lock_timeout_ms=30)
            async with other.transaction():
                await other.run(b"update counter set total = total")
                task = asyncio.create_task(run_replayer(dsn, dsn, SOURCE, policy=policy, stop=stop))
                await asyncio.sleep(0.4)
                assert await said(on) == []
            await _until(on, 1)
            async with other.transaction():  # again, while the broken one is told apart
                await other.run(b"update counter set total = total")
                await asyncio.sleep(0.3)
            await _until(on, 3)
            stop.set()
            await task
            assert await said(on) == ["0", "1", "2"]
            assert [letter.error for letter in await read_dead_letters(on.db, SOURCE)] == ["no bad here"]

    asyncio.run(run())


def test_a_lock_that_is_never_had_is_parked_after_the_last_attempt(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on, connect(dsn) as other, connect(dsn, options={"lock_timeout": "20ms"}) as impatient:
            await on.lay(DDL)
            await on.defer("t")
            await on.teller.tell([item(0)])
            on.db, kept = impatient, on.db
            async with other.transaction():
                await other.run(b"update counter set total = total")
                await on.replay(ReplayPolicy(attempts=3))
            on.db = kept
            (letter,) = await read_dead_letters(on.db, SOURCE)
            assert (letter.sqlstate, letter.attempts) == ("55P03", 4)
            assert await retry_dead_letters(on.db, [letter.id]) == {letter.id: None}
            assert await said(on) == ["0"]

    asyncio.run(run())


def test_an_outage_of_the_server_is_waited_out_and_nothing_is_parked(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(
                DDL
                + """
                create table disk (is_full boolean);
                insert into disk values (true);
                create or replace function note() returns trigger language plpgsql as $$
                begin
                    if (select is_full from disk) then raise disk_full; end if;
                    insert into effects (what) values (new.name);
                    update counter set total = total + 1;
                    return null;
                end $$;
                """
            )
            await on.defer("t")
            await on.teller.tell([item(0)], [item(1)])
            stop, waiting = asyncio.Event(), asyncio.Event()

            def hear(status: ReplayStatus) -> None:
                if status.state is ReplayState.CONNECTING:
                    waiting.set()

            task = asyncio.create_task(run_replayer(dsn, dsn, SOURCE, stop=stop, on_status=hear))
            await asyncio.wait_for(waiting.wait(), 20)
            await on.db.run(b"update disk set is_full = false")
            await _until(on, 2)
            stop.set()
            await task
            await everything(on, 2)

    asyncio.run(run())


def test_a_change_whose_values_are_not_whole_is_parked_without_a_try(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL.replace("after insert on", "after insert or update on"))
            await on.defer("t")
            whole = {"id": 1, "name": "x", "amount": 1}
            lacking = change(
                "public.items", "update", whole, {"id": 1, "amount": 2}, metadata=_json({"unchanged": ["name"]})
            )
            headless = change("public.items", "update", None, whole)
            await on.teller.tell([item(0, "fine"), lacking, headless])
            await on.replay()
            assert await said(on) == ["fine"]
            letters = await read_dead_letters(on.db, SOURCE)
            assert [(letter.ordinal, letter.attempts) for letter in letters] == [(1, 0), (2, 0)]
            assert "does not hold name of public.items" in letters[0].error
            assert "REPLICA IDENTITY FULL" in letters[1].error

    asyncio.run(run())


def _json(value: object) -> object:
    import msgspec

    return msgspec.Raw(msgspec.json.encode(value))


# ---- Context and cascades ---------------------------------------------------------------------------------------


def test_effects_are_stamped_with_the_original_context_and_caused_by_the_change(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(
                DDL
                + """
                create or replace function note() returns trigger language plpgsql as $$
                begin
                    insert into effects (what) values (concat_ws(' ', new.name,
                        nullif(current_setting('app.tenant', true), ''),
                        coalesce(nullif(current_setting('role', true), 'none'), 'no role'), now()::text));
                    return null;
                end $$;
                """
            )
            await on.defer("t")
            await on.db.script(
                "do $$ begin create role a_writer; exception when duplicate_object then null; end $$;"
                "grant insert on effects to a_writer"
            )
            await on.replay()
            await on.db.value(b"select pg_create_logical_replication_slot('seen', 'pgoutput')")
            await on.db.run(b"create publication seen")
            first = change(
                "public.items", "insert", None, {"id": 1, "name": "a"}, actor_id="ann", tenant_id="t1",
                ip="10.0.0.1", request_id="r1", metadata=_json({"reason": "because"}),
            )  # fmt: skip
            second = change("public.items", "insert", None, {"id": 2, "name": "b"}, at=first.occurred_at)
            settings = {
                "app.tenant": "t1",
                "role": "a_writer",
                "search_path": "nowhere",
                "afterwrite.committed_at": "x",
            }
            await on.teller.tell([first, second], [item(3, "c")], settings={0: settings})
            await on.replay()
            at = first.occurred_at.strftime("%Y-%m-%d %H:%M:%S.%f").rstrip("0")
            assert (await said(on))[:2] == [f"a t1 a_writer {at}+00", f"b t1 a_writer {at}+00"]
            assert (await said(on))[2].startswith("c no role ")
            stamps = await _stamps(on)
            assert stamps[0] == {
                "actor_id": "ann",
                "tenant_id": "t1",
                "ip": "10.0.0.1",
                "request_id": "r1",
                "reason": "because",
                "caused_by": await on.db.value(
                    b"select id::text from afterwrite.activity where request_id = 'r1' and kind = 'change'"
                ),
                "settings": {**settings, "afterwrite.depth": "1"},
            }
            assert stamps[1]["settings"] == {"afterwrite.depth": "1"}

    asyncio.run(run())


def test_a_body_has_the_rights_and_policies_of_the_role_that_was_stamped(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(
                DDL
                + """
                do $$ begin create role a_writer; exception when duplicate_object then null; end $$;
                alter table effects add column by name default current_user;
                alter table effects enable row level security;
                create policy own on effects to a_writer with check (what !~ 'secret');
                grant insert on effects to a_writer;
                grant select, update on counter to a_writer;
                """
            )
            await on.defer("t")
            writer = {"role": "a_writer"}
            await on.teller.tell(
                [item(1, "one")],
                [item(2, "a secret")],
                [item(3, "three")],
                [item(4, "a secret")],
                settings={0: writer, 1: writer, 2: {"role": "no_such_role"}},
            )
            await on.replay()
            rows = await on.db.values(b"select what || ' by ' || by from effects order by n")
            me = await on.db.value(b"select session_user::text")
            assert rows == ["one by a_writer", f"a secret by {me}"]
            letters = await read_dead_letters(on.db, SOURCE)
            assert [(letter.ordinal, letter.sqlstate) for letter in letters] == [(0, "42501"), (0, "42704")]
            assert "row-level security" in letters[0].error
            # A role is part of what it takes to run it again.
            await on.db.run(b"alter policy own on effects with check (true)")
            assert (await retry_dead_letters(on.db, [letters[0].id]))[letters[0].id] is None
            assert (
                await on.db.value(b"select by::text from effects where what ~ 'secret' order by n desc") == "a_writer"
            )
            await on.db.script("drop owned by a_writer")

    asyncio.run(run())


def test_what_is_worth_trying_again_is_the_same_on_both_sides(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            states = ["40001", "40P01", "40003", "55P03", "55006", "57014", "08006", "HV00N", "XX000"]
            others = ["23505", "42501", "22012", "P0001", "53100", "58030", "AW001", "AW002", "AW003", "25006", "XX001"]
            for state in [*states, *others]:
                there = await on.db.value(b"select afterwrite.is_transient(%(state)s)", state=state)
                assert run_room.is_transient(state) is there is (state in states), state

    asyncio.run(run())


def test_a_server_that_a_body_asks_and_that_is_away_is_tried_again_and_no_outage_of_ours(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(
                DDL
                + """
                create sequence tries;
                create or replace function note() returns trigger language plpgsql as $$
                begin
                    if nextval('tries') < 4 then
                        raise exception 'could not establish connection' using errcode = '08001';
                    end if;
                    insert into effects (what) values (new.name);
                    return null;
                end $$;
                """
            )
            await on.defer("t")
            await on.teller.tell([item(1, "one")], [item(2, "two")])
            await on.replay()
            assert await said(on) == ["one", "two"]
            assert not await read_dead_letters(on.db, SOURCE)

    asyncio.run(run())


def test_a_default_of_now_is_told_of_and_its_remedy_gives_the_original_time(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(
                DDL + "alter table effects add column at timestamptz default now(), add column day date default 'now';"
            )
            plan = await plan_deferral(on.db, await on.trigger("t"), source=SOURCE)
            (finding,) = plan.findings
            assert (finding.rule, "public.effects" in finding.text) == ("defer.clock-default", True)
            remedy = (finding.remedy or "").split(" gives")[0]
            await on.db.run(remedy.encode())
            assert not (await plan_deferral(on.db, await on.trigger("t"), source=SOURCE)).findings
            await on.defer("t")
            long_ago = datetime(2001, 2, 3, tzinfo=UTC)
            await on.teller.tell([change("public.items", "insert", None, {"id": 1, "name": "x"}, at=long_ago)])
            await on.replay()
            assert await on.db.values(b"select at from effects") == [long_ago]
            await on.db.run(b"insert into effects (what) values ('by hand')")
            assert await on.db.value(b"select max(at) > now() - interval '1 minute' from effects")

    asyncio.run(run())


async def _stamps(on: Stage) -> list[dict[str, object]]:
    messages: Sequence[bytes] = await on.db.values(
        b"select data from pg_logical_slot_get_binary_changes('seen', null, null, 'proto_version', '1', "
        b"'publication_names', 'seen', 'messages', 'true') where get_byte(data, 0) = ascii('M')"
    )
    # Behind the prefix comes the length, in four bytes; before it are others that may look like anything.
    stamps = (message.partition(CONTEXT_PREFIX.encode() + b"\0")[2] for message in messages)
    return [json.loads(stamp[4:]) for stamp in stamps]


def test_effects_set_off_further_bodies_until_the_cascade_is_too_deep(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            # A chain that never ends: each effect is a change that calls the same body.
            await on.lay(
                """
                create table links (n bigint generated always as identity primary key, depth int);
                create function next_link() returns trigger language plpgsql as $$
                begin insert into links (depth) values (new.depth + 1); return null; end $$;
                """,
                spied=["public.links"],
            )
            await on.db.run(b"create trigger t after insert on links for each row execute function next_link()")
            await on.defer("t")
            await on.do("insert into links (depth) values (0)")
            policy = ReplayPolicy(deepest=4)
            rounds = 0
            depths: dict[int, dict[str, str]] = {}
            while await on.tell_all(settings=depths):
                await on.replay(policy)
                rounds += 1
                depths = {0: {"afterwrite.depth": str(rounds)}}  # as capture reads it from the stamp
            assert await on.db.values(b"select depth from links order by n") == [0, 1, 2, 3, 4]
            (letter,) = await read_dead_letters(on.db, SOURCE)
            assert "4 times over" in letter.error

    asyncio.run(run())


# ---- How far it is, and the end -----------------------------------------------------------------------------------


def test_caught_up_tells_when_the_effects_of_a_place_in_the_wal_are_there(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL)
            at = Lsn(on.teller.lsn)
            assert await caught_up(on.db, on.store, at, source=SOURCE)  # nothing is deferred here
            await on.defer("t")
            await on.teller.tell([item(0)], [item(1)])
            end = Lsn(on.teller.lsn)
            assert not await caught_up(on.db, on.store, end, source=SOURCE)
            assert (await read_lag(on.db, on.store, source=SOURCE)).batches == 2
            with pytest.raises(AfterwriteError, match="not to"):
                await wait_until(on.db, on.store, end, source=SOURCE, timeout=0.1)
            await on.replay()
            assert await caught_up(on.db, on.store, end, source=SOURCE)
            assert not await caught_up(on.db, on.store, Lsn(end + 1000), source=SOURCE)  # not stored yet
            lag = await read_lag(on.db, on.store, source=SOURCE)
            assert (lag.batches, lag.seconds) == (0, 0)

            # What concerns nobody is passed over, and written down while the replayer idles.
            stop = asyncio.Event()
            task = asyncio.create_task(run_replayer(dsn, dsn, SOURCE, stop=stop))
            await on.teller.tell([change("public.others", "insert", None, {"id": 1})])
            await wait_until(on.db, on.store, Lsn(on.teller.lsn), source=SOURCE, timeout=10)
            progress = await settle(on.db, on.store, source=SOURCE, timeout=10)
            stop.set()
            await task
            assert progress is not None
            assert progress.calls == 2

    asyncio.run(run())


def test_a_replayer_that_starts_late_begins_at_the_silencing_and_not_at_the_end(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL)
            for number in range(5):
                await on.teller.tell([item(number, "long ago")])
            await on.defer("t")
            for number in range(3):
                await on.teller.tell([item(number)])
            await on.replay()
            await everything(on, 3)

    asyncio.run(run())


def test_functions_are_dropped_only_when_nothing_needs_them_any_more(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            await on.lay(DDL)
            await on.defer("t")
            trigger = await on.trigger("t")
            await on.teller.tell([item(1, "bad")])
            await on.replay()
            with pytest.raises(Refused, match="runs after commit"):
                await drop_deferral(on.db, trigger.identity, source=SOURCE)
            with pytest.raises(AfterwriteError, match="deferral_one_active"):
                await prepare_deferral(on.db, trigger, source=SOURCE)
            await on.teller.tell([mark(trigger, "restore")])
            await on.replay()
            with pytest.raises(Refused, match="1 failed calls"):
                await drop_deferral(on.db, trigger.identity, source=SOURCE)
            letters = await read_dead_letters(on.db, SOURCE)
            await skip_dead_letters(on.db, [letter.id for letter in letters])
            assert len(await drop_deferral(on.db, trigger.identity, source=SOURCE)) == 1
            assert not await on.db.values(
                b"select proname from pg_proc where pronamespace = 'afterwrite_deferred'::regnamespace"
            )
            assert await drop_deferral(on.db, trigger.identity, source=SOURCE) == []

    asyncio.run(run())
