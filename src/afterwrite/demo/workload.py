"""The legacy application at work: several clients in a process of their own, steered over stdin.

``python -m afterwrite.demo.workload --dsn … --ledger FILE`` logs in as ``demo_app`` and works until it is told to stop::

    stdin, a word or a JSON string/object a line        stdout, JSON lines
    ------------------------------------------          ------------------------------------------------
    stamp on | stamp off                                {"event": "stamp", "on": true}
    mark NAME       a new measuring window              {"event": "mark", "window": NAME, "lsn": …, "xid": …}
    rate N          transactions a second, 0 = no pause {"event": "rate", "rate": N}
    report                                              {"event": "report", "windows": […]}
    stop, or the end of stdin, or SIGTERM, SIGINT       {"event": "stopped", "windows": […]}
                                                        {"event": "ready", …} first, {"event": "tick", …} every second

``stamp`` and ``mark`` wait until no client is in a transaction, so what they say holds exactly from there on.
"""

from __future__ import annotations

import argparse
import os
import random
import selectors
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import conninfo
from psycopg.rows import dict_row

from afterwrite.demo.business import KINDS, ChangedMind, Connection, NothingToDo, Unit, World, read_world
from afterwrite.demo.ledger import Committed, Entry, Ledger, Mark, Notice, Opening, RolledBack, Unknown
from afterwrite.demo.schema import ROLE, STATISTICS
from afterwrite.errors import AfterwriteError

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_PATIENCE_AFTER_STOP = 30.0


class Window:
    """What was done since a mark. Guarded by the workload's lock."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.began = time.monotonic()
        self.ended: float | None = None
        self.committed = 0
        self.changes = 0
        self.latencies: list[float] = []
        self.failures: Counter[str] = Counter()

    def summary(self) -> dict[str, Any]:
        """Figures of the whole window; latencies from BEGIN to the answer to COMMIT, committed transactions only."""
        seconds = (self.ended or time.monotonic()) - self.began
        ordered = sorted(self.latencies)
        return {
            "window": self.name,
            "seconds": round(seconds, 3),
            "committed": self.committed,
            "rolled_back": self.failures.total(),
            "changes": self.changes,
            "tps": round(self.committed / seconds, 2) if seconds else 0.0,
            "p50_ms": _percentile(ordered, 0.50),
            "p95_ms": _percentile(ordered, 0.95),
            "failures": dict(self.failures),
        }


def _percentile(ordered: list[float], share: float) -> float:
    return round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))], 3) if ordered else 0.0


class Gate:
    """Many may work inside; one may have the place to himself."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._closed = False

    @contextmanager
    def inside(self) -> Generator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._closed)
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Generator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._closed)
            self._closed = True
            self._condition.wait_for(lambda: self._inside == 0)
        try:
            yield
        finally:
            with self._condition:
                self._closed = False
                self._condition.notify_all()


class Session(msgspec.Struct, frozen=True):
    """A connection, and the server's life it belongs to: ``era`` changes when, and only when, the server crashes."""

    connection: Connection
    era: str


