"""Replica identities changed for capture are told in the ledger and set back, except where that would break writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from migrating import PLACE, application

from afterwrite.errors import AfterwriteError
from afterwrite.migrate.backup import catalog_state
from afterwrite.migrate.identity import (
    ReplicaIdentity,
    parse_replica_identity,
    read_replica_identity,
    record_replica_identity,
    replica_identity_sql,
    restore_replica_identities,
)
from afterwrite.migrate.ledger import Action, read_ledger
from afterwrite.migrate.rollback import rollback_phase
from afterwrite.postgres import Database

FULL = ReplicaIdentity("f")


@asynccontextmanager
async def tables(dsn: str) -> AsyncIterator[Database]:
    async with application(dsn) as db:
        await db.script(
            'create table app."Odd one" (a int not null); create unique index "Odd index" on app."Odd one" (a);'
            'alter table app."Odd one" replica identity using index "Odd index";'
            "create table app.keyless (a int); alter table app.keyless replica identity nothing;"
        )
        yield db


async def widen(db: Database, table: str) -> None:
    async with db.transaction():
        await record_replica_identity(db, table, await read_replica_identity(db, table), FULL)
        await db.run(replica_identity_sql(table, FULL).encode())


def test_every_identity_is_set_back_as_it_was(installed_dsn: str) -> None:
    async def main() -> None:
        async with tables(installed_dsn) as db:
            before = await catalog_state(db)
            names = ["app.users", 'app."Odd one"', "app.keyless"]
            for table in names:
                await widen(db, table)
            assert await read_replica_identity(db, "app.users") == FULL
            shown, _ = await restore_replica_identities(db, apply=False)
            assert await catalog_state(db) != before
            back = await rollback_phase(db, None, place=PLACE, apply=True)
            assert sorted(back.identities) == sorted(names)
            assert [deed for deed in back.deeds if deed.relations] == shown
            statements = [deed.statements[0] for deed in shown]
            assert 'alter table app."Odd one" replica identity using index "Odd index"' in statements
            assert await catalog_state(db) == before
            actions = [entry.action for entry in await read_ledger(db)]
            assert actions == [Action.REPLICA_IDENTITY_SET] * 3 + [Action.REPLICA_IDENTITY_RESTORE] * 3
            assert (await rollback_phase(db, None, place=PLACE, apply=True)).identities == ()

    asyncio.run(main())


def test_what_was_told_and_never_done_or_set_back_by_hand_is_left(installed_dsn: str) -> None:
    async def main() -> None:
        async with tables(installed_dsn) as db:
            await record_replica_identity(db, "app.users", ReplicaIdentity("d"), FULL)
            assert await restore_replica_identities(db) == ([], [])

    asyncio.run(main())


def test_an_identity_that_somebody_else_changed_is_left_and_said(installed_dsn: str) -> None:
    async def main() -> None:
        async with tables(installed_dsn) as db:
            await widen(db, "app.users")
            await db.run("alter table app.users replica identity nothing")
            done, said = await restore_replica_identities(db)
            assert done == []
            assert [(finding.where, finding.remedy) for finding in said] == [
                ("app.users", "alter table app.users replica identity default;")
            ]

    asyncio.run(main())


def test_an_identity_without_which_published_writes_would_fail_is_left_and_said(installed_dsn: str) -> None:
    async def main() -> None:
        async with tables(installed_dsn) as db:
            await widen(db, "app.keyless")
            await widen(db, "app.payments_2024")
            await db.run("alter table app.payments drop constraint payments_pkey")
            await db.run(
                "create publication afterwrite for table app.keyless, app.payments "
                "with (publish_via_partition_root = true)"
            )
            done, said = await restore_replica_identities(db)
            assert done == []
            assert {finding.where for finding in said} == {"app.keyless", "app.payments_2024"}
            await db.run("update app.keyless set a = 1")  # still works
            await db.run("drop publication afterwrite")
            done, _ = await restore_replica_identities(db)
            assert len(done) == 2

    asyncio.run(main())


def test_a_statement_tells_the_identity_that_it_sets() -> None:
    for identity in (ReplicaIdentity("d"), ReplicaIdentity("n"), FULL, ReplicaIdentity("i", 'Odd "index')):
        assert parse_replica_identity(replica_identity_sql("app.t", identity)) == identity
    with pytest.raises(AfterwriteError, match="not a statement"):
        parse_replica_identity("alter table app.t enable trigger t")
