"""The application of a fault run, and the truth about it: what a trigger wrote in the same transaction.

``audit_log`` is written by a row trigger inside each transaction, so it holds exactly what was committed, as
``to_jsonb`` gives it: no client has to know whether its COMMIT went through. Every transaction first locks the row of
its lane, so within a lane the order of the log is the order of the commits.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from enum import Enum
from itertools import pairwise
from typing import Any

import psycopg

LANES = 3
APPLICATION = "fault run: application"

DDL = f"""
create table public.lane (id int primary key, n bigint not null default 0);
insert into public.lane select generate_series(1, {LANES});
create table public.items (
    id bigint primary key, lane int not null, n bigint not null, label text, amount numeric(20, 4), tags text[],
    document jsonb, changed_at timestamptz default clock_timestamp()
);
create table public.notes (id bigint primary key, lane int not null, body text);
create table public.audit_log (
    id bigint generated always as identity primary key, table_name text, operation text, row_id text,
    old_data jsonb, new_data jsonb, actor text
);
create table public.emitted (number text primary key);
create table public.stamped (xid bigint primary key);
create table public.tally (operation text primary key, rows bigint not null);
create table public.effects (
    id bigint generated always as identity primary key, operation text, item bigint, n bigint,
    label text, deferred boolean
);

create function public.audit() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' then
        insert into public.audit_log (table_name, operation, row_id, old_data, actor)
        values (tg_table_name, tg_op, old.id::text, to_jsonb(old), current_setting('app.actor', true));
    elsif tg_op = 'UPDATE' then
        insert into public.audit_log (table_name, operation, row_id, old_data, new_data, actor)
        values (tg_table_name, tg_op, new.id::text, to_jsonb(old), to_jsonb(new), current_setting('app.actor', true));
    else
        insert into public.audit_log (table_name, operation, row_id, new_data, actor)
        values (tg_table_name, tg_op, new.id::text, to_jsonb(new), current_setting('app.actor', true));
    end if;
    return null;
end $$;
create trigger audit after insert or update or delete on public.items for each row execute function public.audit();
create trigger audit after insert or update or delete on public.notes for each row execute function public.audit();

create function public.effect() returns trigger language plpgsql as $$
begin
    insert into public.tally as t values (lower(tg_op), 1) on conflict (operation) do update set rows = t.rows + 1;
    if tg_op = 'DELETE' then
        insert into public.effects (operation, item, n, label, deferred)
        values (lower(tg_op), old.id, old.n, old.label, current_setting('application_name') <> '{APPLICATION}');
    else
        insert into public.effects (operation, item, n, label, deferred)
        values (lower(tg_op), new.id, new.n, new.label, current_setting('application_name') <> '{APPLICATION}');
    end if;
    return null;
