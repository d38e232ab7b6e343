"""``/openapi.json``: what Litestar knows of the routes, with what it cannot know: bodies, problems, examples."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
from litestar import Litestar, Request, Response, get
from litestar.di import Provide
from litestar.exceptions.base_exceptions import LitestarDeprecationWarning
from litestar.openapi.config import OpenAPIConfig
from litestar.types import ControllerRouterHandler

from afterwrite import __version__
from afterwrite.serve.posted import EVENT, EVENTS, JSON, MOST_POSTED
from afterwrite.serve.problems import MEDIA_TYPE

_OURS = ("/v1/", "/metrics", "/healthz", "/readyz", "/openapi.json")
_PROBLEM = {"$ref": "#/components/schemas/Problem"}
_MOMENT, _ID = "2026-11-23T09:30:00.120000Z", "01a207bd-aa38-7a3e-9c4e-5b8f2f6f0a11"

EXAMPLE: dict[str, Any] = {
    "position": 4711,
    "batch_id": 4711,
    "id": _ID,
    "occurred_at": _MOMENT,
    "source": "shop",
    "kind": "event",
    "category": "financial",
    "action": "redemption.approve",
    "outcome": "success",
    "severity": "info",
    "entity_type": "redemption",
    "entity_id": "42",
    "actor_id": "user:7",
    "actor_type": "user",
    "tenant_id": "acme",
    "session_id": None,
    "request_id": "9f0c1d2e",
    "trace_id": None,
    "ip": "192.0.2.7",
    "user_agent": None,
    "duration_ms": 12.5,
    "summary": "approved redemption 42",
    "relation": None,
    "operation": None,
    "changed": None,
    "before": None,
    "after": None,
    "metadata": {"amount": "250.00"},
    "caused_by": None,
    "xid": None,
    "commit_lsn": None,
    "ordinal": None,
}
POSTED: dict[str, Any] = {
    "activities": [
        {
            "id": _ID,
            "occurred_at": _MOMENT,
            "source": "shop",
            "category": "financial",
            "action": "redemption.approve",
            "entity_type": "redemption",
            "entity_id": "42",
            "actor_id": "user:7",
            "metadata": {"amount": "250.00"},
        }
    ]
}
CLOUD_EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "A234-1234-1234",
    "source": "/billing",
    "type": "invoice.sent",
    "time": _MOMENT,
    "subject": "invoice/12",
    "actorid": "user:7",
    "datacontenttype": "application/json",
    "data": {"pages": 3},
}
_ANSWERS: dict[str, Any] = {
    "ActivityDoc": EXAMPLE,
    "ActivityPage": {"items": [EXAMPLE], "older": "k8SPAAAAA…", "newer": None, "looked": None, "lake": None},
    "Ingested": {
        "stored": 1,
        "duplicate": 0,
        "refused": [],
        "results": [{"id": _ID, "status": "stored"}],
    },
    "Me": {"name": "dashboard", "kind": "key", "scopes": ["read"], "tenant": None},
    "Status": {"status": "ok"},
}
# What a caller could put in, by the parameter's name.
_ASKED = {
    "q": "actor:user:7 category:financial after:2026-11-01",
    "id": _ID,
    "entity_type": "redemption",
    "entity_id": "42",
    "actor_id": "user:7",
    "name": "activity",
    "time": _MOMENT,
    "after": "2026-11-01T00:00:00Z",
    "before": "2026-11-23T00:00:00Z",
}
# What parameters mean that do not say so themselves.
_MEANT = {
    "q": "What is looked for, in the query language.",
    "last_event_id": "The last `id:` that was seen, for clients that cannot set the header.",
    "last-event-id": "The last `id:` that was seen; browsers send it by themselves.",
    "limit": "How many at most.",
}
# What says where an activity came from, whose body is the same wherever it is.
_TIER = {
    "Afterwrite-Tier": {
        "description": "Where it came from: `store`, or `lake` where its day has left the store.",
        "schema": {"enum": ["store", "lake"]},
    }
}
_WORDS = {
    400: "A parameter, the query or a cursor cannot be read.",
    401: "Nobody in particular asks, or the key or token is not good.",
    403: "The caller may not do this, or it is not about his tenant.",
    404: "There is nothing of the kind, or nothing that the caller may see.",
    408: "The body took too long to come.",
    413: "The body, or what is in it, is too much for one request.",
    415: "The body is of a type or in an encoding that is not read here.",
    422: "The body cannot be read.",
    429: "Too many requests; Retry-After says when to come again.",
    503: "The store does not answer now, or took too long; Retry-After says when to come again.",
}
_ABOUT = """What happened, who did it and why: the activity that afterwrite keeps.

