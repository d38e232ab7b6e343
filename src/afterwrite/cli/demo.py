"""``afterwrite demo``: the whole way, on a PostgreSQL of its own, in three minutes."""

from __future__ import annotations

import io
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from afterwrite.cli.face import Json, counted, emit, out, run, say, table, talk
from afterwrite.demo.story import Chapter, Outcome, Script, tell_story
from afterwrite.errors import AfterwriteError, ExitCode, GateNotMet, UsageError
from afterwrite.migrate.plan import Legacy
from afterwrite.postgres.embedded import embedded_server, kept_servers, sweep


def demo(
    clients: Annotated[int, typer.Option("--clients", min=1, max=64, help="Clients of the application.")] = 8,
    rate: Annotated[float, typer.Option("--rate", min=1, help="Transactions a second in all.")] = 100.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the application's data and choices.")] = 1,
    pg_bin: Annotated[
        Path | None, typer.Option("--pg-bin", help="Folder of other PostgreSQL binaries than the bundled ones.")
    ] = None,
    legacy: Annotated[
        Legacy | None,
        typer.Option(
            "--legacy", help="keep: the retired triggers' own bodies go on filling the old logs, after commit."
        ),
    ] = None,
    twin: Annotated[
        bool,
        typer.Option(
            "--twin",
            help="Do the same work again in a second database whose triggers stay on, and compare the old logs. Asks"
            " for --legacy keep.",
        ),
    ] = False,
    no_serve: Annotated[
        bool, typer.Option("--no-serve", help="End when the account is taken, instead of showing it in a browser.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave server and data, and print the DSN.")] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Stop and remove what --keep left, and do nothing else.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Save the closing table to this SVG file.", dir_okay=False)
    ] = None,
    json: Json = False,
) -> int:
    """From 64 triggers to a live activity record, on a PostgreSQL of its own, with the application writing throughout.

    In the end it serves the pages over what was made, until Ctrl-C (not with --no-serve, --keep or --json). Exit 1 if a
    single write was lost or doubled.
    """
    if clean:
        removed = sweep(kept=True)
        out.print(f"{counted(len(removed), 'demo server')} removed")
        return ExitCode.OK
    if twin and legacy is None:
        raise UsageError(
            "--twin compares the old logs, and without --legacy keep nobody fills them any more",
            remedy="give both: afterwrite demo --legacy keep --twin",
        )
    script = Script(clients=clients, rate=rate, seed=seed, keep_legacy=legacy is not None, twin=twin)
    with embedded_server(bin_dir=pg_bin) as server:
        # In the server's own folder, so that whatever becomes of us, both go together.
        folder = server.home / "demo"
        folder.mkdir(mode=0o700)
        dsn = server.dsn("legacy")
        try:
            with _Screen() as screen:
                outcome = run(tell_story(server, folder, script, screen.tell))
        except AfterwriteError as error:
            if keep:  # to look at what went wrong
                server.keep()
                _say_where(dsn, folder)
            if isinstance(error, GateNotMet):
                raise GateNotMet(
                    str(error),
                    remedy="where other work kept this machine busy, that is what the gate saw: run it again when it is"
                    " quiet; `--keep` leaves the server, to be looked at",
                ) from error
            raise
        if keep:
            server.keep()
        if json:
            emit(_as_json(outcome))
        else:
            out.print(_summary(outcome))
        _explain_faults(outcome)
        if picture:
            picture.write_text(_picture(outcome), encoding="utf-8")
        if keep:
            _say_where(dsn, folder)
        elif not (json or no_serve):
            from afterwrite.demo.showing import show

            with suppress(KeyboardInterrupt):  # that is how it ends
                run(show(server, folder, seed, _invite))
    return ExitCode.ERROR if outcome.lost_or_doubled else ExitCode.OK


def _invite(address: str) -> None:
    """Where to look, and how to end it."""
    talk.print(f"\n[bold]Look at it:[/] {escape(address)}", soft_wrap=True)
    talk.print("The application goes on, slowly. Ctrl-C ends it, and removes everything.", soft_wrap=True)


