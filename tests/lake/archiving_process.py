"""A process that forks others, each of which archives once and is killed on its way: the libraries are imported once.

It reads lines of ``failpoint dsn folder`` and says of each how that child ended.
"""

from __future__ import annotations

import asyncio
import os
import sys

import deltalake  # noqa: F401 - before the fork
import pyarrow.csv
import pyarrow.dataset  # noqa: F401 - before the fork

from afterwrite import failpoints
from afterwrite.lake.archive import SESSION, Archived, ArchivePolicy, archive
from afterwrite.lake.table import Lake
from afterwrite.postgres import connect


async def archive_once(dsn: str, folder: str) -> Archived:
    """One run; waits for what is left of one that was killed."""
    async with connect(dsn, options=SESSION) as db:
        return await archive(db, Lake(folder), ArchivePolicy(), wait_seconds=20)


def main() -> None:
    for line in sys.stdin:
        point, dsn, folder = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            failpoints.arm(f"{point}=kill@2")
            asyncio.run(archive_once(dsn, folder))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
