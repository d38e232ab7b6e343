"""Who asks, and what they may: the caller behind every request."""

from __future__ import annotations

from enum import StrEnum

import msgspec
from litestar import Request
from litestar.datastructures import State
from litestar.exceptions import PermissionDeniedException


class Scope(StrEnum):
    """What a caller may do: look, hand in activities, or look after the whole."""

    READ = "read"
    INGEST = "ingest"
    ADMIN = "admin"


class Caller(msgspec.Struct, frozen=True):
    """Who asks. With a ``tenant`` he sees that tenant's activity alone: PostgreSQL sees to it (see tenancy.py)."""

    name: str
    scopes: frozenset[Scope]
    tenant: str | None = None

    def may(self, scope: Scope) -> bool:
        """Whether one of the scopes allows this; ``admin`` allows everything."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


# Whoever is on this machine, where no authentication is configured.
LOCAL = Caller("local", frozenset(Scope))


async def provide_caller(request: Request[Caller, None, State]) -> Caller:
    """The dependency ``caller`` of every handler."""
    return request.scope.get("user") or LOCAL


async def provide_operator(caller: Caller) -> Caller:
    """The dependency ``operator``: a caller without a tenant, for what is about all of the store or the source."""
    if caller.tenant is not None:
        raise PermissionDeniedException("this is about every tenant, and your key is one tenant's")
    return caller