def _say_where(dsn: str, folder: Path) -> None:
    """What stays behind, each on a line that can be copied."""
    talk.print(f"Server and data stay. Look at them with --dsn '{escape(dsn)}'", soft_wrap=True)
    talk.print(f"See it in a browser: afterwrite serve --dsn '{escape(dsn)}'", soft_wrap=True)
    talk.print(f"The application's ledger and the logs are in {escape(str(folder))}", soft_wrap=True)
    talk.print(f"`afterwrite demo --clean` removes {counted(len(kept_servers()), 'kept server')}.", soft_wrap=True)


class _Screen:
    """The chapters and the application's pulse; plain lines where there is no terminal."""

    def __init__(self) -> None:
        self._live = Live(console=talk, refresh_per_second=8, transient=True) if talk.is_terminal else None
        self._spinner = Spinner("dots")
        self._title = ""

    def __enter__(self) -> _Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def tell(self, chapter: Chapter) -> None:
        if chapter.done:
            line = Text.assemble(("✓ ", "green"), chapter.title, (f"\n    {chapter.text}", "dim"))
            # Above the live part, so that a low window scrolls and cuts nothing off.
            talk.print(line, soft_wrap=not self._live)
            if self._live:
                self._live.update(Text())
        elif self._live:
            self._live.update(Group(*self._present(chapter)))
        elif chapter.title != self._title:
            talk.print(f"… {escape(chapter.title)}", soft_wrap=True)
        self._title = chapter.title

    def _present(self, chapter: Chapter) -> list[RenderableType]:
        self._spinner.update(text=Text(f" {chapter.title}"))
        lines: list[RenderableType] = [self._spinner]
        if chapter.text:
            lines.append(Text(f"    {chapter.text}", style="dim"))
        pulse = chapter.pulse
        if pulse:
            words = (
                f"application: {pulse['tps']:.0f} tx/s, p95 {pulse['p95_ms']:.1f} ms, {pulse['committed']:,} committed"
            )
            lines.append(Text(f"    {words}", style="cyan"))
        return lines


def _summary(outcome: Outcome) -> Table:
    account, before, after = outcome.account, outcome.before, outcome.after
    made = table("", ">before", ">after", ">change", title="From triggers to afterwrite")

    def ratio(first: float, last: float) -> str:
        return f"{100 * (last - first) / first:+.0f} %" if first else ""

    def row(name: str, first: float, last: float, form: str) -> None:
        made.add_row(name, form.format(first), form.format(last), ratio(first, last))

    def fact(name: str, value: str, good: bool = True) -> None:
        made.add_row(name, "", f"[{'green' if good else 'red'}]{value}[/]", "")

    row("server time a write, µs", before.cost.server_us, after.cost.server_us, "{:,.0f}")
    row("WAL a write, bytes", before.cost.wal_bytes, after.cost.wal_bytes, "{:,.0f}")
    row(f"p95 of a transaction at {outcome.clients} clients, ms", before.p95_ms, after.p95_ms, "{:.1f}")
    row("p50, ms", before.p50_ms, after.p50_ms, "{:.1f}")
    if before.cost.cluster_cpu_us is not None and after.cost.cluster_cpu_us is not None:
        row(
            "server CPU a write, all of ours included, µs",
            before.cost.cluster_cpu_us,
            after.cost.cluster_cpu_us,
            "{:,.0f}",
        )
    made.add_section()
    fact("transactions committed and checked", f"{account.transactions:,}")
    fact("writes checked", f"{account.changes_expected:,}")
    fact("missing", str(account.missing), not account.missing)
    fact(
        "duplicated or unexpected",
        f"{account.duplicated + account.unexpected}",
        not account.duplicated + account.unexpected,
    )
    fact("with the wrong actor", str(account.wrong_actor), not account.wrong_actor)
    fact(f"wrong values, of {account.values_checked:,} compared", str(account.wrong_values), not account.wrong_values)
    fact(
        f"deferred effects wrong, of {account.deferred_effects_expected:,}",
        str(account.deferred_effects_wrong),
        not account.deferred_effects_wrong,
    )
    fact(
        f"unexplained residuals in {outcome.transactions_compared:,} compared",
        str(outcome.unexplained_residuals),
        not outcome.unexplained_residuals,
    )
    if (twin := outcome.twin) is not None:
        different = twin.missing + twin.extra + twin.value
        fact(f"legacy rows unlike the twin's, of {twin.matched + twin.alike + different:,}", str(different), twin.same)
    made.add_section()
    fact("triggers retired / deferred / kept", f"{outcome.retired} / {outcome.deferred} / {outcome.kept}")
    fact("capture lag, ms, p50 / p99", f"{outcome.lag_ms_p50:.0f} / {outcome.lag_ms_p99:.0f}")
    fact("seconds", f"{outcome.seconds:.0f}")
    return made


