"""How the database fares: the server's own counters, noted now and then, and what they were doing before and since.

::

    worker, run ──take_pulse──▶ afterwrite.pulse ──▶ before: the hour until the phase was silenced ─┐
                                                └──▶ since:  the last hour after it                 ├─▶ LoadReading
                                                                                                    ┘
Write latency is the mean time of a writing statement (pg_stat_statements), or of a transaction (pg_stat_database) where
that is not to be had. CPU is the cluster's (/proc) where the server runs on this machine, else active session time.

The server rolls back each transaction that it decodes for a slot, and counts them all at once when the reader ends. So
the rollbacks of a stretch in which a reader ended are not known to be the application's, and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import msgspec

from afterwrite.errors import AfterwriteError
from afterwrite.postgres import Database, quoted, statement
from afterwrite.postgres.cpu import cluster_cpu_seconds

_WINDOW = timedelta(hours=1)
_APART_SECONDS = 2.0


class Pulse(msgspec.Struct, frozen=True, kw_only=True):
    """The counters at one moment; None is what cannot be read here. Times in ms, CPU in seconds.

    ``decoders`` are the slots with who reads them, or how much was read of them.
    """

    at: datetime
    commits: int
    rollbacks: int
    deadlocks: int
    failed_sessions: int
    active_ms: float
    statements: int | None = None
    statement_ms: float | None = None
    cpu_seconds: float | None = None
    decoders: tuple[str, ...] | None = None


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What happened between two pulses. ``write_us`` is a writing statement's (``writes`` of them) mean time;
    ``cpu_us`` a transaction's share of the cluster's CPU; None is what could not be measured.

    ``rollbacks`` are known to be sessions' own for ``told_apart`` of the transactions.
    """

    seconds: float
    transactions: int
    told_apart: int
    rollbacks: int
    deadlocks: int
    failed_sessions: int
    active_us: float | None
    writes: int | None = None
    write_us: float | None = None
    cpu_us: float | None = None

    def among(self, field: str) -> int:
        """Among how many transactions something was counted."""
        return self.told_apart if field == "rollbacks" else self.transactions

    def per_thousand(self, field: str) -> float:
        """How many of something there were in a thousand transactions."""
        return 1_000.0 * getattr(self, field) / max(1, self.among(field))


class LoadReading(msgspec.Struct, frozen=True, kw_only=True):
    """Before a phase was silenced (or until now, where it is not) and since; None where nothing was noted."""

    before: Load | None
    since: Load | None
    silenced: bool


class _Counters(msgspec.Struct, frozen=True, kw_only=True):
    at: datetime
    commits: int
    rollbacks: int
    deadlocks: int
    failed_sessions: int
    active_ms: float
    backend: int
    decoders: tuple[str, ...]


class _Extension(msgspec.Struct, frozen=True, kw_only=True):
    schema: str
    reads_all: bool


class _Statements(msgspec.Struct, frozen=True, kw_only=True):
    statements: int
    statement_ms: float


async def take_pulse(db: Database) -> Pulse:
    """The counters of now. Reads only."""
    found = await db.one(_Counters, statement("migrate.read_counters"))
    writing = await _read_statements(db)
    return Pulse(
        at=found.at,
        commits=found.commits,
        rollbacks=found.rollbacks,
        deadlocks=found.deadlocks,
        failed_sessions=found.failed_sessions,
        active_ms=found.active_ms,
        statements=writing.statements if writing else None,
        statement_ms=writing.statement_ms if writing else None,
        cpu_seconds=cluster_cpu_seconds(_postmaster_here(db, found.backend)),
        decoders=found.decoders,
    )


async def _read_statements(db: Database) -> _Statements | None:
    """What pg_stat_statements counted of writing statements; None where it is not there, or does not show us all."""
    try:
        where = await db.maybe(_Extension, statement("migrate.find_statement_statistics"))
        if where is None or not where.reads_all:
            return None
        # The extension may be in any schema; a named statement cannot carry an identifier as a parameter.
        query = statement("migrate.read_write_statements").replace(b'"{schema}"', quoted(where.schema).encode())
        return await db.one(_Statements, query)
    except AfterwriteError:
        return None  # installed, and not preloaded


