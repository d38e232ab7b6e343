"""The live feed: nothing lost and nothing twice, whoever goes away and whatever breaks; and whose it is."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import psycopg
import pytest
from litestar.datastructures import State

from afterwrite.errors import UsageError
from afterwrite.postgres import Database, connect
from afterwrite.record import Activity, Batch, Checkpoint, Kind, Lsn, Operation
from afterwrite.search.query import Query, parse
from afterwrite.serve import feed as feed_room
from afterwrite.serve.app import create_app
from afterwrite.serve.auth import Caller
from afterwrite.serve.feed import Ended, Feed, Pace, Place, TooMany, Wish
from afterwrite.serve.tenancy import Readers, reading
from afterwrite.serve.wire import Server
from afterwrite.settings import Settings
from afterwrite.store.maintain import SESSION, MaintainPolicy, Reader, maintain
from afterwrite.store.reader import StoredActivity
from afterwrite.store.writer import open_sink

NOW = datetime.now(UTC)
QUICK = Pace(
    page_rows=10,
    whole_rows=25,
    poll_seconds=0.5,
    heartbeat_seconds=0.4,
    retry_ms=1,
    first_pause_seconds=0.02,
    longest_pause_seconds=0.2,
)
TENANTS = ("acme", "beta", None)


def an_activity(number: int, lsn: int | None = None, ordinal: int | None = None, **fields: object) -> Activity:
    """A change of the transaction at ``lsn``, or an event without one."""
    change = {"kind": Kind.EVENT, "action": "auth.login", "category": "auth"}
    if lsn is not None:
        change = {
            "kind": Kind.CHANGE,
            "action": "users.update",
            "category": "data",
            "relation": "public.users",
            "operation": Operation.UPDATE,
            "xid": lsn,
            "commit_lsn": Lsn(lsn),
            "ordinal": ordinal,
        }
    plain = {
        "id": str(UUID(int=(NOW.microsecond << 100) | (8 << 76) | (2 << 62) | number)),
        "occurred_at": NOW + timedelta(microseconds=number),
        "source": "main",
        "entity_type": "users",
        "entity_id": str(number % 3),
        "actor_id": f"user:{number % 5}",
        "tenant_id": TENANTS[number % 3],
    }
    return Activity(**change | plain | fields)


def a_batch(*activities: Activity, source: str = "main") -> Batch:
    return Batch(source=source, activities=activities, transactions=1)


def some(first: int, count: int) -> Batch:
    return a_batch(*(an_activity(number) for number in range(first, first + count)))


def encode(activity: StoredActivity) -> bytes:
    # As stored JSON may be: with line ends between its tokens.
    return json.dumps({"id": activity.id, "tenant_id": activity.tenant_id}, indent=1).encode()


def read_by(dsn: str) -> feed_room.Reading:
    """The server's own way to the store, row-level security and all."""
    state = State({"readers": Readers(Settings(dsn=dsn))})

    def open_store(tenant: str | None) -> AbstractAsyncContextManager[Database]:
        return reading(state, Caller("test", frozenset(), tenant))

    return open_store


class Listener:
    """A client as EventSource is one: comes back with the last id, and keeps only what came whole."""

    def __init__(self, dsn: str, line: str = "", tenant: str | None = None, after: str | None = None) -> None:
        self.wish = Wish(parse(line), tenant)
        self.last_id = after
        self.ids: list[str] = []
        self.resyncs: list[dict[str, object]] = []
        self.comments: list[str] = []
        self.ends: list[Ended] = []
        self._read = read_by(dsn)
        self._rest = b""

    def take(self, data: bytes) -> None:
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            fields: dict[str, str] = {}
            for line in block.decode().split("\n"):
                name, _, value = line.partition(": ")
                if not name:
                    self.comments.append(value)
                    continue
                assert name in {"id", "event", "data", "retry"}, line
                fields[name] = value
            self.last_id = fields.get("id", self.last_id)
            match fields.get("event"):
                case "activity":
                    told = json.loads(fields["data"])
                    assert fields["id"].partition("-")[2] == told["id"]
                    assert self.wish.tenant in (None, told["tenant_id"])
                    self.ids.append(told["id"])
                case "resync":
                    self.resyncs.append(json.loads(fields["data"]))
                case _:
                    assert "data" not in fields

    async def once(self, feed: Feed, send: Callable[[bytes], Coroutine[None, None, None]] | None = None) -> Ended:
        """One connection, until it ends or is cancelled."""

        async def take(data: bytes) -> None:
            self.take(data)

        self._rest = b""
        after = Place.parse(self.last_id) if self.last_id is not None else None
        self.ends.append(await feed.follow(self.wish, after, send or take, self._read))
        return self.ends[-1]

    @asynccontextmanager
    async def connected(self, feed: Feed) -> AsyncIterator[None]:
        task = asyncio.create_task(self.once(feed))
        await until(lambda: "live" in self.comments or bool(self.resyncs))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - a test looks from outside
            await asyncio.sleep(0.005)


