"""The API of version 1: activity as JSON, what hangs together with it, how all stands, and handing in.

Answers are what search, prove and migrate say, and hold no SQL of their own. What cannot change any more (an activity,
a batch) has an ETag, and is not sent again to who has it.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Any, cast

import msgspec
from litestar import MediaType, Request, Response, get, post
from litestar.datastructures import State
from litestar.params import Parameter
from litestar.types import ControllerRouterHandler

from afterwrite.lake.tiers import Told, read_left
from afterwrite.migrate.ledger import Pause
from afterwrite.postgres import statement
from afterwrite.prove.report import to_json as proof_as_json
from afterwrite.recorder.ids import Ids
from afterwrite.search import diff as differences
from afterwrite.search.analytics import Bucket, ReportName, report
from afterwrite.search.query import parse
from afterwrite.search.suggest import Suggestion, suggest
from afterwrite.search.windows import Page
from afterwrite.serve.auth import Auth, Caller, Scope
from afterwrite.serve.cursors import open_start, seal_page
from afterwrite.serve.door import SLASH
from afterwrite.serve.health import Health
from afterwrite.serve.ingest import Ingest
from afterwrite.serve.kept import Kept
from afterwrite.serve.lakeside import both
from afterwrite.serve.metrics import MEDIA_TYPE as METRICS_TYPE
from afterwrite.serve.metrics import Metrics, Snapshot, Totals
from afterwrite.serve.posted import (
    EVENT,
    EVENTS,
    JSON,
    MOST_POSTED,
    Refused,
    TooManyError,
    UnusableError,
    read_posted,
)
from afterwrite.serve.problems import ProblemError, explain
from afterwrite.serve.progress import Progress, Triggers
from afterwrite.serve.tenancy import reading
from afterwrite.settings import Settings
from afterwrite.store.reader import StoredActivity, as_json

Ask = Request[Caller, None, State]

_BODY_SECONDS = 30.0
_READY_SECONDS = 3.0
_LONGEST_QUERY = 2_000
_ids = Ids()

Line = Annotated[str, Parameter(max_length=_LONGEST_QUERY, description="What is looked for, in the query language.")]
Limit = Annotated[int, Parameter(ge=1, le=500, description="How many at most.")]
Cursor = Annotated[
    str | None,
    Parameter(max_length=4_096, description="`older` or `newer` of an answer, to go on from there with the same `q`."),
]
ActivityId = Annotated[str, Parameter(max_length=64, description="The activity's id, a UUID.")]
EntityType = Annotated[str, Parameter(max_length=300, description="The entity's type, as activities have it.")]
EntityId = Annotated[str, Parameter(max_length=1_000, description="The entity's id; a slash in it is written %2F.")]
Moment = Annotated[datetime | None, Parameter(description="A time, with its zone.")]


class ActivityDoc(msgspec.Struct, frozen=True, kw_only=True):
    """An activity as the store keeps it: what happened, who did it, and what it did."""

    position: int
    batch_id: int
    id: str
    occurred_at: datetime
    source: str
    kind: str
    category: str
    action: str
    outcome: str
    severity: str
    entity_type: str | None
    entity_id: str | None
    actor_id: str | None
    actor_type: str | None
    tenant_id: str | None
    session_id: str | None
    request_id: str | None
    trace_id: str | None
    ip: str | None
    user_agent: str | None
    duration_ms: float | None
    summary: str | None
    relation: str | None
    operation: str | None
    changed: list[str] | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    metadata: dict[str, Any] | None
    caused_by: str | None
    xid: int | None
    commit_lsn: str | None
    ordinal: int | None


class LakeDoc(msgspec.Struct, frozen=True, kw_only=True):
    """What the lake, where older days are, has to do with an answer.

    ``items`` are the ids of what came from there; ``asked``: it was asked, for ``days`` days from ``first`` to
    ``last``. ``why`` says why it was not although something of it may belong here, and so that the answer is the
    store's part alone; null: the answer is whole.
    """

    asked: bool
    items: list[str]
    days: int
    first: date | None
    last: date | None
    why: str | None


class LeftDoc(msgspec.Struct, frozen=True, kw_only=True):
    """Days that have left the store for the lake: how many, the first of them and the last."""

    days: int
    first: date
    last: date


class ActivityPage(msgspec.Struct, frozen=True, kw_only=True):
    """Activities, newest first. ``older`` and ``newer`` are cursors; null: there is nothing.

    ``looked`` is how far was looked, where the time was up before everything was: the cursor goes on from there.
    ``lake`` is null where no lake is configured and nothing of this may be in one.
    """

    items: list[ActivityDoc]
    older: str | None
    newer: str | None
    looked: datetime | None
    lake: LakeDoc | None = None


class FieldDoc(msgspec.Struct, frozen=True, kw_only=True):
    """A field before and after: set, changed, removed, or unknown."""

    name: str
    before: Any
    after: Any
    kind: str


class DiffDoc(msgspec.Struct, frozen=True, kw_only=True):
    """What an activity did to its row, field by field."""

    id: str
    fields: list[FieldDoc]


class RowDoc(msgspec.Struct, frozen=True, kw_only=True):
    """A row as it was. ``exists`` is null where nobody can say; ``unsure`` says why columns may be otherwise."""

    entity_type: str
    entity_id: str
    moment: datetime
    exists: bool | None
    whole: bool
    values: dict[str, Any]
    unsure: dict[str, str]
    doubts: list[str]
    since: ActivityDoc | None
    until: ActivityDoc | None
    lake: LakeDoc | None = None


class BatchDoc(msgspec.Struct, frozen=True, kw_only=True):
    """A transaction that stored activities: its place in the feed, and its seal."""

    position: int
    id: int
    source: str
    first_lsn: str | None
    last_lsn: str | None
    first_at: datetime
    last_at: datetime
    transactions: int
    rows: int
    rows_per_table: dict[str, int]
    rows_digest: str
    digest: str
    written_at: datetime


class BatchPage(msgspec.Struct, frozen=True, kw_only=True):
    """Batches, newest first; ``before`` is the position to go on from, null where there are no more."""

    items: list[BatchDoc]
    before: int | None


class ReportDoc(msgspec.Struct, frozen=True, kw_only=True):
    """A report as a table: ``columns`` name the cells of each row; ``as_of`` says how far what is stored is counted.

    ``in_lake`` are days of it that have left the store: they were counted before, and are told as if they had not.
    """

    name: str
    after: datetime
    before: datetime
    bucket: str
    tenant: str | None
    columns: list[str]
    rows: list[list[Any]]
    as_of: dict[str, Any]
    at_most_more: int
    notes: list[str]
    in_lake: LeftDoc | None = None


class SuggestionPage(msgspec.Struct, frozen=True, kw_only=True):
    """What the word at the end of the line may become."""

    items: list[Suggestion]


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, as it is understood here."""

    name: str
    kind: str
    scopes: list[str]
    tenant: str | None


