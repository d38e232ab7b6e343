"""Comparing a legacy log with what was imported of it: both sides are read again, chunk by chunk.

::

    chunk as it was noted ─┬─ rows of the log, read again and converted ── count, digest
                           └─ their activities, as the store gives them ── count, digest

Rows that were written behind the import's back (their transactions were slow, or their keys are random) are found here,
and stored where that is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import date, datetime

import msgspec

from afterwrite.errors import Refused
from afterwrite.postgres import Database, statement
from afterwrite.record import Activity, Batch
from afterwrite.store.lines import CopyLines, Sealing, storable
from afterwrite.store.writer import PostgresSink
from afterwrite.transfer.legacy import LogPlan, Policy, Sorting, digest, make_days
from afterwrite.transfer.rows import Converter, LegacyRow, Reading

_CHUNKS_AT_ONCE = 100
_SHOWN_IDS = 5


class ChunkRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of afterwrite.legacy_chunk."""

    number: int
    after: list[str] | None
    through: list[str]
    rows: int
    stored: int
    left_out: dict[str, int]
    digest: bytes


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk of which the sides do not agree any more; the ``ids`` are of the first few activities that it is about.

    ``late`` rows came into the log after the chunk was read, ``gone`` ones are not in it any more; ``changed`` were
    altered there since, ``missing`` are no longer in the store, ``other`` are there with other contents.
    """

    number: int
    through: tuple[str, ...]
    late: int = 0
    gone: int = 0
    changed: bool = False
    missing: int = 0
    expired: int = 0
    other: bool = False
    repaired: int = 0
    ids: tuple[str, ...] = ()

    @property
    def grave(self) -> bool:
        """Whether anything is left of it: what retention took is gone rightly, and late rows may be stored."""
        return bool(self.late > self.repaired or self.gone or self.changed or self.missing or self.other)


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison of a log found."""

    relation: str
    chunks: int
    rows: int
    stored: int
    differences: tuple[Difference, ...]

    @property
    def agrees(self) -> bool:
        return not any(each.grave for each in self.differences)


async def verify_log(
    log: Database,
    store: Database,
    plan: LogPlan,
    *,
    policy: Policy,
    sink: PostgresSink | None = None,
    on_chunk: Callable[[int, int], None] = lambda chunks, rows: None,
) -> Verified:
    """Read both sides of everything that was imported of a log, and compare; with a ``sink`` late rows are stored.

    Raises Refused where nothing of the log was imported.
    """
    if plan.known is None:
        raise Refused(
            f"nothing of {plan.origin.relation} was imported yet",
            remedy=f"run `afterwrite import legacy {plan.origin.relation} --apply`",
        )
    verification = _Verification(log, store, plan, policy, sink)
    chunks = rows = stored = 0
    found: list[Difference] = []
    async for chunk in _read_chunks(store, plan.known.id):
        difference = await verification.compare(chunk)
        chunks, rows, stored = chunks + 1, rows + chunk.rows, stored + chunk.stored
        if difference is not None:
            found.append(difference)
        on_chunk(chunks, rows)
    return Verified(relation=plan.origin.relation, chunks=chunks, rows=rows, stored=stored, differences=tuple(found))


async def _read_chunks(store: Database, log: int) -> AsyncGenerator[ChunkRow]:
    after = 0
    while page := await store.rows(
        ChunkRow, statement("transfer.read_chunks"), log=log, after=after, limit=_CHUNKS_AT_ONCE
    ):
        for chunk in page:
            yield chunk
        after = page[-1].number


