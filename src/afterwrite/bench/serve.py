"""What looking at activity costs those who look: ``afterwrite serve`` beside a legacy application, and how live it is.

::

    API     the same questions over HTTP, by turns, one after the other; what 95 of 100 answers take
    pages   the first rows in a browser, and its heap when ten thousand rows were looked at
    feed    steady writes, captured; from the commit's own time until a client of the feed has the change

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
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlencode

import msgspec

from afterwrite.bench.capture import Tell, read_machine
from afterwrite.bench.claims import Claim, Report, compare, held_to, note, percentile
from afterwrite.bench.corpus import Corpus, lay_corpus, pick_actor, pick_entity, pick_words
from afterwrite.bench.load import SINGLE, SINGLE_ROWS, Load
from afterwrite.bench.stage import Stage, Variant, staged
from afterwrite.capture.slot import read_wal_position
from afterwrite.demo.processes import Process
from afterwrite.errors import AfterwriteError
from afterwrite.postgres import connect, statement
from afterwrite.postgres.embedded import embedded_server

if TYPE_CHECKING:
    from playwright.async_api import Browser, CDPSession, Page

_PAGE = 50
_WALK = 500
_START_SECONDS, _STOP_SECONDS = 60.0, 15.0
_ARRIVE_SECONDS = 30.0
_LOOK_SECONDS = 180.0
_P50_MS, _P99_MS = 50.0, 250.0
_NO_BROWSER = (
    "the claims about pages are left out, there is no browser to be driven: apt-get install chromium (or its like), and"
    " pip install playwright"
)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How much is laid, how often each question is asked in a round, how many rows are looked at, how live it is.

    ``behind`` is how many pages lie before the deep one. ``clients`` are so many at a time on the feed, for
    ``feed_seconds`` of ``rate`` changes a second.
    """

    rows: int = 300_000
    days: int = 30
    rounds: int = 5
    requests: int = 20
    behind: int = 100
    looked_at: int = 10_000
    rate: int = 1_000
    clients: tuple[int, ...] = (1, 50)
    feed_seconds: float = 10.0
    browser: bool = True
    seed: int = 1
    pg_bin: Path | None = None


