"""What the role of a scan can see: which figures are not to be had, why, and what would help.

Verdicts need nothing but the catalog, which every role may read. Figures need statistics, and these have doors.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from afterwrite.postgres import Database, quoted, statement


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """What one role sees of one server. ``statements_*`` are about pg_stat_statements."""

    role: str
    database: str
    standby: bool = False
    counts_rows: bool = True
    times_functions: bool = True
    reads_all_statistics: bool = True
    statements_loaded: bool = True
    statements_schema: str | None = None
    statements_readable: bool = True


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that is not to be had: what it is, why, and the statement or setting that would give it."""

    figure: str
    why: str
    remedy: str


async def read_sight(db: Database) -> Sight:
    """What the session's role can see. Never refused."""
    return await db.one(Sight, statement("sight.read"))


def missing_figures(sight: Sight) -> tuple[Missing, ...]:
    """The figures that this role does not get from this server."""
    return tuple(_missing(sight))


def _missing(sight: Sight) -> Iterator[Missing]:
    role, database = quoted(sight.role), quoted(sight.database)
    if sight.standby:
        yield Missing(
            figure="rows written, by table",
            why="this is a standby: what the primary writes is counted there alone",
            remedy="scan the primary",
        )
    elif not sight.counts_rows:
        yield Missing(
            figure="rows written, by table",
            why="the server does not count them (track_counts = off)",
            remedy="ALTER SYSTEM SET track_counts = on; SELECT pg_reload_conf();",
        )
    if not sight.times_functions:
        yield Missing(
            figure="time in each trigger's function",
            why="the server does not measure it (track_functions = none)",
            remedy=f"ALTER DATABASE {database} SET track_functions = 'pl';",
        )
    statements = "time and WAL, by statement"
    if not sight.statements_loaded:
        yield Missing(
            figure=statements,
            why="pg_stat_statements is not loaded",
            remedy="add it to shared_preload_libraries, restart, CREATE EXTENSION pg_stat_statements;",
        )
    elif sight.statements_schema is None:
        yield Missing(
            figure=statements,
            why=f"pg_stat_statements is loaded, and not created in {sight.database}",
            remedy="CREATE EXTENSION pg_stat_statements;",
        )
    elif not sight.statements_readable:
        schema = quoted(sight.statements_schema)
        yield Missing(
            figure=statements,
            why=f"{sight.role} may not read {sight.statements_schema}.pg_stat_statements",
            remedy=f"GRANT USAGE ON SCHEMA {schema} TO {role}; "
            f"GRANT SELECT ON {quoted(sight.statements_schema, 'pg_stat_statements')} TO {role};",
        )
    if not sight.reads_all_statistics:
        yield Missing(
            figure="other roles' statements and lock waits",
            why=f"{sight.role} sees its own sessions only",
            remedy=f"GRANT pg_read_all_stats TO {role};",
        )
