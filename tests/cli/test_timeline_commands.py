"""``afterwrite show`` and ``history``: one activity, and one thing over time, on 80 columns and as JSON."""

from __future__ import annotations

import json

import psycopg
import pytest
from test_bad_input import afterwrite

STORED = """
insert into afterwrite.batch (
    id, position, source, first_at, last_at, transactions, rows, rows_per_table, rows_digest, digest
)
values (1, 1, 'main', '2026-11-13 12:00+00', '2026-11-13 13:00+00', 2, 2, '{}', sha256(''), sha256(''));
insert into afterwrite.activity (
    id, occurred_at, batch_id, xid, commit_lsn, ordinal, source, kind, category, action, outcome, severity, entity_type,
    entity_id, actor_id, summary, relation, operation, changed, before, after, metadata
)
select ((lpad(to_hex((extract(epoch from at) * 1000)::bigint >> 16), 8, '0') || '-'
         || lpad(to_hex((extract(epoch from at) * 1000)::bigint & 65535), 4, '0') || '-8000-8000-000000000000'))::uuid,
       at, 1, 7, lsn::pg_lsn, 0, 'main', 'change', 'data', 'users.' || op, 'success', 'info', 'users', key, 'user:7',
       op || ' users ' || key, 'public.users', op, changed, before::json, after::json, metadata::json
  from (values
        ('2026-11-13 12:00+00'::timestamptz, '0/10', 'insert', '42', null::text[], null,
         '{"id": 42, "name": "Ada", "bio": "' || repeat('long ', 100) || '", "gone": null}', null),
        ('2026-11-13 13:00+00', '0/20', 'update', '43', array['id', 'name'], '{"id": 42, "name": "Ada"}',
         '{"id": 43, "name": "Ada \\u001b[31mKing"}', '{"entity_was": "42"}')
       ) as v (at, lsn, op, key, changed, before, after, metadata);
"""


@pytest.fixture
def told_dsn(installed_dsn: str) -> str:
    with psycopg.connect(installed_dsn, autocommit=True) as connection:
        connection.execute(STORED.encode())
    return installed_dsn


def test_a_thing_its_row_at_a_moment_and_one_activity_are_shown_in_eighty_columns(told_dsn: str) -> None:
    history = afterwrite("history", "users/42", "--dsn", told_dsn, COLUMNS="80")
    assert history.returncode == 0, history.stderr
    assert "it is users/43 now" in history.stdout
    assert "42 → 43" in history.stdout
    assert "(502 characters)" in history.stdout
    assert "\x1b[31mKing" not in history.stdout
    row = afterwrite("history", "users/43", "--at", "2026-11-13T13:30:00+01:00", "--dsn", told_dsn, COLUMNS="80")
    assert "2026-11-13 12:30:00.000000 UTC: exists, as users/42" in row.stdout
    for said in (history, row):
        assert max(map(len, said.stdout.splitlines())) <= 80
    told = json.loads(afterwrite("history", "users/42", "-n", "1", "--json", AFTERWRITE_DSN=told_dsn).stdout)
    (newest,) = told["items"]
    assert [each["name"] for each in newest["diff"]] == ["id", "name"]
    shown = afterwrite("show", newest["id"], "--dsn", told_dsn, COLUMNS="80")
    assert shown.returncode == 0, shown.stderr
    assert "users/42" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("history", "users"), "TYPE/ID"),
        (("history", "users/42", "--at", "2026-11-13T13:30:00"), "2026-11-13T13:30:00Z"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_would_be(words: tuple[str, ...], remedy: str) -> None:
    said = afterwrite(*words, "--dsn", "host=/nowhere")
    assert said.returncode == 2
    assert remedy in said.stderr
