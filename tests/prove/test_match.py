"""Matching by hand-made transactions: every end a firing can have, and that no order of rows changes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from afterwrite.capture.transaction import Change, Column, Relation, Stamp, Transaction
from afterwrite.context import Context
from afterwrite.prove.legacy import LegacyMapping, TableShape, infer
from afterwrite.prove.match import Account, Matcher, Reason, Tally
from afterwrite.record import Lsn, Operation
from afterwrite.scan.catalog import Enabled, Event, Timing, Trigger, TriggerLevel

LOG = ("public", "log")
_ORDERS = Relation(
    10,
    "public",
    "orders",
    "f",
    (Column("id", 23, -1, True), Column("status", 25, -1, True), Column("amount", 1700, -1, True)),
)
_LOG = Relation(
    11,
    "public",
    "log",
    "d",
    tuple(
        Column(name, oid, -1, name == "id")
        for name, oid in (("id", 20), ("tbl", 25), ("op", 25), ("rid", 25), ("row", 3802), ("who", 2950), ("note", 25))
    ),
)
_SHAPES = {
    ("public", "orders"): TableShape(schema="public", table="orders", columns=("id", "status", "amount"), key=("id",)),
    LOG: TableShape(schema="public", table="log", columns=("id", "tbl", "op", "rid", "row", "who", "note")),
}
_AUDIT = """
begin
  insert into log (tbl, op, rid, row, who)
  values (tg_table_name, tg_op, coalesce(new.id, old.id)::text, to_jsonb(coalesce(new, old)), auth.uid());
  return null;
