"""The API over HTTP: lists, single things, what is said when it does not go, and the shape of every answer."""

from __future__ import annotations

import gzip
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import brotli
import msgspec
import psycopg
import pytest
from serving import Client, a_change, an_event, an_id, key, serving, store, write

from afterwrite.serve import paper, wire
from afterwrite.serve.api import ActivityDoc
from afterwrite.serve.door import choose_encoding
from afterwrite.serve.limits import Limits
from afterwrite.serve.openapi import CLOUD_EVENT, EXAMPLE, POSTED
from afterwrite.serve.signing import ForgedError, Signer
from afterwrite.settings import Settings
from afterwrite.store.reader import StoredActivity

NOW = datetime.now(UTC).replace(microsecond=120_000) - timedelta(minutes=5)
MANY = 60


@pytest.fixture(scope="module")
def dsn(server: Any) -> Iterator[str]:
    with store(server) as dsn:
        write(dsn, *(an_event(number, NOW + timedelta(milliseconds=number)) for number in range(MANY)))
        write(dsn, a_change(7, NOW + timedelta(seconds=1)), source="main")
        write(dsn, an_event(900, NOW, entity_type="file", entity_id="a/b c", actor_id="svc/x", summary="ünïcode"))
        yield dsn


@pytest.fixture(scope="module")
def client(dsn: str) -> Iterator[Client]:
    with serving(Settings(dsn=dsn)) as client:
        yield client


def is_problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    said = answer.json
    assert said["status"] == status
    assert said["title"]
    assert said["type"].startswith(("urn:afterwrite:problem:", "about:blank"))
    return said


def test_a_list_is_walked_to_its_end_and_back_by_cursors_each_once(client: Client) -> None:
    first = client.get("/v1/activities?limit=25&q=action:order.placed").json
    seen = [each["id"] for each in first["items"]]
    assert first["newer"] is None
    page, last = first, first
    while page["older"]:
        page = client.get(f"/v1/activities?limit=25&q=action:order.placed&cursor={page['older']}").json
        seen += [each["id"] for each in page["items"]]
        last = page if page["items"] else last
    assert len(seen) == len(set(seen)) == MANY + 1
    back = client.get(f"/v1/activities?limit=100&q=action:order.placed&cursor={last['newer']}").json
    assert [each["id"] for each in back["items"]] == seen[: len(seen) - len(last["items"])]


def test_an_activity_is_as_tail_tells_it(client: Client) -> None:
    id = a_change(7, NOW + timedelta(seconds=1)).id
    found = client.get(f"/v1/activities/{id}").json
    assert set(found) == set(StoredActivity.__struct_fields__) == set(ActivityDoc.__struct_fields__)
    assert found["before"] == {"id": 7, "state": "open"}
    assert found["commit_lsn"] == "0/1000038"
    msgspec.convert(found, ActivityDoc, strict=False)
    fields = client.get(f"/v1/activities/{id}/diff").json["fields"]
    assert {each["name"]: (each["before"], each["after"]) for each in fields if each["kind"] == "changed"} == {
        "state": ("open", "paid")
    }


def test_a_cursor_that_was_altered_or_belongs_elsewhere_is_a_problem(client: Client) -> None:
    cursor = client.get("/v1/activities?limit=5").json["older"]
    for number in range(0, len(cursor), 3):
        wrong = cursor[:number] + ("A" if cursor[number] != "A" else "B") + cursor[number + 1 :]
        assert is_problem(client.get(f"/v1/activities?cursor={wrong}"), 400)["type"].endswith(":cursor")
    is_problem(client.get(f"/v1/activities?q=action:order.placed&cursor={cursor}"), 400)
    is_problem(client.get(f"/v1/entities/order/1/timeline?cursor={cursor}"), 400)
    for odd in ("", "%20", "=", "AAAA", quote("ü"), "A" * 4_000):
        is_problem(client.get(f"/v1/activities?cursor={odd}"), 400)
    assert client.get(f"/v1/activities?limit=5&cursor={cursor}").status == 200


def test_a_query_that_cannot_be_read_points_at_the_place(client: Client) -> None:
    said = is_problem(client.get(f"/v1/activities?q={quote('actor:user:1 nokey:5')}"), 400)
    assert said["type"].endswith(":query")
    assert said["column"] == 13
    assert said["remedy"]


def test_a_line_that_is_too_long_makes_no_long_page(client: Client) -> None:
    for path in ("/", "/search"):
        page = client.get(f"{path}?q={'a+' * 8_000}", Accept="text/html")
        assert page.status == 200
        assert b"2,000 are read" in page.body
        assert len(page.body) < 200_000


