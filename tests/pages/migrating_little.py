"""A small application with audit triggers, captured and migrated for a moment: what the boards are about."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from afterwrite import runtime
from afterwrite.migrate.engine import run_phase
from afterwrite.migrate.gates import read_table_figures
from afterwrite.migrate.plan import Thresholds, make_plan
from afterwrite.migrate.pulse import note_pulse
from afterwrite.postgres import Database, connect
from afterwrite.prove.report import read_proof
from afterwrite.scan.survey import survey
from afterwrite.settings import Settings

# A table's name may hold whatever its owner liked.
HOSTILE_TABLE = '<img src=x onerror="window.__owned=9">'

SCHEMA = """
create table public.audit_log (id bigint generated always as identity primary key, what text, of_row jsonb);
create table public.notifications (id bigint primary key, body text, seen_at timestamptz);
create table public.orders (id bigint primary key, state text, amount numeric, changed_at timestamptz);
create table public."<img src=x onerror=""window.__owned=9"">" (id bigint primary key, name text);
create function public.log_it() returns trigger language plpgsql as $$
begin
    insert into public.audit_log (what, of_row) values (tg_op, to_jsonb(coalesce(new, old)));
    return null;
end
$$;
create function public.touch() returns trigger language plpgsql as $$
begin
    new.changed_at := now();
    return new;
end
$$;
create trigger log_it after insert or update or delete on public.notifications
    for each row execute function public.log_it();
create trigger log_it after insert or update or delete on public.orders for each row execute function public.log_it();
create trigger touch before update on public.orders for each row execute function public.touch();
create trigger "<b>log</b>" after insert on public."<img src=x onerror=""window.__owned=9"">"
    for each row execute function public.log_it();
"""


async def migrate_a_little(dsn: str) -> Settings:
    """Lay it, install, let shadow compare some writes, and silence the first phase that has something to silence."""
    settings = Settings(dsn=dsn, operator="anna", rehearse=False, linger_ms=5)
    async with connect(dsn) as db:
        await db.script(SCHEMA)
        await runtime.install(settings, await runtime.look_at_installation(settings, db, db), db, db)
        stop = asyncio.Event()
        capture = asyncio.create_task(runtime.run_capture(settings, stop=stop))
        try:
            await _work(db)
            await note_pulse(db, anyway=True)
            found = await survey(db)
            thresholds = Thresholds(
                proof_transactions=1, proof_seconds=0.0, baseline_seconds=0.0, write_latency_ratio=1e6, cpu_ratio=1e6
            )
            plan = make_plan(
                found.judgements, await read_table_figures(db), thresholds=thresholds, soak_seconds=3_600.0
            )
            number = next(phase.number for phase in plan.phases if phase.triggers)
            await run_phase(
                db, plan, number, place=runtime.place_of(settings), apply=True, operator="anna", wait_seconds=20.0
            )
            await note_pulse(db, anyway=True)
        finally:
            stop.set()
            with suppress(asyncio.CancelledError):
                await capture
    return settings


# What has to be seen firing, so that its phase may be silenced.
_SEEN = ("public.notifications.log_it", f"public.{HOSTILE_TABLE}.<b>log</b>")
_HOSTILE_INSERT = f"""insert into public."{HOSTILE_TABLE.replace('"', '""')}" values (%(key)s, 'x')""".encode()


async def _work(db: Database) -> None:
    """Write until shadow has seen every trigger on each of its operations."""
    for round in range(40):
        for key in range(round * 4, round * 4 + 4):
            await db.run(b"insert into public.notifications values (%(key)s, 'Your invoice is ready')", key=key)
            await db.run(b"update public.notifications set seen_at = now() where id = %(key)s", key=key)
            await db.run(b"delete from public.notifications where id = %(key)s", key=key)
            await db.run(_HOSTILE_INSERT, key=key)
            await db.run(b"insert into public.orders values (%(key)s, 'open', 10)", key=key)
        proof = await read_proof(db)
        seen = {each.trigger: each.unseen for each in proof.triggers}
        if proof.transactions > 3 and not any(seen.get(trigger, (1,)) for trigger in _SEEN):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("shadow compared nothing in time")