def _postmaster_here(db: Database, backend: int) -> int | None:
    """The postmaster's process id, where the server is on this machine and its processes can be seen."""
    if not (db.connection.info.host or "").startswith("/"):
        return None
    try:
        if "postgres" not in Path(f"/proc/{backend}/comm").read_text(encoding="utf-8"):
            return None
        fields = Path(f"/proc/{backend}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1])


async def note_pulse(db: Database, *, anyway: bool = False) -> None:
    """Note the counters of now, unless (but ``anyway``) somebody did so within two seconds; forgets what nothing is
    compared with."""
    if not anyway and await db.value(statement("migrate.is_pulse_fresh"), seconds=_APART_SECONDS):
        return
    taken = msgspec.structs.asdict(await take_pulse(db))
    await db.run(statement("migrate.write_pulse"), **taken | {"decoders": list(taken["decoders"])})
    await db.run(statement("migrate.forget_pulses"))


async def read_load(db: Database, *, silenced_at: datetime | None, steady_since: datetime | None) -> LoadReading:
    """How the database fared before a phase was silenced, and since.

    ``steady_since`` is when something else was last changed (another phase silenced or restored): what was before that
    is nothing to compare with.
    """
    now = await take_pulse(db)
    first = (silenced_at or now.at) - _WINDOW
    if steady_since is not None:
        first = max(first, steady_since)
    before = await db.rows(Pulse, statement("migrate.read_pulses"), since=first, until=silenced_at or now.at)
    if silenced_at is None:
        return LoadReading(before=between([*before, now]), since=None, silenced=False)
    later = max(silenced_at, now.at - _WINDOW)
    since = await db.rows(Pulse, statement("migrate.read_pulses"), since=later, until=now.at)
    return LoadReading(before=between(before), since=between([*since, now]), silenced=True)


def between(pulses: Sequence[Pulse]) -> Load | None:
    """What the counters did from the first to the last of these; what was before a reset of them is left out."""
    steady = _since_reset(pulses)
    if len(steady) < 2:
        return None
    first, last = steady[0], steady[-1]
    alone = [(earlier, later) for earlier, later in pairwise(steady) if not _ended_decoding(earlier, later)]
    rollbacks = max(0, sum(later.rollbacks - earlier.rollbacks for earlier, later in alone))
    told_apart = rollbacks + sum(later.commits - earlier.commits for earlier, later in alone)
    transactions = last.commits - first.commits + rollbacks
    told = [each for each in steady if each.statements is not None and each.statement_ms is not None]
    writes = write_us = None
    if len(told) >= 2:
        writes = (told[-1].statements or 0) - (told[0].statements or 0)
        spent = (told[-1].statement_ms or 0.0) - (told[0].statement_ms or 0.0)
        write_us = 1_000.0 * spent / writes if writes else None
    seen = [each for each in steady if each.cpu_seconds is not None]
    cpu_us = None
    if len(seen) >= 2:
        done = transactions if len(seen) == len(steady) else seen[-1].commits - seen[0].commits
        cpu_us = 1e6 * ((seen[-1].cpu_seconds or 0.0) - (seen[0].cpu_seconds or 0.0)) / done if done else None
    return Load(
        seconds=(last.at - first.at).total_seconds(),
        transactions=transactions,
        told_apart=told_apart,
        rollbacks=rollbacks,
        deadlocks=last.deadlocks - first.deadlocks,
        failed_sessions=last.failed_sessions - first.failed_sessions,
        active_us=1_000.0 * (last.active_ms - first.active_ms) / transactions if transactions else None,
        writes=writes,
        write_us=write_us,
        cpu_us=cpu_us,
    )


def _ended_decoding(earlier: Pulse, later: Pulse) -> bool:
    """Whether a reader of a slot may have ended in between: then its transactions are among the rollbacks."""
    if earlier.decoders is None or later.decoders is None:
        return False
    return not set(earlier.decoders) <= set(later.decoders)


# Not the rollbacks, which a reset takes along with the commits: those of a rehearsal are taken out of them at once, and
# the server adds them a moment later.
_COUNTERS = (
    "commits",
    "deadlocks",
    "failed_sessions",
    "active_ms",
    "statements",
    "statement_ms",
    "cpu_seconds",
)


def _since_reset(pulses: Sequence[Pulse]) -> list[Pulse]:
    """The newest of these between which no counter went back."""
    steady: list[Pulse] = []
    for pulse in reversed(pulses):
        if steady and any(_went_back(getattr(pulse, name), getattr(steady[-1], name)) for name in _COUNTERS):
            break
        steady.append(pulse)
    return steady[::-1]


def _went_back(earlier: float | None, later: float | None) -> bool:
    return earlier is not None and later is not None and later < earlier
