"""A tenant's caller at every door: nothing of others comes out, by id, filter, cursor, count, or injection."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import psycopg
import pytest
from serving import Answer, Client, a_change, an_event, key, serving, store, write

from afterwrite.settings import Settings

NOW = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=10)
# What stands in everything that is the other tenant's, and in nothing else.
MARK = "zebra"


def theirs(number: int, **fields: Any) -> Any:
    return an_event(
        number, NOW + timedelta(seconds=number), tenant_id="other", action=f"{MARK}.act", category=f"{MARK}_cat",
        entity_type=f"{MARK}_thing", entity_id=f"{MARK}-{number}", actor_id=f"{MARK}:{number}",
        summary=f"a {MARK} did {number}", session_id=f"{MARK}-s", request_id=f"{MARK}-r",
        metadata=msgspec.Raw(b'{"secret": "%s"}' % MARK.encode()), **fields,
    )  # fmt: skip


OWN = [an_event(number, NOW + timedelta(seconds=number), tenant_id="acme") for number in range(1, 6)]
THEIRS = [theirs(number) for number in range(101, 106)]
# One transaction that wrote for both, and one activity of ours that names one of theirs as its cause.
SHARED = a_change(300, NOW, tenant_id="acme", ordinal=0)
SHARED_THEIRS = a_change(
    301, NOW, tenant_id="other", ordinal=1, commit_lsn=SHARED.commit_lsn, xid=SHARED.xid,
    after=msgspec.Raw(b'{"id": 301, "state": "%s"}' % MARK.encode()), relation=f"public.{MARK}", entity_type=MARK,
)  # fmt: skip
CAUSED = an_event(400, NOW + timedelta(seconds=200), tenant_id="acme", caused_by=THEIRS[0].id)
CAUSED_THEIRS = theirs(401, caused_by=OWN[0].id)


@pytest.fixture(scope="module")
def dsn(server: Any) -> Iterator[str]:
    with store(server) as dsn:
        write(dsn, *OWN, CAUSED)
        write(dsn, *THEIRS, CAUSED_THEIRS, source=MARK)
        write(dsn, SHARED, SHARED_THEIRS, source="main")
        write(dsn, an_event(500, NOW, action="nobody.knows"))
        yield dsn


@pytest.fixture(scope="module")
def operator(dsn: str) -> Iterator[Client]:
    with serving(Settings(dsn=dsn, serve_auth="required")) as client:
        yield client.with_key(key(dsn, "operator", "admin"))


@pytest.fixture(scope="module")
def tenant(operator: Client, dsn: str) -> Client:
    return operator.with_key(key(dsn, "acme", "read", "ingest", "admin", tenant="acme"))


def paths(operator: Client) -> list[str]:
    """Every GET that there is but the stream, with the other tenant's ids put in."""
    said = operator.get("/openapi.json").json
    values = {
        "id": [THEIRS[0].id, SHARED_THEIRS.id, CAUSED_THEIRS.id, OWN[0].id, SHARED.id, CAUSED.id],
        "entity_type": [f"{MARK}_thing", MARK],
        "entity_id": [f"{MARK}-101", "301"],
        "actor_id": [f"{MARK}:101"],
        "position": ["2"],
        "name": ["activity", "categories", "actions", "entity-types", "entities", "actors", "outcomes", "failed-logins",
                 "week", "unusual-hours"],
    }  # fmt: skip
    found: list[str] = []
    for path, item in said["paths"].items():
        if "get" not in item or path == "/v1/feed":
            continue
        filled = [path]
        for name, options in values.items():
            filled = [each.replace(f"{{{name}}}", option) for each in filled for option in
                      (options if f"{{{name}}}" in each else [""])]  # fmt: skip
        found += filled
        if any(each["name"] == "q" for each in item["get"].get("parameters", [])):
            found += [f"{path}?q={quote(line)}" for line in LINES]
    return found


def without_looks(answer: Answer, path: str) -> str:
    """What an answer says, but for what says again what was asked: the row's own name, and who asked that before."""
    said = answer.json
    if isinstance(said.get("items"), list):
        said["items"] = [each for each in said["items"] if each.get("action") != "activity.looked"]
    if path.startswith("/v1/entities/"):
        said.pop("entity_type", None)
        said.pop("entity_id", None)
    return msgspec.json.encode(said).decode()


