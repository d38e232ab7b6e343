"""Tokens that somebody else signs: a JSON web token of an identity provider's, checked against its published keys.

::

    token ─▶ header: kid, alg ─▶ key of the JWKS (fetched, kept, fetched again for a kid that is new)
          ─▶ signature, exp, nbf, iss, aud ─▶ claims ─▶ Caller

The algorithm must be one that was configured, and fit the key; ``none`` is never one. A secret (HS256) is taken only
where one was configured, and a public key never as a secret.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from http.client import HTTPException
from typing import Any, cast
from urllib.parse import urlsplit

import jwt
import msgspec

from afterwrite.errors import UsageError
from afterwrite.serve.callers import Caller, CallerKind, Scope
from afterwrite.serve.problems import ProblemError
from afterwrite.settings import Settings

log = logging.getLogger(__name__)

_SIGNED = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_SECRET = ("HS256", "HS384", "HS512")
_SUPABASE_KEYS = "/auth/v1/.well-known/jwks.json"
_LONGEST_TOKEN, _LONGEST_NAME = 16_384, 300
_LEEWAY_SECONDS = 30.0
_KEPT_SECONDS, _FRESH_SECONDS, _STALE_SECONDS = 600.0, 10.0, 86_400.0
_FETCH_SECONDS, _MOST_KEY_BYTES = 5.0, 1 << 20


class Issuer(msgspec.Struct, frozen=True, kw_only=True):
    """Whose tokens are believed, and what is read from them. Claims are paths."""

    jwks_url: str | None
    secret: str | None
    issuer: str | None
    audience: str | None
    algorithms: tuple[str, ...]
    actor: tuple[str, ...]
    tenant: tuple[str, ...]
    scopes: tuple[str, ...]
    given: frozenset[Scope]
    needs_tenant: bool


def read_issuer(settings: Settings) -> Issuer | None:
    """Whose tokens the settings believe; None where they name nobody. Raises UsageError for what would not be safe."""
    url, issuer, audience = settings.serve_jwks_url, settings.serve_jwt_issuer, settings.serve_jwt_audience
    if url is None and settings.serve_jwt_secret is None:
        return None
    tenant, scopes = "tenant_id", "scope"
    if url is not None:
        url, base = _locate(url)
        if base is not None:
            issuer, audience = issuer or f"{base}/auth/v1", audience or "authenticated"
            tenant, scopes = "app_metadata.tenant_id", "app_metadata.afterwrite_scopes"
    if issuer is None and audience is None:
        raise UsageError(
            "tokens are to be believed whoever they were made for: neither their issuer nor their audience is named",
            remedy="set serve_jwt_issuer, serve_jwt_audience, or both",
        )
    allowed = (_SIGNED if url else ()) + (_SECRET if settings.serve_jwt_secret else ())
    algorithms = settings.serve_jwt_algorithms or allowed
    if unknown := [name for name in algorithms if name not in allowed]:
        raise UsageError(
            f"serve_jwt_algorithms cannot have {', '.join(unknown)}",
            remedy=f"with these settings it can have {', '.join(allowed)}",
        )
    paths = {
        name: tuple(text.split("."))
        for name, text in (
            ("serve_jwt_actor_claim", settings.serve_jwt_actor_claim),
            ("serve_jwt_tenant_claim", settings.serve_jwt_tenant_claim or tenant),
            ("serve_jwt_scopes_claim", settings.serve_jwt_scopes_claim or scopes),
        )
    }
    for name, path in paths.items():
        if path[0] == "user_metadata":
            raise UsageError(
                f"{name} is read from user_metadata, which users write themselves",
                remedy="keep it in app_metadata, which only your server writes",
            )
    return Issuer(
        jwks_url=url,
        secret=settings.serve_jwt_secret,
        issuer=issuer,
        audience=audience,
        algorithms=algorithms,
        actor=paths["serve_jwt_actor_claim"],
        tenant=paths["serve_jwt_tenant_claim"],
        scopes=paths["serve_jwt_scopes_claim"],
        given=frozenset(map(Scope, settings.serve_jwt_scopes)),
        needs_tenant=settings.serve_jwt_tenant == "required",
    )


def _locate(url: str) -> tuple[str, str | None]:
    """Where the keys are, and the address of the project where it is Supabase's."""
    parts = urlsplit(url)
    local = parts.hostname in {"localhost", "127.0.0.1", "::1"}
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise UsageError(
            f"serve_jwks_url is no https address: {url}",
            remedy="keys that decide who is who must not be altered on their way: write https://…",
        )
    path = parts.path.rstrip("/")
    base = f"{parts.scheme}://{parts.netloc}"
    if path.endswith(_SUPABASE_KEYS):
        return url, base + path.removesuffix(_SUPABASE_KEYS)
    if (parts.hostname or "").endswith((".supabase.co", ".supabase.in")) and path in {"", "/auth/v1"}:
        return base + _SUPABASE_KEYS, base
    return url, None


