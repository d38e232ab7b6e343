"""Replica identities that were changed for the sake of capture: remembered in the ledger, and set back at the end."""

from __future__ import annotations

from functools import partial

import msgspec

from afterwrite.errors import AfterwriteError, Finding, Severity
from afterwrite.migrate.backup import literal
from afterwrite.migrate.deeds import Deed, OnEvent, perform
from afterwrite.migrate.ledger import Action, write_entry
from afterwrite.migrate.steps import ledger_row
from afterwrite.postgres import Database, LockPolicy, quoted, statement


class ReplicaIdentity(msgspec.Struct, frozen=True):
    """pg_class.relreplident (``d``efault, ``n``othing, ``f``ull, ``i``ndex) and, for ``i``, the index's bare name."""

    kind: str
    index: str | None = None

    @property
    def words(self) -> str:
        """As ALTER TABLE … REPLICA IDENTITY takes it."""
        match self.kind:
            case "d":
                return "default"
            case "f":
                return "full"
            case "i" if self.index:
                return f"using index {quoted(self.index)}"
            case "n" | "i":  # an index identity whose index was dropped says as much as none
                return "nothing"
            case _:
                raise AfterwriteError(f"not a replica identity: {self}")


def parse_replica_identity(text: str) -> ReplicaIdentity:
    """The identity that a statement ``alter table … replica identity …`` sets; raises AfterwriteError for any other."""
    words = text.partition(" replica identity ")[2].strip().removesuffix(";")
    named = {"default": "d", "nothing": "n", "full": "f"}
    if words in named:
        return ReplicaIdentity(named[words])
    if words.startswith("using index "):
        index = words.removeprefix("using index ")
        return ReplicaIdentity("i", index[1:-1].replace('""', '"') if index.startswith('"') else index)
    raise AfterwriteError(f"not a statement that sets a replica identity: {text}")


class _Seen(msgspec.Struct, frozen=True):
    relation: str
    kind: str
    index: str | None
    has_primary_key: bool
    published_by: list[str]


class _Changed(msgspec.Struct, frozen=True):
    after: str
    before: str


async def read_replica_identity(db: Database, table: str) -> ReplicaIdentity:
    """What identifies a row of ``table`` (quoted ``schema.table``) in the WAL now."""
    seen = await db.maybe(_Seen, statement("migrate.read_replica_identity"), relation=table)
    if seen is None:
        raise AfterwriteError(f"there is no table {table} in {db.where}", remedy="run `afterwrite scan`")
    return ReplicaIdentity(seen.kind, seen.index)


def replica_identity_sql(table: str, identity: ReplicaIdentity) -> str:
    """The statement that sets it; it takes ACCESS EXCLUSIVE, so run it ``with_short_locks``."""
    return f"alter table {table} replica identity {identity.words}"


async def record_replica_identity(db: Database, table: str, before: ReplicaIdentity, after: ReplicaIdentity) -> None:
    """Tell the ledger that ``table`` (quoted) is changed; call it in the transaction that changes it, or before.

    Told and never done is harmless: what is as it was before is left alone when identities are set back.
    """
    await write_entry(
        db,
        Action.REPLICA_IDENTITY_SET,
        table,
        sql=replica_identity_sql(table, after),
        before=before,
        after=after,
    )


def replica_identity_row(table: str, before: ReplicaIdentity, after: ReplicaIdentity) -> str:
    """The statement that tells the same, for scripts that are run by hand."""
    return ledger_row(
        None,
        None,
        table,
        Action.REPLICA_IDENTITY_SET.value,
        sql=replica_identity_sql(table, after),
        before=literal(msgspec.json.encode(before).decode()),
        after=literal(msgspec.json.encode(after).decode()),
    )


async def restore_replica_identities(
    db: Database, *, apply: bool = True, policy: LockPolicy | None = None, on_event: OnEvent | None = None
) -> tuple[list[Deed], list[Finding]]:
    """Set back every replica identity that we changed: the deeds (done with ``apply``), and what was left alone.

    Left alone are tables that somebody else has changed since, and those whose old identity would make their UPDATEs
    and DELETEs fail as long as a publication sends them.
    """
    deeds: list[Deed] = []
    findings: list[Finding] = []
    for relation in await db.values(statement("migrate.read_changed_identities")):
        build = partial(_build, db, relation, findings)
        if apply:
            deed = await perform(db, [relation], build, _settled, policy=policy, on_event=on_event)
        else:
            deed = await build()
        if deed is not None:
            deeds.append(deed)
    return deeds, findings


async def _settled() -> None:
    return None


async def _build(db: Database, relation: str, findings: list[Finding]) -> Deed | None:
    """The deed for one table; None, with a finding where people should know, when it is to be left as it is."""
    changed = await db.one(_Changed, statement("migrate.read_changed_identity"), relation=relation)
    before = msgspec.json.decode(changed.before, type=ReplicaIdentity)
    after = msgspec.json.decode(changed.after, type=ReplicaIdentity)
    seen = await db.maybe(_Seen, statement("migrate.read_replica_identity"), relation=relation)
    now = ReplicaIdentity(seen.kind, seen.index) if seen else before
    if seen is None or now == before:
        return None
    text = replica_identity_sql(relation, before)
    left = None
    if now != after:
        left = _left(relation, f"its replica identity is {now.words}, which is not what we set", f"{text};")
    elif seen.published_by and (before.kind == "n" or (before.kind == "d" and not seen.has_primary_key)):
        left = _left(
            relation,
            f"with replica identity {before.words} its UPDATEs and DELETEs would fail while it is published by "
            f"{', '.join(seen.published_by)}",
            f"alter publication {quoted(seen.published_by[0])} drop table only {relation}; {text};",
        )
    if left is not None:
        if left not in findings:  # a blocked deed is built again
            findings.append(left)
        return None
    row = ledger_row(
        None,
        None,
        relation,
        Action.REPLICA_IDENTITY_RESTORE.value,
        sql=text,
        before=literal(msgspec.json.encode(now).decode()),
        after=literal(msgspec.json.encode(before).decode()),
    )
    return Deed(
        title=f"{relation}: replica identity {before.words} again", relations=(relation,), statements=(text, row)
    )


def _left(relation: str, text: str, remedy: str) -> Finding:
    return Finding(rule="migrate.replica_identity", severity=Severity.WARNING, where=relation, text=text, remedy=remedy)
