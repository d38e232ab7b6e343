"""``afterwrite capture``: the worker, in the foreground, until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from typing import Annotated

import typer
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from afterwrite import runtime
from afterwrite.capture.drain import DrainStatus
from afterwrite.capture.governor import human_bytes
from afterwrite.capture.worker import WorkerState, WorkerStatus
from afterwrite.cli.face import FLAG, Dsn, Json, StoreDsn, counted, emit, say, talk
from afterwrite.defer.replay import ReplayState
from afterwrite.errors import ExitCode, UsageError
from afterwrite.settings import Settings, load_settings

_TELL_SECONDS = 0.5
_LATE_SECONDS = 15.0  # longer than a heartbeat takes to come


def capture(
    dsn: Dsn = None,
    store_dsn: StoreDsn = None,
    json: Json = False,
    no_standby: Annotated[
        bool,
        typer.Option(
            "--no-standby", metavar=FLAG, help="Refuse where another worker is active, instead of standing by for it."
        ),
    ] = False,
    outbox_only: Annotated[
        bool,
        typer.Option(
            "--outbox-only", metavar=FLAG, help="Only drain the outbox of events, where the server gives no slot."
        ),
    ] = False,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="Publish to these brokers, and let `afterwrite broker write` store. Else AFTERWRITE_CAPTURE_URL.",
            show_default=False,
        ),
    ] = None,
    end_with_stdin: Annotated[bool, typer.Option("--end-with-stdin", hidden=True)] = False,
) -> int:
    """Capture row changes into the store, prove them and run deferred triggers, until Ctrl-C or SIGTERM.

    One worker is active for a slot; any others stand by and take over within five seconds when it is gone. What is in
    flight is finished within five seconds of being told to stop. With --json it prints a status line twice a second.
    Where there is an outbox of events, it is drained as well. With --url nothing is opened but the source and a broker.
    Exit 5 where going on would lose changes, and when the slot was given up by policy (over_budget).
    """
    _collect_seldom()
    given = load_settings(dsn=dsn, store_dsn=store_dsn, capture_url=url)
    if store_dsn is not None and given.capture_url is not None:
        raise UsageError(
            "--store-dsn and capture_url name two ways to the store",
            remedy="leave --store-dsn out, to publish; or unset capture_url (AFTERWRITE_CAPTURE_URL), to store",
        )
    if outbox_only:
        asyncio.run(_drain_only(given, json=json))
        return ExitCode.OK
    asyncio.run(_capture(given, json=json, stand_by=not no_standby, end_with_stdin=end_with_stdin))
    return ExitCode.OK


def _collect_seldom() -> None:
    """Look for cycles a hundred times less often: captured rows form none, and the search takes a tenth of all time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(70_000, 20, 20)


