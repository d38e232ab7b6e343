"""``afterwrite capture``: the worker, in the foreground, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Annotated

import typer
from rich.live import Live
from rich.text import Text

from afterwrite import runtime
from afterwrite.cli.face import Dsn, Json, StoreDsn, emit, say, settings, talk
from afterwrite.errors import ExitCode
from afterwrite.settings import Settings

_TELL_SECONDS = 0.5


def capture(
    dsn: Dsn = None,
    store_dsn: StoreDsn = None,
    json: Json = False,
    end_with_stdin: Annotated[bool, typer.Option("--end-with-stdin", hidden=True)] = False,
) -> int:
    """Capture row changes into the store, prove them and run deferred triggers, until Ctrl-C or SIGTERM.

    One worker is active for a slot; what is in flight is finished within five seconds of being told to stop.
    With --json it prints a status line twice a second.
    """
    asyncio.run(_capture(settings(dsn, store_dsn), json=json, end_with_stdin=end_with_stdin))
    return ExitCode.OK


async def _capture(given: Settings, *, json: bool, end_with_stdin: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if end_with_stdin:
        loop.add_reader(sys.stdin.fileno(), lambda: os.read(sys.stdin.fileno(), 1024) or stop.set())
    told, trouble = 0.0, ""
    live = (
        Live(Text("starting"), console=talk, refresh_per_second=4, transient=True)
        if not json and talk.is_terminal
        else None
    )

    def tell(status: runtime.RuntimeStatus) -> None:
        nonlocal told, trouble
        # A trouble is told when it comes up, and not again at every attempt to get over it.
        changed = (status.capture.trouble or "") not in ("", trouble)
        trouble = status.capture.trouble or trouble
        if not changed and time.monotonic() - told < _TELL_SECONDS:
            return
        told = time.monotonic()
        if json:
            emit(_as_json(status))
        elif live:
            live.update(Text(_line(status)))
        elif changed:
            say(_line(status))

    if live:
        with live:
            await runtime.run_capture(given, stop=stop, on_status=tell)
    else:
        await runtime.run_capture(given, stop=stop, on_status=tell)
    if not json:
        say("stopped; everything acknowledged is stored")


def _line(status: runtime.RuntimeStatus) -> str:
    capture = status.capture
    words = [capture.state.value]
    if capture.position is not None:
        words.append(f"at {capture.position}")
    if capture.lag_bytes is not None:
        words.append(f"{capture.lag_bytes / 1024:,.0f} KiB behind")
    words.append(f"{capture.rows:,} changes stored, {capture.rows_per_second:,.0f}/s")
    if status.deferral is not None:
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
        "lag_bytes": capture.lag_bytes,
        "last_commit_at": capture.last_commit_at,
        "transactions": capture.transactions,
        "rows": capture.rows,
        "rows_per_second": round(capture.rows_per_second, 1),
        "undecodable_contexts": capture.undecodable_contexts,
        "heartbeat_ms": capture.heartbeat_ms,
        "trouble": capture.trouble,
        "deferral": None
        if deferral is None
        else {"state": deferral.state, "lag_seconds": deferral.lag_seconds, "trouble": deferral.trouble},
        "maintenance": status.maintenance,
    }
