"""Whether a database's changes can be captured without harm: what it is, read; what stands in the way, said.

``survey`` reads, ``judge`` decides, and neither changes anything. Publishing the UPDATEs of a table without replica
identity makes the application's writes fail, so that is looked for before anything is published.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec

from afterwrite.errors import DatabaseError, Finding, Severity, UsageError
from afterwrite.postgres import Database, quoted, statement
from afterwrite.record import Lsn

T = TypeVar("T")
Table = tuple[str, str]
"""(schema, table)"""


class CaptureSetup(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be captured, and under which names.

    ``tables`` are application tables (a partitioned one by its root alone), ``legacy_tables`` the log tables that the
    old triggers write. ``full_identity`` names those of ``tables`` whose old rows are wanted whole.
    """

    source: str
    tables: tuple[Table, ...]
    legacy_tables: tuple[Table, ...] = ()
    full_identity: tuple[Table, ...] = ()
    slot: str = "afterwrite"
    publication: str = "afterwrite"
    legacy_publication: str = "afterwrite_legacy"
    store_schema: str = "afterwrite"

    @property
    def publications(self) -> tuple[str, str]:
        return (self.publication, self.legacy_publication)


class SourceServer(msgspec.Struct, frozen=True, kw_only=True):
    """The server's settings, free places and our rights on it."""

    version: int
    wal_level: str
    encoding: str
    slot_keeps_bytes: int | None
    may_identify: bool
    may_monitor: bool
    in_recovery: bool
    slots_allowed: int
    slots_used: int
    senders_allowed: int
    senders_used: int
    role: str
    may_replicate: bool
    may_publish: bool
    database: str
    provider: str


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A wanted table, or a partition under one. ``identity`` is relreplident, ``kind`` relkind."""

    wanted_schema: str
    wanted_table: str
    found: bool
    top: bool
    schema: str
    table: str
    kind: str
    persistence: str
    is_partition: bool
    identity: str
    identity_index: str | None
    has_primary_key: bool
    identity_lacks_key: bool
    has_stored_columns: bool
    has_virtual_columns: bool
    owned: bool
    owner: str
    column_lists: list[str]
    hide_generated: list[str]

    @property
    def wanted(self) -> Table:
        return (self.wanted_schema, self.wanted_table)

    @property
    def name(self) -> str:
        return quoted(self.schema, self.table)


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A publication and the tables that it lists; ``narrowed`` are those with a row filter or a column list."""

    name: str
    all_tables: bool
    inserts: bool
    updates: bool
    deletes: bool
    truncates: bool
    via_root: bool
    generated: str
    schemas: list[str]
    tables: list[str]
    narrowed: list[str]

    @property
    def listed(self) -> set[Table]:
        return set(zip(self.schemas, self.tables, strict=True))


class SlotState(msgspec.Struct, frozen=True, kw_only=True):
    """A row of pg_replication_slots. ``here``: it belongs to this database."""

    name: str
    plugin: str | None
    database: str | None
    here: bool | None
    active_pid: int | None
    restart_lsn: str | None
    confirmed_flush_lsn: str | None
    wal_status: str | None
    invalidation: str | None

    @property
    def confirmed(self) -> Lsn:
        return Lsn.parse(self.confirmed_flush_lsn or "0/0")

    @property
    def lost(self) -> bool:
        return self.wal_status == "lost" or self.invalidation is not None


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that ``judge`` and the steps of an installation look at, read at one time."""

    server: SourceServer
    members: list[Member]
    legacy: list[Member]
    publications: dict[str, Published]
    slot: SlotState | None


async def survey(database: Database, setup: CaptureSetup) -> Survey:
    """Read what stands. Only reads; raises DatabaseError when the server cannot be asked."""
    server = await read_server(database)
    published = await database.rows(Published, statement("capture.read_publications"), names=list(setup.publications))
    return Survey(
        server=server,
        members=await _members(database, setup.tables),
        legacy=await _members(database, setup.legacy_tables),
        publications={publication.name: publication for publication in published},
        slot=await read_slot(database, setup.slot),
    )


class _Found(msgspec.Struct, frozen=True):
    schema: str
    name: str


_INVALID_NAME = "42602"


async def find_table(database: Database, name: str) -> Table:
    """The table that people call so, or the root of that partition; raises UsageError when there is none."""
    found = await read_named(database, _Found, statement("capture.find_table"), name)
    return found.schema, found.name


async def read_named(database: Database, kind: type[T], query: bytes, name: str) -> T:
    """What a query says of the table that people call so; raises UsageError when it says nothing."""
    try:
        found = await database.maybe(kind, query, name=name)
    except DatabaseError as error:
        # Before PostgreSQL 16 what is no name at all is an error of its own.
        if error.sqlstate != _INVALID_NAME:
            raise
        found = None
    if found is None:
        raise UsageError(
            f"there is no table {name} in {database.where}", remedy="write it as schema.table, quoted where need be"
        )
    return found


async def read_server(database: Database) -> SourceServer:
    """The server's settings, and our rights on it."""
    return await database.one(SourceServer, statement("capture.read_server"))