async def bench_serve(options: Options, tell: Tell) -> Report:
    """Measure on servers of its own, and say what came out. What cannot be driven here is left out, and said."""
    # The deep page is a full one, also of few.
    options = msgspec.structs.replace(options, behind=min(options.behind, options.rows // _PAGE - 1))
    claims: list[Claim] = []
    settings = {"fsync": "off", "maintenance_work_mem": "256MB"}  # nothing of what is measured here writes
    with embedded_server(bin_dir=options.pg_bin, settings=settings) as server:
        tell(f"laying {options.rows:,} activities, in the store and in an audit table")
        corpus = await lay_corpus(server.dsn(), rows=options.rows, days=options.days, seed=options.seed)
        async with connect(server.dsn()) as db:
            version = str(await db.value(statement("bench.read_version")))
        folder = _make_folder(server.home)
        async with (
            _serving("legacy application", ["afterwrite.bench.legacy_app", "--dsn", server.dsn()], folder) as theirs,
            _serving("server", ["afterwrite", "serve", "--port", "0", "--dsn", server.dsn()], folder) as ours,
        ):
            claims += await _measure_api(theirs, ours, corpus, options, tell)
            chromium = find_chromium() if options.browser else None
            if chromium is not None:
                claims += await _measure_pages(chromium, theirs, ours, options, tell)
            elif options.browser:
                tell(_NO_BROWSER)
    if options.clients:
        claims += await _bench_feed(options, tell)
    said = _settings(options)
    if options.browser and chromium is None:
        said["left_out"] = _NO_BROWSER
    return Report(machine=read_machine(version), settings=said, claims=claims)


def find_chromium() -> str | None:
    """The system's Chromium or Chrome, where Playwright is there to drive it."""
    try:
        import playwright.async_api  # noqa: F401 # pyright: ignore[reportUnusedImport]
    except ImportError:
        return None
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


def _make_folder(home: Path) -> Path:
    folder = home / "bench"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@asynccontextmanager
async def _serving(name: str, words: list[str], folder: Path) -> AsyncGenerator[int]:
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


_LEGACY, _OURS = "/api/audit-logs", "/v1/activities"
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
        return f"{_LEGACY}?{urlencode({'table': kind, 'record': id})}"

    def entity(chance: random.Random) -> str:
        kind, id = pick_entity(chance)
        return f"/v1/entities/{quote(kind)}/{quote(id)}/timeline?limit={_PAGE}"

    def text(path: str, form: str) -> _Path:
        return lambda chance: path + quote(form.format(pick_words(chance)))

    def moment(at: datetime) -> str:
        return at.isoformat()

    since, until = moment(corpus.until - timedelta(days=7)), moment(corpus.until)
    return (
        _Question("the newest", asking(_LEGACY, {"page": 1}), asking(_OURS, {"limit": _PAGE}), full=True),
        _Question(
            f"page {behind + 1}",
            asking(_LEGACY, {"page": behind + 1}),
            asking(_OURS, {"limit": _PAGE, "cursor": cursor}),
            full=True,
        ),
        _Question("of one thing", legacy_entity, entity),
        _Question(
            "of one actor",
            lambda chance: f"{_LEGACY}?{urlencode({'user': pick_actor(chance)})}",
            lambda chance: f"/v1/actors/{quote(pick_actor(chance))}/timeline?limit={_PAGE}",
        ),
        _Question("by text", text(f"{_LEGACY}?search=", "{}"), text(f"{_OURS}?limit={_PAGE}&q=", '"{}"')),
        _Question(
            "a week by the hour",
            asking(f"{_LEGACY}/by-hour", {"since": since, "until": until}),
            asking("/v1/analytics/activity", {"after": since, "before": until, "limit": 1_000}),
        ),
    )


async def _measure_api(theirs: int, ours: int, corpus: Corpus, options: Options, tell: Tell) -> list[Claim]:
    questions = _questions(corpus, options.behind, await _walk(ours, options.behind * _PAGE))
    legacy: dict[str, list[float]] = {question.name: [] for question in questions}
    mine: dict[str, list[float]] = {question.name: [] for question in questions}
    for number in range(-1, options.rounds):
        for question in questions:
            tell(f"API, {f'round {number + 1} of {options.rounds}' if number >= 0 else 'warming up'}: {question.name}")
            turns = ((theirs, question.legacy, legacy), (ours, question.ours, mine))
            for port, path, found in turns if number % 2 else turns[::-1]:
                p95 = await _ask(port, path, question.full, options, number)
                if number >= 0:
                    found[question.name].append(p95)
    claims = [compare(f"API p95, {name}", "ms", legacy[name], mine[name], target=0.2, at_most=True) for name in legacy]
    together = [
        [statistics.geometric_mean(each) for each in zip(*found.values(), strict=True)] for found in (legacy, mine)
    ]
    claims.append(compare("API p95, all of these together", "ms", *together, target=0.2, at_most=True))
    claims.append(note("activities in both", "rows", [float(options.rows)]))
    return claims


async def _walk(port: int, rows: int) -> str:
    """The cursor behind so many rows, as a client has it that came there page by page."""
    cursor = ""
    async with _connected(port) as connection:
        while rows > 0:
            words = {"limit": min(rows, _WALK)} | ({"cursor": cursor} if cursor else {})
            answer = msgspec.json.decode(await connection.get(f"{_OURS}?{urlencode(words)}"))
            cursor = str(answer["older"])
            rows -= _WALK
    return cursor


async def _ask(port: int, path: _Path, full: bool, options: Options, number: int) -> float:
    """What 95 of 100 answers take, in ms; other words each time, and the same ones for both sides."""
    chance = random.Random(options.seed * 1_000 + number)
    taken: list[float] = []
    async with _connected(port) as connection:
        for _ in range(options.requests if number >= 0 else max(1, options.requests // 5)):
            asked = path(chance)
            began = time.perf_counter()
            body = await connection.get(asked)
            taken.append((time.perf_counter() - began) * 1000)
            if full and len(msgspec.json.decode(body)["items"]) != _PAGE:
                raise AfterwriteError(f"{asked} did not give {_PAGE} rows", remedy="this is a defect: report it")
    return percentile(taken, 0.95)


# --- the pages --------------------------------------------------------------------------------------------------------

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


async def _measure_pages(chromium: str, theirs: int, ours: int, options: Options, tell: Tell) -> list[Claim]:
    from playwright.async_api import async_playwright

    looked_at = min(options.looked_at, options.rows)
    legacy_url = f"http://127.0.0.1:{theirs}/audit-logs?rows={looked_at}"
    our_url = f"http://127.0.0.1:{ours}/search"
    loads: tuple[list[float], list[float]] = ([], [])
    heaps: tuple[list[float], list[float]] = ([], [])

    async def all_in_one(page: Page) -> None:
        drawn = await page.locator(_LEGACY_ROW).count()
        if drawn != looked_at:
            raise AfterwriteError(f"the legacy page drew {drawn} rows instead of {looked_at}")

    async def scroll(page: Page) -> None:
        await _scroll(page, looked_at)

    async with async_playwright() as playwright:
        # As root Chromium does not start in its sandbox; the pages are our own.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=chromium, args=arguments)
        try:
            for number in range(-1, options.rounds):
                told = f"round {number + 1} of {options.rounds}" if number >= 0 else "warming up"
                turns = ((0, legacy_url, _LEGACY_ROW, all_in_one), (1, our_url, _OUR_ROW, scroll))
                for who, url, row, look in turns if number % 2 else turns[::-1]:
                    tell(f"pages, {told}: {('legacy', 'afterwrite')[who]}")
                    found = await _load_ms(browser, url, row)
                    if number >= 0:
                        loads[who].append(found)
                        heaps[who].append(await _heap_mib(browser, url, row, look))
            version = browser.version
        finally:
            await browser.close()
    tell(f"pages were looked at in Chromium {version}")
    return [
        compare("page load to the first rows", "ms", *loads, target=0.3, at_most=True),
        compare(f"browser heap after {looked_at:,} rows", "MiB", *heaps, target=0.6, at_most=True),
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


# --- the feed ---------------------------------------------------------------------------------------------------------

_PLACE = re.compile(rb"\nid: (\d+)-")


class Listener(asyncio.Protocol):
    """A client of the feed: when it had the last of each batch's activities, by the batch's position."""

    def __init__(self, port: int) -> None:
        self.moments: dict[int, float] = {}
        self.live: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None
        self._port = port
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for everything, from now on."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(f"GET /v1/feed HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        """Only whole events count, as they do for an EventSource."""
        now = time.time()
        text = self._rest + data
        end = text.rfind(b"\n\n") + 1
        if not end:
            self._rest = text
            return
        if not self.live.done() and text.find(b": live\n", 0, end) >= 0:
            self.live.set_result(None)
        for place in set(_PLACE.findall(text, 0, end)):
            self.moments[int(place)] = now
        self._rest = text[end:]

    def connection_lost(self, exc: Exception | None) -> None:
        """The server has ended it, or we have."""
        if not self.live.done():
            self.live.set_exception(AfterwriteError("the feed's stream ended before it began"))


@asynccontextmanager
async def _listening(port: int, clients: int) -> AsyncGenerator[list[Listener]]:
    """So many clients that hear what is stored from now on."""
    loop = asyncio.get_running_loop()
    listeners: list[Listener] = []
    try:
        for _ in range(clients):
            _, listener = await loop.create_connection(lambda: Listener(port), "127.0.0.1", port)
            listeners.append(listener)
        await asyncio.wait_for(asyncio.gather(*(each.live for each in listeners)), _ARRIVE_SECONDS)
        yield listeners
    finally:
        for each in listeners:
            if each.transport is not None:
                each.transport.abort()


async def _bench_feed(options: Options, tell: Tell) -> list[Claim]:
    """The feed of an application that is captured, on a server that flushes."""
    with embedded_server(bin_dir=options.pg_bin) as server:
        tell("laying the legacy application")
        folder = _make_folder(server.home)
        async with staged(server, Variant.AFTERWRITE, seed=options.seed) as stage, stage.capturing() as worker:
            dsn = str(stage.settings.dsn)
            async with _serving("server", ["afterwrite", "serve", "--port", "0", "--dsn", dsn], folder) as port:
                return await _measure_feed(stage, worker, port, options, tell)


class _Commits(msgspec.Struct, frozen=True):
    position: int
    moments: list[float]


async def _measure_feed(stage: Stage, worker: Process, port: int, options: Options, tell: Tell) -> list[Claim]:
    lags: dict[int, list[tuple[float, float]]] = {clients: [] for clients in options.clients}
    speeds: dict[int, list[float]] = {clients: [] for clients in options.clients}
    await stage.caught_up(await read_wal_position(stage.db), worker)
    for number in range(-1, options.rounds):
        told = f"round {number + 1} of {options.rounds}" if number >= 0 else "warming up"
        for clients in options.clients if number % 2 else options.clients[::-1]:
            tell(f"feed, {told}: {options.rate:,} changes/s, {clients} client{'' if clients == 1 else 's'}")
            found, speed = await _listen(stage, worker, port, clients, options, number)
            if number >= 0:
                lags[clients].append(found)
                speeds[clients].append(speed)
    claims: list[Claim] = []
    for clients in options.clients:
        p50, p99 = [found[0] for found in lags[clients]], [found[1] for found in lags[clients]]
        at = f"feed at {options.rate:,} changes/s, {clients} client{'' if clients == 1 else 's'}"
        claims += [
            held_to(f"{at}, p50", "ms", _P50_MS, p50, at_most=True),
            held_to(f"{at}, p99", "ms", _P99_MS, p99, at_most=True),
            note(f"{at}: what came about", "changes/s", speeds[clients]),
        ]
    return claims


async def _listen(
    stage: Stage, worker: Process, port: int, clients: int, options: Options, number: int
) -> tuple[tuple[float, float], float]:
    """p50 and p99 in ms over all changes and all clients, and the changes a second that the load really made."""
    before: int = await stage.db.value(statement("bench.read_feed_position"))
    load = Load(
        scripts=SINGLE,
        transactions=int(options.rate * options.feed_seconds / SINGLE_ROWS),
        clients=8,
        rate=options.rate / SINGLE_ROWS,
        seed=options.seed + 1 + number,  # pgbench takes none below zero
    )
    async with _listening(port, clients) as listeners:
        tps = (await stage.work(load)).tps
        await stage.caught_up(await read_wal_position(stage.db), worker)
        batches = await stage.db.rows(_Commits, statement("bench.read_commits"), after_position=before)
        deadline = time.monotonic() + _ARRIVE_SECONDS
        while not all(batch.position in each.moments for each in listeners for batch in batches):
            if time.monotonic() > deadline:
                raise AfterwriteError("a client of the feed did not get all", remedy="this is a defect: report it")
            await asyncio.sleep(0.05)
    found = [
        (each.moments[batch.position] - moment) * 1000
        for each in listeners
        for batch in batches
        for moment in batch.moments
    ]
    return (percentile(found, 0.5), percentile(found, 0.99)), tps * SINGLE_ROWS


def _settings(options: Options) -> dict[str, str | int | float]:
    return {
        "rows": options.rows,
        "days": options.days,
        "rounds": options.rounds,
        "requests": options.requests,
        "behind": options.behind,
        "looked_at": options.looked_at,
        "rate": options.rate,
        "clients": ", ".join(map(str, options.clients)),
        "feed_seconds": options.feed_seconds,
        "seed": options.seed,
    }
