"""A migration with operators, strangers and crashes in any order: the ledger always tells what the catalog is."""

from __future__ import annotations

import asyncio
from typing import Any

import hypothesis
import msgspec
import psycopg
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from migrating import PLACE, QUICK, SCHEMA, end_deferrals, holding, plan_of

from afterwrite.errors import AfterwriteError
from afterwrite.migrate.backup import catalog_state
from afterwrite.migrate.deeds import MigrationEvent
from afterwrite.migrate.engine import remove_phases, run_phase
from afterwrite.migrate.gates import Readings, SlotReading
from afterwrite.migrate.ledger import Action, read_ledger, read_silenced
from afterwrite.migrate.phase import Mode
from afterwrite.migrate.plan import Plan
from afterwrite.migrate.rollback import rollback_phase
from afterwrite.postgres import Database, connect

PHASES = (1, 2, 3)


class _Crash(BaseException):
    pass


class _World:
    """One connection in a loop of its own, and what the measurements of the moment are."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.loop = asyncio.new_event_loop()
        self.captured = True
        self.proven = True
        self._opened: Any = None
        self.db = self.do(self._open())
        self.plan: Plan = self.do(plan_of(self.db))
        self.start: str = self.do(catalog_state(self.db))

    async def _open(self) -> Database:
        self._opened = connect(self.dsn, options={"search_path": "public"})
        return await self._opened.__aenter__()

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        self.do(self._opened.__aexit__(None, None, None))
        self.loop.close()

    async def measure(self, *_: object, **__: object) -> Readings:
        slot = SlotReading(
            active=True, wal_status="reserved" if self.captured else "lost", safe_wal_size=None, lag_bytes=0
        )
        return holding(slot=slot) if self.proven else holding(slot=slot, proof=None)


class _Events:
    """Crashes when it has heard of so many things."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, event: MigrationEvent) -> None:
        self.left -= 1
        if self.left == 0:
            raise _Crash(event.kind)


