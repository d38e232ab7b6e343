"""Django: whoever is bound is on the row change in the store, by the ORM, in bulk and by raw SQL, sync and async."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ObjectDoesNotExist
from django.db import IntegrityError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django_site import Thing, connect_django
from stamping_scene import Scene

from afterwrite import context
from afterwrite.record import Emitted
from afterwrite.recorder.connections import emit, stamp
from afterwrite.recorder.options import Options, hold


@pytest.fixture(params=["by the client", "by the server"])
def scene(installed_dsn: str, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """Django's default connection in a database that is captured, with parameters bound by either side."""
    laid = Scene(installed_dsn)
    connect_django(installed_dsn, server_side_binding=request.param == "by the server")
    yield laid
    connections.close_all()


def write_in_every_way() -> None:
    with context.bind(actor="1"):
        Thing.objects.create(name="1")
    with context.bind(actor="2"):
        Thing.objects.bulk_create([Thing(name="2"), Thing(name="2")])
    with context.bind(actor="3"), connection.cursor() as cursor:
        cursor.execute("insert into things (name) values (%s) returning name", ["3"])
        assert cursor.fetchone() == ("3",)
    with context.bind(actor="4"), connection.cursor() as cursor:
        cursor.executemany("insert into things (name) values (%s)", [["4"], ["4"]])
    with context.bind(actor="5"):
        made = Thing(name="5")
        made.save()
        assert isinstance(made.pk, int)
    with context.bind(actor="6"), connection.cursor() as cursor:
        cursor.execute("select make('6')")
        assert isinstance(cursor.fetchone()[0], int)
    with context.bind(actor="7"), transaction.atomic():
        assert Thing.objects.update_or_create(note=secrets.token_hex(4), defaults={"name": "7"})[1]
    with context.bind(actor="8"), connection.cursor() as cursor:
        cursor.execute("insert into things (name) values ('8%'); select 'second'")


WRITTEN = [(name, name[0]) for name in ["1", "2", "2", "3", "4", "4", "5", "6", "7", "8%"]]


def test_every_way_of_writing_carries_the_actor_with_and_without_a_transaction(scene: Scene) -> None:
    write_in_every_way()
    with transaction.atomic():
        write_in_every_way()
    Thing.objects.create(name="nobody")
    with context.bind(actor="9"):
        assert Thing.objects.filter(name="1").update(note="seen") == 2
        assert Thing.objects.filter(name="2").delete()[0] == 4
    rows = scene.read()
    assert [(row["name"], row["actor_id"]) for row in rows[:21]] == [*WRITTEN, *WRITTEN, ("nobody", None)]
    assert [(row["action"], row["actor_id"]) for row in rows[21:]] == [
        *[("things.update", "9")] * 2, *[("things.delete", "9")] * 4,
    ]  # fmt: skip


def test_savepoints_errors_events_and_reading(scene: Scene) -> None:
    with context.bind(actor="a"):
        with transaction.atomic():
            sid = transaction.savepoint()
            Thing.objects.create(name="gone")
            transaction.savepoint_rollback(sid)
            Thing.objects.create(id=1000, name="1")
            with pytest.raises(IntegrityError), transaction.atomic():
                Thing.objects.create(id=1000, name="gone")
            Thing.objects.create(name="2")
            assert emit(connection, Emitted(category="a", action="b.c")) is True
        with pytest.raises(IntegrityError):
            Thing.objects.create(id=1000, name="gone")
        with pytest.raises(ObjectDoesNotExist):
            Thing.objects.get(name="gone")
        with CaptureQueriesContext(connection) as queries:
            Thing.objects.create(name="3")
        # Bound by the server a statement cannot share its message: it gets a transaction, which Django counts.
        assert len(queries) == (3 if connection.settings_dict["OPTIONS"]["server_side_binding"] else 1)
        with transaction.atomic(), connection.cursor() as cursor:
            list(Thing.objects.select_for_update(of=("self",)).none())
            list(Thing.objects.all())
            cursor.execute("set transaction read only")
            stamp(connection)
            assert emit(connection, Emitted(category="a", action="b.c")) is False
            cursor.execute("select pg_current_xact_id_if_assigned()::text")
            assert cursor.fetchone() == (None,)
        with connection.cursor() as cursor:
            cursor.execute("call make_and_commit('not stamped')")
    with context.bind(actor="b"), transaction.atomic():
        Thing.objects.create(name="4")
    assert scene.actors() == [("1", "a"), ("2", "a"), (None, "a"), ("3", "a"), ("not stamped", None), ("4", "b")]


def test_the_asynchronous_orm_does_the_same(scene: Scene) -> None:
    async def work(name: str) -> Any:
        with context.bind(actor=name):
            await Thing.objects.acreate(name=name)
            await Thing.objects.abulk_create([Thing(name=name)])

    async def run() -> None:
        from asgiref.sync import sync_to_async

        for name in ("1", "2"):
            await work(name)
        await Thing.objects.acreate(name="nobody")
        await sync_to_async(connections.close_all)()

    asyncio.run(run())
    assert scene.actors() == [("1", "1"), ("1", "1"), ("2", "2"), ("2", "2"), ("nobody", None)]


def test_a_connection_that_is_open_signs_with_the_key_that_is_rotated(scene: Scene) -> None:
    try:
        for key in ("old", "new"):
            hold(Options(stamp_key=key))
            with context.bind(actor=key):
                Thing.objects.create(name=key)
    finally:
        hold(None)
    rows = scene.read(stamp_keys=("new",))
    assert [(row["name"], (row["metadata"] or {}).get("unsigned")) for row in rows] == [("old", True), ("new", None)]
