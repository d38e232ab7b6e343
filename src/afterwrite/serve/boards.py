"""The boards: overview, migration and health, each put together here in the words of those who know."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.response import Redirect
from litestar.status_codes import HTTP_303_SEE_OTHER
from litestar.types import ControllerRouterHandler

from afterwrite.capture.governor import human_bytes
from afterwrite.errors import AfterwriteError
from afterwrite.migrate.checklist import Item, Section
from afterwrite.migrate.ledger import set_pause
from afterwrite.migrate.phase import State as PhaseState
from afterwrite.migrate.pulse import Load
from afterwrite.migrate.status import PhaseStatus
from afterwrite.postgres import connect
from afterwrite.prove.report import MEANING, Proof, TriggerProof
from afterwrite.record import Activity, Category, Kind, Level, Outcome
from afterwrite.recorder.encode import clean_text
from afterwrite.recorder.ids import Ids
from afterwrite.search.analytics import Bucket, Report, ReportName, report
from afterwrite.serve import draw
from afterwrite.serve.access import SOURCE
from afterwrite.serve.callers import Caller, Scope
from afterwrite.serve.health import Health
from afterwrite.serve.kept import Kept
from afterwrite.serve.panels import panels
from afterwrite.serve.paper import draw_page, frame, lasting, read_form, refuse_foreign
from afterwrite.serve.problems import ProblemError
from afterwrite.serve.progress import LoadPoint, Progress, Triggers
from afterwrite.serve.tenancy import reading
from afterwrite.serve.views import view_links
from afterwrite.serve.visits import visit_of
from afterwrite.settings import Settings
from afterwrite.store.schema import require_store

log = logging.getLogger(__name__)

Asked = Request[Caller, None, State]

_VERDICTS = ("retire", "defer", "keep", "review")
_STATES = (PhaseState.SURVEYED, PhaseState.SHADOWING, PhaseState.PROVEN, PhaseState.SILENCED, PhaseState.REMOVED)
_MOST_TABLES = 24
_MOST_EXAMPLES = 20
_MOST_DAYS = 31
_LONGEST_REASON = 300


# --- overview ---------------------------------------------------------------------------------------------------------


class _Span(msgspec.Struct, frozen=True, kw_only=True):
    """A choice of how far back the overview looks."""

    name: str
    title: str
    hours: int
    bucket: Bucket
    term: str


_SPANS = (
    _Span(name="day", title="24 hours", hours=24, bucket=Bucket.HOUR, term="after:1d"),
    _Span(name="week", title="7 days", hours=24 * 7, bucket=Bucket.HOUR, term="after:7d"),
    _Span(name="month", title="30 days", hours=24 * 30, bucket=Bucket.DAY, term="after:30d"),
)
_RANKS, _FEW = 8, 5


@get("/overview", include_in_schema=False)
async def overview(request: Asked, caller: Caller, span: str = "day") -> Response[str]:
    """How much happens, what fails, who is busiest, and what is unlike other weeks."""
    chosen = next((each for each in _SPANS if each.name == span), _SPANS[0])
    now = datetime.now(UTC)
    floor = now.replace(minute=0, second=0, microsecond=0)
    # Whole days at whole days: the first bar would be a part of one.
    before = floor + timedelta(hours=1) if chosen.bucket is Bucket.HOUR else floor.replace(hour=0) + timedelta(days=1)
    after = before - timedelta(hours=chosen.hours)
    week = timedelta(days=7)
    async with reading(request.app.state, caller) as db:

        async def read(name: ReportName, since: datetime, until: datetime, **more: Any) -> Report:
            return await report(db, name, after=since, before=until, tenant=caller.tenant, now=now, **more)

        active = await read(ReportName.ACTIVITY, after, before, bucket=chosen.bucket)
        past = await read(ReportName.ACTIVITY, after - week, before - week, bucket=chosen.bucket)
        found = {
            name: await read(name, after, before, limit=_RANKS)
            for name in (
                ReportName.ACTORS,
                ReportName.ENTITIES,
                ReportName.ACTIONS,
                ReportName.CATEGORIES,
                ReportName.FAILED_LOGINS,
            )
        }
        compared = await read(ReportName.WEEK, floor - week, floor, limit=12)
        unusual = await read(
            ReportName.UNUSUAL_HOURS, floor - week + timedelta(hours=1), floor + timedelta(hours=1), limit=12
        )
        hours = await read(ReportName.ACTIVITY, floor - week + timedelta(hours=1), floor + timedelta(hours=1))
        views = await view_links(db, caller)
    buckets = _buckets(active, past, now)
    failures, total = sum(each.failures for each in buckets), sum(each.count for each in buckets)
    # The hour, or day, that is under way is compared with nothing: the same stretch of a week before is whole.
    whole = buckets[:-1]
    odd = unusual.records()
    sorts = found[ReportName.CATEGORIES].records()
    logins = next((each for each in sorts if each["category"] == "authentication"), None)
    return draw_page(
        "overview",
        **frame(request, caller, "overview", views=views),
        chosen=chosen,
        spans=_SPANS,
        total=total,
        failures=failures,
        share=failures / total if total else None,
        against=_change(sum(each.count for each in whole), sum(each.past or 0 for each in whole)),
        failures_against=_change(
            sum(each.failures for each in whole), sum(cast("int", each["failures"]) for each in past.records()[:-1])
        ),
        logins=logins,
        odd_count=len(odd),
        spark=draw.spark("spark", "Activities", [each.count for each in buckets]),
        chart=draw.bars(
            "activity",
            f"Activities of the last {chosen.title}",
            buckets,
            timedelta(hours=1) if chosen.bucket is Bucket.HOUR else timedelta(days=1),
        ),
        actors=_ranked(found[ReportName.ACTORS], "actor"),
        entities=_ranked(found[ReportName.ENTITIES], "entity_id"),
        actions=_ranked(found[ReportName.ACTIONS], "action"),
        categories=_ranked(found[ReportName.CATEGORIES], "category"),
        accounts=_ranked(found[ReportName.FAILED_LOGINS], "name", by="account")[:_FEW],
        addresses=_ranked(found[ReportName.FAILED_LOGINS], "name", by="ip")[:_FEW],
        compared=compared.records(),
        whole_hours=any(each["activities"] or each["week_before"] for each in compared.records()),
        names_wait=bool(found[ReportName.ACTORS].notes),
        unusual=odd,
        heat=_heat(hours, odd),
        as_of=active.as_of,
        notes=dict.fromkeys(note for each in found.values() for note in each.notes),
    )


def _buckets(active: Report, past: Report, now: datetime) -> list[draw.Bucket]:
    """The bars; the week before is told for those times only in which anything was stored then."""
    known = any(each["activities"] for each in past.records())
    return [
        draw.Bucket(
            cast("datetime", each["at"]),
            cast("int", each["activities"]),
            cast("int", each["failures"]),
            cast("int", before["activities"]) if known else None,
        )
        for each, before in zip(active.records(), past.records(), strict=True)
        if cast("datetime", each["at"]) <= now
    ]


def _change(now: int, before: int) -> float | None:
    return (now - before) / before if before else None


def _ranked(found: Report, name: str, by: str | None = None) -> list[dict[str, Any]]:
    """A report's rows as bars of ranks."""
    rows = [each for each in found.records() if by is None or each["by"] == by]
    counts = [cast("int", each.get("activities") or each["failures"]) for each in rows]
    most = max(counts, default=0) or 1
    made: list[dict[str, Any]] = []
    for each, count in zip(rows, counts, strict=True):
        text = str(each[name] if each[name] is not None else "")
        failed = cast("int", each.get("failures") or 0) if by is None else count
        made.append(
            {
                "name": text,
                "count": count,
                "share": count / most,
                "failed": failed / most,
                "failures": failed,
                "type": each.get("entity_type"),
                "category": each.get("category"),
            }
        )
    return made