Lists are newest first and go on by cursors, which belong to one list. Errors are problems of RFC 9457 with a `remedy`.
A tenant's caller sees that tenant's activity alone."""


@get("/openapi.json", opt={"public": True})
async def get_openapi(request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
    """Get this description, OpenAPI 3.1."""
    state = request.app.state
    if "openapi" not in state:
        state.openapi = msgspec.json.encode(state.description())
    body: bytes = state.openapi
    tag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if tag in request.headers.get("if-none-match", ""):
        return cast("Response[dict[str, Any]]", Response(b"", status_code=304, headers=headers))
    return cast("Response[dict[str, Any]]", Response(body, media_type=JSON, headers=headers))


def describe(handlers: Sequence[ControllerRouterHandler], dependencies: Mapping[str, Provide]) -> dict[str, Any]:
    """The whole description of those of these routes that serve programs."""
    config = OpenAPIConfig(title="afterwrite", version=__version__, use_handler_docstrings=True)
    # Of an application of its own: in ours, Litestar would serve its own pages about it.
    app = make_app(handlers, dependencies=dependencies, openapi_config=config, logging_config=None)
    known = msgspec.json.decode(msgspec.json.encode(app.openapi_schema.to_schema(), enc_hook=str))
    known["openapi"] = "3.1.0"
    known["info"] |= {"title": "afterwrite", "description": _ABOUT, "license": {"name": "Apache-2.0"}}
    known["paths"] = {path: item for path, item in known["paths"].items() if path.startswith(_OURS)}
    components = known.setdefault("components", {})
    components["securitySchemes"] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "A key of `afterwrite key create`, or a token of the configured issuer.",
        }
    }
    components["schemas"] = {**components.get("schemas", {}), **_problem_schemas()}
    for path, item in known["paths"].items():
        for method, operation in item.items():
            if isinstance(operation, dict):
                _complete(path, method, cast("dict[str, Any]", operation))
    return known


def make_app(handlers: Sequence[ControllerRouterHandler], **options: Any) -> Litestar:
    """A Litestar of these handlers, which name their dependencies by parameters of the same name.

    Newer ones have a mark for that, of which older ones know nothing, and ask for it in a warning.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LitestarDeprecationWarning)
        return Litestar(list(handlers), **options)


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    summary = operation.get("description", "").partition("\n")[0].rstrip(".")
    operation["summary"] = summary.replace("``", "`")
    operation["description"] = operation.get("description", "").replace("``", "`")
    operation["tags"] = [path.split("/")[2] if path.startswith("/v1/") else "operations"]
    for parameter in operation.get("parameters", []):
        if (asked := _ASKED.get(parameter["name"])) is not None and "limit" not in parameter["name"]:
            parameter["example"] = asked
        if (told := _MEANT.get(parameter["name"].lower())) is not None:
            parameter.setdefault("description", told)
        parameter.pop("allowEmptyValue", None)
        parameter.pop("allowReserved", None)
    public = path in {"/healthz", "/readyz", "/openapi.json"}
    operation["security"] = [] if public else [{"bearer": []}]
    responses: dict[str, Any] = operation["responses"]
    responses.pop("400", None)
    for answer in responses.values():
        for content in answer.get("content", {}).values():
            name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
            if name in _ANSWERS:
                content["examples"] = {"usual": {"value": _ANSWERS[name]}}
    statuses = {429, 503} if public else {400, 401, 403, 429, 503}
    if "{" in path:
        statuses |= {404}
    if path == "/v1/feed":
        responses["200"] = {
            "description": "A stream of events, each with the `id` from which it goes on.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    if method == "post":
        statuses |= {408, 413, 415, 422}
        operation["requestBody"] = _body()
    if path.startswith(("/v1/activities/{id}", "/v1/batches/{position}", "/openapi.json")):
        responses["304"] = {"description": "It is what the ETag in If-None-Match says."}
    if path in ("/v1/activities/{id}", "/v1/activities/{id}/diff"):
        responses["200"] = {**responses["200"], "headers": _TIER}
    for status in sorted(statuses):
        responses[str(status)] = {
            "description": _WORDS[status],
            "content": {MEDIA_TYPE: {"schema": _PROBLEM}},
        }
    responses["default"] = {"description": "Another problem.", "content": {MEDIA_TYPE: {"schema": _PROBLEM}}}


def _body() -> dict[str, Any]:
    event = {"$ref": "#/components/schemas/CloudEvent"}
    posted = {
        "type": "object",
        "required": ["activities"],
        "properties": {
            "activities": {
                "type": "array",
                "maxItems": MOST_POSTED,
                "items": {"$ref": "#/components/schemas/PostedActivity"},
            }
        },
    }
    return {
        "required": True,
        "content": {
            JSON: {"schema": posted, "examples": {"one": {"value": POSTED}}},
            EVENT: {"schema": event, "examples": {"one": {"value": CLOUD_EVENT}}},
            EVENTS: {
                "schema": {"type": "array", "maxItems": MOST_POSTED, "items": event},
                "examples": {"one": {"value": [CLOUD_EVENT]}},
            },
        },
    }


def _problem_schemas() -> dict[str, Any]:
    text, maybe = {"type": "string"}, {"type": ["string", "null"]}
    moment = {"type": ["string", "null"], "format": "date-time"}
    some = {"type": ["object", "null"]}
    words = ("source", "entity_type", "entity_id", "actor_id", "actor_type", "tenant_id", "session_id", "request_id",
             "trace_id", "ip", "user_agent", "summary", "caused_by")  # fmt: skip
    return {
        "Problem": {
            "type": "object",
            "description": "An answer of RFC 9457.",
            "required": ["type", "title", "status"],
            "properties": {
                "type": text,
                "title": text,
                "status": {"type": "integer"},
                "detail": text,
                "remedy": {"type": "string", "description": "What mends it."},
                "column": {"type": "integer", "description": "Where in `q`, from 0."},
                "length": {"type": "integer"},
                "invalid": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"name": text, "reason": text}},
                },
            },
        },
        "PostedActivity": {
            "type": "object",
            "description": "An event. Without `id` it gets one, and would be stored again if it came again; an id that"
            " is no UUIDv7 needs `occurred_at`, by which it is known again.",
            "required": ["action"],
            "properties": {
                "id": {"type": ["string", "null"], "format": "uuid"},
                "occurred_at": moment,
                "kind": {"const": "event"},
                "category": text,
                "action": {"type": "string", "minLength": 1},
                "outcome": {"enum": ["success", "failure"]},
                "severity": {"enum": ["debug", "info", "warning", "error", "critical"]},
                "duration_ms": {"type": ["number", "null"]},
                "changed": {"type": ["array", "null"], "items": text},
                "before": some,
                "after": some,
                "metadata": some,
                **dict.fromkeys(words, maybe),
            },
        },
        "CloudEvent": {
            "type": "object",
            "description": "A CloudEvent 1.0. `type` becomes the action, `subject` (`type/id`) the entity, `data` is"
            " kept in metadata; the extensions actorid, actortype, tenantid, sessionid, requestid, traceparent,"
            " category, outcome, severity and summary say what activities say so.",
            "required": ["specversion", "id", "source", "type"],
            "properties": {
                "specversion": {"const": "1.0"},
                "id": {"type": "string", "minLength": 1},
                "source": {"type": "string", "minLength": 1},
                "type": {"type": "string", "minLength": 1},
                "time": {"type": "string", "format": "date-time"},
                "subject": text,
                "datacontenttype": text,
                "data": {},
            },
        },
    }


routes: list[ControllerRouterHandler] = [get_openapi]
