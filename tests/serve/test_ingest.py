"""Handing in: each activity once, whoever sends it how often; what is refused, and how much is taken."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Client, an_id, key, serving, store

from afterwrite.postgres import connect
from afterwrite.record import Activity
from afterwrite.recorder import Options, Recorder
from afterwrite.recorder.http import http_sink
from afterwrite.recorder.ids import Ids
from afterwrite.serve.auth import Caller, Scope
from afterwrite.serve.ingest import Ingest
from afterwrite.serve.metrics import Metrics
from afterwrite.serve.posted import EVENT, EVENTS, JSON, UnusableError, read_posted
from afterwrite.serve.problems import ProblemError
from afterwrite.serve.tenancy import Readers
from afterwrite.settings import Settings
from afterwrite.store.reader import verify_feed

NOW = datetime.now(UTC).replace(microsecond=0)
ANYBODY = Caller("app", frozenset({Scope.INGEST}))


@pytest.fixture(scope="module")
def dsn(server: Any) -> Iterator[str]:
    with store(server) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def client(dsn: str) -> Iterator[Client]:
    with serving(Settings(dsn=dsn, serve_auth="required", serve_body_bytes=2 << 20)) as client:
        yield client.with_key(key(dsn, "app", "ingest"))


@pytest.fixture(scope="module")
def reader(dsn: str, client: Client) -> Client:
    return client.with_key(key(dsn, "reader", "read"))


def posted(number: int, **fields: object) -> dict[str, object]:
    return {"id": an_id(number, NOW), "source": "web", "action": "page.seen", **fields}


def counted(dsn: str, where: str, *values: object) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(f"select count(*) from afterwrite.activity where {where}", values).fetchone()  # type: ignore[arg-type]
        assert row
        return row[0]


def test_what_is_sent_twice_is_stored_once_and_each_item_says_which(client: Client, dsn: str) -> None:
    body = {"activities": [posted(1), posted(2), posted(1), posted(3, kind="change"), {"id": "x"}]}
    first = client.post("/v1/activities", body).json
    assert (first["stored"], first["duplicate"]) == (2, 1)
    assert [each["status"] for each in first["results"]] == ["stored", "stored", "duplicate", "refused", "refused"]
    assert [each["id"] for each in first["refused"]] == [an_id(3, NOW), "x"]
    again = client.post("/v1/activities", {"activities": [posted(1), posted(2), posted(4)]}).json
    assert [each["status"] for each in again["results"]] == ["duplicate", "duplicate", "stored"]
    assert counted(dsn, "source = 'web'") == 3


def test_many_at_once_who_send_the_same_store_it_once(client: Client, dsn: str) -> None:
    bodies = [{"activities": [posted(1_000 + (step + 7 * number) % 90, source="race") for number in range(40)]}
              for step in range(12)]  # fmt: skip
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda body: client.post("/v1/activities", body), bodies))
    assert {answer.status for answer in answers} == {200}
    different = {each["id"] for body in bodies for each in body["activities"]}
    assert sum(answer.json["stored"] for answer in answers) == len(different)
    assert sum(answer.json["duplicate"] for answer in answers) == 12 * 40 - len(different)
    assert counted(dsn, "source = 'race'") == len(different)


def test_the_recorder_delivers_through_it(client: Client, dsn: str, tmp_path: Path) -> None:
    recorder = Recorder(
        source="billing",
        open_sink=http_sink(client.url, client.key),
        options=Options(spool_dir=str(tmp_path / "spool"), linger_seconds=0.0),
        destination=client.url,
    )
    for number in range(1_200):
        recorder.record(
            "invoice.sent", entity=("invoice", number), metadata={"pages": number, "nul": "\0", "ü": "\ud800"}
        )
    assert recorder.flush()
    recorder.close()
    assert counted(dsn, "source = 'billing'") == 1_200
    assert recorder.stats().dropped == {}


def test_the_seal_holds_over_what_came_by_http(client: Client, dsn: str) -> None:
    client.post("/v1/activities", {"activities": [posted(50), posted(51, occurred_at="2020-02-29T23:59:59.5Z")]})

    async def check() -> object:
        async with connect(dsn) as db:
            return (await verify_feed(db)).first_break

    assert asyncio.run(check()) is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"id": "nope"}, "no UUID"),
        ({"id": str(UUID(int=4 << 76 | 8 << 60))}, "occurred_at is missing"),
        ({"occurred_at": "yesterday"}, "occurred_at"),
        ({"kind": "change"}, "kind"),
        ({"relation": "public.users"}, "change's"),
        ({"commit_lsn": "0/1"}, "change's"),
        ({"action": ""}, "action is empty"),
        ({"action": None}, "action"),
        ({"outcome": "maybe"}, "outcome"),
        ({"severity": "loud"}, "severity"),
        ({"metadata": [1]}, "no JSON object"),
        ({"before": "x"}, "no JSON object"),
        ({"changed": "x"}, "changed"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_a_reason(client: Client, fields: dict[str, object], reason: str) -> None:
    answer = client.post("/v1/activities", {"activities": [{**posted(90), **fields}, posted(91)]})
    assert answer.status == 200
    assert answer.json["results"][1]["status"] in ("stored", "duplicate")
    assert reason in answer.json["refused"][0]["reason"]


def test_cloud_events_are_taken_alone_and_many_at_a_time(client: Client, reader: Client) -> None:
    event = {
        "specversion": "1.0", "id": "evt-1", "source": "/billing", "type": "invoice.sent", "time": NOW.isoformat(),
        "subject": "invoice/12", "actorid": "user:7", "category": "financial", "datacontenttype": "application/json",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "data": {"pages": 3}, "custom": "x",
    }  # fmt: skip
    body = msgspec.json.encode(event)
    first = client.post("/v1/activities", body, Content_Type=f"{EVENT}; charset=utf-8").json
    assert client.post("/v1/activities", body, Content_Type=EVENT).json["duplicate"] == 1
    found = reader.get(f"/v1/activities/{first['results'][0]['id']}").json
    assert (found["source"], found["action"], found["category"]) == ("/billing", "invoice.sent", "financial")
    assert (found["entity_type"], found["entity_id"], found["actor_id"]) == ("invoice", "12", "user:7")
    assert found["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert found["metadata"]["data"] == {"pages": 3}
    assert found["metadata"]["cloudevent"]["custom"] == "x"
    own = str(an_id(77, NOW))
    many = [
        {**event, "id": own, "time": None},
        {**event, "source": "/other"},
        {**event, "time": None},
        {**event, "specversion": "0.3"},
        {**event, "type": 3},
        {**event, "id": "evt-2", "outcome": "perhaps"},
    ]
    answer = client.post("/v1/activities", msgspec.json.encode(many), Content_Type=EVENTS).json
    assert [each["status"] for each in answer["results"]] == ["stored", "stored", *["refused"] * 4]
    assert answer["results"][0]["id"] == own
    assert [each["id"] for each in answer["refused"]] == ["evt-1", "evt-1", "evt-1", "evt-2"]


def test_an_event_of_one_tenant_keeps_out_none_of_anothers_that_is_called_the_same(client: Client, dsn: str) -> None:
    event = {"specversion": "1.0", "id": "evt-9", "source": "/billing", "type": "invoice.sent", "time": NOW.isoformat()}
    body = msgspec.json.encode(event)
    tenants = [client.with_key(key(dsn, f"{name} events", "ingest", tenant=name)) for name in ("first", "second")]
    for each in (*tenants, client):
        assert each.post("/v1/activities", body, Content_Type=EVENT).json["stored"] == 1
    # Handed in for a tenant or by it, it is the same.
    of_first = msgspec.json.encode({**event, "tenantid": "first"})
    for each in (tenants[0], client):
        assert each.post("/v1/activities", of_first, Content_Type=EVENT).json["duplicate"] == 1


@pytest.mark.parametrize("depth", [201, 990, 100_000])
def test_what_is_nested_without_end_is_refused(client: Client, depth: int) -> None:
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    body = b'{"activities":[{"action":"a.b","metadata":%s}]}' % deep
    answer = client.post("/v1/activities", body, Content_Type=JSON)
    assert (answer.status, answer.json.get("stored", 0)) == (200 if depth == 201 else 422, 0)
    assert client.post("/v1/activities", deep, Content_Type=EVENT).status in (200, 422)


def test_no_more_is_taken_than_was_said(client: Client) -> None:
    def post(body: bytes, **headers: str) -> int:
        return client.post("/v1/activities", body, Content_Type=JSON, **headers).status

    many = msgspec.json.encode({"activities": [posted(number) for number in range(1_001)]})
    assert post(many) == 413
    assert post(b" " * ((2 << 20) + 1)) == 413
    assert post(gzip.compress(b" " * (30 << 20), 1), Content_Encoding="gzip") == 413
    assert post(b"no gzip", Content_Encoding="gzip") == 422
    assert post(gzip.compress(many)[:-20], Content_Encoding="gzip") == 422
    assert post(gzip.compress(b'{"activities": []}'), Content_Encoding="gzip") == 200


def test_a_key_hands_in_for_its_tenant_and_nobody_else(client: Client, dsn: str) -> None:
    acme = client.with_key(key(dsn, "acme in", "ingest", tenant="acme"))
    body = {"activities": [posted(200), posted(201, tenant_id="acme"), posted(202, tenant_id="other")]}
    answer = acme.post("/v1/activities", body).json
    assert [each["status"] for each in answer["results"]] == ["stored", "stored", "refused"]
    assert counted(dsn, "tenant_id = 'acme'") == 2
    assert acme.get("/v1/activities").status == 403
    assert client.with_key(key(dsn, "only reads", "read")).post("/v1/activities", body).status == 403
    assert client.with_key(None).post("/v1/activities", body).status == 401


class _Slow:
    """A sink that is stuck until it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.written = 0
        self.sources: list[str] = []

    async def write(self, batch: Any) -> Any:
        await self.go.wait()
        self.written += len(batch.activities)
        self.sources.append(batch.source)
        return msgspec.defstruct("Receipt", ["stored", "batch_id"])(stored=len(batch.activities), batch_id=1)

    async def close(self) -> None:
        pass


