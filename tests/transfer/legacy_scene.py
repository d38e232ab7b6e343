"""Legacy logs in the styles seen in the wild, written by their triggers; and importing them, in short."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from afterwrite.jsonb import read_members
from afterwrite.postgres import Database, connect
from afterwrite.scan.catalog import read_inventory
from afterwrite.scan.survey import Survey
from afterwrite.store.reader import StoredActivity, stored_activity
from afterwrite.store.writer import PostgresSink, open_sink
from afterwrite.transfer import legacy
from afterwrite.transfer.legacy import Imported, LogPlan, Policy
from afterwrite.transfer.mapping import LogMapping

STYLES = Path(__file__).with_name("styles.sql").read_text()
LOGS = (
    "public.audit_logs",
    "public.activity_log",
    "public.price_history",
    "public.versions",
    '"Odd Log"."AuditLog"',
    "audit.record_version",
    "audit.logged_actions",
)


async def lay_styles(db: Database) -> None:
    await db.script(STYLES)


class Scene:
    """Connections to one database that is both, as ``import legacy`` has them."""

    def __init__(self, source: Database, log: Database, store: Database, sink: PostgresSink, found: Survey) -> None:
        self.source, self.log, self.store, self.sink, self.found = source, log, store, sink, found

    async def plan(
        self,
        name: str,
        *,
        mapping: LogMapping | None = None,
        policy: Policy | None = None,
        stop: str | None = None,
        time_zone: str | None = None,
    ) -> LogPlan:
        (table,) = await legacy.find_logs(self.source, self.found, [name])
        inferred = (
            await legacy.infer_mapping(self.source, self.found, table, time_zone=time_zone) if mapping is None else None
        )
        return await legacy.plan_log(
            self.log,
            self.store,
            table,
            inferred,
            mapping,
            source="main",
            policy=policy or Policy(),
            captured=await legacy.read_captured(self.source, "afterwrite_legacy"),
            stop=stop,
            time_zone=time_zone,
        )

    async def bring(self, name: str, *, policy: Policy | None = None, plan: LogPlan | None = None) -> Imported:
        policy = policy or Policy()
        plan = plan or await self.plan(name, policy=policy)
        return await legacy.import_log(self.log, self.store, self.sink, plan, policy=policy)

    async def stored(self, relation: str | None = None) -> list[StoredActivity]:
        """What is imported, of one log where it is named, in the order of its time."""
        rows = await read_all(self.store)
        return [each for each in rows if relation is None or provenance(each)["table"] == relation]


@asynccontextmanager
async def scene(dsn: str, sql: str = "", *, found: Survey | None = None) -> AsyncGenerator[Scene]:
    """The connections; unless a survey was made before, nobody reads what triggers do, which takes most of the time."""
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(connect(dsn, guarded=True))
        if sql:
            await source.run(b"reset search_path")
            await source.script(sql)
            await source.run(b"set search_path to pg_catalog")
        log = await stack.enter_async_context(legacy.open_log(dsn))
        store = await stack.enter_async_context(connect(dsn, guarded=True))
        sink = await stack.enter_async_context(open_sink(dsn))
        if found is None:
            found = Survey(inventory=await read_inventory(source), bodies={}, judgements=(), findings=())
        yield Scene(source, log, store, sink, found)


async def read_all(store: Database) -> list[StoredActivity]:
    """What is imported, in the order of its time."""
    return [each for each in await read_everything(store) if each.source.endswith(".legacy")]


async def read_everything(store: Database) -> list[StoredActivity]:
    """All that is stored, in the order of its time, whichever batch brought it."""
    texts = ("id", "before", "after", "metadata", "commit_lsn", "caused_by")
    columns = ", ".join(
        f"a.{name}::text as {name}" if name in texts else name
        for name in StoredActivity.__struct_fields__
        if name not in ("position", "batch_id", "ip")
    )
    query = f"select 0 as position, 0 as batch_id, abbrev(ip) as ip, {columns} from afterwrite.activity a"
    query += " order by occurred_at, a.id"
    return await store.rows(stored_activity, query.encode())


def provenance(activity: StoredActivity) -> dict[str, object]:
    return msgspec.json.decode(read_members((activity.metadata or "{}").encode())["legacy"])


async def log_rows(db: Database, relation: str) -> list[dict[str, object]]:
    texts: Sequence[str] = await db.values(f"select to_jsonb(l.*)::text from {relation} l".encode())
    return [msgspec.json.decode(text) for text in texts]