async def fill(dsn: str, *batches: Batch) -> None:
    async with open_sink(dsn) as sink:
        for batch in batches:
            await sink.write(batch)


def stored(dsn: str, pace: Pace, *, after: int = 0, wish: Wish | None = None) -> list[str]:
    """The ids in the feed's order: by position, then by commit, or by time in a batch that is too long for that."""
    condition = {"": "true", "action:users.*": "action like 'users.%%'", "actor:user:2": "actor_id = 'user:2'"}
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            f"""
            select a.id::text
              from afterwrite.batch b join afterwrite.activity a on a.batch_id = b.id
             where b.position > %s and (%s::text is null or tenant_id = %s)
               and {condition[str(wish.query) if wish else ""]}
             order by b.position, case when b.rows <= %s then a.commit_lsn end nulls first,
                      case when b.rows <= %s then a.ordinal end, a.occurred_at, a.id
            """.encode(),
            [after, *[wish.tenant if wish else None] * 2, pace.whole_rows, pace.whole_rows],
        ).fetchall()
    return [id for (id,) in rows]


def end_reader(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'afterwrite feed' and datname = current_database()"
        )


class Writer:
    """Writes batches of every size, also such as are paged, and commits that are stored in another order."""

    def __init__(self, dsn: str, dice: random.Random) -> None:
        self._dsn = dsn
        self._dice = dice
        self.number = 0

    def batch(self) -> Batch:
        dice = self._dice
        rows = dice.choice([1, 1, 2, 3, 5, 8, 12, 24, 70])
        activities: list[Activity] = []
        while len(activities) < rows:
            self.number += 1
            if dice.random() < 0.3:
                activities.append(an_activity(self.number))
                continue
            lsn = 1000 * self.number
            for ordinal in range(dice.choice([1, 2, 6])):
                self.number += 1
                activities.append(an_activity(self.number, lsn, ordinal))
        dice.shuffle(activities)
        return a_batch(*activities)

    async def run(self, batches: int) -> None:
        async with open_sink(self._dsn) as sink:
            for _ in range(batches):
                await sink.write(self.batch())
                await asyncio.sleep(self._dice.choice([0, 0, 0.002, 0.02]))


async def come_and_go(listener: Listener, feed: Feed, dice: random.Random, done: asyncio.Event) -> None:
    """Connect again and again, take at any speed, and go away anywhere, also in the midst of what is sent."""
    while not done.is_set():
        left = dice.choice([500, 3_000, 20_000, 200_000])
        slow = dice.choice([0, 0, 0.001, 0.01])
        gone = asyncio.Event()

        async def take(data: bytes, gone: asyncio.Event = gone, slow: float = slow) -> None:
            nonlocal left
            listener.take(data[:left])
            left -= len(data)
            if left <= 0:
                gone.set()
                await asyncio.Event().wait()
            await asyncio.sleep(slow)

        following = asyncio.create_task(listener.once(feed, take))
        going = asyncio.create_task(gone.wait())
        await asyncio.wait({following, going}, timeout=dice.uniform(0, 0.4), return_when=asyncio.FIRST_COMPLETED)
        going.cancel()
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


