"""A stage for deferred bodies: a spy that writes down what happens, and a store that is told of it.

The spy stands in for capture: an AFTER ROW trigger that keeps every change as to_jsonb() gives it, with the settings
and the time of its transaction. ``tell`` makes activities of that and writes them through the real sink.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
from psycopg import sql

from afterwrite.defer.calls import OnError, ReplayPolicy
from afterwrite.defer.deferral import prepare_deferral
from afterwrite.defer.replay import Replayer
from afterwrite.migrate.plan import Plan, Thresholds, write_plan
from afterwrite.postgres import Database, connect
from afterwrite.record import Activity, Batch, Checkpoint, Kind, Lsn, Operation, TransactionContext, change_id
from afterwrite.scan.catalog import Trigger, read_inventory
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink

SOURCE = "app"
_BEGIN = 1 << 40
_EMPTY_PLAN = write_plan(Plan(thresholds=Thresholds(), phases=()))
SPY = """
create schema stage;
create table stage.spy (
    n bigint generated always as identity, xid bigint default txid_current(), at timestamptz default now(),
    relation text, operation text, before jsonb, after jsonb,
    claims text default current_setting('request.claims', true)
);
create function stage.spy() returns trigger language plpgsql as $$
declare
    hidden text[] := coalesce(tg_argv[1]::text[], '{}');
begin
    insert into stage.spy (relation, operation, before, after)
    values (tg_argv[0], lower(tg_op), to_jsonb(old) - hidden, to_jsonb(new) - hidden);
    return null;
end
$$;
"""


class Seen(msgspec.Struct, frozen=True):
    """What the spy saw of one row."""

    n: int
    xid: int
    at: datetime
    relation: str
    operation: str
    before: str | None
    after: str | None
    claims: str | None


async def tell_ledger(db: Database, action: str, subject: str, *, xid: int | None = None) -> None:
    """What migrate writes beside a mark; of its own transaction, or of the one with this xid."""
    await db.run(
        b"insert into afterwrite.migration (id, plan) values (1, %(plan)s) on conflict do nothing", plan=_EMPTY_PLAN
    )
    await db.run(
        b"insert into afterwrite.ledger (migration, phase, subject, action, sql, xid)"
        b" values (1, 1, %(subject)s, %(action)s, '', coalesce(%(xid)s::text::xid8, pg_current_xact_id()))",
        subject=subject,
        action=action,
        xid=xid,
    )


class Teller:
    """Writes batches as capture would, at commit LSNs that it makes up, far beyond the server's own."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.lsn = _BEGIN

    @property
    def xid(self) -> int:
        """Of the transaction at the last LSN; long past for the server."""
        return (self.lsn - _BEGIN) // 100

    async def tell(
        self,
        *transactions: Sequence[Activity],
        settings: dict[int, dict[str, str]] | None = None,
        forged: bool = False,
    ) -> None:
        """Store these transactions as one batch; each gets the next commit LSN.

        The ledger hears of the marks among them, unless they are ``forged``.
        """
        activities: list[Activity] = []
        contexts: list[TransactionContext] = []
        first = Lsn(self.lsn + 100)
        for number, transaction in enumerate(transactions):
            self.lsn += 100
            at = transaction[0].occurred_at
            for ordinal, activity in enumerate(transaction):
                activities.append(
                    msgspec.structs.replace(
                        activity,
                        id=change_id("1", 1, Lsn(self.lsn), ordinal, at),
                        occurred_at=at,
                        commit_lsn=Lsn(self.lsn),
                        ordinal=ordinal,
                        xid=self.xid,
                    )
                )
            if settings and number in settings:
                contexts.append(TransactionContext(commit_lsn=Lsn(self.lsn), xid=self.xid, settings=settings[number]))
        last = Lsn(self.lsn)
        if not forged and (marks := [activity for activity in activities if activity.category == "migration"]):
            async with connect(self.dsn) as db:
                for each in marks:
                    await tell_ledger(db, each.action, each.entity_id or "", xid=each.xid)
        async with open_sink(self.dsn) as sink:
            await sink.write(
                Batch(
                    source=SOURCE,
                    activities=activities,
                    transactions=len(transactions),
                    first_lsn=first,
                    last_lsn=last,
                    checkpoint=Checkpoint(source=SOURCE, slot="s", system_id="1", timeline=1, lsn=Lsn(last + 1)),
                    contexts=contexts,
                )
            )


def change(
    relation: str,
    operation: str,
    before: dict[str, Any] | str | None = None,
    after: dict[str, Any] | str | None = None,
    *,
    at: datetime | None = None,
    **more: Any,
) -> Activity:
    """A row change; rows are given as values, or as PostgreSQL's own JSON text where precision matters."""
    changed = None
    if before is not None and after is not None:
        old, new = _values(before), _values(after)
        changed = tuple(name for name in new if old.get(name) != new[name])
    return Activity(
        id=str(uuid.uuid4()),
        occurred_at=at or datetime.now(UTC),
        source=SOURCE,
        kind=Kind.CHANGE,
        category="data",
        action=f"{relation}.{operation}",
        relation=relation,
        operation=Operation(operation),
        changed=changed,
        before=_raw(before),
        after=_raw(after),
        **more,
    )