async def read_slot(database: Database, slot: str) -> SlotState | None:
    """The slot as it is now, or None."""
    return await database.maybe(SlotState, statement("capture.read_slot"), slot=slot)


async def _members(database: Database, tables: Sequence[Table]) -> list[Member]:
    return await database.rows(
        Member,
        statement("capture.read_relations"),
        schemas=[schema for schema, _ in tables],
        tables=[table for _, table in tables],
    )


async def preflight(database: Database, setup: CaptureSetup) -> list[Finding]:
    """What stands in the way of capture, or will; never raises for what it finds. Empty is well."""
    return judge(await survey(database, setup), setup)


def judge(seen: Survey, setup: CaptureSetup) -> list[Finding]:
    """Findings in the order in which they are best mended: the server, our rights, the slot, the tables."""
    return [
        *_judge_server(seen, setup),
        *_judge_slot(seen, setup),
        *_judge_publications(seen, setup),
        *_judge_tables(seen, setup),
        *_judge_legacy(seen),
    ]


_WAL_LEVEL_REMEDY = {
    "self": "run ALTER SYSTEM SET wal_level = logical, then restart the server",
    "rds": "set rds.logical_replication = 1 in the instance's parameter group, then reboot it",
    "cloudsql": "set the flag cloudsql.logical_decoding = on, which restarts the instance",
    "azure": "set the server parameter wal_level to LOGICAL in the portal, then restart the server",
    "supabase": "Supabase runs with wal_level = logical: check that the DSN names the database itself",
}
_REPLICATION_REMEDY = {
    "self": "as a superuser, run ALTER ROLE {role} REPLICATION",
    "rds": "as the master user, run GRANT rds_replication TO {role}",
    "cloudsql": "as a cloudsqlsuperuser, run ALTER USER {role} WITH REPLICATION",
    "azure": "as the server's admin, run ALTER ROLE {role} WITH REPLICATION",
    "supabase": "connect as postgres, which has the right, directly and not through the pooler",
}


_KEEP_REMEDY = {
    "self": "run ALTER SYSTEM SET max_slot_wal_keep_size = '{size}', then SELECT pg_reload_conf()",
    "rds": "set max_slot_wal_keep_size (in MB) in the instance's parameter group to what its disk can spare",
    "cloudsql": "set the flag max_slot_wal_keep_size (in MB) to what the instance's disk can spare",
    "azure": "set the server parameter max_slot_wal_keep_size in the portal to what the server's disk can spare",
    "supabase": "set it with `supabase postgres-config update --config max_slot_wal_keep_size={size}`",
}


