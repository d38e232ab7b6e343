"""A standalone cluster of Spark on this machine's loopback: a master and two workers, as pyspark brings them.

Each is a process of its own on a port of its own, with one processor and a folder of its own, and is ended by its
process id when the ``with`` is over.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from afterwrite.bench.ports import claim_port

WORKERS = 2
_HOST = "127.0.0.1"
_STARTS_WITHIN, _ENDS_WITHIN = 60.0, 15.0


@contextmanager
def spark_cluster(folder: Path, *, workers: int = WORKERS, memory: str = "2g") -> Iterator[str]:
    """The master's URL, once all workers are with it."""
    import pyspark

    home = Path(pyspark.__file__).parent
    # Everything of it listens on loopback alone, what we start in this process for its sake included.
    os.environ["SPARK_LOCAL_IP"] = _HOST
    env = os.environ | {"SPARK_HOME": str(home)}
    with ExitStack() as stack:
        claims = [stack.enter_context(claim_port()) for _ in range(2)]
        port, page = (claim.getsockname()[1] for claim in claims)
        master = f"spark://{_HOST}:{port}"

        def start(name: str, *words: str) -> subprocess.Popen[bytes]:
            own = folder / name
            own.mkdir(parents=True)
            log = stack.enter_context((own / "log").open("wb"))
            process = subprocess.Popen(
                [home / "bin" / "spark-class", f"org.apache.spark.deploy.{words[0]}", *words[1:]],
                env=env, cwd=own, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
            stack.callback(_end, process)
            return process

        started = [start("master", "master.Master", "--host", _HOST, "--port", str(port), "--webui-port", str(page))]
        _wait(started, folder, lambda: _alive(page) is not None)
        for number in range(workers):
            name = f"worker-{number}"
            words = ["worker.Worker", "--host", _HOST, "--webui-port", "0", "--cores", "1", "--memory", memory]
            started.append(start(name, *words, "--work-dir", str(folder / name), master))
        _wait(started, folder, lambda: _alive(page) == workers)
        yield master


def _alive(page: int) -> int | None:
    """How many workers the master knows; None: it does not answer yet."""
    try:
        with urllib.request.urlopen(f"http://{_HOST}:{page}/json/", timeout=5) as answer:
            return int(json.load(answer)["aliveworkers"])
    except OSError:
        return None


def _wait(started: list[subprocess.Popen[bytes]], folder: Path, ready: Callable[[], bool]) -> None:
    until = time.monotonic() + _STARTS_WITHIN
    while not ready():
        if time.monotonic() > until or any(process.poll() is not None for process in started):
            said = "\n".join(log.read_text(errors="replace")[-2_000:] for log in sorted(folder.glob("*/log")))
            raise SystemExit(f"the cluster does not start:\n{said}")
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
