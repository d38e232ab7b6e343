"""One request as it reaches us: from where, by which proxy, under which name, and who turns out to make it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, MutableMapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, cast

import msgspec

from afterwrite.serve.callers import Caller
from afterwrite.serve.problems import ProblemError

_KEY = "afterwrite.visit"
_REQUEST_ID = re.compile(r"[\w.:-]{8,100}")
# What proxies say of themselves. One that says nothing cannot be told from a program on its machine.
_FORWARDING = frozenset({"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"})
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


class Visit(msgspec.Struct, kw_only=True):
    """A request. ``proxied``: a trusted proxy brought it; ``client`` is then who stands behind, as it says.

    ``is_local``: from this machine to this machine, under a name of this machine's, and sent on by nobody: neither by
    a proxy of ours, nor by one that says so.
    ``caller`` is None for nobody in particular; ``refusal`` says why a key or token that he showed is not good.
    """

    headers: Mapping[str, str]
    client: str | None
    request_id: str
    secure: bool
    proxied: bool
    is_local: bool
    wants_head_alone: bool = False
    caller: Caller | None = None
    refusal: ProblemError | None = None

    @property
    def house(self) -> str | None:
        """From where it comes, as what is bounded for each: an address, or of IPv6 the 2^64 that a household has."""
        if self.client is None or ":" not in self.client:
            return self.client
        return str(ip_network(f"{self.client}/64", strict=False))

    def cookie(self, name: str) -> str | None:
        """What a cookie of this name says. Ours need no quotes, which the library reads in quadratic time."""
        for part in self.headers.get("cookie", "").split(";"):
            found, _, value = part.strip().partition("=")
            if found == name:
                return value
        return None

    @property
    def comes_from_elsewhere(self) -> bool:
        """Whether a browser says that another site's page made this request."""
        if self.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            return True
        origin, host = self.headers.get("origin"), self.headers.get("host", "")
        return origin is not None and origin.partition("://")[2] != host

    @property
    def is_asked_from_elsewhere(self) -> bool:
        """Whether it is another site's page that asks, and nobody who followed its link."""
        return self.comes_from_elsewhere and self.headers.get("sec-fetch-mode") != "navigate"


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
        and not proxied
        and not any(name in _FORWARDING or name.startswith("x-forwarded-") for name in headers)
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