class _Verification:
    def __init__(
        self, log: Database, store: Database, plan: LogPlan, policy: Policy, sink: PostgresSink | None
    ) -> None:
        self._log, self._store, self._plan, self._policy, self._sink = log, store, plan, policy, sink
        self._reading = Reading(plan.shape, plan.mapping, plan.time_type)
        self._converter = Converter(plan.origin, plan.mapping)
        self._sorting = Sorting(store, plan)
        self._days: set[date] = set()

    async def compare(self, chunk: ChunkRow) -> Difference | None:
        rows = await self._reading.read(self._log, after=chunk.after, through=chunk.through)
        activities = [activity for row in rows if (activity := self._converter.to_activity(row)) is not None]
        present = await self._present(activities)
        here = [activity for activity in activities if activity.id in present]
        absent = len(rows) - len(here)
        late = max(0, absent - (chunk.rows - chunk.stored))
        gone = max(0, chunk.rows - len(rows))
        missing = max(0, chunk.stored - len(here) - gone) if len(rows) <= chunk.rows else 0
        if missing:
            late = max(0, late - missing)
        if len(here) == chunk.stored and digest(here) == chunk.digest and not late and not gone:
            return await self._only_store(chunk, here)
        if late and self._sink is not None:
            return await self._repair(chunk, rows, here, late)
        expired = await self._expired([each for each in activities if each.id not in present]) if missing else 0
        changed = len(here) == chunk.stored and digest(here) != chunk.digest
        return Difference(
            number=chunk.number,
            through=tuple(chunk.through),
            late=late,
            gone=gone,
            changed=changed,
            missing=max(0, missing - expired),
            expired=expired,
            other=bool(await self._others(here)),
            ids=tuple(each.id for each in activities if each.id not in present)[:_SHOWN_IDS],
        )

    async def _only_store(self, chunk: ChunkRow, here: Sequence[Activity]) -> Difference | None:
        """The log is as it was read: is the store as it was written?"""
        others = await self._others(here)
        if not others:
            return None
        return Difference(number=chunk.number, through=tuple(chunk.through), other=True, ids=tuple(others[:_SHOWN_IDS]))

    async def _present(self, activities: Sequence[Activity]) -> set[str]:
        if not activities:
            return set()
        return set(
            await self._store.values(
                statement("transfer.read_present"),
                ids=[activity.id for activity in activities],
                moments=[activity.occurred_at for activity in activities],
            )
        )

    async def _others(self, activities: Sequence[Activity]) -> list[str]:
        """Those of which the store gives back something else than the log's row would be today."""
        if not activities:
            return []
        sealing = Sealing()
        lines: dict[str, bytes] = {}
        async with self._store.transaction():
            await self._store.run(statement("store.set_copy_form"))
            async for line in self._store.copy_out(
                statement("transfer.copy_present"),
                ids=[activity.id for activity in activities],
                moments=[activity.occurred_at for activity in activities],
            ):
                sealing.add(line)
                lines[line.partition(b"\t")[0].decode()] = line
        if sealing.seal().digest == digest(activities):
            return []
        return [each.id for each in activities if lines.get(each.id) not in _lines_of(each)]

    async def _expired(self, activities: Sequence[Activity]) -> int:
        """How many of these are of days that retention has taken."""
        until: date | None = await self._store.value(statement("maintain.read_expired_until"))
        return sum(_day(activity.occurred_at) <= until for activity in activities) if until is not None else 0

    async def _repair(
        self, chunk: ChunkRow, rows: Sequence[LegacyRow], here: Sequence[Activity], late: int
    ) -> Difference:
        """Store what came late, and note the chunk as it is now; what was left out of it stays out."""
        wanted, left_out = await self._sorting.sort(rows)
        present = {activity.id for activity in here}
        new = [activity for activity in wanted if activity.id not in present]
        stored = [*here, *new]
        told = Counter(left_out)
        assert self._sink is not None

        async def beside(db: Database, _: int | None) -> None:
            await db.run(
                statement("transfer.amend_chunk"),
                log=self._plan.known.id if self._plan.known else 0,
                number=chunk.number,
                rows=len(rows),
                stored=len(stored),
                left_out=msgspec.json.encode(dict(told)).decode(),
                digest=digest(stored),
            )

        await make_days(self._store, new, self._days, self._policy)
        batch = Batch(source=self._plan.origin.stored_as, activities=new, transactions=0)
        await self._sink.write(batch, beside=beside)
        return Difference(
            number=chunk.number,
            through=tuple(chunk.through),
            late=late,
            repaired=late,
            ids=tuple(activity.id for activity in new[:_SHOWN_IDS]),
        )


def _lines_of(activity: Activity) -> tuple[bytes, bytes]:
    """The line that it is in the store; and the other, where a text of it was too long for an index."""
    short = storable(activity, shorten=True)
    return b"".join(CopyLines([activity], 0, doubting=False)), b"".join(CopyLines([short], 0, doubting=False))


def _day(moment: datetime) -> date:
    return moment.date()
