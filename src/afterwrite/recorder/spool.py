"""Where events wait until they are delivered: one SQLite file of each living process in one folder, or its memory.

::

    <folder>/<destination>-<pid>-<random>.spool     WAL mode: what was committed survives SIGKILL
                                         .lock      held by flock for as long as the process lives
                                         .corrupt   could not be read: set aside, for people

A chunk is what one group commit brought, up to some hundreds of events as one JSON array: the same bytes go to disk and
to an HTTP sink, and a group costs one row. A file whose lock nobody holds is of a process that has gone: any living one
with the same destination takes the lock, delivers what it holds, and deletes it.

SQLite must not be inside a call while the process forks (its locks would stay locked in the child), so all use of it
goes by turns, and a fork waits for its turn.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
import threading
import time
import zlib
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Protocol, Self

import msgspec

from afterwrite.errors import AfterwriteError
from afterwrite.failpoints import failpoint
from afterwrite.record import Activity, Kind, Level, Outcome

try:
    import fcntl
except ImportError:  # not a POSIX system: events are kept in memory alone
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

NO_METADATA = msgspec.Raw(b"")
_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_TURN_SECONDS = 2.0
_BUSY_SECONDS = 5.0
_MOST_REFUSED = 1_000
_SHRINK_BYTES = 16 << 20
_VERSION = 1
_PRAGMAS = ("pragma synchronous = normal", "pragma wal_autocheckpoint = 2000", "pragma journal_size_limit = 4194304")
# The destination of a process that was told none: whoever knows one takes its events along.
NOWHERE = "nowhere"
_SCHEMA = """
pragma page_size = 8192;
pragma journal_mode = wal;
create table if not exists chunk (
    number integer primary key, events integer not null, at real not null, crc integer not null, body blob not null
);
create table if not exists refused (id text primary key, at real not null, reason text not null, body blob not null);
create table if not exists dropped (reason text primary key, events integer not null);
"""


class Event(Activity, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """An activity as it is spooled: JSON without what it does not have. Without metadata, that is empty.

    ``stored``: what it is given to is to say that the store has it.
    """

    metadata: msgspec.Raw = NO_METADATA
    stored: bool = False


class Made(msgspec.Struct, gc=False, omit_defaults=True):
    """An event as ``record()`` makes it: what it says as JSON is an ``Event``.

    Its fields go by position: by their names they would take longer than all else that ``record()`` does.
    """

    id: str
    occurred_at: datetime
    source: str
    kind: Kind
    category: str
    action: str
    outcome: Outcome
    severity: Level
    entity_type: str | None = None
    entity_id: str | None = None
    actor_id: str | None = None
    actor_type: str | None = None
    tenant_id: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    trace_id: str | None = None
    ip: str | None = None
    user_agent: str | None = None
    duration_ms: float | None = None
    summary: str | None = None
    caused_by: str | None = None
    metadata: msgspec.Raw = NO_METADATA
    stored: bool = False


class SpoolError(AfterwriteError):
    """The disk does not take events now; ``lost`` when what it held before is not there any more either."""

    def __init__(self, message: str, *, lost: bool = False) -> None:
        super().__init__(message, remedy="make room or mend the folder; AFTERWRITE_SPOOL_DIR names another one")
        self.lost = lost


class CorruptError(SpoolError):
    """The file is no spool, or a broken one."""


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Events of one group commit. ``number`` is its place in its spool; ``at`` when it came (seconds since 1970)."""

    number: int
    events: int
    at: float
    body: bytes


class Refusal(msgspec.Struct, frozen=True):
    """An event (or several that cannot be told apart) that is kept aside: as JSON, with what was said of it."""

    id: str
    reason: str
    body: bytes
    events: int = 1


_decoder = msgspec.json.Decoder(list[Event])
_one_decoder = msgspec.json.Decoder(Event)


