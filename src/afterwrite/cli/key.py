"""``afterwrite key``: keys for the API."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
import typer

from afterwrite.cli.face import Json, StoreDsn, StoreOnly, emit, fill, out, run, say, table
from afterwrite.errors import ExitCode, UsageError
from afterwrite.postgres import connect
from afterwrite.serve.callers import Scope
from afterwrite.serve.keys import ApiKey, list_keys, make_key, revoke_key
from afterwrite.settings import Settings, load_settings
from afterwrite.store.schema import require_store

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_CLOSE_SECONDS = 5


app = typer.Typer(help="Make, list and revoke keys for the API of `afterwrite serve`.", no_args_is_help=True)


@app.command("create")
def create_command(
    name: Annotated[str, typer.Argument(help="What the key is called, in lists and where it is told who looked.")],
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help="read, ingest or admin; several with commas.", show_default="read"),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="It sees and writes this tenant's activity alone.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", help="When it ends: 90d, 12h, or a date. Else it is revoked some day.")
    ] = None,
    dsn: StoreOnly = None,
    store_dsn: StoreDsn = None,
    json: Json = False,
) -> int:
    """Make a key. It is shown once, on stdout; the store keeps a hash of it."""
    scopes = _scopes(scope or ["read"])
    ends = None if expires is None else _moment(expires)
    made, text = run(_make(_store(dsn, store_dsn), name, scopes, tenant, ends))
    if json:
        emit({"schema_version": 1, **_as_json(made), "key": text})
        return ExitCode.OK
    say(f"{_words(made)}. It is not shown again:")
    out.print(text, soft_wrap=True, markup=False)
    return ExitCode.OK


@app.command("list")
def list_command(dsn: StoreOnly = None, store_dsn: StoreDsn = None, json: Json = False) -> int:
    """List the keys, those that were revoked or have expired, too."""
    keys = run(_list(_store(dsn, store_dsn)))
    if json:
        emit({"schema_version": 1, "keys": [_as_json(key) for key in keys]})
        return ExitCode.OK
    if not keys:
        out.print("There are no keys. `afterwrite key create NAME --scope read` makes one.")
        return ExitCode.OK
    rows = [
        (key.name, key.id, ", ".join(key.scopes), key.tenant_id or "every tenant", _state(key), _day(key.used_at))
        for key in keys
    ]
    out.print(fill(table("name", "id", "may", "of", "state", "last used"), rows))
    return ExitCode.OK


@app.command("revoke")
def revoke_command(
    name: Annotated[str, typer.Argument(help="The key's name, or its id.")],
    dsn: StoreOnly = None,
    store_dsn: StoreDsn = None,
    json: Json = False,
) -> int:
    """Have a key open nothing any more. Servers that run notice within five seconds."""
    revoked = run(_revoke(_store(dsn, store_dsn), name))
    if json:
        emit({"schema_version": 1, **_as_json(revoked)})
    else:
        say(f"key {revoked.name} is revoked; servers that run notice within {_CLOSE_SECONDS} seconds")
    return ExitCode.OK


async def _make(
    given: Settings, name: str, scopes: list[str], tenant: str | None, ends: datetime | None
) -> tuple[ApiKey, str]:
    async with connect(given.store, application_name="afterwrite key", guarded=True) as db:
        await require_store(db)
        return await make_key(db, name, scopes, tenant=tenant, expires_at=ends)


async def _list(given: Settings) -> list[ApiKey]:
    async with connect(given.store, application_name="afterwrite key", guarded=True) as db:
        await require_store(db)
        return await list_keys(db)


async def _revoke(given: Settings, name: str) -> ApiKey:
    async with connect(given.store, application_name="afterwrite key", guarded=True) as db:
        await require_store(db)
        return await revoke_key(db, name)


def _store(dsn: str | None, store_dsn: str | None) -> Settings:
    return load_settings(dsn=dsn, store_dsn=store_dsn)


def _scopes(given: list[str]) -> list[str]:
    words = [word.strip() for text in given for word in text.split(",") if word.strip()]
    known = [each.value for each in Scope]
    for word in words:
        if word not in known:
            raise UsageError(f"there is no scope {word}", remedy=f"the scopes are {', '.join(known)}")
    if not words:
        raise UsageError("a key without a scope opens nothing", remedy="give --scope read")
    return words


def _moment(text: str) -> datetime:
    """A time to come: so many hours, days or weeks from now, or a date."""
    if match := re.fullmatch(r"(\d{1,5})([hdw])", text):
        return datetime.now(UTC) + int(match[1]) * _UNITS[match[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--expires {text!r} is no time", remedy="write it as 90d, 12h or 2027-03-31") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _words(key: ApiKey) -> str:
    whose = f"tenant {key.tenant_id}'s activity alone" if key.tenant_id else "every tenant's activity"
    ends = f", until {key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else ""
    return f"key {key.name}, for {whose}, with scope {', '.join(key.scopes)}{ends}"


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {_day(key.revoked_at)}"
    if key.expires_at is not None:
        word = "ends" if key.holds(datetime.now(UTC)) else "ended"
        return f"{word} {_day(key.expires_at)}"
    return "living"


def _day(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def _as_json(key: ApiKey) -> dict[str, Any]:
    return msgspec.structs.asdict(key)
