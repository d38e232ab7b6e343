"""Delivery by HTTP, to a server that speaks it: gzip, results by item, what is to be tried later, and what is not."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from recorder_rig import assert_closed_account, until

from afterwrite.errors import AfterwriteError, ConnectionLost, UsageError
from afterwrite.record import Activity, Batch, Kind
from afterwrite.recorder import Options, Recorder
from afterwrite.recorder.deliver import LaterError, Unstorable
from afterwrite.recorder.http import http_sink


class Api(ThreadingHTTPServer):
    """Keeps an id once; answers with ``answers`` first, where there are any."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.kept: dict[str, dict[str, object]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.hang_up = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Api

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.requests.append((self.path, dict(self.headers)))
        if self.server.answers:
            return self.answer(*self.server.answers.pop(0))
        activities = msgspec.json.decode(body)["activities"]
        if any(activity["action"] == "huge.one" for activity in activities):
            return self.answer(413, {}, b"too much")
        refused = [{"id": each["id"], "reason": "unknown"} for each in activities if each["action"] == "odd.one"]
        fine = [each for each in activities if each["action"] != "odd.one"]
        for activity in fine:
            self.server.kept.setdefault(activity["id"], activity)
        self.answer(200, {}, msgspec.json.encode({"stored": len(fine), "refused": refused}))
        if self.server.hang_up:
            self.close_connection = True
        return None

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def over_http(api: Api, folder: Path, **options: object) -> Recorder:
    return Recorder(
        source="shop",
        open_sink=http_sink(api.url, "the-key"),
        options=Options(spool_dir=str(folder / "spool"), **{"linger_seconds": 0.0, "close_seconds": 1.0, **options}),
        destination=api.url,
    )


def test_events_are_posted_with_their_key_and_compressed(api: Api, tmp_path: Path) -> None:
    recorder = over_http(api, tmp_path)
    ids = [recorder.record("a.b", entity=("user", number), metadata={"n": number}).id for number in range(1_500)]
    assert recorder.flush()
    assert sorted(api.kept) == sorted(ids)
    first = api.kept[ids[0]]
    assert (first["source"], first["kind"], first["entity_id"], first["metadata"]) == ("shop", "event", "0", {"n": 0})
    assert "actor_id" not in first
    path, headers = api.requests[0]
    assert (path, headers["Authorization"]) == ("/v1/activities", "Bearer the-key")
    assert any(headers.get("Content-Encoding") == "gzip" for _, headers in api.requests)
    assert_closed_account(recorder)
    recorder.close()


def test_single_ones_may_be_refused_and_too_large_ones_are_found(api: Api, tmp_path: Path) -> None:
    recorder = over_http(api, tmp_path)
    for number in range(64):
        recorder.record({5: "odd.one", 40: "huge.one"}.get(number, "fine.one"))
    assert recorder.flush()
    assert len(api.kept) == 62
    assert recorder.stats().dropped == {"refused": 2}
    assert {reason.partition(" ")[0] for _, reason, _ in recorder.read_refused()} == {
        "unknown",
        "127.0.0.1:" + api.url[17:],
    }
    assert_closed_account(recorder)
    recorder.close()


def test_what_the_server_says_for_a_while_is_tried_again(api: Api, tmp_path: Path) -> None:
    api.answers = [
        (503, {"Retry-After": "0"}, b""),
        (500, {}, b"oops"),
        (401, {}, b"who?"),
        (302, {"Location": "/elsewhere"}, b""),
        (200, {}, b"<html>a proxy</html>"),
    ]
    recorder = over_http(api, tmp_path)
    recorded = recorder.record("a.b")
    until(lambda: recorder.flush(0.2) and recorded.id in api.kept, 20)
    assert recorder.stats().dropped == {}
    assert_closed_account(recorder)
    recorder.close()


def test_a_connection_that_the_server_closed_is_opened_again_at_once(api: Api, tmp_path: Path) -> None:
    api.hang_up = True
    recorder = over_http(api, tmp_path)
    for _ in range(3):
        recorder.record("a.b")
        assert recorder.flush()
    assert len(api.kept) == 3
    assert recorder.stats().delivery_trouble is None
    recorder.close()


def test_each_failure_says_what_to_look_at(api: Api) -> None:
    event = Activity(id="i", occurred_at=datetime.now(UTC), source="s",
                     kind=Kind.EVENT, category="c", action="a", metadata=None)  # fmt: skip
    batch = Batch(source="s", activities=[event], transactions=0)

    async def post(status: int, headers: dict[str, str], body: bytes) -> Exception | None:
        api.answers = [(status, headers, body)]
        async with http_sink(f"{api.url}/v1/activities/")() as sink:
            try:
                await sink.write(batch)
            except AfterwriteError as error:
                return error
        return None

    async def nowhere() -> None:
        async with http_sink("http://127.0.0.1:1")() as sink:
            await sink.write(batch)

    forbidden = asyncio.run(post(403, {}, b"no"))
    assert isinstance(forbidden, AfterwriteError)
    assert forbidden.remedy == "look at AFTERWRITE_RECORD_KEY"
    assert isinstance(asyncio.run(post(422, {}, b"odd")), Unstorable)
    later = asyncio.run(post(429, {"Retry-After": "7"}, b""))
    assert isinstance(later, LaterError)
    assert later.seconds == 7
    assert asyncio.run(post(200, {}, b'{"stored": 1}')) is None
    assert {path for path, _ in api.requests} == {"/v1/activities"}
    with pytest.raises(ConnectionLost, match="cannot be reached"):
        asyncio.run(nowhere())
    for url in ("ftp://x", "example.com", "http://"):
        with pytest.raises(UsageError, match="no http address"):
            http_sink(url)
    with pytest.raises(UsageError, match="record_key"):
        http_sink("http://x", "a\nb")


def test_a_program_that_ends_at_once_has_posted_what_it_recorded(api: Api, tmp_path: Path) -> None:
    """Names are looked up in threads that Python gives nobody at its end, which is when delivery takes place."""
    url = api.url.replace("127.0.0.1", "localhost")
    code = f"""
from afterwrite.recorder import Options, Recorder
from afterwrite.recorder.http import http_sink
options = Options(spool_dir={str(tmp_path / "spool")!r})
Recorder(source="shop", open_sink=http_sink({url!r}), options=options).record("a.b")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [each["action"] for each in api.kept.values()] == ["a.b"]
