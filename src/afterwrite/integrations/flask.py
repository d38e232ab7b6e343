"""Flask: who and why of each request, also for what a response streams after its view has returned.

::

    ContextExtension(app, trusted_proxies=["10.0.0.0/8"])

The extension stands around ``app.wsgi_app``; the actor is ``g.user``, or whatever ``actor`` gives. It is asked for when
a request begins, when something is written or recorded, and when the request ends, so that a stream knows it still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, cast

from flask import Flask, Request, g, got_request_exception, has_request_context, request

from afterwrite.context import Binding, Later, carry
from afterwrite.integrations.http_request import (
    REQUEST_ID,
    Asking,
    Proxies,
    ProxyHeader,
    Recorded,
    Told,
    conclude,
    environ_header,
    name_user,
    read_request,
    track_request,
)
from afterwrite.recorder.track import Tracked

__all__ = ["ContextExtension"]

Ask = Callable[[Request], object]
Environment = dict[str, Any]

_RUNNING = "afterwrite.request"


def user_of(request: Request) -> str | None:
    """The actor that a view or a ``before_request`` has put into ``g``: its user's id."""
    return name_user(g.get("user"))


class ContextExtension:
    """Binds what a request says of itself around a Flask application.

    ``actor``, ``tenant`` and ``session`` are asked with the request until they give something. ``trusted_proxies`` are
    the networks whose ``proxy_header`` is believed. The request id is the caller's ``X-Request-Id`` or a new one, and
    stands in the response. ``record`` makes an activity ``http.request`` of the requests that write, or of all; what
    they change points to it.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        actor: Ask | None = user_of,
        tenant: Ask | None = None,
        session: Ask | None = None,
        trusted_proxies: Iterable[str] = (),
        proxy_header: ProxyHeader = "x-forwarded-for",
        record: Recorded = None,
    ) -> None:
        self._asked = {"actor": actor, "tenant": tenant, "session": session}
        self._proxies = Proxies(trusted_proxies, proxy_header)
        self._record: Recorded = record
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Stand around this application; after other extensions, so that the first question finds their answers."""
        app.extensions["afterwrite"] = self
        app.wsgi_app = _Around(app.wsgi_app, self._begin)  # type: ignore[method-assign]
        app.before_request(self._ask)
        app.teardown_request(self._settle)
        got_request_exception.connect(self._note, app)

    def _begin(self, environ: Environment) -> _Running:
        told = read_request(partial(environ_header, environ), environ.get("REMOTE_ADDR"), self._proxies)
        tracking = track_request(self._record, environ.get("REQUEST_METHOD", ""), environ.get("PATH_INFO", ""))
        running = environ[_RUNNING] = _Running(told, tracking)
        return running

    def _ask(self) -> None:
        if (running := _running_here()) is not None:
            running.asking = Asking(cast("Any", request)._get_current_object(), self._asked)
            running.look()

    def _settle(self, error: BaseException | None) -> None:
        if (running := _running_here()) is not None:
            running.route = request.url_rule.rule if request.url_rule is not None else None
            running.later.settle()

    def _note(self, sender: Flask, exception: BaseException, **_: object) -> None:
        if (running := _running_here()) is not None:
            running.error = exception


def _running_here() -> _Running | None:
    return request.environ.get(_RUNNING)


class _Running:
    """A request from its first line to the end of its response."""

    def __init__(self, told: Told, tracking: AbstractContextManager[Tracked | None]) -> None:
        self.told = told
        self.later = Later(told.bind(), self.look)
        self.asking: Asking[Request] | None = None
        self.status: int | None = None
        self.route: str | None = None
        self.error: BaseException | None = None
        self._tracking = tracking
        self._run: Tracked | None = None
        self._ended = False

    def look(self) -> Binding | None:
        if self.asking is None:
            return None
        # In a thread of its own there is no request to look at.
        return self.asking() if has_request_context() else self.asking.found

    def begin(self) -> None:
        self.later.__enter__()
        self._run = self._tracking.__enter__()

    def end(self, error: BaseException | None) -> None:
        if self._ended:
            return
        self._ended = True
        self.later.settle()
        conclude(self._run, status=self.status, route=self.route, error=self.error)
        self._tracking.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


class _Around:
    """A WSGI application with a request bound around its call, and around each step of its response."""

    def __init__(self, app: Callable[..., Iterable[bytes]], begin: Callable[[Environment], _Running]) -> None:
        self._app = app
        self._begin = begin

    def __call__(self, environ: Environment, start_response: Callable[..., Any]) -> Iterable[bytes]:
        # Whatever was bound in there and not left is gone when this returns: the thread is another request's then.
        return carry(self._open)(environ, start_response)

    def _open(self, environ: Environment, start_response: Callable[..., Any]) -> Iterable[bytes]:
        running = self._begin(environ)

        def answer(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            running.status = int(status[:3])
            if not any(name.lower() == REQUEST_ID for name, _ in headers):
                headers = [*headers, ("X-Request-Id", running.told.request)]
            return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

        running.begin()
        try:
            body = self._app(environ, answer)
            # A server may send a file by itself, if it is given the file.
            file = environ.get("wsgi.file_wrapper")
            whole = isinstance(body, (list, tuple, file) if isinstance(file, type) else (list, tuple))
            steps = body if whole else _Body(body, running)
        except BaseException as error:
            running.end(error)
            raise
        if whole:
            running.end(None)
        return steps


class _Body:
    """A response that is still made while the server sends it."""

    def __init__(self, body: Iterable[bytes], running: _Running) -> None:
        self._body = body
        self._next = carry(iter(body).__next__)
        self._end = carry(self._finish)
        self._running = running
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return self._next()
        except StopIteration:
            raise
        except BaseException as error:
            self._error = error
            raise

    def close(self) -> None:
        """The server has sent it all, or has given up."""
        self._end()

    def _finish(self) -> None:
        try:
            if (close := getattr(self._body, "close", None)) is not None:
                close()
        except BaseException as error:
            self._error = self._error or error
            raise
        finally:
            self._running.end(self._error)