def test_what_cannot_be_stored_in_time_is_turned_away_and_not_collected() -> None:
    async def scenario() -> None:
        given = Settings(dsn="host=/nowhere")
        ingest = Ingest(given, Readers(given), Metrics())
        ingest._sink = sink = _Slow()  # type: ignore[assignment]
        running = asyncio.create_task(ingest.run())
        ids = Ids()
        found = read_posted(JSON, msgspec.json.encode({"activities": [{"action": "a.b"}] * 1_000}), ANYBODY, ids)
        events = [each for each in found if isinstance(each, Activity)]
        puts = [asyncio.create_task(ingest.put(f"s{number}", events, who=number % 2)) for number in range(20)]
        await asyncio.sleep(0.05)
        with pytest.raises(ProblemError) as caught:
            await ingest.put("one too many", events[:1])
        assert caught.value.problem.status == 503
        assert int(caught.value.headers["Retry-After"]) > 0
        sink.go.set()
        stored = await asyncio.gather(*puts)
        assert {len(each) for each in stored} == {1_000}
        assert sink.written == 20_000
        ingest.stop()
        await running

    asyncio.run(scenario())


def test_bodies_that_are_on_their_way_take_room_until_they_are_there() -> None:
    given = Settings(dsn="host=/nowhere")
    ingest = Ingest(given, Readers(given), Metrics())
    with ingest.holding() as hold:
        for _ in range(127):
            hold(1 << 20)
        with ingest.holding() as also:
            also(1 << 20)
            with pytest.raises(ProblemError, match="more is handed in"):
                also(1)
        hold(1 << 20)
    with ingest.holding() as hold:
        hold(128 << 20)