async def _capture(given: Settings, *, json: bool, stand_by: bool, end_with_stdin: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if end_with_stdin:
        loop.add_reader(sys.stdin.fileno(), lambda: os.read(sys.stdin.fileno(), 1024) or stop.set())
    told, trouble, unheard, streams = 0.0, "", False, False
    news = _News()
    live = (
        Live(Text("starting"), console=talk, refresh_per_second=4, transient=True)
        if not json and talk.is_terminal
        else None
    )

    def hear(status: runtime.RuntimeStatus) -> None:
        """Tell, and stop in order where nobody reads us any more; rich makes an exit of a broken pipe."""
        nonlocal unheard
        try:
            if not unheard:
                tell(status)
        except (BrokenPipeError, SystemExit):
            unheard = True
            stop.set()

    def tell(status: runtime.RuntimeStatus) -> None:
        nonlocal told, trouble, streams
        # A trouble is told when it comes up, and not again at every attempt to get over it.
        troubled = (status.capture.trouble or "") not in ("", trouble)
        trouble = status.capture.trouble or trouble
        lines = news.of(status.capture)
        for words in lines if not json else ():
            say(words)
        # A log without a terminal says once that it came to work.
        begins = not streams and status.capture.state is WorkerState.STREAMING
        streams = streams or begins
        if not troubled and not lines and not begins and time.monotonic() - told < _TELL_SECONDS:
            return
        told = time.monotonic()
        if json:
            emit(_as_json(status))
        elif live:
            live.update(Text(_line(status)))
        elif troubled or begins:
            say(_line(status))

    if live:
        with live:
            await runtime.run_capture(given, stop=stop, stand_by=stand_by, on_status=hear)
    else:
        await runtime.run_capture(given, stop=stop, stand_by=stand_by, on_status=hear)
    if unheard:
        raise BrokenPipeError
    if not json:
        say("stopped; everything acknowledged is stored")


async def _drain_only(given: Settings, *, json: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    latest = DrainStatus()
    told: DrainStatus | None = None

    def hear(status: DrainStatus) -> None:
        nonlocal latest
        latest = status

    def tell() -> None:
        nonlocal told
        if json:
            emit({"event": "status", "outbox": latest})
        elif latest != told:
            say(escape(_outbox_words(latest)))
        told = latest

    draining = asyncio.create_task(runtime.run_outbox(given, stop=stop, on_status=hear))
    try:
        while not draining.done():
            await asyncio.wait([draining], timeout=_TELL_SECONDS)
            tell()
    except (BrokenPipeError, SystemExit) as error:
        # Nobody reads us any more: stop in order. Rich makes an exit of a broken pipe.
        stop.set()
        await draining
        raise BrokenPipeError from error
    await draining
    if not json:
        say("stopped; what is not stored yet is in the outbox")


def _outbox_words(status: DrainStatus) -> str:
    words = [
        f"outbox {'drained here' if status.active else 'not drained here now'}",
        f"{counted(status.stored, 'event')} stored",
    ]
    if status.refused:
        words.append(f"{status.refused:,} set aside")
    if status.trouble:
        words.append(status.trouble)
    return " · ".join(words)


class _News:
    """What is to be said once: that we stand by, and each finding when it comes up, grows worse or is over."""

    def __init__(self) -> None:
        self._state: WorkerState | None = None
        self._findings: dict[str, str] = {}

    def of(self, status: WorkerStatus) -> list[str]:
        """The lines for this status, none when all of it was said before."""
        lines: list[str] = []
        if status.state is not self._state:
            if status.state is WorkerState.STANDING_BY:
                lines.append(f"standing by: pid {status.active_pid or 'unknown'} is active")
            elif self._state is WorkerState.STANDING_BY and status.state is not WorkerState.STOPPED:
                lines.append("the active worker is gone: taking over")
            self._state = status.state
        now = {f"{finding.rule} {finding.where}": finding for finding in status.findings}
        for key, finding in now.items():
            if key not in self._findings:
                remedy = f"\n  [green]→ [/]{escape(finding.remedy)}" if finding.remedy else ""
                lines.append(f"[yellow]{finding.severity.value}:[/] {escape(finding.text)}{remedy}")
        # Warn that becomes alarm is not over: the same thing is told under another rule.
        alive = {_subject(key) for key in now}
        lines += [f"over: {escape(text)}" for key, text in self._findings.items() if _subject(key) not in alive]
        self._findings = {key: finding.text for key, finding in now.items()}
        return lines


def _subject(key: str) -> str:
    rule, where = key.split(" ", 1)
    return f"slot.wal {where}" if rule.startswith("slot.wal.") else key


def _line(status: runtime.RuntimeStatus) -> str:
    capture = status.capture
    words = [capture.state.value]
    if capture.state is WorkerState.STANDING_BY:
        words[0] += f": pid {capture.active_pid or 'unknown'} is active"
    if capture.position is not None:
        words.append(f"at {capture.position}")
    if capture.lag_bytes is not None:
        # What a quiet database writes by itself waits for the next heartbeat, and is nothing to speak of.
        late = capture.lag_seconds is not None and capture.lag_seconds >= _LATE_SECONDS
        seconds = f", {capture.lag_seconds:,.0f} s" if late else ""
        words.append(f"{human_bytes(capture.lag_bytes)}{seconds} behind")
    if capture.retained_bytes is not None and capture.health not in (None, "well"):
        words.append(
            f"{human_bytes(capture.retained_bytes)} of {human_bytes(capture.budget_bytes)} WAL kept ({capture.health})"
        )
    words.append(f"{capture.rows:,} changes stored, {capture.rows_per_second:,.0f}/s")
    if status.outbox is not None and (status.outbox.stored or status.outbox.refused or status.outbox.trouble):
        words.append(_outbox_words(status.outbox))
    if status.deferral is not None and status.deferral.state is not ReplayState.IDLE:
        words.append(f"deferral {status.deferral.state.value}")
    if capture.trouble:
        words.append(capture.trouble)
    return " · ".join(words)


def _as_json(status: runtime.RuntimeStatus) -> dict[str, object]:
    capture, deferral = status.capture, status.deferral
    return {
        "event": "status",
        "state": capture.state,
        "position": str(capture.position) if capture.position is not None else None,
        "active_pid": capture.active_pid,
        "lag_bytes": capture.lag_bytes,
        "lag_seconds": capture.lag_seconds,
        "retained_bytes": capture.retained_bytes,
        "budget_bytes": capture.budget_bytes,
        "spilled_bytes": capture.spilled_bytes,
        "health": capture.health,
        "last_commit_at": capture.last_commit_at,
        "transactions": capture.transactions,
        "rows": capture.rows,
        "rows_per_second": round(capture.rows_per_second, 1),
        "undecodable_contexts": capture.undecodable_contexts,
        "heartbeat_ms": capture.heartbeat_ms,
        "trouble": capture.trouble,
        "findings": capture.findings,
        "deferral": None
        if deferral is None
        else {"state": deferral.state, "lag_seconds": deferral.lag_seconds, "trouble": deferral.trouble},
        "maintenance": status.maintenance,
        "rollup": status.rollup,
        "outbox": status.outbox,
    }
