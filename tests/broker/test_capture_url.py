"""``capture_url``: capture as a command that opens its source and a broker, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from functools import partial
from pathlib import Path

import psycopg
import pytest
from typed import typed

from afterwrite import runtime
from afterwrite.bench.brokers import Cluster, broker_cluster
from afterwrite.broker import check
from afterwrite.broker.check import Seen, judge
from afterwrite.broker.link import Access, connect, read_access
from afterwrite.broker.receive import run_sources
from afterwrite.broker.topology import Layout, changes_config, changes_stream, lane_of_source
from afterwrite.capture.outbox import lay, plan_install
from afterwrite.errors import Refused, UsageError
from afterwrite.settings import Settings
from afterwrite.store.writer import open_sink

_USERS = """authorization { users = [
    { user: admin, password: a }
    { user: shop, password: s, permissions {
        publish: ["afterwrite.stored", "afterwrite.changes.shop", "afterwrite.changes.shop.outbox"]
        subscribe: ["_INBOX.>"] } }
    { user: writer, password: w, permissions {
        publish: ["$JS.API.>", "$JS.ACK.>", "_INBOX.>", "afterwrite.refused"]
        subscribe: ["_WRITERS.>", "afterwrite.stored"] } }
] }"""


async def install(dsn: str, store: str, slot: str) -> None:
    settings = Settings(dsn=dsn, store_dsn=store, source="shop", slot=slot)
    async with runtime.source_and_store(settings) as (source, there):
        await source.run(b"create table public.account (id int primary key, name text)")
        seen = await runtime.look_at_installation(settings, source, there, tables=["account"])
        await runtime.install(settings, seen, source, there)
        await lay(source, await plan_install(source))


def test_capture_and_its_outbox_reach_the_store_with_no_more_rights_than_the_documentation_gives(
    tmp_path: Path, dsn: str, installed_dsn: str
) -> None:
    slot = f"s_{secrets.token_hex(4)}"

    def stored() -> list[str]:
        with psycopg.connect(installed_dsn) as store:
            query = "select action from afterwrite.activity where source = 'shop' order by action"
            return [row[0] for row in store.execute(query).fetchall()]

    async def run(url: str) -> None:
        await install(dsn, installed_dsn, slot)
        admin = read_access(url, user="admin", password="a")
        layout = Layout(stream="AFTERWRITE", partitions=1, replicas=1, max_bytes=1 << 20, changes_bytes=8 << 20)
        await check.carry_out(admin, check.plan(await check.look(admin), layout))
        stop = asyncio.Event()
        writer = read_access(url, user="writer", password="w")
        told: list[runtime.RuntimeStatus] = []
        settings = Settings(
            dsn=dsn, capture_url=url, nats_user="shop", nats_password="s", source="shop", slot=slot, maintain_seconds=1
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(run_sources(writer, partial(open_sink, installed_dsn), stop=stop))
            group.create_task(runtime.run_capture(settings, stop=stop, on_status=told.append))
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("insert into account values (1, 'a')")
                event = {"event": {"category": "data", "action": "account.opened"}, "context": {}}
                connection.execute("select afterwrite_outbox.post(%s)", [json.dumps(event)])
            until = time.monotonic() + 20
            while stored() != ["account.insert", "account.opened"]:
                assert time.monotonic() < until, (stored(), told[-1:])
                await asyncio.sleep(0.1)
            stop.set()
        assert told[-1].maintenance is None
        assert told[-1].rollup is None
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                "insert into afterwrite.deferral"
                " (source, identity, trigger_oid, table_oid, relations, body, run, definition, path, mode)"
                " values ('shop', 'account.tell', 1, 1, '{account}', 'b', 'r', '{}', 'p', 'defer')"
            )
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(run_sources(writer, partial(open_sink, installed_dsn), stop=stop))
            with pytest.raises(Refused, match=r"account\.tell is deferred"):
                await runtime.run_capture(settings, stop=asyncio.Event())
            stop.set()
            await writing

    with broker_cluster(tmp_path, size=1, more=_USERS) as cluster:
        asyncio.run(run(cluster.url))


def test_settings_tell_a_store_from_the_brokers_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = Settings(dsn="dbname=shop", capture_url="nats://b:4222")
    for ask in (lambda: apart.store, lambda: apart.one_database):
        with pytest.raises(UsageError, match="only brokers before it") as refused:
            ask()
        assert "--store-dsn" in str(refused.value.remedy)
    assert Settings(dsn="dbname=shop", store_dsn="dbname=store", capture_url="tls://b").store == "dbname=store"
    env = {**os.environ, "AFTERWRITE_DSN": "dbname=shop", "AFTERWRITE_STORE_DSN": "nats://b:4222", "COLUMNS": "200"}
    wrong = typed("doctor", env=env)
    assert wrong.returncode == 2
    assert "capture_url" in wrong.stderr
    both = typed(
        "capture", "--url", "nats://b:4222", "--store-dsn", "dbname=x", env={**env, "AFTERWRITE_STORE_DSN": ""}
    )
    assert both.returncode == 2
    assert "two ways to the store" in both.stderr


def test_a_stream_for_changes_is_made_and_shown_by_commands(cluster: Cluster, access: Access) -> None:
    env = {**os.environ, "AFTERWRITE_NATS_URL": cluster.url, "AFTERWRITE_NATS_STREAM": access.stream, "COLUMNS": "80"}
    words = ("broker", "install", "--partitions", "1", "--max-bytes", "8MB", "--changes", "8MB", "--apply")
    made = typed(*words, env=env)
    try:
        assert made.returncode == 0, made.stderr
        assert changes_stream(access.stream) in made.stderr
        assert "Captured changes: 0 sources" in typed("broker", "status", env=env).stdout
    finally:
        asyncio.run(_delete(access))


async def _delete(access: Access) -> None:
    async with connect(access, name="test") as link:
        await link.ask(f"STREAM.DELETE.{changes_stream(access.stream)}")


def test_what_of_the_stream_for_changes_is_wrong_is_said() -> None:
    layout = Layout(stream="S", partitions=1, changes_bytes=1 << 20)
    good = changes_config("S", replicas=3, max_bytes=1 << 20)

    def rules(config: dict[str, object], **changes: object) -> list[str]:
        seen = Seen(where="b", stream="S", version=(2, 15), changes=config, **changes)  # type: ignore[arg-type]
        assert all(finding.remedy for finding in check._judge_changes(seen))
        return [finding.rule for finding in check._judge_changes(seen)]

    assert rules(good) == []
    assert rules({**good, "allow_rollup_hdrs": False}) == ["broker.changes"]
    assert rules({**good, "max_age": 5}) == ["broker.changes"]
    assert rules(good, changes_state={"bytes": 1 << 20}) == ["broker.changes_full"]
    assert rules(good, changes_consumers=({"name": "mine"}, {"name": "source-shop"})) == ["broker.foreign"]
    assert judge(Seen(where="b", stream="S", version=(2, 15)))[0].rule == "broker.stream"
    seen = Seen(where="b", stream="S", version=(2, 15), changes={**good, "storage": "memory"})
    with pytest.raises(Refused, match="cannot be altered"):
        check.plan(seen, layout)


@pytest.mark.parametrize("odd", ["two words", "a.b", "ü", "*", ">", "x" * 49, "", "a/b"])
def test_a_source_of_any_name_has_a_subject_of_its_own(odd: str) -> None:
    assert lane_of_source("shop-1_A") == "shop-1_A"
    assert lane_of_source(odd).startswith("x-")
    assert lane_of_source(odd) != lane_of_source(odd + " ")
