"""The plan: which trigger moves in which phase, behind which gates. A TOML file that people edit and review in git.

::

    judgements (scan) + table figures ──make_plan──▶ Plan ──write_plan──▶ TOML ──people──▶ read_plan ──▶ Plan
                                                       check_plan: Plan against today's judgements = drift
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, cast

import msgspec

from afterwrite.defer.calls import OnError
from afterwrite.errors import Finding, Severity, UsageError
from afterwrite.migrate.backup import TriggerBackup
from afterwrite.migrate.phase import Mode
from afterwrite.prove.legacy import Override
from afterwrite.prove.watch import Mode as ProofMode
from afterwrite.prove.watch import Planned
from afterwrite.scan.catalog import Enabled, Event, Timing, Trigger
from afterwrite.scan.rules import RULES
from afterwrite.scan.verdicts import Judgement, Verdict

VERSION = 1


class Thresholds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the gates ask for before a phase is silenced and while it soaks."""

    proof_transactions: int = 1_000
    proof_seconds: float = 3_600.0
    capture_lag_seconds: float = 10.0
    capture_lag_bytes: int = 64 * 1024 * 1024
    slot_headroom_bytes: int = 1024 * 1024 * 1024
    deferral_lag_seconds: float = 30.0
    baseline_seconds: float = 60.0
    write_latency_ratio: float = 1.5
    cpu_ratio: float = 1.5
    rollbacks_per_thousand: float = 20.0
    deadlocks_per_thousand: float = 1.0
    failed_sessions_per_thousand: float = 5.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} cannot be negative")


_MEANING = {
    "proof_transactions": "transactions that shadow must have compared on the phase's tables",
    "proof_seconds": "and for how long",
    "capture_lag_seconds": "a heartbeat must be in the store within this time",
    "capture_lag_bytes": "WAL that is flushed and not yet stored",
    "slot_headroom_bytes": "WAL that the slot may still hold back before the server drops it (max_slot_wal_keep_size)",
    "deferral_lag_seconds": "how old the newest change that awaits a deferred body may be",
    "baseline_seconds": "for how long the database must have been watched before, to be compared with afterwards",
    "write_latency_ratio": "how much longer than before a writing statement may take while a phase soaks",
    "cpu_ratio": "how much more CPU than before a transaction may take",
    "rollbacks_per_thousand": "how many more of 1,000 transactions than before may be rolled back",
    "deadlocks_per_thousand": "and end in a deadlock",
    "failed_sessions_per_thousand": "and how many more sessions may end in an error, by 1,000 transactions",
}


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A condition of the user's own: one value that a query gives (in a read-only transaction), or a page that answers.

    ``expect`` is the value as text, of a page a text that it holds. Exactly one of ``sql`` and ``url`` is given.
    """

    name: str
    sql: str | None = None
    url: str | None = None
    expect: str | None = None
    timeout_seconds: float = 5.0

    def __post_init__(self) -> None:
        if (self.sql is None) is (self.url is None):
            raise ValueError(f"the check {self.name!r} needs either sql or url")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"the check {self.name!r} asks {self.url!r}, which is no http address")


# Gates that a person may do without, with a reason, where they cannot be measured. By the others nothing is lost.
WAIVABLE = (
    "slot headroom",
    "whole old rows",
    "capture gaps",
    "write latency",
    "database CPU",
    "rollbacks",
    "deadlocks",
    "failed sessions",
    "proof: every deferred body rehearsed",
)


class Fires(StrEnum):
    """For which sessions a trigger was enabled when the plan was written, where not for all usual ones."""

    NEVER = "never"
    IN_REPLICA_ROLE = "in replica role"
    ALWAYS = "always"


_FIRES = {Enabled.DISABLED: Fires.NEVER, Enabled.REPLICA: Fires.IN_REPLICA_ROLE, Enabled.ALWAYS: Fires.ALWAYS}


class Legacy(StrEnum):
    """What becomes of the log of a retired trigger: ``keep`` has its body go on filling it after commit."""

    KEEP = "keep"


class Ignored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A legacy column that the proof leaves out, and why."""

    ignore: str


