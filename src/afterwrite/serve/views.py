"""Saved views: a search with a name, kept in the store for everybody who sees the same activity."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from urllib.parse import urlencode

import msgspec

from afterwrite.errors import UsageError
from afterwrite.postgres import Database, connect, statement
from afterwrite.search.query import parse
from afterwrite.serve.callers import Caller, Scope
from afterwrite.settings import Settings

MOST_VIEWS = 100
LONGEST_NAME = 80


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A search that somebody gave a name."""

    id: int
    name: str
    query: str
    made_by: str
    made_at: datetime


async def read_views(db: Database, caller: Caller) -> list[View]:
    """The views that this caller may see, by name; ``db`` as ``reading()`` gives it."""
    return await db.rows(View, statement("views.read_views"), tenant=caller.tenant, most=MOST_VIEWS)


async def save_view(settings: Settings, caller: Caller, name: str, query: str) -> View:
    """Keep a search under a name, for the caller's tenant; one's own of that name is replaced.

    Raises UsageError for a name that is none or somebody else's, and QueryError for a query that says nothing.
    """
    name = " ".join(name.replace("\0", "").split())
    if not 0 < len(name) <= LONGEST_NAME:
        raise UsageError(
            f"a view's name has between 1 and {LONGEST_NAME} letters, and this one {len(name)}",
            remedy="give it another",
        )
    parse(query)
    async with _writing(settings, caller) as db:
        if await db.value(statement("views.count_views"), tenant=caller.tenant) >= MOST_VIEWS:
            raise UsageError(f"{MOST_VIEWS} views are kept already", remedy="delete one first")
        kept = await db.maybe(
            View, statement("views.write_view"), tenant=caller.tenant, name=name, line=query, made_by=caller.name
        )
    if kept is None:
        raise UsageError(f"there is a view {name} of somebody else's", remedy="give it another name")
    return kept


async def delete_view(settings: Settings, caller: Caller, id: int) -> bool:
    """Forget a view: one's own, or, for an admin, anybody's of the same tenant. False where there is none such."""
    async with _writing(settings, caller) as db:
        return bool(
            await db.run(
                statement("views.delete_view"),
                id=id,
                tenant=caller.tenant,
                made_by=caller.name,
                anybodys=caller.may(Scope.ADMIN),
            )
        )


@asynccontextmanager
async def _writing(settings: Settings, caller: Caller) -> AsyncGenerator[Database]:
    """A transaction that may keep views; a tenant's caller is in it as his own role (see tenancy.py)."""
    async with connect(settings.store, application_name="afterwrite views", guarded=True) as db, db.transaction():
        await db.value(statement("serve.set_reader"), tenant=caller.tenant)
        yield db


async def view_links(db: Database, caller: Caller) -> list[dict[str, str]]:
    """The saved views as the pages list them: a name, and where it leads."""
    return [{"name": view.name, "href": view_href(view)} for view in await read_views(db, caller)]


def view_href(view: View) -> str:
    """The search that a view is."""
    return f"/search?{urlencode({'q': view.query, 'view': view.id})}"
