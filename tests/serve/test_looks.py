"""Looking at activity is recorded: who, what, from where; a page that asks again and again makes no flood."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from serving import Client, an_event, key, serving, store, write

from afterwrite.errors import ConnectionLost
from afterwrite.postgres import connect
from afterwrite.record import Activity
from afterwrite.serve.access import SOURCE, Look, Looks
from afterwrite.serve.callers import LOCAL
from afterwrite.serve.keys import list_keys
from afterwrite.serve.metrics import Metrics
from afterwrite.serve.visits import Visit
from afterwrite.settings import Settings

VISIT = Visit(headers={"user-agent": "a browser"}, client="192.0.2.7", request_id="r-1", secure=False, proxied=False,
              is_local=True)  # fmt: skip


@pytest.fixture(scope="module")
def dsn(server: Any) -> Iterator[str]:
    with store(server) as dsn:
        write(dsn, an_event(1, tenant_id="acme"))
        yield dsn


def told(client: Client, who: str) -> list[dict[str, Any]]:
    return client.get(f"/v1/activities?q=category:security%20actor:{who}").json["items"]


def test_who_looked_at_what_is_activity_of_his_tenant(dsn: str) -> None:
    text, mine = key(dsn, "anna", tenant="acme"), key(dsn, "boss", "admin")
    with serving(Settings(dsn=dsn, serve_auth="required")) as client:
        anna, boss = client.with_key(text), client.with_key(mine)
        for _ in range(40):
            anna.get("/v1/activities?q=order", User_Agent="Firefox")
        anna.get("/v1/entities/order/1/timeline")
        anna.get("/v1/activities?limit=0")  # refused
        client.with_key("aw_x_y").get("/v1/activities?q=who")
        for path in ("/v1/me", "/v1/health", "/healthz", "/metrics", "/openapi.json"):
            boss.get(path)
        deadline = time.monotonic() + 10
        while len(told(boss, "anna")) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        found = {each["metadata"]["path"]: each for each in told(boss, "anna")}
        assert set(found) == {"/v1/activities", "/v1/entities/order/1/timeline"}
        search = found["/v1/activities"]
        assert search["metadata"]["asked"] == {"q": "order"}
        assert (search["category"], search["action"]) == ("security", "activity.looked")
        assert (search["actor_type"], search["tenant_id"], search["source"]) == ("key", "acme", SOURCE)
        assert (search["ip"], search["user_agent"]) == ("127.0.0.1", "Firefox")
        assert [each["metadata"]["path"] for each in anna.get("/v1/activities?q=category:security").json["items"]]
    # At its end the server says how often it was.
    with serving(Settings(dsn=dsn, serve_auth="required")) as client:
        rows = [each["metadata"] for each in told(client.with_key(mine), "anna")]
    assert sorted(each["times"] for each in rows if each["asked"] == {"q": "order"})[-1] == 40
    assert len(rows) <= 5

    async def used() -> set[str]:
        async with connect(dsn) as db:
            return {each.name for each in await list_keys(db) if each.used_at is not None}

    assert asyncio.run(used()) == {"anna", "boss"}


def test_nobody_looks_past_the_record(dsn: str) -> None:
    with serving(Settings(dsn=dsn, serve_auth="required")) as client:
        asking = client.with_key(key(dsn, "clever", "read"))
        write(dsn, an_event(77))
        for path in (
            "/entity?type=order&id=77",
            f"/v1/activities?q={'+' * 600}actor:ceo",
            f"/v1/activities?q={'after:2020+' * 40}actor:cto",
            "/v1/activities?q=actor:cfo&q=harmless",
            "/v1/activities?q=harmless&q=actor:coo",
            "/v1/entities/order/77/timeline?%71=x",
        ):
            assert asking.get(path).status == 200, path
    with serving(Settings(dsn=dsn, serve_auth="required")) as client:
        found = told(client.with_key(key(dsn, "auditor", "read")), "clever")
    said = " ".join(f"{each['metadata']['path']} {each['metadata']['asked']}" for each in found)
    for word in ("'type': 'order', 'id': '77'", "actor:ceo", "actor:cto", "actor:cfo", "actor:coo", "/order/77/time"):
        assert word in said, word


class _Kept:
    """What is put, in place of a store."""

    def __init__(self) -> None:
        self.activities: list[Activity] = []
        self.down = False

    async def put(self, source: str, activities: list[Activity]) -> frozenset[Any]:
        if self.down:
            raise ConnectionLost("gone")
        self.activities += activities
        return frozenset()


def test_the_same_look_makes_two_records_in_its_time_and_none_is_lost_while_the_store_is_away() -> None:
    async def scenario() -> None:
        now, kept = [0.0], _Kept()
        looks = Looks(kept, Metrics(), 300.0, clock=lambda: now[0])  # type: ignore[arg-type]
        look = Look(LOCAL, "127.0.0.1", "/v1/activities", (("q", "x"),))
        for second in range(3_000):  # fifty minutes, once a second
            now[0] = float(second)
            looks.add(look, VISIT)
            await looks.flush()
        assert 15 <= len(kept.activities) <= 21
        kept.down = True
        looks.add(look, VISIT)
        await looks.flush(ending=True)
        kept.down = False
        await looks.flush(ending=True)
        # Each tells how often it was by then; the first of each window is told before there are more.
        assert sum(_times(each) for each in kept.activities if _times(each) > 1) >= 2_990

    asyncio.run(scenario())


def _times(activity: Activity) -> int:
    assert activity.metadata is not None
    return int(msgspec.json.decode(activity.metadata)["times"])


def test_looks_without_end_are_bounded_and_what_was_not_noted_is_counted() -> None:
    async def scenario() -> None:
        kept, metrics = _Kept(), Metrics()
        looks = Looks(kept, metrics, 300.0, most=10)  # type: ignore[arg-type]
        for number in range(25):
            looks.add(Look(LOCAL, None, f"/v1/activities/{number}", ()), VISIT)
        await looks.flush(ending=True)
        assert len(kept.activities) == 10
        assert b'"not_noted":15' in bytes(kept.activities[0].metadata or b"")
        assert metrics.registry.get_sample_value("afterwrite_dropped_total", {"reason": "looks"}) == 15
        # Who looks at more and more leaves room for others.
        for number in range(60):
            for _ in range(2):
                looks.add(Look(LOCAL, None, f"/v1/activities/{number}", ()), VISIT)
            if number % 6 == 5:
                await looks.flush()
        assert metrics.registry.get_sample_value("afterwrite_dropped_total", {"reason": "looks"}) == 15

    asyncio.run(scenario())
