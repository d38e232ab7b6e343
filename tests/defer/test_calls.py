"""Which bodies are called, for what, in which order: without a database."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from triggers import a_trigger

from afterwrite.context import Context, decode_context
from afterwrite.defer import calls as defer_calls
from afterwrite.defer.calls import (
    Coverage,
    Deferral,
    FeedChange,
    Group,
    Job,
    LongPlan,
    ReplayPolicy,
    SourceTransaction,
    allowed_settings,
    count_rows,
    encode_jobs,
    gather,
    plan_job,
    plan_long_job,
    split_job,
)
from afterwrite.record import Lsn, Operation
from afterwrite.scan.catalog import Enabled, Event, TriggerLevel

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def deferral(number: int, name: str, **trigger: Any) -> Deferral:
    table = trigger.pop("table", "t")
    return Deferral(
        id=number,
        identity=f"public.{table}.{name}",
        run=f"run_{name}",
        relations=(f"public.{table}",),
        trigger=a_trigger(name=name, table=table, **trigger),
    )


def row(ordinal: int, operation: str = "insert", *, table: str = "t", lsn: int = 100, **more: Any) -> FeedChange:
    value = msgspec.Raw(b'{"id":%d}' % ordinal)
    return FeedChange(
        id=f"id {ordinal}",
        commit_lsn=Lsn(lsn),
        ordinal=ordinal,
        occurred_at=NOON,
        relation=f"public.{table}",
        operation=Operation(operation),
        **{
            "before": value if operation in ("update", "delete") else None,
            "after": value if operation in ("insert", "update") else None,
            **more,
        },
    )


def plan(
    changes: list[FeedChange], *deferrals: Deferral, settings: dict[str, str] | None = None, deepest: int = 16
) -> Job | None:
    transaction = SourceTransaction(
        commit_lsn=Lsn(100), committed_at=NOON, changes=tuple(changes), settings=settings or {}
    )
    return plan_job(
        transaction,
        Coverage(deferrals),
        source="app",
        after=Lsn(50),
        position=7,
        reached=Lsn(120),
        policy=ReplayPolicy(deepest=deepest),
    )


def calls(job: Job | None) -> list[tuple[str, str, int]]:
    """(run, operation, ordinal) in the order in which they happen."""
    assert job is not None
    return [(run, group.operation, ordinal) for group in job.groups for ordinal in group.ordinals for run in group.runs]


def test_rows_come_in_order_and_for_each_row_the_triggers_by_name_as_bytes() -> None:
    job = plan([row(0), row(1)], deferral(1, "b"), deferral(2, "a"), deferral(3, "Z"))
    assert calls(job) == [
        ("run_Z", "INSERT", 0),
        ("run_a", "INSERT", 0),
        ("run_b", "INSERT", 0),
        ("run_Z", "INSERT", 1),
        ("run_a", "INSERT", 1),
        ("run_b", "INSERT", 1),
    ]
    assert job is not None
    assert len(job.groups) == 1


def test_a_change_of_table_or_operation_keeps_its_place() -> None:
    both = (Event.INSERT, Event.DELETE)
    job = plan(
        [row(0), row(1, table="u"), row(2), row(3, "delete")],
        deferral(1, "t", events=both),
        deferral(2, "u", table="u", events=both),
    )
    assert calls(job) == [
        ("run_t", "INSERT", 0),
        ("run_u", "INSERT", 1),
        ("run_t", "INSERT", 2),
        ("run_t", "DELETE", 3),
    ]


def test_what_concerns_no_deferral_is_no_job() -> None:
    assert plan([row(0, table="u"), row(1, "delete")], deferral(1, "t")) is None


def test_update_of_is_told_by_what_changed_and_fires_where_that_is_not_known() -> None:
    watcher = deferral(1, "t", events=(Event.UPDATE,), columns=("a", "b"))
    job = plan(
        [
            row(0, "update", changed=("a",)),
            row(1, "update", changed=("c",)),
            row(2, "update", changed=()),
            row(3, "update", changed=None),
        ],
        watcher,
    )
    assert [ordinal for _, _, ordinal in calls(job)] == [0, 3]


def test_statement_triggers_run_after_the_rows_once_a_table_and_operation_with_all_rows() -> None:
    statement = deferral(1, "a", level=TriggerLevel.STATEMENT, events=(Event.UPDATE,), old_table="o", new_table="n")
    plain = deferral(2, "b", level=TriggerLevel.STATEMENT, events=(Event.INSERT, Event.UPDATE, Event.TRUNCATE))
    rows = deferral(3, "c", events=(Event.UPDATE,))
    job = plan([row(0, "update"), row(1), row(2, "update"), row(3, "truncate")], statement, plain, rows)
    assert calls(job) == [
        ("run_c", "UPDATE", 0),
        ("run_c", "UPDATE", 2),
        ("run_a", "UPDATE", 0),
        ("run_b", "UPDATE", 0),
        ("run_b", "INSERT", 1),
        ("run_b", "TRUNCATE", 3),
    ]
    assert job is not None
    groups = json.loads(encode_jobs(job))["groups"]
    assert [group["rows"] for group in groups if group["deferrals"] == [1]] == [
        [[[{"id": 0}, {"id": 2}], [{"id": 0}, {"id": 2}]]]
    ]
    assert all(group["rows"] == [[None, None]] for group in groups if group["deferrals"] == [2])


def test_what_was_put_off_to_the_commit_runs_last() -> None:
    late = deferral(1, "a", constraint=True, deferrable=True, initially_deferred=True)
    statement = deferral(2, "b", level=TriggerLevel.STATEMENT)
    assert [run for run, _, _ in calls(plan([row(0), row(1)], late, statement, deferral(3, "c")))] == [
        "run_c",
        "run_c",
        "run_b",
        "run_a",
        "run_a",
    ]


def test_the_stamp_keeps_who_and_why_names_the_first_change_and_counts_the_depth() -> None:
    context = Context(actor_id="ann", reason="because")
    job = plan(
        [row(0, table="u", context=context), row(1, context=context), row(2, context=context)],
        deferral(1, "t"),
        settings={"app.tenant": "x", "afterwrite.depth": "3"},
    )
    assert job is not None
    stamp = decode_context(job.context.encode())
    assert stamp == Context(
        actor_id="ann", reason="because", caused_by="id 1", settings={"app.tenant": "x", "afterwrite.depth": "4"}
    )
    assert job.settings == {"app.tenant": "x"}


def test_a_cascade_that_is_too_deep_and_rows_that_are_not_whole_are_refused_apart() -> None:
    job = plan([row(0)], deferral(1, "t"), settings={"afterwrite.depth": "16"})
    assert job is not None
    assert "16 times over" in (job.groups[0].refused or "")

    update = deferral(1, "t", events=(Event.UPDATE,))
    job = plan(
        [row(0, "update"), row(1, "update", lacking=("big",)), row(2, "update", before=None), row(3, "update")], update
    )
    assert job is not None
    assert [(group.ordinals, group.refused is None) for group in job.groups] == [
        ([0], True),
        ([1], False),
        ([2], False),
        ([3], True),
    ]
    assert "does not hold big" in (job.groups[1].refused or "")
    assert "old row" in (job.groups[2].refused or "")


def test_only_custom_settings_that_the_policy_names_are_set_again() -> None:
    given = {
        "request.jwt.claims": "1",
        "app.user": "2",
        "role": "postgres",
        "search_path": "evil",
        "session_replication_role": "replica",
        "other.thing": "3",
        "afterwrite.committed_at": "4",
        "plpgsql.variable_conflict": "5",
        "app.bad name": "6",
        "app.": "7",
    }
    assert allowed_settings(given, ["request.*", "app.*"]) == {"request.jwt.claims": "1", "app.user": "2"}
    assert set(allowed_settings(given, ["*"])) == {"request.jwt.claims", "app.user", "other.thing"}
    assert allowed_settings(given, []) == {}


def test_changes_are_gathered_by_commit_with_the_settings_of_their_transaction() -> None:
    changes = [row(0), row(1), row(0, lsn=200)]
    gathered = list(gather(changes, {Lsn(200): {"app.a": "1"}}))
    assert [(t.commit_lsn, len(t.changes), dict(t.settings)) for t in gathered] == [
        (100, 2, {}),
        (200, 1, {"app.a": "1"}),
    ]


def test_a_job_in_pieces_loses_no_call_and_opens_and_closes_once() -> None:
    job = plan([row(n, table="tu"[n % 3 == 0]) for n in range(20)], deferral(1, "t"), deferral(2, "u", table="u"))
    assert job is not None
    for most_rows, most_bytes in ((1, 10**9), (4, 10**9), (100, 30), (100, 10**9)):
        pieces = list(split_job(job, most_rows, most_bytes))
        assert [call for piece in pieces for call in calls(piece)] == calls(job)
        assert [piece.opens for piece in pieces] == [True] + [False] * (len(pieces) - 1)
        assert [piece.closes for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert all(count_rows(piece) <= most_rows for piece in pieces)
    assert len(list(split_job(job, 100, 30))) > 5


def test_a_long_transaction_in_pages_makes_the_same_calls_in_the_same_order() -> None:
    of_statements = {"level": TriggerLevel.STATEMENT, "events": frozenset(Event)}
    deferrals = [
        deferral(1, "row"),
        deferral(2, "late", events=frozenset({Event.INSERT, Event.DELETE}), initially_deferred=True),
        deferral(3, "all", **of_statements, new_table="fresh"),
        deferral(4, "some", table="u", **of_statements),
        deferral(5, "update_of", events=frozenset({Event.UPDATE}), columns=("a",)),
    ]
    dice = random.Random(7)
    changes = [
        row(
            ordinal,
            dice.choice(("insert", "update", "delete")),
            table=dice.choice("ttuv"),
            changed=dice.choice((("a",), ("b",), None)),
            lacking=("big",) if dice.random() < 0.05 else (),
            context=Context(actor_id="7"),
        )
        for ordinal in range(60)
    ]
    settings = {"app.a": "1", "afterwrite.depth": "3"}
    whole = plan(changes, *deferrals, settings=settings)
    assert whole is not None
    long = LongPlan(
        plan_long_job(
            Coverage(deferrals),
            source="app",
            after=Lsn(50),
            position=7,
            reached=Lsn(120),
            commit_lsn=Lsn(100),
            committed_at=NOON,
            settings=settings,
            policy=ReplayPolicy(),
        )
    )
    pages = [changes[first : first + 7] for first in range(0, 60, 7)]
    assert long.puts_off
    parts = [
        part
        for part in (*map(long.rows, pages), long.statements(), *map(long.late_rows, pages), long.end())
        if part is not None
    ]

    def told(jobs: list[Job]) -> list[tuple[object, ...]]:
        return [
            (deferral, group.operation, group.refused, id, ordinal, [raw and bytes(raw) for raw in pair])
            for job in jobs
            for group in job.groups
            for deferral in group.deferrals
            for id, ordinal, pair in zip(group.ids, group.ordinals, group.rows, strict=True)
        ]

    assert sorted(told(parts), key=repr) == sorted(told([whole]), key=repr)
    assert [(t[1], t[4]) for t in told(parts) if t[0] != 5] == [(t[1], t[4]) for t in told([whole]) if t[0] != 5]
    assert [part.opens for part in parts] == [True] + [False] * (len(parts) - 1)
    assert [part.closes for part in parts] == [False] * (len(parts) - 1) + [True]
    assert {part.context for part in parts} == {whole.context}
    assert {(part.settings["app.a"], part.reached, part.position) for part in parts} == {("1", whole.reached, 7)}


def test_a_long_transaction_that_calls_nothing_still_moves_the_progress() -> None:
    long = LongPlan(
        plan_long_job(
            Coverage([deferral(1, "row")]),
            source="app",
            after=Lsn(50),
            position=7,
            reached=Lsn(120),
            commit_lsn=Lsn(100),
            committed_at=NOON,
            settings={},
            policy=ReplayPolicy(),
        )
    )
    assert long.rows([row(0, table="u")]) is None
    assert long.statements() is None
    assert (long.end().opens, long.end().closes) == (True, True)


def test_a_transition_table_beyond_what_a_call_can_be_given_is_refused_and_not_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defer_calls, "LONGEST_STATEMENT", 100)
    with_rows = deferral(1, "with_rows", level=TriggerLevel.STATEMENT, new_table="fresh")
    without = deferral(2, "without", level=TriggerLevel.STATEMENT)
    long = LongPlan(
        plan_long_job(
            Coverage([with_rows, without]),
            source="app",
            after=Lsn(50),
            position=7,
            reached=Lsn(120),
            commit_lsn=Lsn(100),
            committed_at=NOON,
            settings={},
            policy=ReplayPolicy(),
        )
    )
    for first in range(0, 60, 20):
        assert long.rows([row(ordinal) for ordinal in range(first, first + 20)]) is None
    part = long.statements()
    assert part is not None
    first, second = part.groups
    assert first.refused
    assert "60 rows of its transition table" in first.refused
    assert (second.refused, second.rows) == (None, [(None, None)])


def test_a_job_says_its_places_in_the_words_of_the_server() -> None:
    job = plan([row(0)], deferral(1, "t"))
    assert job is not None
    said = json.loads(encode_jobs([job]))[0]
    assert (said["after"], said["reached"], said["commit_lsn"], said["position"]) == ("0/32", "0/78", "0/64", 7)
    assert said["groups"] == [
        msgspec.to_builtins(
            Group(
                operation="INSERT",
                deferrals=[1],
                runs=["run_t"],
                rows=[(None, msgspec.Raw(b'{"id":0}'))],
                ids=["id 0"],
                ordinals=[0],
            ),
            builtin_types=(msgspec.Raw,),
        )
        | {"rows": [[None, {"id": 0}]]}
    ]


def test_writes_that_say_they_were_a_replicas_fire_what_always_fires() -> None:
    coverage = Coverage([deferral(1, "a"), deferral(2, "b", enabled=Enabled.ALWAYS)])
    stamped = {"session_replication_role": "replica"}
    assert [each.id for each in coverage.of(row(1), stamped)] == [2]
    assert [each.id for each in coverage.of(row(1), {"session_replication_role": "origin"})] == [1, 2]
