"""Old call sites that keep working: the calls of an audit service that wrote into a log table, as activities."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, cast
from uuid import UUID

from afterwrite.context import as_user, bind, current
from afterwrite.record import Level, Outcome
from afterwrite.recorder.batch import Batch
from afterwrite.recorder.encode import clean_text
from afterwrite.recorder.face import Face
from afterwrite.recorder.recorder import Recorded
from afterwrite.recorder.track import Entity, Track, Tracked, as_dict

# What old services call their parameters, and which of ours that is.
NAMES: Mapping[str, str] = {
    **dict.fromkeys(("action", "event", "event_type", "action_type"), "action"),
    **dict.fromkeys(("entity_type", "resource_type", "object_type", "target_type", "table_name"), "entity_type"),
    **dict.fromkeys(("entity_id", "resource_id", "object_id", "target_id", "record_id"), "entity_id"),
    **dict.fromkeys(("details", "metadata", "data", "extra", "context", "payload"), "metadata"),
    **dict.fromkeys(("old_values", "old_value", "old_data", "before"), "before"),
    **dict.fromkeys(("new_values", "new_value", "new_data", "after"), "after"),
    **dict.fromkeys(("user_id", "actor", "actor_id", "performed_by", "changed_by", "user"), "actor"),
    **dict.fromkeys(("ip_address", "ip", "client_ip", "remote_addr"), "ip"),
    **dict.fromkeys(("user_agent", "agent"), "user_agent"),
    **dict.fromkeys(("tenant_id", "tenant", "organization_id", "org_id"), "tenant"),
    **dict.fromkeys(("session_id",), "session"),
    **dict.fromkeys(("request_id", "correlation_id"), "request"),
    **dict.fromkeys(("success", "succeeded", "is_success", "status", "outcome", "result"), "outcome"),
    **dict.fromkeys(("error", "error_message", "failure_reason"), "error"),
    **dict.fromkeys(("description", "message", "summary"), "summary"),
    **dict.fromkeys(("severity", "level", "log_level"), "severity"),
    **dict.fromkeys(("category", "event_category"), "category"),
    **dict.fromkeys(("duration_ms", "execution_time_ms"), "duration_ms"),
    **dict.fromkeys(("occurred_at", "timestamp", "created_at"), "occurred_at"),
    **dict.fromkeys(("conn", "connection", "db", "db_session"), "conn"),
}
ORDER = ("action", "entity_type", "entity_id", "details")
# Whose ids these are is said by the name.
_USERS = frozenset({"user_id", "user"})
CONTEXT = ("actor", "ip", "user_agent", "tenant", "session", "request")
_FAILED = frozenset({"failure", "failed", "fail", "error", "denied", "false", "0"})


class AuditService:
    """An audit service's ``log(action, entity_type, entity_id, details, …)``, whose calls become activities.

    Each call may be awaited or not. What it is given goes where it belongs: who and from where into the context of this
    one activity, ``old_values`` and ``new_values`` as what changed into the metadata, what nobody knows into the
    metadata as it is. ``names`` says which parameter is which of ours where the usual words (``NAMES``) do not;
    ``order`` is the order in which the call sites give them. A connection that is given (``db``) is used, so that the
    activity is part of its transaction, unless ``in_transaction`` is off.
    """

    def __init__(
        self,
        face: Face,
        *,
        category: str | None = None,
        names: Mapping[str, str] | None = None,
        order: Sequence[str] = ORDER,
        in_transaction: bool = True,
    ) -> None:
        self._face = face
        self._category = category
        self._names = {**NAMES, **(names or {})}
        self._order = tuple(order)
        self._in_transaction = in_transaction

    def log(self, *values: object, **named: object) -> Recorded:
        """Record what the old call said; never raises in production, whatever it was given."""
        given = dict(zip(self._order, values, strict=False)) | named
        if len(values) > len(self._order):
            given["further"] = values[len(self._order) :]
        told: dict[str, Any] = {}
        facts: dict[str, Any] = {}
        for name, value in given.items():
            ours = self._names.get(name)
            if ours is None:
                facts[name] = value
            elif (known := actor_of(name, value)) is not None:
                told.setdefault(ours, known)
        metadata = as_dict(told.get("metadata")) | facts | diff(told.get("before"), told.get("after"))
        if "error" in told:
            metadata.setdefault("error", {"message": clean_text(told["error"], 500)})
        words = {name: told[name] for name in CONTEXT if name in told}
        return self._face.record(
            action_word(told.get("action")),
            category=told.get("category", self._category),
            outcome=_outcome(told),
            severity=_severity(told),
            entity=entity_of(told.get("entity_type"), told.get("entity_id")),
            summary=told.get("summary"),
            metadata=metadata or None,
            duration_ms=told.get("duration_ms"),
            occurred_at=told.get("occurred_at"),
            conn=told.get("conn") if self._in_transaction else None,
            context=bind(**words).over(current()) if words else None,
        )


def actor_of(name: str, value: object) -> object:
    """The value of this parameter, as an actor where its name says that it is a user's id."""
    return as_user(value) if name in _USERS and isinstance(value, str | int | UUID) else value


