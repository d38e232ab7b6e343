"""Who asks: by a key, a token, a session of the pages, or a proxy's word; and the guards that close every route.

::

    Authorization: Bearer aw_… ─▶ api_key, by its hash ─┐
    Authorization: Bearer eyJ… ─▶ tokens.py ────────────┤
    the session's cookie ───────▶ api_key again ────────┼▶ Caller ─▶ guard: 401, 403, or on to the handler
    the proxy's header ─────────▶ trusted addresses ────┤
    nobody, on loopback ────────▶ LOCAL ────────────────┘

Every route is closed: without a caller that has the scope ``read`` it answers 401 or 403. A handler asks for another
with ``opt={"scope": Scope.INGEST}``, and is open to everybody with ``opt={"public": True}``.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, cast

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from afterwrite.errors import Refused, UsageError
from afterwrite.postgres import connect, statement
from afterwrite.serve.callers import LOCAL, Caller, CallerKind, Scope
from afterwrite.serve.keys import Known, find_key, split_key
from afterwrite.serve.problems import ProblemError
from afterwrite.serve.signing import ForgedError, Signer
from afterwrite.serve.tenancy import Readers, find_wall_trouble
from afterwrite.serve.tokens import Tokens, read_issuer
from afterwrite.serve.visits import Visit, visit_of
from afterwrite.settings import Settings

__all__ = [
    "LOCAL", "SESSION_COOKIE", "Auth", "Caller", "CallerKind", "Scope", "check_start", "guard", "is_loopback",
    "provide_caller", "provide_operator",
]  # fmt: skip

SESSION_COOKIE = "afterwrite_session"
SESSION_SECONDS = 12 * 3600
_KEY_SECONDS = 5.0
_MOST_KEYS = 10_000

Network = IPv4Network | IPv6Network


class Auth:
    """Finds out who asks. Keys are looked up again after a few seconds: a revoked one opens nothing from then on."""

    def __init__(self, settings: Settings, readers: Readers) -> None:
        self._settings = settings
        self._readers = readers
        self._known: OrderedDict[str, tuple[float, Known | None]] = OrderedDict()
        issuer = read_issuer(settings)
        self._tokens = Tokens(issuer) if issuer else None
        self.proxies = read_proxies(settings)
        self.signer: Signer | None = None
        # Which keys were used and not noted yet, and when.
        self.used: dict[str, datetime] = {}

    async def find_signer(self) -> Signer:
        """What seals cursors and sessions of this store."""
        if self.signer is None:
            async with self._readers.read(None) as db:
                self.signer = Signer(bytes(await db.value(statement("serve.read_secret"))))
        return self.signer

    async def identify(self, visit: Visit) -> Caller | None:
        """Who asks; None for nobody in particular. Raises ProblemError (401) for a key or token that is not good."""
        headers = visit.headers
        if (said := headers.get("authorization")) is not None:
            kind, _, word = said.partition(" ")
            if kind.lower() != "bearer" or not word.strip():
                raise _refused("the Authorization header is not Bearer and a key or token")
            return await self.read_bearer(word.strip())
        name = self._settings.serve_proxy_header
        if name is not None and visit.proxied and (user := headers.get(name.lower())):
            return self._read_proxied(user, headers)
        if (cookie := visit.cookie(SESSION_COOKIE)) is not None:
            caller = await self._read_session(cookie)
            if caller is not None:
                return caller
        return LOCAL if self._is_open_to(visit) else None

    async def read_bearer(self, word: str) -> Caller:
        """Whose key or token this is; raises ProblemError (401, 403) for one that is not good."""
        if (parts := split_key(word)) is not None:
            return await self._read_key(*parts)
        if self._tokens is None:
            raise _refused("this is no key of ours, and no issuer of tokens is configured")
        return await self._tokens.read(word)

    async def log_in(self, key: str) -> str:
        """A session for the pages, for who has a key that may read: the value of its cookie, ``SESSION_COOKIE``.

        Set it HttpOnly, SameSite=Strict, Path=/, and Secure where the visit was. It ends with the key, or after
        ``SESSION_SECONDS``. Raises ProblemError.
        """
        parts = split_key(key.strip())
        if parts is None:
            raise _refused("this is no key of ours")
        caller = await self._read_key(*parts)
        if not caller.may(Scope.READ):
            raise _forbidden(Scope.READ)
        return (await self.find_signer()).seal("session", [parts[0], int(time.time())])

    async def _read_session(self, cookie: str) -> Caller | None:
        try:
            id, since = cast("tuple[str, int]", (await self.find_signer()).open("session", cookie))
        except ForgedError:
            return None
        if not 0 <= time.time() - since < SESSION_SECONDS:
            return None
        known = await self._find_key(id)
        return self._caller(known) if known is not None and known.key.holds(datetime.now(UTC)) else None

    async def _read_key(self, id: str, secret: str) -> Caller:
        known = await self._find_key(id)
        # The same words for a key that never was and one with another secret.
        if known is None or not known.is_opened_by(secret):
            raise _refused("there is no such key")
        if not known.key.holds(datetime.now(UTC)):
            raise _refused("the key was revoked, or has expired")
        return self._caller(known)

    def _caller(self, known: Known) -> Caller:
        key = known.key
        self.used[key.id] = datetime.now(UTC)
        return Caller(key.name, frozenset(map(Scope, key.scopes)), key.tenant_id, CallerKind.KEY)

    async def _find_key(self, id: str) -> Known | None:
        now = time.monotonic()
        until, known = self._known.get(id, (0.0, None))
        if now >= until:
            async with self._readers.read(None) as db:
                known = await find_key(db, id)
            self._known[id] = (now + _KEY_SECONDS, known)
            self._known.move_to_end(id)
            if len(self._known) > _MOST_KEYS:
                self._known.popitem(last=False)
        return known

    def _read_proxied(self, user: str, headers: Mapping[str, str]) -> Caller:
        tenant_header = self._settings.serve_proxy_tenant_header
        tenant = headers.get(tenant_header.lower()) if tenant_header else None
        if tenant_header and not tenant:
            raise ProblemError(403, "tenant", f"the proxy says no tenant ({tenant_header})")
        if not user.isprintable() or not (tenant or "x").isprintable():
            raise _refused("what the proxy says of the caller cannot be read")
        return Caller(user, frozenset(map(Scope, self._settings.serve_proxy_scopes)), tenant, CallerKind.PROXIED)

    def _is_open_to(self, visit: Visit) -> bool:
        """Whether whoever comes this way needs not say who he is: on this machine, and nobody sent him on."""
        match self._settings.serve_auth:
            case "required":
                return False
            case "off":
                pass
            case "auto":
                if not is_loopback(self._settings.serve_host):
                    return False
        # A page that may read what we answer to it shows a key for that; its visitor's place is no key.
        return visit.is_local and not visit.is_asked_from_elsewhere


async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Let nobody by who may not: 401 for nobody in particular or a bad key, 403 without the scope."""
    scope = cast("Mapping[str, Any]", connection.scope)
    if handler.opt.get("public") or scope["method"] == "OPTIONS":
        return
    visit = visit_of(scope)
    if visit.caller is None:
        raise visit.refusal or _refused("say who you are", remedy="Authorization: Bearer and a key of `afterwrite key`")
    wanted = Scope(handler.opt.get("scope", Scope.READ))
    if not visit.caller.may(wanted):
        raise _forbidden(wanted)


