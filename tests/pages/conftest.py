"""One filled store, one server and one browser for all tests of the pages."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import browsing
import msgspec
import psycopg
import pytest
import telling
from migrating_little import migrate_a_little
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from afterwrite.postgres import connect
from afterwrite.record import Activity, Batch
from afterwrite.settings import Settings
from afterwrite.store.rollup import roll_up
from afterwrite.store.writer import open_sink

T = TypeVar("T")


class Site(msgspec.Struct, frozen=True):
    """Where the pages are served, and from which store."""

    url: str
    dsn: str
    settings: Settings

    def store(self, *activities: Activity) -> None:
        """Store these as an application's recorder does."""

        async def write() -> None:
            async with open_sink(self.dsn) as sink:
                await sink.write(Batch(source="app", activities=list(activities), transactions=0))

        apart(write)


def apart(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a thread: in this one the browser's driver has its loop."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(work())))
    thread.start()
    thread.join()
    return found[0]


@pytest.fixture(scope="module")
def site(server: Any) -> Iterator[Site]:
    """The pages over a store with two weeks of an application, with what is hostile in it, and a little migration."""
    name = f"afterwrite_pages_{secrets.token_hex(4)}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"create database {name}")
    dsn = server.dsn(name)
    now = datetime.now(UTC)
    told = [*telling.tell(10_500, until=now), *telling.hostile(now - timedelta(seconds=40))]

    async def prepare() -> Settings:
        await telling.fill(dsn, told, at_once=4_000)
        settings = await migrate_a_little(dsn)
        async with connect(dsn) as db:
            while (await roll_up(db)).rows:
                pass
        return settings

    settings = apart(prepare)
    try:
        with browsing.serving(settings) as url:
            yield Site(url, dsn, settings)
    finally:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and pid <> pg_backend_pid()",
                [name],
            )
            for (slot,) in admin.execute(
                "select slot_name from pg_replication_slots where database = %s", [name]
            ).fetchall():
                admin.execute("select pg_drop_replication_slot(%s)", [slot])
            admin.execute(f"drop database {name} with (force)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    path = browsing.find_chromium()
    if path is None:
        pytest.skip(browsing.HOW)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--enable-precise-memory-info"])
        yield found
        found.close()


@pytest.fixture
def context(browser: Browser, site: Site) -> Iterator[BrowserContext]:
    """A visitor in Berlin with a wide window."""
    made = browser.new_context(
        base_url=site.url, locale="en-GB", timezone_id="Europe/Berlin", viewport={"width": 1280, "height": 900}
    )
    made.set_default_timeout(20_000)
    expect.set_options(timeout=20_000)  # machines of three testers are busy
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page on which nothing may go wrong: no error of a script, nothing that the policy forbids, no dialog."""
    made = context.new_page()
    trouble: list[str] = []
    made.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    made.on(
        "console",
        lambda said: (
            trouble.append(f"{said.type}: {said.text}")
            if said.type in ("error", "warning") and "the server responded with a status of 4" not in said.text
            else None
        ),
    )
    made.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    yield made
    made.close()
    assert trouble == []
