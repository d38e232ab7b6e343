"""Django: who a request is by is on the row change in the store, sync and async; and the timeline in the admin."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django_site import Thing, connect_django
from psycopg import sql
from stamping_scene import TABLES, Scene

from afterwrite import activity, context
from afterwrite.errors import UsageError
from afterwrite.record import Level, Outcome
from afterwrite.testing import Memory

# isort: split
# Django is set up from here on.
from asgiref.sync import sync_to_async
from django.contrib.admin import AdminSite, ModelAdmin
from django.contrib.admin.models import LogEntry
from django.contrib.auth import alogin, login, logout
from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.contrib.sessions.models import Session
from django.db import connection, connections, transaction
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.test.utils import CaptureQueriesContext, override_settings
from django.urls import path

from afterwrite.integrations.django import ContextMiddleware, TimelineMixin

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {
    "x-request-id": "request-1",
    "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
    "x-forwarded-for": "6.6.6.6, 198.51.100.7",
    "user-agent": "tests/1",
}


# --- the site --------------------------------------------------------------------------------------------------------


def insert_raw(name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("insert into things (name) values (%s)", [name])


def write(request: Any) -> HttpResponse:
    with transaction.atomic():
        Thing.objects.create(name="orm")
        Thing.objects.bulk_create([Thing(name="bulk"), Thing(name="bulk")])
        insert_raw("raw")
    with context.bind(actor="admin:9"):
        Thing.objects.create(name="nested")
    return HttpResponse()


async def write_async(request: Any) -> HttpResponse:
    activity.record("thing.written")
    await Thing.objects.acreate(name="orm")
    await Thing.objects.abulk_create([Thing(name="bulk"), Thing(name="bulk")])
    await sync_to_async(insert_raw)("raw")
    return HttpResponse()


def sign_in(request: Any) -> HttpResponse:
    Thing.objects.create(name="before")
    login(request, User.objects.get(username="bo"), backend="django.contrib.auth.backends.ModelBackend")
    Thing.objects.create(name="in")
    logout(request)
    Thing.objects.create(name="out")
    return HttpResponse()


async def sign_in_async(request: Any) -> HttpResponse:
    await Thing.objects.acreate(name="before")
    user = await User.objects.aget(username="bo")
    await alogin(request, user, backend="django.contrib.auth.backends.ModelBackend")
    await Thing.objects.acreate(name="in")
    return HttpResponse()


def stream(request: Any) -> StreamingHttpResponse:
    def steps() -> Iterator[str]:
        for step in range(2):
            Thing.objects.create(name=f"streamed {step}")
            yield "."

    return StreamingHttpResponse(steps())


async def stream_async(request: Any) -> StreamingHttpResponse:
    async def steps() -> AsyncIterator[str]:
        for step in range(2):
            await Thing.objects.acreate(name=f"streamed {step}")
            yield "."

    return StreamingHttpResponse(steps())


def look(request: Any) -> JsonResponse:
    found = context.current()
    context.bind(actor="left").__enter__()
    return JsonResponse(
        {"actor": found.actor_id, "request": found.request_id, "ip": found.ip, "agent": found.user_agent}
    )


async def look_async(request: Any) -> JsonResponse:
    seen = set()
    for _ in range(3):
        await asyncio.sleep(0)
        seen.add((context.current().actor_id, context.current().request_id))
        seen.add(await sync_to_async(lambda: (context.current().actor_id, context.current().request_id))())
    ((actor, id),) = seen
    return JsonResponse({"actor": actor, "request": id})


def order(request: Any, number: int) -> HttpResponse:
    if number == 500:
        raise ZeroDivisionError("by order")
    activity.record("order.seen", entity=("order", number))
    activity.tracked().metadata["items"] = 3
    return HttpResponse(status=number)


def nothing(request: Any) -> HttpResponse:
    return HttpResponse()


def send_file(request: Any) -> FileResponse:
    return FileResponse(open(__file__, "rb"))


site = AdminSite()


class ThingAdmin(TimelineMixin, ModelAdmin):
    fields = ("name",)
    timeline_page_size = 2


class UserAdmin(TimelineMixin, ModelAdmin):
    pass


site.register(Thing, ThingAdmin)
site.register(User, UserAdmin)

urlpatterns = [
    path("write", write),
    path("write-async", write_async),
    path("sign-in", sign_in),
    path("sign-in-async", sign_in_async),
    path("stream", stream),
    path("stream-async", stream_async),
    path("look", look),
    path("look-async", look_async),
    path("orders/<int:number>", order),
    path("nothing", nothing),
    path("file", send_file),
    path("admin/", site.urls),
]


@pytest.fixture
def scene(installed_dsn: str) -> Iterator[Scene]:
    connect_django(installed_dsn)
    with connection.schema_editor() as editor:
        for model in (ContentType, Permission, Group, User, Session, LogEntry):
            editor.create_model(model)
    ContentType.objects.clear_cache()
    laid = Scene(installed_dsn, tables=("things", "auth_user"))
    for name in ("ada", "bo"):
        User.objects.create_user(name, password="secret")
    yield laid
    connections.close_all()


def signed_in(client: Any, name: str = "ada") -> Any:
    client.force_login(User.objects.get(username=name))
    return client


def things(rows: list[dict[str, Any]]) -> list[tuple[str | None, str | None]]:
    return [(row["name"], row["actor_id"]) for row in rows if row["action"] == "things.insert"]


# --- who and why -----------------------------------------------------------------------------------------------------


def test_sync_views_write_as_their_user_by_orm_bulk_and_raw_sql(scene: Scene) -> None:
    with override_settings(AFTERWRITE_TRUSTED_PROXIES=["127.0.0.1"], AFTERWRITE_TENANT="test_django_web.tenant_of"):
        client = signed_in(Client(headers={**HEADERS, "x-tenant": "acme"}))
        answer = client.post("/write")
        assert (answer.status_code, answer["x-request-id"]) == (200, "request-1")
        assert b"".join(client.get("/stream").streaming_content) == b".."
        assert b"test_sync_views" in b"".join(client.get("/file").streaming_content)
    Client().post("/write")
    ada = User.objects.get(username="ada")
    rows = scene.read()
    me = f"user:{ada.pk}"
    assert things(rows) == [
        ("orm", me), ("bulk", me), ("bulk", me), ("raw", me), ("nested", "admin:9"), ("streamed 0", me),
        ("streamed 1", me), *[(name, None) for name in ("orm", "bulk", "bulk", "raw")], ("nested", "admin:9"),
    ]  # fmt: skip
    first = next(row for row in rows if row["name"] == "orm")
    assert (first["tenant_id"], first["request_id"], first["trace_id"]) == ("acme", "request-1", TRACE)
    assert (str(first["ip"]), first["user_agent"], first["actor_type"]) == ("198.51.100.7", "tests/1", "user")
    # The session has a name in the store, which is not its key.
    assert first["session_id"]
    assert not Session.objects.filter(pk=first["session_id"]).exists()
    assert context.current() == context.Context()


def tenant_of(request: Any) -> str | None:
    return request.headers.get("x-tenant")


def test_async_views_write_and_record_as_their_user(scene: Scene, recorded: Memory) -> None:
    async def run() -> int:
        client = AsyncClient()
        ada = await User.objects.aget(username="ada")
        await client.aforce_login(ada)
        assert (await client.post("/write-async", headers={"x-request-id": "request-1"}))["x-request-id"] == "request-1"
        answer = await client.get("/stream-async")
        assert b"".join([step async for step in answer.streaming_content]) == b".."
        await client.post("/write")  # a sync view below async middleware
        await AsyncClient().post("/write-async")
        await AsyncClient().post("/sign-in-async")
        await sync_to_async(connections.close_all)()
        return ada.pk

    me = f"user:{asyncio.run(run())}"
    bo = f"user:{User.objects.get(username='bo').pk}"
    assert things(scene.read()) == [
        ("orm", me), ("bulk", me), ("bulk", me), ("raw", me), ("streamed 0", me), ("streamed 1", me),
        ("orm", me), ("bulk", me), ("bulk", me), ("raw", me), ("nested", "admin:9"),
        *[(name, None) for name in ("orm", "bulk", "bulk", "raw")], ("before", None), ("in", bo),
    ]  # fmt: skip
    recorded.assert_recorded("thing.written", actor=me, request="request-1", times=1)
    recorded.assert_recorded("thing.written", actor=None, times=1)


def test_whoever_signs_in_or_out_within_a_request_is_known_from_there_on(scene: Scene) -> None:
    Client().post("/sign-in")
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        Client().post("/sign-in")
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False
    rows = scene.read()
    bo = f"user:{User.objects.get(username='bo').pk}"
    assert things(rows) == [("before", None), ("in", bo), ("out", None)] * 2
    # What signing in writes itself is the user's.
    assert [row["actor_id"] for row in rows if row["action"] == "auth_user.update"] == [bo, bo]


def test_a_request_that_writes_nothing_asks_nothing(scene: Scene) -> None:
    client = signed_in(Client())
    client.get("/nothing")
    with CaptureQueriesContext(connection) as queries:
        client.get("/nothing")
    assert len(queries) == 0


def test_a_user_that_cannot_be_read_fails_no_request(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    client = signed_in(Client())
    with connection.cursor() as cursor:
        cursor.execute("alter table auth_user rename to gone")
    assert client.get("/look").json()["actor"] is None
    assert "cannot be told: ProgrammingError" in caplog.text


def test_a_request_is_an_activity_only_where_that_is_wanted(recorded: Memory) -> None:
    def ask(*paths: str) -> None:
        client = Client(raise_request_exception=False)
        for each in paths:
            client.post(each)

    who = override_settings(AFTERWRITE_ACTOR=lambda request: 7, AFTERWRITE_SESSION=None)
    with who:
        ask("/orders/201")
        recorded.assert_not_recorded("http.request")
    with who, override_settings(AFTERWRITE_RECORD="writing"):
        Client().get("/orders/200")
        recorded.assert_not_recorded("http.request")
        ask("/orders/202?token=secret", "/orders/403", "/orders/500", "/nowhere")
    made = recorded.assert_recorded(
        "http.request", times=1, actor="user:7", outcome=Outcome.SUCCESS,
        metadata={"method": "POST", "route": "/orders/<int:number>", "status": 202, "items": 3},
    )  # fmt: skip
    recorded.assert_recorded("order.seen", times=1, caused_by=made.id, entity=("order", 202))
    recorded.assert_recorded("http.request", severity=Level.WARNING, metadata={"status": 403})
    recorded.assert_recorded(
        "http.request", severity=Level.ERROR,
        metadata={"status": 500, "error": {"type": "ZeroDivisionError", "message": "by order"}},
    )  # fmt: skip
    recorded.assert_recorded("http.request", metadata={"status": 404, "path": "/nowhere"})
    assert "secret" not in str([each.metadata for each in recorded])


def test_settings_that_cannot_be_are_refused_when_the_site_starts() -> None:
    with override_settings(AFTERWRITE_ACTOR=7), pytest.raises(UsageError, match="AFTERWRITE_ACTOR is no function"):
        ContextMiddleware(lambda request: None)
    with override_settings(AFTERWRITE_TRUSTED_PROXIES=["all"]), pytest.raises(UsageError, match="no network"):
        ContextMiddleware(lambda request: None)


# --- attacks ---------------------------------------------------------------------------------------------------------


def actor_of(request: Any) -> str | None:
    return request.headers.get("x-user")


@override_settings(AFTERWRITE_ACTOR="test_django_web.actor_of", AFTERWRITE_SESSION=None)
def test_two_hundred_requests_in_threads_and_tasks_are_never_mixed() -> None:
    def ask(number: int) -> None:
        told = {"x-user": f"user:{number}", "x-request-id": f"r{number}"}
        found = Client(headers=told).get("/look").json()
        assert (found["actor"], found["request"]) == (f"user:{number}", f"r{number}")
        assert context.current() == context.Context()

    async def ask_async(number: int) -> None:
        told = {"x-user": f"user:{number}", "x-request-id": f"r{number}"}
        path = "/look-async" if number % 2 else "/look"
        found = json.loads((await AsyncClient().get(path, headers=told)).content)
        assert (found["actor"], found["request"]) == (f"user:{number}", f"r{number}")

    async def run() -> None:
        await asyncio.gather(*(ask_async(number) for number in range(100)))
        assert context.current() == context.Context()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(100)))
    asyncio.run(run())


@override_settings(AFTERWRITE_TRUSTED_PROXIES=["10.0.0.0/8"], AFTERWRITE_ACTOR=None, AFTERWRITE_SESSION=None)
def test_hostile_headers_reach_the_context_as_harmless_words() -> None:
    def ask(peer: str, **headers: str) -> dict[str, Any]:
        told = {f"HTTP_{name}": value for name, value in headers.items()}
        answer = Client().get("/look", REMOTE_ADDR=peer, **told)
        assert answer["x-request-id"] == answer.json()["request"]
        return answer.json()

    assert ask("203.0.113.9", X_FORWARDED_FOR="127.0.0.1")["ip"] == "203.0.113.9"
    odd = ask(
        "10.0.0.1",
        X_FORWARDED_FOR="8.8.8.8," * 5_000 + "198.51.100.7",
        USER_AGENT="evil\0\r\n" + "x" * 10_000,
        X_REQUEST_ID="evil\r\nset-cookie: a=b",
    )
    assert (odd["ip"], odd["agent"][:7], len(odd["agent"]) <= 512) == ("198.51.100.7", "evil xx", True)
    assert ask("")["ip"] is None


# --- the admin -------------------------------------------------------------------------------------------------------


def test_the_admin_shows_what_happened_to_an_object_page_by_page(scene: Scene) -> None:
    with connection.cursor() as cursor:
        cursor.execute("alter table things replica identity full; alter table auth_user replica identity full")
    with context.bind(actor="user:7", ip="198.51.100.7"):
        thing = Thing.objects.create(name="<first>", note="hidden note")
        for name in ("second", "third"):
            thing.name = name
            thing.save()
        Thing.objects.filter(pk=thing.pk).update(note="other note")
    Thing.objects.create(name="another")
    scene.read()
    boss = User.objects.create_superuser("boss")
    client = Client()
    client.force_login(boss)
    page = client.get(f"/admin/shop/thing/{thing.pk}/timeline/")
    text = page.content.decode()
    assert [entry.action for entry in page.context_data["entries"]] == ["things.update", "things.update"]
    assert "user:7" in text
    assert "198.51.100.7" in text
    assert "note: ••• → •••" in text, "a field that the admin does not show is only told to have changed"
    assert "second → third" in text
    assert "other note" not in text
    (link,) = re.findall(r'href="([^"]*)">older', text)
    older = client.get(f"/admin/shop/thing/{thing.pk}/timeline/{link}")
    text = older.content.decode()
    assert [entry.action for entry in older.context_data["entries"]] == ["things.update", "things.insert"]
    assert older.context_data["older"] is None
    assert "&lt;first&gt; → second" in text
    assert "hidden note" not in text
    assert "another" not in text
    assert (
        f"/admin/shop/thing/{thing.pk}/timeline/"
        in client.get(f"/admin/shop/thing/{thing.pk}/change/").content.decode()
    )
    for odd in ("", "x|y", "2026-01-01|0195a000-0000-7000-8000-000000000001", f"2026-01-01T00:00:00+00:00|{'0' * 9}"):
        assert client.get(f"/admin/shop/thing/{thing.pk}/timeline/", {"before": odd}).status_code == 404
    assert client.get("/admin/shop/thing/99999/timeline/").status_code == 302
    # A hash of a password is shown to nobody, though the admin has the field.
    boss.set_password("other")
    boss.save()
    client.force_login(boss)
    scene.read()
    text = client.get(f"/admin/auth/user/{boss.pk}/timeline/").content.decode()
    assert "password: ••• → •••" in text
    assert boss.password not in text


def test_the_timeline_is_for_those_who_may_view_the_object(scene: Scene) -> None:
    thing = Thing.objects.create(name="secret thing")
    scene.read()
    where = f"/admin/shop/thing/{thing.pk}/timeline/"
    assert Client().get(where).status_code == 302, "to the page where one signs in"
    ada = User.objects.get(username="ada")
    client = signed_in(Client())
    assert client.get(where).status_code == 302
    ada.is_staff = True
    ada.save()
    assert client.get(where).status_code == 403
    assert client.get("/admin/shop/thing/99999/timeline/").status_code == 403
    kind = ContentType.objects.get_for_model(Thing)
    ada.user_permissions.add(Permission.objects.create(codename="view_thing", name="view", content_type=kind))
    page = client.get(where)
    assert page.status_code == 200
    assert "secret thing" in page.content.decode()
    assert client.get(f"/admin/auth/user/{ada.pk}/timeline/").status_code == 403


def test_without_a_store_the_admin_says_so_and_goes_on(dsn: str) -> None:
    connect_django(dsn)
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL(TABLES))
        thing = Thing.objects.create(name="a")
        admin = ThingAdmin(Thing, site)
        request: Any = RequestFactory().get("/")
        request.user = User(is_superuser=True, is_active=True, is_staff=True)
        with transaction.atomic():
            page = admin.timeline_view(request, str(thing.pk)).render()
            assert Thing.objects.count() == 1, "the transaction around is not broken"
        assert "cannot be read" in page.content.decode()
    finally:
        connections.close_all()