@pytest.mark.parametrize("seed", [1, 2])
def test_every_client_hears_everything_once_and_in_order_whatever_breaks(installed_dsn: str, seed: int) -> None:
    dice = random.Random(seed)
    pace = msgspec.structs.replace(QUICK, buffer_bytes=4_000)

    async def scenario() -> None:
        wishes = [("", None), ("action:users.*", None), ("actor:user:2", None), ("", "acme"), ("actor:user:2", "beta")]
        listeners = [Listener(installed_dsn, *wish, after="0") for wish in wishes * 2]
        done = asyncio.Event()
        async with asyncio.timeout(50), Feed(installed_dsn, encode=encode, pace=pace) as feed:
            clients = [
                asyncio.create_task(come_and_go(each, feed, random.Random(dice.random()), done)) for each in listeners
            ]

            async def sabotage() -> None:
                while not done.is_set():
                    await asyncio.sleep(dice.uniform(0.1, 0.5))
                    await asyncio.to_thread(end_reader, installed_dsn)

            saboteur = asyncio.create_task(sabotage())
            writers = [Writer(installed_dsn, random.Random(dice.random())) for _ in range(2)]
            writers[1].number = 1_000_000
            await asyncio.gather(*(writer.run(60) for writer in writers))
            done.set()
            await asyncio.gather(saboteur, *clients)
            last = [asyncio.create_task(each.once(feed)) for each in listeners]
            wanted = [stored(installed_dsn, pace, wish=each.wish) for each in listeners]
            await until(lambda: all(len(a.ids) >= len(b) for a, b in zip(listeners, wanted, strict=True)))
            for task in last:
                task.cancel()
            assert feed.status().reconnects > 0
        for each, ids in zip(listeners, wanted, strict=True):
            assert each.resyncs == []
            assert each.ids == ids, each.wish
        assert len(wanted[0]) > 1_000

    asyncio.run(scenario())


def test_a_new_client_hears_what_comes_from_now_on_and_may_leave_before_the_first_of_it(installed_dsn: str) -> None:
    async def scenario() -> None:
        await fill(installed_dsn, some(0, 3))
        listener = Listener(installed_dsn)
        async with Feed(installed_dsn, encode=encode, pace=QUICK) as feed:
            async with listener.connected(feed):
                pass
            assert listener.last_id == "1"
            await fill(installed_dsn, some(3, 2))
            async with listener.connected(feed):
                await until(lambda: len(listener.ids) == 2)
                await fill(installed_dsn, some(5, 1))
                await until(lambda: len(listener.ids) == 3)
        assert listener.ids == stored(installed_dsn, QUICK, after=1)

    asyncio.run(scenario())


def test_a_client_that_nothing_was_for_comes_back_to_where_it_was_and_not_to_where_it_began(installed_dsn: str) -> None:
    async def scenario() -> None:
        listener = Listener(installed_dsn, "actor:nobody")
        async with Feed(installed_dsn, encode=encode, pace=QUICK) as feed, listener.connected(feed):
            await fill(installed_dsn, some(0, 3), some(3, 3))
            await until(lambda: listener.last_id == "2")
            assert "heartbeat" in listener.comments
            assert listener.ids == []

    asyncio.run(scenario())


