"""One request as it reaches us: from where, by which proxy, under which name, and who turns out to make it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, cast

import msgspec

from afterwrite.serve.callers import Caller

_KEY = "afterwrite.visit"
_REQUEST_ID = re.compile(r"[\w.:-]{8,100}")
_FORWARDING = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


class Visit(msgspec.Struct, kw_only=True):
    """A request. ``proxied``: a trusted proxy brought it; ``client`` is then who stands behind, as it says.

    ``is_local``: from this machine to this machine, under a name of this machine's, and sent on by nobody.
    ``caller`` is None for nobody in particular; ``refusal`` says why a key or token that he showed is not good.
    """

    headers: Mapping[str, str]
    client: str | None
    request_id: str
    secure: bool
    proxied: bool
    is_local: bool
    caller: Caller | None = None
    refusal: Exception | None = None

    def cookie(self, name: str) -> str | None:
        """What a cookie of this name says."""
        try:
            morsel = SimpleCookie(self.headers.get("cookie", "")).get(name)
        except CookieError:
            return None
        return morsel.value if morsel else None

    @property
    def comes_from_elsewhere(self) -> bool:
        """Whether a browser says that another site's page made this request."""
        if self.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            return True
        origin, host = self.headers.get("origin"), self.headers.get("host", "")
        return origin is not None and origin.partition("://")[2] != host


def meet(scope: Mapping[str, Any], proxies: Iterable[Network]) -> Visit:
    """The visit that an ASGI scope tells of."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in cast("Iterable[tuple[bytes, bytes]]", scope["headers"]):
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    peer = _address(cast("tuple[str, int] | None", scope.get("client")))
    here = _address(cast("tuple[str, int] | None", scope.get("server")))
    trusted = tuple(proxies)
    proxied = peer is not None and any(peer in network for network in trusted)
    client = _behind(headers.get("x-forwarded-for", ""), trusted) if proxied else None
    secure = scope.get("scheme") == "https" or (proxied and headers.get("x-forwarded-proto") == "https")
    local = (
        peer is not None
        and peer.is_loopback
        and here is not None
        and here.is_loopback
        and not any(name in headers for name in _FORWARDING)
        # A page of somebody's whose name was made to mean this machine (DNS rebinding) says that name.
        and _host(headers.get("host", "")) in {*_LOCAL_NAMES, str(here)}
    )
    said = headers.get("x-request-id", "")
    return Visit(
        headers=headers,
        client=str(client or peer) if client or peer else None,
        request_id=said if _REQUEST_ID.fullmatch(said) else secrets.token_hex(8),
        secure=secure,
        proxied=proxied,
        is_local=local,
    )


def keep(scope: MutableMapping[str, Any], visit: Visit) -> None:
    """Remember the visit for those who see the same scope later."""
    scope[_KEY] = visit


def visit_of(scope: Mapping[str, Any]) -> Visit:
    """The visit that this scope belongs to."""
    return cast("Visit", scope[_KEY])


def _address(place: tuple[str, int] | None) -> Address | None:
    try:
        found = ip_address(place[0].partition("%")[0]) if place else None
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


def _behind(said: str, trusted: Iterable[Network]) -> Address | None:
    """The last of these addresses that is no proxy of ours: what stands before it anybody may have written."""
    trusted = tuple(trusted)
    for text in reversed(said.split(",")):
        try:
            found = ip_address(text.strip())
        except ValueError:
            return None
        if not any(found in network for network in trusted):
            return found
    return None


def _host(said: str) -> str:
    """The name in a Host header, without the port."""
    if said.startswith("["):
        return said[1:].partition("]")[0]
    return said.rpartition(":")[0] if ":" in said else said
