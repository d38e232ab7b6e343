"""The figures of what triggers cost, where each comes from, and what a report shows of them.

::

    observe ──▶ Window   ─┐
    probe   ─┐            ├─▶ reckon ─▶ Costs ─▶ terminal, JSON, Markdown, HTML
    rehearse ┴▶ Measured ─┘

Times are in µs of server time, WAL in bytes. What is not known is None, never zero.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from afterwrite.errors import Finding
from afterwrite.scan.catalog import Event
from afterwrite.scan.verdicts import Verdict


class Origin(StrEnum):
    """Where a figure comes from. ``since-reset`` are the server's counters from its last reset until now; ``alike``
    means that no write was ever counted, so that each operation of each table is taken to happen equally often."""

    OBSERVE = "observe"
    PROBE = "probe"
    REHEARSE = "rehearse"
    SINCE_RESET = "since-reset"
    ALIKE = "alike"
    NONE = "none"


class Spread(msgspec.Struct, frozen=True):
    """Lower quartile, median and upper quartile of repeated measurements."""

    low: float
    mid: float
    high: float

    @classmethod
    def of(cls, found: Iterable[float]) -> Spread:
        """Of at least one value."""
        listed = sorted(found)
        if len(listed) == 1:
            return cls(listed[0], listed[0], listed[0])
        low, mid, high = statistics.quantiles(listed, n=4, method="inclusive")
        return cls(low, mid, high)


# What was measured ---------------------------------------------------------------------------------------------------


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """What one trigger costs for one row written so: ``us`` a call, with everything that the call sets off.

    ``calls`` a row as measured. ``wal`` and ``rows`` (written to any table) are a row's; ``shared_out`` when they are
    the trigger's share, by time, of what all triggers of the statement wrote together. ``statement`` triggers are
    called once a statement, however many rows it writes. ``apart``: the operation's usual statement did not set it off,
    so that it was measured with another one, and its cost comes on top of that of the statement.
    """

    trigger: str
    event: Event
    calls: float
    us: Spread
    wal: float | None = None
    rows: float | None = None
    shared_out: bool = False
    statement: bool = False
    apart: bool = False


class StatementCost(msgspec.Struct, frozen=True, kw_only=True):
    """One statement of one row: with all triggers, with none of them (``bare``), and with those that stay (``stays``).

    ``manner`` is how an UPDATE was made: ``changed``, or ``itself`` where no other value was accepted. ``stays``
    includes REPLICA IDENTITY FULL where moving the triggers needs it. ``rows`` are all rows written, its own included.
    """

    table: str
    event: Event
    manner: str = ""
    us: Spread
    bare_us: Spread | None = None
    stays_us: Spread | None = None
    wal: float | None = None
    bare_wal: float | None = None
    stays_wal: float | None = None
    rows: float | None = None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe or a rehearsal found. ``findings`` say what could not be measured, why, and what would help."""

    origin: Origin
    units: tuple[Unit, ...] = ()
    statements: tuple[StatementCost, ...] = ()
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0


# What was observed ---------------------------------------------------------------------------------------------------