class ResultDoc(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one that was handed in: stored, duplicate (it was there), or refused with a reason."""

    id: str
    status: str
    reason: str | None = None


class RefusedDoc(msgspec.Struct, frozen=True, kw_only=True):
    """One that was not taken, by the id that it came with."""

    id: str
    reason: str


class Ingested(msgspec.Struct, frozen=True, kw_only=True):
    """What became of what was handed in; ``results`` has one for each, in their order."""

    stored: int
    duplicate: int
    refused: list[RefusedDoc]
    results: list[ResultDoc]


class MigrationDoc(msgspec.Struct, frozen=True, kw_only=True):
    """Where the migration stands: phases with their gates, the checklist, the proof, the triggers and the load."""

    at: datetime
    migration: int | None
    paused: Pause | None
    next: str
    phases: list[Any]
    checklist: list[Any]
    findings: list[Any]
    proof: dict[str, Any]
    load: list[Any]
    triggers: list[Any]
    tables: list[Any]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the server is there, or ready."""

    status: str


@get("/v1/activities")
async def list_activities(
    request: Ask, caller: Caller, q: Line = "", cursor: Cursor = None, limit: Limit = 50
) -> Response[ActivityPage]:
    """Find activities, newest first."""
    query = parse(q)
    signer = await _auth(request).find_signer()
    of = f"activities {q}"
    start = open_start(signer, of, cursor)
    told = await both(request.app.state, caller).search(query, limit=limit, **msgspec.structs.asdict(start))
    return await _page(request, of, told)


@get("/v1/activities/{id:str}")
async def get_activity(
    request: Ask, caller: Caller, id: ActivityId, occurred_at: Moment = None
) -> Response[ActivityDoc]:
    """Get one activity. Where its id does not tell when it was, ``occurred_at`` has to.

    Where its day has left the store it comes from the lake, the same to the byte; the header ``Afterwrite-Tier`` tells.
    """
    found = await _find(request, caller, id, occurred_at)
    return _unchanging(request, as_json(found.activity), found)


@get("/v1/activities/{id:str}/diff")
async def get_diff(request: Ask, caller: Caller, id: ActivityId, occurred_at: Moment = None) -> Response[DiffDoc]:
    """Get what an activity did to its row, field by field."""
    found = await _find(request, caller, id, occurred_at)
    fields = [msgspec.structs.asdict(each) for each in differences.diff(found.activity)]
    return _unchanging(request, {"id": found.activity.id, "fields": fields}, found)


@get("/v1/activities/{id:str}/effects")
async def list_effects(
    request: Ask, caller: Caller, id: ActivityId, occurred_at: Moment = None, cursor: Cursor = None, limit: Limit = 50
) -> Response[ActivityPage]:
    """List what an activity led to, at once and later."""
    of = f"effects {id}"
    start = open_start(await _auth(request).find_signer(), of, cursor)
    activity = (await _find(request, caller, id, occurred_at)).activity
    told = await both(request.app.state, caller).effects(activity, limit=limit, **msgspec.structs.asdict(start))
    return await _page(request, of, told)


@get("/v1/activities/{id:str}/transaction")
async def list_transaction(
    request: Ask, caller: Caller, id: ActivityId, occurred_at: Moment = None, cursor: Cursor = None, limit: Limit = 50
) -> Response[ActivityPage]:
    """List what else the transaction of an activity did."""
    of = f"transaction {id}"
    start = open_start(await _auth(request).find_signer(), of, cursor)
    activity = (await _find(request, caller, id, occurred_at)).activity
    told = await both(request.app.state, caller).same_transaction(
        activity, limit=limit, **msgspec.structs.asdict(start)
    )
    return await _page(request, of, told)


@get("/v1/activities/{id:str}/around")
async def list_around(
    request: Ask,
    caller: Caller,
    id: ActivityId,
    occurred_at: Moment = None,
    seconds: Annotated[float, Parameter(ge=0, le=86_400, description="How far on both sides.")] = 30.0,
    limit: Limit = 50,
) -> Response[ActivityPage]:
    """List what happened around an activity, the nearest on both sides."""
    activity = (await _find(request, caller, id, occurred_at)).activity
    told = await both(request.app.state, caller).around(activity.occurred_at, seconds=seconds, limit=limit)
    return await _page(request, "around", msgspec.structs.replace(told, page=Page(told.page.items, None, None)))


@get(["/v1/entities/{entity_type:str}/{entity_id:str}", "/v1/entities/{entity_type:str}/{entity_id:str}/at"])
async def get_row(
    request: Ask,
    caller: Caller,
    entity_type: EntityType,
    entity_id: EntityId,
    time: Annotated[datetime | None, Parameter(description="When, with its zone; now without it.")] = None,
) -> Response[RowDoc]:
    """Get a row as it was at a time, as far as its captured changes tell."""
    kind, number = entity_type.replace(SLASH, "/"), entity_id.replace(SLASH, "/")
    told = await both(request.app.state, caller).row_at(kind, number, time or datetime.now(UTC))
    found = told.row
    if found.exists is None and found.since is None and found.until is None:
        raise ProblemError(404, "", f"nothing is recorded of {kind}/{number}{_beyond(told.why)}")
    return _json(
        {
            "entity_type": found.entity_type,
            "entity_id": found.entity_id,
            "moment": found.moment,
            "exists": found.exists,
            "whole": found.whole,
            "values": found.values,
            "unsure": found.unsure,
            "doubts": found.doubts,
            "since": None if found.since is None else as_json(found.since),
            "until": None if found.until is None else as_json(found.until),
            "lake": _lake(request, sorted(told.lake), told.days, told.why),
        }
    )


@get("/v1/entities/{entity_type:str}/{entity_id:str}/timeline")
async def list_entity(
    request: Ask, caller: Caller, entity_type: EntityType, entity_id: EntityId, cursor: Cursor = None, limit: Limit = 50
) -> Response[ActivityPage]:
    """List what happened to one thing, newest first."""
    kind, number = entity_type.replace(SLASH, "/"), entity_id.replace(SLASH, "/")
    of = f"entity {kind}\0{number}"
    start = open_start(await _auth(request).find_signer(), of, cursor)
    tiers = both(request.app.state, caller)
    told = await tiers.entity_timeline(kind, number, limit=limit, **msgspec.structs.asdict(start))
    return await _page(request, of, told)


@get("/v1/actors/{actor_id:str}/timeline")
async def list_actor(
    request: Ask,
    caller: Caller,
    actor_id: Annotated[str, Parameter(max_length=1_000, description="The actor's id; a slash in it is written %2F.")],
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Response[ActivityPage]:
    """List what somebody did, newest first."""
    actor = actor_id.replace(SLASH, "/")
    of = f"actor {actor}"
    start = open_start(await _auth(request).find_signer(), of, cursor)
    told = await both(request.app.state, caller).actor_timeline(actor, limit=limit, **msgspec.structs.asdict(start))
    return await _page(request, of, told)


@get("/v1/analytics/{name:str}")
async def get_report(
    request: Ask,
    caller: Caller,
    name: Annotated[str, Parameter(description="Which report: " + ", ".join(each.value for each in ReportName) + ".")],
    after: Moment = None,
    before: Moment = None,
    bucket: Annotated[Bucket, Parameter(description="What a row of the report `activity` is about.")] = Bucket.HOUR,
    tenant: Annotated[str | None, Parameter(max_length=300, description="Of this tenant alone.")] = None,
    limit: Annotated[int, Parameter(ge=1, le=1_000, description="How many rows at most.")] = 20,
) -> Response[ReportDoc]:
    """Get a report over what happened."""
    try:
        wanted = ReportName(name)
    except ValueError:
        known = ", ".join(each.value for each in ReportName)
        raise ProblemError(404, "", f"there is no report {name}", remedy=f"the reports are {known}") from None
    if caller.tenant is not None and tenant not in (None, caller.tenant):
        raise ProblemError(403, "tenant", "this is another tenant's")
    async with reading(request.app.state, caller) as db:
        found = await report(
            db, wanted, after=after, before=before, bucket=bucket, limit=limit, tenant=caller.tenant or tenant
        )
        # On which days anybody did anything is no tenant's to know.
        left = await read_left(db, found.after, found.before) if caller.tenant is None else None
    return _json(msgspec.structs.asdict(found) | {"in_lake": left})


@get("/v1/suggest", opt={"looks": "all"})
async def list_suggestions(
    request: Ask, caller: Caller, q: Line = "", limit: Annotated[int, Parameter(ge=1, le=50)] = 10
) -> Response[SuggestionPage]:
    """List what the word at the end of a query may become."""
    async with reading(request.app.state, caller) as db:
        found = await suggest(db, q, limit=limit)
    return _json({"items": found})


@get("/v1/batches", opt={"looks": False})
async def list_batches(
    request: Ask,
    operator: Caller,
    before: Annotated[int | None, Parameter(ge=1, le=2**62, description="Only what is before this position.")] = None,
    limit: Limit = 50,
) -> Response[BatchPage]:
    """List the transactions that stored activities, newest first. Not for a tenant's caller."""
    async with reading(request.app.state, operator) as db:
        found = await db.rows(BatchDoc, statement("serve.list_batches"), before=before, limit=limit)
    return _json({"items": found, "before": found[-1].position if len(found) == limit else None})


@get("/v1/batches/{position:int}", opt={"looks": False})
async def get_batch(
    request: Ask,
    operator: Caller,
    position: Annotated[int, Parameter(ge=1, le=2**62, description="The batch's place in the feed.")],
) -> Response[BatchDoc]:
    """Get one batch with its seal. Not for a tenant's caller."""
    async with reading(request.app.state, operator) as db:
        found = await db.maybe(BatchDoc, statement("serve.read_batch"), position=position)
    if found is None:
        raise ProblemError(404, "", f"there is no batch at position {position}")
    return _unchanging(request, found)


@get("/v1/health", opt={"looks": False})
async def get_health(request: Ask, operator: Caller) -> Response[Health]:
    """Get how slot, store, feed, outbox and deferred bodies stand. Not for a tenant's caller."""
    return _json(await cast("Kept[Health]", request.app.state.health).get())


@get("/v1/migration", opt={"looks": False})
async def get_migration(request: Ask, operator: Caller) -> Response[MigrationDoc]:
    """Get where the migration stands. Not for a tenant's caller."""
    progress = await cast("Kept[Progress]", request.app.state.progress).get()
    triggers = await cast("Kept[Triggers]", request.app.state.triggers).get()
    status = progress.status
    return _json(
        {
            "at": progress.at,
            "migration": status.migration.id if status.migration else None,
            "paused": status.pause,
            "next": status.next,
            "phases": status.phases,
            "checklist": status.checklist,
            "findings": status.findings,
            "proof": proof_as_json(progress.proof),
            "load": progress.load,
            "triggers": triggers.triggers,
            "tables": triggers.tables,
        }
    )


@get("/v1/me", opt={"looks": False})
async def get_me(caller: Caller) -> Response[Me]:
    """Get who asks, as it is understood here."""
    return _json(
        Me(
            name=caller.name,
            kind=caller.kind.value,
            scopes=sorted(each.value for each in caller.scopes),
            tenant=caller.tenant,
        )
    )


@post("/v1/activities", status_code=200, opt={"scope": Scope.INGEST}, request_max_body_size=None)
async def hand_in(request: Ask, caller: Caller) -> Response[Ingested]:
    """Hand in up to 1,000 events, as JSON or as CloudEvents.

    Each is stored once, however often it is sent: it is known by its ``id`` and ``occurred_at``. The answer is given
    when they are flushed to disk. After 429, 503, or no answer at all, send them again.
    """
    settings: Settings = request.app.state.settings
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, EVENT, EVENTS):
        raise ProblemError(
            415, "media-type", f"{kind or 'a body without a type'} is not read here",
            remedy=f"send {JSON}, {EVENT} or {EVENTS}", headers={"Accept-Post": f"{JSON}, {EVENT}, {EVENTS}"},
        )  # fmt: skip
    ingest: Ingest = request.app.state.ingest
    with ingest.holding() as hold:
        body = await _read_body(request, settings.serve_body_bytes, hold)
    try:
        found = read_posted(kind, body, caller, _ids)
    except UnusableError as error:
        raise ProblemError(422, "body", f"the body cannot be read as {kind}: {error}") from None
    except TooManyError:
        raise ProblemError(
            413, "size", f"more than {MOST_POSTED:,} were handed in", remedy="send them in parts"
        ) from None
    metrics: Metrics = request.app.state.metrics
    results = await _store(ingest, found, caller)
    counts = {status: sum(each.status == status for each in results) for status in ("stored", "duplicate", "refused")}
    for status, count in counts.items():
        metrics.ingested.labels(status).inc(count)
    metrics.dropped.labels("refused").inc(counts["refused"])
    refused = [RefusedDoc(id=each.id, reason=each.reason or "") for each in results if each.status == "refused"]
    return _json(Ingested(stored=counts["stored"], duplicate=counts["duplicate"], refused=refused, results=results))


async def _store(ingest: Ingest, found: list[Any], caller: Caller) -> list[ResultDoc]:
    """Store what can be; of one that is there twice the second is a duplicate."""
    results: list[ResultDoc | None] = [None] * len(found)
    by_source: dict[str, dict[tuple[datetime, str], int]] = {}
    for number, each in enumerate(found):
        if isinstance(each, Refused):
            results[number] = ResultDoc(id=each.id, status="refused", reason=each.reason)
            continue
        known = by_source.setdefault(each.source, {})
        if known.setdefault((each.occurred_at, each.id), number) != number:
            results[number] = ResultDoc(id=each.id, status="duplicate")
    for source, numbers in by_source.items():
        who = caller.tenant or caller
        stored = await ingest.put(source, [found[number] for number in numbers.values()], who=who)
        for key, number in numbers.items():
            results[number] = ResultDoc(id=key[1], status="stored" if key in stored else "duplicate")
    return [each for each in results if each is not None]


async def _read_body(request: Ask, most: int, hold: Callable[[int], None]) -> bytes:
    """The body as it was before it was compressed. Raises ProblemError for one that is too long, or takes too long."""
    way = request.headers.get("content-encoding", "identity").strip().lower()
    if way not in {"identity", "gzip", ""}:
        raise ProblemError(415, "encoding", f"a body in {way} is not read here", headers={"Accept-Encoding": "gzip"})
    too_long = ProblemError(413, "size", f"the body is longer than {most:,} bytes", remedy="send it in parts")
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > most:
        raise too_long
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_long
                hold(len(part))
                parts.append(part)
    except TimeoutError:
        raise ProblemError(408, "", "the body took too long to come") from None
    body = b"".join(parts)
    if way != "gzip":
        return body
    unpacker = zlib.decompressobj(wbits=31)
    try:
        body = unpacker.decompress(body, most + 1)
    except zlib.error:
        raise ProblemError(422, "body", "the body is no gzip") from None
    if len(body) > most:
        raise too_long
    if not unpacker.eof:
        raise ProblemError(422, "body", "the body's gzip is cut off")
    return body


@get("/healthz", opt={"public": True})
async def is_alive() -> Response[Status]:
    """Say that the server is there."""
    return _json(Status(status="ok"))


@get("/readyz", opt={"public": True})
async def is_ready(request: Request[Any, Any, State]) -> Response[Status]:
    """Say whether the store answers: 200, or 503."""
    try:
        async with asyncio.timeout(_READY_SECONDS):
            await cast("Kept[bool]", request.app.state.ready).get()
    except Exception as error:
        raise ProblemError(503, "unavailable", "the store does not answer", headers={"Retry-After": "2"}) from error
    return _json(Status(status="ready"))


@get("/metrics", media_type=METRICS_TYPE, opt={"looks": False})
async def get_metrics(request: Ask, operator: Caller) -> Response[bytes]:
    """Get the metrics as Prometheus reads them. Not for a tenant's caller."""
    state = request.app.state
    metrics: Metrics = state.metrics
    snapshot = Snapshot(
        health=await _or_none(state.health.get()),
        progress=await _or_none(state.progress.get()),
        totals=await _or_none(cast("Kept[Totals]", state.totals).get()),
        feed=state.feed.status() if "feed" in state else None,
    )
    return Response(metrics.render(snapshot), media_type=METRICS_TYPE)


async def _or_none(answer: Any) -> Any:
    """What cannot be had is left out of a scrape, and the rest of it is not."""
    try:
        return await answer
    except Exception as error:
        explain(error)  # logs it
        return None


class _Found(msgspec.Struct, frozen=True):
    activity: StoredActivity
    lake: bool


async def _find(request: Ask, caller: Caller, id: str, occurred_at: datetime | None) -> _Found:
    if occurred_at is not None and occurred_at.tzinfo is None:
        occurred_at = occurred_at.replace(tzinfo=UTC)
    told = await both(request.app.state, caller).read_activity(id, occurred_at=occurred_at)
    if told.activity is None:
        # The same words for what is not there and for what is another tenant's.
        raise ProblemError(404, "", f"there is no activity {id}{_beyond(told.why)}")
    return _Found(told.activity, told.lake)


def _beyond(why: str | None) -> str:
    """What is added where nothing was found, and not all was looked at."""
    return "" if why is None else f" in the store; {why}"


async def _page(request: Ask, of: str, told: Told) -> Response[Any]:
    page = told.page
    older, newer = seal_page(await _auth(request).find_signer(), of, page)
    from_lake = [each.id for each in page.items if each.id in told.lake]
    return _json(
        {
            "items": [as_json(each) for each in page.items],
            "older": older,
            "newer": newer,
            "looked": page.looked,
            "lake": _lake(request, from_lake, told.days, told.why),
        }
    )


def _lake(request: Ask, items: list[str], days: Sequence[date], why: str | None) -> LakeDoc | None:
    if request.app.state.lakeside is None and why is None:
        return None
    first, last = (days[0], days[-1]) if days else (None, None)
    return LakeDoc(asked=bool(days), items=items, days=len(days), first=first, last=last, why=why)


def _auth(request: Ask) -> Auth:
    return request.app.state.auth


def _json(value: object, headers: Mapping[str, str] | None = None) -> Response[Any]:
    body = msgspec.json.encode(value, enc_hook=str)
    return Response(body, media_type=MediaType.JSON, headers=dict(headers or {}))


def _unchanging(request: Ask, value: object, found: _Found | None = None) -> Response[Any]:
    """What will be the same for as long as it is there, in whichever tier: sent once to who remembers it."""
    body = msgspec.json.encode(value, enc_hook=str)
    tag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if found is not None:
        headers["Afterwrite-Tier"] = "lake" if found.lake else "store"
    known = {each.strip() for each in request.headers.get("if-none-match", "").split(",")}
    if tag in known or tag.removeprefix("W/") in known or "*" in known:
        return Response(b"", status_code=304, headers=headers, media_type=MediaType.JSON)
    return Response(body, media_type=MediaType.JSON, headers=headers)


routes: list[ControllerRouterHandler] = [
    list_activities, hand_in, get_activity, get_diff, list_effects, list_transaction, list_around, get_row, list_entity,
    list_actor, get_report, list_suggestions, list_batches, get_batch, get_health, get_migration, get_me, is_alive,
    is_ready, get_metrics,
]  # fmt: skip
