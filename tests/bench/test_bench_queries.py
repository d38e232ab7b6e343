"""The benchmark of queries, as small as it goes: both sides hold the same rows, and every question is answered."""

from __future__ import annotations

import asyncio

import msgspec
import psycopg

from afterwrite.bench.corpus import lay_corpus
from afterwrite.bench.queries import Options, bench_queries


def test_every_question_is_put_to_the_audit_table_and_to_the_store() -> None:
    options = Options(rows=6_000, days=2, rounds=1, questions=1)
    report = msgspec.to_builtins(asyncio.run(bench_queries(options, lambda words: None)))

    claims = {claim["claim"]: claim for claim in report["claims"]}
    assert claims["by text, audit table to store"]["baseline"] > 0
    assert claims["activity queries together, audit table to store"]["target"] == 0.2
    assert claims["activities in both"]["measured"] == 6_000


def test_the_audit_table_holds_what_the_store_holds(dsn: str) -> None:
    asyncio.run(lay_corpus(dsn, rows=2_000, days=3))
    with psycopg.connect(dsn) as connection:
        assert connection.execute(
            "select count(*), count(distinct created_at), count(*) filter (where new_data is null) from audit_logs"
        ).fetchone() == (2_000, 2_000, 0)
        assert connection.execute(
            "select count(*) from audit_logs l join afterwrite.activity a on a.occurred_at = l.created_at"
            " where a.entity_id = l.record_id and a.entity_type = l.table_name and a.actor_id = l.user_id"
        ).fetchone() == (2_000,)
