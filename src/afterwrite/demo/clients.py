"""The legacy application's clients: threads that do business, and settle with PostgreSQL what became of it.

Each client picks a business transaction, runs it, and writes its outcome into the ledger. A COMMIT whose answer got
lost is settled by asking the server; until then the client begins nothing new.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg
from psycopg import conninfo
from psycopg.rows import DictRow, dict_row

from afterwrite.demo.business import KINDS
from afterwrite.demo.ledger import Committed, Ledger, Mark, Notice, Opening, RolledBack, Unknown
from afterwrite.demo.schema import ROLE
from afterwrite.demo.transcript import Played, Transcript
from afterwrite.demo.unit import ChangedMind, Connection, NothingToDo, Unit, World, read_world
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import statement

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

    def __init__(
        self,
        dsn: str,
        ledger: Ledger,
        *,
        clients: int = 8,
        seed: int = 1,
        rate: float = 100.0,
        transcript: Transcript | None = None,
    ) -> None:
        self.dsn = conninfo.make_conninfo(dsn, user=ROLE, application_name="demo_app", connect_timeout=5)
        self.ledger = ledger
        self.transcript = transcript
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
        self._recovered: dict[str, int] = {}
        self._gave_up_at = float("inf")

    def start(self) -> None:
        """Open the ledger with what is there now, and set the clients to work; raises when no server answers."""
        self._open().connection.close()
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
        self._gave_up_at = min(self._gave_up_at, time.monotonic() + _PATIENCE_AFTER_STOP)
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
            position = _row(session.connection, statement("application.read_position"))
            mark = Mark(name, position["lsn"], int(position["xid"]), _last_notification(session.connection))
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
                return self._open()
            except psycopg.OperationalError:
                if time.monotonic() > self._gave_up_at:
                    raise
                time.sleep(pause * random.uniform(0.5, 1))
                pause = min(pause * 2, _LONGEST_PAUSE)

    def _open(self) -> Session:
        """Connect, and keep what the first connection of each era sees: which xids its recovery knew of."""
        connection = Connection.connect(self.dsn, autocommit=True, row_factory=dict_row)
        found = _row(connection, statement("application.read_era"))
        with self._lock:
            self._recovered.setdefault(found["era"], found["recovered"])
        return Session(connection, found["era"])

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
                    given = self.transcript.given if self.transcript else None
                    unit = Unit(session.connection, rng, world, stamped=self.stamped, given=given)
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
            if self.transcript:
                unit.number = self.transcript.draw()
            committing = True
            connection.execute(b"commit")
        except (NothingToDo, ChangedMind, psycopg.Error) as error:
            if isinstance(error, psycopg.ProgrammingError | psycopg.DataError | psycopg.InterfaceError):
                raise
            if _rolled_back(connection):
                self._rolled_back(unit, kind.__name__, type(error).__name__)
            elif committing and unit.xid is not None:
                return self._resolve(session, unit, kind.__name__, unit.xid)
            else:
                self._rolled_back(unit, kind.__name__, "ConnectionLost")
        else:
            self._committed(unit, kind.__name__, time.monotonic() - began)
        return session

    def _resolve(self, lost: Session, unit: Unit, kind: str, xid: int) -> Session:
        """The connection broke at COMMIT: ask PostgreSQL what became of it, as often as it takes."""
        while True:
            try:
                session = self._connect()
                status = self.outcome(session, xid, begun_in=lost.era)
            except psycopg.OperationalError:
                if time.monotonic() > self._gave_up_at:
                    self.ledger.append(Unknown(xid, self.windows[-1].name, kind))
                    raise
                continue
            if status == "committed":
                self._committed(unit, kind, None)
            else:
                self._rolled_back(unit, kind, "LostAtCommit")
            return session

    def outcome(self, session: Session, xid: int, *, begun_in: str) -> str | None:
        """committed or aborted, or None when it is too long ago to be known; ``begun_in`` is the era of its session.

        After a crash an xid of which nothing had reached the disk is handed out again, and pg_xact_status would tell of
        its new owner. The checkpoint that ends recovery says which xids were seen: from there on, ours is lost.
        """
        with self._lock:
            eras = list(self._recovered)
            crashes = [self._recovered[era] for era in eras[eras.index(begun_in) + 1 :]]
        if crashes and xid >= min(crashes):
            return "aborted"
        while True:
            status = _row(session.connection, statement("application.read_outcome"), xid=str(xid))["status"]
            if status != "in progress":
                return status
            time.sleep(_FIRST_PAUSE)

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
        if self.transcript:
            self.transcript.take_down(Played(unit.number, unit.claims, unit.deeds))
        self.ledger.append(
            Committed(unit.xid, window.name, kind, unit.actor, unit.stamped, changes=unit.changes, effects=unit.effects)
        )

    def _rolled_back(self, unit: Unit, kind: str, why: str) -> None:
        for undone in unit.on_rollback:
            undone()
        with self._lock:
            window = self.windows[-1]
            window.failures[why] += 1
        if unit.xid is not None:
            self.ledger.append(RolledBack(unit.xid, window.name, kind, why))


def _read_opening(connection: Connection) -> Opening:
    """The balance brought forward: what the statistics, notifications and imports say before the first transaction."""
    with connection.transaction():
        connection.execute(b"set transaction isolation level repeatable read")
        counters = _row(connection, statement("application.read_counters"))
        notices = connection.execute(statement("application.read_notices")).fetchall()
        progress = connection.execute(statement("application.read_progress")).fetchall()
        last_notification = _last_notification(connection)
    return Opening(
        counters={name: value for name, value in counters.items() if name not in ("scope", "updated_at")},
        notices=[Notice(row["user"], row["kind"], row["reference"], row["times"]) for row in notices],
        progress={row["operation"]: row["rows"] for row in progress},
        last_notification=last_notification,
    )


def _rolled_back(connection: Connection) -> bool:
    """Make sure that nothing of a failed transaction is left. False: the connection is lost, and with it the answer."""
    try:
        if connection.info.transaction_status is not psycopg.pq.TransactionStatus.IDLE:
            connection.execute(b"rollback")
    except psycopg.OperationalError:
        connection.close()
        return False
    return True


def _last_notification(connection: Connection) -> int:
    return _row(connection, statement("application.read_last_notification"))["id"]


def _row(connection: Connection, query: bytes, **params: object) -> DictRow:
    row = connection.execute(query, params).fetchone()
    if row is None:
        raise AfterwriteError("a query that always answers gave no row")
    return row
