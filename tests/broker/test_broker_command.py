"""``afterwrite broker``: what is made, what is unsafe, who may come in; and an application that records through it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import nkeys
import psycopg
import pytest
from typed import typed

from afterwrite.bench.brokers import Cluster, broker_cluster
from afterwrite.broker import check
from afterwrite.broker.bundle import MESSAGE_ID, RECEIPT, unbundle
from afterwrite.broker.check import Monitored, Seen, judge
from afterwrite.broker.link import Access, connect, read_access
from afterwrite.broker.publish import broker_sink
from afterwrite.broker.topology import PARTITIONS, STORE, Layout, consumer_config, stream_config
from afterwrite.broker.write import Writer
from afterwrite.cli.face import sentence
from afterwrite.errors import AfterwriteError, Severity, UsageError
from afterwrite.recorder import Durability, Options, Recorder
from afterwrite.recorder.options import read_options
from afterwrite.recorder.spool import Chunk, CorruptError, decode_chunk, salvage
from afterwrite.store.writer import open_sink

LAYOUT = Layout(stream="S", partitions=2, store="ours")


def test_a_stream_is_made_checked_written_and_read_by_commands(
    cluster: Cluster, access: Access, installed_dsn: str, tmp_path: Path
) -> None:
    env = {
        **os.environ,
        "AFTERWRITE_NATS_URL": cluster.url,
        "AFTERWRITE_NATS_STREAM": access.stream,
        "AFTERWRITE_STORE_DSN": installed_dsn,
        "AFTERWRITE_RECORD_URL": cluster.url,
        "AFTERWRITE_SPOOL_DIR": str(tmp_path),
        "COLUMNS": "80",
    }
    assert typed("broker", "check", env=env).returncode == 5
    foreseen = typed("broker", "install", "--partitions", "2", "--max-bytes", "64MB", env=env)
    assert "make the stream" in foreseen.stdout
    assert "Nothing was done" in foreseen.stdout
    assert typed("broker", "install", "--partitions", "2", "--max-bytes", "64MB", "--apply", env=env).returncode == 0
    assert "nothing to do" in typed("broker", "install", env=env).stdout
    too_much = typed("broker", "install", "--max-bytes", "900TB", "--apply", env=env)
    assert too_much.returncode == 1
    assert too_much.stderr.count("JetStream says") == 1
    assert "--max-bytes" in too_much.stderr
    assert typed("broker", "install", "--max-bytes", "8", env=env).returncode == 2
    bare = typed("broker", "status", "--url", "127.0.0.1:4222", env=env)
    assert bare.returncode == 2
    assert "127.0.0.1:4222 is no address of a broker" in bare.stderr
    blind = typed("broker", "check", env=env)
    assert blind.returncode == 3
    assert "cannot be seen" in blind.stdout
    monitors = ",".join(f"http://127.0.0.1:{node.monitor}" for node in cluster.nodes)
    seeing = typed("broker", "check", env={**env, "AFTERWRITE_NATS_MONITOR": monitors})
    assert seeing.returncode == 0, seeing.stdout
    assert "is safe" in seeing.stdout
    asyncio.run(pause(access, "writer-1", datetime.now(UTC) + timedelta(hours=1)))
    paused = typed("broker", "check", env={**env, "AFTERWRITE_NATS_MONITOR": monitors})
    assert paused.returncode == 3
    assert "writer-1" in paused.stdout
    assert f"nats consumer resume {access.stream} writer-1" in " ".join(paused.stdout.split())
    # What was paused and is so no more still says until when: the writer behind must not stumble over it.
    for number in range(2):
        asyncio.run(pause(access, f"writer-{number}", datetime.now(UTC)))

    code = "from afterwrite import activity; activity.record('order.paid'); assert activity.flush(20)"
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    waiting = json.loads(typed("broker", "status", "--json", env=env).stdout)
    assert sum(each["waiting"] for each in waiting["partitions"]) == 1
    command = [sys.executable, "-m", "afterwrite", "broker", "write", "--json"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as writer, killed_at_last(writer):
        with psycopg.connect(installed_dsn, autocommit=True) as connection:
            until = time.monotonic() + 20
            while not connection.execute("select 1 from afterwrite.activity where action = 'order.paid'").fetchone():
                assert time.monotonic() < until
                time.sleep(0.05)
        began = time.monotonic()
        writer.send_signal(signal.SIGTERM)
        said, _ = writer.communicate(timeout=20)
        assert writer.returncode == 0
        assert time.monotonic() - began < 5
    assert sum({line["partition"]: line["stored"] for line in map(json.loads, said.splitlines())}.values()) == 1

    altered = typed("broker", "install", "--partitions", "3", "--apply", env=env)
    assert altered.returncode == 0, altered.stderr
    assert len(json.loads(typed("broker", "status", "--json", env=env).stdout)["partitions"]) == 3


@contextmanager
def killed_at_last(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whatever goes wrong inside: nobody waits for it for ever."""
    try:
        yield
    finally:
        process.kill()


