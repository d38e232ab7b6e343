"""Static keys for the API: made and shown once, kept as a hash, found again by the part that may be seen.

A key is ``aw_<id>_<secret>``. Its secret has 256 bits from the system, so one round of sha256 is as good as any number.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from afterwrite.errors import DatabaseError, UsageError
from afterwrite.postgres import Database, statement

PREFIX = "aw"
_LONGEST_NAME = 200


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is kept. ``tenant_id`` None: it sees every tenant. ``used_at`` is exact to the minute."""

    id: str
    name: str
    scopes: tuple[str, ...]
    tenant_id: str | None
    made_at: datetime
    made_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None

    def holds(self, now: datetime) -> bool:
        """Whether it still opens anything."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes to know a key again."""

    key: ApiKey
    digest: bytes

    def is_opened_by(self, secret: str) -> bool:
        """Whether this is its secret."""
        return hmac.compare_digest(self.digest, _digest(secret))


def split_key(text: str) -> tuple[str, str] | None:
    """The id and the secret of a key, or None where the text is none."""
    prefix, _, rest = text.partition("_")
    id, _, secret = rest.partition("_")
    return (id, secret) if prefix == PREFIX and id.isalnum() and id.isascii() and secret else None


async def make_key(
    db: Database, name: str, scopes: Iterable[str], *, tenant: str | None = None, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """Make a key, and the text that is shown once. Raises UsageError where a living key has this name."""
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise UsageError(f"a key cannot be called {name!r}", remedy="give it a name of up to 200 printable characters")
    if tenant is not None and not (tenant and len(tenant) <= _LONGEST_NAME and tenant.isprintable()):
        raise UsageError(f"a tenant cannot be called {tenant!r}", remedy="name it as activity.tenant_id has it")
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise UsageError(f"the key would have expired already, {expires_at}", remedy="give a time to come")
    id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    try:
        made = await db.one(
            _key,
            statement("serve.make_key"),
            id=id,
            name=name,
            digest=_digest(secret),
            scopes=sorted(set(scopes)),
            tenant_id=tenant,
            expires_at=expires_at,
        )
    except DatabaseError as error:
        if error.sqlstate != "23505":
            raise
        raise UsageError(
            f"there is a key called {name} already",
            remedy=f"take another name, or revoke that one first: `afterwrite key revoke {name}`",
        ) from error
    return made, f"{PREFIX}_{id}_{secret}"


async def list_keys(db: Database) -> list[ApiKey]:
    """Every key that was ever made, the newest first."""
    return await db.rows(_key, statement("serve.list_keys"))


async def revoke_key(db: Database, name: str) -> ApiKey:
    """Have a key, by its name or its id, open nothing any more. Raises UsageError where there is none that does."""
    revoked = await db.maybe(_key, statement("serve.revoke_key"), name=name)
    if revoked is None:
        raise UsageError(f"there is no living key called {name}", remedy="`afterwrite key list` shows them")
    return revoked


async def find_key(db: Database, id: str) -> Known | None:
    """The key with this id, whatever became of it."""
    return await db.maybe(_known, statement("serve.find_key"), id=id)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _known(*, digest: bytes, scopes: list[str], **columns: object) -> Known:
    return Known(key=_key(scopes=scopes, **columns), digest=bytes(digest))


def _key(*, scopes: list[str], **columns: object) -> ApiKey:
    return msgspec.convert({**columns, "scopes": tuple(scopes)}, ApiKey)
