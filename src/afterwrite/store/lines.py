r"""Activities as the lines that COPY reads, fast where values are ordinary and exact where they are not.

PostgreSQL cannot keep everything that an activity may say: no NUL in text or jsonb, no lone surrogate, no text beyond
an index's limit, no address in ``ip`` that is none. One such value must not poison its batch, and must not be lost:
the column gets the nearest value that can be kept (``␀`` for NUL, ``�`` for a surrogate, null for the rest), and
``metadata.exact`` the original's bytes, by column, in base64.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from functools import lru_cache
from itertools import islice

import msgspec

from afterwrite.activity import Activities, Activity

# The order in which the fields of a line stand.
COLUMNS = (
    "id", "occurred_at", "batch_id", "source", "kind", "category", "action", "outcome", "severity",
    "entity_type", "entity_id", "actor_id", "actor_type", "tenant_id", "session_id", "request_id", "trace_id",
    "ip", "user_agent", "duration_ms", "summary", "relation", "operation", "changed", "before", "after", "metadata",
    "caused_by", "xid", "commit_lsn", "ordinal",
)  # fmt: skip
TEXTS = (
    "source", "category", "action", "entity_type", "entity_id", "actor_id", "actor_type", "tenant_id", "session_id",
    "request_id", "trace_id", "user_agent", "summary", "relation",
)  # fmt: skip
JSONS = ("before", "after", "metadata")
CHUNK_ROWS = 1_000
# A b-tree entry holds 2,704 bytes. Two of these (entity_type and entity_id, four bytes a character) stay below it.
LONGEST_INDEXED = 300
# jsonb refuses a string beyond 256 MiB; base64 makes four bytes of three.
LONGEST_EXACT = 190 * 1024 * 1024

# Bytes that UTF-8 never uses hold the places of separators and nulls while a whole chunk is escaped at once.
_FIELD, _ROW, _NULL = b"\xfe", b"\xfd", b"\xff"


class Span(msgspec.Struct, frozen=True):
    """When the activities of a batch happened, and on which days (UTC)."""

    first_at: datetime
    last_at: datetime
    days: frozenset[date]


def span(activities: Activities, moments: frozenset[datetime] | None = None) -> Span:
    """The stretch of time that these activities (at least one) cover; ``moments`` are theirs, where they are known."""
    if moments is None:
        moments = frozenset(activity.occurred_at for activity in activities)
    return Span(min(moments), max(moments), frozenset(moment.astimezone(UTC).date() for moment in moments))


def copy_lines(activities: Activities, batch_id: int) -> Iterator[bytes]:
    """Chunks of COPY text (default delimiter and null) with the columns in the order of ``COLUMNS``."""
    remaining = iter(activities)
    batch = b"%d" % batch_id
    while chunk := tuple(islice(remaining, CHUNK_ROWS)):
        try:
            lines = _join(chunk, batch)
        except UnicodeEncodeError:
            lines = None
        if lines is None:
            lines = _join([storable(activity) for activity in chunk], batch)
        if lines is None:
            raise ValueError("an activity's JSON is not UTF-8")
        yield lines


def _join(activities: Sequence[Activity], batch: bytes) -> bytes | None:
    """The chunk's lines, or None when some value in it may not be kept as it is."""
    null = _NULL
    moments: dict[datetime, bytes] = {}
    rows: list[bytes] = []
    jsons: list[msgspec.Raw] = []
    for a in activities:
        at = moments.get(a.occurred_at)
        if at is None:
            at = moments[a.occurred_at] = _moment(a.occurred_at)
        ip = null if a.ip is None else _address(a.ip)
        caused_by = null if a.caused_by is None else _identity(a.caused_by)
        if ip is None or caused_by is None:
            return None
        jsons += [raw for raw in (a.before, a.after, a.metadata) if raw is not None]
        rows.append(
            _FIELD.join(
                (
                    a.id.encode(),
                    at,
                    batch,
                    a.source.encode(),
                    a.kind.encode(),
                    a.category.encode(),
                    a.action.encode(),
                    a.outcome.encode(),
                    a.severity.encode(),
                    null if a.entity_type is None else a.entity_type.encode(),
                    null if a.entity_id is None else a.entity_id.encode(),
                    null if a.actor_id is None else a.actor_id.encode(),
                    null if a.actor_type is None else a.actor_type.encode(),
                    null if a.tenant_id is None else a.tenant_id.encode(),
                    null if a.session_id is None else a.session_id.encode(),
                    null if a.request_id is None else a.request_id.encode(),
                    null if a.trace_id is None else a.trace_id.encode(),
                    ip,
                    null if a.user_agent is None else a.user_agent.encode(),
                    null if a.duration_ms is None else b"%r" % a.duration_ms,
                    null if a.summary is None else a.summary.encode(),
                    null if a.relation is None else a.relation.encode(),
                    null if a.operation is None else a.operation.encode(),
                    null if a.changed is None else _array(a.changed),
                    null if a.before is None else a.before,
                    null if a.after is None else a.after,
                    null if a.metadata is None else a.metadata,
                    caused_by,
                    null if a.xid is None else b"%d" % a.xid,
                    null if a.commit_lsn is None else _lsn(a.commit_lsn),
                    null if a.ordinal is None else b"%d" % a.ordinal,
                )
            )
        )
    data = _ROW.join(rows)
    if b"\0" in data or not _plain(b"".join(jsons)):
        return None
    data = data.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r").replace(b"\t", b"\\t")
    return data.replace(_NULL, b"\\N").replace(_FIELD, b"\t").replace(_ROW, b"\n") + b"\n"