def diff(before: object, after: object) -> dict[str, Any]:
    """What two versions of a row differ in, as members of metadata; all of the one where the other is not there."""
    if before is None and after is None:
        return {}
    old, new = as_dict(before), as_dict(after)
    if before is None or after is None:
        return {"after": new} if before is None else {"before": old}
    changed = [name for name in {**old, **new} if name not in old or name not in new or _differ(old[name], new[name])]
    return {
        "changed": changed,
        "before": {name: old[name] for name in changed if name in old},
        "after": {name: new[name] for name in changed if name in new},
    }


def action_word(action: object) -> str:
    """An action of ours from a word of any fashion: ``USER_CREATED``, ``User Created``, ``user:created``."""
    text = "" if action is None else clean_text(getattr(action, "value", action), 200)
    if not text.isupper():
        text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text)
    words = (re.sub(r"[^a-z0-9]+", "_", part).strip("_") for part in re.split(r"[.:/]+", text.lower()))
    return ".".join(filter(None, words)) or "unnamed"


def entity_of(kind: object, id: object) -> Entity:
    """What it is about, from two parameters of which one may be missing."""
    if kind is None:
        return None if id is None else ("unknown", id)
    word = clean_text(getattr(kind, "value", kind), 200)
    return word if id is None else (word, id)


def with_activity_logging(
    face: Face,
    action: object = None,
    entity_type: object = None,
    entity_id: object = None,
    *,
    category: str | None = None,
    description: str | None = None,
    details: Mapping[str, Any] | None = None,
    severity: Level | str | None = None,
    conn: object = None,
) -> Track[Tracked]:
    """``track`` by the old name and the old parameters; a decorator or a block, sync and async."""
    if callable(action) and not isinstance(action, str | Enum):
        return face.track(cast("Any", action))  # a decorator without parentheses
    return face.track(
        None if action is None else action_word(action),
        entity=entity_of(entity_type, entity_id),
        category=category,
        severity=severity,
        summary=description,
        metadata=details,
        conn=conn,
    )


def with_batch_logging(
    face: Face,
    action: object = None,
    total: int | None = None,
    *,
    entity_type: object = None,
    category: str | None = None,
    description: str | None = None,
    details: Mapping[str, Any] | None = None,
    conn: object = None,
) -> Track[Batch]:
    """``batch`` by the old name and the old parameters."""
    return face.batch(
        None if action is None else action_word(action),
        total=total,
        entity=entity_of(entity_type, None),
        category=category,
        summary=description,
        metadata=details,
        conn=conn,
    )


def log_auth_event(
    face: Face,
    event: object,
    user_id: object = None,
    success: bool = True,
    *,
    ip_address: str | None = None,
    user_agent: str | None = None,
    method: str | None = None,
    error_message: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> Recorded:
    """``auth`` by the old name and the old parameters."""
    return face.auth(
        action_word(event),
        user_id,
        success=success,
        ip=ip_address,
        user_agent=user_agent,
        method=method,
        reason=error_message,
        metadata=details,
    )


def _outcome(told: Mapping[str, Any]) -> Outcome:
    said: object = told.get("outcome")
    if said is None:
        return Outcome.FAILURE if "error" in told else Outcome.SUCCESS
    word = clean_text(getattr(said, "value", said), 100).lower()
    return Outcome.FAILURE if word in _FAILED else Outcome.SUCCESS


def _severity(told: Mapping[str, Any]) -> Any:
    said: object = told.get("severity")
    if said is None:
        return Level.ERROR if _outcome(told) is Outcome.FAILURE else None
    word = clean_text(getattr(said, "value", said), 100).lower()
    return {"warn": "warning", "err": "error", "fatal": "critical", "notice": "info"}.get(word, word)


def _differ(old: object, new: object) -> bool:
    try:
        return bool(cast("Any", old) != new)
    except Exception:
        return True  # arrays and such have no one answer
