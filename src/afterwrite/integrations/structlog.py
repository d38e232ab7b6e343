"""structlog: chosen log events become activities, and every log line says who it was.

::

    structlog.configure(processors=[merge_contextvars, Activities(), add_context, …, JSONRenderer()])

    log.info("report sent", activity="report.sent", entity=("report", 7), pages=3)
     └─▶ a log line as before, with activity_id     └─▶ activity "report.sent": summary, severity, metadata {"pages": 3}
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, MutableMapping
from typing import Any, cast

from structlog.contextvars import get_contextvars

from afterwrite import activity
from afterwrite.context import bind, current
from afterwrite.record import Level, Outcome
from afterwrite.recorder.adapters import CONTEXT, NAMES, actor_of
from afterwrite.recorder.registry import Action
from afterwrite.recorder.track import describe_error

__all__ = ["Activities", "add_context"]

_LEVELS = {
    "debug": Level.DEBUG,
    "info": Level.INFO,
    "warn": Level.WARNING,
    "warning": Level.WARNING,
    "error": Level.ERROR,
    "exception": Level.ERROR,
    "critical": Level.CRITICAL,
    "fatal": Level.CRITICAL,
}
# What other processors put there, and what is not about what happened.
_OTHERS = frozenset(
    {"level", "log_level", "logger", "logger_name", "timestamp", "exc_info", "exception", "stack_info", "stack"}
)
_OURS = frozenset({"activity", "event", "entity", "category", "conn", "success", "duration_ms", "caused_by"})


class Activities:
    """A processor: a log event with the key ``activity``, or one whose text is in ``actions``, is recorded too.

    ``actions`` gives the action of an event by its text. The event's text is the summary, its level the severity (error
    and above are failures, and so is ``success=False``), an exception the metadata's ``error``; ``entity``,
    ``category``, ``conn``, ``duration_ms`` and ``caused_by`` are what they are for ``record``, and other keys become
    metadata. Who it was is taken from what structlog's contextvars and the event itself hold, by the usual names
    (``user_id``, ``request_id``, ``client_ip``, …; ``names`` adds to them), over the context. The line goes on with
    ``activity_id``.
    """

    def __init__(
        self,
        actions: Mapping[str, str | Action] | None = None,
        *,
        names: Mapping[str, str] | None = None,
        leave_out: Collection[str] = (),
    ) -> None:
        self._actions = dict(actions or {})
        self._names = {name: ours for name, ours in NAMES.items() if ours in CONTEXT} | dict(names or {})
        self._left_out = _OTHERS | _OURS | frozenset(leave_out)

    def __call__(self, logger: Any, method: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Record the event where it is chosen; it goes on, with the id of its activity."""
        text: object = event_dict.get("event")
        action = event_dict.get("activity", self._actions.get(text) if isinstance(text, str) else None)
        if action is None:
            return event_dict
        words: dict[str, Any] = {}
        bound = get_contextvars()
        for name, value in {**bound, **event_dict}.items():
            ours = self._names.get(name)
            if ours is not None and (known := actor_of(name, value)) is not None:
                words[ours] = known
        facts = {
            name: value
            for name, value in event_dict.items()
            # What is bound for all of a request is context, or the log's own affair.
            if name not in self._left_out and name not in self._names and name not in bound and name[:1] != "_"
        }
        error = _error_of(event_dict.get("exc_info"))
        if error is not None:
            facts.setdefault("error", describe_error(error))
        level = _LEVELS.get(method if method in _LEVELS else str(event_dict.get("level", method)), Level.INFO)
        failed = level in {Level.ERROR, Level.CRITICAL} or event_dict.get("success") is False
        with bind(**words):
            recorded = activity.record(
                cast("str | Action", action),
                category=event_dict.get("category"),
                outcome=Outcome.FAILURE if failed else Outcome.SUCCESS,
                severity=level,
                entity=event_dict.get("entity"),
                summary=text if isinstance(text, str) else None,
                metadata=facts or None,
                duration_ms=event_dict.get("duration_ms"),
                caused_by=event_dict.get("caused_by"),
                conn=event_dict.pop("conn", None),
            )
        event_dict["activity"] = str(action)
        event_dict["activity_id"] = recorded.id
        return event_dict


def add_context(logger: Any, method: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor: every log line says who and why, in the words of ``context.bind``, where it does not by itself."""
    here = current()
    for name, word in (
        ("actor", here.actor_id),
        ("tenant", here.tenant_id),
        ("session", here.session_id),
        ("request", here.request_id),
        ("trace", here.trace_id),
        ("caused_by", here.caused_by),
    ):
        if word is not None:
            event_dict.setdefault(name, word)
    return event_dict


def _error_of(exc_info: object) -> BaseException | None:
    """The exception that a log call told of, in any of the ways that logging knows."""
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        told = cast("tuple[object, ...]", exc_info)
        return next((each for each in told if isinstance(each, BaseException)), None)
    return sys.exc_info()[1] if exc_info else None
