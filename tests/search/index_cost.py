"""What a row costs the store by what its indexes hold: `./run python -m tests.search.index_cost`.

The same rows are copied into a table with the indexes of a hot partition, by turns with each kind of text index. What
is told is microseconds of CPU of the copying session, the best of several rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import timedelta
from pathlib import Path

from tests.search.plans import TODAY, fill

from afterwrite.postgres import Database, connect
from afterwrite.postgres.embedded import embedded_server
from afterwrite.store.partitions import INDEXES, Temperature, partition_name, wanted_indexes

_NAMES = "regexp_replace(summary, '^(update [a-z]+ \\d+: )status.*', '\\1status, amount, updated_at')"
_ROWS = {
    "names of columns": f"regexp_replace({_NAMES}, '^(insert [a-z]+ \\d+): .*', '\\1')",
    "values, too": "summary",
}
_TOGETHER = "with (fastupdate = on, gin_pending_list_limit = 1024)"
_TEXT = {
    "no text index": "",
    "to_tsvector over the summary": f"gin (to_tsvector('simple'::regconfig, coalesce(summary, ''))) {_TOGETHER}",
    "words of names and summary": "gin (array_to_tsvector("
    f"afterwrite.words(action, entity_type, entity_id, actor_id, summary))) {_TOGETHER}",
    "lexemes (as it is)": INDEXES["text"],
}


async def main(rows: int, rounds: int) -> None:
    """Measure, and print the table."""
    day = TODAY - timedelta(days=1)
    source = f"afterwrite.{partition_name(day)}"
    with embedded_server(settings={"fsync": "off", "max_wal_size": "4GB", "autovacuum": "off"}) as server:
        async with connect(server.dsn()) as db:
            await fill(db, rows, days=1, hot_days=1)
            columns = ", ".join(
                await db.values(
                    b"select attname::text from pg_attribute"
                    b" where attrelid = 'afterwrite.activity'::regclass and attnum > 0 and not attisdropped"
                    b" order by attnum"
                )
            )
            pid = int(await db.value(b"select pg_backend_pid()"))
            best: dict[tuple[str, str], float] = {}
            for _ in range(rounds):
                for said, summary in _ROWS.items():
                    asked = columns.replace("summary", f"{summary} as summary")
                    query = f"copy (select {asked} from {source} order by occurred_at, id) to stdout"
                    lines = [bytes(line) async for line in db.copy_out(query.encode())]
                    chunks = [b"".join(lines[at : at + 1_000]) for at in range(0, len(lines), 1_000)]
                    for text, index in _TEXT.items():
                        spent = await _copy(db, pid, columns, chunks, index) / len(lines)
                        best[said, text] = min(best.get((said, text), spent), spent)
            print(f"| summary with | {' | '.join(_TEXT)} |\n|---|{'---:|' * len(_TEXT)}")
            for said in _ROWS:
                print(f"| {said} | {' | '.join(f'{best[said, text]:.1f}' for text in _TEXT)} |")


async def _copy(db: Database, pid: int, columns: str, chunks: list[bytes], text: str) -> float:
    """Microseconds of CPU for all of it."""
    await db.run(b"drop table if exists afterwrite.measured")
    await db.run(b"create table afterwrite.measured (like afterwrite.activity including all)")
    for name in sorted(wanted_indexes(Temperature.HOT) - {"text"}):
        await db.run(f"create index on afterwrite.measured using {INDEXES[name]}".encode())
    if text:
        await db.run(f"create index on afterwrite.measured using {text}".encode())
    before = _computed(pid)
    for chunk in chunks:
        await db.copy_in(f"copy afterwrite.measured ({columns}) from stdin".encode(), [chunk])
    return (_computed(pid) - before) / 1e3


def _computed(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=50_000)
    options.add_argument("--rounds", type=int, default=4)
    given = options.parse_args()
    sys.exit(asyncio.run(main(given.rows, given.rounds)))
