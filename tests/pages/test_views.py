"""Saved views: whose they are, who may see them, and who may delete them."""

from __future__ import annotations

import asyncio

import pytest

from afterwrite.errors import UsageError
from afterwrite.postgres import connect, statement
from afterwrite.search.query import QueryError
from afterwrite.serve.callers import Caller, Scope
from afterwrite.serve.views import delete_view, read_views, save_view
from afterwrite.settings import Settings

_READ = frozenset({Scope.READ})
ANNA, BEN = Caller("anna", _READ), Caller("ben", _READ)
ADMIN = Caller("admin", frozenset({Scope.ADMIN}))
NORTH, SOUTH = Caller("nora", _READ, "north"), Caller("sid", _READ, "south")


async def names(dsn: str, caller: Caller) -> list[tuple[str, str]]:
    async with connect(dsn) as db, db.transaction():
        await db.value(statement("serve.set_reader"), tenant=caller.tenant)
        return [(view.name, view.query) for view in await read_views(db, caller)]


def test_a_view_is_everybodys_to_see_and_its_makers_to_change_and_delete(installed_dsn: str) -> None:
    async def run() -> None:
        settings = Settings(dsn=installed_dsn)
        await save_view(settings, ANNA, "  Logins\tof today ", "action:auth.*")
        kept = await save_view(settings, ANNA, "Logins of today", "action:auth.login")
        assert await names(installed_dsn, BEN) == [("Logins of today", "action:auth.login")]
        with pytest.raises(UsageError, match="somebody else"):
            await save_view(settings, BEN, "Logins of today", "")
        assert not await delete_view(settings, BEN, kept.id)
        assert await delete_view(settings, ADMIN, kept.id)
        assert await names(installed_dsn, ANNA) == []

    asyncio.run(run())


def test_a_view_has_a_name_and_a_query_that_says_something(installed_dsn: str) -> None:
    async def run() -> None:
        settings = Settings(dsn=installed_dsn)
        for name in ("", " \n", "x" * 81):
            with pytest.raises(UsageError, match="letters"):
                await save_view(settings, ANNA, name, "kind:event")
        with pytest.raises(QueryError):
            await save_view(settings, ANNA, "broken", "outcome:nope")

    asyncio.run(run())


def test_tenants_have_views_of_their_own_and_the_database_keeps_them_apart(installed_dsn: str) -> None:
    async def run() -> None:
        settings = Settings(dsn=installed_dsn)
        kept = await save_view(settings, NORTH, "Mine", "kind:event")
        await save_view(settings, SOUTH, "Mine", "kind:change")
        await save_view(settings, ANNA, "Mine", "outcome:failure")
        assert await names(installed_dsn, NORTH) == [("Mine", "kind:event")]
        assert await names(installed_dsn, SOUTH) == [("Mine", "kind:change")]
        assert await names(installed_dsn, ANNA) == [("Mine", "outcome:failure")]
        assert not await delete_view(settings, SOUTH, kept.id)
        assert not await delete_view(settings, ADMIN, kept.id)
        async with connect(installed_dsn) as db, db.transaction():
            await db.value(statement("serve.set_reader"), tenant="south")
            # Whatever is asked, in code that forgets the tenant.
            seen = await db.values(b"select query from afterwrite.saved_view")
            assert seen == ["kind:change"]

    asyncio.run(run())
