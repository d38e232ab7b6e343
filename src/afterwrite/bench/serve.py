"""What looking at activity costs those who look: ``afterwrite serve`` beside a legacy application.

::

    API     the same questions over HTTP, by turns, one after the other; what 95 of 100 answers take
    pages   the first rows in a browser, and its heap when ten thousand rows were looked at

Both applications are processes of their own over one database, which holds the same activity in the store and in an
audit table (corpus.py). The legacy one does as such applications do (legacy_app.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shutil
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlencode

import msgspec

from afterwrite.bench.claims import Claim, Promise, compare, in_turn, note, percentile, together
from afterwrite.bench.corpus import Corpus, pick_actor, pick_entity, pick_words
from afterwrite.bench.grounds import Grounds, LeftOutError, Library, told_round
from afterwrite.errors import AfterwriteError

if TYPE_CHECKING:
    from playwright.async_api import Browser, CDPSession, Page

_PAGE = 50
_WALK = 500
_START_SECONDS, _STOP_SECONDS = 60.0, 15.0
_LOOK_SECONDS = 180.0
_LEGACY, _OURS = "legacy application", "afterwrite"


class ApiOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How much is laid, and how often each question is asked in a round: ``requests`` times, or for ``seconds``.

    ``behind`` is how many pages lie before the deep one.
    """

    rows: int = 500_000
    days: int = 30
    rounds: int = 5
    requests: int = 20
    seconds: float = 1.5
    behind: int = 100


class PageOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How much is laid, and how many rows are looked at."""

    rows: int = 500_000
    days: int = 30
    rounds: int = 5
    looked_at: int = 10_000


@asynccontextmanager
async def _both(library: Library) -> AsyncGenerator[tuple[int, int]]:
    """The ports of the legacy application and of ours over the library, inside the block."""
    dsn, folder = library.server.dsn(), bench_folder(library.server.home)
    async with (
        serving(_LEGACY, ["afterwrite.bench.legacy_app", "--dsn", dsn], folder) as theirs,
        serving("server", ["afterwrite", "serve", "--port", "0", "--dsn", dsn], folder) as ours,
    ):
        yield theirs, ours


def find_chromium() -> str | None:
    """The system's Chromium or Chrome, where Playwright is there to drive it."""
    try:
        import playwright.async_api  # noqa: F401 # pyright: ignore[reportUnusedImport]
    except ImportError:
        return None
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


def bench_folder(home: Path) -> Path:
    """Where what belongs to a benchmark's server is kept: it goes with the server."""
    folder = home / "bench"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@asynccontextmanager
async def serving(name: str, words: list[str], folder: Path) -> AsyncGenerator[int]:
    """A module that serves and says where, in a process of its own, inside the block; gives its port.

    It reads neither the variables nor the afterwrite.toml of whoever runs us, and lets us ask as often as we like.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AFTERWRITE_")}
    environment["AFTERWRITE_SERVE_RATE"] = "0"
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        # In a session of its own: a Ctrl-C at the terminal reaches only us, and we end it.
        child = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", *words],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=environment,
            cwd=folder,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not (said := re.search(rb"http://127\.0\.0\.1:(\d+)/", log.read_bytes())):
            if child.returncode is not None or time.monotonic() > deadline:
                words_said = log.read_text(encoding="utf-8", errors="replace").strip()[-800:]
                raise AfterwriteError(f"the {name} did not start: {words_said}", remedy="this is a defect: report it")
            await asyncio.sleep(0.05)
        yield int(said[1])
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            await asyncio.wait_for(child.wait(), _STOP_SECONDS)
        except TimeoutError:
            child.kill()
            await child.wait()


# --- the API ----------------------------------------------------------------------------------------------------------


class _Connection:
    """A connection to a server that is kept from request to request, as browsers and dashboards keep theirs."""

    def __init__(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._port = port
        self._reader = reader
        self._writer = writer

    async def get(self, path: str) -> bytes:
        """The body of a good answer. Raises AfterwriteError for every other one."""
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n\r\n".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        body = await self._reader.readexactly(int(length[1]) if length else 0)
        if not head.startswith(b"HTTP/1.1 200"):
            raise AfterwriteError(f"{path} was answered with {head.split(maxsplit=2)[1].decode()}: {body[:300]!r}")
        return body


@asynccontextmanager
async def _connected(port: int) -> AsyncGenerator[_Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield _Connection(port, reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


_LOGS, _ACTIVITIES = "/api/audit-logs", "/v1/activities"
_Path = Callable[[random.Random], str]


class _Question(msgspec.Struct, frozen=True):
    """A question as the application's clients ask it, and as ours do; ``full``: the answer is a whole page."""

    name: str
    legacy: _Path
    ours: _Path
    full: bool = False