def judge_limit(server: SourceServer, slot: str, wal_budget: int) -> list[Finding]:
    """Whether the server protects its disk by itself where nobody of ours governs the slot. Pure."""
    if server.slot_keeps_bytes is not None:
        return []
    size = f"{max(2, 2 * wal_budget >> 30)}GB"
    return [
        Finding(
            rule="server.slot_keep",
            severity=Severity.WARNING,
            where=slot,
            text="max_slot_wal_keep_size is -1: while no worker runs to govern it, slot"
            f" {slot} may keep WAL until the server's disk is full",
            remedy=_KEEP_REMEDY[server.provider].format(size=size),
        )
    ]


def _judge_server(seen: Survey, setup: CaptureSetup) -> Iterator[Finding]:
    server, where = seen.server, seen.server.database
    if server.version < 140_000:
        yield _error(
            "server.version",
            where,
            f"PostgreSQL {server.version // 10_000} is too old to be captured",
            "upgrade to 14 or later",
        )
    if server.in_recovery:
        yield _error(
            "server.standby",
            where,
            "this is a standby, where nothing of ours can be kept",
            "connect to the primary",
        )
    if server.wal_level != "logical":
        yield _error(
            "server.wal_level",
            where,
            f"wal_level is {server.wal_level}, so the WAL does not hold rows",
            _WAL_LEVEL_REMEDY[server.provider],
        )
    if not server.may_replicate:
        yield _error(
            "role.replication",
            where,
            f"role {server.role} may not read the WAL: it is neither superuser nor has it REPLICATION",
            _REPLICATION_REMEDY[server.provider].format(role=quoted(server.role)),
        )
    if not server.may_identify:
        yield _error(
            "role.identify",
            where,
            f"role {server.role} may not ask which cluster this is: another one in its place would not be noticed",
            f"as a superuser, run GRANT EXECUTE ON FUNCTION pg_control_system() TO {quoted(server.role)}",
        )
    if not server.may_monitor:
        yield Finding(
            rule="role.monitor",
            severity=Severity.INFO,
            where=where,
            text=f"role {server.role} does not see what sessions of other roles do: who stands in the way is named"
            " without what he is doing",
            remedy=f"run GRANT pg_monitor TO {quoted(server.role)}",
        )
    if not server.may_publish and not all(name in seen.publications for name in setup.publications):
        yield _error(
            "role.create",
            where,
            f"role {server.role} may not create a publication in {where}",
            f"run GRANT CREATE ON DATABASE {quoted(where)} TO {quoted(server.role)}",
        )
    if seen.slot is None and server.slots_used >= server.slots_allowed:
        yield _error(
            "server.slots",
            where,
            f"all {server.slots_allowed} replication slots are taken",
            "drop one that nobody reads (see pg_replication_slots), or raise max_replication_slots and restart",
        )
    if (seen.slot is None or seen.slot.active_pid is None) and server.senders_used >= server.senders_allowed:
        yield _error(
            "server.senders",
            where,
            f"all {server.senders_allowed} WAL senders are taken",
            "end one (see pg_stat_replication), or raise max_wal_senders and restart",
        )
    if server.encoding == "SQL_ASCII":
        yield Finding(
            rule="server.encoding",
            severity=Severity.WARNING,
            where=where,
            text="the database is SQL_ASCII: text that is not UTF-8 is stored with backslash escapes in its place",
            remedy="convert the database to UTF8 when you can",
        )


def _judge_slot(seen: Survey, setup: CaptureSetup) -> Iterator[Finding]:
    slot = seen.slot
    if slot is None:
        return
    if slot.plugin != "pgoutput" or not slot.here:
        yield _error(
            "slot.foreign",
            slot.name,
            f"slot {slot.name} is not ours: plugin {slot.plugin or 'none'}, database {slot.database or 'none'}",
            "give another name in AFTERWRITE_SLOT (or slot in afterwrite.toml), or drop it if nobody needs it",
        )
    elif slot.lost:
        yield _error(
            "slot.lost",
            slot.name,
            f"slot {slot.name} has lost its WAL ({slot.invalidation or slot.wal_status}):"
            f" what was written since {slot.confirmed} can no longer be read from it",
            "run `afterwrite install --apply --accept-gap`, which begins anew and says what is missing",
        )