def _plain(jsons: bytes) -> bool:
    """Whether these JSON texts are UTF-8 (so that no byte is a separator of ours) without an escape jsonb refuses."""
    try:
        jsons.decode()
    except UnicodeDecodeError:
        return False
    return b"\\" not in jsons or b"\\u" not in jsons or json_without_nul(jsons) == jsons


def _moment(moment: datetime) -> bytes:
    if moment.tzinfo is None:
        raise ValueError("an activity's occurred_at has no time zone")
    return moment.astimezone(UTC).isoformat(" ").encode()


@lru_cache(maxsize=4_096)
def _lsn(lsn: int) -> bytes:
    return b"%X/%X" % (lsn >> 32, lsn & 0xFFFFFFFF)


@lru_cache(maxsize=4_096)
def _array(names: tuple[str, ...]) -> bytes:
    quoted = ('"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names)
    return ("{" + ",".join(quoted) + "}").encode()


@lru_cache(maxsize=4_096)
def _address(text: str) -> bytes | None:
    """The address as inet takes it, or None when it is none (inet knows no zone)."""
    try:
        return (
            None
            if "%" in text
            else str(ipaddress.ip_interface(text) if "/" in text else ipaddress.ip_address(text)).encode()
        )
    except ValueError:
        return None


@lru_cache(maxsize=4_096)
def _identity(text: str) -> bytes | None:
    try:
        return str(uuid.UUID(text)).encode()
    except ValueError:
        return None


def storable(activity: Activity, refused: frozenset[str] = frozenset(), *, shorten: bool = False) -> Activity:
    """The same activity where all of it can be kept, else one that can, with the originals under ``metadata.exact``.

    ``refused`` names the JSON columns that the server would not take; ``shorten`` cuts texts that an index cannot hold.
    """
    swaps: dict[str, object] = {}
    exact: dict[str, str | dict[str, object]] = {}

    def swap(column: str, original: bytes, value: object) -> None:
        swaps[column] = value
        exact[column] = _exact(original)

    for column in TEXTS:
        text: str | None = getattr(activity, column)
        if text is None:
            continue
        kept = _without_nul(text)
        if shorten and column != "summary" and len(kept) > LONGEST_INDEXED:
            kept = f"{kept[: LONGEST_INDEXED - 17]}…{hashlib.blake2b(kept.encode(), digest_size=8).hexdigest()}"
        if kept != text:
            swap(column, text.encode(errors="surrogatepass"), kept)
    if activity.changed and any(_without_nul(name) != name for name in activity.changed):
        names = "\n".join(activity.changed).encode(errors="surrogatepass")
        swap("changed", names, tuple(_without_nul(name) for name in activity.changed))
    if activity.ip is not None and (_odd(activity.ip) or _address(activity.ip) is None):
        swap("ip", activity.ip.encode(errors="surrogatepass"), None)
    if activity.caused_by is not None and (_odd(activity.caused_by) or _identity(activity.caused_by) is None):
        swap("caused_by", activity.caused_by.encode(errors="surrogatepass"), None)
    for column in JSONS:
        raw: msgspec.Raw | None = getattr(activity, column)
        if raw is None:
            continue
        kept_json = None if column in refused else json_without_nul(bytes(raw))
        if kept_json is None or kept_json != bytes(raw):
            swap(column, bytes(raw), None if kept_json is None else msgspec.Raw(kept_json))
    if not exact:
        return activity
    swaps["metadata"] = _with_exact(swaps.get("metadata", activity.metadata), exact)
    return msgspec.structs.replace(activity, **swaps)


def _odd(text: str) -> bool:
    return _without_nul(text) != text


def _without_nul(text: str) -> str:
    return _SURROGATE.sub("�", text.replace("\0", "␀"))


_SURROGATE = re.compile("[\ud800-\udfff]")
# A backslash in valid JSON stands only in strings: a pair of surrogates, one code unit, or a short escape.
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u(?P<unit>[0-9a-fA-F]{4})|\\.", re.DOTALL
)


def json_without_nul(raw: bytes) -> bytes | None:
    """JSON that jsonb takes, as far as its characters go; None when it is not even UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return None

    def swap(match: re.Match[bytes]) -> bytes:
        unit = match["unit"]
        if unit is None:
            return match[0]
        code = int(unit, 16)
        return b"\\u2400" if code == 0 else b"\\ufffd" if 0xD800 <= code <= 0xDFFF else match[0]

    kept = _ESCAPE.sub(swap, raw) if b"\\u" in raw else raw
    return None if b"\0" in kept else kept


def _exact(original: bytes) -> str | dict[str, object]:
    if len(original) > LONGEST_EXACT:
        return {"bytes": len(original), "sha256": hashlib.sha256(original).hexdigest()}
    return base64.b64encode(original).decode()


def _with_exact(metadata: object, exact: dict[str, str | dict[str, object]]) -> msgspec.Raw:
    kept: dict[str, object] = {}
    if isinstance(metadata, msgspec.Raw):
        try:
            kept.update(msgspec.json.decode(metadata, type=dict[str, msgspec.Raw]))
        except (msgspec.DecodeError, RecursionError):
            exact = {"metadata": _exact(bytes(metadata)), **exact}
    return msgspec.Raw(msgspec.json.encode({**kept, "exact": exact}))