def test_who_hands_in_much_leaves_others_their_turn_and_half_of_the_room() -> None:
    async def scenario() -> None:
        given = Settings(dsn="host=/nowhere")
        ingest = Ingest(given, Readers(given), Metrics())
        ingest._sink = sink = _Slow()  # type: ignore[assignment]
        running = asyncio.create_task(ingest.run())
        body = msgspec.json.encode({"activities": [{"action": "a.b", "occurred_at": NOW.isoformat()}] * 1_000})
        events = [each for each in read_posted(JSON, body, ANYBODY, Ids()) if isinstance(each, Activity)]
        greedy = [asyncio.create_task(ingest.put(f"s{number}", events, who="greedy")) for number in range(10)]
        await asyncio.sleep(0.05)
        with pytest.raises(ProblemError, match="more is handed in"):
            await ingest.put("s", events[:1], who="greedy")
        modest = asyncio.create_task(ingest.put("t", events[:1], who="modest"))
        await asyncio.sleep(0.05)
        sink.go.set()
        await asyncio.gather(modest, *greedy)
        assert sink.sources.index("t") == 1
        ingest.stop()
        await running

    asyncio.run(scenario())


def test_what_lies_years_apart_is_stored_in_batches_that_are_read_without_all_in_between(
    client: Client, dsn: str
) -> None:
    times = ["0001-01-02T00:00:00Z", "2026-11-20T10:59:59Z", "2026-11-20T11:00:00Z", "9999-12-30T00:00:00Z"]
    body = {"activities": [posted(700 + n, source="wide", occurred_at=at) for n, at in enumerate(times)]}
    body["activities"].append(posted(710, source="wide", occurred_at="2026-11-20T10:00:00Z"))
    assert client.post("/v1/activities", body).json["stored"] == 5
    assert client.post("/v1/activities", body).json["duplicate"] == 5
    with psycopg.connect(dsn) as connection:
        wide = connection.execute(
            "select rows, last_at - first_at < '1 hour' from afterwrite.batch where source = 'wide' order by rows"
        ).fetchall()
    assert wide == [(1, True), (1, True), (1, True), (2, True)]


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["id", "occurred_at", "source", "kind", "action", "category", "metadata", "tenant_id", "ip", "changed",
     "specversion", "type", "time", "subject", "data", "traceparent", "actorid", "xid", "duration_ms", "caused_by"]
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(NAMES, JSONS | st.just("1.0") | st.just("event"), max_size=6), max_size=3), st.data())
def test_whatever_is_handed_in_is_taken_or_refused_and_nothing_else(
    items: list[dict[str, object]], data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from([JSON, EVENT, EVENTS]))
    body = msgspec.json.encode(
        {"activities": items} if kind == JSON else items if kind == EVENTS else (items or [{}])[0]
    )
    for each in read_posted(kind, body, ANYBODY, Ids()):
        if isinstance(each, Activity):
            assert UUID(each.id)
            assert each.occurred_at.tzinfo is UTC


def test_an_id_of_an_event_is_the_same_each_time_and_tells_its_time() -> None:
    event = {"specversion": "1.0", "id": uuid4().hex, "source": "/a", "type": "t", "time": NOW.isoformat()}
    read = [read_posted(EVENT, msgspec.json.encode(event), ANYBODY, Ids())[0] for _ in range(2)]
    assert read[0] == read[1]
    assert isinstance(read[0], Activity)
    assert UUID(read[0].id).version == 8
    assert timedelta(milliseconds=UUID(read[0].id).int >> 80) == NOW - datetime(1970, 1, 1, tzinfo=UTC)
    with pytest.raises(UnusableError):
        read_posted(EVENT, b"[]", ANYBODY, Ids())
