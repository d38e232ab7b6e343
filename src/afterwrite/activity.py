"""What an application imports: ``from afterwrite import activity``.

::

    activity.record("report.exported", entity=("report", 7))

    with activity.track("invoice.send", entity=("invoice", 12), conn=conn) as run: ...
    async with activity.batch("user.import", total=len(users)) as batch: ...
    activity.auth("login", user_id, success=True, ip=ip)

The recorder behind it is made at the first call, from the environment (``AFTERWRITE_*``, ``DATABASE_URL``) and the
table ``[recorder]`` of afterwrite.toml, unless ``configure`` was called before. Nothing is running until then.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

from afterwrite.configfile import PREFIX, is_broker, read_file, read_secret
from afterwrite.errors import AfterwriteError
from afterwrite.record import Category, Level, Outcome, Sink
from afterwrite.recorder import Durability, Options, Recorded, Recorder, adapters, read_options
from afterwrite.recorder.batch import Batch, Progress
from afterwrite.recorder.face import Face, Health
from afterwrite.recorder.options import hold, service_name
from afterwrite.recorder.recorder import OpenSink
from afterwrite.recorder.registry import Action
from afterwrite.recorder.track import Track, Tracked, argument, result

__all__ = [
    "Action", "AuditService", "Batch", "Category", "Durability", "Health", "Level", "Outcome", "Progress", "Recorded",
    "Track", "Tracked", "aflush", "argument", "auth", "batch", "close", "configure", "flush", "install",
    "instead_of_default", "log_auth_event", "record", "recorder", "register", "result", "stats", "track", "tracked",
    "use", "with_activity_logging", "with_batch_logging",
]  # fmt: skip

log = logging.getLogger(__name__)

_here: ContextVar[Recorder | None] = ContextVar("afterwrite.recorder", default=None)
_lock = threading.RLock()
_default: Recorder | None = None
# What tests have put before it, the last one first.
_before_default: list[Recorder] = []


def recorder() -> Recorder:
    """The recorder of this task: the one in ``use``, else this process's."""
    return _here.get() or (_before_default[-1] if _before_default else None) or _default or _make_default()


@contextmanager
def use(recorder: Recorder) -> Generator[Recorder]:
    """Have this task, and those that begin inside, record with another recorder."""
    token = _here.set(recorder)
    try:
        yield recorder
    finally:
        _here.reset(token)


@contextmanager
def instead_of_default(recorder: Recorder) -> Generator[Recorder]:
    """Have all of this process record with this one, but for tasks that ``use`` another."""
    _before_default.append(recorder)
    try:
        yield recorder
    finally:
        _before_default.remove(recorder)


_face = Face(recorder)
record = _face.record
track = _face.track
tracked = _face.tracked
batch = _face.batch
auth = _face.auth
register = _face.register
stats = _face.stats
with_activity_logging = partial(adapters.with_activity_logging, _face)
with_batch_logging = partial(adapters.with_batch_logging, _face)
log_auth_event = partial(adapters.log_auth_event, _face)


class AuditService(adapters.AuditService):
    __doc__ = adapters.AuditService.__doc__

    def __init__(
        self,
        *,
        category: str | None = None,
        names: Mapping[str, str] | None = None,
        order: Sequence[str] = adapters.ORDER,
        in_transaction: bool = True,
    ) -> None:
        super().__init__(_face, category=category, names=names, order=order, in_transaction=in_transaction)


def configure(*, dsn: str | None = None, folder: Path | None = None, **given: Any) -> Recorder:
    """Make this process's recorder, at its start: what is said here holds over environment and file.

    ``dsn`` is the store's database; the other names are those of ``Options`` (``service="billing"``, ``strict=True``).
    One that was made before is closed. Raises UsageError, where it is made at the first call it is only logged.
    """
    options = read_options(folder=folder, **given)
    where = dsn or read_store_dsn(folder)
    hold(options)
    return install(_make(options, where))


def install(recorder: Recorder) -> Recorder:
    """Have this recorder be this process's, and close the one that was."""
    global _default
    with _lock:
        before, _default = _default, recorder
    if before is not None and before is not recorder:
        before.close()
    return recorder


