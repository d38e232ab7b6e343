"""The pages: live, search, an activity, an entity, and (boards.py) overview, migration and health.

Server-drawn from templates/; what moves on a page is a module of static/. Every read goes through ``reading()``: a page
shows what its viewer may see and nothing else. A page's own trouble is a page, too: what, and what to do.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, cast
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from litestar import MediaType, Request, Response, Router, get, post
from litestar.datastructures import Cookie, State
from litestar.params import Parameter
from litestar.response import Redirect, Stream
from litestar.status_codes import HTTP_303_SEE_OTHER, HTTP_401_UNAUTHORIZED, HTTP_404_NOT_FOUND
from litestar.types import ControllerRouterHandler

from afterwrite.errors import UsageError
from afterwrite.lake.read import Between
from afterwrite.lake.tiers import Tiers, Told, ToldActivity
from afterwrite.postgres import Database, statement
from afterwrite.record import Kind, Operation
from afterwrite.scan.report.visible import visible
from afterwrite.search.diff import FieldChange, FieldKind, diff, read_fields
from afterwrite.search.find import find
from afterwrite.search.query import LONGEST_LINE, Query, QueryError, parse
from afterwrite.search.windows import Page, Place
from afterwrite.serve import boards, shown
from afterwrite.serve.auth import SESSION_COOKIE, Auth
from afterwrite.serve.callers import Caller, Scope
from afterwrite.serve.lakeside import both
from afterwrite.serve.paper import draw_page, frame, iso, read_form, read_static, refuse_foreign
from afterwrite.serve.problems import ProblemError, answer, explain
from afterwrite.serve.shown import ShownActivity, search_href, show
from afterwrite.serve.tenancy import reading
from afterwrite.serve.views import delete_view, read_views, save_view, view_href, view_links
from afterwrite.serve.visits import visit_of
from afterwrite.settings import Settings
from afterwrite.store.reader import StoredActivity, as_json

Asked = Request[Caller, None, State]

_LIVE_ROWS = 50
_PAGE_ROWS = 50
_MORE_ROWS = 100
_RATE_MINUTES = 60
_EXPORT_ROWS = 500
_MOST_EXPORTED = 100_000
# How long is looked for a page of rows where no index answers.
_LOOK_SECONDS = 1.0
_QUICK = (
    ("last hour", "after:1h"),
    ("24 hours", "after:1d"),
    ("7 days", "after:7d"),
    ("failures", "outcome:failure"),
    ("events", "kind:event"),
    ("deletions", "operation:delete"),
)


# --- live -------------------------------------------------------------------------------------------------------------


@get("/", include_in_schema=False)
async def live(request: Asked, caller: Caller, q: str = "") -> Response[str]:
    """What happens now."""
    query, wrong = _read(q)
    rate = [0] * _RATE_MINUTES
    now = datetime.now(UTC)
    async with reading(request.app.state, caller) as db:
        # Before the rows are read: what comes in between is in both, and the page knows it by its id.
        position: int = await db.value(statement("views.read_place"))
        found = await find(db, query, limit=_LIVE_ROWS) if query is not None else Page((), None, None)
        whole = query == Query() and caller.tenant is None
        if whole:
            rate = _fill_rate(await db.rows(_Rate, statement("views.read_rate"), minutes=_RATE_MINUTES), now)
        frame = await _frame(request, caller, db, "live")
    most = max(4, *rate)
    wide = 960 / len(rate)
    return draw_page(
        "live",
        **frame,
        line=q,
        wrong=wrong,
        chips=_chips(q, "/"),
        feed=f"/v1/feed?{urlencode({'q': q})}" if q else "/v1/feed",
        position=position,
        items=[show(each) for each in found.items],
        only_looks=whole and bool(found.items) and all(each.action == "activity.looked" for each in found.items),
        rate=rate,
        rate_until=now,
        rate_bars=[_bar(place, count, most, wide) for place, count in enumerate(rate)],
        rate_note=f"{rate[-1]:,} in this minute, at most {max(rate):,} in the last {len(rate)}"
        if whole
        else "counted from the moment when this page was opened",
    )


class _Rate(msgspec.Struct, frozen=True):
    minute: datetime
    rows: int


def _fill_rate(found: Sequence[_Rate], now: datetime) -> list[int]:
    """A count for each of the last minutes, the oldest first."""
    counts = {each.minute: each.rows for each in found}
    first = now.replace(second=0, microsecond=0) - timedelta(minutes=_RATE_MINUTES - 1)
    return [counts.get(first + timedelta(minutes=minute), 0) for minute in range(_RATE_MINUTES)]


def _bar(place: int, count: int, most: int, wide: float) -> dict[str, str]:
    tall = max(2.0, 84.0 * count / most) if count else 1.0
    figures = {"x": place * wide + 1, "y": 88 - tall, "width": wide - 2, "height": tall}
    return {name: f"{value:.1f}" for name, value in figures.items()}


# --- search -----------------------------------------------------------------------------------------------------------


@get("/search", include_in_schema=False)
async def search(
    request: Asked, caller: Caller, q: str = "", older: str = "", newer: str = "", view: int | None = None
) -> Response[str]:
    """Everything that fits a line, as pages; the browser makes one long list of them."""
    query, wrong = _read(q)
    told = Told(page=Page((), None, None))
    if query is not None:
        told = await _look(request, caller, query, _PAGE_ROWS, older, newer)
    page = told.page
    async with reading(request.app.state, caller) as db:
        frame = await _frame(request, caller, db, "search", search_href(q))
        saved = next((each for each in await read_views(db, caller) if each.id == view), None)
    return draw_page(
        "search",
        **frame,
        line=q,
        wrong=wrong,
        chips=_chips(q, "/search"),
        quick=_quick(q),
        view=saved,
        may_save=bool(q) and query is not None and saved is None,
        may_delete=saved is not None and (saved.made_by == caller.name or caller.may(Scope.ADMIN)),
        export=f"/search/export?{urlencode({'q': q})}",
        items=_shown(told),
        looked=page.looked,
        looked_up=bool(newer),
        lake_looked=told.lake_looked,
        looked_where=f", the store and the lake back to {told.days[0]}" if told.days else "",
        where=where(told),
        gap=gap(told),
        beyond=bool(older or newer),
        older=_token(page.older),
        newer=_token(page.newer),
        older_href=_page_href(q, older=page.older),
        newer_href=_page_href(q, newer=page.newer),
    )


@get("/search/rows", include_in_schema=False)
async def search_rows(request: Asked, caller: Caller, q: str = "", older: str = "", newer: str = "") -> Response[bytes]:
    """A page of rows for the long list, and the places where the next ones begin."""
    told = await _look(request, caller, parse(q), _MORE_ROWS, older, newer)
    page = told.page
    body = msgspec.json.encode(
        {
            "items": [as_json(each) | {"from_lake": each.id in told.lake} for each in page.items],
            "older": _token(page.older),
            "newer": _token(page.newer),
            "looked": page.looked,
            "where": where(told),
            "gap": gap(told),
        }
    )
    return Response(body, media_type=MediaType.JSON, headers={"cache-control": "private, no-cache"})


async def _look(request: Asked, caller: Caller, query: Query, rows: int, older: str, newer: str) -> Told:
    """A page of rows of both tiers, next to a place that an address carries."""
    return await both(request.app.state, caller).search(
        query, limit=rows, older_than=_place(older), newer_than=_place(newer), seconds=_LOOK_SECONDS
    )


def _shown(told: Told) -> list[ShownActivity]:
    return [show(each, from_lake=each.id in told.lake) for each in told.page.items]


def where(told: Told) -> str:
    """Where was looked, where a list ends; nothing where there is one place alone."""
    if told.why is not None:
        return "This is all that the store has."
    if not told.days:
        return "This is all of it."
    return f"This is all of it, in the store and in the lake, which goes back to {told.days[0]} here."


def gap(told: Told) -> str | None:
    """What may be missing from a page, and why; whom no page tells of the lake is told at the end alone."""
    if told.why is None or (told.walled and told.page.older is not None):
        return None
    return f"Not all was looked at here: {told.why}."


@get("/search/export", include_in_schema=False)
async def export(
    request: Asked, caller: Caller, q: str = "", format: Annotated[str, Parameter(pattern="^(csv|jsonl)$")] = "jsonl"
) -> Stream:
    """What fits, as a file: a line an activity, the newest first."""
    query = parse(q)
    write = _csv_lines if format == "csv" else _json_lines
    tiers = both(request.app.state, caller)

    async def read(place: Place | None) -> Told:
        # A transaction a page: how fast the client takes it must not hold one open.
        told = await tiers.search(query, limit=_EXPORT_ROWS, older_than=place)
        if told.why is not None and tiers.asker is not None and not told.walled:
            # A file that lacks days would be taken for all of it; one that breaks off is not.
            raise ProblemError(503, "lake", told.why, remedy="ask again, or for what is in the store: after:…")
        return told

    # So that trouble is told as such, while it still can be.
    first = await read(None)

    async def lines() -> AsyncGenerator[bytes]:
        told = first
        sent = 0
        if format == "csv":
            yield _csv_line(_COLUMNS)
        while True:
            yield write(told.page.items)
            sent += len(told.page.items)
            if told.page.older is None or sent >= _MOST_EXPORTED:
                return
            told = await read(told.page.older)

    async with reading(request.app.state, caller) as db:
        border = await tiers.find_border(db, Between(), ended=True)
    part = "-of-the-store" if border.why else ""
    name = f"activity{part}-{datetime.now(UTC):%Y%m%d-%H%M%S}.{format}"
    kind = "text/csv; charset=utf-8" if format == "csv" else "application/x-ndjson"
    headers = {
        "content-disposition": f'attachment; filename="{name}"',
        "cache-control": "private, no-store",
        "x-content-type-options": "nosniff",
    }
    return Stream(lines(), media_type=kind, headers=headers)


_COLUMNS = tuple(name for name in StoredActivity.__struct_fields__ if name not in ("position", "batch_id"))
# What a spreadsheet would take for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _json_lines(items: Iterable[StoredActivity]) -> bytes:
    return b"".join(msgspec.json.encode(as_json(each)) + b"\n" for each in items)


def _csv_lines(items: Iterable[StoredActivity]) -> bytes:
    return b"".join(_csv_line([_cell(getattr(each, name)) for name in _COLUMNS]) for each in items)


def _csv_line(cells: Iterable[str]) -> bytes:
    held = io.StringIO()
    csv.writer(held, lineterminator="\r\n").writerow(cells)
    return held.getvalue().encode()


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case datetime():
            return value.isoformat()
        case int() | float():
            return str(value)
        case tuple():
            text = ",".join(map(str, cast("tuple[object, ...]", value)))
        case _:
            text = str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _token(place: Place | None) -> str:
    """A place as an address carries it."""
    return "" if place is None else f"{place.occurred_at.isoformat()}~{place.id}"


def _place(text: str) -> Place | None:
    """The place that an address carries; raises UsageError for one that no page gave out."""
    if not text:
        return None
    moment, _, id = text.partition("~")
    try:
        if not _UUID.fullmatch(id):
            raise ValueError
        at = datetime.fromisoformat(moment)
        return Place(at if at.tzinfo else at.replace(tzinfo=UTC), id)
    except ValueError:
        raise UsageError("this address names no place in the list", remedy="search again from its beginning") from None


_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _page_href(line: str, **places: Place | None) -> str:
    return f"/search?{urlencode({'q': line, **{name: _token(place) for name, place in places.items() if place}})}"


# --- the query, in parts ----------------------------------------------------------------------------------------------


class Wrong(msgspec.Struct, frozen=True):
    """What is wrong with a line, and where."""

    text: str
    remedy: str | None
    column: int
    length: int


def _read(line: str) -> tuple[Query | None, Wrong | None]:
    try:
        return parse(line), None
    except QueryError as error:
        text = re.sub(r" \(column \d+\)$", "", str(error))
        return None, Wrong(text, error.remedy, error.column, error.length)


_TOKEN = re.compile(r'(?:[^\s"]|"(?:[^"\\]|\\.)*"?)+')
_KEYED = re.compile(r'(-?[A-Za-z_]+(?:\.(?:"(?:[^"\\]|\\.)*"|[^\s:",.\\]+))*):(.+)', re.DOTALL)


def _chips(line: str, page: str) -> list[dict[str, str]]:
    """The terms of a line as they were typed, each with the line without it; none of a line that is not read."""
    tokens = _TOKEN.findall(line) if len(line) <= LONGEST_LINE else []
    made: list[dict[str, str]] = []
    for place, token in enumerate(tokens):
        keyed = _KEYED.fullmatch(token)
        without = " ".join(tokens[:place] + tokens[place + 1 :])
        made.append(
            {
                "key": keyed[1] if keyed else "",
                "value": keyed[2] if keyed else token,
                "text": token,
                "without": search_href(without, page),
            }
        )
    return made


def _quick(line: str) -> list[dict[str, Any]]:
    """Narrowings one click away; one that is there already is taken away by it."""
    if len(line) > LONGEST_LINE:
        return []
    tokens = _TOKEN.findall(line)
    made: list[dict[str, Any]] = []
    for title, term in _QUICK:
        key = term.partition(":")[0]
        others = [token for token in tokens if not token.startswith(f"{key}:")]
        on = term in tokens
        made.append({"title": title, "on": on, "href": search_href(" ".join(others if on else [*others, term]))})
    return made


# --- an activity ------------------------------------------------------------------------------------------------------


@get("/activity/{id:str}", include_in_schema=False)
async def activity(request: Asked, caller: Caller, id: str) -> Response[str]:
    """Who did what, when and why, and what came of it."""
    tiers = both(request.app.state, caller)
    found = await tiers.read_activity(id) if _is_id(id) else ToldActivity(activity=None)
    it = found.activity
    if it is None:
        beyond = "" if found.why is None else f" {_sentence(found.why)}"
        gone = "It may not be stored yet, or retention has taken its day."
        raise _missing(f"There is no activity {id}{' in the store' if found.why else ''}", gone + beyond)
    cause = await tiers.read_cause(it)
    led = await tiers.effects(it)
    together = await tiers.same_transaction(it)
    async with reading(request.app.state, caller) as db:
        frame = await _frame(request, caller, db, "search")
    return draw_page(
        "activity",
        **frame,
        shown=show(it, from_lake=found.lake),
        changes=[_change(each) for each in diff(it)],
        cause=show(cause.activity, from_lake=cause.lake) if cause.activity else None,
        effects=_shown(led),
        effects_more=led.page.older is not None,
        together=[each for each in _shown(together) if each.activity.id != it.id],
        gaps={
            "cause": cause.why,
            "effects": None if led.walled else led.why,
            "together": None if together.walled else together.why,
        },
        facts=_facts(it),
        near=_near(it),
        metadata=[(name, text) for name, text in _metadata(it).items() if name != "reason"],
        raw=_pretty(it),
    )


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _change(each: FieldChange) -> dict[str, Any]:
    return {
        "name": each.name,
        "kind": each.kind.value,
        "before": _value(each.before),
        "after": _value(each.after),
        # Of an old row that is not kept only the new values are known; of a long value that stayed, nothing.
        "same": each.kind is FieldKind.UNKNOWN and each.after is None,
    }


_LONGEST_VALUE = 4_000


def _value(raw: bytes | msgspec.Raw | None) -> str | None:
    """A JSON value for people: a text without its quotes, unless it could be taken for something else."""
    if raw is None:
        return None
    text = bytes(raw).decode()
    found = json.loads(text) if text.startswith('"') else ""
    if found and not _LIKE_JSON.fullmatch(found):
        text = found
    more = len(text) - _LONGEST_VALUE
    return text if more <= 0 else f"{text[:_LONGEST_VALUE]}… ({more:,} more characters)"


_LIKE_JSON = re.compile(r'-?[\d.]+(?:[eE][+-]?\d+)?|true|false|null|\s.*|.*\s|["\[{].*', re.DOTALL)


class _Fact(msgspec.Struct, frozen=True):
    name: str
    value: str = ""
    href: str | None = None
    filter: str | None = None
    mono: bool = False
    at: datetime | None = None


def _facts(it: StoredActivity) -> list[_Fact]:
    def found(name: str, key: str, value: str | None, *, mono: bool = False) -> Iterable[_Fact]:
        if value is not None:
            yield _Fact(name, value, filter=search_href(f"{key}:{shown.word(value)}"), mono=mono)

    def plain(name: str, value: str | None, *, mono: bool = False) -> Iterable[_Fact]:
        if value is not None:
            yield _Fact(name, value, mono=mono)

    reason = _metadata(it).get("reason")
    place = None
    if it.xid is not None and it.commit_lsn:
        place = f"xid {it.xid}, commit {it.commit_lsn}" + (f", no. {it.ordinal + 1}" if it.ordinal is not None else "")
    entity = shown.entity_name(it.entity_type, it.entity_id)
    return [
        *found("actor", "actor", it.actor_id),
        *plain("actor type", it.actor_type),
        *plain("reason", None if reason == "null" else reason),
        _Fact("when", at=it.occurred_at),
        *([_Fact("lasted", f"{it.duration_ms:,.1f} ms")] if it.duration_ms is not None else []),
        *found("action", "action", it.action, mono=True),
        *found("category", "category", it.category),
        *([_Fact("entity", entity, href=shown.entity_href(it.entity_type, it.entity_id))] if entity else []),
        *plain("table", it.relation, mono=True),
        *found("tenant", "tenant", it.tenant_id),
        *found("request", "request", it.request_id, mono=True),
        *found("session", "session", it.session_id, mono=True),
        *found("trace", "trace", it.trace_id, mono=True),
        *found("address", "ip", it.ip, mono=True),
        *plain("browser", it.user_agent),
        *found("source", "source", it.source),
        *plain("in the WAL", place, mono=True),
        _Fact("in the feed", f"batch {it.batch_id}, position {it.position}", mono=True),
    ]


def _near(it: StoredActivity) -> list[dict[str, str]]:
    """Searches for what happened around it."""

    def link(title: str, seconds: float, *more: str) -> dict[str, str]:
        since, until = (it.occurred_at + timedelta(seconds=each) for each in (-seconds, seconds))
        terms = (f"after:{since.isoformat()}", f"before:{until.isoformat()}".replace("+00:00", "Z"), *more)
        return {"title": title, "href": search_href(" ".join(terms).replace("+00:00", "Z"))}

    made = [link("10 seconds", 5), link("a minute", 30), link("ten minutes", 300)]
    if it.actor_id is not None:
        made.append(link("this actor, an hour", 1_800, f"actor:{shown.word(it.actor_id)}"))
    return made


def _metadata(it: StoredActivity) -> dict[str, str]:
    """Texts without their quotes, all else as its JSON."""
    members = {name: bytes(raw).decode() for name, raw in read_fields(it.metadata).items()}
    return {name: json.loads(text) if text.startswith('"') else text for name, text in members.items()}


def _pretty(it: StoredActivity) -> str:
    """The whole as JSON over several lines. What would mislead the eye is escaped as JSON does it."""
    encoded = msgspec.json.encode(as_json(it))
    try:
        text = msgspec.json.format(encoded, indent=2).decode()
    except RecursionError:  # nobody reads what is nested so deep; it is told as it is
        text = encoded.decode()
    return "".join(_escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return letter if visible(letter) == letter else json.dumps(letter)[1:-1]


# --- an entity --------------------------------------------------------------------------------------------------------


@get("/entity", include_in_schema=False)
async def entity_by_parameters(
    request: Asked,
    caller: Caller,
    type: str = "",
    id: str = "",
    at: str = "",
    older: str = "",
    newer: str = "",
) -> Response[str]:
    """An entity's history, and its row as it was."""
    return await _draw_entity(request, caller, type, id, at=at, older=older, newer=newer)