end"""
ANN = "00000000-0000-0000-0000-00000000000a"


def trigger(source: str = _AUDIT, name: str = "audit", **changes: Any) -> Trigger:
    settings: dict[str, Any] = {
        "oid": 1,
        "schema": "public",
        "table": "orders",
        "table_oid": 10,
        "name": name,
        "timing": Timing.AFTER,
        "level": TriggerLevel.ROW,
        "events": (Event.INSERT, Event.UPDATE, Event.DELETE),
        "create": "",
        "function_oid": 3,
        "function_schema": "public",
        "function": "audit",
        "language": "plpgsql",
        "source": source,
        "definition": "",
        "function_owner": "owner",
    }
    return Trigger(**{**settings, **changes})


def mapped(*triggers: Trigger, shapes: dict[tuple[str, str], TableShape] | None = None) -> list[LegacyMapping]:
    return [infer(each, legacy={LOG}, tables=shapes or _SHAPES) for each in triggers]


class Story:
    """Builds one transaction."""

    def __init__(self, context: Context | None = None) -> None:
        self.context = context if context is not None else Context(actor_id=ANN)
        self.changes: list[Change] = []
        self.legacy: list[Change] = []

    def change(self, operation: str, after: dict[str, Any] | None, before: dict[str, Any] | None = None) -> Story:
        row = after or before or {}
        changed = None
        if after is not None and before is not None:
            changed = tuple(name for name in after if after[name] != before.get(name))
        self.changes.append(
            Change(
                relation=_ORDERS,
                operation=Operation(operation),
                ordinal=len(self.changes) + len(self.legacy),
                key=str(row.get("id")),
                before=json.dumps(before).encode() if before is not None else None,
                after=json.dumps(after).encode() if after is not None else None,
                changed=changed,
            )
        )
        return self

    def logged(self, **row: Any) -> Story:
        values = {"id": len(self.legacy) + 1, "tbl": None, "op": None, "rid": None, "row": None, "who": None} | row
        self.legacy.append(
            Change(
                relation=_LOG,
                operation=Operation.INSERT,
                ordinal=len(self.changes) + len(self.legacy),
                key=str(values["id"]),
                after=json.dumps(values).encode(),
            )
        )
        return self

    def audited(self, operation: str, after: dict[str, Any] | None, before: dict[str, Any] | None = None) -> Story:
        """A change and the row that the audit trigger writes for it."""
        row = after if after is not None else before or {}
        self.change(operation, after, before)
        return self.logged(tbl="orders", op=operation.upper(), rid=str(row["id"]), row=row, who=ANN)

    def tell(self, context: Context | None = None, *, stamped: bool = True) -> Transaction:
        return Transaction(
            xid=7,
            commit_lsn=Lsn(100),
            end_lsn=Lsn(120),
            committed_at=datetime(2026, 1, 2, tzinfo=UTC),
            context=(context or self.context) if stamped else None,
            changes=tuple(self.changes),
            legacy=tuple(self.legacy),
        )


def match(
    transaction: Transaction,
    mappings: Sequence[LegacyMapping],
    *,
    shapes: dict[tuple[str, str], TableShape] | None = None,
    **words: Any,
) -> Account:
    account = Account()
    options = {name: words.pop(name) for name in ("covered", "others") if name in words}
    Matcher(mappings, tables=shapes or _SHAPES, **options).match(transaction, account, **words)
    for tally in account.tallies.values():
        ended = tally.matched + sum(count for reason, count in tally.reasons.items() if reason not in _OF_ROWS)
        assert ended <= tally.seen or not tally.seen
    return account


# Reasons that count legacy rows which no firing claims, beside the firings.
_OF_ROWS = frozenset(
    (Reason.MISSING, Reason.LEGACY_FOREIGN, Reason.EMPTY_STATEMENT, Reason.SILENCED_YET_WRITTEN, Reason.DEFERRED)
)


def of(account: Account, operation: str = "insert", name: str = "public.orders.audit") -> Tally:
    return account.tallies.get((name, Operation(operation)), Tally())


def row(number: int = 1, status: str = "open", amount: float = 5) -> dict[str, Any]:
    return {"id": number, "status": status, "amount": amount}


def test_every_change_with_its_row_is_matched_and_its_columns_counted() -> None:
    story = Story().audited("insert", row(1)).audited("update", row(1, "paid"), row(1)).audited("delete", None, row(2))
    account = match(story.tell(), mapped(trigger()))
    assert account.total() == 0
    for operation in ("insert", "update", "delete"):
        tally = of(account, operation)
        assert (tally.seen, tally.matched, tally.rows) == (1, 1, 1)
        assert (tally.exact, tally.partly, tally.uncompared) == (5, 0, 0)


def test_a_change_without_its_row_is_extra() -> None:
    account = match(Story().audited("insert", row(1)).change("insert", row(2)).tell(), mapped(trigger()))
    assert of(account).reasons == {Reason.EXTRA: 1}
    (example,) = account.examples["public.orders.audit", Operation.INSERT, Reason.EXTRA]
    assert example.key == "2"
    assert json.loads(example.expected or "")["rid"] == "2"


def test_a_row_without_its_change_is_missing() -> None:
    story = Story().audited("insert", row(1))
    story.logged(tbl="orders", op="DELETE", rid="9", row=row(9), who=ANN)
    account = match(story.tell(), mapped(trigger()))
    assert of(account, "delete").reasons == {Reason.MISSING: 1}
    (example,) = account.examples["public.orders.audit", Operation.DELETE, Reason.MISSING]
    assert json.loads(example.legacy or "")["rid"] == "9"


def test_a_row_that_holds_something_else_is_a_value_with_both_named() -> None:
    story = Story().change("insert", row(1))
    story.logged(tbl="orders", op="INSERT", rid="1", row=row(1, "closed"), who=ANN)
    account = match(story.tell(), mapped(trigger()))
    assert of(account).reasons == {Reason.VALUE: 1}
    (example,) = account.examples["public.orders.audit", Operation.INSERT, Reason.VALUE]
    (difference,) = example.differences
    assert difference.column == "row"
    assert json.loads(difference.expected)["status"] == "open"
    assert json.loads(difference.found)["status"] == "closed"


def test_numbers_are_compared_by_value_and_not_by_their_digits() -> None:
    story = Story().change("insert", row(1, amount=5.50))
    story.logged(tbl="orders", op="INSERT", rid="1", row=row(1, amount=5.5), who=ANN)
    assert match(story.tell(), mapped(trigger())).total() == 0


def test_rows_that_the_application_wrote_itself_are_foreign() -> None:
    story = Story().audited("insert", row(1)).logged(tbl="sessions", op="LOGIN", rid="ann", row={"ip": "10.0.0.1"})
    account = match(story.tell(), mapped(trigger()))
    assert account.total() == 0
    assert of(account, "insert", "public.log").reasons == {Reason.LEGACY_FOREIGN: 1}


def test_rows_of_a_trigger_that_stays_are_foreign_and_name_it() -> None:
    stays = trigger("begin insert into log (tbl, op, rid) values ('orders', 'GUARD', new.id); return new; end", "guard")
    story = Story().audited("insert", row(1)).logged(tbl="orders", op="GUARD", rid="1")
    account = match(story.tell(), mapped(trigger()), others=mapped(stays))
    assert account.total() == 0
    (example,) = account.examples["public.log", Operation.INSERT, Reason.LEGACY_FOREIGN]
    assert example.expected == "public.orders.guard"


def test_a_transaction_of_several_actors_is_compared_with_each_from_his_place_on() -> None:
    bob = ANN.replace("a", "b")

    def story(first: str, second: str) -> Story:
        story = Story().change("insert", row(1)).change("insert", row(2))
        return story.logged(tbl="orders", op="INSERT", rid="1", row=row(1), who=first).logged(
            tbl="orders", op="INSERT", rid="2", row=row(2), who=second
        )

    def reasons(told: Story, *stamps: Stamp) -> dict[Reason, int]:
        transaction = msgspec.structs.replace(told.tell(), context=stamps[-1].context, stamps=stamps)
        return of(match(transaction, mapped(trigger()))).reasons

    by_ann, by_bob = Stamp(0, Context(actor_id=ANN)), Stamp(1, Context(actor_id=bob))
    assert reasons(story(ANN, bob), by_ann, by_bob) == {}
    assert reasons(story(bob, bob), by_ann, by_bob) == {Reason.VALUE: 1}
    # The first one speaks for what came before it, unless it says that it does not.
    assert reasons(story(bob, bob), by_bob) == {}
    here = msgspec.structs.replace(by_bob, here=True)
    assert reasons(story(ANN, bob), here) == {Reason.SESSION_ONLY: 1}


def test_without_a_context_the_actor_is_not_compared_and_that_is_said() -> None:
    story = Story().audited("insert", row(1))
    account = match(story.tell(stamped=False), mapped(trigger()))
    assert of(account).reasons == {Reason.SESSION_ONLY: 1}
    assert of(account).uncompared == 1


def test_another_actor_than_the_stamped_one_is_a_value() -> None:
    story = Story().audited("insert", row(1))
    account = match(story.tell(Context(actor_id="00000000-0000-0000-0000-00000000000b")), mapped(trigger()))
    assert of(account).reasons == {Reason.VALUE: 1}


def test_a_when_that_is_false_asks_for_no_row() -> None:
    story = Story().change("update", row(1, "b"), row(1, "a")).audited("update", row(2, "b", 9), row(2, "b", 5))
    account = match(story.tell(), mapped(trigger(when="(old.amount IS DISTINCT FROM new.amount)")))
    assert of(account, "update").matched == 1
    assert of(account, "update").reasons == {Reason.WHEN_NOT_MET: 1}


def test_an_update_that_changes_nothing_is_a_no_op_where_conditions_ask_for_a_change() -> None:
    story = Story().change("update", row(1), row(1))
    account = match(story.tell(), mapped(trigger(when="(old.* IS DISTINCT FROM new.*)")))
    assert of(account, "update").reasons == {Reason.NO_OP_UPDATE: 1}


def test_a_when_that_cannot_be_decided_explains_a_row_that_is_not_there_and_matches_one_that_is() -> None:
    uncertain = trigger(when="(pg_trigger_depth() = 0)")
    account = match(Story().audited("insert", row(1)).change("insert", row(2)).tell(), mapped(uncertain))
    assert of(account).matched == 1
    assert of(account).reasons == {Reason.CONDITION_NOT_KNOWN: 1}


def test_update_of_is_sure_where_the_column_changed_and_open_where_it_did_not() -> None:
    only_status = trigger(columns=("status",), events=(Event.UPDATE,))
    changed = match(Story().change("update", row(1, "b"), row(1, "a")).tell(), mapped(only_status))
    assert of(changed, "update").reasons == {Reason.EXTRA: 1}
    unchanged = match(Story().change("update", row(1, "a", 9), row(1, "a", 5)).tell(), mapped(only_status))
    assert of(unchanged, "update").reasons == {Reason.UPDATE_OF: 1}
    set_to_the_same = match(Story().audited("update", row(1, "a", 9), row(1, "a", 5)).tell(), mapped(only_status))
    assert of(set_to_the_same, "update").matched == 1


def test_update_of_a_column_that_a_before_trigger_may_have_set_is_open() -> None:
    shapes = {
        **_SHAPES,
        ("public", "orders"): msgspec.structs.replace(_SHAPES["public", "orders"], derived=frozenset({"status"})),
    }
    only_status = trigger(columns=("status",), events=(Event.UPDATE,))
    transaction = Story().change("update", row(1, "b"), row(1, "a")).tell()
    account = match(transaction, mapped(only_status, shapes=shapes), shapes=shapes)
    assert of(account, "update").reasons == {Reason.UPDATE_OF: 1}


def test_old_values_that_the_stream_does_not_carry_are_not_compared() -> None:
    keeps_old = trigger(
        "begin insert into log (op, rid, row) values (tg_op, old.id, to_jsonb(old)); return null; end",
        events=(Event.UPDATE,),
    )
    relation = msgspec.structs.replace(
        _ORDERS,
        replica_identity="d",
        columns=tuple(msgspec.structs.replace(each, key=each.name == "id") for each in _ORDERS.columns),
    )
    story = Story().change("update", row(1, "b")).logged(op="UPDATE", rid="1", row=row(1, "a"))
    story.changes[0] = msgspec.structs.replace(story.changes[0], relation=relation, changed=None)
    account = match(story.tell(), mapped(keeps_old))
    assert of(account, "update").matched == 1
    assert (of(account, "update").exact, of(account, "update").partly) == (2, 1)


def test_generated_columns_are_in_the_log_and_not_in_the_wal() -> None:
    shapes = {
        **_SHAPES,
        ("public", "orders"): msgspec.structs.replace(_SHAPES["public", "orders"], generated=("total",)),
    }
    story = Story().change("insert", row(1))
    story.logged(tbl="orders", op="INSERT", rid="1", row={**row(1), "total": 10}, who=ANN)
    account = match(story.tell(), mapped(trigger(), shapes=shapes), shapes=shapes)
    assert of(account).reasons == {Reason.GENERATED_COLUMN: 1}
    assert match(story.tell(), mapped(trigger())).total(Reason.VALUE) == 1


def test_the_leafs_name_in_the_log_is_explained() -> None:
    shapes = {
        **_SHAPES,
        ("public", "orders"): msgspec.structs.replace(_SHAPES["public", "orders"], leaves=("orders_1",)),
    }
    story = Story().change("insert", row(1)).logged(tbl="orders_1", op="INSERT", rid="1", row=row(1), who=ANN)
    account = match(story.tell(), mapped(trigger(), shapes=shapes), shapes=shapes)
    assert of(account).reasons == {Reason.PARTITION_LEAF: 1}
    story = Story().change("insert", row(1)).logged(tbl="invoices", op="INSERT", rid="1", row=row(1), who=ANN)
    assert match(story.tell(), mapped(trigger(), shapes=shapes), shapes=shapes).total() == 1


def test_an_unlogged_log_explains_every_row_that_is_not_there() -> None:
    shapes = {**_SHAPES, LOG: msgspec.structs.replace(_SHAPES[LOG], unlogged=True)}
    account = match(Story().change("insert", row(1)).tell(), mapped(trigger(), shapes=shapes), shapes=shapes)
    assert of(account).reasons == {Reason.UNLOGGED: 1}


def test_an_unlogged_table_explains_rows_without_a_change() -> None:
    shapes = {**_SHAPES, ("public", "orders"): msgspec.structs.replace(_SHAPES["public", "orders"], unlogged=True)}
    story = Story().logged(tbl="orders", op="INSERT", rid="1", row=row(1), who=ANN)
    account = match(story.tell(), mapped(trigger(), shapes=shapes), shapes=shapes)
    assert of(account).reasons == {Reason.UNLOGGED: 1}


def test_a_stamp_that_tells_of_the_replica_role_explains_silence_but_not_of_always_triggers() -> None:
    context = Context(actor_id=ANN, settings={"session_replication_role": "replica"})
    transaction = Story().change("insert", row(1)).tell(context)
    assert of(match(transaction, mapped(trigger()))).reasons == {Reason.REPLICA_ROLE: 1}
    always = mapped(trigger(enabled=Enabled.ALWAYS))
    assert of(match(transaction, always)).reasons == {Reason.EXTRA: 1}


def test_where_no_trigger_of_a_change_wrote_though_all_surely_were_on_the_role_kept_them() -> None:
    second = "begin insert into log (op, rid) values ('SECOND', new.id); return null; end"
    mappings = mapped(trigger(), trigger(second, "second", events=(Event.INSERT,)))
    steady = {("public.orders.audit", Operation.INSERT), ("public.orders.second", Operation.INSERT)}
    quiet = match(Story().change("insert", row(1)).tell(), mappings, steady=steady)
    assert of(quiet).reasons == {Reason.REPLICA_ROLE: 1}
    half = match(Story().change("insert", row(1)).logged(op="SECOND", rid="1").tell(), mappings, steady=steady)
    assert of(half).reasons == {Reason.EXTRA: 1}
    unsure = match(
        Story().change("insert", row(1)).tell(), mappings, steady={("public.orders.audit", Operation.INSERT)}
    )
    assert of(unsure).reasons == {Reason.EXTRA: 1}


def test_a_row_that_differs_shows_that_the_triggers_were_on() -> None:
    second = "begin insert into log (op, rid) values ('SECOND', new.id); return null; end"
    mappings = mapped(trigger(), trigger(second, "second", events=(Event.INSERT,)))
    steady = {("public.orders.audit", Operation.INSERT), ("public.orders.second", Operation.INSERT)}
    story = Story().change("insert", row(1))
    story.logged(tbl="orders", op="INSERT", rid="1", row=row(1, "closed"), who=ANN)
    account = match(story.tell(), mappings, steady=steady)
    assert of(account).reasons == {Reason.VALUE: 1}
    assert of(account, name="public.orders.second").reasons == {Reason.EXTRA: 1}


def test_what_a_handler_may_have_set_is_one_of_the_two() -> None:
    guarded = trigger(
        """declare v_note text := 'none';
        begin
          begin
            v_note := new.status;
          exception when others then
            v_note := 'broken';
          end;
          insert into log (op, rid, note) values (tg_op, new.id, v_note);
          return null;
        end""",
        events=(Event.INSERT,),
    )
    for note in ("open", "broken"):
        account = match(
            Story().change("insert", row(1)).logged(op="INSERT", rid="1", note=note).tell(), mapped(guarded)
        )
        assert of(account).matched == 1, note
    account = match(Story().change("insert", row(1)).logged(op="INSERT", rid="1", note="else").tell(), mapped(guarded))
    assert of(account).reasons == {Reason.VALUE: 1}


def test_a_silenced_trigger_owes_nothing_and_its_rows_are_an_alarm() -> None:
    silenced = {"public.orders.audit": "retire"}
    quiet = match(Story().change("insert", row(1)).tell(), mapped(trigger()), silenced=silenced)
    assert not quiet.tallies
    loud = match(Story().audited("insert", row(1)).tell(), mapped(trigger()), silenced=silenced)
    assert of(loud).reasons == {Reason.SILENCED_YET_WRITTEN: 1}
    assert loud.total() == 0
    elsewhere = Story().logged(tbl="orders", op="INSERT", rid="8", row=row(8), who=ANN).tell()
    assert of(match(elsewhere, mapped(trigger()), silenced=silenced)).reasons == {Reason.SILENCED_YET_WRITTEN: 1}


def test_a_deferred_trigger_goes_on_writing_after_commit() -> None:
    story = Story().logged(tbl="orders", op="INSERT", rid="8", row=row(8), who=ANN)
    account = match(story.tell(), mapped(trigger()), silenced={"public.orders.audit": "defer"})
    assert of(account).reasons == {Reason.DEFERRED: 1}


def test_several_rows_a_change_are_all_asked_for() -> None:
    twice = trigger(
        """begin
          insert into log (op, rid, note) values ('A', new.id, 'first');
          insert into log (op, rid, note) values ('B', new.id, 'second');
          return null;
        end""",
        events=(Event.INSERT,),
    )
    both = Story().change("insert", row(1)).logged(op="A", rid="1", note="first").logged(op="B", rid="1", note="second")
    assert of(match(both.tell(), mapped(twice))).matched == 1
    assert of(match(both.tell(), mapped(twice))).rows == 2
    one = Story().change("insert", row(1)).logged(op="A", rid="1", note="first")
    assert of(match(one.tell(), mapped(twice))).reasons == {Reason.EXTRA: 1}


def test_one_row_for_each_changed_column_is_compared_value_by_value() -> None:
    by_column = trigger(
        """declare r record;
        begin
          for r in select n.key, o.value as was, n.value as is from jsonb_each_text(to_jsonb(new)) n
                     join jsonb_each_text(to_jsonb(old)) o using (key) where n.value is distinct from o.value loop
            insert into log (op, rid, note) values (r.key, new.id, r.was || '>' || r.is);
          end loop;
          return null;
        end""",
        events=(Event.UPDATE,),
    )
    story = Story().change("update", row(1, "b", 9), row(1, "a", 5))
    story.logged(op="status", rid="1", note="a>b").logged(op="amount", rid="1", note="5>9")
    account = match(story.tell(), mapped(by_column))
    assert (of(account, "update").matched, of(account, "update").rows) == (1, 2)
    story.legacy.pop()
    assert of(match(story.tell(), mapped(by_column)), "update").reasons == {Reason.EXTRA: 1}


def test_one_row_for_many_changes_is_asked_for_once_and_allowed_again() -> None:
    statement = trigger(
        "begin insert into log (op) values ('bulk'); return null; end",
        level=TriggerLevel.STATEMENT,
        events=(Event.INSERT,),
    )
    story = Story().change("insert", row(1)).change("insert", row(2)).logged(op="bulk").logged(op="bulk")
    account = match(story.tell(), mapped(statement))
    assert account.total() == 0
    assert (of(account).seen, of(account).matched, of(account).rows) == (1, 1, 2)
    none = match(Story().change("insert", row(1)).tell(), mapped(statement))
    assert of(none).reasons == {Reason.EXTRA: 1}
    empty = match(Story().logged(op="bulk").tell(), mapped(statement))
    assert of(empty).reasons == {Reason.EMPTY_STATEMENT: 1}


def test_a_covered_trigger_is_counted_where_it_surely_fired() -> None:
    deferred = trigger("begin perform 1; return null; end", when="(new.amount > (5)::numeric)", events=(Event.INSERT,))
    story = Story().change("insert", row(1, amount=9)).change("insert", row(2, amount=1))
    account = match(story.tell(), [], covered=mapped(deferred))
    assert (of(account).seen, of(account).matched) == (1, 0)
    assert account.transactions == 1


def test_a_transaction_with_nothing_to_compare_is_not_counted() -> None:
    assert match(Story().tell(), mapped(trigger())).transactions == 0


def test_a_choosy_row_gets_its_partner_though_another_could_have_taken_it() -> None:
    """The first trigger's row is known but for a lookup: it may take either; the second's only one."""
    vague = trigger(
        "declare n text; begin select a into n from t; insert into log (op, note) values ('X', n); return null; end",
        "a_vague",
        events=(Event.INSERT,),
    )
    exact = trigger(
        "begin insert into log (op, note) values ('X', new.status); return null; end", "b_exact", events=(Event.INSERT,)
    )
    for notes in (("open", "other"), ("other", "open")):
        story = Story().change("insert", row(1))
        for note in notes:
            story.logged(op="X", note=note)
        account = match(story.tell(), mapped(vague, exact))
        assert account.total() == 0
        assert account.total(Reason.LEGACY_FOREIGN) == 0


_OPERATIONS = st.sampled_from(("insert", "update", "delete"))
_ROWS = st.tuples(_OPERATIONS, st.integers(1, 3), st.sampled_from("ab"), st.sampled_from("ab"))


def _story(rows: Sequence[tuple[str, int, str, str]]) -> Story:
    story = Story()
    for operation, number, was, becomes in rows:
        before, after = row(number, was), row(number, becomes)
        story.audited(operation, None if operation == "delete" else after, None if operation == "insert" else before)
    return story


_MAPPED = mapped(trigger())


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(_ROWS, max_size=12), data=st.data())
def test_no_order_of_legacy_rows_changes_the_account(
    rows: list[tuple[str, int, str, str]], data: st.DataObject
) -> None:
    story = _story(rows)
    straight = match(story.tell(), _MAPPED)
    story.legacy = data.draw(st.permutations(story.legacy))
    shuffled = match(story.tell(), _MAPPED)
    assert straight.total() == shuffled.total() == 0
    assert {key: (t.seen, t.matched, t.rows) for key, t in straight.tallies.items()} == {
        key: (t.seen, t.matched, t.rows) for key, t in shuffled.tallies.items()
    }


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(_ROWS, min_size=1, max_size=10),
    sabotage=st.sampled_from(("remove", "double", "alter", "uncapture", "capture twice")),
    data=st.data(),
)
def test_one_sabotaged_row_is_always_found_exactly_once(
    rows: list[tuple[str, int, str, str]], sabotage: str, data: st.DataObject
) -> None:
    story = _story(rows)
    place = data.draw(st.integers(0, len(rows) - 1))
    match sabotage:
        case "remove":
            del story.legacy[place]
        case "double":
            story.legacy.append(story.legacy[place])
        case "alter":
            content = json.loads(story.legacy[place].after or b"")
            content["row"]["status"] = "tampered"
            story.legacy[place] = msgspec.structs.replace(story.legacy[place], after=json.dumps(content).encode())
        case "uncapture":
            del story.changes[place]
        case _:
            story.changes.append(story.changes[place])
    story.legacy = data.draw(st.permutations(story.legacy))
    account = _match_story(story)
    assert account.total() == 1, account.tallies


def _match_story(story: Story) -> Account:
    account = Account()
    Matcher(_MAPPED, tables=_SHAPES).match(story.tell(), account)
    return account
