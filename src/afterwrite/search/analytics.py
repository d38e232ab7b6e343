"""Reports over what happened: counted ahead by the hour (store/rollup.py), so that months are answered in milliseconds.

::

    report(name, after, before) ──▶ whole hours ──▶ materialized view │ rollup tables │ the activity of the open hour
                                                    all tenants        since then, or    (names are counted when
                                                                       one tenant's       an hour is over)

A tenant's report reads tables alone, which row-level security guards; a materialized view knows no policies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import assert_never

import msgspec

from afterwrite.errors import UsageError
from afterwrite.postgres import Database, statement

_HOUR, _DAY, _WEEK = timedelta(hours=1), timedelta(days=1), timedelta(days=7)
_MOST_BUCKETS = 3_000
_MOST_ROWS = 1_000
# So much of hours whose names are not counted yet is read from the activity itself; beyond it they are left out.
_MOST_LIVE = 300_000
# What is unusual: known on so many of the 28 days before, and active at that hour of the day, or at the one before or
# after it, on at most so many of them.
_PAST_DAYS, _KNOWN_DAYS, _ALMOST_NEVER = 28, 7, 1
# A whole category wakes rarely for one activity; an actor does.
_CATEGORY_FEW = 5


class ReportName(StrEnum):
    """The reports that there are."""

    ACTIVITY = "activity"
    CATEGORIES = "categories"
    ACTIONS = "actions"
    ENTITY_TYPES = "entity-types"
    ENTITIES = "entities"
    ACTORS = "actors"
    OUTCOMES = "outcomes"
    FAILED_LOGINS = "failed-logins"
    WEEK = "week"
    UNUSUAL_HOURS = "unusual-hours"


class Bucket(StrEnum):
    HOUR = "hour"
    DAY = "day"


Cell = str | int | float | datetime | None


class AsOf(msgspec.Struct, frozen=True, kw_only=True):
    """What a report rests on: batches up to ``position`` are counted, as of ``at``; ``behind_batches`` more wait."""

    position: int
    at: datetime
    behind_batches: int
    refreshed_at: datetime | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A report as a table: ``columns`` name the cells of each of the ``rows``, from ``after`` up to ``before``.

    ``at_most_more`` is how many more activities a name may have had than its row says: 0 where all names were kept.
    ``notes`` say in words what a reader has to know.
    """

    name: ReportName
    after: datetime
    before: datetime
    bucket: Bucket
    tenant: str | None
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    as_of: AsOf
    at_most_more: int = 0
    notes: tuple[str, ...] = ()

    def records(self) -> list[dict[str, Cell]]:
        """The rows by column name."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class Stretch(msgspec.Struct, frozen=True):
    """Whole hours from ``after`` up to ``before``, which is not part of it."""

    after: datetime
    before: datetime

    @property
    def last_moment(self) -> datetime:
        return self.before - timedelta(microseconds=1)

    def shifted(self, by: timedelta) -> Stretch:
        return Stretch(self.after + by, self.before + by)

    def whole_days(self, until: datetime | None = None) -> tuple[date, date]:
        """The first of the whole days (UTC) in it and the day after the last; ``until`` ends them earlier."""
        first = -(-(self.after - _EPOCH) // _DAY)
        last = (min(self.before, until) if until else self.before) - _EPOCH
        return _EPOCH_DAY + first * _DAY, _EPOCH_DAY + max(first, last // _DAY) * _DAY


_EPOCH = datetime(1, 1, 1, tzinfo=UTC)
_EPOCH_DAY = _EPOCH.date()


def stretch_of(name: ReportName, after: datetime | None, before: datetime | None, now: datetime) -> Stretch:
    """The hours that a report covers: what was asked for, made whole, or what is usual for it.

    Raises UsageError for a time without zone, an end before its beginning, and more than a week to compare.
    """
    for word, moment in (("after", after), ("before", before)):
        if moment is not None and moment.tzinfo is None:
            raise UsageError(
                f"{word} has no time zone: {moment}", remedy="write it with one: 2026-11-01T08:00:00+00:00"
            )
    after, before = (None if moment is None else moment.astimezone(UTC) for moment in (after, before))
    now = now.astimezone(UTC)
    if before is None:
        # The hour that is under way counts, unless whole hours are compared with it.
        before = _floor(now) if name is ReportName.WEEK else _ceil(now)
    usual = _DAY if name in (ReportName.ACTIVITY, ReportName.UNUSUAL_HOURS) else _WEEK
    try:
        found = Stretch(_floor(after if after is not None else before - usual), _ceil(before))
    except OverflowError as error:
        raise UsageError("these times are beyond the calendar", remedy="name years from 2 to 9998") from error
    if found.after >= found.before:
        raise UsageError(f"nothing lies after {after} and before {before}", remedy="give the earlier time as --after")
    if name in (ReportName.WEEK, ReportName.UNUSUAL_HOURS) and found.before - found.after > _WEEK:
        raise UsageError(f"{name} is about a week at most", remedy="bring --after and --before nearer to each other")
    return found


def _floor(moment: datetime) -> datetime:
    return moment - (moment - _EPOCH) % _HOUR


def _ceil(moment: datetime) -> datetime:
    return moment + -(moment - _EPOCH) % _HOUR


async def report(
    db: Database,
    name: ReportName,
    *,
    after: datetime | None = None,
    before: datetime | None = None,
    bucket: Bucket | str = Bucket.HOUR,
    limit: int = 20,
    tenant: str | None = None,
    now: datetime | None = None,
) -> Report:
    """What happened after one moment and before another, as one of the reports; of one tenant, where it is named.

    Times are widened to whole hours (UTC). Without them it is about the last day or week, whatever suits the report.
    A connection that may see one tenant alone has to name it. Raises UsageError for what cannot be asked.
    """
    stretch = stretch_of(name, after, before, now or datetime.now(UTC))
    if not 1 <= limit <= _MOST_ROWS:
        raise UsageError(f"a report has 1 to {_MOST_ROWS:,} rows, not {limit:,}", remedy="give another limit")
    bucket = Bucket(bucket)
    asked = _Asked(db, stretch, bucket, limit, tenant, await db.one(_Counting, statement("analytics.read_counting")))
    match name:
        case ReportName.ACTIVITY:
            found = await _activity(asked)
        case ReportName.CATEGORIES:
            found = await _categories(asked)
        case ReportName.OUTCOMES:
            found = await _outcomes(asked)
        case ReportName.ACTIONS | ReportName.ENTITY_TYPES:
            found = await _sorts(asked, actions=name is ReportName.ACTIONS)
        case ReportName.ACTORS:
            found = await _names(asked, "actor")
        case ReportName.ENTITIES:
            found = await _names(asked, "entity")
        case ReportName.FAILED_LOGINS:
            found = await _failed_logins(asked)
        case ReportName.WEEK:
            found = await _week(asked)
        case ReportName.UNUSUAL_HOURS:
            found = await _unusual_hours(asked)
        case _:
            assert_never(name)
    standing = asked.standing
    return Report(
        name=name,
        after=stretch.after,
        before=stretch.before,
        bucket=bucket,
        tenant=tenant,
        columns=found.columns,
        rows=tuple(found.rows),
        as_of=AsOf(
            position=standing.position,
            at=standing.rolled_at,
            behind_batches=standing.behind_batches,
            refreshed_at=standing.refreshed_at,
        ),
        at_most_more=found.at_most_more,
        notes=found.notes,
    )


class _Asked:
    """One question: the database, what it is about, and how far counting is."""

    def __init__(
        self, db: Database, stretch: Stretch, bucket: Bucket, limit: int, tenant: str | None, standing: _Counting
    ) -> None:
        self.db, self.stretch, self.bucket, self.limit, self.tenant = db, stretch, bucket, limit, tenant
        self.standing = standing

    @property
    def exact_until(self) -> datetime:
        """The materialized views can be read up to here; beyond it the tables know more."""
        if self.standing.exact:
            return datetime.max.replace(tzinfo=UTC)
        return self.standing.exact_until or datetime.min.replace(tzinfo=UTC)

    async def hours(
        self, stretch: Stretch | None = None, *, bucket: str = "all", categories: bool = False
    ) -> list[_HourRow]:
        stretch = stretch or self.stretch
        words = {"after": stretch.after, "before": stretch.before, "bucket": bucket, "categories": categories}
        if self.tenant is None:
            words["exact_until"] = self.exact_until
            return await self.db.rows(_HourRow, statement("analytics.read_hours"), **words)
        return await self.db.rows(_HourRow, statement("analytics.read_tenant_hours"), **words, tenant=self.tenant)

    async def live(self) -> tuple[Stretch, tuple[str, ...]]:
        """The hours whose names are read from the activity itself; a note where they are too busy for that."""
        named_until = self.standing.named_until
        after = max(self.stretch.after, named_until) if named_until else self.stretch.after
        nothing = Stretch(self.stretch.before, self.stretch.before)
        if after >= self.stretch.before:
            return nothing, ()
        rows: int = await self.db.value(statement("analytics.count_uncounted"), after=after, before=self.stretch.before)
        if rows <= _MOST_LIVE:
            return Stretch(after, self.stretch.before), ()
        return nothing, (f"names are counted up to {after:%Y-%m-%d %H:%M} UTC: busy hours follow when they are over",)


class _Counting(msgspec.Struct, frozen=True):
    """How far counting is: names for the hours before named_until, the views for those before exact_until."""

    position: int
    rolled_at: datetime
    behind_batches: int
    named_until: datetime | None
    exact_until: datetime | None
    exact: bool
    refreshed_at: datetime | None


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    at_most_more: int = 0
    notes: tuple[str, ...] = ()


class _HourRow(msgspec.Struct, frozen=True):
    at: datetime | None
    category: str | None
    activities: int
    failures: int


class _SortRow(msgspec.Struct, frozen=True):
    category: str | None
    name: str | None
    activities: int
    failures: int


class _NameRow(msgspec.Struct, frozen=True):
    type: str | None
    name: str
    activities: int


class _UnusualRow(msgspec.Struct, frozen=True):
    at: datetime
    name: str
    activities: int
    active_days: int
    activities_before: int
    known_days: int


async def _buckets(asked: _Asked) -> list[tuple[datetime, int, int]]:
    """Activities and failures of each bucket, also of those that had none."""
    step = _HOUR if asked.bucket is Bucket.HOUR else _DAY
    at = asked.stretch.after if asked.bucket is Bucket.HOUR else asked.stretch.after.replace(hour=0)
    if (asked.stretch.before - at) / step > _MOST_BUCKETS:
        raise UsageError(
            f"there are more than {_MOST_BUCKETS:,} buckets of one {asked.bucket} in that time",
            remedy="ask for less time, or for buckets of one day",
        )
    rows = {row.at: row for row in await asked.hours(bucket=asked.bucket)}
    found: list[tuple[datetime, int, int]] = []
    while at < asked.stretch.before:
        row = rows.get(at)
        found.append((at, row.activities if row else 0, row.failures if row else 0))
        at += step
    return found


async def _activity(asked: _Asked) -> _Found:
    return _Found(columns=("at", "activities", "failures"), rows=await _buckets(asked))


async def _outcomes(asked: _Asked) -> _Found:
    rows = [(at, total - failures, failures, _share(failures, total)) for at, total, failures in await _buckets(asked)]
    return _Found(columns=("at", "success", "failure", "failure_share"), rows=rows)


async def _categories(asked: _Asked) -> _Found:
    rows = await asked.hours(categories=True)
    total = sum(row.activities for row in rows)
    return _Found(
        columns=("category", "activities", "failures", "share"),
        rows=[(row.category, row.activities, row.failures, _share(row.activities, total)) for row in rows][
            : asked.limit
        ],
    )


async def _sorts(asked: _Asked, *, actions: bool) -> _Found:
    words: dict[str, object] = {
        "after": asked.stretch.after,
        "before": asked.stretch.before,
        "actions": actions,
        "limit": asked.limit,
    }
    if asked.tenant is None:
        first, until = asked.stretch.whole_days(max(asked.exact_until, asked.stretch.after))
        words |= {"first_day": first, "until_day": until}
        rows = await asked.db.rows(_SortRow, statement("analytics.read_sorts"), **words)
    else:
        rows = await asked.db.rows(_SortRow, statement("analytics.read_tenant_sorts"), **words, tenant=asked.tenant)
    if not actions:
        return _Found(
            columns=("entity_type", "activities", "failures"),
            rows=[(row.name, row.activities, row.failures) for row in rows],
        )
    return _Found(
        columns=("category", "action", "activities", "failures"),
        rows=[(row.category, row.name, row.activities, row.failures) for row in rows],
    )


def _name_words(asked: _Asked, live: Stretch) -> dict[str, object]:
    after, last = asked.stretch.after, asked.stretch.last_moment
    first, until = asked.stretch.whole_days()
    return {
        "after_day": after.date(),
        "after_hour": after.hour,
        "before_day": last.date(),
        "before_hour": last.hour + 1,
        "first_day": first,
        "until_day": until,
        "live_after": live.after,
        "live_before": live.before,
        "tenant": asked.tenant,
    }


async def _read_names(asked: _Asked, what: str, live: Stretch) -> tuple[list[_NameRow], int]:
    """The busiest names, and how many more activities one of them may have had at most."""
    words = _name_words(asked, live)
    rows = await asked.db.rows(_NameRow, statement("analytics.read_names"), **words, what=what, limit=asked.limit)
    more: int = await asked.db.value(
        statement("analytics.read_left_out"),
        what=what,
        after_day=words["after_day"],
        before_day=words["before_day"],
        tenant=asked.tenant,
    )
    return rows, more


def _notes(more: int) -> tuple[str, ...]:
    if not more:
        return ()
    return (f"of crowds only the busiest are kept: a name may have had up to {more:,} more than is counted here",)


async def _names(asked: _Asked, what: str) -> _Found:
    live, notes = await asked.live()
    rows, more = await _read_names(asked, what, live)
    notes = (*notes, *_notes(more))
    if what == "actor":
        return _Found(
            columns=("actor", "activities"),
            rows=[(row.name, row.activities) for row in rows],
            at_most_more=more,
            notes=notes,
        )
    return _Found(
        columns=("entity_type", "entity_id", "activities"),
        rows=[(row.type, row.name, row.activities) for row in rows],
        at_most_more=more,
        notes=notes,
    )


async def _failed_logins(asked: _Asked) -> _Found:
    nothing = Stretch(asked.stretch.before, asked.stretch.before)  # these are counted as they come
    accounts, more = await _read_names(asked, "failed login", nothing)
    addresses, more_addresses = await _read_names(asked, "failed login ip", nothing)
    more = max(more, more_addresses)
    return _Found(
        columns=("by", "name", "failures"),
        rows=[
            *(("account", f"{row.type}:{row.name}" if row.type else row.name, row.activities) for row in accounts),
            *(("ip", row.name, row.activities) for row in addresses),
        ],
        at_most_more=more,
        notes=_notes(more),
    )


async def _week(asked: _Asked) -> _Found:
    now = {row.category or "": row for row in await asked.hours(categories=True)}
    before = {row.category or "": row for row in await asked.hours(asked.stretch.shifted(-_WEEK), categories=True)}
    none = _HourRow(None, None, 0, 0)
    rows = [
        _compared(category, now.get(category, none), before.get(category, none)) for category in sorted(now | before)
    ]
    rows.sort(key=lambda row: (-row[1], row[0]))
    total = [_HourRow(None, None, _sum(each, "activities"), _sum(each, "failures")) for each in (now, before)]
    return _Found(
        columns=("category", "activities", "week_before", "change", "failures", "failures_before"),
        rows=[_compared("all", *total), *rows[: asked.limit]],
    )


def _sum(rows: dict[str, _HourRow], column: str) -> int:
    return sum(getattr(row, column) for row in rows.values())


def _compared(category: str, now: _HourRow, before: _HourRow) -> tuple[str, int, int, float | None, int, int]:
    change = (now.activities - before.activities) / before.activities if before.activities else None
    return category, now.activities, before.activities, change, now.failures, before.failures


async def _unusual_hours(asked: _Asked) -> _Found:
    live, notes = await asked.live()
    words = _name_words(asked, live)
    actors = await asked.db.rows(
        _UnusualRow,
        statement("analytics.read_unusual_actors"),
        **{word: words[word] for word in ("after_day", "before_day", "live_after", "live_before", "tenant")},
        after=asked.stretch.after,
        before=asked.stretch.before,
        since_day=asked.stretch.after.date() - _PAST_DAYS * _DAY,
        known_days=_KNOWN_DAYS,
        almost_never=_ALMOST_NEVER,
        limit=asked.limit,
    )
    midnight = asked.stretch.after.replace(hour=0)
    past = await asked.hours(Stretch(midnight - _PAST_DAYS * _DAY, midnight), bucket=Bucket.HOUR, categories=True)
    now = await asked.hours(bucket=Bucket.HOUR, categories=True)
    rows: list[tuple[Cell, ...]] = [
        (row.at, kind, row.name, row.activities, row.active_days, row.activities_before, row.known_days)
        for kind, each in (("category", unusual_categories(now, past)), ("actor", actors))
        for row in each
    ]
    return _Found(
        columns=("at", "kind", "name", "activities", "active_days", "activities_before", "known_days"),
        rows=rows[: asked.limit],
        notes=notes,
    )


def unusual_categories(now: Sequence[_HourRow], past: Sequence[_HourRow]) -> list[_UnusualRow]:
    """Hours at which a category is active that is known, and was almost never active near that hour before."""
    known: dict[str, set[date]] = {}
    active: dict[tuple[str, int], Counter[date]] = {}
    for row in past:
        if row.at and row.category:
            known.setdefault(row.category, set()).add(row.at.date())
            for hour in (row.at.hour - 1, row.at.hour, row.at.hour + 1):
                active.setdefault((row.category, hour % 24), Counter())[row.at.date()] += row.activities
    return [
        _UnusualRow(row.at, row.category, row.activities, len(before), before.total(), len(known[row.category]))
        for row in now
        if row.at
        and row.category
        and row.activities >= _CATEGORY_FEW
        and len(known.get(row.category, ())) >= _KNOWN_DAYS
        and len(before := active.get((row.category, row.at.hour), Counter[date]())) <= _ALMOST_NEVER
    ]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
