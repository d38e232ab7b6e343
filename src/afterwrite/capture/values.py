"""Column text to JSON: what ``to_jsonb(row)`` would give, made from the text that the stream carries.

::

    type OID ──compile_encoder──▶ closure: b"{1,NULL}" ──▶ b"[1,null]"

An encoder is compiled once a column and called once a value, so each does one thing: bytes in, JSON bytes out, no
parsing into Python values on the way. PostgreSQL's own rules are in ``json_categorize_type`` and ``JsonEncodeDateTime``
(src/backend/utils/adt/json*.c); the texts are those of a session with DateStyle ISO and TimeZone UTC.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Self, assert_never

import msgspec

from afterwrite.jsonb import fits_jsonb

Encoder = Callable[[bytes], bytes]


class TypeKind(Enum):
    """How a type's text becomes JSON. ``TEXT`` is everything whose text is simply quoted."""

    TEXT = "text"
    ARRAY = "array"
    VECTOR = "vector"
    COMPOSITE = "composite"
    DOMAIN = "domain"
    HSTORE = "hstore"


class PgType(msgspec.Struct, frozen=True):
    """What pg_type says of a type. ``element`` is an array's element or a domain's base; ``fields`` a composite's.

    A composite's fields are such since transaction ``since``; the next one to begin is ``now`` (both with their epoch).
    """

    oid: int
    kind: TypeKind
    element: int = 0
    delimiter: str = ","
    fields: tuple[tuple[str, int], ...] = ()
    since: int = 0
    now: int = 0


class TypeCatalog(msgspec.Struct, frozen=True):
    """The types known so far, beyond the built-in ones. A type that nobody knows is encoded as text."""

    types: Mapping[int, PgType] = {}

    def unknown(self, oids: Iterable[int]) -> list[int]:
        """Those OIDs that the catalog must be asked about before their columns can be encoded."""
        return sorted({oid for oid in oids if oid not in _SCALARS and oid not in _ARRAYS and oid not in self.types})

    def with_types(self, found: Iterable[PgType]) -> Self:
        """This catalog and these types, which replace what was known of them."""
        return type(self)({**self.types, **{entry.oid: entry for entry in found}})

    @property
    def composites(self) -> frozenset[int]:
        """Those types whose fields somebody may alter without a word in the stream."""
        return frozenset(oid for oid, entry in self.types.items() if entry.kind is TypeKind.COMPOSITE)

    def is_unsure(self, oid: int, xid: int) -> bool:
        """Whether what is known of the type may not be what transaction ``xid`` knew: dropped, or altered since."""
        if oid in _SCALARS or oid in _ARRAYS:
            return False
        entry = self.types.get(oid)
        if entry is None:
            return oid >= FIRST_USER_OID
        match entry.kind:
            case TypeKind.COMPOSITE:
                altered = is_after(entry.since, xid, entry.now)
                return altered or any(self.is_unsure(field, xid) for _, field in entry.fields)
            case TypeKind.ARRAY | TypeKind.DOMAIN:
                return self.is_unsure(entry.element, xid)
            case TypeKind.TEXT | TypeKind.VECTOR | TypeKind.HSTORE:
                return False
            case _:
                assert_never(entry.kind)

    def encoder(self, oid: int) -> Encoder:
        """The encoder for a column of this type; arrays, domains and composites are followed to their ends."""
        if scalar := _SCALARS.get(oid):
            return scalar
        if element := _ARRAYS.get(oid):
            return _array(self.encoder(element), b",")
        entry = self.types.get(oid)
        if entry is None:
            return encode_text
        match entry.kind:
            case TypeKind.TEXT:
                return encode_text
            case TypeKind.ARRAY:
                return _array(self.encoder(entry.element), entry.delimiter.encode())
            case TypeKind.VECTOR:
                return _vector(self.encoder(entry.element))
            case TypeKind.COMPOSITE:
                return _composite([(name, self.encoder(field)) for name, field in entry.fields])
            case TypeKind.DOMAIN:
                return self.encoder(entry.element)
            case TypeKind.HSTORE:
                return _hstore
            case _:
                assert_never(entry.kind)

    def is_plain(self, oid: int) -> bool:
        """Whether a value of this type is one that people read: a text, a number, a word, a date, an address."""
        return oid not in _NOT_PLAIN and self.encoder(oid) in (encode_text, _plain, _number, _integer, _boolean)

    def is_text(self, oid: int) -> bool:
        """Whether a value of this type is written by people, or one of few words."""
        return oid not in _NOT_PLAIN and self.encoder(oid) is encode_text