class Migrations(RuleBasedStateMachine):
    """Each example goes on in the database that the one before has left rolled back: histories add up."""

    world: _World

    @initialize()
    def begin(self) -> None:
        # Triggers that a stranger turned on, with the length of the ledger at that moment.
        self.meddled: dict[str, int] = {}
        self.world.captured = self.world.proven = True
        self.run_until_crash(self.back(None, None))
        self.world.do(end_deferrals(self.world.db))
        assert self.world.do(catalog_state(self.world.db)) == self.world.start

    def run_until_crash(self, work: Any) -> bool:
        """Whether it came to its end, well or with a refusal."""
        try:
            self.world.do(work)
        except _Crash:
            return False
        except AfterwriteError:
            pass
        return True

    async def back(self, number: int | None, listen: _Events | None) -> None:
        await rollback_phase(self.world.db, number, place=PLACE, apply=True, force=True, policy=QUICK, on_event=listen)
        await end_deferrals(self.world.db)

    @rule(number=st.sampled_from(PHASES), crash=st.integers(1, 14))
    def silence(self, number: int, crash: int) -> None:
        world = self.world
        common: dict[str, Any] = {"place": PLACE, "apply": True, "policy": QUICK}
        before = self.count_silenced()
        self.run_until_crash(run_phase(world.db, world.plan, number, on_event=_Events(crash), **common))
        assert self.count_silenced() == before or (world.captured and world.proven)

    @rule(number=st.sampled_from(PHASES), crash=st.integers(1, 14))
    def remove(self, number: int, crash: int) -> None:
        world = self.world
        common: dict[str, Any] = {"place": PLACE, "apply": True, "policy": QUICK}
        self.run_until_crash(remove_phases(world.db, world.plan, number, on_event=_Events(crash), **common))

    @rule(number=st.sampled_from([None, *PHASES]), crash=st.integers(1, 14))
    def roll_back(self, number: int | None, crash: int) -> None:
        self.run_until_crash(self.back(number, _Events(crash)))

    @rule(captured=st.booleans(), proven=st.booleans())
    def measurements_change(self, captured: bool, proven: bool) -> None:
        self.world.captured, self.world.proven = captured, proven

    @rule(data=st.data())
    def somebody_turns_one_on(self, data: st.DataObject) -> None:
        off = [s for s in self.world.do(read_silenced(self.world.db)).values() if s.removed_at is None]
        if not off:
            return
        each = data.draw(st.sampled_from(sorted(off, key=lambda one: one.identity)))
        with psycopg.connect(self.world.dsn, autocommit=True) as stranger:
            stranger.execute(f'alter table {each.backup.relation} enable trigger "{each.backup.trigger}"')
        self.meddled[each.identity] = len(self.world.do(read_ledger(self.world.db)))

    @invariant()
    def nothing_is_off_without_a_word_in_the_ledger_and_nothing_deferred_without_its_body(self) -> None:
        world = self.world
        silenced = world.do(read_silenced(world.db))
        prepared = set(
            world.do(world.db.values("select identity from afterwrite.deferral where state in ('prepared', 'live')"))
        )
        there = world.do(self.states())
        for phase in world.plan.phases:
            for trigger in phase.triggers:
                if there.get(trigger.trigger) or trigger.trigger == "app.tokens.dead":
                    continue
                assert trigger.trigger in silenced, f"{trigger.trigger} is off, and the ledger does not say so"
                if silenced[trigger.trigger].mode is Mode.DEFER:
                    assert trigger.trigger in prepared

    def count_silenced(self) -> int:
        entries = self.world.do(read_ledger(self.world.db))
        return sum(entry.action is Action.TRIGGER_SILENCE for entry in entries)

    @invariant()
    def the_ledger_replayed_gives_the_catalog(self) -> None:
        expected: dict[str, bool | None] = {}
        for position, entry in enumerate(self.world.do(read_ledger(self.world.db))):
            match entry.action:
                case Action.TRIGGER_SILENCE:
                    expected[entry.subject] = False
                case Action.TRIGGER_REMOVE:
                    expected[entry.subject] = None
                case Action.TRIGGER_RESTORE:
                    states = msgspec.json.decode(entry.after or "{}", type=dict[str, str])
                    expected[entry.subject] = any(state != "D" for state in states.values())
                    # Only a restore that came after the stranger: the ledger tells of earlier examples, too.
                    if position >= self.meddled.get(entry.subject, position):
                        self.meddled.pop(entry.subject, None)
                case _:
                    pass
        there = self.world.do(self.states())
        for identity, on in expected.items():
            if identity not in self.meddled:
                assert there.get(identity) == on, identity

    async def states(self) -> dict[str, bool]:
        """Whether each trigger that there is can fire, by identity."""
        rows = await self.world.db.values(
            "select array[n.nspname || '.' || c.relname || '.' || t.tgname, "
            "(exists (select from afterwrite.trigger_tree(c.oid, t.tgname::text) k where k.enabled <> 'D'))::text] "
            "from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace "
            "where not t.tgisinternal and t.tgparentid = 0 and n.nspname = 'app'"
        )
        return {identity: on == "true" for identity, on in rows}

    def teardown(self) -> None:
        self.world.captured = self.world.proven = True
        # However it was left, going back ends where it all began.
        self.world.do(self.back(None, None))
        assert self.world.do(catalog_state(self.world.db)) == self.world.start


def test_any_order_of_steps_strangers_and_crashes_keeps_the_ledger_true(
    installed_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(installed_dsn, autocommit=True) as laying:
        laying.execute(SCHEMA.encode())
    world = _World(installed_dsn)
    monkeypatch.setattr("afterwrite.migrate.engine.measure", world.measure)
    machine = type("Machine", (Migrations,), {"world": world})
    try:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            machine,
            settings=hypothesis.settings(
                max_examples=8,
                stateful_step_count=8,
                deadline=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            ),
        )
    finally:
        world.close()