def _questions(corpus: Corpus, behind: int, cursor: str) -> Sequence[_Question]:
    def asking(path: str, words: Mapping[str, object]) -> _Path:
        asked = f"{path}?{urlencode(words)}"
        return lambda chance: asked

    def legacy_entity(chance: random.Random) -> str:
        kind, id = pick_entity(chance)
        return f"{_LOGS}?{urlencode({'table': kind, 'record': id})}"

    def entity(chance: random.Random) -> str:
        kind, id = pick_entity(chance)
        return f"/v1/entities/{quote(kind)}/{quote(id)}/timeline?limit={_PAGE}"

    def text(path: str, form: str) -> _Path:
        return lambda chance: path + quote(form.format(pick_words(chance)))

    def moment(at: datetime) -> str:
        return at.isoformat()

    since, until = moment(corpus.until - timedelta(days=7)), moment(corpus.until)
    return (
        _Question("the newest", asking(_LOGS, {"page": 1}), asking(_ACTIVITIES, {"limit": _PAGE}), full=True),
        _Question(
            f"page {behind + 1}",
            asking(_LOGS, {"page": behind + 1}),
            asking(_ACTIVITIES, {"limit": _PAGE, "cursor": cursor}),
            full=True,
        ),
        _Question("of one thing", legacy_entity, entity),
        _Question(
            "of one actor",
            lambda chance: f"{_LOGS}?{urlencode({'user': pick_actor(chance)})}",
            lambda chance: f"/v1/actors/{quote(pick_actor(chance))}/timeline?limit={_PAGE}",
        ),
        _Question("by text", text(f"{_LOGS}?search=", "{}"), text(f"{_ACTIVITIES}?limit={_PAGE}&q=", '"{}"')),
        _Question(
            "a week by the hour",
            asking(f"{_LOGS}/by-hour", {"since": since, "until": until}),
            asking("/v1/analytics/activity", {"after": since, "before": until, "limit": 1_000}),
        ),
    )


