"""Asking the lake from many machines: Spark, which reads the very files that the table's log names.

::

    the log, read by deltalake ─▶ files whose statistics allow it ─▶ Spark: a condition, its values as parameters
                                                                       master ─▶ workers ─▶ the first rows of all

Spark needs nothing that knows Delta: which files the table has, and which of them can hold something, is decided here.
Starting it takes seconds, so a process keeps what it started; it ends with the process, whose pipe it listens to. What
Spark logs goes into a temporary file and is read when it does not start.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from importlib import import_module
from itertools import count as numbers
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from afterwrite.errors import AfterwriteError, UsageError
from afterwrite.lake.compile import SPARK
from afterwrite.lake.read import Engine, Stopped
from afterwrite.lake.rows import activity_of
from afterwrite.lake.table import COLUMNS, File, Lake, missing
from afterwrite.store.reader import StoredActivity

Tell = Callable[[str], None]
# How long a question waits for a worker to take it, and a master may take to answer the door.
_PATIENCE_SECONDS, _KNOCK_SECONDS = 60.0, 5.0
_SETTINGS = {
    "spark.app.name": "afterwrite",
    # It would listen on every address, and say to anybody what is asked.
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",
    # A file that is gone or broken is an error and no shorter answer, whatever is usual on the cluster.
    "spark.sql.files.ignoreMissingFiles": "false",
    "spark.sql.files.ignoreCorruptFiles": "false",
    # The writer of these files knows one calendar.
    "spark.sql.parquet.datetimeRebaseModeInRead": "CORRECTED",
}
_MASTER = re.compile(r"(local)(?:\[(?:\*|\d+)\])?|(spark)://(.+)|yarn|k8s://.+")
# How the same place is called there.
_SCHEMES = {"s3": "s3a", "s3a": "s3a", "gs": "gs", "abfss": "abfss", "abfs": "abfs"}
_NUMBERS = numbers()


class SparkEngine(Engine):
    """Spark over a lake. ``told`` hears what there is to wait for."""

    dialect = SPARK

    def __init__(self, lake: Lake, *, master: str = "local[*]", told: Tell | None = None) -> None:
        super().__init__(lake)
        self._session = _session(master, told)
        # Its jobs, so that they can be ended and nobody else's.
        self._group = f"afterwrite-{next(_NUMBERS)}"
        self._types = ", ".join(f"`{field.name}` {_type(str(field.type))}" for field in lake.schema())

    def close(self) -> None:
        """Nothing: the process keeps its session."""

    def break_off(self) -> None:
        """End what runs at the moment, on all machines."""
        self._session.cancel(self._group)

    @property
    def version(self) -> str:
        """Which Spark it is."""
        return str(self._session.spark.version)

    def read(
        self,
        days: Sequence[date],
        files: Sequence[File],
        where: str,
        params: dict[str, object],
        count: int,
        *,
        newer: bool,
    ) -> list[StoredActivity]:
        """The first ``count`` rows ``a`` of these files, all that these days have, for which the condition holds."""
        order = "asc" if newer else "desc"
        with self.source(files) as name:
            rows = self.rows(
                f"select {_SELECTED} from {name} a where {where}"  # noqa: S608 - parameters only
                f" order by a.occurred_at {order}, a.id {order} limit $most",
                params | {"most": count},
            )
        return [activity_of(row) for row in rows]

    @contextmanager
    def source(self, files: Sequence[File]) -> Generator[str]:
        """What to select from: these files."""
        spark = self._session.spark
        paths = [_place(self.lake, file) for file in files]
        name = f"afterwrite_{next(_NUMBERS)}"
        # Of many files the workers are asked even where they lie.
        with self._translated(), self._session.watched(self._group):
            spark.read.schema(self._types).parquet(*paths).createOrReplaceTempView(name)
        try:
            yield name
        finally:
            with suppress(*self._session.errors):
                spark.catalog.dropTempView(name)

    def rows(self, query: str, params: dict[str, object]) -> list[dict[str, Any]]:
        """What a query gives, by column; its parameters are written as DuckDB's are."""
        spelled = re.sub(r"\$(\w+)", r":\1", query)
        with self._translated(), self._session.watched(self._group):
            return [row.asDict() for row in self._session.spark.sql(spelled, params).collect()]

    @contextmanager
    def _translated(self) -> Generator[None]:
        if self.interrupted:
            raise Stopped
        try:
            yield
        except self._session.errors as error:
            if self.interrupted:
                raise Stopped from error
            said = _first_lines(error)
            if "FileSystem" in said:
                remedy = "give Spark the library for that object store (spark.jars.packages), as docs/lake.md says"
            elif self.lake.local and not self._session.local:
                remedy = "see that every worker has that folder at the same place, and that no file of it was deleted"
            else:
                remedy = "run it again; where a file is gone, see what was vacuumed or deleted there"
            raise AfterwriteError(f"Spark could not read the lake at {self.lake.url}: {said}", remedy=remedy) from error


