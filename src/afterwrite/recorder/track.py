"""What takes time or may fail, as one activity: a ``with`` block, or a function of any kind.

::

    enter ──▶ id made, caused_by=id bound ──▶ the block: row changes and activities in it point to id
                                                 │
    recorded once, at the end ◀── duration, outcome, error ◀── left, or raised (and raised on)

With a connection, success is emitted into its transaction: it exists if and only if that commits. Failure goes to the
spool instead, with the same id: what raised has usually taken its transaction along, and that it was tried stays true
where it has not.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from datetime import UTC, datetime
from functools import partial, wraps
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, cast
from weakref import WeakValueDictionary

import msgspec

from afterwrite.context import Context, bind, current, here
from afterwrite.errors import UsageError
from afterwrite.record import Level, Outcome
from afterwrite.recorder.encode import clean_text
from afterwrite.recorder.options import Durability
from afterwrite.recorder.recorder import Recorded, is_undone
from afterwrite.recorder.registry import Action

log = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])
_LONGEST_MESSAGE = 500
_LEVELS = tuple(Level)


class Scribe(Protocol):
    """What tracks need of the face that made them."""

    @property
    def strict(self) -> bool: ...

    def write(self, action: str | Action, *, odd: str | None, **said: Any) -> Recorded:
        """``record``, with what was odd about it already."""
        ...

    def make_id(self) -> str: ...

    def check(self, action: str | Action, category: str | None, conn: object) -> None:
        """In strict mode, raises UsageError for what could not be recorded at the end."""
        ...

    def enter(self, conn: object, context: Context) -> Awaitable[None] | None:
        """Have what is written on the connection from here on carry this context."""
        ...

    def flush(self, conn: object) -> Awaitable[None] | None:
        """Have a session write what it holds back."""
        ...


class Taken(msgspec.Struct, frozen=True):
    """A value that a decorated function knows: of an argument, or of its result."""

    path: str
    of_result: bool = False

    def find(self, given: object) -> object:
        """The value; raises where a part of the path is not there."""
        value = given
        for name in filter(None, self.path.split(".")):
            value = cast("Any", value)[name] if isinstance(value, Mapping) else getattr(value, name)
        return cast("object", value)


def argument(path: str) -> Any:
    """What an argument of the decorated function is, or an attribute or member of it: ``argument("user.id")``."""
    return Taken(path)


def result(path: str = "") -> Any:
    """What the decorated function returned, or an attribute or member of it: ``result("id")``."""
    return Taken(path, of_result=True)


Entity = tuple[str, object] | str | None


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller of ``track`` said."""

    action: str | Action | None = None
    category: str | None = None
    severity: Level | str | None = None
    entity: Any = None
    summary: str | None = None
    metadata: Any = None
    conn: Any = None
    durability: Durability | str | None = None
    # Whether any of it stands for what a decorated function knows.
    takes: bool = False


