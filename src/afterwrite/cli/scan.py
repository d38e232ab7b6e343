"""``afterwrite scan``: every trigger's verdict, and why. Reads only."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from afterwrite.cli import costs, plan, triggers
from afterwrite.cli.face import FLAG, Dsn, emit, run, say, settings, talk
from afterwrite.errors import ExitCode, UsageError
from afterwrite.migrate.gates import read_table_figures
from afterwrite.migrate.phase import Mode
from afterwrite.migrate.plan import Plan, TableFigures, make_plan
from afterwrite.postgres import Database, connect
from afterwrite.scan.catalog import reading
from afterwrite.scan.cost.figures import Costs
from afterwrite.scan.cost.observe import parse_duration
from afterwrite.scan.dump import DumpReport, LoadedDump, loaded_dump, told_of
from afterwrite.scan.report.document import SCHEMA_VERSION, PhaseShown, document
from afterwrite.scan.report.explain import explain as explained
from afterwrite.scan.report.html import html_report
from afterwrite.scan.report.markdown import markdown_report
from afterwrite.scan.survey import Survey, Tell, survey
from afterwrite.scan.verdicts import Judgement

EXAMPLES = "\n\n".join(
    f"{what}: [bold]afterwrite scan {words}[/]"
    for what, words in (
        ("A live database", "--dsn service=shop"),
        ("A dump, with no database at hand", "structure.sql --html report.html"),
        ("Why, line by line", "--explain orders.audit_orders"),
        ("And what each costs", "--observe 60s"),
        ("In CI", "--check plan.toml"),
    )
)
_SHOW = "What to show"
_COMPARE = "For CI"
_MEASURE = "What triggers cost"


def scan(
    dump: Annotated[
        str | None,
        typer.Argument(
            metavar="DUMP",
            help="A schema dump (pg_dump --schema-only, structure.sql; - for stdin) to scan in place of a database.",
            show_default=False,
        ),
    ] = None,
    dsn: Dsn = None,
    schema: Annotated[
        list[str] | None, typer.Option("--schema", metavar="NAME", help="Only this schema; may be given again.")
    ] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", metavar=FLAG, help="List every trigger, however many there are.", rich_help_panel=_SHOW),
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain",
            metavar="TRIGGER",
            help="One trigger: its body and what it calls, with the lines that decide.",
            rich_help_panel=_SHOW,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write a report with pictures: one file, to attach to a ticket.",
            rich_help_panel=_SHOW,
        ),
    ] = None,
    markdown: Annotated[
        bool,
        typer.Option(
            "--markdown", metavar=FLAG, help="Markdown on stdout, to paste into a ticket.", rich_help_panel=_SHOW
        ),
    ] = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            metavar=FLAG,
            help="One JSON document on stdout, for machines (docs/scan.schema.json).",
            rich_help_panel=_SHOW,
        ),
    ] = False,
    observe: Annotated[
        str | None,
        typer.Option(
            "--observe",
            metavar="DURATION",
            help="Watch the server's statistics for so long (60s, 5m). Nothing is written.",
            rich_help_panel=_MEASURE,
        ),
    ] = None,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse",
            metavar=FLAG,
            help="Measure on a copy of the schema in a server of our own, with generated rows.",
            rich_help_panel=_MEASURE,
        ),
    ] = False,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe",
            metavar="TABLE",
            help="Write one row of this table and roll back, after a warning; may be given again.",
            rich_help_panel=_MEASURE,
        ),
    ] = None,
    probe_anyway: Annotated[
        list[str] | None,
        typer.Option(
            "--probe-anyway",
            metavar="TABLE",
            help="The same for a table whose triggers may do what a rollback does not undo.",
            rich_help_panel=_MEASURE,
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", metavar=FLAG, help="Probe without asking.", rich_help_panel=_MEASURE)
    ] = False,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            metavar="PLAN",
            help="Compare with a saved plan.toml: what is new, gone, changed, judged or enabled otherwise. "
            "Exit 4 when anything is.",
            rich_help_panel=_COMPARE,
        ),
    ] = None,
) -> int:
    """Tell audit triggers from business logic: a verdict for every trigger, with the rule and the line that decided.

    Reads the catalog only; nothing is installed or changed, but for --probe. CONNECT is all that verdicts need.
    """
    given = Source(dump=dump) if dump is not None else Source(dsn=settings(dsn).dsn)
    if dump is not None and dsn is not None:
        raise UsageError("a dump and --dsn are two sources", remedy="scan one of them at a time")
    if sum((json, markdown, explain is not None and not json)) > 1:
        raise UsageError("--json, --markdown and --explain print different things", remedy="ask for one of them")
    if check is not None:
        return plan.check(check, *run(_for_check(given)), json=json)
    wanted = costs.Wanted(
        observe=parse_duration(observe) if observe is not None else None,
        probe=tuple(probe or ()),
        anyway=tuple(probe_anyway or ()),
        yes=yes,
        rehearse=rehearse,
    )
    found, figures, loaded, measured = run(_look(given, schema, wanted))
    if explain is not None:
        return _explain(found, explain, json=json)
    shown = document(found, costs=measured, phases=phases(make_plan(found.judgements, figures)), dump=loaded)
    if html is not None:
        _write(html, html_report(shown, datetime.now(UTC)))
    if json:
        emit(shown)
    elif markdown:
        typer.echo(markdown_report(shown), nl=False)
    elif html is None:
        triggers.show(shown, everything=everything)
    return ExitCode.OK


def phases(made: Plan) -> list[PhaseShown]:
    """The phases of a plan as a report shows them."""
    return [
        PhaseShown(
            number=phase.number,
            title=phase.title,
            retire=tuple(each.trigger for each in phase.triggers if each.mode is Mode.RETIRE),
            defer=tuple(each.trigger for each in phase.triggers if each.mode is Mode.DEFER),
        )
        for phase in made.phases
    ]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What is scanned: a database, or the file of a dump."""

    dsn: str | None = None
    dump: str | None = None