def _judge_publications(seen: Survey, setup: CaptureSetup) -> Iterator[Finding]:
    for publication in seen.publications.values():
        if publication.all_tables:
            yield _error(
                "publication.all_tables",
                publication.name,
                f"publication {publication.name} is FOR ALL TABLES and would capture our own store",
                f"choose another name, or DROP PUBLICATION {quoted(publication.name)} if nobody needs it",
            )
        ours = sorted(table for schema, table in publication.listed if schema == setup.store_schema)
        if ours:
            yield _error(
                "publication.ours",
                publication.name,
                f"publication {publication.name} lists tables of the store: {', '.join(ours)}",
                f"run ALTER PUBLICATION {quoted(publication.name)} DROP TABLE "
                + ", ".join(quoted(setup.store_schema, table) for table in ours),
            )
    for name, tables in ((setup.publication, setup.tables), (setup.legacy_publication, setup.legacy_tables)):
        publication = seen.publications.get(name)
        for table in tables:
            if publication and table not in publication.listed:
                yield Finding(
                    rule="publication.lacks",
                    severity=Severity.WARNING,
                    where=quoted(*table),
                    text=f"publication {name} does not list {quoted(*table)}: its changes are not captured",
                    remedy="run `afterwrite install --apply`",
                )
    for schema, table in (*setup.tables, *setup.legacy_tables):
        if schema == setup.store_schema:
            yield _error(
                "table.ours", quoted(schema, table), f"{quoted(schema, table)} is the store's own", "leave it out"
            )


_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "c": "a type"}


def _judge_tables(seen: Survey, setup: CaptureSetup) -> Iterator[Finding]:
    roots = {member.wanted: member for member in seen.members if member.top}
    for member in seen.members:
        if not member.found:
            yield _missing(member)
            continue
        root = roots[member.wanted]
        yield from _judge_kind(member, seen.server)
        if member.kind not in ("r", "p"):
            continue
        full = member.wanted in setup.full_identity
        if full:
            yield from _judge_full(member, seen, setup)
        elif member.kind == "r" and not _has_identity(member):
            yield _error(
                "table.identity",
                member.name,
                f"table {member.name} has no replica identity: its UPDATEs and DELETEs would fail once published",
                f"run ALTER TABLE {member.name} REPLICA IDENTITY FULL, or add a primary key",
            )
        elif not member.top and member.identity != root.identity:
            yield Finding(
                rule="table.mixed_identity",
                severity=Severity.ERROR if member.identity == "i" else Severity.WARNING,
                where=member.name,
                text=f"partition {member.name} has another replica identity ({_IDENTITIES[member.identity]}) than"
                f" {root.name} ({_IDENTITIES[root.identity]}), under whose name it is published",
                remedy=f"run ALTER TABLE {member.name} REPLICA IDENTITY {_IDENTITIES[root.identity]}",
            )
        elif member.identity == "i" and member.identity_lacks_key:
            yield Finding(
                rule="table.identity_lacks_key",
                severity=Severity.WARNING,
                where=member.name,
                text=f"the replica identity of {member.name} lacks its primary key: DELETEs have no entity_id",
                remedy=f"run ALTER TABLE {member.name} REPLICA IDENTITY DEFAULT",
            )
        yield from _judge_columns(member, seen.server, setup, full or member.identity == "f")


def _judge_full(member: Member, seen: Survey, setup: CaptureSetup) -> Iterator[Finding]:
    """Once it is published: whether old rows are whole, as was asked for. A partition made later is not by itself."""
    publication = seen.publications.get(setup.publication)
    if publication and member.wanted in publication.listed and member.identity != "f":
        yield Finding(
            rule="table.not_full",
            severity=Severity.WARNING,
            where=member.name,
            text=f"old rows of {member.name} are not whole in the WAL, although that was asked for",
            remedy=f"run `afterwrite install --apply`, or ALTER TABLE {member.name} REPLICA IDENTITY FULL",
        )