@get("/entity/{type:str}/{id:str}", include_in_schema=False)
async def entity(
    request: Asked, caller: Caller, type: str, id: str, at: str = "", older: str = "", newer: str = ""
) -> Response[str]:
    """An entity's history, and its row as it was."""
    return await _draw_entity(request, caller, type, id, at=at, older=older, newer=newer)


@get("/entity/row", include_in_schema=False)
async def entity_row(request: Asked, caller: Caller, type: str = "", id: str = "", at: str = "") -> Response[bytes]:
    """The row as it was at a moment, for the slider."""
    moment = _moment(at) or datetime.now(UTC)
    body = msgspec.json.encode(await _row(both(request.app.state, caller), type, id, moment))
    return Response(body, media_type=MediaType.JSON, headers={"cache-control": "private, no-cache"})


_STEP_FIELDS = 6


async def _draw_entity(
    request: Asked, caller: Caller, type: str, id: str, *, at: str, older: str, newer: str
) -> Response[str]:
    tiers = both(request.app.state, caller)
    told = await tiers.entity_timeline(type, id, limit=_PAGE_ROWS, older_than=_place(older), newer_than=_place(newer))
    page = told.page
    moments = sorted({each.occurred_at for each in page.items if each.kind is Kind.CHANGE})
    moment = _moment(at) or (moments[-1] if moments else datetime.now(UTC))
    row = await _row(tiers, type, id, moment)
    async with reading(request.app.state, caller) as db:
        frame = await _frame(request, caller, db, "search")
    name = shown.entity_name(type, id) or ""
    href = shown.entity_href(type, id) or "/entity"
    joint = "&" if "?" in href else "?"
    return draw_page(
        "entity",
        **frame,
        name=name,
        type=type,
        type_href=search_href(f"entity:{shown.word(type)}"),
        search=search_href(f"entity:{shown.word(name)}"),
        live=search_href(f"entity:{shown.word(name)}", "/"),
        steps=[_step(each, moment, f"{href}{joint}") for each in _shown(told)],
        where=where(told) if told.days or told.why else None,
        gap=gap(told),
        older_href=f"{href}{joint}{urlencode({'older': _token(page.older)})}" if page.older else None,
        newer_href=f"{href}{joint}{urlencode({'newer': _token(page.newer)})}" if page.newer else None,
        slider=[iso(each) for each in moments],
        slider_at=max((place for place, each in enumerate(moments) if each <= moment), default=0),
        slider_first=moments[0] if moments else moment,
        slider_last=moments[-1] if moments else moment,
        row=row,
        row_api=f"/entity/row?{urlencode({'type': type, 'id': id})}",
    )