# Rich's own frame loads its font from elsewhere; this one asks for nothing.
_FRAME = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"
     aria-label="The closing table of afterwrite demo">
<style>
.{unique_id}-matrix {{ font: {char_height}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
                       line-height: {line_height}px; }}
{styles}
</style>
<defs>{lines}</defs>
<rect width="100%" height="100%" rx="10" fill="#292929"/>
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


_PADDED = re.compile(r'x="([\d.]+)" (y="[\d.]+") textLength="([\d.]+)"([^>]*)>((?:&#160;)+)')
_CELL = 12.2  # the width that rich gives a character


def _without_padding(match: re.Match[str]) -> str:
    """Begin a text where its first letter is: not every viewer gives leading spaces their width."""
    x, y, length, rest, padding = match.groups()
    shift = padding.count(";") * _CELL
    return f'x="{float(x) + shift:.1f}" {y} textLength="{float(length) - shift:.1f}"{rest}>'


def _picture(outcome: Outcome) -> str:
    """The closing table as an SVG that needs nothing from elsewhere."""
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True)
    console.print(_summary(outcome))
    svg = console.export_svg(title="", code_format=_FRAME, unique_id="demo")
    svg = _PADDED.sub(_without_padding, svg)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def _explain_faults(outcome: Outcome) -> None:
    for log in outcome.twin.logs if outcome.twin else ():
        for unlike in log.examples:
            say(f"[red]{escape(log.log)}[/] {escape(unlike.key)}")
            say(f"  ours: {escape(unlike.ours or 'no such row')}")
            say(f"  twin: {escape(unlike.twin or 'no such row')}")
    for kind, examples in outcome.account.examples.items():
        for example in examples:
            say(f"[red]{escape(kind)}[/]: {escape(example)}")


def _as_json(outcome: Outcome) -> dict[str, object]:
    account, before, after = outcome.account, outcome.before, outcome.after
    compared: dict[str, object] = {}
    if (twin := outcome.twin) is not None:
        compared = {
            "twin_missing": twin.missing,
            "twin_extra": twin.extra,
            "twin_value": twin.value,
            "twin_matched": twin.matched,
            "twin_looked_up": twin.alike,
            "twin_transactions": outcome.twin_transactions,
        }
    return {
        **compared,
        "schema_version": 1,
        "server_version": outcome.server_version,
        "transactions": account.transactions,
        "changes_expected": account.changes_expected,
        "changes_stored": account.changes_stored,
        "missing": account.missing,
        "duplicated": account.duplicated,
        "unexpected": account.unexpected,
        "wrong_actor": account.wrong_actor,
        "wrong_values": account.wrong_values,
        "values_checked": account.values_checked,
        "unexplained_residuals": outcome.unexplained_residuals,
        "transactions_compared": outcome.transactions_compared,
        "triggers_silenced": outcome.retired + outcome.deferred,
        "triggers_retired": outcome.retired,
        "triggers_deferred": outcome.deferred,
        "triggers_kept": outcome.kept,
        "deferred_effects_expected": account.deferred_effects_expected,
        "deferred_effects_wrong": account.deferred_effects_wrong,
        "server_time_per_write_before_us": round(before.cost.server_us, 1),
        "server_time_per_write_after_us": round(after.cost.server_us, 1),
        "wal_per_write_before_bytes": round(before.cost.wal_bytes, 1),
        "wal_per_write_after_bytes": round(after.cost.wal_bytes, 1),
        "cluster_cpu_per_write_before_us": before.cost.cluster_cpu_us,
        "cluster_cpu_per_write_after_us": after.cost.cluster_cpu_us,
        "clients": outcome.clients,
        "p95_before_ms": before.p95_ms,
        "p95_after_ms": after.p95_ms,
        "capture_lag_p50_ms": round(outcome.lag_ms_p50, 1),
        "capture_lag_p99_ms": round(outcome.lag_ms_p99, 1),
        "seconds": round(outcome.seconds, 1),
    }
