"""Stamps of the database's own, for writers that cannot be changed: PostgREST's pre-request function, and a trigger.

::

    look ──▶ Steps (SQL, in words) ──▶ apply, each table under short locks

The functions live in a schema of their own, run as their caller, and do nothing where the application has stamped.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from afterwrite.capture.preflight import read_named
from afterwrite.errors import Refused, UsageError
from afterwrite.postgres import Database, LockPolicy, OnBlocked, statement, with_short_locks

TRIGGER = "afterwrite_stamp"


class StampTable(msgspec.Struct, frozen=True):
    """A table as sql/stamp.sql reads it; ``name`` is quoted."""

    oid: int
    name: str
    stampable: bool
    stamped: bool


class StampStep(msgspec.Struct, frozen=True):
    """One thing to do: in words, as SQL, and on which table (None for none)."""

    text: str
    sql: str
    table: str | None = None


class _Laid(msgspec.Struct, frozen=True):
    name: str


class _User(msgspec.Struct, frozen=True):
    owner: str


async def plan_install(db: Database, *, postgrest: bool, tables: Sequence[str]) -> list[StampStep]:
    """What is missing. The functions are laid anew each time: an older version may be there.

    Raises UsageError for a table that does not exist, and Refused for what no trigger of ours belongs on.
    """
    if not postgrest and not tables:
        raise UsageError("nothing to install was named", remedy="say --postgrest, or --trigger TABLE, or both")
    steps = [
        StampStep("lay schema afterwrite_stamp", statement("stamp.lay_schema").decode()),
        StampStep("let every role use it", statement("stamp.open_schema").decode()),
        StampStep("lay function afterwrite_stamp.stamp_claims", statement("stamp.lay_stamp_claims").decode()),
    ]
    if postgrest:
        text = "lay function afterwrite_stamp.pre_request, which PostgREST is to call"
        steps.append(StampStep(text, statement("stamp.lay_pre_request").decode()))
    if tables:
        text = "lay function afterwrite_stamp.stamp, which the triggers call"
        steps.append(StampStep(text, statement("stamp.lay_trigger_function").decode()))
    for table in [await _find(db, name) for name in tables]:
        if not table.stampable:
            raise Refused(
                f"{table.name} is no table that people write to", remedy="name ordinary or partitioned tables"
            )
        if not table.stamped:
            steps.append(
                StampStep(
                    f"make a statement-level trigger on {table.name}",
                    f"create trigger {TRIGGER} before insert or update or delete or truncate on {table.name}"
                    " for each statement execute function afterwrite_stamp.stamp()",
                    table.name,
                )
            )
    return steps


async def plan_remove(db: Database, *, tables: Sequence[str]) -> list[StampStep]:
    """What is to be taken away: the triggers of these tables, or, where none is named, all that there is.

    Raises Refused where PostgREST is told to call what would go: each of its requests would fail.
    """
    if tables:
        named = [await _find(db, name) for name in tables]
        return [_drop(table.name) for table in named if table.stamped]
    users = await db.rows(_User, statement("stamp.read_pre_request_users"))
    if users:
        owner = users[0].owner
        words = owner.replace("role ", "ROLE ").replace("database ", "DATABASE ").replace(" in ", " IN ")
        raise Refused(
            f"PostgREST calls afterwrite_stamp.pre_request() before each request ({owner}): without it all would fail",
            remedy=f"run ALTER {words} RESET pgrst.db_pre_request; NOTIFY pgrst, 'reload config'",
        )
    steps = [_drop(table.name) for table in await db.rows(StampTable, statement("stamp.read_stamped"))]
    laid = [found.name for found in await db.rows(_Laid, statement("stamp.read_laid"))]
    callers = ["pre_request", "stamp"]
    for name in sorted(laid, key=lambda name: name not in callers):
        signature = "boolean" if name == "stamp_claims" else ""
        steps.append(
            StampStep(f"drop function afterwrite_stamp.{name}", f"drop function afterwrite_stamp.{name}({signature})")
        )
    return [*steps, StampStep("drop schema afterwrite_stamp", statement("stamp.drop_all").decode())] if laid else steps


async def apply_steps(
    db: Database, steps: Sequence[StampStep], *, policy: LockPolicy, on_blocked: OnBlocked | None = None
) -> None:
    """Do them in their order; each table by itself, so that no lock waits for another."""
    for step in steps:
        if step.table is None:
            await db.run(step.sql.encode())
            continue

        async def work(database: Database, sql: bytes = step.sql.encode()) -> None:
            await database.run(sql)

        await with_short_locks(db, [step.table], work, policy=policy, on_blocked=on_blocked)


async def _find(db: Database, name: str) -> StampTable:
    return await read_named(db, StampTable, statement("stamp.read_table"), name)


def _drop(table: str) -> StampStep:
    return StampStep(f"drop the stamp trigger of {table}", f"drop trigger {TRIGGER} on {table}", table)