async def pause(access: Access, consumer: str, until: datetime) -> None:
    async with connect(access, name="test") as link:
        await link.ask(f"CONSUMER.PAUSE.{access.stream}.{consumer}", {"pause_until": until.isoformat()})


def seen(**changes: object) -> Seen:
    """A broker as it should be, but for these."""
    consumers = tuple({"name": f"writer-{n}", "config": consumer_config("S", n, 2)} for n in range(2))
    good = Seen(
        where="b:4222",
        stream="S",
        version=(2, 12),
        config=stream_config(LAYOUT),
        state={"messages": 0, "bytes": 0},
        cluster={"leader": "a", "replicas": [{"name": "b", "current": True}, {"name": "c", "current": True}]},
        consumers=consumers,
        monitored=tuple(Monitored(url=f"http://{name}", server=name, sync_always=True) for name in "abc"),
    )
    return msgspec.structs.replace(good, **changes)


def test_a_broker_as_it_is_installed_is_safe() -> None:
    assert judge(seen()) == []
    assert check.plan(seen(), LAYOUT) == []


@pytest.mark.parametrize(
    ("setting", "value", "rule", "severity"),
    [
        ("num_replicas", 1, "broker.replicas", Severity.ERROR),
        ("storage", "memory", "broker.storage", Severity.ERROR),
        ("retention", "limits", "broker.retention", Severity.ERROR),
        ("discard", "old", "broker.discard", Severity.ERROR),
        ("max_age", 3_600_000_000_000, "broker.max_age", Severity.ERROR),
        ("max_msgs_per_subject", 5, "broker.max_msgs_per_subject", Severity.ERROR),
        ("no_ack", True, "broker.no_ack", Severity.ERROR),
        ("persist_mode", "async", "broker.persist_mode", Severity.ERROR),
        ("compression", "s2", "broker.compression", Severity.ERROR),
        ("max_bytes", -1, "broker.max_bytes", Severity.WARNING),
        ("duplicate_window", 1, "broker.duplicate_window", Severity.WARNING),
        ("subjects", ["s.00"], "broker.subjects", Severity.ERROR),
        ("metadata", {STORE: "ours"}, "broker.partitions", Severity.ERROR),
        ("metadata", {PARTITIONS: "2"}, "broker.store", Severity.WARNING),
    ],
)
def test_what_of_a_stream_is_unsafe_is_said(setting: str, value: object, rule: str, severity: Severity) -> None:
    found = judge(seen(config={**stream_config(LAYOUT), setting: value}))
    assert [(each.rule, each.severity) for each in found] == [(rule, severity)]
    assert found[0].remedy
    assert sentence(found[0]).startswith("stream S at b:4222")


