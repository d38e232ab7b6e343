"""Log events of structlog that are activities too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from docrunner import DOCS, run_page
from structlog.testing import CapturingLogger

from afterwrite import context
from afterwrite.activity import Action
from afterwrite.integrations.structlog import Activities, add_context
from afterwrite.testing import Memory, recording


@pytest.fixture(autouse=True)
def _own_configuration() -> Iterator[None]:
    structlog.contextvars.clear_contextvars()
    yield
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def log_with(*processors: Any) -> tuple[Any, CapturingLogger]:
    captured = CapturingLogger()
    chain = [structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, *processors]
    return structlog.wrap_logger(captured, processors=[*chain, structlog.processors.JSONRenderer()]), captured


def lines(captured: CapturingLogger) -> list[dict[str, Any]]:
    return [json.loads(call.args[0]) for call in captured.calls]


def test_a_chosen_event_is_logged_and_recorded(recorded: Memory) -> None:
    log, captured = log_with(Activities())
    structlog.contextvars.bind_contextvars(user_id=42, request_id="r-17", region="eu")
    with context.bind(tenant="acme", actor="system:1"):
        log.info("report sent", activity="report.sent", entity=("report", 7), pages=3, duration_ms=5.0)
    log.info("cache warmed", size=1)
    (found,) = recorded
    assert (found.action, found.entity, found.summary) == ("report.sent", ("report", "7"), "report sent")
    assert (found.actor, found.request, found.tenant, found.duration_ms) == ("user:42", "r-17", "acme", 5.0)
    assert found.metadata == {"pages": 3}
    line, other = lines(captured)
    assert (line["activity"], line["activity_id"], line["pages"]) == ("report.sent", found.id, 3)
    assert "activity_id" not in other


def test_levels_and_exceptions_are_severities_and_errors(recorded: Memory) -> None:
    log, _ = log_with(Activities({"it broke": "thing.break", "ended": Action("thing.end", category="system")}))
    log.warning("odd", activity="a.warning")
    log.critical("worse", activity="a.critical")
    log.info("no", activity="a.no", success=False)
    try:
        raise ValueError("too much\nof it")
    except ValueError as error:
        log.exception("it broke")
        log.error("it broke", exc_info=error)
        log.error("it broke", exc_info=(ValueError, error, None))
    log.error("it broke", exc_info=True)
    log.info("ended")
    told = [(each.action, each.severity, each.outcome) for each in recorded]
    assert told == [
        ("a.warning", "warning", "success"),
        ("a.critical", "critical", "failure"),
        ("a.no", "info", "failure"),
        *[("thing.break", "error", "failure")] * 4,
        ("thing.end", "info", "success"),
    ]
    errors = [each.metadata.get("error") for each in recorded.find("thing.break")]
    assert errors == [{"type": "ValueError", "message": "too much"}] * 3 + [None]


def test_names_of_ones_own_and_what_is_left_out(recorded: Memory) -> None:
    log, _ = log_with(Activities(names={"account": "tenant"}, leave_out={"thread"}))
    log.info("x", activity="a.b", account="acme", thread=4, _private=1, kept=True)
    assert (recorded[0].tenant, recorded[0].metadata) == ("acme", {"kept": True})


def test_every_line_says_who_it_was() -> None:
    log, captured = log_with(add_context)
    with context.bind(actor="user:42", request="r-17", trace="t"):
        log.info("x", request="mine")
    log.info("y")
    first, second = lines(captured)
    assert (first["actor"], first["request"], first["trace"]) == ("user:42", "mine", "t")
    assert "actor" not in second


def test_a_log_call_never_fails_in_production_for_what_it_says() -> None:
    log, captured = log_with(Activities())
    with recording(strict=False) as recorded:
        log.info("x", activity=5, entity=7, category=3, caused_by="no", duration_ms="long", user_id=["a"])
        log.info(12, activity="a.b")
    assert len(recorded) == len(captured.calls) == 2


def test_the_page_runs_as_it_stands(recorded: Memory, capsys: pytest.CaptureFixture[str]) -> None:
    run_page(DOCS / "integrations" / "structlog.md")
    sent = recorded.assert_recorded("report.sent", actor="user:42", request="r-17", metadata={"pages": 3}, times=1)
    declined = recorded.assert_recorded("payment.decline", severity="warning", metadata={"order": 12}, times=1)
    assert (sent.metadata, declined.summary) == ({"pages": 3}, "payment declined")
    assert len(recorded) == 2
    assert len(capsys.readouterr().out.splitlines()) == 3
