"""The main job, told from its beginning to its end on a server of our own, with the application writing throughout.

::

    lay the legacy application ─▶ measure it ─▶ scan ─▶ install ─▶ shadow until proven ─▶ five phases silenced
                                       ▲                                                          │
                                       └────────────── the same measurement again ◀───────────────┘ ─▶ final account
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from afterwrite import runtime
from afterwrite.defer.progress import settle
from afterwrite.demo.account import Account, take_account
from afterwrite.demo.measure import Cost, Reading, cost_between, read_costs
from afterwrite.demo.processes import Process, application, capture_worker
from afterwrite.demo.schema import ROLE, create_legacy_application
from afterwrite.demo.twin import LOGS, play
from afterwrite.errors import GateNotMet
from afterwrite.migrate.deeds import EventKind, MigrationEvent
from afterwrite.migrate.engine import run_all
from afterwrite.migrate.gates import read_table_figures
from afterwrite.migrate.phase import Mode
from afterwrite.migrate.plan import LeftTrigger, Legacy, Plan, Thresholds, make_plan
from afterwrite.postgres import Database, connect, statement
from afterwrite.postgres.embedded import Server
from afterwrite.prove.report import read_proof
from afterwrite.prove.twin import TwinComparison, compare_logs
from afterwrite.scan.classify import Verdict
from afterwrite.scan.survey import Survey, survey
from afterwrite.settings import Settings

DATABASE, TWIN = "legacy", "twin"
_PULSE_SECONDS = 0.5
# A demo shares its machine with whatever else runs there, which the gates cannot tell from a slow trigger.
# So many for all phases together: a database whose gates keep failing is no accident.
_ATTEMPTS = 3


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """How long each part takes, and how hard the application works.

    ``keep_legacy``: retired triggers' bodies go on filling the old logs after commit. ``twin``: in the end the logs are
    compared with those of a twin whose triggers stayed on and in which the same was done.
    """

    clients: int = 8
    rate: float = 100.0
    seed: int = 1
    warm_seconds: float = 4.0
    measure_seconds: float = 25.0
    shadow_seconds: float = 20.0
    soak_seconds: float = 3.0
    patience_seconds: float = 90.0
    keep_legacy: bool = False
    twin: bool = False


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The application as its clients saw it over a measured stretch, and what the server says a write cost."""

    transactions: int
    tps: float
    p50_ms: float
    p95_ms: float
    cost: Cost


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended: what the faces print."""

    account: Account
    before: Window
    after: Window
    retired: int
    deferred: int
    kept: int
    unexplained_residuals: int
    transactions_compared: int
    lag_ms_p50: float
    lag_ms_p99: float
    clients: int
    seconds: float
    server_version: int
    twin: TwinComparison | None = None
    twin_transactions: int = 0

    @property
    def lost_or_doubled(self) -> bool:
        """Whether the demo failed at what it is for."""
        differs = self.twin is not None and not self.twin.same
        return not self.account.clean or self.unexplained_residuals > 0 or differs


class Chapter(msgspec.Struct, frozen=True, kw_only=True):
    """What is going on now: a chapter's ``title``, its outcome in ``text`` once ``done``, the application's pulse."""

    title: str
    text: str = ""
    done: bool = False
    pulse: dict[str, Any] = {}


Tell = Callable[[Chapter], None]


async def tell_story(server: Server, folder: Path, script: Script, tell: Tell) -> Outcome:
    """Do it all on ``server``; files (the workload's ledger, logs) go to ``folder``.

    Raises AfterwriteError when a step cannot be done; that something was lost or doubled is in the Outcome.
    """
    began = time.monotonic()
    narrator = Narrator(tell)
    settings = Settings(
        dsn=server.dsn(DATABASE), lock_timeout_ms=500, soak_seconds=script.soak_seconds, operator="demo"
    )
    narrator.open("the legacy application: 18 tables, 86 triggers")
    async with connect(server.dsn()) as admin:
        await admin.run(b"create database legacy")
    async with connect(settings.dsn, guarded=True) as database:
        await database.run(b"create extension if not exists pg_stat_statements with schema public")
        await create_legacy_application(database, seed=script.seed)
    if script.twin:
        async with connect(server.dsn()) as admin:
            await admin.run(b"create database twin template legacy")
    async with connect(settings.dsn, guarded=True) as database:
        transcript = folder / "transcript.jsonl" if script.twin else None
        ledger = folder / "workload.jsonl"
        async with (
            application(
                server.dsn(DATABASE, ROLE),
                ledger,
                clients=script.clients,
                seed=script.seed,
                rate=script.rate,
                log=folder / "workload.log",
                transcript=transcript,
            ) as app,
            narrator.watch(app),
        ):
            narrator.close(f"{script.clients} clients at work")

            narrator.open("what a write costs with the triggers on", f"for {script.measure_seconds:.0f} s")
            await asyncio.sleep(script.warm_seconds)
            before = await _measure(database, server, app, "before", script.measure_seconds)
            narrator.close(_cost(before))

            narrator.open("scan: audit triggers from business logic")
            found = await survey(database)
            verdicts = {verdict: sum(j.verdict is verdict for j in found.judgements) for verdict in Verdict}
            narrator.close(", ".join(f"{count} {verdict.value}" for verdict, count in verdicts.items() if count))

            narrator.open("install: store, publications, slot")
            seen = await runtime.look_at_installation(settings, database, database)
            await runtime.install(settings, seen, database, database)
            narrator.close(f"{len(seen.setup.tables)} tables captured, {len(seen.setup.legacy_tables)} logs watched")

            async with capture_worker(server.dsn(DATABASE), folder / "capture.log") as worker:
                narrator.open("shadow: triggers and capture both run, and are compared")
                await app.ask("stamp on", "stamp")
                await app.ask("mark captured", "mark")
                plan = await _plan(database, found, script)
                residuals, compared = await _shadow(database, app, worker, narrator, script)
                narrator.close(f"{compared:,} transactions compared, {residuals} unexplained residuals")

                await silence_phases(database, plan, settings, app.check, narrator, script)

                narrator.open("what a write costs now", f"for {script.measure_seconds:.0f} s")
                await asyncio.sleep(script.warm_seconds)
                after = await _measure(database, server, app, "after", script.measure_seconds)
                lags = await _lags(database, script.measure_seconds)
                narrator.close(_cost(after))

                narrator.open("the account: every write against the application's own ledger")
                await app.ask("stop", "stopped")
                await app.end()
                worker.check()
                await settle(database, database, source=settings.source)
            residuals, compared = await _proof_totals(database)
            account = await take_account(ledger, database, database, since="captured")
            narrator.close(_account(account))
        twin, repeated = None, 0
        if transcript is not None:
            narrator.open("the twin: the same work again where every trigger stayed on")
            repeated = await asyncio.to_thread(play, server.dsn(TWIN), transcript)
            async with connect(server.dsn(TWIN)) as other:
                twin = await compare_logs(database, other, LOGS)
            narrator.close(_twin(twin, repeated))
    modes = [trigger.mode for phase in plan.phases for trigger in phase.triggers]
    return Outcome(
        account=account,
        before=before,
        after=after,
        retired=sum(mode is Mode.RETIRE for mode in modes),
        deferred=sum(mode is Mode.DEFER for mode in modes),
        kept=len(plan.kept),
        unexplained_residuals=residuals,
        transactions_compared=compared,
        lag_ms_p50=lags[0],
        lag_ms_p99=lags[1],
        clients=script.clients,
        seconds=time.monotonic() - began,
        server_version=server.version,
        twin=twin,
        twin_transactions=repeated,
    )


class Narrator:
    """Keeps the present chapter and passes on the application's pulse twice a second."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._title = ""
        self._text = ""
        self._app: Process | None = None

    @asynccontextmanager
    async def watch(self, app: Process) -> AsyncGenerator[None]:
        """Pass on this application's pulse inside the block."""
        self._app = app
        beating = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            beating.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_PULSE_SECONDS)
            if self._title:
                self.say(self._text)

    def open(self, title: str, text: str = "") -> None:
        self._title = title
        self.say(text)

    def say(self, text: str) -> None:
        self._text = text
        pulse = self._app.latest if self._app else {}
        self._tell(Chapter(title=self._title, text=text, pulse=pulse))

    def close(self, text: str) -> None:
        self._tell(Chapter(title=self._title, text=text, done=True))
        self._title = self._text = ""


