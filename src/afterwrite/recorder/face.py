"""The calls that an application makes, over the recorder of its task: what it gives is checked, mended or refused.

In production nothing that they are given raises: what cannot be as it is becomes what it can, with a mark in the
metadata (``misfit``) and a count in the stats. In strict mode the call refuses it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from enum import Enum
from functools import partial
from typing import Any, TypeVar, cast, overload
from uuid import UUID

from afterwrite.context import Context, as_user, bind, current
from afterwrite.errors import UsageError
from afterwrite.record import Category, Level, Outcome
from afterwrite.recorder.batch import Batch, Progress, batch_spec
from afterwrite.recorder.connections import driver_of, enter
from afterwrite.recorder.encode import clean_text
from afterwrite.recorder.ids import Ids
from afterwrite.recorder.options import Durability, signing_key
from afterwrite.recorder.recorder import Recorded, Recorder, Stats
from afterwrite.recorder.registry import ACTION, Action, Registry
from afterwrite.recorder.stamp import permits
from afterwrite.recorder.track import Entity, Spec, Track, Tracked, as_dict, find_running

log = logging.getLogger(__name__)

_ids = Ids()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.reseed)

_ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")

Function = TypeVar("Function", bound=Callable[..., Any])
_Word = TypeVar("_Word", bound=Enum)


class Health(Stats, frozen=True, kw_only=True):
    """How recording stands, all of ``Stats``; ``misfits`` are calls that were given what had to be mended.

    ``unstamped`` counts the stamps that this process left out since the role may not write them: so many times changes
    were made without saying by whom.
    """

    misfits: int = 0
    unstamped: int = 0

    @property
    def ok(self) -> bool:
        """Nothing was dropped, and nothing stands in the way of spool and delivery."""
        return not self.dropped and self.spool_trouble is None and self.delivery_trouble is None


class Face:
    """What an application calls. ``find_recorder`` gives the recorder of the calling task."""

    def __init__(self, find_recorder: Callable[[], Recorder]) -> None:
        self._find = find_recorder
        self._registry = Registry()
        self._misfits = 0

    def register(self, *known: Action | type[Enum]) -> None:
        """Make actions known with what their activities share, and categories as the values of an Enum.

        From then on metadata of a registered action is held against its schema. Registering again replaces. Raises
        UsageError for what cannot be registered.
        """
        self._registry.register(*known)

    def record(
        self,
        action: str | Action,
        *,
        category: str | None = None,
        outcome: Outcome | str = Outcome.SUCCESS,
        severity: Level | str | None = None,
        entity: Entity = None,
        summary: str | None = None,
        metadata: object = None,
        duration_ms: float | None = None,
        occurred_at: datetime | None = None,
        caused_by: object = None,
        durability: Durability | str | None = None,
        conn: object = None,
        id: str | None = None,
        context: Context | None = None,
    ) -> Recorded:
        """Record that something happened. It never waits for a network and, but for what ``conn`` raises, never raises.

        ``entity`` is what it is about, as ``("report", 7)``; who did it says the context (``context.bind``). With
        ``conn`` the activity is part of the transaction on that connection or session, and exists if and only if it
        commits; on an asynchronous one, await the result. Without, it goes to the spool: await the result, or call its
        ``wait()``, where it must be on the disk before you go on. ``caused_by`` is the id of the activity that led to
        it (or what ``record`` or ``track`` gave); by default the ``track`` around here. ``context`` stands in place of
        this task's. With an ``id`` of your own, a UUIDv7, or another UUID and ``occurred_at``, it may be recorded again
        and is stored once.
        """
        recorder = self._find()
        if not (
            action.__class__ is str
            and action not in self._registry
            and (category is None or (category.__class__ is Category))
            and (entity is None or (entity.__class__ is tuple and len(entity) == 2 and entity[0].__class__ is str))
            and outcome.__class__ is Outcome
            and (severity is None or severity.__class__ is Level)
            and (caused_by is None or (caused_by.__class__ is str and _ID.fullmatch(cast("str", caused_by))))
            and durability is None
            and (occurred_at is None or occurred_at.__class__ is datetime)
            and (id is None or id.__class__ is str)
        ):
            return self._record_mended(
                recorder, action, category, outcome, severity, entity, summary, metadata, duration_ms, occurred_at,
                caused_by, durability, conn, id, context,
            )  # fmt: skip
        return recorder.record(
            cast("str", action),
            category=category,
            outcome=outcome,
            severity=Level.INFO if severity is None else severity,
            entity=entity,
            summary=summary,
            metadata=metadata,
            duration_ms=duration_ms,
            occurred_at=occurred_at,
            caused_by=cast("str | None", caused_by),
            conn=conn,
            id=id,
            context=context,
        )

    @overload
    def track(self, action: Function, /) -> Function: ...

    @overload
    def track(
        self,
        action: str | Action | None = None,
        *,
        entity: Entity = None,
        category: str | None = None,
        severity: Level | str | None = None,
        summary: str | None = None,
        metadata: object = None,
        conn: object = None,
        durability: Durability | str | None = None,
    ) -> Track[Tracked]: ...

    def track(
        self,
        action: Any = None,
        *,
        entity: Entity = None,
        category: str | None = None,
        severity: Level | str | None = None,
        summary: str | None = None,
        metadata: object = None,
        conn: object = None,
        durability: Durability | str | None = None,
    ) -> Any:
        """Record what happens in a block or a function: how long it took, whether it succeeded, and what it raised.

        ``with`` and ``async with`` give the run, on which ``entity``, ``metadata``, ``summary`` and ``severity`` may be
        set. As a decorator it takes functions of every kind, where ``argument("user.id")`` and ``result("id")`` stand
        for what a call was given and gave; without an action, the function's name is it.

        What is recorded or written inside points to it (``caused_by``). With ``conn``, success is part of the
        transaction there; failure goes to the spool, since the transaction usually goes with what was raised.
        """
        spec = Spec(
            action=action if isinstance(action, str | Action) else None,
            entity=entity,
            category=category,
            severity=severity,
            summary=summary,
            metadata=metadata,
            conn=conn,
            durability=durability,
        )
        track = Track(self, Tracked, spec)
        return track(cast("Callable[..., Any]", action)) if callable(action) and not isinstance(action, str) else track

    def tracked(self) -> Tracked:
        """The innermost run around here, to set things on; where there is none, one that nothing comes of."""
        return find_running() or Tracked(self, Spec())

    def batch(
        self,
        action: str | Action | None = None,
        *,
        total: int | None = None,
        entity: Entity = None,
        category: str | None = None,
        severity: Level | str | None = None,
        summary: str | None = None,
        metadata: object = None,
        conn: object = None,
        durability: Durability | str | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        progress_seconds: float | None = None,
    ) -> Track[Batch]:
        """``track`` for many things at once: count them on what it gives, and one summary is recorded.

        It fails when it raises, or when items failed and none succeeded; when only some failed, its severity is
        warning. ``on_progress`` is called now and then as items are counted. With ``progress_seconds`` it is called
        that often, and how far the batch is becomes an activity too (``user.import.progress``).
        """
        spec = Spec(
            action=action,
            entity=entity,
            category=category,
            severity=severity,
            summary=summary,
            metadata=metadata,
            conn=conn,
            durability=durability,
        )
        make = partial(Batch, total=total, on_progress=on_progress, progress_seconds=progress_seconds)
        return Track(self, make, batch_spec(spec))

    def auth(
        self,
        action: str | Action,
        user_id: object = None,
        *,
        success: bool = True,
        ip: str | None = None,
        user_agent: str | None = None,
        method: str | None = None,
        reason: str | None = None,
        session: str | None = None,
        summary: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        durability: Durability | str | None = None,
        conn: object = None,
    ) -> Recorded:
        """Record what concerns signing in: ``login``, ``logout``, ``password.reset``, ``mfa.challenge``, …

        The user (``42``, ``"user:42"``, ``"admin:7"``) is what it is about, and on success also who did it, where the
        context does not say: ``user:42``. A failure has the severity warning. ``method`` (``password``, ``oidc``) and
        the ``reason`` of a failure go into the metadata.
        """
        known = {"method": method, "reason": reason}
        facts = {**(metadata or {}), **{name: value for name, value in known.items() if value is not None}}
        here = current()
        theirs = success and here.actor_id is None and isinstance(user_id, str | int | UUID)
        actor = as_user(user_id) if theirs else None
        told = {"ip": ip, "user_agent": user_agent, "session": session}
        words: dict[str, Any] = {name: word for name, word in told.items() if word is not None}
        if actor is not None:
            words["actor"] = actor
        return self.record(
            action,
            category=Category.AUTHENTICATION,
            outcome=Outcome.SUCCESS if success else Outcome.FAILURE,
            severity=None if success else Level.WARNING,
            entity=None if user_id is None else ("user", clean_text(user_id).removeprefix("user:")),
            summary=summary,
            metadata=facts or None,
            durability=durability,
            conn=conn,
            context=bind(**words).over(here) if words else here,
        )

    def stats(self) -> Health:
        """How recording stands: what was recorded, waits, was stored, dropped or mended, and what stands in the way."""
        stats = self._find().stats()
        return Health(
            **{name: getattr(stats, name) for name in Stats.__struct_fields__},
            misfits=self._misfits,
            unstamped=permits.unstamped,
        )

    # What the runs that track() made need.

    @property
    def strict(self) -> bool:
        return self._find().options.strict

    def make_id(self) -> str:
        return _ids.make()

    def check(self, action: str | Action, category: str | None, conn: object) -> None:
        """In strict mode, raises UsageError for what could not be recorded at the end."""
        recorder = self._find()
        if not recorder.options.strict:
            return
        name = clean_text(action)
        if not ACTION.fullmatch(name):
            raise UsageError(f"{name!r} is no action", remedy="write it as user.create: lower-case words and dots")
        if category is not None:
            self._registry.refuse_unknown(category)
        if conn is not None and recorder.reaches_connections:
            driver_of(conn)

    def enter(self, conn: object, context: Context) -> Awaitable[None] | None:
        """Have what is written on the connection from here on carry this context."""
        recorder = self._find()
        if not recorder.reaches_connections:
            return None
        try:
            return enter(conn, context=context, key=signing_key(recorder.options))
        except UsageError:
            # A connection that nobody knows; strict mode has refused it before.
            return None

    def flush(self, conn: object) -> Awaitable[None] | None:
        """Have a session write what it holds back."""
        flush: Any = getattr(conn, "flush", None) if self._find().reaches_connections else None
        return cast("Awaitable[None] | None", flush()) if callable(flush) else None

    def write(self, action: str | Action, *, odd: str | None, **said: Any) -> Recorded:
        """``record``; ``odd`` is what the caller had to mend already."""
        if odd is not None:
            self._misfits += 1
            said["metadata"] = _with_mark(said.get("metadata"), odd)
        return self.record(action, **said)

    def _record_mended(
        self,
        recorder: Recorder,
        action: str | Action,
        category: str | None,
        outcome: Outcome | str,
        severity: Level | str | None,
        entity: Entity,
        summary: str | None,
        metadata: object,
        duration_ms: float | None,
        occurred_at: datetime | None,
        caused_by: object,
        durability: Durability | str | None,
        conn: object,
        id: str | None,
        context: Context | None,
    ) -> Recorded:
        """``record`` of what is not as plain as most calls are, or not as it should be."""
        mending = _Mending(strict=recorder.options.strict)
        known = action if isinstance(action, Action) else self._registry.find(action)
        name = known.name if known is not None else mending.text("action", action)
        if known is not None:
            category = known.category if category is None else category
            severity = known.severity if severity is None else severity
            summary = known.summary if summary is None else summary
            if (misfit := self._registry.misfit(name, metadata)) is not None:
                mending.mend(f"metadata of {name} does not fit: {misfit}", "mend the call, or the action's schema")
        if category is not None:
            category = mending.text("category", category)
            if mending.strict:
                self._registry.refuse_unknown(category)
        if entity is not None and not isinstance(entity, str):
            entity = mending.entity(entity)
        outcome = mending.word("outcome", Outcome, outcome, Outcome.FAILURE)
        severity = Level.INFO if severity is None else mending.word("severity", Level, severity, Level.INFO)
        if durability is not None:
            durability = mending.word("durability", Durability, durability, recorder.options.durability)
        if occurred_at is not None and not isinstance(cast("object", occurred_at), datetime):
            mending.mend(f"occurred_at is no datetime: {clean_text(occurred_at, 100)}", "give a datetime with a zone")
            occurred_at = None
        cause = None if caused_by is None else mending.cause(caused_by)
        if cause == id:
            cause = None
        if mending.odd is not None:
            self._misfits += 1
            metadata = _with_mark(metadata, mending.odd)
        return recorder.record(
            name,
            category=category,
            outcome=outcome,
            severity=severity,
            entity=entity,
            summary=summary,
            metadata=metadata,
            duration_ms=duration_ms,
            occurred_at=occurred_at,
            caused_by=cause,
            durability=durability,
            conn=conn,
            id=str(id) if isinstance(cast("object", id), UUID) else id,
            context=context,
        )


class _Mending:
    """What had to be mended of one call; in strict mode, whatever had to be is refused."""

    __slots__ = ("odd", "strict")

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.odd: str | None = None

    def mend(self, found: str, remedy: str) -> None:
        if self.strict:
            raise UsageError(found, remedy=remedy)
        self.odd = found if self.odd is None else f"{self.odd}; {found}"

    def text(self, name: str, value: object) -> str:
        if isinstance(value, str) and value:
            return value
        self.mend(f"{name} is no text: {clean_text(value, 100)!r}", "write it as lower-case words")
        return clean_text(value, 200) or "unnamed"

    def word(self, name: str, words: type[_Word], value: object, otherwise: _Word) -> _Word:
        if isinstance(value, words):
            return value
        try:
            return words(value)
        except ValueError:
            known = ", ".join(str(each.value) for each in words)
            self.mend(f"{name} is none of {known}: {clean_text(value, 100)}", f"give {name} one of these")
            return otherwise

    def entity(self, value: object) -> Entity:
        parts = cast("tuple[object, ...]", value)
        if isinstance(value, tuple | list):
            kind, *ids = parts or (None,)
            if isinstance(kind, str) and len(ids) == 1:
                return kind, ids[0]
        self.mend(f"entity is no pair of type and id: {clean_text(parts, 200)}", 'write it as ("report", 7)')
        return None

    def cause(self, value: object) -> str | None:
        """The id of an activity: a UUID, or something that has one."""
        id: object = value if isinstance(value, str | UUID) else getattr(value, "id", None)
        if isinstance(id, str | UUID):
            try:
                return str(UUID(str(id)))
            except ValueError:
                pass
        self.mend(f"caused_by is no id of an activity: {clean_text(value, 100)}", "give what record() or track() gave")
        return None


def _with_mark(metadata: object, odd: str) -> object:
    """The metadata, whatever it is, with what was odd of the call."""
    return {**as_dict(metadata), "misfit": odd}