def _heat(hours: Report, odd: Sequence[dict[str, Any]]) -> object:
    """The last seven days by hour, Monday first, with what is unusual ringed."""
    marked = {(each["at"].weekday(), each["at"].hour) for each in odd}
    made = [
        draw.Hour(at.weekday(), at.hour, cast("int", each["activities"]), (at.weekday(), at.hour) in marked)
        for each in hours.records()
        for at in [cast("datetime", each["at"])]
    ]
    return (
        draw.week("week", "Activities of the last seven days by weekday and hour (UTC)", made)
        if any(each.count for each in made)
        else ""
    )


# --- migration --------------------------------------------------------------------------------------------------------


@post("/migration/pause", include_in_schema=False, opt={"scope": Scope.ADMIN})
async def pause(request: Asked, operator: Caller) -> Redirect:
    """Let nothing more be silenced or removed."""
    form = await read_form(request)
    return await _set_pause(request, operator, paused=True, because=str(form.get("because", "")))


@post("/migration/resume", include_in_schema=False, opt={"scope": Scope.ADMIN})
async def resume(request: Asked, operator: Caller) -> Redirect:
    """Let a paused migration go on."""
    refuse_foreign(request)
    return await _set_pause(request, operator, paused=False)


async def _set_pause(request: Asked, operator: Caller, *, paused: bool, because: str = "") -> Redirect:
    """Say it in the ledger, which a run heeds before each step, and as an activity."""
    settings: Settings = request.app.state.settings
    async with connect(settings.dsn, application_name="afterwrite serve", guarded=True) as source:
        await require_store(source)
        done = await set_pause(source, paused=paused, operator=operator.name, because=because)
    kept: Kept[Progress] = request.app.state.progress
    kept.forget()
    if done:
        try:
            await request.app.state.ingest.put(SOURCE, [_paused(request, operator, paused=paused, because=because)])
        except (AfterwriteError, ProblemError) as error:
            log.warning("that %s %s could not be stored as activity: %s", operator.name, _DONE[paused], error)
    return Redirect("/migration", status_code=HTTP_303_SEE_OTHER)


