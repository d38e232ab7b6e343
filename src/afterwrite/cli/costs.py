"""``afterwrite scan --observe | --probe | --rehearse``: what triggers cost, measured as was asked for, and shown."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import typer

from afterwrite.cli.face import counted, fill, out, plain, say, table
from afterwrite.errors import Refused, UsageError
from afterwrite.postgres import Database, connect
from afterwrite.scan.cost.copy import rehearse_dump, rehearse_live
from afterwrite.scan.cost.figures import Costs, Measured, Origin, TriggerCost, Window
from afterwrite.scan.cost.observe import observe
from afterwrite.scan.cost.probe import Plan, plan_probe, probe
from afterwrite.scan.cost.reckon import reckon
from afterwrite.scan.dump.load import LoadedDump
from afterwrite.scan.report.words import percent
from afterwrite.scan.survey import Survey

_ROWS = 24


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked to be measured: seconds to observe, tables to probe (``anyway`` against advice), a rehearsal."""

    observe: float | None = None
    probe: tuple[str, ...] = ()
    anyway: tuple[str, ...] = ()
    yes: bool = False
    rehearse: bool = False

    @property
    def anything(self) -> bool:
        return self.observe is not None or bool(self.probe) or bool(self.anyway) or self.rehearse


async def costs_of(dsn: str | None, found: Survey, wanted: Wanted, *, dump: LoadedDump | None = None) -> Costs | None:
    """Measure what was asked for: first without touching anything, then on the tables, then on a copy.

    Of a dump only a rehearsal can be had. Raises Refused when a probe is not confirmed.
    """
    if not wanted.anything:
        return None
    live = wanted.observe is not None or wanted.probe or wanted.anyway
    if dump is not None and live:
        raise UsageError(
            "a dump cannot be observed or probed: nobody works with it", remedy="give --dsn, or use --rehearse"
        )
    window: Window | None = None
    measured: list[Measured] = []
    if live:
        async with connect(dsn, application_name="afterwrite scan") as db:
            plan = await _confirmed(db, found, wanted) if wanted.probe or wanted.anyway else None
            if wanted.observe is not None:
                window = await _observed(db, found, wanted.observe)
            if plan is not None:
                measured.append(await probe(db, found, plan))
    if wanted.rehearse:
        if dump is not None:
            measured.append(await rehearse_dump(dump, found, told=_rehearsing))
        else:
            measured.append(await rehearse_live(dsn, found, told=_rehearsing))
    return reckon(found, window=window, measured=measured)


def _rehearsing(text: str) -> None:
    say(f"rehearsing on a copy: {text}")


async def _confirmed(db: Database, found: Survey, wanted: Wanted) -> Plan:
    """The plan of a probe, after its warning was read."""
    plan = await plan_probe(db, found, wanted.probe, wanted.anyway)
    for sentence in plan.warning:
        say(f"[yellow]![/] {plain(sentence)}")
    if wanted.yes:
        return plan
    if not sys.stdin.isatty():
        raise UsageError("a probe writes, if only to undo it, and nobody was there to confirm it", remedy="add --yes")
    if not typer.confirm("Probe?", err=True):
        raise Refused("not confirmed: nothing was run")
    return plan


async def _observed(db: Database, found: Survey, seconds: float) -> Window:
    say(f"observing {plain(db.where)} for {seconds:.0f} s; Ctrl-C shows what was seen till then")
    async with _interrupted() as stop:
        return await observe(db, found, seconds, stop=stop)


@asynccontextmanager
async def _interrupted() -> AsyncGenerator[asyncio.Event]:
    """An event that the first Ctrl-C sets; the next one ends the command as ever."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def end() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, end)
    try:
        yield stop
    finally:
        loop.remove_signal_handler(signal.SIGINT)


# On the terminal -----------------------------------------------------------------------------------------------------


def show_costs_by_trigger(costs: Costs, *, everything: bool = False) -> None:
    """The triggers that cost most, by table; then what the figures are, and where rows were queued for."""
    ranked = [each for each in costs.triggers if each.us is not None or each.wal is not None]
    ranked = ranked or [each for each in costs.triggers if each.calls]
    shown = ranked if everything else ranked[:_ROWS]
    made = table("table and trigger", ">calls", ">µs a row", ">write time", ">WAL B a row")
    last = ""
    shares = {each.table: each.triggers_share or 0.0 for each in costs.tables}
    for each in sorted(shown, key=lambda each: (-shares.get(f"{each.schema}.{each.table}", 0.0), each.table)):
        name = each.table if each.schema == "public" else f"{each.schema}.{each.table}"
        if name != last:
            made.add_row(f"[bold]{plain(name)}[/]")
        last = name
        made.add_row(f"  {plain(each.name)}", *map(plain, _figures(each)))
    if shown:
        out.print(made)
        if len(ranked) > len(shown):
            rest = sum(each.time_share or 0.0 for each in ranked[len(shown) :])
            left = counted(len(ranked) - len(shown), "trigger")
            out.print(f"[dim]and {left} more, {percent(rest)} of write time together: --all[/]")
    for sentence in _where_from(costs, shown) if shown else ():
        out.print(f"[dim]{plain(sentence)}[/]", width=min(out.width, 80))
    if costs.hot:
        rows = (
            (
                each.table.removeprefix("public."),
                each.queue,
                f"{each.waited_seconds:.0f} s",
                "\n".join(name.removeprefix("public.") for name in each.triggers) or "the application",
            )
            for each in costs.hot
        )
        heads = ("rows of", ">queued at once", ">waited", "written by" if _sure(costs) else "written by (perhaps)")
        out.print(fill(table(*heads, title="Rows that sessions waited for"), rows))


def _sure(costs: Costs) -> bool:
    return all(each.certain or not each.triggers for each in costs.hot)


def _figures(each: TriggerCost) -> Iterator[str]:
    about = "~" if each.split else ""
    yield "–" if each.calls is None else f"{'≤' if each.at_most else about}{each.calls:,.0f}"
    yield "–" if each.us is None else f"{about}{each.us:,.1f}" if each.us < 10 else f"{about}{each.us:,.0f}"
    yield percent(each.time_share)
    yield "–" if each.wal is None else f"{about}{each.wal:,.0f}"


def _where_from(costs: Costs, shown: Sequence[TriggerCost]) -> Iterator[str]:
    match costs.weights:
        case Origin.OBSERVE:
            ended = ", interrupted" if costs.interrupted else ""
            yield f"Calls: counted for {costs.seconds or 0:.0f} s{ended}."
        case Origin.SINCE_RESET:
            since = costs.since.partition("T")[0] if costs.since else "they began"
            yield f"Calls: from the rows written since the server's statistics were reset ({since})."
        case _:
            yield "No write was ever counted here: shares take every operation of every table to be as frequent."
    places = {
        Origin.OBSERVE: "observed",
        Origin.PROBE: "probed on one row of each table",
        Origin.REHEARSE: "rehearsed on a copy with generated rows",
    }
    for what, origins in (
        ("Times", {each.us_from for each in shown}),
        ("WAL", {each.wal_from for each in shown}),
    ):
        named = [text for origin, text in places.items() if origin in origins]
        if named:
            yield f"{what}: {'; '.join(named)}."
    if costs.write_time:
        yield f"Write time: {costs.write_time}."
    if any(each.at_most for each in shown):
        yield "≤ at most: a WHEN, an UPDATE OF or a statement trigger may make the calls fewer."
    if any(each.split for each in shown):
        yield "~ estimated: shared by several triggers, and divided (how: --json)."