def decode_chunk(chunk: Chunk) -> list[Event]:
    """The events of a chunk; raises CorruptError when it is none."""
    try:
        return _decoder.decode(chunk.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptError(f"a chunk of events cannot be read: {error}") from error


def without_absent(activity: Activity) -> Event:
    """An activity as it is sent."""
    if isinstance(activity, Event):
        bare = activity.metadata is None  # pyright: ignore[reportUnnecessaryComparison] - as sinks know it
        if bare or activity.stored:
            return msgspec.structs.replace(activity, metadata=NO_METADATA if bare else activity.metadata, stored=False)
        return activity
    fields = {name: getattr(activity, name) for name in Activity.__struct_fields__}
    if fields["metadata"] is None:
        del fields["metadata"]
    return Event(**fields)


def salvage(chunk: Chunk) -> tuple[list[Event], list[Refusal]]:
    """The events of a chunk that cannot be read as a whole, and what else is in it: a later version's, or an error."""
    try:
        parts = msgspec.json.decode(chunk.body, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return [], [Refusal(f"chunk {chunk.number} of {chunk.at:.6f}", str(error), chunk.body, chunk.events)]
    events: list[Event] = []
    refusals: list[Refusal] = []
    for number, part in enumerate(parts):
        try:
            events.append(_one_decoder.decode(part))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            refusals.append(Refusal(f"chunk {chunk.number} of {chunk.at:.6f}, {number}", str(error), bytes(part)))
    return events, refusals


class Spool(Protocol):
    """What waits to be delivered, in the order in which it came."""

    @property
    def name(self) -> str: ...

    @property
    def events(self) -> int:
        """How many events wait."""
        ...

    @property
    def last(self) -> int:
        """The number of the newest chunk that ever was."""
        ...

    @property
    def settled(self) -> int:
        """All chunks up to this number are done with."""
        ...

    @property
    def oldest(self) -> float | None:
        """When the oldest waiting chunk came, as far as it is known."""
        ...

    def read(self, events: int, most_bytes: int) -> list[Chunk]:
        """The next chunks: at least one if there is any, and not many more events than that."""
        ...

    def settle(self, chunks: Sequence[Chunk], refusals: Sequence[Refusal] = ()) -> None:
        """These, the next ones, are done with; what the store refused is kept aside."""
        ...


class MemorySpool:
    """Events that nothing but this process's memory keeps, up to some bytes."""

    name = "memory"

    def __init__(self, most_bytes: int) -> None:
        self._chunks: deque[Chunk] = deque()
        self._turn = threading.Lock()
        self._most = most_bytes
        self._bytes = 0
        self.events = 0
        self.last = 0
        self.settled = 0

    @property
    def oldest(self) -> float | None:
        with self._turn:
            return self._chunks[0].at if self._chunks else None

    def append(self, chunks: Iterable[tuple[int, bytes]]) -> None:
        """Keep these (number of events, body), without a limit of its own: whoever adds asks ``full`` first."""
        with self._turn:
            for events, body in chunks:
                self.last += 1
                self._chunks.append(Chunk(self.last, events, time.time(), body))
                self._bytes += len(body)
                self.events += events

    @property
    def full(self) -> bool:
        return self._bytes >= self._most

    def read(self, events: int, most_bytes: int) -> list[Chunk]:
        with self._turn:
            return _enough(self._chunks, events, most_bytes)

    def settle(self, chunks: Sequence[Chunk], refusals: Sequence[Refusal] = ()) -> None:
        with self._turn:
            for _ in chunks:
                chunk = self._chunks.popleft()
                self._bytes -= len(chunk.body)
                self.events -= chunk.events
                self.settled = chunk.number

    def clear(self) -> int:
        """Forget everything; how many events that were."""
        with self._turn:
            events, self.events, self._bytes = self.events, 0, 0
            self._chunks.clear()
            self.settled = self.last
            return events


class SpoolFile:
    """One SQLite file, which this process holds the lock of. Two threads may share it: they take turns."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock: int | None = lock
        self._connection: sqlite3.Connection | None = None
        self._first_at: float | None = None
        self._sizes: deque[tuple[int, int]] = deque()
        self.bytes = 0
        self.events = 0
        self.last = 0
        self.settled = 0
        self.refused = 0
        # Whether the figures are known: a file that could not be read is not taken for an empty one.
        self._known = False

    @classmethod
    def create(cls, folder: Path, destination: str) -> Self:
        """A new file for this process. Raises SpoolError where that cannot be."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            while True:
                path = folder / f"{destination}-{os.getpid()}-{secrets.token_hex(4)}.spool"
                lock = _take_lock(path.with_suffix(".lock"), create=True)
                if lock is not None:
                    break
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError as error:
            raise SpoolError(f"no spool can be made in {folder}: {error.strerror or error}") from error
        spool = cls(path, lock)
        try:
            spool.open()
        except SpoolError:
            spool.delete()
            raise
        return spool

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def oldest(self) -> float | None:
        return self._first_at if self.events else None

    def open(self) -> None:
        """Read how much it holds. Raises CorruptError where it is no spool."""
        with self._at_work() as db:
            (version,) = db.execute("pragma user_version").fetchone()
            if version not in {0, _VERSION}:
                raise SpoolError(f"{self.path} is of another version of afterwrite, {version}")
            # Nothing is written into a file that is as it should be: its disk may be full.
            if version == 0:
                db.executescript(f"{_SCHEMA} pragma user_version = {_VERSION};")
            for pragma in _PRAGMAS:
                db.execute(pragma)
            rows = db.execute("select number, events, at, length(body) from chunk order by number").fetchall()
            self._sizes = deque((number, size) for number, _, _, size in rows)
            self.events = sum(events for _, events, _, _ in rows)
            self.bytes = sum(size for _, size in self._sizes)
            self.last = rows[-1][0] if rows else 0
            self.settled = rows[0][0] - 1 if rows else 0
            self._first_at = rows[0][2] if rows else None
            self.refused = db.execute("select count(*) from refused").fetchone()[0]
            self._known = True

    def append(self, chunks: Sequence[tuple[int, bytes]], *, sync: bool = False, dropped: Mapping[str, int]) -> None:
        """Commit these (number of events, body) together, flushed to the disk itself if ``sync``."""
        now = time.time()
        rows = [
            (self.last + number, events, now, zlib.crc32(body), body)
            for number, (events, body) in enumerate(chunks, start=1)
        ]
        with self._at_work() as db:
            if sync:
                db.execute("pragma synchronous = full")
            db.execute("begin immediate")
            db.executemany("insert into chunk values (?, ?, ?, ?, ?)", rows)
            if dropped:
                db.executemany("insert or replace into dropped values (?, ?)", list(dropped.items()))
            failpoint("spool.before_commit")
            db.execute("commit")
            failpoint("spool.after_commit")
            if sync:
                db.execute("pragma synchronous = normal")
            if not self.events:
                self._first_at = now
            for number, events, _, _, body in rows:
                self._sizes.append((number, len(body)))
                self.bytes += len(body)
                self.events += events
                self.last = number

    def read(self, events: int, most_bytes: int) -> list[Chunk]:
        found: list[Chunk] = []
        with self._at_work() as db:
            rows = db.execute(
                "select number, events, at, crc, body from chunk where number > ? order by number", (self.settled,)
            )
            held = size = 0
            for number, count, at, crc, body in rows:
                if found and (held + count > events or size + len(body) > most_bytes):
                    break
                if zlib.crc32(body) != crc:
                    raise CorruptError(f"{self.path} has a broken chunk")
                found.append(Chunk(number, count, at, body))
                held, size = held + count, size + len(body)
                if held >= events:
                    break
            rows.close()
            if found:
                self._first_at = found[0].at
        return found

    def settle(self, chunks: Sequence[Chunk], refusals: Sequence[Refusal] = ()) -> None:
        through = chunks[-1].number if chunks else self.settled
        # What was delivered is not delivered again by us, even if the disk is too full to note so.
        if through > self.settled:
            self.settled = through
            self.events -= sum(chunk.events for chunk in chunks)
            while self._sizes and self._sizes[0][0] <= through:
                self.bytes -= self._sizes.popleft()[1]
        with self._at_work() as db:
            db.execute("begin immediate")
            self._keep_refused(db, refusals)
            failpoint("spool.before_settle")
            db.execute("delete from chunk where number <= ?", (through,))
            db.execute("commit")
            failpoint("spool.after_settle")
            if not self.events and self.path.stat().st_size > _SHRINK_BYTES:
                db.execute("vacuum")

    def adopt(self, other: SpoolFile) -> dict[str, int]:
        """Take over what another one's process left beside its events; gives what it had dropped, by reason."""
        with other._at_work() as db:
            refused = db.execute("select id, at, reason, body from refused").fetchall()
        dropped = other.read_dropped()
        with self._at_work() as db:
            db.execute("begin immediate")
            db.executemany("insert or replace into refused values (?, ?, ?, ?)", refused)
            db.execute("commit")
            self.refused = db.execute("select count(*) from refused").fetchone()[0]
        return dropped

    def read_dropped(self) -> dict[str, int]:
        """What its process had dropped, by reason."""
        with self._at_work() as db:
            return dict(db.execute("select reason, events from dropped").fetchall())

    def read_refused(self) -> list[tuple[str, str, bytes]]:
        """What the store refused: id, reason and the event as JSON, oldest first."""
        with self._at_work() as db:
            return db.execute("select id, reason, body from refused order by at, id").fetchall()

    def is_there(self) -> bool:
        """Whether the folder still has it: somebody may have tidied up."""
        return self.path.exists()

    def close(self) -> None:
        """Let another process have it, or delete it where it holds nothing."""
        if self._lock is None:
            return
        if self._known and not self.events and not self.refused:
            self.delete()
            return
        with _turn():
            self._disconnect()
            self._unlock()

    def delete(self) -> None:
        """Delete it with its lock, which is held until there is nothing left to be taken for a spool."""
        with _turn():
            self._disconnect()
            for suffix in (".spool-wal", ".spool-shm", ".spool"):
                with contextlib.suppress(OSError):
                    self.path.with_suffix(suffix).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.with_suffix(".lock").unlink(missing_ok=True)
            self._unlock()

    def set_aside(self) -> None:
        """Rename it, so that nobody tries it again; people may look at it."""
        with _turn():
            self._disconnect()
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(OSError):
                    self.path.with_suffix(f".spool{suffix}").rename(self.path.with_suffix(f".corrupt{suffix}"))
            with contextlib.suppress(OSError):
                self.path.with_suffix(".lock").unlink(missing_ok=True)
            self._unlock()

    @contextmanager
    def _at_work(self) -> Generator[sqlite3.Connection]:
        with _turn():
            if self._lock is None:
                raise SpoolError(f"{self.path} is closed")
            try:
                db = self._connection
                if db is None:
                    db = self._connection = sqlite3.connect(
                        f"{self.path.absolute().as_uri()}?mode=rw",
                        uri=True,
                        timeout=_BUSY_SECONDS,
                        isolation_level=None,
                        check_same_thread=False,
                    )
                yield db
            except (sqlite3.Error, OSError) as error:
                self._roll_back()
                raise self._explain(error) from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("rollback")

    def _explain(self, error: Exception) -> SpoolError:
        code = getattr(error, "sqlite_errorcode", None)
        if isinstance(code, int) and code & 0xFF in _CORRUPT:
            return CorruptError(f"{self.path} is broken: {error}")
        return SpoolError(f"{self.path} cannot be used: {error}", lost=not self.is_there())

    def _keep_refused(self, db: sqlite3.Connection, refusals: Sequence[Refusal]) -> None:
        if not refusals:
            return
        now = time.time()
        db.executemany(
            "insert or replace into refused values (?, ?, ?, ?)",
            [(each.id, now, each.reason[:1000], each.body) for each in refusals],
        )
        db.execute(
            "delete from refused where id in (select id from refused order by at desc, id limit -1 offset ?)",
            (_MOST_REFUSED,),
        )
        self.refused = db.execute("select count(*) from refused").fetchone()[0]

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _unlock(self) -> None:
        if self._lock is not None:
            _locks.discard(self._lock)
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = None


def find_orphans(folder: Path, *destinations: str, most: int) -> list[SpoolFile]:
    """Take the files of these destinations whose processes are gone, at most so many; each is ours from here on."""
    taken: list[SpoolFile] = []
    try:
        paths = [path for each in destinations for path in sorted(folder.glob(f"{each}-*.lock"))]
    except OSError:
        return taken
    for path in paths:
        if len(taken) >= most:
            break
        lock = _take_lock(path, create=False)
        if lock is None:
            continue
        spool = SpoolFile(path.with_suffix(".spool"), lock)
        if not _is_ours(spool.path):
            spool.close()
        elif spool.is_there():
            taken.append(spool)
        else:
            spool.delete()
    return taken


def measure_others(folder: Path, own: SpoolFile | None) -> int:
    """How many bytes the other spools in the folder take on the disk; what is set aside for people does not count."""
    total = 0
    mine = own.path.stem if own else ""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            foreign = not mine or not entry.name.startswith(f"{mine}.")
            if foreign and ".corrupt" not in entry.name:
                with contextlib.suppress(OSError):
                    total += entry.stat().st_size
    return total


def _enough(chunks: Iterable[Chunk], events: int, most_bytes: int) -> list[Chunk]:
    found: list[Chunk] = []
    held = size = 0
    for chunk in chunks:
        if found and (held + chunk.events > events or size + len(chunk.body) > most_bytes):
            break
        found.append(chunk)
        held, size = held + chunk.events, size + len(chunk.body)
    return found


def _is_ours(path: Path) -> bool:
    """Whether it is by this user, or by the folder's: what somebody else puts there is not ours to open and deliver."""
    with contextlib.suppress(OSError):
        return path.lstat().st_uid in {os.geteuid(), path.parent.stat().st_uid}
    return True


def _take_lock(path: Path, *, create: bool) -> int | None:
    """The lock's descriptor, or None when somebody else holds it, or it was deleted while we asked."""
    if fcntl is None:
        raise OSError("this system has no flock")
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
    try:
        lock = os.open(path, flags, 0o600)
    except (FileNotFoundError, PermissionError):
        if create:
            raise
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between our opening and locking it, the one that held it may have finished and deleted it.
        if os.path.samestat(os.fstat(lock), os.stat(path)):
            _locks.add(lock)
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


_turns = threading.RLock()
# The descriptors of the locks that this process holds.
_locks: set[int] = set()


@contextmanager
def _turn() -> Generator[None]:
    with _turns:
        yield


def hold_for_fork() -> bool:
    """Before a fork: no thread of ours is inside SQLite from here on. False when that took too long."""
    return _turns.acquire(timeout=_TURN_SECONDS)


def release_after_fork(*, held: bool) -> None:
    """In the parent."""
    if held:
        _turns.release()


def renew_after_fork() -> None:
    """In the child: the threads that may have held the turn are not there, and the locks are the parent's.

    As long as somebody has their descriptors open, the parent's files could not be taken over.
    """
    global _turns  # noqa: PLW0603 - a lock that is held by nobody cannot be freed
    _turns = threading.RLock()
    for lock in _locks:
        with contextlib.suppress(OSError):
            os.close(lock)
    _locks.clear()


def keep_for_ever(value: object) -> None:
    """Never let Python close this: not even at its own end."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
