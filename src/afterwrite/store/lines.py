r"""Activities as the lines that COPY reads and, byte for byte, as COPY gives them back: that is what the seal is over.

::

    [Activity] ──CopyLines──▶ COPY … FROM STDIN ──▶ store ──▶ COPY … TO STDOUT ──▶ Sealing
                     └──────────────── the same bytes: the same sha256 ───────────────┘

So each value is written as the server's own output function writes it (under TimeZone UTC and DateStyle ISO), and rows
go in the order of the seal: commit_lsn with nulls first, ordinal, occurred_at, id.

PostgreSQL cannot keep everything that an activity may say: no NUL in text or jsonb, no lone surrogate, no text beyond
an index's limit, no address in ``ip`` that is none. One such value must not poison its batch, and must not be lost:
the column gets the nearest value that can be kept (``␀`` for NUL, ``�`` for a surrogate, null for the rest), and
``metadata.exact`` the original's bytes, by column, in base64. JSON is kept as the text it came as, and casts to jsonb.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from math import inf, isinf, isnan, nextafter
from typing import cast

import msgspec

from afterwrite.jsonb import fits_jsonb, may_hold_large_numbers, measure_depth, with_jsonb_characters
from afterwrite.record import (
    Activities,
    Activity,
    Entries,
    Entry,
    Json,
    Kind,
    Origin,
    Sort,
    origin_values,
    sort_values,
    to_activity,
    to_entries,
)

# The order in which the fields of a line stand: what a row has for itself, then what it shares with the others of its
# transaction, then what it shares with the others of its table and operation. Shared parts are made once a chunk.
_OWN = ("id", "ordinal", "entity_id", "summary", "duration_ms", "changed", "before", "after", "metadata")
COLUMNS = (*_OWN, "batch_id", *Origin.__struct_fields__, *Sort.__struct_fields__)
TEXTS = (
    "source", "category", "action", "entity_type", "entity_id", "actor_id", "actor_type", "tenant_id", "session_id",
    "request_id", "trace_id", "user_agent", "summary", "relation",
)  # fmt: skip
JSONS = ("before", "after", "metadata")
# A b-tree entry holds 2,704 bytes. Two of these (entity_type and entity_id, four bytes a character) stay below it.
LONGEST_INDEXED = 300
# jsonb refuses a string beyond 256 MiB; base64 makes four bytes of three.
LONGEST_EXACT = 190 * 1024 * 1024

# Rows are put together a chunk at a time: as many as make about a megabyte.
_FIRST_ROWS, _MOST_ROWS, _CHUNK_BYTES = 128, 1_000, 1024 * 1024
# Both json and jsonb are read by recursion, as deep as max_stack_depth allows (16,300 by default): what is nested less
# than a third as deep is read wherever a query stands.
_DEEPEST = 5_000
# Longer JSON may be beyond what jsonb holds, where json takes it: a number of two bytes needs twelve, of 256 MiB.
_DOUBTED_BYTES = 16 * 1024 * 1024

# Bytes that UTF-8 never uses hold the places of separators and nulls while a whole chunk is escaped at once.
_FIELD, _ROW, _NULL = b"\xfe", b"\xfd", b"\xff"
_SEPARATORS = bytes.maketrans(_FIELD + _ROW, b"\t\n")
_RELATION, _BATCH = COLUMNS.index("relation"), COLUMNS.index("batch_id")


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


class Seal(msgspec.Struct, frozen=True):
    """What a batch's rows amount to: how many in all and of each relation ('' counts events), sha256 of their lines."""

    rows: int
    rows_per_table: dict[str, int]
    digest: bytes


class Sealing:
    """Makes the seal of lines as the server gives them, in the order of the seal."""

    def __init__(self) -> None:
        self._tables: Counter[bytes] = Counter()
        self._hash = hashlib.sha256()

    def add(self, line: bytes) -> None:
        """One line, with its end."""
        self._tables[line.split(b"\t", _RELATION + 1)[_RELATION]] += 1
        self._hash.update(line)

    def seal(self) -> Seal:
        tables = {"" if name == b"\\N" else _unescape(name): count for name, count in self._tables.items()}
        return Seal(self._tables.total(), tables, self._hash.digest())


