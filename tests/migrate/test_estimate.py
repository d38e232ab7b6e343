"""How long a phase takes and what it saves, from what scan measured; what is not known is not made up."""

from __future__ import annotations

import pytest

from afterwrite.migrate.estimate import estimate, lasting
from afterwrite.migrate.phase import Mode
from afterwrite.migrate.plan import Phase, Plan, PlannedTrigger, TableFigures, Thresholds
from afterwrite.scan.catalog import Event
from afterwrite.scan.cost.figures import Costs, Totals, TriggerCost
from afterwrite.scan.verdicts import Verdict

ASKED = Thresholds(proof_transactions=6_000, proof_seconds=60.0)


def planned(name: str) -> PlannedTrigger:
    return PlannedTrigger(
        trigger=name, verdict=Verdict.RETIRE, mode=Mode.RETIRE, because="", fires=(Event.INSERT,), fingerprint=""
    )


def phase(number: int, *names: str) -> Phase:
    triggers = tuple(planned(name) for name in names)
    return Phase(number=number, title="t", soak_seconds=600.0, thresholds=ASKED, triggers=triggers)


PLAN = Plan(thresholds=ASKED, phases=(phase(1, "s.a.x", "s.a.y", "s.b.x"), phase(2), phase(3, "s.c.x")))


def cost(name: str, **more: object) -> TriggerCost:
    schema, table, trigger = name.split(".")
    return TriggerCost(trigger=name, schema=schema, table=table, name=trigger, verdict=Verdict.RETIRE, **more)  # type: ignore[arg-type]


def test_a_phase_is_estimated_from_rates_and_shares() -> None:
    costs = Costs(
        observed=Totals(seconds=60.0, commits=1_200),
        triggers=(
            cost("s.a.x", calls=10, time_share=0.2, wal_share=0.1),
            cost("s.a.y", calls=0, time_share=0.0),
            cost("s.b.x", calls=5, time_share=0.05, wal_share=0.2),
        ),
    )
    first, third = estimate(PLAN, costs)
    assert (first.number, first.tables, first.seconds) == (1, 2, 602.0)
    assert first.prove_seconds == 300.0  # 6,000 transactions at 20 a second
    assert first.time_share == pytest.approx(0.25)
    assert first.wal_share == pytest.approx(0.3)
    assert first.quiet == ("s.a.y",)
    assert (third.number, third.time_share, third.quiet) == (3, None, ())


def test_without_a_measurement_the_servers_statistics_stand_in_and_no_rate_is_made_up() -> None:
    figures = [
        TableFigures(schema="s", table="a", writes=1, incoming_foreign_keys=0, trigger_ms=30.0),
        TableFigures(schema="s", table="c", writes=1, incoming_foreign_keys=0, trigger_ms=70.0),
    ]
    first, third = estimate(PLAN, None, figures)
    assert first.prove_seconds is None
    assert (first.time_share, third.time_share) == (pytest.approx(0.3), pytest.approx(0.7))
    assert "pg_stat_user_functions" in first.source


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (40, "40 s"),
        (119.6, "2 min"),
        (2_400, "40 min"),
        (3_600, "1 h"),
        (11_100, "3 h 5 min"),
        (187_200, "2 d 4 h"),
        (172_800, "2 d"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert lasting(seconds) == said
