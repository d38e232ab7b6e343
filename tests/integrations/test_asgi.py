"""ASGI: who the web layer says is on the row change in the store, in FastAPI, Starlette and Litestar."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from litestar import Litestar, post
from litestar.connection import ASGIConnection
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult, DefineMiddleware
from litestar.params import Parameter
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from stamping_scene import Scene
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route
from test_sqlalchemy_stamps import url

from afterwrite import activity, context
from afterwrite.integrations.asgi import ContextMiddleware
from afterwrite.integrations.psycopg import AsyncConnection
from afterwrite.integrations.sqlalchemy import instrument
from afterwrite.record import Level, Outcome
from afterwrite.testing import Memory, recording

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


def client_of(app: Any, *, peer: str = "127.0.0.1") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=(peer, 1), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def actors(rows: list[dict[str, Any]]) -> list[tuple[str | None, str | None]]:
    return [(row["name"], row["actor_id"]) for row in rows]


def test_fastapi_with_sqlalchemy_and_asyncpg(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)
    engine = create_async_engine(url(installed_dsn, "asyncpg"))
    instrument(engine)

    async def signed_in(request: Request) -> str:
        user = request.headers.get("x-user")
        if user is None:
            raise HTTPException(401)
        context.amend(actor=f"user:{user}", tenant="acme")
        return user

    def signed_in_in_a_thread(request: Request) -> str:
        context.amend(actor=f"threaded:{request.headers['x-user']}")
        return request.headers["x-user"]

    app = FastAPI()
    app.add_middleware(ContextMiddleware, trusted_proxies=["127.0.0.0/8"])

    @app.post("/things")
    async def write(later: BackgroundTasks, user: str = Depends(signed_in)) -> dict[str, str]:
        async with AsyncSession(engine) as session:
            session.add(Thing(name="orm"))
            await session.flush()
            await session.execute(insert(Thing), [{"name": "bulk"}, {"name": "bulk"}])
            await session.execute(text("insert into things (name) values ('raw')"))
            with context.bind(actor="admin:9", reason="on behalf"):
                await session.execute(text("insert into things (name) values ('nested')"))
            await session.commit()
        later.add_task(in_background)
        return {"user": user}

    async def in_background() -> None:
        async with AsyncSession(engine) as session:
            session.add(Thing(name="background"))
            await session.commit()

    @app.post("/threaded")
    async def threaded(user: str = Depends(signed_in_in_a_thread)) -> str:
        async with AsyncSession(engine) as session:
            session.add(Thing(name="threaded"))
            await session.commit()
        return user

    @app.get("/nobody")
    async def nobody() -> str:
        async with engine.begin() as conn:
            await conn.execute(text("insert into things (name) values ('nobody')"))
        return ""

    async def run() -> None:
        async with client_of(app) as client:
            answer = await client.post("/things", headers=HEADERS)
            assert (answer.status_code, answer.json()) == (200, {"user": "1"})
            assert answer.headers.get_list("x-request-id") == ["request-1"]
            assert (await client.post("/things")).status_code == 401
            assert (await client.get("/nobody", headers={"user-agent": ""})).headers["x-request-id"].isalnum()
            assert (await client.post("/threaded", headers={"x-user": "2"})).json() == "2"
        await engine.dispose()

    asyncio.run(run())
    rows = scene.read()
    assert actors(rows) == [
        ("orm", "user:1"), ("bulk", "user:1"), ("bulk", "user:1"), ("raw", "user:1"), ("nested", "admin:9"),
        ("background", "user:1"), ("nobody", None), ("threaded", "threaded:2"),
    ]  # fmt: skip
    for row in (rows[0], rows[5]):
        assert (row["actor_type"], row["tenant_id"], row["request_id"], row["trace_id"]) == (
            "user", "acme", "request-1", TRACE,
        )  # fmt: skip
        assert (str(row["ip"]), row["user_agent"]) == ("198.51.100.7", "tests/1")
    assert (rows[6]["request_id"].isalnum(), rows[6]["trace_id"], rows[6]["user_agent"]) == (True, None, None)


class Backend(AuthenticationBackend):
    """Who is asking, as Starlette has it."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        user = conn.headers.get("x-user")
        return None if user is None else (AuthCredentials(["all"]), Named(user))


class Named(SimpleUser):
    @property
    def identity(self) -> str:
        return self.username