async def _measure(database: Database, server: Server, app: Process, name: str, seconds: float) -> Window:
    """A window of the workload, with the server's figures at both ends."""
    await app.ask(f"mark {name}", "mark")
    first = await _read(database, server)
    await asyncio.sleep(seconds)
    last = await _read(database, server)
    report = await app.ask("report", "report")
    [window] = [each for each in report["windows"] if each["window"] == name][-1:]
    return Window(
        transactions=window["committed"],
        tps=window["tps"],
        p50_ms=window["p50_ms"],
        p95_ms=window["p95_ms"],
        cost=cost_between(first, last),
    )


async def _read(database: Database, server: Server) -> Reading:
    return await read_costs(database, ROLE, server.pid)


async def _plan(database: Database, found: Survey, script: Script) -> Plan:
    thresholds = Thresholds(
        proof_transactions=500,
        proof_seconds=script.shadow_seconds,
        capture_lag_seconds=10.0,
        deferral_lag_seconds=10.0,
        # The soak is seconds long here: enough to see a change that matters, too short for a fine one.
        baseline_seconds=5.0,
        write_latency_ratio=3.0,
        cpu_ratio=3.0,
    )
    plan = make_plan(
        found.judgements,
        await read_table_figures(database),
        thresholds=thresholds,
        soak_seconds=script.soak_seconds,
    )
    return keep_filled(plan) if script.keep_legacy else plan