async def measure_api(grounds: Grounds, options: ApiOptions) -> list[Claim]:
    """What each question takes over HTTP, by turns."""
    # The deep page is a full one, also of few.
    behind = min(options.behind, options.rows // _PAGE - 1)
    library = await grounds.library(options.rows, options.days)
    async with _both(library) as (theirs, ours):
        questions = _questions(library.corpus, behind, await _walk(ours, behind * _PAGE))
        found: dict[str, dict[str, list[float]]] = {
            side: {question.name: [] for question in questions} for side in (_LEGACY, _OURS)
        }
        for number in range(-1, options.rounds):
            for question in questions:
                grounds.tell(f"API, {told_round(number, options.rounds)}: {question.name}")
                turns = ((_LEGACY, theirs, question.legacy), (_OURS, ours, question.ours))
                for side, port, path in in_turn(turns, number):
                    p95 = await _ask(port, path, question.full, options, grounds.seed * 1_000 + number)
                    if number >= 0:
                        found[side][question.name].append(p95)
    legacy, mine = found[_LEGACY], found[_OURS]
    return [
        *(compare(f"API p95, {name}", "ms", legacy[name], mine[name], target=0.2) for name in legacy),
        compare(
            "API p95, all of these together",
            "ms",
            together(legacy),
            together(mine),
            target=0.2,
            promise=Promise.API,
        ),
        note("activities in both", "rows", [float(options.rows)]),
    ]


async def _walk(port: int, rows: int) -> str:
    """The cursor behind so many rows, as a client has it that came there page by page."""
    cursor = ""
    async with _connected(port) as connection:
        while rows > 0:
            words = {"limit": min(rows, _WALK)} | ({"cursor": cursor} if cursor else {})
            answer = msgspec.json.decode(await connection.get(f"{_ACTIVITIES}?{urlencode(words)}"))
            cursor = str(answer["older"])
            rows -= _WALK
    return cursor


async def _ask(port: int, path: _Path, full: bool, options: ApiOptions, seed: int) -> float:
    """What 95 of 100 answers take, in ms; other words each time, and the same ones for both sides."""
    chance = random.Random(seed)
    taken: list[float] = []
    until = time.perf_counter() + options.seconds
    async with _connected(port) as connection:
        while not taken or (len(taken) < options.requests and time.perf_counter() < until):
            asked = path(chance)
            began = time.perf_counter()
            body = await connection.get(asked)
            taken.append((time.perf_counter() - began) * 1000)
            if full and len(msgspec.json.decode(body)["items"]) != _PAGE:
                raise AfterwriteError(f"{asked} did not give {_PAGE} rows", remedy="this is a defect: report it")
    return percentile(taken, 0.95)


# --- the pages --------------------------------------------------------------------------------------------------------

_NO_BROWSER = "there is no browser to be driven: apt-get install chromium (or its like), and pip install playwright"
# When the first rows were painted: a frame finds them there, and what comes after it finds them drawn.
_WATCH = """
(() => {
  const look = () => {
    if (!document.querySelector(%s)) requestAnimationFrame(look);
    else requestAnimationFrame(() => setTimeout(() => { globalThis.rowsAt = performance.now(); }));
  };
  look();
})();
"""
_LEGACY_ROW, _OUR_ROW = "#logs tr", "#found .row"
_STEP = """() => {
  scrollTo(0, document.documentElement.scrollHeight);
  return [...document.querySelectorAll("#found .row")].map((row) => row.dataset.id);
}"""


async def measure_pages(grounds: Grounds, options: PageOptions) -> list[Claim]:
    """What a browser takes to show activity, by turns. Raises LeftOutError where there is none to be driven."""
    chromium = find_chromium()
    if chromium is None:
        raise LeftOutError(_NO_BROWSER)
    from playwright.async_api import async_playwright

    looked_at = min(options.looked_at, options.rows)

    async def all_in_one(page: Page) -> None:
        drawn = await page.locator(_LEGACY_ROW).count()
        if drawn != looked_at:
            raise AfterwriteError(f"the legacy page drew {drawn} rows instead of {looked_at}")

    async def scroll(page: Page) -> None:
        await _scroll(page, looked_at)

    loads: dict[str, list[float]] = {_LEGACY: [], _OURS: []}
    heaps: dict[str, list[float]] = {_LEGACY: [], _OURS: []}
    library = await grounds.library(options.rows, options.days)
    async with _both(library) as (theirs, ours), async_playwright() as playwright:
        turns = (
            (_LEGACY, f"http://127.0.0.1:{theirs}/audit-logs?rows={looked_at}", _LEGACY_ROW, all_in_one),
            (_OURS, f"http://127.0.0.1:{ours}/search", _OUR_ROW, scroll),
        )
        # As root Chromium does not start in its sandbox; the pages are our own.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=chromium, args=arguments)
        try:
            for number in range(-1, options.rounds):
                for side, url, row, look in in_turn(turns, number):
                    grounds.tell(f"pages, {told_round(number, options.rounds)}: {side}")
                    found = await _load_ms(browser, url, row)
                    if number >= 0:
                        loads[side].append(found)
                        heaps[side].append(await _heap_mib(browser, url, row, look))
        finally:
            await browser.close()
    return [
        compare(
            "page load to the first rows",
            "ms",
            loads[_LEGACY],
            loads[_OURS],
            target=0.3,
            promise=Promise.PAGE_LOAD,
        ),
        compare(
            f"browser heap after {looked_at:,} rows",
            "MiB",
            heaps[_LEGACY],
            heaps[_OURS],
            target=0.6,
            promise=Promise.HEAP,
        ),
    ]


@asynccontextmanager
async def _opened(browser: Browser, url: str, row: str) -> AsyncGenerator[tuple[Page, CDPSession, float]]:
    """A page as somebody sees it who comes for the first time; and after how many ms its first rows were there."""
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        page = await context.new_page()
        await page.add_init_script(_WATCH % msgspec.json.encode(row).decode())
        # Asked beside Playwright's own functions, which need a policy that lets strings become code.
        session = await context.new_cdp_session(page)
        await page.goto(url, wait_until="commit", timeout=_LOOK_SECONDS * 1000)
        deadline = time.monotonic() + _LOOK_SECONDS
        while True:
            answer = await _command(session, "Runtime.evaluate", expression="globalThis.rowsAt ?? 0")
            if shown_at := float(answer["result"]["value"]):
                break
            if time.monotonic() > deadline:
                raise AfterwriteError(f"{url} showed no row within {_LOOK_SECONDS:.0f} s")
            await asyncio.sleep(0.05)
        yield page, session, shown_at
    finally:
        await context.close()


async def _command(session: CDPSession, name: str, **words: object) -> dict[str, Any]:
    """A command of the DevTools protocol, and its answer."""
    return await cast("Any", session).send(name, words)


async def _load_ms(browser: Browser, url: str, row: str) -> float:
    async with _opened(browser, url, row) as (_, _session, shown_at):
        return shown_at


async def _heap_mib(browser: Browser, url: str, row: str, look: Callable[[Page], Awaitable[None]]) -> float:
    """What is in use when all was looked at and nothing is left to be collected: of scripts, and of the document."""
    async with _opened(browser, url, row) as (page, session, _):
        await look(page)
        # Twice: what the first one lets go may hold on to more.
        for _turn in range(2):
            await _command(session, "HeapProfiler.collectGarbage")
        usage = await _command(session, "Runtime.getHeapUsage")
        return (usage["usedSize"] + usage.get("embedderHeapUsedSize", 0.0)) / (1 << 20)


async def _scroll(page: Page, rows: int) -> None:
    """Look at so many rows, from the newest on."""
    seen: set[str] = set()
    deadline = time.monotonic() + _LOOK_SECONDS
    while len(seen) < rows:
        ids: list[str] = await page.evaluate(_STEP)
        seen.update(ids)
        if time.monotonic() > deadline:
            raise AfterwriteError(f"{len(seen)} of {rows} rows were shown within {_LOOK_SECONDS:.0f} s")
        await asyncio.sleep(0.025)
