"""Flask: who the web layer says is on the row change in the store, also when a response is streamed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any
from wsgiref.util import FileWrapper

import pytest
from flask import Flask, Response, abort, g, request, send_file, stream_with_context
from sqlalchemy import create_engine, insert, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from stamping_scene import Scene
from test_sqlalchemy_stamps import url

from afterwrite import activity, context
from afterwrite.integrations.flask import ContextExtension
from afterwrite.integrations.sqlalchemy import instrument
from afterwrite.record import Level, Outcome
from afterwrite.testing import Memory

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {
    "x-user": "1",
    "x-request-id": "request-1",
    "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
    "x-forwarded-for": "6.6.6.6, 198.51.100.7",
    "user-agent": "tests/1",
}


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]


def make_app(**options: Any) -> Flask:
    app = Flask("tests")
    ContextExtension(app, **options)

    @app.before_request
    def sign_in() -> None:
        if user := request.headers.get("x-user"):
            g.user = {"id": user}

    return app


def test_flask_with_sqlalchemy(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)
    engine = create_engine(url(installed_dsn, "psycopg"))
    instrument(engine)
    app = make_app(trusted_proxies=["127.0.0.1"], tenant=lambda request: request.headers.get("x-tenant"))

    def insert_one(name: str) -> None:
        with Session(engine) as session:
            session.add(Thing(name=name))
            session.commit()

    @app.post("/things")
    def write() -> str:
        with Session(engine) as session:
            session.add(Thing(name="orm"))
            session.flush()
            session.execute(insert(Thing), [{"name": "bulk"}, {"name": "bulk"}])
            session.execute(text("insert into things (name) values ('raw')"))
            with context.bind(actor="admin:9"):
                session.execute(text("insert into things (name) values ('nested')"))
            session.commit()
        return ""

    @app.post("/stream")
    def stream() -> Response:
        def steps() -> Iterator[str]:
            for step in range(2):
                insert_one(f"streamed {step}")
                yield "."

        return Response(steps())

    @app.post("/stream-with-context")
    def stream_in_context() -> Response:
        def steps() -> Iterator[str]:
            insert_one(f"with {request.path}")
            yield "."

        return Response(stream_with_context(steps()))

    @app.post("/async")
    async def write_async() -> str:
        insert_one("async")
        context.amend(actor="user:changed")
        return ""

    @app.after_request
    def after(response: Response) -> Response:
        if request.path == "/async":
            insert_one("after")
        return response

    client = app.test_client()
    answer = client.post("/things", headers={**HEADERS, "x-tenant": "acme"})
    assert answer.headers.getlist("x-request-id") == ["request-1"]
    assert client.post("/stream", headers={"x-user": "2"}).text == ".."
    assert client.post("/stream-with-context", headers={"x-user": "3"}).text == "."
    client.post("/async", headers={"x-user": "4"})
    assert client.post("/stream").text == ".."
    engine.dispose()
    rows = scene.read()
    assert [(row["name"], row["actor_id"]) for row in rows] == [
        ("orm", "user:1"), ("bulk", "user:1"), ("bulk", "user:1"), ("raw", "user:1"), ("nested", "admin:9"),
        ("streamed 0", "user:2"), ("streamed 1", "user:2"), ("with /stream-with-context", "user:3"),
        ("async", "user:4"), ("after", "user:changed"), ("streamed 0", None), ("streamed 1", None),
    ]  # fmt: skip
    assert (rows[0]["tenant_id"], rows[0]["request_id"], rows[0]["trace_id"]) == ("acme", "request-1", TRACE)
    assert (str(rows[0]["ip"]), rows[0]["user_agent"]) == ("198.51.100.7", "tests/1")
    assert context.current() == context.Context()


def test_a_request_is_an_activity_only_where_that_is_wanted(recorded: Memory) -> None:
    app = make_app(record="writing")
    quiet = make_app()

    @quiet.post("/orders/<int:order>")
    @app.route("/orders/<int:order>", methods=["GET", "POST"])
    def orders(order: int) -> Any:
        if order == 404:
            abort(404)
        if order == 500:
            raise ZeroDivisionError("by order")
        activity.record("order.seen", entity=("order", order))
        activity.tracked().metadata["items"] = 3
        return ""

    @app.post("/stream")
    def stream() -> Response:
        def steps() -> Iterator[str]:
            yield "."
            activity.record("step.done")
            raise ValueError("half way")

        return Response(steps())

    @app.post("/file")
    def file() -> Any:
        return send_file(BytesIO(b"report"), download_name="report.txt")

    @app.post("/whole")
    def whole() -> Any:
        return Response(status=204)

    quiet.test_client().post("/orders/2")
    recorded.assert_not_recorded("http.request")
    client = app.test_client()
    client.get("/orders/1")
    recorded.assert_not_recorded("http.request")
    for path in ("/orders/2?token=secret", "/orders/404", "/orders/500", "/whole"):
        client.post(path, headers={"x-user": "7"}, buffered=True)
    assert client.post("/file", environ_overrides={"wsgi.file_wrapper": FileWrapper}, buffered=True).data == b"report"
    with pytest.raises(ValueError, match="half way"):
        client.post("/stream", headers={"x-user": "8"}, buffered=True)
    made = recorded.assert_recorded(
        "http.request", times=1, actor="user:7", outcome=Outcome.SUCCESS,
        metadata={"method": "POST", "route": "/orders/<int:order>", "status": 200, "items": 3},
    )  # fmt: skip
    recorded.assert_recorded("order.seen", times=1, caused_by=made.id, actor="user:7")
    recorded.assert_recorded("http.request", severity=Level.WARNING, metadata={"status": 404}, actor="user:7")
    recorded.assert_recorded(
        "http.request", severity=Level.ERROR,
        metadata={"status": 500, "error": {"type": "ZeroDivisionError", "message": "by order"}},
    )  # fmt: skip
    recorded.assert_recorded("http.request", metadata={"status": 204, "route": "/whole"})
    recorded.assert_recorded("http.request", metadata={"status": 200, "route": "/file"})
    broken = recorded.assert_recorded("http.request", actor="user:8", metadata={"error": {"type": "ValueError"}})
    recorded.assert_recorded("step.done", actor="user:8", caused_by=broken.id)
    assert "secret" not in str([each.metadata for each in recorded])
    assert len(recorded.find("http.request")) == 6


def test_a_response_that_nobody_reads_to_its_end_is_ended(recorded: Memory) -> None:
    app = make_app(record="all")
    closed: list[str | None] = []

    @app.get("/stream")
    def stream() -> Response:
        def steps() -> Iterator[str]:
            try:
                while True:
                    yield "."
            finally:
                closed.append(context.current().actor_id)

        return Response(steps())

    answer = app.test_client().get("/stream", headers={"x-user": "1"}, buffered=False)
    assert next(iter(answer.response))
    assert context.current() == context.Context()
    recorded.assert_not_recorded("http.request")
    answer.close()
    assert closed == ["user:1"]
    recorded.assert_recorded("http.request", times=1, actor="user:1")


def test_two_hundred_requests_in_threads_are_never_mixed() -> None:
    app = make_app()

    def look() -> str:
        found = context.current()
        return f"{found.actor_id} {found.request_id}"

    @app.get("/stream")
    def stream() -> Response:
        seen = look()

        def steps() -> Iterator[str]:
            for _ in range(3):
                yield f"{look()},"

        return Response(steps(), headers={"x-seen": seen})

    def ask(number: int) -> None:
        # Several responses are read in turns by one thread, as a server may do.
        answers = [
            app.test_client().get("/stream", headers={"x-user": user, "x-request-id": f"r{user}"}, buffered=False)
            for user in (f"{number}a", f"{number}b")
        ]
        bodies = [iter(answer.response) for answer in answers]
        for _ in range(3):
            for user, body in zip("ab", bodies, strict=True):
                assert next(body) == f"user:{number}{user} r{number}{user},".encode()
        for user, answer in zip("ab", answers, strict=True):
            assert answer.headers["x-seen"] == f"user:{number}{user} r{number}{user}"
            answer.close()
        assert context.current() == context.Context()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(100)))


def test_hostile_headers_and_whatever_a_view_leaves_bound() -> None:
    app = make_app(trusted_proxies=["10.0.0.0/8"])
    seen: list[context.Context] = []

    @app.get("/")
    def view() -> str:
        seen.append(context.current())
        context.bind(actor="left").__enter__()
        return ""

    def ask(peer: str, **headers: str) -> context.Context:
        told = {f"HTTP_{name}": value for name, value in headers.items()}
        answer = app.test_client().get("/", environ_overrides={"REMOTE_ADDR": peer, **told})
        assert answer.headers["x-request-id"] == seen[-1].request_id
        assert context.current() == context.Context()
        return seen[-1]

    assert ask("203.0.113.9", X_FORWARDED_FOR="127.0.0.1", FORWARDED="for=127.0.0.1").ip == "203.0.113.9"
    odd = ask(
        "10.0.0.1",
        X_FORWARDED_FOR="8.8.8.8," * 5_000 + "198.51.100.7",
        USER_AGENT="Zoë\0\r\n".encode().decode("latin-1") + "x" * 10_000,
        X_REQUEST_ID="evil\r\nset-cookie: a=b",
        TRACEPARENT="00-00",
    )
    assert (odd.ip, odd.trace_id, len(odd.user_agent or "") <= 512) == ("198.51.100.7", None, True)
    assert (odd.user_agent or "").startswith("Zoë x")
    assert (odd.actor_id, ask("", X_FORWARDED_FOR="1.2.3.4").ip) == (None, None)