def test_what_of_servers_and_consumers_is_unsafe_is_said() -> None:
    def rules(**changes: object) -> list[str]:
        return [each.rule for each in judge(seen(**changes))]

    good = seen()
    late = (Monitored(url="http://a", server="a", sync_seconds=120), *good.monitored[1:])
    assert rules(monitored=late) == ["broker.sync"]
    assert rules(monitored=()) == ["broker.sync_unseen"]
    assert rules(monitored=(Monitored(url="http://a", trouble="refused"), *good.monitored[1:])) == [
        "broker.monitor", "broker.sync_unseen",
    ]  # fmt: skip
    away = {"leader": "a", "replicas": [{"name": "b", "offline": True}, {"name": "c", "current": True}]}
    assert rules(cluster=away) == ["broker.replica"]
    assert rules(consumers=good.consumers[:1]) == ["broker.consumer"]
    given_up = {"name": "writer-1", "config": {**consumer_config("S", 1, 2), "max_deliver": 3}}
    assert rules(consumers=(good.consumers[0], given_up)) == ["broker.consumer"]
    assert rules(consumers=(*good.consumers, {"name": "mine", "config": {}})) == ["broker.foreign"]
    assert rules(version=(2, 10)) == ["broker.version"]
    assert rules(state={"bytes": 8 << 30}) == ["broker.full"]
    assert rules(state={"bytes": 0, "subjects": {"s.refused": 2}}) == ["broker.refused"]
    assert rules(config=None) == ["broker.stream"]


def test_a_stream_goes_to_another_store_only_when_that_is_said() -> None:
    asked = {"partitions": None, "replicas": None, "max_bytes": None}
    with pytest.raises(AfterwriteError, match="is for the store ours"):
        check.layout_of(seen(), **asked, store="theirs")
    assert check.plan(seen(), check.layout_of(seen(), **asked, store="ours")) == []
    assert check.plan(seen(), check.layout_of(seen(), **asked)) == []
    (step,) = check.plan(seen(), check.layout_of(seen(), **asked, store="theirs", another_store=True))
    assert "the store that it is for" in step.text
    assert step.question["metadata"][STORE] == "theirs"


def test_what_cannot_be_altered_is_refused() -> None:
    with pytest.raises(AfterwriteError, match="cannot be altered"):
        check.plan(seen(config={**stream_config(LAYOUT), "storage": "memory"}), LAYOUT)


def test_only_who_knows_the_password_comes_in_and_under_tls_when_asked(tmp_path: Path) -> None:
    for words in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.crt",
        "req -newkey rsa:2048 -nodes -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out csr",
        "x509 -req -in csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -copy_extensions copy -out cert.pem",
    ):
        subprocess.run(["openssl", *words.split()], cwd=tmp_path, check=True, capture_output=True)
    files = {"cert_file": tmp_path / "cert.pem", "key_file": tmp_path / "key.pem"}
    users = 'authorization { users = [{ user: "shop", password: "right" }] }'
    with broker_cluster(tmp_path, size=1, more=users, tls=files) as cluster:
        given = {"user": "shop", "password": "right", "ca": str(tmp_path / "ca.crt")}

        async def come(**words: str) -> None:
            async with connect(read_access(cluster.url.replace("nats:", "tls:"), **words), name="test") as link:
                await link.ask("INFO")

        asyncio.run(come(**given))
        with pytest.raises(AfterwriteError, match="does not let us in"):
            asyncio.run(come(**{**given, "password": "wrong"}))
        with pytest.raises(AfterwriteError, match=r"(?i)certificate"):
            asyncio.run(come(user="shop", password="right"))