class Tracked:
    """One run of what is tracked. What is set on it inside the block is recorded at the end."""

    # Weakly known by their ids; who holds on to one may still ask it.
    __slots__ = (
        "__weakref__", "_began", "_conn", "_discarded", "_here", "_least", "_odd", "_pid", "_scribe", "_spec",
        "binding", "entity", "id", "metadata", "outcome", "result", "severity", "summary",
    )  # fmt: skip

    def __init__(self, scribe: Scribe, spec: Spec, *, odd: str | None = None) -> None:
        self.id = scribe.make_id()
        # What it is about: ("user", 7).
        self.entity: Entity = spec.entity
        self.summary = spec.summary
        self.severity: Level | str | None = spec.severity
        # Success, unless the block raises or says otherwise.
        self.outcome: Outcome | str = Outcome.SUCCESS
        self.metadata: dict[str, Any] = as_dict(spec.metadata)
        # What a decorated function returned.
        self.result: object = None
        self.binding = bind(caused_by=self.id)
        self._scribe = scribe
        self._spec = spec
        self._conn: object = spec.conn
        self._odd = odd
        self._here = here()
        self._discarded = False
        self._pid = os.getpid()
        # The least severity of a failure; None: an error's.
        self._least: Level | None = None
        self._began = time.perf_counter()
        _running[self.id] = self

    @property
    def _outer(self) -> Context:
        """The context around it; who makes a request may become known only inside."""
        return self._here()

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.perf_counter() - self._began

    def fail(self, why: BaseException | str | None = None, *, severity: Level | None = None) -> None:
        """Say that it failed although nothing is raised; an error, unless ``severity`` says less of it."""
        self.outcome = Outcome.FAILURE
        self._least = severity
        if why is not None:
            self.metadata["error"] = describe_error(why) if isinstance(why, BaseException) else {"message": why}

    def discard(self) -> None:
        """Record nothing at the end, unless it raises."""
        self._discarded = True

    def record_progress(self, metadata: Mapping[str, Any]) -> None:
        """Record how far it is, beside what is recorded at the end."""
        self._scribe.write(
            f"{self._spec.action or 'unnamed'}.progress",
            category=self._spec.category,
            severity=Level.DEBUG,
            entity=None if self._spec.takes else self.entity,
            metadata=metadata,
            caused_by=self.id,
            context=self._outer,
            odd=None,
        )

    def start(self) -> None:
        """Have what is written on the connection from here on point to this."""
        if self._conn is not None and _is_asynchronous(self._conn):
            if self._scribe.strict:
                raise UsageError("conn is asynchronous, and its block is not", remedy="write async with, or async def")
            self._odd, self._conn = "conn is asynchronous, and its block was not: it is not in the transaction", None
        if self._conn is not None:
            self._enter(self._conn, self.binding.over(self._outer))

    async def astart(self) -> None:
        """``start`` for an event loop."""
        if self._conn is not None:
            await self._aenter(self._conn, self.binding.over(self._outer))

    def settle(self) -> None:
        """Before the block is left: have a session write what it holds back, so that it is the block's."""
        if self._is_in_transaction:
            self._scribe.flush(self._conn)

    async def asettle(self) -> None:
        """``settle`` for an event loop."""
        if self._is_in_transaction and (flushing := self._scribe.flush(self._conn)) is not None:
            await flushing

    def end(self, error: BaseException | None) -> None:
        """Record it: in the transaction where it succeeded in one, else in the spool."""
        self._conclude(error)
        if not self._discarded:
            try:
                self._write(in_transaction=True)
            except Exception as broken:
                self._end_broken(broken, error)
        if (outer := self._find_outer(error)) is not None:
            self._enter(self._conn, outer)

    async def aend(self, error: BaseException | None) -> None:
        """``end`` for an event loop."""
        self._conclude(error)
        if not self._discarded:
            try:
                recorded = self._write(in_transaction=True)
                if self._is_in_transaction or self._spec.durability == Durability.SYNC:
                    await recorded
            except Exception as broken:
                self._end_broken(broken, error)
        if (outer := self._find_outer(error)) is not None:
            await self._aenter(self._conn, outer)

    def describe(self, error: BaseException | None) -> None:
        """Take in how the block ended; more kinds of runs know more of that."""
        if error is None:
            pass
        elif is_leaving(error):
            self.metadata.setdefault("left", type(error).__name__)
        else:
            self.outcome = Outcome.FAILURE
            self._discarded = False
            self._least = None
            self.metadata["error"] = describe_error(error)
        if self.outcome != Outcome.SUCCESS:
            least = Level.ERROR if error is None or isinstance(error, Exception) else Level.WARNING
            self.severity = at_least(self.severity, self._least or least)

    def _enter(self, conn: object, context: Context) -> None:
        try:
            self._scribe.enter(conn, context)
        except Exception as error:
            # The block's own statements are told the same, and what is recorded at its end knows it.
            if not is_undone(error):
                raise

    async def _aenter(self, conn: object, context: Context) -> None:
        try:
            if (sending := self._scribe.enter(conn, context)) is not None:
                await sending
        except Exception as error:
            if not is_undone(error):
                raise

    @property
    def _is_in_transaction(self) -> bool:
        return self._conn is not None and self.outcome == Outcome.SUCCESS

    def _conclude(self, error: BaseException | None) -> None:
        _running.pop(self.id, None)
        self.metadata = as_dict(self.metadata)
        self.describe(error)
        found = None if error else self.result
        if self._spec.takes:
            self.entity, self.metadata = _fill(self.entity, found), _fill(self.metadata, found)

    def _write(self, *, in_transaction: bool) -> Recorded:
        conn = self._conn if in_transaction and self._is_in_transaction else None
        spec, outer = self._spec, self._outer
        return self._scribe.write(
            spec.action or "unnamed",
            category=spec.category,
            outcome=self.outcome,
            severity=self.severity,
            entity=self.entity,
            summary=self.summary,
            metadata=self.metadata or None,
            duration_ms=self.seconds * 1000,
            # Its id says when it began.
            occurred_at=datetime.now(UTC) if conn is None else None,
            caused_by=outer.caused_by,
            durability=spec.durability,
            conn=conn,
            # In a process that was forked inside, the end of the block is another one's than the parent's.
            id=self.id if self._pid == os.getpid() else None,
            # The stamp that stands in the transaction is the one of this block.
            context=outer if conn is None else self.binding.over(outer),
            odd=self._odd,
        )

    def _end_broken(self, broken: Exception, error: BaseException | None) -> None:
        """It could not be recorded: refused in strict mode, or the connection is gone, and its transaction with it."""
        if error is not None:
            error.add_note(f"its activity could not be recorded: {broken}")
        elif self._is_in_transaction and not isinstance(broken, UsageError):
            self.describe(broken)
            self._write(in_transaction=False)
            raise broken
        else:
            raise broken

    def _find_outer(self, error: BaseException | None) -> Context | None:
        """The context that holds again on the same connection, where another run is around this one."""
        if self._conn is None or not (error is None or is_leaving(error)):
            return None
        around = find_running(self._outer)
        return around.binding.over(around._outer) if around is not None and around._conn is self._conn else None