LINES = (
    "tenant:other", f"action:{MARK}.act", f"action:{MARK}.*", f"actor:{MARK}:101", f"entity:{MARK}_thing/{MARK}-101",
    f"category:{MARK}_cat", MARK, f'"{MARK} did"', f"metadata.secret:{MARK}", "-tenant:acme", f"session:{MARK}-s",
    f"source:{MARK}", f"id:{THEIRS[0].id}", "before:2099-01-01", "tenant:acme tenant:other", f"entity:{MARK}_",
)  # fmt: skip


def test_no_door_shows_what_is_another_tenants(tenant: Client, operator: Client) -> None:
    asked = paths(operator)
    assert len(asked) > 60
    seen = 0
    for path in asked:
        answer = tenant.get(path)
        assert answer.status in (200, 400, 403, 404), (path, answer)
        if answer.status == 200 and path != "/openapi.json":
            body = without_looks(answer, path)
            assert MARK not in body, (path, body[:600])
            assert "nobody.knows" not in body, path
            seen += len(answer.json.get("items", []))
        for id in (THEIRS[0].id, SHARED_THEIRS.id, CAUSED_THEIRS.id):
            if id not in path and id != CAUSED.caused_by:
                assert id not in answer.body.decode(), path
    assert seen > 0
    for path in ("/v1/batches", "/v1/batches/1", "/v1/health", "/v1/migration", "/metrics"):
        assert tenant.get(path).status == 403, path
        assert operator.get(path).status == 200, path
    assert tenant.get("/v1/analytics/activity?tenant=other").status == 403


def test_what_is_there_is_seen_by_whom_it_belongs_to(tenant: Client, operator: Client) -> None:
    own = {each["id"] for each in tenant.get("/v1/activities?limit=500").json["items"]}
    assert own >= {each.id for each in (*OWN, SHARED, CAUSED)}
    assert tenant.get(f"/v1/activities/{OWN[0].id}").status == 200
    assert tenant.get(f"/v1/activities/{THEIRS[0].id}").status == 404
    assert operator.get(f"/v1/activities/{THEIRS[0].id}").status == 200
    assert tenant.get(f"/v1/activities/{SHARED.id}/transaction").json["items"] == []
    assert len(operator.get(f"/v1/activities/{SHARED.id}/transaction").json["items"]) == 1
    assert tenant.get(f"/v1/activities/{OWN[0].id}/effects").json["items"] == []
    assert len(operator.get(f"/v1/activities/{OWN[0].id}/effects").json["items"]) == 1
    assert tenant.get(f"/v1/entities/{MARK}/301").status == 404


def test_the_pages_show_a_tenant_its_own_alone(tenant: Client, operator: Client) -> None:
    for path in ("/", "/search", "/overview", f"/activity/{SHARED.id}", f"/activity/{CAUSED.id}", "/entity/order/1"):
        answer = tenant.get(path, Accept="text/html")
        assert answer.status == 200, path
        # What the tenant asked before is told in it, as looks: no summary of theirs was ever asked for.
        assert not [each.summary for each in THEIRS if str(each.summary) in answer.body.decode()], path
    assert tenant.get(f"/activity/{THEIRS[0].id}", Accept="text/html").status == 404
    assert operator.get(f"/activity/{THEIRS[0].id}", Accept="text/html").status == 200
    for path in ("/health", "/migration"):
        assert tenant.get(path, Accept="text/html").status == 403, path
        assert operator.get(path, Accept="text/html").status == 200, path


def test_nobody_puts_a_row_before_anothers_of_the_same_id(tenant: Client, operator: Client, dsn: str) -> None:
    for it in (SHARED_THEIRS, THEIRS[1]):
        for beside in (-1, 1, 400):
            fake = {"id": it.id, "occurred_at": it.occurred_at + timedelta(microseconds=beside), "action": "fake.act"}
            assert tenant.post("/v1/activities", {"activities": [fake]}).json["stored"] == 1
        assert operator.get(f"/v1/activities/{it.id}").json["action"] == it.action
        assert "fake.act" not in operator.get(f"/activity/{it.id}", Accept="text/html").body.decode()
        assert tenant.get(f"/v1/activities/{it.id}").json["action"] == "fake.act"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("delete from afterwrite.activity where action = 'fake.act'")