def _judge_kind(member: Member, server: SourceServer) -> Iterator[Finding]:
    if member.kind not in ("r", "p"):
        yield _error(
            "table.kind",
            member.name,
            f"{member.name} is {_KINDS.get(member.kind, 'no table')}, whose changes are not in the WAL",
            "leave it out",
        )
    elif member.persistence == "u":
        yield _error(
            "table.unlogged",
            member.name,
            f"table {member.name} is unlogged: its changes are not in the WAL",
            f"run ALTER TABLE {member.name} SET LOGGED, or leave it out",
        )
    elif member.persistence == "t":
        yield _error("table.temporary", member.name, f"table {member.name} is temporary", "leave it out")
    elif not member.owned:
        yield _error(
            "table.owner",
            member.name,
            f"only its owner {member.owner} may publish {member.name}",
            f"connect as {member.owner}, or run GRANT {quoted(member.owner)} TO {quoted(server.role)}",
        )
    elif member.top and member.is_partition:
        yield Finding(
            rule="table.partition",
            severity=Severity.WARNING,
            where=member.name,
            text=f"{member.name} is a partition: its own changes alone are captured, under its own name",
            remedy="list the partitioned table instead",
        )


def _judge_columns(member: Member, server: SourceServer, setup: CaptureSetup, full: bool) -> Iterator[Finding]:
    if full and member.column_lists:
        yield _error(
            "table.column_list",
            member.name,
            f"publication {', '.join(member.column_lists)} lists columns of {member.name}: together with REPLICA"
            " IDENTITY FULL its UPDATEs and DELETEs fail",
            f"leave {member.name} out of those whose old rows are wanted whole, or publish all its columns there",
        )
    if not (member.has_stored_columns or member.has_virtual_columns):
        return
    others = [name for name in member.hide_generated if name != setup.publication]
    if full and server.version >= 180_000 and member.has_stored_columns and others:
        yield _error(
            "table.stored_columns",
            member.name,
            f"publication {', '.join(others)} leaves out generated columns of {member.name}: together with REPLICA"
            " IDENTITY FULL its UPDATEs and DELETEs fail",
            "; ".join(
                f"run ALTER PUBLICATION {quoted(name)} SET (publish_generated_columns = stored)" for name in others
            ),
        )
    if full and server.version >= 180_000 and member.has_virtual_columns:
        yield _error(
            "table.virtual_columns",
            member.name,
            f"table {member.name} has virtual generated columns: with REPLICA IDENTITY FULL its UPDATEs and DELETEs"
            " fail once published",
            f"leave it out of those whose old rows are wanted whole, or run ALTER TABLE {member.name} REPLICA IDENTITY"
            " DEFAULT",
        )
    elif member.top and (server.version < 180_000 or member.has_virtual_columns):
        yield Finding(
            rule="table.generated_columns",
            severity=Severity.INFO,
            where=member.name,
            text=f"generated columns of {member.name} are not in the WAL: activities are without them",
        )


def _judge_legacy(seen: Survey) -> Iterator[Finding]:
    for member in seen.legacy:
        if member.found:
            yield from _judge_kind(member, seen.server)
        else:
            yield _missing(member)


_IDENTITIES = {"d": "DEFAULT", "n": "NOTHING", "f": "FULL", "i": "USING INDEX", "": "none"}


def _has_identity(member: Member) -> bool:
    match member.identity:
        case "f":
            return True
        case "i":
            return member.identity_index is not None
        case "d":
            return member.has_primary_key
        case _:
            return False


def _missing(member: Member) -> Finding:
    return _error(
        "table.missing",
        member.name,
        f"there is no table {member.name}",
        "check its name and schema, or leave it out",
    )


def _error(rule: str, where: str, text: str, remedy: str) -> Finding:
    return Finding(rule=rule, severity=Severity.ERROR, where=where, text=text, remedy=remedy)