_DONE = {True: "paused the migration", False: "let the migration go on"}


def _paused(request: Asked, operator: Caller, *, paused: bool, because: str) -> Activity:
    visit = visit_of(request.scope)
    because = clean_text(because, _LONGEST_REASON)
    return Activity(
        id=_ids.make(),
        occurred_at=datetime.now(UTC),
        source=SOURCE,
        kind=Kind.EVENT,
        category=Category.CONFIGURATION,
        action="migration.paused" if paused else "migration.resumed",
        outcome=Outcome.SUCCESS,
        severity=Level.INFO,
        actor_id=operator.name,
        actor_type=operator.kind.value,
        request_id=visit.request_id,
        ip=visit.client,
        summary=f"{operator.name} {_DONE[paused]}",
        metadata=msgspec.Raw(msgspec.json.encode({"reason": because})) if because else None,
    )


_ids = Ids()


@get("/migration", include_in_schema=False, opt={"looks": False})
async def migration(request: Asked, operator: Caller) -> Response[str]:
    """Where the migration stands: triggers, phases with their gates, the proof, what it brought, what is to be done."""
    progress: Progress = await request.app.state.progress.get()
    triggers: Triggers = await request.app.state.triggers.get()
    status = progress.status
    counts = Counter(each.verdict for each in triggers.triggers)
    marks = [(each.silenced_at, f"phase {each.number}") for each in status.phases if each.silenced_at is not None]
    return draw_page(
        "migration",
        **frame(request, operator, "migration", views=await _views(request, operator)),
        at=progress.at,
        next=status.next,
        pause=status.pause,
        may_pause=operator.may(Scope.ADMIN) and status.migration is not None and status.migration.finished_at is None,
        findings=status.findings,
        verdicts=[{"name": name, "count": counts[name]} for name in _VERDICTS],
        total=len(triggers.triggers),
        on=sum(each.state == "on" for each in triggers.triggers),
        silenced=sum(each.state == "silenced" for each in triggers.triggers),
        tables=_tables(triggers),
        weights=_weights(triggers),
        triggers=triggers.triggers,
        phases=[_phase(each) for each in status.phases],
        proof=progress.proof,
        proof_lasting=lasting(progress.proof.seconds),
        reasons=_reasons(progress.proof),
        examples=sorted(progress.proof.examples, key=lambda each: each.reason.explained)[:_MOST_EXAMPLES],
        compared=_compared(progress.load, marks),
        courses=_courses(progress.load, marks),
        checklist=_checklist(status.checklist),
    )


async def _views(request: Asked, operator: Caller) -> list[dict[str, str]]:
    """The saved views; none where the store cannot be asked: these pages are looked at when something is wrong."""
    try:
        async with reading(request.app.state, operator) as db:
            return await view_links(db, operator)
    except AfterwriteError:
        return []


def _tables(triggers: Triggers) -> object:
    """The tables by how many triggers they have, with what those cost."""
    weight = {each.table: each for each in triggers.tables}
    counts: dict[str, Counter[str]] = {}
    for each in triggers.triggers:
        counts.setdefault(each.table, Counter())[each.verdict] += 1
    ranked = sorted(
        counts, key=lambda name: (-(weight[name].trigger_ms if name in weight else 0.0), -counts[name].total(), name)
    )
    rows: list[draw.Stacked] = []
    for name in ranked[:_MOST_TABLES]:
        found = weight.get(name)
        note = f"{counts[name].total()}"
        if found and found.trigger_ms:
            note += f" · {lasting(found.trigger_ms / 1_000)} in them"
        ordered = {verdict: counts[name][verdict] for verdict in _VERDICTS}
        rows.append(draw.Stacked(name.removeprefix("public."), ordered, note))
    return draw.stacks("tables", "Triggers by table and verdict", rows)


def _weights(triggers: Triggers) -> dict[str, str]:
    """What a table's triggers took, in words; empty where functions are not timed."""
    said: dict[str, str] = {}
    for each in triggers.tables:
        writes = f"{each.writes:,} writes"
        timed = f", {lasting(each.trigger_ms / 1_000)} in triggers" if each.trigger_ms else ""
        said[each.table] = writes + timed
    return said