def test_timelines_rows_and_neighbours_are_found_also_of_ids_with_slashes(client: Client) -> None:
    assert [each["entity_id"] for each in client.get("/v1/entities/order/5/timeline").json["items"]] == ["5"]
    assert len(client.get("/v1/entities/file/a%2Fb%20c/timeline").json["items"]) == 1
    assert len(client.get("/v1/actors/svc%2fx/timeline").json["items"]) == 1
    assert client.get("/v1/actors/user:1/timeline?limit=3").json["older"]
    at = quote((NOW + timedelta(seconds=2)).isoformat())
    row = client.get(f"/v1/entities/orders/7/at?time={at}").json
    assert (row["exists"], row["values"]) == (True, {"id": 7, "state": "paid"})
    assert client.get("/v1/entities/orders/7").json["values"] == {"id": 7, "state": "paid"}
    is_problem(client.get("/v1/entities/orders/8"), 404)
    id = an_id(5, NOW + timedelta(milliseconds=5))
    assert client.get(f"/v1/activities/{id}/around?seconds=1&limit=10").json["items"]
    assert client.get(f"/v1/activities/{id}/effects").json["items"] == []
    assert client.get(f"/v1/activities/{id}/transaction").json["items"] == []


def test_a_row_that_is_nested_without_end_is_shown_as_others_are(client: Client, dsn: str) -> None:
    deep = b'{"a":' * 3_000 + b"1" + b"}" * 3_000
    change = a_change(90, NOW, entity_type="deep", after=msgspec.Raw(b'{"id": 90, "state": "paid", "deep": %s}' % deep))
    write(dsn, change)
    fields = client.get(f"/v1/activities/{change.id}/diff").json["fields"]
    assert [each["name"] for each in fields] == ["state"]
    row = client.get("/v1/entities/deep/90")
    assert (row.status, deep in row.body) == (200, True)
    for path in (f"/v1/activities/{change.id}", f"/activity/{change.id}", "/entity/deep/90", "/?q=after.deep.a:*"):
        assert client.get(path).status == 200, path


def test_what_cannot_change_is_not_sent_again(client: Client) -> None:
    for path in (f"/v1/activities/{an_id(5, NOW + timedelta(milliseconds=5))}", "/v1/batches/1", "/openapi.json"):
        first = client.get(path)
        tag = first.headers["etag"]
        again = client.get(path, If_None_Match=tag)
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
        assert client.get(path, If_None_Match='"else"').status == 200
        assert "no-cache" in first.headers["cache-control"]
    assert client.get("/v1/activities").headers["cache-control"] == "no-store"


def test_answers_are_packed_as_the_client_likes(client: Client) -> None:
    # Without the looks, which are recorded meanwhile.
    path = "/v1/activities?limit=50&q=-category:security"
    plain = client.get(path)
    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == "Accept-Encoding"
    for accepted, way, unpack in (("gzip", "gzip", gzip.decompress), ("gzip, br", "br", brotli.decompress)):
        packed = client.get(path, Accept_Encoding=accepted)
        assert packed.headers["content-encoding"] == way
        assert unpack(packed.body) == plain.body
        assert len(packed.body) < len(plain.body) / 3
    assert "content-encoding" not in client.get("/v1/me", Accept_Encoding="br").headers
    assert choose_encoding("*") == "br"
    assert choose_encoding("br;q=0.1, gzip;q=0.9") == "gzip"
    assert choose_encoding("br;q=x") is None


def test_head_is_get_without_a_body_and_options_says_what_can_be_done(client: Client) -> None:
    head = client.ask("HEAD", "/v1/me")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(client.get("/v1/me").body))
    assert "POST" in client.ask("OPTIONS", "/v1/activities").headers["allow"]


def test_the_head_of_a_stream_is_no_stream(client: Client) -> None:
    answer = client.ask("HEAD", "/v1/feed")
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "text/event-stream", b"")