_SELECTED = ", ".join(
    "unix_micros(a.occurred_at) as occurred_at" if name == "occurred_at" else f"a.`{name}`" for name in COLUMNS
)
_TYPES = {
    "string": "string",
    "int64": "bigint",
    "int32": "int",
    "double": "double",
    "date32[day]": "date",
    "timestamp[us, tz=UTC]": "timestamp",
}


def _type(arrow: str) -> str:
    return "array<string>" if arrow.startswith("list<") else _TYPES[arrow]


def _place(lake: Lake, file: File) -> str:
    """A file of the lake as Hadoop calls it, without anything that it would take for a pattern."""
    if lake.local:
        path = f"file://{lake.place(file)}"
    else:
        scheme, _, rest = lake.url.partition("://")
        if scheme not in _SCHEMES:
            raise UsageError(
                f"Spark does not know {scheme}://, where the lake is",
                remedy="write lake_url as s3://BUCKET/…, gs://BUCKET/… or"
                " abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/…",
            )
        path = f"{_SCHEMES[scheme]}://{rest.rstrip('/')}/{unquote(file.path)}"
    return re.sub(r"([\[\]{}*?\\])", r"\\\1", path)


_LOCK = threading.Lock()
_kept: dict[str, _Session] = {}


def _session(master: str, told: Tell | None) -> _Session:
    """The session that this process has with a master, started where there is none."""
    with _LOCK:
        kept = _kept.get(master)
        if kept is None or kept.stopped:
            # A process has one at a time.
            while _kept:
                _kept.popitem()[1].stop()
            kept = _kept[master] = _Session(master, told)
        return kept


class _Session:
    """Spark, started. Raises UsageError where it is not installed or the master's name is none."""

    def __init__(self, master: str, told: Tell | None) -> None:
        try:
            # By name: pyspark is an extra that checkers of our types need not have.
            pyspark, sql, errors, py4j = map(
                import_module, ("pyspark", "pyspark.sql", "pyspark.errors", "py4j.protocol")
            )
        except ImportError as error:
            missing(error, extra="spark")
        # The last two are what a process of Spark's leaves behind that died.
        self.errors: tuple[type[Exception], ...] = (errors.PySparkException, py4j.Py4JError, OSError, EOFError)
        kind = _MASTER.fullmatch(master)
        if kind is None:
            raise UsageError(
                f"{master} is no master that Spark could be started with",
                remedy="set lake_spark_master to local[*], spark://HOST:PORT, yarn or k8s://…",
            )
        _need_java()
        self.local = kind[1] is not None
        if kind[3]:
            _knock(kind[3])
        if told:
            told(f"Starting Spark ({master}), which takes some seconds.")
        # Of one machine nobody else has to reach it.
        alone = {f"spark.driver.{name}": "127.0.0.1" for name in ("host", "bindAddress")} if self.local else {}
        asked = {"spark.master": master, **_SETTINGS, **alone}
        with tempfile.TemporaryFile() as log:
            try:
                self._context: Any = _start(pyspark, asked, log)
                self.spark: Any = sql.SparkSession.builder.getOrCreate()
            except (*self.errors, ValueError) as error:
                _refuse(master, error, os.pread(log.fileno(), 1 << 16, 0).decode(errors="replace"))

    @property
    def stopped(self) -> bool:
        """Whether it went down, as it does when its master is gone for long."""
        try:
            return bool(self._context._jsc.sc().isStopped())
        except (AttributeError, *self.errors):
            return True

    def stop(self) -> None:
        """End it, so that another can be started."""
        with suppress(*self.errors):
            self._context.stop()

    def cancel(self, group: str) -> None:
        """End the jobs of a group."""
        with suppress(*self.errors):
            self._context.cancelJobGroup(group)

    @contextmanager
    def watched(self, group: str) -> Generator[None]:
        """Give a question up that no worker takes: Spark would wait for one without end."""
        with suppress(*self.errors):
            self._context.setJobGroup(group, "afterwrite", interruptOnCancel=True)
        if self.local:
            yield
            return
        over, given_up = threading.Event(), threading.Event()
        watch = threading.Thread(target=self._watch, args=(group, over, given_up), daemon=True)
        watch.start()
        try:
            yield
        except self.errors as error:
            if not given_up.is_set():
                raise
            raise AfterwriteError(
                f"no worker of Spark took the question within {_PATIENCE_SECONDS:.0f} seconds",
                remedy="see that the cluster has workers with memory and processors to spare; spark.executor.memory and"
                " spark.cores.max in spark-defaults.conf ask for less",
            ) from error
        finally:
            over.set()
            watch.join()

    def _watch(self, group: str, over: threading.Event, given_up: threading.Event) -> None:
        began = time.monotonic()
        # Who asked hears of trouble by himself.
        with suppress(*self.errors):
            while not over.wait(1.0):
                if self._at_work(group):
                    return
                if time.monotonic() - began > _PATIENCE_SECONDS:
                    given_up.set()
                    self.cancel(group)
                    return

    def _at_work(self, group: str) -> bool:
        tracker = self._context.statusTracker()
        jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(group)]
        stages = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
        return any(stage.numActiveTasks or stage.numCompletedTasks for stage in stages if stage)