def mark(trigger: Trigger, action: str = "silence", mode: str = "defer") -> Activity:
    return Activity(
        id=str(uuid.uuid4()),
        occurred_at=datetime.now(UTC),
        source=SOURCE,
        kind=Kind.EVENT,
        category="migration",
        action=f"trigger.{action}",
        entity_type="trigger",
        entity_id=trigger.identity,
        metadata=_raw({"trigger_oid": trigger.oid, "mode": mode, "phase": 1, "migration": "1"}),
    )


def _values(row: dict[str, Any] | str) -> dict[str, Any]:
    return json.loads(row, parse_float=Decimal) if isinstance(row, str) else row


def _raw(value: object) -> msgspec.Raw | None:
    if value is None or isinstance(value, str):
        return None if value is None else msgspec.Raw(value.encode())
    return msgspec.Raw(msgspec.json.encode(value))


class Stage:
    """One database that is source and store at once."""

    def __init__(self, dsn: str, db: Database, store: Database) -> None:
        self.dsn = dsn
        self.db = db
        self.store = store
        self.teller = Teller(dsn)
        self.told = 0

    async def lay(self, ddl: str, *, spied: Iterable[str] = (), hidden: str = "{}") -> None:
        """Run the script, and put a spy on these tables; ``hidden`` are columns that the WAL does not have."""
        await self.db.script(ddl)
        for table in spied:
            await self.db.script(
                f"alter table {table} replica identity full;"
                f"create trigger zz_spy after insert or update or delete on {table} for each row "
                f"execute function stage.spy('{table}', '{hidden}')"
            )

    async def triggers(self) -> Sequence[Trigger]:
        return (await read_inventory(self.db)).triggers

    async def trigger(self, name: str) -> Trigger:
        return next(trigger for trigger in await self.triggers() if trigger.name == name)

    async def do(self, *statements: str) -> None:
        """One transaction."""
        async with self.db.transaction():
            for text in statements:
                await self.db.run(text.encode())

    async def defer(self, *names: str, on_error: OnError = OnError.PARK) -> None:
        """Prepare these triggers, switch them off, and tell the store so."""
        await self.teller.tell([mark(trigger) for trigger in await self.prepare(*names, on_error=on_error)])

    async def prepare(self, *names: str, on_error: OnError = OnError.PARK) -> list[Trigger]:
        """Prepare these triggers and switch them off; the store hears nothing of it."""
        triggers: list[Trigger] = []
        for name in names:
            trigger = await self.trigger(name)
            triggers.append(trigger)
            await prepare_deferral(self.db, trigger, source=SOURCE, on_error=on_error)
            await self.db.run(
                sql.SQL("alter table {} disable trigger {}").format(
                    sql.Identifier(trigger.schema, trigger.table), sql.Identifier(name)
                )
            )
        return triggers

    async def tell_all(self, *, in_batches_of: int = 1000, settings: dict[int, dict[str, str]] | None = None) -> int:
        """Make activities of what the spy has seen and nobody was told of, transaction by transaction."""
        seen = await self.db.rows(
            Seen,
            b"select n, xid, at, relation, operation, before::text as before, after::text as after, claims "
            b"from stage.spy where n > %(told)s order by n",
            told=self.told,
        )
        transactions: dict[int, list[Activity]] = {}
        settings = dict(settings or {})
        for row in seen:
            number = list(transactions).index(row.xid) if row.xid in transactions else len(transactions)
            activity = change(
                row.relation, row.operation, row.before, row.after, at=row.at, actor_id=f"actor {row.xid}"
            )
            transactions.setdefault(row.xid, []).append(activity)
            if row.claims:
                settings[number] = {"request.claims": row.claims}
        if not transactions:
            return 0
        listed = list(transactions.values())
        for at in range(0, len(listed), in_batches_of):
            part = listed[at : at + in_batches_of]
            await self.teller.tell(*part, settings={n - at: s for n, s in settings.items() if at <= n < at + len(part)})
        self.told = max((row.n for row in seen), default=self.told)
        return len(listed)

    async def replay(self, policy: ReplayPolicy | None = None) -> Replayer:
        """Run everything that is told."""
        replayer = Replayer(self.db, self.store, SOURCE, policy=policy)
        await replayer.load()
        while await replayer.round():
            pass
        return replayer

    async def effects(self, table: str = "effects") -> list[Any]:
        return await self.db.values(f"select to_jsonb(e) from {table} e order by 1".encode())


@asynccontextmanager
async def stage(dsn: str) -> AsyncIterator[Stage]:
    async with connect(dsn) as db:
        await install_store(db)
        # The tests' superuser is called like our schema, which "$user" would put first.
        await db.script(f'alter database "{db.connection.info.dbname}" set search_path = public')
    async with connect(dsn) as db, connect(dsn) as store:
        await db.script(SPY)
        yield Stage(dsn, db, store)


@asynccontextmanager
async def stage_again(dsn: str) -> AsyncIterator[Stage]:
    """The same stage over connections of its own."""
    async with connect(dsn) as db, connect(dsn) as store:
        yield Stage(dsn, db, store)