class Workload:
    """Clients, windows and the ledger. ``start``, then steer it; ``stop`` returns when every client has finished."""

    def __init__(self, dsn: str, ledger: Ledger, *, clients: int = 8, seed: int = 1, rate: float = 100.0) -> None:
        self.dsn = conninfo.make_conninfo(dsn, user=ROLE, application_name="demo_app", connect_timeout=5)
        self.ledger = ledger
        self.clients = clients
        self.seed = seed
        self.rate = rate
        self.stamped = False
        self.stopping = threading.Event()
        self.fatal: BaseException | None = None
        self.windows = [Window("start")]
        self._gate = Gate()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._gave_up_at = float("inf")

    def start(self) -> None:
        """Open the ledger with what is there now, and set the clients to work."""
        with self.connected() as session:
            if self.ledger.empty:
                self.ledger.append(_read_opening(session.connection))
            world = read_world(session.connection)
        for number in range(self.clients):
            thread = threading.Thread(target=self._run, args=(number, world), name=f"client-{number}")
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Let every client finish the transaction it is in."""
        if not self.stopping.is_set():
            self._gave_up_at = time.monotonic() + _PATIENCE_AFTER_STOP
            self.stopping.set()
        for thread in self._threads:
            thread.join()
        with self._lock:
            self.windows[-1].ended = self.windows[-1].ended or time.monotonic()

    def stamp(self, on: bool) -> None:
        """From here on every transaction carries its context into the WAL, or none does."""
        with self._gate.alone():
            self.stamped = on

    def mark(self, name: str) -> Mark:
        """Begin a window, at a moment at which no client is in a transaction."""
        with self._gate.alone(), self.connected() as session:
            row = session.connection.execute(
                b"select pg_current_wal_insert_lsn()::text as lsn, pg_snapshot_xmax(pg_current_snapshot())::text as xid"
            ).fetchone()
            if row is None:
                raise AfterwriteError("the server did not say where its WAL ends")
            mark = Mark(window=name, lsn=row["lsn"], xid=int(row["xid"]))
            with self._lock:
                self.windows[-1].ended = time.monotonic()
                self.windows.append(Window(name))
                self.ledger.append(mark)
        return mark

    def report(self) -> list[dict[str, Any]]:
        """A summary of every window so far, oldest first."""
        with self._lock:
            return [window.summary() for window in self.windows]

    @contextmanager
    def connected(self) -> Generator[Session]:
        """A session of its own, kept trying for until the server answers."""
        connection = self._connect()
        try:
            yield connection
        finally:
            connection.connection.close()

    def _connect(self) -> Session:
        pause = _FIRST_PAUSE
        while True:
            try:
                connection = psycopg.connect(self.dsn, autocommit=True, row_factory=dict_row)
                era = connection.execute(b"select stats_reset::text as era from pg_stat_bgwriter").fetchone()
                return Session(connection, era["era"] if era else "")
            except psycopg.OperationalError:
                if time.monotonic() > self._gave_up_at:
                    raise
                time.sleep(pause * random.uniform(0.5, 1))
                pause = min(pause * 2, _LONGEST_PAUSE)

    def _run(self, number: int, world: World) -> None:
        try:
            self._work(number, world)
        except psycopg.OperationalError as error:
            if not self.stopping.is_set():
                self._fail(error)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Something that no business transaction may do: end the whole workload, loudly."""
        self.fatal = self.fatal or error
        self._gave_up_at = time.monotonic()
        self.stopping.set()

    def _work(self, number: int, world: World) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        kinds, weights = [kind for kind, _ in KINDS], [weight for _, weight in KINDS]
        session = self._connect()
        try:
            due = time.monotonic() + rng.random() * self.clients / max(self.rate, 1)
            while not self.stopping.is_set():
                if self.rate > 0:
                    wait = due - time.monotonic()
                    if wait > 0:
                        self.stopping.wait(wait)
                        continue
                    due = max(time.monotonic() - 0.5, due) + rng.expovariate(self.rate / self.clients)
                with self._gate.inside():
                    if session.connection.closed:
                        session = self._connect()
                    unit = Unit(session.connection, rng, world, stamped=self.stamped)
                    session = self._transact(session, unit, rng.choices(kinds, weights)[0])
        finally:
            session.connection.close()

    def _transact(self, session: Session, unit: Unit, kind: Any) -> Session:
        """One business transaction, to its known end. Returns the session to go on with."""
        began = time.monotonic()
        connection = session.connection
        committing = False
        try:
            connection.execute(b"begin")
            kind(unit)
            unit.settle()
            committing = True
            connection.execute(b"commit")
        except (NothingToDo, ChangedMind) as error:
            connection.execute(b"rollback")
            self._rolled_back(unit, kind.__name__, type(error).__name__)
        except psycopg.Error as error:
            if isinstance(error, psycopg.ProgrammingError | psycopg.DataError | psycopg.InterfaceError):
                raise
            if not connection.closed:
                if connection.info.transaction_status is not psycopg.pq.TransactionStatus.IDLE:
                    connection.execute(b"rollback")
                self._rolled_back(unit, kind.__name__, type(error).__name__)
            elif not committing or unit.xid is None:
                self._rolled_back(unit, kind.__name__, "ConnectionLost")
            else:
                return self._resolve(session, unit, kind.__name__, unit.xid)
        else:
            self._committed(unit, kind.__name__, time.monotonic() - began)
        return session

    def _resolve(self, lost: Session, unit: Unit, kind: str, xid: int) -> Session:
        """The connection broke at COMMIT: ask PostgreSQL what became of it.

        After a crash an xid of which nothing had reached the disk is handed out again, and pg_xact_status would tell of
        its new owner. The checkpoint that ends recovery says which xids were seen: from there on, ours is lost.
        """
        while True:
            try:
                session = self._connect()
                row = session.connection.execute(
                    b"select split_part(next_xid, ':', 1)::bigint << 32 | split_part(next_xid, ':', 2)::bigint as next_xid"
                    b"  from pg_control_checkpoint()"
                ).fetchone()
                if row and session.era != lost.era and xid >= row["next_xid"]:
                    self._rolled_back(unit, kind, "LostInCrash")
                    return session
                status = "in progress"
                while status == "in progress":
                    found = session.connection.execute(b"select pg_xact_status(%s::text::xid8) as status", [str(xid)]).fetchone()
                    status = found["status"] if found else None
                    time.sleep(0 if status != "in progress" else _FIRST_PAUSE)
            except psycopg.OperationalError:
                if time.monotonic() > self._gave_up_at:
                    self._write(Unknown(xid, self.windows[-1].name, kind))
                    raise
                continue
            except psycopg.errors.InvalidParameterValue:  # "transaction ID … is in the future"
                status = "aborted"
            if status == "committed":
                self._committed(unit, kind, None)
            else:
                self._rolled_back(unit, kind, "LostInCrash")
            return session

    def _committed(self, unit: Unit, kind: str, latency: float | None) -> None:
        for done in unit.on_commit:
            done()
        with self._lock:
            window = self.windows[-1]
            window.committed += 1
            window.changes += len(unit.changes)
            if latency is not None:
                window.latencies.append(latency)
        if unit.xid is None:
            raise AfterwriteError(f"{kind} committed without saying who acts")
        self._write(
            Committed(unit.xid, window.name, kind, unit.actor, unit.stamped, changes=unit.changes, effects=unit.effects)
        )

    def _rolled_back(self, unit: Unit, kind: str, why: str) -> None:
        for undone in unit.on_rollback:
            undone()
        with self._lock:
            window = self.windows[-1]
            window.failures[why] += 1
        if unit.xid is not None:
            self._write(RolledBack(unit.xid, window.name, kind, why))

    def _write(self, entry: Entry) -> None:
        self.ledger.append(entry)


