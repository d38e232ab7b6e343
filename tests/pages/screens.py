"""``python -m tests.pages.screens``: the pictures of the pages in docs/screens/, anew.

A server of its own, two weeks of an application's activity, the demo's legacy application migrated in a minute or two,
and the system's Chromium. ``--quick`` leaves the demo out (and so the pictures of migration and health).
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent))

import browsing
import telling

from afterwrite import runtime
from afterwrite.demo.story import DATABASE, Chapter, Script, tell_story
from afterwrite.errors import GateNotMet
from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server, embedded_server
from afterwrite.record import Activity
from afterwrite.settings import Settings
from afterwrite.store.rollup import roll_up

_FOLDER = Path(__file__).parents[2] / "docs" / "screens"
_MOST_BYTES = 150_000
_ACTIVITY = "activity"
_SERVER = {"fsync": "off", "shared_preload_libraries": "pg_stat_statements", "track_functions": "pl"}
_SCRIPT = Script(clients=4, rate=60.0, warm_seconds=1.0, measure_seconds=8.0, shadow_seconds=10.0, soak_seconds=1.0)


def main() -> int:
    """Take the pictures; 1 where there is no browser."""
    path = browsing.find_chromium()
    if path is None:
        print(browsing.HOW, file=sys.stderr)
        return 1
    quick = "--quick" in sys.argv
    with embedded_server(settings=_SERVER) as server:
        settings = asyncio.run(_tell_activity(server))
        taken = _pictures(server.dsn(_ACTIVITY))
        with browsing.serving(settings) as url, _chromium(path) as browser:
            for name, width, dark, address in taken:
                _take(browser, url, name, width=width, dark=dark, address=address, dsn=server.dsn(_ACTIVITY))
        if quick:
            return 0
        settings = asyncio.run(_migrate(server))
        with working(settings), browsing.serving(settings) as url, _chromium(path) as browser:
            for name in ("migration", "health"):
                _take(browser, url, name, width=1280, dark=False, address=f"/{name}", dsn=server.dsn(DATABASE))
    return 0


@contextmanager
def working(settings: Settings) -> Iterator[None]:
    """The worker, in a thread of its own."""
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def work() -> None:
        event = asyncio.Event()
        stop.append((asyncio.get_running_loop(), event))
        await runtime.run_capture(settings, stop=event)

    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    time.sleep(6.0)  # it catches up with what was written meanwhile
    try:
        yield
    finally:
        for loop, event in stop:
            loop.call_soon_threadsafe(event.set)
        thread.join(20)


async def _tell_activity(server: Server) -> Settings:
    async with connect(server.dsn()) as admin:
        await admin.run(f"create database {_ACTIVITY}".encode())
    dsn = server.dsn(_ACTIVITY)
    told = list(telling.tell(24_000))
    hour = datetime.now(UTC) - timedelta(hours=1)
    recent = next(place for place, each in enumerate(told) if each[0].occurred_at >= hour)
    await telling.fill(dsn, told[:recent], at_once=400)
    await telling.fill(dsn, sorted(told[recent:], key=_place_in_the_wal), at_once=1)
    async with connect(dsn) as db:
        # Stored when it happened, as by a worker that was there.
        await db.run(b"update afterwrite.batch set written_at = last_at where last_at < written_at")
        while (await roll_up(db)).rows:
            pass
    return Settings(dsn=dsn)


def _place_in_the_wal(together: list[Activity]) -> int:
    return next((each.commit_lsn for each in together if each.commit_lsn is not None), 0)


async def _migrate(server: Server) -> Settings:
    with tempfile.TemporaryDirectory() as folder:
        try:
            await tell_story(server, Path(folder), _SCRIPT, _tell)
        except GateNotMet as error:
            # On a busy machine a gate may take a phase back: then that is what the picture shows.
            print(f"the migration ended early: {error}")
    return Settings(dsn=server.dsn(DATABASE), operator="demo")


@contextmanager
def _chromium(path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def _tell(chapter: Chapter) -> None:
    if chapter.done:
        print(f"{chapter.title}: {chapter.text}")


def _pictures(dsn: str) -> list[tuple[str, int, bool, str]]:
    with psycopg.connect(dsn) as db:

        def one(query: str) -> str:
            found = db.execute(query).fetchone()
            assert found is not None
            return str(found[0])

        event = one(
            "select id from afterwrite.activity where action = 'redemption.approved' order by occurred_at desc limit 1"
        )
        project = one(
            "select entity_id from afterwrite.activity where entity_type = 'projects' and source = 'billing'"
            " group by 1 order by count(*) desc, 1 limit 1"
        )
    return [
        ("live", 1280, False, "/"),
        ("live-narrow", 360, False, "/"),
        ("search", 1280, False, "/search?q=actor:anna.berg@meridian.io+outcome:failure"),
        ("search-wrong", 1280, False, "/search?q=actor:anna.berg@meridian.io+outcome:broken"),
        ("activity", 1280, False, f"/activity/{event}"),
        ("entity", 1280, True, f"/entity/projects/{project}"),
        ("entity-narrow", 360, True, f"/entity/projects/{project}"),
        ("overview", 1280, False, "/overview?span=week"),
    ]


def _take(browser: Browser, url: str, name: str, *, width: int, dark: bool, address: str, dsn: str) -> None:
    context = browser.new_context(
        base_url=url, locale="en-GB", timezone_id="Europe/Berlin", color_scheme="dark" if dark else "light",
        viewport={"width": width, "height": 800 if width > 600 else 740}, reduced_motion="reduce",
    )  # fmt: skip
    page = context.new_page()
    page.goto(address)
    page.wait_for_load_state("load")
    if name.startswith("live"):
        _let_something_happen(page, dsn)
    page.wait_for_timeout(600)
    picture = page.screenshot()
    while len(picture) > _MOST_BYTES:  # a shorter window shows the same, and less of it
        height = page.evaluate("innerHeight") - 40
        page.set_viewport_size({"width": width, "height": height})
        picture = page.screenshot()
    context.close()
    _FOLDER.mkdir(parents=True, exist_ok=True)
    (_FOLDER / f"{name}.png").write_bytes(picture)
    print(f"{name}.png {len(picture):,} bytes")


def _let_something_happen(page: Page, dsn: str) -> None:
    """A few things while the page is looked at."""
    page.wait_for_timeout(1_500)  # what is noted of our own looking comes first

    async def happen() -> None:
        teller = telling.Teller(11, datetime.now(UTC), lsn=time.time_ns() // 1_000)
        life = teller.life()
        for _ in range(6):
            teller.at = datetime.now(UTC)
            await telling.fill(dsn, [next(life)])

    thread = threading.Thread(target=lambda: asyncio.run(happen()))
    thread.start()
    thread.join()


if __name__ == "__main__":
    sys.exit(main())
