"""``afterwrite stamp``: it shows the SQL, acts when told, and takes everything away again."""

from __future__ import annotations

import json

import psycopg
from test_bad_input import afterwrite


def test_it_shows_what_it_would_do_does_it_and_takes_it_away_again(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("create table things (id int); create table parts (id int)")
        words = ("stamp", "install", "--postgrest", "--trigger", "things", "--trigger", "parts")
        shown = afterwrite(*words, "--dsn", dsn, COLUMNS="80")
        assert shown.returncode == 0, shown.stderr
        assert "create or replace function afterwrite_stamp.pre_request()" in shown.stdout
        assert "alter role authenticator set pgrst.db_pre_request" in shown.stdout
        assert "--apply" in shown.stdout
        assert conn.execute("select to_regnamespace('afterwrite_stamp')").fetchone() == (None,)
        done = afterwrite(*words, "--apply", "--json", DATABASE_URL=dsn)
        assert done.returncode == 0, done.stderr
        assert [step["table"] for step in json.loads(done.stdout)["steps"]][-2:] == ["public.things", "public.parts"]
        assert afterwrite("stamp", "remove", "--apply", "--dsn", dsn).returncode == 0
        assert conn.execute("select to_regnamespace('afterwrite_stamp')").fetchone() == (None,)
        conn.execute("insert into things values (1)")
