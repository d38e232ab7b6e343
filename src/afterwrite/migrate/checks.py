"""The user's own gates: one value of a query, or a page that answers."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Sequence

from afterwrite.errors import AfterwriteError
from afterwrite.migrate.gates import CheckReading
from afterwrite.migrate.plan import Check
from afterwrite.postgres import Database, statement

_MOST_BYTES = 1 << 20
_SHOWN = 60


async def read_checks(db: Database, checks: Sequence[Check]) -> tuple[CheckReading, ...]:
    """Ask each check. A query runs in a read-only transaction and no longer than its timeout; nothing of it stays."""
    return tuple([await (_ask_query(db, each) if each.sql is not None else _ask_page(each)) for each in checks])


async def _ask_query(db: Database, check: Check) -> CheckReading:
    try:
        async with db.transaction():
            await db.run(statement("migrate.only_read"))
            await db.run(statement("migrate.use_own_path"))
            await db.value(statement("migrate.limit_time"), milliseconds=f"{check.timeout_seconds * 1_000:.0f}ms")
            rows = await db.values((check.sql or "").encode())
    except AfterwriteError as error:
        return CheckReading(check=check, value=None, met=False, trouble=str(error))
    value = _as_text(rows[0]) if rows else "no row"
    return CheckReading(check=check, value=_short(value), met=value == (check.expect or "true"))


def _as_text(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case _:
            return str(value)


async def _ask_page(check: Check) -> CheckReading:
    try:
        status, text = await asyncio.to_thread(_fetch, check.url or "", check.timeout_seconds)
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return CheckReading(check=check, value=None, met=False, trouble=str(reason))
    holds = check.expect is None or check.expect in text
    value = f"{status}" if holds else f"{status}, without the text that is expected"
    return CheckReading(check=check, value=value, met=200 <= status < 300 and holds)


def _fetch(url: str, seconds: float) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"User-Agent": "afterwrite"})  # noqa: S310 - http by the plan's rule
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
            return answer.status, answer.read(_MOST_BYTES).decode("utf-8", errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_MOST_BYTES).decode("utf-8", errors="replace")


def _short(value: str) -> str:
    return value if len(value) <= _SHOWN else f"{value[: _SHOWN - 3]}..."