def _start(pyspark: Any, asked: dict[str, str], log: Any) -> Any:
    """Spark's own process, silent, and the context in it."""
    conf: Any = pyspark.SparkConf().setAll(list(asked.items()))
    # A process has one of them for its life; a second context finds it.
    there = pyspark.SparkContext._gateway is not None
    launch = import_module("pyspark.java_gateway").launch_gateway
    gateway: Any = None if there else launch(conf, {"stdout": log, "stderr": log})
    return pyspark.SparkContext(conf=conf, gateway=gateway)


def _refuse(master: str, error: Exception, logged: str) -> NoReturn:
    """Say why it did not start: what came to us, or what Java wrote where it went before it could tell us."""
    said = _first_lines(error)
    lines = [line.strip() for line in logged.splitlines() if line.strip() and not line.startswith(("WARNING", "\tat "))]
    if "JAVA_GATEWAY_EXITED" in said and lines:
        said = " ".join(lines)[:500]
    raise AfterwriteError(
        f"Spark does not start with the master {master}: {said}",
        remedy="see that java -version says 17 or later, and that this machine and the master reach each other;"
        " with local[*] Spark runs on this machine alone",
    ) from error


def _need_java() -> None:
    home = os.environ.get("JAVA_HOME")
    if shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java"):
        return
    raise UsageError(
        f"Spark needs Java, and none is in {home}/bin (JAVA_HOME)" if home else "Spark needs Java, and there is none",
        remedy="install a Java runtime of version 17 or later, and name it by JAVA_HOME where it is not on the PATH",
    )


def _knock(masters: str) -> None:
    """Whether one of these answers; Spark itself would try for a minute and say little."""
    troubles: list[str] = []
    for place in masters.split(","):
        try:
            named = urlsplit(f"//{place}")
            with socket.create_connection((named.hostname or "", named.port or 7077), timeout=_KNOCK_SECONDS):
                return
        except (OSError, ValueError) as error:
            troubles.append(f"{place}: {error}")
    raise AfterwriteError(
        f"no master of Spark answers ({'; '.join(troubles)})",
        remedy="start it, or mend lake_spark_master; with local[*] Spark runs on this machine",
    )


def _first_lines(error: Exception) -> str:
    """What Java says, without its way there."""
    said = re.sub(r"^An error occurred while calling \S+\s+: ", "", str(error))
    return " ".join(said.split("\n\tat ", maxsplit=1)[0].split())[:500]
