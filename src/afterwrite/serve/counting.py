"""Counting for reports where nobody else does: a store without a worker, of an application's events alone."""

from __future__ import annotations

import asyncio
import logging
import random
from datetime import UTC, datetime

from afterwrite import runtime
from afterwrite.errors import AfterwriteError
from afterwrite.serve.tenancy import Readers
from afterwrite.settings import Settings
from afterwrite.store import rollup

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
# A running worker has counted what is older than this.
LEFT_SECONDS = 12.0


async def keep_counting(settings: Settings, readers: Readers) -> None:
    """Count what was left lying, until cancelled. What goes wrong is told once, and must not stop the server.

    Whether somebody else counts is seen by what waits, so that workers and other servers need not be known.
    """
    told: str | None = None
    while True:
        await asyncio.sleep(LOOK_SECONDS * random.uniform(0.9, 1.1))
        trouble: str | None = None
        try:
            async with readers.read(None) as db:
                standing = await rollup.read_standing(db)
            if standing.lag_seconds(datetime.now(UTC)) >= LEFT_SECONDS:
                trouble = await runtime.count_for_reports(settings)
        except (AfterwriteError, TimeoutError) as error:
            trouble = str(error) or repr(error)
        except Exception:
            log.exception("a defect of the counting for reports; serving goes on")
        if trouble and trouble != told:
            log.warning("reports fall behind, or are slower: %s", trouble)
        told = trouble
