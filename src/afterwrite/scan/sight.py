"""What the role of a scan can see: which figures are not to be had, why, and what would help.

Verdicts need nothing but the catalog, which every role may read. Figures need statistics, and these have doors.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from afterwrite.errors import Finding, Severity
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


async def read_sight(db: Database) -> Sight:
    """What the session's role can see. Never refused."""
    return await db.one(Sight, statement("sight.read"))


def missing_figures(sight: Sight) -> tuple[Finding, ...]:
    """The figures that this role does not get from this server, as findings whose ``where`` is the figure."""
    return tuple(_missing(sight))


def _missing(sight: Sight) -> Iterator[Finding]:
    role, database = quoted(sight.role), quoted(sight.database)
    written = "rows written, by table"
    if sight.standby:
        why = "this is a standby, and what the primary writes is counted there alone"
        yield _finding("standby", written, why, "scan the primary")
    elif not sight.counts_rows:
        why = "the server does not count them (track_counts = off)"
        yield _finding("rows-uncounted", written, why, "ALTER SYSTEM SET track_counts = on; SELECT pg_reload_conf();")
    if not sight.times_functions:
        why = "the server does not measure it (track_functions = none)"
        remedy = f"ALTER DATABASE {database} SET track_functions = 'pl';"
        yield _finding("functions-untimed", "time in each trigger's function", why, remedy)
    statements = "time and WAL, by statement"
    if not sight.statements_loaded:
        why = "pg_stat_statements is not loaded"
        remedy = "add it to shared_preload_libraries, restart, then CREATE EXTENSION pg_stat_statements;"
        yield _finding("no-statement-statistics", statements, why, remedy)
    elif sight.statements_schema is None:
        why = f"pg_stat_statements is loaded, but there is no such extension in {sight.database}"
        yield _finding("no-statement-statistics", statements, why, "CREATE EXTENSION pg_stat_statements;")
    elif not sight.statements_readable:
        schema, view = quoted(sight.statements_schema), quoted(sight.statements_schema, "pg_stat_statements")
        why = f"{sight.role} may not read {view}"
        remedy = f"GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT ON {view} TO {role};"
        yield _finding("no-statement-statistics", statements, why, remedy)
    if not sight.reads_all_statistics:
        why = f"{sight.role} sees those of its own sessions only"
        what = "other roles' statements and lock waits"
        yield _finding("statistics-hidden", what, why, f"GRANT pg_read_all_stats TO {role};")


def _finding(rule: str, figure: str, why: str, remedy: str) -> Finding:
    return Finding(rule=rule, severity=Severity.INFO, where=figure, text=f"{figure}: {why}", remedy=remedy)
