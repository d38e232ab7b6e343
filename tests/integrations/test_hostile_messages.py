"""Every role may write a logical message: whatever it says, capture goes on and the rows beside it are stored."""

from __future__ import annotations

import json
from typing import Any

import psycopg
from stamping_scene import Scene

ID = "01890a5d-ac96-774b-bcce-b302099a8057"


def test_events_and_stamps_of_every_kind_of_nonsense_do_not_stop_the_rows(installed_dsn: str) -> None:
    scene = Scene(installed_dsn)
    plain = {"category": "a", "action": "b.c"}
    events: list[Any] = [
        {**plain, "id": ID},
        {**plain, "id": ID},  # the same once more, in the same transaction
        {**plain, "id": "no id", "caused_by": "no id either"},
        {**plain, "caused_by": ID.upper()},
        {**plain, "duration_ms": 1e308},
        {**plain, "duration_ms": -1},
        {**plain, "occurred_at": "9999-12-31T23:59:59Z"},
        {**plain, "entity_id": "\0\ud800" * 100, "summary": "x" * 1_000_000},
        {**plain, "metadata": {"a": "\0", "b": ["\udfff"] * 10}},
        {**plain, "metadata": [1, "\0"], "outcome": "neither"},
        {"v": 1, "p": "{", "h": ""},
        [],
        "",
    ]
    texts = [json.dumps(each) for each in events] + ['{"category":"a","action":"b","duration_ms":1e999}', "\x01", "{}"]
    stamps = [
        '{"actor_id": 7}',
        '{"ip": "nowhere", "caused_by": "no id"}',
        '{"v":1,"p":"[]","h":"?"}',
        "[" * 10_000,
        "",
    ]
    with psycopg.connect(installed_dsn) as conn:
        for number, text in enumerate([*texts, *stamps]):
            prefix = "afterwrite.event" if number < len(texts) else "afterwrite.context"
            conn.execute("select pg_logical_emit_message(true, %s, %s::text)", [prefix, text])
            conn.execute("insert into things (name) values (%s)", [str(number)])
        conn.commit()
        conn.execute("insert into things (name) values ('after')")
    rows = scene.read(stamp_keys=("a-key-of-ours",))
    names = [row["name"] for row in rows if row["kind"] == "change"]
    assert names == [str(number) for number in range(len(texts) + len(stamps))] + ["after"]
    # One id is one event, however often it is said.
    assert len(rows) - len(names) == len(texts) - 1
    assert [str(row["id"]) for row in rows].count(ID) == 1
