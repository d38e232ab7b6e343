"""``afterwrite broker``: a NATS JetStream between many recorders and the store."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from functools import partial
from typing import Annotated

import typer

from afterwrite.broker import check as checking
from afterwrite.broker.link import Access
from afterwrite.broker.pull import State
from afterwrite.broker.receive import SourceStatus, run_sources
from afterwrite.broker.topology import LANES
from afterwrite.broker.write import Pace, WriterStatus, run_writers
from afterwrite.capture.governor import human_bytes
from afterwrite.cli.face import (
    FLAG,
    Apply,
    Dsn,
    Json,
    StoreDsn,
    counted,
    emit,
    fill,
    out,
    plain,
    run,
    say,
    show_error,
    show_findings,
    table,
)
from afterwrite.configfile import parse_size
from afterwrite.errors import AfterwriteError, ExitCode, Severity, UsageError
from afterwrite.runtime import broker_access
from afterwrite.settings import Settings, load_settings
from afterwrite.store.writer import open_sink

app = typer.Typer(
    help="A broker between many recorders and the store: NATS JetStream.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

_TELL_SECONDS = 1.0
_LEAST_BYTES = 1 << 20

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The brokers, with commas between them: nats://host:4222 or tls://host:4222. Else AFTERWRITE_NATS_URL.",
        show_default=False,
    ),
]
Monitor = Annotated[
    list[str] | None,
    typer.Option(
        "--monitor",
        metavar="URL",
        help="A broker's monitoring, http://host:8222; for each of them.",
        show_default=False,
    ),
]


@app.command("install")
def install(
    url: Url = None,
    partitions: Annotated[
        int | None,
        typer.Option(
            "--partitions", min=1, max=LANES, help="So many writers may be active at once (4).", show_default=False
        ),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=1, max=5, help="On so many brokers (3).", show_default=False)
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(
            "--max-bytes", metavar="SIZE", help="What may wait there (8GB); then spools wait.", show_default=False
        ),
    ] = None,
    changes: Annotated[
        str | None,
        typer.Option(
            "--changes",
            metavar="SIZE",
            help="Captures publish too: so much of it may be on its way; 16MB a source will do.",
            show_default=False,
        ),
    ] = None,
    dsn: Dsn = None,
    store_dsn: StoreDsn = None,
    another_store: Annotated[
        bool,
        typer.Option("--another-store", metavar=FLAG, help="Yes, what waits there goes into this store from now on."),
    ] = False,
    apply: Apply = False,
    json: Json = False,
) -> int:
    """Make the stream and its consumers, or alter them to be as they should.

    What waits in the stream stays there, also when the number of partitions changes. Where the settings name the store,
    the stream says from then on that it is for that one, and writers of others take nothing. Without --apply it only
    says what it would do.
    """
    sizes = _size("--max-bytes", max_bytes), _size("--changes", changes)
    given = load_settings(nats_url=url, dsn=dsn, store_dsn=store_dsn)
    return run(_install(given, partitions, replicas, sizes, another_store=another_store, apply=apply, json=json))


@app.command("check")
def check(url: Url = None, monitor: Monitor = None, json: Json = False) -> int:
    """Say what of the broker is unsafe, and what cannot be seen.

    Exit 5 where what it acknowledges may be lost, 3 where something should be mended or cannot be seen.
    """
    return run(_check(_settings(url), monitor or [], json=json))


@app.command("write")
def write(
    url: Url = None,
    dsn: Dsn = None,
    store_dsn: StoreDsn = None,
    partition: Annotated[
        list[int] | None,
        typer.Option(
            "--partition",
            metavar="N",
            min=0,
            max=LANES - 1,
            help="Only this one; may be repeated. Else all.",
            show_default=False,
        ),
    ] = None,
    no_changes: Annotated[
        bool, typer.Option("--no-changes", metavar=FLAG, help="Leave captured changes to other processes.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", metavar=FLAG, help="One JSON document a line on stdout.")] = False,
    end_with_stdin: Annotated[bool, typer.Option("--end-with-stdin", hidden=True)] = False,
) -> int:
    """Bring what recorders and captures have published into the store, until Ctrl-C or SIGTERM.

    One process writes a partition, or the changes of a source, at a time; any others stand by and take over within
    seconds. A message is acknowledged after the store has committed what it holds. With --json a line is printed for
    each partition and source that changed, once a second.
    """
    gc.freeze()
    gc.set_threshold(70_000, 20, 20)
    given = load_settings(nats_url=url, dsn=dsn, store_dsn=store_dsn)
    asyncio.run(_write(given, partition or [], changes=not no_changes, json=json, end_with_stdin=end_with_stdin))
    return ExitCode.OK


@app.command("status")
def status(url: Url = None, json: Json = False) -> int:
    """How much waits in each partition, and whether somebody writes it."""
    return run(_status(_settings(url), json=json))


async def _install(
    given: Settings,
    partitions: int | None,
    replicas: int | None,
    sizes: tuple[int | None, int | None],
    *,
    another_store: bool,
    apply: bool,
    json: bool,
) -> int:
    access = _access(given)
    seen = await checking.look(access)
    layout = checking.layout_of(
        seen,
        partitions=partitions,
        replicas=replicas,
        max_bytes=sizes[0],
        changes_bytes=sizes[1],
        store=await _read_store(given),
        another_store=another_store,
    )
    steps = checking.plan(seen, layout)
    if apply:
        await checking.carry_out(access, steps)
    if json:
        emit({"schema_version": 1, "applied": apply, "steps": steps})
        return ExitCode.OK
    if not steps:
        out.print("There is nothing to do.")
    for step in steps:
        if apply:
            say(f"[green]✓[/] {plain(step.text)}")
        else:
            out.print(f"- {plain(step.text)}", soft_wrap=True)
    if steps and not apply:
        out.print("\nNothing was done. Run it with [bold]--apply[/].")
    elif apply:
        out.print("Next: [bold]afterwrite broker check[/], then [bold]afterwrite broker write[/].")
    return ExitCode.OK


async def _read_store(given: Settings) -> str | None:
    """Which store the settings name; None: none."""
    if given.store_dsn is None and (given.dsn is None or given.capture_url is not None):
        return None
    async with open_sink(given.store, application_name="afterwrite install") as sink:
        return await sink.read_identity()


async def _check(given: Settings, monitors: list[str], *, json: bool) -> int:
    seen = await checking.look(_access(given), monitors or given.nats_monitor)
    findings = checking.judge(seen)
    severities = {finding.severity for finding in findings}
    code = ExitCode.REFUSED if Severity.ERROR in severities else ExitCode.GATE if findings else ExitCode.OK
    if json:
        emit({"schema_version": 1, "stream": seen.stream, "findings": findings, "monitored": seen.monitored})
        return code
    show_findings(findings, grave="unsafe")
    if not findings:
        replicas = (seen.config or {}).get("num_replicas")
        out.print(f"The stream {seen.stream} is safe: {replicas} replicas, each flushed before it acknowledges.")
    return code


async def _status(given: Settings, *, json: bool) -> int:
    seen = await checking.look(_access(given))
    standings = checking.standings(seen)
    if json:
        emit(
            {
                "schema_version": 1,
                "stream": seen.stream,
                "there": seen.config is not None,
                "partitions": standings,
                "changes": None if seen.changes is None else checking.source_standings(seen),
            }
        )
        return ExitCode.OK
    if seen.config is None:
        out.print(f"There is no stream {seen.stream}; [bold]afterwrite broker install[/] makes it.")
        return ExitCode.OK
    size, most = int(seen.state.get("bytes", 0)), int(seen.config.get("max_bytes", -1))
    limit = f" of {human_bytes(most)}" if most > 0 else ""
    waiting = counted(int(seen.state.get("messages", 0)), "message")
    out.print(f"Stream {seen.stream}: {waiting} in {human_bytes(size)}{limit}.")
    rows = [
        (each.partition, f"{each.waiting:,}", f"{each.in_flight:,}", _written(each), each.leader) for each in standings
    ]
    out.print(fill(table(">partition", ">messages", ">in flight", "written", "leader"), rows))
    if seen.changes is not None:
        sources = checking.source_standings(seen)
        out.print(f"Captured changes: {counted(len(sources), 'source')}, one batch of each on its way at most.")
        rows = [
            (each.source, f"{each.waiting:,}", f"{each.in_flight:,}", _written(each), each.leader) for each in sources
        ]
        if rows:
            out.print(fill(table("source", ">messages", ">in flight", "written", "leader"), rows))
    return ExitCode.OK


def _written(each: checking.Waits) -> str:
    """Whether somebody writes it; ``ready`` asks for it, and nothing came since."""
    return "yes" if each.pinned else "ready" if each.asking else "nobody"


async def _write(given: Settings, partitions: list[int], *, changes: bool, json: bool, end_with_stdin: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if end_with_stdin:
        loop.add_reader(sys.stdin.fileno(), lambda: os.read(sys.stdin.fileno(), 1024) or stop.set())
    told: dict[int | str, tuple[float, WriterStatus | SourceStatus]] = {}
    latest: dict[int | str, WriterStatus | SourceStatus] = {}

    def hear(status: WriterStatus | SourceStatus) -> None:
        key = status.partition if isinstance(status, WriterStatus) else status.source
        latest[key] = status
        before_at, before = told.get(key, (0.0, None))
        turned = before is None or (status.state, status.trouble) != (before.state, before.trouble)
        now = time.monotonic()
        if not turned and (not json or now - before_at < _TELL_SECONDS):
            return
        told[key] = now, status
        try:
            emit(status) if json else say(_line(status))
        except (BrokenPipeError, SystemExit):
            stop.set()

    open_store = partial(open_sink, given.store)

    async def look_at_store() -> None:
        # What waits is written as soon as the store can be; who has mistyped its name hears so before anything comes.
        try:
            async with open_store(application_name="afterwrite broker"):
                say(f"writes into the store what comes to the stream {given.nats_stream}, until Ctrl-C")
        except AfterwriteError as error:
            show_error(error)
            say("what comes waits at the brokers until the store can be opened")

    async def write_partitions() -> None:
        try:
            await run_writers(
                _access(given),
                open_store,
                stop=stop,
                partitions=sorted(set(partitions)),
                pace=Pace(batch_rows=given.batch_rows, linger_seconds=given.linger_ms / 1000),
                on_status=hear,
            )
        finally:
            stop.set()

    try:
        async with asyncio.TaskGroup() as group:
            looked = group.create_task(look_at_store())
            group.create_task(write_partitions()).add_done_callback(lambda _: looked.cancel())
            if changes:
                folder = given.spill_dir
                group.create_task(run_sources(_access(given), open_store, stop=stop, folder=folder, on_status=hear))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    for key, status in sorted(latest.items(), key=str):
        if json and told[key][1] != status:
            emit(status)


def _line(status: WriterStatus | SourceStatus) -> str:
    whose = f"partition {status.partition}" if isinstance(status, WriterStatus) else f"source {plain(status.source)}"
    trouble = f": {plain(status.trouble)}" if status.trouble and status.state is State.HINDERED else ""
    return f"{whose}: {status.state.value}{trouble}"


def _settings(url: str | None) -> Settings:
    return load_settings(nats_url=url)


def _access(given: Settings) -> Access:
    return broker_access(given, given.nats_url)


def _size(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    size = parse_size(text if not text.isdecimal() else f"{text}B")
    if not isinstance(size, int) or size <= 0:
        raise UsageError(f"{option} cannot be {text!r}", remedy="write it as 8GB or 512MB")
    if size < _LEAST_BYTES:
        raise UsageError(f"{option} {text} is less than a message may be long", remedy="write it as 8GB or 512MB")
    return size
