"""The server over both tiers: one list, one cursor, who came from where; and a lake that is away or slow."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from serving import Client, a_change, an_event, key, serving, store, write

from afterwrite.errors import AfterwriteError
from afterwrite.lake.archive import SESSION, ArchivePolicy, archive
from afterwrite.lake.read import Engine
from afterwrite.lake.table import Lake
from afterwrite.postgres import connect
from afterwrite.serve.lakeside import Lakeside
from afterwrite.settings import Settings
from afterwrite.store.partitions import make_partitions

NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
OLD = NOON - timedelta(days=100)


@pytest.fixture(scope="module")
def served(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, str, Path]]:
    """A server over a store of which an old day has left, and the lake's folder."""
    folder = tmp_path_factory.mktemp("lake") / "lake"
    with store(server) as dsn:
        rows = [an_event(n, OLD + timedelta(minutes=n), tenant_id="a") for n in range(6)]
        rows += [an_event(n, NOON - timedelta(days=2, minutes=n), tenant_id="a") for n in range(10, 14)]

        async def lay() -> None:
            async with connect(dsn) as db:
                await make_partitions(db, days=[OLD.date(), (NOON - timedelta(days=2)).date()])

        async def move() -> None:
            async with connect(dsn, options=SESSION) as db:
                assert len((await archive(db, Lake(str(folder)), ArchivePolicy())).deeds) == 2

        asyncio.run(lay())
        write(dsn, *rows)
        write(dsn, a_change(1, OLD + timedelta(hours=1)), source="main")
        with serving(Settings(dsn=dsn, serve_auth="required", serve_rate=0)) as client:
            client.key = key(dsn, "before", "read")
            before = {path: client.get(path).headers["etag"] for path in _pages(rows[0].id)}
        asyncio.run(move())
        with serving(Settings(dsn=dsn, serve_auth="required", serve_rate=0, lake_url=str(folder))) as client:
            client.key = key(dsn, "operator", "read")
            for path, tag in before.items():
                # What cannot change does not, wherever it is.
                answer = client.get(path)
                assert (answer.status, answer.headers["etag"], answer.headers["afterwrite-tier"]) == (200, tag, "lake")
                assert client.get(path, If_None_Match=tag).status == 304
            yield client, dsn, folder


def _pages(id: str) -> tuple[str, str]:
    return f"/v1/activities/{id}", f"/v1/activities/{id}/diff"


def test_lists_go_on_into_the_lake_with_the_same_cursors_and_say_what_came_from_there(
    served: tuple[Client, str, Path],
) -> None:
    client, _, _ = served
    whole = client.get("/v1/activities?q=entity:order&limit=100").json
    assert len(whole["items"]) == 10
    assert whole["lake"]["items"] == [each["id"] for each in whole["items"][4:]]
    assert (whole["lake"]["asked"], whole["lake"]["first"], whole["lake"]["why"]) == (True, f"{OLD.date()}", None)
    for path in ("/v1/activities?q=entity:order&limit=3", "/v1/actors/user:1/timeline?limit=1"):
        found: list[str] = []
        cursor = ""
        while True:
            page = client.get(path + cursor).json
            found += [each["id"] for each in page["items"]]
            if page["older"] is None:
                break
            cursor = f"&cursor={page['older']}"
        assert found == [each["id"] for each in whole["items"] if "orders" in path or "actor" not in path
                         or each["actor_id"] == "user:1"]  # fmt: skip
    recent = client.get("/v1/activities?q=after:5d&limit=2").json
    assert (recent["lake"]["asked"], recent["lake"]["why"]) == (False, None)
    change = client.get("/v1/entities/orders/1/timeline").json
    assert [each["id"] for each in change["items"]] == change["lake"]["items"]
    row = client.get("/v1/entities/orders/1").json
    assert (row["exists"], row["values"]["state"], row["lake"]["items"]) == (True, "paid", change["lake"]["items"])
    report = client.get(f"/v1/analytics/activity?after={OLD.date()}T00:00:00Z&before={OLD.date()}T23:00:00Z").json
    assert report["in_lake"] == {"days": 1, "first": f"{OLD.date()}", "last": f"{OLD.date()}"}


def test_the_pages_mark_what_came_from_the_lake(served: tuple[Client, str, Path]) -> None:
    client, _, _ = served
    old = client.get("/v1/activities?q=before:50d").json["items"][-1]["id"]
    for path, marks in (("/search?q=entity:order", 6), (f"/activity/{old}", 1), ("/entity/orders/1", 1)):
        page = client.get(path)
        assert page.status == 200, path
        assert page.body.decode().count(">from the lake<") == marks, path
    assert b"in the store and in the lake, which goes back to" in client.get("/search?q=entity:order").body
    assert f"the lake back to {OLD.date()}".encode() in client.get("/search?q=action:never+before:50d").body
    told = client.get("/search/rows?q=entity:order").json
    assert [each["from_lake"] for each in told["items"]] == [False] * 4 + [True] * 6
    assert client.get("/search/export?q=entity:order&format=jsonl").body.count(b"\n") == 10