def flush(timeout: float | None = 10.0) -> bool:
    """Wait until everything recorded so far is delivered, or dropped (and counted); False when that took longer."""
    return recorder().flush(timeout)


async def aflush(timeout: float | None = 10.0) -> bool:
    """``flush`` that lets an event loop go on."""
    return await recorder().aflush(timeout)


def close(timeout: float | None = None) -> bool:
    """Deliver what can be until then, and stop; the end of the process does it too. The next call begins anew."""
    global _default
    with _lock:
        before, _default = _default, None
    hold(None)
    return before is None or before.close(timeout)


def _make_default() -> Recorder:
    global _default  # noqa: PLW0603 - the process's own
    with _lock:
        if _default is None:
            try:
                made = _make(read_options(), read_store_dsn())
            except Exception as error:
                remedy = error.remedy if isinstance(error, AfterwriteError) else None
                log.error(
                    "%s%s; until then activities are recorded with default options",
                    error,
                    f" ({remedy})" if remedy else "",
                )
                made = _make(Options(), None)
            _default = made
        return _default


def _make(options: Options, dsn: str | None) -> Recorder:
    open_sink: OpenSink | None = None
    destination = ""
    if options.record_url is not None and is_broker(options.record_url):
        from afterwrite.broker.link import read_access
        from afterwrite.broker.publish import broker_sink

        access = read_access(
            options.record_url,
            stream=options.nats_stream,
            user=options.nats_user,
            password=options.nats_password,
            token=options.nats_token,
            credentials=options.nats_credentials,
            nkey=options.nats_nkey,
            ca=options.nats_ca,
            cert=options.nats_cert,
            key=options.nats_key,
        )
        # The stream alone: with one broker more it is still the same place.
        open_sink, destination = broker_sink(access), f"nats/{access.stream}"
    elif options.record_url is not None:
        from afterwrite.recorder.http import http_sink

        open_sink, destination = http_sink(options.record_url, options.record_key), options.record_url
    elif dsn is not None:
        open_sink, destination = partial(_open_store, dsn), without_password(dsn)
    else:
        log.warning(
            "activities wait in the spool: no store is named; set AFTERWRITE_STORE_DSN to the database where "
            "`afterwrite install` has laid the store, or AFTERWRITE_RECORD_URL to an afterwrite server"
        )
    return Recorder(source=service_name(options), open_sink=open_sink, options=options, destination=destination)


def _open_store(dsn: str) -> AbstractAsyncContextManager[Sink]:
    @asynccontextmanager
    async def opened() -> AsyncGenerator[Sink]:
        # Here, in the thread that delivers: an application that only records never loads it.
        from afterwrite.store.writer import open_sink

        async with open_sink(dsn, application_name="afterwrite recorder") as sink:
            yield sink

    return opened()


def without_password(dsn: str) -> str:
    """The same place: what a process has left in the spool is delivered by the next one with another password too."""
    dsn = re.sub(r"(://[^/\s:@]*):[^/\s]*@", r"\1@", dsn)
    return re.sub(r"""([?&]|\b)password\s*=\s*(?:'(?:[^'\\]|\\.)*'|[^&\s]*)\s*""", r"\1", dsn)


def read_store_dsn(folder: Path | None = None) -> str | None:
    """The store's database: its own variable, the source's, the application's own database, then the file."""
    for name in ("STORE_DSN", "DSN"):
        if dsn := os.environ.get(f"{PREFIX}{name}"):
            return dsn
        if path := os.environ.get(f"{PREFIX}{name}_FILE"):
            return read_secret(path, f"{PREFIX}{name}_FILE")
    if url := os.environ.get("DATABASE_URL"):
        # Applications write their driver's name into it (postgresql+psycopg://…), which libpq does not know.
        return re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", url)
    keys, _ = read_file(folder or Path.cwd())
    found = keys.get("store_dsn") or keys.get("dsn")
    return found if isinstance(found, str) else None


def _forget_parent() -> None:
    """In a forked child: a lock that another thread of the parent held would never be free."""
    global _lock  # noqa: PLW0603 - a lock that is held by nobody cannot be freed
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