def test_starlette_with_psycopg_reads_the_user_of_the_middleware_inside(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)
    conn: AsyncConnection[Any]

    async def insert_one(name: str) -> None:
        await conn.execute("insert into things (name) values (%s)", [name])

    async def write(request: Any) -> PlainTextResponse:
        await insert_one("awaited")
        return PlainTextResponse("ok", background=BackgroundTask(insert_one, "background"))

    async def stream(request: Any) -> StreamingResponse:
        async def steps() -> AsyncIterator[bytes]:
            for step in range(3):
                await insert_one(f"streamed {step}")
                yield b"."

        return StreamingResponse(steps())

    def in_a_thread(request: Any) -> StreamingResponse:
        def steps() -> Iterator[bytes]:
            yield (context.current().actor_id or "nobody").encode()

        return StreamingResponse(steps())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        nonlocal conn
        # One connection for all requests, as a pool would give it to one after the other.
        async with await AsyncConnection.connect(installed_dsn, autocommit=True) as conn:
            yield

    class Wrapping(BaseHTTPMiddleware):
        """Runs what is inside in a task of its own."""

        async def dispatch(self, request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
            return await call_next(request)

    app = Starlette(
        routes=[Route("/write", write, methods=["POST"]), Route("/stream", stream), Route("/thread", in_a_thread)],
        middleware=[
            Middleware(ContextMiddleware, session=lambda scope: f"session:{scope['user'].username}"),
            Middleware(Wrapping),
            Middleware(AuthenticationMiddleware, backend=Backend()),
            Middleware(Wrapping),
        ],
        lifespan=lifespan,
    )

    async def run() -> None:
        async with app.router.lifespan_context(app), client_of(app) as client:
            await client.post("/write", headers=HEADERS)
            await client.get("/stream", headers={"x-user": "2"})
            assert (await client.get("/thread", headers={"x-user": "3"})).text == "user:3"
            assert (await client.get("/thread")).text == "nobody"

    asyncio.run(run())
    rows = scene.read()
    assert actors(rows) == [
        ("awaited", "user:1"), ("background", "user:1"), *[(f"streamed {step}", "user:2") for step in range(3)],
    ]  # fmt: skip
    assert rows[0]["session_id"] == "session:1"
    assert str(rows[0]["ip"]) == "127.0.0.1", "nobody is trusted unless named"


class LitestarAuthentication(AbstractAuthenticationMiddleware):
    async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
        return AuthenticationResult(user={"id": connection.headers["x-user"]}, auth=None)


def test_litestar(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)

    @post("/things/{name:str}")
    async def write(name: Annotated[str, Parameter()]) -> str:
        async with await AsyncConnection.connect(installed_dsn, autocommit=True) as conn:
            await conn.execute("insert into things (name) values (%s)", [name])
        return name

    @post("/sync/{name:str}", sync_to_thread=True)
    def write_sync(name: Annotated[str, Parameter()]) -> str:
        return context.current().actor_id or "nobody"

    app = Litestar(
        [write, write_sync],
        middleware=[DefineMiddleware(ContextMiddleware, record="writing"), DefineMiddleware(LitestarAuthentication)],
        logging_config=None,
    )

    async def run() -> None:
        async with client_of(app) as client:
            answer = await client.post("/things/inside", headers=HEADERS)
            assert (answer.status_code, answer.headers["x-request-id"]) == (201, "request-1")
            assert (await client.post("/sync/x", headers=HEADERS)).text == "user:1"
        async with client_of(ContextMiddleware(app)) as client:
            await client.post("/things/outside", headers=HEADERS)

    with recording(everywhere=True) as memory:
        asyncio.run(run())
    assert scene.actors() == [("inside", "user:1"), ("outside", "user:1")]
    memory.assert_recorded("http.request", actor="user:1", metadata={"route": "/things/{name}", "status": 201})


# --- what a request's own activity says ------------------------------------------------------------------------------


async def reply(scope: Any, receive: Any, send: Any, *, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_a_request_is_an_activity_only_where_that_is_wanted(recorded: Memory) -> None:
    app = FastAPI()

    @app.api_route("/orders/{order}", methods=["GET", "POST", "DELETE"])
    async def orders(order: int, request: Request) -> str:
        request.scope["user"] = {"id": 7}
        if order == 404:
            raise HTTPException(404)
        if order == 500:
            raise ZeroDivisionError("by order")
        activity.record("order.seen", entity=("order", order))
        activity.tracked().metadata["items"] = 3
        return ""

    async def run(record: Any) -> None:
        async with client_of(ContextMiddleware(app, record=record)) as client:
            await client.get("/orders/1?token=secret")
            await client.post("/orders/2?token=secret")
            await client.delete("/orders/404")
            await client.post("/orders/500")
            await client.post("/nowhere")

    asyncio.run(run(None))
    recorded.assert_not_recorded("http.request")
    recorded.clear()
    asyncio.run(run("writing"))
    made = recorded.assert_recorded(
        "http.request", times=1, actor="user:7", outcome=Outcome.SUCCESS, severity=Level.INFO,
        metadata={"method": "POST", "route": "/orders/{order}", "status": 200, "items": 3},
        summary="POST /orders/{order} 200", duration_ms=lambda value: (value or 0) > 0,
    )  # fmt: skip
    recorded.assert_recorded("order.seen", times=1, caused_by=made.id, request=made.request, actor="user:7")
    recorded.assert_recorded("order.seen", times=1, caused_by=None)
    assert "secret" not in str([each.metadata for each in recorded])
    recorded.assert_recorded(
        "http.request", outcome=Outcome.FAILURE, severity=Level.WARNING, metadata={"status": 404, "method": "DELETE"}
    )
    recorded.assert_recorded(
        "http.request", outcome=Outcome.FAILURE, severity=Level.ERROR,
        metadata={"status": 500, "error": {"type": "ZeroDivisionError", "message": "by order"}},
    )  # fmt: skip
    recorded.assert_recorded("http.request", actor=None, metadata={"status": 404, "path": "/nowhere"})
    recorded.clear()
    asyncio.run(run("all"))
    assert len(recorded.find("http.request")) == 5


def test_websockets_and_other_scopes(recorded: Memory) -> None:
    app = FastAPI()
    app.add_middleware(ContextMiddleware, record="all", actor=None)
    seen: list[context.Context] = []

    @app.websocket("/talk/{room}")
    async def talk(socket: WebSocket, room: str) -> None:
        await socket.accept()
        context.amend(actor="user:1")
        seen.append(context.current())
        await socket.close()

    async def run() -> list[Any]:
        sent: list[Any] = []
        scope = {
            "type": "websocket", "path": "/talk/blue", "raw_path": b"/talk/blue", "query_string": b"", "headers": [
                (b"x-request-id", b"request-1"),
            ], "client": None, "subprotocols": [], "root_path": "", "scheme": "ws",
        }  # fmt: skip

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        await app(scope, receive, send)
        return sent

    sent = asyncio.run(run())
    assert [each["type"] for each in sent] == ["websocket.accept", "websocket.close"]
    assert sent[0]["headers"] == [(b"x-request-id", b"request-1")]
    made = recorded.assert_recorded("http.request", times=1, actor="user:1", metadata={"method": "WEBSOCKET"})
    assert seen == [context.Context(actor_id="user:1", actor_type="user", request_id="request-1", caused_by=made.id)]


# --- attacks ---------------------------------------------------------------------------------------------------------


def test_two_hundred_requests_at_once_are_never_mixed() -> None:
    app = FastAPI()
    app.add_middleware(ContextMiddleware)

    async def signed_in(request: Request) -> None:
        await asyncio.sleep(0)
        request.scope["user"] = {"id": request.headers["x-user"]}

    def look() -> str:
        found = context.current()
        return f"{found.actor_id} {found.request_id}"

    @app.get("/awaited", dependencies=[Depends(signed_in)])
    async def awaited() -> list[str]:
        seen = [look()]
        for _ in range(3):
            await asyncio.sleep(0)
            seen.append(look())
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.to_thread(look)) for _ in range(2)]
        return [*seen, *(task.result() for task in tasks)]

    @app.get("/threaded", dependencies=[Depends(signed_in)])
    def threaded() -> list[str]:
        before = look()
        context.amend(reason="seen")
        return [before, look()]

    async def run() -> None:
        async with client_of(app) as client:

            async def ask(number: int) -> None:
                path = "/threaded" if number % 2 else "/awaited"
                answer = await client.get(path, headers={"x-user": str(number), "x-request-id": f"r{number}"})
                assert set(answer.json()) == {f"user:{number} r{number}"}
                assert answer.headers["x-request-id"] == f"r{number}"

            await asyncio.gather(*(ask(number) for number in range(200)))
        assert context.current() == context.Context()

    asyncio.run(run())


