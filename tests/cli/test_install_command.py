"""``afterwrite install`` where there is no trigger: the store alone, and tables by name."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import psycopg
import pytest
from typed import typed


def install(dsn: str, *words: str) -> subprocess.CompletedProcess[str]:
    return typed("install", "--dsn", dsn, *words)


@pytest.fixture
def shop(dsn: str) -> str:
    with psycopg.connect(dsn) as connection:
        connection.execute("create table orders (id int primary key, state text)")
        connection.execute("create table days (id int, day date, primary key (id, day)) partition by range (day)")
        connection.execute("create table day_1 partition of days for values from ('2026-01-01') to ('2026-02-01')")
    return dsn


def test_without_triggers_the_ways_to_go_on_are_said(shop: str) -> None:
    refused = install(shop)
    assert refused.returncode == 5
    assert "install --table TABLE" in " ".join(refused.stdout.split()) + " ".join(refused.stderr.split())
    assert "--store-only" in refused.stdout + refused.stderr


def test_the_store_alone_is_laid_once(shop: str) -> None:
    looked = install(shop, "--store-only")
    assert (looked.returncode, "Nothing was done" in looked.stdout) == (0, True)
    done = json.loads(install(shop, "--store-only", "--apply", "--json").stdout)
    assert done["applied"]
    assert len(done["schema"]) == len([line for line in looked.stdout.splitlines() if "lay schema" in line]) > 3
    assert "All is in place" in install(shop, "--store-only", "--apply").stdout
    with psycopg.connect(shop) as connection:
        assert connection.execute("select count(*) from pg_publication").fetchone() == (0,)
    examined = typed("doctor", "--dsn", shop, "--json")
    assert (examined.returncode, "store-only" in examined.stdout) == (0, True)
    assert install(shop, "--store-only", "--table", "orders").returncode == 2


def test_tables_are_captured_by_name_and_stay_so(shop: str) -> None:
    unknown = install(shop, "--table", "nowhere")
    assert (unknown.returncode, "there is no table nowhere" in unknown.stderr) == (2, True)
    slot = f"named_{time.time_ns() % 10**9}"
    words = ["--table", "orders", "--table", "public.day_1", "--apply"]
    done = subprocess.run(
        [sys.executable, "-m", "afterwrite", "install", "--dsn", shop, *words],
        env={"AFTERWRITE_SLOT": slot},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with psycopg.connect(shop, autocommit=True) as connection:
        published = "select tablename::text from pg_publication_tables where pubname = 'afterwrite' order by 1"
        assert connection.execute(published).fetchall() == [("days",), ("orders",)]
        worker = subprocess.Popen(
            [sys.executable, "-m", "afterwrite", "capture", "--dsn", shop],
            env={"AFTERWRITE_SLOT": slot},
            stdout=subprocess.DEVNULL,
        )
        try:
            connection.execute("insert into orders values (1, 'new')")
            connection.execute("update orders set state = 'paid'")
            stored = (
                "select before ->> 'state', after ->> 'state' from afterwrite.activity order by ordinal, occurred_at"
            )
            until = time.monotonic() + 30
            while (rows := connection.execute(stored).fetchall()) != [(None, "new"), ("new", "paid")]:
                assert time.monotonic() < until, rows
                time.sleep(0.1)
        finally:
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(15) == 0