def test_recorders_and_writers_need_no_more_than_the_documentation_gives_them(
    tmp_path: Path, installed_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = """authorization { users = [
        { user: admin, password: a }
        { user: shop, password: s, permissions { publish: ["afterwrite.*"], subscribe: ["_INBOX.>"] } }
        { user: writer, password: w, permissions {
            publish: ["$JS.API.>", "$JS.ACK.>", "_INBOX.>", "afterwrite.refused"],
            subscribe: ["_WRITERS.>", "afterwrite.stored"] } }
    ] }"""

    async def run(url: str) -> None:
        admin = read_access(url, user="admin", password="a")
        layout = Layout(stream="AFTERWRITE", partitions=1, replicas=1, max_bytes=1 << 20)
        await check.carry_out(admin, check.plan(await check.look(admin), layout))
        writer = Writer(read_access(url, user="writer", password="w"), partial(open_sink, installed_dsn), 0)
        running = asyncio.create_task(writer.run())
        sink = broker_sink(read_access(url, user="shop", password="s"))
        options = Options(spool_dir=str(tmp_path / "spool"), durability=Durability.STORED)
        recorder = Recorder(source="shop", open_sink=sink, options=options, destination="broker")
        heard: list[bytes] = []

        async def hear(message: Any) -> None:
            heard.append(bytes(message.data))

        async with connect(read_access(url, user="shop", password="s"), name="prying") as link:
            await link.hear("_INBOX.>", hear)
            recorder.record("order.paid")
            assert await asyncio.to_thread(recorder.flush, 10), recorder.stats()
            await asyncio.to_thread(recorder.close)
            # What a writer may do, it does not do for whoever asks for a receipt.
            for name, inbox in {"{}": "$JS.API.STREAM.DELETE.AFTERWRITE", "a/1": "afterwrite.refused"}.items():
                await (await link.publish("afterwrite.00", b"[]", {MESSAGE_ID: name, RECEIPT: inbox}))
        until = time.monotonic() + 10
        while (await check.look(admin)).state["messages"]:
            assert time.monotonic() < until, writer.status
            await asyncio.sleep(0.05)
        writer.stop()
        await running
        assert writer.status.stored == 1
        assert not [said for said in heard if b"order.paid" in said], "a recorder hears what others say"
        assert (await check.look(admin)).config is not None
        monkeypatch.setattr("afterwrite.broker.link._API_SECONDS", 0.3)
        with pytest.raises(AfterwriteError, match="does not let this account do so: permissions violation"):
            await check.look(read_access(url, user="shop", password="s"))

    with broker_cluster(tmp_path, size=1, more=users) as cluster:
        asyncio.run(run(cluster.url))


def test_a_server_that_asks_for_no_tls_hears_no_password_where_tls_is_meant() -> None:
    heard: list[bytes] = []

    async def run() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b'INFO {"server_id":"x","version":"2.11.0","max_payload":1000000}\r\n')
            heard.append(await reader.read(1000))
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(AfterwriteError, match="asks for no TLS"):
                async with connect(read_access(f"tls://127.0.0.1:{port}", user="me", password="hidden"), name="test"):
                    pass

    asyncio.run(run())
    assert heard == [b""]


def test_what_is_nested_too_deeply_holds_nobody_up() -> None:
    deep = b'[{"metadata": ' + b"[" * 5_000 + b"]" * 5_000 + b"}]"
    with pytest.raises(ValueError, match="too deeply"):
        unbundle(deep)
    chunk = Chunk(number=1, at=0.0, events=1, body=deep)
    with pytest.raises(CorruptError):
        decode_chunk(chunk)
    assert [refusal.body for refusal in salvage(chunk)[1]] == [deep]


def test_settings_name_who_comes_and_never_print_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("hidden\n")
    monkeypatch.setenv("AFTERWRITE_NATS_PASSWORD_FILE", str(tmp_path / "password"))
    assert read_options(folder=tmp_path).nats_password == "hidden"
    with pytest.raises(UsageError, match="is no address of a broker") as refused:
        read_access("http://me:hidden@broker")
    assert "hidden" not in f"{refused.value} {refused.value.remedy}"
    with pytest.raises(UsageError, match="nats_credentials names a file that is not there"):
        read_access("nats://broker", credentials=str(tmp_path / "nowhere.creds"))
    with pytest.raises(UsageError, match="go together"):
        read_access("nats://broker", cert=str(tmp_path / "password"))
    assert read_access("nats://me:hidden@one,nats://two:5222").where == "one:4222,two:5222"


def test_an_nkey_and_its_seed_in_a_file_come_in(tmp_path: Path) -> None:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    (tmp_path / "seed").write_bytes(seed)
    public = nkeys.from_seed(seed).public_key.decode()
    with broker_cluster(tmp_path, size=1, more=f'authorization {{ users = [{{ nkey: "{public}" }}] }}') as cluster:

        async def come(**words: str) -> None:
            async with connect(read_access(cluster.url, **words), name="test") as link:
                await link.ask("INFO")

        asyncio.run(come(nkey=str(tmp_path / "seed")))
        with pytest.raises(AfterwriteError, match="does not let us in"):
            asyncio.run(come())


def test_without_the_library_for_brokers_a_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nats", None)

    async def come() -> None:
        async with connect(read_access("nats://127.0.0.1:9"), name="test"):
            pass

    with pytest.raises(UsageError, match="nats-py") as refused:
        asyncio.run(come())
    assert refused.value.remedy == "pip install 'afterwrite[nats]'"