def test_a_place_that_retention_took_or_nobody_knows_is_told_with_what_to_do(installed_dsn: str) -> None:
    old = NOW - timedelta(days=50)

    def aged(number: int, at: datetime) -> Batch:
        checkpoint = Checkpoint(source="main", slot="s", system_id="1", timeline=1, lsn=Lsn(number))
        activity = an_activity(number, number, 0, occurred_at=at)
        return Batch(
            source="main",
            activities=[activity],
            transactions=1,
            first_lsn=Lsn(number),
            last_lsn=Lsn(number),
            checkpoint=checkpoint,
        )

    async def scenario() -> None:
        await fill(installed_dsn, *(aged(n, old) for n in range(1, 5)), *(aged(n, NOW) for n in range(5, 8)))
        async with connect(installed_dsn, options=SESSION) as db:
            reader = Reader(source="main", position=1_000, commit_lsn=Lsn(1_000))
            await maintain(db, MaintainPolicy(retention_days=40), reader=reader)
            # Written today, so that the feed begins later only when the test says so.
            await db.run(b"update afterwrite.feed_start set position = 4")
            await db.run(b"delete from afterwrite.batch where position <= 4")
        listeners = {
            after: Listener(installed_dsn, after=after)
            for after in ("0", "3", "4", "99", f"2-{UUID(int=5)}", f"6-{UUID(int=5)}")
        }
        async with Feed(installed_dsn, encode=encode, pace=QUICK) as feed:
            for after, listener in listeners.items():
                async with listener.connected(feed):
                    if after == "4":
                        assert listener.ids == stored(installed_dsn, QUICK, after=4)
                        assert not listener.resyncs
                        continue
                    assert not listener.ids
                    (told,) = listener.resyncs
                    reason = "unknown" if after[0] in "96" else "expired"
                    assert (told["reason"], told["after"], told["position"], told["oldest"]) == (reason, after, 7, 4)
                    assert listener.last_id == "7"
                    assert "/v1/activities" in str(told["remedy"])
            assert feed.status().resynced == 5
            # And it goes on from there.
            gone = listeners["3"]
            async with gone.connected(feed):
                await fill(installed_dsn, some(100, 1))
                await until(lambda: len(gone.ids) == 1)

    asyncio.run(scenario())


def test_who_is_further_behind_than_the_bound_is_told_so(installed_dsn: str) -> None:
    async def scenario() -> None:
        await fill(installed_dsn, some(0, 30), some(30, 30))
        pace = msgspec.structs.replace(QUICK, most_behind=40)
        far, near = Listener(installed_dsn, after="0"), Listener(installed_dsn, after="1")
        async with Feed(installed_dsn, encode=encode, pace=pace) as feed, far.connected(feed), near.connected(feed):
            pass
        assert [told["reason"] for told in far.resyncs] == ["behind"]
        assert (len(near.ids), near.resyncs) == (30, [])

    asyncio.run(scenario())


def test_a_store_that_was_set_back_is_told_to_those_who_listen(installed_dsn: str) -> None:
    async def scenario() -> None:
        await fill(installed_dsn, *(some(n, 1) for n in range(5)))
        listener = Listener(installed_dsn)
        async with Feed(installed_dsn, encode=encode, pace=QUICK) as feed, listener.connected(feed):
            with psycopg.connect(installed_dsn, autocommit=True) as connection:
                connection.execute("delete from afterwrite.batch where position > 2")
                connection.execute("update afterwrite.feed set position = 2")
            end_reader(installed_dsn)
            await until(lambda: bool(listener.resyncs))
            assert listener.resyncs[0]["reason"] == "unknown"
            assert listener.last_id == "2"
            await fill(installed_dsn, some(100, 1))
            await until(lambda: len(listener.ids) == 1)

    asyncio.run(scenario())


def test_a_slow_client_is_dropped_while_the_others_hear_on_and_resumes_without_loss(installed_dsn: str) -> None:
    async def scenario() -> None:
        pace = msgspec.structs.replace(QUICK, buffer_bytes=2_000, page_rows=10_000, whole_rows=10_000)
        slow, quick = Listener(installed_dsn, after="0"), Listener(installed_dsn, after="0")
        stuck = asyncio.Event()

        async def take_little(data: bytes) -> None:
            slow.take(data)
            if slow.ids:
                stuck.set()
                await asyncio.Event().wait()

        async with asyncio.timeout(20), Feed(installed_dsn, encode=encode, pace=pace) as feed:
            stopped = asyncio.create_task(slow.once(feed, take_little))
            async with quick.connected(feed):
                async with open_sink(installed_dsn) as sink:
                    for number in range(60):
                        await sink.write(some(number, 1))
                        if number == 0:
                            await stuck.wait()
                assert await stopped is Ended.SLOW
                status = feed.status()
                assert (status.dropped, status.clients) == (1, 1)
                async with slow.connected(feed):
                    await until(lambda: len(slow.ids) == 60 and len(quick.ids) == 60)
        assert slow.ids == quick.ids == stored(installed_dsn, pace)

    asyncio.run(scenario())


