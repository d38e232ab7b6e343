"""Django: who makes a request, on all that its transactions write; and what happened to an object, in the admin.

::

    INSTALLED_APPS = [..., "afterwrite.integrations.django.Afterwrite"]
    MIDDLEWARE = ["afterwrite.integrations.django.ContextMiddleware", ...]
    class OrderAdmin(TimelineMixin, ModelAdmin): ...

``request.user`` is read when something is written or recorded, and not before.
The ORM, bulk operations, raw SQL and the asynchronous ORM all go through Django's own cursors, where the stamp is put
in front of the first statement of a transaction that writes: as a rule in the same message, so that it costs no round
trip, no transaction where there was none, and no query that a test counts.
"""

# Django and what it hands to a wrapper are not typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Hashable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, cast
from uuid import UUID

import msgspec
from asgiref.sync import markcoroutinefunction
from django.apps import AppConfig
from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError, connections, transaction
from django.db.backends.signals import connection_created
from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.template import engines
from django.template.backends.django import DjangoTemplates
from django.template.loader import select_template
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.crypto import salted_hmac
from django.utils.functional import empty
from django.utils.module_loading import import_string

from afterwrite.context import Context, Later, carry, complain, current
from afterwrite.errors import UsageError
from afterwrite.integrations.http_request import (
    Asking,
    Proxies,
    conclude,
    environ_header,
    read_request,
    track_request,
)
from afterwrite.postgres import statement
from afterwrite.record import Emitted
from afterwrite.recorder.connections import may_stamp
from afterwrite.recorder.outbox import post_sql
from afterwrite.recorder.redact import Redactor
from afterwrite.recorder.stamp import (
    Control,
    Reading,
    Stamp,
    Stamps,
    calling,
    event_sql,
    read_sql,
    stamp_sql,
)
from afterwrite.recorder.track import Tracked

__all__ = ["Afterwrite", "ContextMiddleware", "TimelineMixin"]

log = logging.getLogger(__name__)


class Afterwrite(AppConfig):
    """Stamps ``afterwrite.context`` onto each transaction that writes to PostgreSQL.

    The setting ``AFTERWRITE_WRITING_FUNCTIONS`` names functions that write when a SELECT calls them.
    """

    name = "afterwrite.integrations.django"
    label = "afterwrite"

    def ready(self) -> None:
        connection_created.connect(_instrument, dispatch_uid="afterwrite.stamps")


# --- the web's side: a middleware ------------------------------------------------------------------------------------

Respond = Callable[[HttpRequest], Any]


def user_of(request: HttpRequest) -> str | None:
    """The actor that ``request.user`` is; where reading it would keep an event loop waiting, who it was found to be."""
    state: _State | None = getattr(request, _STATE, None)
    user = getattr(request, "user", None)
    if state is not None and getattr(user, "_wrapped", None) is empty and (state.user is not None or _in_event_loop()):
        user = state.user
    if user is None or not user.is_authenticated or user.pk is None:
        return None
    return f"user:{user.pk}"


def session_of(request: HttpRequest) -> str | None:
    """A name for the session that is none of its secrets: whoever reads the store cannot take the session over."""
    key = getattr(getattr(request, "session", None), "session_key", None)
    return salted_hmac("afterwrite.session", key).hexdigest()[:20] if key else None


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_STATE = "_afterwrite"


class _State:
    """What is known of a request while it runs."""

    def __init__(self) -> None:
        self.user: Any = None
        self.error: BaseException | None = None


