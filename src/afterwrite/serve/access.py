"""Who looked at what: looking at activity is activity, too.

::

    a request that was answered ─▶ Looks: the same look again within five minutes is the same record
                                     │ a second after the first, and again at the end, when there were more
                                     ▼
                                   one event of category security in the store

A page that asks every second makes two records in five minutes and not three hundred; a look at these records is one
more, and makes none by itself. What finds no room is counted, and told with the next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl

import msgspec

from afterwrite.errors import AfterwriteError
from afterwrite.record import Activity, Category, Kind, Level, Outcome
from afterwrite.recorder.encode import clean_text
from afterwrite.recorder.ids import Ids
from afterwrite.serve.callers import Caller
from afterwrite.serve.ingest import Ingest
from afterwrite.serve.metrics import Metrics
from afterwrite.serve.visits import Visit

log = logging.getLogger(__name__)

SOURCE = "afterwrite"
_MOST = 5_000
_STEP_SECONDS = 1.0
_LONGEST = 500
# A query, and a path with names in it, as long as they may be: nobody hides behind what comes first.
_LONGEST_ASKED = 2_000
# What is told of a request's parameters, beside its path.
_TOLD = frozenset({"q", "type", "id", "at", "time", "after", "before", "seconds", "tenant", "span", "format"})
_FOR_ALL = "all"


class Look(NamedTuple):
    """What makes two looks the same: who, from where, at what."""

    caller: Caller
    client: str | None
    path: str
    asked: tuple[tuple[str, str], ...]


class Looks:
    """Notes who looks, and has it stored now and again. ``seconds``: for how long the same look is the same record."""

    def __init__(
        self,
        ingest: Ingest,
        metrics: Metrics,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        most: int = _MOST,
    ) -> None:
        self._ingest = ingest
        self._metrics = metrics
        self._seconds = seconds
        self._clock = clock
        self._most = most
        self._ids = Ids()
        self._open: dict[Look, _Window] = {}
        self._missed = 0

    def note(self, visit: Visit, scope: Mapping[str, Any]) -> None:
        """Note a request that was let in and answered, where its route is one that looks at activity.

        A route says ``opt={"looks": False}`` where it does not, and ``"all"`` where only that it was asked is noted.
        """
        handler = scope.get("route_handler")
        if handler is None or visit.caller is None:
            return
        looks: object = handler.opt.get("looks", not handler.opt.get("public") and scope["method"] == "GET")
        if not looks:
            return
        path = cast("str", scope.get("path_template") if looks == _FOR_ALL else scope["path"])
        path = path.replace("\0", "/")
        query = cast("bytes", scope.get("query_string") or b"").decode("latin-1")
        found = [] if looks == _FOR_ALL else parse_qsl(query, errors="replace", max_num_fields=None)
        shorter = ((name, " ".join(value.split())[:_LONGEST_ASKED]) for name, value in found if name in _TOLD)
        asked = tuple((name, value) for name, value in shorter if value)
        self.add(Look(visit.caller, visit.client, path[:_LONGEST_ASKED], asked), visit)

    def add(self, look: Look, visit: Visit) -> None:
        """Count a look."""
        self._metrics.looked.inc()
        now = datetime.now(UTC)
        window = self._open.get(look)
        if window is None:
            if len(self._open) >= self._most:
                self._missed += 1
                self._metrics.dropped.labels("looks").inc()
                return
            window = self._open[look] = _Window(
                since=self._clock(),
                first_at=now,
                user_agent=visit.headers.get("user-agent"),
                request=visit.request_id,
                last_at=now,
            )
        window.times += 1
        window.last_at = now

    async def run(self) -> None:
        """Store what was noted, for as long as the server runs."""
        while True:
            await asyncio.sleep(_STEP_SECONDS)
            await self.flush()

    async def flush(self, *, ending: bool = False) -> None:
        """Store what is due: looks that are new, and those whose time is over and that came again.

        When half of the room is taken all are over: who looks at thousands of things does not push out others' looks.
        """
        now = self._clock()
        missed = self._missed
        ending = ending or len(self._open) > self._most // 2
        due: list[Activity] = []
        done: list[tuple[Look, int, bool]] = []
        for look, window in self._open.items():
            over = ending or now - window.since >= self._seconds
            if not window.told or (over and window.times > window.told):
                due.append(self._event(look, window))
                done.append((look, window.times, over))
            elif over:
                done.append((look, window.times, over))
        try:
            if due:
                await self._ingest.put(SOURCE, due)
        except (AfterwriteError, TimeoutError) as error:
            log.warning("who looked at activity could not be stored, and is kept: %s", error)
            return
        for look, times, over in done:
            if over and self._open[look].times == times:
                del self._open[look]
            else:
                self._open[look].told = times
        if due:
            self._missed -= missed

    def _event(self, look: Look, window: _Window) -> Activity:
        caller = look.caller
        asked = " ".join(value for _, value in look.asked)
        times = f", {window.times:,} times" if window.times > 1 else ""
        facts: dict[str, object] = {
            "path": look.path,
            "asked": {name: " & ".join(value for each, value in look.asked if each == name) for name, _ in look.asked},
            "times": window.times,
            "first_at": window.first_at,
            "last_at": window.last_at,
        }
        if self._missed:
            facts["not_noted"] = self._missed
        return Activity(
            id=self._ids.make(),
            occurred_at=window.last_at if window.told else window.first_at,
            source=SOURCE,
            kind=Kind.EVENT,
            category=Category.SECURITY,
            action="activity.looked",
            outcome=Outcome.SUCCESS,
            severity=Level.INFO,
            actor_id=caller.name,
            actor_type=caller.kind.value,
            tenant_id=caller.tenant,
            request_id=window.request,
            ip=look.client,
            user_agent=None if window.user_agent is None else clean_text(window.user_agent, _LONGEST),
            summary=clean_text(f"{caller.name} looked at {look.path} {asked}".strip() + times, 2 * _LONGEST),
            metadata=msgspec.Raw(msgspec.json.encode(facts)),
        )


class _Window(msgspec.Struct):
    """A look within its time: how often, and how often when it was last stored (0: not yet)."""

    since: float
    first_at: datetime
    user_agent: str | None
    request: str
    last_at: datetime
    times: int = 0
    told: int = 0