class PlannedTrigger(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A trigger that moves. ``verdict``, ``rule`` and ``because`` are scan's; ``mode`` is the decision, ``reason`` a
    person's.

    ``rare`` are operations that the operator says need not be seen in shadow. ``enabled`` is left out for a trigger
    that fires as usual. ``mapping`` says of legacy columns what they hold (SQL over new, old and tg_…), or why they are
    not compared; of the others the trigger's own INSERT does. ``fingerprint`` tells its definition. ``on_error`` says
    what a failing deferred body does.
    """

    trigger: str
    verdict: Verdict
    mode: Mode
    legacy: Legacy | None = None
    on_error: OnError | None = None
    rule: str = ""
    because: str
    fires: tuple[Event, ...]
    rare: tuple[Event, ...] = ()
    mapping: Mapping[str, str | Ignored] = {}
    enabled: Fires | None = None
    fingerprint: str
    reason: str | None = None

    @property
    def moves_as(self) -> Mode:
        """What happens to its body: one whose log is kept filled is deferred, though its proof is that of a log."""
        return Mode.DEFER if self.legacy is Legacy.KEEP else self.mode


class LeftTrigger(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A trigger that stays as it is, and why."""

    trigger: str
    verdict: Verdict
    rule: str = ""
    because: str
    fires: tuple[Event, ...]
    enabled: Fires | None = None
    fingerprint: str
    reason: str | None = None


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """Triggers that move together, the thresholds of their gates, and how long they soak.

    ``waive`` are gates that need not be measured, with the reason; ``checks`` are the plan's.
    """

    number: int
    title: str
    soak_seconds: float
    thresholds: Thresholds
    triggers: tuple[PlannedTrigger, ...]
    waive: Mapping[str, str] = {}
    checks: tuple[Check, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Phases in their order, and what stays: ``kept`` for good, ``review`` until a person has decided.

    ``waive`` and ``checks`` are of every phase.
    """

    thresholds: Thresholds
    phases: tuple[Phase, ...]
    waive: Mapping[str, str] = {}
    checks: tuple[Check, ...] = ()
    kept: tuple[LeftTrigger, ...] = ()
    review: tuple[LeftTrigger, ...] = ()

    def phase(self, number: int) -> Phase:
        """The phase of this number; raises UsageError when the plan has none."""
        for phase in self.phases:
            if phase.number == number:
                return phase
        known = ", ".join(str(phase.number) for phase in self.phases) or "none"
        raise UsageError(f"the plan has no phase {number}; it has {known}", remedy="name one of these with --phase")


class TableFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How much weight a table carries: rows written and trigger time since the statistics began, references to it."""

    schema: str
    table: str
    writes: int
    incoming_foreign_keys: int
    trigger_ms: float


def fingerprint(trigger: Trigger) -> str:
    """A short text that changes when the trigger's or its function's definition does (not with its enabled state)."""
    return _fingerprint(trigger.create, trigger.definition, trigger.function_owner)


def backup_fingerprint(backup: TriggerBackup) -> str:
    """The same of a trigger as ``read_backup`` gives it."""
    return _fingerprint(backup.create, backup.function.definition, backup.function.owner)


def _fingerprint(create: str, *function: str) -> str:
    """One half is the trigger's, the other its function's, so that drift can say which of the two was changed."""
    return f"sha256:{_digest(create)}{_digest(*function)}"


def _digest(*parts: str) -> str:
    return hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]


TITLES = {
    1: "notifications and bulk operations",
    2: "templates and configuration",
    3: "investment and financial tables",
    4: "tokens and allocations",
    5: "the high-impact tables (users, projects, investors)",
}
_OTHER_TITLES = {
    1: "tables that are hardly written and that nothing refers to",
    2: "tables of little weight",
    3: "tables of middling weight",
    4: "tables that are much written or much referred to",
    5: "the high-impact tables",
}
_HIGH_IMPACT = frozenset({"user", "project", "investor"})
# In this order: token_templates are templates, wallet_transactions are money, token_operations are tokens.
_WORDS: tuple[tuple[int, frozenset[str]], ...] = (
    (1, frozenset({"notification", "bulk"})),
    (2, frozenset({"template", "configuration", "config", "setting"})),
    (4, frozenset({"token", "allocation"})),
    (3, frozenset({"investment", "subscription", "distribution", "redemption", "wallet", "payment", "fund"})),
)


def make_plan(
    judgements: Sequence[Judgement],
    figures: Iterable[TableFigures] = (),
    *,
    thresholds: Thresholds | None = None,
    soak_seconds: float = 3_600.0,
) -> Plan:
    """Order the triggers that scan lets go into five phases, from the least to the highest risk.

    All triggers of a table move together. Tables with telling names have their place by name, others by what their
    triggers do, how much they are written, what refers to them and what their triggers cost. Same input, same text.
    """
    thresholds = thresholds or Thresholds()
    own = [judgement for judgement in judgements if judgement.trigger.parent_oid is None]
    own.sort(key=lambda judgement: _sort_key(judgement.trigger))
    moving: dict[tuple[str, str], list[Judgement]] = {}
    kept: list[LeftTrigger] = []
    review: list[LeftTrigger] = []
    for judgement in own:
        match judgement.verdict:
            case Verdict.RETIRE | Verdict.DEFER:
                moving.setdefault((judgement.trigger.schema, judgement.trigger.table), []).append(judgement)
            case Verdict.KEEP:
                kept.append(_left(judgement))
            case Verdict.REVIEW:
                review.append(_left(judgement))
    by_table = {(figure.schema, figure.table): figure for figure in figures}
    placed: dict[int, list[PlannedTrigger]] = {number: [] for number in TITLES}
    named: set[int] = set()
    for table, of_table in sorted(moving.items()):
        number = _place_by_name(table[1])
        if number is None:
            number = _place_by_weight(by_table.get(table), by_table.values(), of_table)
        else:
            named.add(number)
        placed[number] += [_planned(judgement) for judgement in of_table]
    return Plan(
        thresholds=thresholds,
        phases=tuple(
            Phase(
                number=number,
                title=(TITLES if number in named else _OTHER_TITLES)[number],
                soak_seconds=soak_seconds,
                thresholds=thresholds,
                triggers=tuple(triggers),
            )
            for number, triggers in placed.items()
        ),
        kept=tuple(kept),
        review=tuple(review),
    )


def keep_decisions(old: Plan, new: Plan) -> tuple[Plan, list[str]]:
    """A plan made anew, with what people decided in the old one; and in words what could not be kept.

    Thresholds, a phase's title, soak and gates, where a trigger stands, its mode, legacy, on_error, rare, mapping and
    reason are people's; verdict, because, fires, enabled and fingerprint are scan's.
    """
    before = {entry.trigger: (where, entry) for where, entry in entries(old)}
    now = {entry.trigger: (where, entry) for where, entry in entries(new)}
    lost = [
        f"{name} is gone, and with it {_decided(entry)}"
        for name, (_, entry) in before.items()
        if name not in now and _decided(entry)
    ]
    phases = {phase.number: phase for phase in new.phases}
    phases |= {phase.number: msgspec.structs.replace(phase, triggers=()) for phase in old.phases}
    moved: dict[int, list[PlannedTrigger]] = {number: [] for number in phases}
    kept: list[LeftTrigger] = []
    review: list[LeftTrigger] = []
    homes = {
        trigger.trigger: phase.number for plan in (new, old) for phase in plan.phases for trigger in phase.triggers
    }
    for name, (where, entry) in now.items():
        known_where, known = before.get(name, (where, entry))
        # Where scan put it then is no decision: it goes where scan puts it now.
        decided = not _as_scan_said(known_where, known)
        stays = decided or known.verdict is entry.verdict
        if decided and (why := _no_longer(known, entry)):
            stays = False
            lost.append(f"{name} was let go against scan ({known.reason}): {why}; decide again")
        elif not stays and _decided(known):
            lost.append(
                f"scan says {entry.verdict.value} of {name} now, and said {known.verdict.value}: look at it again"
            )
        if isinstance(known, PlannedTrigger) and stays:
            planned = PlannedTrigger(
                **{name: getattr(entry, name) for name in LeftTrigger.__struct_fields__ if name != "reason"},
                mode=known.mode,
                legacy=known.legacy,
                on_error=known.on_error,
                rare=tuple(each for each in known.rare if each in entry.fires),
                mapping=known.mapping,
                reason=known.reason,
            )
            moved[homes[name]].append(planned)
        elif isinstance(known, LeftTrigger) and stays:
            left = LeftTrigger(
                **{name: getattr(entry, name) for name in LeftTrigger.__struct_fields__ if name != "reason"},
                reason=known.reason,
            )
            (review if known_where == "review" else kept).append(left)
        elif isinstance(entry, PlannedTrigger):
            moved[homes[name]].append(entry)
        else:
            (review if where == "review" else kept).append(entry)
    return (
        Plan(
            thresholds=old.thresholds,
            waive=old.waive,
            checks=old.checks,
            phases=tuple(
                msgspec.structs.replace(phases[number], triggers=tuple(moved[number])) for number in sorted(phases)
            ),
            kept=tuple(kept),
            review=tuple(review),
        ),
        lost,
    )


def _no_longer(known: PlannedTrigger | LeftTrigger, entry: PlannedTrigger | LeftTrigger) -> str:
    """Why the decision to let a trigger go, against scan, is not carried on; empty when it is."""
    if not isinstance(known, PlannedTrigger) or entry.verdict.value == known.mode.value:
        return ""
    if known.fingerprint != entry.fingerprint:
        return "the trigger or its function is another one now"
    rule = RULES.get(entry.rule)
    certain = rule is not None and Verdict(known.mode.value) in rule.never
    return f"scan says {entry.rule} now, and no reason helps against that" if certain else ""


def _decided(entry: PlannedTrigger | LeftTrigger) -> str:
    """What people said of a trigger, in words; empty when it is all scan's."""
    said = ["a reason"] if entry.reason else []
    if isinstance(entry, PlannedTrigger):
        said += [name for name in ("legacy", "on_error", "rare", "mapping") if getattr(entry, name)]
    return ", ".join(said)


def _sort_key(trigger: Trigger) -> tuple[str, str, str]:
    return trigger.schema, trigger.table, trigger.name


def _place_by_name(table: str) -> int | None:
    words = [word.removesuffix("s") for word in re.split(r"[^a-z0-9]+", table.lower()) if word]
    if len(words) == 1 and words[0] in _HIGH_IMPACT:
        return 5
    return next((number for number, telling in _WORDS if telling.intersection(words)), None)


def _place_by_weight(
    figure: TableFigures | None, figures: Iterable[TableFigures], judgements: Sequence[Judgement]
) -> int:
    points = int(any(judgement.verdict is Verdict.DEFER for judgement in judgements))
    if figure is not None:
        everyone = list(figures)
        share = figure.writes / max(1, sum(each.writes for each in everyone))
        cost = figure.trigger_ms / max(1.0, sum(each.trigger_ms for each in everyone))
        points += sum(figure.incoming_foreign_keys >= count for count in (1, 3, 6))
        points += sum(share >= part for part in (0.01, 0.1))
        points += int(cost >= 0.25)
    return min(1 + points, 5)


def _planned(judgement: Judgement) -> PlannedTrigger:
    trigger = judgement.trigger
    return PlannedTrigger(
        trigger=trigger.identity,
        verdict=judgement.verdict,
        mode=Mode.DEFER if judgement.verdict is Verdict.DEFER else Mode.RETIRE,
        rule=_rule(judgement),
        because=_because(judgement),
        fires=trigger.events,
        enabled=_FIRES.get(trigger.enabled),
        fingerprint=fingerprint(trigger),
    )


def _left(judgement: Judgement) -> LeftTrigger:
    trigger = judgement.trigger
    return LeftTrigger(
        trigger=trigger.identity,
        verdict=judgement.verdict,
        rule=_rule(judgement),
        because=_because(judgement),
        fires=trigger.events,
        enabled=_FIRES.get(trigger.enabled),
        fingerprint=fingerprint(trigger),
    )


def _rule(judgement: Judgement) -> str:
    return judgement.reasons[0].rule if judgement.reasons else ""


def _because(judgement: Judgement) -> str:
    said = "; ".join(list(dict.fromkeys(reason.text for reason in judgement.reasons))[:2])
    line = " ".join(said.split())
    if judgement.trigger.enabled is Enabled.DISABLED:
        line = f"already disabled; {line}" if line else "already disabled"
    return line if len(line) <= 160 else f"{line[:157]}..."


_HEAD = """\
# The plan of a migration: which triggers move in which phase, behind which gates.
#
# Edit it, review it, keep it in git. `afterwrite plan --check` compares it with the database; `afterwrite migrate run
# --phase N` shows what a phase would do, and does it with --apply.
#
#   mode = "retire"   the trigger goes, the activity store replaces its log
#   mode = "defer"    the trigger goes, and its own body runs after commit, in commit order, exactly once
#   legacy = "keep"   beside mode = "retire": readers still need the old log, so its body fills it after commit
#   on_error = "stop" a deferred body that fails stops all deferred bodies until somebody acts; else it is parked
#   rare = ["delete"] your word that shadow need not have seen this operation
#   mapping = { note = "upper(new.note)", seen = { ignore = "why" } }
#                     what a legacy column holds where the proof cannot tell (see `afterwrite prove --mapping`), or that
#                     it is not compared; `afterwrite prove --plan FILE` takes it over
#   soak_seconds      how long a silenced phase is watched before `migrate run --all` goes on
#
# To decide otherwise than scan did, change an entry's mode, or move it to another section (only in a phase it has a
# mode), and say why in reason = "...": without it the plan is refused. What is certain to stay (a constraint trigger,
# an extension's, one that writes a view) stays whatever the reason. The rest is scan's: leave it as it is; what a rule
# means is in docs/rules.md.
"""


_WAIVE_HEAD = (
    "# A gate that cannot be measured is not met. Where you can do without it, give the reason (also within a",
    '# [[phase]], as waive = { "slot headroom" = "..." }):',
    "# [waive]",
    '# "slot headroom" = "the server sets no limit, and the disk is watched"',
)
_CHECK_HEAD = (
    "# Gates of your own: one value of a query, or a page that answers; asked before a silencing and in the soak:",
    "# [[check]]",
    '# name = "no order waits for long"',
    "# sql = \"select count(*) < 10 from orders where state = 'new' and created_at < now() - interval '5 min'\"",
    '# expect = "true"',
)


def write_plan(plan: Plan) -> str:
    """The plan as TOML, with comments for people; ``read_plan`` gives it back equal."""
    lines = [_HEAD, f"version = {VERSION}", ""]
    lines.append("# What the gates ask for. A phase that needs other figures has its own gates = { ... }.")
    lines.append("[gates]")
    for name, value in msgspec.structs.asdict(plan.thresholds).items():
        lines.append(f"# {_MEANING[name]}")
        lines.append(f"{name} = {_toml(value)}")
    lines += ["", *_WAIVE_HEAD]
    if plan.waive:
        lines += ["[waive]", *(f"{_toml(gate)} = {_toml(why)}" for gate, why in plan.waive.items())]
    lines += ["", *_CHECK_HEAD]
    for check in plan.checks:
        said = {name: value for name, value in msgspec.structs.asdict(check).items() if value is not None}
        lines += ["[[check]]", *(f"{name} = {_toml(value)}" for name, value in said.items())]
    for phase in plan.phases:
        retired = sum(trigger.mode is Mode.RETIRE for trigger in phase.triggers)
        counted = (
            f"{retired} to retire, {len(phase.triggers) - retired} to defer" if phase.triggers else "nothing to do"
        )
        lines += ["", "", f"# Phase {phase.number}: {counted}"]
        lines += ["[[phase]]", f"number = {phase.number}", f"title = {_toml(phase.title)}"]
        lines.append(f"soak_seconds = {_toml(phase.soak_seconds)}")
        of_plan = msgspec.structs.asdict(plan.thresholds)
        own = {name: v for name, v in msgspec.structs.asdict(phase.thresholds).items() if v != of_plan[name]}
        if own:
            lines.append(f"gates = {{ {', '.join(f'{name} = {_toml(value)}' for name, value in own.items())} }}")
        if waived := {gate: why for gate, why in phase.waive.items() if plan.waive.get(gate) != why}:
            lines.append(f"waive = {_toml(waived)}")
        for trigger in phase.triggers:
            lines += ["", "[[phase.trigger]]", *_fields(trigger)]
    for title, table, left in (
        ("What stays: it is not a log, or the write path needs it.", "keep", plan.kept),
        ("What a person has to look at first; nothing happens to it until it is in a phase.", "review", plan.review),
    ):
        lines += ["", "", f"# {title}"]
        for trigger in left:
            lines += [f"[[{table}]]", *_fields(trigger), ""]
    return "\n".join(lines).rstrip() + "\n"


def _fields(entry: PlannedTrigger | LeftTrigger) -> list[str]:
    return [
        f"{name} = {_toml(value)}"
        for name, value in msgspec.structs.asdict(entry).items()
        if value is not None and not (name in ("rare", "mapping") and not value)
    ]


def _toml(value: object) -> str:
    match value:
        case str():
            # JSON's escapes are TOML's; JSON leaves DEL as it is, which TOML does not allow.
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case Ignored(why):
            return f"{{ ignore = {_toml(why)} }}"
        case dict():
            said = cast("dict[str, object]", value)
            return f"{{ {', '.join(f'{_toml(name)} = {_toml(each)}' for name, each in said.items())} }}"
        case tuple():
            return f"[{', '.join(_toml(item) for item in cast('tuple[object, ...]', value))}]"
        case _:
            return str(value)


class _PhaseFile(msgspec.Struct, forbid_unknown_fields=True):
    number: int
    title: str
    soak_seconds: float
    gates: dict[str, Any] = {}
    waive: dict[str, str] = {}
    trigger: list[PlannedTrigger] = []


class _PlanFile(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    gates: Thresholds
    waive: dict[str, str] = {}
    check: list[Check] = []
    phase: list[_PhaseFile] = []
    keep: list[LeftTrigger] = []
    review: list[LeftTrigger] = []


def read_plan(text: str) -> Plan:
    """The plan of a TOML file; raises UsageError that says where and what is wrong.

    Strict: unknown words, a trigger named twice, and a decision other than scan's without a ``reason`` are refused.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the plan is not TOML: {error}", remedy="mend that line, or write a new plan") from error
    if data.get("version") != VERSION:
        raise UsageError(
            f"the plan says version = {data.get('version')!r}, this afterwrite reads version = {VERSION}",
            remedy="write a new plan with `afterwrite plan`",
        )
    try:
        file = msgspec.convert(data, _PlanFile)
        phases = tuple(_phase(found, file) for found in file.phase)
    except msgspec.ValidationError as error:
        raise _unreadable(error, data) from error
    plan = Plan(
        thresholds=file.gates,
        phases=phases,
        waive=file.waive,
        checks=tuple(file.check),
        kept=tuple(file.keep),
        review=tuple(file.review),
    )
    _check_decisions(plan)
    return plan


def _phase(found: _PhaseFile, file: _PlanFile) -> Phase:
    defaults = file.gates
    return Phase(
        number=found.number,
        title=found.title,
        soak_seconds=found.soak_seconds,
        thresholds=msgspec.convert({**msgspec.structs.asdict(defaults), **found.gates}, Thresholds),
        triggers=tuple(found.trigger),
        waive=file.waive | found.waive,
        checks=tuple(file.check),
    )


def _unreadable(error: msgspec.ValidationError, data: Mapping[str, Any]) -> UsageError:
    said, _, path = str(error).partition(" - at ")
    place = path.strip("`") or "its top"
    found: Any = data
    for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", place):
        try:
            found = found[key if key else int(index)]
            place = f"{place.removeprefix('$.')}, trigger {found['trigger'].strip()}"
            break
        except (KeyError, TypeError, AttributeError):
            continue
    allowed = ""
    for field, words in (
        ("verdict", Verdict),
        ("mode", Mode),
        ("legacy", Legacy),
        ("on_error", OnError),
        ("fires", Event),
        ("rare", Event),
    ):
        if re.search(rf"\.{field}\b", path):
            allowed = f"; {field} is one of {', '.join(word.value for word in words)}"
    return UsageError(f"the plan cannot be read at {place}: {said}{allowed}", remedy="mend that entry")


def _check_decisions(plan: Plan) -> None:
    numbers = [phase.number for phase in plan.phases]
    if numbers != sorted(set(numbers)) or any(number < 1 for number in numbers):
        raise UsageError(f"the plan's phases are numbered {numbers}", remedy="number them 1, 2, 3 ... in their order")
    for phase in plan.phases:
        if phase.soak_seconds < 0:
            raise UsageError(f"phase {phase.number} soaks for {phase.soak_seconds} s", remedy="give 0 or more")
    _check_waivers(plan)
    seen: set[str] = set()
    for where, entry in entries(plan):
        if entry.trigger in seen:
            raise UsageError(f"the plan names {entry.trigger} twice", remedy="leave it in one section")
        seen.add(entry.trigger)
        if not _as_scan_said(where, entry) and not (entry.reason or "").strip():
            raise UsageError(
                f"the plan has {entry.trigger} in {where}, where scan's verdict is {entry.verdict.value}",
                remedy='say why in reason = "...", or put it back',
            )
        _check_certain(entry)
        if isinstance(entry, PlannedTrigger) and (strange := set(entry.rare) - set(entry.fires)):
            raise UsageError(
                f"{entry.trigger} does not fire on {', '.join(sorted(strange))}, which the plan calls rare",
                remedy=f"rare may name {', '.join(entry.fires)}",
            )
        if isinstance(entry, PlannedTrigger):
            _check_deferral(entry)
            _check_mapping(entry)


def _check_mapping(entry: PlannedTrigger) -> None:
    for column, said in entry.mapping.items():
        if not (said.ignore if isinstance(said, Ignored) else said).strip():
            raise UsageError(
                f"{entry.trigger} maps the legacy column {column} to nothing",
                remedy='give an SQL expression, or { ignore = "why" }',
            )


def _check_deferral(entry: PlannedTrigger) -> None:
    if entry.legacy is not None and entry.mode is not Mode.RETIRE:
        raise UsageError(
            f'{entry.trigger} has legacy = "{entry.legacy.value}" and mode = "{entry.mode.value}"',
            remedy='legacy goes with mode = "retire"; a deferred body writes all that it wrote anyway',
        )
    if entry.on_error is not None and entry.moves_as is not Mode.DEFER:
        raise UsageError(
            f"{entry.trigger} has on_error, and no body of it will run",
            remedy='on_error goes with mode = "defer" or legacy = "keep"',
        )


def _check_certain(entry: PlannedTrigger | LeftTrigger) -> None:
    """Refuse what no reason makes possible: to turn off a constraint, an extension's trigger, a view's own writing."""
    if not isinstance(entry, PlannedTrigger):
        return
    rule = RULES.get(entry.rule)
    if rule is not None and Verdict(entry.mode.value) in rule.never:
        raise UsageError(
            f"the plan has {entry.trigger} as {entry.mode.value}, and scan says {entry.rule}: {entry.because}",
            remedy=f"put it back into [[{rule.verdict.value}]]: no reason makes that possible",
        )
    if entry.trigger.rpartition(".")[2].startswith("RI_ConstraintTrigger_"):
        raise UsageError(
            f"the plan turns off {entry.trigger}, which is how the server keeps a foreign key",
            remedy="take it out: drop the foreign key itself if that is meant",
        )


def _check_waivers(plan: Plan) -> None:
    if len({check.name for check in plan.checks}) < len(plan.checks):
        raise UsageError("two checks of the plan have the same name", remedy="give each its own")
    for waive in (plan.waive, *(phase.waive for phase in plan.phases)):
        for gate, why in waive.items():
            if gate not in WAIVABLE:
                raise UsageError(
                    f"the plan waives {gate!r}, which is no gate that one can do without",
                    remedy=f"these may be waived: {', '.join(WAIVABLE)}",
                )
            if not why.strip():
                raise UsageError(f"the plan waives {gate!r} and does not say why", remedy='give it = "a reason"')


def entries(plan: Plan) -> list[tuple[str, PlannedTrigger | LeftTrigger]]:
    """Every trigger of the plan with the words for where it stands in it."""
    found: list[tuple[str, PlannedTrigger | LeftTrigger]] = [
        (f"phase {phase.number} (mode = {trigger.mode.value})", trigger)
        for phase in plan.phases
        for trigger in phase.triggers
    ]
    found += [("keep", trigger) for trigger in plan.kept]
    found += [("review", trigger) for trigger in plan.review]
    return found


def proof_plan(plan: Plan) -> list[Planned]:
    """What the plan says of the proof otherwise than scan and the triggers' own INSERTs do."""
    return proof_plan_of([trigger for phase in plan.phases for trigger in phase.triggers])


def proof_plan_of(triggers: Iterable[PlannedTrigger]) -> list[Planned]:
    """The same of some of its triggers."""
    return [
        Planned(
            trigger=trigger.trigger,
            # One that scan left, and a person put into a phase: it is compared as that phase needs it.
            mode=None if trigger.verdict in (Verdict.RETIRE, Verdict.DEFER) else ProofMode(trigger.mode.value),
            overrides=tuple(
                Override(column=column, ignore=said.ignore)
                if isinstance(said, Ignored)
                else Override(column=column, value=said)
                for column, said in trigger.mapping.items()
            ),
        )
        for trigger in triggers
        if trigger.mapping or trigger.verdict not in (Verdict.RETIRE, Verdict.DEFER)
    ]


def _as_scan_said(where: str, entry: PlannedTrigger | LeftTrigger) -> bool:
    if isinstance(entry, PlannedTrigger):
        return entry.mode.value == entry.verdict.value
    return entry.verdict.value == where


def check_plan(
    plan: Plan, judgements: Sequence[Judgement], *, silenced: Collection[str] | None = frozenset()
) -> list[Finding]:
    """Where the database has moved away from the plan since it was written: drift, in the plan's order.

    A definition that changed, a trigger that is gone, new, judged otherwise or enabled otherwise is an error. What the
    ledger says that we silenced (``silenced``; None when the ledger may not be read) is off as planned.
    """
    findings: list[Finding] = []
    now = {judgement.trigger.identity: judgement for judgement in judgements if judgement.trigger.parent_oid is None}
    for where, entry in entries(plan):
        judgement = now.pop(entry.trigger, None)
        if judgement is None:
            findings.append(_drift("plan.gone", entry.trigger, f"in the plan ({where}), not in the database"))
            continue
        trigger = judgement.trigger
        if changed := _changed(entry, trigger):
            findings.append(_drift("plan.changed", entry.trigger, f"{changed} changed after the plan was written"))
        if judgement.verdict is not entry.verdict:
            text = f"the plan says that scan's verdict is {entry.verdict.value}; it is {judgement.verdict.value}"
            findings.append(_drift("plan.verdict", entry.trigger, text))
        if _FIRES.get(trigger.enabled) is not entry.enabled:
            findings += _enabled_otherwise(entry, trigger, silenced)
        if isinstance(entry, PlannedTrigger) and trigger.timing is not Timing.AFTER:
            text = f"a {trigger.timing.value} trigger may change the row itself, and the plan turns it off"
            findings.append(
                Finding(
                    rule="plan.not_after",
                    severity=Severity.WARNING,
                    where=entry.trigger,
                    text=text,
                    remedy="move it to [[keep]] unless you are certain",
                )
            )
    for identity, judgement in sorted(now.items()):
        text = f"not in the plan (scan says {judgement.verdict.value})"
        findings.append(_drift("plan.new", identity, text))
    return findings


def _changed(entry: PlannedTrigger | LeftTrigger, trigger: Trigger) -> str:
    """What was changed, as the beginning of a sentence; empty when nothing was."""
    found, planned = fingerprint(trigger), entry.fingerprint
    if found == planned:
        return ""
    function = f"its function {trigger.function_schema}.{trigger.function}()"
    half = len(found) - len(_digest(""))
    if len(planned) != len(found) or (found[:half] != planned[:half] and found[half:] != planned[half:]):
        return f"the trigger and {function} were"
    return "the trigger was" if found[half:] == planned[half:] else f"{function} was"


def _enabled_otherwise(
    entry: PlannedTrigger | LeftTrigger, trigger: Trigger, silenced: Collection[str] | None
) -> Iterator[Finding]:
    match entry.enabled:
        case None:
            was = "it fired as usual when the plan was written"
        case Fires.NEVER:
            was = "it was disabled when the plan was written"
        case _:
            was = f"it fired {entry.enabled.value} when the plan was written"
    match trigger.enabled:
        case Enabled.DISABLED if isinstance(entry, PlannedTrigger) and silenced is None:
            yield Finding(
                rule="plan.enabled",
                severity=Severity.ERROR,
                where=entry.trigger,
                text="disabled, and whether by afterwrite cannot be read",
                remedy="GRANT USAGE ON SCHEMA afterwrite and SELECT ON its tables to the role that checks",
            )
        case Enabled.DISABLED if isinstance(entry, PlannedTrigger) and silenced and entry.trigger in silenced:
            return
        case Enabled.DISABLED:
            yield _drift("plan.enabled", entry.trigger, f"disabled by somebody else than afterwrite; {was}")
        case Enabled.ORIGIN:
            yield _drift("plan.enabled", entry.trigger, f"fires as usual now; {was}")
        case Enabled.REPLICA | Enabled.ALWAYS:
            yield _drift("plan.enabled", entry.trigger, f"fires {_FIRES[trigger.enabled].value} now; {was}")


def _drift(rule: str, where: str, text: str) -> Finding:
    again = "run `afterwrite plan --again`, which keeps what was decided, and review the difference"
    return Finding(rule=rule, severity=Severity.ERROR, where=where, text=text, remedy=again)