def _read_opening(connection: Connection) -> Opening:
    """The balance brought forward: what the statistics, notifications and imports say before the first transaction."""
    with connection.transaction():
        connection.execute(b"set transaction isolation level repeatable read")
        statistics = connection.execute(f"select * from public.{STATISTICS}".encode()).fetchone() or {}
        notices = connection.execute(
            b"select user_id::text, kind, reference_id, count(*)::integer as times from public.notifications group by 1, 2, 3"
        ).fetchall()
        progress = connection.execute(b"select id::text, processed_rows from public.bulk_operations").fetchall()
    return Opening(
        counters={name: value for name, value in statistics.items() if name not in ("scope", "updated_at")},
        notices=[Notice(row["user_id"], row["kind"], row["reference_id"], row["times"]) for row in notices],
        progress={row["id"]: row["processed_rows"] for row in progress},
    )


def _say(**words: Any) -> None:
    sys.stdout.write(msgspec.json.encode(words).decode() + "\n")
    sys.stdout.flush()


def _obey(workload: Workload, line: str) -> bool:
    """Do what one line says. Returns whether to go on."""
    text = line.strip()
    if text.startswith(('"', "{")):
        said = msgspec.json.decode(text)
        text = said if isinstance(said, str) else " ".join(f"{word} {value}" for word, value in said.items())
    match text.split():
        case []:
            pass
        case ["stop", *_]:
            return False
        case ["report", *_]:
            _say(event="report", windows=workload.report())
        case ["stamp", ("on" | "off" | "True" | "False") as word]:
            workload.stamp(word in ("on", "True"))
            _say(event="stamp", on=workload.stamped)
        case ["mark", name]:
            mark = workload.mark(name)
            _say(event="mark", window=mark.window, lsn=mark.lsn, xid=mark.xid)
        case ["rate", number] if number.replace(".", "", 1).isdigit():
            workload.rate = float(number)
            _say(event="rate", rate=workload.rate)
        case _:
            _say(event="error", text=f"not understood: {text!r}; say stamp on|off, mark NAME, rate N, report or stop")
    return True


def _steer(workload: Workload) -> None:
    """Listen and tick until it is time to stop."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: workload.stopping.set())
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(woken, selectors.EVENT_READ)
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        next_tick = time.monotonic() + 1
        before = 0
        while not workload.stopping.is_set():
            ready = {key.fd for key, _ in selector.select(max(0.0, next_tick - time.monotonic()))}
            if woken in ready:
                os.read(woken, 64)
            if sys.stdin.fileno() in ready:
                read = os.read(sys.stdin.fileno(), 65_536)
                *lines, pending = (pending + read).split(b"\n")
                for line in lines:
                    if not _obey(workload, line.decode(errors="replace")):
                        return
                if not read:
                    return
            if time.monotonic() >= next_tick:
                next_tick += 1
                windows = workload.report()
                total = sum(window["committed"] for window in windows)
                _say(event="tick", **{**windows[-1], "tps": total - before})
                before = total


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m afterwrite.demo.workload", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dsn", required=True, help=f"the database; the user is always {ROLE}")
    parser.add_argument("--ledger", required=True, type=Path, help="file to append what was committed to")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=100.0, help="transactions a second in all; 0 for no pauses")
    parser.add_argument("--stamp", action="store_true", help="stamp the context into the WAL from the start")
    given = parser.parse_args()
    with Ledger(given.ledger) as ledger:
        workload = Workload(given.dsn, ledger, clients=given.clients, seed=given.seed, rate=given.rate)
        workload.stamped = given.stamp
        workload.start()
        _say(event="ready", clients=given.clients, rate=given.rate, pid=os.getpid())
        try:
            _steer(workload)
        finally:
            workload.stop()
        _say(event="stopped", windows=workload.report())
    if workload.fatal is not None:
        sys.stderr.write(f"the workload failed: {workload.fatal!r}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
