"""Who and why: the context of this task, and the stamp that a writer puts into its own transaction's WAL.

::

    with context.bind(actor="user:42", tenant="acme"):      # for all that runs inside, tasks included
        with context.bind(reason="refund", tenant=None):    # merges over it; None takes away
            context.current()                               # Context(actor_id="user:42", reason="refund", …)

Around a request or a task stands a ``Later``: who it is turns out inside of it, and holds for all of it (``amend``).
"""

from __future__ import annotations

import inspect
import logging
import re
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextvars import ContextVar
from functools import wraps
from typing import Any, NamedTuple, TypedDict, TypeVar, Unpack, cast
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from afterwrite.errors import AfterwriteError

log = logging.getLogger(__name__)


class Context(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who did it and why, as known to the application that wrote.

    ``settings`` are the transaction's own settings (``request.jwt.claims`` and such) that a deferred trigger body
    reads; ``caused_by`` is the id of the activity that led to this transaction, where one did.
    """

    actor_id: str | None = None
    actor_type: str | None = None
    tenant_id: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    trace_id: str | None = None
    ip: str | None = None
    user_agent: str | None = None
    reason: str | None = None
    settings: dict[str, str] = {}
    caused_by: str | None = None


Word = str | int | UUID | None | UnsetType
Function = TypeVar("Function", bound=Callable[..., Any])
# A longer word is cut: it goes onto every row that its transaction changes.
LONGEST_WORD = 1_000


class _Frame(NamedTuple):
    """One binding on top of others; the ContextVar holds the topmost, so that bindings themselves hold no state.

    ``late`` where a ``Later`` is among them: then the context is made when it is asked for.
    """

    context: Context
    binding: Binding | Later | None
    below: _Frame | None
    late: bool = False

    def resolve(self) -> Context:
        """The context that holds here now."""
        if not self.late or self.below is None or self.binding is None:
            return self.context
        return self.binding.over(self.below.resolve())


def _stack(binding: Binding | Later, below: _Frame) -> _Frame:
    late = below.late or isinstance(binding, Later)
    return _Frame(_BOTTOM.context if late else binding.over(below.context), binding, below, late)


_BOTTOM = _Frame(Context(), None, None)
_frame: ContextVar[_Frame] = ContextVar("afterwrite.context", default=_BOTTOM)


def current() -> Context:
    """The context of this task: what ``bind`` has bound around here, merged."""
    return _frame.get().resolve()


def here() -> Callable[[], Context]:
    """What ``current`` says in this place, to be asked later: with what has been learnt of the request until then."""
    return _frame.get().resolve


def bind(
    *,
    actor: Word = UNSET,
    actor_type: Word = UNSET,
    tenant: Word = UNSET,
    session: Word = UNSET,
    request: Word = UNSET,
    trace: Word = UNSET,
    ip: Word = UNSET,
    user_agent: Word = UNSET,
    reason: Word = UNSET,
    settings: Mapping[str, str | None] | UnsetType | None = UNSET,
    caused_by: Word = UNSET,
) -> Binding:
    """Say who and why for all that runs inside: in ``with``, or as a decorator of a function of any kind.

    It merges over what is bound already, and ``None`` takes away. ``actor="user:42"`` is the actor's whole id, and its
    type is ``user`` where ``actor_type`` does not say otherwise. A number or a UUID alone is a user's: ``actor=42`` is
    the same. A text without a type stands as it is. ``settings`` merge key by key. A new task, and what
    ``asyncio.to_thread`` runs, sees it; another thread sees it through ``carry``. What is not text becomes text, and
    what PostgreSQL could not keep of it (NUL, lone surrogates) a sign for it.
    """
    given: dict[str, object] = {}
    if actor is not UNSET:
        given["actor_id"] = id = as_user(actor) if isinstance(actor, int | UUID) else _word(actor)
        # The type of another actor is not this one's.
        given["actor_type"] = id.partition(":")[0] if id is not None and ":" in id else None
    for name, value in (
        ("actor_type", actor_type),
        ("tenant_id", tenant),
        ("session_id", session),
        ("request_id", request),
        ("trace_id", trace),
        ("ip", ip),
        ("user_agent", user_agent),
        ("reason", reason),
        ("caused_by", caused_by),
    ):
        if value is not UNSET:
            given[name] = _word(value)
    return Binding(given, settings)


def as_user(id: object) -> str | None:
    """The actor that a user's id is: ``user:42``. One that says its type, by a colon, is whole (``admin:7``).

    None for an empty text, which is what some have for nobody.
    """
    text = _clean(id)
    return _word(text if ":" in text else f"user:{text}") if text else None


class Binding:
    """What ``bind`` gives: enter it as often as wanted, in as many tasks and threads as wanted."""

    __slots__ = ("_given", "_settings")

    def __init__(self, given: dict[str, object], settings: Mapping[str, str | None] | UnsetType | None) -> None:
        self._given = given
        self._settings = (
            {_clean(key): None if value is None else _clean(value) for key, value in settings.items()}
            if isinstance(settings, Mapping)
            else settings
        )

    def over(self, context: Context) -> Context:
        """That context with this one's words over it."""
        settings = self._settings
        if settings is UNSET:
            return msgspec.structs.replace(context, **self._given)
        merged = {} if settings is None else {**context.settings, **settings}
        kept = {key: value for key, value in merged.items() if value is not None}
        return msgspec.structs.replace(context, **self._given, settings=kept)

    def then(self, other: Binding) -> Binding:
        """This one, and the other over it, as one."""
        settings = other._settings if other._settings is not UNSET else self._settings
        if isinstance(settings, dict) and isinstance(self._settings, dict):
            settings = {**self._settings, **settings}
        return Binding({**self._given, **other._given}, settings)

    def __enter__(self) -> Context:
        frame = _stack(self, _frame.get())
        _frame.set(frame)
        return frame.resolve()

    def __exit__(self, *_: object) -> None:
        _frame.set(_without(_frame.get(), self))

    def __call__(self, function: Function) -> Function:
        """The function with this bound around each of its calls; around each step of a generator, and not between."""
        return _around(function, lambda: _stack(self, _frame.get()))


def adopt(context: Context) -> Binding:
    """Bind this whole context, and nothing of what is bound around: it came from somewhere else, with a task."""
    return _Adopted(context)


class _Adopted(Binding):
    __slots__ = ("_whole",)

    def __init__(self, context: Context) -> None:
        words = {name: _word(getattr(context, name)) for name in Context.__struct_fields__ if name != "settings"}
        super().__init__(dict(words), context.settings)
        self._whole = super().over(_BOTTOM.context)

    def over(self, context: Context) -> Context:
        return self._whole


class Words(TypedDict, total=False):
    """What ``bind`` and ``amend`` take."""

    actor: Word
    actor_type: Word
    tenant: Word
    session: Word
    request: Word
    trace: Word
    ip: Word
    user_agent: Word
    reason: Word
    settings: Mapping[str, str | None]
    caused_by: Word


def amend(**words: Unpack[Words]) -> bool:
    """Say who and why for the whole request or task that runs around here, as soon as it is known.

    ``bind`` holds for what runs inside of it; this is seen by all tasks and threads of the request, also by those that
    run already, and by what is recorded at its end. What is bound between the request and a writer stays over it. False
    where no integration has bound a request around here: then nothing was said.
    """
    frame: _Frame | None = _frame.get()
    while frame is not None:
        if isinstance(frame.binding, Later):
            frame.binding.tell(bind(**words))
            return True
        frame = frame.below
    return False


class Later:
    """What integrations bind around a request: words that are known, and others that become known while it runs.

    ``look`` is asked each time that somebody wants the context, until ``settle``: it gives what it knows by then, and
    must not wait for anything. What it raises is logged, once of a kind, and what it gave before holds on. What
    ``amend`` said is over it. ``within`` is another one of the same request, further out: an application that is
    mounted in another may have an integration too.
    """

    __slots__ = ("_asking", "_known", "_look", "_looked", "_made", "_told", "_turn", "_within")

    def __init__(
        self, known: Binding, look: Callable[[], Binding | None] | None = None, *, within: Later | None = None
    ) -> None:
        self._known = known
        self._within = within
        self._look = look
        self._looked: Binding | None = None
        self._told: Binding | None = None
        # Threads in which look runs: what it does itself (a query for the user) is not to ask it again.
        self._asking: set[int] = set()
        self._turn = threading.Lock()
        # The last answer, with what it was made of: writers compare contexts by identity first.
        self._made: tuple[Context, Binding | None, Binding | None, Context] | None = None

    def over(self, context: Context) -> Context:
        """That context with this one's words over it, as far as they are known now."""
        looked, told, made = self._ask(), self._told, self._made
        if made is not None and made[0] is context and made[1] is looked and made[2] is told:
            return made[3]
        found = self._known.over(context)
        for each in (looked, told):
            found = found if each is None else each.over(found)
        self._made = context, looked, told, found
        return found

    def tell(self, binding: Binding) -> None:
        """Take in words that hold from now on, in the same request further out too."""
        with self._turn:
            self._told = binding if self._told is None else self._told.then(binding)
        if self._within is not None:
            self._within.tell(binding)

    def settle(self) -> None:
        """Look a last time: what the answer comes from is about to go."""
        self._ask()
        self._look = None

    def __enter__(self) -> Later:
        _frame.set(_stack(self, _frame.get()))
        return self

    def __exit__(self, *_: object) -> None:
        # What was bound inside and never left ends here too: the thread is another request's next.
        frame: _Frame | None = _frame.get()
        while frame is not None and frame.binding is not self:
            frame = frame.below
        if frame is not None:
            _frame.set(frame.below or _BOTTOM)

    def _ask(self) -> Binding | None:
        look, thread = self._look, threading.get_ident()
        if look is None or thread in self._asking:
            return self._looked
        self._asking.add(thread)
        try:
            self._looked = look()
        except Exception as error:
            complain(error)
        finally:
            self._asking.discard(thread)
        return self._looked


def complain(error: Exception) -> None:
    """Log, once of a kind, that who makes a request could not be told; no request fails for it."""
    kind = type(error).__name__
    if kind not in _complained:
        _complained.add(kind)
        log.warning("who makes a request cannot be told: %s: %s", kind, error, exc_info=error)


_complained: set[str] = set()


def carry(function: Function) -> Function:
    """The function with the context of here and now around it, wherever it runs: a thread, an executor, a callback."""
    frame = _frame.get()
    return _around(function, lambda: frame)


def _without(frame: _Frame, binding: Binding) -> _Frame:
    """These frames without the topmost of this binding; those above it (of a generator not yet ended) stay."""
    if frame.binding is binding:
        return frame.below or _BOTTOM
    if frame.below is None or frame.binding is None:
        return frame
    below = _without(frame.below, binding)
    return frame if below is frame.below else _stack(frame.binding, below)


def _around(function: Function, enter: Callable[[], _Frame]) -> Function:
    """The function, of whatever kind, with a frame set while it runs."""
    around: Callable[..., Any]
    if inspect.isasyncgenfunction(function):

        async def around_steps_async(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            body: AsyncGenerator[Any, Any] = function(*args, **kwargs)
            frame, sent, thrown = enter(), None, None
            while True:
                outer = _swap(frame)
                try:
                    item = await (body.asend(sent) if thrown is None else body.athrow(thrown))
                except StopAsyncIteration:
                    return
                finally:
                    frame = _swap(outer)
                sent = thrown = None
                try:
                    sent = yield item
                except BaseException as error:
                    thrown = error

        around = around_steps_async
    elif inspect.isgeneratorfunction(function):

        def around_steps(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            body: Generator[Any, Any, Any] = function(*args, **kwargs)
            frame, sent, thrown = enter(), None, None
            while True:
                outer = _swap(frame)
                try:
                    item = body.send(sent) if thrown is None else body.throw(thrown)
                except StopIteration as stop:
                    return stop.value
                finally:
                    frame = _swap(outer)
                sent = thrown = None
                try:
                    sent = yield item
                except BaseException as error:
                    thrown = error

        around = around_steps
    elif inspect.iscoroutinefunction(function):

        async def around_await(*args: Any, **kwargs: Any) -> Any:
            outer = _swap(enter())
            try:
                return await function(*args, **kwargs)
            finally:
                _frame.set(outer)

        around = around_await
    else:

        def around_call(*args: Any, **kwargs: Any) -> Any:
            outer = _swap(enter())
            try:
                return function(*args, **kwargs)
            finally:
                _frame.set(outer)

        around = around_call
    return cast("Function", wraps(function)(around))


def _swap(frame: _Frame) -> _Frame:
    before = _frame.get()
    _frame.set(frame)
    return before


def _word(value: Word) -> str | None:
    if value is None or value is UNSET:
        return None
    text = _clean(value)
    return text if len(text) <= LONGEST_WORD else f"{text[: LONGEST_WORD - 1]}…"


def _clean(value: object) -> str:
    """Text that PostgreSQL can keep, written as the store would write it."""
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception:
        text = f"<{type(value).__qualname__}>"  # whoever binds it is in the middle of a request
    if "\0" in text:
        text = text.replace("\0", "␀")
    return text if text.isascii() else _SURROGATE.sub("�", text)


_SURROGATE = re.compile("[\ud800-\udfff]")


class _Placed(msgspec.Struct, frozen=True):
    here: bool = False


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Context)
_placed = msgspec.json.Decoder(_Placed)


def encode_context(context: Context, *, here: bool = False) -> str:
    """The stamp's payload: ``select pg_logical_emit_message(true, 'afterwrite.context', payload)``.

    A transaction's first stamp also speaks for what was written before it, unless it says that it holds from ``here``.
    """
    payload = _encoder.encode(context).decode()
    return payload if not here else f'{{"here":true{"," if payload != "{}" else ""}{payload[1:]}'


def decode_context(payload: bytes) -> Context:
    """Read a stamp; raises AfterwriteError when it is not one (the caller counts it, and stores without context)."""
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AfterwriteError(f"a context stamp cannot be read: {error}") from error


def holds_from_here(payload: bytes) -> bool:
    """Whether a stamp that can be read says nothing of what was written before it."""
    return b'"here"' in payload and _placed.decode(payload).here