FIRST_USER_OID = 16_384


def is_after(since: int, xid: int, now: int) -> bool:
    """Whether transaction ``since`` began after ``xid``, which comes without its epoch, as the stream tells it.

    ``now`` is one of about this time: the epoch is taken from it.
    """
    distance = (xid - now) & 0xFFFFFFFF
    return since > now + distance - (1 << 32 if distance >> 31 else 0)


_encode_string = msgspec.json.Encoder().encode


def encode_text(raw: bytes) -> bytes:
    """The text itself, as a JSON string."""
    try:
        return _encode_string(raw.decode())
    except UnicodeDecodeError:  # only a SQL_ASCII database can hold such bytes; doctor warns of those
        return _encode_string(raw.decode(errors="backslashreplace"))


def json_string(text: str) -> bytes:
    """A JSON string, quotes and all."""
    return _encode_string(text)


def _char(raw: bytes) -> bytes:
    # Before PostgreSQL 16 a byte beyond ASCII came as it was, which is no text; later ones write it like this.
    return b'"\\\\%03o"' % raw[0] if len(raw) == 1 and raw[0] > 0x7F else encode_text(raw)


def _plain(raw: bytes) -> bytes:
    """Text that never needs an escape: uuid, oid, inet, dates."""
    return b'"' + raw + b'"'


def _number(raw: bytes) -> bytes:
    # NaN and the infinities end in a letter; to_jsonb makes strings of them.
    return raw if raw[-1] <= 0x39 else b'"' + raw + b'"'


def _integer(raw: bytes) -> bytes:
    return raw


def _boolean(raw: bytes) -> bytes:
    return b"true" if raw == b"t" else b"false"


def _timestamp(raw: bytes) -> bytes:
    # 2026-01-02 03:04:05 -> 2026-01-02T03:04:05; the blank before BC, and infinity, stay as they are.
    return b'"' + raw.replace(b" ", b"T", 1) + b'"' if b":" in raw else b'"' + raw + b'"'


def _timestamptz(raw: bytes) -> bytes:
    # ISO output under UTC ends in +00, to_jsonb writes +00:00.
    if raw.endswith(b"+00"):
        return b'"' + raw.replace(b" ", b"T", 1) + b':00"'
    if raw.endswith(b"+00 BC"):
        return b'"' + raw[:-3].replace(b" ", b"T", 1) + b':00 BC"'
    return b'"' + raw + b'"'


def _jsonb(raw: bytes) -> bytes:
    return raw


def _json(raw: bytes) -> bytes:
    # json accepts what jsonb cannot hold; such a value is kept as the string of its text, which is all of it.
    return raw if fits_jsonb(raw) else encode_text(raw)


def _array(element: Encoder, delimiter: bytes) -> Encoder:
    """Array text of any dimensions, ``[0:1]={1,NULL}`` too: to_jsonb drops the bounds."""
    separator = re.escape(delimiter)
    tokens = re.compile(rb'"((?:[^"\\]|\\.)*)"|([{}]|' + separator + rb')|([^{}"' + separator + rb"]+)", re.DOTALL)

    def encode(raw: bytes) -> bytes:
        if raw.startswith(b"["):
            raw = raw[raw.index(b"=") + 1 :]
        if b'"' not in raw and raw.find(b"{", 1) < 0:
            inner = raw[1:-1]
            if not inner:
                return b"[]"
            parts = [b"null" if part == b"NULL" else element(part) for part in inner.split(delimiter)]
            return b"[" + b",".join(parts) + b"]"
        out: list[bytes] = []
        for match in tokens.finditer(raw):
            kind, text = match.lastindex, match[match.lastindex or 0]
            if kind == 1:
                out.append(element(_unescape(text)))
            elif kind == 3:
                out.append(b"null" if text == b"NULL" else element(text))
            else:
                out.append(b"[" if text == b"{" else b"]" if text == b"}" else b",")
        return b"".join(out)

    return encode