def _phase(each: PhaseStatus) -> dict[str, Any]:
    place = _STATES.index(each.state)
    return {
        "it": each,
        "steps": [{"name": state.value, "done": at < place, "here": at == place} for at, state in enumerate(_STATES)],
        "triggers": len(each.on) + len(each.off),
        "unmet": [gate for gate in each.gates if not gate.met],
        "idle": not (each.on or each.off) and each.state is not PhaseState.REMOVED,
    }


class _Reason(msgspec.Struct, frozen=True):
    name: str
    means: str
    explained: bool
    alarming: bool
    count: int
    whose: str


def _reasons(proof: Proof) -> list[_Reason]:
    """How often each reason was counted, the unexplained ones first."""
    found: dict[Any, Counter[str]] = {}
    every: Iterable[TriggerProof] = (*proof.triggers, *proof.strangers)
    for each in every:
        for operation in each.operations:
            for reason, count in (*operation.unexplained.items(), *operation.explained.items()):
                found.setdefault(reason, Counter())[each.trigger.removeprefix("public.")] += count
    made = [
        _Reason(
            reason.value,
            MEANING[reason],
            reason.explained,
            reason.alarming,
            whose.total(),
            ", ".join(name for name, _ in whose.most_common(3))
            + (f" and {len(whose) - 3} more" if len(whose) > 3 else ""),
        )
        for reason, whose in found.items()
    ]
    return sorted(made, key=lambda each: (each.explained, -each.count))


def _compared(load: Sequence[LoadPoint], marks: Sequence[tuple[datetime, str]]) -> object:
    """How the source fared before the first phase was silenced and since the last; nothing before that."""
    if not marks:
        return ""
    first, last = min(at for at, _ in marks), max(at for at, _ in marks)
    before = [each.load for each in load if each.at <= first]
    after = [each.load for each in load if each.at > last]
    figures: list[draw.Compared] = []
    for label, measure in (
        ("a writing statement", _write),
        ("CPU a transaction", _cpu),
        ("time a transaction", _active),
    ):
        was, now = _mean(map(measure, before)), _mean(map(measure, after))
        if was is not None and now is not None:
            figures.append(draw.Compared(label, was, now, f"{was:,.0f} µs before", f"{now:,.0f} µs since"))
    return draw.before_after("compared", "Before the first phase was silenced, and since", figures) if figures else ""


# A figure, and of how many it is the mean.
_Figure = tuple[float | None, int]


def _write(load: Load) -> _Figure:
    return load.write_us, load.writes or 0


def _cpu(load: Load) -> _Figure:
    return load.cpu_us, load.transactions


def _active(load: Load) -> _Figure:
    return load.active_us, load.transactions


def _rate(load: Load) -> _Figure:
    return load.transactions / load.seconds, 1


def _mean(figures: Iterable[_Figure]) -> float | None:
    known = [(figure, count) for figure, count in figures if figure is not None]
    total = sum(count for _, count in known)
    return sum(figure * count for figure, count in known) / total if total else None


def _courses(load: Sequence[LoadPoint], marks: Sequence[tuple[datetime, str]]) -> list[dict[str, object]]:
    """How each figure went over the time that was noted."""
    made: list[dict[str, object]] = []
    for name, title, unit, measure in (
        ("writes", "Mean time of a writing statement, µs", "µs", _write),
        ("cpu", "CPU of the cluster a transaction, µs", "µs", _cpu),
        ("rate", "Transactions a second", "a second", _rate),
    ):
        points = [(each.at, found) for each in load if (found := measure(each.load)[0]) is not None]
        picture = draw.course(name, title, points, marks, unit)
        if picture:
            made.append({"title": title, "picture": picture})
    return made


def _checklist(items: Sequence[Item]) -> list[dict[str, object]]:
    return [
        {"title": section.value, "items": found}
        for section in Section
        if (found := [each for each in items if each.section is section])
    ]


# --- health -----------------------------------------------------------------------------------------------------------


@get("/health", include_in_schema=False, opt={"looks": False})
async def health(request: Asked, operator: Caller) -> Response[str]:
    """How everything stands, what it means, and what to do."""
    found: Health = await request.app.state.health.get()
    days = sorted(found.days, key=lambda each: each.name, reverse=True)
    today = found.at.date()
    ahead = [each for each in days if each.day is not None and each.day > today and not each.rows]
    past = [each for each in days if each not in ahead and (each.rows or each.day is not None)]
    return draw_page(
        "health",
        **frame(request, operator, "health", views=await _views(request, operator)),
        health=found,
        panels=panels(found),
        bytes=human_bytes,
        days=past[:_MOST_DAYS],
        older_days=max(0, len(past) - _MOST_DAYS),
        ahead=len(ahead),
        largest=max((each.bytes for each in past), default=1) or 1,
    )


routes: list[ControllerRouterHandler] = [overview, migration, pause, resume, health]
