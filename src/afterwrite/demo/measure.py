"""What a write costs: the server's own figures, read before and after a stretch of the workload.

Server time and WAL come from pg_stat_statements for the application's role alone: they hold everything that stays on
the write path (triggers, stamps, replica identity) and nothing of ours that runs beside it. The bill of the whole
cluster, capture and deferral included, is the CPU time of the postmaster and all its children, from /proc where there
is one.
"""

from __future__ import annotations

import msgspec

from afterwrite.postgres import Database, statement
from afterwrite.postgres.cpu import cluster_cpu_seconds


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Counters at one moment. Times in seconds, WAL in bytes; ``writes`` are rows written by the application's DML."""

    statements: int
    writes: int
    server_seconds: float
    wal_bytes: int
    cluster_wal_bytes: int
    cluster_cpu_seconds: float | None = None


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one written row cost over a window."""

    writes: int
    server_us: float
    wal_bytes: float
    cluster_wal_bytes: float
    cluster_cpu_us: float | None


async def read_costs(database: Database, role: str, postmaster: int | None) -> Reading:
    """The counters of now. Needs pg_stat_statements, and to be allowed to read others' statements."""
    reading = await database.one(Reading, statement("demo.read_costs"), role=role)
    return msgspec.structs.replace(reading, cluster_cpu_seconds=cluster_cpu_seconds(postmaster))


def cost_between(first: Reading, last: Reading) -> Cost:
    """The cost of a write between two readings."""
    writes = max(last.writes - first.writes, 1)
    cpu = (
        None
        if first.cluster_cpu_seconds is None or last.cluster_cpu_seconds is None
        else (last.cluster_cpu_seconds - first.cluster_cpu_seconds) * 1e6 / writes
    )
    return Cost(
        writes=last.writes - first.writes,
        server_us=(last.server_seconds - first.server_seconds) * 1e6 / writes,
        wal_bytes=(last.wal_bytes - first.wal_bytes) / writes,
        cluster_wal_bytes=(last.cluster_wal_bytes - first.cluster_wal_bytes) / writes,
        cluster_cpu_us=cpu,
    )
