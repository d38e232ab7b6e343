"""Between decoding and storing: bounded, in order, and in batches that grow with the load. No database."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import pytest

from afterwrite.capture.backlog import Backlog, Pace
from afterwrite.capture.transaction import Message, Transaction
from afterwrite.record import Lsn


def transaction(number: int, rows: int = 1, size: int = 100) -> Transaction:
    return Transaction(
        xid=number,
        commit_lsn=Lsn(number * 10),
        end_lsn=Lsn(number * 10 + 5),
        committed_at=datetime(2026, 1, 2, tzinfo=UTC),
        context=None,
        changes=(),
        messages=[Message("p", b"", ordinal) for ordinal in range(rows)],
        size=size,
    )


def xids(take: object) -> list[int]:
    return [transaction.xid for transaction in take.transactions]  # type: ignore[attr-defined]


def test_after_a_quiet_time_a_transaction_comes_at_once() -> None:
    async def run() -> float:
        backlog = Backlog(Pace(linger_ms=500))
        await backlog.put(transaction(1))
        began = time.monotonic()
        take = await backlog.take()
        assert take is not None
        assert (xids(take), take.through) == ([1], Lsn(15))
        return time.monotonic() - began

    assert asyncio.run(run()) < 0.1


def test_under_load_transactions_gather_while_it_lingers() -> None:
    async def run() -> list[list[int]]:
        backlog = Backlog(Pace(linger_ms=100, enough_rows=5))
        taken = []

        async def feed() -> None:
            for number in range(1, 13):
                await backlog.put(transaction(number))
                await asyncio.sleep(0.01)
            backlog.close()

        feeding = asyncio.create_task(feed())
        while (take := await backlog.take()) is not None:
            taken.append(xids(take))
        await feeding
        return taken

    taken = asyncio.run(run())
    assert taken[0] == [1]
    assert len(taken[1]) >= 5
    assert [xid for xids in taken for xid in xids] == list(range(1, 1 + sum(map(len, taken))))


def test_a_batch_holds_whole_transactions_up_to_its_bound() -> None:
    async def run() -> list[tuple[list[int], Lsn]]:
        backlog = Backlog(Pace(linger_ms=0, batch_rows=10))
        for number, rows in ((1, 4), (2, 6), (3, 25), (4, 1)):
            await backlog.put(transaction(number, rows))
        taken = []
        for _ in range(3):
            take = await backlog.take()
            assert take is not None
            taken.append((xids(take), take.through))
        return taken

    assert asyncio.run(run()) == [([1, 2], Lsn(25)), ([3], Lsn(35)), ([4], Lsn(45))]


@pytest.mark.parametrize("pace", [Pace(backlog_rows=3), Pace(backlog_bytes=300)])
def test_a_full_backlog_makes_the_reader_wait(pace: Pace) -> None:
    async def run() -> None:
        backlog = Backlog(pace)
        for number in (1, 2, 3):
            await asyncio.wait_for(backlog.put(transaction(number)), 1)
        waiting = asyncio.create_task(backlog.put(transaction(4)))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert xids(await backlog.take()) == [1, 2, 3]
        await asyncio.wait_for(waiting, 1)
        assert xids(await backlog.take()) == [4]

    asyncio.run(run())


def test_an_empty_transaction_moves_the_position_but_wakes_nobody() -> None:
    async def run() -> None:
        backlog = Backlog(Pace(linger_ms=0))
        await backlog.put(transaction(1, rows=0))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(backlog.take(), 0.05)
        await backlog.put(transaction(2))
        await backlog.put(transaction(3, rows=0))
        take = await backlog.take()
        assert take is not None
        assert (xids(take), take.through) == ([2], Lsn(35))

    asyncio.run(run())


def test_a_position_that_the_server_asks_for_follows_what_was_put_before() -> None:
    async def run() -> None:
        backlog = Backlog(Pace(linger_ms=0, batch_rows=1))
        await backlog.put(transaction(1))
        await backlog.put(transaction(2))
        backlog.reach(Lsn(90))
        taken = [await backlog.take(), await backlog.take()]
        assert [(xids(take), take.through) for take in taken if take] == [([1], Lsn(15)), ([2], Lsn(90))]
        backlog.reach(Lsn(95))
        take = await backlog.take()
        assert take is not None
        assert (xids(take), take.through) == ([], Lsn(95))
        backlog.close()
        assert await backlog.take() is None

    asyncio.run(run())