def test_a_tenants_caller_is_shown_nothing_of_the_lake_and_not_which_days_are_in_it(
    served: tuple[Client, str, Path],
) -> None:
    client, dsn, _ = served
    asking = client.with_key(key(dsn, "tenant", "read", tenant="a"))
    old = client.get("/v1/activities?q=before:50d").json["items"][-1]["id"]
    page = asking.get("/v1/activities?limit=100").json
    assert len(page["items"]) == 4
    assert page["lake"]["asked"] is False
    assert "one tenant alone" in page["lake"]["why"]
    for path in (f"/v1/activities/{old}", "/v1/entities/orders/1", f"/activity/{old}"):
        answer = asking.get(path)
        assert answer.status == 404
        assert str(OLD.date()).encode() not in answer.body
    # The same words for what is nowhere.
    nowhere = asking.get("/v1/activities/01900000-0000-7000-8000-000000000000").json["detail"]
    assert asking.get(f"/v1/activities/{old}").json["detail"].replace(old, "") == nowhere.replace(
        "01900000-0000-7000-8000-000000000000", ""
    )
    report = asking.get(f"/v1/analytics/activity?after={OLD.date()}T00:00:00Z&before={OLD.date()}T23:00:00Z").json
    assert report["in_lake"] is None
    export = asking.get("/search/export?format=jsonl")
    assert "activity-of-the-store-" in export.headers["content-disposition"]


def test_a_lake_that_is_away_is_told_and_no_trouble_of_the_requests(served: tuple[Client, str, Path]) -> None:
    client, _, folder = served
    old = client.get("/v1/activities?q=before:50d").json["items"][-1]["id"]
    shutil.move(folder, folder.with_name("elsewhere"))
    try:
        page = client.get("/v1/activities?q=entity:order&limit=100").json
        assert (len(page["items"]), page["lake"]["asked"]) == (4, False)
        assert "does not answer" in page["lake"]["why"]
        assert str(folder) not in page["lake"]["why"]
        for path in ("/search?q=entity:order", "/search?q=before:50d"):
            answer = client.get(path)
            assert answer.status == 200
            assert b"Not all was looked at here" in answer.body
        missing = client.get(f"/v1/activities/{old}")
        assert missing.status == 404
        assert "in the store; the lake does not answer" in missing.json["detail"]
        row = client.get("/v1/entities/orders/1")
        assert row.status == 404
        assert client.get("/search/export?q=entity:order").status == 503
        assert client.get("/v1/activities?q=after:5d").json["lake"]["why"] is None
    finally:
        shutil.move(folder.with_name("elsewhere"), folder)
    assert len(client.get("/v1/activities?q=entity:order&limit=100").json["items"]) == 10


def test_few_ask_at_a_time_and_nobody_for_longer_than_a_request_may_take(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.open(make="store")
    at_once: list[int] = []
    running = threading.Semaphore(0)

    def slow(engine: Engine) -> object:
        running.release()
        at_once.append(1)
        return engine.rows("select count(*) from range(200000000) a, range(2000) b", {})

    def stuck(engine: Engine) -> None:
        time.sleep(1.6)

    def wrong(engine: Engine) -> None:
        raise AfterwriteError("s3://company/secret cannot be used")

    async def scenario() -> None:
        side = Lakeside(Settings(lake_url=lake.url, serve_statement_ms=300, serve_lake_queries=1))
        began = time.monotonic()
        turns = await asyncio.gather(side.ask(slow), side.ask(slow), return_exceptions=True)
        assert time.monotonic() - began < 1.2
        assert len(at_once) == 1
        assert "too many ask the lake" in str(turns[1])
        # The engine that was interrupted is asked again.
        assert await side.ask(lambda engine: engine.rows("select 1 as one", {})) == [{"one": 1}]
        with pytest.raises(AfterwriteError, match="the server's log says why"):
            await side.ask(wrong)
        assert await side.ask(lambda engine: 1) == 1
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.02)
                ticks += 1

        ticking = asyncio.create_task(tick())
        with pytest.raises(AfterwriteError, match=r"did not answer within 0.3 seconds"):
            await side.ask(stuck)
        assert ticks > 20
        began = time.monotonic()
        with pytest.raises(AfterwriteError, match="a moment ago"):
            await side.ask(lambda engine: 1)
        # At once: whoever waits for his turn does so for the 0.3 seconds of a request.
        assert time.monotonic() - began < 0.3
        ticking.cancel()
        side.close()

    asyncio.run(scenario())