def test_nothing_of_a_request_is_left_after_it_however_it_ends() -> None:
    async def raising(scope: Any, receive: Any, send: Any) -> None:
        context.amend(actor="user:1")
        context.bind(actor="user:2").__enter__()  # never left
        raise RuntimeError("broken")

    async def look(scope: Any, receive: Any, send: Any) -> None:
        assert context.current().actor_id is None
        await reply(scope, receive, send)

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": ("1.2.3.4", 1)}

    async def nothing(message: Any = None) -> Any:
        return {}

    async def run() -> None:
        for _ in range(3):
            with pytest.raises(RuntimeError, match="broken"):
                await asyncio.create_task(ContextMiddleware(raising)(dict(scope), nothing, nothing))
            await ContextMiddleware(look)(dict(scope), nothing, nothing)
        assert context.current() == context.Context()

    asyncio.run(run())


def test_hostile_headers_reach_the_context_as_harmless_words() -> None:
    seen: list[context.Context] = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        seen.append(context.current())
        await reply(scope, receive, send)

    app = ContextMiddleware(look, trusted_proxies=["10.0.0.0/8"])
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def run(peer: str, *headers: tuple[bytes, bytes]) -> context.Context:
        scope = {"type": "http", "method": "GET", "path": "/", "headers": headers, "client": (peer, 1)}
        await app(scope, lambda: asyncio.sleep(0, {}), send)
        return seen[-1]

    spoofed = asyncio.run(run("203.0.113.9", (b"X-Forwarded-For", b"127.0.0.1"), (b"Forwarded", b"for=127.0.0.1")))
    assert spoofed.ip == "203.0.113.9"
    odd = asyncio.run(
        run(
            "10.0.0.1",
            (b"x-forwarded-for", b"8.8.8.8," * 10_000 + b"198.51.100.7"),
            (b"forwarded", b"for=127.0.0.1"),
            (b"user-agent", b"\xff\0\r\n" + b"x" * 10_000),
            (b"x-request-id", b"evil\r\nset-cookie: a=b"),
            (b"traceparent", b"00-" + b"z" * 10_000),
        )
    )
    assert odd.ip == "198.51.100.7"
    assert odd.trace_id is None
    assert odd.user_agent is not None
    assert len(odd.user_agent) <= 512
    assert odd.user_agent.isprintable()
    assert odd.request_id is not None
    assert odd.request_id.isalnum()
    started = [message for message in sent if message["type"] == "http.response.start"]
    assert started[-1]["headers"] == [(b"x-request-id", odd.request_id.encode())]