# After commit these would leave other rows in the logs than they leave within the transaction.
_STAY = {
    "public.investors.investors_import_line": "it counts the rows of each statement, and a deferred body sees those of"
    " the transaction",
    "public.investors.investors_bulk_progress": "it changes rows that are logged: deferred, the log would have the same"
    " changes in other steps",
    "public.projects.projects_name_copied": "it changes rows that are logged: deferred, the log would have the same"
    " changes in another order",
}


def keep_filled(plan: Plan) -> Plan:
    """The plan of a team whose readers still need the old logs, to the row."""
    plan = leave_on(plan)
    return msgspec.structs.replace(
        plan,
        phases=tuple(
            msgspec.structs.replace(
                phase,
                triggers=tuple(
                    msgspec.structs.replace(trigger, legacy=Legacy.KEEP) if trigger.mode is Mode.RETIRE else trigger
                    for trigger in phase.triggers
                ),
            )
            for phase in plan.phases
        ),
    )


def leave_on(plan: Plan, reasons: Mapping[str, str] = _STAY) -> Plan:
    """The plan with these triggers kept, each for its reason."""
    left = [name for name in LeftTrigger.__struct_fields__ if name != "reason"]
    stay = [
        LeftTrigger(**{name: getattr(trigger, name) for name in left}, reason=reasons[trigger.trigger])
        for phase in plan.phases
        for trigger in phase.triggers
        if trigger.trigger in reasons
    ]
    return msgspec.structs.replace(
        plan,
        phases=tuple(
            msgspec.structs.replace(phase, triggers=tuple(t for t in phase.triggers if t.trigger not in reasons))
            for phase in plan.phases
        ),
        kept=(*plan.kept, *stay),
    )


async def _shadow(
    database: Database, app: Process, worker: Process, narrator: Narrator, script: Script
) -> tuple[int, int]:
    """Let triggers and capture run side by side for a while; the gates will ask whether it was enough."""
    deadline = time.monotonic() + script.shadow_seconds
    while time.monotonic() < deadline:
        app.check()
        worker.check()
        await asyncio.sleep(0.5)
        _, compared = await _proof_totals(database)
        narrator.say(f"{compared:,} transactions compared")
    return await _proof_totals(database)


async def silence_phases(
    database: Database,
    plan: Plan,
    settings: Settings,
    check: Callable[[], None],
    narrator: Narrator,
    script: Script,
) -> None:
    """Silence the plan's phases, each behind its gates, and let each soak; ``check`` raises the application's trouble.

    A phase that its gates turned on again is silenced once more; the third time that this happens, in whichever phase,
    GateNotMet is raised.
    """
    sizes = {phase.number: len(phase.triggers) for phase in plan.phases}
    titles = {phase.number: phase.title for phase in plan.phases}
    opened: set[int] = set()
    turned_on: list[int] = []

    def tell(event: MigrationEvent) -> None:
        check()
        if event.phase is None:
            return
        if event.phase not in opened:
            opened.add(event.phase)
            narrator.open(f"phase {event.phase}: {titles[event.phase].lower()}")
        match event.kind:
            case EventKind.WAITING | EventKind.BLOCKED | EventKind.SILENCED:
                narrator.say(event.text)
            case EventKind.SOAKING:
                narrator.say(f"silenced; soaking, gates hold, {event.seconds or 0:.0f} s left")
            case EventKind.HALTED:
                turned_on.append(event.phase)
                narrator.say(f"turned on again: {event.text}")
            case EventKind.SOAKED:
                again = " at another attempt" if event.phase in turned_on else ""
                narrator.close(f"{sizes[event.phase]} triggers silenced, gates held{again}")
            case _:
                pass

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            await run_all(
                database,
                plan,
                place=runtime.place_of(settings),
                apply=True,
                operator=settings.operator,
                wait_seconds=script.patience_seconds,
                policy=runtime.lock_policy(settings),
                on_event=tell,
            )
        except GateNotMet:
            if len(turned_on) < attempt or attempt == _ATTEMPTS:
                raise
        else:
            return


async def _lags(database: Database, seconds: float) -> tuple[float, float]:
    found = await database.one(_Lags, statement("demo.read_lags"), seconds=seconds)
    return found.p50_ms, found.p99_ms


class _Lags(msgspec.Struct, frozen=True):
    p50_ms: float
    p99_ms: float


async def _proof_totals(database: Database) -> tuple[int, int]:
    """Unexplained residuals and transactions compared so far."""
    proof = await read_proof(database)
    return proof.unexplained, proof.transactions


def _cost(window: Window) -> str:
    return (
        f"{window.cost.server_us:,.0f} µs and {window.cost.wal_bytes:,.0f} B of WAL a write, "
        f"p95 {window.p95_ms:.1f} ms at {window.tps:.0f} tx/s"
    )


def _twin(twin: TwinComparison, transactions: int) -> str:
    return (
        f"{transactions:,} transactions again, {twin.matched + twin.alike:,} legacy rows alike, "
        f"{twin.missing} missing, {twin.extra} extra, {twin.value} different"
    )


def _account(account: Account) -> str:
    return f"{account.changes_expected:,} writes checked, {account.missing} missing, {account.duplicated} duplicated"