class FunctionTime(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of a function and their time: in all, and without the functions and triggers that it set off."""

    calls: int = 0
    total_ms: float = 0.0
    self_ms: float = 0.0


class Writes(msgspec.Struct, frozen=True, kw_only=True):
    """Rows written to a table; ``hot`` of the updates stayed on their page without touching an index."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    hot: int = 0

    def of(self, event: Event) -> int:
        """Rows written by this operation; TRUNCATE has none."""
        return {Event.INSERT: self.inserted, Event.UPDATE: self.updated, Event.DELETE: self.deleted}.get(event, 0)

    @property
    def total(self) -> int:
        return self.inserted + self.updated + self.deleted


class Statements(msgspec.Struct, frozen=True, kw_only=True):
    """Statements that write, as pg_stat_statements counted them."""

    calls: int = 0
    ms: float = 0.0
    rows: int = 0
    wal: int = 0


class HotRow(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a table that sessions queued for. Sampled, so short waits are missed.

    ``seen`` waits in all samples, at most ``queue`` at once; ``waited_seconds`` of session time, estimated from both.
    ``triggers`` write it; ``certain`` when no statement of a waiting session named the table itself.
    """

    table: str
    seen: int
    queue: int
    waited_seconds: float
    triggers: tuple[str, ...] = ()
    certain: bool = False


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What the server counted in all in a while. ``statements`` is what the application sent to write.

    ``wal`` and its parts are of the whole cluster; ``interrupted``: ended early; ``samples``: looks for waits.
    """

    seconds: float
    interrupted: bool = False
    statements: Statements | None = None
    active_ms: float | None = None
    commits: int = 0
    wal: int | None = None
    wal_records: int | None = None
    wal_images: int | None = None
    client_writes: int | None = None
    client_extends: int | None = None
    samples: int = 0


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What the server counted between two readings. By oid: functions, and tables (leaves of partitioned ones).

    ``nested`` is what ran inside functions, by target, where that is tracked.
    """

    totals: Totals
    functions: Mapping[int, FunctionTime] = {}
    tables: Mapping[int, Writes] = {}
    nested: Mapping[str, Statements] | None = None
    hot: tuple[HotRow, ...] = ()
    findings: tuple[Finding, ...] = ()


# What is reported ----------------------------------------------------------------------------------------------------


class TriggerCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one trigger costs. Shares are of all writes that the report knows of, between 0 and 1.

    ``calls`` in the time that ``calls_from`` names; ``at_most`` when a WHEN, UPDATE OF or a statement trigger may make
    them fewer. ``us`` a call, ``wal`` and ``rows`` a row. ``split`` says how a figure that several triggers share was
    divided; it is an estimate then.
    """

    trigger: str
    schema: str
    table: str
    name: str
    verdict: Verdict
    calls: float | None = None
    calls_from: Origin = Origin.NONE
    at_most: bool = False
    us: float | None = None
    us_low: float | None = None
    us_high: float | None = None
    us_from: Origin = Origin.NONE
    time_share: float | None = None
    table_time_share: float | None = None
    wal: float | None = None
    wal_from: Origin = Origin.NONE
    wal_share: float | None = None
    rows: float | None = None
    rows_from: Origin = Origin.NONE
    row_share: float | None = None
    split: str = ""


class TableCost(msgspec.Struct, frozen=True, kw_only=True):
    """What writing a table costs, as shares between 0 and 1.

    ``time_share`` and ``wal_share`` are the table's part of all; ``triggers_share`` the part of all write time that its
    triggers take; ``triggers_of_time`` and ``triggers_of_wal`` their part of this table's own.
    """

    table: str
    inserted: float
    updated: float
    deleted: float
    time_share: float | None = None
    triggers_share: float | None = None
    triggers_of_time: float | None = None
    wal_share: float | None = None
    triggers_of_wal: float | None = None


class Saving(msgspec.Struct, frozen=True, kw_only=True):
    """What the write path would save without the triggers of these verdicts, as ranges of shares (0 to 1).

    ``how`` says whether it was measured with them off, or added up from their own figures.
    """

    verdicts: tuple[Verdict, ...]
    triggers: int
    time_low: float | None = None
    time_high: float | None = None
    wal_low: float | None = None
    wal_high: float | None = None
    rows: float | None = None
    how: str = ""


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """The answer. ``origins`` measured it; ``weights`` says whose mix of writes it is weighed by, over ``seconds``.

    ``write_time`` says what the shares of time are shares of; ``missing`` what is not known, why, and what would help.
    """

    origins: tuple[Origin, ...] = (Origin.NONE,)
    weights: Origin = Origin.NONE
    seconds: float | None = None
    since: str | None = None
    interrupted: bool = False
    write_time: str = ""
    write_us: float | None = None
    write_wal: float | None = None
    triggers: tuple[TriggerCost, ...] = ()
    tables: tuple[TableCost, ...] = ()
    savings: tuple[Saving, ...] = ()
    hot: tuple[HotRow, ...] = ()
    observed: Totals | None = None
    measured: tuple[Measured, ...] = ()
    missing: tuple[Finding, ...] = ()
