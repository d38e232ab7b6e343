"""What the plan says of the proof, taken over into the database, where the running prover finds it.

::

    plan.toml ─▶ adopt ─▶ afterwrite.proof_plan ─▶ Prover (begins again after the watermark, by the new mapping)

Counts of a trigger whose mapping changed are dropped, and its own window begins there; the other triggers' go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from psycopg import sql

from afterwrite.errors import UsageError
from afterwrite.postgres import Database, statement
from afterwrite.prove.legacy import LegacyMapping, Override
from afterwrite.prove.watch import Mode, Planned, Watch


def _planned(*, trigger: str, mode: str | None, overrides: str) -> Planned:
    return Planned(
        trigger=trigger,
        mode=None if mode is None else Mode(mode),
        overrides=msgspec.json.decode(overrides, type=tuple[Override, ...]),
    )


async def read_planned(database: Database) -> list[Planned]:
    """What was taken over from the plan."""
    return await database.rows(_planned, statement("prove.read_plan"))


async def adopt(database: Database, planned: Iterable[Planned]) -> tuple[str, ...]:
    """Take over what the plan says of the proof, all of it; says which triggers are compared anew from here on.

    Check it with ``check`` before. May be called while a prover runs: it notices with what it settles next.
    """
    wanted = {each.trigger: each for each in planned if each.overrides or each.mode is not None}
    async with database.transaction():
        known = {each.trigger: each for each in await read_planned(database)}
        changed = sorted(trigger for trigger in {*known, *wanted} if known.get(trigger) != wanted.get(trigger))
        if not changed:
            return ()
        # First of all: a prover that settles at this moment waits for us, or we for it.
        await database.run(statement("prove.renew_window"))
        await database.run(statement("prove.forget_plan"), triggers=changed)
        rows = [msgspec.to_builtins(wanted[trigger]) for trigger in changed if trigger in wanted]
        await database.run(statement("prove.save_plan"), planned=msgspec.json.encode(rows).decode())
        await database.run(statement("prove.forget_counts"), triggers=changed)
        await database.run(statement("prove.forget_examples"), triggers=changed)
        await database.run(statement("prove.renew_triggers"), triggers=changed)
    return tuple(changed)


async def check(database: Database, planned: Iterable[Planned], found: Watch) -> None:
    """Refuse what the plan says of the proof where it cannot be meant.

    ``found`` is what is watched by this very plan. Raises UsageError for a trigger that is not watched, a column that
    it does not write, an expression that cannot be computed from a change, or that the server does not accept.
    """
    mappings = {mapping.identity: mapping for mapping, _ in found.watched}
    for each in planned:
        if not each.overrides:
            continue
        mapping = mappings.get(each.trigger)
        if mapping is None:
            raise UsageError(
                f"the plan maps legacy columns of {each.trigger}, which is not compared",
                remedy='leave its mapping out, or move it into a phase with mode = "retire"',
            )
        if mapping.problems:
            raise UsageError(
                f"{each.trigger}: {mapping.problems[0]}",
                remedy="see its columns with `afterwrite prove --mapping`; an expression may use new, old, tg_op and"
                ' other tg_ names; { ignore = "why" } leaves a column out',
            )
        for override in each.overrides:
            await _ask_server(database, mapping, override)


async def _ask_server(database: Database, mapping: LegacyMapping, override: Override) -> None:
    """Let the server plan the expression, cast to its column, over rows of the table; nothing is run."""
    if override.value is None:
        return
    targets = {
        (row.schema or "", row.table, column)
        for rows in mapping.written.values()
        for row in rows
        for column, _ in row.values
        if override.is_for(row.schema or "", row.table, column)
    }
    for schema, table, column in sorted(targets):
        # Only analysed, and so without asking for a privilege on either table.
        question = sql.SQL(
            "prepare afterwrite_mapping as insert into {legacy} ({column})"
            " select {value} from {own} as new, {own} as old, (select {words}) as words"
        ).format(
            legacy=sql.Identifier(schema, table),
            column=sql.Identifier(column),
            value=sql.SQL(override.value),  # pyright: ignore[reportArgumentType] - read as one expression before
            own=sql.Identifier(mapping.trigger.schema, mapping.trigger.table),
            words=_words(),
        )
        complaint = await database.attempt(question.as_string())
        if complaint is None:
            await database.run(b"deallocate afterwrite_mapping")
            continue
        raise UsageError(
            f"{mapping.identity}: the server refuses the plan's mapping of {override.column}: {complaint.message}",
            remedy="mend the expression; it must give what the column of the legacy log takes",
        )


_TG: Mapping[str, str] = {
    "tg_op": "text",
    "tg_name": "name",
    "tg_when": "text",
    "tg_level": "text",
    "tg_relname": "name",
    "tg_table_name": "name",
    "tg_table_schema": "name",
    "tg_nargs": "integer",
    "tg_argv": "text[]",
}


def _words() -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("null::{} as {}").format(sql.SQL(kind), sql.Identifier(name))  # pyright: ignore[reportArgumentType]
        for name, kind in _TG.items()
    )