def read_batch_id(line: bytes) -> int:
    """The batch that a line belongs to."""
    return int(line.split(b"\t", _BATCH + 1)[_BATCH])


class DoubtError(Exception):
    """Whether jsonb holds a JSON of these activities only the server can tell: it is very long."""


class CopyLines:
    """One reading of these activities as chunks of COPY text; ``seal()`` when all were given.

    Raises DoubtError for JSON that only the server can judge, unless it was asked already (``doubting=False``). A list
    is brought into the order of the seal; for what is read as it goes, and does not come so, ``seal()`` is None.
    """

    def __init__(self, activities: Activities | Entries, batch_id: int, *, doubting: bool = True) -> None:
        self._entries = _by_seal(activities)
        self._ordered = True
        self._batch = b"%d" % batch_id
        self._doubting = doubting
        self._tables: Counter[str | None] = Counter()
        self._hash = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        remaining = iter(self._entries)
        last: tuple[Entry, ...] = ()
        rows = _FIRST_ROWS
        while chunk := tuple(islice(remaining, rows)):
            lines = self._lines(chunk)
            self._ordered = self._ordered and _is_ordered((*last, *chunk))
            last = chunk[-1:]
            self._tables.update([entry[1].relation for entry in chunk])
            self._hash.update(lines)
            yield lines
            rows = max(1, min(_MOST_ROWS, _CHUNK_BYTES * len(chunk) // len(lines)))

    def seal(self) -> Seal | None:
        if not self._ordered:
            return None
        tables = {relation or "": count for relation, count in self._tables.items()}
        return Seal(self._tables.total(), tables, self._hash.digest())

    def _lines(self, chunk: Sequence[Entry]) -> bytes:
        try:
            lines = _join(chunk, self._batch, doubting=self._doubting)
        except UnicodeEncodeError:
            lines = None
        if lines is None:
            kept = [storable(to_activity(entry)) for entry in chunk]
            lines = _join(to_entries(kept), self._batch, doubting=self._doubting)
        if lines is None:
            raise ValueError("an activity's JSON is not UTF-8")
        return lines


def _by_seal(activities: Activities | Entries) -> Iterable[Entry]:
    """The activities in parts, in the order of the seal where they are all at hand."""
    if isinstance(activities, (list, tuple)):
        listed = list(to_entries(cast("Sequence[Activity]", activities)))
        return listed if _is_ordered(listed) else sorted(listed, key=_place)
    return activities.entries() if isinstance(activities, Entries) else to_entries(activities)


def _place(entry: Entry) -> tuple[object, ...]:
    origin, _, id, ordinal, *_ = entry
    lsn = origin.commit_lsn
    return lsn is not None, lsn or 0, ordinal is None, ordinal or 0, origin.occurred_at, id.lower()


def _is_ordered(entries: Sequence[Entry]) -> bool:
    origin: Origin | None = None
    lsn = ordinal = -1
    for entry in entries:
        number = entry[3]
        if entry[0] is origin and number is not None and number > ordinal:
            ordinal = number
            continue
        origin = entry[0]
        at = origin.commit_lsn
        if at is None or number is None or at < lsn or (at == lsn and number <= ordinal):
            places = [_place(entry) for entry in entries]
            return places == sorted(places)
        lsn, ordinal = at, number
    return True


def _join(entries: Iterable[Entry], batch: bytes, *, doubting: bool) -> bytes | None:
    """The chunk's lines, or None when some value in it may not be kept as it is."""
    null = _NULL
    last: Origin | None = None
    shared = b""
    kinds: dict[Sort, bytes] = {}
    rows: list[bytes] = []
    ids: list[str] = []
    jsons: list[Json] = []
    foreign: list[Json] = []
    for origin, sort, id, ordinal, entity_id, summary, duration, changed, before, after, metadata in entries:
        if origin is not last:
            joined = _join_origin(origin, batch)
            if joined is None:
                return None
            shared, last = joined, origin
        kind = kinds.get(sort)
        if kind is None:
            kind = kinds[sort] = _FIELD.join([null if text is None else text.encode() for text in sort_values(sort)])
        ids.append(id)
        if before is not None:
            jsons.append(before)
        if after is not None:
            jsons.append(after)
        if metadata is not None:
            jsons.append(metadata)
        if sort.kind is not Kind.CHANGE:
            foreign += [raw for raw in (before, after, metadata) if raw is not None]
        rows.append(
            _FIELD.join(
                (
                    id.encode(),
                    null if ordinal is None else b"%d" % ordinal,
                    null if entity_id is None else entity_id.encode(),
                    null if summary is None else summary.encode(),
                    null if duration is None else _float(duration),
                    null if changed is None else _array(changed),
                    null if before is None else before,
                    null if after is None else after,
                    null if metadata is None else metadata,
                    shared,
                    kind,
                )
            )
        )
    data = _ROW.join(rows)
    if b"\0" in data or not _are_canonical(ids) or not _are_plain(jsons, foreign):
        return None
    if doubting and len(data) > _DOUBTED_BYTES and _are_doubtful(jsons):
        raise DoubtError
    return _escape(data).translate(_SEPARATORS).replace(_NULL, b"\\N") + b"\n"


def _join_origin(origin: Origin, batch: bytes) -> bytes | None:
    """What the rows of a transaction have in common, with the batch; None when it may not be kept as it is."""
    null = _NULL
    at, source, actor_id, actor_type, tenant_id, session_id, request_id, trace_id, ip, user_agent, cause, xid, lsn = (
        origin_values(origin)
    )
    address = null if ip is None else _address(ip)
    caused_by = null if cause is None else _identity(cause)
    if address is None or caused_by is None:
        return None
    return _FIELD.join(
        (
            batch,
            _moment(at),
            source.encode(),
            null if actor_id is None else actor_id.encode(),
            null if actor_type is None else actor_type.encode(),
            null if tenant_id is None else tenant_id.encode(),
            null if session_id is None else session_id.encode(),
            null if request_id is None else request_id.encode(),
            null if trace_id is None else trace_id.encode(),
            address,
            null if user_agent is None else user_agent.encode(),
            caused_by,
            null if xid is None else b"%d" % xid,
            null if lsn is None else _lsn(lsn),
        )
    )


def _escape(data: bytes) -> bytes:
    """As COPY escapes: these six control characters, and the backslash."""
    data = data.replace(b"\\", b"\\\\")
    for letter, control in _ESCAPES.items():
        if control in data:
            data = data.replace(control, b"\\" + letter)
    return data


_ESCAPES = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


def _unescape(field: bytes) -> str:
    return _ESCAPED.sub(lambda match: _ESCAPES.get(match[1], match[1]), field).decode()


_SHAPE = bytes.maketrans(b"123456789abcdef", b"000000000000000")
_UUID = b"00000000-0000-0000-0000-000000000000"


def _are_canonical(ids: Sequence[str]) -> bool:
    """Whether these are UUIDs as the server writes them."""
    return "".join(ids).encode().translate(_SHAPE) == _UUID * len(ids)


def _are_plain(jsons: Sequence[Json], foreign: Sequence[Json]) -> bool:
    """Whether these JSON texts are UTF-8 (so that no byte is a separator of ours) and nothing that jsonb refuses.

    The numbers of a change come from columns of PostgreSQL's, and fit. Those of the ``foreign`` may be anybody's.
    """
    together = b"".join(jsons)
    try:
        together.decode()
    except UnicodeDecodeError:
        return False
    if foreign and may_hold_large_numbers(b" ".join(foreign)) and not all(fits_jsonb(bytes(raw)) for raw in foreign):
        return False
    brackets = together.count(b"[") + together.count(b"{")
    if brackets > len(jsons) + _DEEPEST and any(_is_deep(bytes(raw)) for raw in jsons):
        return False
    return b"\\" not in together or b"\\u" not in together or with_jsonb_characters(together) == together


def _is_deep(text: bytes) -> bool:
    return text.count(b"[") + text.count(b"{") > _DEEPEST and measure_depth(text) > _DEEPEST


def _are_doubtful(jsons: Sequence[Json]) -> bool:
    return any(memoryview(raw).nbytes > _DOUBTED_BYTES for raw in jsons)


def _moment(moment: datetime) -> bytes:
    if moment.tzinfo is None:
        raise ValueError("an activity's occurred_at has no time zone")
    text = str(moment if moment.tzinfo is UTC else moment.astimezone(UTC)).removesuffix("+00:00")
    return (text.rstrip("0") if "." in text else text).encode() + b"+00"


# From here on a number of few digits may be half-way between two doubles.
_HALFWAY = 2.0**53


def _float(number: float) -> bytes:
    """The shortest text that gives this number back, as float8out writes it (since PostgreSQL 12)."""
    if isnan(number):
        return b"NaN"
    if isinf(number):
        return b"Infinity" if number > 0 else b"-Infinity"
    text = repr(float(number))
    if abs(number) < 1e15:
        return text.removesuffix(".0").encode()
    if abs(number) >= _HALFWAY:
        # Python's shortest may be half-way to the next number, and read back by the rule of the even one. The server
        # wants it nearer than that.
        digits = len(text.lstrip("-").partition("e")[0].replace(".", "").rstrip("0"))
        while _is_halfway(text, number):
            digits += 1
            text = f"{number:.{digits - 1}e}"
    # repr() goes over to an exponent at 1e16, the server at 1e15.
    mantissa, _, exponent = text.partition("e")
    if not exponent:
        sign, whole = ("-" if number < 0 else ""), mantissa.lstrip("-").partition(".")
        mantissa, exponent = f"{sign}{whole[0][0]}.{whole[0][1:]}{whole[2]}", f"+{len(whole[0]) - 1}"
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").removesuffix(".")
    return f"{mantissa}e{exponent}".encode()


def _is_halfway(text: str, number: float) -> bool:
    if float(text) != number:
        return True
    beyond = [other for other in (nextafter(number, -inf), nextafter(number, inf)) if not isinf(other)]
    return any(2 * Fraction(text) == Fraction(number) + Fraction(other) for other in beyond)


def _lsn(lsn: int) -> bytes:
    return b"%X/%X" % (lsn >> 32, lsn & 0xFFFFFFFF)


_QUOTED = re.compile(r'[\s"\\{},]', re.ASCII)


@lru_cache(maxsize=4_096)
def _array(names: tuple[str, ...]) -> bytes:
    """As array_out writes it: quoted where it is empty, the word NULL, or holds what has a meaning."""
    quoted = (
        '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
        if not name or name.upper() == "NULL" or _QUOTED.search(name)
        else name
        for name in names
    )
    return ("{" + ",".join(quoted) + "}").encode()


@lru_cache(maxsize=4_096)
def _address(text: str) -> bytes | None:
    """The address as inet writes it, or None when it is none (inet knows no zone)."""
    if "%" in text:
        return None
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        return None
    address, length = interface.ip, interface.network.prefixlen
    written = str(address)
    if address.version == 6:
        # inet_out writes what encapsulates an IPv4 address with its dots (::ffff:10.0.0.1, ::10.0.0.1).
        packed = address.packed
        if packed[:12] == _MAPPED or (packed[:12] == bytes(12) and packed[12:14] != b"\0\0"):
            written = f"{'::ffff:' if packed[:12] == _MAPPED else '::'}{ipaddress.IPv4Address(packed[12:])}"
    return (written if length == address.max_prefixlen else f"{written}/{length}").encode()


_MAPPED = bytes(10) + b"\xff\xff"


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
        kept_json = None if column in refused else _storable_json(bytes(raw))
        if kept_json is None or kept_json != bytes(raw):
            swap(column, bytes(raw), None if kept_json is None else msgspec.Raw(kept_json))
    if exact:
        swaps["metadata"] = _with_exact(swaps.get("metadata", activity.metadata), exact)
    if not _are_canonical([activity.id]) and (id := _identity(activity.id)):
        swaps["id"] = id.decode()
    return msgspec.structs.replace(activity, **swaps) if swaps else activity


def _odd(text: str) -> bool:
    return _without_nul(text) != text


def _without_nul(text: str) -> str:
    return _SURROGATE.sub("�", text.replace("\0", "␀"))


_SURROGATE = re.compile("[\ud800-\udfff]")


def _storable_json(raw: bytes) -> bytes | None:
    kept = with_jsonb_characters(raw)
    if kept is None or _is_deep(kept) or (may_hold_large_numbers(kept) and not fits_jsonb(kept)):
        return None
    return kept


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
