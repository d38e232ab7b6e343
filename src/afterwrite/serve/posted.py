"""What is handed in, as activities: in our own form, as the recorder sends it, or as CloudEvents. Pure.

::

    {"activities": [{…}, …]}                     application/json
    {"specversion": "1.0", "id": …, …}           application/cloudevents+json
    [{"specversion": "1.0", …}, …]               application/cloudevents-batch+json

Each is read by itself: one that cannot be taken is refused with a reason, and holds up no other. What may come twice
must be known again, by its id and its time: a UUIDv7 says its own, any other id comes with one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

import msgspec

from afterwrite.jsonb import measure_depth
from afterwrite.record import Activity, Category, Kind, Level, Outcome
from afterwrite.recorder.ids import Ids, moment_of
from afterwrite.serve.callers import Caller

JSON = "application/json"
EVENT = "application/cloudevents+json"
EVENTS = "application/cloudevents-batch+json"
MOST_POSTED = 1_000

_NULL = msgspec.Raw(b"null")
# Of metadata and rows; recorders send no more than 64.
_DEEPEST = 200
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Extension attributes of CloudEvents that say what an activity says elsewhere.
_EXTENSIONS = {
    "actorid": "actor_id",
    "actortype": "actor_type",
    "tenantid": "tenant_id",
    "sessionid": "session_id",
    "requestid": "request_id",
    "summary": "summary",
    "category": "category",
    "outcome": "outcome",
    "severity": "severity",
}
_ATTRIBUTES = frozenset(
    {"specversion", "id", "source", "type", "time", "subject", "data", "data_base64", *_EXTENSIONS, "traceparent"}
)
_OF_CHANGES = ("relation", "operation", "xid", "commit_lsn", "ordinal")


class UnusableError(Exception):
    """The body is none of the forms that are known."""


class TooManyError(Exception):
    """The body holds more than may be handed in at once."""


class Refused(msgspec.Struct, frozen=True):
    """What is not taken, and why; ``id`` as it was given."""

    id: str
    reason: str


class Posted(msgspec.Struct, kw_only=True):
    """An event as it is handed in. Without ``id`` it gets one, and would be stored again if it came again."""

    action: str
    id: str | None = None
    occurred_at: datetime | None = None
    source: str | None = None
    kind: Literal["event"] = "event"
    category: str = Category.SYSTEM.value
    outcome: Outcome = Outcome.SUCCESS
    severity: Level = Level.INFO
    entity_type: str | None = None
    entity_id: str | None = None
    actor_id: str | None = None
    actor_type: str | None = None
    tenant_id: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    trace_id: str | None = None
    ip: str | None = None
    user_agent: str | None = None
    duration_ms: float | None = None
    summary: str | None = None
    changed: tuple[str, ...] | None = None
    before: msgspec.Raw = _NULL
    after: msgspec.Raw = _NULL
    metadata: msgspec.Raw = _NULL
    caused_by: str | None = None
    relation: str | None = None
    operation: str | None = None
    xid: int | None = None
    commit_lsn: str | int | None = None
    ordinal: int | None = None


class _Body(msgspec.Struct):
    activities: list[msgspec.Raw]


class _Named(msgspec.Struct):
    """As much of anything as says which it is."""

    id: str = ""


_posted = msgspec.json.Decoder(Posted)
_body = msgspec.json.Decoder(_Body)
_list = msgspec.json.Decoder(list[msgspec.Raw])
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_named = msgspec.json.Decoder(_Named)
_text = msgspec.json.Decoder(str)


def read_posted(kind: str, body: bytes, caller: Caller, ids: Ids) -> list[Activity | Refused]:
    """What a body of this media type holds, in its order. Raises UnusableError and TooManyError for the whole of it."""
    try:
        match kind:
            case "application/json":
                items = _body.decode(body).activities
            case "application/cloudevents-batch+json":
                items = _list.decode(body)
            case _:
                items = [msgspec.Raw(body)]
                _object.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnusableError(str(error)) from error
    if len(items) > MOST_POSTED:
        raise TooManyError
    read = _read_own if kind == JSON else _read_event
    return [_read(item, caller, ids, read) for item in items]


_Reader = Callable[[msgspec.Raw, Caller], Posted]


def _read(item: msgspec.Raw, caller: Caller, ids: Ids, read: _Reader) -> Activity | Refused:
    try:
        return _activity(read(item, caller), caller, ids)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, _NotTakenError) as error:
        reason = str(error)
    try:
        return Refused(_named.decode(item).id, reason)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Refused("", reason)


class _NotTakenError(Exception):
    """Why one of them is refused."""


def _activity(posted: Posted, caller: Caller, ids: Ids) -> Activity:
    for name in _OF_CHANGES:
        if getattr(posted, name) is not None:
            raise _NotTakenError(f"{name} is a change's: those are captured, and not handed in")
    for name in ("action", "category"):
        if not getattr(posted, name):
            raise _NotTakenError(f"{name} is empty")
    if caller.tenant is not None and posted.tenant_id not in (None, caller.tenant):
        raise _NotTakenError("tenant_id is not the tenant whose key this is")
    id, moment = _identity(posted, ids)
    return Activity(
        id=id,
        occurred_at=moment,
        source=posted.source or caller.name,
        kind=Kind.EVENT,
        category=posted.category,
        action=posted.action,
        outcome=posted.outcome,
        severity=posted.severity,
        entity_type=posted.entity_type,
        entity_id=posted.entity_id,
        actor_id=posted.actor_id,
        actor_type=posted.actor_type,
        tenant_id=posted.tenant_id if caller.tenant is None else caller.tenant,
        session_id=posted.session_id,
        request_id=posted.request_id,
        trace_id=posted.trace_id,
        ip=posted.ip,
        user_agent=posted.user_agent,
        duration_ms=posted.duration_ms,
        summary=posted.summary,
        changed=posted.changed,
        before=_json("before", posted.before),
        after=_json("after", posted.after),
        metadata=_json("metadata", posted.metadata),
        caused_by=posted.caused_by,
    )


def _identity(posted: Posted, ids: Ids) -> tuple[str, datetime]:
    moment = posted.occurred_at
    if moment is not None:
        try:
            moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except OverflowError:
            raise _NotTakenError("occurred_at is beyond the calendar") from None
    if posted.id is None:
        return ids.make(), moment or datetime.now(UTC)
    try:
        id = str(UUID(posted.id))
    except ValueError:
        raise _NotTakenError("id is no UUID") from None
    moment = moment or moment_of(id)
    if moment is None:
        raise _NotTakenError("occurred_at is missing: with an id that is no UUIDv7, it would be stored again each time")
    return id, moment


def _json(name: str, raw: msgspec.Raw) -> msgspec.Raw | None:
    text = bytes(raw).lstrip()
    if text == b"null":
        return None
    if not text.startswith(b"{"):
        raise _NotTakenError(f"{name} is no JSON object")
    if text.count(b"[") + text.count(b"{") > _DEEPEST and measure_depth(text) > _DEEPEST:
        raise _NotTakenError(f"{name} is nested deeper than {_DEEPEST} levels")
    return msgspec.Raw(bytes(raw))


def _read_own(item: msgspec.Raw, caller: Caller) -> Posted:
    return _posted.decode(item)


def _read_event(item: msgspec.Raw, caller: Caller) -> Posted:
    """A CloudEvent as we have it: its type is the action, its subject ``type/id`` the entity, its data in metadata."""
    said = _object.decode(item)
    words = {name: _word(said, name) for name in ("specversion", "id", "source", "type")}
    if words["specversion"] != "1.0":
        raise _NotTakenError(f"specversion is {words['specversion']!r}, and 1.0 is what is read here")
    empty = [name for name, word in words.items() if not word]
    if empty:
        raise _NotTakenError(f"{empty[0]} is missing: a CloudEvent has one")
    source, id = words["source"] or "", words["id"] or ""
    moment = _moment(said)
    fields: dict[str, object] = {
        field: _word(said, name)
        for name, field in _EXTENSIONS.items()
        if name in said and _word(said, name) is not None
    }
    if (trace := _word(said, "traceparent")) and trace.count("-") >= 3:
        fields["trace_id"] = trace.split("-")[1]
    subject = _word(said, "subject")
    if subject:
        kind, _, number = subject.partition("/")
        fields |= {"entity_type": kind, "entity_id": number} if kind and number else {"entity_id": subject}
    rest = {name: raw for name, raw in said.items() if name not in _ATTRIBUTES}
    told: dict[str, object] = {"cloudevent": {"id": id, **rest}}
    for name in ("data", "data_base64"):
        if name in said:
            told[name] = said[name]
    return _posted.decode(
        msgspec.json.encode(
            {
                **fields,
                "id": _event_id(caller.tenant or str(fields.get("tenant_id", "")), source, id, moment),
                "occurred_at": moment,
                "source": source,
                "action": words["type"],
                "metadata": told,
            }
        )
    )


def _event_id(tenant: str, source: str, id: str, moment: datetime | None) -> str:
    """The id of an event of this source: its own where that is a UUIDv7, else one made of source, id and time.

    The tenant is part of it: another one, who can guess the rest, must not have been there first.
    """
    try:
        if moment_of(id) is not None:
            return str(UUID(id))
    except ValueError:
        pass
    if moment is None:
        raise _NotTakenError(
            "time is missing: with an id that is no UUIDv7, it would be stored again each time it comes"
        )
    milliseconds = (moment - _EPOCH) // timedelta(milliseconds=1)
    if not 0 <= milliseconds < 1 << 48:
        raise _NotTakenError("time is beyond the calendar")
    words = "".join(f"{len(word)}:{word}" for word in (tenant, source, id))
    digest = hashlib.sha256(words.encode(errors="surrogatepass")).digest()
    number = milliseconds << 80 | int.from_bytes(digest[:10], "big")
    number = number & ~(0xF << 76) | 8 << 76
    return str(UUID(int=number & ~(0x3 << 62) | 2 << 62))


def _moment(said: dict[str, msgspec.Raw]) -> datetime | None:
    if "time" not in said or bytes(said["time"]) == b"null":
        return None
    moment = msgspec.json.decode(said["time"], type=datetime)
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        raise _NotTakenError("time is beyond the calendar") from None


def _word(said: dict[str, msgspec.Raw], name: str) -> str | None:
    raw = said.get(name)
    if raw is None or bytes(raw) == b"null":
        return None
    try:
        return _text.decode(raw)
    except msgspec.ValidationError:
        raise _NotTakenError(f"{name} is no string") from None


def count_bytes(activities: Iterable[Activity]) -> int:
    """About how much memory these take while they wait."""
    return sum(
        500 + sum(len(bytes(raw)) for raw in (each.before, each.after, each.metadata) if raw is not None)
        for each in activities
    )