class Tokens:
    """Checks tokens of one issuer. Its keys are fetched when they are needed, and again when a new one is named."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._turn = asyncio.Lock()
        self._fetching: asyncio.Task[None] | None = None

    async def read(self, token: str) -> Caller:
        """Whose token this is. Raises ProblemError: 401 for one that is not good, 403 for one that opens nothing."""
        if len(token) > _LONGEST_TOKEN:
            raise _bad("the token is too long")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            raise _bad("this is no token, and no key of ours") from None
        algorithm = header.get("alg")
        if algorithm not in self._issuer.algorithms:
            raise _bad("the token is signed in a way that is not taken here")
        key = await self._find_key(algorithm, header.get("kid"))
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._issuer.issuer,
                audience=self._issuer.audience,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp"], "verify_aud": self._issuer.audience is not None},
            )
        except jwt.ExpiredSignatureError:
            raise _bad("the token has expired") from None
        except jwt.InvalidTokenError as error:
            raise _bad(f"the token does not hold: {error}") from None
        return self._caller(claims)

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        issuer = self._issuer
        name = _name(_dig(claims, issuer.actor))
        if name is None:
            raise _bad(f"the token does not say who it is for ({'.'.join(issuer.actor)})")
        tenant = _name(_dig(claims, issuer.tenant))
        if tenant is None and (issuer.needs_tenant or _dig(claims, issuer.tenant) is not None):
            raise ProblemError(
                403,
                "tenant",
                f"the token names no tenant ({'.'.join(issuer.tenant)})",
                remedy="have the issuer put it there; serve_jwt_tenant = optional lets such a token see every tenant",
            )
        said = _dig(claims, issuer.scopes)
        scopes = issuer.given if said is None else frozenset(_scopes(said))
        return Caller(name, scopes, tenant, CallerKind.USER)

    async def _find_key(self, algorithm: str, kid: object) -> Any:
        if algorithm in _SECRET:
            return self._issuer.secret
        if self._issuer.jwks_url is None or not (kid is None or isinstance(kid, str)):
            raise _bad("the token is signed with a key that is not known here")
        known, age = self._pick(algorithm, kid), time.monotonic() - self._fetched_at
        if known is None or age > _STALE_SECONDS:
            async with self._turn:
                await self._fetch(self._issuer.jwks_url)
            known, age = self._pick(algorithm, kid), time.monotonic() - self._fetched_at
        elif age > _KEPT_SECONDS:
            # Nobody waits for what may well be the same as before.
            self._fetching = asyncio.create_task(self._fetch(self._issuer.jwks_url))
        if age > _STALE_SECONDS:
            raise ProblemError(
                503, "unavailable", "the keys of the tokens' issuer cannot be had", headers={"Retry-After": "10"}
            )
        if known is None:
            raise _bad("the token is signed with a key that is not known here")
        return known.key

    def _pick(self, algorithm: str, kid: str | None) -> jwt.PyJWK | None:
        """The key that is named, or the only one that fits where none is."""
        if kid is not None:
            found = self._keys.get(kid)
            return found if found is not None and _fits(found, algorithm) else None
        fitting = [key for key in self._keys.values() if _fits(key, algorithm)]
        return fitting[0] if len(fitting) == 1 else None

    async def _fetch(self, url: str) -> None:
        """Get the keys anew, unless that was tried a moment ago: for a key that is made up, too."""
        now = time.monotonic()
        if now - self._tried_at <= _FRESH_SECONDS:
            return
        self._tried_at = now
        try:
            keys = await asyncio.to_thread(_get_keys, url)
        except (OSError, ValueError, HTTPException, urllib.error.URLError) as error:
            log.warning("the keys at %s cannot be had: %s", url, error)
            return
        self._keys = keys
        self._fetched_at = time.monotonic()


class _NoDetour(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **named: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Whoever could send us elsewhere would choose the keys."""
        return


def _get_keys(url: str) -> dict[str | None, jwt.PyJWK]:
    # https, or http on this machine: see _locate().
    request = urllib.request.Request(  # noqa: S310
        url, headers={"Accept": "application/json", "User-Agent": "afterwrite"}
    )
    with urllib.request.build_opener(_NoDetour).open(request, timeout=_FETCH_SECONDS) as answer:
        text = answer.read(_MOST_KEY_BYTES)
    found: object = json.loads(text)
    listed: object = cast("dict[str, object]", found).get("keys") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        raise ValueError("no set of keys is there")
    keys: dict[str | None, jwt.PyJWK] = {}
    for each in cast("list[object]", listed):
        if not isinstance(each, dict):
            continue
        data = cast("dict[str, Any]", each)
        if data.get("kty") == "oct" or data.get("use", "sig") != "sig":
            continue  # a published secret is none
        try:
            key = jwt.PyJWK(data)
        except jwt.PyJWTError:
            continue
        keys[key.key_id] = key
    return keys


def _fits(key: jwt.PyJWK, algorithm: str) -> bool:
    """Whether the algorithm is the key's own, or one of its family where it names none."""
    kind = {"R": "RSA", "P": "RSA", "E": "OKP" if algorithm == "EdDSA" else "EC"}[algorithm[0]]
    return key.key_type == kind and (key.algorithm_name == algorithm or (kind == "RSA" and algorithm[0] in "RP"))


def _dig(claims: Mapping[str, Any], path: Iterable[str]) -> object:
    found: object = claims
    for word in path:
        if not isinstance(found, Mapping):
            return None
        found = cast("Mapping[str, object]", found).get(word)
    return found


def _name(value: object) -> str | None:
    text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    return text if text and len(text) <= _LONGEST_NAME and text.isprintable() else None


def _scopes(said: object) -> list[Scope]:
    words: Iterable[object] = ()
    if isinstance(said, str):
        words = said.split()
    elif isinstance(said, list):
        words = cast("list[object]", said)
    known = {scope.value: scope for scope in Scope}
    names = (word.removeprefix("afterwrite:") for word in words if isinstance(word, str))
    return [known[name] for name in names if name in known]


def _bad(detail: str) -> ProblemError:
    return ProblemError(401, "credentials", detail, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})