def _step(shown: ShownActivity, moment: datetime, href: str) -> dict[str, Any]:
    it = shown.activity
    changes = [_change(each) for each in diff(it)] if it.operation is not Operation.DELETE else []
    return {
        "shown": shown,
        "is_change": it.kind is Kind.CHANGE,
        "at": it.kind is Kind.CHANGE and it.occurred_at == moment,
        "at_href": f"{href}{urlencode({'at': iso(it.occurred_at)})}",
        "changes": changes[:_STEP_FIELDS],
        "more": max(0, len(changes) - _STEP_FIELDS),
    }


class Row(msgspec.Struct, frozen=True):
    """A row as it was, in words."""

    at: datetime
    exists: bool | None
    said: str
    fields: list[Field]


class Field(msgspec.Struct, frozen=True):
    """One of its fields; ``unsure`` says why its value cannot be known, ``touched`` that it was just changed."""

    name: str
    value: str
    unsure: str | None
    touched: bool


async def _row(tiers: Tiers, type: str, id: str, moment: datetime) -> Row:
    told = (await tiers.row_at(type, id, moment)).row
    touched: frozenset[str] = frozenset()
    if told.since is not None and told.since.occurred_at == moment:
        touched = frozenset(each.name for each in diff(told.since))
    fields: list[Field] = []
    for name in dict.fromkeys((*told.values, *told.unsure)):
        value = _value(told.values.get(name)) or ""
        fields.append(Field(name, value, told.unsure.get(name), name in touched))
    match told.exists:
        case True:
            said = "The row as it stood after this moment." + (
                " What this change touched is marked." if touched else ""
            )
        case False:
            said = "There was no such row then." + (" These are its nearest known values." if fields else "")
        case None:
            said = "What is stored does not tell whether there was such a row then."
    if told.entity_id != id:
        said += f" Its key was {told.entity_id} then."
    return Row(at=moment, exists=told.exists, said=" ".join((said, *map(_sentence, told.doubts))), fields=fields)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        # Beyond these no time zone can push it out of what datetime holds.
        if not 1 < at.year < 9999:
            raise ValueError
    except ValueError:
        raise UsageError(f"{text[:40]} is no moment", remedy="write it as 2026-11-01T14:05:00Z") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