def test_those_who_do_not_take_it_wait_with_the_same_bytes(installed_dsn: str) -> None:
    async def scenario() -> None:
        taken: list[bytes] = []

        async def take_nothing(data: bytes) -> None:
            taken.append(data)
            if data.startswith(b"id: "):
                await asyncio.Event().wait()

        pace = msgspec.structs.replace(QUICK, stall_seconds=60.0, heartbeat_seconds=60.0)
        listeners = [Listener(installed_dsn, f"-actor:nobody{number}") for number in range(8)]
        async with Feed(installed_dsn, encode=encode, pace=pace) as feed:
            tasks = [asyncio.create_task(each.once(feed, take_nothing)) for each in listeners]
            await until(lambda: feed.status().live == len(listeners))
            await fill(installed_dsn, some(0, 20), some(100, 20))
            await until(lambda: feed.status().sent == 8 * 40)
            waiting = [{id(piece) for piece in client._pieces} for client in feed._clients]
            assert len(set.union(*waiting)) <= 40
            for task in tasks:
                task.cancel()

    asyncio.run(scenario())


def test_a_client_that_takes_nothing_is_dropped_after_a_while(installed_dsn: str) -> None:
    async def scenario() -> None:
        await fill(installed_dsn, some(0, 20))
        pace = msgspec.structs.replace(QUICK, stall_seconds=0.1)

        async def take_nothing(_: bytes) -> None:
            await asyncio.Event().wait()

        async with asyncio.timeout(10), Feed(installed_dsn, encode=encode, pace=pace) as feed:
            assert await Listener(installed_dsn, after="0").once(feed, take_nothing) is Ended.SLOW
            assert feed.status().dropped == 1

    asyncio.run(scenario())


def test_a_long_batch_is_handed_out_a_page_at_a_time_and_who_is_slower_reads_it_by_himself(installed_dsn: str) -> None:
    async def scenario() -> None:
        pace = msgspec.structs.replace(QUICK, buffer_bytes=3_000)
        quick, slow, late = (Listener(installed_dsn, after=None) for _ in range(3))

        async def take_slowly(data: bytes) -> None:
            slow.take(data)
            # Slower than the feed reads, however slow that is.
            await until(lambda: not slow.ids or len(quick.ids) > 500)

        async with asyncio.timeout(20), Feed(installed_dsn, encode=encode, pace=pace) as feed:
            following = asyncio.create_task(slow.once(feed, take_slowly))
            async with quick.connected(feed):
                await until(lambda: "live" in slow.comments)
                await fill(installed_dsn, a_batch(*(an_activity(n, 7, n) for n in range(1_000))), some(2_000, 3))
                late.last_id = "0"
                async with late.connected(feed):
                    await until(lambda: len(quick.ids) == len(slow.ids) == len(late.ids) == 1_003)
            following.cancel()
            assert feed.status().dropped == 0
            assert feed.status().resumed >= 2  # the slow and the late
        assert quick.ids == slow.ids == late.ids == stored(installed_dsn, pace)

    asyncio.run(scenario())


def test_the_reader_goes_on_where_it_was_when_its_connection_is_ended(installed_dsn: str) -> None:
    async def scenario() -> None:
        listener = Listener(installed_dsn)
        async with Feed(installed_dsn, encode=encode, pace=QUICK) as feed, listener.connected(feed):
            for number in range(5):
                await fill(installed_dsn, some(number, 1))
                await asyncio.to_thread(end_reader, installed_dsn)
                await fill(installed_dsn, some(100 + number, 1))
            await until(lambda: len(listener.ids) == 10)
            assert feed.status().reconnects >= 3
            await until(lambda: feed.status().trouble is None)
        assert listener.ids == stored(installed_dsn, QUICK)

    asyncio.run(scenario())


