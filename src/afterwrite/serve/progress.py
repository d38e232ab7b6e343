"""Where the migration is, for who looks at it: triggers with their verdicts and weight, phases, the proof, the load.

Reads only. It puts together what scan, prove and migrate answer, each in its own words.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import msgspec

from afterwrite import runtime
from afterwrite.migrate.gates import read_table_figures
from afterwrite.migrate.ledger import read_silenced
from afterwrite.migrate.pulse import Load, Pulse, between
from afterwrite.migrate.status import MigrationStatus
from afterwrite.migrate.status import status as read_status
from afterwrite.postgres import connect, quoted, statement
from afterwrite.prove.report import Proof, read_proof
from afterwrite.scan.catalog import Enabled
from afterwrite.scan.survey import Survey, survey
from afterwrite.scan.verdicts import Judgement
from afterwrite.settings import Settings
from afterwrite.store.schema import require_store

_LOAD_POINTS = 240
_LOAD_WINDOW = timedelta(hours=24)


class TriggerStanding(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger as scan judges it. ``why`` is the deciding reason; ``state``: on, off, silenced (off because of us).

    ``log_tables`` are the logs that it appends to.
    """

    identity: str
    table: str
    name: str
    verdict: str
    why: str
    state: str
    log_tables: tuple[str, ...] = ()


class TableWeight(msgspec.Struct, frozen=True, kw_only=True):
    """What was written to a table since the statistics began, and what its triggers took (0: that is not tracked)."""

    table: str
    writes: int
    trigger_ms: float


class Triggers(msgspec.Struct, frozen=True, kw_only=True):
    """What scan found ``at`` that moment, and how much weight each table has."""

    at: datetime
    triggers: tuple[TriggerStanding, ...]
    tables: tuple[TableWeight, ...]


class LoadPoint(msgspec.Struct, frozen=True, kw_only=True):
    """How the source fared in the time up to ``at``: for charts of before and after."""

    at: datetime
    load: Load


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """The migration as it stood at ``at``. ``load`` has a day at most, oldest first, where a worker noted it."""

    at: datetime
    status: MigrationStatus
    proof: Proof
    load: tuple[LoadPoint, ...] = ()


async def read_triggers(settings: Settings) -> Triggers:
    """Scan the source. Takes a second or so: what asks often keeps the answer for a while."""
    async with connect(settings.dsn, application_name="afterwrite serve", guarded=True) as source:
        await require_store(source)
        found = await survey(source)
        figures = await read_table_figures(source)
        silenced = await read_silenced(source)
    return Triggers(
        at=datetime.now(UTC),
        triggers=_stand(found, frozenset(silenced)),
        tables=tuple(
            TableWeight(table=quoted(each.schema, each.table), writes=each.writes, trigger_ms=each.trigger_ms)
            for each in figures
        ),
    )


async def read_progress(settings: Settings) -> Progress:
    """Observe the phases, the proof and the load. Changes nothing."""
    now = datetime.now(UTC)
    async with runtime.source_and_store(settings) as (source, store):
        await require_store(source)
        status = await read_status(source, place=runtime.place_of(settings), store=store)
        proof = await read_proof(source)
        pulses = await source.rows(Pulse, statement("migrate.read_pulses"), since=now - _LOAD_WINDOW, until=now)
    return Progress(at=now, status=status, proof=proof, load=chart(pulses))


def chart(pulses: Sequence[Pulse], points: int = _LOAD_POINTS) -> tuple[LoadPoint, ...]:
    """The load between pulses, at so many points at most. Where counters were reset there is no point. Pure."""
    step = max(1, len(pulses) // points)
    kept = [*pulses[::step], *pulses[-1:]] if pulses else []
    found = ((later.at, between([earlier, later])) for earlier, later in pairwise(kept))
    return tuple(LoadPoint(at=at, load=load) for at, load in found if load is not None and load.seconds > 0)


def _stand(found: Survey, silenced: frozenset[str]) -> tuple[TriggerStanding, ...]:
    standings = [_standing(each, silenced) for each in found.judgements]
    return tuple(sorted(standings, key=lambda each: each.identity))


def _standing(judgement: Judgement, silenced: frozenset[str]) -> TriggerStanding:
    trigger = judgement.trigger
    on = trigger.enabled is not Enabled.DISABLED
    state = "on" if on else "silenced" if trigger.identity in silenced else "off"
    return TriggerStanding(
        identity=trigger.identity,
        table=quoted(trigger.schema, trigger.table),
        name=trigger.name,
        verdict=judgement.verdict.value,
        why=judgement.reasons[0].text if judgement.reasons else "",
        state=state,
        log_tables=judgement.log_tables,
    )