def test_what_the_application_says_as_its_request_id_stays() -> None:
    async def app(request: Any) -> JSONResponse:
        return JSONResponse({}, headers={"X-Request-ID": "its own"})

    async def run() -> None:
        async with client_of(Starlette(routes=[Route("/", app)], middleware=[Middleware(ContextMiddleware)])) as client:
            assert (await client.get("/")).headers.get_list("x-request-id") == ["its own"]

    asyncio.run(run())


def test_an_actor_that_cannot_be_told_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenUserError(Exception):
        pass

    def broken(scope: Any) -> str:
        raise BrokenUserError

    async def look(scope: Any, receive: Any, send: Any) -> None:
        assert context.current().actor_id is None
        await reply(scope, receive, send)

    async def run() -> None:
        async with client_of(ContextMiddleware(look, actor=broken)) as client:
            for _ in range(3):
                assert (await client.get("/")).status_code == 200

    asyncio.run(run())
    assert caplog.text.count("who makes a request cannot be told: BrokenUserError") == 1


@pytest.mark.parametrize("records", [("all", "all"), (None, "all"), ("all", None)])
def test_an_application_mounted_in_another_is_one_request_with_one_id_that_amend_reaches_whole(records: Any) -> None:
    inner, outer = FastAPI(), FastAPI()
    inner.add_middleware(ContextMiddleware, record=records[1], actor=None)
    outer.add_middleware(ContextMiddleware, record=records[0])
    outer.mount("/inner", inner)
    seen: list[context.Context] = []

    @inner.post("/sign-in")
    async def sign_in() -> None:
        context.amend(actor="user:1", tenant="acme")
        seen.append(context.current())

    @outer.post("/plain")
    async def plain() -> None:
        seen.append(context.current())

    async def main() -> list[httpx.Response]:
        async with client_of(outer) as client:
            return [await client.post("/inner/sign-in"), await client.post("/plain")]

    with recording(everywhere=True) as recorded:
        answers = asyncio.run(main())
    for answer, context_seen in zip(answers, seen, strict=True):
        assert answer.headers.get_list("x-request-id") == [context_seen.request_id]
    assert [(each.actor_id, each.tenant_id) for each in seen] == [("user:1", "acme"), (None, None)]
    found = [each for each in recorded if each.actor is not None]
    assert [(each.action, each.actor, each.request) for each in found] == [
        ("http.request", "user:1", seen[0].request_id)
    ], "one activity a request, by whoever was told further in"
