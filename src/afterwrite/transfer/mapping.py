"""How the rows of a legacy log become activities: said in SQL over its own columns, kept and edited as TOML. Pure.

::

    [[log]]
    table = "public.audit_logs"
    key = ["id"]                    what tells its rows apart
    time = "created_at"             when it happened
    [log.activity]
    entity_type = "table_name"      any of FIELDS, each an SQL expression

The server computes the expressions, so that every type, function and operator that a log was made with is at hand.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

import msgspec

from afterwrite.errors import UsageError
from afterwrite.prove.trees import is_one_expression

VERSION = 1
TEXTS = (
    "category", "action", "outcome", "severity", "entity_type", "entity_id", "actor_id", "actor_type", "tenant_id",
    "session_id", "request_id", "trace_id", "ip", "user_agent", "summary", "relation", "operation",
)  # fmt: skip
JSONS = ("before", "after", "diff", "metadata")
NUMBERS = ("duration_ms",)
FIELDS = (*TEXTS, *NUMBERS, *JSONS)
"""What an expression may be given for. ``diff`` is an object of old and new values by column, for logs without rows."""

STOP_AT_CAPTURE, STOP_NEVER = "capture", "never"
_REMEDY = "mend it in the file; `afterwrite import legacy --save FILE` writes one that can be read"


class LogMapping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one log is read.

    ``key`` are the columns that tell its rows apart, ``order`` those in whose order it is read (empty: the key's).
    ``time`` is SQL; without a zone of its own it is taken to be in ``time_zone``. ``where`` keeps to some rows.
    ``stop`` is ``capture`` (from there on the store has the changes themselves), ``never``, or a moment.
    ``tables`` are those whose triggers write it; ``keys`` the key columns of tables that the log has rows of, and
    ``roots`` tells which table a partition belongs to. ``elsewhere`` are columns that are not repeated in
    metadata.legacy.row, because some field has them word for word.
    """

    table: str
    key: tuple[str, ...]
    time: str
    style: str = "by hand"
    order: tuple[str, ...] = ()
    time_zone: str | None = None
    where: str | None = None
    stop: str = STOP_AT_CAPTURE
    activity: dict[str, str] = {}
    tables: tuple[str, ...] = ()
    keys: dict[str, tuple[str, ...]] = {}
    roots: dict[str, str] = {}
    elsewhere: tuple[str, ...] = ()

    @property
    def reading_order(self) -> tuple[str, ...]:
        """The columns in whose order it is read."""
        return self.order or self.key

    @property
    def stop_moment(self) -> datetime | None:
        """The moment that ``stop`` names, where it names one."""
        if self.stop in (STOP_AT_CAPTURE, STOP_NEVER):
            return None
        return datetime.fromisoformat(self.stop)


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    log: tuple[LogMapping, ...] = ()


def read_mappings(text: str) -> tuple[LogMapping, ...]:
    """The mappings of a TOML file; raises UsageError that says where and what is wrong. Strict: no unknown words."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the mapping is not TOML: {error}", remedy=_REMEDY) from error
    if data.get("version") != VERSION:
        raise UsageError(
            f"the mapping says version = {data.get('version')!r}, this afterwrite reads version = {VERSION}",
            remedy=_REMEDY,
        )
    try:
        found = msgspec.convert(data, _File)
    except msgspec.ValidationError as error:
        raise UsageError(f"the mapping cannot be: {error}", remedy=_REMEDY) from error
    names = [each.table for each in found.log]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"the mapping has {', '.join(twice)} twice", remedy=_REMEDY)
    for each in found.log:
        check_words(each)
    return found.log


def check_words(mapping: LogMapping) -> None:
    """Refuse what cannot be meant; what only the server knows (columns, types) it is asked before anything is read."""
    if not mapping.key:
        raise UsageError(f"{mapping.table} has no key in its mapping", remedy=_REMEDY)
    if unknown := sorted(set(mapping.activity) - set(FIELDS)):
        raise UsageError(
            f"the mapping of {mapping.table} gives {', '.join(unknown)}, which an activity does not have",
            remedy=f"it may give {', '.join(FIELDS)}",
        )
    texts = {"time": mapping.time, **mapping.activity} | ({"where": mapping.where} if mapping.where else {})
    for name, text in texts.items():
        if not is_one_expression(text):
            raise UsageError(f"{name} of {mapping.table} is not one SQL expression: {text!r}", remedy=_REMEDY)
    try:
        moment = mapping.stop_moment
    except ValueError as error:
        raise UsageError(
            f"stop of {mapping.table} is {mapping.stop!r}",
            remedy='say "capture", "never", or a moment such as "2026-11-01T00:00:00+00:00"',
        ) from error
    if moment is not None and moment.tzinfo is None:
        raise UsageError(
            f"stop of {mapping.table} has no time zone: {mapping.stop}", remedy=f"say {mapping.stop}+00:00 for UTC"
        )


_HEAD = """\
# How rows of legacy logs become activities, for `afterwrite import legacy --mapping`. Values under [log.activity] are
# SQL over the log's own columns (functions with their schema). Columns that are not used stay in metadata.legacy.row.
"""


def write_mappings(mappings: Sequence[LogMapping]) -> str:
    """The TOML that ``read_mappings`` reads back as these."""
    parts = [f"{_HEAD}version = {VERSION}"]
    for each in mappings:
        plain: dict[str, object] = {
            "table": each.table,
            "style": each.style,
            "key": each.key,
            "order": each.order or None,
            "time": each.time,
            "time_zone": each.time_zone,
            "where": each.where,
            "stop": each.stop,
            "tables": each.tables or None,
            "elsewhere": each.elsewhere or None,
        }
        lines = ["[[log]]", *(f"{name} = {_toml(value)}" for name, value in plain.items() if value is not None)]
        for name in ("activity", "keys", "roots"):
            inner = cast("Mapping[str, object]", getattr(each, name))
            if inner:
                lines += [f"[log.{name}]", *(f"{_key(word)} = {_toml(value)}" for word, value in inner.items())]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def differences(one: LogMapping, other: LogMapping) -> tuple[str, ...]:
    """The words in which two mappings of a log differ; ``stop`` may change from run to run, and does not count."""
    found = [
        name
        for name in ("key", "order", "time", "time_zone", "where", "keys", "roots", "elsewhere")
        if getattr(one, name) != getattr(other, name)
    ]
    fields = [name for name in FIELDS if one.activity.get(name) != other.activity.get(name)]
    return (*found, *fields)


def _key(word: str) -> str:
    return word if word.replace("_", "").isalnum() and word.isascii() else _toml(word)


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in cast('tuple[Any, ...]', value))}]"
    # JSON's escapes are TOML's; JSON leaves DEL as it is, which TOML does not allow.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
