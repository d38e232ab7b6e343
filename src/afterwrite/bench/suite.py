"""A whole run: parts in an order that lets them share servers, none beside another."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import assert_never, cast

import msgspec

from afterwrite import __version__
from afterwrite.bench import (
    bill,
    capture,
    defer,
    fan_in,
    feed,
    lake,
    peers,
    queries,
    recorder,
    serve,
    staging,
    users,
    writes,
)
from afterwrite.bench.claims import GROWTH, Claim, Report, Took, grown
from afterwrite.bench.grounds import Grounds, LeftOutError, Tell, open_grounds, read_machine
from afterwrite.postgres import connect, statement


class Part(StrEnum):
    """What can be measured by itself."""

    QUERIES = "queries"
    API = "api"
    PAGES = "pages"
    WRITES = "writes"
    USERS = "users"
    DEFER = "defer"
    BILL = "bill"
    FEED = "feed"
    CAPTURE = "capture"
    PEERS = "peers"
    RECORDER = "recorder"


# Parts that share servers; those are gone before the next ones start.
_HOUSES = (
    (Part.QUERIES, Part.API, Part.PAGES),
    (Part.WRITES, Part.USERS, Part.DEFER, Part.BILL, Part.FEED, Part.CAPTURE),
    (Part.PEERS,),
    (Part.RECORDER,),
)


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How much of everything, and how often."""

    queries: queries.Options = queries.Options()
    api: serve.ApiOptions = serve.ApiOptions()
    pages: serve.PageOptions = serve.PageOptions()
    writes: writes.Options = writes.Options()
    users: users.Options = users.Options()
    bill: bill.Options = bill.Options()
    capture: capture.Options = capture.Options()
    feed: feed.Options = feed.Options()
    defer: defer.Options = defer.Options()
    peers: peers.Options = peers.Options()
    recorder: recorder.Options = recorder.Options()


FULL = Scale()
# The least that still gives intervals.
QUICK = Scale(
    queries=queries.Options(rows=25_000, days=7, rounds=2, questions=4, seconds=0.3),
    api=serve.ApiOptions(rows=25_000, days=7, rounds=2, requests=7, seconds=0.3),
    pages=serve.PageOptions(rows=25_000, days=7, rounds=2, looked_at=250),
    writes=writes.Options(rounds=2, transactions=100, keep=False),
    users=users.Options(rounds=2, seconds=0.6, warm_seconds=0.15, first=30, step=3.0, think_ms=12, hot_only=True),
    bill=bill.Options(rounds=2, seconds=0.7, apart=False),
    capture=capture.Options(rounds=2, changes=6_000, limits=False),
    feed=feed.Options(rounds=2, seconds=0.8, loads=(feed.Steady(1_000, 1),)),
    defer=defer.Options(rounds=1, seconds=1.0, backlog=200),
    peers=peers.Options(rounds=2, few=True),
    recorder=recorder.Options(rounds=2, events=6_000, stored=2_000, inserts=400),
)


def sized(scale: Scale, *, rounds: int | None = None, rows: int | None = None, changes: int | None = None) -> Scale:
    """The scale with what somebody asked for: turns of each variant, activities, changes in the stretch."""
    asked = {"rounds": rounds, "rows": rows, "changes": changes}
    parts = {
        part: msgspec.structs.replace(
            options, **{name: value for name, value in asked.items() if value is not None and hasattr(options, name)}
        )
        for part, options in msgspec.structs.asdict(scale).items()
    }
    return Scale(**parts)


async def run_parts(
    parts: Sequence[Part], scale: Scale, *, quick: bool, tell: Tell, seed: int = 1, pg_bin: Path | None = None
) -> Report:
    """Measure these parts, and say what came out. Raises AfterwriteError when something cannot be run."""
    began_at, began = datetime.now(UTC), time.monotonic()
    took: list[Took] = []
    claims: list[Claim] = []
    version = ""
    for house in _HOUSES:
        wanted = [part for part in house if part in parts]
        if not wanted:
            continue
        async with open_grounds(tell, seed=seed, pg_bin=pg_bin) as grounds:
            for part in wanted:
                done, found = await _run_part(part, grounds, scale)
                took.append(done)
                claims += [msgspec.structs.replace(claim, part=part.value) for claim in found]
            version = version or await grounds.read_version()
    return _report(began_at, began, quick, version, took, claims)


def _report(
    began_at: datetime, began: float, quick: bool, version: str, took: list[Took], claims: list[Claim]
) -> Report:
    return Report(
        version=__version__,
        began_at=began_at.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 1),
        quick=quick,
        machine=read_machine(version),
        parts=took,
        claims=claims,
    )


