"""Capture, proof and deferral in processes that are made to be killed: ``fault_node.py <scene>``.

A process that has imported everything reads names on stdin and forks a node for each, in milliseconds. A node connects
to the socket of the run, says who it is and how it stands in lines of JSON, and obeys: ``{"arm": "…"}``. It ends at
SIGTERM, and when the run is gone.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from afterwrite import failpoints
from afterwrite.capture.backlog import Pace
from afterwrite.capture.worker import Duty, Source, Worker, WorkerStatus
from afterwrite.defer.replay import run_replayer
from afterwrite.errors import AfterwriteError
from afterwrite.prove.prover import Prover
from afterwrite.scan.classify import Judgement
from afterwrite.scan.facts import Body
from afterwrite.store.writer import open_sink

PACE = Pace(
    linger_ms=5,
    pulse_seconds=0.1,
    heartbeat_seconds=0.2,
    settle_seconds=0.1,
    first_pause_ms=10,
    longest_pause_ms=200,
    transaction_bytes=64 << 10,  # so that the application's big transactions are put aside
)


class NodeScene(msgspec.Struct, frozen=True):
    """What every node of a run works on; the DSNs lead through the proxies."""

    source: str
    store: str
    slot: str
    socket: Path
    log: Path
    judgements: Sequence[Judgement]
    bodies: Mapping[int, Body]


def main(path: str) -> None:
    scene: NodeScene = pickle.loads(Path(path).read_bytes())
    os.environ.setdefault(failpoints.VARIABLE, "")
    os.environ[failpoints.LOG] = str(scene.log)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the children
    while name := sys.stdin.readline().strip():
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code = 1
            try:
                asyncio.run(_node(scene, name))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)


async def _node(scene: NodeScene, name: str) -> None:
    orders, told = await asyncio.open_unix_connection(scene.socket)

    def say(**words: object) -> None:
        told.write(msgspec.json.encode(words) + b"\n")

    def tell(status: WorkerStatus) -> None:
        say(state=status.state.value, sessions=status.sessions, rows=status.rows, trouble=status.trouble)

    say(node=name, pid=os.getpid())
    stop = asyncio.Event()
    worker = Worker(
        Source(dsn=scene.source, name="main", slot=scene.slot),
        lambda: open_sink(scene.store, sole=True),
        open_duty=lambda: _duty(scene),
        stand_by=True,
        pace=PACE,
        on_status=tell,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _tell_tasks, name)
    helpers = [
        asyncio.create_task(_obey(orders, worker)),
        asyncio.create_task(run_replayer(scene.source, scene.store, "main", stop=stop)),
    ]
    failed: str | None = None
    running = asyncio.create_task(worker.run())
    done, _ = await asyncio.wait({running, *helpers}, return_when=asyncio.FIRST_COMPLETED)
    try:
        for task in done:
            task.result()
    except AfterwriteError:
        failed = traceback.format_exc()
    except BaseException:
        failed = traceback.format_exc()
        raise
    finally:
        worker.stop()
        stop.set()
        await asyncio.wait({running, helpers[1]}, timeout=10)
        for task in (running, *helpers):
            task.cancel()
        say(ended=name, failed=failed)
        await told.drain()
        told.close()
        await told.wait_closed()


@asynccontextmanager
async def _duty(scene: NodeScene) -> AsyncIterator[Duty]:
    async with Prover(scene.source, scene.judgements, scene.bodies) as prover:
        yield Duty(observers=(prover,))


def _tell_tasks(name: str) -> None:
    """Where every task of this node stands, on stderr: for a run that stands still."""
    lines = [f"{name}:"]
    for task in asyncio.all_tasks():
        lines.append(f"  {task.get_name()}{' (cancelled)' if task.cancelling() else ''}")
        waiting: Any = task.get_coro()
        while waiting is not None:
            frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "ag_frame", None)
            if frame is not None:
                lines.append(f"    {Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_qualname}")
            waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "ag_await", None)
    os.write(sys.stderr.fileno(), "\n".join([*lines, ""]).encode())


async def _obey(orders: asyncio.StreamReader, worker: Worker) -> None:
    while line := await orders.readline():
        failpoints.arm(msgspec.json.decode(line)["arm"])
    worker.stop()  # the run is gone
    await asyncio.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1])
