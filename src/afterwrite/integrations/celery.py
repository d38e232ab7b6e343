"""Celery: whoever asked for a task is the actor of what it writes; the worker is who carries it out.

::

    instrument()                       # once, where the application is made: who sends tasks and who runs them need it

    web: actor user:42 ──▶ order.ship.delay(7) ──▶ header "afterwrite" ──▶ worker: actor user:42, and so on
                                                                             └─▶ its retries, chains, chords, subtasks

A task that nobody asked for (beat, a shell) is its own actor, ``task:orders.ship``. The header is signed where a
``stamp_key`` is configured; then one that is not is not believed.
"""

# Celery is not typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import msgspec
from celery import signals

from afterwrite import activity
from afterwrite.context import Context, Later, adopt, complain, current, decode_context, encode_context
from afterwrite.errors import AfterwriteError
from afterwrite.record import Category, Level
from afterwrite.recorder.stamp import configured_key
from afterwrite.recorder.track import Tracked
from afterwrite.seal import seal, split_keys, unseal

__all__ = ["instrument"]

HEADER = "afterwrite"
# What a signature is for: a stamp cannot be sent as a task's context, nor the other way round.
_PREFIX = "afterwrite.task"
_RUNNING = "_afterwrite_running"
_NOBODY = Context()


def task_of(task: Any) -> str | None:
    """The actor of what nobody asked for: the task itself."""
    return f"task:{task.name}"


def instrument(*, record: bool = False, nobody: Callable[[Any], str | None] = task_of, key: str | None = None) -> None:
    """Send the context along with every task of this process, and bind it around every task that runs here.

    ``nobody`` names the actor of a task without one. ``record`` makes an activity ``task.run`` of each run of a task,
    with the worker that carried it out; what it changes points to it. ``key`` signs, by default the settings'. Calling
    it again replaces what was said before.
    """
    global _integration  # noqa: PLW0603 - Celery's signals are of the process too
    if _integration is not None:
        _integration.disconnect()
    _integration = _Integration(record, nobody, key)
    _integration.connect()


_integration: _Integration | None = None


class _Running:
    """A task that runs here."""

    def __init__(self, later: Later | None, tracking: AbstractContextManager[Tracked] | None) -> None:
        self.later = later
        self.error: BaseException | None = None
        self.why: object = None
        self._tracking = tracking
        self._run: Tracked | None = None

    def begin(self) -> None:
        if self.later is not None:
            self.later.__enter__()
        if self._tracking is not None:
            self._run = self._tracking.__enter__()

    def end(self, state: str | None) -> None:
        try:
            if self._tracking is not None and self._run is not None:
                self._conclude(self._run, state or "LOST")
                error = self.error
                self._tracking.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        finally:
            if self.later is not None:
                self.later.__exit__()

    def _conclude(self, run: Tracked, state: str) -> None:
        run.metadata["state"] = state
        if state == "RETRY":
            # It is tried again: that it did not work yet is worth less than that it failed.
            why = self.why
            run.fail(why if isinstance(why, BaseException) else str(why), severity=Level.WARNING)
        elif state not in {"SUCCESS", "IGNORED"} and self.error is None:
            run.fail(severity=Level.WARNING)


class _Integration:
    """What is done at each of Celery's signals."""

    def __init__(self, record: bool, nobody: Callable[[Any], str | None], key: str | None) -> None:
        self._record = record
        self._nobody = nobody
        self._key = key
        self._signals = {
            signals.before_task_publish: self._send,
            signals.task_prerun: self._begin,
            signals.task_retry: self._note_retry,
            signals.task_failure: self._note_failure,
            signals.task_postrun: self._end,
            signals.worker_process_shutdown: self._close,
        }

    def connect(self) -> None:
        for signal, receiver in self._signals.items():
            signal.connect(receiver, weak=False)

    def disconnect(self) -> None:
        for signal, receiver in self._signals.items():
            signal.disconnect(receiver)

    def _send(self, headers: dict[str, Any] | None = None, **_: Any) -> None:
        """Before a task is sent, by a web process or by a task: with retries, chains and chords too."""
        if headers is None:
            return
        context = current()
        if context == _NOBODY:
            headers.pop(HEADER, None)
        else:
            headers[HEADER] = seal(_PREFIX, encode_context(context), self._key or configured_key())

    def _begin(self, task: Any = None, task_id: str | None = None, **_: Any) -> None:
        request = task.request
        # One that runs at once, where it was called, is a part of what called it.
        eager = bool(request.is_eager) and request.get(HEADER) is None and current() != _NOBODY
        later = None if eager else Later(adopt(self._read(task)))
        running = _Running(later, self._track(task, task_id) if self._record else None)
        setattr(request, _RUNNING, running)
        running.begin()

    def _note_retry(self, sender: Any = None, reason: object = None, **_: Any) -> None:
        if (running := _running_of(sender)) is not None:
            running.why = reason

    def _note_failure(self, sender: Any = None, exception: BaseException | None = None, **_: Any) -> None:
        if (running := _running_of(sender)) is not None:
            running.error = exception

    def _end(self, task: Any = None, state: str | None = None, **_: Any) -> None:
        if (running := _running_of(task)) is not None:
            delattr(task.request, _RUNNING)
            running.end(state)

    def _close(self, **_: Any) -> None:
        """A worker's process ends without what Python does at the end of one."""
        activity.close()

    def _track(self, task: Any, task_id: str | None) -> AbstractContextManager[Tracked]:
        request = task.request
        delivery = request.delivery_info or {}
        told = {
            "task": task.name,
            "worker": request.hostname,
            "queue": delivery.get("routing_key"),
            "attempt": (request.retries or 0) + 1,
        }
        return activity.track(
            "task.run",
            category=Category.SYSTEM,
            entity=("task", task_id),
            summary=task.name,
            metadata={name: value for name, value in told.items() if value is not None},
        )

    def _read(self, task: Any) -> Context:
        """The context that came with a task; its own where none did, or one that cannot be believed."""
        context = _NOBODY
        sent: object = task.request.get(HEADER)
        if isinstance(sent, str):
            try:
                keys = split_keys(self._key or configured_key())
                unsealed = unseal(_PREFIX, sent.encode(), keys)
                if keys and not unsealed.signed:
                    raise AfterwriteError("a task came with a context that our stamp_key did not sign")
                context = decode_context(unsealed.payload)
            except Exception as error:
                complain(error)
        if context.actor_id is None and (name := self._nobody(task)) is not None:
            context = msgspec.structs.replace(context, actor_id=name, actor_type=name.partition(":")[0])
        return context


def _running_of(task: Any) -> _Running | None:
    return getattr(task.request, _RUNNING, None) if hasattr(task, "request") else None