def test_who_does_not_say_what_he_wants_is_cut_off(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_HEAD_SECONDS", 0.5)
    monkeypatch.setattr(paper, "_FORM_SECONDS", 0.8)
    parts = urlsplit(client.url)
    place = (parts.hostname or "", parts.port or 0)
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with (
        socket.create_connection(place, 5) as silent,
        socket.create_connection(place, 5) as slow,
        socket.create_connection(place, 5) as later,
        socket.create_connection(place, 5) as body,
    ):
        later.sendall(ask)
        said = b""
        while not said.endswith(b"}"):
            said += later.recv(10_000)
        later.sendall(b"GET /healthz HT")  # on a connection that was kept
        body.sendall(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n")
        body.sendall(b"Content-Type: application/x-www-form-urlencoded\r\n\r\nk")
        ended = time.monotonic() + 5
        with suppress(ConnectionError):
            while time.monotonic() < ended:
                slow.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() < ended
        for each in (silent, later):
            with suppress(ConnectionResetError):
                assert each.recv(10) == b""
        assert b"408 Request Timeout" in body.recv(10_000)


@pytest.mark.parametrize(
    "moment",
    ["0001-01-01T00:00:00%2B14:00", "9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59.999999Z", "253402300800"],
)
def test_no_time_is_beyond_what_is_answered(client: Client, moment: str) -> None:
    for path in (
        f"/v1/analytics/activity?after={moment}", f"/v1/analytics/week?before={moment}",
        f"/search?older={moment}~{an_id(1, NOW)}",
        f"/v1/activities/{an_id(1, NOW)}?occurred_at={moment}", f"/v1/entities/orders/7/at?time={moment}",
        f"/entity/orders/7?at={moment}", f"/v1/activities?q=after:{moment}",
    ):  # fmt: skip
        assert client.get(path).status < 500, path


def test_a_form_is_a_form_or_nothing(client: Client) -> None:
    odd = b'--x\r\nContent-Disposition: form-data; name="key"\r\nContent-Type: text/x; charset=odd\r\n\r\nk\r\n--x--'
    assert client.ask("POST", "/login", odd, Content_Type="multipart/form-data; boundary=x").status == 401


def test_every_failure_is_a_problem(client: Client) -> None:
    is_problem(client.get("/nowhere"), 404)
    is_problem(client.get(f"/v1/activities/{an_id(1, NOW - timedelta(days=3))}"), 404)
    is_problem(client.get("/v1/analytics/nothing"), 404)
    is_problem(client.get("/v1/batches/99999"), 404)
    is_problem(client.ask("DELETE", "/v1/activities"), 405)
    is_problem(client.ask("BREW", "/v1/activities"), 405)
    is_problem(client.get("/v1/activities/none"), 400)
    assert is_problem(client.get("/v1/activities?limit=501"), 400)["invalid"][0]["name"] == "limit"
    is_problem(client.get("/v1/activities?limit=x"), 400)
    is_problem(client.get(f"/v1/activities?q={'a' * 2_001}"), 400)
    is_problem(client.get("/v1/activities?q=%00"), 400)
    is_problem(client.get("/v1/entities/order/%00/timeline"), 400)
    is_problem(client.get("/v1/analytics/activity?after=yesterday"), 400)
    is_problem(client.get("/v1/analytics/activity?after=2026-01-01T00:00:00"), 400)
    is_problem(client.get("/v1/analytics/activity?bucket=year"), 400)
    is_problem(client.post("/v1/activities", b"x", Content_Type="text/plain"), 415)
    is_problem(client.post("/v1/activities", b"x", Content_Type="application/json", Content_Encoding="br"), 415)
    is_problem(client.post("/v1/activities", b"{", Content_Type="application/json"), 422)
    is_problem(client.post("/v1/activities", b'{"activities": 3}', Content_Type="application/json"), 422)
    is_problem(client.post("/v1/activities", b"\xff\xfe", Content_Type="application/json"), 422)


def test_answers_carry_what_browsers_heed(client: Client) -> None:
    for path in ("/v1/me", "/nowhere", "/v1/activities?limit=0", "/healthz"):
        headers = client.get(path, X_Request_Id="trace-12345678").headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in headers["content-security-policy"] or path.startswith("/no")
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-request-id"] == "trace-12345678"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers
    assert client.get("/v1/me", X_Request_Id="<script>").headers["x-request-id"] != "<script>"


def test_health_migration_and_readiness_are_told(client: Client) -> None:
    health = client.get("/v1/health").json
    assert health["ok"] is True
    assert health["batches"]["position"] >= 3
    assert client.get("/v1/migration").json["checklist"]
    assert client.get("/healthz").json == {"status": "ok"}
    assert client.get("/readyz").json == {"status": "ready"}
    assert client.get("/v1/analytics/activity").json["columns"]


def test_without_its_store_the_server_says_so_and_comes_back(server: Any) -> None:
    nowhere = Settings(dsn="host=/nowhere dbname=none")
    with serving(nowhere) as client:
        assert client.get("/healthz").status == 200
        for path in ("/readyz", "/v1/activities", "/v1/batches", "/v1/migration"):
            answer = client.get(path)
            is_problem(answer, 503)
            assert "nowhere" not in answer.body.decode()
        assert client.get("/v1/health").json["findings"][0]["rule"] == "store.unreachable"
        answer = client.post("/v1/activities", POSTED)
        is_problem(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1
        assert b"afterwrite_build_info" in client.get("/metrics").body


def test_connections_that_the_server_ended_are_opened_again(dsn: str, client: Client) -> None:
    assert client.get("/v1/me").status == client.get("/v1/batches").status == 200
    assert client.post("/v1/activities", {"activities": [{"action": "a.b"}]}).status == 200
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
            " and pid <> pg_backend_pid()"
        )
    assert client.get("/v1/batches").status == 200
    answers = [client.post("/v1/activities", {"activities": [{"action": "a.b"}]}) for _ in range(2)]
    assert {each.status for each in answers} <= {200, 503}
    assert answers[1].status == 200


def test_who_asks_too_often_is_told_when_to_come_again(dsn: str) -> None:
    with serving(Settings(dsn=dsn, serve_rate=6)) as client:
        answers = [client.get("/v1/me") for _ in range(8)]
        assert [each.status for each in answers] == [200] * 6 + [429] * 2
        assert answers[0].headers["ratelimit-policy"] == '"default";q=6;w=60'
        assert answers[0].headers["ratelimit"].startswith('"default";r=5')
        is_problem(answers[7], 429)
        assert 1 <= int(answers[7].headers["retry-after"]) <= 11


def test_a_bucket_fills_evenly_and_forgets_the_oldest() -> None:
    now = [0.0]
    limits = Limits(60, clock=lambda: now[0])
    taken = [limits.take("a") for _ in range(61)]
    assert [each is not None and each.granted for each in taken] == [True] * 60 + [False]
    now[0] = 2.5
    assert [limits.take("a").granted for _ in range(3)] == [True, True, False]  # type: ignore[union-attr]
    assert limits.take("b").left == 59  # type: ignore[union-attr]
    for number in range(10_001):
        limits.take(number)
    assert limits.take("a").left == 59  # type: ignore[union-attr]
    assert Limits(0).take("a") is None


def test_what_is_sealed_opens_for_its_purpose_alone() -> None:
    signer = Signer(b"s" * 32)
    sealed = signer.seal("cursor", ["x", 1])
    assert signer.open("cursor", sealed) == ["x", 1]
    for purpose, text in (("session", sealed), ("cursor", sealed[:-1]), ("cursor", sealed + "="), ("cursor", "é")):
        with pytest.raises(ForgedError):
            signer.open(purpose, text)
    with pytest.raises(ForgedError):
        Signer(b"t" * 32).open("cursor", sealed)


def test_the_description_is_complete_and_its_examples_hold(client: Client) -> None:
    said = client.get("/openapi.json").json
    assert said["openapi"] == "3.1.0"
    operations = {(method, path): each for path, item in said["paths"].items() for method, each in item.items()}
    assert ("post", "/v1/activities") in operations
    assert ("get", "/v1/feed") in operations
    assert not [
        path for _, path in operations if not path.startswith(("/v1/", "/metrics", "/healthz", "/readyz", "/o"))
    ]
    for (method, path), operation in operations.items():
        assert operation["summary"], path
        assert "application/problem+json" in operation["responses"]["default"]["content"], path
        assert operation["security"] == ([] if path in ("/healthz", "/readyz", "/openapi.json") else [{"bearer": []}])
        for parameter in operation.get("parameters", []):
            assert method != "get" or "description" in parameter, (path, parameter)
    msgspec.convert(EXAMPLE, ActivityDoc, strict=False)
    assert client.post("/v1/activities", POSTED).json["stored"] == 1
    event = msgspec.json.encode(CLOUD_EVENT)
    assert client.post("/v1/activities", event, Content_Type="application/cloudevents+json").json["stored"] == 1


def test_pages_of_other_origins_may_call_only_where_they_are_named(dsn: str) -> None:
    token = key(dsn, "elsewhere")
    settings = Settings(dsn=dsn, serve_cors_origins=("https://admin.example.com",), serve_auth="required")
    with serving(settings) as client:
        ask = {"Access_Control_Request_Method": "GET", "Access_Control_Request_Headers": "authorization"}
        allowed = client.ask("OPTIONS", "/v1/me", Origin="https://admin.example.com", **ask)
        assert allowed.headers["access-control-allow-origin"] == "https://admin.example.com"
        assert "access-control-allow-credentials" not in allowed.headers
        found = client.with_key(token).get("/v1/me", Origin="https://admin.example.com")
        assert found.headers["access-control-allow-origin"] == "https://admin.example.com"
        other = client.ask("OPTIONS", "/v1/me", Origin="https://evil.example", **ask)
        assert other.headers.get("access-control-allow-origin") != "https://evil.example"