def test_clients_who_wish_the_same_share_one_evaluation_and_one_writing(
    installed_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        asked: list[str] = []
        written: list[str] = []
        matches = Query.matches

        def counting(self: Query, activity: StoredActivity) -> bool:
            asked.append(activity.id)
            return matches(self, activity)

        def encoding(activity: StoredActivity) -> bytes:
            written.append(activity.id)
            return encode(activity)

        monkeypatch.setattr(Query, "matches", counting)
        same = [Listener(installed_dsn, "entity:users/1") for _ in range(5)]
        other = [Listener(installed_dsn, "entity:users"), Listener(installed_dsn, "actor:user:9")]
        async with Feed(installed_dsn, encode=encoding, pace=QUICK) as feed:
            tasks = [asyncio.create_task(each.once(feed)) for each in same + other]
            await until(lambda: feed.status().live == 7)
            assert feed.status().groups == 3
            await fill(installed_dsn, some(0, 9))
            await until(lambda: all(len(each.ids) == 3 for each in same) and len(other[0].ids) == 9)
            for task in tasks:
                task.cancel()
        # Three are of that entity, nine of that type, and of user:9 there is none: nobody is asked.
        assert (len(asked), len(written)) == (3 + 9, 9)

    asyncio.run(scenario())


def test_a_tenant_hears_of_its_own_alone_live_and_resumed_whatever_it_asks_for(installed_dsn: str) -> None:
    async def scenario() -> None:
        lines = ["", "tenant:beta", "-tenant:acme", "tenant:*", "entity:users/0,users/1", "actor:user:1"]
        live = [Listener(installed_dsn, line, "acme") for line in lines]
        resumed = [Listener(installed_dsn, line, "acme", after="0") for line in lines]
        async with Feed(installed_dsn, encode=encode, pace=QUICK) as feed:
            tasks = [asyncio.create_task(each.once(feed)) for each in live]
            await until(lambda: feed.status().live == len(lines))
            # Events, commits, and a batch that is paged; every third is acme's.
            changes = [an_activity(100 + n, 5, n) for n in range(90)]
            await fill(installed_dsn, some(0, 9), a_batch(*changes), some(300, 3))
            await until(lambda: len(live[0].ids) == 34)
            for each in resumed:
                async with each.connected(feed):
                    pass
            for task in tasks:
                task.cancel()
        for each, again, line in zip(live, resumed, lines, strict=True):
            assert each.ids == again.ids, line
        assert [len(each.ids) for each in live] == [34, 0, 0, 34, 34, 7]
        assert live[0].ids == stored(installed_dsn, QUICK, wish=Wish(Query(), "acme"))

    asyncio.run(scenario())


def test_a_tenant_cannot_resume_inside_another_tenants_activity(installed_dsn: str) -> None:
    async def scenario() -> None:
        await fill(installed_dsn, some(0, 9))
        foreign = stored(installed_dsn, QUICK, wish=Wish(Query(), "beta"))[0]
        listener = Listener(installed_dsn, "", "acme", after=f"1-{foreign}")
        async with Feed(installed_dsn, encode=encode, pace=QUICK) as feed, listener.connected(feed):
            assert [told["reason"] for told in listener.resyncs] == ["unknown"]
        assert listener.ids == []

    asyncio.run(scenario())


def test_who_gives_a_row_the_id_of_anothers_hears_his_own_words(installed_dsn: str) -> None:
    async def scenario() -> None:
        live = {tenant: Listener(installed_dsn, "", tenant) for tenant in ("acme", "beta", None)}
        resumed = Listener(installed_dsn, "", "beta", after="0")
        ours = an_activity(0, tenant_id="acme")
        theirs = an_activity(0, tenant_id="beta", occurred_at=NOW - timedelta(days=1))
        async with Feed(installed_dsn, encode=encode, pace=QUICK) as feed:
            tasks = [asyncio.create_task(each.once(feed)) for each in live.values()]
            await until(lambda: feed.status().live == 3)
            await fill(installed_dsn, a_batch(ours), a_batch(theirs))
            await until(lambda: len(live[None].ids) == 2)  # a Listener looks whose it is that it is told
            async with resumed.connected(feed):
                pass
            assert not any(task.done() for task in tasks)
            for task in tasks:
                task.cancel()
        assert [len(each.ids) for each in (*live.values(), resumed)] == [1, 1, 2, 1]

    asyncio.run(scenario())


def test_a_query_that_breaks_down_ends_its_own_clients_alone(
    installed_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    matches = Query.matches

    def breaking(self: Query, activity: StoredActivity) -> bool:
        if str(self) == "action:broken":
            raise RuntimeError("a defect")
        return matches(self, activity)

    async def scenario() -> None:
        monkeypatch.setattr(Query, "matches", breaking)
        broken, whole = Listener(installed_dsn, "action:broken"), Listener(installed_dsn, "action:auth.*")
        async with asyncio.timeout(10), Feed(installed_dsn, encode=encode, pace=QUICK) as feed:
            task = asyncio.create_task(broken.once(feed))
            async with whole.connected(feed):
                await until(lambda: feed.status().live == 2)
                await fill(installed_dsn, some(0, 2))
                await until(lambda: len(whole.ids) == 2)
                assert await task is Ended.TROUBLE

    asyncio.run(scenario())


def test_no_more_clients_than_the_bound(installed_dsn: str) -> None:
    async def scenario() -> None:
        pace = msgspec.structs.replace(QUICK, most_clients=1)
        async with Feed(installed_dsn, encode=encode, pace=pace) as feed:
            feed.require_room(Wish())
            async with Listener(installed_dsn).connected(feed):
                with pytest.raises(TooMany):
                    feed.require_room(Wish())
            feed.require_room(Wish())
            assert feed.status().refused == 1
        pace = msgspec.structs.replace(QUICK, most_clients=6, most_queries=2)
        async with Feed(installed_dsn, encode=encode, pace=pace) as feed, AsyncExitStack() as listening:
            for line in ("actor:a", "actor:b"):
                await listening.enter_async_context(Listener(installed_dsn, line, "acme").connected(feed))
            feed.require_room(Wish(parse("actor:b"), "acme"))
            with pytest.raises(TooMany, match="2 different queries"):
                feed.require_room(Wish(parse("actor:c"), "acme"))
            await listening.enter_async_context(Listener(installed_dsn, "actor:b", "acme").connected(feed))
            with pytest.raises(TooMany, match="3 clients of this tenant"):
                feed.require_room(Wish(parse("actor:b"), "acme"))
            feed.require_room(Wish(parse("actor:c"), "beta"))
            feed.require_room(Wish())

    asyncio.run(scenario())


def test_a_store_that_cannot_be_reached_is_told_in_the_status_and_clients_wait_with_heartbeats() -> None:
    async def scenario() -> None:
        dsn = "postgresql:///nothing?host=/nowhere&port=1"
        listener = Listener(dsn)
        async with Feed(dsn, encode=encode, pace=msgspec.structs.replace(QUICK, heartbeat_seconds=0.05)) as feed:
            task = asyncio.create_task(listener.once(feed))
            await until(lambda: listener.comments.count("heartbeat") >= 2)
            assert "cannot be reached" in (feed.status().trouble or "")
            feed.stop()
            assert await task is Ended.STOPPED

    asyncio.run(scenario())


@pytest.mark.parametrize("text", ["", "-1", "x", "1-", "1-x", "1 ", "9" * 19, "²", f"1-{UUID(int=1)}-2", "\x00"])
def test_a_place_is_what_an_id_line_said_or_it_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Place.parse(text)
    for place in (Place(0), Place(17, str(UUID(int=5)))):
        assert Place.parse(str(place)) == place


# Over HTTP.


@asynccontextmanager
async def served(dsn: str) -> AsyncIterator[tuple[int, Feed]]:
    app = create_app(Settings(dsn=dsn))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = Server(app)
        task = asyncio.create_task(server.serve([listening]))
        await until(lambda: server.started)
        try:
            yield listening.getsockname()[1], app.state.feed
        finally:
            server.should_exit = True
            await task


@asynccontextmanager
async def request(port: int, path: str, *headers: str) -> AsyncIterator[asyncio.StreamReader]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Accept-Encoding: gzip, br", *headers]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    try:
        yield reader
    finally:
        writer.close()


async def hear(reader: asyncio.StreamReader, *, activities: int) -> list[str]:
    """The ids of so many activities, from a chunked stream."""
    text = ""
    async with asyncio.timeout(10):
        while text.count("event: activity") < activities or not text.endswith("\n\n"):
            size = int(await reader.readline(), 16)
            assert size, "the stream ended"
            text += (await reader.readexactly(size)).decode()
            await reader.readline()
    return [line.partition("-")[2] for line in text.splitlines() if line.startswith("id: ") and "-" in line]


async def head(reader: asyncio.StreamReader) -> str:
    return (await reader.readuntil(b"\r\n\r\n")).decode().lower()


def test_over_http_the_feed_is_server_sent_events_that_resume_by_header_or_parameter(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with served(installed_dsn) as (port, feed):
            async with request(port, "/v1/feed?q=action:auth.*") as reader:
                said = await head(reader)
                assert said.startswith("http/1.1 200")
                assert "content-type: text/event-stream" in said
                assert "content-encoding" not in said
                await until(lambda: feed.status().live == 1)
                await fill(installed_dsn, some(0, 2), a_batch(an_activity(2, 9, 0)), some(3, 1))
                heard = await hear(reader, activities=3)
            await until(lambda: feed.status().clients == 0)
            everything = stored(installed_dsn, QUICK)
            assert heard == [everything[0], everything[1], everything[3]]
            for path, headers in (
                (f"/v1/feed?last_event_id=1-{everything[0]}", ()),
                ("/v1/feed?last_event_id=999", (f"Last-Event-ID: 1-{everything[0]}",)),
            ):
                async with request(port, path, *headers) as reader:
                    await head(reader)
                    assert await hear(reader, activities=3) == everything[1:]

    asyncio.run(scenario())


def test_over_http_streams_end_when_the_server_stops(installed_dsn: str) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            async with served(installed_dsn) as (port, feed):
                readers = [await stack.enter_async_context(request(port, "/v1/feed")) for _ in range(3)]
                await until(lambda: feed.status().live == 3)
                began = time.monotonic()
            assert time.monotonic() - began < 3
            for reader in readers:
                assert (await reader.read()).endswith(b"0\r\n\r\n")

    asyncio.run(scenario())


def test_a_stream_ends_after_a_while_so_that_who_listens_is_asked_again_who_he_is(installed_dsn: str) -> None:
    async def scenario() -> None:
        listener = Listener(installed_dsn)
        pace = msgspec.structs.replace(QUICK, renew_seconds=0.2, heartbeat_seconds=0.1)
        async with asyncio.timeout(5), Feed(installed_dsn, encode=encode, pace=pace) as feed:
            assert await listener.once(feed) is Ended.RENEWED
            assert listener.last_id == "0"

    asyncio.run(scenario())


def test_over_http_a_client_that_reads_nothing_is_cut_off(installed_dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    wide = [an_activity(n, metadata=msgspec.Raw(b'{"x":"' + b"x" * 50_000 + b'"}')) for n in range(20)]

    async def scenario() -> None:
        async with served(installed_dsn) as (port, feed):
            feed._pace = msgspec.structs.replace(feed._pace, buffer_bytes=100_000)
            async with request(port, "/v1/feed") as reader:
                await until(lambda: feed.status().live == 1)
                await fill(
                    installed_dsn,
                    *(
                        a_batch(
                            *(
                                msgspec.structs.replace(each, id=str(UUID(int=UUID(each.id).int + 100 * n)))
                                for each in wide
                            )
                        )
                        for n in range(16)
                    ),
                )
                await until(lambda: feed.status().dropped == 1)
                await until(lambda: feed.status().clients == 0)
                # What the kernel and the reader's own buffer held comes, then the connection is gone.
                async with asyncio.timeout(5):
                    with suppress(ConnectionResetError):
                        while await reader.read(1 << 20):
                            pass
        assert not [record for record in caplog.records if record.name.startswith("uvicorn")]

    asyncio.run(scenario())
