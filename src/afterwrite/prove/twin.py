"""Two databases' legacy logs compared as multisets: ours, and a twin's whose triggers stayed on under the same work.

::

    ours ─ rows by key ─┐
                        ├─▶ merge ─▶ matched, alike, missing (only the twin has it), extra (only we), value (same key)
    twin ─ rows by key ─┘

Both are read once, sorted by their servers, and held one key at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing

import msgspec
from psycopg import sql

from afterwrite.postgres import Database

_EXAMPLES = 5


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A legacy log and how it is read: ``query`` gives (key, row, alike), all jsonb, and is run in both databases.

    What both servers make themselves (ids, clocks) the query leaves out; ``own`` says so to people. ``alike`` is the
    row without what a body looked up elsewhere, where that may have changed between the write and the body's run.
    """

    name: str
    query: bytes
    own: tuple[str, ...] = ()


class Unlike(msgspec.Struct, frozen=True, kw_only=True):
    """A row that one of them has and the other has not, or has otherwise; as JSON text."""

    log: str
    key: str
    ours: str | None
    twin: str | None


class LogComparison(msgspec.Struct, frozen=True, kw_only=True):
    """What the comparison of one log came to, in rows; ``examples`` are some of those that differ.

    ``alike`` are those that are the same but for what was looked up at another moment.
    """

    log: str
    matched: int = 0
    alike: int = 0
    missing: int = 0
    extra: int = 0
    value: int = 0
    own: tuple[str, ...] = ()
    examples: tuple[Unlike, ...] = ()


class TwinComparison(msgspec.Struct, frozen=True):
    """The comparison of all logs."""

    logs: tuple[LogComparison, ...]

    @property
    def matched(self) -> int:
        """Rows that are the same in both."""
        return sum(each.matched for each in self.logs)

    @property
    def alike(self) -> int:
        """Rows that are the same but for what a body looked up at another moment."""
        return sum(each.alike for each in self.logs)

    @property
    def missing(self) -> int:
        """Rows that only the twin has."""
        return sum(each.missing for each in self.logs)

    @property
    def extra(self) -> int:
        """Rows that only we have."""
        return sum(each.extra for each in self.logs)

    @property
    def value(self) -> int:
        """Rows of one key that hold something else here and there."""
        return sum(each.value for each in self.logs)

    @property
    def same(self) -> bool:
        """Whether the logs hold the same rows."""
        return not (self.missing or self.extra or self.value)


def log_query(schema: str, table: str, *, key: Sequence[str], own: Collection[str] = ()) -> LogQuery:
    """A log read whole but for the columns that are each server's ``own``; rows of one ``key`` speak of one thing."""
    composed = sql.SQL(
        "select jsonb_build_array({key}) as key, to_jsonb(l) - array[{own}]::text[] as row, null::jsonb as alike"
        " from {log} l"
    ).format(
        key=sql.SQL(", ").join(sql.Identifier("l", column) for column in key),
        own=sql.SQL(", ").join(map(sql.Literal, sorted(own))),
        log=sql.Identifier(schema, table),
    )
    return LogQuery(name=f"{schema}.{table}", query=composed.as_bytes(), own=tuple(sorted(own)))


async def compare_logs(ours: Database, twin: Database, logs: Sequence[LogQuery]) -> TwinComparison:
    """Compare the logs of two databases, which must be two connections. Nothing may write to them meanwhile."""
    return TwinComparison(tuple([await _compare(ours, twin, log) for log in logs]))


Rows = list[tuple[bytes, bytes]]


async def _compare(ours: Database, twin: Database, log: LogQuery) -> LogComparison:
    counts: Counter[str] = Counter()
    examples: list[Unlike] = []
    async with aclosing(_by_key(ours, log)) as left, aclosing(_by_key(twin, log)) as right:
        mine, other = await anext(left, None), await anext(right, None)
        while mine is not None or other is not None:
            key = min(each[0] for each in (mine, other) if each is not None)
            here: Rows = []
            there: Rows = []
            if mine is not None and mine[0] == key:
                here, mine = mine[1], await anext(left, None)
            if other is not None and other[0] == key:
                there, other = other[1], await anext(right, None)
            for kind, place in (("matched", 0), ("alike", 1)):
                here, there, count = _pair(here, there, place)
                counts[kind] += count
            unlike = min(len(here), len(there))
            counts["value"] += unlike
            counts["extra"] += len(here) - unlike
            counts["missing"] += len(there) - unlike
            for place in range(min(max(len(here), len(there)), _EXAMPLES - len(examples))):
                examples.append(
                    Unlike(
                        log=log.name,
                        key=key.decode(),
                        ours=here[place][0].decode() if place < len(here) else None,
                        twin=there[place][0].decode() if place < len(there) else None,
                    )
                )
    return LogComparison(log=log.name, own=log.own, examples=tuple(examples), **counts)


def _pair(here: Rows, there: Rows, place: int) -> tuple[Rows, Rows, int]:
    """Take out what is on both sides, as often as it is on both; what is left here and there, and how many pairs."""
    both = Counter(row[place] for row in here) & Counter(row[place] for row in there)
    if place == 1:
        both.pop(_NO_ALIKE, None)
    if not both:
        return here, there, 0
    return _less(here, both, place), _less(there, both, place), both.total()


def _less(rows: Rows, taken: Counter[bytes], place: int) -> Rows:
    left = Counter(taken)
    kept: Rows = []
    for row in rows:
        if left[row[place]] > 0:
            left[row[place]] -= 1
        else:
            kept.append(row)
    return kept


_NO_ALIKE = b"\\N"


async def _by_key(database: Database, log: LogQuery) -> AsyncGenerator[tuple[bytes, Rows]]:
    """The rows of each key, keys in order."""
    query = (
        b"copy (select q.key::text, q.row::text, q.alike::text from (%s) q"
        b' order by q.key::text collate "C", q.row::text collate "C") to stdout'
    ) % log.query.rstrip().rstrip(b";")
    key: bytes | None = None
    rows: Rows = []
    async with aclosing(database.copy_out(query)) as lines:
        async for line in lines:
            # JSON of the server's holds neither tabs nor line ends; of what COPY escapes, only backslashes are left.
            name, row, alike = line.rstrip(b"\n").split(b"\t")
            if name != key:
                if key is not None:
                    yield key, rows
                key, rows = name, []
            rows.append((row.replace(b"\\\\", b"\\"), alike))
    if key is not None:
        yield key, rows