end $$;
create trigger effect after insert or update or delete on public.items for each row execute function public.effect();
"""


class Mode(Enum):
    """What the application does: its work, only what calls for no deferred body, a big transaction next, or nothing."""

    ALL = "all"
    NOTES = "notes"
    BIG = "big"
    NOTHING = "nothing"


class Load:
    """One writer a lane, each from its own seed, on connections that no fault but a server's crash touches."""

    def __init__(self, dsn: str, seed: int, *, pause: float = 0.03, big_rows: int = 1_000) -> None:
        self.mode = Mode.ALL
        self.committed = Counter[str]()
        self._dsn = dsn
        self._seed = seed
        self._pause = pause
        self._big_rows = big_rows
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(lane,)) for lane in range(1, LANES + 1)]
        self._failures: list[BaseException] = []

    @contextmanager
    def running(self) -> Iterator[Load]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self.stop()

    def stop(self) -> None:
        """End the writers; raises what ended one before its time."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        if self._failures:
            raise self._failures[0]

    def _run(self, lane: int) -> None:
        writer = _Writer(lane, random.Random(f"{self._seed}/{lane}"), self._big_rows)
        try:
            while not self._stopping.is_set():
                try:
                    with psycopg.connect(self._dsn, autocommit=True, application_name=APPLICATION) as connection:
                        writer.recall(connection)
                        while not self._stopping.is_set():
                            if self.mode is not Mode.NOTHING:
                                mode = self.mode
                                self.committed[writer.transact(connection, mode)] += 1
                                if mode is Mode.BIG and self.mode is mode:
                                    self.mode = Mode.ALL
                            time.sleep(self._pause * writer.chance.uniform(0.3, 1.7))
                except psycopg.errors.DeadlockDetected:  # bodies that run after commit meet those of the triggers
                    self.committed["deadlocked"] += 1
                except psycopg.OperationalError:  # the server crashed: the truth is in it, not here
                    self.committed["in doubt"] += 1
                    time.sleep(0.05)
        except BaseException as error:
            self._failures.append(error)


class _Writer:
    def __init__(self, lane: int, chance: random.Random, big_rows: int) -> None:
        self.chance = chance
        self._lane = lane
        self._big_rows = big_rows
        self._next = lane * 10**9
        self._alive: list[int] = []
        self._n = 0

    def recall(self, connection: psycopg.Connection) -> None:
        """Which rows there are, after a connection broke; and no prepared transaction is left behind."""
        for (gid,) in connection.execute("select gid from pg_prepared_xacts where gid like %s", [f"{self._lane}:%"]):
            connection.execute(f"rollback prepared '{gid}'".encode())
        rows = connection.execute("select id from items where lane = %s order by id", [self._lane]).fetchall()
        self._alive = [id for (id,) in rows]

    def transact(self, connection: psycopg.Connection, mode: Mode) -> str:
        """One transaction, of a kind that the dice choose."""
        chance, alive = self.chance, list(self._alive)
        if mode is Mode.NOTES or mode is Mode.BIG:
            kind = mode.value
        else:
            kinds = {"small": 80, "notes": 8, "rolled back": 8, "two-phase": 3, "big": 0.6}
            (kind,) = chance.choices(list(kinds), list(kinds.values()))
        run = connection.execute
        run("begin")
        run("select set_config('search_path', 'public', true)")
        self._n = run("update lane set n = n + 1 where id = %s returning n", [self._lane]).fetchone()[0]  # type: ignore[index]
        stamp = self._stamp(connection)
        first = chance.random() < 0.5
        if stamp and first:
            self._emit(connection, "context", stamp)
        match kind:
            case "notes":
                run("insert into notes values (%s, %s, %s)", [self._id(), self._lane, "n" * chance.randint(0, 300)])
            case "big":
                self._big(connection)
            case _:
                for _ in range(chance.randint(1, 4)):
                    self._row(connection)
        if chance.random() < 0.15:
            self._event(connection)
        if kind == "small" and chance.random() < 0.12:
            self._savepoint(connection)
        if stamp and not first:
            self._emit(connection, "context", stamp)
        if kind == "two-phase":
            gid = f"{self._lane}:{self._n}"
            run(f"prepare transaction '{gid}'".encode())
            run(f"commit prepared '{gid}'".encode())
        elif kind == "rolled back":
            run("rollback")
            self._alive = alive
        else:
            run("commit")
        return kind

    def _id(self) -> int:
        self._next += 1
        return self._next

    def _stamp(self, connection: psycopg.Connection) -> dict[str, Any] | None:
        if self.chance.random() < 0.3:
            return None
        actor = f"actor {self._lane}.{self._n}"
        connection.execute("select set_config('app.actor', %s, true)", [actor])
        stamp: dict[str, Any] = {"actor_id": actor, "actor_type": "user"}
        if self.chance.random() < 0.3:
            stamp["settings"] = {"app.actor": actor}
            connection.execute("insert into stamped values (txid_current())")
        return stamp

    def _emit(self, connection: psycopg.Connection, prefix: str, content: dict[str, Any]) -> None:
        connection.execute(
            "select pg_logical_emit_message(true, %s, %s)", [f"afterwrite.{prefix}", json.dumps(content)]
        )

    def _event(self, connection: psycopg.Connection) -> None:
        number = f"{self._lane}.{self._n}"
        connection.execute("insert into emitted values (%s)", [number])
        self._emit(connection, "event", {"category": "faults", "action": "fault.emitted", "summary": number})

    def _row(self, connection: psycopg.Connection) -> None:
        run, chance = connection.execute, self.chance
        dice = chance.random()
        if dice < 0.5 or not self._alive:
            self._alive.append(self._id())
            run(
                "insert into items (id, lane, n, label, amount, tags, document) values (%s, %s, %s, %s, %s, %s, %s)",
                [
                    self._alive[-1],
                    self._lane,
                    self._n,
                    chance.choice(["", "plain", "tab\t, \\ and \n line", "zażółć 日本 🙂", None]),
                    Decimal(chance.randint(-(10**12), 10**12)) / 10_000,
                    ["a", 'b"c', "d,{e}"][: chance.randint(0, 3)],
                    json.dumps({"text": "x" * chance.choice([0, 10, 3000]), "deep": [1, None, {"a": 1e3}]}),
                ],
            )
        elif dice < 0.85:
            run(
                "update items set n = %s, amount = amount + 1, label = %s where id = %s",
                [self._n, f"v{self._n}", chance.choice(self._alive)],
            )
        else:
            run("delete from items where id = %s", [self._alive.pop(chance.randrange(len(self._alive)))])

    def _savepoint(self, connection: psycopg.Connection) -> None:
        """Rows that never were."""
        alive = list(self._alive)
        connection.execute("savepoint s")
        self._row(connection)
        connection.execute("rollback to savepoint s")
        self._alive = alive

    def _big(self, connection: psycopg.Connection) -> None:
        rows = self.chance.randint(self._big_rows // 2, self._big_rows)
        first = self._next + 1
        self._next += rows
        connection.execute(
            "insert into items (id, lane, n, label)"
            " select g, %s, %s, repeat('big ', 20) from generate_series(%s, %s) g",
            [self._lane, self._n, first, self._next],
        )
        connection.execute("delete from items where id between %s and %s and id %% 2 = 0", [first, self._next])


def compare(app: str, store: str, slot: str) -> tuple[list[str], Counter[str]]:
    """What the store has beside what was committed: every difference in a sentence, and what was counted."""
    with psycopg.connect(app) as source, psycopg.connect(store) as kept:
        checks = _Comparison(source, kept)
        checks.changes()
        checks.events()
        checks.contexts()
        checks.effects()
        checks.places(slot)
        return checks.differences, checks.counted


class _Comparison:
    def __init__(self, source: psycopg.Connection, kept: psycopg.Connection) -> None:
        self.differences: list[str] = []
        self.counted = Counter[str]()
        self._source = source
        self._kept = kept
        self._order: list[tuple[str, str, int]] = []  # (operation, item, n) as the store has them, for the effects

    def changes(self) -> None:
        """Each exactly once, with the values, the actor and the order of its lane."""
        truth: dict[int, list[tuple[object, ...]]] = defaultdict(list)
        for table, operation, key, before, after, actor in self._source.execute(
            "select table_name, lower(operation), row_id, old_data::text, new_data::text, nullif(actor, '')"
            " from public.audit_log order by id"
        ):
            old, new = _row(before), _row(after)
            truth[(new or old)["lane"]].append((table, operation, key, old, new, actor))  # type: ignore[index]
        stored: dict[int, list[tuple[object, ...]]] = defaultdict(list)
        ids, places = Counter[str](), []
        for id, position, lsn, ordinal, table, operation, key, before, after, actor in self._kept.execute(
            "select a.id::text, b.position, a.commit_lsn - '0/0'::pg_lsn, a.ordinal, a.entity_type, a.operation,"
            " a.entity_id, a.before::text, a.after::text, a.actor_id"
            " from afterwrite.activity a join afterwrite.batch b on b.id = a.batch_id where a.kind = 'change'"
            " order by b.position, a.commit_lsn, a.ordinal"
        ):
            old, new = _row(before), _row(after)
            row = new or old
            assert row is not None
            stored[row["lane"]].append((table, operation, key, old, new, actor))
            ids[id] += 1
            places.append((position, lsn, ordinal))
            if table == "items":
                self._order.append((operation, key, int(row["n"])))
        self.counted["changes"] = sum(map(len, truth.values()))
        self.counted["transactions"] = len({lsn for _, lsn, _ in places})
        for lane in sorted(truth.keys() | stored.keys()):
            self._equal(f"changes of lane {lane}", truth[lane], stored[lane])
        self._none("ids that are there twice", [id for id, count in ids.items() if count > 1])
        self._none("commits out of order in the feed", [b for a, b in pairwise(places) if a[1:] >= b[1:]])

    def events(self) -> None:
        truth = self._source.execute("select number from public.emitted").fetchall()
        stored = self._kept.execute(
            "select summary from afterwrite.activity where kind = 'event' and action = 'fault.emitted'"
        ).fetchall()
        self.counted["events"] = len(truth)
        self._equal("events", sorted(truth), sorted(stored))

    def contexts(self) -> None:
        truth = self._source.execute("select xid from public.stamped").fetchall()
        stored = self._kept.execute("select xid from afterwrite.transaction_context").fetchall()
        self._equal("settings of transactions", sorted(truth), sorted(stored))

    def effects(self) -> None:
        """Each body ran once, by its trigger or after the commit; and after the commit in the order of the feed."""
        found = [
            (operation, str(item), n, deferred)
            for operation, item, n, deferred in self._source.execute(
                "select operation, item, n, deferred from public.effects order by id"
            )
        ]
        self.counted["effects"] = len(found)
        self.counted["deferred"] = sum(deferred for *_, deferred in found)
        self._equal("effects", sorted(self._order), sorted((o, i, n) for o, i, n, _ in found))
        afterwards = [(o, i, n) for o, i, n, deferred in found if deferred]
        wanted = set(afterwards)
        in_order = [each for each in self._order if each in wanted]
        self._equal("deferred effects in order", in_order, afterwards)
        tally = dict(self._source.execute("select operation, rows from public.tally").fetchall())
        self._equal("tally of effects", sorted(Counter(o for o, *_ in found).items()), sorted(tally.items()))
        dead = self._source.execute("select count(*) from afterwrite.dead_letter").fetchone()
        if dead != (0,):
            self.differences.append(f"{dead} dead letters")

    def places(self, slot: str) -> None:
        """Positions gapless, no gap noted, and the slot nowhere beyond the store."""
        positions = [p for (p,) in self._kept.execute("select position from afterwrite.batch order by 1")]
        self.counted["batches"] = len(positions)
        if positions != list(range(1, len(positions) + 1)):
            self.differences.append("the feed's positions have gaps")
        if (gaps := self._kept.execute("select * from afterwrite.gap").fetchall()) != []:
            self.differences.append(f"gaps were noted: {gaps}")
        ((checkpoint,),) = self._kept.execute("select lsn - '0/0'::pg_lsn from afterwrite.checkpoint").fetchall()
        ((confirmed,),) = self._source.execute(
            "select confirmed_flush_lsn - '0/0'::pg_lsn from pg_replication_slots where slot_name = %s", [slot]
        ).fetchall()
        if confirmed > checkpoint:
            self.differences.append(f"the slot is confirmed to {confirmed}, the store has {checkpoint}")

    def _equal(self, what: str, wanted: list[Any], found: list[Any]) -> None:
        if wanted == found:
            return
        at = next(
            (n for n, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), min(len(wanted), len(found))
        )
        self.differences.append(
            f"{what}: {len(wanted)} expected, {len(found)} found; the first that differs is {at}:"
            f" expected {_short(wanted[at : at + 1])}, found {_short(found[at : at + 1])}"
        )

    def _none(self, what: str, found: list[Any]) -> None:
        if found:
            self.differences.append(f"{what}: {len(found)}, {_short(found[:3])}")


def _row(text: str | None) -> dict[str, Any] | None:
    return None if text is None else json.loads(text, parse_float=Decimal)


def _short(found: list[Any]) -> str:
    return str(found)[:400] if found else "nothing"
