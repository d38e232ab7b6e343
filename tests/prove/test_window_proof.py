"""A silent time that was filled afterwards is proven by the matcher that watched: no hole, nothing false."""

from __future__ import annotations

import asyncio

import pytest
from deferring import SOURCE, Stage, mark, stage  # type: ignore[import-not-found]

from afterwrite.defer.window import replay_window
from afterwrite.errors import Refused
from afterwrite.postgres import connect
from afterwrite.prove import window
from afterwrite.prove.match import Reason
from afterwrite.prove.window import WindowProof, prove_window, read_watch
from afterwrite.record import Lsn

# The second body writes under a transaction id of its own, since it has an exception handler.
_DDL = """
create table items (id int primary key, name text, amount numeric(10, 2), seen timestamptz default now());
create table audit_log (n bigint generated always as identity, tbl text, op text, rid text,
                        old_row jsonb, new_row jsonb, at timestamptz default now());
create table activity_log (n bigint generated always as identity, rid text, line text);
create function audit() returns trigger language plpgsql as $$
begin
    insert into audit_log (tbl, op, rid, old_row, new_row)
    values (tg_table_name, tg_op, coalesce(new.id, old.id)::text, to_jsonb(old), to_jsonb(new));
    return null;
end $$;
create function note() returns trigger language plpgsql as $$
begin
    begin
        insert into activity_log (rid, line) values (new.id::text, 'now ' || new.name);
    exception when others then
        raise warning 'no line';
    end;
    return null;
end $$;
create trigger audit after insert or update or delete on items for each row execute function audit();
create trigger note after insert or update of name on items for each row execute function note();
"""


async def _fill(on: Stage) -> tuple[Lsn, Lsn]:
    """A silent time with eight row changes in four transactions, filled; the triggers write before and after it."""
    await on.lay(_DDL, spied=["public.items"])
    triggers = [await on.trigger("audit"), await on.trigger("note")]
    await on.do("insert into items values (1, 'by the trigger', 1)")
    await on.tell_all()
    await on.teller.tell([mark(trigger, mode="retire") for trigger in triggers])
    after = Lsn(on.teller.lsn)
    await on.do("alter table items disable trigger audit, disable trigger note")
    await on.do("insert into items values (2, 'two', 1.50), (3, 'three', 1)")
    await on.do("update items set amount = amount + 1 where id > 1", "delete from items where id = 2")
    await on.do("update items set name = 'drei' where id = 3")
    await on.do("insert into items values (4, 'four', 1)", "update items set amount = 7 where id = 4")
    await on.tell_all(in_batches_of=2)
    await on.do("alter table items enable trigger audit, enable trigger note")
    await on.teller.tell([mark(trigger, "restore", mode="retire") for trigger in triggers])
    until = Lsn(on.teller.lsn)
    await on.do("insert into items values (5, 'by the trigger again', 1)")
    await on.tell_all()
    filled = await replay_window(on.db, on.store, source=SOURCE, triggers=triggers, after=after, until=until)
    assert filled.transactions == 4
    await on.do("update items set amount = 8 where id = 4")
    return after, until


async def _prove(on: Stage, after: Lsn, until: Lsn, *triggers: str) -> WindowProof:
    names = triggers or ("public.items.audit", "public.items.note")
    return await prove_window(
        on.db, on.store, await read_watch(on.db), source=SOURCE, triggers=names, after=after, until=until
    )


def test_a_filled_window_is_whole_and_rows_of_before_and_after_are_no_part_of_it(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            after, until = await _fill(on)
            proof = await _prove(on, after, until)
            assert proof.whole
            assert proof.transactions == 4
            assert proof.matched == 8 + 4  # every change is audited; four set a name
            # UPDATE OF: which columns were SET is not in the WAL.
            assert proof.explained == {Reason.UPDATE_OF: 3}
            # One of the two by itself: the other's rows are not counted against it.
            alone = await _prove(on, after, until, "public.items.audit")
            assert (alone.matched, alone.whole) == (8, True)
        # Over one connection that is source and store at once.
        async with connect(dsn) as one:
            again = await prove_window(
                one,
                one,
                await read_watch(one),
                source=SOURCE,
                triggers=("public.items.audit",),
                after=after,
                until=until,
            )
            assert again.matched == 8

    asyncio.run(run())


@pytest.mark.parametrize(
    ("spoil", "reason", "trigger"),
    [
        ("delete from audit_log where op = 'DELETE'", Reason.EXTRA, "audit"),
        ("delete from activity_log where line = 'now drei'", Reason.EXTRA, "note"),
        (
            "with gone as (delete from audit_log where op = 'UPDATE' and rid = '3' and new_row ->> 'name' = 'drei')"
            " insert into audit_log (tbl, op, rid) values ('items', 'UPDATE', '3')",
            Reason.EXTRA,  # what was written later is no filling's
            "audit",
        ),
        (
            "insert into afterwrite.backfilled (source, commit_lsn, xid, identities, calls, rows)"
            " select source, commit_lsn, pg_current_xact_id()::text::bigint, identities, 1, 1"
            " from afterwrite.backfilled order by commit_lsn limit 1;"
            " insert into audit_log (tbl, op, rid, new_row)"
            """ values ('items', 'INSERT', '99', '{"id": 99, "name": "x", "amount": 1, "seen": null}')""",
            Reason.MISSING,
            "audit",
        ),
    ],
)
def test_a_hole_and_a_false_row_are_found(dsn: str, spoil: str, reason: Reason, trigger: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            after, until = await _fill(on)
            await on.do(*spoil.split(";"))
            proof = await _prove(on, after, until)
            assert proof.unexplained == {reason: 1}
            (example,) = proof.examples
            assert example.trigger == f"public.items.{trigger}"
            assert after < example.commit_lsn < until

    asyncio.run(run())


def test_a_window_that_was_never_filled_is_all_holes(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            after, until = await _fill(on)
            await on.do("truncate afterwrite.backfilled")
            proof = await _prove(on, after, until)
            assert (proof.matched, proof.unexplained) == (0, {Reason.EXTRA: 12})

    asyncio.run(run())


def test_a_long_window_is_read_in_pieces(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "_ROWS_AT_ONCE", 1)
    monkeypatch.setattr(window, "_BATCHES_AT_ONCE", 1)

    async def run() -> None:
        async with stage(dsn) as on:
            after, until = await _fill(on)
            proof = await _prove(on, after, until)
            assert (proof.transactions, proof.matched, proof.whole) == (4, 12, True)

    asyncio.run(run())


def test_a_trigger_whose_rows_cannot_be_told_is_refused(dsn: str) -> None:
    async def run() -> None:
        async with stage(dsn) as on:
            after, until = await _fill(on)
            with pytest.raises(Refused, match="cannot be told"):
                await _prove(on, after, until, "public.items.nobody")

    asyncio.run(run())
