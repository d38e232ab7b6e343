"""Who asks, and what they may."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Scope(StrEnum):
    """What a caller may do: look, hand in activities, or look after the whole."""

    READ = "read"
    INGEST = "ingest"
    ADMIN = "admin"


class CallerKind(StrEnum):
    """How we know who asks: by a key of ours, a token, a proxy's word, or because he is on this machine."""

    KEY = "key"
    USER = "user"
    PROXIED = "proxied"
    LOCAL = "local"


class Caller(msgspec.Struct, frozen=True):
    """Who asks. With a ``tenant`` he sees that tenant's activity alone: PostgreSQL sees to it (see tenancy.py)."""

    name: str
    scopes: frozenset[Scope]
    tenant: str | None = None
    kind: CallerKind = CallerKind.KEY

    def may(self, scope: Scope) -> bool:
        """Whether one of the scopes allows this; ``admin`` allows everything."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


# Whoever is on this machine, where no authentication is configured.
LOCAL = Caller("local", frozenset(Scope), kind=CallerKind.LOCAL)
