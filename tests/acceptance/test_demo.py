"""The main job from end to end, shortened: 64 triggers silenced under load, every write accounted for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

from afterwrite.demo.story import Chapter, Script, tell_story
from afterwrite.postgres.embedded import embedded_server

pytestmark = pytest.mark.acceptance

SHORT = Script(rate=60.0, warm_seconds=0.5, measure_seconds=3.0, shadow_seconds=11.0, soak_seconds=1.0)


def test_the_demo_silences_64_triggers_under_load_and_accounts_for_every_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Chapter] = []
    # What the one who runs it has set for his own databases is no concern of the demo's.
    monkeypatch.setenv("AFTERWRITE_STORE_DSN", "host=/nowhere")
    (tmp_path / "his").mkdir()
    (tmp_path / "his" / "afterwrite.toml").write_text('store_dsn = "host=/nowhere"\nslot = "his"\n')
    monkeypatch.chdir(tmp_path / "his")
    with embedded_server(settings={"fsync": "off"}) as server:
        outcome = asyncio.run(tell_story(server, tmp_path, SHORT, told.append))
        with psycopg.connect(server.dsn("legacy")) as connection:
            off = connection.execute(
                "select count(*) from pg_trigger where not tgisinternal and tgparentid = 0 and tgenabled = 'D'"
                " and tgrelid in (select oid from pg_class where relnamespace = 'public'::regnamespace)"
            ).fetchone()
            on = connection.execute(
                "select count(*) from pg_trigger where not tgisinternal and tgparentid = 0 and tgenabled <> 'D'"
                " and tgrelid in (select oid from pg_class where relnamespace = 'public'::regnamespace)"
            ).fetchone()
            late = connection.execute(
                "select count(*) from public.audit_logs where created_at > (select max(at) from afterwrite.ledger"
                " where action::text like '%silence%') + interval '1 second'"
            ).fetchone()
            actors = connection.execute(
                "select count(*) filter (where actor_id is null), count(*) from afterwrite.activity"
                " where kind = 'change' and occurred_at > (select max(at) from afterwrite.ledger)"
            ).fetchone()
    assert outcome.account.clean, outcome.account
    assert outcome.account.changes_expected == outcome.account.changes_stored > 1_000
    assert outcome.account.deferred_effects_expected > 100
    assert outcome.unexplained_residuals == 0
    assert (outcome.retired, outcome.deferred, outcome.kept) == (46, 18, 22)
    assert (off, on) == ((64,), (22,))
    assert late == (0,), "a silenced trigger still wrote the legacy log"
    assert actors is not None
    assert actors[1] > 0
    assert actors[0] == 0, "a change of the silent time has no actor"
    assert [chapter.title for chapter in told if chapter.done][-1].startswith("the account")