# --- saved views ------------------------------------------------------------------------------------------------------


@post("/views", include_in_schema=False)
async def keep_view(request: Asked, caller: Caller) -> Redirect:
    """Keep the search that is shown."""
    form = await read_form(request)
    settings: Settings = request.app.state.settings
    kept = await save_view(settings, caller, str(form.get("name", "")), str(form.get("query", "")))
    return Redirect(view_href(kept), status_code=HTTP_303_SEE_OTHER)


@post("/views/{id:int}/delete", include_in_schema=False)
async def forget_view(request: Asked, caller: Caller, id: int) -> Redirect:
    """Forget a view."""
    refuse_foreign(request)
    settings: Settings = request.app.state.settings
    if not await delete_view(settings, caller, id):
        raise _missing("There is no such view of yours", "An admin key deletes those of others.")
    return Redirect("/search", status_code=HTTP_303_SEE_OTHER)


# --- what they share --------------------------------------------------------------------------------------------------


async def _frame(request: Asked, caller: Caller, db: Database, page: str, here: str = "") -> dict[str, Any]:
    """What is drawn around a page."""
    return frame(request, caller, page, here=here, views=await view_links(db, caller))


def _missing(text: str, remedy: str) -> ProblemError:
    return ProblemError(404, "", text, remedy=remedy)