async def run_growth(
    several: Sequence[int], *, rounds: int, tell: Tell, seed: int = 1, pg_bin: Path | None = None
) -> Report:
    """How looking at activity grows with what there is: queries, API and pages, once for each of so many activities."""
    began_at, began = datetime.now(UTC), time.monotonic()
    took: list[Took] = []
    found_at: dict[int, list[Claim]] = {}
    version = ""
    for rows in sorted(several):
        scale = sized(FULL, rows=rows, rounds=rounds)
        found_at[rows] = []
        async with open_grounds(tell, seed=seed, pg_bin=pg_bin) as grounds:
            for part in (Part.QUERIES, Part.API, Part.PAGES):
                done, found = await _run_part(part, grounds, scale)
                at = f"{part.value} at {rows:,}"
                took.append(msgspec.structs.replace(done, part=at))
                found_at[rows] += [msgspec.structs.replace(claim, part=at) for claim in found]
            version = version or await grounds.read_version()
    claims = [claim for found in found_at.values() for claim in found]
    claims += [
        msgspec.structs.replace(claim, part=GROWTH)
        for less, more in itertools.pairwise(found_at)
        for claim in grown(less, found_at[less], more, found_at[more])
    ]
    seconds = round(sum(each.seconds for each in took), 1)
    took.append(
        Took(part=GROWTH, seconds=seconds, settings={"rounds": rounds, "rows": ", ".join(f"{n:,}" for n in found_at)})
    )
    return _report(began_at, began, False, version, took, claims)


async def run_staging(dsn: str | None, mix: staging.Mix, options: staging.Options, *, tell: Tell) -> Report:
    """Writes on scratch copies beside somebody's database, on his own server."""
    began_at, began = datetime.now(UTC), time.monotonic()
    found = await staging.measure_staging(dsn, mix, options, tell)
    async with connect(dsn) as db:
        version = str(await db.value(statement("bench.read_version")))
    settings = {**_settings(options), "mix": ", ".join(f"{each.relation} {each.writes}" for each in mix.tables)}
    took = Took(part="staging", seconds=round(time.monotonic() - began, 1), settings=settings)
    claims = [msgspec.structs.replace(claim, part="staging") for claim in found]
    return _report(began_at, began, False, version, [took], claims)


class Tier(StrEnum):
    """What stands before the store, and behind it: measured by a run of their own."""

    BROKER = "broker"
    LAKE = "lake"


async def run_tiers(
    wanted: Sequence[Tier],
    through: fan_in.Options,
    behind: lake.Options,
    *,
    tell: Tell,
    seed: int = 1,
    pg_bin: Path | None = None,
) -> Report:
    """Recording through brokers, and days that leave for the lake and are searched there."""
    began_at, began = datetime.now(UTC), time.monotonic()
    took: list[Took] = []
    claims: list[Claim] = []
    version = ""
    for tier in Tier:
        if tier not in wanted:
            continue
        async with open_grounds(tell, seed=seed, pg_bin=pg_bin) as grounds:
            match tier:
                case Tier.BROKER:
                    done, found = await _take(tier, grounds, through, lambda: fan_in.measure_fan_in(grounds, through))
                case Tier.LAKE:
                    done, found = await _take(tier, grounds, behind, lambda: lake.measure_lake(grounds, behind))
                case _:
                    assert_never(tier)
            version = version or await grounds.read_version()
        took.append(done)
        claims += [msgspec.structs.replace(claim, part=tier.value) for claim in found]
    return _report(began_at, began, False, version, took, claims)


async def _run_part(part: Part, grounds: Grounds, scale: Scale) -> tuple[Took, list[Claim]]:
    return await _take(part, grounds, *_measure(part, grounds, scale))


async def _take(
    part: Part | Tier, grounds: Grounds, options: msgspec.Struct, measure: Callable[[], Awaitable[list[Claim]]]
) -> tuple[Took, list[Claim]]:
    began = time.monotonic()
    left_out: str | None = None
    claims: list[Claim] = []
    try:
        claims = await measure()
    except LeftOutError as error:
        left_out = f"{part.value} is left out: {error}"
        grounds.tell(left_out)
    settings = {"seed": grounds.seed, **_settings(options)}
    return Took(part=part, seconds=round(time.monotonic() - began, 1), settings=settings, left_out=left_out), claims


def _measure(part: Part, grounds: Grounds, scale: Scale) -> tuple[msgspec.Struct, Callable[[], Awaitable[list[Claim]]]]:
    match part:
        case Part.QUERIES:
            return scale.queries, lambda: queries.measure_queries(grounds, scale.queries)
        case Part.API:
            return scale.api, lambda: serve.measure_api(grounds, scale.api)
        case Part.PAGES:
            return scale.pages, lambda: serve.measure_pages(grounds, scale.pages)
        case Part.WRITES:
            return scale.writes, lambda: writes.measure_writes(grounds, scale.writes)
        case Part.USERS:
            return scale.users, lambda: users.measure_users(grounds, scale.users)
        case Part.BILL:
            return scale.bill, lambda: bill.measure_bill(grounds, scale.bill)
        case Part.CAPTURE:
            return scale.capture, lambda: capture.measure_capture(grounds, scale.capture)
        case Part.FEED:
            return scale.feed, lambda: feed.measure_feed(grounds, scale.feed)
        case Part.DEFER:
            return scale.defer, lambda: defer.measure_defer(grounds, scale.defer)
        case Part.PEERS:
            return scale.peers, lambda: peers.measure_peers(grounds, scale.peers)
        case Part.RECORDER:
            return scale.recorder, lambda: recorder.measure_recorder(grounds, scale.recorder)
        case _:
            assert_never(part)


def _settings(options: msgspec.Struct) -> dict[str, str | int | float]:
    said: dict[str, str | int | float] = {}
    for name, value in msgspec.structs.asdict(options).items():
        if isinstance(value, bool):
            said[name] = "yes" if value else "no"
        elif isinstance(value, int | float):
            said[name] = value
        else:
            several = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
            said[name] = "; ".join(map(str, several))
    return said