@asynccontextmanager
async def _opened(source: Source, tell: Tell) -> AsyncGenerator[tuple[Database, LoadedDump | None]]:
    """A connection to the source; a dump stands in a server of our own meanwhile, and comes beside it."""
    async with AsyncExitStack() as stack:
        loaded = None
        dsn = source.dsn
        if source.dump is not None:
            tell(f"loading {source.dump}")
            loaded = await stack.enter_async_context(loaded_dump(source.dump))
            dsn = loaded.dsn
        opening = connect(dsn, application_name="afterwrite scan", guarded=loaded is not None)
        yield await stack.enter_async_context(opening), loaded


async def _look(
    source: Source, schemas: list[str] | None, wanted: costs.Wanted
) -> tuple[Survey, list[TableFigures], DumpReport | None, Costs | None]:
    async with AsyncExitStack() as stack:
        with _progress() as tell:
            database, loaded = await stack.enter_async_context(_opened(source, tell))
            found = await survey(database, schemas, tell=tell)
            _are_there(schemas or (), found)
            found = found if loaded is None else told_of(found, loaded.report, loaded.dark)
            async with reading(database):
                figures = await read_table_figures(database)
        measured = await costs.costs_of(source.dsn, found, wanted, dump=loaded)
        return found, figures, loaded.report if loaded is not None else None, measured


def _are_there(schemas: Iterable[str], found: Survey) -> None:
    """Raises UsageError for a schema in which there is no table."""
    there = sorted({table.schema for table in found.inventory.tables})
    unknown = [schema for schema in schemas if schema not in there]
    if unknown:
        raise UsageError(
            f"there is no schema {unknown[0]} with tables in it", remedy=f"--schema one of: {', '.join(there[:20])}"
        )


async def _for_check(source: Source) -> tuple[tuple[Judgement, ...], frozenset[str] | None]:
    with _progress() as tell:
        async with _opened(source, tell) as (database, loaded):
            found = await survey(database, tell=tell)
            found = found if loaded is None else told_of(found, loaded.report, loaded.dark)
            # A dump may say anything of a migration's ledger.
            silenced = await plan.read_silenced_by_us(database) if loaded is None else None
            return found.judgements, silenced


@contextmanager
def _progress() -> Generator[Tell]:
    """What goes on, on the last line of a terminal while it goes on; nothing in a pipe or a log."""
    with talk.status("connecting") as status:
        yield status.update


def _explain(found: Survey, name: str, *, json: bool) -> int:
    matching = [
        each for each in found.judgements if each.trigger.identity == name or each.trigger.identity.endswith(f".{name}")
    ]
    if len(matching) != 1:
        raise UsageError(
            f"{len(matching)} triggers are called {name}",
            remedy=f"name one: {', '.join(each.trigger.identity for each in matching[:5])}"
            if matching
            else "run `afterwrite scan` for their names",
        )
    told = explained(found, matching[0])
    whole = document(found)
    [shown] = [each for each in whole.triggers if each.identity == matching[0].trigger.identity]
    spoke = {reason.rule for reason in (*shown.reasons, *shown.notes)}
    if json:
        emit({"schema_version": SCHEMA_VERSION, "trigger": shown, "passages": told.passages, "needs": told.needs})
    else:
        rules = [(rule, sentence) for rule, sentence in whole.rules.items() if rule in spoke]
        triggers.show_explanation(told, shown, rules)
    return ExitCode.OK


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", remedy="name another with --html") from error
    say(f"written to {file}")