async def provide_caller(request: Request[Any, Any, Any]) -> Caller:
    """The dependency ``caller`` of every handler that is not public."""
    caller = visit_of(request.scope).caller
    if caller is None:
        raise _refused("say who you are")
    return caller


async def provide_operator(caller: Caller) -> Caller:
    """The dependency ``operator``: a caller without a tenant, for what is about all of the store or the source."""
    if caller.tenant is not None:
        raise ProblemError(
            403, "tenant", "this is about every tenant, and you are one tenant's", remedy="use a key without a tenant"
        )
    return caller


def _refused(detail: str, *, remedy: str | None = None) -> ProblemError:
    return ProblemError(401, "credentials", detail, remedy=remedy, headers={"WWW-Authenticate": "Bearer"})


def _forbidden(scope: Scope) -> ProblemError:
    return ProblemError(
        403,
        "scope",
        f"this needs the scope {scope.value}",
        remedy=f"use a key that has it: `afterwrite key create NAME --scope {scope.value}`",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_proxies(settings: Settings) -> tuple[Network, ...]:
    """From where X-Forwarded-For is believed. Raises UsageError for what is no network, or none for the header."""
    try:
        networks = tuple(ip_network(text, strict=False) for text in settings.serve_trusted_proxies)
    except ValueError as error:
        raise UsageError(
            f"serve_trusted_proxies has what is no network: {error}", remedy="write addresses like 10.0.0.0/8"
        ) from error
    if settings.serve_proxy_header and not networks:
        raise UsageError(
            f"anybody could say in {settings.serve_proxy_header} who he is: no proxy is trusted",
            remedy="name the proxy's addresses in serve_trusted_proxies",
        )
    return networks


async def check_start(settings: Settings) -> list[str]:
    """Refuse to serve what would be open to others, or closed to everybody; says what is worth knowing otherwise."""
    issuer = read_issuer(settings)
    read_proxies(settings)
    local = is_loopback(settings.serve_host)
    if settings.serve_auth == "off" and not local:
        raise Refused(
            f"{settings.serve_host} can be reached by others, and serve_auth = off lets them all in",
            remedy="leave serve_auth away, or serve on 127.0.0.1 behind a proxy that asks who comes",
        )
    said: list[str] = []
    async with connect(settings.store, application_name="afterwrite serve", guarded=True) as db:
        has_keys = bool(await db.value(statement("serve.has_living_key")))
        required = settings.serve_auth == "required" or (settings.serve_auth == "auto" and not local)
        if required and not (has_keys or issuer or settings.serve_proxy_header):
            raise Refused(
                f"nobody could be let in at {settings.serve_host}: there is no key, and no issuer of tokens is named",
                remedy="make a key, `afterwrite key create NAME --scope read`, or set serve_jwks_url",
            )
        tenants = bool(await db.value(statement("serve.has_tenants_key"))) or issuer is not None
        trouble = await find_wall_trouble(db)
        if tenants and trouble:
            said.append(f"{trouble}: callers with a tenant are answered 503; {trouble.remedy}")
    return said
