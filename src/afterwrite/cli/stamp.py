"""``afterwrite stamp``: who and why for writers that cannot be changed, by PostgREST's pre-request or by a trigger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from afterwrite import runtime
from afterwrite.capture.stamping import StampStep, apply_steps, plan_install, plan_remove
from afterwrite.cli.face import FLAG, Apply, Dsn, Json, emit, out, run, settings, tell_blocked, tell_steps
from afterwrite.errors import ExitCode
from afterwrite.postgres import connect
from afterwrite.settings import Settings

app = typer.Typer(
    help="Stamp who and why onto what writers do that cannot be changed.", no_args_is_help=True, rich_markup_mode="rich"
)

_PRE_REQUEST = "afterwrite_stamp.pre_request"


@app.command("install")
def install(
    dsn: Dsn = None,
    postgrest: Annotated[
        bool,
        typer.Option("--postgrest", metavar=FLAG, help="The function that PostgREST calls before each request."),
    ] = False,
    trigger: Annotated[
        list[str] | None,
        typer.Option("--trigger", metavar="TABLE", help="A statement-level trigger on this table; may be repeated."),
    ] = None,
    apply: Apply = False,
    json: Json = False,
) -> int:
    """Install the database's own stamps.

    They tell who the request's token names (request.jwt.claims), and a trigger, where there is no token, which role is
    connected from where. What an application stamped itself stands. Without --apply the SQL is printed.
    """
    return run(_install(settings(dsn), postgrest, trigger or [], apply=apply, json=json))


@app.command("remove")
def remove(
    dsn: Dsn = None,
    trigger: Annotated[
        list[str] | None,
        typer.Option("--trigger", metavar="TABLE", help="Only the trigger of this table; may be repeated."),
    ] = None,
    apply: Apply = False,
    json: Json = False,
) -> int:
    """Take the stamp triggers away, and with them (unless tables are named) all functions.

    It refuses while PostgREST is told to call one: its requests would fail.
    """
    return run(_remove(settings(dsn), trigger or [], apply=apply, json=json))


async def _install(given: Settings, postgrest: bool, tables: Sequence[str], *, apply: bool, json: bool) -> int:
    async with connect(given.dsn) as db:
        steps = await plan_install(db, postgrest=postgrest, tables=tables)
        if apply:
            await apply_steps(db, steps, policy=runtime.lock_policy(given), on_blocked=tell_blocked)
    _tell(steps, apply=apply, json=json)
    if postgrest and not json:
        out.print(
            f'PostgREST calls it when its configuration says [bold]db-pre-request = "{_PRE_REQUEST}"[/], or, on'
            " Supabase and where the configuration is in the database:",
        )
        out.print(f"  alter role authenticator set pgrst.db_pre_request = '{_PRE_REQUEST}';")
        out.print("  notify pgrst, 'reload config';")
        out.print(f"Where it calls another function already, let that one [bold]perform {_PRE_REQUEST}();[/]")
    return ExitCode.OK


async def _remove(given: Settings, tables: Sequence[str], *, apply: bool, json: bool) -> int:
    async with connect(given.dsn) as db:
        steps = await plan_remove(db, tables=tables)
        if apply:
            await apply_steps(db, steps, policy=runtime.lock_policy(given), on_blocked=tell_blocked)
    _tell(steps, apply=apply, json=json)
    return ExitCode.OK


def _tell(steps: Sequence[StampStep], *, apply: bool, json: bool) -> None:
    if json:
        emit(
            {
                "schema_version": 1,
                "applied": apply,
                "steps": [{"text": step.text, "sql": step.sql, "table": step.table} for step in steps],
            }
        )
        return
    tell_steps(steps, applied=apply)
