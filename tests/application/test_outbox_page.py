"""docs/integrations/outbox.md runs as it stands, from the installation to the removal."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path

import psycopg
import pytest
from docrunner import DOCS, run_page

from afterwrite.cli.app import command
from afterwrite.recorder.outbox import known
from afterwrite.runtime import run_outbox
from afterwrite.settings import load_settings

PAGE = DOCS / "integrations" / "outbox.md"


def test_the_outboxs_page_runs_as_it_stands(
    dsn: str, installed_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERWRITE_DSN", dsn)
    monkeypatch.setenv("AFTERWRITE_STORE_DSN", installed_dsn)
    known.forget()

    def run(line: str) -> None:
        *program, verb, deed = shlex.split(line, comments=True)[:5]
        assert program == ["python", "-m", "afterwrite"]
        words = shlex.split(line, comments=True)[3:]
        if (verb, deed) == ("capture", "--outbox-only"):
            return  # below, when all is posted
        if deed == "remove":
            asyncio.run(drain())
            words.append("--now")
        assert command()(words, standalone_mode=False) == 0

    async def drain() -> None:
        stop = asyncio.Event()
        working = asyncio.create_task(run_outbox(load_settings(), stop=stop))
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn, asyncio.timeout(20):
            while True:
                found = await conn.execute("select from afterwrite_outbox.event limit 1")
                if await found.fetchone() is None:
                    break
                await asyncio.sleep(0.02)
        stop.set()
        await working

    def query(text: str) -> None:
        with psycopg.connect(dsn) as conn:
            conn.execute(text.encode())

    def run_all(text: str) -> None:
        for line in text.splitlines():
            run(line)

    run_page(PAGE, {"spool_dir": str(tmp_path)}, others={"sh": run_all, "sql": query})
    with psycopg.connect(installed_dsn) as conn:
        rows = conn.execute(
            "select action, entity_id, actor_id, tenant_id, source, metadata::jsonb - 'xid' from afterwrite.activity"
            " order by occurred_at"
        ).fetchall()
    assert rows == [
        ("order.paid", "7", "user:42", "acme", "main", {"cents": 120}),
        ("invoice.sent", "12", "user:42", "acme", "main", {}),
    ]
    with psycopg.connect(dsn) as conn:
        assert conn.execute("select to_regnamespace('afterwrite_outbox')").fetchone() == (None,)