class ContextMiddleware:
    """Binds what a request says of itself, and who makes it, around everything that it does. First in ``MIDDLEWARE``.

    Settings, all optional: ``AFTERWRITE_ACTOR``, ``AFTERWRITE_TENANT`` and ``AFTERWRITE_SESSION`` are functions of the
    request, or their dotted names (by default ``request.user``, nothing, and a hash of the session's key).
    ``AFTERWRITE_TRUSTED_PROXIES`` names the networks whose ``AFTERWRITE_PROXY_HEADER`` is believed.
    ``AFTERWRITE_RECORD`` is ``"writing"`` or ``"all"`` for an activity ``http.request`` of such requests.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Respond) -> None:
        self._respond_inside = get_response
        self._asked = {
            "actor": _read_function("AFTERWRITE_ACTOR", user_of),
            "tenant": _read_function("AFTERWRITE_TENANT", None),
            "session": _read_function("AFTERWRITE_SESSION", session_of),
        }
        self._proxies = Proxies(
            getattr(settings, "AFTERWRITE_TRUSTED_PROXIES", ()),
            getattr(settings, "AFTERWRITE_PROXY_HEADER", "x-forwarded-for"),
        )
        self._record = getattr(settings, "AFTERWRITE_RECORD", None)
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(cast("Any", self))
            self.process_view = self._find_user

    def __call__(self, request: HttpRequest) -> Any:
        # Whatever is bound in there and not left is gone when this returns.
        if self._is_async:
            return carry(self._respond_async)(request)
        return carry(self._respond)(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        """A view raised what Django is about to make an answer of."""
        if (state := getattr(request, _STATE, None)) is not None:
            state.error = exception

    def _respond(self, request: HttpRequest) -> HttpResponseBase:
        id, later = self._begin(request)
        later.__enter__()
        with track_request(self._record, request.method or "", request.path) as run:
            response = self._respond_inside(request)
            return self._conclude(request, response, id, run)

    async def _respond_async(self, request: HttpRequest) -> HttpResponseBase:
        id, later = self._begin(request)
        later.__enter__()
        with track_request(self._record, request.method or "", request.path) as run:
            response = await self._respond_inside(request)
            return self._conclude(request, response, id, run)

    def _begin(self, request: HttpRequest) -> tuple[str, Later]:
        setattr(request, _STATE, _State())
        told = read_request(partial(environ_header, request.META), request.META.get("REMOTE_ADDR"), self._proxies)
        # A view may sign somebody in or out, which also gives the session another key.
        return told.request, Later(told.bind(), Asking(request, self._asked, changing=("actor", "session")))

    def _conclude(self, request: HttpRequest, response: Any, id: str, run: Tracked | None) -> HttpResponseBase:
        match = request.resolver_match
        state: _State = getattr(request, _STATE)
        route = f"/{match.route}" if match is not None else None
        conclude(run, status=response.status_code, route=route, error=state.error)
        response.headers.setdefault("X-Request-Id", id)
        # A file goes to the server as it is, which may have its own way to send it.
        if response.streaming and getattr(response, "file_to_stream", None) is None:
            steps: Any = _steps_async if response.is_async else _steps
            response.streaming_content = carry(steps)(response.streaming_content)
        return response

    async def _find_user(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> None:
        """Before an asynchronous view: what it records on its event loop could not wait for a query then."""
        find: Callable[[], Awaitable[Any]] | None = getattr(request, "auser", None)
        wanted = self._asked["actor"] is user_of and iscoroutinefunction(view)
        if wanted and find is not None and settings.SESSION_COOKIE_NAME in request.COOKIES:
            try:
                getattr(request, _STATE).user = await find()
            except Exception as error:
                complain(error)


def _read_function(name: str, otherwise: Callable[[HttpRequest], object] | None) -> Any:
    found = getattr(settings, name, otherwise)
    if isinstance(found, str):
        found = import_string(found)
    if found is not None and not callable(found):
        raise UsageError(f"{name} is no function: {found!r}", remedy="give a function of the request, or its name")
    return found


def _steps(content: Iterable[bytes]) -> Iterator[bytes]:
    yield from content


async def _steps_async(content: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    async for step in content:
        yield step


# --- the database's side: a wrapper around every statement ----------------------------------------------------------


def _instrument(connection: Any, **_: Any) -> None:
    """Each new connection, of any thread, gets a wrapper that knows its transaction."""
    if connection.vendor == "postgresql" and _wrapper_of(connection) is None:
        functions = calling(getattr(settings, "AFTERWRITE_WRITING_FUNCTIONS", ()))
        connection.execute_wrappers.insert(0, _Wrapper(functions))


def _wrapper_of(connection: Any) -> _Wrapper | None:
    return next((each for each in connection.execute_wrappers if isinstance(each, _Wrapper)), None)


class _Wrapper:
    """What ``connection.execute_wrappers`` holds: it sees all that goes through Django's cursors."""

    def __init__(self, functions: frozenset[str]) -> None:
        self.stamps = Stamps()
        self._functions = functions

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        connection, stamps = context["connection"], self.stamps
        idle = int(connection.connection.info.transaction_status) == 0
        if idle:
            stamps.forget()
        reading = read_sql(sql if isinstance(sql, str) else sql.as_string(connection.connection), self._functions)
        alone = idle and connection.get_autocommit()
        # What may end its transaction cannot share it with a stamp.
        due = stamps.due(current()) if reading.writes and not (alone and reading.may_end) else None
        if reading.control is not Control.NONE:
            stamps.note(reading.control)
        try:
            if due is None or not may_stamp(driver, connection):
                return execute(sql, params, many, context)
            return self._stamped(due, reading, alone, execute, sql, params, many, context)
        except BaseException as error:
            if due is not None:
                stamps.doubt(error)
            raise

    def _stamped(
        self, due: Stamp, reading: Reading, alone: bool, execute: Callable[..., Any], sql: Any, params: Any, many: bool,
        context: Any,
    ) -> Any:  # fmt: skip
        connection, cursor = context["connection"], context["cursor"].cursor
        if isinstance(sql, str) and not many and not reading.copies and _binds_by_client(cursor, params):
            # One message of several statements, which are one transaction; nothing in a stamp looks like a placeholder.
            result = execute(f"{due.sql}; {sql}", params, many, context)
            if not _gives_the_last(cursor):
                cursor.nextset()
            return result
        if alone:
            atomic: Any = transaction.atomic
            with atomic(using=connection.alias):
                _send(connection, due.sql)
                return execute(sql, params, many, context)
        _send(connection, due.sql)
        return execute(sql, params, many, context)