def _explain_on_a_page(request: Asked, error: Exception) -> Response[Any]:
    """Trouble as a page: what, and what to do; whoever is not known yet is asked for his key."""
    found = explain(error)
    problem = found.problem
    if problem.status == HTTP_401_UNAUTHORIZED and request.method == "GET":
        there = str(request.url.path) + (f"?{request.url.query}" if request.url.query else "")
        return Redirect(f"/login?{urlencode({'next': there})}", status_code=HTTP_303_SEE_OTHER)
    if "text/html" not in request.headers.get("accept", "text/html"):
        return answer(problem, found.headers)
    caller = visit_of(request.scope).caller or Caller("nobody", frozenset())
    text = problem.detail or problem.title
    return draw_page(
        "trouble",
        status=problem.status,
        **frame(request, caller, "trouble"),
        title=problem.title,
        text=text[:1].upper() + text[1:] + ("" if text.endswith((".", "?")) else "."),
        remedy=None if problem.status == HTTP_404_NOT_FOUND and "openapi" in (problem.remedy or "") else problem.remedy,
    )


@get("/login", include_in_schema=False, opt={"public": True})
async def ask_key(request: Asked, next: str = "/") -> Response[str]:
    """The page that asks for a key."""
    return _draw_login(request, next)


@post("/login", include_in_schema=False, opt={"public": True})
async def log_in(request: Asked) -> Response[Any]:
    """Begin a session with a key, in a cookie that no script can read and no other site can send."""
    form = await read_form(request)
    there = str(form.get("next", "/"))
    auth: Auth = request.app.state.auth
    try:
        session = await auth.log_in(str(form.get("key", "")))
    except ProblemError as error:
        if error.problem.status >= 500:
            raise
        visit_of(request.scope).refusal = error
        text = error.problem.detail or "this key opens nothing"
        return _draw_login(request, there, wrong=text[:1].upper() + text[1:], status=error.problem.status)
    return Redirect(
        _own_path(there),
        status_code=HTTP_303_SEE_OTHER,
        cookies=[
            Cookie(
                SESSION_COOKIE, value=session, secure=visit_of(request.scope).secure, httponly=True, samesite="strict"
            )
        ],
    )


