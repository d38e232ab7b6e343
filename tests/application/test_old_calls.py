"""The calls of an audit service that was there before, by their old names."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest

from afterwrite import activity, context
from afterwrite.record import Level, Outcome
from afterwrite.testing import Memory, recording


class Old(Enum):
    USER_UPDATED = "USER_UPDATED"


def test_an_old_call_becomes_an_activity(recorded: Memory) -> None:
    audit = activity.AuditService(category=activity.Category.USER_MANAGEMENT)
    audit.log(
        "USER_UPDATED",
        "user",
        42,
        {"source": "admin"},
        user_id="admin:1",
        ip_address="192.0.2.1",
        user_agent="curl/8",
        old_values={"name": "Ada", "plan": "free", "gone": 1},
        new_values={"name": "Ada", "plan": "gold", "new": Decimal("1.50")},
        campaign="spring",
    )
    found = recorded.assert_recorded("user_updated", entity=("user", 42), actor="admin:1", category="user_management")
    assert (found.ip, found.user_agent, found.actor_type) == ("192.0.2.1", "curl/8", "admin")
    assert found.metadata == {
        "source": "admin",
        "campaign": "spring",
        "changed": ["plan", "gone", "new"],
        "before": {"plan": "free", "gone": 1},
        "after": {"plan": "gold", "new": "1.50"},
    }


def test_old_calls_may_be_awaited_or_not(recorded: Memory) -> None:
    audit = activity.AuditService()

    async def run() -> None:
        assert await audit.log("a.b")
        audit.log("a.c")

    asyncio.run(run())
    assert [each.action for each in recorded] == ["a.b", "a.c"]


def test_call_sites_of_another_fashion_are_told_by_names_and_order(recorded: Memory) -> None:
    audit = activity.AuditService(order=("user_id", "verb", "thing", "thing_id"), names={"verb": "action",
                                  "thing": "entity_type", "thing_id": "entity_id", "colour": "summary"})  # fmt: skip
    with context.bind(actor="system:1", tenant="acme"):
        audit.log(7, "order:cancelled", "order", 9, "one", "too many", colour="red", duration_ms=5)
    found = recorded.assert_recorded("order.cancelled", entity=("order", 9), tenant="acme", summary="red")
    assert (found.actor, found.actor_type) == ("user:7", "user")
    assert (found.metadata, found.duration_ms) == ({"further": ["one", "too many"]}, 5.0)


@pytest.mark.parametrize("nobody", [None, ""])
def test_an_empty_user_of_an_old_call_is_nobody(recorded: Memory, nobody: str | None) -> None:
    audit = activity.AuditService()
    audit.log("page.view", user_id=nobody)
    with context.bind(actor="system:1"):
        audit.log("page.view", user_id=nobody)
    assert [found.actor for found in recorded] == [None, "system:1"]


@pytest.mark.parametrize(
    ("given", "outcome", "severity"),
    [
        ({"success": False}, Outcome.FAILURE, Level.ERROR),
        ({"status": "failed", "severity": "WARN"}, Outcome.FAILURE, Level.WARNING),
        ({"error_message": "no funds"}, Outcome.FAILURE, Level.ERROR),
        ({"success": True, "level": "notice"}, Outcome.SUCCESS, Level.INFO),
        ({}, Outcome.SUCCESS, Level.INFO),
    ],
)
def test_what_old_calls_said_of_success_and_severity_is_kept(
    recorded: Memory, given: dict[str, Any], outcome: Outcome, severity: Level
) -> None:
    activity.AuditService().log("card.charge", **given)
    (found,) = recorded
    assert (found.outcome, found.severity) == (outcome, severity)


@pytest.mark.parametrize(
    ("old", "ours"),
    [
        ("USER_CREATED", "user_created"),
        ("User Created", "user_created"),
        ("userCreated", "user_created"),
        ("user:created/now", "user.created.now"),
        ("user.create", "user.create"),
        (Old.USER_UPDATED, "user_updated"),
        ("", "unnamed"),
        (None, "unnamed"),
        ("!!!", "unnamed"),
    ],
)
def test_actions_of_every_fashion_become_words_of_ours(recorded: Memory, old: Any, ours: str) -> None:
    activity.AuditService().log(old)
    assert [each.action for each in recorded] == [ours]


def test_one_version_of_a_row_is_kept_whole(recorded: Memory) -> None:
    audit = activity.AuditService()
    audit.log("row.insert", new_values={"a": 1})
    audit.log("row.delete", old_values={"a": 1})
    assert [each.metadata for each in recorded] == [{"after": {"a": 1}}, {"before": {"a": 1}}]


def test_old_calls_never_raise_in_production_whatever_they_are_given() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = None  # type: ignore[assignment]

    with recording(strict=False) as recorded:
        audit = activity.AuditService()
        audit.log()
        audit.log(object(), object(), object(), object(), user_id=object(), old_values=[1], new_values={"x": Odd()})
        audit.log(
            "a.b", old_values={"x": Odd()}, new_values={"x": Odd()}, severity=object(), timestamp="yesterday", db=3
        )
        audit.log("a.c", timestamp=datetime(2026, 1, 1, tzinfo=UTC))
    assert len(recorded) == 4
    assert recorded[3].occurred_at == datetime(2026, 1, 1, tzinfo=UTC)


def test_the_other_promised_calls_are_there_by_name(recorded: Memory) -> None:
    @activity.with_activity_logging(action="USER_CREATED", entity_type="user", entity_id=activity.result("id"))
    async def create(email: str) -> Any:
        class User:
            id = 5

        return User()

    @activity.with_activity_logging
    def plain() -> int:
        return 7

    assert plain() == 7
    asyncio.run(create("a@example.com"))
    with activity.with_activity_logging("report.build", "report", 7, description="built", details={"rows": 1}):
        pass
    with activity.with_batch_logging("user_import", 3) as batch:
        batch.succeeded(3)
    activity.log_auth_event("LOGIN_FAILED", 42, False, ip_address="192.0.2.1", error_message="wrong password")
    recorded.assert_recorded("user_created", entity=("user", 5))
    recorded.assert_recorded("report.build", entity=("report", 7), summary="built", metadata={"rows": 1})
    recorded.assert_recorded("user_import", category="bulk", metadata={"total": 3, "succeeded": 3})
    recorded.assert_recorded(
        "login_failed",
        category="authentication",
        outcome="failure",
        ip="192.0.2.1",
        metadata={"reason": "wrong password"},
    )