_running: WeakValueDictionary[str, Tracked] = WeakValueDictionary()


def find_running(context: Context | None = None) -> Tracked | None:
    """The innermost run around here."""
    id = (context or current()).caused_by
    return None if id is None else _running.get(id)


Run = TypeVar("Run", bound=Tracked)
Make = Callable[..., Run]


class Track(Generic[Run]):
    """What ``activity.track`` gives: enter it with ``with`` or ``async with``, or decorate a function with it.

    One object may be entered again, also while it is entered; a decorator tracks each call by itself.
    """

    def __init__(self, scribe: Scribe, make: Make[Run], spec: Spec) -> None:
        self._scribe = scribe
        self._make = make
        takes = _takes(spec.entity) or _takes(spec.metadata) or _takes(spec.conn) or _takes(spec.summary)
        self._spec = msgspec.structs.replace(spec, takes=True) if takes else spec
        self._entered: list[Run] = []

    def __enter__(self) -> Run:
        run = self._enter()
        try:
            run.start()
        except BaseException as error:
            self._leave(run).end(error)
            raise
        return run

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run = self._find()
        if error is None:
            try:
                run.settle()
            except BaseException as broken:
                self._leave(run).end(broken)
                raise
        self._leave(run).end(error)

    async def __aenter__(self) -> Run:
        run = self._enter()
        try:
            await run.astart()
        except BaseException as error:
            await self._leave(run).aend(error)
            raise
        return run

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run = self._find()
        if error is None:
            try:
                await run.asettle()
            except BaseException as broken:
                await self._leave(run).aend(broken)
                raise
        await self._leave(run).aend(error)

    def __call__(self, function: Function) -> Function:
        """The function, of whatever kind, with each call tracked; a generator from its first step to its last."""
        if isinstance(function, staticmethod | classmethod):
            inner = cast("Any", function)
            return cast("Function", type(inner)(self(inner.__func__)))
        spec = self._spec
        if spec.action is None:
            spec = msgspec.structs.replace(spec, action=action_of(function))
        begin = self._beginner(function, spec)
        around: Callable[..., Any]
        # An object that can be called is of the kind that its method is.
        plain = isinstance(cast("object", function), partial) or hasattr(function, "__qualname__")
        kind: Any = function if plain else cast("Any", function).__call__
        if inspect.isasyncgenfunction(kind):

            async def track_steps_async(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
                run = begin(args, kwargs)
                body: AsyncGenerator[Any, Any] = run.binding(function)(*args, **kwargs)
                sent, thrown = None, None
                try:
                    await run.astart()
                    while True:
                        try:
                            item = await (body.asend(sent) if thrown is None else body.athrow(thrown))
                        except StopAsyncIteration:
                            break
                        sent = thrown = None
                        try:
                            sent = yield item
                        except BaseException as error:
                            thrown = error
                    with run.binding:
                        await run.asettle()
                except BaseException as error:
                    await run.aend(error)
                    raise
                await run.aend(None)

            around = track_steps_async
        elif inspect.isgeneratorfunction(kind):

            def track_steps(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
                run = begin(args, kwargs)
                body: Generator[Any, Any, Any] = run.binding(function)(*args, **kwargs)
                try:
                    run.start()
                    found = yield from body
                    run.result = found
                    with run.binding:
                        run.settle()
                except BaseException as error:
                    run.end(error)
                    raise
                run.end(None)
                return found

            around = track_steps
        elif inspect.iscoroutinefunction(kind):

            async def track_await(*args: Any, **kwargs: Any) -> Any:
                return await _await(begin(args, kwargs), function, args, kwargs)

            around = track_await
        else:

            def track_call(*args: Any, **kwargs: Any) -> Any:
                run = begin(args, kwargs)
                try:
                    with run.binding:
                        run.start()
                        run.result = function(*args, **kwargs)
                        run.settle()
                except BaseException as error:
                    run.end(error)
                    raise
                run.end(None)
                return cast("Any", run.result)

            around = track_call
        return cast("Function", wraps(function)(around))

    def _enter(self) -> Run:
        spec, odd = _resolve(self._spec, None, self._scribe)
        self._scribe.check(spec.action or "unnamed", spec.category, spec.conn)
        run = self._make(self._scribe, spec, odd=odd)
        run.binding.__enter__()
        self._entered.append(run)
        return run

    def _find(self) -> Run:
        """The run that ends here: the one that this task is in; where a framework leaves elsewhere, the last one."""
        inside = current().caused_by
        return next((run for run in reversed(self._entered) if run.id == inside), self._entered[-1])

    def _leave(self, run: Run) -> Run:
        self._entered.remove(run)
        run.binding.__exit__()
        return run

    def _beginner(self, function: Callable[..., Any], spec: Spec) -> Callable[[tuple[Any, ...], dict[str, Any]], Run]:
        """What begins a run of this function, from the arguments of a call."""
        wanted = {taken.path.partition(".")[0] for taken in _find_taken(spec) if not taken.of_result}
        signature = inspect.signature(function) if wanted else None
        if signature is not None:
            open_ended = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())
            for name in () if open_ended else wanted - signature.parameters.keys():
                raise UsageError(
                    f"{function.__qualname__} has no parameter {name!r}, which argument() names",
                    remedy=f"its parameters are {', '.join(signature.parameters) or 'none'}",
                )

        def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
            given: dict[str, Any] = {}
            if signature is not None:
                try:
                    bound = signature.bind(*args, **kwargs)
                    bound.apply_defaults()
                    given = bound.arguments
                    for each in signature.parameters.values():
                        if each.kind is each.VAR_KEYWORD:
                            given = {**given, **given.get(each.name, {})}
                except TypeError:
                    pass  # the call itself says it better
            own, odd = _resolve(spec, given, self._scribe)
            self._scribe.check(own.action or "unnamed", own.category, own.conn)
            return self._make(self._scribe, own, odd=odd)

        return begin


async def _await(run: Tracked, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        with run.binding:
            await run.astart()
            run.result = await function(*args, **kwargs)
            await run.asettle()
    except BaseException as error:
        await run.aend(error)
        raise
    await run.aend(None)
    return run.result


def action_of(function: Callable[..., Any]) -> str:
    """An action for a function: ``billing.refund`` of a module's function, ``orders.cancel`` of a class's method."""
    if isinstance(cast("object", function), partial):
        return action_of(cast("Any", function).func)
    name: str = getattr(function, "__qualname__", type(function).__qualname__)
    parts = [part for part in name.split(".") if part != "<locals>"][-2:]
    module = function.__module__.rpartition(".")[2]
    if len(parts) == 1 and module and not module.startswith("__"):
        parts.insert(0, module)
    words = (re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", part).lower() for part in parts)
    return ".".join(re.sub(r"[^a-z0-9_]+", "_", word) for word in words)


def describe_error(error: BaseException) -> dict[str, Any]:
    """An error as metadata has it: its type, and the first line of what it says (drivers put rows into the others)."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    message = clean_text(error, _LONGEST_MESSAGE).strip().partition("\n")[0]
    return {"type": name, "message": message} if message else {"type": name}


def is_leaving(error: BaseException) -> bool:
    """Whether this ends a block without anything having failed."""
    return isinstance(error, GeneratorExit) or (isinstance(error, SystemExit) and error.code in {None, 0})


def at_least(severity: Level | str | None, least: Level) -> Level | str:
    """The more severe of both; what is no severity stays, to be told as such."""
    if severity is None:
        return least
    try:
        return max(Level(severity), least, key=_LEVELS.index)
    except ValueError:
        return severity


def _is_asynchronous(conn: object) -> bool:
    """Whether statements on this connection are awaited, as far as its class tells (those of asyncpg's pool do not)."""
    return type(conn).__module__.startswith("asyncpg.") or any(
        inspect.iscoroutinefunction(getattr(type(conn), name, None)) for name in ("execute", "commit")
    )


def as_dict(metadata: object) -> dict[str, Any]:
    """The metadata as a dict of its own, whatever it is."""
    if metadata is None:
        return {}
    try:
        if isinstance(metadata, Mapping):
            return dict(cast("Mapping[str, Any]", metadata))
        fields: object = msgspec.to_builtins(metadata)
    except Exception:
        fields = None
    return cast("dict[str, Any]", fields) if isinstance(fields, dict) else {"value": metadata}


def _takes(value: Any) -> bool:
    kind: object = value.__class__
    if value is None or kind is str:
        return False
    if kind is dict:
        return any(map(_takes, value.values()))
    return any(map(_takes, value)) if kind is tuple or kind is list else kind is Taken


def _find_taken(value: object) -> list[Taken]:
    if isinstance(value, Taken):
        return [value]
    if isinstance(value, Spec):
        return [each for name in value.__struct_fields__ for each in _find_taken(getattr(value, name))]
    if isinstance(value, Mapping):
        return [each for member in cast("Mapping[object, object]", value).values() for each in _find_taken(member)]
    if isinstance(value, tuple | list):
        return [each for member in cast("tuple[object, ...]", value) for each in _find_taken(member)]
    return []


def _resolve(spec: Spec, given: Mapping[str, Any] | None, scribe: Scribe) -> tuple[Spec, str | None]:
    """The spec with what its arguments were, and what could not be found, in words."""
    if not spec.takes:
        return spec, None
    missing: list[str] = []

    def find(taken: Taken) -> object:
        if taken.of_result and given is not None:
            return taken
        try:
            return taken.find(given)
        except Exception:
            if scribe.strict:
                what = "result()" if taken.of_result else f"argument({taken.path!r})"
                raise UsageError(
                    f"{what} finds nothing: it is for decorated functions, and names what a call was given or gave",
                    remedy="give the value itself",
                ) from None
            missing.append(taken.path)
            return None

    found = msgspec.structs.replace(
        spec, **{name: _replace(getattr(spec, name), find) for name in ("entity", "summary", "metadata", "conn")}
    )
    return found, f"not found: {', '.join(missing)}" if missing else None


def _fill(value: Any, result: object) -> Any:
    """The value with what the function returned."""

    def find(taken: Taken) -> object:
        try:
            return taken.find(result)
        except Exception:
            return None

    return _replace(value, find)


def _replace(value: Any, find: Callable[[Taken], object]) -> Any:
    if isinstance(value, Taken):
        return find(value)
    if isinstance(value, Mapping):
        return {name: _replace(member, find) for name, member in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, tuple | list):
        return type(cast("Any", value))(_replace(member, find) for member in cast("tuple[Any, ...]", value))
    return value