def _binds_by_client(cursor: Any, params: Any) -> bool:
    """Whether the text that is sent may hold several statements."""
    if _gives_the_last(cursor):
        return True
    import psycopg

    return isinstance(cursor, psycopg.ClientCursor) or (params is None and not isinstance(cursor, psycopg.ServerCursor))


def _gives_the_last(cursor: Any) -> bool:
    """Whether it is psycopg2's, which gives what the last of several statements returned, and binds by itself."""
    return type(cursor).__module__.startswith("psycopg2") or any(
        each.__module__.startswith("psycopg2") for each in type(cursor).__mro__
    )


def _send(connection: Any, sql: str) -> None:
    """By the driver itself: no query of Django's."""
    with connection.wrap_database_errors, connection.connection.cursor() as cursor:
        cursor.execute(sql)


class _Driver:
    """Stamps and events on a Django connection (``django.db.connection``, ``connections["other"]``)."""

    def emit(self, conn: Any, emitted: Emitted, context: Context, key: str | None) -> bool:
        wrapper = _wrapper_of(conn)
        with conn.cursor() as cursor:
            # Only now is a connection open, and wrapped.
            wrapper = wrapper or _wrapper_of(conn)
            cursor.execute(
                event_sql(emitted, context, key) if wrapper is None else wrapper.stamps.event_sql(emitted, context)
            )
            return cursor.fetchone() is not None

    def place(self, conn: Any) -> Hashable:
        told = conn.settings_dict
        return conn.alias, *(told.get(name) for name in ("HOST", "PORT", "NAME", "USER"))

    def ask(self, conn: Any, sql: str) -> str:
        # By the driver itself: it is asked now and then, and would upset who counts queries.
        conn.ensure_connection()
        with conn.wrap_database_errors, conn.connection.cursor() as cursor:
            cursor.execute(sql)
            return str((cursor.fetchone() or ("",))[0])

    def post(self, conn: Any, payload: str) -> bool:
        with conn.cursor() as cursor:
            cursor.execute(post_sql(payload))
            return cursor.fetchone() is not None

    def stamp(self, conn: Any, context: Context, key: str | None) -> None:
        if not may_stamp(self, conn):
            return
        with conn.cursor() as cursor:
            wrapper = _wrapper_of(conn)
            cursor.execute(stamp_sql(context, key) if wrapper is None else wrapper.stamps.before_event(context).sql)

    def enter(self, conn: Any, context: Context, key: str | None) -> None:
        conn.ensure_connection()  # only an open one is wrapped
        if _wrapper_of(conn) is None and (conn.in_atomic_block or not conn.get_autocommit()):
            self.stamp(conn, context, key)


driver = _Driver()


# --- the admin's side: what happened to an object --------------------------------------------------------------------


class TimelineEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One activity as the admin shows it; ``changes`` are (field, before, after), without what it does not show."""

    id: str
    occurred_at: datetime
    action: str
    failed: bool
    severity: str
    actor: str | None
    ip: str | None
    user_agent: str | None
    request: str | None
    duration_ms: float | None
    summary: str | None
    changes: Sequence[tuple[str, str, str]]


class TimelineMixin:
    """For a ModelAdmin: a page with what happened to an object, from the store, newest first.

    Whoever may view the object may see it, and values of those fields that the admin shows him; of the others, and of
    what has a secret's name, only that they changed. ``timeline_entity_types`` are the types under which the object
    stands in the store: its table and its model's name by default.
    """

    timeline_entity_types: Sequence[str] = ()
    timeline_page_size = 50
    # The alias of the database that holds the store; by default the setting AFTERWRITE_STORE_DATABASE, or "default".
    timeline_database: str | None = None
    # A template of your own; it gets ``entries``, ``older`` (where the next page is) and what every admin page does.
    timeline_template: str | None = None

    # The ModelAdmin's.
    model: Any
    opts: Any
    admin_site: Any

    def has_timeline_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Who may see it; by default whoever may view the object."""
        return bool(cast("Any", self).has_view_permission(request, obj))

    def get_urls(self) -> list[Any]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_timeline"
        own = path("<path:object_id>/timeline/", self.admin_site.admin_view(self.timeline_view), name=name)
        return [own, *cast("Any", super()).get_urls()]

    @property
    def change_form_template(self) -> Any:
        """The admin's own template for this model, with a link to the page."""
        return _template(_CHANGE_FORM)

    def change_view(self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None) -> Any:
        places = (f"admin/{self.opts.app_label}/{self.opts.model_name}/", f"admin/{self.opts.app_label}/", "admin/")
        found = {
            "afterwrite_parent": cast(
                "Any", select_template([f"{place}change_form.html" for place in places])
            ).template,
            "afterwrite_timeline": self._url("timeline", object_id) if self.has_timeline_permission(request) else None,
        }
        return cast("Any", super()).change_view(request, object_id, form_url, {**found, **(extra_context or {})})

    def timeline_view(self, request: HttpRequest, object_id: str) -> Any:
        """The page."""
        from django.contrib.admin.utils import unquote

        # First without the object: who may see none does not learn which there are.
        if not self.has_timeline_permission(request):
            raise PermissionDenied
        obj = cast("Any", self).get_object(request, unquote(object_id))
        if obj is None:
            return cast("Any", self)._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        if not self.has_timeline_permission(request, obj):
            raise PermissionDenied
        found, trouble = self._read(request, obj)
        page = found[: self.timeline_page_size]
        context = {
            **self.admin_site.each_context(request),
            "title": f"Activity: {obj}",
            "opts": self.opts,
            "object": obj,
            "entries": page,
            "older": _place_of(page[-1]) if len(found) > len(page) else None,
            "newer": "before" in request.GET,
            "trouble": trouble,
            "change_url": self._url("change", object_id),
        }
        setattr(request, "current_app", self.admin_site.name)  # noqa: B010 - not typed
        return TemplateResponse(request, self.timeline_template or _template(_TIMELINE), context)

    def read_timeline(
        self, request: HttpRequest, obj: Any, *, before: tuple[datetime, UUID] | None = None
    ) -> list[TimelineEntry]:
        """What happened to the object before a time (and id): a page, and one more where there are older ones."""
        using = self.timeline_database or getattr(settings, "AFTERWRITE_STORE_DATABASE", "default")
        model = self.model._meta
        # Tables have their schema in the store where that is not public, without quotes.
        types = self.timeline_entity_types or (model.db_table.replace('"', ""), model.model_name)
        words = {
            "entity_types": list(dict.fromkeys(types)),
            "entity_id": str(obj.pk),
            "before_at": before[0] if before else None,
            "before_id": before[1] if before else None,
            "limit": self.timeline_page_size + 1,
        }
        atomic: Any = transaction.atomic
        with atomic(using=using), connections[using].cursor() as cursor:
            cursor.execute(statement("store.read_timeline").decode(), words)
            names = [column[0] for column in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        shown = self._shown_columns(request, obj)
        return [_entry(row, shown) for row in rows]

    def _read(self, request: HttpRequest, obj: Any) -> tuple[list[TimelineEntry], bool]:
        before = _read_place(str(request.GET["before"])) if "before" in request.GET else None
        try:
            return self.read_timeline(request, obj, before=before), False
        except DatabaseError as error:
            # No store in there, or not readable by this role: the rest of the admin works as before.
            log.warning("the timeline cannot be read: %s", error)
            return [], True

    def _shown_columns(self, request: HttpRequest, obj: Any) -> dict[str, str]:
        """The columns whose values this admin shows to this user, and what it calls them."""
        # Only where there is an admin; this module is imported before any model.
        from django.contrib.admin.utils import flatten_fieldsets

        names = set(flatten_fieldsets(cast("Any", self).get_fieldsets(request, obj)))
        return {
            field.column: str(field.verbose_name)
            for field in self.model._meta.concrete_fields
            if field.name in names or field.primary_key
        }

    def _url(self, page: str, object_id: str) -> str:
        from django.contrib.admin.utils import quote, unquote

        name = f"admin:{self.opts.app_label}_{self.opts.model_name}_{page}"
        return reverse(name, args=[quote(unquote(object_id))], current_app=self.admin_site.name)


_LONGEST_VALUE = 200
_redactor = Redactor()


def _place_of(entry: TimelineEntry) -> str:
    return f"{entry.occurred_at.isoformat()}|{entry.id}"


def _read_place(word: str) -> tuple[datetime, UUID]:
    at, _, id = word.partition("|")
    try:
        place = datetime.fromisoformat(at), UUID(id)
    except ValueError:
        raise Http404("there is no such page") from None
    if place[0].tzinfo is None:
        raise Http404("there is no such page")
    return place


def _entry(row: dict[str, Any], shown: dict[str, str]) -> TimelineEntry:
    before: dict[str, Any] = msgspec.json.decode(row["before"] or "{}")
    after: dict[str, Any] = msgspec.json.decode(row["after"] or "{}")
    # What changed is told of updates, and not of those whose old row the table's replica identity leaves out.
    changed = row["changed"] if row["operation"] == "update" else None
    columns = list({**before, **after}) if changed is None else changed
    return TimelineEntry(
        id=row["id"],
        occurred_at=row["occurred_at"],
        action=row["action"],
        failed=row["outcome"] != "success",
        severity=row["severity"],
        actor=row["actor_id"],
        ip=row["ip"],
        user_agent=row["user_agent"],
        request=row["request_id"],
        duration_ms=row["duration_ms"],
        # A row change's own has values in it, also of fields that are not shown; what is shown stands beside it.
        summary=None if row["kind"] == "change" else row["summary"],
        changes=[
            (shown.get(column, column), _shown(before, column, shown), _shown(after, column, shown))
            for column in columns
            if changed is not None or column in shown
        ],
    )


def _shown(values: dict[str, Any], column: str, shown: dict[str, str]) -> str:
    if column not in values:
        return ""
    if column not in shown or _redactor.is_secret(column):
        return "•••"
    value = values[column]
    text = value if isinstance(value, str) else "—" if value is None else msgspec.json.encode(value).decode()
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def _template(source: str) -> Any:
    engine = next(each for each in engines.all() if isinstance(each, DjangoTemplates))
    return engine.from_string(source)


_CHANGE_FORM = """{% extends afterwrite_parent %}
{% block object-tools-items %}
{% if afterwrite_timeline %}<li><a href="{{ afterwrite_timeline }}" class="historylink">Activity</a></li>{% endif %}
{{ block.super }}
{% endblock %}"""

_TIMELINE = """{% extends "admin/base_site.html" %}
{% block breadcrumbs %}
<div class="breadcrumbs">
<a href="{% url 'admin:index' %}">Home</a> &rsaquo;
<a href="{% url 'admin:app_list' app_label=opts.app_label %}">{{ opts.app_config.verbose_name }}</a> &rsaquo;
<a href="{{ change_url }}">{{ object|truncatewords:18 }}</a> &rsaquo; Activity
</div>
{% endblock %}
{% block content %}
<div id="content-main"><div class="module">
{% if trouble %}<p class="errornote">The activity store cannot be read from here. The log says why.</p>
{% elif not entries %}<p>No activity is known.</p>
{% else %}
<table id="change-history">
<thead><tr>
<th scope="col">When</th><th scope="col">Who</th><th scope="col">What</th><th scope="col">Changes</th>
</tr></thead>
<tbody>
{% for entry in entries %}
<tr>
<th scope="row">{{ entry.occurred_at|date:"DATETIME_FORMAT" }}</th>
<td>{{ entry.actor|default:"—" }}{% if entry.ip %}<br><small>{{ entry.ip }}</small>{% endif %}</td>
<td>{% if entry.failed %}<strong>failed:</strong> {% endif %}{{ entry.summary|default:entry.action }}</td>
<td>{% for field, before, after in entry.changes %}
<div>{{ field }}: {% if before %}{{ before }}{% if after %} → {% endif %}{% endif %}{{ after }}</div>
{% endfor %}</td>
</tr>
{% endfor %}
</tbody></table>
<p class="paginator">
{% if newer %}<a href="?">newest</a>{% endif %}
{% if older %}<a href="?before={{ older|urlencode:'' }}">older</a>{% endif %}
</p>
{% endif %}
</div></div>
{% endblock %}"""
