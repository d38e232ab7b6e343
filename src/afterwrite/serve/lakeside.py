"""How a request gets at the lake: in a thread, few at a time, for no longer than a request may take.

::

    handler ──both(state, caller)──▶ Tiers ──the store: reading()                    a connection, given back first
                                       └───the lake: a turn ─▶ thread ─▶ DuckDB      interrupted when the time is up

A lake that does not answer is no trouble of the request's: the store's part is the answer, and why there is no more of
it. Who sees one tenant alone is shown nothing of the lake: row-level security ends where PostgreSQL does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from litestar.datastructures import State

from afterwrite.errors import AfterwriteError
from afterwrite.lake.duck import DuckEngine
from afterwrite.lake.read import Engine, TimeUpError
from afterwrite.lake.spark import SparkEngine
from afterwrite.lake.table import Lake
from afterwrite.lake.tiers import LakeAwayError, Tiers
from afterwrite.serve.callers import Caller
from afterwrite.serve.tenancy import reading
from afterwrite.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

# DuckDB's own threads, and what it may take before it sorts in a file, for each question.
_THREADS, _MEMORY = 2, "512MB"
# Who was interrupted gives back what he has, within this.
_GRACE_SECONDS = 1.0
# A lake that took long to fail is not asked again so soon: nobody shall wait for what will not come.
_SLOW_SECONDS, _AWAY_SECONDS = 1.0, 10.0
# An object store that does not answer is given up sooner than its clients do by themselves.
_PATIENCE = {"timeout": "10s", "connect_timeout": "3s", "max_retries": "2", "retry_timeout": "8s"}


class _Loan:
    """An engine on loan to one question; ``over``: nobody waits for the answer any more."""

    def __init__(self, engine: Engine | None) -> None:
        self.engine = engine
        self.over = False
        self.given_up = False

    def end(self) -> None:
        """Have the question end, wherever it is."""
        self.over = True
        if self.engine is not None:
            self.engine.interrupt()


_TOO_MANY = "too many ask the lake at the moment: ask again"


class Lakeside:
    """Asks the lake for requests; ``app.state.lakeside``, None where no lake is configured."""

    def __init__(self, settings: Settings) -> None:
        assert settings.lake_url is not None
        self._url, self._options = settings.lake_url, settings.lake_options
        self._master = settings.lake_spark_master if settings.lake_engine == "spark" else None
        self._seconds = settings.serve_statement_ms / 1000
        self._most = settings.serve_lake_queries
        self._turns = asyncio.Semaphore(self._most)
        self._threads = ThreadPoolExecutor(self._most, thread_name_prefix="afterwrite lake")
        self._idle: list[Engine] = []
        self._loans: set[_Loan] = set()
        self._away_until = 0.0
        self._closed = False

    async def ask(self, work: Callable[[Engine], T]) -> T:
        """What ``work`` makes of an engine. Raises LakeAwayError, or TimeUpError with what was found until then."""
        began = time.monotonic()
        if began < self._away_until or sum(loan.given_up for loan in self._loans) >= self._most:
            raise LakeAwayError("the lake did not answer a moment ago, and is asked again in a few seconds")
        try:
            async with asyncio.timeout(self._seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise LakeAwayError(_TOO_MANY) from None
        loan = _Loan(self._idle.pop() if self._idle else None)
        self._loans.add(loan)
        asked = asyncio.get_running_loop().run_in_executor(self._threads, self._work, loan, work)
        asked.add_done_callback(partial(self._give_back, loan))
        try:
            await asyncio.wait({asked}, timeout=max(0.0, began + self._seconds - time.monotonic()))
            if not asked.done():
                loan.end()
                await asyncio.wait({asked}, timeout=_GRACE_SECONDS)
        finally:
            if not asked.done():
                # Also where the request itself was broken off.
                loan.given_up = True
                loan.end()
        if not asked.done():
            self._away_until = time.monotonic() + _AWAY_SECONDS
            log.warning("the lake at %s did not answer within %g s", self._url, self._seconds)
            raise LakeAwayError(f"the lake did not answer within {self._seconds:g} seconds")
        try:
            return asked.result()
        except (LakeAwayError, TimeUpError):
            raise
        except Exception as error:
            now = time.monotonic()
            if now - began > _SLOW_SECONDS:
                self._away_until = now + _AWAY_SECONDS
            told = f"{error} ({error.remedy})" if isinstance(error, AfterwriteError) else repr(error)
            log.warning("the lake could not be asked: %s", told)
            raise LakeAwayError("the lake does not answer as it should; the server's log says why") from error

    def close(self) -> None:
        """Interrupt who asks, and let go of what is idle."""
        self._closed = True
        for loan in self._loans:
            loan.end()
        while self._idle:
            self._idle.pop().close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _work(self, loan: _Loan, work: Callable[[Engine], T]) -> T:
        """In a thread: an engine and its lake are one question's alone."""
        if loan.engine is None:
            loan.engine = self._open()
        if loan.over:
            raise LakeAwayError(_TOO_MANY)  # its turn came when its time was up
        return work(loan.engine)

    def _open(self) -> Engine:
        options = dict(self._options)
        if "://" in self._url and not self._url.startswith("file://"):
            options = {**_PATIENCE, **options}
        lake = Lake(self._url, options)
        if self._master is not None:
            return SparkEngine(lake, master=self._master)
        return DuckEngine(lake, memory=_MEMORY, threads=_THREADS)

    def _give_back(self, loan: _Loan, asked: asyncio.Future[T]) -> None:
        """When the thread is done, however late: the engine is kept where it can be asked again."""
        self._turns.release()
        self._loans.discard(loan)
        error = None if asked.cancelled() else asked.exception()
        if loan.engine is None:
            return
        if self._closed or (error is not None and not isinstance(error, TimeUpError)):
            loan.engine.close()
        else:
            loan.engine.resume()
            self._idle.append(loan.engine)


def both(state: State, caller: Caller) -> Tiers:
    """The store and the lake behind it, as this caller may see them.

    ``told = await both(request.app.state, caller).search(query)``. The lake's trouble is told in it, and never raised.
    """
    return Tiers(partial(reading, state, caller), state.lakeside, walled=caller.tenant is not None)