def test_a_cursor_of_the_operators_shows_a_tenant_its_own_alone(tenant: Client, operator: Client) -> None:
    page = operator.get("/v1/activities?limit=3").json
    cursor = page["older"]
    while cursor:
        assert MARK not in without_looks(tenant.get(f"/v1/activities?limit=3&cursor={cursor}"), "")
        cursor = operator.get(f"/v1/activities?limit=3&cursor={cursor}").json["older"]


def test_a_tenants_name_is_a_name_whatever_it_holds(operator: Client, dsn: str) -> None:
    odd = "o'br\\ien'; reset role; --"
    write(dsn, an_event(600, NOW, tenant_id=odd))
    asking = operator.with_key(key(dsn, "odd", "read", tenant=odd))
    found = asking.get("/v1/activities?q=action:order.placed").json["items"]
    assert [each["entity_id"] for each in found] == ["600"]
    assert asking.get("/v1/analytics/activity").status == 200


def test_the_feed_resumes_with_ones_own_alone(tenant: Client) -> None:
    parts = urlsplit(tenant.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request("GET", "/v1/feed?last_event_id=0", headers={"Authorization": f"Bearer {tenant.key}"})
        answer = connection.getresponse()
        assert answer.status == 200
        body = b""
        while CAUSED.id.encode() not in body and SHARED.id.encode() not in body:
            body += answer.read1()
        assert connection.sock is not None
        connection.sock.settimeout(0.5)
        with suppress(TimeoutError):
            body += answer.read1()
    finally:
        connection.close()
    assert OWN[0].id.encode() in body
    assert MARK.encode() not in body


INJECTED = (
    "' or '1'='1", "'; drop table afterwrite.activity; --", "') or true --", "\\' or 1=1 --", "%' or '%'='",
    "' union select tenant_id from afterwrite.activity --", "$$ or true $$", "*", "%", "_", "\\", "\\\\", "(", ")", "[",
    '"', '"" or ""', "a'b", "{}", "$1", "%s", "%(tenant)s", "::text", "/*", "*/", "\u2028", "\ufffe", "\U0001f980",
    "';set role postgres;--", "'; reset role; select 1 --", "' || pg_sleep(5) || '", "&|!():*", "a & !", "<->", "''''",
    "\x01", "\t", "\u0000"[:0] or "e", "ﷺ" * 50, "1e400", "-" * 200, "a:" * 50, "acme' or tenant_id <> '",
)  # fmt: skip
KEYS = (
    "actor", "action", "entity", "category", "outcome", "severity", "kind", "source", "tenant", "session", "request",
    "trace", "ip", "changed", "metadata.plan", "after", "before", "id", "type", "text", "summary", "operation",
    "relation",
)  # fmt: skip


def test_no_filter_can_be_talked_out_of_its_sentence(tenant: Client, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        before = connection.execute("select count(*) from afterwrite.activity where tenant_id = 'other'").fetchone()
    for number, attack in enumerate(INJECTED):
        lines = [attack, f'"{attack}"', f"-{attack}"]
        lines += [f"{name}:{attack}" for name in KEYS] if number < 6 else [f'actor:"{attack}"']
        for line in lines:
            answer = tenant.get(f"/v1/activities?q={quote(line)}")
            assert answer.status in (200, 400), (line, answer)
            assert MARK not in without_looks(answer, ""), line
        for path in () if number > 15 else (
            f"/v1/entities/{quote(attack, safe='')}/1/timeline", f"/v1/entities/order/{quote(attack, safe='')}",
            f"/v1/entities/order/{quote(attack, safe='')}/timeline", f"/v1/actors/{quote(attack, safe='')}/timeline",
            f"/v1/activities/{quote(attack, safe='')}", f"/v1/analytics/{quote(attack, safe='')}",
            f"/v1/activities?cursor={quote(attack)}", f"/v1/activities?limit={quote(attack)}",
            f"/v1/analytics/activity?after={quote(attack)}&tenant={quote(attack)}",
        ):  # fmt: skip
            answer = tenant.get(path)
            assert answer.status in (200, 400, 403, 404, 405), (path, answer)
            assert MARK not in without_looks(answer, path), path
    with psycopg.connect(dsn) as connection:
        after = connection.execute("select count(*) from afterwrite.activity where tenant_id = 'other'").fetchone()
    assert after == before
