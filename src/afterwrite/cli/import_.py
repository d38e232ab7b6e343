"""``afterwrite import``: what older logs and exports hold, brought into the store once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table as RichTable

from afterwrite.cli.face import (
    FLAG,
    Apply,
    Dsn,
    Json,
    StoreDsn,
    counted,
    emit,
    fill,
    out,
    plain,
    run,
    say,
    settings,
    show_findings,
    table,
    talk,
)
from afterwrite.errors import ExitCode, Finding, Refused, Severity, UsageError
from afterwrite.postgres import Database, connect, quoted
from afterwrite.record import Activity
from afterwrite.scan.catalog import Table
from afterwrite.scan.survey import Survey, survey
from afterwrite.settings import Settings
from afterwrite.store.schema import require_store
from afterwrite.store.writer import open_sink
from afterwrite.transfer import legacy as importing
from afterwrite.transfer.infer import Inferred
from afterwrite.transfer.jsonl import Loaded, load_jsonl
from afterwrite.transfer.legacy import Imported, LogPlan, Policy
from afterwrite.transfer.mapping import STOP_NEVER, LogMapping, read_mappings, write_mappings
from afterwrite.transfer.verify import Difference, Verified, verify_log

app = typer.Typer(
    help="Bring what legacy logs, or files of `afterwrite export`, hold into the store. Nothing is stored twice.",
    no_args_is_help=True,
)


@app.command("legacy")
def legacy_command(
    tables: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TABLE]…", help="The logs; else all that triggers write.", show_default=False),
    ] = None,
    dsn: Dsn = None,
    store_dsn: StoreDsn = None,
    mapping: Annotated[
        Path | None,
        typer.Option("--mapping", help="Read the rows as this TOML file says.", dir_okay=False, show_default=False),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", help="Write the mapping there, to be edited.", dir_okay=False, show_default=False),
    ] = None,
    time_zone: Annotated[
        str | None,
        typer.Option(
            "--time-zone",
            metavar="ZONE",
            help="What times without a zone are in; else the database's TimeZone.",
            show_default=False,
        ),
    ] = None,
    stop: Annotated[
        str | None,
        typer.Option(
            "--stop",
            metavar="WHEN",
            help="Import rows up to there: capture (from then on the store has the changes themselves), never, or a"
            " moment with its time zone. Else as the mapping says; an inferred one says capture.",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", min=1, metavar="ROWS", help="At most so many rows a second.", show_default=False),
    ] = None,
    moved: Annotated[
        bool,
        typer.Option("--moved", metavar=FLAG, help="It is the same database, restored or upgraded to another cluster."),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            metavar=FLAG,
            help="Read both sides of what was imported again, and compare. With --apply, rows"
            " that came late are stored.",
        ),
    ] = False,
    apply: Apply = False,
    json: Json = False,
) -> int:
    """Make activities of the rows of legacy logs, with their provenance.

    Without --apply it shows how each log would be read, with rows before and after. The mapping is inferred from the
    triggers that write the log, from names and types; --save writes it down to be edited, --mapping goes by it. With
    --apply rows are stored chunk by chunk; interrupted anywhere, the same command goes on. The log is only read.

    Exit 4 when --verify finds a difference.
    """
    given = settings(dsn, store_dsn)
    policy = Policy(rate=rate, hot_days=given.hot_days, retention_days=given.retention_days, moved=moved)
    given_mappings = _load(mapping) if mapping else ()
    names = tuple(tables or [each.table for each in given_mappings])
    work = _Work(
        given, policy, {each.table: each for each in given_mappings}, time_zone=time_zone, stop=stop, json=json
    )
    return run(work.legacy(names, save=save, verify=verify, apply=apply))


@app.command("jsonl")
def jsonl_command(
    file: Annotated[
        Path, typer.Argument(help="A file of `afterwrite export --format jsonl`.", dir_okay=False, exists=True)
    ],
    dsn: Dsn = None,
    store_dsn: StoreDsn = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", min=1, metavar="ROWS", help="At most so many rows a second.", show_default=False),
    ] = None,
    json: Json = False,
) -> int:
    """Store the activities of an export, with their ids: what the store has already is not stored again.

    A manifest beside the file (FILE.manifest.json) is checked first.
    """
    given = settings(dsn, store_dsn)
    loaded = run(_load_jsonl(given, file, rate=rate, quiet=json))
    if json:
        emit({"schema_version": 1, **msgspec.structs.asdict(loaded)})
    else:
        out.print(
            f"{counted(loaded.rows, 'activity').replace('activitys', 'activities')} read from {plain(str(file))}:"
            f" {loaded.stored:,} stored, {loaded.already:,} were there already"
        )
    return ExitCode.OK


async def _load_jsonl(given: Settings, file: Path, *, rate: float | None, quiet: bool) -> Loaded:
    policy = Policy(rate=rate, hot_days=given.hot_days, retention_days=given.retention_days)
    async with connect(given.store, guarded=True) as store, open_sink(given.store) as sink:
        with _Bar(quiet=quiet) as bar:
            return await load_jsonl(store, sink, file, policy=policy, on_progress=bar.lines)


def _load(path: Path) -> tuple[LogMapping, ...]:
    try:
        return read_mappings(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", remedy="name a file that --save has written") from error


def _save(path: Path, plans: Sequence[LogPlan]) -> None:
    try:
        path.write_text(write_mappings([plan.mapping for plan in plans]), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}", remedy="name another file") from error
    say(f"The mapping is in {plain(str(path))}; edit it, and go by it with --mapping.")


class _Work:
    """One call of ``import legacy``."""

    def __init__(
        self,
        given: Settings,
        policy: Policy,
        mappings: dict[str, LogMapping],
        *,
        time_zone: str | None,
        stop: str | None,
        json: bool,
    ) -> None:
        self._given, self._policy, self._mappings = given, policy, mappings
        self._time_zone, self._stop, self._json = time_zone, stop, json

    async def legacy(self, names: Sequence[str], *, save: Path | None, verify: bool, apply: bool) -> int:
        given = self._given
        async with (
            connect(given.dsn, guarded=True) as source,
            importing.open_log(given.dsn) as log,
            connect(given.store, application_name="afterwrite import", guarded=True) as store,
        ):
            await require_store(store)
            if not self._json:
                say(f"reading the catalog and the triggers of {plain(source.where)}")
            found = await survey(source)
            begun = await importing.read_begun(log, store, given.source)
            tables = await importing.find_logs(source, found, names, begun=begun)
            captured = await importing.read_captured(source, given.legacy_publication)
            plans, findings = await self._plan(source, log, store, found, tables, captured, named=bool(names))
            if save is not None:
                _save(save, plans)
            if verify:
                return await self._verify(log, store, plans, apply=apply)
            if apply:
                return await self._apply(log, store, plans, findings)
        self._tell(plans, findings)
        return ExitCode.REFUSED if findings and not plans else ExitCode.OK

    async def _plan(
        self,
        source: Database,
        log: Database,
        store: Database,
        found: Survey,
        tables: Sequence[Table],
        captured: frozenset[str],
        *,
        named: bool,
    ) -> tuple[list[LogPlan], list[Finding]]:
        """A plan of each log; of one that nobody named and that cannot be read, a finding."""
        plans: list[LogPlan] = []
        findings: list[Finding] = []
        for each in tables:
            try:
                plans.append(await self._plan_one(source, log, store, found, each, captured))
            except Refused as error:
                if named and len(tables) == 1:
                    raise
                name = quoted(each.schema, each.name)
                findings.append(
                    Finding(
                        rule="import.refused",
                        severity=Severity.WARNING,
                        where=name,
                        text=str(error),
                        remedy=error.remedy,
                    )
                )
        return plans, findings

    async def _plan_one(
        self, source: Database, log: Database, store: Database, found: Survey, table: Table, captured: frozenset[str]
    ) -> LogPlan:
        mapping = self._mappings.get(quoted(table.schema, table.name))
        inferred: Inferred | None = None
        if mapping is None:
            inferred = await importing.infer_mapping(source, found, table, time_zone=self._time_zone)
        return await importing.plan_log(
            log,
            store,
            table,
            inferred,
            mapping,
            source=self._given.source,
            policy=self._policy,
            captured=captured,
            stop=self._stop,
            time_zone=self._time_zone,
        )

    async def _apply(
        self, log: Database, store: Database, plans: Sequence[LogPlan], findings: Sequence[Finding]
    ) -> int:
        done: list[Imported] = []
        for plan in plans:
            async with open_sink(self._given.store, application_name="afterwrite import sink") as sink:
                with _Bar(quiet=self._json, total=max(0, plan.estimate - plan.totals.rows)) as bar:
                    done.append(
                        await importing.import_log(log, store, sink, plan, policy=self._policy, on_progress=bar.chunk)
                    )
        if self._json:
            emit({"schema_version": 1, "imported": done, "findings": [*findings, *_findings(plans)]})
            return ExitCode.OK
        rows = [
            (each.relation, f"{each.rows:,}", f"{each.stored:,}", _told(each), f"{each.totals.stored:,}", _rate(each))
            for each in done
        ]
        out.print(fill(table("log", ">read", ">stored", "not stored", ">in all", ">rows/s"), rows))
        show_findings([*findings, *_findings(plans)])
        if done:
            out.print("[bold]afterwrite import legacy --verify[/] reads both sides again and compares them.")
        return ExitCode.OK

    async def _verify(self, log: Database, store: Database, plans: Sequence[LogPlan], *, apply: bool) -> int:
        verified: list[Verified] = []
        for plan in plans:
            with _Bar(quiet=self._json, total=plan.totals.rows) as bar:
                if apply:
                    async with open_sink(self._given.store, application_name="afterwrite import sink") as sink:
                        told = await verify_log(log, store, plan, policy=self._policy, sink=sink, on_chunk=bar.compared)
                else:
                    told = await verify_log(log, store, plan, policy=self._policy, on_chunk=bar.compared)
            verified.append(told)
        if self._json:
            emit({"schema_version": 1, "verified": [{**_as_dict(each), "agrees": each.agrees} for each in verified]})
        else:
            _show_verified(verified)
        return ExitCode.OK if all(each.agrees for each in verified) else ExitCode.DRIFT

    def _tell(self, plans: Sequence[LogPlan], findings: Sequence[Finding]) -> None:
        if self._json:
            emit({"schema_version": 1, "logs": [_plan_json(plan) for plan in plans], "findings": findings})
            return
        for plan in plans:
            _show_plan(plan)
        show_findings(findings)
        if plans:
            out.print(
                "Nothing was imported. Run it with [bold]--apply[/], or [bold]--save FILE[/] to edit the mapping."
            )


# --- showing ----------------------------------------------------------------------------------------------------------


def _show_plan(plan: LogPlan) -> None:
    mapping = plan.mapping
    out.print(
        f"[bold]{plain(plan.origin.relation)}[/] of {plain(plan.origin.database)}, read as {plain(mapping.style)}"
    )
    facts = [
        ("rows", (f"about {plan.estimate:,}" if plan.estimate else "nobody counted them yet") + _between(plan)),
        ("told apart by", ", ".join(mapping.key)),
        ("read in order of", ", ".join(mapping.reading_order)),
        ("time", mapping.time + (f", in {mapping.time_zone}" if mapping.time_zone else "")),
    ]
    if mapping.where:
        facts.append(("only where", mapping.where))
    facts.append(("up to", _until(plan)))
    if plan.known:
        done = ", ".join(plan.known.through or ()) or "nothing read yet"
        facts.append(("imported", f"{plan.totals.rows:,} rows read, {plan.totals.stored:,} stored, up to {done}"))
    grid = RichTable.grid(padding=(0, 2, 0, 0))
    for name, value in facts:
        grid.add_row(f"  {name}", plain(value))
    out.print(grid)
    sources = {trace.field: trace.source for trace in plan.traces}
    rows = [(field, text, sources.get(field, "")) for field, text in mapping.activity.items()]
    out.print(fill(table("an activity's", "is, in SQL", "known by"), rows))
    for words, sample in zip(("its first row", "its last row"), plan.samples, strict=False):
        made = table(words, "", "becomes the activity", "")
        row = msgspec.json.decode(sample.before, type=dict[str, msgspec.Raw])
        before = [(name, bytes(raw).decode()) for name, raw in row.items() if bytes(raw) != b"null"]
        pairs = zip_longest(before, _fields(sample.after), fillvalue=("", ""))
        out.print(fill(made, [(*map(_cut, left), *map(_cut, right)) for left, right in pairs]))
    show_findings(plan.findings)


def _between(plan: LogPlan) -> str:
    if plan.first_at is None or plan.last_at is None:
        return ""
    return f", {plan.first_at:%Y-%m-%d %H:%M} to {plan.last_at:%Y-%m-%d %H:%M} UTC"


def _until(plan: LogPlan) -> str:
    if plan.mapping.stop == STOP_NEVER:
        return "its end, also where the store has the changes themselves"
    if plan.mapping.stop_moment is not None:
        return f"{plan.mapping.stop_moment:%Y-%m-%d %H:%M:%S %Z}"
    if plan.log_stop is not None:
        return f"{plan.log_stop:%Y-%m-%d %H:%M:%S} UTC, when capture had begun for all that it tells of"
    if plan.stops:
        first = min(plan.stops.values())
        return f"the beginning of capture, table by table (since {first:%Y-%m-%d %H:%M:%S} UTC); the rest whole"
    return "its end: capture has none of its tables yet"


_LONGEST_VALUE = 56
_UNSAID = ("id", "kind", "outcome", "severity")


def _fields(activity: Activity | None) -> list[tuple[str, str]]:
    """What an activity says; nothing of what every imported one has."""
    if activity is None:
        return [("none", "it has no time")]
    told = [(name, getattr(activity, name)) for name in activity.__struct_fields__ if name not in _UNSAID]
    return [(name, _text(value)) for name, value in told if value is not None]


def _text(value: object) -> str:
    return bytes(value).decode() if isinstance(value, msgspec.Raw) else str(value)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def _told(imported: Imported) -> str:
    told = [f"{count:,} {_WORDS.get(reason, reason)}" for reason, count in sorted(imported.left_out.items())]
    if imported.already:
        told.append(f"{imported.already:,} there already")
    return ", ".join(told)


_WORDS = {
    importing.UNTIMED: "without a time",
    importing.EXPIRED: "older than retention",
    importing.COVERED: "captured",
    importing.STOPPED: "after --stop",
}


def _rate(imported: Imported) -> str:
    return f"{imported.rows / imported.seconds:,.0f}" if imported.rows and imported.seconds else ""


def _show_verified(verified: Sequence[Verified]) -> None:
    rows = [
        (
            each.relation,
            f"{each.chunks:,}",
            f"{each.rows:,}",
            f"{each.stored:,}",
            "both sides agree" if each.agrees else f"{sum(one.grave for one in each.differences):,} chunks differ",
        )
        for each in verified
    ]
    out.print(fill(table("log", ">chunks", ">rows", ">stored", ""), rows))
    for each in verified:
        for difference in each.differences:
            out.print(f"  chunk {difference.number} of {plain(each.relation)}: {plain(_difference(difference))}")
            if difference.ids:
                out.print(f"    [dim]{', '.join(difference.ids)}[/]", soft_wrap=True)
    if any(one.late > one.repaired for each in verified for one in each.differences):
        out.print("Rows that came late are stored with [bold]afterwrite import legacy --verify --apply[/].")


def _difference(difference: Difference) -> str:
    told: list[str] = []
    if difference.late:
        done = ", stored now" if difference.repaired else ""
        told.append(f"{counted(difference.late, 'row')} came into the log late{done}")
    if difference.gone:
        told.append(f"{counted(difference.gone, 'row')} of the log are gone since")
    if difference.changed:
        told.append("rows of the log were changed since")
    if difference.missing:
        told.append(f"{counted(difference.missing, 'row')} are not in the store any more")
    if difference.expired:
        told.append(f"{counted(difference.expired, 'row')} were taken by retention")
    if difference.other:
        told.append("the store has other contents than the log")
    return "; ".join(told)


def _findings(plans: Sequence[LogPlan]) -> list[Finding]:
    return [finding for plan in plans for finding in plan.findings]


def _as_dict(value: msgspec.Struct) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__struct_fields__}


def _plan_json(plan: LogPlan) -> dict[str, Any]:
    return {
        "relation": plan.origin.relation,
        "database": plan.origin.database,
        "source": plan.origin.source,
        "mapping": plan.mapping,
        "traces": plan.traces,
        "estimate": plan.estimate,
        "first_at": plan.first_at,
        "last_at": plan.last_at,
        "stops": plan.stops,
        "log_stop": plan.log_stop,
        "oldest_day": plan.oldest,
        "imported": plan.totals,
        "through": plan.known.through if plan.known else None,
        "samples": [{"row": msgspec.Raw(sample.before.encode()), "activity": sample.after} for sample in plan.samples],
        "findings": plan.findings,
    }


class _Bar:
    """How it goes, on a terminal; silent elsewhere."""

    def __init__(self, *, quiet: bool, total: float | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[told]}"),
            console=talk,
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._total = total or None
        self._task = self._progress.add_task("", total=self._total, told="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def chunk(self, progress: importing.Progress) -> None:
        at = f", at {progress.at:%Y-%m-%d}" if progress.at else ""
        self._tell(plain(progress.relation), progress.rows, at)

    def compared(self, chunks: int, rows: int) -> None:
        self._tell("comparing", rows, f", {counted(chunks, 'chunk')}")

    def lines(self, rows: int, stored: int) -> None:
        self._tell("reading", rows, f", {stored:,} stored")

    def _tell(self, what: str, rows: int, told: str) -> None:
        elapsed = timedelta(seconds=int(self._progress.tasks[0].elapsed or 0))
        self._progress.update(self._task, description=what, completed=rows, told=f"{rows:,} rows{told}, {elapsed}")
