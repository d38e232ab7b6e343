"""What is answered when it does not go: RFC 9457 problems, each with what was found and what mends it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, ValidationException

from afterwrite.errors import AfterwriteError, ConnectionLost, DatabaseError, Refused, UsageError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_LATER_SECONDS = 2


class Invalid(msgspec.Struct, frozen=True):
    """A parameter that is not what it should be, and why."""

    name: str
    reason: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An answer of RFC 9457. ``type`` names the kind; ``remedy`` says what mends it.

    ``column`` and ``length`` (from 0) point at the place in ``q`` that cannot be read; ``invalid`` names parameters.
    """

    type: str
    title: str
    status: int
    detail: str | None = None
    remedy: str | None = None
    column: int | None = None
    length: int | None = None
    invalid: tuple[Invalid, ...] = ()


class ProblemError(AfterwriteError):
    """Answer the request with this problem."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str | None = None,
        *,
        remedy: str | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail or kind, remedy=remedy)
        self.problem = make(status, kind, detail, remedy=remedy, **more)
        self.headers = dict(headers or {})


def make(status: int, kind: str, detail: str | None = None, *, remedy: str | None = None, **more: Any) -> Problem:
    """A problem of this kind (``about:blank`` where the status says it all)."""
    return Problem(
        type=f"urn:afterwrite:problem:{kind}" if kind else "about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        remedy=remedy,
        **more,
    )


def answer(problem: Problem, headers: Mapping[str, str] | None = None) -> Response[bytes]:
    """The response that says so."""
    return Response(
        msgspec.json.encode(problem), status_code=problem.status, media_type=MEDIA_TYPE, headers=dict(headers or {})
    )


def explain(error: Exception) -> ProblemError:
    """The problem behind an error, in words that may leave the house."""
    match error:
        case ProblemError():
            return error
        case UsageError():
            place = {name: getattr(error, name) for name in ("column", "length") if hasattr(error, name)}
            return ProblemError(400, "query" if place else "usage", str(error), remedy=error.remedy, **place)
        case HTTPException():
            return _of_http(error)
        case DatabaseError(sqlstate="57014"):
            return ProblemError(
                503,
                "timeout",
                "the store took too long over this",
                remedy="ask for less: a shorter time (after:, before:), or one entity or actor",
            )
        case DatabaseError(sqlstate=str() as state) if state.startswith("22"):
            return ProblemError(400, "value", "the store has no such value as was asked for")
        case ConnectionLost():
            log.warning("%s", error)
            return _unavailable("the store cannot be reached now")
        case Refused() | DatabaseError():
            log.error("%s (%s)", error, error.remedy)
            return _unavailable("the store does not answer as it should; the server's log says why")
        case TimeoutError():
            return _unavailable("there is too much to do at the moment")
        case OverflowError() | ValueError() if "out of range" in str(error):
            # Of a time by its zone, or by a number of seconds: whoever calculates with it first says so.
            log.info("a time beyond the calendar", exc_info=error)
            return ProblemError(400, "value", "there is no such time", remedy="write it as 2026-11-01T14:05:00Z")
        case _:
            log.error("an unexpected error", exc_info=error)
            return ProblemError(500, "unexpected", "something went wrong here; the server's log says what")


def _unavailable(detail: str) -> ProblemError:
    return ProblemError(503, "unavailable", detail, headers={"Retry-After": str(_LATER_SECONDS)})


def _of_http(error: HTTPException) -> ProblemError:
    status, headers = error.status_code, dict(error.headers or {})
    match error:
        case ValidationException():
            return ProblemError(
                400, "parameters", "a parameter is not what it should be", invalid=_invalid(error.extra)
            )
        case MethodNotAllowedException():
            return ProblemError(405, "", "this cannot be done here", headers=headers)
        case _ if status == HTTPStatus.NOT_FOUND:
            return ProblemError(404, "", "there is nothing here", remedy="/openapi.json lists what there is")
        case _ if status >= 500:
            log.error("%s", error)
            return ProblemError(status, "", error.detail if status == HTTPStatus.SERVICE_UNAVAILABLE else None,
                                headers=headers)  # fmt: skip
        case _:
            return ProblemError(status, "", error.detail, headers=headers)


def _invalid(extra: object) -> tuple[Invalid, ...]:
    found = cast("list[object]", extra) if isinstance(extra, list) else []
    return tuple(
        Invalid(str(each.get("key", "")), str(each.get("message", "")))
        for each in (cast("dict[str, object]", each) for each in found if isinstance(each, dict))
    )


def handle(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Litestar's handler of every exception."""
    found = explain(error)
    return answer(found.problem, found.headers)


# Litestar's own type for this is half unknown to the checker.
HANDLERS: Any = {Exception: handle, HTTPException: handle}
