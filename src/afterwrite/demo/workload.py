"""The legacy application at work: several clients in a process of their own, steered over stdin.

``python -m afterwrite.demo.workload --dsn … --ledger FILE`` logs in as ``demo_app`` and works until told to stop::

    stdin, a word or a JSON string/object a line        stdout, JSON lines
    ------------------------------------------          ------------------------------------------------
    stamp on | stamp off                                {"event": "stamp", "on": true}
    mark NAME       a new measuring window              {"event": "mark", "window": NAME, "lsn": …, "xid": …}
    rate N          transactions a second, 0 = no pause {"event": "rate", "rate": N}
    report                                              {"event": "report", "windows": […]}
    stop, or the end of stdin, or SIGTERM, SIGINT       {"event": "stopped", "windows": […]}
                                                        {"event": "ready", …} first, {"event": "tick", …} every second

``stamp`` and ``mark`` wait until no client is in a transaction, so what they say holds exactly from there on.
"""

from __future__ import annotations

import argparse
import os
import selectors
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from afterwrite.demo.clients import Workload
from afterwrite.demo.ledger import Ledger
from afterwrite.demo.schema import ROLE
from afterwrite.demo.transcript import Transcript
from afterwrite.demo.twin import read_given
from afterwrite.postgres import describe_dsn


def _say(**words: Any) -> None:
    sys.stdout.write(msgspec.json.encode(words).decode() + "\n")
    sys.stdout.flush()


def _obey(workload: Workload, line: str) -> bool:
    """Do what one line says. Returns whether to go on."""
    text = line.strip()
    if text.startswith(('"', "{")):
        said = msgspec.json.decode(text)
        text = said if isinstance(said, str) else " ".join(f"{word} {value}" for word, value in said.items())
    match text.split():
        case []:
            pass
        case ["stop", *_]:
            return False
        case ["report", *_]:
            _say(event="report", windows=workload.report())
        case ["stamp", ("on" | "off" | "True" | "False") as word]:
            workload.stamp(word in ("on", "True"))
            _say(event="stamp", on=workload.stamped)
        case ["mark", name]:
            mark = workload.mark(name)
            _say(event="mark", window=mark.window, lsn=mark.lsn, xid=mark.xid)
        case ["rate", number] if number.replace(".", "", 1).isdigit():
            workload.rate = float(number)
            _say(event="rate", rate=workload.rate)
        case _:
            _say(event="error", text=f"not understood: {text!r}; say stamp on|off, mark NAME, rate N, report or stop")
    return True


def _steer(workload: Workload) -> None:
    """Listen and tick until it is time to stop."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)

    def end(_number: int, _frame: object) -> None:
        workload.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(woken, selectors.EVENT_READ)
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        next_tick = time.monotonic() + 1
        before = 0
        while not workload.stopping.is_set():
            ready = {key.fd for key, _ in selector.select(max(0.0, next_tick - time.monotonic()))}
            if woken in ready:
                os.read(woken, 64)
            if sys.stdin.fileno() in ready:
                read = os.read(sys.stdin.fileno(), 65_536)
                *lines, pending = (pending + read).split(b"\n")
                for line in lines:
                    if not _obey(workload, line.decode(errors="replace")):
                        return
                if not read:
                    return
            if time.monotonic() >= next_tick:
                next_tick += 1
                windows = workload.report()
                total = sum(window["committed"] for window in windows)
                _say(event="tick", **{**windows[-1], "tps": total - before})
                before = total


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m afterwrite.demo.workload", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--dsn", required=True, help=f"the database; the user is always {ROLE}")
    parser.add_argument("--ledger", required=True, type=Path, help="file to append what was committed to")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=100.0, help="transactions a second in all; 0 for no pauses")
    parser.add_argument("--stamp", action="store_true", help="stamp the context into the WAL from the start")
    parser.add_argument("--transcript", type=Path, help="file to append to what was done, for a twin to do again")
    given = parser.parse_args()
    with Ledger(given.ledger) as ledger, ExitStack() as stack:
        transcript = None
        if given.transcript:
            transcript = stack.enter_context(Transcript(given.transcript, read_given(given.dsn)))
        workload = Workload(
            given.dsn, ledger, clients=given.clients, seed=given.seed, rate=given.rate, transcript=transcript
        )
        workload.stamped = given.stamp
        try:
            workload.start()
        except psycopg.Error as error:
            sys.stderr.write(f"the workload cannot start on {describe_dsn(given.dsn)}: {str(error).strip()}\n")
            return 1
        _say(event="ready", clients=given.clients, rate=given.rate, pid=os.getpid())
        try:
            _steer(workload)
        finally:
            workload.stop()
        _say(event="stopped", windows=workload.report())
    if workload.fatal is not None:
        sys.stderr.write(f"the workload failed: {workload.fatal!r}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