def _vector(element: Encoder) -> Encoder:
    """int2vector and oidvector: arrays by kind, but their text is ``1 2 3``."""

    def encode(raw: bytes) -> bytes:
        return b"[" + b",".join([element(part) for part in raw.split()]) + b"]"

    return encode


_FIELD = re.compile(rb'(?:"((?:[^"\\]|\\.|"")*)"|([^,()"]*))[,)]', re.DOTALL)


def _composite(fields: list[tuple[str, Encoder]]) -> Encoder:
    """Row text ``(1,"a b",)``: quoted fields double their quotes and backslashes, an absent field is null."""
    prefixes = [(json_string(name) + b":", encode) for name, encode in fields]

    def encode(raw: bytes) -> bytes:
        if not prefixes:
            return b"{}"
        found = list(_FIELD.finditer(raw, 1))
        if len(found) != len(prefixes):  # the type was altered after this row was written
            return encode_text(raw)
        parts: list[bytes] = []
        for match, (prefix, field) in zip(found, prefixes, strict=True):
            quoted, plain = match[1], match[2]
            if quoted is not None:
                parts.append(prefix + field(_unescape(quoted.replace(b'""', b'"'))))
            else:
                parts.append(prefix + (field(plain) if plain else b"null"))
        return b"{" + b",".join(parts) + b"}"

    return encode


_PAIR = re.compile(rb'"((?:[^"\\]|\\.)*)"=>(?:"((?:[^"\\]|\\.)*)"|NULL)', re.DOTALL)


def _hstore(raw: bytes) -> bytes:
    """hstore brings a cast to json, which to_jsonb uses: an object whose values are strings or null."""
    pairs = [
        encode_text(_unescape(match[1])) + b":" + (b"null" if match[2] is None else encode_text(_unescape(match[2])))
        for match in _PAIR.finditer(raw)
    ]
    return b"{" + b",".join(pairs) + b"}"


_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


def _unescape(text: bytes) -> bytes:
    return _ESCAPED.sub(rb"\1", text) if b"\\" in text else text


# pg_type.dat: built-in types have the same OID in every cluster.
_SCALARS: dict[int, Encoder] = {
    16: _boolean,
    17: encode_text,  # bytea
    18: _char,  # "char"
    19: encode_text,  # name
    20: _integer,
    21: _integer,
    23: _integer,
    25: encode_text,
    26: _plain,  # oid: a string in to_jsonb, not a number
    114: _json,
    142: encode_text,  # xml
    650: _plain,  # cidr
    700: _number,
    701: _number,
    790: encode_text,  # money
    829: _plain,  # macaddr
    869: _plain,  # inet
    1042: encode_text,
    1043: encode_text,
    1082: _plain,  # date: to_jsonb writes what ISO output writes, BC and infinity too
    1083: _plain,  # time
    1114: _timestamp,
    1184: _timestamptz,
    1186: encode_text,  # interval
    1266: _plain,  # timetz
    1560: _plain,  # bit
    1562: _plain,  # varbit
    1700: _number,
    2950: _plain,  # uuid
    3614: encode_text,  # tsvector
    3802: _jsonb,
}

# bytea, oid, xml, time, interval, timetz, bit, varbit, tsvector
_NOT_PLAIN = frozenset({17, 26, 142, 1083, 1186, 1266, 1560, 1562, 3614})

# Array types of the commonest of them; the catalog is asked about any other.
_ARRAYS: dict[int, int] = {
    199: 114,
    1000: 16,
    1001: 17,
    1005: 21,
    1007: 23,
    1009: 25,
    1014: 1042,
    1015: 1043,
    1016: 20,
    1021: 700,
    1022: 701,
    1115: 1114,
    1182: 1082,
    1185: 1184,
    1231: 1700,
    2951: 2950,
    3807: 3802,
}