@post("/logout", include_in_schema=False, opt={"public": True})
async def log_out(request: Asked) -> Response[Any]:
    """End the session of this browser."""
    refuse_foreign(request)
    return Redirect(
        "/login",
        status_code=HTTP_303_SEE_OTHER,
        cookies=[Cookie(SESSION_COOKIE, value="", max_age=0, httponly=True, samesite="strict")],
    )


def _draw_login(request: Asked, there: str, *, wrong: str | None = None, status: int = 200) -> Response[str]:
    around = frame(request, Caller("nobody", frozenset()), "login")
    return draw_page("login", status=status, **around, next=_own_path(there), wrong=wrong)


def _own_path(there: str) -> str:
    """Where to go on after the login: a path of ours, and never another site that somebody wrote into the address."""
    return there if _OWN_PATH.fullmatch(there) and not there.startswith(("/login", "/logout")) else "/"


# Browsers take a backslash for a slash, and two of them for another host.
_OWN_PATH = re.compile(r"/(?![/\\\\])[^\\\\\x00-\x20\x7f]*")


@get("/static/{version:str}/{name:str}", include_in_schema=False, opt={"public": True})
async def static(version: str, name: str) -> Response[bytes]:
    """A file that the pages use; the address names the version of all of them."""
    found = read_static(name)
    if found is None:
        raise _missing("There is no such file", "")
    return found


_ROOM = Router(
    "/",
    route_handlers=[
        live, search, search_rows, export, activity, entity, entity_by_parameters, entity_row, keep_view, forget_view,
        ask_key, log_in, log_out, static, *boards.routes,
    ],
    exception_handlers={Exception: _explain_on_a_page},
    include_in_schema=False,
)  # fmt: skip
routes: list[ControllerRouterHandler] = [_ROOM]
