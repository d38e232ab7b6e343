"""A recorder for the programs of the tests: it appends what it stores to the file ``stored``, a line each."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from afterwrite.errors import ConnectionLost
from afterwrite.record import Batch, Receipt
from afterwrite.recorder import Options, Recorder

logging.getLogger("afterwrite").setLevel(logging.ERROR)


def file_recorder(folder: str) -> Recorder:
    """Into ``stored``, unless there is a file ``down``; its spool lies beside them."""

    class Sink:
        async def write(self, batch: Batch) -> Receipt:
            if Path(folder, "down").exists():  # noqa: ASYNC240 - a loop of its own
                raise ConnectionLost("down")
            words = "".join(json.dumps([a.id, a.action, os.getpid()]) + "\n" for a in batch.activities)
            file = os.open(f"{folder}/stored", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(file, words.encode())
            os.close(file)
            return Receipt(batch_id=1, position=1, stored=len(batch.activities))

    @asynccontextmanager
    async def open_sink() -> AsyncIterator[Sink]:
        yield Sink()

    return Recorder(
        source="shop", open_sink=open_sink, options=Options(spool_dir=f"{folder}/spool", linger_seconds=0.0)
    )
